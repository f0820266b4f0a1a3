//! What can go wrong with a volume, said so that the reader knows what to do.
use std::{io, path::PathBuf, time::Duration};

use crate::contract::Next;

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("mount {} failed; the kernel log on this node says why", target.display())]
    Mount {
        target: PathBuf,
        #[source]
        errno: io::Error,
    },
    #[error("unmount {} failed; a process in the pod still holds it open", target.display())]
    Unmount {
        target: PathBuf,
        #[source]
        errno: io::Error,
    },
}

impl VolumeError {
    /// What the caller does next.
    pub fn next(&self) -> Next {
        match self {
            Self::Mount { .. } | Self::Unmount { .. } => Next::Retry { after: Duration::from_millis(500) },
        }
    }
}
