//! Builders and helpers for tests. Dev-dependency only.
mod fake_driver;
mod fake_target;
pub mod flex;
pub mod flocker;
pub mod git_server;
pub mod gluster;
mod loop_device;
mod mount_namespace;
pub mod plugin_suite;

pub use fake_driver::{DRIVER, FakeDriver};
pub use fake_target::{FakeTarget, TARGET};
pub use loop_device::LoopDevice;
pub use mount_namespace::in_mount_namespace;
