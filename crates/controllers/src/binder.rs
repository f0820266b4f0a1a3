//! Claim binding: gives each claim one suitable volume, and keeps the phases of both true.
//!
//! In: one claim, or one volume, and the world. Out: the next of the writes of the handshake (reserve the volume; point
//! the claim at it, and beside that mark the volume Bound; mark the claim Bound), or what the claim waits for. A crash or
//! a lost write between any two resumes here.
//! - B1: a volume is reserved for at most one claim UID until that claim is gone. (property)
//! - B2: a bound claim never changes its volume. (property)
//! - B3: what is settled stays settled: deciding again yields no action. (property)
//!
//! Absent on purpose: provisioning itself, the choice of a node (see `scheduler`), reclaiming (see `volume`).
//! Source: Kubernetes 1.36, `pkg/controller/volume/persistentvolume`.
use api::{growth::PRE_RESIZE_CAPACITY, quantity::Quantity};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::{Map, Value, json};

use crate::{
    claim::{
        BIND_COMPLETED, BOUND_BY_CONTROLLER, Place, SELECTED_NODE, best_volume, binds_late, claim_phase, claims_of,
        class_of, class_of_volume, default_class, is_free, is_reserved_for, is_terminated, mismatch, node_of,
        reserved_for, says_class, volume_of, volume_phase,
    },
    decision::{Action, Context, Decision, Key, Meta, Note, annotated, annotation},
    provision::ASKED,
    volume,
    world::{Change, Entry, Object, World},
};

type Claim<'a> = (&'a Meta, &'a PersistentVolumeClaim);
type Volume<'a> = (&'a Meta, &'a PersistentVolume);

/// Claims woken at once when volumes come free: as many as can be acted for. Each volume taken brings the next.
const SHARE: usize = 64;

/// The next step for a claim or a volume. A class is decided when its free volumes change, whether it exists or not.
pub(crate) fn decide(key: &Key, world: &World, _: &Context) -> Decision {
    match key.kind {
        "PersistentVolumeClaim" => match world.claim(&key.namespace, &key.name) {
            Some(claim) if annotated(&claim.1.metadata, BIND_COMPLETED) => decide_bound(claim, world),
            Some(claim) => decide_unbound(claim, world),
            None => Decision::settled(),
        },
        "StorageClass" => share_out(&key.name, world),
        _ => world.volume(&key.name).map_or_else(Decision::settled, |v| volume::decide(v, world)),
    }
}

/// The claims and volumes that a change concerns.
pub(crate) fn wakes(world: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    let states = || change.old.iter().chain(&change.new);
    match change.key.kind {
        "PersistentVolumeClaim" => {
            wake(change.key.clone());
            world.volumes_reserved_for(&change.key.namespace, &change.key.name).for_each(|(m, _)| wake(m.key.clone()));
            if let Some(class) = left_in_class(world, change) {
                wake(Key::new("StorageClass", "", class));
            }
            for entry in states() {
                if let Object::Claim(claim) = &entry.object
                    && !volume_of(claim).is_empty()
                {
                    wake(Key::new("PersistentVolume", "", volume_of(claim)));
                }
            }
        }
        "PersistentVolume" => {
            wake(change.key.clone());
            for entry in states() {
                let Object::Volume(volume) = &entry.object else { continue };
                if let Some((namespace, name)) = reserved_for(volume) {
                    wake(Key::new("PersistentVolumeClaim", namespace, name));
                }
                // Free now: somebody may wait for it. No longer free: who was told of it may have to be told of another.
                let class = class_of_volume(volume);
                if is_free(volume) && world.unbound_claims(class).next().is_some() {
                    wake(Key::new("StorageClass", "", class));
                }
            }
            world.claims_naming(&change.key.name).for_each(|k| wake(k.clone()));
        }
        "StorageClass" => {
            // A new default concerns the claims that name no class.
            for class in [&*change.key.name, ""] {
                world.unbound_claims(class).for_each(|k| wake(k.clone()));
            }
        }
        "Node" => {
            // Which volumes it reaches, and whether it does.
            let looks = |entry: &Option<Entry>| match entry.as_ref().map(|e| &e.object) {
                Some(Object::Node(node)) => Some((volume::is_at_work(node), node.metadata.labels.clone())),
                _ => None,
            };
            if looks(&change.old) != looks(&change.new) {
                let waiting = world.volumes().filter(|(_, v)| volume::waits_for_node(v));
                waiting.for_each(|(m, _)| wake(m.key.clone()));
            }
        }
        "Pod" => {
            // Only what a claim waiting for its first consumer is told depends on pods.
            for entry in states() {
                let Object::Pod(pod) = &entry.object else { continue };
                for (_, claim, _) in claims_of(pod) {
                    if world.claim(&change.key.namespace, &claim).is_some_and(|(_, c)| !crate::claim::is_bound(c)) {
                        wake(Key::new("PersistentVolumeClaim", &change.key.namespace, &claim));
                    }
                }
            }
        }
        _ => {}
    }
}

/// The class whose volumes a claim needs no longer, without having taken one of them: it may have been told of one that
/// others can have now.
fn left_in_class<'a>(world: &World, change: &'a Change) -> Option<&'a str> {
    let claim = |entry: &'a Option<Entry>| match entry.as_ref().map(|e| &e.object) {
        Some(Object::Claim(claim)) => Some(claim),
        _ => None,
    };
    let old = claim(&change.old).filter(|c| volume_of(c).is_empty())?;
    let class = class_of(old);
    let chosen_here = |name| world.volume(name).is_some_and(|(_, v)| annotated(&v.metadata, BOUND_BY_CONTROLLER));
    let left = claim(&change.new).is_none_or(|new| match volume_of(new) {
        "" => class_of(new) != class,
        name => !chosen_here(name),
    });
    (left && world.count_free(class) > 0 && world.unbound_claims(class).next().is_some()).then_some(class)
}

fn decide_unbound(claim: Claim<'_>, world: &World) -> Decision {
    let (meta, object) = claim;
    let name = volume_of(object);
    if name.is_empty() {
        return choose(claim, world);
    }
    let Some(volume) = world.volume(name) else { return pending(claim) };
    let reserved = volume.1.spec.as_ref().is_some_and(|s| s.claim_ref.is_some());
    if !reserved {
        return match mismatch(object, volume.1) {
            Some(why) => {
                let message = format!("Cannot bind to requested volume {name:?}: {why}");
                pending(claim).with(Note::warning(meta, "VolumeMismatch", message))
            }
            None => bind(claim, volume).into(),
        };
    }
    if is_reserved_for(volume.1, meta) {
        return bind(claim, volume).into();
    }
    let message = format!("volume {name:?} already bound to a different claim.");
    pending(claim).with(Note::warning(meta, "FailedBinding", message))
}

/// Wakes claims of a class that can have one of its free volumes, each another one.
fn share_out(class: &str, world: &World) -> Decision {
    let mut decision = Decision::settled();
    // Where the scheduler chooses it is told of volumes itself.
    let most = world.count_free(class).min(SHARE);
    if most == 0 || binds_late(world.class(class).map(|(_, c)| c)) {
        return decision;
    }
    let mut given = Vec::new();
    for key in world.unbound_claims(class) {
        let Some(claim) = world.claim(&key.namespace, &key.name) else { continue };
        if !volume_of(claim.1).is_empty() {
            continue;
        }
        // One that is reserved for the claim woke it by itself.
        if let Some((volume, _)) = best_volume(world, claim, Place::Anywhere, &given).filter(|(_, v)| is_free(v)) {
            given.push(&*volume.key.name);
            decision.wake.push(key.clone());
            if given.len() == most {
                break;
            }
        }
    }
    decision
}

fn choose(claim: Claim<'_>, world: &World) -> Decision {
    let (meta, object) = claim;
    let class_name = class_of(object);
    let class = world.class(class_name).map(|(_, c)| c);
    let late = !class_name.is_empty() && binds_late(class);
    let place = if late { Place::Unknown } else { Place::Anywhere };
    if let Some(volume) = best_volume(world, claim, place, &[]) {
        return match reserve(meta, volume) {
            Some(action) => Decision::take(action),
            None => bind(claim, volume).into(),
        };
    }
    if !says_class(object)
        && let Some(default) = default_class(world)
    {
        return Decision::act(Action::patch(meta, json!({ "spec": { "storageClassName": default.metadata.name } })));
    }
    if late && !annotated(&object.metadata, SELECTED_NODE) {
        return pending(claim).with(waiting_for_consumer(claim, world));
    }
    if !class_name.is_empty() {
        return provision(claim, world);
    }
    let message = "no persistent volumes available for this claim and no storage class is set";
    pending(claim).with(Note::normal(meta, "FailedBinding", message))
}

fn waiting_for_consumer((meta, _): Claim<'_>, world: &World) -> Note {
    let pods: Vec<_> = world
        .pods_naming(&meta.key.namespace, &meta.key.name)
        .filter(|(_, pod)| !is_terminated(pod) && node_of(pod).is_empty())
        .map(|(m, _)| &*m.key.name)
        .collect();
    match pods.as_slice() {
        [] => Note::normal(meta, "WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
        [pod] => Note::normal(meta, "WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
        pods => {
            Note::normal(meta, "WaitForPodScheduled", format!("waiting for pods {} to be scheduled", pods.join(",")))
        }
    }
}

/// Asks the provisioner of the claim's class for a volume; that is somebody else's program.
fn provision(claim: Claim<'_>, world: &World) -> Decision {
    let (meta, object) = claim;
    let name = class_of(object);
    let failed = |message: String| pending(claim).with(Note::warning(meta, "ProvisioningFailed", message));
    let Some((_, class)) = world.class(name) else {
        return failed(format!("storageclass.storage.k8s.io {name:?} not found"));
    };
    let provisioner = class.provisioner.as_str();
    let provisioner = in_tree::driver_of(provisioner).unwrap_or(provisioner);
    if provisioner.starts_with("kubernetes.io/") {
        return failed(format!("no volume plugin matched name: {provisioner}"));
    }
    if annotation(&object.metadata, ASKED[0]) != Some(provisioner) {
        let asked: Map<String, Value> = ASKED.iter().map(|a| ((*a).to_owned(), json!(provisioner))).collect();
        return Decision::act(Action::patch(meta, json!({ "metadata": { "annotations": asked } })));
    }
    let message = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
         system administrator. If volume creation is delayed, please verify that the provisioner is running and \
         correctly registered.{}",
        missing(provisioner, world)
    );
    pending(claim).with(Note::normal(meta, "ExternalProvisioning", message))
}

/// What to do about a driver of a cloud that is not here.
fn missing(driver: &str, world: &World) -> String {
    let hint = in_tree::not_here(driver).filter(|_| !world.has_driver(driver));
    hint.map(|hint| format!(" {hint}")).unwrap_or_default()
}

/// Sees to it that an unbound claim says so.
fn pending(claim: Claim<'_>) -> Decision {
    claim_status(claim, "Pending", None).into()
}

fn decide_bound(claim: Claim<'_>, world: &World) -> Decision {
    let (meta, object) = claim;
    let lost = |reason, message: &str| {
        if claim_phase(object) == "Lost" {
            return Decision::settled();
        }
        Decision::from(claim_status(claim, "Lost", None)).with(Note::warning(meta, reason, message))
    };
    let name = volume_of(object);
    if name.is_empty() {
        return lost("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!");
    }
    let Some(volume) = world.volume(name) else {
        return lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!");
    };
    let holder =
        volume.1.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).map(|r| r.uid.as_deref().unwrap_or_default());
    match holder {
        None => bind(claim, volume).into(),
        Some(uid) if uid == meta.uid => bind(claim, volume).into(),
        Some(_) => lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly"),
    }
}

/// The next write that is missing for the two to be bound to each other; `None` when all is done, or when the volume's
/// own decision has to mark it Bound first, which it does beside the claim's being pointed at it.
pub(crate) fn bind(claim: Claim<'_>, volume: Volume<'_>) -> Option<Action> {
    reserve(claim.0, volume).or_else(|| point_at(claim, &volume.0.key.name)).or_else(|| {
        // Whoever sees the claim Bound may count on the volume.
        (volume_phase(volume.1) == "Bound").then(|| claim_status(claim, "Bound", Some(volume.1))).flatten()
    })
}

/// Reserves a volume for this incarnation of a claim.
pub(crate) fn reserve(claim: &Meta, (meta, volume): Volume<'_>) -> Option<Action> {
    let ours = is_reserved_for(volume, claim);
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    if ours && reference.is_some_and(|r| r.uid.as_ref() == Some(&claim.uid)) {
        return None;
    }
    let mut patch = json!({ "spec": { "claimRef": {
        "kind": "PersistentVolumeClaim",
        "apiVersion": "v1",
        "namespace": &*claim.key.namespace,
        "name": &*claim.key.name,
        "uid": claim.uid,
        "resourceVersion": claim.resource_version,
    } } });
    // One that an administrator reserved stays the administrator's.
    if !ours && !annotated(&volume.metadata, BOUND_BY_CONTROLLER) {
        patch["metadata"] = json!({ "annotations": { BOUND_BY_CONTROLLER: "yes" } });
    }
    Some(Action::patch(meta, patch))
}

fn point_at((meta, claim): Claim<'_>, volume: &str) -> Option<Action> {
    let named = volume_of(claim) == volume;
    if named && annotated(&claim.metadata, BIND_COMPLETED) {
        return None;
    }
    let mut annotations = json!({ BIND_COMPLETED: "yes" });
    let mut patch = json!({});
    if !named {
        annotations[BOUND_BY_CONTROLLER] = "yes".into();
        patch["spec"] = json!({ "volumeName": volume });
    }
    patch["metadata"] = json!({ "annotations": annotations });
    Some(Action::patch(meta, patch))
}

fn claim_status((meta, claim): Claim<'_>, phase: &str, volume: Option<&PersistentVolume>) -> Option<Action> {
    let status = claim.status.clone().unwrap_or_default();
    let changes = status.phase.as_deref() != Some(phase);
    let mut patch = Map::new();
    if changes {
        patch.insert("phase".into(), phase.into());
    }
    match volume.and_then(|v| v.spec.as_ref()) {
        None => {
            // What is told of the volume goes with it.
            for (field, set) in [
                ("accessModes", status.access_modes.is_some()),
                ("capacity", status.capacity.is_some()),
                ("currentVolumeAttributesClassName", status.current_volume_attributes_class_name.is_some()),
            ] {
                if set {
                    patch.insert(field.into(), Value::Null);
                }
            }
        }
        Some(spec) => {
            if status.access_modes != spec.access_modes {
                patch.insert("accessModes".into(), json!(spec.access_modes));
            }
            // Later the size of the file system may differ from that of the volume on purpose.
            // People can write anything there.
            let before_growth = volume
                .and_then(|v| annotation(&v.metadata, PRE_RESIZE_CAPACITY))
                .filter(|size| size.parse::<Quantity>().is_ok_and(|size| size.sign() >= 0));
            if let Some(size) = before_growth.filter(|_| changes) {
                patch.insert("capacity".into(), json!({ "storage": size }));
            } else if changes && status.capacity != spec.capacity {
                patch.insert("capacity".into(), json!(spec.capacity));
            }
            // After the first binding it is for those to say who change a volume's attributes.
            let first = status.phase.as_deref().is_none_or(|phase| phase == "Pending");
            let attributes = &spec.volume_attributes_class_name;
            if changes && first && status.current_volume_attributes_class_name != *attributes {
                patch.insert("currentVolumeAttributesClassName".into(), json!(attributes));
            }
        }
    }
    (!patch.is_empty()).then(|| Action::status(meta, Value::Object(patch)))
}
