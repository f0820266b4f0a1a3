//! Keeps the reason of a claim that waits in its status, since Events expire: condition `holdfast.dev/Waiting`.
//!
//! In: one claim and the world. Out: the condition, once the claim has waited for a while and whenever its reason is
//! another one; its removal once the claim is bound. What is told is looked at again after as long a time as the claim
//! has waited already, so that thousands of claims that wait cost next to nothing, and those that are bound at once,
//! nothing at all.
//!
//! Absent on purpose: waking claims when volumes change (they are looked at by time).
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition, Pod},
    storage::v1::StorageClass,
};
use serde_json::{Value, json};

use crate::{
    candidate::{Weighed, weigh},
    claim::{claim_phase, claims_of, class_of_volume, is_bound, is_terminated},
    decision::{Action, Context, Decision, Key, Meta},
    namespace::whole_seconds,
    reason::{Reason, Seen, reason},
    world::{Change, Object, World},
};

/// The condition's type.
pub const WAITING: &str = "holdfast.dev/Waiting";

/// How long a claim waits before that is worth a write.
const PATIENCE: SignedDuration = SignedDuration::from_secs(1);
/// A reason is looked at again after this at the latest.
const LONGEST: SignedDuration = SignedDuration::from_mins(5);
/// Volumes that are weighed for one claim.
const LOOKED_AT: usize = 100;

/// The condition that keeps a claim's reason, if it has one.
pub fn kept(claim: &PersistentVolumeClaim) -> Option<&PersistentVolumeClaimCondition> {
    claim.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == WAITING && c.status == "True")
}

pub(crate) fn decide(key: &Key, world: &World, context: &Context) -> Decision {
    let Some((meta, claim)) = world.claim(&key.namespace, &key.name) else { return Decision::settled() };
    let waits = matches!(claim_phase(claim), "Pending" | "");
    if meta.deleting.is_some() || is_bound(claim) || !waits {
        return match kept(claim) {
            // The binder's own last write comes first.
            Some(_) if !waits => write(meta, claim, None),
            _ => Decision::settled(),
        };
    }
    let waited =
        claim.metadata.creation_timestamp.as_ref().map_or(SignedDuration::ZERO, |t| context.now.duration_since(t.0));
    if waited < PATIENCE {
        return again(PATIENCE - waited);
    }
    let Some(mut why) = because(world, claim) else { return again(PATIENCE) };
    let before = kept(claim);
    why.message = capital(&why.message);
    if before.is_some_and(|c| c.message.as_ref() == Some(&why.message)) {
        return again(waited.clamp(PATIENCE, LONGEST));
    }
    let word = camel(why.cause);
    let since = before.filter(|c| c.reason.as_ref() == Some(&word)).and_then(|c| c.last_transition_time.clone());
    write(
        meta,
        claim,
        Some(json!({
            "type": WAITING, "status": "True", "reason": word, "message": why.message,
            "lastTransitionTime": whole_seconds(since.map_or(context.now, |t| t.0)),
        })),
    )
}

fn again(after: SignedDuration) -> Decision {
    Decision::again(Duration::try_from(after).unwrap_or_default())
}

/// The reason in full: of a fitting-volume search with its nearest miss, of a pod without a node with what it waits for.
fn because(world: &World, claim: &PersistentVolumeClaim) -> Option<Reason> {
    let volumes = world.volumes().map(|(_, v)| v).take(LOOKED_AT);
    let weighed = weigh(claim, volumes, &|namespace, name| world.claim(namespace, name).is_some());
    let mut why = reason(claim, &weighed, world)?;
    let nearest = weighed.first().filter(|w| !w.against.is_empty());
    match why.cause {
        "no-fitting-volume" | "volume-released" | "no-default-class" => {
            if let Some(nearest) = nearest {
                why.message += &nearest_miss(nearest);
            }
        }
        "wait-for-pod-scheduled" => {
            let user = world.users(claim).into_iter().find_map(unscheduled);
            why.message += &user.map(|m| format!(": {m}")).unwrap_or_default();
        }
        _ => {}
    }
    Some(why)
}

fn nearest_miss(nearest: &Weighed<'_>) -> String {
    format!(
        "; nearest miss {}: {}",
        nearest.volume.metadata.name.as_deref().unwrap_or_default(),
        nearest.said().join("; ")
    )
}

/// What the scheduler said about a pod.
fn unscheduled(pod: &Pod) -> Option<&str> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False")?.message.as_deref()
}

/// `no-fitting-volume` as conditions spell it.
fn camel(cause: &str) -> String {
    cause.split('-').map(capital).collect()
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

/// Puts the condition in place of an earlier one, or takes that away.
fn write(meta: &Meta, claim: &PersistentVolumeClaim, condition: Option<Value>) -> Decision {
    let old = claim.status.iter().flat_map(|s| s.conditions.iter().flatten()).filter(|c| c.type_ != WAITING);
    let all: Vec<Value> = old.map(|c| json!(c)).chain(condition).collect();
    let all = if all.is_empty() { Value::Null } else { Value::Array(all) };
    Decision::act(Action::status(meta, json!({ "conditions": all })))
}

pub(crate) fn wakes(world: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    match change.key.kind {
        // Its own steps to a volume concern nobody here, unless a reason is to be taken back.
        "PersistentVolumeClaim" => {
            let Some(Object::Claim(claim)) = change.new.as_ref().map(|e| &e.object) else { return };
            if kept(claim).is_some() || (change.old.is_none() && !is_bound(claim)) {
                wake(change.key.clone());
            }
        }
        "StorageClass" => {
            for class in [&*change.key.name, ""] {
                world.unbound_claims(class).filter(|k| is_told(world, k)).for_each(|k| wake(k.clone()));
            }
        }
        "Pod" => {
            for entry in change.old.iter().chain(&change.new) {
                let Object::Pod(pod) = &entry.object else { continue };
                for (_, claim, _) in claims_of(pod) {
                    let key = Key::new("PersistentVolumeClaim", &change.key.namespace, &claim);
                    if is_told(world, &key) {
                        wake(key);
                    }
                }
            }
        }
        _ => {}
    }
}

fn is_told(world: &World, key: &Key) -> bool {
    world.claim(&key.namespace, &key.name).is_some_and(|(_, c)| kept(c).is_some())
}

impl Seen for World {
    fn class(&self, name: &str) -> Option<&StorageClass> {
        self.class(name).map(|(_, c)| c)
    }
    fn classes(&self) -> Box<dyn Iterator<Item = &StorageClass> + '_> {
        Box::new(self.classes().map(|(_, c)| c))
    }
    fn volume(&self, name: &str) -> Option<&PersistentVolume> {
        self.volume(name).map(|(_, v)| v)
    }
    fn count_volumes(&self) -> usize {
        self.count("PersistentVolume")
    }
    fn has_volume_of(&self, class: &str) -> bool {
        self.count_free(class) > 0 || self.volumes().take(LOOKED_AT).any(|(_, v)| class_of_volume(v) == class)
    }
    fn has_driver(&self, name: &str) -> bool {
        self.entry(&Key::new("CSIDriver", "", name)).is_some()
    }
    fn users(&self, claim: &PersistentVolumeClaim) -> Vec<&Pod> {
        let (namespace, name) = (claim.metadata.namespace.as_deref(), claim.metadata.name.as_deref());
        let pods = self.pods_naming(namespace.unwrap_or_default(), name.unwrap_or_default());
        pods.map(|(_, p)| p).filter(|p| !is_terminated(p)).collect()
    }
}
