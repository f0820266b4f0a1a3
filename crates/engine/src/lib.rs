//! Runs controllers: caches on a `kube` client, a key queue with back-off, performing actions, recording Events.
//!
//! One task per kind lists and watches into the [`controllers::World`]; each change names keys; each key that is due
//! has one task that decides, performs the one action, puts its result into the world, and decides again until there
//! is nothing left to do.
//! - One step at a time per controller and key; steps of different keys run side by side, except those that take
//!   something which several keys want.
//! - Nothing is decided before every kind was listed once.
//! - A conflict is no error: it means decide again. Other errors back off, per key, up to a cap.
//! - What an action wrote is in the world before its key is decided again.
//!
//! Absent on purpose: rules about claims, pods or volumes (see `controllers`).
mod act;
mod cache;
mod drive;
mod notes;
mod queue;
mod wire;

use std::{future::Future, sync::Arc};

use controllers::CONTROLLERS;
use kube::Client;
use tokio::{sync::watch, task::JoinSet};

pub use queue::Stats;

/// What the controllers are told besides what they see.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// PEM of the certificates that pods trust the API server by.
    pub root_ca: Option<Arc<str>>,
    /// The storage drivers that may be called; there are none at first.
    pub drivers: host::Registry,
}

/// Why something did not work; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("read a {kind} from the API server; are both of the same version?")]
    Read {
        kind: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("{what}")]
    Request {
        what: String,
        #[source]
        source: kube::Error,
    },
    #[error("watch {kind}: the stream broke")]
    Stream {
        kind: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("watch {kind}: {message}")]
    Watch { kind: &'static str, code: u16, message: String },
    /// A panic, whose words are on standard error.
    #[error("a fault in holdfast itself; please report it")]
    Fault,
}

impl EngineError {
    /// HTTP status of the answer, if there was one.
    fn code(&self) -> Option<u16> {
        match self {
            Self::Request { source: kube::Error::Api(status), .. } => Some(status.code),
            Self::Watch { code, .. } => Some(*code),
            _ => None,
        }
    }
    /// The server's sentence, where it refused for good and not because it was busy.
    fn refusal(&self) -> Option<&str> {
        match self {
            Self::Request { source: kube::Error::Api(status), .. } if (400..500).contains(&status.code) => {
                Some(&status.message)
            }
            _ => None,
        }
    }
    /// Reason in the answer: `AlreadyExists`, `Conflict`, ...
    fn reason(&self) -> &str {
        match self {
            Self::Request { source: kube::Error::Api(status), .. } => &status.reason,
            _ => "",
        }
    }
}

/// All controllers on one client.
pub struct Engine {
    core: Arc<queue::Core>,
}

impl Engine {
    pub fn new(client: Client, settings: Settings) -> Self {
        Self { core: Arc::new(queue::Core::new(client, settings)) }
    }

    /// Runs until `shutdown` resolves; steps under way are finished then, no others begun.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        let core = &self.core;
        let mut tasks = JoinSet::new();
        for kind in wire::watched() {
            tasks.spawn(cache::follow(core.clone(), kind));
        }
        tasks.spawn(notes::record(core.clone()));
        tasks.spawn(core.clone().follow_drivers());
        tasks.spawn(queue::start(core.clone()));
        shutdown.await;
        tasks.shutdown().await;
        core.stop().await;
    }

    /// Resolves once every kind was listed and the first decisions are due.
    pub async fn ready(&self) {
        let mut synced: watch::Receiver<usize> = self.core.synced.subscribe();
        // The sender lives as long as `self`.
        let _ = synced.wait_for(|n| *n >= wire::watched().count()).await;
    }

    /// Counts since the start, one row per controller.
    pub fn stats(&self) -> Vec<(&'static str, Stats)> {
        CONTROLLERS.iter().map(|c| c.name).zip(self.core.stats()).collect()
    }
}
