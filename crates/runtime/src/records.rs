//! The files of the runtime's directory, and how they are written so that a crash leaves the old or the new content.
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

/// A pod's record.
pub(crate) const SANDBOX: &str = "sandbox.json";
/// A container's record, written before anything else of it exists.
pub(crate) const CONTAINER: &str = "container.json";
/// What the shim is to make.
pub(crate) const LAUNCH: &str = "launch.json";
/// Processes of a made container.
pub(crate) const STATE: &str = "state.json";
/// How it ended.
pub(crate) const EXIT: &str = "exit.json";
/// The shim's socket.
pub(crate) const SOCKET: &str = "shim.sock";
/// The shim's complaints.
pub(crate) const SHIM_LOG: &str = "shim.log";

/// Replaces `path` atomically; with `durable`, the content is on disk when this returns.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T, durable: bool) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let context = |e: io::Error| io::Error::new(e.kind(), format!("write {}: {e}", path.display()));
    // A container's environment may have secrets.
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary);
    let mut file = opened.map_err(context)?;
    file.write_all(&serde_json::to_vec(value)?).map_err(context)?;
    if durable {
        file.sync_data().map_err(context)?;
    }
    fs::rename(&temporary, path).map_err(context)
}

/// Reads a record; `None` if there is none.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let text = match fs::read(path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(io::Error::new(e.kind(), format!("read {}: {e}", path.display()))),
        Ok(text) => text,
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("read {}: {e}", path.display())))
}

/// A short path to `name` in an open directory: Unix socket addresses have at most 107 bytes.
pub(crate) fn short_path(dir: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

/// Tells records of what is in the kernel from those of an earlier boot of the machine, and from those in a copy of
/// `dir`, whose processes belong to the original.
pub(crate) fn boot_id(dir: &Path) -> io::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(format!("{}/{}", boot.trim(), fs::metadata(dir)?.ino()))
}
