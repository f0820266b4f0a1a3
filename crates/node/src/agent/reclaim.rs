//! Empties or deletes what is behind released volumes that this node reaches, and says in the API how that went.
//!
//! What is to be done is read afresh from the API just before: the policy at that moment counts. The volume's phase is
//! the journal: it stays `Released` until all is done, so that a crash on the way only means doing it again.
use std::{borrow::Cow, collections::HashMap, path::Path, sync::Arc, time::Duration};

use api::reclaim::{IN_TREE_FINALIZER, Reclaim, reclaim, unbinding};
use base::{Backoff, chain};
use futures::StreamExt;
use k8s_openapi::{
    api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Resource,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
    runtime::{WatchStreamExt, watcher},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};
use volumes::{Need, Reclaiming, Source, needs, source_of};

use super::{
    Shared,
    attach::{LAST_HELD_BY, other_nodes},
    pinned,
};

/// The node that reclaims a volume, where several could.
const RECLAIMED_BY: &str = "holdfast.dev/reclaimed-by";
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_CAP: Duration = Duration::from_secs(60);
/// Volumes that are reclaimed at the same time.
const AT_ONCE: usize = 8;

/// As much of a volume as tells whether to look closer: most changes of most volumes are none of our business.
#[derive(Debug, Clone, Deserialize)]
struct Glimpse {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: GlimpseSpec,
    #[serde(default)]
    status: GlimpseStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GlimpseSpec {
    #[serde(default)]
    persistent_volume_reclaim_policy: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct GlimpseStatus {
    #[serde(default)]
    phase: String,
}

impl Resource for Glimpse {
    type DynamicType = ();
    type Scope = k8s_openapi::ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        PersistentVolume::kind(&())
    }
    fn group((): &()) -> Cow<'_, str> {
        PersistentVolume::group(&())
    }
    fn version((): &()) -> Cow<'_, str> {
        PersistentVolume::version(&())
    }
    fn plural((): &()) -> Cow<'_, str> {
        PersistentVolume::plural(&())
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// How one attempt ended.
enum Outcome {
    /// Nothing to do until the volume changes.
    Settled,
    Retry,
}

/// A volume that wants to be reclaimed.
struct Due {
    uid: String,
    policy: String,
    /// `None` while an attempt runs, or when only a change of the volume can bring the next one.
    at: Option<Instant>,
    /// It changed while an attempt ran.
    changed: bool,
    backoff: Backoff,
}

impl Due {
    fn new(glimpse: &Glimpse) -> Self {
        Self {
            uid: glimpse.metadata.uid.clone().unwrap_or_default(),
            policy: glimpse.spec.persistent_volume_reclaim_policy.clone(),
            at: Some(Instant::now()),
            changed: false,
            backoff: Backoff::new(RETRY_FIRST, RETRY_CAP),
        }
    }
}

#[derive(Default)]
struct Queue {
    due: HashMap<String, Due>,
    /// With the names of volumes whose entry says `at: None`.
    running: HashMap<String, tokio::task::Id>,
}

impl Queue {
    fn see(&mut self, glimpse: &Glimpse) {
        let name = glimpse.metadata.name.clone().unwrap_or_default();
        if !matches!(glimpse.status.phase.as_str(), "Released" | "Failed") {
            self.due.remove(&name);
            return;
        }
        let new = Due::new(glimpse);
        match self.due.get_mut(&name) {
            // Our own verdict comes back; the retry stands.
            Some(old) if old.uid == new.uid && old.policy == new.policy && glimpse.status.phase == "Failed" => {}
            Some(old) if self.running.contains_key(&name) => {
                *old = Due { at: None, changed: true, ..new };
            }
            Some(old) => *old = new,
            None => {
                let busy = self.running.contains_key(&name);
                let at = new.at.filter(|_| !busy);
                self.due.insert(name, Due { at, changed: busy, ..new });
            }
        }
    }

    fn end(&mut self, name: &str, outcome: &Outcome) {
        self.running.remove(name);
        let Some(due) = self.due.get_mut(name) else { return };
        due.at = match outcome {
            _ if std::mem::take(&mut due.changed) => Some(Instant::now()),
            Outcome::Settled => None,
            Outcome::Retry => Some(Instant::now() + due.backoff.delay()),
        };
    }

    fn next(&self) -> Option<(Instant, &String)> {
        if self.running.len() >= AT_ONCE {
            return None;
        }
        self.due.iter().filter_map(|(name, due)| Some((due.at?, name))).min()
    }
}

/// Follows all volumes, for ever.
pub async fn watch(shared: Arc<Shared>) {
    let volumes: Api<Glimpse> = Api::all(shared.client.clone());
    let mut stream = watcher(volumes, watcher::Config::default()).default_backoff().boxed();
    let mut queue = Queue::default();
    let mut jobs: JoinSet<(String, Outcome)> = JoinSet::new();
    loop {
        let wake = queue.next().map(|(at, _)| at);
        let timer = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(ended) = jobs.join_next_with_id() => match ended {
                Ok((_, (name, outcome))) => queue.end(&name, &outcome),
                Err(error) => {
                    tracing::error!(%error, "reclaiming a volume broke off; this is a bug");
                    let name = queue.running.iter().find(|(_, id)| **id == error.id()).map(|(name, _)| name.clone());
                    name.iter().for_each(|name| queue.end(name, &Outcome::Retry));
                }
            },
            event = stream.next() => match event {
                Some(Ok(watcher::Event::InitApply(volume) | watcher::Event::Apply(volume))) => queue.see(&volume),
                Some(Ok(watcher::Event::Delete(volume))) => {
                    queue.due.remove(volume.metadata.name.as_deref().unwrap_or_default());
                }
                Some(Ok(watcher::Event::Init | watcher::Event::InitDone)) => {}
                Some(Err(error)) => tracing::debug!(error = chain(&error), "watching volumes; it is tried again"),
                None => return,
            },
            () = timer => {
                let Some(name) = queue.next().map(|(_, name)| name.clone()) else { continue };
                if let Some(due) = queue.due.get_mut(&name) {
                    due.at = None;
                }
                let (shared, volume) = (shared.clone(), name.clone());
                let job = jobs.spawn(async move {
                    let outcome = attempt(&shared, &volume).await.unwrap_or_else(|error| {
                        tracing::debug!(error = chain(&error), volume, "could not reclaim; it is tried again");
                        Outcome::Retry
                    });
                    (volume, outcome)
                });
                queue.running.insert(name, job.id());
            }
        }
    }
}

/// One attempt, from a fresh look at the API to the word about its end.
async fn attempt(shared: &Arc<Shared>, name: &str) -> Result<Outcome, kube::Error> {
    let volumes: Api<PersistentVolume> = Api::all(shared.client.clone());
    let Some(volume) = volumes.get_opt(name).await? else { return Ok(Outcome::Settled) };
    let how = match reclaim(&volume) {
        Reclaim::Recycle => Reclaiming::Recycle,
        Reclaim::Delete => Reclaiming::Delete,
        Reclaim::Keep | Reclaim::Elsewhere | Reclaim::Impossible { .. } => return Ok(Outcome::Settled),
    };
    match users(shared, &volume, how).await? {
        Standing::InUse => return Ok(Outcome::Settled),
        Standing::Pods(pods) => return Ok(wait_for(shared, &volume, how, &pods)),
        Standing::Released => {}
    }
    // A pod that was deleted by force may not have ended yet.
    let holding = shared.holders.of(name);
    if !holding.is_empty() {
        return Ok(wait_for(shared, &volume, how, &holding));
    }
    let nodes: Api<Node> = Api::all(shared.client.clone());
    let Some(node) = nodes.get_opt(&shared.config.node_name).await? else { return Ok(Outcome::Retry) };
    if !api::select::reaches(&volume, &node) {
        return Ok(Outcome::Settled);
    }
    let Some(volume) = take(shared, &volumes, volume).await? else { return Ok(Outcome::Retry) };
    let worker = shared.clone();
    let source = source_of(&volume);
    let done = tokio::task::spawn_blocking(move || {
        let source = source.map_err(|e| chain(&e))?;
        spare_own_files(&source, worker.config.layout.root())?;
        worker.volumes.reclaim(&source, how).map_err(|e| chain(&e))
    });
    match done.await.unwrap_or_else(|error| Err(format!("it broke off: {error}"))) {
        Ok(()) => finish(shared, &volumes, &volume, how).await,
        Err(why) => fail(shared, &volumes, &volume, how, why).await,
    }
}

/// Takes it upon this node to reclaim a volume, where several nodes reach it: by a write that only one of them can win.
/// `None`: another node has, or should. One that had the volume for its pods goes first, for what is to be removed may be
/// there. A node that ends on the way finds its name on the volume when it is back; one whose object was deleted, or that
/// is out of service, counts no more.
async fn take(
    shared: &Shared,
    volumes: &Api<PersistentVolume>,
    volume: PersistentVolume,
) -> Result<Option<PersistentVolume>, kube::Error> {
    let others = other_nodes(shared, |node| api::select::reaches(&volume, node)).await?;
    let us = shared.config.node_name.as_str();
    let annotation = |name: &str| volume.metadata.annotations.as_ref().and_then(|a| a.get(name)).cloned();
    let taken = annotation(RECLAIMED_BY);
    if others.is_empty() || taken.as_deref() == Some(us) {
        return Ok(Some(volume));
    }
    let first = taken.or_else(|| annotation(LAST_HELD_BY));
    if first.is_some_and(|node| others.contains(&node)) {
        return Ok(None);
    }
    let patch = pinned(&volume.metadata, json!({ "metadata": { "annotations": { RECLAIMED_BY: us } } }));
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    volumes.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(Some)
}

/// Whether a volume may be reclaimed.
enum Standing {
    /// Its claim has it.
    InUse,
    /// Its claim is gone, but these pods still name it.
    Pods(Vec<String>),
    Released,
}

async fn users(shared: &Shared, volume: &PersistentVolume, how: Reclaiming) -> Result<Standing, kube::Error> {
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.clone()).unwrap_or_default();
    let (Some(namespace), Some(name), Some(uid)) = (reference.namespace, reference.name, reference.uid) else {
        return Ok(Standing::InUse);
    };
    if uid.is_empty() || !matches!(phase, "Released" | "Failed") {
        return Ok(Standing::InUse);
    }
    let claim = shared.api::<PersistentVolumeClaim>(&namespace).get_opt(&name).await?;
    if let Some(claim) = &claim
        && claim.metadata.uid.as_ref() == Some(&uid)
    {
        let bound = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
        let elsewhere = !bound.is_empty() && volume.metadata.name.as_deref() != Some(bound);
        return Ok(if elsewhere { Standing::Released } else { Standing::InUse });
    }
    // Pods that name a new claim of the same name have nothing to do with this volume.
    if claim.is_some() || how == Reclaiming::Delete {
        return Ok(Standing::Released);
    }
    let pods = shared.api::<Pod>(&namespace).list(&ListParams::default()).await?;
    let mut using: Vec<String> = pods
        .items
        .iter()
        .filter(|pod| names_claim(pod, &name) && !is_over(pod))
        .map(|pod| format!("{namespace}/{}", pod.metadata.name.as_deref().unwrap_or_default()))
        .collect();
    using.sort_unstable();
    Ok(if using.is_empty() { Standing::Released } else { Standing::Pods(using) })
}

/// Whether one of a pod's volumes is the claim of this name.
pub fn names_claim(pod: &Pod, claim: &str) -> bool {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.flat_map(|v| needs(pod, v)).any(|need| matches!(need, Need::Claim(name) if name == claim))
}

/// Whether a pod ran to its end.
pub fn is_over(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// A volume that contains this program's own files, or lies among them, is nobody's to empty.
fn spare_own_files(source: &Source, data: &Path) -> Result<(), String> {
    let Source::HostPath { path, .. } = source else { return Ok(()) };
    let data = std::fs::canonicalize(data).unwrap_or_else(|_| data.to_path_buf());
    match data.starts_with(path) || path.starts_with(&data) {
        true => Err(format!("{} overlaps this node's own data in {}", path.display(), data.display())),
        false => Ok(()),
    }
}

fn wait_for(shared: &Shared, volume: &PersistentVolume, how: Reclaiming, pods: &[String]) -> Outcome {
    let message = format!("Volume is used by pods: {}", pods.join(","));
    shared.events.volume(volume, false, failure(how), message);
    Outcome::Retry
}

fn failure(how: Reclaiming) -> &'static str {
    match how {
        Reclaiming::Recycle => "VolumeFailedRecycle",
        Reclaiming::Delete => "VolumeFailedDelete",
    }
}

/// Says that all is done; whoever changed the volume meanwhile has it looked at again.
async fn finish(
    shared: &Shared,
    volumes: &Api<PersistentVolume>,
    volume: &PersistentVolume,
    how: Reclaiming,
) -> Result<Outcome, kube::Error> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let result = match how {
        Reclaiming::Recycle => {
            shared.events.volume(volume, false, "VolumeRecycled", "Volume recycled".into());
            let mut patch = pinned(&volume.metadata, unbinding(volume));
            // Nothing of its past is true of it any more.
            let annotations = volume.metadata.annotations.as_ref();
            for old in
                [RECLAIMED_BY, LAST_HELD_BY].into_iter().filter(|k| annotations.is_some_and(|a| a.contains_key(*k)))
            {
                patch["metadata"]["annotations"][old] = Value::Null;
            }
            volumes.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
        }
        Reclaiming::Delete => delete_object(volumes, volume, name).await,
    };
    match result {
        Ok(()) => Ok(Outcome::Settled),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Outcome::Settled),
        Err(error) => Err(error),
    }
}

async fn delete_object(
    volumes: &Api<PersistentVolume>,
    volume: &PersistentVolume,
    name: &str,
) -> Result<(), kube::Error> {
    let same = Preconditions { uid: volume.metadata.uid.clone(), ..Preconditions::default() };
    let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
    let Some(going) = volumes.delete(name, &params).await?.left() else { return Ok(()) };
    let finalizers = going.metadata.finalizers.as_deref().unwrap_or_default();
    if finalizers.iter().any(|f| f == IN_TREE_FINALIZER) {
        // Not before it is going: the controller would put it back.
        let left: Vec<&String> = finalizers.iter().filter(|f| *f != IN_TREE_FINALIZER).collect();
        let patch = pinned(&going.metadata, json!({ "metadata": { "finalizers": left } }));
        volumes.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    }
    Ok(())
}

/// Says what went wrong, once; it is tried again.
async fn fail(
    shared: &Shared,
    volumes: &Api<PersistentVolume>,
    volume: &PersistentVolume,
    how: Reclaiming,
    why: String,
) -> Result<Outcome, kube::Error> {
    let message = match how {
        Reclaiming::Recycle => format!("Recycle failed: {why}"),
        Reclaiming::Delete => why,
    };
    let known = volume.status.as_ref();
    let said = known.is_some_and(|s| s.phase.as_deref() == Some("Failed") && s.message.as_ref() == Some(&message));
    if !said {
        let patch = pinned(&volume.metadata, json!({ "status": { "phase": "Failed", "message": message } }));
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        volumes.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        shared.events.volume(volume, true, failure(how), message);
    }
    Ok(Outcome::Retry)
}
