//! The pod conditions that the node keeps.
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};

use super::{
    facts::Facts,
    history::{self, seconds},
    status::{FAILED, SUCCEEDED, initialized},
};
use crate::spec::container::Kind;

struct Verdict {
    kind: &'static str,
    good: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

/// Sets the node's conditions in `s`; all others stay.
pub fn update(f: &Facts<'_>, s: &mut PodStatus, phase: &str, stopped: bool) {
    let containers = containers_ready(f, s, phase);
    let ready = ready(f, s, &containers);
    let all = [ready_to_start(f, stopped), init(f, s, phase), ready, containers];
    let mut list = s.conditions.take().unwrap_or_default();
    for v in all {
        let status = if v.good { "True" } else { "False" };
        let at = list.iter().position(|c| c.type_ == v.kind);
        let since = at.map(|i| &list[i]).filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
        let condition = PodCondition {
            type_: v.kind.into(),
            status: status.into(),
            reason: v.reason.map(Into::into),
            message: v.message,
            observed_generation: f.pod.metadata.generation,
            last_probe_time: None,
            last_transition_time: since.or_else(|| Some(seconds(f.now))),
        };
        match at {
            Some(i) => list[i] = condition,
            None => list.push(condition),
        }
    }
    let scheduled = list.iter().any(|c| c.type_ == "PodScheduled");
    if !scheduled {
        list.push(PodCondition {
            type_: "PodScheduled".into(),
            status: "True".into(),
            observed_generation: f.pod.metadata.generation,
            last_transition_time: Some(seconds(f.now)),
            ..PodCondition::default()
        });
    }
    s.conditions = Some(list);
}

/// As upstream's, which makes the sandbox after the volumes: False as long as one of them fails. That is kept here, since
/// Events expire.
fn ready_to_start(f: &Facts<'_>, stopped: bool) -> Verdict {
    let kind = "PodReadyToStartContainers";
    let ran = || f.members.iter().any(|m| history::history(f, m.kind, &m.container.name).current.is_some());
    match f.volume_trouble.filter(|_| !f.volumes_ready && !stopped && !ran()) {
        Some(t) => Verdict { kind, good: false, reason: Some(t.reason), message: Some(t.message.clone()) },
        None => Verdict { kind, good: f.ready_sandbox().is_some() && !stopped, reason: None, message: None },
    }
}

fn names(list: &[&str]) -> String {
    format!("[{}]", list.join(" "))
}

fn init(f: &Facts<'_>, s: &PodStatus, phase: &str) -> Verdict {
    let kind = "Initialized";
    if phase == SUCCEEDED {
        return Verdict { kind, good: true, reason: Some("PodCompleted"), message: None };
    }
    if initialized(f) {
        return Verdict { kind, good: true, reason: None, message: None };
    }
    let undone = |c: &&ContainerStatus| {
        let sidecar = f.of(Kind::Sidecar).any(|m| m.container.name == c.name);
        if sidecar { c.started != Some(true) } else { !c.ready }
    };
    let list: Vec<_> = s.init_container_statuses.iter().flatten().filter(undone).map(|c| c.name.as_str()).collect();
    let message = Some(format!("containers with incomplete status: {}", names(&list)));
    Verdict { kind, good: false, reason: Some("ContainersNotInitialized"), message }
}

fn containers_ready(f: &Facts<'_>, s: &PodStatus, phase: &str) -> Verdict {
    let kind = "ContainersReady";
    match phase {
        SUCCEEDED => return Verdict { kind, good: false, reason: Some("PodCompleted"), message: None },
        FAILED => return Verdict { kind, good: false, reason: Some("PodFailed"), message: None },
        _ => {}
    }
    let sidecar = |c: &&ContainerStatus| f.of(Kind::Sidecar).any(|m| m.container.name == c.name);
    let early = s.init_container_statuses.iter().flatten().filter(sidecar);
    let unready: Vec<_> =
        early.chain(s.container_statuses.iter().flatten()).filter(|c| !c.ready).map(|c| c.name.as_str()).collect();
    if unready.is_empty() {
        return Verdict { kind, good: true, reason: None, message: None };
    }
    let message = Some(format!("containers with unready status: {}", names(&unready)));
    Verdict { kind, good: false, reason: Some("ContainersNotReady"), message }
}

/// Ready: all containers are, and all readiness gates are open.
fn ready(f: &Facts<'_>, s: &PodStatus, containers: &Verdict) -> Verdict {
    let kind = "Ready";
    if !containers.good {
        return Verdict { kind, message: containers.message.clone(), ..*containers };
    }
    let gates = f.pod.spec.as_ref().and_then(|s| s.readiness_gates.as_ref());
    let mut closed = Vec::new();
    for gate in gates.into_iter().flatten() {
        let t = &gate.condition_type;
        // Gates are opened by others, so the API's own word counts, not our copy.
        let api = f.pod.status.as_ref().and_then(|s| s.conditions.as_ref()).or(s.conditions.as_ref());
        match api.into_iter().flatten().find(|c| c.type_ == *t) {
            None => closed.push(format!("corresponding condition of pod readiness gate {t:?} does not exist.")),
            Some(c) if c.status != "True" => {
                closed.push(format!("the status of pod readiness gate {t:?} is not \"True\", but {}", c.status))
            }
            Some(_) => {}
        }
    }
    if closed.is_empty() {
        return Verdict { kind, good: true, reason: None, message: None };
    }
    Verdict { kind, good: false, reason: Some("ReadinessGatesNotReady"), message: Some(closed.join(", ")) }
}
