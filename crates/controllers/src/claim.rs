//! Facts about claims, volumes and the pods that use them, as every controller reads them.
use api::quantity::Quantity;
use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeSpec, Pod},
    storage::v1::StorageClass,
};

use crate::{
    amount::amount,
    decision::{Meta, annotated, annotation},
    select::{labels_match, reaches},
    world::World,
};

pub(crate) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
pub(crate) use api::reclaim::{BOUND_BY_CONTROLLER, PROVISIONED_BY};
/// The annotation by which the scheduler tells a provisioner the node.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// In-tree provisioners that went into CSI drivers: claims of their classes ask for the driver.
/// The provisioner of classes whose volumes people make.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
const LEGACY_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The class that a claim asks for; empty for none. The legacy annotation wins.
pub fn class_of(claim: &PersistentVolumeClaim) -> &str {
    let spec = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    annotation(&claim.metadata, LEGACY_CLASS).or(spec).unwrap_or_default()
}

/// Whether the claim says anything about a class, be it that it wants none.
pub fn says_class(claim: &PersistentVolumeClaim) -> bool {
    annotated(&claim.metadata, LEGACY_CLASS) || claim.spec.as_ref().is_some_and(|s| s.storage_class_name.is_some())
}

/// The class of a volume; empty for none.
pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    annotation(&volume.metadata, LEGACY_CLASS).or(spec).unwrap_or_default()
}

/// Namespace and name in a volume's claimRef.
pub fn reserved_for(volume: &PersistentVolume) -> Option<(&str, &str)> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some((reference.namespace.as_deref().unwrap_or_default(), reference.name.as_deref().unwrap_or_default()))
}

/// The volume that a claim names; empty for none.
pub fn volume_of(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default()
}

/// Whether binding went through to its end.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_of(claim).is_empty() && annotated(&claim.metadata, BIND_COMPLETED)
}

/// `status.phase` of a claim; empty for none.
pub fn claim_phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}
/// `status.phase` of a volume; empty for none.
pub fn volume_phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Whether a volume's claimRef is for this incarnation of the claim; one without UID is for any.
pub(crate) fn is_reserved_for(volume: &PersistentVolume, claim: &Meta) -> bool {
    let uid =
        volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).and_then(|r| r.uid.as_deref()).unwrap_or_default();
    reserved_for(volume) == Some((&claim.key.namespace, &claim.key.name)) && (uid.is_empty() || uid == claim.uid)
}

/// The size that a claim asks for.
pub(crate) fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let requests = claim.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    requests.and_then(|r| r.get("storage")).map_or(Quantity::ZERO, amount)
}

pub(crate) fn capacity(spec: &PersistentVolumeSpec) -> Quantity {
    spec.capacity.as_ref().and_then(|c| c.get("storage")).map_or(Quantity::ZERO, amount)
}

/// What a claim's volume is to be made from: group, kind, name.
///
/// # Errors
/// A sentence about a source that is not supported.
pub(crate) fn data_source(spec: &PersistentVolumeClaimSpec) -> Result<Option<(&str, &str, &str)>, String> {
    if let Some(source) = &spec.data_source {
        return Ok(Some((source.api_group.as_deref().unwrap_or_default(), &source.kind, &source.name)));
    }
    let Some(source) = &spec.data_source_ref else { return Ok(None) };
    if source.namespace.as_deref().is_some_and(|n| !n.is_empty()) {
        return Err(
            "dataSourceRef namespace specified but the CrossNamespaceVolumeDataSource feature is disabled".into()
        );
    }
    Ok(Some((source.api_group.as_deref().unwrap_or_default(), &source.kind, &source.name)))
}

/// Kind and name of the snapshot or claim that a claim's volume is to be made from.
pub fn source_of(claim: &PersistentVolumeClaim) -> Option<(&'static str, &str)> {
    match data_source(claim.spec.as_ref()?).ok()?? {
        (api::snapshot::GROUP, "VolumeSnapshot", name) => Some(("VolumeSnapshot", name)),
        ("", "PersistentVolumeClaim", name) => Some(("PersistentVolumeClaim", name)),
        _ => None,
    }
}

fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

/// The volume mode that a claim asks for.
pub(crate) fn mode_of(claim: &PersistentVolumeClaim) -> &str {
    mode(claim.spec.as_ref().and_then(|s| s.volume_mode.as_ref()))
}

pub(crate) fn volume_mode_of(volume: &PersistentVolume) -> &str {
    mode(volume.spec.as_ref().and_then(|s| s.volume_mode.as_ref()))
}

pub(crate) fn modes_differ(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    mode_of(claim) != volume_mode_of(volume)
}

/// The attributes class that a claim asks for; empty for none.
pub(crate) fn attributes_wanted(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref()).unwrap_or_default()
}

pub(crate) fn attributes_of(volume: &PersistentVolume) -> &str {
    volume.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref()).unwrap_or_default()
}

pub(crate) fn attributes_differ(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    attributes_wanted(claim) != attributes_of(volume)
}

/// The access modes of a volume.
pub(crate) fn modes_of(volume: &PersistentVolume) -> &[String] {
    volume.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default()
}

pub(crate) fn offers_access(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let offered = modes_of(volume);
    claim.spec.as_ref().and_then(|s| s.access_modes.as_ref()).into_iter().flatten().all(|m| offered.contains(m))
}

/// Whether a volume is there for the taking.
pub(crate) fn is_free(volume: &PersistentVolume) -> bool {
    volume.metadata.deletion_timestamp.is_none()
        && reserved_for(volume).is_none()
        && volume_phase(volume) == "Available"
}

/// Why a volume that a claim asks for by name does not do.
pub fn mismatch(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<String> {
    let spec = volume.spec.as_ref()?;
    let why = if volume.metadata.deletion_timestamp.is_some() {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        return Some(format!("the volume is marked for deletion {name:?}"));
    } else if capacity(spec) < requested(claim) {
        "requested PV is too small"
    } else if class_of(claim) != class_of_volume(volume) {
        "storageClassName does not match"
    } else if attributes_differ(claim, volume) {
        "volumeAttributesClassName does not match"
    } else if modes_differ(claim, volume) {
        "incompatible volumeMode"
    } else if !offers_access(claim, volume) {
        "incompatible accessMode"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// What a volume needs to serve a claim at all, be it reserved for it or not.
fn fits(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    volume.metadata.deletion_timestamp.is_none()
        && volume.spec.as_ref().is_some_and(|s| capacity(s) >= requested(claim))
        && !modes_differ(claim, volume)
        && !attributes_differ(claim, volume)
        && offers_access(claim, volume)
}

pub(crate) fn is_selected(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let selector = claim.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_none_or(|s| labels_match(s, volume.metadata.labels.as_ref()))
}

/// Whether a claim may go on with a volume that is reserved for it. Who reserves a volume by hand is free in class and
/// labels; what was chosen here may have been chosen on an old state, and is looked at again.
pub(crate) fn keeps(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let chosen_here = annotated(&volume.metadata, BOUND_BY_CONTROLLER);
    let as_wanted = || class_of(claim) == class_of_volume(volume) && is_selected(claim, volume);
    fits(claim, volume) && (!chosen_here || as_wanted())
}

/// Where a claim is to be used, as far as that is known.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// Anywhere.
    Anywhere,
    /// Where its first pod will go: until that is known only a volume reserved for the claim will do.
    Unknown,
    /// On this node.
    On(&'a Node),
}

/// The volume that a claim gets: one reserved for it; else, of those with the fewest access modes, the smallest that
/// fits. `taken` volumes are left out. The name breaks ties.
pub(crate) fn best_volume<'a>(
    world: &'a World,
    claim: (&Meta, &PersistentVolumeClaim),
    place: Place<'_>,
    taken: &[&str],
) -> Option<(&'a Meta, &'a PersistentVolume)> {
    let (meta, claim) = claim;
    let within_reach = |v: &PersistentVolume| match place {
        Place::On(node) => reaches(v, node),
        _ => true,
    };
    let free = |name: &str| !taken.contains(&name);
    let mut reserved = world
        .volumes_reserved_for(&meta.key.namespace, &meta.key.name)
        .filter(|(m, v)| free(&m.key.name) && is_reserved_for(v, meta) && keeps(claim, v));
    if let Some(ours) = reserved.next() {
        return within_reach(ours.1).then_some(ours);
    }
    if matches!(place, Place::Unknown) {
        return None;
    }
    // With a node given the size alone counts, as upstream's scheduler has it.
    let node = match place {
        Place::On(node) => Some(node),
        _ => None,
    };
    world.best_free(claim, node, |m, v| free(&m.key.name) && is_selected(claim, v) && within_reach(v))
}

/// Whether a class leaves binding to the scheduler.
pub fn binds_late(class: Option<&StorageClass>) -> bool {
    class.and_then(|c| c.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer")
}

/// The class that claims without one get: of the defaults the newest, then the first by name.
pub(crate) fn default_class(world: &World) -> Option<&StorageClass> {
    let defaults = world.classes().map(|(_, c)| c).filter(|c| is_default(c));
    defaults.min_by_key(|c| (std::cmp::Reverse(c.metadata.creation_timestamp.clone()), c.metadata.name.clone()))
}

/// Whether a class is marked as a default one.
pub fn is_default(class: &StorageClass) -> bool {
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
        .iter()
        .any(|a| annotation(&class.metadata, a) == Some("true"))
}

/// Volume name, claim name and whether the claim is made for the pod, for each volume of a pod that is a claim.
pub fn claims_of(pod: &Pod) -> Vec<(&str, String, bool)> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes
        .filter_map(|v| match (&v.persistent_volume_claim, &v.ephemeral) {
            (Some(claim), _) => Some((v.name.as_str(), claim.claim_name.clone(), false)),
            (None, Some(_)) => Some((v.name.as_str(), format!("{name}-{}", v.name), true)),
            (None, None) => None,
        })
        .collect()
}

/// Whether a claim was made for an ephemeral volume of this incarnation of a pod.
pub(crate) fn is_made_for(claim: &Meta, pod_uid: &str) -> bool {
    claim.owners.iter().any(|o| o.controller == Some(true) && o.kind == "Pod" && o.uid == pod_uid)
}

/// Whether a pod that has a node, and has not ended, names a claim as such.
pub fn runs_with(pod: &Pod, claim: &str) -> bool {
    !node_of(pod).is_empty()
        && !is_terminated(pod)
        && claims_of(pod).iter().any(|(_, name, ephemeral)| name == claim && !ephemeral)
}

/// Whether a pod ran to its end.
pub fn is_terminated(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// The node of a pod; empty for none.
pub fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}
