//! What the administrator of a machine says about its volumes.
use std::{ffi::OsString, path::PathBuf, time::Duration};

/// Settings of plugins. The default is what a kubelet has built in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the drivers of `flexVolume` are, as `<vendor~driver>/<driver>`.
    pub flex_dir: PathBuf,
    /// Drivers of `flexVolume` are told secrets, in their arguments, which every user of the machine can read.
    pub flex_secrets: bool,
    /// The client program of GlusterFS; `None`: it is looked for where distributions put it.
    pub glusterfs_client: Option<PathBuf>,
    /// How long unmounting may wait for a server, with what is not yet written, or for those who are just asking it something,
    /// before these are told that it is not there.
    pub last_writes: Duration,
    /// The IP addresses of this node, by which other systems know it.
    pub addresses: Vec<String>,
    /// The most that a dataset of Flocker holds that is made for a volume, in bytes; `None`: none is made.
    pub flocker_create_bytes: Option<u64>,
    /// Directories of the machine whose repositories `gitRepo` volumes may have.
    pub git_dirs: Vec<PathBuf>,
    /// What the process that clones repositories has as its environment: where certificates and proxies are.
    pub git_environment: Vec<(OsString, OsString)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            flex_dir: "/usr/libexec/kubernetes/kubelet-plugins/volume/exec".into(),
            flex_secrets: false,
            glusterfs_client: None,
            last_writes: Duration::from_secs(10),
            addresses: Vec::new(),
            flocker_create_bytes: None,
            git_dirs: Vec::new(),
            git_environment: Vec::new(),
        }
    }
}
