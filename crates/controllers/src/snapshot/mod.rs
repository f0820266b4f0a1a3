//! Snapshots: a VolumeSnapshot of a claim gets a VolumeSnapshotContent, which a driver fills; one of a content that exists
//! already is bound to it. What the content says of itself is shown in the snapshot.
//!
//! In: a VolumeSnapshot, a VolumeSnapshotContent, or a claim that snapshots are being made of. Out: the next write to it or
//! to its other half.
//! - S1: the two halves of a binding name each other, the content the snapshot by UID, before anything counts on it.
//! - S2: a claim outlives the making of its snapshots; a snapshot the making of volumes from it; with policy Delete also
//!   its content.
//!
//! Absent on purpose: the driver (see `snapshotter`), group snapshots.
//! Source: external-snapshotter 8, `pkg/common-controller`.
mod request;
mod secret;

use api::snapshot::{VolumeSnapshot, VolumeSnapshotContent};
use serde_json::json;

use secret::SNAPSHOTTER;
pub(crate) use secret::{LIST, own, secret};

use crate::{
    claim::{reserved_for, source_of},
    decision::{Action, Context, Decision, Key, Meta, annotated},
    world::{Change, Entry, Object, World},
};

pub(crate) const SNAPSHOT: &str = "VolumeSnapshot";
pub(crate) const CONTENT: &str = "VolumeSnapshotContent";
const CLASS: &str = "VolumeSnapshotClass";
const CLAIM: &str = "PersistentVolumeClaim";

/// On a snapshot: volumes may be being made from it.
const AS_SOURCE: &str = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection";
/// On a snapshot whose content goes with it.
const BOUND: &str = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection";
/// On a content.
pub(crate) const CONTENT_BOUND: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";
/// On a claim that a snapshot is being made of.
const CLAIM_AS_SOURCE: &str = "snapshot.storage.kubernetes.io/pvc-as-source-protection";
/// On a content whose snapshot is going.
pub(crate) const BEING_DELETED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted";
/// On a content: the secret that its driver needs.
pub(crate) const SECRET_NAME: &str = "snapshot.storage.kubernetes.io/deletion-secret-name";
pub(crate) const SECRET_NAMESPACE: &str = "snapshot.storage.kubernetes.io/deletion-secret-namespace";

type Snapshot<'a> = (&'a Meta, &'a VolumeSnapshot);
type Content<'a> = (&'a Meta, &'a VolumeSnapshotContent);

/// The content that is made for a snapshot.
fn content_name(snapshot: &Meta) -> String {
    format!("snapcontent-{}", snapshot.uid)
}

fn is_for(content: &VolumeSnapshotContent, snapshot: &Meta) -> bool {
    content.is_for(&snapshot.key.namespace, &snapshot.key.name, &snapshot.uid)
}

pub(crate) fn decide(key: &Key, world: &World, context: &Context) -> Decision {
    let (namespace, name) = (&*key.namespace, &*key.name);
    let decision = match key.kind {
        SNAPSHOT => world.snapshot(namespace, name).map(|found| request::decide(found, world, context)),
        CONTENT => world.snapshot_content(name).map(|found| content(found, world).into()),
        _ => world.claim(namespace, name).map(|(meta, _)| claim(meta, world).into()),
    };
    decision.unwrap_or_default()
}

/// A content that is bound has a finalizer. One that somebody deletes after its snapshot went is let go.
fn content((meta, content): Content<'_>, world: &World) -> Option<Action> {
    let reference = &content.spec.volume_snapshot_ref;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (namespace, name, uid) = (text(&reference.namespace), text(&reference.name), text(&reference.uid));
    if uid.is_empty() {
        return None;
    }
    if meta.deleting.is_none() {
        return (!meta.has_finalizer(CONTENT_BOUND)).then(|| Action::add_finalizer(meta, CONTENT_BOUND));
    }
    if annotated(&content.metadata, BEING_DELETED) || world.by_uid(&uid).is_some() {
        return None;
    }
    let snapshot = Key::new(SNAPSHOT, &namespace, &name);
    let then = Box::new(being_deleted(meta));
    Some(Action::Checked { unless: crate::Unless::Exists(vec![(snapshot, uid)]), then })
}

fn being_deleted(content: &Meta) -> Action {
    Action::patch(content, json!({ "metadata": { "annotations": { BEING_DELETED: "yes" } } }))
}

/// A claim is let go once all snapshots of it are ready.
fn claim(meta: &Meta, world: &World) -> Option<Action> {
    let used = || snapshots_of(world, &meta.key.namespace, &meta.key.name).any(|(_, s)| !s.is_ready());
    (meta.has_finalizer(CLAIM_AS_SOURCE) && !used()).then(|| Action::drop_finalizer(meta, CLAIM_AS_SOURCE))
}

/// Snapshots of a claim.
fn snapshots_of<'a>(world: &'a World, namespace: &str, claim: &'a str) -> impl Iterator<Item = Snapshot<'a>> {
    world.of_namespace(SNAPSHOT, namespace).filter_map(snapshot).filter(move |(_, s)| s.claim_name() == Some(claim))
}

fn snapshot(entry: &Entry) -> Option<Snapshot<'_>> {
    match &entry.object {
        Object::Snapshot(object) => Some((&entry.meta, object)),
        _ => None,
    }
}

pub(crate) fn wakes(world: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    let states = || change.old.iter().chain(&change.new);
    match change.key.kind {
        SNAPSHOT => {
            wake(change.key.clone());
            for (meta, object) in states().filter_map(snapshot) {
                if let Some(claim) = object.claim_name() {
                    wake(Key::new(CLAIM, &meta.key.namespace, claim));
                }
                let bound = object.bound_content().or(object.content_name()).map(str::to_owned);
                wake(Key::new(CONTENT, "", &bound.unwrap_or_else(|| content_name(meta))));
            }
        }
        CONTENT => {
            wake(change.key.clone());
            for entry in states() {
                let Object::SnapshotContent(content) = &entry.object else { continue };
                let reference = &content.spec.volume_snapshot_ref;
                if let (Some(namespace), Some(name)) = (&reference.namespace, &reference.name) {
                    wake(Key::new(SNAPSHOT, namespace, name));
                }
            }
            // It may be that they name each other only halfway.
            let asks = |(_, s): &Snapshot<'_>| {
                let name = Some(&*change.key.name);
                s.content_name() == name || (change.new.is_none() && s.bound_content() == name)
            };
            world.snapshots().filter(asks).for_each(|(meta, _)| wake(meta.key.clone()));
        }
        CLASS => {
            let waits = |(meta, s): &Snapshot<'_>| meta.deleting.is_none() && !s.is_ready();
            world.snapshots().filter(waits).for_each(|(meta, _)| wake(meta.key.clone()));
        }
        CLAIM => {
            if states().any(|e| e.meta.has_finalizer(CLAIM_AS_SOURCE)) {
                wake(change.key.clone());
            }
            wake_snapshots_of(world, &change.key.namespace, &change.key.name, wake);
            for entry in states() {
                let Object::Claim(claim) = &entry.object else { continue };
                if let Some((SNAPSHOT, name)) = source_of(claim) {
                    wake(Key::new(SNAPSHOT, &change.key.namespace, name));
                }
            }
        }
        "PersistentVolume" => {
            for entry in states() {
                let Object::Volume(volume) = &entry.object else { continue };
                if let Some((namespace, name)) = reserved_for(volume) {
                    wake_snapshots_of(world, namespace, name, wake);
                }
            }
        }
        _ => {}
    }
}

fn wake_snapshots_of(world: &World, namespace: &str, claim: &str, wake: &mut dyn FnMut(Key)) {
    snapshots_of(world, namespace, claim).filter(|(_, s)| !s.is_ready()).for_each(|(meta, _)| wake(meta.key.clone()));
}
