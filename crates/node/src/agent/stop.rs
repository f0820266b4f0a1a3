//! Stopping one container: `preStop`, the stop signal, and the kill when its time is over.
use std::{sync::Arc, time::Duration};

use base::chain;
use k8s_openapi::api::core::v1::Pod;
use runtime::{ContainerId, RuntimeError, SandboxStatus};
use tokio::time::Instant;

use super::{Shared, hooks, start};
use crate::spec::container::{Member, field_path};

/// What remains at least after a hook used the time up.
const LEAST: Duration = Duration::from_secs(2);

/// What a stop works with; a snapshot.
pub struct Stop {
    pub shared: Arc<Shared>,
    pub pod: Arc<Pod>,
    /// Absent for containers that the pod does not list any more.
    pub member: Option<Member>,
    pub id: ContainerId,
    pub sandbox: Option<SandboxStatus>,
    pub grace: Duration,
    pub message: String,
    /// A stop of the same container is under way with more time: hooks and events were done by that.
    pub hurry: bool,
}

impl Stop {
    /// Returns when the container has ended, or could not be stopped.
    pub async fn run(self) {
        let mut left = self.grace;
        if let Some(member) = self.member.as_ref().filter(|_| !self.hurry) {
            let path = field_path(member.kind, &member.container.name);
            self.shared.events.pod(&self.pod, Some(path), false, "Killing", self.message.clone());
            left = self.pre_stop(member).await;
        }
        match self.shared.runtime.stop(&self.id, left).await {
            Ok(()) | Err(RuntimeError::NoContainer(_) | RuntimeError::NotRunning(_)) => {}
            Err(error) => tracing::warn!(error = chain(&error), id = self.id.0, "could not stop a container"),
        }
    }

    /// Runs the hook and gives back the time that is left.
    async fn pre_stop(&self, member: &Member) -> Duration {
        let hook = member.container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
        let (Some(hook), Some(sandbox), false) = (hook, &self.sandbox, self.grace.is_zero()) else { return self.grace };
        let began = Instant::now();
        let host = start::host(&self.shared, &self.pod, sandbox);
        let run = hooks::run(&self.shared, &self.pod, &member.container, &self.id, &host, hook);
        if let Ok(Err(why)) = tokio::time::timeout(self.grace, run).await {
            tracing::info!(container = member.container.name, why, "preStop hook failed");
            let path = field_path(member.kind, &member.container.name);
            self.shared.events.pod(&self.pod, Some(path), true, "FailedPreStopHook", "PreStopHook failed".into());
        }
        self.grace.saturating_sub(began.elapsed()).max(LEAST.min(self.grace))
    }
}
