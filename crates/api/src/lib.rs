//! Kubernetes API types: the table of kinds, schemas, defaulting, validation with field paths, quantities, selectors, columns.
//!
//! Absent on purpose: HTTP, storage, async.
pub mod contract;

pub use contract::*;
