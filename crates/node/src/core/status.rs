//! The status of a pod: container states, phase, conditions, addresses.
//! Source: Kubernetes 1.36, `pkg/kubelet/kubelet_pods.go`, `pkg/kubelet/status`.
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateWaiting, ContainerStatus, ContainerUser, HostIP,
    LinuxContainerUser, PodIP, PodStatus, VolumeMountStatus,
};

use super::{
    conditions,
    decide::{self, restarts},
    facts::{Cause, Decision, Facts, Stage},
    finish,
    history::{self, History, Incarnation, Life, SCHEME, seconds, terminated},
};
use crate::spec::{
    container::{Kind, Member, recursive_read_only},
    resources,
    security::pod_label,
};

pub const PENDING: &str = "Pending";
pub const RUNNING: &str = "Running";
pub const SUCCEEDED: &str = "Succeeded";
pub const FAILED: &str = "Failed";

/// All main containers may have run: every init container is done and every sidecar has started, now or once.
pub fn initialized(f: &Facts<'_>) -> bool {
    let ran = |m: &Member| history::history(f, m.kind, &m.container.name).current.is_some();
    f.of(Kind::Main).any(ran)
        || f.early().all(|m| {
            let h = history::history(f, m.kind, &m.container.name);
            match m.kind {
                Kind::Sidecar => decide::health(f, &m.container.name, &h).is_some_and(|h| h.started) && is_running(&h),
                _ => h.current.as_ref().and_then(Incarnation::code) == Some(0),
            }
        })
}

fn is_running(h: &History) -> bool {
    h.current.as_ref().is_some_and(Incarnation::running)
}

/// The phase from the containers alone. `stopped`: nothing runs and nothing will be started.
pub fn phase(f: &Facts<'_>, stopped: bool) -> &'static str {
    match f.status.phase.as_deref() {
        Some(FAILED) => return FAILED,
        Some(SUCCEEDED) => return SUCCEEDED,
        _ => {}
    }
    let failed_init = f.of(Kind::Init).any(|m| {
        let code = history::history(f, m.kind, &m.container.name).current.and_then(|c| c.code());
        code.is_some_and(|code| code != 0 && !restarts(f, &m.container, code))
    });
    if failed_init {
        return FAILED;
    }
    let (mut waiting, mut running, mut ended, mut good, mut again) = (0, 0, 0, 0, false);
    for m in f.of(Kind::Main) {
        let h = history::history(f, m.kind, &m.container.name);
        let last = h.current.as_ref().filter(|c| c.life != Life::Created).or(h.previous.as_ref());
        match last.map(|c| (&c.life, c.code())) {
            None | Some((Life::Created, _)) => waiting += 1,
            Some((Life::Running { .. }, _)) => running += 1,
            Some((Life::Exited(_), code)) => {
                ended += 1;
                good += u32::from(code == Some(0));
                again |= restarts(f, &m.container, code.unwrap_or(0));
            }
        }
    }
    if !initialized(f) || (waiting > 0 && !stopped) {
        return if stopped { FAILED } else { PENDING };
    }
    if running > 0 {
        return RUNNING;
    }
    if again && !stopped {
        return RUNNING;
    }
    if ended == 0 {
        return if stopped { FAILED } else { PENDING };
    }
    if good == ended + waiting { SUCCEEDED } else { FAILED }
}

/// The pod's status. Keeps from the last known one what belongs to others.
pub fn make(f: &Facts<'_>, d: &Decision) -> PodStatus {
    let stopped = matches!(d.stage, Stage::Stopped | Stage::Gone);
    let mut s = f.status.clone();
    let list = |want: &[Kind]| -> Vec<ContainerStatus> {
        f.members.iter().filter(|m| want.contains(&m.kind)).map(|m| container(f, d, m, stopped)).collect()
    };
    let some = |v: Vec<ContainerStatus>| (!v.is_empty()).then_some(v);
    s.init_container_statuses = some(list(&[Kind::Init, Kind::Sidecar]));
    s.container_statuses = some(list(&[Kind::Main]));
    s.ephemeral_container_statuses = some(list(&[Kind::Ephemeral]));
    let mut now = phase(f, stopped && d.end.is_some());
    let cause = d.end.as_ref().map(|e| &e.cause);
    if let Some(Cause::Failed { reason, message }) = cause {
        now = FAILED;
        (s.reason, s.message) = (Some(reason.clone()), Some(message.clone()));
    }
    // A phase that is final is not told before all containers have ended.
    let terminal = matches!(now, SUCCEEDED | FAILED);
    if terminal && finish::any_running(f) {
        let before = f.status.phase.clone().unwrap_or_else(|| PENDING.into());
        (s.reason, s.message) = (f.status.reason.clone(), f.status.message.clone());
        s.phase = Some(before);
    } else {
        s.phase = Some(now.into());
    }
    s.qos_class = Some(resources::qos(f.pod).as_str().into());
    s.start_time = s.start_time.or_else(|| Some(seconds(f.now)));
    s.observed_generation = f.pod.metadata.generation;
    addresses(f, &mut s);
    conditions::update(f, &mut s, now, stopped);
    s
}

fn addresses(f: &Facts<'_>, s: &mut PodStatus) {
    s.host_ip = f.host_ips.first().cloned();
    s.host_ips = Some(f.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect());
    let host_network = f.pod.spec.as_ref().is_some_and(|p| p.host_network == Some(true));
    let ips: Vec<String> = match f.ready_sandbox() {
        Some(_) if host_network => f.host_ips.to_vec(),
        Some(sandbox) => sandbox.ips.iter().map(ToString::to_string).collect(),
        None => return,
    };
    if !ips.is_empty() {
        s.pod_ip = ips.first().cloned();
        s.pod_ips = Some(ips.into_iter().map(|ip| PodIP { ip }).collect());
    }
}

fn container(f: &Facts<'_>, d: &Decision, m: &Member, stopped: bool) -> ContainerStatus {
    let c = &m.container;
    let h = history::history(f, m.kind, &c.name);
    let prior = history::prior(f, m.kind, &c.name);
    let mut s = ContainerStatus { name: c.name.clone(), ..ContainerStatus::default() };
    let shown = h.current.as_ref();
    s.image = shown.map(|i| i.image.clone()).unwrap_or_else(|| c.image.clone().unwrap_or_default());
    s.image_id = shown.map(|i| i.image_id.clone()).unwrap_or_default();
    s.container_id = shown.filter(|i| !i.id.is_empty()).map(|i| format!("{SCHEME}{}", i.id));
    s.restart_count = match shown {
        Some(i) => i32::try_from(i.attempt).unwrap_or(i32::MAX),
        None => prior.map_or(0, |p| p.restart_count),
    };
    let (state, last) = states(f, d, m, &h, stopped);
    let running = state.running.is_some();
    let health = decide::health(f, &c.name, &h);
    let started = running && health.is_some_and(|h| h.started);
    s.started = Some(if m.kind == Kind::Init { running } else { started });
    s.ready = match m.kind {
        Kind::Init => state.terminated.as_ref().is_some_and(|t| t.exit_code == 0),
        Kind::Ephemeral => false,
        _ => started && health.is_some_and(|h| h.ready),
    };
    if m.kind == Kind::Ephemeral {
        s.started = None;
    }
    s.state = Some(state);
    s.last_state = Some(last);
    s.volume_mounts = mounts(m);
    if let Some(user) = shown.and_then(|i| i.user.as_ref()) {
        s.user = Some(ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: user.0.into(),
                gid: user.1.into(),
                supplemental_groups: Some(user.2.iter().map(|g| i64::from(*g)).collect()),
            }),
        });
    } else {
        s.user = prior.and_then(|p| p.user.clone());
    }
    if running && m.kind != Kind::Ephemeral {
        s.resources = Some(c.resources.clone().unwrap_or_default());
        s.allocated_resources = c.resources.as_ref().and_then(|r| r.requests.clone());
    }
    s
}

/// `state` and `lastState`.
fn states(f: &Facts<'_>, d: &Decision, m: &Member, h: &History, stopped: bool) -> (ContainerState, ContainerState) {
    let name = &m.container.name;
    let was =
        |i: Option<&Incarnation>| ContainerState { terminated: i.and_then(terminated), ..ContainerState::default() };
    let wait = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.into()), message }),
        ..ContainerState::default()
    };
    let trouble = f.memory.containers.get(name).and_then(|c| c.trouble.as_ref()).filter(|_| !stopped);
    let current = h.current.as_ref();
    if let Some(Life::Running { started_at }) = current.map(|c| &c.life) {
        let running = Some(ContainerStateRunning { started_at: Some(seconds(*started_at)) });
        return (ContainerState { running, ..ContainerState::default() }, was(h.previous.as_ref()));
    }
    let ended = current.filter(|c| c.exit().is_some());
    // Where a waiting container's last run is shown.
    let last = was(ended.or(h.previous.as_ref()));
    if let (Some(length), false) = (d.backing_off.get(name), stopped) {
        let text =
            format!("back-off {}s restarting failed container={name} pod={}", length.as_secs(), pod_label(f.pod));
        let text = if length.as_secs() >= 60 {
            text.replacen(&format!("{}s", length.as_secs()), &minutes(length.as_secs()), 1)
        } else {
            text
        };
        return (wait("CrashLoopBackOff", Some(text)), last);
    }
    let comes_again = ended.is_none_or(|c| m.kind == Kind::Sidecar || restarts(f, &m.container, c.code().unwrap_or(0)));
    if let Some(t) = trouble.filter(|_| comes_again) {
        let (reason, message) = match &t.later {
            Some(l) if l.from <= f.now => (&l.reason, &l.message),
            _ => (&t.reason, &t.message),
        };
        return (wait(reason, Some(message.clone()).filter(|m| !m.is_empty())), last);
    }
    match (ended, stopped) {
        (Some(c), _) if c.present || stopped || !comes_again => (was(Some(c)), was(h.previous.as_ref())),
        (None, true) if initialized(f) && m.kind != Kind::Ephemeral => {
            let lost = k8s_openapi::api::core::v1::ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".into()),
                message: Some("The container could not be located when the pod was terminated".into()),
                ..Default::default()
            };
            (ContainerState { terminated: Some(lost), ..ContainerState::default() }, last)
        }
        _ => {
            let init = f.early().next().is_some();
            (wait(if init { "PodInitializing" } else { "ContainerCreating" }, None), last)
        }
    }
}

/// Go prints 80 s as `1m20s`.
fn minutes(seconds: u64) -> String {
    format!("{}m{}s", seconds / 60, seconds % 60)
}

fn mounts(m: &Member) -> Option<Vec<VolumeMountStatus>> {
    let list: Vec<_> = m
        .container
        .volume_mounts
        .iter()
        .flatten()
        .map(|v| {
            let read_only = v.read_only == Some(true);
            VolumeMountStatus {
                name: v.name.clone(),
                mount_path: v.mount_path.clone(),
                read_only: read_only.then_some(true),
                recursive_read_only: read_only
                    .then(|| if recursive_read_only(v) == Ok(true) { "Enabled" } else { "Disabled" }.into()),
                ..VolumeMountStatus::default()
            }
        })
        .collect();
    (!list.is_empty()).then_some(list)
}
