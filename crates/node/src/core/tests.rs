//! Tables for decisions, phases and conditions. A scene is text: the pod's containers, then what is seen of them.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use runtime::{
    ContainerId, ContainerState, ContainerStatus, ExitReason, PodUid, Resources, SandboxSpec, SandboxStatus,
};
use serde_json::{Value, json};

use super::{
    decide::decide,
    facts::{Action, Cause, Crash, Decision, End, Facts, Memory, Op, Stage, Trouble, VolumeTrouble},
    probe::Health,
    status,
};
use crate::spec::container::members;

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().expect("a time")
}

fn ago(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

/// Everything that facts borrow.
struct Scene {
    pod: Pod,
    status: PodStatus,
    saved: bool,
    sandbox: Option<SandboxStatus>,
    volumes: bool,
    trouble: Option<VolumeTrouble>,
    memory: Memory,
    busy: BTreeSet<Op>,
}

/// `Never i:one s:side+start m:main+post e:debug`
fn pod(text: &str) -> Pod {
    let mut words = text.split_whitespace();
    let policy = words.next().expect("a policy");
    let (mut init, mut main, mut ephemeral) = (Vec::new(), Vec::new(), Vec::new());
    for word in words {
        let (kind, rest) = word.split_once(':').expect("kind:name");
        let mut parts = rest.split('+');
        let mut c = json!({"name": parts.next().expect("a name"), "image": "i"});
        for part in parts {
            match part {
                "post" => c["lifecycle"] = json!({"postStart": {"sleep": {"seconds": 1}}}),
                "start" => c["startupProbe"] = json!({"tcpSocket": {"port": 1}}),
                "ready" => c["readinessProbe"] = json!({"tcpSocket": {"port": 1}}),
                "live" => c["livenessProbe"] = json!({"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 7}),
                own => c["restartPolicy"] = json!(own),
            }
        }
        if kind == "s" {
            c["restartPolicy"] = json!("Always");
        }
        match kind {
            "i" | "s" => init.push(c),
            "m" => main.push(c),
            _ => ephemeral.push(c),
        }
    }
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 3},
        "spec": {"restartPolicy": policy, "initContainers": init, "containers": main, "ephemeralContainers": ephemeral}}))
    .expect("a pod")
}

fn state(text: &str) -> ContainerState {
    let (code, at) = text.split_once('@').map_or((text, 1), |(c, at)| (c, at.parse().expect("seconds")));
    match code {
        "run" => ContainerState::Running { started_at: ago(at), pid: 1 },
        "created" => ContainerState::Created,
        "lost" => ContainerState::Unknown,
        code => {
            let exit_code = code.parse().expect("an exit code");
            let reason = if exit_code == 0 { ExitReason::Completed } else { ExitReason::Error };
            ContainerState::Exited { started_at: ago(at + 1), finished_at: ago(at), exit_code, reason }
        }
    }
}

fn api_state(text: &str) -> Value {
    match text {
        "run" => json!({"running": {"startedAt": ago(9)}}),
        "wait" => json!({"waiting": {"reason": "ContainerCreating"}}),
        code => {
            json!({"terminated": {"exitCode": code.parse::<i32>().expect("a code"), "containerID": "holdfast://old",
            "finishedAt": ago(60)}})
        }
    }
}

fn scene(spec: &str, seen: &str) -> Scene {
    let pod = pod(spec);
    let mut s = Scene {
        status: PodStatus::default(),
        saved: false,
        sandbox: None,
        volumes: false,
        trouble: None,
        memory: Memory::default(),
        busy: BTreeSet::new(),
        pod,
    };
    let mut status = json!({});
    for word in seen.split_whitespace() {
        if let Some((name, what)) = word.split_once('=') {
            see(&mut s, &mut status, name, what);
        } else {
            note(&mut s, &mut status, word);
        }
    }
    s.status = serde_json::from_value(status).expect("a status");
    s
}

/// `a=run`, `a#1=0@5` (an attempt and seconds ago), `was:a=run` (in the API only).
fn see(s: &mut Scene, status: &mut Value, name: &str, what: &str) {
    if let Some(name) = name.strip_prefix("was:") {
        let entry = json!({"name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 1,
            "containerID": "holdfast://old", "state": api_state(what)});
        let init =
            members(&s.pod).iter().any(|m| m.container.name == name && m.kind < crate::spec::container::Kind::Main);
        let list = if init { "initContainerStatuses" } else { "containerStatuses" };
        if status.get(list).is_none() {
            status[list] = json!([]);
        }
        status[list].as_array_mut().expect("a list").push(entry);
        return;
    }
    let (name, attempt) = name.split_once('#').map_or((name, 0), |(n, a)| (n, a.parse().expect("a number")));
    let id = ContainerId(format!("{name}{attempt}"));
    if let Some(member) = members(&s.pod).iter().find(|m| m.container.name == name) {
        let known = s.memory.containers.entry(name.into()).or_default();
        let newer = known.health.as_ref().is_none_or(|(of, _)| *of < id);
        if newer {
            known.health = Some((id.clone(), Health::new(&member.container)));
        }
    }
    s.sandbox.as_mut().expect("sb comes first").containers.push(ContainerStatus {
        id,
        name: name.into(),
        attempt,
        image: "i".into(),
        image_id: "i@sha256:0".into(),
        created_at: ago(99),
        state: state(what),
        user: (0, 0, Vec::new()),
    });
}

fn note(s: &mut Scene, status: &mut Value, word: &str) {
    let parts: Vec<&str> = word.split(':').collect();
    let number = |i: usize| parts[i].parse::<u64>().expect("a number");
    let id_of = |s: &Scene, name: &str| {
        let all = s.sandbox.iter().flat_map(|s| &s.containers);
        all.filter(|c| c.name == name).max_by_key(|c| c.attempt).expect("seen").id.clone()
    };
    match parts[0] {
        "sb" | "sb!" => s.sandbox = Some(sandbox(word == "sb")),
        "vol" => s.volumes = true,
        "saved" => s.saved = true,
        "torn" => s.memory.torn_down = true,
        "phase" => status["phase"] = json!(parts[1]),
        "started" => status["startTime"] = json!(ago(number(1) as i64)),
        "deleted" => {
            s.pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
            s.pod.metadata.deletion_grace_period_seconds = Some(number(1) as i64);
        }
        "gone" => s.memory.gone = true,
        "ending" => end(s, Cause::Deleted, number(1)),
        "evicted" => end(s, Cause::Failed { reason: "Evicted".into(), message: "m".into() }, 0),
        "later" => s.memory.sandbox_retry_at = Some(ago(-(number(1) as i64))),
        "retry" => s.memory.end_retry_at = Some(ago(-(number(1) as i64))),
        "deadline" => s.pod.spec.as_mut().expect("spec").active_deadline_seconds = Some(number(1) as i64),
        "crash" => {
            let crash = Crash { delay: Duration::from_secs(number(2)), updated_at: ago(30), ended_at: ago(99) };
            s.memory.containers.entry(parts[1].into()).or_default().crash = Some(crash);
        }
        "trouble" => {
            let retry_at = Some(ago(-5));
            let trouble = Trouble { reason: "CreateContainerError".into(), message: "m".into(), retry_at, later: None };
            s.memory.containers.entry(parts[1].into()).or_default().trouble = Some(trouble);
        }
        "up" | "dead" | "never" => {
            let id = id_of(s, parts[1]);
            let known = s.memory.containers.entry(parts[1].into()).or_default();
            let health = Health {
                started: parts[0] != "never",
                ready: true,
                alive: parts[0] != "dead",
                never_started: parts[0] == "never",
            };
            known.health = Some((id, health));
        }
        "busy" => {
            let op = match parts[1] {
                "start" => Op::Start(parts[2].into()),
                "stop" => Op::Stop(id_of(s, parts[2])),
                "sandbox" => Op::Sandbox,
                _ => Op::TearDown,
            };
            s.busy.insert(op);
        }
        other => panic!("{other}?"),
    }
}

fn end(s: &mut Scene, cause: Cause, grace: u64) {
    s.memory.end = Some(End { cause, since: now(), grace: Duration::from_secs(grace) });
}

fn sandbox(ready: bool) -> SandboxStatus {
    SandboxStatus {
        spec: SandboxSpec {
            uid: PodUid("u".into()),
            namespace: "ns".into(),
            name: "p".into(),
            hostname: "p".into(),
            host_network: false,
            host_pid: false,
            host_ipc: false,
            share_process_namespace: false,
            host_ports: Vec::new(),
            sysctls: BTreeMap::new(),
            resources: Resources::default(),
        },
        ips: vec![[10, 0, 0, 2].into()],
        created_at: ago(100),
        ready,
        containers: Vec::new(),
    }
}

fn with<T>(s: &Scene, use_it: impl FnOnce(&Facts<'_>) -> T) -> T {
    let members = members(&s.pod);
    use_it(&Facts {
        pod: &s.pod,
        members: &members,
        status: &s.status,
        saved: s.saved,
        sandbox: s.sandbox.as_ref(),
        messages: &BTreeMap::new(),
        volumes_ready: s.volumes,
        volume_trouble: s.trouble.as_ref(),
        memory: &s.memory,
        busy: &s.busy,
        host_ips: &["192.0.2.1".to_owned()],
        now: now(),
    })
}

fn show(d: &Decision) -> String {
    let mut words: Vec<String> = d
        .actions
        .iter()
        .map(|a| match a {
            Action::RunSandbox => "sandbox".into(),
            Action::RemoveSandbox { changed: true } => "renew".into(),
            Action::RemoveSandbox { changed: false } => "unsandbox".into(),
            Action::Start { name, attempt, .. } => format!("start {name}#{attempt}"),
            Action::Stop { name, grace, .. } => format!("stop {name} {}", grace.as_secs()),
            Action::Remove { name, attempt, .. } => format!("forget {name}#{attempt}"),
            Action::TearDown => "teardown".into(),
            Action::Delete => "delete".into(),
        })
        .collect();
    if let Some(at) = d.wake_at {
        words.push(format!("wake {}", at.duration_since(now()).as_secs()));
    }
    if d.stage == Stage::Gone {
        words.push("gone".into());
    }
    words.join(", ")
}

fn check(cases: &[(&str, &str, &str)]) {
    for (spec, seen, want) in cases {
        let got = with(&scene(spec, seen), |f| show(&decide(f)));
        assert_eq!(got, *want, "{spec} | {seen}");
    }
}

#[test]
fn beginnings() {
    check(&[
        ("Always m:a", "", "sandbox"),
        ("Always m:a", "vol", "sandbox"),
        ("Always m:a", "busy:sandbox", ""),
        ("Always m:a", "sb", ""),
        ("Always m:a", "sb vol", "start a#0"),
        ("Always m:a m:b", "sb vol", "start a#0, start b#0"),
        ("Always m:a+post m:b", "sb vol", "start a#0"),
        ("Always m:a+post m:b", "sb vol busy:start:a", ""),
        ("Always m:a+post m:b", "sb vol a=run", "start b#0"),
        ("Always m:a m:b", "sb vol busy:start:a", "start b#0"),
        ("Always m:a", "sb vol a=created", "start a#0"),
        ("Always m:a", "sb vol trouble:a", "wake 5"),
        ("Always m:a", "sb vol a=run", ""),
        ("Always m:a", "sb! a=lost", ""),
        ("Always m:a", "sb! a=lost saved", "renew"),
        ("Always m:a", "sb! saved later:5", "wake 5"),
        ("Always m:a", "sb! saved later:0", "sandbox"),
        ("Always m:a", "vol was:a=run", "sandbox"),
        ("Always m:a", "sb vol was:a=run", "start a#2"),
        ("Always m:a", "sb vol was:a=wait", "start a#1"),
        ("Always m:a e:d", "sb vol a=run", "start d#0"),
        ("Always m:a e:d", "sb vol a=run d=0", ""),
        ("Always m:a e:d", "sb vol a=run d=1", ""),
    ]);
}

#[test]
fn restarts_and_back_off() {
    check(&[
        ("Always m:a", "sb vol a=0", "start a#1"),
        ("Always m:a", "sb vol a=1", "start a#1"),
        ("OnFailure m:a m:b", "sb vol a=0 b=run", ""),
        ("OnFailure m:a m:b", "sb vol a=1 b=run", "start a#1"),
        ("Never m:a m:b", "sb vol a=1 b=run", ""),
        ("Never m:a+Always m:b", "sb vol a=1 b=run", "start a#1"),
        ("Always m:a+Never m:b", "sb vol a=1 b=run", ""),
        ("Always m:a", "sb vol a#3=1@4 crash:a:10", "wake 6"),
        ("Always m:a", "sb vol a#3=1@10 crash:a:10", "start a#4"),
        ("Always m:a", "sb vol a#3=1@4 crash:a:300", "wake 296"),
        ("Always m:a", "sb vol a#2=run a#1=1 a=1@9", "forget a#0"),
        ("Always m:a", "sb vol a#1=run a=1@9", ""),
        ("Always m:a+live", "sb vol a=run dead:a", "stop a 7"),
        ("Always m:a+live", "sb vol a=run dead:a busy:stop:a", ""),
        ("Always m:a+start", "sb vol a=run never:a", "stop a 30"),
        ("Always m:a+start", "sb vol a=run", ""),
    ]);
}

#[test]
fn init_containers_and_sidecars() {
    check(&[
        ("Always i:i i:j m:a", "sb vol", "start i#0"),
        ("Always i:i i:j m:a", "sb vol i=run", ""),
        ("Always i:i i:j m:a", "sb vol i=0", "start j#0"),
        ("Always i:i i:j m:a", "sb vol i=0 j=0", "start a#0"),
        ("Always i:i m:a", "sb vol i=1", "start i#1"),
        ("OnFailure i:i m:a", "sb vol i=1", "start i#1"),
        ("Always i:i m:a", "sb vol i#1=1@4 crash:i:10", "wake 6"),
        ("Always i:i m:a", "sb vol i=0 a=1", "start a#1"),
        ("Always i:i m:a", "sb vol i=1 a=run", ""),
        ("Always s:s m:a", "sb vol", "start s#0"),
        ("Always s:s m:a", "sb vol s=run busy:start:s", ""),
        ("Always s:s m:a", "sb vol s=run", "start a#0"),
        ("Always s:s+start m:a", "sb vol s=run", ""),
        ("Always s:s+start m:a", "sb vol s=run up:s", "start a#0"),
        ("Always s:s+start m:a", "sb vol s=run never:s", "stop s 30"),
        ("Never s:s i:i m:a", "sb vol s=run", "start i#0"),
        ("Never s:s i:i m:a", "sb vol s=1 i=run", "start s#1"),
        ("Never s:s m:a", "sb vol s=0 a=run", "start s#1"),
        ("Never i:i s:s m:a", "sb vol i=0 s=run a=run", ""),
        ("Always i:i m:a", "sb vol was:i=0 was:a=run", "start i#2"),
    ]);
}

#[test]
fn ends() {
    check(&[
        ("Never m:a", "sb vol a=0", ""),
        ("Never m:a", "sb vol a=0 saved", "unsandbox"),
        ("Never m:a", "vol was:a=0 saved phase:Succeeded", "teardown"),
        ("Never m:a", "vol was:a=0 saved torn phase:Succeeded", ""),
        ("Never m:a", "was:a=0 saved torn phase:Succeeded deleted:1", "delete"),
        ("Never s:s m:a", "sb vol s=run a=0", "stop s 30"),
        ("Never s:s i:i m:a", "sb vol s=run i=1", "stop s 30"),
        ("Always m:a", "sb vol a=run deleted:30", "stop a 30"),
        ("Always m:a", "sb vol a=run deleted:0", "stop a 0"),
        ("Always m:a", "sb vol a=run deleted:30 busy:stop:a ending:30", ""),
        ("Always m:a", "sb vol a=run deleted:5 busy:stop:a ending:30", "stop a 5"),
        ("Always s:s s:t m:a", "sb vol s=run t=run a=run deleted:9", "stop a 9"),
        ("Always s:s s:t m:a", "sb vol s=run t=run a=0 deleted:9", "stop t 9"),
        ("Always s:s s:t m:a", "sb vol s=run t=0 a=0 deleted:9", "stop s 9"),
        ("Always m:a m:b", "sb vol a=run b=run deleted:9", "stop a 9, stop b 9"),
        ("Always m:a", "sb vol a=0 deleted:9", ""),
        ("Always m:a", "sb vol a=0 deleted:9 saved", "unsandbox"),
        ("Always m:a", "deleted:9 saved", "teardown"),
        ("Always m:a", "deleted:9 saved busy:start:a", ""),
        ("Always m:a", "deleted:9 saved busy:sandbox", ""),
        ("Always m:a", "deleted:9 saved torn", "delete"),
        ("Always m:a", "sb vol a=run gone", "stop a 0"),
        ("Always m:a", "sb vol a=run gone deleted:9 busy:stop:a ending:9", "stop a 0"),
        ("Always m:a", "sb vol a=0 gone", "unsandbox"),
        ("Always m:a", "gone", "teardown"),
        ("Always m:a", "gone torn", "gone"),
        ("Always m:a", "gone torn retry:30", "gone"),
        ("Always m:a", "deleted:9 saved torn retry:30", "wake 30"),
        ("Always m:a", "deleted:9 saved retry:5", "wake 5"),
        ("Always m:a", "sb vol a=run evicted", "stop a 0"),
        ("Always m:a", "sb vol a=run deadline:10 started:3", "wake 7"),
        ("Always m:a", "sb vol a=run deadline:3 started:3", "stop a 30"),
        ("Always m:a", "sb vol deleted:9 saved", "unsandbox"),
    ]);
}

fn status_of(s: &Scene) -> PodStatus {
    with(s, |f| status::make(f, &decide(f)))
}

#[test]
fn phases() {
    for (spec, seen, want) in [
        ("Always m:a", "", "Pending"),
        ("Always m:a", "sb vol trouble:a", "Pending"),
        ("Always m:a m:b", "sb vol a=run", "Pending"),
        ("Always m:a m:b", "sb vol a=run b=run", "Running"),
        ("Always m:a", "sb vol a=1", "Running"),
        ("OnFailure m:a", "sb vol a=1", "Running"),
        ("OnFailure m:a", "sb vol a=0", "Succeeded"),
        ("Never m:a", "sb vol a=0", "Succeeded"),
        ("Never m:a", "sb vol a=1", "Failed"),
        ("Never m:a m:b", "sb vol a=0 b=1", "Failed"),
        ("Never m:a m:b", "sb vol a=1 b=run", "Running"),
        ("Never i:i m:a", "sb vol i=run", "Pending"),
        ("Never i:i m:a", "sb vol i=1", "Failed"),
        ("Always i:i m:a", "sb vol i=1", "Pending"),
        ("Never m:a", "was:a=run", "Failed"),
        ("Always m:a", "was:a=run", "Running"),
        ("Never s:s m:a", "sb vol s=run a=0", "Pending"),
        ("Never s:s m:a", "sb vol s=run a=0 phase:Running", "Running"),
        ("Never s:s m:a", "sb vol s=0 a=0 phase:Running", "Succeeded"),
        ("Always m:a", "sb vol a=0 deleted:1", "Succeeded"),
        ("Always m:a", "sb vol a=143 deleted:1", "Failed"),
        ("Always m:a", "sb vol a=run deleted:1 phase:Running", "Running"),
        ("Always m:a", "deleted:1", "Failed"),
        ("Always m:a", "was:a=0 phase:Failed", "Failed"),
        ("Never m:a e:d", "sb vol a=run d=1", "Running"),
    ] {
        assert_eq!(status_of(&scene(spec, seen)).phase.as_deref(), Some(want), "{spec} | {seen}");
    }
}

/// `a: state/last ready started count`
fn containers(s: &PodStatus) -> String {
    let all = s.init_container_statuses.iter().flatten().chain(s.container_statuses.iter().flatten());
    all.map(|c| {
        let brief = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
            let s = state.clone().unwrap_or_default();
            let waiting = s.waiting.and_then(|w| w.reason);
            waiting
                .or_else(|| s.running.map(|_| "run".into()))
                .or_else(|| s.terminated.map(|t| format!("{}({})", t.reason.unwrap_or_default(), t.exit_code)))
                .unwrap_or_else(|| "-".into())
        };
        let flags = if c.ready { "R" } else { "" }.to_owned() + if c.started == Some(true) { "S" } else { "" };
        format!("{}: {}/{} {flags}{}", c.name, brief(&c.state), brief(&c.last_state), c.restart_count)
    })
    .collect::<Vec<_>>()
    .join("; ")
}

#[test]
fn container_states() {
    for (spec, seen, want) in [
        ("Always m:a", "", "a: ContainerCreating/- 0"),
        ("Always i:i m:a", "sb vol", "i: PodInitializing/- 0; a: PodInitializing/- 0"),
        ("Always m:a", "sb vol a=run", "a: run/- RS0"),
        ("Always m:a+ready", "sb vol a=run", "a: run/- S0"),
        ("Always m:a+start", "sb vol a=run", "a: run/- 0"),
        ("Always m:a", "sb vol a=created", "a: ContainerCreating/- 0"),
        ("Always m:a", "sb vol trouble:a", "a: CreateContainerError/- 0"),
        ("Always m:a", "sb vol a#1=run a=1@9", "a: run/Error(1) RS1"),
        ("Always m:a", "sb vol a#1=1@2 a=1@9 crash:a:10", "a: CrashLoopBackOff/Error(1) 1"),
        ("Always m:a", "sb vol a=0", "a: Completed(0)/- 0"),
        ("Never m:a", "sb vol a=1 trouble:a", "a: Error(1)/- 0"),
        ("Never i:i m:a", "sb vol i=0 a=run", "i: Completed(0)/- R0; a: run/- RS0"),
        ("Never s:s m:a", "sb vol s=run", "s: run/- RS0; a: PodInitializing/- 0"),
        ("Always m:a", "sb was:a=run", "a: ContainerCreating/ContainerStatusUnknown(137) 1"),
        ("Never m:a", "was:a=run", "a: ContainerStatusUnknown(137)/- 1"),
        ("Never m:a m:b", "sb vol a=1 b=created deleted:1", "a: Error(1)/- 0; b: ContainerStatusUnknown(137)/- 0"),
        ("Always m:a", "sb vol a=lost", "a: ContainerStatusUnknown(137)/- 0"),
    ] {
        assert_eq!(containers(&status_of(&scene(spec, seen))), want, "{spec} | {seen}");
    }
}

#[test]
fn conditions() {
    let list = |s: &PodStatus| {
        let all = s.conditions.iter().flatten().map(|c| {
            let short = match c.type_.as_str() {
                "PodReadyToStartContainers" => "net",
                "Initialized" => "init",
                "ContainersReady" => "ctrs",
                "Ready" => "ready",
                other => other,
            };
            let why = c.reason.as_ref().map(|r| format!("({r})")).unwrap_or_default();
            format!("{short}={}{why}", c.status.chars().next().expect("a letter"))
        });
        all.filter(|c| !c.starts_with("PodScheduled")).collect::<Vec<_>>().join(" ")
    };
    let un = "ready=F(ContainersNotReady) ctrs=F(ContainersNotReady)";
    for (spec, seen, want) in [
        ("Always m:a", "", format!("net=F init=T {un}")),
        ("Always m:a", "sb", format!("net=T init=T {un}")),
        ("Always i:i m:a", "sb vol i=run", format!("net=T init=F(ContainersNotInitialized) {un}")),
        ("Always i:i m:a", "sb vol i=0 a=run", "net=T init=T ready=T ctrs=T".into()),
        ("Always m:a m:b", "sb vol a=run", format!("net=T init=T {un}")),
        ("Always s:s+ready m:a", "sb vol s=run a=run", format!("net=T init=T {un}")),
        ("Never m:a", "sb vol a=0", "net=F init=T(PodCompleted) ready=F(PodCompleted) ctrs=F(PodCompleted)".into()),
        ("Never m:a", "sb vol a=1", "net=F init=T ready=F(PodFailed) ctrs=F(PodFailed)".into()),
    ] {
        assert_eq!(list(&status_of(&scene(spec, seen))), want, "{spec} | {seen}");
    }
    let mut gated = scene("Always m:a", "sb vol a=run");
    let gate = serde_json::from_value(json!([{"conditionType": "x/y"}])).expect("gates");
    gated.pod.spec.as_mut().expect("spec").readiness_gates = gate;
    assert_eq!(list(&status_of(&gated)), "net=T init=T ready=F(ReadinessGatesNotReady) ctrs=T");
}

#[test]
fn unready_containers_are_named() {
    let s = status_of(&scene("Always i:i m:a m:b", "sb vol i=run"));
    let message = |kind: &str| {
        let all = s.conditions.iter().flatten();
        all.into_iter().find(|c| c.type_ == kind).and_then(|c| c.message.clone()).expect("a message")
    };
    assert_eq!(message("Initialized"), "containers with incomplete status: [i]");
    assert_eq!(message("ContainersReady"), "containers with unready status: [a b]");
}

#[test]
fn the_status_settles() {
    // Making the status from a status just made changes nothing: no write follows from a write.
    for (spec, seen) in [
        ("Always m:a", ""),
        ("Always i:i s:s m:a", "sb vol i=0 s=run"),
        ("Always m:a", "sb vol a#1=1@2 a=1@9 crash:a:10"),
        ("Never m:a", "sb vol a=1"),
        ("Never s:s m:a", "sb vol s=run a=0 phase:Running"),
        ("Always m:a", "sb vol a=run evicted"),
        ("Always m:a", "was:a=run"),
        ("Never m:a m:b", "sb vol a=1 b=created deleted:1"),
    ] {
        let mut s = scene(spec, seen);
        s.status = status_of(&s);
        let again = status_of(&s);
        assert_eq!(again, s.status, "{spec} | {seen}");
    }
}

#[test]
fn an_ended_pod_keeps_its_story_without_its_sandbox() {
    let mut s = scene("Never m:a", "sb vol a=1");
    s.status = status_of(&s);
    s.sandbox = None;
    let later = status_of(&s);
    assert_eq!(containers(&later), containers(&s.status));
    assert_eq!((later.phase, later.pod_ip), (Some("Failed".into()), Some("10.0.0.2".into())));
}

#[test]
fn evicted_pods_say_so_at_the_end() {
    let s = status_of(&scene("Always m:a", "sb vol a=run evicted phase:Running"));
    assert_eq!((s.phase.as_deref(), s.reason), (Some("Running"), None));
    let s = status_of(&scene("Always m:a", "sb vol a=137 evicted phase:Running"));
    assert_eq!(
        (s.phase.as_deref(), s.reason.as_deref(), s.message.as_deref()),
        (Some("Failed"), Some("Evicted"), Some("m"))
    );
}

#[test]
fn crash_back_off_doubles_is_capped_and_expires() {
    let s = Duration::from_secs;
    let mut crash: Option<Crash> = None;
    let mut delays = Vec::new();
    let mut at = now();
    for _ in 0..7 {
        let next = Crash::next(crash.as_ref(), at, at);
        assert_eq!(Crash::next(Some(&next), at, at), next, "one end counts once");
        delays.push(next.delay);
        crash = Some(next);
        at += SignedDuration::from_secs(1);
    }
    assert_eq!(delays, [s(10), s(20), s(40), s(80), s(160), s(300), s(300)]);
    let much_later = at + SignedDuration::from_secs(601);
    assert_eq!(Crash::next(crash.as_ref(), much_later, much_later).delay, s(10));
    assert_eq!(Crash::until(crash.as_ref(), much_later, much_later), None);
    assert_eq!(Crash::until(crash.as_ref(), at, at).map(|(_, d)| d), Some(s(300)));
}

#[test]
fn a_volume_that_fails_stays_in_the_condition() {
    let condition = |s: &Scene| {
        let status = with(s, |f| status::make(f, &Decision::default()));
        let all = status.conditions.unwrap_or_default();
        let found = all.into_iter().find(|c| c.type_ == "PodReadyToStartContainers").expect("the condition");
        (found.status, found.reason.unwrap_or_default(), found.message.unwrap_or_default())
    };
    let mut s = scene("Always m:main", "sb");
    s.volumes = false;
    let fine = |status: &str| (status.to_owned(), String::new(), String::new());
    assert_eq!(condition(&s), fine("True"));
    s.trouble = Some(VolumeTrouble { reason: "FailedMount", message: "volume \"v\" is broken".into() });
    assert_eq!(condition(&s), ("False".into(), "FailedMount".into(), "volume \"v\" is broken".into()));
    s.volumes = true;
    assert_eq!(condition(&s), fine("True"));
    // What fails later, in a pod that runs, is told by Events only.
    let mut s = scene("Always m:main", "sb main=run");
    s.volumes = false;
    s.trouble = Some(VolumeTrouble { reason: "FailedMount", message: "x".into() });
    assert_eq!(condition(&s), fine("True"));
}
