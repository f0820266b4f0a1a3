//! Resource quotas: counts what a namespace has and keeps it in each quota's status. The server refuses what is too much.
use api::{
    KINDS, Quantity, Scope,
    pod::Amounts,
    quota::{Counted, hard, may_bound},
};
use k8s_openapi::api::core::v1::{ResourceQuota, ResourceQuotaSpec};
use serde_json::{Map, Value, json};

use crate::{
    decision::{Action, Context, Decision, Key},
    world::{Change, Object, World},
};

pub(crate) fn decide(key: &Key, world: &World, _: &Context) -> Decision {
    let Some((meta, quota)) = world.quota(&key.namespace, &key.name).filter(|(m, _)| m.deleting.is_none()) else {
        return Decision::settled();
    };
    let Some(spec) = &quota.spec else { return Decision::settled() };
    let used = used(&key.namespace, spec, world);
    let status = json!({ "hard": texts(&hard(spec)), "used": texts(&used) });
    if shown(quota) == status {
        return Decision::settled();
    }
    // A limit that was taken out of the spec goes from the status too.
    let known = quota.status.as_ref();
    let gone = |old: Option<&std::collections::BTreeMap<String, _>>| -> Map<String, Value> {
        old.into_iter().flatten().map(|(name, _)| (name.clone(), Value::Null)).collect()
    };
    let merge = |mut gone: Map<String, Value>, new: &Value| {
        gone.extend(new.as_object().cloned().unwrap_or_default());
        gone
    };
    let patch = json!({
        "hard": merge(gone(known.and_then(|s| s.hard.as_ref())), &status["hard"]),
        "used": merge(gone(known.and_then(|s| s.used.as_ref())), &status["used"]),
    });
    Decision::act(Action::status(meta, patch))
}

fn texts(amounts: &Amounts) -> Value {
    amounts.iter().map(|(name, q)| (name.clone(), q.to_string().into())).collect::<Map<_, _>>().into()
}

fn shown(quota: &ResourceQuota) -> Value {
    let status = quota.status.clone().unwrap_or_default();
    json!({ "hard": status.hard.unwrap_or_default(), "used": status.used.unwrap_or_default() })
}

/// What of the quota's limits is used; 0 where nothing is.
fn used(namespace: &str, spec: &ResourceQuotaSpec, world: &World) -> Amounts {
    let hard = hard(spec);
    let mut used: Amounts = hard.keys().map(|name| (name.clone(), Quantity::ZERO)).collect();
    for kind in KINDS.iter().filter(|k| k.scope == Scope::Namespace && k.face_of.is_none()) {
        if !may_bound(&hard, kind) {
            continue;
        }
        for entry in world.of_namespace(kind.kind, namespace) {
            let counted = match &entry.object {
                Object::Pod(pod) => Counted::pod(pod),
                Object::Claim(claim) => Counted::claim(claim),
                Object::Service(service) => Counted::service(service),
                _ => Counted::one(kind.group, kind.plural),
            };
            if !counted.is_in(spec) {
                continue;
            }
            for (name, amount) in &counted.amounts {
                if let Some(sum) = used.get_mut(name) {
                    *sum = *sum + *amount;
                }
            }
        }
    }
    used
}

pub(crate) fn wakes(world: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    let namespace = &change.key.namespace;
    if !namespace.is_empty() {
        world.of_namespace("ResourceQuota", namespace).for_each(|quota| wake(quota.meta.key.clone()));
    }
}
