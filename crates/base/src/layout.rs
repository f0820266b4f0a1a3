//! Where things lie below one data directory. Two instances never share one.
use std::path::{Path, PathBuf};

/// The data directory and the paths below it. Names here are on-disk format: never change one after release.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    kubelet: PathBuf,
}

impl Layout {
    /// Paths below `root` (made absolute by the caller).
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self { kubelet: root.join("kubelet"), root }
    }
    /// The same with what a kubelet keeps in a directory of its own elsewhere (an absolute path).
    pub fn with_kubelet(self, kubelet: impl Into<PathBuf>) -> Self {
        Self { kubelet: kubelet.into(), ..self }
    }
    /// The data directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// The object store's log and snapshots.
    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }
    /// Certificate authority, serving and client certificates, service account signing key.
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }
    /// The administrator's kubeconfig.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.root.join("admin.kubeconfig")
    }
    /// Image blobs, unpacked layers and their records.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }
    /// Sandboxes, containers and their shims' state; survives the daemon, not a reboot.
    pub fn runtime(&self) -> PathBuf {
        self.root.join("runtime")
    }
    /// What lies where a kubelet has it, below the directory that drivers of volumes are told: pods, `plugins`,
    /// `plugins_registry`.
    pub fn kubelet(&self) -> &Path {
        &self.kubelet
    }
    /// Pod directories by UID: volumes, hosts file, termination messages.
    pub fn pods(&self) -> PathBuf {
        self.kubelet.join("pods")
    }
    /// Container logs: `<namespace>_<pod>_<uid>/<container>/<restart>.log`.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }
    /// Volumes, snapshots and deleted volumes of the built-in driver.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }
    /// Disks of a cloud that this machine stands in for.
    pub fn stand_in(&self, word: &str) -> PathBuf {
        self.root.join("stand-ins").join(word)
    }
    /// Where a driver that this program brings along listens.
    pub fn driver_socket(&self, driver: &str) -> PathBuf {
        self.kubelet().join("plugins").join(driver).join("csi.sock")
    }
    /// Bridge name, subnet and address leases of the pod network.
    pub fn network(&self) -> PathBuf {
        self.root.join("network")
    }
}
