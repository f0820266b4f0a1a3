//! What can go wrong, with the way out.
use std::{io, path::PathBuf};

/// A failure of the pod network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A file of the network's records.
    #[error("{action} {}; check its permissions and free space", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The records cannot be understood.
    #[error("network records {} are damaged; stop all pods, remove the file and start again", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// A request that the kernel refused.
    #[error("{action} {object}")]
    Kernel {
        action: &'static str,
        object: String,
        #[source]
        source: io::Error,
    },
    /// No address left for another pod.
    #[error("no free address in {subnet}: {leases} are in use; delete pods, or start with a larger pod network")]
    Exhausted { subnet: String, leases: usize },
    /// No range is free on this host.
    #[error("no free /24 network in 10.88.0.0/13 on this host; choose one with the pod network option")]
    NoSubnet,
    /// The wished range collides.
    #[error("pod network {subnet} overlaps {other} of this host; choose another one")]
    Overlap { subnet: String, other: String },
    /// Not a usable range.
    #[error("invalid pod network {text:?}: {why}")]
    BadSubnet { text: String, why: &'static str },
    /// Not a usable interface name.
    #[error("invalid bridge name {0:?}: 1 to 15 characters without '/' or white space")]
    BadBridge(String),
    /// Not a pod UID.
    #[error("invalid pod UID {0:?}")]
    BadUid(String),
    /// `forward` before `attach`.
    #[error("pod {0} has no address; attach it first")]
    NotAttached(String),
    /// Another pod or program owns the port.
    #[error("host port {port}/{protocol} is in use by {by}")]
    PortInUse { port: u16, protocol: &'static str, by: String },
    /// Host ports need NAT.
    #[error("host port {port}/{protocol} cannot be forwarded: {why}")]
    NoForward { port: u16, protocol: &'static str, why: String },
    /// The pod's namespace is not there.
    #[error("network namespace {} does not exist", .0.display())]
    NoNetns(PathBuf),
    /// A worker thread died; a bug.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Adds the action and the object to an I/O error.
pub(crate) fn kernel(action: &'static str, object: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let object = object.into();
    move |source| NetworkError::Kernel { action, object, source }
}
