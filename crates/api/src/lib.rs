//! Kubernetes API types: the table of kinds, schemas, defaulting, validation with field paths, quantities, selectors, columns.
//!
//! Absent on purpose: HTTP, storage, async.
pub mod age;
pub mod certificate;
mod check;
pub mod contract;
pub mod downward;
pub mod field;
pub mod growth;
pub mod kinds;
pub mod limit_range;
pub mod meta;
pub mod names;
pub mod openapi;
pub mod pod;
pub mod quantity;
pub mod quota;
pub mod reclaim;
pub mod schema;
pub mod select;
pub mod selector;
pub mod snapshot;
pub mod strategic;
pub mod typed;
pub mod types;

pub use contract::*;
pub use kinds::{KINDS, by_kind, find};
pub use meta::{validate_metadata, validate_metadata_update};
pub use quantity::Quantity;

#[cfg(test)]
mod cases;
