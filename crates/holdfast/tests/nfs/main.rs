//! Volumes of an NFS server, against nfs-ganesha.
#[path = "../common/mod.rs"]
mod common;

mod client;
mod pods;
mod server;
