//! The life of one volume: Available, Bound, Released, Failed, and what its reclaim policy asks for.
//!
//! Absent on purpose: emptying and deleting what is behind a volume (nodes and provisioners do that).
use api::reclaim::{Reclaim, reclaim, unbinding};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::json;

use crate::{
    claim::{BOUND_BY_CONTROLLER, PROVISIONED_BY, keeps, modes_differ, reserved_for, volume_of, volume_phase},
    decision::{Action, Decision, Meta, Note, Unless, annotated},
    world::World,
};

type Volume<'a> = (&'a Meta, &'a PersistentVolume);

pub(crate) fn decide(volume: Volume<'_>, world: &World) -> Decision {
    let (meta, object) = volume;
    let reference = object.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let uid = reference.and_then(|r| r.uid.as_deref()).unwrap_or_default();
    let (Some((namespace, name)), false) = (reserved_for(object), uid.is_empty()) else {
        // Free, or reserved for a claim that is yet to come.
        return phase(volume, "Available", "").into();
    };
    let claim = world.claim(namespace, name).filter(|(m, _)| m.uid == uid);
    let Some(claim) = claim else { return release(volume, uid) };
    match volume_of(claim.1) {
        "" => unfinished(volume, claim),
        bound if bound == &*meta.key.name => phase(volume, "Bound", "").into(),
        // The claim got another volume.
        _ if annotated(&object.metadata, PROVISIONED_BY) && policy(object) == "Delete" => release(volume, uid),
        _ => unbind(volume),
    }
}

/// The claim has yet to be pointed here; its own decision does that, unless it never can.
fn unfinished(volume: Volume<'_>, (claim_meta, claim): (&Meta, &PersistentVolumeClaim)) -> Decision {
    let (meta, object) = volume;
    let chosen_here = annotated(&object.metadata, BOUND_BY_CONTROLLER);
    if meta.deleting.is_some() || (chosen_here && !keeps(claim, object)) {
        // Else it would be kept from everybody, and from its own end, by a claim that never comes.
        return unbind(volume);
    }
    if !modes_differ(claim, object) {
        return Decision::settled();
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
fn release(volume: Volume<'_>, claim_uid: &str) -> Decision {
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
        // Where a node does the work, it also tells how it went.
        Reclaim::Keep | Reclaim::Elsewhere | Reclaim::Recycle | Reclaim::Delete => Decision::settled(),
        Reclaim::Impossible { .. } if volume_phase(object) == "Failed" => Decision::settled(),
        Reclaim::Impossible { reason, message } => {
            Decision::from(phase(volume, "Failed", &message)).with(Note::warning(meta, reason, message))
        }
    }
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
