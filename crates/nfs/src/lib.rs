//! NFS without a kernel that has a client for it: version 3 over TCP, as a FUSE filesystem of a process of its own.
//!
//! In: a server, a path, mount options. Out: an [`Export`] ([`resolve`], [`find`]), and a process that serves it on a
//! connection to the kernel that somebody mounted ([`arguments`], [`maybe_serve`]). What is told to a kernel that has a
//! client is here too ([`Options::kernel_tries`]).
//! - N1: a process that is killed never waits for the server; one that is not waits as long as it takes (`hard`). (end-to-end test)
//! - N2: what was synced, or closed without an error, is on the server's disk, whatever became of the server meanwhile. (end-to-end test)
//! - N3: what another client wrote and closed is seen by who opens the file afterwards. (end-to-end test)
//! - N4: the server decides what is allowed, by the user, group and groups of the process that asks. (end-to-end test)
//!
//! Absent on purpose: Kubernetes' words, mounting, locks on the server (they are the mount's own).
//! Source: RFC 1813, RFC 1833, RFC 4506, RFC 5531.
mod find;
mod fs;
mod options;
mod proto;
mod rpc;
mod serve;
mod services;
mod xdr;

pub use find::{Export, FindError, GiveUp, find, keeps_locks, reach, resolve};
pub use options::{OptionError, Options, Version};
pub use serve::{ATTENDANT, arguments, maybe_serve};
