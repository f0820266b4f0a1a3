//! The life of one volume: Available, Bound, Released, Failed, and what its reclaim policy asks for.
//!
//! Absent on purpose: the `Recycle` policy's cleaning, deleting data (that is a provisioner's job).
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::json;

use crate::{
    claim::{BOUND_BY_CONTROLLER, PROVISIONED_BY, modes_differ, reserved_for, volume_of, volume_phase},
    decision::{Action, Decision, Meta, Note, Unless, annotated, annotation},
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
fn unfinished((meta, object): Volume<'_>, (claim_meta, claim): (&Meta, &PersistentVolumeClaim)) -> Decision {
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
    let failed = |reason, message: &str| match volume_phase(object) {
        "Failed" => Decision::settled(),
        _ => Decision::from(phase(volume, "Failed", message)).with(Note::warning(meta, reason, message)),
    };
    match policy(object) {
        "Retain" => Decision::settled(),
        "Recycle" => failed("VolumeFailedRecycle", "No recycler plugin found for the volume!"),
        "Delete" => undeletable(volume).map_or_else(Decision::settled, |why| failed("VolumeFailedDelete", &why)),
        _ => failed("VolumeUnknownReclaimPolicy", "Volume has unrecognized PersistentVolumeReclaimPolicy"),
    }
}

/// Why nobody will ever delete what is behind a volume; `None` where an external provisioner will.
fn undeletable((meta, object): Volume<'_>) -> Option<String> {
    if let Some(provisioner) = annotation(&object.metadata, PROVISIONED_BY)
        && !provisioner.is_empty()
        && !provisioner.starts_with("kubernetes.io/")
    {
        return None;
    }
    let spec = object.spec.as_ref()?;
    if spec.csi.is_some() || annotated(&object.metadata, "pv.kubernetes.io/migrated-to") {
        return None;
    }
    Some(match &spec.host_path {
        Some(source) if source.path.starts_with("/tmp/") => {
            format!("host paths are never deleted, not even {}; delete it by hand, then the volume", source.path)
        }
        Some(source) => format!("host_path deleter only supports /tmp/.+ but received provided {}", source.path),
        None => format!(
            "error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched",
            &*meta.key.name
        ),
    })
}

/// Gives up a reservation that came to nothing: an administrator's is kept, without the UID.
fn unbind((meta, object): Volume<'_>) -> Decision {
    let patch = if annotated(&object.metadata, BOUND_BY_CONTROLLER) {
        json!({ "spec": { "claimRef": null }, "metadata": { "annotations": { BOUND_BY_CONTROLLER: null } } })
    } else {
        json!({ "spec": { "claimRef": { "uid": null } } })
    };
    Decision::act(Action::patch(meta, patch))
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
