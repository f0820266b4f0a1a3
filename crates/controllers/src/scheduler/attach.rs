//! What a node can attach: disks that only one pod may write to, and as many CSI volumes as its drivers can hold. Disks of
//! clouds by their in-tree names count as volumes of the drivers that replaced the plugins.
use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, Node, PersistentVolume, Pod, Volume};

use crate::{
    claim::{claims_of, class_of, is_terminated, volume_of},
    decision::Meta,
    provision::provisioner,
    world::World,
};

/// A driver and what it calls a volume.
type Attached = (String, String);

/// Pods that a node has and that have not ended.
fn running<'a>(world: &'a World, node: &Node) -> impl Iterator<Item = (&'a Meta, &'a Pod)> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    world.pods_on(name).filter(|(_, pod)| !is_terminated(pod))
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten())
}

/// Whether a pod names a disk itself that a pod on the node has, and one of them writes.
pub(super) fn disk_taken(world: &World, pod: &Pod, node: &Node) -> bool {
    let named = |v: &&Volume| {
        v.iscsi.is_some() || v.rbd.is_some() || v.gce_persistent_disk.is_some() || v.aws_elastic_block_store.is_some()
    };
    let disks: Vec<&Volume> = volumes(pod).filter(named).collect();
    !disks.is_empty()
        && running(world, node).any(|(_, other)| volumes(other).any(|theirs| disks.iter().any(|d| clash(d, theirs))))
}

/// Whether two volumes are one disk that cannot be in both pods.
pub fn clash(a: &Volume, b: &Volume) -> bool {
    let both_read = |a: Option<bool>, b: Option<bool>| a == Some(true) && b == Some(true);
    if let (Some(a), Some(b)) = (&a.gce_persistent_disk, &b.gce_persistent_disk) {
        return a.pd_name == b.pd_name && !both_read(a.read_only, b.read_only);
    }
    if let (Some(a), Some(b)) = (&a.aws_elastic_block_store, &b.aws_elastic_block_store) {
        return a.volume_id == b.volume_id;
    }
    if let (Some(a), Some(b)) = (&a.iscsi, &b.iscsi) {
        return a.iqn == b.iqn && !both_read(a.read_only, b.read_only);
    }
    if let (Some(a), Some(b)) = (&a.rbd, &b.rbd) {
        // What is not said is defaulted by the server.
        let same = a.pool == b.pool && a.image == b.image && a.monitors.iter().any(|m| b.monitors.contains(m));
        return same && !both_read(a.read_only, b.read_only);
    }
    false
}

/// Whether a pod's CSI volumes are more than the node's drivers can attach beside those that are there.
pub(super) fn too_many(world: &World, meta: &Meta, pod: &Pod, node: &Node) -> bool {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let Some((_, csi)) = world.csi_node(name) else { return false };
    let limits: HashMap<&str, usize> = csi
        .spec
        .drivers
        .iter()
        .filter_map(|d| Some((d.name.as_str(), usize::try_from(d.allocatable.as_ref()?.count?).unwrap_or(0))))
        .collect();
    if limits.is_empty() {
        return false;
    }
    let mut there: HashSet<Attached> = HashSet::new();
    running(world, node).for_each(|(meta, pod)| there.extend(attached(world, meta, pod)));
    for (_, attachment) in world.attachments().filter(|(_, a)| a.spec.node_name == name) {
        let source = &attachment.spec.source;
        let volume = source.persistent_volume_name.as_deref().and_then(|v| world.volume(v));
        let inline = source.inline_volume_spec.as_ref().and_then(|s| s.csi.clone()).map(called);
        let attached = volume.and_then(|(_, v)| csi_of(v)).or(inline);
        there.extend(attached.map(|(_, handle)| (attachment.spec.attacher.clone(), handle)));
    }
    let new: HashSet<Attached> = attached(world, meta, pod).filter(|volume| !there.contains(volume)).collect();
    let count = |set: &HashSet<Attached>, driver: &str| set.iter().filter(|(d, _)| d == driver).count();
    limits.iter().any(|(driver, most)| {
        let wanted = count(&new, driver);
        wanted > 0 && count(&there, driver) + wanted > *most
    })
}

/// The CSI volumes of a pod's claims, those that are yet to be made by the claims' names, and the disks that it names itself.
fn attached<'a>(world: &'a World, meta: &'a Meta, pod: &'a Pod) -> impl Iterator<Item = Attached> + 'a {
    let namespace = &*meta.key.namespace;
    let claims = claims_of(pod).into_iter().filter_map(move |(_, name, _)| {
        let (_, claim) = world.claim(namespace, &name)?;
        let Some((_, volume)) = world.volume(volume_of(claim)) else {
            let (_, class) = world.class(class_of(claim))?;
            return Some((provisioner(class).to_owned(), format!("{namespace}/{name}")));
        };
        csi_of(volume)
    });
    // What cannot be translated is no volume of the driver.
    let inline = volumes(pod).filter_map(move |v| in_tree::inline_to_csi(v, namespace).ok().flatten());
    claims.chain(inline.filter_map(|v| csi_of(&v)))
}

fn csi_of(volume: &PersistentVolume) -> Option<Attached> {
    in_tree::source_of(volume).map(called)
}

fn called(csi: CSIPersistentVolumeSource) -> Attached {
    (csi.driver, csi.volume_handle)
}
