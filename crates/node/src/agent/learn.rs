//! What a pod's worker learns from its operations, and what it tells about its waits.
use std::{collections::BTreeMap, time::Duration};

use base::chain;

use super::{
    attach, identity, status_writer,
    worker::{Outcome, Worker},
};
use crate::{
    core::facts::{Decision, later},
    spec::{container, security::pod_label},
};

/// Until the removal of an object that stays is asked for again.
const DELETE_AGAIN: Duration = Duration::from_secs(30);

impl Worker {
    /// Takes over how an operation ended.
    pub(super) fn learn(&mut self, outcome: Outcome) {
        let now = self.shared.clock.now();
        match outcome {
            Outcome::Sandbox(Ok(())) => {
                self.memory.sandbox_retry_at = None;
                self.memory.end_retry_at = None;
                self.sandbox_backoff.reset();
            }
            Outcome::Sandbox(Err(why)) => {
                tracing::info!(why, "the sandbox is not as it should be yet");
                self.memory.sandbox_retry_at = Some(later(now, self.sandbox_backoff.delay()));
                if self.must_end() {
                    self.memory.end_retry_at = Some(later(now, self.end_backoff.delay()));
                }
            }
            Outcome::Started(name, result) => {
                let m = self.memory.containers.entry(name.clone()).or_default();
                match result {
                    None => {}
                    Some(Ok(_)) => {
                        m.trouble = None;
                        self.watching.remove(&name);
                    }
                    Some(Err(failed)) => {
                        m.trouble = Some(failed.trouble);
                        self.watching.insert(name, failed.watching);
                    }
                }
            }
            Outcome::Stopped | Outcome::Removed => {}
            Outcome::TornDown(Ok(())) => {
                self.memory.torn_down = true;
                attach::release(&self.shared, identity(&self.pod).2);
                self.end_backoff.reset();
            }
            Outcome::TornDown(Err(why)) => {
                tracing::warn!(why, "could not remove the volumes of a pod; it is tried again");
                // Nobody else says why the pod does not go.
                let message = format!("the pod's volumes cannot be removed yet, it is tried again: {why}");
                self.shared.events.pod(&self.pod, None, true, "FailedUnMount", message);
                self.memory.end_retry_at = Some(later(now, self.end_backoff.delay()));
            }
            Outcome::Deleted(Err(why)) => {
                tracing::warn!(why, "could not finish the end of a pod; it is tried again");
                self.memory.end_retry_at = Some(later(now, self.end_backoff.delay()));
            }
            // Finalizers may still hold the object; its end comes by the watch.
            Outcome::Deleted(Ok(())) => self.memory.end_retry_at = Some(later(now, DELETE_AGAIN)),
            Outcome::Written(done, status) => {
                self.writing = false;
                self.write_retry = None;
                match done {
                    status_writer::Written::Done => {
                        self.written = *status;
                        self.write_backoff.reset();
                    }
                    // The watch will say so; until then there is nobody to write to.
                    status_writer::Written::Gone => self.written = *status,
                    status_writer::Written::Failed(error) => {
                        tracing::warn!(error = chain(&error), "could not write a pod's status; it is tried again");
                        self.write_retry = Some(tokio::time::Instant::now() + self.write_backoff.delay());
                    }
                }
            }
        }
    }

    /// Tells once about each wait before a restart or a pull.
    pub(super) fn tell_waits(&mut self, decision: &Decision) {
        let now = self.shared.clock.now();
        let mut waits = BTreeMap::new();
        for name in decision.backing_off.keys() {
            let ended = self.memory.containers.get(name).and_then(|m| m.crash).map(|c| c.updated_at);
            waits.insert(name.clone(), (format!("{ended:?}"), None));
        }
        for (name, m) in &self.memory.containers {
            let waiting = m.trouble.as_ref().filter(|t| t.later.as_ref().is_some_and(|l| l.from <= now));
            if let Some(until) = waiting.and_then(|t| t.retry_at).filter(|at| *at > now) {
                waits.insert(name.clone(), (format!("pull {until}"), Some(())));
            }
        }
        for (name, (key, pull)) in &waits {
            if self.told_waits.get(name) == Some(key) {
                continue;
            }
            let Some(member) = self.members.iter().find(|m| m.container.name == *name) else { continue };
            let path = container::field_path(member.kind, name);
            let tell = |warning, reason: &str, text: String| {
                self.shared.events.pod(&self.pod, Some(path.clone()), warning, reason, text);
            };
            if pull.is_some() {
                let image = member.container.image.clone().unwrap_or_default();
                tell(false, "BackOff", format!("Back-off pulling image {image:?}"));
                tell(true, "Failed", "Error: ImagePullBackOff".into());
            } else {
                let label = pod_label(&self.pod);
                tell(true, "BackOff", format!("Back-off restarting failed container {name} in pod {label}"));
            }
        }
        self.told_waits = waits.into_iter().map(|(name, (key, _))| (name, key)).collect();
    }
}
