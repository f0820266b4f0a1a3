//! Quality of service, cgroup limits and OOM scores.
use std::collections::BTreeMap;

use api::{
    Quantity,
    pod::{QosClass, amount_of, is_sidecar, qos_class},
};
use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity as Text,
};
use runtime::Resources;

/// Microseconds of one CPU accounting period.
const PERIOD_MICROS: u64 = 100_000;
const MIN_QUOTA_MICROS: i64 = 1_000;
const GUARANTEED_SCORE: i64 = -997;
const BEST_EFFORT_SCORE: i64 = 1000;

type List = BTreeMap<String, Text>;

/// The amount of a resource that a container asks for or is limited to; 0 where it does neither.
fn of(container: &Container, list: fn(&ResourceRequirements) -> Option<&List>, name: &str) -> Quantity {
    amount_of(container.resources.as_ref().and_then(list), name).unwrap_or(Quantity::ZERO)
}

fn limits(r: &ResourceRequirements) -> Option<&List> {
    r.limits.as_ref()
}

fn requests(r: &ResourceRequirements) -> Option<&List> {
    r.requests.as_ref()
}

/// The pod's class, from all containers, or from the pod's own resources where they are given.
pub fn qos(pod: &Pod) -> QosClass {
    pod.spec.as_ref().map_or(QosClass::BestEffort, qos_class)
}

fn shares(milli_cpu: i64) -> u64 {
    if milli_cpu <= 0 { 2 } else { (milli_cpu.unsigned_abs() * 1024 / 1000).clamp(2, 262_144) }
}

fn quota(milli_cpu: i64) -> Option<i64> {
    let period = i64::try_from(PERIOD_MICROS).expect("a small number");
    (milli_cpu > 0).then(|| (milli_cpu * period / 1000).max(MIN_QUOTA_MICROS))
}

/// Limits of one container.
pub fn container(pod: &Pod, container: &Container, node_memory_bytes: i64) -> Resources {
    let cpu = quota(of(container, limits, "cpu").milli_value());
    Resources {
        cpu_shares: Some(shares(of(container, requests, "cpu").milli_value())),
        cpu_quota: cpu,
        cpu_period: cpu.map(|_| PERIOD_MICROS),
        memory_limit: Some(of(container, limits, "memory").value()).filter(|v| *v > 0),
        pids_limit: None,
        huge_pages: huge_pages(container),
        oom_score_adj: i32::try_from(oom_score(pod, container, node_memory_bytes)).ok(),
    }
}

/// Bytes by size of page.
fn huge_pages(container: &Container) -> BTreeMap<u64, u64> {
    let bytes = |q: Quantity| u64::try_from(q.value()).ok();
    let limits = container.resources.as_ref().and_then(limits).into_iter().flatten();
    let page = |name: &str| Quantity::parse(name.strip_prefix("hugepages-")?).ok().and_then(bytes);
    limits.filter_map(|(name, limit)| Some((page(name)?, Quantity::try_from(limit).ok().and_then(bytes)?))).collect()
}

fn oom_score(pod: &Pod, container: &Container, node_memory_bytes: i64) -> i64 {
    match qos(pod) {
        QosClass::Guaranteed => return GUARANTEED_SCORE,
        QosClass::BestEffort => return BEST_EFFORT_SCORE,
        QosClass::Burstable => {}
    }
    let memory = |c: &Container| of(c, requests, "memory").value();
    let score = |bytes: i64| 1000 - 1000i64.saturating_mul(bytes) / node_memory_bytes.max(1);
    let mut adjusted = score(memory(container));
    let spec = pod.spec.as_ref();
    let beside = spec.is_some_and(|s| s.init_containers.iter().flatten().any(|c| c.name == container.name));
    if beside && is_sidecar(container) {
        // A sidecar must not be killed before the containers that it serves.
        let least = spec.into_iter().flat_map(|s| &s.containers).map(memory).min().unwrap_or(0);
        adjusted = adjusted.min(score(least));
    }
    adjusted.clamp(1000 + GUARANTEED_SCORE, BEST_EFFORT_SCORE - 1)
}

/// Limits of the pod's parent cgroup. A limit holds for the pod only if it has one itself or every container has.
pub fn pod(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let own = spec.resources.as_ref().and_then(limits);
    let total = api::pod::limits(spec);
    let limit = |name: &str| {
        let all = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let bounded = amount_of(own, name).is_some() || all().all(|c| of(c, limits, name).sign() > 0);
        total.get(name).copied().filter(|_| bounded).unwrap_or(Quantity::ZERO)
    };
    let asked = api::pod::requests(spec).get("cpu").map_or(0, |q| q.milli_value());
    let cpu = quota(limit("cpu").milli_value());
    Resources {
        cpu_shares: Some(if qos(pod) == QosClass::BestEffort { 2 } else { shares(asked) }),
        cpu_quota: cpu,
        cpu_period: cpu.map(|_| PERIOD_MICROS),
        memory_limit: Some(limit("memory").value()).filter(|v| *v > 0),
        pids_limit: None,
        huge_pages: BTreeMap::new(),
        oom_score_adj: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn a_pod(containers: serde_json::Value, init: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers, "initContainers": init}})).expect("valid")
    }

    fn c(requests: serde_json::Value, limits: serde_json::Value) -> serde_json::Value {
        json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn cgroup_values() {
        let p = a_pod(json!([c(json!({"cpu": "100m"}), json!({"cpu": "250m", "memory": "48Mi"}))]), json!([]));
        let r = container(&p, &p.spec.as_ref().expect("spec").containers[0], 1 << 30);
        assert_eq!((r.cpu_shares, r.cpu_quota, r.cpu_period), (Some(102), Some(25_000), Some(100_000)));
        assert_eq!(r.memory_limit, Some(48 << 20));
        let whole = pod(&p);
        assert_eq!((whole.cpu_quota, whole.memory_limit, whole.cpu_shares), (Some(25_000), Some(48 << 20), Some(102)));
        let p = a_pod(json!([c(json!({}), json!({"memory": "1Mi"})), {"name": "d"}]), json!([]));
        assert_eq!(pod(&p).memory_limit, None);
        let tiny = a_pod(json!([c(json!({}), json!({"cpu": "1m"}))]), json!([]));
        let r = container(&tiny, &tiny.spec.as_ref().expect("spec").containers[0], 1 << 30);
        assert_eq!((r.cpu_shares, r.cpu_quota), (Some(2), Some(1000)));
    }

    #[test]
    fn scores() {
        let gib = 1i64 << 30;
        let score = |requests: serde_json::Value, memory| {
            let p = a_pod(json!([c(requests, json!({}))]), json!([]));
            container(&p, &p.spec.as_ref().expect("spec").containers[0], memory).oom_score_adj
        };
        assert_eq!(score(json!({}), gib), Some(1000));
        assert_eq!(score(json!({"cpu": "1m"}), gib), Some(999));
        assert_eq!(score(json!({"memory": "512Mi"}), gib), Some(500));
        assert_eq!(score(json!({"memory": "2Gi"}), gib), Some(3));
        let side = json!([{"name": "s", "restartPolicy": "Always"}]);
        let p = a_pod(json!([c(json!({"memory": "512Mi"}), json!({}))]), side);
        let sidecar = &p.spec.as_ref().expect("spec").init_containers.as_ref().expect("init")[0];
        assert_eq!(container(&p, sidecar, gib).oom_score_adj, Some(500));
    }
}
