//! The node agent: one worker per pod, probes, status, volumes, and the node's own HTTP endpoints.
//!
//! A client of the Kubernetes API and of `runtime`/`volumes`; never touches the store.
mod core;
mod quantity;
mod spec;
