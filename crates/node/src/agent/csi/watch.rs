//! Finds drivers by their sockets: those of registrars below `plugins_registry`, as a kubelet does, and `csi.sock` in any
//! directory of `plugins`, for drivers without one.
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base::{Backoff, chain};
use host::Registry;
use tokio::{task::JoinSet, time::Instant};

use super::{
    plugin_info::{self, Offer},
    report,
};
use crate::agent::Shared;

/// Between looks at the directories: sockets come and go with processes, and nobody waits for less.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_CAP: Duration = Duration::from_secs(60);
/// The name that a driver's own socket usually has.
const SOCKET: &str = "csi.sock";
/// Directories within directories of `plugins_registry` that are looked into.
const DEEPEST: usize = 8;

/// Which file a socket is: a process that starts again makes a new one.
type Identity = (u64, u64, i64, i64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A registrar's.
    Registrar,
    /// A driver's own.
    Driver,
}

/// A socket that was found.
struct Found {
    kind: Kind,
    identity: Identity,
    state: State,
    backoff: Backoff,
    /// The failure that was told last.
    told: String,
}

enum State {
    Asking,
    /// Nobody answered, or was refused.
    Failed {
        again: Instant,
    },
    /// The driver that listens on this endpoint, and which file that is.
    Taken {
        endpoint: PathBuf,
        was: Option<Identity>,
    },
    /// What is there is no driver.
    Other,
}

/// What came of asking at a socket.
struct Answer {
    socket: PathBuf,
    identity: Identity,
    outcome: Result<Option<PathBuf>, String>,
}

/// Looks for drivers for ever.
pub async fn watch(shared: Arc<Shared>) {
    let mut found: BTreeMap<PathBuf, Found> = BTreeMap::new();
    let mut asking: JoinSet<Answer> = JoinSet::new();
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => {
                let now = sockets(shared.config.layout.kubelet());
                forget_gone(&shared, &mut found, &now);
                for (socket, (kind, identity)) in now {
                    see(&shared, &mut found, &mut asking, socket, kind, identity);
                }
            }
            Some(answer) = asking.join_next() => match answer {
                Ok(answer) => learn(&shared, &mut found, answer),
                Err(error) => tracing::error!(%error, "asking a driver broke off; this is a bug"),
            },
        }
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let meta = fs::metadata(path).ok().filter(|m| m.file_type().is_socket())?;
    Some((meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec()))
}

/// All sockets by which a driver may be found now.
fn sockets(kubelet: &Path) -> BTreeMap<PathBuf, (Kind, Identity)> {
    let mut all = BTreeMap::new();
    registrars(&kubelet.join("plugins_registry"), DEEPEST, &mut all);
    for entry in fs::read_dir(kubelet.join("plugins")).into_iter().flatten().flatten() {
        let path = entry.path().join(SOCKET);
        if let Some(identity) = identity(&path) {
            all.insert(path, (Kind::Driver, identity));
        }
    }
    all
}

fn registrars(dir: &Path, deep: usize, all: &mut BTreeMap<PathBuf, (Kind, Identity)>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        // What is being written has such a name, as upstream.
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && deep > 0 => registrars(&path, deep - 1, all),
            _ => {
                if let Some(identity) = identity(&path) {
                    all.insert(path, (Kind::Registrar, identity));
                }
            }
        }
    }
}

/// Lets go of drivers whose socket is gone, or is not the one that was asked.
fn forget_gone(shared: &Shared, found: &mut BTreeMap<PathBuf, Found>, now: &BTreeMap<PathBuf, (Kind, Identity)>) {
    let gone: Vec<PathBuf> = found
        .iter()
        .filter(|(socket, f)| now.get(*socket).is_none_or(|(_, identity)| *identity != f.identity) || f.is_stale())
        .map(|(socket, _)| socket.clone())
        .collect();
    for socket in gone {
        let Some(Found { state: State::Taken { endpoint, .. }, .. }) = found.remove(&socket) else { continue };
        if !is_taken(found, &endpoint) {
            tracing::info!(socket = %socket.display(), endpoint = %endpoint.display(), "a CSI driver is gone");
            shared.config.drivers.remove(&endpoint);
        }
    }
}

fn is_taken(found: &BTreeMap<PathBuf, Found>, at: &Path) -> bool {
    found.values().any(|f| matches!(&f.state, State::Taken { endpoint, .. } if endpoint == at))
}

impl Found {
    /// Whether the driver behind a registrar has started again, or ended.
    fn is_stale(&self) -> bool {
        matches!(&self.state, State::Taken { endpoint, was } if identity(endpoint) != *was)
    }
}

fn see(
    shared: &Arc<Shared>,
    found: &mut BTreeMap<PathBuf, Found>,
    asking: &mut JoinSet<Answer>,
    socket: PathBuf,
    kind: Kind,
    identity: Identity,
) {
    // A driver's own socket is left to its registrar, if it has one.
    let registered = |f: &Found| {
        f.kind == Kind::Registrar && matches!(&f.state, State::Taken { endpoint, .. } if *endpoint == socket)
    };
    if kind == Kind::Driver && found.values().any(registered) {
        return;
    }
    let entry = found.entry(socket.clone()).or_insert_with(|| Found {
        kind,
        identity,
        state: State::Failed { again: Instant::now() },
        backoff: Backoff::new(RETRY_FIRST, RETRY_CAP),
        told: String::new(),
    });
    if !matches!(entry.state, State::Failed { again } if again <= Instant::now()) {
        return;
    }
    entry.state = State::Asking;
    let shared = shared.clone();
    asking.spawn(async move {
        let outcome = match kind {
            Kind::Registrar => by_registrar(&shared, &socket).await,
            Kind::Driver => take(&shared, &socket, None).await.map(|()| Some(socket.clone())),
        };
        Answer { socket, identity, outcome }
    });
}

async fn by_registrar(shared: &Arc<Shared>, socket: &Path) -> Result<Option<PathBuf>, String> {
    let offer = match plugin_info::ask(socket).await {
        // The driver's own socket is known by the path without links.
        Ok(Some(offer)) => Offer { endpoint: fs::canonicalize(&offer.endpoint).unwrap_or(offer.endpoint), ..offer },
        Ok(None) => return Ok(None),
        Err(why) => {
            plugin_info::tell(socket, Err(&why)).await;
            return Err(why);
        }
    };
    let taken = take(shared, &offer.endpoint, Some(&offer.name)).await;
    plugin_info::tell(socket, taken.as_ref().copied().map_err(String::as_str)).await;
    taken.map(|()| Some(offer.endpoint))
}

/// Takes the driver that listens at `endpoint`, and tells the API of it.
async fn take(shared: &Arc<Shared>, endpoint: &Path, called: Option<&str>) -> Result<(), String> {
    let drivers: &Registry = &shared.config.drivers;
    let name = drivers.add(endpoint).await.map_err(|e| chain(&e))?;
    let told = match called.filter(|called| *called != name) {
        Some(called) => Err(format!("its registrar calls it {called}, and it says that it is {name}")),
        None => report::tell(shared).await,
    };
    match told {
        Ok(()) => {
            tracing::info!(driver = name, endpoint = %endpoint.display(), "a CSI driver is there");
            Ok(())
        }
        Err(why) => {
            drivers.remove(endpoint);
            Err(why)
        }
    }
}

fn learn(shared: &Shared, found: &mut BTreeMap<PathBuf, Found>, answer: Answer) {
    let Answer { socket, identity: asked, outcome } = answer;
    let Some(entry) = found.get_mut(&socket).filter(|f| f.identity == asked) else {
        // It went while it was asked.
        if let Ok(Some(endpoint)) = outcome.as_ref()
            && !is_taken(found, endpoint)
        {
            shared.config.drivers.remove(endpoint);
        }
        return;
    };
    entry.state = match outcome {
        Ok(Some(endpoint)) => {
            entry.backoff.reset();
            let was = identity(&endpoint);
            State::Taken { endpoint, was }
        }
        Ok(None) => State::Other,
        Err(why) => {
            if entry.told != why {
                tracing::warn!(why, socket = %socket.display(), "a CSI driver cannot be taken yet; it is tried again");
                entry.told = why;
            }
            State::Failed { again: Instant::now() + entry.backoff.delay() }
        }
    };
}
