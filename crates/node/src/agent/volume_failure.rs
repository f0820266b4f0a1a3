//! What is said of a pod's volumes that are not there yet.
use std::collections::BTreeMap;

use base::chain;
use k8s_openapi::api::core::v1::Volume;
use volumes::{Next, Resolved, VolumeError};

use crate::core::facts::VolumeTrouble;

/// A volume that is not there, and why.
pub(super) struct Failure {
    /// The pod's name for it.
    pub volume: String,
    /// Its name in sentences.
    pub shown: String,
    pub why: String,
    pub reason: &'static str,
    /// What was tried, by upstream's name.
    pub operation: &'static str,
    pub next: Next,
    pub step: Step,
    /// It is kept in the status, and nobody is told.
    pub quiet: bool,
}

impl Failure {
    pub fn new(volume: &str, why: String, next: Next, step: Step) -> Self {
        let (volume, shown) = (volume.to_owned(), volume.to_owned());
        Self { volume, shown, why, reason: "FailedMount", operation: "MountVolume.SetUp", next, step, quiet: false }
    }

    /// The sentence of its Event.
    pub fn said(&self) -> String {
        match self.step {
            Step::Attach => self.why.clone(),
            _ => format!("{} failed for volume {:?} : {}", self.operation, self.shown, self.why),
        }
    }
}

/// How far a volume came.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It is not known what the volume is made of, so nothing was tried: upstream sums these up in one event.
    Process,
    /// Another node has it, or alone can reach it; the sentence is whole.
    Attach,
    /// Nobody has attached it to this node yet.
    Wait,
    SetUp,
}

pub(super) fn failure(name: &str, error: &VolumeError) -> Failure {
    let plain = Failure::new(name, chain(error), error.next(), Step::SetUp);
    let plain = Failure { reason: error.reason().unwrap_or("FailedMount"), ..plain };
    match error {
        VolumeError::Claim { .. } | VolumeError::Use { .. } | VolumeError::Ended { .. } => {
            Failure { step: Step::Process, ..plain }
        }
        VolumeError::Csi { operation, volume, .. } | VolumeError::Flex { operation, volume, .. } => {
            Failure { operation, shown: volume.clone(), ..plain }
        }
        VolumeError::Attach { volume, failed, .. } => {
            // What failed does not just take its time.
            let step = if *failed { Step::SetUp } else { Step::Wait };
            Failure { operation: "AttachVolume.Attach", shown: volume.clone(), step, ..plain }
        }
        _ => plain,
    }
}

/// What is kept of the failures in the pod's status: a sentence for each volume that fails.
pub(super) fn trouble(failures: &[Failure], unprocessed: &[Failure]) -> Option<VolumeTrouble> {
    let first = failures.first().or(unprocessed.first())?;
    let tried = failures.iter().map(Failure::said);
    let waiting = unprocessed.iter().map(|f| format!("volume {:?} waits: {}", f.volume, f.why));
    let message = tried.chain(waiting).collect::<Vec<_>>().join("; ");
    Some(VolumeTrouble { reason: first.reason, message })
}

/// Upstream's sentence about volumes of which it is not known what they are made of.
pub(super) fn summary(list: &[Volume], done: &BTreeMap<String, Resolved>, unprocessed: &[Failure]) -> String {
    let mut unmounted: Vec<&str> = list.iter().map(|v| v.name.as_str()).filter(|v| !done.contains_key(*v)).collect();
    let mut failed: Vec<&str> = unprocessed.iter().map(|f| f.volume.as_str()).collect();
    unmounted.sort_unstable();
    failed.sort_unstable();
    let why: Vec<&str> = unprocessed.iter().map(|f| f.why.as_str()).collect();
    format!(
        "Unable to attach or mount volumes: unmounted volumes=[{}], unattached volumes=[], failed to process volumes=[{}]: {}",
        unmounted.join(" "),
        failed.join(" "),
        why.join("; ")
    )
}
