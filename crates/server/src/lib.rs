//! The API server: verbs, patches, watch, discovery, OpenAPI, tables, authentication, admission; all driven by `api::KINDS`.
//!
//! Absent on purpose: containers, mounts, any knowledge of how a node does its work.
pub mod nodes;
