//! Lets the volumes that a pod uses have what their claims were promised, before the pod starts or while it runs.
//!
//! Unlike upstream, a pod does not wait for a volume that cannot grow: it starts with what the volume has, and growing is
//! tried again beside it.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use api::growth::{NodeStep, begun, failed, finished, is_said, node_step};
use base::{Backoff, chain};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::Instant;
use volumes::{Growth, Resolved};

use super::{Shared, identity, pinned};

const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_CAP: Duration = Duration::from_secs(120);

/// A claim that one of a pod's volumes is, with its volume.
pub struct Pair {
    pub claim: PersistentVolumeClaim,
    pub volume: PersistentVolume,
}

/// What came of a volume's last attempt.
struct Attempt {
    /// The size that was tried, and what the claim asked for then: with others, it is tried at once.
    sizes: (String, String),
    backoff: Backoff,
    /// `None`: it succeeded, or something else than time has to bring the next.
    again: Option<Instant>,
    /// The version of the claim that this was about.
    version: Option<String>,
}

/// The attempts for one pod, by pod volume.
#[derive(Default)]
pub struct Growths {
    attempts: BTreeMap<String, Attempt>,
}

impl Growths {
    /// When the next attempt is due.
    pub fn wake(&self) -> Option<Instant> {
        self.attempts.values().filter_map(|a| a.again).min()
    }

    /// Does what is to be done now for one volume of a pod, set up (`in_use`) or about to be.
    pub async fn see(
        &mut self,
        shared: &Arc<Shared>,
        pod: &Pod,
        name: &str,
        (resolved, in_use): (&Resolved, bool),
        pair: &Pair,
    ) {
        let Some(step) = node_step(&pair.claim, &pair.volume) else {
            self.attempts.remove(name);
            return;
        };
        let version = pair.claim.metadata.resource_version.clone();
        let sizes = (step.to.0.clone(), requested(&pair.claim));
        if let Some(last) = self.attempts.get(name).filter(|a| a.sizes == sizes) {
            // What was written then has yet to come back; or it is too early.
            let waits = last.again.map_or(last.version == version, |at| Instant::now() < at);
            if waits {
                return;
            }
        }
        if resolved.read_only {
            let last =
                self.attempts.insert(name.to_owned(), Attempt { sizes, backoff: backoff(), again: None, version });
            if last.is_none() && !in_use {
                refuse(shared, pod, pair);
            }
            return;
        }
        let grown = attempt(shared, pod, name, resolved, pair, &step).await;
        let last = self.attempts.remove(name).filter(|a| a.sizes == sizes);
        let mut backoff = last.map_or_else(backoff, |a| a.backoff);
        let again = match grown {
            Outcome::Done => None,
            // Asked again as soon as it is set up.
            Outcome::NotSetUp => return,
            Outcome::Retry => Some(Instant::now() + backoff.delay()),
        };
        self.attempts.insert(name.to_owned(), Attempt { sizes, backoff, again, version });
    }
}

/// Says that who may only read does not grow anything.
fn refuse(shared: &Shared, pod: &Pod, pair: &Pair) {
    let volume = pair.volume.metadata.name.as_deref().unwrap_or_default();
    let message = format!("MountVolume.NodeExpandVolume failed for volume {volume:?} requested read-only file system");
    tell(shared, pod, &pair.claim, true, "FileSystemResizeFailed", &message);
}

fn backoff() -> Backoff {
    Backoff::new(RETRY_FIRST, RETRY_CAP)
}

fn requested(claim: &PersistentVolumeClaim) -> String {
    let resources = claim.spec.as_ref().and_then(|s| s.resources.as_ref());
    let size = resources.and_then(|r| r.requests.as_ref()).and_then(|r| r.get("storage"));
    size.map(|q| q.0.clone()).unwrap_or_default()
}

enum Outcome {
    Done,
    NotSetUp,
    Retry,
}

async fn attempt(
    shared: &Arc<Shared>,
    pod: &Pod,
    name: &str,
    resolved: &Resolved,
    pair: &Pair,
    step: &NodeStep,
) -> Outcome {
    let mut claim = pair.claim.clone();
    if step.mark {
        match say(shared, &claim, begun()).await {
            Ok(said) => claim = said,
            Err(outcome) => return outcome,
        }
    }
    let (volumes, uid, volume) = (shared.volumes.clone(), identity(pod).2.to_owned(), name.to_owned());
    let (source, bytes) = (resolved.source.clone(), step.bytes);
    let job = tokio::task::spawn_blocking(move || volumes.expand(&uid, &volume, &source, bytes));
    let persistent = pair.volume.metadata.name.as_deref().unwrap_or_default();
    let why = match job.await {
        Ok(Ok(Growth::Done)) => {
            if let Err(outcome) = say(shared, &claim, finished(&claim, &step.to)).await {
                return outcome;
            }
            let node = &shared.config.node_name;
            let message = format!("MountVolume.NodeExpandVolume succeeded for volume {persistent:?} {node}");
            tell(shared, pod, &claim, false, "FileSystemResizeSuccessful", &message);
            return Outcome::Done;
        }
        Ok(Ok(Growth::NotHere)) => return Outcome::Done,
        Ok(Ok(Growth::NotSetUp)) => return Outcome::NotSetUp,
        Ok(Err(error)) => chain(&error),
        Err(error) => {
            tracing::error!(%error, "growing a volume broke off; this is a bug in the volume's code");
            format!("it broke off: {error}")
        }
    };
    let message = format!("NodeExpandVolume.NodeExpandVolume failed for volume {persistent:?} : {why}");
    shared.events.pod(pod, None, true, "VolumeResizeFailed", message);
    if step.told {
        let patch = failed(&claim, &step.to, &why, shared.clock.now());
        // A word that does not get through is said after the next attempt.
        drop(say(shared, &claim, patch).await);
    }
    Outcome::Retry
}

fn tell(shared: &Shared, pod: &Pod, claim: &PersistentVolumeClaim, warning: bool, reason: &str, message: &str) {
    shared.events.pod(pod, None, warning, reason, message.to_owned());
    shared.events.claim(claim, warning, reason, message.to_owned());
}

/// Writes to the claim's status, if nobody else has changed the claim, and gives back what it is then.
async fn say(shared: &Shared, claim: &PersistentVolumeClaim, status: Value) -> Result<PersistentVolumeClaim, Outcome> {
    if is_said(claim, &status) {
        return Ok(claim.clone());
    }
    let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let patch = pinned(&claim.metadata, json!({ "status": status }));
    let api = shared.api::<PersistentVolumeClaim>(namespace);
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map_err(|error| {
        tracing::debug!(error = chain(&error), namespace, name, "could not say how a claim grows; it is tried again");
        Outcome::Retry
    })
}
