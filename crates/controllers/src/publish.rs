//! Attaching volumes to nodes and detaching them, where a driver that is registered here does it.
//!
//! In: one VolumeAttachment. Out: the driver's call, then what it answered, in the attachment's status.
//! Source: external-attacher 4, `pkg/controller`; CSI, `ControllerPublishVolume`.
use std::borrow::Cow;

use csi::{
    AccessMode, AccessType, BlockVolume, ControllerPublishVolumeRequest, ControllerRpcType,
    ControllerUnpublishVolumeRequest, Facts, Mode, MountVolume, VolumeCapability,
};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeSpec, SecretReference},
    storage::v1::VolumeAttachment,
};
use serde_json::json;

use crate::{
    attach::finalizer,
    call::{Answer, Call, Failure},
    decision::{Action, Context, Decision, Key, Meta, Note},
    world::{Change, World},
};

type Attachment<'a> = (&'a Meta, &'a VolumeAttachment);

pub(crate) fn decide(key: &Key, world: &World, context: &Context) -> Decision {
    let Some(attachment) = world.attachment("", &key.name) else { return Decision::settled() };
    let Some(driver) = world.driver(&attachment.1.spec.attacher) else { return Decision::settled() };
    let guard = finalizer(&driver.name);
    let (meta, object) = attachment;
    let attached = object.status.as_ref().is_some_and(|s| s.attached);
    match meta.deleting {
        Some(_) if !meta.has_finalizer(&guard) => Decision::settled(),
        Some(_) => detach(attachment, driver, world, context),
        None if attached => Decision::settled(),
        // Nothing is to be done to the volume, so nothing is to be undone.
        None if !driver.can(ControllerRpcType::PublishUnpublishVolume) => {
            Decision::act(Action::status(meta, json!({ "attached": true })))
        }
        None if !meta.has_finalizer(&guard) => Decision::act(Action::add_finalizer(meta, &guard)),
        None => attach(attachment, driver, world, context),
    }
}

/// The volume that is attached, as its driver knows it.
fn volume_of<'a>(object: &VolumeAttachment, world: &'a World) -> Result<Cow<'a, PersistentVolume>, String> {
    if let Some(spec) = &object.spec.source.inline_volume_spec {
        let spec = Some(spec.clone());
        return Ok(Cow::Owned(PersistentVolume { spec, ..PersistentVolume::default() }));
    }
    let name = object.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
    let (_, volume) = world.volume(name).ok_or_else(|| format!("persistentvolume {name:?} not found"))?;
    in_tree::volume_to_csi(volume).map_err(|e| e.to_string())
}

/// The node's name in the driver's words.
fn node_id(object: &VolumeAttachment, world: &World) -> Option<String> {
    let (_, csi_node) = world.csi_node(&object.spec.node_name)?;
    csi_node.spec.drivers.iter().find(|d| d.name == object.spec.attacher).map(|d| d.node_id.clone())
}

fn secret(reference: Option<&SecretReference>) -> Option<(String, String)> {
    reference.and_then(|r| r.namespace.clone().zip(r.name.clone()))
}

fn attach(attachment: Attachment<'_>, driver: &Facts, world: &World, context: &Context) -> Decision {
    match attaching(attachment.1, driver, world) {
        Ok(call) => Decision::act(Action::call(call)),
        Err(why) => failed(attachment, "attachError", &why, context),
    }
}

fn attaching(object: &VolumeAttachment, driver: &Facts, world: &World) -> Result<Call, String> {
    let volume = volume_of(object, world)?;
    let spec = volume.spec.as_ref().ok_or("the volume has no spec")?;
    let source = spec.csi.as_ref().ok_or("the volume is not a driver's")?;
    if source.driver != driver.name {
        return Err(format!("the volume is one of driver {}, not of {}", source.driver, driver.name));
    }
    let node = &object.spec.node_name;
    let node_id = node_id(object, world).ok_or_else(|| {
        format!("node {node:?} has no NodeID annotation and driver {} is not in its CSINode", driver.name)
    })?;
    let readonly = source.read_only == Some(true);
    let request = ControllerPublishVolumeRequest {
        volume_id: source.volume_handle.clone(),
        node_id,
        volume_capability: Some(capability(spec, driver)?),
        readonly: readonly && driver.can(ControllerRpcType::PublishReadonly),
        secrets: Default::default(),
        volume_context: source.volume_attributes.clone().unwrap_or_default(),
    };
    Ok(Call::new(&driver.name, request).with_secret(secret(source.controller_publish_secret_ref.as_ref())))
}

/// What a volume is used as, in all its access modes together.
///
/// # Errors
/// A sentence about modes that CSI has no word for.
pub(crate) fn capability(spec: &PersistentVolumeSpec, driver: &Facts) -> Result<VolumeCapability, String> {
    let modes: Vec<&str> = spec.access_modes.iter().flatten().map(String::as_str).collect();
    let has = |mode: &str| modes.contains(&mode);
    let several = driver.can(ControllerRpcType::SingleNodeMultiWriter);
    let mode = if has("ReadWriteMany") {
        Mode::MultiNodeMultiWriter
    } else if has("ReadOnlyMany") && has("ReadWriteOnce") {
        return Err("CSI does not support ReadOnlyMany and ReadWriteOnce on the same PersistentVolume".into());
    } else {
        let one = modes.first().ok_or("missing access modes of the PersistentVolume")?;
        crate::provision::access_mode(one, several).ok_or_else(|| format!("unsupported AccessMode {one:?}"))?
    };
    let fs_type = spec.csi.as_ref().and_then(|s| s.fs_type.clone()).unwrap_or_default();
    let access_type = match spec.volume_mode.as_deref() {
        Some("Block") => AccessType::Block(BlockVolume {}),
        _ => AccessType::Mount(MountVolume {
            fs_type,
            mount_flags: spec.mount_options.clone().unwrap_or_default(),
            volume_mount_group: String::new(),
        }),
    };
    Ok(VolumeCapability { access_type: Some(access_type), access_mode: Some(AccessMode { mode: mode.into() }) })
}

fn detach(attachment: Attachment<'_>, driver: &Facts, world: &World, context: &Context) -> Decision {
    let (meta, object) = attachment;
    let done = Decision::act(Action::drop_finalizer(meta, &finalizer(&driver.name)));
    if !driver.can(ControllerRpcType::PublishUnpublishVolume) {
        return done;
    }
    // A node that was never the driver's has nothing attached.
    let Some(node_id) = node_id(object, world) else { return done };
    let volume = match volume_of(object, world) {
        Ok(volume) => volume,
        Err(why) => return failed(attachment, "detachError", &why, context),
    };
    let Some(source) = volume.spec.as_ref().and_then(|s| s.csi.as_ref()) else { return done };
    let request = ControllerUnpublishVolumeRequest {
        volume_id: source.volume_handle.clone(),
        node_id,
        secrets: Default::default(),
    };
    let secret = secret(source.controller_publish_secret_ref.as_ref());
    Decision::act(Action::call(Call::new(&driver.name, request).with_secret(secret)))
}

/// Says so in the status, once.
fn failed((meta, object): Attachment<'_>, field: &str, why: &str, context: &Context) -> Decision {
    let status = object.status.as_ref();
    let said = match field {
        "attachError" => status.and_then(|s| s.attach_error.as_ref()),
        _ => status.and_then(|s| s.detach_error.as_ref()),
    };
    if said.is_some_and(|e| e.message.as_deref() == Some(why)) {
        return Decision::settled();
    }
    let attached = status.is_some_and(|s| s.attached);
    let status = json!({ "attached": attached, field: { "time": context.now.to_string(), "message": why } });
    Decision::act(Action::status(meta, status))
}

pub(crate) fn heard(
    key: &Key,
    world: &World,
    context: &Context,
    _: &Call,
    answer: &Result<Answer, Failure>,
) -> Decision {
    let Some(attachment) = world.attachment("", &key.name) else { return Decision::settled() };
    let (meta, object) = attachment;
    match answer {
        Ok(Answer::ControllerPublishVolume(response)) => {
            let metadata = (!response.publish_context.is_empty()).then_some(&response.publish_context);
            let status = json!({ "attached": true, "attachmentMetadata": metadata, "attachError": null });
            Decision::act(Action::status(meta, status))
        }
        Ok(_) => Decision::act(Action::drop_finalizer(meta, &finalizer(&object.spec.attacher))),
        Err(failure) => {
            let (field, reason) = match meta.deleting {
                None => ("attachError", "FailedAttachVolume"),
                Some(_) => ("detachError", "FailedDetachVolume"),
            };
            let words = failure.to_string();
            let note = Note::warning(meta, reason, words.clone());
            failed(attachment, field, &words, context).with(note)
        }
    }
}

pub(crate) fn wakes(world: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    match change.key.kind {
        "VolumeAttachment" => wake(change.key.clone()),
        "PersistentVolume" => world.attachments_of(&change.key.name).for_each(|k| wake(k.clone())),
        "CSINode" => {
            let all = world.attachments().filter(|(_, a)| a.spec.node_name == *change.key.name);
            all.for_each(|(meta, _)| wake(meta.key.clone()));
        }
        _ => {}
    }
}
