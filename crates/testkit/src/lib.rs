//! Builders and helpers for tests. Dev-dependency only.
mod loop_device;
mod mount_namespace;
pub mod plugin_suite;

pub use loop_device::LoopDevice;
pub use mount_namespace::in_mount_namespace;
