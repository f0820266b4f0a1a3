//! How full the volumes of CSI drivers are, and how they fare: asked again and again, beside all other work.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use base::chain;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use volumes::{Need, Source, Stats, needs};

use super::{Shared, identity};
use crate::node::Workers;

/// Upstream's `volumeStatsAggPeriod`.
const EVERY: Duration = Duration::from_secs(60);
/// The first look after a start, and at volumes that are new.
const SOON: Duration = Duration::from_secs(5);

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

/// What was heard last of each volume.
#[derive(Default)]
pub struct Latest(Mutex<BTreeMap<Key, VolumeStats>>);

impl Latest {
    /// Of one pod.
    pub fn of(&self, pod_uid: &str) -> Vec<VolumeStats> {
        let all = self.0.lock();
        all.iter().filter(|((uid, _), _)| uid == pod_uid).map(|(_, stats)| stats.clone()).collect()
    }

    /// Of all pods.
    pub fn all(&self) -> Vec<VolumeStats> {
        self.0.lock().values().cloned().collect()
    }
}

/// Asks for ever. A driver that does not answer keeps nobody else's volumes from being asked for.
pub async fn watch(shared: Arc<Shared>, workers: Workers) {
    let mut asking: JoinSet<(Key, Option<Stats>)> = JoinSet::new();
    let mut under_way: BTreeSet<Key> = BTreeSet::new();
    let mut asked: BTreeMap<Key, tokio::time::Instant> = BTreeMap::new();
    let mut look = tokio::time::interval(SOON);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            Some(done) = asking.join_next() => {
                match done {
                    Ok((key, stats)) => {
                        under_way.remove(&key);
                        learn(&shared, &workers, key, stats);
                    }
                    Err(error) => tracing::error!(%error, "asking for a volume's figures broke off; this is a bug"),
                }
                continue;
            }
        }
        let here: BTreeMap<Key, Arc<Source>> = sources(&workers);
        asked.retain(|key, _| here.contains_key(key));
        shared.volume_stats.0.lock().retain(|key, _| here.contains_key(key));
        for (key, source) in here {
            if under_way.contains(&key) || asked.get(&key).is_some_and(|at| at.elapsed() < EVERY) {
                continue;
            }
            asked.insert(key.clone(), tokio::time::Instant::now());
            under_way.insert(key.clone());
            let volumes = shared.volumes.clone();
            asking.spawn_blocking(move || {
                let stats = volumes.stats(&key.0, &key.1, &source).unwrap_or_else(|error| {
                    tracing::debug!(error = chain(&error), volume = key.1, "a volume's figures are not to be had");
                    None
                });
                (key, stats)
            });
        }
    }
}

fn sources(workers: &Workers) -> BTreeMap<Key, Arc<Source>> {
    let mut all = BTreeMap::new();
    for handle in workers.lock().values() {
        let view = handle.view.borrow();
        let uid = identity(&view.pod).2;
        if view.pod.metadata.deletion_timestamp.is_none() {
            all.extend(view.driven.iter().map(|(name, source)| ((uid.to_owned(), name.clone()), source.clone())));
        }
    }
    all
}

fn learn(shared: &Shared, workers: &Workers, key: Key, stats: Option<Stats>) {
    let pod = workers.lock().get(&key.0).map(|handle| handle.view.borrow().pod.clone());
    let (Some(stats), Some(pod)) = (stats, pod) else { return };
    if let Some(Err(why)) = &stats.healthy {
        shared.events.pod(&pod, None, true, "VolumeConditionAbnormal", format!("Volume {}: {why}", key.1));
    }
    let (name, namespace, at) = (key.1.clone(), identity(&pod).1.to_owned(), shared.clock.now());
    let claim = claim_of(&pod, &name);
    shared.volume_stats.0.lock().insert(key, VolumeStats { name, namespace, claim, at, stats });
}

fn claim_of(pod: &Pod, volume: &str) -> Option<String> {
    let volume = pod.spec.as_ref()?.volumes.iter().flatten().find(|v| v.name == volume)?;
    needs(pod, volume).into_iter().find_map(|need| match need {
        Need::Claim(name) => Some(name),
        _ => None,
    })
}
