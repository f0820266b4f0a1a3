//! Expansion: a bound claim that asks for more than it has.
//!
//! In: one claim with its volume. Out: the patches that ask the node for it, where this program grows such volumes and the
//! volume object says that there is more; the call of its driver, where that is registered here (see `resize`); else a word that
//! somebody else has to. What comes of it, the node writes.
//! - X1: a claim gets what it asks for once that is there, whatever it asked for and whatever failed before, and is told of
//!   nothing that it has not got. (property of `api::growth`)
//!
//! Absent on purpose: enlarging what is behind a `local` volume (its administrator does that).
//! Source: Kubernetes 1.36, `pkg/controller/volume/expand`.
use api::growth::{PRE_RESIZE_CAPACITY, Step, asked, step};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::json;

use crate::{
    call::{Answer, Call, Failure},
    claim::{claim_phase, reserved_for, volume_of},
    decision::{Action, Context, Decision, Key, Meta, Note, annotated, annotation},
    resize,
    world::{Change, Object, World},
};

type Claim<'a> = (&'a Meta, &'a PersistentVolumeClaim);
type Volume<'a> = (&'a Meta, &'a PersistentVolume);

pub(crate) fn decide(key: &Key, world: &World, context: &Context) -> Decision {
    let Some(((meta, claim), (volume_meta, volume))) = pair(key, world) else { return Decision::settled() };
    // Kept while the file system is smaller than the volume, for the volume's next claim would else be told a lie.
    let noted = annotated(&volume.metadata, PRE_RESIZE_CAPACITY);
    let note = |size: serde_json::Value| {
        let patch = json!({ "metadata": { "annotations": { PRE_RESIZE_CAPACITY: size } } });
        Decision::act(Action::patch(volume_meta, patch))
    };
    match step(claim, volume) {
        Step::Complete if noted => note(json!(null)),
        Step::Settled | Step::Complete => Decision::settled(),
        Step::External => external((meta, claim), volume),
        Step::Drive { to } => match resize::driver_of(volume, world) {
            Some(driver) => resize::decide((meta, claim), (volume_meta, volume), (driver, &to), context),
            None => external((meta, claim), volume),
        },
        Step::Ask { has } if !noted => note(json!(has)),
        Step::Ask { .. } => Decision::act(Action::status(meta, asked(claim, context.now))),
    }
}

/// A claim and the volume that it is bound to.
fn pair<'a>(key: &Key, world: &'a World) -> Option<(Claim<'a>, Volume<'a>)> {
    let claim = world.claim(&key.namespace, &key.name).filter(|(_, c)| claim_phase(c) == "Bound")?;
    let volume = world.volume(volume_of(claim.1))?;
    let holder = volume.1.spec.as_ref()?.claim_ref.as_ref()?.uid.as_deref();
    (holder == Some(&claim.0.uid)).then_some((claim, volume))
}

pub(crate) fn heard(
    key: &Key,
    world: &World,
    context: &Context,
    _: &Call,
    answer: &Result<Answer, Failure>,
) -> Decision {
    let Some((claim, volume)) = pair(key, world) else { return Decision::settled() };
    match (step(claim.1, volume.1), resize::driver_of(volume.1, world)) {
        (Step::Drive { to }, Some(driver)) => resize::heard(claim, volume, (driver, &to), context, answer),
        _ => Decision::settled(),
    }
}

/// Leaves it to somebody else's program, or to an administrator; a driver in place of an in-tree plugin is told so.
fn external((meta, claim): (&Meta, &PersistentVolumeClaim), volume: &PersistentVolume) -> Decision {
    const RESIZER: &str = "volume.kubernetes.io/storage-resizer";
    let note = |message: String| Decision::wait(Note::normal(meta, "ExternalExpanding", message));
    let plugin = volume.spec.as_ref().and_then(in_tree::plugin_of_volume);
    let Some((plugin, driver)) = plugin.and_then(|p| Some((p, in_tree::driver_of(p)?))) else {
        return note("waiting for an external controller to expand this PVC".into());
    };
    let mut decision =
        note(format!("CSI migration enabled for {plugin}; waiting for external resizer to expand the pvc"));
    if annotation(&claim.metadata, RESIZER) != Some(driver) {
        decision.action = Some(Action::patch(meta, json!({ "metadata": { "annotations": { RESIZER: driver } } })));
    }
    decision
}

pub(crate) fn wakes(_: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    match change.key.kind {
        "PersistentVolumeClaim" => wake(change.key.clone()),
        "PersistentVolume" => {
            let Some(Object::Volume(volume)) = change.new.as_ref().map(|e| &e.object) else { return };
            if let Some((namespace, name)) = reserved_for(volume) {
                wake(Key::new("PersistentVolumeClaim", namespace, name));
            }
        }
        _ => {}
    }
}
