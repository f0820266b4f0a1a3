//! Runs the probes of one incarnation of a container and reports verdicts to the pod's worker.
use std::{sync::Arc, time::Duration};

use base::chain;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Pod, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use runtime::{ContainerId, ContainerState, PodUid, RuntimeError};
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::task::AbortOnDropHandle;

use super::{Shared, identity, request};
use crate::{
    core::{
        facts::later,
        probe::{Counter, Health, ProbeKind},
    },
    spec::container::{Member, field_path},
};

const AGENT: &str = "kube-probe/1.36";
const ALL: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Readiness, ProbeKind::Liveness];

/// A probe's verdict about one incarnation.
#[derive(Debug, Clone)]
pub struct Verdict {
    pub id: ContainerId,
    pub container: String,
    pub kind: ProbeKind,
    pub good: bool,
}

/// The probes of one incarnation; dropping it ends them.
pub struct Probers {
    started: watch::Sender<bool>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Probers {
    /// The startup probe has succeeded: the others may begin.
    pub fn started(&self) {
        self.started.send_if_modified(|s| !std::mem::replace(s, true));
    }
}

/// What is probed.
pub struct Target {
    pub pod: Arc<Pod>,
    pub member: Member,
    pub id: ContainerId,
    /// The pod's address, or the node's with `hostNetwork`.
    pub host: String,
    pub started_at: Timestamp,
}

/// One answer of a probe.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Good,
    Bad(String),
    /// The probe itself could not be made.
    Error(String),
}

/// Starts the container's probes.
pub fn spawn(
    shared: &Arc<Shared>,
    target: Target,
    health: Health,
    verdicts: mpsc::UnboundedSender<Verdict>,
) -> Probers {
    let (started, _) = watch::channel(health.started);
    let target = Arc::new(target);
    let tasks = ALL
        .into_iter()
        .filter(|kind| !(*kind == ProbeKind::Startup && health.started))
        .filter_map(|kind| Some((kind, kind.of(&target.member.container)?.clone())))
        .map(|(kind, probe)| {
            let (shared, target, verdicts) = (shared.clone(), target.clone(), verdicts.clone());
            let gate = started.subscribe();
            AbortOnDropHandle::new(tokio::spawn(async move {
                watch_one(&shared, &target, kind, &probe, gate, verdicts).await
            }))
        })
        .collect();
    Probers { started, _tasks: tasks }
}

fn seconds(v: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(v.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default))
}

async fn watch_one(
    shared: &Shared,
    target: &Target,
    kind: ProbeKind,
    probe: &Probe,
    mut started: watch::Receiver<bool>,
    verdicts: mpsc::UnboundedSender<Verdict>,
) {
    if kind != ProbeKind::Startup && started.wait_for(|s| *s).await.is_err() {
        return;
    }
    let delay = Duration::from_secs(probe.initial_delay_seconds.and_then(|v| u64::try_from(v).ok()).unwrap_or(0));
    let wait = later(target.started_at, delay).duration_since(shared.clock.now());
    let first = Instant::now() + Duration::try_from(wait).unwrap_or(Duration::ZERO);
    let mut ticks = tokio::time::interval_at(first, seconds(probe.period_seconds, 10));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut counter = Counter::new(probe);
    loop {
        ticks.tick().await;
        let reply = ask(shared, target, probe).await;
        if reply != Reply::Good && !runs(shared, target).await {
            // Nobody is left to be judged: not the probe has failed, but the container has ended.
            return;
        }
        let tell = |text: String| {
            let path = field_path(target.member.kind, &target.member.container.name);
            shared.events.pod(&target.pod, Some(path), true, "Unhealthy", text);
        };
        let good = match reply {
            Reply::Good => true,
            Reply::Bad(why) => {
                tell(format!("{} probe failed: {why}", kind.name()));
                false
            }
            Reply::Error(why) => {
                // Neither good nor bad: upstream keeps what it knew.
                tell(format!("{} probe errored and resulted in unknown state: {why}", kind.name()));
                continue;
            }
        };
        let Some(good) = counter.answer(good) else { continue };
        let verdict = Verdict { id: target.id.clone(), container: target.member.container.name.clone(), kind, good };
        if verdicts.send(verdict).is_err() {
            return;
        }
        match kind {
            // Each has said its last word about this incarnation.
            ProbeKind::Startup => return,
            ProbeKind::Liveness if !good => return,
            _ => {}
        }
    }
}

/// Whether the container still runs, as far as can be told.
async fn runs(shared: &Shared, target: &Target) -> bool {
    let uid = PodUid(identity(&target.pod).2.to_owned());
    let Ok(sandbox) = shared.runtime.status(&uid).await else { return true };
    let mut all = sandbox.iter().flat_map(|s| &s.containers);
    all.any(|c| c.id == target.id && matches!(c.state, ContainerState::Running { .. }))
}

async fn ask(shared: &Shared, target: &Target, probe: &Probe) -> Reply {
    let timeout = seconds(probe.timeout_seconds, 1);
    if let Some(exec) = &probe.exec {
        return ask_exec(shared, target, &exec.command.clone().unwrap_or_default(), timeout).await;
    }
    if let Some(http) = &probe.http_get {
        return match request::get(&target.member.container, http, &target.host, AGENT, timeout).await {
            Ok(a) if a.status.is_success() || a.status.is_redirection() => Reply::Good,
            Ok(a) => Reply::Bad(format!("HTTP probe failed with statuscode: {}", a.status.as_u16())),
            Err(why) => Reply::Bad(why),
        };
    }
    let (host, port) = if let Some(tcp) = &probe.tcp_socket {
        let named = tcp.host.as_deref().filter(|h| !h.is_empty());
        (named.unwrap_or(&target.host), request::port(&target.member.container, &tcp.port))
    } else if let Some(grpc) = &probe.grpc {
        let port = request::port(&target.member.container, &IntOrString::Int(grpc.port));
        let Ok(port) = port else { return Reply::Error(format!("invalid port number: {}", grpc.port)) };
        let service = grpc.service.as_deref().unwrap_or_default();
        return match tokio::time::timeout(timeout, crate::agent::grpc_health::check(&target.host, port, service)).await
        {
            Ok(Ok(())) => Reply::Good,
            Ok(Err(why)) => Reply::Bad(why),
            Err(_) => Reply::Bad(format!("timeout: health rpc did not complete within {}s", timeout.as_secs())),
        };
    } else {
        return Reply::Error("missing probe handler".into());
    };
    match port {
        Ok(port) => ask_tcp(host, port, timeout).await,
        Err(why) => Reply::Error(why),
    }
}

async fn ask_tcp(host: &str, port: u16, timeout: Duration) -> Reply {
    let address = request::host_port(host, port);
    match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
        Ok(Ok(_)) => Reply::Good,
        Ok(Err(error)) => Reply::Bad(format!("dial tcp {address}: connect: {}", request::plain(&error))),
        Err(_) => Reply::Bad(format!("dial tcp {address}: i/o timeout")),
    }
}

async fn ask_exec(shared: &Shared, target: &Target, command: &[String], timeout: Duration) -> Reply {
    match shared.runtime.exec_sync(&target.id, command, timeout).await {
        Ok(out) if out.exit_code == 0 => Reply::Good,
        Ok(out) => Reply::Bad(String::from_utf8_lossy(&out.output).into_owned()),
        Err(RuntimeError::Timeout(after)) => {
            Reply::Bad(format!("command timed out: {:?} timed out after {}s", command.join(" "), after.as_secs()))
        }
        // A command that is not there is a failure of the container, not of the probe.
        Err(RuntimeError::Start { why, .. }) => Reply::Bad(why),
        Err(error) => Reply::Error(chain(&error)),
    }
}
