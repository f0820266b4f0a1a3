//! Block devices whose size a test chooses.
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

/// A loop device on a file; it goes when dropped, or as soon as its last mount does.
pub struct LoopDevice {
    file: File,
    path: PathBuf,
}

fn losetup(arguments: &[&str]) -> String {
    let ran = Command::new("losetup").args(arguments).output().expect("these tests need losetup");
    assert!(ran.status.success(), "losetup {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8_lossy(&ran.stdout).trim().to_owned()
}

impl LoopDevice {
    /// An empty device, on a new file in `dir`. Needs root.
    pub fn empty(dir: &Path, bytes: u64) -> Self {
        let (file, backing) = tempfile::Builder::new()
            .prefix("disk")
            .tempfile_in(dir)
            .and_then(|f| f.keep().map_err(Into::into))
            .expect("make the file behind a loop device");
        file.set_len(bytes).expect("give a loop device its size");
        let name = losetup(&["--find", "--show", backing.to_str().expect("UTF-8")]);
        Self { file, path: PathBuf::from(name) }
    }

    /// `/dev/loop5`
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the device another size.
    pub fn resize(&self, bytes: u64) {
        self.file.set_len(bytes).expect("give a loop device another size");
        losetup(&["--set-capacity", &self.path.to_string_lossy()]);
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}
