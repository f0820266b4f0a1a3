//! Scheduling: finds a node for each pod, together with volumes for its claims that waited for one.
//!
//! In: one pod without a node, and the world. Out: a reservation of a volume or a request to a provisioner for the
//! node that was chosen, and once all claims are bound the binding; or the condition that says why there is no node.
//! - A pod is bound only to a node that passes every filter, all its claims being bound. (table)
//!
//! Absent on purpose: affinity between pods, spreading, preemption, priorities.
//! Source: Kubernetes 1.36, `pkg/scheduler`.
pub(crate) mod attach;
mod fit;
mod volumes;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::{
    claim::{binds_late, claims_of, class_of_volume, is_free, is_terminated, node_of, reserved_for},
    decision::{Action, Context, Decision, Key, Meta, Note, Unless},
    namespace::whole_seconds,
    world::{Change, Entry, Object, World},
};

const NAME: &str = "default-scheduler";

/// Why a node will not do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Obstacle {
    /// As upstream words it, after a count of nodes.
    pub(crate) reason: String,
    /// Whether removing pods could help.
    pub(crate) removable: bool,
}

impl Obstacle {
    pub(crate) fn fixed(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), removable: false }
    }
    pub(crate) fn by_pods(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), removable: true }
    }
}

pub(crate) fn decide(key: &Key, world: &World, context: &Context) -> Decision {
    let Some((meta, pod)) = world.pod(&key.namespace, &key.name) else { return Decision::settled() };
    if !is_ours(meta, pod) {
        return Decision::settled();
    }
    let nodes: Vec<&Node> = world.nodes().map(|(_, n)| n).collect();
    if nodes.is_empty() {
        return unschedulable(meta, pod, context, "no nodes available to schedule pods".into());
    }
    let claims = match volumes::Claims::of(world, meta, pod) {
        Ok(claims) => claims,
        Err(why) => {
            let told = volumes::claims_reasons(world, meta, pod);
            return unschedulable(meta, pod, context, no_node(nodes.len(), Err(why)) + &told);
        }
    };
    let mut obstacles = Vec::new();
    let mut best: Option<(i64, &Node, Vec<volumes::Place<'_>>)> = None;
    for node in &nodes {
        let found = fit::obstacles(world, pod, node);
        let found = if found.is_empty() { claims.place(world, meta, pod, node) } else { Err(found) };
        match found {
            Err(found) => obstacles.push(found),
            Ok(places) => {
                let score = fit::score(world, pod, node);
                // The nodes come by name: equal scores go to the first.
                if best.as_ref().is_none_or(|(s, _, _)| score > *s) {
                    best = Some((score, node, places));
                }
            }
        }
    }
    let Some((_, node, places)) = best else {
        return unschedulable(meta, pod, context, no_node(nodes.len(), Ok(obstacles)));
    };
    let name = node.metadata.name.clone().unwrap_or_default();
    match volumes::next_step(&places, &name) {
        volumes::Step::Done => {
            let message = format!("Successfully assigned {}/{} to {name}", key.namespace, key.name);
            let bind = Action::Bind { pod: meta.target(), node: name };
            // Another pod may have been bound without an answer.
            let bind = match claims.for_one_pod() {
                alone if alone.is_empty() => bind,
                alone => Action::Checked {
                    unless: Unless::Had { namespace: key.namespace.to_string(), claims: alone, but: meta.uid.clone() },
                    then: Box::new(bind),
                },
            };
            // A claim may have been deleted before the pod was made, and the news of that come later.
            let action = match claims.incarnations() {
                claims if claims.is_empty() => bind,
                claims => Action::Checked { unless: Unless::Going(claims), then: Box::new(bind) },
            };
            Decision::take(action).with(Note::normal(meta, "Scheduled", message))
        }
        volumes::Step::Write(action) => Decision::take(action),
        // The claims' own changes bring the next decision.
        volumes::Step::Wait => Decision::settled(),
    }
}

fn is_ours(meta: &Meta, pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.scheduler_name.as_deref().unwrap_or(NAME) == NAME
        && node_of(pod).is_empty()
        && meta.deleting.is_none()
        && !is_terminated(pod)
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
}

/// The sentence for a pod that fits nowhere: why it fits no node at all, or each node's obstacles.
fn no_node(total: usize, why: Result<Vec<Vec<Obstacle>>, String>) -> String {
    let count = |reasons: &mut dyn Iterator<Item = String>| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        reasons.for_each(|r| *counts.entry(r).or_default() += 1);
        let mut texts: Vec<_> = counts.into_iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        texts.sort_unstable();
        texts.join(", ")
    };
    const UNHELPFUL: &str = "Preemption is not helpful for scheduling";
    let (filters, preemption) = match why {
        Err(why) => (why, format!("{total} {UNHELPFUL}")),
        Ok(nodes) => (
            count(&mut nodes.iter().flatten().map(|o| o.reason.clone())),
            count(&mut nodes.iter().map(|obstacles| match obstacles.iter().all(|o| o.removable) {
                true => "No preemption victims found for incoming pod".to_owned(),
                false => UNHELPFUL.to_owned(),
            })),
        ),
    };
    format!("0/{total} nodes are available: {filters}. preemption: 0/{total} nodes are available: {preemption}.")
}

fn unschedulable(meta: &Meta, pod: &Pod, context: &Context, message: String) -> Decision {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let (ours, others): (Vec<_>, Vec<_>) = conditions.partition(|c| c.type_ == "PodScheduled");
    let ours = ours.first();
    let note = Note::warning(meta, "FailedScheduling", message.clone());
    let said = ours.is_some_and(|c| {
        c.status == "False" && c.reason.as_deref() == Some("Unschedulable") && c.message.as_ref() == Some(&message)
    });
    if said {
        return Decision::wait(note);
    }
    let since = ours.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.as_ref());
    let mut conditions: Vec<Value> = others.iter().map(|c| json!(c)).collect();
    conditions.push(json!({
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
        "lastProbeTime": null, "lastTransitionTime": whole_seconds(since.map_or(context.now, |t| t.0)),
        "observedGeneration": pod.metadata.generation,
    }));
    Decision::act(Action::status(meta, json!({ "conditions": conditions }))).with(note)
}

pub(crate) fn wakes(world: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    let any = |_: &Pod| true;
    let mut all = || world.unscheduled().for_each(|k| wake(k.clone()));
    match change.key.kind {
        "Node" if node_changed(change) => all(),
        "Pod" => match (&change.old, &change.new) {
            // It made room where it was.
            (Some(old), new) if holds_room(&old.object) && !new.as_ref().is_some_and(|n| holds_room(&n.object)) => {
                all()
            }
            (_, Some(Entry { object: Object::Pod(pod), .. })) if node_of(pod).is_empty() => wake(change.key.clone()),
            // What it has for itself alone is in the way of others from now on.
            (Some(old), Some(Entry { object: Object::Pod(pod), .. })) if !holds_room(&old.object) => {
                for (_, claim, _) in claims_of(pod) {
                    pods_with(world, &Key::new("PersistentVolumeClaim", &change.key.namespace, &claim), any, wake);
                }
            }
            _ => {}
        },
        "PersistentVolumeClaim" => pods_with(world, &change.key, any, wake),
        "PersistentVolume" => {
            let free_now = matches!(change.new.as_ref().map(|e| &e.object), Some(Object::Volume(v)) if is_free(v));
            for entry in change.old.iter().chain(&change.new) {
                let Object::Volume(volume) = &entry.object else { continue };
                if let Some((namespace, name)) = reserved_for(volume) {
                    pods_with(world, &Key::new("PersistentVolumeClaim", namespace, name), any, wake);
                }
                // The others are told by the binder's writes.
                let class = class_of_volume(volume);
                if is_free(volume) && binds_late(world.class(class).map(|(_, c)| c)) {
                    // One volume less changes nothing for those who have yet to choose, but what others were told.
                    let concerns = |pod: &Pod| free_now || is_told(pod);
                    world.unbound_claims(class).for_each(|claim| pods_with(world, claim, concerns, wake));
                }
            }
            world.claims_naming(&change.key.name).for_each(|claim| pods_with(world, claim, any, wake));
        }
        "StorageClass" => world.unbound_claims(&change.key.name).for_each(|claim| pods_with(world, claim, any, wake)),
        "CSINode" | "VolumeAttachment" | "CSIDriver" | "CSIStorageCapacity" => {
            let with_claims = world
                .unscheduled()
                .filter(|k| world.pod(&k.namespace, &k.name).is_some_and(|(_, pod)| !claims_of(pod).is_empty()));
            with_claims.for_each(|k| wake(k.clone()));
        }
        _ => {}
    }
}

/// Of the pods that wait for a node and name a claim, those that `concerns` lets pass.
fn pods_with(world: &World, claim: &Key, concerns: impl Fn(&Pod) -> bool, wake: &mut dyn FnMut(Key)) {
    let pods = world.pods_naming(&claim.namespace, &claim.name);
    pods.filter(|(_, pod)| node_of(pod).is_empty() && concerns(pod)).for_each(|(m, _)| wake(m.key.clone()));
}

/// Whether a pod was told why it has no node.
fn is_told(pod: &Pod) -> bool {
    let mut conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.any(|c| c.type_ == "PodScheduled" && c.status == "False")
}

/// Whether a pod takes up resources of a node.
fn holds_room(object: &Object) -> bool {
    matches!(object, Object::Pod(pod) if !node_of(pod).is_empty() && !is_terminated(pod))
}

/// Whether a node changed in what scheduling looks at; heartbeats do not count.
fn node_changed(change: &Change) -> bool {
    let facts = |entry: &Option<Entry>| match entry.as_ref().map(|e| &e.object) {
        Some(Object::Node(node)) => Some((
            node.metadata.labels.clone(),
            node.spec.clone(),
            node.status.as_ref().and_then(|s| s.allocatable.clone()),
            fit::ready(node).map(str::to_owned),
        )),
        _ => None,
    };
    facts(&change.old) != facts(&change.new)
}
