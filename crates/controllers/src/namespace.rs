//! The end of a namespace: deletes everything in it, then takes its finalizer off; says what it waits for.
use std::collections::BTreeMap;

use api::{KINDS, Scope};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use serde_json::{Value, json};

use crate::{
    decision::{Action, Context, Decision, Key, Meta},
    world::{Change, World},
};

const FINALIZER: &str = "kubernetes";

pub(crate) fn decide(key: &Key, world: &World, context: &Context) -> Decision {
    let Some((meta, namespace)) = world.namespace(&key.name) else { return Decision::settled() };
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
    if meta.deleting.is_none() || !finalizers.iter().any(|f| f == FINALIZER) {
        return Decision::settled();
    }
    let content: Vec<&Meta> = world.in_namespace(&key.name).collect();
    let mut alive: Vec<_> = content.iter().filter(|m| m.deleting.is_none()).map(|m| m.key.kind).collect();
    alive.sort_unstable();
    alive.dedup();
    if !alive.is_empty() {
        return Decision::act(Action::Empty { namespace: key.name.to_string(), kinds: alive });
    }
    if let Some(conditions) = changed_conditions(namespace, &content, context.now) {
        return Decision::act(Action::status(meta, json!({ "conditions": conditions })));
    }
    if !content.is_empty() {
        return Decision::settled();
    }
    let finalizers = finalizers.into_iter().filter(|f| f != FINALIZER).collect();
    Decision::act(Action::Finalize { namespace: meta.target(), finalizers })
}

/// All kinds that can live in a namespace; faces of another kind do not count.
pub fn namespaced_kinds() -> impl Iterator<Item = &'static api::Kind> {
    KINDS.iter().filter(|k| k.scope == Scope::Namespace && k.face_of.is_none())
}

/// The conditions as they should be; `None` when they are. None are set where the content went at once.
fn changed_conditions(namespace: &Namespace, content: &[&Meta], now: Timestamp) -> Option<Value> {
    let old = namespace.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    if content.is_empty() && old.is_empty() {
        return None;
    }
    let mut by_kind: BTreeMap<String, usize> = BTreeMap::new();
    let mut by_finalizer: BTreeMap<&str, usize> = BTreeMap::new();
    for meta in content {
        let kind = KINDS.iter().find(|k| k.kind == meta.key.kind && k.face_of.is_none());
        *by_kind.entry(kind.map_or_else(String::new, |k| format!("{}.{}", k.plural, k.group))).or_default() += 1;
        meta.finalizers.iter().for_each(|f| *by_finalizer.entry(f).or_default() += 1);
    }
    let list = |items: Vec<String>| items.join(", ");
    let kinds = list(by_kind.iter().map(|(kind, n)| format!("{kind} has {n} resource instances")).collect());
    let finalizers = list(by_finalizer.iter().map(|(name, n)| format!("{name} in {n} resource instances")).collect());
    let remaining = if kinds.is_empty() {
        ("False", "ContentRemoved", "All content successfully removed".to_owned())
    } else {
        ("True", "SomeResourcesRemain", format!("Some resources are remaining: {kinds}"))
    };
    let held = if finalizers.is_empty() {
        ("False", "ContentHasNoFinalizers", "All content-preserving finalizers finished".to_owned())
    } else {
        (
            "True",
            "SomeFinalizersRemain",
            format!("Some content in the namespace has finalizers remaining: {finalizers}"),
        )
    };
    let fixed = |reason, message: &str| ("False", reason, message.to_owned());
    let wanted = [
        ("NamespaceDeletionDiscoveryFailure", fixed("ResourcesDiscovered", "All resources successfully discovered")),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            fixed("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        (
            "NamespaceDeletionContentFailure",
            fixed("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        ("NamespaceContentRemaining", remaining),
        ("NamespaceFinalizersRemaining", held),
    ];
    let same = |c: &NamespaceCondition, w: &(&str, (&str, &str, String))| {
        c.type_ == w.0
            && c.status == w.1.0
            && c.reason.as_deref() == Some(w.1.1)
            && c.message.as_deref() == Some(w.1.2.as_str())
    };
    let find = |w: &(&str, (&str, &str, String))| old.iter().find(|c| c.type_ == w.0);
    if wanted.iter().all(|w| find(w).is_some_and(|c| same(c, w))) {
        return None;
    }
    let conditions = wanted.iter().map(|w| {
        let since = find(w).filter(|c| c.status == w.1.0).and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0);
        let since = whole_seconds(since.unwrap_or(now));
        let (status, reason, message) = &w.1;
        json!({ "type": w.0, "status": status, "reason": reason, "message": message, "lastTransitionTime": since })
    });
    Some(conditions.collect())
}

/// A timestamp as the API writes it.
pub(crate) fn whole_seconds(time: Timestamp) -> String {
    time.round(jiff::Unit::Second).unwrap_or(time).to_string()
}

pub(crate) fn wakes(world: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    let namespace = match change.key.kind {
        "Namespace" => &change.key.name,
        _ if change.key.namespace.is_empty() => return,
        _ => &change.key.namespace,
    };
    if world.namespace(namespace).is_some_and(|(m, _)| m.deleting.is_some()) {
        wake(Key::new("Namespace", "", namespace));
    }
}
