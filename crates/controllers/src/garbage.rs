//! Garbage collection: what is owned goes when its last owner goes, in the way that the owner was deleted.
//!
//! In: one object of any kind, its owners and its dependents. Out: the next delete or finalizer patch.
//! - An object with an owner that exists, or of a kind unknown here, is never deleted.
//! - The absence of an owner is checked past the caches before anything is deleted.
//!
//! Source: Kubernetes 1.36, `pkg/controller/garbagecollector`.
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;

use crate::{
    decision::{Action, Context, Decision, Key, Meta, Unless},
    world::{Change, World},
};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// What became of an owner.
enum Owner {
    Solid,
    /// Gone, as far as was seen.
    Gone(Key, String),
    /// Going, once its dependents are gone.
    Waiting,
}

pub(crate) fn decide(key: &Key, world: &World, _: &Context) -> Decision {
    let Some(entry) = world.entry(key) else { return Decision::settled() };
    let meta = &entry.meta;
    if meta.deleting.is_some() {
        return finish(meta, world);
    }
    let mut gone = Vec::new();
    let mut waiting = 0;
    let mut keep = Vec::new();
    for reference in &meta.owners {
        match state(meta, reference, world) {
            Owner::Solid => keep.push(reference),
            Owner::Gone(key, uid) => gone.push((key, uid)),
            Owner::Waiting => waiting += 1,
        }
    }
    if gone.is_empty() && waiting == 0 {
        return Decision::settled();
    }
    let delete = |propagation| Action::Delete { target: meta.target(), grace: None, propagation: Some(propagation) };
    let action = if !keep.is_empty() {
        // Those that stay own it alone from now on.
        Action::patch(meta, json!({ "metadata": { "ownerReferences": keep } }))
    } else if waiting > 0 && world.dependents(&meta.uid).next().is_some() {
        match unblocked(meta, world) {
            Some(action) => action,
            None => delete("Foreground"),
        }
    } else if meta.has_finalizer(ORPHAN) {
        delete("Orphan")
    } else if meta.has_finalizer(FOREGROUND) {
        delete("Foreground")
    } else {
        delete("Background")
    };
    if gone.is_empty() {
        return Decision::act(action);
    }
    Decision::act(Action::Checked { unless: Unless::Exists(gone), then: Box::new(action) })
}

/// Where a dependent waits for its own dependents too, these may own each other in a circle: nobody is to wait for this
/// one then.
fn unblocked(meta: &Meta, world: &World) -> Option<Action> {
    let waits = |d: &Meta| d.deleting.is_some() && d.has_finalizer(FOREGROUND);
    let blocks = |o: &OwnerReference| o.block_owner_deletion == Some(true);
    if !meta.owners.iter().any(blocks) || !world.dependents(&meta.uid).any(waits) {
        return None;
    }
    let owners: Vec<_> =
        meta.owners.iter().map(|o| OwnerReference { block_owner_deletion: Some(false), ..o.clone() }).collect();
    Some(Action::patch(meta, json!({ "metadata": { "ownerReferences": owners } })))
}

fn state(dependent: &Meta, reference: &OwnerReference, world: &World) -> Owner {
    let (group, version) = reference.api_version.split_once('/').unwrap_or(("", &reference.api_version));
    let Some(kind) = api::by_kind(group, version, &reference.kind) else { return Owner::Solid };
    // Events are not followed, and a face shows objects of another kind.
    if kind.face_of.is_some() || kind.kind == "Event" {
        return Owner::Solid;
    }
    let namespace = match kind.scope {
        api::Scope::Cluster => "",
        api::Scope::Namespace if dependent.key.namespace.is_empty() => return Owner::Solid,
        api::Scope::Namespace => &dependent.key.namespace,
    };
    let key = Key::new(kind.kind, namespace, &reference.name);
    match world.entry(&key).map(|e| &e.meta).filter(|m| m.uid == reference.uid) {
        None => Owner::Gone(key, reference.uid.clone()),
        Some(owner) if owner.deleting.is_some() && owner.has_finalizer(FOREGROUND) => Owner::Waiting,
        Some(_) => Owner::Solid,
    }
}

/// What is left to do before an object that is going can go.
fn finish(meta: &Meta, world: &World) -> Decision {
    if meta.has_finalizer(ORPHAN) {
        return match world.dependents(&meta.uid).next() {
            Some(dependent) => {
                let others: Vec<_> = dependent.owners.iter().filter(|o| o.uid != meta.uid).collect();
                Decision::act(Action::patch(dependent, json!({ "metadata": { "ownerReferences": others } })))
            }
            None => Decision::act(Action::drop_finalizer(meta, ORPHAN)),
        };
    }
    if !meta.has_finalizer(FOREGROUND) {
        return Decision::settled();
    }
    // What owns itself does not wait for itself.
    let blocks = |d: &Meta| {
        d.uid != meta.uid && d.owners.iter().any(|o| o.uid == meta.uid && o.block_owner_deletion == Some(true))
    };
    if world.dependents(&meta.uid).any(blocks) {
        return Decision::settled();
    }
    Decision::act(Action::drop_finalizer(meta, FOREGROUND))
}

pub(crate) fn wakes(world: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    let states = || change.old.iter().chain(&change.new);
    if states().any(|e| !e.meta.owners.is_empty() || !e.meta.finalizers.is_empty()) {
        wake(change.key.clone());
    }
    for entry in states() {
        // A dependent that went may have been the last one that an owner waited for.
        for owner in entry.meta.owners.iter().filter_map(|o| world.by_uid(&o.uid)) {
            if owner.deleting.is_some() {
                wake(owner.key.clone());
            }
        }
    }
    let gone = |uid: &str| change.new.as_ref().is_none_or(|n| n.meta.uid != uid || n.meta.deleting.is_some());
    if let Some(old) = states().next().filter(|e| gone(&e.meta.uid)) {
        world.dependents(&old.meta.uid).for_each(|d| wake(d.key.clone()));
    }
}
