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
