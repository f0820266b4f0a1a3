//! The next actions for one pod.
//!
//! In: [`Facts`]. Out: a [`Decision`]. An action whose operation is busy is never given again, except a stop whose time
//! got shorter. Equal input, equal output.
//! Source: Kubernetes 1.36, `pkg/kubelet/kuberuntime` (what is started and killed, in which order).
use k8s_openapi::api::core::v1::Container;
use runtime::{ContainerId, ContainerState};

use super::{
    facts::{Action, Crash, Decision, Facts, Op},
    finish,
    history::{self, History, Incarnation, Life},
};
use crate::spec::container::{Kind, Member};

/// Decides.
pub fn decide(f: &Facts<'_>) -> Decision {
    let mut d = Decision::default();
    if let Some(end) = finish::ending(f, &mut d) {
        finish::finish(f, end, &mut d);
        return d;
    }
    if !sandbox(f, &mut d) || !f.volumes_ready {
        return d;
    }
    for member in f.of(Kind::Ephemeral) {
        if history::history(f, member.kind, &member.container.name).current.is_none() {
            start(f, member, &History::default(), &mut d);
        }
    }
    if early(f, &mut d) {
        main(f, &mut d);
    }
    forget_old(f, &mut d);
    d
}

/// True if there is a sandbox to put containers in.
fn sandbox(f: &Facts<'_>, d: &mut Decision) -> bool {
    match f.sandbox {
        Some(s) if s.ready => return true,
        _ if f.busy.contains(&Op::Sandbox) => {}
        // What the runtime knows of its containers goes with it, so the status must have it first.
        Some(_) if f.memory.sandbox_retry_at.is_none() => {
            if f.saved {
                d.actions.push(Action::RemoveSandbox { changed: true });
            }
        }
        // None yet, or what our own failed attempt left behind; the next one goes on from there.
        _ => match f.memory.sandbox_retry_at.filter(|at| *at > f.now) {
            Some(at) => d.wake(at),
            None => d.actions.push(Action::RunSandbox),
        },
    }
    false
}

/// Looks after init containers and sidecars; true once the main containers may run.
fn early(f: &Facts<'_>, d: &mut Decision) -> bool {
    let all: Vec<&Member> = f.early().collect();
    let there = |m: &Member| !history::present(f, &m.container.name).is_empty();
    if f.of(Kind::Main).any(there) {
        for member in all.into_iter().filter(|m| m.kind == Kind::Sidecar) {
            supervise(f, member, d);
        }
        return true;
    }
    let frontier = all.iter().rposition(|m| there(m)).unwrap_or(0);
    for (i, member) in all.into_iter().enumerate() {
        if i < frontier {
            if member.kind == Kind::Sidecar {
                supervise(f, member, d);
            }
            continue;
        }
        if !passed(f, member, d) {
            return false;
        }
    }
    true
}

/// True if the next container in the order may start.
fn passed(f: &Facts<'_>, member: &Member, d: &mut Decision) -> bool {
    let name = &member.container.name;
    // Incarnations of an earlier sandbox do not count: everything is initialised again.
    let h = history::history(f, member.kind, name);
    let current = h.current.as_ref().filter(|c| c.present);
    match (member.kind, current.map(|c| (&c.life, c.code()))) {
        (_, None | Some((Life::Created, _))) => start(f, member, &h, d),
        (Kind::Sidecar, Some((Life::Running { .. }, _))) => {
            supervise(f, member, d);
            let started = health(f, name, &h).is_some_and(|h| h.started);
            return started && !f.busy.contains(&Op::Start(name.clone()));
        }
        (Kind::Sidecar, Some(_)) => start(f, member, &h, d),
        (_, Some((_, Some(0)))) => return true,
        (_, Some((_, Some(code)))) if restarts(f, &member.container, code) => start(f, member, &h, d),
        (_, Some(_)) => {}
    }
    false
}

/// Main containers, in order: one with a `postStart` hook holds back those after it until the hook has run.
fn main(f: &Facts<'_>, d: &mut Decision) {
    let mut blocked = false;
    for member in f.of(Kind::Main) {
        if !blocked {
            supervise(f, member, d);
        } else if let Some(current) = history::history(f, Kind::Main, &member.container.name).current {
            watch_over(f, member, &current, d);
        }
        let hook = member.container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some());
        let name = &member.container.name;
        let starting = |a: &Action| matches!(a, Action::Start { name: n, .. } if n == name);
        blocked |= hook && (f.busy.contains(&Op::Start(name.clone())) || d.actions.iter().any(starting));
    }
}

/// Keeps one container as it should be: starts it, restarts it, or kills it.
fn supervise(f: &Facts<'_>, member: &Member, d: &mut Decision) {
    let h = history::history(f, member.kind, &member.container.name);
    match &h.current {
        None => start(f, member, &h, d),
        Some(c) => match &c.life {
            Life::Created => start(f, member, &h, d),
            Life::Running { .. } => watch_over(f, member, c, d),
            Life::Exited(exit) => {
                if member.kind == Kind::Sidecar || restarts(f, &member.container, exit.code) {
                    start(f, member, &h, d);
                }
            }
        },
    }
}

/// Kills a running container that its probes have given up, or whose image was changed.
fn watch_over(f: &Facts<'_>, member: &Member, current: &Incarnation, d: &mut Decision) {
    let c = &member.container;
    let id = history::container_id(current);
    if !current.running() || !current.present || f.busy.contains(&Op::Stop(id.clone())) {
        return;
    }
    let known = f.memory.containers.get(&c.name).and_then(|m| m.health.as_ref());
    let health = known.filter(|(of, _)| *of == id).map(|(_, h)| *h);
    let noun = if member.kind == Kind::Main { "Container" } else { "Init container" };
    let wanted = c.image.as_deref().unwrap_or_default();
    let (why, probe) = if !wanted.is_empty() && !same_image(wanted, &current.image) {
        ("definition changed", None)
    } else if health.is_some_and(|h| h.never_started) {
        ("failed startup probe", c.startup_probe.as_ref())
    } else if health.is_some_and(|h| !h.alive) {
        ("failed liveness probe", c.liveness_probe.as_ref())
    } else {
        return;
    };
    let again = member.kind == Kind::Sidecar || restarts(f, c, 137) || why == "definition changed";
    let seconds = probe.and_then(|p| p.termination_grace_period_seconds).unwrap_or_else(|| finish::own_grace(f.pod));
    d.actions.push(Action::Stop {
        id,
        name: c.name.clone(),
        grace: std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
        message: format!("{noun} {} {why}{}", c.name, if again { ", will be restarted" } else { "" }),
    });
}

/// Starts a container unless it is being started or must wait.
fn start(f: &Facts<'_>, member: &Member, h: &History, d: &mut Decision) {
    let name = &member.container.name;
    if f.busy.contains(&Op::Start(name.clone())) {
        return;
    }
    let memory = f.memory.containers.get(name);
    let after = h.current.as_ref().and_then(Incarnation::exit).map(|e| e.finished_at.unwrap_or(f.now));
    if let Some((until, length)) = after.and_then(|at| Crash::until(memory?.crash.as_ref(), at, f.now)) {
        d.backing_off.insert(name.clone(), length);
        d.wake(until);
        return;
    }
    if let Some(trouble) = memory.and_then(|m| m.trouble.as_ref())
        && let Some(at) = trouble.retry_at.filter(|at| *at > f.now)
    {
        trouble.later.iter().filter(|l| l.from > f.now).for_each(|l| d.wake(l.from));
        d.wake(at);
        return;
    }
    let attempt = match &h.current {
        Some(c) if c.exit().is_some() => c.attempt + 1,
        Some(c) => c.attempt,
        None => history::prior(f, member.kind, name).and_then(|s| u32::try_from(s.restart_count).ok()).unwrap_or(0),
    };
    d.actions.push(Action::Start { name: name.clone(), attempt, after });
}

/// Removes ended incarnations beyond the newest two.
fn forget_old(f: &Facts<'_>, d: &mut Decision) {
    for member in f.members {
        for old in history::present(f, &member.container.name).into_iter().skip(2) {
            if !matches!(old.state, ContainerState::Running { .. }) && !f.busy.contains(&Op::Remove(old.id.clone())) {
                let (id, name) = (old.id.clone(), old.name.clone());
                d.actions.push(Action::Remove { id, name, attempt: old.attempt });
            }
        }
    }
}

/// What the probes say about the newest incarnation.
pub fn health(f: &Facts<'_>, name: &str, h: &History) -> Option<super::probe::Health> {
    let id = ContainerId(h.current.as_ref()?.id.clone());
    f.memory.containers.get(name)?.health.as_ref().filter(|(of, _)| *of == id).map(|(_, health)| *health)
}

/// Whether a container that ended with `code` is started again.
pub fn restarts(f: &Facts<'_>, container: &Container, code: i32) -> bool {
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(on) = &rule.exit_codes else { continue };
        let listed = on.values.iter().flatten().any(|v| *v == code);
        if rule.action == "Restart" && listed == (on.operator == "In") {
            return true;
        }
    }
    match container.restart_policy.as_deref().unwrap_or(f.policy()) {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}

/// Two ways to write one image name.
pub fn same_image(a: &str, b: &str) -> bool {
    a == b || full_image(a) == full_image(b)
}

/// `nginx` is `docker.io/library/nginx:latest`.
fn full_image(name: &str) -> String {
    let first = name.split('/').next().unwrap_or_default();
    let hosted = name.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let mut full = match (hosted, name.contains('/')) {
        (true, _) => name.to_owned(),
        (false, true) => format!("docker.io/{name}"),
        (false, false) => format!("docker.io/library/{name}"),
    };
    let last = full.rsplit('/').next().unwrap_or_default();
    if !last.contains([':', '@']) {
        full += ":latest";
    }
    full
}

#[test]
fn image_names() {
    for (a, b, same) in [
        ("nginx", "docker.io/library/nginx:latest", true),
        ("nginx:alpine", "docker.io/library/nginx:alpine", true),
        ("luksa/fortune", "docker.io/luksa/fortune:latest", true),
        ("r.test:5000/a", "r.test:5000/a:latest", true),
        ("localhost/a", "localhost/a:latest", true),
        ("a@sha256:00", "docker.io/library/a@sha256:00", true),
        ("nginx", "nginx:alpine", false),
        ("r.test/a", "docker.io/r.test/a", false),
    ] {
        assert_eq!(same_image(a, b), same, "{a} {b}");
    }
}
