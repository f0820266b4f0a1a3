//! How full volumes are, and how they fare, and what of the node's disk pods take: asked again and again, beside all other work.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base::chain;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use volumes::{Need, Ready, Source, Stats, needs};

use super::{
    Shared, identity,
    scratch::{self, Scratch},
    worker::View,
};
use crate::node::Workers;

/// Upstream's `volumeStatsAggPeriod`.
const EVERY: Duration = Duration::from_secs(60);
/// The first look after a start, and at volumes that are new.
const SOON: Duration = Duration::from_secs(5);

/// So many volumes of others, at most, are asked for at a time: who does not answer keeps a thread.
const MOST_WAITING: usize = 128;

/// A volume of a pod by the pod's UID and its name for the volume.
type Key = (String, String);

/// What is known of one volume.
#[derive(Debug, Clone)]
pub struct VolumeStats {
    pub name: String,
    pub namespace: String,
    /// The claim that it is.
    pub claim: Option<String>,
    pub at: Timestamp,
    pub stats: Stats,
}

/// What was heard last of each volume, and of each pod.
#[derive(Default)]
pub struct Latest {
    volumes: Mutex<BTreeMap<Key, VolumeStats>>,
    /// By UID.
    pods: Mutex<BTreeMap<String, (Timestamp, Scratch)>>,
}

impl Latest {
    /// The volumes of one pod.
    pub fn of(&self, pod_uid: &str) -> Vec<VolumeStats> {
        let all = self.volumes.lock();
        all.iter().filter(|((uid, _), _)| uid == pod_uid).map(|(_, stats)| stats.clone()).collect()
    }

    /// The volumes of all pods.
    pub fn all(&self) -> Vec<VolumeStats> {
        self.volumes.lock().values().cloned().collect()
    }

    /// What one pod takes of the node's disk.
    pub fn scratch(&self, pod_uid: &str) -> Option<(Timestamp, Scratch)> {
        self.pods.lock().get(pod_uid).cloned()
    }
}

/// Whom to ask.
enum Asked {
    /// A driver.
    Driver(Arc<Source>),
    /// The filesystem; it may be that of a server.
    Filesystem(Ready),
    /// The disk, about a whole pod; its volume has no name.
    Pod(Box<View>),
}

enum Answer {
    Volume(Option<Stats>),
    /// What would have been known of a volume, at another time.
    NotNow,
    Pod(Option<Scratch>),
}

fn ask(shared: &Shared, key: &Key, asked: &Asked) -> Answer {
    let tell = |error: volumes::VolumeError| {
        tracing::debug!(error = chain(&error), volume = key.1, "a volume's figures are not to be had");
    };
    match asked {
        Asked::Driver(source) => {
            Answer::Volume(shared.volumes.stats(&key.0, &key.1, source).map_err(tell).ok().flatten())
        }
        Asked::Filesystem(ready) => match shared.volumes.measure(ready).map_err(tell) {
            Ok(stats) => Answer::Volume(Some(stats)),
            Err(()) => Answer::NotNow,
        },
        Asked::Pod(view) => Answer::Pod(scratch::measure(shared, view).map_err(tell).ok()),
    }
}

/// Asks for ever, one question for a volume at a time. A driver or a server that does not answer keeps nobody else's volumes
/// from being asked for, unless there are very many of them; what was heard last of its volumes stays.
pub async fn watch(shared: Arc<Shared>, workers: Workers) {
    let mut asking: JoinSet<(Key, Answer)> = JoinSet::new();
    // Whether it is somebody else's.
    let mut under_way: BTreeMap<Key, bool> = BTreeMap::new();
    let mut asked: BTreeMap<Key, tokio::time::Instant> = BTreeMap::new();
    let mut look = tokio::time::interval(SOON);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            Some(done) = asking.join_next() => {
                match done {
                    Ok((key, answer)) => {
                        under_way.remove(&key);
                        match answer {
                            // Its server was away, or it was just being mounted again.
                            Answer::NotNow => drop(asked.remove(&key)),
                            Answer::Volume(stats) => learn(&shared, &workers, key, stats),
                            Answer::Pod(Some(scratch)) => {
                                let known = (shared.clock.now(), scratch);
                                shared.volume_stats.pods.lock().insert(key.0, known);
                            }
                            Answer::Pod(None) => {}
                        }
                    }
                    Err(error) => tracing::error!(%error, "asking for a volume's figures broke off; this is a bug"),
                }
                continue;
            }
        }
        let here: BTreeMap<Key, Asked> = sources(&workers);
        asked.retain(|key, _| here.contains_key(key));
        shared.volume_stats.volumes.lock().retain(|key, _| here.contains_key(key));
        shared.volume_stats.pods.lock().retain(|uid, _| here.keys().any(|key| key.0 == *uid));
        for (key, source) in here {
            if under_way.contains_key(&key) || asked.get(&key).is_some_and(|at| at.elapsed() < EVERY) {
                continue;
            }
            let others = match &source {
                Asked::Driver(_) => true,
                Asked::Filesystem(ready) => shared.volumes.depends_on_others(ready),
                Asked::Pod(_) => false,
            };
            if others && under_way.values().filter(|others| **others).count() >= MOST_WAITING {
                continue;
            }
            asked.insert(key.clone(), tokio::time::Instant::now());
            under_way.insert(key.clone(), others);
            let shared = shared.clone();
            asking.spawn_blocking(move || {
                let answer = ask(&shared, &key, &source);
                (key, answer)
            });
        }
    }
}

fn sources(workers: &Workers) -> BTreeMap<Key, Asked> {
    let mut all = BTreeMap::new();
    for handle in workers.lock().values() {
        let view = handle.view.borrow().clone();
        if view.pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let uid = identity(&view.pod).2.to_owned();
        for (name, ready) in view.volumes.iter().filter(|(name, _)| counts(&view.pod, name)) {
            all.insert((uid.clone(), name.clone()), Asked::Filesystem(ready.clone()));
        }
        // What a driver says of its volumes counts more than what their filesystem does.
        for (name, source) in &view.driven {
            all.insert((uid.clone(), name.clone()), Asked::Driver(source.clone()));
        }
        all.insert((uid, String::new()), Asked::Pod(Box::new(view)));
    }
    all
}

/// Whether a volume has figures: a path of the node has none of its own, unless it is somebody's claim.
fn counts(pod: &Pod, name: &str) -> bool {
    let volume = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).find(|v| v.name == name);
    volume.is_some_and(|v| v.host_path.is_none())
}

fn learn(shared: &Shared, workers: &Workers, key: Key, stats: Option<Stats>) {
    let pod = workers.lock().get(&key.0).map(|handle| handle.view.borrow().pod.clone());
    let (Some(stats), Some(pod)) = (stats, pod) else { return };
    if let Some(Err(why)) = &stats.healthy {
        shared.events.pod(&pod, None, true, "VolumeConditionAbnormal", format!("Volume {}: {why}", key.1));
    }
    let (name, namespace, at) = (key.1.clone(), identity(&pod).1.to_owned(), shared.clock.now());
    let claim = claim_of(&pod, &name);
    shared.volume_stats.volumes.lock().insert(key, VolumeStats { name, namespace, claim, at, stats });
}

fn claim_of(pod: &Pod, volume: &str) -> Option<String> {
    let volume = pod.spec.as_ref()?.volumes.iter().flatten().find(|v| v.name == volume)?;
    needs(pod, volume).into_iter().find_map(|need| match need {
        Need::Claim(name) => Some(name),
        _ => None,
    })
}
