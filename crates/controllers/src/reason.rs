//! Why a claim has no volume yet, in one sentence: for its condition, and for those who explain more than that.
use api::{Quantity, snapshot::VolumeSnapshot};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};

use crate::{
    candidate::{Difference, Weighed},
    claim::{
        NO_PROVISIONER, SELECTED_NODE, binds_late, claim_phase, class_of, is_default, node_of, requested, reserved_for,
        says_class, source_of, volume_of,
    },
    decision::annotation,
};

/// What a reason is made of.
pub trait Seen {
    fn class(&self, name: &str) -> Option<&StorageClass>;
    fn classes(&self) -> Box<dyn Iterator<Item = &StorageClass> + '_>;
    fn volume(&self, name: &str) -> Option<&PersistentVolume>;
    fn count_volumes(&self) -> usize;
    /// Whether there are volumes of a class, with or without the class itself.
    fn has_volume_of(&self, class: &str) -> bool;
    /// Whether there is a CSIDriver of the name.
    fn has_driver(&self, name: &str) -> bool;
    /// Whether it is known which snapshots there are.
    fn sees_snapshots(&self) -> bool {
        true
    }
    fn snapshot(&self, namespace: &str, name: &str) -> Option<&VolumeSnapshot>;
    fn claim(&self, namespace: &str, name: &str) -> Option<&PersistentVolumeClaim>;
    /// Pods that name the claim and have not ended.
    fn users(&self, claim: &PersistentVolumeClaim) -> Vec<&Pod>;
}

/// Why a claim waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// A word that stays the same from version to version: `wait-for-first-consumer`.
    pub cause: &'static str,
    /// The end of a sentence that begins with the claim.
    pub message: String,
}

fn because(cause: &'static str, message: impl Into<String>) -> Option<Reason> {
    Some(Reason { cause, message: message.into() })
}

/// In-tree provisioners that went without a trace, and without a successor. Nobody connects to what their classes name.
const REMOVED: &[&str] = &["kubernetes.io/flocker", "kubernetes.io/glusterfs"];

/// The CSI driver in place of a removed in-tree provisioner; empty where there is none.
pub fn successor(provisioner: &str) -> Option<&'static str> {
    let ended = || in_tree::ended_provisioner(provisioner).map(|e| e.driver);
    let gone = || REMOVED.contains(&provisioner).then_some("");
    in_tree::driver_of(provisioner).or_else(ended).or_else(gone)
}

/// Whether a claim chooses among volumes by their labels.
pub fn selects(claim: &PersistentVolumeClaim) -> bool {
    claim.spec.as_ref().and_then(|s| s.selector.as_ref()).is_some_and(|s| {
        s.match_labels.as_ref().is_some_and(|l| !l.is_empty())
            || s.match_expressions.as_ref().is_some_and(|e| !e.is_empty())
    })
}

/// Why an unbound claim waits, its volumes, or some of them, being `weighed`, the nearest first; `None` where nothing but the binder's
/// next step is missing.
pub fn reason(claim: &PersistentVolumeClaim, weighed: &[Weighed<'_>], seen: &dyn Seen) -> Option<Reason> {
    if !volume_of(claim).is_empty() {
        return named(claim, seen);
    }
    let wanted = class_of(claim);
    let class = seen.class(wanted);
    let late = binds_late(class);
    let fits = weighed.first().filter(|w| w.against.is_empty());
    if fits.is_some_and(|w| !late || reserved_for(w.volume).is_some()) {
        return None;
    }
    match class {
        Some(class) if late && annotation(&claim.metadata, SELECTED_NODE).is_none() => {
            consumer(claim, class, weighed, seen)
        }
        Some(class) if class.provisioner != NO_PROVISIONER => provisioner(claim, class, seen),
        None if !wanted.is_empty() && !seen.has_volume_of(wanted) => {
            because("class-not-found", format!("class {wanted:?} does not exist, and no volume is of that class"))
        }
        None if !says_class(claim) => no_class(claim, weighed, seen),
        _ => no_volume(claim, weighed, seen),
    }
}

/// A claim that names its volume takes no other. Labels do not count then.
fn named(claim: &PersistentVolumeClaim, seen: &dyn Seen) -> Option<Reason> {
    let wanted = volume_of(claim);
    let Some(volume) = seen.volume(wanted) else {
        return because("named-volume-missing", format!("it names volume {wanted:?}, which does not exist"));
    };
    let against = against_named(claim, volume);
    let reasons = against.said().join("; ");
    if against.against.is_empty() {
        return None;
    }
    because("named-volume-differs", format!("it names volume {wanted}, and {reasons}"))
}

/// What speaks against the volume that a claim names.
pub fn against_named<'a>(claim: &PersistentVolumeClaim, volume: &'a PersistentVolume) -> Weighed<'a> {
    let meta = crate::decision::Meta::new("PersistentVolumeClaim", &claim.metadata);
    let all = crate::candidate::differences(&meta, claim, volume).into_iter();
    Weighed { volume, against: all.filter(|d| *d != Difference::Selector).collect() }
}

fn consumer(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    weighed: &[Weighed<'_>],
    seen: &dyn Seen,
) -> Option<Reason> {
    let users = seen.users(claim);
    let name = |pod: &Pod| pod.metadata.name.clone().unwrap_or_default();
    let Some(user) = users.first() else {
        let class = class.metadata.name.as_deref().unwrap_or_default();
        let message = format!("class {class} waits for the first pod that uses the claim, and there is none");
        return because("wait-for-first-consumer", message);
    };
    let pod = name(user);
    if let Some(user) = users.iter().find(|p| !node_of(p).is_empty()) {
        let message =
            format!("pod {} was put on node {} past the scheduler (spec.nodeName)", name(user), node_of(user));
        return because("scheduler-bypassed", message);
    }
    if class.provisioner == NO_PROVISIONER && !weighed.iter().any(|w| w.against.is_empty()) {
        let class = class.metadata.name.as_deref().unwrap_or_default();
        return match seen.count_volumes() {
            0 => because(
                "no-volumes",
                format!("pod {pod} uses it, but there is no volume, and class {class} makes none"),
            ),
            n => because("no-fitting-volume", format!("pod {pod} uses it, but none of {n} volume(s) fits")),
        };
    }
    because("wait-for-pod-scheduled", format!("pod {pod} uses it and has no node yet"))
}

fn provisioner(claim: &PersistentVolumeClaim, class: &StorageClass, seen: &dyn Seen) -> Option<Reason> {
    let mut provisioner = class.provisioner.as_str();
    if let Some(driver) = successor(provisioner) {
        if driver.is_empty() || !seen.has_driver(driver) {
            let class = class.metadata.name.as_deref().unwrap_or_default();
            let message =
                format!("class {class} asks for provisioner {provisioner}, which Kubernetes no longer contains");
            return because("provisioner-removed", message);
        }
        provisioner = driver;
    }
    if selects(claim) {
        let message =
            format!("it has a selector, no volume that exists matches, and {provisioner} makes none for a selector");
        return because("selector-not-supported", message);
    }
    if let Some(reason) = source(claim, seen) {
        return Some(reason);
    }
    let on = annotation(&claim.metadata, SELECTED_NODE).map(|n| format!(" on node {n}")).unwrap_or_default();
    because("external-provisioner", format!("provisioner {provisioner} is to make its volume{on}"))
}

/// What keeps a volume from being made from the claim's source.
fn source(claim: &PersistentVolumeClaim, seen: &dyn Seen) -> Option<Reason> {
    let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
    let wanted = requested(claim);
    let (kind, name) = source_of(claim)?;
    let of = |what: &str, rest: String| format!("its volume is to be made from {what} {name}, {rest}");
    let larger = |size: Quantity| format!("which takes {size}, and the claim requests {wanted}");
    if kind == "VolumeSnapshot" {
        let of = |rest: String| of("snapshot", rest);
        let Some(snapshot) = seen.snapshot(namespace, name) else {
            let unknown = !seen.sees_snapshots();
            return because("snapshot-not-found", of("which does not exist".into())).filter(|_| !unknown);
        };
        if !snapshot.is_ready() {
            return because("snapshot-not-ready", of("which is not ready".into()));
        }
        let size = snapshot.status.as_ref().and_then(|s| s.restore_size.as_ref());
        let size = size.and_then(|size| Quantity::try_from(size).ok()).filter(|size| *size > wanted)?;
        return because("snapshot-too-large", of(larger(size)));
    }
    let of = |rest: String| of("that of claim", rest);
    let Some(source) = seen.claim(namespace, name) else {
        return because("source-claim-not-found", of("which does not exist".into()));
    };
    if claim_phase(source) != "Bound" {
        return because("source-claim-not-bound", of("which is not Bound".into()));
    }
    let size = Some(requested(source)).filter(|size| *size > wanted)?;
    because("source-claim-too-large", of(larger(size)))
}

fn no_class(claim: &PersistentVolumeClaim, weighed: &[Weighed<'_>], seen: &dyn Seen) -> Option<Reason> {
    if seen.classes().any(is_default) {
        return because("default-class", "it was made before there was a default class");
    }
    if weighed.first().is_some_and(Weighed::is_released) {
        return no_volume(claim, weighed, seen);
    }
    because("no-default-class", "it names no class, none is the default, and no volume fits")
}

fn no_volume(claim: &PersistentVolumeClaim, weighed: &[Weighed<'_>], seen: &dyn Seen) -> Option<Reason> {
    let class = class_of(claim);
    let of = if class.is_empty() { "without a class".into() } else { format!("of class {class}") };
    let Some(nearest) = weighed.first() else {
        return because("no-volumes", format!("there is no volume at all, and nothing makes volumes {of}"));
    };
    if nearest.is_released() {
        let name = nearest.volume.metadata.name.as_deref().unwrap_or_default();
        return because("volume-released", format!("volume {name} would fit, but it is kept for a claim that is gone"));
    }
    let message = format!("none of {} volume(s) fits, and nothing makes volumes {of}", seen.count_volumes());
    because("no-fitting-volume", message)
}
