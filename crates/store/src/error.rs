//! What can go wrong, and the way out.
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::Revision;

/// Why the store did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The object is not in the state that the write expected. What was found is visible to readers by now.
    #[error("write {key}: expected another revision than {found:?}; read it again and retry")]
    Conflict { key: String, found: Option<Revision> },
    /// The history needed for this is gone; list again and watch from there.
    #[error("revision {asked} is too old: history starts at {oldest}; list again")]
    Expired { asked: Revision, oldest: Revision },
    /// The revision asked for has not been reached.
    #[error("revision {asked} is in the future: the store is at {current}")]
    Future { asked: Revision, current: Revision },
    /// Another process has the directory open.
    #[error("{} is in use by {}; stop it or choose another data directory", dir.display(), holder(*.pid))]
    Locked { dir: PathBuf, pid: Option<u32> },
    /// Data that was acknowledged once cannot be read. Nothing was changed on disk.
    #[error(
        "{file} is corrupt at byte {offset}: {what}; restore the data directory from a copy, or choose another one"
    )]
    Corrupt { file: String, offset: u64, what: &'static str },
    /// A file of a format that this program does not know. Nothing was changed on disk.
    #[error(
        "{file} was written by another version of this program; start that version, or choose another data directory"
    )]
    OtherVersion { file: String },
    /// An input or output error; the store still works.
    #[error("{action} in the store's directory; check its free space and permissions")]
    Io {
        action: String,
        #[source]
        source: Arc<io::Error>,
    },
    /// Data could not be made durable: the store takes no more writes until it is opened again.
    #[error("the store stopped taking writes after a failed sync; check the disk and restart")]
    Failed {
        #[source]
        source: Arc<io::Error>,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"))
}

impl StoreError {
    /// With the file's whole path.
    pub(crate) fn in_dir(mut self, dir: &Path) -> Self {
        if let Self::Corrupt { file, .. } | Self::OtherVersion { file } = &mut self {
            *file = dir.join(&*file).display().to_string();
        }
        self
    }

    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |e| Self::Io { action, source: Arc::new(e) }
    }
}
