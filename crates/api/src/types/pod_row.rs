//! The row of a pod in `kubectl get`.
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodSpec, PodStatus};
use serde_json::Value;

use super::{AGE, NAME, col, wide};
use crate::age::{age, since};
use crate::check::{items, text};
use crate::contract::Column;
use crate::pod::is_sidecar;

pub(crate) const COLUMNS: &[Column] = &[
    NAME,
    col("Ready", "string", "The aggregate readiness state of this pod for accepting traffic."),
    col("Status", "string", "The aggregate status of the containers in this pod."),
    col(
        "Restarts",
        "string",
        "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
    ),
    AGE,
    wide("IP", "string", "Address of the pod."),
    wide("Node", "string", "The node that the pod runs on."),
    wide("Nominated Node", "string", "The node that room is being made on for the pod."),
    wide("Readiness Gates", "string", "Conditions beyond the containers' that make the pod ready."),
];

/// What is said about a pod, gathered from its containers.
#[derive(Default)]
struct Summary {
    reason: String,
    ready: usize,
    restarts: i32,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn count(&mut self, status: &ContainerStatus) {
        self.restarts += status.restart_count;
        let ended = terminated(status.last_state.as_ref()).and_then(|t| t.finished_at.as_ref()).map(|t| t.0);
        self.last_restart = self.last_restart.max(ended);
    }
}

fn terminated(state: Option<&ContainerState>) -> Option<&ContainerStateTerminated> {
    state?.terminated.as_ref()
}

fn waiting_reason(status: &ContainerStatus) -> &str {
    status.state.as_ref().and_then(|s| s.waiting.as_ref()).map_or("", |w| text(&w.reason))
}

fn end_reason(t: &ContainerStateTerminated) -> String {
    match (text(&t.reason), t.signal.unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", t.exit_code),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn condition<'s>(status: &'s PodStatus, kind: &str) -> Option<&'s str> {
    items(&status.conditions).find(|c| c.type_ == kind).map(|c| c.status.as_str())
}

/// Goes through the init containers; `Some` is what the pod says while one of them holds it up. The second is what the
/// sidecars alone add up to.
fn init(spec: &PodSpec, status: &PodStatus, all: &mut Summary, sidecars: &mut Summary) -> bool {
    for (i, s) in items(&status.init_container_statuses).enumerate() {
        let sidecar = items(&spec.init_containers).any(|c| c.name == s.name && is_sidecar(c));
        all.count(s);
        if sidecar {
            sidecars.count(s);
        }
        let end = terminated(s.state.as_ref());
        if end.is_some_and(|t| t.exit_code == 0) {
            continue;
        }
        if sidecar && s.started == Some(true) {
            all.ready += usize::from(s.ready);
            continue;
        }
        all.reason = match (end, waiting_reason(s)) {
            (Some(t), _) => format!("Init:{}", end_reason(t)),
            (None, reason) if !reason.is_empty() && reason != "PodInitializing" => format!("Init:{reason}"),
            _ => format!("Init:{i}/{}", items(&spec.init_containers).count()),
        };
        return true;
    }
    false
}

fn containers(status: &PodStatus, all: &mut Summary) {
    let (mut running, mut failure) = (false, String::new());
    for s in items(&status.container_statuses).collect::<Vec<_>>().into_iter().rev() {
        all.count(s);
        let waiting = waiting_reason(s);
        if !waiting.is_empty() {
            all.reason = waiting.to_owned();
        } else if let Some(t) = terminated(s.state.as_ref()) {
            all.reason = end_reason(t);
            if t.exit_code != 0 {
                failure.clone_from(&all.reason);
            }
        } else if s.ready && s.state.as_ref().is_some_and(|s| s.running.is_some()) {
            running = true;
            all.ready += 1;
        }
    }
    if all.reason == "Completed" {
        if running && condition(status, "Ready") == Some("True") {
            all.reason = "Running".to_owned();
        } else if !failure.is_empty() {
            all.reason = failure;
        } else if running {
            all.reason = "NotReady".to_owned();
        }
    }
}

fn summary(pod: &Pod, spec: &PodSpec, status: &PodStatus) -> Summary {
    let phase = text(&status.phase);
    let mut all = Summary { reason: phase.to_owned(), ..Summary::default() };
    if !text(&status.reason).is_empty() {
        all.reason = text(&status.reason).to_owned();
    }
    let gated = |c: &k8s_openapi::api::core::v1::PodCondition| {
        c.type_ == "PodScheduled" && text(&c.reason) == "SchedulingGated"
    };
    if items(&status.conditions).any(gated) {
        all.reason = "SchedulingGated".to_owned();
    }
    let mut sidecars = Summary::default();
    let held_up = init(spec, status, &mut all, &mut sidecars);
    if !held_up || condition(status, "Initialized") == Some("True") {
        (all.restarts, all.last_restart) = (sidecars.restarts, sidecars.last_restart);
        containers(status, &mut all);
    }
    if pod.metadata.deletion_timestamp.is_some() {
        if text(&status.reason) == "NodeLost" {
            all.reason = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            all.reason = "Terminating".to_owned();
        }
    }
    all
}

pub(crate) fn row(pod: &Pod, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (pod.spec.clone().unwrap_or_default(), pod.status.clone().unwrap_or_default());
    let all = summary(pod, &spec, &status);
    let total = spec.containers.len() + items(&spec.init_containers).filter(|c| is_sidecar(c)).count();
    let restarts = match all.last_restart {
        Some(last) if all.restarts != 0 => format!("{} ({} ago)", all.restarts, since(Some(last), now)),
        _ => all.restarts.to_string(),
    };
    let or_none = |t: &str| Value::from(if t.is_empty() { "<none>" } else { t });
    let gates = items(&spec.readiness_gates).count();
    let open = items(&spec.readiness_gates).filter(|g| condition(&status, &g.condition_type) == Some("True")).count();
    vec![
        pod.metadata.name.clone().into(),
        format!("{}/{total}", all.ready).into(),
        all.reason.into(),
        restarts.into(),
        age(pod.metadata.creation_timestamp.as_ref(), now).into(),
        or_none(items(&status.pod_ips).next().map_or_else(|| text(&status.pod_ip), |i| i.ip.as_str())),
        or_none(text(&spec.node_name)),
        or_none(text(&status.nominated_node_name)),
        or_none(&if gates == 0 { String::new() } else { format!("{open}/{gates}") }),
    ]
}
