//! The kernel boundary: mounts, `openat2`, fd-based removal; `RealSys` and a `FakeSys` with a real mount table.
//!
//! The only crate of the workspace (besides container start-up in `runtime`) where `unsafe` may appear.

/// The one door to the kernel.
pub trait Sys: Send + Sync {}
