//! Pod volumes: the plugin contract, one file per volume type, resolving API objects to sources, safe sub-paths.
//!
//! Absent on purpose: async, the Kubernetes client, direct kernel calls (everything goes through `sys::Sys`).
pub mod contract;
pub mod error;

pub use contract::*;
pub use error::VolumeError;
