//! The wire formats of exec, attach and port-forward: WebSocket (`v5.channel.k8s.io`, `v4.channel.k8s.io`,
//! `SPDY/3.1+portforward.k8s.io`) and SPDY/3.1, behind one set of byte streams.
//!
//! Absent on purpose: pods, containers, processes.
pub mod contract;

pub use contract::*;
