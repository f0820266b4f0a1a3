//! Protection of what is in use: keeps the finalizers of claims, volumes and attributes classes on, and takes them off once
//! nothing uses them.
//!
//! In: one claim, volume or attributes class. Out: the patch that puts the finalizer on, or takes it off, from a claim after a
//! look past the caches.
//! - A claim that a scheduled pod names keeps its finalizer.
//! - A volume that is Bound, or reserved for a claim that is there, keeps its finalizer.
//! - An attributes class that a claim or a volume names, has or is on the way to keeps its finalizer.
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};

use crate::{
    claim::{claims_of, is_bound, is_made_for, is_reserved_for, node_of, reserved_for, volume_of, volume_phase},
    decision::{Action, Context, Decision, Key, Meta, Unless},
    world::{Change, Entry, Object, World},
};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
const ATTRIBUTES: &str = "kubernetes.io/vac-protection";
const ATTRIBUTES_KIND: &str = "VolumeAttributesClass";

pub(crate) fn decide(key: &Key, world: &World, _: &Context) -> Decision {
    if let Some((meta, volume)) = world.volume(&key.name).filter(|_| key.kind == "PersistentVolume") {
        if unprotected(meta, VOLUME) {
            return Decision::act(Action::add_finalizer(meta, VOLUME));
        }
        let free = meta.deleting.is_some() && meta.has_finalizer(VOLUME) && !is_held(world, volume);
        return free.then(|| Action::drop_finalizer(meta, VOLUME)).into();
    }
    if key.kind == ATTRIBUTES_KIND {
        return world.entry(key).and_then(|class| of_attributes(&class.meta, world)).into();
    }
    let Some((meta, _)) = world.claim(&key.namespace, &key.name).filter(|_| key.kind == "PersistentVolumeClaim") else {
        return Decision::settled();
    };
    if unprotected(meta, CLAIM) {
        return Decision::act(Action::add_finalizer(meta, CLAIM));
    }
    let candidate = meta.deleting.is_some() && meta.has_finalizer(CLAIM);
    let mut pods = world.pods_naming(&key.namespace, &key.name);
    if !candidate || pods.any(|(pod_meta, pod)| uses(pod, &pod_meta.uid, meta)) {
        return Decision::settled();
    }
    // A pod may have been scheduled a moment ago.
    Decision::act(Action::Checked {
        unless: Unless::Used {
            namespace: key.namespace.to_string(),
            claim: key.name.to_string(),
            claim_uid: meta.uid.clone(),
        },
        then: Box::new(Action::drop_finalizer(meta, CLAIM)),
    })
}

fn of_attributes(class: &Meta, world: &World) -> Option<Action> {
    if unprotected(class, ATTRIBUTES) {
        return Some(Action::add_finalizer(class, ATTRIBUTES));
    }
    let going = class.deleting.is_some() && class.has_finalizer(ATTRIBUTES);
    let used = || {
        let users = world.entries("PersistentVolume").chain(world.entries("PersistentVolumeClaim"));
        users.flat_map(|user| attributes_classes(&user.object)).any(|name| name == &*class.key.name)
    };
    (going && !used()).then(|| Action::drop_finalizer(class, ATTRIBUTES))
}

/// The attributes classes that a volume has, or that a claim asks for, has, or is being changed to.
fn attributes_classes(object: &Object) -> Vec<&str> {
    let names = match object {
        Object::Volume(v) => vec![v.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref())],
        Object::Claim(c) => {
            let status = c.status.as_ref();
            vec![
                c.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref()),
                status.and_then(|s| s.current_volume_attributes_class_name.as_deref()),
                status
                    .and_then(|s| s.modify_volume_status.as_ref())
                    .and_then(|m| m.target_volume_attributes_class_name.as_deref()),
            ]
        }
        _ => Vec::new(),
    };
    names.into_iter().flatten().filter(|name| !name.is_empty()).collect()
}

/// Whether a volume is bound, or its claim counts on it while it says otherwise, or is about to: it may be pointed here
/// already.
fn is_held(world: &World, volume: &PersistentVolume) -> bool {
    let phase = volume_phase(volume);
    let counts_on = |(meta, claim): (&Meta, &PersistentVolumeClaim)| {
        let here = is_bound(claim) && Some(volume_of(claim)) == volume.metadata.name.as_deref();
        let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        let chosen = reference.is_some_and(|r| r.uid.as_ref() == Some(&meta.uid));
        (here && is_reserved_for(volume, meta)) || (chosen && !matches!(phase, "Released" | "Failed"))
    };
    phase == "Bound"
        || reserved_for(volume).and_then(|(namespace, name)| world.claim(namespace, name)).is_some_and(counts_on)
}

/// Whether somebody took the protection off, or made the object where nobody put it on.
fn unprotected(meta: &Meta, finalizer: &str) -> bool {
    meta.deleting.is_none() && !meta.has_finalizer(finalizer)
}

/// Whether a pod keeps a claim from going: only scheduled ones count, for a node starts no pod whose claim is going.
pub fn uses(pod: &Pod, pod_uid: &str, claim: &Meta) -> bool {
    let shut_down = pod.metadata.deletion_timestamp.is_some() && pod.metadata.deletion_grace_period_seconds == Some(0);
    !node_of(pod).is_empty()
        && claims_of(pod).into_iter().any(|(_, name, ephemeral)| {
            name == *claim.key.name && (!ephemeral || (!shut_down && is_made_for(claim, pod_uid)))
        })
}

pub(crate) fn wakes(_: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    match change.key.kind {
        "PersistentVolumeClaim" | "PersistentVolume" => {
            wake(change.key.clone());
            let names = |entry: &Option<Entry>| -> Vec<String> {
                let names = entry.iter().flat_map(|e| attributes_classes(&e.object));
                names.map(str::to_owned).collect()
            };
            let kept = names(&change.new);
            for name in names(&change.old).iter().filter(|name| !kept.contains(name)) {
                wake(Key::new(ATTRIBUTES_KIND, "", name));
            }
        }
        ATTRIBUTES_KIND => wake(change.key.clone()),
        "Pod" => {
            for entry in change.old.iter().chain(&change.new) {
                let Object::Pod(pod) = &entry.object else { continue };
                for (_, claim, _) in claims_of(pod) {
                    wake(Key::new("PersistentVolumeClaim", &change.key.namespace, &claim));
                }
            }
        }
        _ => {}
    }
}
