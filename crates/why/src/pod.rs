//! Pods: of everything about them, the volume that fails.
use controllers::rules::{is_terminated, node_of};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStateWaiting, ContainerStatus, Event, Pod};

use crate::{
    answer::Answer,
    facts::{Facts, Told, created, deleting, name_of, namespace_of},
    mounts,
    scheduling::{self, label, ready},
};

pub(crate) fn explain(facts: &Facts, pod: &Pod, now: Timestamp) -> Answer {
    let label = label(pod);
    if let Some(since) = deleting(&pod.metadata) {
        return terminating(facts, pod, since, now);
    }
    if is_terminated(pod) {
        return ended(pod);
    }
    if node_of(pod).is_empty() {
        let answer = scheduling::unscheduled(facts, pod, true, now).unwrap_or_else(|| {
            Answer::waiting("scheduling", format!("{label} is Pending"), "the scheduler to choose a node")
        });
        let since = answer.since.or_else(|| created(&pod.metadata));
        return answer.since(since);
    }
    if is_ready(pod) {
        return Answer::fine(format!("{label} runs on node {}, its volumes are mounted", node_of(pod)));
    }
    if let Some(status) = statuses(pod).find(|s| s.state.as_ref().is_some_and(|s| s.running.is_some())) {
        // With one container running, the volumes are mounted.
        let failing = statuses(pod).find_map(|s| container(facts, pod, s));
        return failing.unwrap_or_else(|| {
            let state = format!("{label} runs, but container {} is not ready", status.name);
            Answer::waiting("not-ready", state, "its readiness probe").detail("its volumes are mounted")
        });
    }
    if let Some(answer) = statuses(pod).find_map(|s| container(facts, pod, s)) {
        return answer;
    }
    mounts::explain(facts, pod, now)
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.iter();
    status.flat_map(|s| s.init_container_statuses.iter().flatten().chain(s.container_statuses.iter().flatten()))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn ended(pod: &Pod) -> Answer {
    let (label, status) = (label(pod), pod.status.as_ref());
    if status.and_then(|s| s.phase.as_deref()) == Some("Succeeded") {
        return Answer::fine(format!("{label} ran to its end"));
    }
    let why = status.and_then(|s| s.message.clone().or_else(|| s.reason.clone()));
    let why = why.map(|w| format!(": {w}")).unwrap_or_default();
    Answer::stuck("pod-failed", format!("{label} Failed{why}")).fix(format!(
        "kubectl logs {} -n {} --all-containers",
        name_of(&pod.metadata),
        namespace_of(&pod.metadata)
    ))
}

/// What keeps one container from running, mounts aside.
fn container(facts: &Facts, pod: &Pod, status: &ContainerStatus) -> Option<Answer> {
    let state = status.state.as_ref()?;
    let failed = state.terminated.as_ref().filter(|t| t.exit_code != 0);
    let waiting = match (&state.waiting, failed) {
        (Some(waiting), _) => waiting.clone(),
        (None, Some(t)) => ContainerStateWaiting { reason: t.reason.clone(), message: t.message.clone() },
        (None, None) => return None,
    };
    let reason = waiting.reason.as_deref().unwrap_or_default();
    if matches!(reason, "ContainerCreating" | "PodInitializing" | "") {
        return None;
    }
    let (label, name) = (label(pod), &status.name);
    let message = waiting.message.clone().unwrap_or_default();
    if let Some(told) = not_writable(facts, pod, name) {
        return Some(not_writable_answer(pod, name, &told));
    }
    let log = facts.logs.iter().find(|(container, _)| container == name).map(|(_, log)| log.as_str());
    let last = status.last_state.as_ref().and_then(|s| s.terminated.as_ref()).and_then(|t| t.message.as_deref());
    let denied = [log, last, Some(&message)].into_iter().flatten().flat_map(str::lines).find(|line| {
        let line = line.to_lowercase();
        line.contains("permission denied") || line.contains("eacces") || line.contains("read-only file system")
    });
    if let Some(line) = denied {
        return Some(denied_answer(pod, name, line));
    }
    let state = format!("{label} does not run: container {name} is {reason}: {message}");
    if message.contains("ubPath") {
        let answer =
            Answer::retrying("sub-path", state).detail("the volume is mounted, but not what the container wants of it");
        return Some(
            answer.fix("# correct subPath, or what subPathExpr is made of, in a new pod; or what the volume holds"),
        );
    }
    if message.contains("volume \"")
        && pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).any(|v| v.image.is_some())
    {
        return Some(
            Answer::retrying("image-volume", state)
                .detail("the container waits for the image of a volume")
                .fix("# see that the registry has it and this node reaches that, or bring it: holdfast image import FILE")
                .fix("# or correct the volume's image.reference in a new pod"),
        );
    }
    let of_config = reason == "CreateContainerConfigError";
    let cause = if of_config { "container-config" } else { "not-about-volumes" };
    let answer = Answer::retrying(cause, state).detail("its volumes are mounted, or not yet the reason");
    let (pod, namespace) = (name_of(&pod.metadata), namespace_of(&pod.metadata));
    // What never ran has no log.
    let ran = status.restart_count > 0 || failed.is_some();
    Some(answer.fix(match ran {
        true => format!("kubectl logs {pod} -n {namespace} -c {name} --previous"),
        false => format!("kubectl describe pod {pod} -n {namespace}"),
    }))
}

/// Reason of the node's Event about a directory that a failing container may not write to.
const NOT_WRITABLE: &str = "VolumeNotWritable";

fn not_writable(facts: &Facts, pod: &Pod, container: &str) -> Option<Told> {
    let about = |e: &&&Event| {
        e.reason.as_deref() == Some(NOT_WRITABLE)
            && e.involved_object.field_path.as_deref().is_none_or(|p| p.contains(&format!("{{{container}}}")))
    };
    facts.events_about("Pod", &pod.metadata).iter().find(about).map(|e| Told::of(e))
}

/// What the node found when it looked: its message is `path of volume "v" ...`.
fn not_writable_answer(pod: &Pod, container: &str, told: &Told) -> Answer {
    let state = format!("{} does not run: container {container} may not write: {}", label(pod), told.message);
    let path = told.message.split(' ').next().filter(|p| p.starts_with('/'));
    let user = user_of(pod, container).map_or_else(|| "the container's user".into(), |u| u.to_string());
    let answer = Answer::retrying("permission-denied", state)
        .since(told.first)
        .detail("fsGroup changes no hostPath volume: what is there belongs to the node");
    match path {
        Some(path) => answer
            .fix(format!("# on node {}", node_of(pod)))
            .fix(format!("chown {user} {path}"))
            .fix("# or run the container as the directory's owner (securityContext.runAsUser)"),
        None => answer.fix("# change the directory's owner on the node"),
    }
}

fn user_of(pod: &Pod, container: &str) -> Option<i64> {
    let spec = pod.spec.as_ref()?;
    let own = spec.containers.iter().find(|c| c.name == container).and_then(|c| c.security_context.as_ref());
    own.and_then(|c| c.run_as_user).or(spec.security_context.as_ref().and_then(|c| c.run_as_user))
}

/// Who a container runs as, against whose files it meets.
fn denied_answer(pod: &Pod, container: &str, line: &str) -> Answer {
    let spec = pod.spec.as_ref();
    let all = spec.and_then(|s| s.security_context.as_ref());
    let own = spec.iter().flat_map(|s| &s.containers).find(|c| c.name == container);
    let user = user_of(pod, container);
    let group = all.and_then(|c| c.fs_group);
    let mounts: Vec<_> = own
        .iter()
        .flat_map(|c| c.volume_mounts.iter().flatten())
        .map(|m| format!("{} ({})", m.mount_path, m.name))
        .collect();
    let state = format!("{} does not run: container {container} may not write: {}", label(pod), line.trim());
    let user = user.map_or("as the image says".into(), |u| format!("as user {u}"));
    let group = group.map_or("no fsGroup is set".into(), |g| format!("fsGroup is {g}, which hostPath volumes ignore"));
    Answer::retrying("permission-denied", state)
        .detail(format!("it runs {user}; {group}"))
        .detail(format!("it mounts {}", mounts.join(", ")))
        .fix("# set securityContext.fsGroup to a group that may write; for hostPath, chown the directory on the node")
}

/// A deleted pod that is there a minute past its grace is held by something.
const LATE: SignedDuration = SignedDuration::from_mins(1);

pub(crate) fn terminating(facts: &Facts, pod: &Pod, until: Timestamp, now: Timestamp) -> Answer {
    let (label, name, namespace) = (label(pod), name_of(&pod.metadata), namespace_of(&pod.metadata));
    let force = format!("kubectl delete pod {name} -n {namespace} --grace-period=0 --force");
    let node = node_of(pod);
    if let Some(finalizer) = pod.metadata.finalizers.iter().flatten().next() {
        let state = format!("{label} is Terminating: finalizer {finalizer:?} holds it");
        return Answer::stuck("finalizer", state)
            .since(Some(until))
            .fix("# only if nothing takes it off any more")
            .fix(format!(
                "kubectl patch pod {name} -n {namespace} --type=merge -p '{{\"metadata\":{{\"finalizers\":null}}}}'"
            ));
    }
    if !node.is_empty() && !facts.nodes.is_empty() && !facts.node(node).is_some_and(ready) {
        let state = format!("{label} is Terminating: its node {node} does not answer, so nobody ends it");
        return Answer::stuck("node-lost", state)
            .since(Some(until))
            .fix("# only if that node is surely off")
            .fix(format!("kubectl taint node {node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"))
            .fix(force);
    }
    let told = facts.latest("Pod", &pod.metadata, &["FailedKillPod", "FailedUnmount", "FailedUnMount"]);
    if let Some(told) = told {
        return Answer::retrying("cannot-end", format!("{label} is Terminating: {}", told.message))
            .since(told.first)
            .fix(force);
    }
    let state = format!("{label} is Terminating");
    if now.duration_since(until) > LATE {
        return Answer::stuck("cannot-end", format!("{state} and should long be gone; its node {node} says nothing"))
            .since(Some(until))
            .fix(force);
    }
    Answer::waiting("going", state, "its containers to end").since(Some(until))
}
