//! The embedded runtime: no other program than our own binary, no state that is not on disk or in the kernel.
mod client;
mod containers;
mod images;
mod plan;
mod probe;
mod sandbox;
mod session;
mod state;

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use network::Network;
use parking_lot::Mutex;
use tokio::{
    net::TcpStream,
    sync::{RwLock, broadcast, watch},
};

pub use self::images::{ImageSource, RunnableImage};
use self::{
    client::ShimConnection,
    state::{SandboxRecord, is_container_id, is_plain_name, names},
};
use crate::{
    bare::Bare,
    cgroup::Cgroups,
    contract::{
        ContainerId, ContainerSpec, ExecOutput, ExecSpec, ImageInfo, ImageLayers, Mount, PodUid, RegistryAuth,
        Resources, Runtime, RuntimeError, RuntimeEvent, SandboxSpec, SandboxStatus, Session, Usage,
    },
    launch::UPPER,
    records,
};

/// What [`Embedded::open`] needs.
pub struct Options {
    /// Directory of the runtime's own records and writable layers: `Layout::runtime()`.
    pub dir: PathBuf,
    pub images: Arc<dyn ImageSource>,
    pub network: Arc<Network>,
    /// Name of the cgroup above all pods of this instance, one path component; instances on one machine differ in it.
    pub cgroup_root: String,
    /// A program whose `main` begins with [`crate::maybe_run_shim`]; usually the daemon's own file.
    pub self_exe: PathBuf,
}

/// The embedded implementation of [`Runtime`]. Cheap to clone.
#[derive(Clone)]
pub struct Embedded {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    images: Arc<dyn ImageSource>,
    network: Arc<Network>,
    cgroup_root: String,
    exe: PathBuf,
    cgroups: Cgroups,
    bare: Bare,
    boot: String,
    events: broadcast::Sender<RuntimeEvent>,
    /// One lock per pod: sandboxes change under the writing side, containers are made under the reading side.
    locks: Mutex<HashMap<PodUid, Weak<RwLock<()>>>>,
    creating: Mutex<HashSet<ContainerId>>,
    /// Becomes true when a followed container has ended.
    watched: Mutex<HashMap<ContainerId, watch::Receiver<bool>>>,
}

impl Embedded {
    /// Opens the runtime's directory and adopts what runs.
    pub async fn open(options: Options) -> Result<Self, RuntimeError> {
        if !is_plain_name(&options.cgroup_root) {
            return Err(RuntimeError::Other(format!("{:?} cannot be a cgroup's name", options.cgroup_root)));
        }
        for dir in ["pods", "containers"].map(|name| options.dir.join(name)) {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(&dir).map_err(io_error(format!("make {}", dir.display())))?;
        }
        let bare = Bare::make(&options.dir).map_err(io_error("make a mount namespace for containers to begin with"))?;
        let inner = Arc::new(Inner {
            boot: records::boot_id(&options.dir).map_err(io_error("read this boot's ID"))?,
            dir: options.dir,
            images: options.images,
            network: options.network,
            cgroup_root: options.cgroup_root,
            exe: options.self_exe,
            bare,
            cgroups: Cgroups::detect().map_err(io_error("find out about cgroups"))?,
            events: broadcast::channel(1024).0,
            locks: Mutex::default(),
            creating: Mutex::default(),
            watched: Mutex::default(),
        });
        probe::overlay(&inner.dir)?;
        let way_out =
            "make the cgroups of this instance; /sys/fs/cgroup must be writable (in a container: run it privileged)";
        inner.cgroups.create(&inner.cgroup_root, &Resources::default()).map_err(io_error(way_out))?;
        inner.adopt().await?;
        Ok(Self { inner })
    }

    /// Ids of the images that containers were made from: garbage collection must keep them.
    pub async fn images_in_use(&self) -> Result<HashSet<String>, RuntimeError> {
        let inner = self.inner.clone();
        let found = tokio::task::spawn_blocking(move || inner.read_containers()).await;
        let found = found.map_err(|e| RuntimeError::Other(e.to_string()))?.map_err(io_error("list containers"))?;
        Ok(found.into_iter().map(|f| f.record.image_config).collect())
    }

    /// Removes every sandbox and the instance's cgroup: for throw-away instances.
    pub async fn remove_all(&self) -> Result<(), RuntimeError> {
        for uid in names(&self.inner.pods_dir()).map_err(io_error("list pods"))? {
            self.remove_sandbox(&PodUid(uid)).await?;
        }
        for id in names(&self.inner.containers_dir()).map_err(io_error("list containers"))? {
            self.remove(&ContainerId(id)).await?;
        }
        let (cgroups, root) = (self.inner.cgroups.clone(), self.inner.cgroup_root.clone());
        let removed = tokio::task::spawn_blocking(move || cgroups.remove(&root)).await;
        removed.map_err(|e| RuntimeError::Other(e.to_string()))?.map_err(io_error("remove the instance's cgroup"))
    }
}

impl Inner {
    fn pods_dir(&self) -> PathBuf {
        self.dir.join("pods")
    }
    fn containers_dir(&self) -> PathBuf {
        self.dir.join("containers")
    }
    fn pod_dir(&self, uid: &PodUid) -> PathBuf {
        self.pods_dir().join(&uid.0)
    }
    fn container_dir(&self, id: &ContainerId) -> PathBuf {
        self.containers_dir().join(&id.0)
    }
    fn pod_group(&self, uid: &PodUid) -> String {
        format!("{}/pod{}", self.cgroup_root, uid.0)
    }

    fn lock(&self, uid: &PodUid) -> Arc<RwLock<()>> {
        let mut locks = self.locks.lock();
        locks.retain(|_, weak| weak.strong_count() > 0);
        if let Some(lock) = locks.get(uid).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(RwLock::new(()));
        locks.insert(uid.clone(), Arc::downgrade(&lock));
        lock
    }

    fn announce(&self, pod: &PodUid, id: &ContainerId) {
        // Nobody listening is fine.
        let _ = self.events.send(RuntimeEvent { pod: pod.clone(), container: Some(id.clone()) });
    }

    /// Follows live containers again, ends those whose shim died, removes wrecks without a record.
    async fn adopt(self: &Arc<Self>) -> Result<(), RuntimeError> {
        for found in self.read_containers().map_err(io_error("list containers"))? {
            let record = &found.record;
            if found.exit.is_some() || record.boot != self.boot {
                continue;
            }
            let dir = self.container_dir(&record.id);
            match ShimConnection::connect(&dir).await {
                Ok(Some(connection)) => self.watch(record, connection),
                Ok(None) => {
                    tracing::warn!(
                        container = record.id.0,
                        name = record.spec.name,
                        "found a container without its shim"
                    );
                    let (cgroups, group) = (self.cgroups.clone(), record.cgroup.clone());
                    let removed = tokio::task::spawn_blocking(move || cgroups.remove(&group)).await;
                    if let Ok(Err(error)) = removed {
                        tracing::warn!(container = record.id.0, %error, "its processes cannot be ended");
                    }
                }
                Err(error) => tracing::warn!(container = record.id.0, %error, "cannot reach a container's shim"),
            }
        }
        for name in names(&self.containers_dir()).map_err(io_error("list containers"))? {
            let dir = self.containers_dir().join(&name);
            if !is_container_id(&name) || !dir.join(records::CONTAINER).exists() {
                fs::remove_dir_all(&dir).map_err(io_error(format!("remove {}", dir.display())))?;
            }
        }
        for name in names(&self.pods_dir()).map_err(io_error("list pods"))? {
            let uid = PodUid(name);
            let record = records::read::<SandboxRecord>(&self.pod_dir(&uid).join(records::SANDBOX));
            if matches!(record, Ok(None)) {
                self.unmake_sandbox(&uid).await?;
            }
        }
        Ok(())
    }

    /// Reads records off the async threads.
    async fn sandboxes(self: &Arc<Self>, only: Option<PodUid>) -> Result<Vec<SandboxStatus>, RuntimeError> {
        let inner = self.clone();
        let work = tokio::task::spawn_blocking(move || inner.read_sandboxes(only.as_ref()));
        work.await.map_err(|e| RuntimeError::Other(e.to_string()))?.map_err(io_error("read the runtime's records"))
    }
}

#[async_trait]
impl Runtime for Embedded {
    async fn run_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxStatus, RuntimeError> {
        let lock = self.inner.lock(&spec.uid);
        let _writing = lock.write().await;
        self.inner.make_sandbox(spec).await?;
        let made = self.inner.sandboxes(Some(spec.uid.clone())).await?;
        made.into_iter().next().ok_or_else(|| RuntimeError::NoSandbox(spec.uid.0.clone()))
    }

    async fn remove_sandbox(&self, uid: &PodUid) -> Result<(), RuntimeError> {
        let lock = self.inner.lock(uid);
        let _writing = lock.write().await;
        self.inner.unmake_sandbox(uid).await
    }

    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        self.inner.sandboxes(None).await
    }

    async fn status(&self, uid: &PodUid) -> Result<Option<SandboxStatus>, RuntimeError> {
        if !is_plain_name(&uid.0) {
            return Ok(None);
        }
        Ok(self.inner.sandboxes(Some(uid.clone())).await?.into_iter().next())
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.inner.events.subscribe()
    }

    async fn image(&self, name: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        self.inner.images.info(name).await
    }

    async fn image_layers(&self, name: &str) -> Result<Option<ImageLayers>, RuntimeError> {
        let found = self.inner.images.runnable(name).await?;
        Ok(found.map(|image| ImageLayers { id: image.id, layers: image.layers }))
    }

    async fn may_use(&self, name: &str, auth: &RegistryAuth) -> Result<bool, RuntimeError> {
        self.inner.images.may_use(name, auth).await
    }

    async fn pull(&self, name: &str, auth: &RegistryAuth) -> Result<ImageInfo, RuntimeError> {
        self.inner.images.pull(name, auth).await
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        self.inner.images.list().await
    }

    async fn create(&self, pod: &PodUid, spec: &ContainerSpec) -> Result<ContainerId, RuntimeError> {
        let lock = self.inner.lock(pod);
        let _reading = lock.read().await;
        self.inner.create_container(pod, spec).await
    }

    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.inner.start_container(id).await
    }

    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        match self.inner.stop_container(id, grace).await {
            // Gone is as stopped as can be.
            Err(RuntimeError::NoContainer(_)) => Ok(()),
            other => other,
        }
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        if !is_container_id(&id.0) {
            return Ok(());
        }
        self.inner.remove_container(id).await
    }

    async fn remount(&self, id: &ContainerId, mounts: &[Mount]) -> Result<(), RuntimeError> {
        self.inner.remount(id, mounts.to_vec()).await
    }

    async fn exec(&self, id: &ContainerId, spec: &ExecSpec) -> Result<Session, RuntimeError> {
        self.inner.exec(id, spec).await
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        self.inner.exec_sync(id, command, timeout).await
    }

    async fn attach(&self, id: &ContainerId, stdin: bool) -> Result<Session, RuntimeError> {
        self.inner.attach(id, stdin).await
    }

    async fn dial(&self, uid: &PodUid, port: u16) -> Result<TcpStream, RuntimeError> {
        let status = self.status(uid).await?.ok_or_else(|| RuntimeError::NoSandbox(uid.0.clone()))?;
        let netns = (!status.spec.host_network).then(|| self.inner.pod_dir(uid).join("net"));
        network::dial(netns.as_deref(), port)
            .await
            .map_err(io_error(format!("failed to connect to localhost:{port} inside pod {}", uid.0)))
    }

    async fn reopen_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.inner.reopen(id).await
    }

    fn writable_layer(&self, id: &ContainerId) -> Option<PathBuf> {
        Some(self.inner.container_dir(id).join(UPPER))
    }

    async fn usage(&self, id: &ContainerId) -> Result<Usage, RuntimeError> {
        let (found, _) = self.inner.running(id)?;
        self.inner.cgroups.usage(&found.record.cgroup).map_err(io_error(format!("read usage of container {}", id.0)))
    }
}

/// Wraps an I/O error with what was being done.
fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> RuntimeError {
    let action = action.into();
    move |source| RuntimeError::Io { action, source }
}
