//! The wire formats of exec, attach and port-forward: WebSocket (`v5.channel.k8s.io`, `v4.channel.k8s.io`,
//! `SPDY/3.1+portforward.k8s.io`) and SPDY/3.1, behind one set of byte streams.
//!
//! [`exec`] and [`port_forward`] take the request of a client that wants to upgrade its connection. They give the answer
//! to send, and a future that yields the client's streams once the connection is upgraded. They must be called within
//! a tokio runtime; what serves a connection ends when the client leaves or the session is over.
//!
//! Absent on purpose: pods, containers, processes.
pub mod contract;
mod error;
mod exec;
mod forward;
mod handshake;
mod packing;
mod spdy;
mod tunnel;

pub use contract::*;
pub use error::StreamError;
pub use exec::{Opening, exec};
pub use forward::{ForwardsOpening, port_forward};

#[cfg(test)]
mod tests;
