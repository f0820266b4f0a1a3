//! Versioned objects in one data directory: a global revision, conditional writes, gap-free watches.
//!
//! In: keys (`/group/resource/namespace/name`), bytes, an expectation. Out: revisions, pages, events.
//! - S1: a write is acknowledged, and visible to any reader or watcher, only once it is durable (fsync). (crash test)
//! - S2: revisions grow by one per write; two writes never share one. (property)
//! - S3: a watch from revision r yields every later change under its prefix once and in order, or fails with
//!   [`StoreError::Expired`]; never a gap. (model test)
//! - S4: a torn or corrupt log tail loses only what was never acknowledged; corruption before the tail refuses to open.
//!
//! Absent on purpose: Kubernetes kinds, JSON, HTTP.
mod disk;
mod error;
mod log;
mod recover;
mod snapshot;
mod state;
mod store;
#[cfg(test)]
mod tests;
mod watch;

use std::sync::Arc;

use bytes::Bytes;

pub use error::StoreError;
pub use store::{Options, Store};
pub use watch::Watch;

/// The global version of the store: 1 for an empty one, +1 per write.
pub type Revision = u64;

/// One object at one revision. `F` (facets) is what the owner of the store derives once from the bytes to filter by.
#[derive(Debug)]
pub struct Record<F> {
    pub key: Arc<str>,
    /// Revision of the write that produced `value`.
    pub revision: Revision,
    pub value: Bytes,
    pub facets: F,
}

/// What a conditional write expects to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Absent,
    At(Revision),
}

/// A consistent page of a listing.
#[derive(Debug)]
pub struct Page<F> {
    /// Store revision the page was read at.
    pub revision: Revision,
    pub records: Vec<Arc<Record<F>>>,
    /// How many further records match after the last one.
    pub remaining: usize,
}

/// One change, as seen by a watch.
#[derive(Debug)]
pub struct Event<F> {
    pub revision: Revision,
    /// The new state; for a deletion the last state, re-encoded with the deletion's revision.
    pub record: Arc<Record<F>>,
    /// The state before; `None` for a creation.
    pub previous: Option<Arc<Record<F>>>,
    pub deleted: bool,
}

/// What a store holds besides its objects, and how its disk does.
#[derive(Debug, Clone)]
pub struct Stats {
    /// The newest durable revision.
    pub revision: Revision,
    /// The oldest revision that a watch can start from.
    pub oldest: Revision,
    /// Changes kept for watches, and their bytes.
    pub history_events: u64,
    pub history_bytes: u64,
    pub watches: u64,
    /// Length of the log that is written to.
    pub log_bytes: u64,
    /// Time to write a batch and sync it.
    pub syncs: base::Histogram,
}
