//! The driver `local.csi.holdfast`: a pool of volumes behind the Container Storage Interface. One process serves the
//! controller and the node of one machine; volumes are reached from that machine only, which their topology says.
//!
//! Absent on purpose: Kubernetes' objects, how a volume is kept (`pool`), bytes on the wire (`csi`).
pub mod admin;
mod capability;
mod controller;
mod identity;
mod node;
mod parameters;
pub mod stand_in;

use std::{collections::BTreeMap, sync::Arc};

use csi::{Status, Topology};
use pool::{Id, Kind, Pool, PoolError};
use tonic::service::RoutesBuilder;

/// Name of the driver, as CSIDriver objects and classes say it.
pub const NAME: &str = "local.csi.holdfast";
/// The label of a node by which volumes say where they are.
pub const TOPOLOGY_KEY: &str = "topology.local.csi.holdfast/node";

/// The driver of one machine.
#[derive(Clone)]
pub struct Driver {
    pool: Arc<Pool>,
    node: String,
    grows_on_node: bool,
}

impl Driver {
    /// A driver for `pool` on the machine that is called `node`.
    pub fn new(pool: Arc<Pool>, node: impl Into<String>) -> Self {
        Self { pool, node: node.into(), grows_on_node: false }
    }

    /// Lets the node's call enlarge volumes, and offers the controller's no more: where one resizer serves many machines, it
    /// cannot call the driver of the right one.
    #[must_use]
    pub fn growing_on_node(self) -> Self {
        Self { grows_on_node: true, ..self }
    }

    /// The driver's services, for [`csi::Listener::serve`].
    pub fn routes(&self) -> RoutesBuilder {
        routes_of(self.clone())
    }

    fn topology(&self) -> Topology {
        Topology { segments: BTreeMap::from([(TOPOLOGY_KEY.to_owned(), self.node.clone())]) }
    }

    /// Does something with the pool, which waits for disks, off the threads that serve.
    async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Pool) -> Result<T, PoolError> + Send + 'static,
    ) -> Result<T, Status> {
        let pool = self.pool.clone();
        let ended = tokio::task::spawn_blocking(move || act(&pool)).await;
        ended.map_err(|e| Status::internal(format!("a request ended early: {e}")))?.map_err(|e| status(&e))
    }
}

/// All three services of a driver.
fn routes_of(driver: impl csi::Identity + csi::Controller + csi::Node) -> RoutesBuilder {
    let driver = Arc::new(driver);
    let mut routes = RoutesBuilder::default();
    routes.add_service(csi::IdentityServer(driver.clone()));
    routes.add_service(csi::ControllerServer(driver.clone()));
    routes.add_service(csi::NodeServer(driver));
    routes
}

/// A pool's error in CSI's words.
fn status(error: &PoolError) -> Status {
    let text = base::chain(error);
    match error.kind() {
        Kind::Invalid => Status::invalid_argument(text),
        Kind::NotFound => Status::not_found(text),
        Kind::Exists => Status::already_exists(text),
        Kind::Size => Status::out_of_range(text),
        Kind::NoRoom => Status::resource_exhausted(text),
        Kind::State => Status::failed_precondition(text),
        Kind::Busy => Status::aborted(text),
        Kind::Machine => {
            tracing::error!(error = text, "a request failed");
            Status::internal(text)
        }
    }
}

fn required<'a>(what: &str, value: &'a str) -> Result<&'a str, Status> {
    if value.is_empty() { Err(Status::invalid_argument(format!("{what} is missing"))) } else { Ok(value) }
}

/// A number as the messages have it.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The volume that a request names. An id that none of ours can have names none.
fn volume_id(text: &str) -> Result<Id, Status> {
    let text = required("volume_id", text)?;
    Id::parse(text).ok_or_else(|| Status::not_found(format!("there is no volume {text:?}")))
}
