//! The end of a pod: when it comes, and its steps in order.
//!
//! Main containers stop first, then the sidecars in reverse order. The last status is saved, then the sandbox goes, then
//! the volumes, and only then the object (F1: nothing of a pod outlives its object, unless that was deleted by force).
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use runtime::ContainerState;

use super::{
    facts::{Action, Cause, Decision, End, Facts, Op, Stage, later},
    history, status,
};
use crate::spec::container::Kind;

/// What a container gets at least when others used up the pod's time.
const LEAST_GRACE: Duration = Duration::from_secs(2);
/// `terminationGracePeriodSeconds` where the pod does not say.
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// `terminationGracePeriodSeconds`.
pub fn own_grace(pod: &Pod) -> i64 {
    pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(DEFAULT_GRACE_SECONDS)
}

fn seconds(s: i64) -> Duration {
    Duration::from_secs(u64::try_from(s).unwrap_or(0))
}

/// Why the pod must end, if it must. Asks to be woken at its deadline.
pub fn ending(f: &Facts<'_>, d: &mut Decision) -> Option<End> {
    let known = f.memory.end.as_ref();
    if f.memory.gone {
        // Only a deletion by force lets the object go before its containers: they have no time left.
        let first = End { cause: Cause::Vanished, since: f.now, grace: Duration::ZERO };
        return Some(known.filter(|e| e.cause == Cause::Vanished).cloned().unwrap_or(first));
    }
    let meta = &f.pod.metadata;
    if meta.deletion_timestamp.is_some() {
        let grace = seconds(meta.deletion_grace_period_seconds.unwrap_or_else(|| own_grace(f.pod)));
        let since = known.filter(|e| e.cause == Cause::Deleted).map_or(f.now, |e| e.since);
        return Some(End { cause: Cause::Deleted, since, grace });
    }
    if let Some(end) = known {
        return Some(end.clone());
    }
    let limit = f.pod.spec.as_ref().and_then(|s| s.active_deadline_seconds);
    if let (Some(limit), Some(start)) = (limit, &f.status.start_time) {
        let at = later(start.0, seconds(limit));
        if at <= f.now {
            let cause = Cause::Failed {
                reason: "DeadlineExceeded".into(),
                message: "Pod was active on the node longer than the specified deadline".into(),
            };
            return Some(End { cause, since: f.now, grace: seconds(own_grace(f.pod)) });
        }
        d.wake(at);
    }
    let over = matches!(status::phase(f, false), status::FAILED | status::SUCCEEDED);
    over.then(|| End { cause: Cause::Finished, since: f.now, grace: seconds(own_grace(f.pod)) })
}

/// The next steps towards the end.
pub fn finish(f: &Facts<'_>, end: End, d: &mut Decision) {
    d.stage = Stage::Stopping;
    let cause = end.cause.clone();
    let stopping = stop_containers(f, &end, d);
    d.end = Some(end);
    let at_work = |op: &Op| matches!(op, Op::Start(_) | Op::Stop(_) | Op::Sandbox | Op::Remove(_) | Op::Volumes);
    if stopping || f.busy.iter().any(at_work) {
        return;
    }
    d.stage = Stage::Stopped;
    if !f.saved && cause != Cause::Vanished {
        return;
    }
    // Whatever is to be tried again later: nobody waits for it if nothing is left.
    if cause == Cause::Vanished && f.sandbox.is_none() && f.memory.torn_down {
        d.stage = Stage::Gone;
    } else if let Some(at) = f.memory.end_retry_at.filter(|at| *at > f.now) {
        d.wake(at);
    } else if f.sandbox.is_some() {
        d.actions.push(Action::RemoveSandbox { changed: false });
    } else if !f.memory.torn_down {
        if !f.busy.contains(&Op::TearDown) {
            d.actions.push(Action::TearDown);
        }
    } else {
        match cause {
            Cause::Deleted if !f.busy.contains(&Op::Delete) => d.actions.push(Action::Delete),
            Cause::Deleted | Cause::Vanished | Cause::Finished | Cause::Failed { .. } => {}
        }
    }
}

/// Stops what runs; false if nothing does.
fn stop_containers(f: &Facts<'_>, end: &End, d: &mut Decision) -> bool {
    let running: Vec<_> = f
        .sandbox
        .iter()
        .flat_map(|s| &s.containers)
        .filter(|c| matches!(c.state, ContainerState::Running { .. }))
        .collect();
    let sidecar = |name: &str| f.of(Kind::Sidecar).position(|m| m.container.name == name);
    let mut now: Vec<_> = running.iter().filter(|c| sidecar(&c.name).is_none()).collect();
    let starting = f.busy.iter().any(|op| matches!(op, Op::Start(n) if sidecar(n).is_none()));
    if now.is_empty() && !starting {
        now.extend(running.iter().max_by_key(|c| sidecar(&c.name)));
    }
    let kill_at = later(end.since, end.grace);
    let left = Duration::try_from(kill_at.duration_since(f.now)).unwrap_or(Duration::ZERO);
    let grace = if end.grace.is_zero() { Duration::ZERO } else { left.max(LEAST_GRACE.min(end.grace)) };
    // A later, shorter deletion hurries stops that are already under way.
    let hurry = f.memory.end.as_ref().is_some_and(|known| later(known.since, known.grace) > kill_at);
    for c in now {
        if hurry || !f.busy.contains(&Op::Stop(c.id.clone())) {
            let message = format!("Stopping container {}", c.name);
            d.actions.push(Action::Stop { id: c.id.clone(), name: c.name.clone(), grace, message });
        }
    }
    !running.is_empty()
}

/// The newest incarnations of containers that still run, by name.
pub fn any_running(f: &Facts<'_>) -> bool {
    f.members.iter().any(|m| {
        history::present(f, &m.container.name)
            .first()
            .is_some_and(|c| matches!(c.state, ContainerState::Running { .. }))
    })
}
