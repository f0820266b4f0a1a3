//! What can go wrong, and what the caller may do about it.
use std::{
    io,
    path::{Path, PathBuf},
};

/// The only thing a caller may branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request makes no sense, now or later.
    Invalid,
    /// There is no such volume or snapshot.
    NotFound,
    /// The name has another volume or snapshot.
    Exists,
    /// Not a size that can be had.
    Size,
    /// No room.
    NoRoom,
    /// The state of the volume does not allow it now.
    State,
    /// Something else is being done with this volume: try again.
    Busy,
    /// The machine failed.
    Machine,
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error("{0}")]
    Invalid(String),
    #[error("there is no {what} {id:?}")]
    NotFound { what: &'static str, id: String },
    #[error("{what} {name:?} exists and differs: {difference}")]
    Exists { what: &'static str, name: String, difference: String },
    #[error("{0}")]
    Size(String),
    #[error("{0}")]
    NoRoom(String),
    #[error("{0}")]
    State(String),
    #[error("{id:?} is busy with an earlier request; it is tried again")]
    Busy { id: String },
    #[error("cannot {action} {}", path.display())]
    Machine {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is damaged: {why}; put it back from a backup, or move it away", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("pool {} is in use by another process; stop that, or choose another pool", .0.display())]
    Locked(PathBuf),
}

impl PoolError {
    /// What the caller may do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Invalid(_) => Kind::Invalid,
            Self::NotFound { .. } => Kind::NotFound,
            Self::Exists { .. } => Kind::Exists,
            Self::Size(_) => Kind::Size,
            Self::NoRoom(_) => Kind::NoRoom,
            Self::State(_) => Kind::State,
            Self::Busy { .. } => Kind::Busy,
            // A full disk is the machine's word for no room.
            Self::Machine { source, .. } if source.kind() == io::ErrorKind::StorageFull => Kind::NoRoom,
            Self::Machine { .. } | Self::Damaged { .. } | Self::Locked(_) => Kind::Machine,
        }
    }
}

/// For `map_err`: names what was tried on what.
pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PoolError {
    let path = path.to_owned();
    move |source| PoolError::Machine { action, path, source }
}
