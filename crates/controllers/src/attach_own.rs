//! Attaching disks of clouds that pods name themselves, by their in-tree names: a VolumeAttachment with the disk in it, for there
//! is no volume object.
//!
//! In: one pod, or one such attachment. Out: an attachment made for the pod, or deleted once the node has let go.
//! Attaching itself: `publish`. Source: as `attach`.
use k8s_openapi::api::{
    core::v1::{CSIPersistentVolumeSource, PersistentVolumeSpec, Pod},
    storage::v1::VolumeAttachment,
};
use serde_json::json;

use crate::{
    attach::{has_let_go, name, wants_attaching},
    claim::{is_terminated, node_of},
    decision::{Action, Context, Decision, Key},
    world::{Change, Object, World},
};

const KIND: &str = "VolumeAttachment";

/// The disks that a pod names itself, as volumes of their drivers. What cannot be translated, the node refuses.
fn disks(pod: &Pod) -> impl Iterator<Item = PersistentVolumeSpec> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter_map(move |v| in_tree::inline_to_csi(v, namespace).ok().flatten()?.spec)
}

fn called(spec: &PersistentVolumeSpec, node: &str) -> Option<(String, CSIPersistentVolumeSource)> {
    let source = spec.csi.clone()?;
    Some((name(&source.volume_handle, &source.driver, node), source))
}

/// The disk in an attachment, if it is one for pods' own disks.
fn own(attachment: &VolumeAttachment) -> Option<&CSIPersistentVolumeSource> {
    attachment.spec.source.inline_volume_spec.as_ref()?.csi.as_ref()
}

fn uses(pod: &Pod, node: &str) -> bool {
    node_of(pod) == node && !is_terminated(pod)
}

pub(crate) fn decide(key: &Key, world: &World, _: &Context) -> Decision {
    match key.kind {
        KIND => over(key, world),
        _ => wanted(key, world),
    }
}

/// Makes what a pod needs.
fn wanted(key: &Key, world: &World) -> Decision {
    let Some((meta, pod)) = world.pod(&key.namespace, &key.name) else { return Decision::settled() };
    let node = node_of(pod);
    if node.is_empty() || world.node(node).is_none() || meta.deleting.is_some() || is_terminated(pod) {
        return Decision::settled();
    }
    let missing = disks(pod).find_map(|spec| {
        let (name, source) = called(&spec, node)?;
        let free = world.attachment("", &name).is_none() && !is_elsewhere(world, &spec, &source, node);
        (free && wants_attaching(world, &source.driver)).then_some((name, source.driver, spec))
    });
    let Some((name, driver, spec)) = missing else { return Decision::settled() };
    let object = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": KIND, "metadata": { "name": name },
        "spec": { "attacher": driver, "nodeName": node, "source": { "inlineVolumeSpec": spec } },
    });
    Decision::act(Action::Create { key: Key::new(KIND, "", &name), object })
}

/// Whether a disk for one node is attached to another one.
fn is_elsewhere(world: &World, spec: &PersistentVolumeSpec, source: &CSIPersistentVolumeSource, node: &str) -> bool {
    let one_alone = spec.access_modes.iter().flatten().all(|m| m == "ReadWriteOnce");
    let mut all = world.attachments().filter(|(_, a)| a.spec.node_name != node);
    one_alone
        && all
            .any(|(_, a)| own(a).is_some_and(|s| s.driver == source.driver && s.volume_handle == source.volume_handle))
}

/// Deletes what no pod needs any more.
fn over(key: &Key, world: &World) -> Decision {
    let Some((meta, attachment)) = world.attachment("", &key.name) else { return Decision::settled() };
    let node = attachment.spec.node_name.as_str();
    let Some(source) = own(attachment) else { return Decision::settled() };
    let ours = *meta.key.name == *name(&source.volume_handle, &source.driver, node);
    let needed = world
        .pods_on(node)
        .filter(|(_, pod)| uses(pod, node))
        .any(|(_, pod)| disks(pod).any(|spec| called(&spec, node).is_some_and(|(name, _)| name == *meta.key.name)));
    let over = ours && !needed && meta.deleting.is_none();
    if !over || !has_let_go(world, node, &source.driver, &source.volume_handle) {
        return Decision::settled();
    }
    Decision::act(Action::Delete { target: meta.target(), grace: None, propagation: None })
}

pub(crate) fn wakes(world: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    let attached = |node: &str, wake: &mut dyn FnMut(Key)| {
        let all = world.attachments().filter(|(_, a)| a.spec.node_name == node && own(a).is_some());
        all.for_each(|(meta, _)| wake(meta.key.clone()));
    };
    let has_disks = |pod: &Pod| disks(pod).next().is_some();
    match change.key.kind {
        "Pod" => {
            let states = || change.old.iter().chain(&change.new);
            let pods = || states().filter_map(|e| if let Object::Pod(p) = &e.object { Some(p) } else { None });
            if pods().any(|p| has_disks(p)) {
                wake(change.key.clone());
                pods().for_each(|pod| attached(node_of(pod), wake));
            }
        }
        KIND => {
            wake(change.key.clone());
            for entry in change.old.iter().chain(&change.new) {
                let Object::Attachment(attachment) = &entry.object else { continue };
                if own(attachment).is_some() {
                    let pods = world.pods_on(&attachment.spec.node_name).filter(|(_, p)| has_disks(p));
                    pods.for_each(|(meta, _)| wake(meta.key.clone()));
                }
            }
        }
        "Node" => attached(&change.key.name, wake),
        "CSIDriver" => world.pods().filter(|(_, p)| has_disks(p)).for_each(|(meta, _)| wake(meta.key.clone())),
        _ => {}
    }
}
