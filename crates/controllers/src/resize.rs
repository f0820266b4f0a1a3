//! Growing volumes whose driver is registered here: the driver enlarges the volume, the volume object tells of it, and the node
//! is asked for the rest, if there is one.
//!
//! In: a bound claim that asks for more than it has (`api::growth` reads its status). Out: one write, or the driver's call. The
//! call is made again after each step: the driver says every time whether the node has something to do.
//! Source: external-resizer 2, `pkg/controller`; CSI, `ControllerExpandVolume`.
use api::{
    growth::{PRE_RESIZE_CAPACITY, asked_of_node, driving, finished, is_said, not_driven},
    quantity::said,
};
use csi::{CapacityRange, ControllerExpandVolumeRequest, ControllerRpcType, Facts, NodeRpcType};
use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaim},
    apimachinery::pkg::api::resource::Quantity as Text,
};
use serde_json::json;

use crate::{
    amount::amount,
    call::{Answer, Call, Failure},
    claim::capacity,
    decision::{Action, Context, Decision, Meta, Note, annotated},
    provision::bytes,
    publish::capability,
    world::World,
};

type Claim<'a> = (&'a Meta, &'a PersistentVolumeClaim);
type Volume<'a> = (&'a Meta, &'a PersistentVolume);

/// The driver that grows a volume, if it is here and grows any.
pub(crate) fn driver_of<'a>(volume: &PersistentVolume, world: &'a World) -> Option<&'a Facts> {
    let driver = world.driver(in_tree::driver_of_volume(volume)?)?;
    (driver.can(ControllerRpcType::ExpandVolume) || driver.can_here(NodeRpcType::ExpandVolume)).then_some(driver)
}

/// The next step for a claim that asks its driver for `to`.
pub(crate) fn decide(
    (meta, claim): Claim<'_>,
    volume: Volume<'_>,
    (driver, to): (&Facts, &Text),
    context: &Context,
) -> Decision {
    if let Some(status) = driving(claim, to, context.now) {
        return Decision::act(Action::status(meta, status));
    }
    if !driver.can(ControllerRpcType::ExpandVolume) {
        // The node does all of it.
        return enlarged((meta, claim), volume, (to, bytes(amount(to))), true, context);
    }
    let words = format!("External resizer is resizing volume {}", volume.0.key.name);
    match call(volume.1, driver, to) {
        Ok(call) => Decision::act(Action::call(call)).with(Note::normal(meta, "Resizing", words)),
        Err(why) => Decision::wait(failure(meta, volume.0, driver, &why)),
    }
}

fn call(volume: &PersistentVolume, driver: &Facts, to: &Text) -> Result<Call, String> {
    let volume = in_tree::volume_to_csi(volume).map_err(|e| e.to_string())?;
    let spec = volume.spec.as_ref().ok_or("the volume has no spec")?;
    let source = spec.csi.as_ref().ok_or("the volume is not a driver's")?;
    let request = ControllerExpandVolumeRequest {
        volume_id: source.volume_handle.clone(),
        capacity_range: Some(CapacityRange { required_bytes: bytes(amount(to)), limit_bytes: 0 }),
        secrets: Default::default(),
        volume_capability: Some(capability(spec, driver)?),
    };
    let secret = source.controller_expand_secret_ref.as_ref();
    let secret = secret.and_then(|r| r.namespace.clone().zip(r.name.clone()));
    Ok(Call::new(&driver.name, request).with_secret(secret))
}

fn failure(claim: &Meta, volume: &Meta, driver: &Facts, why: &str) -> Note {
    let words = format!("resize volume {:?} by resizer {:?} failed: {why}", &*volume.key.name, driver.name);
    Note::warning(claim, "VolumeResizeFailed", words)
}

/// What follows from the driver's answer about `to`.
pub(crate) fn heard(
    (meta, claim): Claim<'_>,
    volume: Volume<'_>,
    (driver, to): (&Facts, &Text),
    context: &Context,
    answer: &Result<Answer, Failure>,
) -> Decision {
    match answer {
        Ok(Answer::ControllerExpandVolume(response)) => {
            let (wanted, got) = (bytes(amount(to)), response.capacity_bytes);
            if got != 0 && got < wanted {
                let why = format!("driver {} enlarged the volume to {got} bytes only, not to {wanted}", driver.name);
                let status = not_driven(claim, &why, true, context.now);
                return Decision::act(Action::status(meta, status)).with(failure(meta, volume.0, driver, &why));
            }
            let size = if got == 0 { wanted } else { got };
            enlarged((meta, claim), volume, (to, size), response.node_expansion_required, context)
        }
        Ok(_) => Decision::settled(),
        Err(refusal) => {
            let words = refusal.to_string();
            let status = not_driven(claim, &words, refusal.is_final(), context.now);
            let action = (!is_said(claim, &status)).then(|| Action::status(meta, status));
            Decision::from(action).with(failure(meta, volume.0, driver, &words))
        }
    }
}

/// The volume has the size: its object says so first, then the claim.
fn enlarged(
    (meta, claim): Claim<'_>,
    (volume_meta, volume): Volume<'_>,
    (to, size): (&Text, i64),
    node_has_to: bool,
    context: &Context,
) -> Decision {
    let offered = volume.spec.as_ref().map(capacity);
    if offered.is_some_and(|offered| bytes(offered) < size) {
        let mut patch = json!({ "spec": { "capacity": { "storage": said(size) } } });
        let has = claim.status.as_ref().and_then(|s| s.capacity.as_ref()).and_then(|c| c.get("storage"));
        if node_has_to && !annotated(&volume.metadata, PRE_RESIZE_CAPACITY) {
            patch["metadata"] = json!({ "annotations": { PRE_RESIZE_CAPACITY: has } });
        }
        return Decision::act(Action::patch(volume_meta, patch));
    }
    if node_has_to {
        let note = Note::normal(meta, "FileSystemResizeRequired", "Require file system resize of volume on node");
        return Decision::act(Action::status(meta, asked_of_node(claim, context.now))).with(note);
    }
    let note = Note::normal(meta, "VolumeResizeSuccessful", "Resize volume succeeded");
    let has = volume.spec.as_ref().and_then(|s| s.capacity.as_ref()).and_then(|c| c.get("storage"));
    Decision::act(Action::status(meta, finished(claim, has.unwrap_or(to)))).with(note)
}
