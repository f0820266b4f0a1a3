//! The CSI host of one machine: which drivers there are, what they can, and how each is called.
//!
//! Absent on purpose: what is called when, for volumes on this machine (`volumes`, `node`) or as a whole (`controllers`).
mod registry;

pub use registry::{Plugin, Plugins, Registry, RegistryError};
