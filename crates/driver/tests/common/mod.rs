//! A driver behind a socket, and the paths that a kubelet would give it.
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use csi::*;
use sys::{Access, Disk, RealSys};
use tokio::sync::oneshot;

pub struct Rig {
    pub controller: ControllerClient,
    pub node: NodeClient,
    dir: tempfile::TempDir,
    _stop: oneshot::Sender<()>,
}

fn mode(mode: Mode) -> Option<AccessMode> {
    Some(AccessMode { mode: mode.into() })
}

pub fn mounted(access: Mode) -> VolumeCapability {
    let mount = MountVolume { fs_type: "ext4".into(), ..Default::default() };
    VolumeCapability { access_type: Some(AccessType::Mount(mount)), access_mode: mode(access) }
}

pub fn block(access: Mode) -> VolumeCapability {
    VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), access_mode: mode(access) }
}

impl Rig {
    /// A driver on a pool of its own, unless there is another.
    pub async fn serving(
        other: Option<std::ffi::OsString>,
        routes: impl FnOnce(Arc<pool::Pool>) -> tonic::service::RoutesBuilder,
    ) -> Self {
        let mut builder = tempfile::Builder::new();
        builder.prefix("holdfast-driver");
        let dir = builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir()).expect("a directory");
        let (stop, stopped) = oneshot::channel::<()>();
        let socket = match other {
            Some(other) => PathBuf::from(other),
            None => {
                let socket = dir.path().join("csi.sock");
                let pool = pool::Pool::open(&dir.path().join("pool"), Arc::new(RealSys)).expect("a pool");
                let routes = routes(Arc::new(pool));
                let listener = Listener::bind(&socket).expect("a socket");
                tokio::spawn(listener.serve(routes, async { drop(stopped.await) }));
                socket
            }
        };
        let driver = Driver::at(&socket, Duration::from_secs(30));
        Self { controller: ControllerClient::new(&driver), node: NodeClient::new(&driver), dir, _stop: stop }
    }

    fn staging(&self, id: &str) -> String {
        self.dir.path().join(format!("staging.{}", id.replace('/', "_"))).to_string_lossy().into_owned()
    }

    fn target(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("target.{name}"))
    }

    pub async fn stage(&self, id: &str, capability: VolumeCapability) -> Result<(), Status> {
        std::fs::create_dir_all(self.staging(id)).expect("a directory");
        let request = NodeStageVolumeRequest {
            volume_id: id.into(),
            staging_target_path: self.staging(id),
            volume_capability: Some(capability),
            ..Default::default()
        };
        self.node.node_stage_volume(request).await.map(drop)
    }

    pub async fn unstage(&self, id: &str) -> Result<(), Status> {
        let request = NodeUnstageVolumeRequest { volume_id: id.into(), staging_target_path: self.staging(id) };
        self.node.node_unstage_volume(request).await.map(drop)
    }

    pub async fn publish(&self, id: &str, name: &str, capability: VolumeCapability) -> Result<PathBuf, Status> {
        let request = NodePublishVolumeRequest {
            volume_id: id.into(),
            staging_target_path: self.staging(id),
            target_path: self.target(name).to_string_lossy().into_owned(),
            volume_capability: Some(capability),
            ..Default::default()
        };
        self.node.node_publish_volume(request).await.map(|_| self.target(name))
    }

    pub async fn unpublish(&self, id: &str, name: &str) -> Result<(), Status> {
        let target_path = self.target(name).to_string_lossy().into_owned();
        self.node
            .node_unpublish_volume(NodeUnpublishVolumeRequest { volume_id: id.into(), target_path })
            .await
            .map(drop)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let entries = |dir: &Path| -> Vec<PathBuf> {
            std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
        };
        let is = |path: &Path, what: &str| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(what));
        // What a failed test left mounted.
        for what in ["target.", "staging."] {
            for path in entries(self.dir.path()).into_iter().filter(|p| is(p, what)) {
                let _ = Command::new("umount").arg("-q").arg(path).status();
            }
        }
        for place in ["volumes", "trash"] {
            for volume in entries(&self.dir.path().join("pool").join(place)) {
                for access in [Access::Write, Access::Read] {
                    if let Ok(Some(device)) = RealSys.attached(&volume.join("image"), access) {
                        let _ = RealSys.detach(&device);
                    }
                }
            }
        }
    }
}
