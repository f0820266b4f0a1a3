//! The drivers that are known.
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use csi::{Code, ControllerClient, Driver, Facts, NodeClient, Status};
use tokio::sync::watch;

/// How long a call may take: upstream's two minutes for a node, which is more than its sidecars give a controller.
const TIME_FOR_A_CALL: Duration = Duration::from_secs(120);
/// The same for what a driver says of itself.
const TIME_TO_ANSWER: Duration = Duration::from_secs(10);

/// Why a driver is not taken.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It does not say what it is.
    #[error("the driver on {} does not say what it can: {code:?}: {why}", socket.display())]
    Ask {
        /// Where it listens.
        socket: PathBuf,
        /// What it answered.
        code: Code,
        /// Its words.
        why: String,
    },
    /// Somebody else has that name here.
    #[error("driver {name} on {} is on {} already; stop one of them", socket.display(), other.display())]
    Taken {
        /// Of both.
        name: String,
        /// Where the newer listens.
        socket: PathBuf,
        /// Where the older listens.
        other: PathBuf,
    },
}

/// One driver.
#[derive(Debug)]
pub struct Plugin {
    /// What it said of itself.
    pub facts: Facts,
    /// Where it listens.
    pub socket: PathBuf,
    /// Its controller service.
    pub controller: ControllerClient,
    /// Its node service.
    pub node: NodeClient,
}

/// Drivers by name.
pub type Plugins = Arc<BTreeMap<String, Arc<Plugin>>>;

/// The drivers of this machine. Clones share them.
#[derive(Debug, Clone)]
pub struct Registry {
    plugins: Arc<watch::Sender<Plugins>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { plugins: Arc::new(watch::Sender::new(Plugins::default())) }
    }
}

impl Registry {
    /// Takes the driver that listens on `socket`, in place of an earlier one on that socket. Returns its name.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn add(&self, socket: &Path) -> Result<String, RegistryError> {
        let failed = |status: Status| {
            let why = status.message().to_owned();
            RegistryError::Ask { socket: socket.to_owned(), code: status.code(), why }
        };
        let facts = Facts::ask(&Driver::at(socket, TIME_TO_ANSWER)).await.map_err(failed)?;
        let name = facts.name.clone();
        let driver = Driver::at(socket, TIME_FOR_A_CALL);
        let (controller, node) = (ControllerClient::new(&driver), NodeClient::new(&driver));
        let plugin = Arc::new(Plugin { facts, socket: socket.to_owned(), controller, node });
        let mut taken = None;
        self.plugins.send_if_modified(|plugins| {
            if let Some(other) = plugins.get(&name).filter(|p| p.socket != socket) {
                taken = Some(other.socket.clone());
                return false;
            }
            let all = Arc::make_mut(plugins);
            all.retain(|_, p| p.socket != socket);
            all.insert(name.clone(), plugin);
            true
        });
        match taken {
            None => Ok(name),
            Some(other) => Err(RegistryError::Taken { name, socket: socket.to_owned(), other }),
        }
    }

    /// Forgets the driver of a socket that is gone.
    pub fn remove(&self, socket: &Path) {
        self.plugins.send_if_modified(|plugins| {
            if plugins.values().all(|p| p.socket != socket) {
                return false;
            }
            Arc::make_mut(plugins).retain(|_, p| p.socket != socket);
            true
        });
    }

    /// The driver of that name.
    pub fn plugin(&self, name: &str) -> Option<Arc<Plugin>> {
        self.plugins.borrow().get(name).cloned()
    }

    /// All drivers, now and whenever that changes.
    pub fn watch(&self) -> watch::Receiver<Plugins> {
        self.plugins.subscribe()
    }
}
