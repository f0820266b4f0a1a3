//! Turns an action into the operation that performs it.
use std::{pin::Pin, sync::Arc};

use base::chain;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Preconditions};
use runtime::PodUid;

use super::{
    Shared, identity, pod_files,
    start::Start,
    stop::Stop,
    worker::{Outcome, Worker},
};
use crate::{
    core::facts::{Action, Crash, Op},
    spec::container::{self, sandbox},
};

type Job = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// The operation; it owns all that it needs.
pub(super) fn job(w: &mut Worker, action: Action, now: Timestamp) -> Job {
    let (shared, pod) = (w.shared.clone(), w.pod.clone());
    let uid = PodUid(identity(&pod).2.to_owned());
    match action {
        Action::RunSandbox => Box::pin(run_sandbox(shared, pod)),
        Action::RemoveSandbox { changed } => {
            if changed {
                let text = "Pod sandbox changed, it will be killed and re-created.";
                shared.events.pod(&pod, None, false, "SandboxChanged", text.into());
            }
            Box::pin(async move { Outcome::Sandbox(shared.runtime.remove_sandbox(&uid).await.map_err(|e| chain(&e))) })
        }
        Action::Start { name, attempt, after } => start(w, name, attempt, after, now),
        Action::Stop { id, name, grace, message } => {
            let stop = Stop {
                hurry: w.busy.contains_key(&Op::Stop(id.clone())),
                member: w.members.iter().find(|m| m.container.name == name).cloned(),
                sandbox: w.sandbox.clone(),
                shared,
                pod,
                id,
                grace,
                message,
            };
            Box::pin(async move {
                stop.run().await;
                Outcome::Stopped
            })
        }
        Action::Remove { id, name, attempt } => Box::pin(async move {
            if let Err(error) = shared.runtime.remove(&id).await {
                tracing::warn!(error = chain(&error), id = id.0, "could not remove an ended container");
            }
            let layout = &shared.config.layout;
            let log = container::log_path(layout, &pod, &name, attempt);
            let message = container::message_path(layout, &uid.0, &name, attempt);
            for path in [log, message] {
                // Absent is as good as removed, and the pod's end removes the rest.
                let _ = tokio::fs::remove_file(path).await;
            }
            Outcome::Removed
        }),
        Action::TearDown => Box::pin(async move {
            let volumes = shared.volumes.clone();
            let done = tokio::task::spawn_blocking(move || volumes.tear_down(&uid.0)).await;
            Outcome::TornDown(match done {
                Ok(result) => result.map_err(|e| chain(&e)),
                Err(error) => Err(error.to_string()),
            })
        }),
        Action::Delete => Box::pin(async move { Outcome::Deleted(delete(&shared, &pod).await) }),
    }
}

fn start(w: &mut Worker, name: String, attempt: u32, after: Option<Timestamp>, now: Timestamp) -> Job {
    let member = w.members.iter().find(|m| m.container.name == name).cloned();
    let (Some(member), Some(sandbox)) = (member, w.sandbox.clone()) else {
        return Box::pin(async move { Outcome::Started(name, None) });
    };
    let memory = w.memory.containers.entry(name.clone()).or_default();
    if let Some(ended_at) = after {
        memory.crash = Some(Crash::next(memory.crash.as_ref(), ended_at, now));
    }
    let start = Start {
        shared: w.shared.clone(),
        pod: w.pod.clone(),
        member,
        attempt,
        sandbox,
        volumes: w.volumes.borrow().ready.clone(),
        changed: w.changed.clone(),
        cancel: w.ending.clone(),
    };
    Box::pin(async move { Outcome::Started(name, start.run().await) })
}

async fn run_sandbox(shared: Arc<Shared>, pod: Arc<Pod>) -> Outcome {
    let spec = sandbox(&pod, &shared.config.cluster_domain);
    let why = match shared.runtime.run_sandbox(&spec).await {
        Ok(status) => {
            let (shared, pod) = (shared.clone(), pod.clone());
            let files = tokio::task::spawn_blocking(move || pod_files::write(&shared, &pod, &status, false)).await;
            match files {
                Ok(Ok(())) => return Outcome::Sandbox(Ok(())),
                Ok(Err((path, error))) => format!("write {path}: {error}"),
                Err(error) => error.to_string(),
            }
        }
        Err(error) => chain(&error),
    };
    let text = format!("Failed to create pod sandbox: {why}");
    shared.events.pod(&pod, None, true, "FailedCreatePodSandBox", text);
    Outcome::Sandbox(Err(why))
}

/// Removes the object, if it is still this incarnation's.
async fn delete(shared: &Shared, pod: &Pod) -> Result<(), String> {
    let (name, namespace, uid) = identity(pod);
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: Some(uid.into()), resource_version: None }),
        ..DeleteParams::default()
    };
    match shared.api::<Pod>(namespace).delete(name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(s)) if s.code == 404 || s.code == 409 => Ok(()),
        Err(error) => Err(chain(&error)),
    }
}
