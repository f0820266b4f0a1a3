//! The control service of Flocker, ClusterHQ's volume manager: its REST API version 1, over TLS with certificates on both
//! sides. Calls block, and end soon after they are cancelled.
//!
//! In: where the service is and the files of one of its API users. Out: datasets as they are to be (configuration) and as
//! they are (state), nodes; a dataset made, moved, deleted.
//! - F1: nothing is sent to a service that does not show a certificate of the cluster for the name that it was asked by.
//! - F2: a call ends within its time, whatever the service does, and within 50 ms of being cancelled.
//!
//! Absent on purpose: Kubernetes, mounts, retries.
//! Source: Flocker 1.15, `flocker.control.httpapi` and `docs/reference/api.rst`; what Kubernetes 1.24 asked, through `flocker-go`.
mod client;

use serde::Deserialize;

pub use client::{Client, Settings};

/// Why the control service did not do what it was asked for. Sentences without a beginning.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} {} cannot be used", path.display())]
    File {
        /// `the certificate of the Flocker cluster`, ...
        what: &'static str,
        path: std::path::PathBuf,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{host:?} is no host name or address of a Flocker control service")]
    Host { host: String },
    #[error("the Flocker control service {at} cannot be asked")]
    Unreachable {
        /// Host and port.
        at: String,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the Flocker control service {at} did not answer within {seconds} s")]
    Late { at: String, seconds: u64 },
    #[error("the Flocker control service {at} answered {method} {path} with {status}: {said}")]
    Refused { at: String, method: &'static str, path: String, status: u16, said: String },
    #[error("the Flocker control service {at} answered {method} {path} with something else than its API says")]
    Answer {
        at: String,
        method: &'static str,
        path: String,
        #[source]
        cause: serde_json::Error,
    },
    /// A machine where nobody has said where a control service is.
    #[error("no Flocker control service is known here")]
    Nobody,
    #[error("it is not wanted any more")]
    Cancelled,
}

impl Error {
    /// Whether the service said that there is such a thing already.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status: 409, .. })
    }
}

/// A dataset as it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Dataset {
    pub dataset_id: String,
    /// UUID of the node that it is to be on.
    #[serde(default)]
    pub primary: Option<String>,
    #[serde(default)]
    pub metadata: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    pub deleted: bool,
}

impl Dataset {
    /// The name that people gave it.
    pub fn name(&self) -> Option<&str> {
        self.metadata.get("name").map(String::as_str)
    }
}

/// A dataset as it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct DatasetState {
    pub dataset_id: String,
    /// UUID of the node that it is on; `None`: of none.
    #[serde(default)]
    pub primary: Option<String>,
    /// Where it is mounted there; `None`: not yet.
    #[serde(default)]
    pub path: Option<String>,
}

/// A node with an agent of Flocker.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NodeState {
    pub uuid: String,
    /// Its IP address.
    pub host: String,
}

/// A dataset to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDataset {
    pub name: String,
    /// UUID of the node that it is to be on.
    pub primary: String,
    pub maximum_bytes: u64,
}

/// A control service. Every call blocks; it ends with [`Error::Cancelled`] once `cancelled` says so, and by itself when
/// it takes too long.
pub trait Control: Send + Sync {
    /// All datasets as they are to be, deleted ones included.
    ///
    /// # Errors
    /// Why it is not known.
    fn datasets(&self, cancelled: &dyn Fn() -> bool) -> Result<Vec<Dataset>, Error>;
    /// All datasets as they are.
    ///
    /// # Errors
    /// Why it is not known.
    fn states(&self, cancelled: &dyn Fn() -> bool) -> Result<Vec<DatasetState>, Error>;
    /// All nodes.
    ///
    /// # Errors
    /// Why it is not known.
    fn nodes(&self, cancelled: &dyn Fn() -> bool) -> Result<Vec<NodeState>, Error>;
    /// Makes a dataset, and gives back what it is to be. It is not there yet.
    ///
    /// # Errors
    /// Also [`Error::is_conflict`].
    fn create(&self, new: &NewDataset, cancelled: &dyn Fn() -> bool) -> Result<Dataset, Error>;
    /// Says that a dataset is to be on a node. It is not there yet.
    ///
    /// # Errors
    /// Why it will not be.
    fn move_to(&self, dataset: &str, node: &str, cancelled: &dyn Fn() -> bool) -> Result<(), Error>;
    /// Says that a dataset is to be no more. One that is not there is fine.
    ///
    /// # Errors
    /// Why it will stay.
    fn delete(&self, dataset: &str, cancelled: &dyn Fn() -> bool) -> Result<(), Error>;
}
