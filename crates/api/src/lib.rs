//! Kubernetes API types: the table of kinds, schemas, defaulting, validation with field paths, quantities, selectors, columns.
//!
//! Absent on purpose: HTTP, storage, async.
pub mod age;
pub mod contract;
pub mod field;
pub mod kinds;
pub mod openapi;
pub mod schema;
pub mod strategic;
pub mod typed;
pub mod types;

pub use contract::*;
pub use kinds::{KINDS, by_kind, find};
