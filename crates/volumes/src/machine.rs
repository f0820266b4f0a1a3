//! What plugins act on: the kernel, the machine's CSI drivers, and where volumes lie.
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sys::Sys;

use crate::{drivers::Drivers, error::VolumeError, settings::Settings};

/// Between looks at whether to go on waiting.
const LOOK: Duration = Duration::from_millis(20);

/// What a plugin is given to act on.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    /// The kernel.
    pub sys: &'a dyn Sys,
    /// The CSI drivers of this machine.
    pub drivers: &'a dyn Drivers,
    /// Directories of pods by UID.
    pub pods: &'a Path,
    /// What volumes have on this machine once for all pods: `plugins` of a kubelet's directory.
    pub plugins: &'a Path,
    /// The file of this program, which can be started again as an attendant of a volume.
    pub program: &'a Path,
    /// The control service of Flocker.
    pub flocker: &'a dyn flocker::Control,
    /// What the machine's administrator says.
    pub settings: &'a Settings,
    /// Whether what is done is still wanted. Who waits for somebody else looks at least every 50 ms.
    pub cancel: &'a Cancel,
    pub(crate) shared: &'a Shared,
}

impl Machine<'_> {
    /// Fails once nobody wants what is being done.
    ///
    /// # Errors
    /// [`VolumeError::Cancelled`]
    pub fn wanted(&self) -> Result<(), VolumeError> {
        if self.cancel.is_cancelled() { Err(VolumeError::Cancelled) } else { Ok(()) }
    }
}

/// Says to work that blocks that it is not wanted any more. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// From now on it is not wanted.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it is not wanted any more.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What calls for several pods have to agree on. Nothing of it has to survive: the disk says the rest.
#[derive(Default)]
pub(crate) struct Shared {
    locks: Mutex<BTreeMap<String, Weak<Mutex<()>>>>,
    staged: Mutex<BTreeSet<PathBuf>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What it guards is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Lets one call at a time at a volume, of all that pass the same `key`.
    pub(crate) fn alone<T>(&self, key: &str, act: impl FnOnce() -> T) -> T {
        let own = self.own(key);
        let _alone = lock(&own);
        act()
    }

    /// The same; whoever has the volume, waiting for it is given up once that is not wanted any more: `None`.
    pub(crate) fn alone_while<T>(&self, key: &str, cancel: &Cancel, act: impl FnOnce() -> T) -> Option<T> {
        let own = self.own(key);
        let _alone = loop {
            match own.try_lock() {
                Ok(alone) => break alone,
                // What it guards is whole at any time.
                Err(TryLockError::Poisoned(alone)) => break alone.into_inner(),
                Err(TryLockError::WouldBlock) if cancel.is_cancelled() => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK),
            }
        };
        Some(act())
    }

    fn own(&self, key: &str) -> Arc<Mutex<()>> {
        let mut locks = lock(&self.locks);
        locks.retain(|_, l| l.strong_count() > 0);
        let known = locks.get(key).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let made = Arc::new(Mutex::new(()));
            locks.insert(key.to_owned(), Arc::downgrade(&made));
            made
        })
    }

    /// Whether this process has staged a volume there: a driver is asked once, and again after a restart.
    pub(crate) fn is_staged(&self, at: &Path) -> bool {
        lock(&self.staged).contains(at)
    }

    pub(crate) fn set_staged(&self, at: &Path, staged: bool) {
        let mut all = lock(&self.staged);
        match staged {
            true => drop(all.insert(at.to_path_buf())),
            false => drop(all.remove(at)),
        }
    }
}
