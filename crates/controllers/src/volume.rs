//! The life of one volume: Available, Bound, Released, Failed, and what its reclaim policy asks for.
//!
//! Absent on purpose: emptying and deleting what is behind a volume (nodes and provisioners do that).
use api::{
    reclaim::{IN_TREE_FINALIZER, MIGRATED_TO, Reclaim, reclaim, unbinding},
    select::reaches,
};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use serde_json::json;

use crate::{
    claim::{
        BIND_COMPLETED, BOUND_BY_CONTROLLER, PROVISIONED_BY, Place, best_volume, keeps, modes_differ, reserved_for,
        volume_of, volume_phase,
    },
    decision::{Action, Decision, Meta, Note, Unless, annotated, annotation},
    world::World,
};

type Volume<'a> = (&'a Meta, &'a PersistentVolume);

pub(crate) fn decide(volume: Volume<'_>, world: &World) -> Decision {
    let (meta, object) = volume;
    if let Some(action) = taken_over(volume) {
        return Decision::act(action);
    }
    let reference = object.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let uid = reference.and_then(|r| r.uid.as_deref()).unwrap_or_default();
    let (Some((namespace, name)), false) = (reserved_for(object), uid.is_empty()) else {
        // Free, or reserved for a claim that is yet to come.
        return phase(volume, "Available", "").into();
    };
    let claim = world.claim(namespace, name).filter(|(m, _)| m.uid == uid);
    let Some(claim) = claim else { return release(volume, uid, world) };
    match volume_of(claim.1) {
        "" => unfinished(volume, claim, world),
        bound if bound == &*meta.key.name => phase(volume, "Bound", "").into(),
        // The claim got another volume.
        _ if annotated(&object.metadata, PROVISIONED_BY) && policy(object) == "Delete" => release(volume, uid, world),
        _ => unbind(volume),
    }
}

/// The claim has yet to be pointed here; its own decision does that, unless it never can.
fn unfinished(volume: Volume<'_>, claim: (&Meta, &PersistentVolumeClaim), world: &World) -> Decision {
    let (meta, object) = volume;
    let (claim_meta, claim) = claim;
    let chosen_here = annotated(&object.metadata, BOUND_BY_CONTROLLER);
    if meta.deleting.is_some() || (chosen_here && !keeps(claim, object)) {
        // Else it would be kept from everybody, and from its own end, by a claim that never comes.
        return unbind(volume);
    }
    if !modes_differ(claim, object) {
        // The claim is about to be pointed here: the two writes need not wait for each other.
        let chosen = !annotated(&claim.metadata, BIND_COMPLETED)
            && best_volume(world, (claim_meta, claim), Place::Unknown, &[]).is_some_and(|(m, _)| m.key == meta.key);
        return chosen.then(|| phase(volume, "Bound", "")).flatten().into();
    }
    let (volume, claim) = (&meta.key.name, &claim_meta.key.name);
    let on_volume = format!(
        "Cannot bind PersistentVolume to requested PersistentVolumeClaim {:?} due to incompatible volumeMode.",
        &**claim
    );
    let on_claim = format!(
        "Cannot bind PersistentVolume {:?} to requested PersistentVolumeClaim due to incompatible volumeMode.",
        &**volume
    );
    Decision::wait(Note::warning(meta, "VolumeMismatch", on_volume)).with(Note::warning(
        claim_meta,
        "VolumeMismatch",
        on_claim,
    ))
}

/// The claim is gone: first say so, then follow the policy.
fn release(volume: Volume<'_>, claim_uid: &str, world: &World) -> Decision {
    let (meta, object) = volume;
    if !matches!(volume_phase(object), "Released" | "Failed") {
        let Some((namespace, name)) = reserved_for(object) else { return Decision::settled() };
        // Released is never taken back, so a cache that lags must not bring it about.
        let claim = crate::decision::Key::new("PersistentVolumeClaim", namespace, name);
        let bound_elsewhere = annotated(&object.metadata, PROVISIONED_BY) && policy(object) == "Delete";
        return match phase(volume, "Released", "") {
            Some(action) if !bound_elsewhere => Decision::act(Action::Checked {
                unless: Unless::Exists(vec![(claim, claim_uid.to_owned())]),
                then: Box::new(action),
            }),
            action => action.into(),
        };
    }
    match reclaim(object) {
        Reclaim::Keep | Reclaim::Elsewhere => Decision::settled(),
        Reclaim::Recycle => unreached(volume, world, "VolumeFailedRecycle", "empties it"),
        Reclaim::Delete => unreached(volume, world, "VolumeFailedDelete", "deletes what is behind it"),
        Reclaim::Impossible { .. } if volume_phase(object) == "Failed" => Decision::settled(),
        Reclaim::Impossible { reason, message } => {
            Decision::from(phase(volume, "Failed", &message)).with(Note::warning(meta, reason, message))
        }
    }
}

/// Where a node does the work, it also tells how it went; where there is none, somebody has to say so.
fn unreached(volume: Volume<'_>, world: &World, reason: &'static str, does: &str) -> Decision {
    const BEGINNING: &str = "the volume stays Released until a node that reaches it";
    let (meta, object) = volume;
    if volume_phase(object) != "Released" {
        return Decision::settled();
    }
    let said = object.status.as_ref().and_then(|s| s.message.as_deref());
    if world.nodes().any(|(_, n)| is_at_work(n) && reaches(object, n)) {
        let outdated = said.is_some_and(|m| m.starts_with(BEGINNING));
        return outdated.then(|| Action::status(meta, json!({ "message": null }))).into();
    }
    let message = format!("{BEGINNING} {does}, and there is no such node");
    let action = (said != Some(&message)).then(|| Action::status(meta, json!({ "message": message })));
    Decision::from(action).with(Note::warning(meta, reason, message))
}

/// Whether a node is not known to be down.
pub(crate) fn is_at_work(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().find(|c| c.type_ == "Ready").is_none_or(|c| c.status == "True")
}

/// Whether the controllers will say that a node has to come before a volume is reclaimed, or take that back.
pub(crate) fn waits_for_node(volume: &PersistentVolume) -> bool {
    volume_phase(volume) == "Released" && matches!(reclaim(volume), Reclaim::Recycle | Reclaim::Delete)
}

/// Which driver does the work of the provisioner that made a volume is noted on it; and its object outlives what an in-tree
/// provisioner has made, as long as that is to be deleted with it: upstream's rules. Only volumes that say who made them
/// are concerned.
fn taken_over((meta, object): Volume<'_>) -> Option<Action> {
    const EXTERNAL: &str = "external-provisioner.volume.kubernetes.io/finalizer";
    let maker = annotation(&object.metadata, PROVISIONED_BY).filter(|m| m.starts_with("kubernetes.io/"))?;
    let keep = |name: &str, dropped: &[&str]| !dropped.contains(&name);
    let driver = in_tree::driver_of(maker);
    let migrated = driver.is_some();
    let dropped: &[&str] = match policy(object) {
        _ if migrated => &[IN_TREE_FINALIZER],
        "Delete" => &[EXTERNAL],
        _ => &[IN_TREE_FINALIZER, EXTERNAL],
    };
    let mut wanted: Vec<&str> = meta.finalizers.iter().map(String::as_str).filter(|f| keep(f, dropped)).collect();
    // The server takes no new finalizer for an object that is going.
    if !migrated && policy(object) == "Delete" && meta.deleting.is_none() && !wanted.contains(&IN_TREE_FINALIZER) {
        wanted.push(IN_TREE_FINALIZER);
    }
    let mut changes = serde_json::Map::new();
    if annotation(&object.metadata, MIGRATED_TO) != driver {
        changes.insert("annotations".into(), json!({ MIGRATED_TO: driver }));
    }
    if wanted != meta.finalizers {
        changes.insert("finalizers".into(), json!(wanted));
    }
    (!changes.is_empty()).then(|| Action::patch(meta, json!({ "metadata": changes })))
}

/// Gives up a reservation that came to nothing.
fn unbind((meta, object): Volume<'_>) -> Decision {
    Decision::act(Action::patch(meta, unbinding(object)))
}

fn policy(volume: &PersistentVolume) -> &str {
    volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

/// Sets the phase, unless it is set.
pub(crate) fn phase((meta, volume): Volume<'_>, phase: &str, message: &str) -> Option<Action> {
    if volume_phase(volume) == phase {
        return None;
    }
    let message = if message.is_empty() { json!(null) } else { json!(message) };
    Some(Action::status(meta, json!({ "phase": phase, "message": message })))
}
