//! Pod sandboxes and containers: what the node agent asks for, and the embedded implementation.
//!
//! In: [`SandboxSpec`], [`ContainerSpec`] (all names resolved, all volumes already mounted on the host).
//! Out: processes in namespaces and cgroups, their state, their logs in CRI format, exit notices.
//! - R1: containers and their shims outlive the daemon; [`Runtime::list`] after a restart tells everything that is there.
//! - R2: every call is idempotent: repeating one that succeeded, or half-failed, ends in the same state.
//! - R3: removing a sandbox leaves no process, mount, netns, veth, cgroup or directory of it.
//!
//! Absent on purpose: Kubernetes types, restart policy, probes, images' pull policy.
mod bare;
mod caps;
mod cgroup;
pub mod contract;
mod devices;
mod embedded;
mod identity;
mod init;
mod kernel;
mod launch;
mod records;
mod remount;
mod seccomp;
mod shim;
mod wire;

pub use contract::*;
pub use embedded::{Embedded, ImageSource, Options, RunnableImage};
pub use shim::maybe_run_shim;
