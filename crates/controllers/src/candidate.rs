//! Everything that keeps a volume from a claim, for a person to read; the binder itself stops at the first.
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec};

use crate::{
    claim::{
        BOUND_BY_CONTROLLER, attributes_differ, capacity, class_of, class_of_volume, is_reserved_for, is_selected,
        modes_differ, offers_access, requested, reserved_for, volume_phase,
    },
    decision::{Meta, annotated},
};

/// One rule by which a volume does not do for a claim, with both sides as the objects say them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// The volume is being deleted.
    Deleting,
    /// Its claimRef is for another claim, or for an earlier one of this name where `same_name`.
    Reserved {
        claim: String,
        same_name: bool,
    },
    /// It is free of claims but not Available; the phase.
    Phase(String),
    Class {
        volume: String,
        claim: String,
    },
    /// Of `spec.capacity`, and of what the claim requests.
    TooSmall {
        volume: String,
        claim: String,
    },
    /// Modes that the claim wants and the volume lacks, and those it offers.
    Access {
        missing: Vec<String>,
        offered: Vec<String>,
    },
    Mode {
        volume: String,
        claim: String,
    },
    Attributes {
        volume: String,
        claim: String,
    },
    /// The claim's label selector does not match.
    Selector,
}

/// Every rule by which a volume does not do for a claim, wherever the claim is to be used; none if it does.
pub fn differences(meta: &Meta, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Vec<Difference> {
    let (empty_claim, empty_volume) = (Default::default(), PersistentVolumeSpec::default());
    let wanted = claim.spec.as_ref().unwrap_or(&empty_claim);
    let spec = volume.spec.as_ref().unwrap_or(&empty_volume);
    let ours = is_reserved_for(volume, meta);
    let text = |t: Option<&String>| t.cloned().unwrap_or_default();
    let mut found = Vec::new();
    if volume.metadata.deletion_timestamp.is_some() {
        found.push(Difference::Deleting);
    }
    if let Some((namespace, name)) = reserved_for(volume).filter(|_| !ours) {
        let same_name = (namespace, name) == (&meta.key.namespace, &meta.key.name);
        found.push(Difference::Reserved { claim: format!("{namespace}/{name}"), same_name });
    } else if !ours && volume_phase(volume) != "Available" {
        found.push(Difference::Phase(volume_phase(volume).to_owned()));
    }
    // Who reserves a volume by hand is free in class and labels.
    let by_hand = ours && !annotated(&volume.metadata, BOUND_BY_CONTROLLER);
    if !by_hand && class_of(claim) != class_of_volume(volume) {
        found.push(Difference::Class { volume: class_of_volume(volume).into(), claim: class_of(claim).into() });
    }
    if capacity(spec) < requested(claim) {
        let size = |amounts: Option<&std::collections::BTreeMap<String, _>>| {
            let found: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> =
                amounts.and_then(|a| a.get("storage"));
            found.map_or_else(|| "0".to_owned(), |q| q.0.clone())
        };
        found.push(Difference::TooSmall {
            volume: size(spec.capacity.as_ref()),
            claim: size(wanted.resources.as_ref().and_then(|r| r.requests.as_ref())),
        });
    }
    if !offers_access(claim, volume) {
        let offered = spec.access_modes.clone().unwrap_or_default();
        let missing = wanted.access_modes.iter().flatten().filter(|m| !offered.contains(m)).cloned().collect();
        found.push(Difference::Access { missing, offered });
    }
    if modes_differ(claim, volume) {
        let mode = |m: Option<&String>| m.map_or_else(|| "Filesystem".to_owned(), Clone::clone);
        let (volume, claim) = (mode(spec.volume_mode.as_ref()), mode(wanted.volume_mode.as_ref()));
        found.push(Difference::Mode { volume, claim });
    }
    if attributes_differ(claim, volume) {
        found.push(Difference::Attributes {
            volume: text(spec.volume_attributes_class_name.as_ref()),
            claim: text(wanted.volume_attributes_class_name.as_ref()),
        });
    }
    if !by_hand && !is_selected(claim, volume) {
        found.push(Difference::Selector);
    }
    found
}

impl Difference {
    /// The refusal in words, about the volume that it is of.
    pub fn said(&self, volume: &PersistentVolume) -> String {
        match self {
            Self::Deleting => "it is being deleted".into(),
            Self::Reserved { claim, same_name: true } => {
                format!("it is {}: its claimRef is for an earlier claim {claim}, which is gone", volume_phase(volume))
            }
            Self::Reserved { claim, .. } => match volume_phase(volume) {
                "Released" => format!("it is Released: its claimRef is for claim {claim}, which is gone"),
                "Bound" => format!("it is bound to claim {claim}"),
                _ => format!("its claimRef reserves it for claim {claim}"),
            },
            Self::Phase(phase) if phase.is_empty() => "it is not Available yet".into(),
            Self::Phase(phase) => format!("it is {phase}"),
            Self::Class { volume, claim } => {
                format!("its class is {}, the claim's {}", or_none(volume), or_none(claim))
            }
            Self::TooSmall { volume, claim } => format!("it has {volume}, the claim requests {claim}"),
            Self::Access { missing, offered } => {
                format!("it lacks {} and has {}", missing.join(", "), offered.join(", "))
            }
            Self::Mode { volume, claim } => format!("its volumeMode is {volume}, the claim's {claim}"),
            Self::Attributes { volume, claim } => {
                format!("its volumeAttributesClassName is {}, the claim's {}", or_none(volume), or_none(claim))
            }
            Self::Selector => "its labels do not match the claim's selector".into(),
        }
    }

    /// How far it takes a volume away from the claim: one that somebody else uses is no near miss.
    fn weight(&self, has_claim: &dyn Fn(&str, &str) -> bool) -> u32 {
        match self {
            Self::Reserved { claim, same_name } => match claim.split_once('/') {
                _ if *same_name => 2,
                Some((namespace, name)) if has_claim(namespace, name) => 1000,
                _ => 20,
            },
            Self::Deleting => 1000,
            Self::Phase(_) => 30,
            Self::Mode { .. } => 15,
            // A small volume of its own class is nearer than one of another class.
            Self::Class { .. } => 12,
            _ => 10,
        }
    }
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "none".into() } else { format!("{text:?}") }
}

/// One volume and what speaks against it.
#[derive(Debug)]
pub struct Weighed<'a> {
    pub volume: &'a PersistentVolume,
    pub against: Vec<Difference>,
}

impl Weighed<'_> {
    /// All refusals in words.
    pub fn said(&self) -> Vec<String> {
        self.against.iter().map(|d| d.said(self.volume)).collect()
    }

    /// Whether all that keeps the volume from the claim is the claim it served before.
    pub fn is_released(&self) -> bool {
        volume_phase(self.volume) == "Released" && matches!(self.against[..], [Difference::Reserved { .. }])
    }
}

/// The volumes with what speaks against each, the nearest first. `has_claim` says whether a claim exists.
pub fn weigh<'a>(
    claim: &PersistentVolumeClaim,
    volumes: impl Iterator<Item = &'a PersistentVolume>,
    has_claim: &dyn Fn(&str, &str) -> bool,
) -> Vec<Weighed<'a>> {
    let meta = Meta::new("PersistentVolumeClaim", &claim.metadata);
    let mut all: Vec<Weighed<'a>> =
        volumes.map(|volume| Weighed { volume, against: differences(&meta, claim, volume) }).collect();
    all.sort_by_cached_key(|w| {
        (w.against.iter().map(|d| d.weight(has_claim)).sum::<u32>(), w.volume.metadata.name.clone())
    });
    all
}
