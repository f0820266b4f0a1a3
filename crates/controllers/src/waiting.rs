//! Keeps the reason of a claim that waits in its status, since Events expire: condition `holdfast.dev/Waiting`.
//!
//! In: one claim and the world. Out: the condition, once the claim has waited for a while and whenever its reason is
//! another one; its removal once the claim is bound. What is bound at once is never written to. Where many claims wait, a
//! change of volumes wakes none of them: their words are then as old as the engine's next look at everything, so that
//! thousands of claims made before their volumes cost no more than a look each.
//!
//! Absent on purpose: what only Events tell, such as the words of a provisioner.
use std::time::Duration;

use api::snapshot::VolumeSnapshot;
use jiff::SignedDuration;
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition, Pod},
    storage::v1::StorageClass,
};
use serde_json::{Value, json};

use crate::{
    candidate::{Weighed, weigh},
    claim::{claim_phase, claims_of, class_of_volume, is_bound, is_terminated},
    content_source,
    decision::{Action, Context, Decision, Key, Meta},
    namespace::whole_seconds,
    reason::{Reason, Seen, reason},
    world::{Change, Object, World},
};

/// The condition's type.
pub const WAITING: &str = "holdfast.dev/Waiting";

/// How long a claim waits before that is worth a write.
const PATIENCE: SignedDuration = SignedDuration::from_secs(1);
/// Where more claims wait, they are not woken by what may change their words only.
const FEW: usize = 64;
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
    // A clock that was set back says nothing of how long it waits.
    let made = claim.metadata.creation_timestamp.as_ref().map(|t| context.now.duration_since(t.0));
    let young = made.filter(|waited| (SignedDuration::ZERO..PATIENCE).contains(waited));
    if let Some(waited) = young {
        return Decision::again(Duration::try_from(PATIENCE - waited).unwrap_or_default());
    }
    // What fits is for the binder to take.
    let Some(why) = because(world, claim) else { return Decision::settled() };
    let (before, word, message) = (kept(claim), camel(why.cause), capital(&why.message));
    if before.is_some_and(|c| c.message.as_ref() == Some(&message)) {
        return Decision::settled();
    }
    let since = before.filter(|c| c.reason.as_ref() == Some(&word)).and_then(|c| c.last_transition_time.clone());
    let condition = json!({
        "type": WAITING, "status": "True", "reason": word, "message": message,
        "lastTransitionTime": whole_seconds(since.map_or(context.now, |t| t.0)),
    });
    write(meta, claim, Some(condition))
}

/// Whether a claim's reason is that a pod waits, whose own words it repeats.
pub(crate) fn repeats_pod(condition: &PersistentVolumeClaimCondition) -> bool {
    condition.reason.as_deref() == Some("WaitForPodScheduled")
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
    content_source::wakes_of(world, change, wake);
    // What others wait for may have come or gone.
    let all = |wake: &mut dyn FnMut(Key)| {
        if world.unbound().nth(FEW).is_none() {
            world.unbound().for_each(|k| wake(k.clone()));
        }
    };
    match change.key.kind {
        // A claim's own steps to a volume concern nobody here, unless a reason is to be taken back.
        "PersistentVolumeClaim" => {
            match change.new.as_ref().map(|e| &e.object) {
                Some(Object::Claim(claim)) if kept(claim).is_some() || !is_bound(claim) => wake(change.key.clone()),
                _ => {}
            }
            if change.old.is_none() || change.new.is_none() {
                all(wake);
            }
        }
        "PersistentVolume" | "StorageClass" | "CSIDriver" => all(wake),
        "Pod" => {
            for entry in change.old.iter().chain(&change.new) {
                let Object::Pod(pod) = &entry.object else { continue };
                for (_, claim, _) in claims_of(pod) {
                    if world.claim(&change.key.namespace, &claim).is_some_and(|(_, c)| !is_bound(c)) {
                        wake(Key::new("PersistentVolumeClaim", &change.key.namespace, &claim));
                    }
                }
            }
        }
        _ => {}
    }
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
        self.has_driver(name)
    }
    fn snapshot(&self, namespace: &str, name: &str) -> Option<&VolumeSnapshot> {
        self.snapshot(namespace, name).map(|(_, s)| s)
    }
    fn claim(&self, namespace: &str, name: &str) -> Option<&PersistentVolumeClaim> {
        self.claim(namespace, name).map(|(_, c)| c)
    }
    fn users(&self, claim: &PersistentVolumeClaim) -> Vec<&Pod> {
        let (namespace, name) = (claim.metadata.namespace.as_deref(), claim.metadata.name.as_deref());
        let pods = self.pods_naming(namespace.unwrap_or_default(), name.unwrap_or_default());
        pods.map(|(_, p)| p).filter(|p| !is_terminated(p)).collect()
    }
}
