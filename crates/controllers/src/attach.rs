//! Which volumes are to be attached to which nodes: a VolumeAttachment for each volume that a node's pods have, as far as the
//! driver wants its volumes attached.
//!
//! In: one persistent volume. Out: one attachment made, or deleted once the node has let go. Attaching itself: `publish`.
//! - A1: an attachment goes only when no pod on the node has the volume and the node does not say that it is in use.
//! - A2: a volume for one node alone is attached to one at a time.
//!
//! Source: Kubernetes 1.36, `pkg/controller/volume/attachdetach`, `pkg/volume/csi/csi_attacher.go`.
use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{
    claim::{is_bound, is_terminated, modes_of, node_of, reserved_for, volume_of},
    decision::{Action, Context, Decision, Key, Meta},
    world::{Change, Object, World},
};

const KIND: &str = "VolumeAttachment";

/// The name of the attachment of a volume to a node, which nodes know too.
pub fn name(handle: &str, driver: &str, node: &str) -> String {
    let hash = Sha256::new().chain_update(handle).chain_update(driver).chain_update(node).finalize();
    format!("csi-{hash:x}")
}

/// Begins the finalizer that keeps a volume while an attachment names it.
const PREFIX: &str = "external-attacher/";

/// The finalizer of a driver's attachments and of the volumes that they name.
pub(crate) fn finalizer(driver: &str) -> String {
    let tame = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') { c } else { '-' };
    format!("{PREFIX}{}", driver.chars().map(tame).collect::<String>())
}

pub(crate) fn decide(key: &Key, world: &World, _: &Context) -> Decision {
    let Some((meta, volume)) = world.volume(&key.name) else { return Decision::settled() };
    let Some((driver, handle)) = csi_of(volume) else { return Decision::settled() };
    let users = if wants_attaching(world, &driver) { nodes_with(world, (meta, volume)) } else { BTreeSet::new() };
    let ours = |node: &str| name(&handle, &driver, node);
    let all: Vec<_> = world.attachments_of(&key.name).filter_map(|k| world.attachment("", &k.name)).collect();
    for (attachment, object) in &all {
        let node = object.spec.node_name.as_str();
        let over = !users.contains(node) && attachment.deleting.is_none() && *attachment.key.name == *ours(node);
        if over && has_let_go(world, node, &driver, &handle) {
            let target = attachment.target();
            return Decision::act(Action::Delete { target, grace: None, propagation: None });
        }
    }
    let guard = finalizer(&driver);
    if all.is_empty() && (users.is_empty() || meta.deleting.is_some()) && meta.has_finalizer(&guard) {
        return Decision::act(Action::drop_finalizer(meta, &guard));
    }
    // Two volume objects may be for the same volume; whichever comes first has it attached.
    let attached = |node: &str| world.attachment("", &ours(node)).is_some();
    let one_alone = modes_of(volume).iter().all(|m| matches!(m.as_str(), "ReadWriteOnce" | "ReadWriteOncePod"));
    let next = users.iter().find(|node| !attached(node)).filter(|_| !one_alone || all.is_empty());
    let Some(node) = next.filter(|_| meta.deleting.is_none()) else { return Decision::settled() };
    if !meta.has_finalizer(&guard) {
        return Decision::act(Action::add_finalizer(meta, &guard));
    }
    let name = ours(node);
    let object = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": KIND, "metadata": { "name": name },
        "spec": { "attacher": driver, "nodeName": node, "source": { "persistentVolumeName": &*key.name } },
    });
    Decision::act(Action::Create { key: Key::new(KIND, "", &name), object })
}

/// Whether volumes of a driver are attached before they are used.
pub(crate) fn wants_attaching(world: &World, driver: &str) -> bool {
    world.csi_driver(driver).is_none_or(|(_, object)| object.spec.attach_required.unwrap_or(true))
}

/// Driver and handle of a volume, in-tree ones by those in their place.
fn csi_of(volume: &PersistentVolume) -> Option<(String, String)> {
    in_tree::source_of(volume).map(|source| (source.driver, source.volume_handle))
}

/// The nodes whose pods have the volume, or are about to.
fn nodes_with(world: &World, (meta, volume): (&Meta, &PersistentVolume)) -> BTreeSet<String> {
    let Some((namespace, claim)) = reserved_for(volume) else { return BTreeSet::new() };
    let bound = world.claim(namespace, claim).is_some_and(|(_, c)| is_bound(c) && volume_of(c) == &*meta.key.name);
    if !bound {
        return BTreeSet::new();
    }
    let pods = world.pods_naming(namespace, claim).filter(|(_, pod)| !is_terminated(pod));
    pods.map(|(_, pod)| node_of(pod).to_owned()).filter(|n| !n.is_empty() && world.node(n).is_some()).collect()
}

/// Whether a node does not use the volume any more. One that is gone, or said to be down for good, has let go.
pub(crate) fn has_let_go(world: &World, node: &str, driver: &str, handle: &str) -> bool {
    let Some((_, node)) = world.node(node).filter(|(_, n)| !is_out_of_service(n)) else { return true };
    let name = format!("kubernetes.io/csi/{driver}^{handle}");
    node.status.as_ref().and_then(|s| s.volumes_in_use.as_ref()).is_none_or(|used| !used.contains(&name))
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|t| t.key == "node.kubernetes.io/out-of-service")
}

pub(crate) fn wakes(world: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    let volume = |name: &str| Key::new("PersistentVolume", "", name);
    match change.key.kind {
        "PersistentVolume" => wake(change.key.clone()),
        "PersistentVolumeClaim" => {
            if let Some((_, claim)) = world.claim(&change.key.namespace, &change.key.name) {
                wake(volume(volume_of(claim)));
            }
        }
        "Pod" => {
            for entry in change.old.iter().chain(&change.new) {
                let Object::Pod(pod) = &entry.object else { continue };
                if node_of(pod).is_empty() {
                    continue;
                }
                for (_, claim, _) in crate::claim::claims_of(pod) {
                    if let Some((_, claim)) = world.claim(&change.key.namespace, &claim) {
                        wake(volume(volume_of(claim)));
                    }
                }
            }
        }
        KIND => {
            for entry in change.old.iter().chain(&change.new) {
                let Object::Attachment(attachment) = &entry.object else { continue };
                let Some(name) = &attachment.spec.source.persistent_volume_name else { continue };
                wake(volume(name));
                if let Some((driver, handle)) = world.volume(name).and_then(|(_, v)| csi_of(v)) {
                    world.volumes_of_handle(&driver, &handle).for_each(|k| wake(k.clone()));
                }
            }
        }
        "Node" => {
            let all = world.attachments().filter(|(_, a)| a.spec.node_name == *change.key.name);
            all.filter_map(|(_, a)| a.spec.source.persistent_volume_name.as_deref()).for_each(|n| wake(volume(n)));
        }
        "CSIDriver" => {
            let all = world.volumes().filter(|(_, v)| in_tree::driver_of_volume(v) == Some(&change.key.name));
            all.for_each(|(meta, _)| wake(meta.key.clone()));
        }
        _ => {}
    }
}
