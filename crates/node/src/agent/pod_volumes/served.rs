//! Volumes that a process of this node serves: when it ends, they are set up again, and shown to containers that run.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use base::{Backoff, chain};
use k8s_openapi::api::core::v1::Pod;
use tokio::{net::unix::pipe::Receiver, task::JoinSet, time::Instant};
use volumes::{Ready, Resolved, Served};

use super::{Keeper, RETRY_CAP, RETRY_FIRST};
use crate::agent::{follow, identity};

/// What is told when a volume is back.
const SERVED_AGAIN: &str = "VolumeServedAgain";

/// One that lived longer was not ended by what it was started with.
const STEADY: Duration = RETRY_CAP;

/// The processes that serve the volumes of one pod.
#[derive(Default)]
pub(super) struct Attendants {
    /// Each waits for the end of one, and gives back its volume, and how long it lived.
    waiting: JoinSet<(String, Duration)>,
    /// How soon the next is started, for those whose ones keep ending.
    starts: BTreeMap<String, Backoff>,
    /// Volumes whose process ended, and that are not there again.
    lost: BTreeSet<String>,
    /// Volumes that containers which run may see as somebody served them who has ended.
    unseen: BTreeMap<String, Ready>,
}

impl Attendants {
    /// The next volume that nobody serves any more.
    pub(super) async fn ended(&mut self) -> Option<String> {
        match self.waiting.join_next().await? {
            Ok((volume, lived)) => {
                if lived >= STEADY {
                    self.starts.remove(&volume);
                }
                Some(volume)
            }
            Err(error) => {
                tracing::error!(%error, "waiting for the end of a volume's process broke off; this is a bug");
                None
            }
        }
    }
}

impl Keeper {
    /// Waits from now on for the end of whoever serves a volume that was just set up.
    pub(super) fn attend(&mut self, pod: &Pod, volume: &str, resolved: &Resolved, ready: &Ready) {
        let served = match self.shared.volumes.served(identity(pod).2, volume, &resolved.source) {
            Ok(Served::ByNobody) => return,
            // Nothing is read: that it can be is waited for as with a pipe.
            Ok(Served::By(end)) => Receiver::from_owned_fd_unchecked(end).map(Some),
            Ok(Served::ByTheDead) => Ok(None),
            Err(error) => {
                return tracing::warn!(
                    error = chain(&error),
                    volume,
                    "the end of a volume's process will not be noticed"
                );
            }
        };
        let end = match served {
            Ok(end) => end,
            Err(error) => {
                return tracing::warn!(%error, volume, "the end of a volume's process will not be noticed");
            }
        };
        // Containers may have been made before this process was, and before it ended.
        self.attendants.unseen.insert(volume.to_owned(), ready.clone());
        let starts = self.attendants.starts.entry(volume.to_owned());
        let pause = starts.or_insert_with(|| Backoff::new(RETRY_FIRST, RETRY_CAP)).delay();
        let volume = volume.to_owned();
        self.attendants.waiting.spawn(async move {
            let begun = Instant::now();
            if let Some(end) = end {
                // It fails for a kernel that cannot be asked, at once, and the pause is kept.
                let _ = end.readable().await;
            }
            let lived = begun.elapsed();
            if lived < STEADY {
                tokio::time::sleep(pause).await;
            }
            (volume, lived)
        });
    }

    /// Nobody serves a volume any more: the next round sets it up again.
    pub(super) fn lose(&mut self, volume: &str) {
        tracing::warn!(volume, "the process that served a volume has ended; it is started again");
        self.attendants.lost.insert(volume.to_owned());
        self.done.remove(volume);
    }

    /// Shows running containers the volumes that are served anew.
    pub(super) async fn show_served(&mut self, pod: &Pod) {
        for (volume, ready) in self.attendants.unseen.clone() {
            match follow::show_served(&self.shared, pod, ready).await {
                Ok(()) => {
                    self.attendants.unseen.remove(&volume);
                    if self.attendants.lost.remove(&volume) {
                        self.shared.events.pod(pod, None, true, SERVED_AGAIN, served_again(&volume));
                    }
                }
                Err(why) => {
                    self.tell(pod, volume.clone(), "FailedMount", not_seen(&volume, &why), true);
                    self.retry_at.get_or_insert(Instant::now() + RETRY_CAP);
                }
            }
        }
    }
}

fn served_again(volume: &str) -> String {
    format!(
        "The process that served volume {volume:?} had ended. It was started again, and containers see the volume again; \
         files and working directories that their programs had open in it are lost to them, and so may be what they had \
         not synced: programs that do not open them again have to be restarted"
    )
}

fn not_seen(volume: &str, why: &str) -> String {
    format!(
        "The process that served volume {volume:?} had ended and was started again, but containers still see what it served, \
         which fails with \"Transport endpoint is not connected\": {why}; if that stays so, restart them or delete the pod"
    )
}
