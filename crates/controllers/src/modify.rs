//! Changing what a volume is like, through another VolumeAttributesClass, where its driver is registered here.
//!
//! In: a bound claim whose class is not the one that its volume has. Out: one write, or the driver's call; the volume object tells
//! of the new class before the claim does.
//! Source: external-resizer 2, `pkg/modifycontroller`; CSI, `ControllerModifyVolume`.
use csi::{ControllerModifyVolumeRequest, ControllerRpcType, Facts};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, SecretReference},
    storage::v1::VolumeAttributesClass,
};
use serde_json::{Value, json};

use crate::{
    call::{Answer, Call, Failure},
    claim::{attributes_of, attributes_wanted, claim_phase, volume_of},
    decision::{Action, Context, Decision, Key, Meta, Note},
    world::{Change, World},
};

type Claim<'a> = (&'a Meta, &'a PersistentVolumeClaim);
type Volume<'a> = (&'a Meta, &'a PersistentVolume);

const PENDING: &str = "Pending";
const IN_PROGRESS: &str = "InProgress";
const INFEASIBLE: &str = "Infeasible";

/// A claim that waits for its volume to change.
struct Wanted<'a> {
    claim: Claim<'a>,
    volume: Volume<'a>,
    driver: &'a Facts,
    /// Name of the class; what was begun is ended first.
    to: &'a str,
}

fn wanted<'a>(key: &Key, world: &'a World) -> Option<Wanted<'a>> {
    let claim = world.claim(&key.namespace, &key.name).filter(|(_, c)| claim_phase(c) == "Bound")?;
    let volume = world.volume(volume_of(claim.1))?;
    let driver = world.driver(in_tree::driver_of_volume(volume.1)?)?;
    let status = claim.1.status.as_ref()?;
    let (asked, has) = (attributes_wanted(claim.1), status.current_volume_attributes_class_name.as_deref());
    let begun = status.modify_volume_status.as_ref().filter(|s| s.status == IN_PROGRESS);
    let begun = begun.and_then(|s| s.target_volume_attributes_class_name.as_deref());
    let to = begun.unwrap_or(asked);
    let open = status.modify_volume_status.is_some() || has.unwrap_or_default() != to;
    (open && !to.is_empty()).then_some(Wanted { claim, volume, driver, to })
}

pub(crate) fn decide(key: &Key, world: &World, _: &Context) -> Decision {
    let Some(wanted) = wanted(key, world) else { return Decision::settled() };
    let Wanted { claim: (meta, claim), volume, driver, to } = &wanted;
    let Some((_, class)) = world.attributes_class(to).filter(|(m, _)| m.deleting.is_none()) else {
        let words = format!("VAC {to} does not exist");
        return Decision::from(mark(claim, meta, PENDING, to)).with(Note::warning(meta, "VolumeModifyFailed", words));
    };
    let cannot = if class.driver_name != driver.name {
        Some(format!("VAC driver {} does not match driver {}", class.driver_name, driver.name))
    } else if !driver.can(ControllerRpcType::ModifyVolume) {
        Some(format!("driver {} does not change volumes that are there", driver.name))
    } else {
        None
    };
    if let Some(words) = cannot {
        let decision = Decision::from(mark(claim, meta, INFEASIBLE, to));
        return decision.with(Note::warning(meta, "VolumeModifyFailed", words));
    }
    if attributes_of(volume.1) == *to {
        return settle(&wanted);
    }
    let failed = status_of(claim) == Some(INFEASIBLE) && target_of(claim) == Some(to);
    if !failed && let Some(action) = mark(claim, meta, IN_PROGRESS, to) {
        return Decision::act(action);
    }
    let words = format!("external resizer is modifying volume {} with vac {to}", meta.key.name);
    Decision::act(Action::call(call(volume.1, driver, class))).with(Note::normal(meta, "VolumeModify", words))
}

fn call(volume: &PersistentVolume, driver: &Facts, class: &VolumeAttributesClass) -> Call {
    let source = in_tree::source_of(volume);
    let source = source.as_ref();
    let request = ControllerModifyVolumeRequest {
        volume_id: source.map(|s| s.volume_handle.clone()).unwrap_or_default(),
        secrets: Default::default(),
        mutable_parameters: class.parameters.clone().unwrap_or_default(),
    };
    let secret: Option<&SecretReference> = source.and_then(|s| s.controller_expand_secret_ref.as_ref());
    let secret = secret.and_then(|r| r.namespace.clone().zip(r.name.clone()));
    Call::new(&driver.name, request).with_secret(secret)
}

fn status_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.status.as_ref()?.modify_volume_status.as_ref().map(|s| s.status.as_str())
}

fn target_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.status.as_ref()?.modify_volume_status.as_ref()?.target_volume_attributes_class_name.as_deref()
}

/// Says how far it is, unless it is said.
fn mark(claim: &PersistentVolumeClaim, meta: &Meta, status: &str, to: &str) -> Option<Action> {
    if status_of(claim) == Some(status) && target_of(claim) == Some(to) {
        return None;
    }
    let how = json!({ "status": status, "targetVolumeAttributesClassName": to });
    Some(Action::status(meta, json!({ "modifyVolumeStatus": how })))
}

/// The volume has the class: the claim may say so.
fn settle(wanted: &Wanted<'_>) -> Decision {
    let Wanted { claim: (meta, _), to, .. } = wanted;
    let words = format!("external resizer modified volume {} with vac {to} successfully", meta.key.name);
    let status = json!({ "currentVolumeAttributesClassName": to, "modifyVolumeStatus": Value::Null });
    Decision::act(Action::status(meta, status)).with(Note::normal(meta, "VolumeModifySuccessful", words))
}

pub(crate) fn heard(key: &Key, world: &World, _: &Context, _: &Call, answer: &Result<Answer, Failure>) -> Decision {
    let Some(wanted) = wanted(key, world) else { return Decision::settled() };
    let Wanted { claim: (meta, claim), volume, to, .. } = &wanted;
    match answer {
        Ok(_) => Decision::act(Action::patch(volume.0, json!({ "spec": { "volumeAttributesClassName": to } }))),
        Err(failure) => {
            let action = if failure.is_final() { mark(claim, meta, INFEASIBLE, to) } else { None };
            Decision::from(action).with(Note::warning(meta, "VolumeModifyFailed", failure.to_string()))
        }
    }
}

pub(crate) fn wakes(world: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    match change.key.kind {
        "PersistentVolumeClaim" => wake(change.key.clone()),
        "PersistentVolume" => world.claims_naming(&change.key.name).for_each(|k| wake(k.clone())),
        "VolumeAttributesClass" => {
            let asks = world.claims().filter(|(_, c)| attributes_wanted(c) == &*change.key.name);
            asks.for_each(|(meta, _)| wake(meta.key.clone()));
        }
        _ => {}
    }
}
