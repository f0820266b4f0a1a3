//! Volumes in one directory of one machine, each with a size that it cannot outgrow.
//!
//! A pool is a directory; what is in it is all there is to know about it, so that it can be moved, and opened again after a
//! loss of power:
//!
//! ```text
//! volumes/<id>/record.json  image | data/
//! snapshots/<id>/record.json  image | data/
//! trash/<id>.<unix seconds>/    volumes that were deleted, and may come back
//! making/<id>/                  not finished: removed when the pool is opened
//! lock                          held by the process that has the pool
//! ```
//!
//! - P1: a volume is there, whole, or it is not: it is made in `making` and comes to its place by one rename.
//! - P2: deleting is one rename too, into the trash; what is there goes when its time is over or its space is needed.
//! - P3: every operation may be repeated, after a crash at any point, and then finishes what was begun.
//! - P4: the sizes of all volumes together never exceed the room of the pool, unless a volume was made to share it.
//!
//! Absent on purpose: Kubernetes, CSI, async.
mod backend;
mod error;
mod format;
mod pool;
mod publish;
mod record;
mod room;
mod snapshots;
mod stage;
mod transfer;
mod trash;
mod use_as;

pub use error::{Kind, PoolError};
pub use pool::{Kernel, NewVolume, Pool};
pub use publish::Publish;
pub use record::{Backend, Content, Id, Limit, Origin, Snapshot, Volume};
pub use snapshots::NewSnapshot;
pub use stage::{Health, Stage, Usage};
pub use transfer::Progress;
pub use trash::Trashed;
