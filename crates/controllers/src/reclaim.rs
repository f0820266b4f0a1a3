//! Deleting what a driver made, once its claim is gone and the reclaim policy says so.
//!
//! In: a volume object that a driver registered here provisioned. Out: the call that deletes the volume, then the object's end.
//! The finalizer keeps the object as long as there is something to delete.
//!
//! Source: external-provisioner 5 and its `sig-storage-lib-external-provisioner` (HonorPVReclaimPolicy).
use csi::{ControllerRpcType, DeleteVolumeRequest, Facts};
use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, PersistentVolume};

use crate::{
    call::{Answer, Call, Failure},
    claim::{PROVISIONED_BY, reserved_for, volume_phase},
    decision::{Action, Context, Decision, Key, Meta, Note, annotation},
    world::{Change, World},
};

/// On volumes that a driver deletes with their object.
pub(crate) const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
/// Which secret a volume is deleted with.
pub(crate) const SECRET_NAME: &str = "volume.kubernetes.io/provisioner-deletion-secret-name";
pub(crate) const SECRET_NAMESPACE: &str = "volume.kubernetes.io/provisioner-deletion-secret-namespace";

type Object<'a> = (&'a Meta, &'a PersistentVolume);

/// The volume as its driver knows it, if the driver made it and is here. A driver that took over from an in-tree plugin
/// counts as what made the plugin's.
fn made_by<'a>(volume: &PersistentVolume, world: &'a World) -> Option<(&'a Facts, CSIPersistentVolumeSource)> {
    let source = in_tree::source_of(volume)?;
    let maker = annotation(&volume.metadata, PROVISIONED_BY)?;
    let maker = in_tree::driver_of(maker).unwrap_or(maker);
    let driver = world.driver(maker).filter(|d| d.name == source.driver)?;
    driver.can(ControllerRpcType::CreateDeleteVolume).then_some((driver, source))
}

pub(crate) fn decide(key: &Key, world: &World, _: &Context) -> Decision {
    let Some((meta, volume)) = world.volume(&key.name) else { return Decision::settled() };
    let Some((driver, source)) = made_by(volume, world) else { return Decision::settled() };
    let deletes = policy(volume) == "Delete";
    match (deletes, meta.has_finalizer(FINALIZER)) {
        (true, false) if meta.deleting.is_none() => return Decision::act(Action::add_finalizer(meta, FINALIZER)),
        (false, true) => return Decision::act(Action::drop_finalizer(meta, FINALIZER)),
        _ => {}
    }
    if !deletes || !is_over((meta, volume)) || (meta.deleting.is_some() && !meta.has_finalizer(FINALIZER)) {
        return Decision::settled();
    }
    if let Some(node) = attached_to(world, &key.name) {
        let words = format!("persistentvolume {} is still attached to node {node}", key.name);
        return Decision::wait(Note::warning(meta, "VolumeFailedDelete", words));
    }
    let request = DeleteVolumeRequest { volume_id: source.volume_handle.clone(), ..Default::default() };
    let secret = annotation(&volume.metadata, SECRET_NAMESPACE).zip(annotation(&volume.metadata, SECRET_NAME));
    let secret = secret.map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
    Decision::act(Action::call(Call::new(&driver.name, request).with_secret(secret)))
}

/// Whether no claim has the volume, nor ever will.
fn is_over((meta, volume): Object<'_>) -> bool {
    let unclaimed = || meta.deleting.is_some() && reserved_for(volume).is_none();
    volume_phase(volume) == "Released" || unclaimed()
}

fn policy(volume: &PersistentVolume) -> &str {
    volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

/// A node that a volume is attached to, or is being.
fn attached_to<'a>(world: &'a World, volume: &str) -> Option<&'a str> {
    let mut all = world.attachments_of(volume).filter_map(|key| world.attachment("", &key.name));
    all.next().map(|(_, attachment)| &*attachment.spec.node_name)
}

pub(crate) fn heard(key: &Key, world: &World, _: &Context, _: &Call, answer: &Result<Answer, Failure>) -> Decision {
    let Some((meta, volume)) = world.volume(&key.name) else { return Decision::settled() };
    match answer {
        Err(failure) => Decision::wait(Note::warning(meta, "VolumeFailedDelete", failure.to_string())),
        // Somebody took it back meanwhile, too late.
        Ok(_) if policy(volume) != "Delete" || !is_over((meta, volume)) => Decision::settled(),
        Ok(_) if meta.deleting.is_some() => Decision::act(Action::drop_finalizer(meta, FINALIZER)),
        Ok(_) => Decision::act(Action::Delete { target: meta.target(), grace: None, propagation: None }),
    }
}

pub(crate) fn wakes(_: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    match change.key.kind {
        "PersistentVolume" => wake(change.key.clone()),
        "VolumeAttachment" => {
            for entry in change.old.iter().chain(&change.new) {
                let crate::world::Object::Attachment(attachment) = &entry.object else { continue };
                if let Some(volume) = &attachment.spec.source.persistent_volume_name {
                    wake(Key::new("PersistentVolume", "", volume));
                }
            }
        }
        _ => {}
    }
}
