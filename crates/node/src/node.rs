//! The node as a whole: registration, the pods that belong here, their workers, and what was left behind by others.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base::{Backoff, Clock, Layout, chain};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    runtime::{WatchStreamExt, watcher},
};
use parking_lot::Mutex;
use runtime::{ContainerState, PodUid, Runtime};
use tokio::{
    sync::{broadcast::error::RecvError, mpsc, watch},
    task::JoinSet,
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use volumes::PodVolumes;

use crate::{
    agent::{
        Shared,
        attach::{self, Attachments},
        csi,
        events::Recorder,
        evict,
        follow::Following,
        holders::{Holders, RwoScope},
        identity,
        images::Images,
        objects::Objects,
        reclaim, rotate, volume_stats,
        worker::{Mail, View, Worker},
    },
    machine::Capacity,
    register,
    spec::dns::ClusterDns,
};

/// What a node is told about itself.
#[derive(Debug, Clone)]
pub struct Config {
    pub node_name: String,
    pub layout: Layout,
    /// `InternalIP` addresses, the primary one first; also `status.hostIP` of pods. Must not be empty.
    pub addresses: Vec<IpAddr>,
    /// `None`: pods use the host's name servers.
    pub cluster_dns: Option<ClusterDns>,
    /// `cluster.local`
    pub cluster_domain: String,
    /// Where containers reach the API server (`KUBERNETES_SERVICE_HOST` and `_PORT`).
    pub api_address: Option<(String, u16)>,
    /// `kubeletVersion`, for example `v1.36.2`.
    pub version: String,
    /// `containerRuntimeVersion`, for example `holdfast://0.1.0`.
    pub runtime_version: String,
    /// Port of the node's endpoints, told in `daemonEndpoints`.
    pub kubelet_port: u16,
    pub max_pods: u32,
    /// `None`: the machine's.
    pub cpu_milli: Option<i64>,
    /// `None`: the machine's.
    pub memory_bytes: Option<i64>,
    /// What `ReadWriteOnce` means on this node.
    pub rwo_scope: RwoScope,
    /// The CSI drivers of this machine, which the node finds by their sockets in the layout's kubelet directory.
    pub drivers: host::Registry,
    /// Between two publications of a volume whose driver wants more than one.
    pub publish_every: Duration,
    /// More labels for the node.
    pub labels: BTreeMap<String, String>,
}

impl Config {
    /// A node with defaults for everything that can have one.
    pub fn new(node_name: impl Into<String>, layout: Layout, addresses: Vec<IpAddr>) -> Self {
        Self {
            node_name: node_name.into(),
            layout,
            addresses,
            cluster_dns: None,
            cluster_domain: "cluster.local".into(),
            api_address: None,
            version: "v1.36.2".into(),
            runtime_version: concat!("holdfast://", env!("CARGO_PKG_VERSION")).into(),
            kubelet_port: 10250,
            max_pods: 110,
            cpu_milli: None,
            memory_bytes: None,
            rwo_scope: RwoScope::default(),
            drivers: host::Registry::default(),
            // About as often as a kubelet looks at a pod.
            publish_every: Duration::from_secs(60),
            labels: BTreeMap::new(),
        }
    }
}

/// Why a node cannot run at all. What can heal is retried instead.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("node {node} has no address; give it one that pods and clients can reach")]
    NoAddress { node: String },
    #[error("node {node} cannot tell which pods already run here")]
    Runtime {
        node: String,
        #[source]
        source: runtime::RuntimeError,
    },
    #[error("node {node} is running already")]
    Running { node: String },
}

/// One pod's worker, seen from outside.
pub(crate) struct Handle {
    pub mail: mpsc::UnboundedSender<Mail>,
    pub view: watch::Receiver<View>,
}

/// The workers by pod UID.
pub(crate) type Workers = Arc<Mutex<HashMap<String, Handle>>>;

/// How long clients have to take note that their sessions end with the agent.
const FAREWELL: Duration = Duration::from_secs(1);

/// A node agent.
pub struct Node {
    pub(crate) shared: Arc<Shared>,
    pub(crate) workers: Workers,
    recorder: Mutex<Option<AbortOnDropHandle<()>>>,
    running: AtomicBool,
    /// Cancelled when the agent ends: sessions of clients end with it, and tell them so.
    pub(crate) closing: CancellationToken,
    pub(crate) sessions: TaskTracker,
}

impl Node {
    /// A node that does nothing before [`Node::run`]. Must be called within a tokio runtime.
    pub fn new(
        config: Config,
        client: kube::Client,
        runtime: Arc<dyn Runtime>,
        volumes: Arc<PodVolumes>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let (events, writing) = Recorder::new(client.clone(), config.node_name.clone(), clock.clone());
        let shared = Shared {
            capacity: Capacity::of(&config),
            objects: Objects::new(client.clone()),
            images: Images::default(),
            holders: Holders::default(),
            attachments: Attachments::default(),
            csi: csi::State::default(),
            volume_stats: volume_stats::Latest::default(),
            following: Following::default(),
            config,
            client,
            runtime,
            volumes,
            clock,
            events,
        };
        Arc::new(Self {
            shared: Arc::new(shared),
            workers: Workers::default(),
            recorder: Mutex::new(Some(AbortOnDropHandle::new(tokio::spawn(writing)))),
            running: AtomicBool::new(false),
            closing: CancellationToken::new(),
            sessions: TaskTracker::new(),
        })
    }

    /// Runs until `shutdown`; containers keep running after that.
    ///
    /// # Errors
    /// Only what no waiting can heal.
    pub async fn run(self: &Arc<Self>, shutdown: CancellationToken) -> Result<(), NodeError> {
        let node = self.shared.config.node_name.clone();
        if self.shared.config.addresses.is_empty() {
            return Err(NodeError::NoAddress { node });
        }
        if self.running.swap(true, Ordering::SeqCst) {
            return Err(NodeError::Running { node });
        }
        let result = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            result = self.work() => result,
        };
        self.workers.lock().clear();
        self.running.store(false, Ordering::SeqCst);
        drop(self.recorder.lock().take());
        self.closing.cancel();
        self.sessions.close();
        if tokio::time::timeout(FAREWELL, self.sessions.wait()).await.is_err() {
            tracing::debug!("some sessions of clients did not end in time");
        }
        result
    }

    async fn work(self: &Arc<Self>) -> Result<(), NodeError> {
        // Before anything can start: its news must not be missed.
        let news = self.shared.runtime.events();
        let fail = |source| NodeError::Runtime { node: self.shared.config.node_name.clone(), source };
        self.shared.runtime.list().await.map_err(fail)?;
        self.adopt_holders().await;
        let mut tasks = JoinSet::new();
        let shared = self.shared.clone();
        tasks.spawn(async move {
            let node = register::register(&shared).await;
            tokio::join!(
                register::report(shared.clone(), node.clone()),
                csi::report::keep(shared.clone()),
                csi::watch::watch(shared.clone()),
                register::renew_lease(shared, node),
            );
        });
        tasks.spawn(forward_news(self.workers.clone(), news));
        tasks.spawn(volume_stats::watch(self.shared.clone(), self.workers.clone()));
        tasks.spawn(evict::watch(self.shared.clone(), self.workers.clone()));
        tasks.spawn(reclaim::watch(self.shared.clone()));
        tasks.spawn(rotate::watch(self.shared.clone(), self.workers.clone()));
        self.watch_pods().await;
        Ok(())
    }

    /// Before any pod asks for a volume: those that have one keep it.
    async fn adopt_holders(&self) {
        let volumes = self.shared.volumes.clone();
        let read = move || volumes.holds().and_then(|holds| Ok((holds, volumes.attached()?)));
        match tokio::task::spawn_blocking(read).await {
            Ok(Ok((holds, attached))) => {
                for volume in attached {
                    let name = csi::in_use::unique_name(&volume.driver, &volume.handle);
                    self.shared.csi.in_use.adopt(name, volume.pod_uid);
                }
                holds.iter().for_each(|h| self.shared.attachments.adopt(&h.volume, &h.pod_uid));
                self.shared.holders.adopt(holds);
            }
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "could not read which pods have which volumes"),
            Err(error) => tracing::error!(%error, "reading who has which volume broke off; this is a bug"),
        }
    }

    /// Follows the pods that belong here, for ever.
    async fn watch_pods(self: &Arc<Self>) {
        let pods: Api<Pod> = Api::all(self.shared.client.clone());
        let config = watcher::Config::default().fields(&format!("spec.nodeName={}", self.shared.config.node_name));
        let mut stream = watcher(pods, config).default_backoff().boxed();
        // Owned here, so that all workers end with this future.
        let mut running: JoinSet<String> = JoinSet::new();
        let mut listed: BTreeSet<String> = BTreeSet::new();
        let mut swept: Option<AbortOnDropHandle<()>> = None;
        loop {
            let event = tokio::select! {
                Some(ended) = running.join_next() => {
                    match ended {
                        Ok(uid) => self.forget(&uid),
                        Err(error) => tracing::error!(%error, "a pod's worker broke off; this is a bug"),
                    }
                    continue;
                }
                event = stream.next() => event,
            };
            match event {
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(pod))) => {
                    listed.insert(identity(&pod).2.to_owned());
                    self.deliver(pod, &mut running);
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    self.dismiss_all_but(&listed);
                    // Only a full list tells what was left behind.
                    if swept.is_none() {
                        let task = sweep(self.shared.clone(), listed.clone());
                        swept = Some(AbortOnDropHandle::new(tokio::spawn(task)));
                    }
                }
                Some(Ok(watcher::Event::Apply(pod))) => self.deliver(pod, &mut running),
                Some(Ok(watcher::Event::Delete(pod))) => self.dismiss(identity(&pod).2),
                Some(Err(error)) => {
                    tracing::warn!(error = chain(&error), "watching the node's pods; it is tried again")
                }
                None => return,
            }
        }
    }

    fn deliver(&self, pod: Pod, running: &mut JoinSet<String>) {
        let uid = identity(&pod).2.to_owned();
        let pod = Arc::new(pod);
        let mut workers = self.workers.lock();
        if let Some(handle) = workers.get(&uid)
            && handle.mail.send(Mail::Pod(pod.clone())).is_ok()
        {
            return;
        }
        let (mail, inbox) = mpsc::unbounded_channel();
        let (worker, view) = Worker::new(self.shared.clone(), pod, inbox);
        workers.insert(uid.clone(), Handle { mail, view });
        running.spawn(async move {
            worker.run().await;
            uid
        });
    }

    /// Lets go of a worker that has ended, unless another one took its place already.
    fn forget(&self, uid: &str) {
        let mut workers = self.workers.lock();
        if workers.get(uid).is_some_and(|h| h.mail.is_closed()) {
            workers.remove(uid);
        }
    }

    fn dismiss(&self, uid: &str) {
        if let Some(handle) = self.workers.lock().get(uid) {
            // A worker that has ended needs no word.
            let _ = handle.mail.send(Mail::Gone);
        }
    }

    fn dismiss_all_but(&self, listed: &BTreeSet<String>) {
        for (uid, handle) in self.workers.lock().iter().filter(|(uid, _)| !listed.contains(*uid)) {
            tracing::debug!(uid, "the pod is gone from the API");
            let _ = handle.mail.send(Mail::Gone);
        }
    }
}

/// Wakes the worker that a change in the runtime concerns.
async fn forward_news(workers: Workers, mut news: tokio::sync::broadcast::Receiver<runtime::RuntimeEvent>) {
    loop {
        match news.recv().await {
            Ok(event) => {
                if let Some(handle) = workers.lock().get(&event.pod.0) {
                    let _ = handle.mail.send(Mail::Runtime);
                }
            }
            Err(RecvError::Lagged(_)) => {
                for handle in workers.lock().values() {
                    let _ = handle.mail.send(Mail::Runtime);
                }
            }
            Err(RecvError::Closed) => {
                tracing::error!("the runtime's news have ended; container exits will be noticed late");
                return std::future::pending().await;
            }
        }
    }
}

/// How long the containers of a pod that nobody knows get to end, as upstream.
const ORPHAN_GRACE: Duration = Duration::from_secs(1);

/// Removes what is here of pods that the API no longer has.
async fn sweep(shared: Arc<Shared>, listed: BTreeSet<String>) {
    let mut removing = JoinSet::new();
    let sandboxes = match shared.runtime.list().await {
        Ok(list) => list,
        Err(error) => {
            tracing::warn!(error = chain(&error), "could not look for pods that were left behind");
            return;
        }
    };
    for sandbox in sandboxes.into_iter().filter(|s| !listed.contains(&s.spec.uid.0)) {
        tracing::info!(uid = sandbox.spec.uid.0, name = sandbox.spec.name, "removing a pod that the API no longer has");
        let running = sandbox.containers.iter().filter(|c| matches!(c.state, ContainerState::Running { .. }));
        futures::future::join_all(running.map(|c| shared.runtime.stop(&c.id, ORPHAN_GRACE))).await;
        // What cannot go yet is still on the disk.
        drop(remove_orphan(&shared, &sandbox.spec.uid).await);
    }
    let volumes = shared.volumes.clone();
    let on_disk = tokio::task::spawn_blocking(move || volumes.pods()).await;
    match on_disk {
        Ok(Ok(uids)) => {
            let orphans = uids.into_iter().filter(|uid| !listed.contains(uid)).map(PodUid).collect();
            let shared = shared.clone();
            // Beside the rest: a driver may take its time to come.
            removing.spawn(async move { remove_orphans(&shared, orphans).await });
        }
        Ok(Err(error)) => tracing::warn!(error = chain(&error), "could not look for volumes that were left behind"),
        Err(error) => tracing::error!(%error, "looking for volumes broke off; this is a bug"),
    }
    remove_logs(&shared, &listed).await;
    removing.join_all().await;
}

/// Removes the logs of pods that the API no longer has.
async fn remove_logs(shared: &Shared, listed: &BTreeSet<String>) {
    let Ok(mut logs) = tokio::fs::read_dir(shared.config.layout.logs()).await else { return };
    while let Ok(Some(entry)) = logs.next_entry().await {
        let name = entry.file_name().to_string_lossy().into_owned();
        // `<namespace>_<pod>_<uid>`; names of namespaces and pods have no underscores.
        let uid = name.rsplit('_').next().unwrap_or_default();
        if name.matches('_').count() == 2
            && !listed.contains(uid)
            && let Err(error) = tokio::fs::remove_dir_all(entry.path()).await
        {
            tracing::warn!(%error, name, "could not remove logs that were left behind");
        }
    }
}

/// Removes pods until all are gone: their volumes' drivers may not be there yet.
async fn remove_orphans(shared: &Arc<Shared>, mut orphans: Vec<PodUid>) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    let mut told = false;
    while !orphans.is_empty() {
        let tried = futures::future::join_all(orphans.iter().map(|uid| remove_orphan(shared, uid))).await;
        let mut left = Vec::new();
        for (uid, done) in orphans.into_iter().zip(tried) {
            let Err(why) = done else { continue };
            match told {
                true => tracing::debug!(why, uid = uid.0, "could not remove what a pod left behind"),
                false => tracing::warn!(why, uid = uid.0, "could not remove what a pod left behind; it is tried again"),
            }
            left.push(uid);
        }
        (orphans, told) = (left, true);
        if !orphans.is_empty() {
            tokio::time::sleep(backoff.delay()).await;
        }
    }
}

/// Removes what is here of one pod.
async fn remove_orphan(shared: &Arc<Shared>, uid: &PodUid) -> Result<(), String> {
    shared.runtime.remove_sandbox(uid).await.map_err(|e| chain(&e))?;
    let (volumes, pod) = (shared.volumes.clone(), uid.0.clone());
    let done = tokio::task::spawn_blocking(move || volumes.tear_down(&pod)).await;
    done.map_err(|e| e.to_string())?.map_err(|e| chain(&e))?;
    attach::release(shared, &uid.0);
    Ok(())
}
