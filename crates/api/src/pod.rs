//! Questions about a pod that several parts ask: its service class, what it requests, whether it is done.
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::check::items;
use crate::field::{Errors, Path};
use crate::quantity::Quantity;

pub use crate::types::pod_defaults::is_latest;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// How a pod is treated when its node runs short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    pub const fn as_str(self) -> &'static str {
        match self {
            QosClass::Guaranteed => "Guaranteed",
            QosClass::Burstable => "Burstable",
            QosClass::BestEffort => "BestEffort",
        }
    }
}

pub(crate) fn amounts(map: Option<&BTreeMap<String, Text>>) -> Amounts {
    let read = |(name, text): (&String, &Text)| Some((name.clone(), Quantity::try_from(text).ok()?));
    map.into_iter().flatten().filter_map(read).collect()
}

/// A named amount of a resource list; `None` where it is absent or unreadable.
pub fn amount_of(list: Option<&BTreeMap<String, Text>>, name: &str) -> Option<Quantity> {
    Quantity::try_from(list?.get(name)?).ok()
}

fn add(into: &mut Amounts, other: &Amounts) {
    for (name, q) in other {
        let sum = into.get(name).copied().unwrap_or(Quantity::ZERO) + *q;
        into.insert(name.clone(), sum);
    }
}

fn raise(into: &mut Amounts, other: &Amounts) {
    for (name, q) in other {
        let known = into.entry(name.clone()).or_insert(*q);
        *known = (*known).max(*q);
    }
}

/// Whether an init container keeps running beside the pod's containers.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What a pod takes at its most demanding moment: containers and sidecars together, or one init container with
/// the sidecars started before it.
fn total(spec: &PodSpec, of: impl Fn(&ResourceRequirements) -> Option<&BTreeMap<String, Text>>) -> Amounts {
    let get = |c: &Container| amounts(c.resources.as_ref().and_then(&of));
    let mut sum = Amounts::new();
    spec.containers.iter().for_each(|c| add(&mut sum, &get(c)));
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for c in items(&spec.init_containers) {
        if is_sidecar(c) {
            add(&mut sum, &get(c));
            add(&mut sidecars, &get(c));
            raise(&mut peak, &sidecars);
        } else {
            let mut now = get(c);
            add(&mut now, &sidecars);
            raise(&mut peak, &now);
        }
    }
    raise(&mut sum, &peak);
    sum
}

/// What a pod requests, as the scheduler counts it, overhead included.
pub fn requests(spec: &PodSpec) -> Amounts {
    let mut sum = total(spec, |r| r.requests.as_ref());
    let whole = amounts(spec.resources.as_ref().and_then(|r| r.requests.as_ref()));
    sum.extend(whole);
    add(&mut sum, &amounts(spec.overhead.as_ref()));
    sum
}

/// The limits of a pod.
pub fn limits(spec: &PodSpec) -> Amounts {
    let mut sum = total(spec, |r| r.limits.as_ref());
    let whole = amounts(spec.resources.as_ref().and_then(|r| r.limits.as_ref()));
    sum.extend(whole);
    add(&mut sum, &amounts(spec.overhead.as_ref()));
    sum
}

/// The service class of a pod: by the CPU and memory that its containers, or it as a whole, ask for.
pub fn qos_class(spec: &PodSpec) -> QosClass {
    const COUNTED: [&str; 2] = ["cpu", "memory"];
    let counted = |map: Option<&BTreeMap<String, Text>>| -> Amounts {
        amounts(map).into_iter().filter(|(name, q)| COUNTED.contains(&name.as_str()) && q.sign() > 0).collect()
    };
    let all: Vec<Option<&ResourceRequirements>> = match &spec.resources {
        Some(whole) if whole.limits.is_some() || whole.requests.is_some() => vec![Some(whole)],
        _ => items(&spec.init_containers).chain(&spec.containers).map(|c| c.resources.as_ref()).collect(),
    };
    let (mut requests, mut limits, mut all_limited) = (Amounts::new(), Amounts::new(), true);
    for resources in all {
        let limit = counted(resources.and_then(|r| r.limits.as_ref()));
        add(&mut requests, &counted(resources.and_then(|r| r.requests.as_ref())));
        all_limited &= limit.len() == COUNTED.len();
        add(&mut limits, &limit);
    }
    if requests.is_empty() && limits.is_empty() {
        QosClass::BestEffort
    } else if all_limited && requests.len() == limits.len() && requests.iter().all(|(n, q)| limits.get(n) == Some(q)) {
        QosClass::Guaranteed
    } else {
        QosClass::Burstable
    }
}

/// Whether a pod has ended for good.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Whether a pod counts as ready.
pub fn is_ready(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|s| items(&s.conditions).any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// The mistakes in a change of a pod's ephemeral containers, made through their subresource: they can be added, never
/// changed or removed. Both are the whole pod, `new` with defaults filled in.
pub fn validate_ephemeral_change(new: &serde_json::Value, old: &serde_json::Value) -> Vec<crate::FieldError> {
    let mut e = Errors::new();
    let read = |v| <Pod as serde::Deserialize>::deserialize(v);
    match (read(new), read(old)) {
        (Ok(new), Ok(old)) => {
            let (is, was) = (new.spec.unwrap_or_default(), old.spec.unwrap_or_default());
            let name = new.metadata.name.unwrap_or_default();
            crate::types::pod_validation::spec(&Path::top("spec"), &is, &name, &mut e);
            let at = Path::top("spec");
            let at = at.field("ephemeralContainers");
            for kept in items(&was.ephemeral_containers) {
                let name = &kept.name;
                match items(&is.ephemeral_containers).find(|c| c.name == *name) {
                    None => e.forbidden(&at, &format!("existing ephemeral containers {name:?} may not be removed\n")),
                    Some(c) if c != kept => {
                        let json = |c| serde_json::to_value(c).unwrap_or_default();
                        let diff = crate::types::difference(&json(kept), &json(c));
                        e.forbidden(&at, &format!("existing ephemeral containers {name:?} may not be changed\n{diff}"));
                    }
                    Some(_) => {}
                }
            }
        }
        (Err(error), _) | (_, Err(error)) => e.unreadable(&error),
    }
    e.finish()
}

/// Adds what every pod tolerates for a while unless it says otherwise: a node that is not ready or cannot be reached.
/// Part of admission, not of defaulting.
pub fn tolerate_node_trouble(spec: &mut PodSpec) {
    const SECONDS: i64 = 300;
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covers = |t: &k8s_openapi::api::core::v1::Toleration| {
            (t.key.as_deref() == Some(key) || t.key.as_deref().unwrap_or_default().is_empty())
                && matches!(t.effect.as_deref(), Some("NoExecute" | "") | None)
        };
        if !items(&spec.tolerations).any(covers) {
            spec.tolerations.get_or_insert_default().push(k8s_openapi::api::core::v1::Toleration {
                key: Some(key.to_owned()),
                operator: Some("Exists".to_owned()),
                effect: Some("NoExecute".to_owned()),
                toleration_seconds: Some(SECONDS),
                value: None,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(containers: Value, init: Value) -> PodSpec {
        serde_json::from_value(json!({"containers": containers, "initContainers": init})).expect("fits")
    }

    fn asks(cpu: &str) -> Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn requests_are_those_of_the_most_demanding_moment() {
        let cpu = |s: &PodSpec| requests(s)["cpu"].to_string();
        assert_eq!(cpu(&spec(json!([asks("1"), asks("500m")]), json!([]))), "1500m");
        assert_eq!(cpu(&spec(json!([asks("1")]), json!([asks("3"), asks("2")]))), "3");
        let mut sidecar = asks("1");
        sidecar["restartPolicy"] = json!("Always");
        assert_eq!(cpu(&spec(json!([asks("1")]), json!([sidecar.clone(), asks("3")]))), "4");
        assert_eq!(cpu(&spec(json!([asks("2")]), json!([asks("2"), sidecar]))), "3");
    }

    #[test]
    fn service_classes() {
        let of = |resources: Value| qos_class(&spec(json!([{"name": "c", "resources": resources}]), json!([])));
        assert_eq!(of(json!({})), QosClass::BestEffort);
        assert_eq!(of(json!({"requests": {"cpu": "0"}})), QosClass::BestEffort);
        assert_eq!(of(json!({"requests": {"cpu": "1"}})), QosClass::Burstable);
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(of(json!({"requests": both, "limits": both})), QosClass::Guaranteed);
        assert_eq!(of(json!({"requests": {"cpu": "1", "memory": "1024Mi"}, "limits": both})), QosClass::Guaranteed);
        assert_eq!(of(json!({"requests": {"cpu": "1", "memory": "1Mi"}, "limits": both})), QosClass::Burstable);
        assert_eq!(of(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "1"}})), QosClass::Burstable);
    }

    #[test]
    fn tolerations_are_added_once() {
        let mut s = spec(json!([]), json!([]));
        tolerate_node_trouble(&mut s);
        tolerate_node_trouble(&mut s);
        assert_eq!(s.tolerations.as_ref().map(Vec::len), Some(2));
        let mut all: PodSpec =
            serde_json::from_value(json!({"containers": [], "tolerations": [{"operator": "Exists"}]})).expect("fits");
        tolerate_node_trouble(&mut all);
        assert_eq!(all.tolerations.map(|t| t.len()), Some(1));
    }
}
