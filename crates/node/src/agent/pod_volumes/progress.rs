//! What is said of volumes while they are being set up.
use std::{
    sync::{
        Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::Keeper;
use crate::core::facts::VolumeTrouble;

/// How far a change of group is, is told first after this, kept current in the status every so often, and told again as
/// an Event as seldom as that.
const PROGRESS_FIRST: Duration = Duration::from_millis(500);
const PROGRESS: Duration = Duration::from_secs(2);
const PROGRESS_TOLD: Duration = Duration::from_secs(60);
const IN_PROGRESS: &str = "VolumePermissionChangeInProgress";
/// Volumes that are being set up for so long are told about: whoever has to answer may not.
const SLOW: Duration = Duration::from_secs(20);
const SLOW_REASON: &str = "SlowMount";

impl Keeper {
    /// Waits for the work on volumes, and tells how far it is where that takes long.
    pub(super) async fn while_telling<T>(&self, pod: &Pod, given: &[Given], work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let (mut wait, mut told) = (PROGRESS_FIRST, None);
        let begun = Instant::now();
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(wait) => wait = PROGRESS,
            }
            // The counter lives as long as its volume is worked on.
            let counts = given.iter().filter_map(|(volume, count)| Some((volume, count.upgrade()?.load(Relaxed))));
            let (changing, others): (Vec<_>, Vec<_>) = counts.partition(|(_, n)| *n > 0);
            let (reason, running): (_, Vec<String>) = match changing.is_empty() {
                false => (IN_PROGRESS, changing.into_iter().map(|(v, n)| progress(v, n)).collect()),
                true if begun.elapsed() < SLOW => continue,
                true => (SLOW_REASON, others.into_iter().map(|(v, _)| slow(v)).collect()),
            };
            if running.is_empty() {
                continue;
            }
            if told.is_none_or(|at: Instant| at.elapsed() >= PROGRESS_TOLD) {
                told = Some(Instant::now());
                running.iter().for_each(|m| self.shared.events.pod(pod, None, true, reason, m.clone()));
            }
            let trouble = VolumeTrouble { reason, message: running.join(" ") };
            self.view.send_modify(|v| v.trouble = Some(trouble));
        }
    }
}

/// A volume, and how many of its files were given to the pod's group.
pub(super) type Given = (String, Weak<AtomicU64>);

fn progress(volume: &str, files: u64) -> String {
    format!("Setting volume ownership for volume {volume:?}, processed {files} files.")
}

fn slow(volume: &str) -> String {
    let seconds = SLOW.as_secs();
    format!(
        "MountVolume.SetUp for volume {volume:?} goes on for more than {seconds} s: whoever has to answer has not yet"
    )
}
