//! Pods that nobody else will ever clean up: bound to a node that is gone, or deleted before they had one.
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::{
    claim::{is_terminated, node_of},
    decision::{Action, Context, Decision, Key, Meta, Unless},
    namespace::whole_seconds,
    world::{Change, World},
};

/// How long a node may be missing before its pods are given up.
const QUARANTINE: Duration = Duration::from_secs(40);

pub(crate) fn decide(key: &Key, world: &World, context: &Context) -> Decision {
    let Some((meta, pod)) = world.pod(&key.namespace, &key.name) else { return Decision::settled() };
    let node = node_of(pod);
    if node.is_empty() {
        return if meta.deleting.is_some() { give_up(meta, pod, None) } else { Decision::settled() };
    }
    let Some(since) = world.missing_since(node).filter(|_| world.node(node).is_none()) else {
        return Decision::settled();
    };
    let missing = Duration::try_from(context.now.duration_since(since)).unwrap_or_default();
    if missing < QUARANTINE {
        return Decision::again(QUARANTINE - missing);
    }
    give_up(meta, pod, Some((node, context)))
}

/// Marks the pod as failed, then removes it at once. With a node, checks that there is none of that name.
fn give_up(meta: &Meta, pod: &Pod, orphan: Option<(&str, &Context)>) -> Decision {
    let checked = |action| match orphan {
        Some((node, _)) => Action::Checked {
            unless: Unless::Exists(vec![(Key::new("Node", "", node), String::new())]),
            then: Box::new(action),
        },
        None => action,
    };
    if !is_terminated(pod) {
        let mut status = json!({ "phase": "Failed" });
        if let Some((_, context)) = orphan {
            let mut conditions: Vec<Value> = pod
                .status
                .iter()
                .flat_map(|s| s.conditions.iter().flatten())
                .filter(|c| c.type_ != "DisruptionTarget")
                .map(|c| json!(c))
                .collect();
            conditions.push(json!({
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                "message": "PodGC: node no longer exists", "lastTransitionTime": whole_seconds(context.now),
            }));
            status["conditions"] = conditions.into();
        }
        return Decision::act(checked(Action::status(meta, status)));
    }
    Decision::act(checked(Action::Delete { target: meta.target(), grace: Some(0), propagation: None }))
}

pub(crate) fn wakes(world: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    match change.key.kind {
        "Pod" => wake(change.key.clone()),
        "Node" if change.new.is_none() => world.pods_on(&change.key.name).for_each(|(m, _)| wake(m.key.clone())),
        _ => {}
    }
}
