//! Quality of service, cgroup limits and OOM scores.
use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use runtime::{Qos, Resources};

use crate::quantity::{milli_of, whole_of};

/// Microseconds of one CPU accounting period.
const PERIOD_MICROS: u64 = 100_000;
const MIN_QUOTA_MICROS: i64 = 1_000;
const GUARANTEED_SCORE: i64 = -997;
const BEST_EFFORT_SCORE: i64 = 1000;

type List = BTreeMap<String, Quantity>;

fn limits(r: Option<&ResourceRequirements>) -> Option<&List> {
    r.and_then(|r| r.limits.as_ref())
}

/// What a container asks for; a limit without a request is its request.
fn request(r: Option<&ResourceRequirements>, name: &str, read: fn(Option<&List>, &str) -> Option<i64>) -> Option<i64> {
    read(r.and_then(|r| r.requests.as_ref()), name).or_else(|| read(limits(r), name))
}

fn all(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()))
}

/// An init container that keeps running (`restartPolicy: Always`).
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The pod's class, from all containers, or from the pod's own resources where they are given.
pub fn qos(pod: &Pod) -> Qos {
    let own = pod.spec.as_ref().and_then(|s| s.resources.as_ref());
    let parts: Vec<Option<&ResourceRequirements>> = match own {
        Some(r) if r.requests.is_some() || r.limits.is_some() => vec![Some(r)],
        _ => all(pod).map(|c| c.resources.as_ref()).collect(),
    };
    let mut any = false;
    let mut guaranteed = !parts.is_empty();
    for r in parts {
        for name in ["cpu", "memory"] {
            let limit = milli_of(limits(r), name).filter(|v| *v > 0);
            let asked = request(r, name, milli_of).filter(|v| *v > 0);
            any |= limit.is_some() || asked.is_some();
            guaranteed &= limit.is_some() && asked == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// The API's word for a class.
pub fn qos_name(qos: Qos) -> &'static str {
    match qos {
        Qos::Guaranteed => "Guaranteed",
        Qos::Burstable => "Burstable",
        Qos::BestEffort => "BestEffort",
    }
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
    let r = container.resources.as_ref();
    let cpu_limit = milli_of(limits(r), "cpu").unwrap_or(0);
    Resources {
        cpu_shares: Some(shares(request(r, "cpu", milli_of).unwrap_or(0))),
        cpu_quota: quota(cpu_limit),
        cpu_period: quota(cpu_limit).map(|_| PERIOD_MICROS),
        memory_limit: whole_of(limits(r), "memory").filter(|v| *v > 0),
        pids_limit: None,
        oom_score_adj: i32::try_from(oom_score(pod, container, node_memory_bytes)).ok(),
    }
}

fn oom_score(pod: &Pod, container: &Container, node_memory_bytes: i64) -> i64 {
    match qos(pod) {
        Qos::Guaranteed => return GUARANTEED_SCORE,
        Qos::BestEffort => return BEST_EFFORT_SCORE,
        Qos::Burstable => {}
    }
    let memory = |c: &Container| request(c.resources.as_ref(), "memory", whole_of).unwrap_or(0);
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

/// Largest amount of a resource in use at any time: sidecars count from where they start on.
fn peak(pod: &Pod, amount: &dyn Fn(&Container) -> i64) -> i64 {
    let Some(spec) = &pod.spec else { return 0 };
    let (mut sidecars, mut highest) = (0i64, 0i64);
    for c in spec.init_containers.iter().flatten() {
        if is_sidecar(c) {
            sidecars += amount(c);
            highest = highest.max(sidecars);
        } else {
            highest = highest.max(sidecars + amount(c));
        }
    }
    highest.max(sidecars + spec.containers.iter().map(amount).sum::<i64>())
}

/// Limits of the pod's parent cgroup. A limit holds for the pod only if every container has one.
pub fn pod(pod: &Pod) -> Resources {
    let own = pod.spec.as_ref().and_then(|s| s.resources.as_ref());
    let each = |name: &str, read: fn(Option<&List>, &str) -> Option<i64>| {
        let set = |c: &Container| read(limits(c.resources.as_ref()), name).filter(|v| *v > 0);
        read(limits(own), name)
            .or_else(|| all(pod).all(|c| set(c).is_some()).then(|| peak(pod, &|c| set(c).unwrap_or(0))))
            .filter(|v| *v > 0)
    };
    let asked = request(own, "cpu", milli_of)
        .unwrap_or_else(|| peak(pod, &|c| request(c.resources.as_ref(), "cpu", milli_of).unwrap_or(0)));
    let cpu = each("cpu", milli_of).and_then(quota);
    Resources {
        cpu_shares: Some(if qos(pod) == Qos::BestEffort { 2 } else { shares(asked) }),
        cpu_quota: cpu,
        cpu_period: cpu.map(|_| PERIOD_MICROS),
        memory_limit: each("memory", whole_of),
        pids_limit: None,
        oom_score_adj: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(containers: serde_json::Value, init: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers, "initContainers": init}})).expect("valid")
    }

    fn c(requests: serde_json::Value, limits: serde_json::Value) -> serde_json::Value {
        json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn classes() {
        let full = json!({"cpu": "1", "memory": "1Gi"});
        for (containers, want) in [
            (json!([{"name": "c"}]), Qos::BestEffort),
            (json!([c(json!({}), full.clone())]), Qos::Guaranteed),
            (json!([c(full.clone(), full.clone())]), Qos::Guaranteed),
            (json!([c(full.clone(), full.clone()), {"name": "d"}]), Qos::Burstable),
            (json!([c(json!({"cpu": "1m"}), json!({}))]), Qos::Burstable),
            (json!([c(json!({"cpu": "500m", "memory": "1Gi"}), full.clone())]), Qos::Burstable),
            (json!([c(json!({"cpu": "0"}), json!({}))]), Qos::BestEffort),
        ] {
            assert_eq!(qos(&of(containers.clone(), json!([]))), want, "{containers}");
        }
    }

    #[test]
    fn cgroup_values() {
        let p = of(json!([c(json!({"cpu": "100m"}), json!({"cpu": "250m", "memory": "48Mi"}))]), json!([]));
        let r = container(&p, &p.spec.as_ref().expect("spec").containers[0], 1 << 30);
        assert_eq!((r.cpu_shares, r.cpu_quota, r.cpu_period), (Some(102), Some(25_000), Some(100_000)));
        assert_eq!(r.memory_limit, Some(48 << 20));
        let whole = pod(&p);
        assert_eq!((whole.cpu_quota, whole.memory_limit, whole.cpu_shares), (Some(25_000), Some(48 << 20), Some(102)));
        let p = of(json!([c(json!({}), json!({"memory": "1Mi"})), {"name": "d"}]), json!([]));
        assert_eq!(pod(&p).memory_limit, None);
        let tiny = of(json!([c(json!({}), json!({"cpu": "1m"}))]), json!([]));
        let r = container(&tiny, &tiny.spec.as_ref().expect("spec").containers[0], 1 << 30);
        assert_eq!((r.cpu_shares, r.cpu_quota), (Some(2), Some(1000)));
    }

    #[test]
    fn scores() {
        let gib = 1i64 << 30;
        let score = |requests: serde_json::Value, memory| {
            let p = of(json!([c(requests, json!({}))]), json!([]));
            container(&p, &p.spec.as_ref().expect("spec").containers[0], memory).oom_score_adj
        };
        assert_eq!(score(json!({}), gib), Some(1000));
        assert_eq!(score(json!({"cpu": "1m"}), gib), Some(999));
        assert_eq!(score(json!({"memory": "512Mi"}), gib), Some(500));
        assert_eq!(score(json!({"memory": "2Gi"}), gib), Some(3));
        let side = json!([{"name": "s", "restartPolicy": "Always"}]);
        let p = of(json!([c(json!({"memory": "512Mi"}), json!({}))]), side);
        let sidecar = &p.spec.as_ref().expect("spec").init_containers.as_ref().expect("init")[0];
        assert_eq!(container(&p, sidecar, gib).oom_score_adj, Some(500));
    }
}
