//! Builders and helpers for tests. Dev-dependency only.
mod mount_namespace;
pub mod plugin_suite;

pub use mount_namespace::in_mount_namespace;
