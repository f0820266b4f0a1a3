//! The node agent: one worker per pod, probes, status, volumes, and the node's own HTTP endpoints.
//!
//! A client of the Kubernetes API and of `runtime`/`volumes`; never touches the store. What happens next is decided by
//! pure functions in `core` (no clock, no I/O); `spec` turns a pod into what the runtime is asked for (pure as well);
//! `agent` does. Dropping the node leaves all containers running; the next process adopts them.
mod agent;
mod core;
mod http_api;
mod logs;
mod machine;
mod node;
mod register;
mod spec;

pub use agent::{csi::calls::CsiDrivers, holders::RwoScope};
pub use node::{Config, Node, NodeError};
pub use spec::dns::ClusterDns;
