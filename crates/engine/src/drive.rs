//! Calling storage drivers, and doing what follows from their answers.
use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc};

use controllers::{Action, Answer, Call, Decision, Failure, Key};
use k8s_openapi::api::core::v1::Secret;
use tokio::sync::Semaphore;

use crate::{
    act,
    queue::{Core, Job, Outcome},
    wire,
};

/// Calls of one driver under way at once, so that one that hangs keeps nobody from another.
const AT_ONCE: usize = 64;
/// Calls that may follow from each other.
const IN_A_ROW: usize = 4;

impl Core {
    /// Follows which drivers there are; a change may concern any key.
    pub(crate) async fn follow_drivers(self: Arc<Self>) {
        let mut all = self.settings.drivers.watch();
        loop {
            let facts =
                all.borrow_and_update().iter().map(|(name, p)| (name.clone(), Arc::new(p.facts.clone()))).collect();
            self.world.write().set_drivers(facts);
            if self.is_deciding() {
                self.wake_all();
            }
            if all.changed().await.is_err() {
                return;
            }
        }
    }

    /// Makes a call, and those that follow from it, and does what follows from the last answer.
    pub(crate) async fn drive(self: &Arc<Self>, job: &Job, first: Call) -> (Outcome, Option<std::time::Duration>) {
        let mut call = first;
        for _ in 0..IN_A_ROW {
            if call.leaves_traces() {
                self.world.write().set_doubt(&job.1, Some(call.clone()));
            }
            let mut stop = self.stopping.subscribe();
            let answer = tokio::select! {
                answer = self.ask(&call) => answer,
                // It is made again at the next start.
                _ = stop.wait_for(|stop| *stop) => return (Outcome::Stale, None),
            };
            let decision = self.hear(job, &call, &answer);
            let certain = match &answer {
                Ok(_) => !matches!(decision.action, Some(Action::Call(_))),
                Err(failure) => failure.is_final(),
            };
            let Decision { action, notes, again, .. } = decision;
            let outcome = match action {
                Some(Action::Call(next)) => {
                    self.tell_also(job, notes);
                    call = *next;
                    continue;
                }
                Some(action) => Some(act::perform(self, action).await),
                None => None,
            };
            let done = matches!(outcome, None | Some(Outcome::Done | Outcome::Unseen));
            if done {
                self.tell_also(job, notes);
            }
            if certain && done {
                self.world.write().set_doubt(&job.1, None);
            }
            if answer.is_ok() && done {
                self.failed.lock().remove(job);
            }
            return match (answer, outcome) {
                (Err(failure), None | Some(Outcome::Done | Outcome::Unseen)) => {
                    (Outcome::Refused { call: Box::new(call), failure }, None)
                }
                (_, Some(outcome)) => (outcome, again),
                (Ok(_), None) => (Outcome::Heard, again),
            };
        }
        (Outcome::Stale, None)
    }

    async fn ask(&self, call: &Call) -> Result<Answer, Failure> {
        let unasked = |message| Failure { code: None, message };
        let Some(plugin) = self.settings.drivers.plugin(&call.driver) else {
            return Err(unasked(format!("driver {} is not registered any more", call.driver)));
        };
        let room =
            self.callers.lock().entry(call.driver.clone()).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE))).clone();
        // Never closed.
        let _permit = room.acquire().await;
        let mut request = call.request.clone();
        if let Some((namespace, name)) = &call.secret {
            request.give_secrets(self.secret(namespace, name).await.map_err(unasked)?);
        }
        request
            .ask(&plugin.controller)
            .await
            .map_err(|status| Failure { code: Some(status.code()), message: status.message().to_owned() })
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<BTreeMap<String, String>, String> {
        let failed = |why: String| format!("error getting secret {name} in namespace {namespace}: {why}");
        let key = Key::new("Secret", namespace, name);
        let text = self
            .request("GET", &wire::object(&key, None), None)
            .await
            .map_err(|e| failed(e.refusal().map_or_else(|| base::chain(&e), str::to_owned)))?;
        let secret: Secret = wire::parse("Secret", &text).map_err(|e| failed(base::chain(&e)))?;
        let data = secret.data.unwrap_or_default().into_iter();
        Ok(data.map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned())).collect())
    }

    fn hear(&self, job: &Job, call: &Call, answer: &Result<Answer, Failure>) -> Decision {
        let controller = &controllers::CONTROLLERS[job.0];
        let world = self.world.read();
        let heard = AssertUnwindSafe(|| (controller.heard)(&job.1, &world, &self.context(), call, answer));
        std::panic::catch_unwind(heard).unwrap_or_else(|_| {
            tracing::error!(controller = controller.name, key = %job.1, "a fault in holdfast: a driver's answer is not used");
            Decision::settled()
        })
    }
}
