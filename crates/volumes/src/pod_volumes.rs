//! The volumes of this node's pods on disk.
//!
//! ```text
//! <pods>/<uid>/volumes/<plugin>/<volume>/            belongs to the plugin
//! <pods>/<uid>/volume-subpaths/<volume>/<container>/<index>     pinned sub-paths (bind mounts)
//! <pods>/<uid>/holds/<persistent volume>             a mark: the pod has it
//! ```
//! A directory with the plugin's name exists before the plugin mounts anything, so whatever a crash leaves can be
//! undone from the disk and the mount table alone.
use std::{
    ffi::OsStr,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use sys::{Bind, FileKind, Handle, Propagation, Reach, ReadOnly, Sys, Unmount, tree};

use crate::{
    contract::{Growth, Ownership, Ready, Reclaiming, Resolved, Source, Stats, VolumePlugin},
    drivers::{Drivers, NoDrivers},
    error::VolumeError,
    machine::{Cancel, Machine, Shared},
    place::{PRIVATE, ensure_below, ensure_dir, ensure_path, failed, if_found, one_name},
    plugins::{
        PLUGINS,
        csi::{self, AttachedVolume},
        image, plugin_for,
    },
    settings::Settings,
    sub_path::{self, Failure},
};

const VOLUMES: &str = "volumes";
const SUB_PATHS: &str = "volume-subpaths";

fn plugin_of(source: &Source) -> Result<&'static dyn VolumePlugin, VolumeError> {
    plugin_for(source).ok_or_else(|| VolumeError::Unsupported { kind: format!("{source:?}") })
}

/// All pod volumes below one directory. Keeps no state: two of them, or one after a crash, see the same.
///
/// Calls for one volume, or for one container, must not overlap, nor `tear_down` with anything of its pod; all others may.
pub struct PodVolumes {
    pods_dir: PathBuf,
    plugins_dir: PathBuf,
    sys: Arc<dyn Sys>,
    drivers: Arc<dyn Drivers>,
    program: PathBuf,
    settings: Settings,
    flocker: Arc<dyn flocker::Control>,
    always: Cancel,
    shared: Shared,
}

impl PodVolumes {
    /// Volumes below `pods_dir`, an absolute path whose parents no pod can change. It is made when first needed.
    pub fn new(pods_dir: PathBuf, sys: Arc<dyn Sys>) -> Self {
        let plugins_dir = pods_dir.with_file_name("plugins");
        Self {
            pods_dir,
            plugins_dir,
            sys,
            drivers: Arc::new(NoDrivers),
            program: "/proc/self/exe".into(),
            settings: Settings::default(),
            flocker: Arc::new(flocker::Client::new(flocker::Settings::default())),
            always: Cancel::default(),
            shared: Shared::default(),
        }
    }

    /// The same with another program for attendants than this process's own.
    pub fn with_program(self, program: PathBuf) -> Self {
        Self { program, ..self }
    }

    /// The same with another control service of Flocker than the default.
    pub fn with_flocker(self, flocker: Arc<dyn flocker::Control>) -> Self {
        Self { flocker, ..self }
    }

    /// The same with other settings than the default.
    pub fn with_settings(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }

    /// The same on a machine with CSI drivers. They find what volumes have once for all pods in `plugins`, beside the
    /// pods' directory.
    pub fn with_drivers(self, drivers: Arc<dyn Drivers>) -> Self {
        Self { drivers, ..self }
    }

    /// What plugins act on.
    pub fn machine(&self) -> Machine<'_> {
        self.machine_while(&self.always)
    }

    fn machine_while<'a>(&'a self, cancel: &'a Cancel) -> Machine<'a> {
        Machine {
            sys: self.sys(),
            drivers: self.drivers.as_ref(),
            pods: &self.pods_dir,
            plugins: &self.plugins_dir,
            program: &self.program,
            flocker: self.flocker.as_ref(),
            settings: &self.settings,
            cancel,
            shared: &self.shared,
        }
    }

    pub(crate) fn sys(&self) -> &dyn Sys {
        self.sys.as_ref()
    }

    pub(crate) fn pods_dir(&self) -> &Path {
        &self.pods_dir
    }

    /// Makes a volume of a pod ready. Idempotent; with other content than before, it is changed atomically.
    ///
    /// # Errors
    /// What the plugin could not do; calling again finishes it.
    pub fn set_up(
        &self,
        pod_uid: &str,
        volume: &str,
        resolved: &Resolved,
        own: &Ownership,
    ) -> Result<Ready, VolumeError> {
        self.set_up_while(pod_uid, volume, resolved, own, &self.always)
    }

    /// As [`PodVolumes::set_up`], given up soon after it is cancelled, whoever it waits for.
    ///
    /// # Errors
    /// Also [`VolumeError::Cancelled`].
    pub fn set_up_while(
        &self,
        pod_uid: &str,
        volume: &str,
        resolved: &Resolved,
        own: &Ownership,
        cancel: &Cancel,
    ) -> Result<Ready, VolumeError> {
        let (pod, name) = (one_name(pod_uid)?, one_name(resolved.source.own_name().unwrap_or(volume))?);
        let plugin = plugin_of(&resolved.source)?;
        if !resolved.mount_options.is_empty() && !plugin.takes_mount_options() {
            return Err(VolumeError::MountOptions { options: resolved.mount_options.join(",") });
        }
        let pods = ensure_path(self.sys(), &self.pods_dir, PRIVATE)?;
        let parts = [pod, OsStr::new(VOLUMES), OsStr::new(plugin.name()), name];
        let (_, dir) = ensure_below(self.sys(), pods, &self.pods_dir, &parts)?;
        let ready = plugin.set_up(&resolved.source, own, &dir, &self.machine_while(cancel))?;
        Ok(Ready { volume: volume.to_owned(), read_only: ready.read_only || resolved.read_only, ..ready })
    }

    /// Empties, or deletes, what is behind a released persistent volume. Idempotent.
    ///
    /// # Errors
    /// What keeps it from being reclaimed; data may be gone in part, and calling again goes on.
    pub fn reclaim(&self, source: &Source, how: Reclaiming) -> Result<(), VolumeError> {
        plugin_of(source)?.reclaim(source, how, &self.machine())
    }

    /// Lets a volume of a pod, set up or not yet, have at least `bytes` of space. Idempotent.
    ///
    /// # Errors
    /// What keeps it from growing; it goes on serving the pod as it is.
    pub fn expand(&self, pod_uid: &str, volume: &str, source: &Source, bytes: u64) -> Result<Growth, VolumeError> {
        let (plugin, dir) = self.place(pod_uid, volume, source)?;
        plugin.expand(source, &dir, bytes, &self.machine())
    }

    /// How full a volume of a pod is, and how it fares. `None`: its plugin cannot say.
    ///
    /// # Errors
    /// Why that is not known now.
    pub fn stats(&self, pod_uid: &str, volume: &str, source: &Source) -> Result<Option<Stats>, VolumeError> {
        let (plugin, dir) = self.place(pod_uid, volume, source)?;
        plugin.stats(source, &dir, &self.machine())
    }

    /// The volumes of CSI drivers that were attached to this machine and that its pods have, or are about to have.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn attached(&self) -> Result<Vec<AttachedVolume>, VolumeError> {
        csi::attached(&self.machine())
    }

    /// The ids of images that volumes of pods are made of, or were about to be.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn images(&self) -> Result<Vec<String>, VolumeError> {
        image::in_use(&self.machine())
    }

    /// The plugin of a pod's volume, and its directory.
    fn place(
        &self,
        pod_uid: &str,
        volume: &str,
        source: &Source,
    ) -> Result<(&'static dyn VolumePlugin, PathBuf), VolumeError> {
        let (pod, name) = (one_name(pod_uid)?, one_name(source.own_name().unwrap_or(volume))?);
        let plugin = plugin_of(source)?;
        Ok((plugin, self.pods_dir.join(pod).join(VOLUMES).join(plugin.name()).join(name)))
    }

    /// The host path to bind into a container for its volume mount number `index`.
    ///
    /// With a sub-path, that is a mount which pins what was found inside the volume, whatever the pod does to the names
    /// there later. Directories that do not exist are made.
    /// # Errors
    /// `SubPath` where the path leads out of the volume, cannot be made, or is missing in a volume that is only read.
    pub fn mount_path(
        &self,
        pod_uid: &str,
        container: &str,
        index: usize,
        ready: &Ready,
        sub_path: Option<&str>,
    ) -> Result<PathBuf, VolumeError> {
        let inside = sub_path::clean(sub_path.unwrap_or_default())?;
        if inside.as_os_str().is_empty() {
            return Ok(ready.host_path.clone());
        }
        let (pod, volume, owner) = (one_name(pod_uid)?, one_name(&ready.volume)?, one_name(container)?);
        let fail = |action, errno: io::Error| VolumeError::SubPath {
            action,
            volume: ready.volume.clone(),
            container: container.into(),
            errno,
        };
        let prepare = |errno| fail("prepare subPath", errno);
        let root = self.sys().open(&ready.host_path).map_err(prepare)?;
        // A volume of the node's own may get a directory although the pod only reads it; other people's data may not.
        let may_create = !ready.read_only || self.is_own(&ready.host_path);
        let found = sub_path::open(self.sys(), &root, &inside, may_create).map_err(|failure| match failure {
            Failure::Create(errno) => fail("create subPath directory", errno),
            Failure::Prepare(errno) => prepare(errno),
        })?;
        let pods = ensure_path(self.sys(), &self.pods_dir, PRIVATE)?;
        let (dir, path) = ensure_below(self.sys(), pods, &self.pods_dir, &[pod, OsStr::new(SUB_PATHS), volume, owner])?;
        let name = index.to_string();
        let path = path.join(&name);
        match self.pin(&found, &dir, OsStr::new(&name), &path, ready.read_only) {
            Err(
                VolumeError::Mount { errno, .. }
                | VolumeError::Unmount { errno, .. }
                | VolumeError::Files { errno, .. },
            ) => Err(prepare(errno)),
            other => other.map(|()| path),
        }
    }

    /// Whether what is at a volume's path was made by this node, and not mounted from elsewhere.
    fn is_own(&self, path: &Path) -> bool {
        // <uid>/volumes/<plugin>/...
        let plugin = path.strip_prefix(&self.pods_dir).ok().and_then(|inside| inside.iter().nth(2));
        // What is below none of these names is a driver's.
        let own = |name: &OsStr| PLUGINS.iter().any(|p| name == p.name() && !p.takes_mount_options());
        plugin.is_some_and(own)
    }

    /// Binds what was found to a name of the node's own; keeps a pin of the same file.
    fn pin(&self, found: &Handle, dir: &Handle, name: &OsStr, path: &Path, read_only: bool) -> Result<(), VolumeError> {
        let sys = self.sys();
        let look = |e| failed("read", path)(e);
        let wanted = sys.stat(found).map_err(look)?;
        if let Some(old) = if_found(sys.open_at(dir, Path::new(name), Reach::Plain)).map_err(look)? {
            let old = sys.stat(&old).map_err(look)?;
            if old.mount_root && old.id() == wanted.id() {
                return Ok(());
            }
            // What an earlier container had under this number, or a call that was cut off has left.
            self.unpin(dir, name, path)?;
        }
        let make = failed("create", path);
        let target = if wanted.is_dir() {
            ensure_dir(sys, dir, name, PRIVATE).map_err(make)?
        } else {
            let made = sys.write_new(dir, name, b"", 0o640);
            made.and_then(|()| sys.open_at(dir, Path::new(name), Reach::Plain)).map_err(make)?
        };
        let read_only = if read_only { ReadOnly::Top } else { ReadOnly::No };
        // Slave: later mounts of the node show up, and unmounting here can never unmount anything there.
        let bind = Bind { recursive: false, read_only, propagation: Propagation::Slave };
        sys.bind(found, &target, &bind).map_err(|errno| VolumeError::Mount { target: path.into(), errno })
    }

    fn unpin(&self, dir: &Handle, name: &OsStr, path: &Path) -> Result<(), VolumeError> {
        // Lazy is harmless: a pin only shows data that lives elsewhere.
        tree::unmount_all(self.sys(), dir, name, &|_| Unmount::Lazy)
            .map_err(|(_, errno)| VolumeError::Unmount { target: path.into(), errno })?;
        tree::remove(self.sys(), dir, name).map_err(failed("remove", path))
    }

    /// Undoes the sub-path pins of one container. Idempotent.
    pub fn release_container(&self, pod_uid: &str, container: &str) -> Result<(), VolumeError> {
        let (pod, owner) = (one_name(pod_uid)?, one_name(container)?);
        let path = self.pods_dir.join(pod).join(SUB_PATHS);
        let Some(top) = if_found(self.sys().open(&path)).map_err(failed("open", &path))? else { return Ok(()) };
        let entries = self.sys().list(&top).map_err(failed("read", &path))?;
        for volume in entries.into_iter().filter(|e| e.kind == FileKind::Directory) {
            let path = path.join(&volume.name);
            let opened = self.sys().open_at(&top, Path::new(&volume.name), Reach::Plain);
            let Some(dir) = if_found(opened).map_err(failed("open", &path))? else { continue };
            self.unpin(&dir, owner, &path.join(owner))?;
        }
        Ok(())
    }

    /// Removes everything of a pod: pins, mounts, volumes, and its directory with whatever else the node keeps there.
    ///
    /// Needs nothing but the disk and the mount table. Never removes anything through a mount. Idempotent. Call it only
    /// when no process of the pod is left.
    /// # Errors
    /// Nothing is removed below a mount that stays; calling again goes on.
    pub fn tear_down(&self, pod_uid: &str) -> Result<(), VolumeError> {
        let pod = one_name(pod_uid)?;
        let sys = self.sys();
        let Some(pods) = if_found(sys.open(&self.pods_dir)).map_err(failed("open", &self.pods_dir))? else {
            return Ok(());
        };
        let path = self.pods_dir.join(pod);
        let opened = sys.open_at(&pods, Path::new(pod), Reach::Plain);
        let Some(top) = if_found(opened).map_err(failed("open", &path))? else { return Ok(()) };
        self.unpin(&top, OsStr::new(SUB_PATHS), &path.join(SUB_PATHS))?;
        self.tear_down_volumes(&top, &path.join(VOLUMES))?;
        drop(top);
        tree::unmount_all(sys, &pods, pod, &|_| Unmount::Strict)
            .map_err(|(point, errno)| VolumeError::Unmount { target: self.pods_dir.join(point), errno })?;
        tree::remove(sys, &pods, pod).map_err(failed("remove", &path))
    }

    /// Lets each plugin undo its volumes; what no plugin of this version knows is left to the caller's sweep. One volume
    /// that cannot go keeps no other, and those that depend on somebody else wait for him side by side.
    fn tear_down_volumes(&self, top: &Handle, path: &Path) -> Result<(), VolumeError> {
        let sys = self.sys();
        let mut failures = Vec::new();
        let mut slow = Vec::new();
        for plugin in PLUGINS {
            let path = path.join(plugin.name());
            let opened = if_found(sys.open_at(top, &Path::new(VOLUMES).join(plugin.name()), Reach::Plain));
            let Some(dir) = opened.map_err(failed("open", &path))? else { continue };
            if !sys.stat(&dir).map_err(failed("read", &path))?.is_dir() {
                continue;
            }
            for volume in sys.list(&dir).map_err(failed("read", &path))? {
                let dir = path.join(&volume.name);
                match plugin.depends_on_others() {
                    true => slow.push((*plugin, dir)),
                    false => failures.extend(plugin.tear_down(&dir, &self.machine()).err()),
                }
            }
        }
        let undo = |(plugin, dir): &(&dyn VolumePlugin, PathBuf)| plugin.tear_down(dir, &self.machine()).err();
        std::thread::scope(|scope| {
            let (first, others) = slow.split_first().unzip();
            let others: Vec<_> = others.unwrap_or_default().iter().map(|one| scope.spawn(move || undo(one))).collect();
            failures.extend(first.and_then(undo));
            for other in others {
                failures.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
        });
        failures.into_iter().next().map_or(Ok(()), Err)
    }

    /// UIDs of pods that have something on disk: after a restart, those that no longer exist are torn down.
    pub fn pods(&self) -> Result<Vec<String>, VolumeError> {
        let Some(pods) = if_found(self.sys().open(&self.pods_dir)).map_err(failed("open", &self.pods_dir))? else {
            return Ok(Vec::new());
        };
        let entries = self.sys().list(&pods).map_err(failed("read", &self.pods_dir))?;
        let dirs = entries.into_iter().filter(|e| e.kind == FileKind::Directory);
        Ok(dirs.filter_map(|e| e.name.into_string().ok()).collect())
    }

    /// Bytes that a volume takes, for comparison with its limit. A number that is old at once: the pod goes on writing.
    ///
    /// # Errors
    /// Also when the pod moves directories while they are counted; ask again.
    pub fn usage_bytes(&self, ready: &Ready) -> Result<u64, VolumeError> {
        let path = &ready.host_path;
        let top = match self.sys().open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
            found => found.map_err(failed("open", path))?,
        };
        // A filesystem of its own has counted already.
        if self.sys().stat(&top).map_err(failed("read", path))?.mount_root {
            return self.sys().room(&top).map(|room| room.used_bytes).map_err(failed("measure", path));
        }
        tree::usage_bytes(self.sys(), &top).map_err(failed("measure", path))
    }
}
