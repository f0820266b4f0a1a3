//! What the administrator of a machine says about its volumes.
use std::path::PathBuf;

/// Settings of plugins. The default is what a kubelet has built in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the drivers of `flexVolume` are, as `<vendor~driver>/<driver>`.
    pub flex_dir: PathBuf,
    /// Drivers of `flexVolume` are told secrets, in their arguments, which every user of the machine can read.
    pub flex_secrets: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { flex_dir: "/usr/libexec/kubernetes/kubelet-plugins/volume/exec".into(), flex_secrets: false }
    }
}
