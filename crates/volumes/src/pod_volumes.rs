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
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sys::{FileKind, Handle, Reach, Sys, Unmount, tree};

use crate::{
    contract::{Growth, Ownership, Ready, Reclaiming, Resolved, Served, Source, Stats, VolumePlugin},
    drivers::{Drivers, NoDrivers},
    error::VolumeError,
    machine::{Cancel, Machine, Shared},
    pins::SUB_PATHS,
    place::{PRIVATE, directories, ensure_below, ensure_path, failed, if_found, one_name},
    plugins::{
        PLUGINS,
        csi::{self, AttachedVolume},
        image, plugin_for,
    },
    settings::Settings,
};

const VOLUMES: &str = "volumes";

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

    /// Who serves a volume of a pod that is set up.
    ///
    /// # Errors
    /// Why that is not known.
    pub fn served(&self, pod_uid: &str, volume: &str, source: &Source) -> Result<Served, VolumeError> {
        let (plugin, dir) = self.place(pod_uid, volume, source)?;
        plugin.served(&dir, &self.machine())
    }

    /// The plugin that made a volume; `None` for those that this node did not make.
    pub(crate) fn maker(&self, host_path: &Path) -> Option<&'static dyn VolumePlugin> {
        // <uid>/volumes/<plugin>/...
        let name = host_path.strip_prefix(&self.pods_dir).ok()?.iter().nth(2)?;
        PLUGINS.iter().find(|p| name == p.name()).copied()
    }

    /// Whether a volume is somebody else's, who may not answer.
    pub fn depends_on_others(&self, ready: &Ready) -> bool {
        self.maker(&ready.host_path).is_none_or(VolumePlugin::depends_on_others)
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

    /// Says that a pod is being ended and which time it has for that, before its processes are killed. Idempotent; the latest
    /// call counts. It waits for nobody, and may overlap with every other call.
    ///
    /// # Errors
    /// Who waits for somebody on behalf of the pod may go on waiting.
    pub fn ending(&self, pod_uid: &str, grace: Duration) -> Result<(), VolumeError> {
        let volumes = self.pods_dir.join(one_name(pod_uid)?).join(VOLUMES);
        let mut failure = None;
        for plugin in PLUGINS {
            let path = volumes.join(plugin.name());
            for volume in directories(&path, self.sys())? {
                failure = failure.or(plugin.ending(&path.join(volume), grace, &self.machine()).err());
            }
        }
        failure.map_or(Ok(()), Err)
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
        self.tree_bytes(&ready.host_path)
    }

    /// Bytes that a file or a directory takes. What is not there takes none.
    ///
    /// # Errors
    /// As [`PodVolumes::usage_bytes`].
    pub fn tree_bytes(&self, path: &Path) -> Result<u64, VolumeError> {
        let Some(top) = if_found(self.sys().open(path)).map_err(failed("open", path))? else { return Ok(0) };
        // A filesystem of its own has counted already.
        if self.sys().stat(&top).map_err(failed("read", path))?.mount_root {
            return self.sys().room(&top).map(|room| room.used_bytes).map_err(failed("measure", path));
        }
        tree::usage(self.sys(), &top).map(|used| used.bytes).map_err(failed("measure", path))
    }

    /// How full a volume is that is set up, whatever made it. What has no filesystem of its own and was made here is counted
    /// file by file; of all else the figures are its filesystem's. A device has a size and nothing else.
    ///
    /// # Errors
    /// As [`PodVolumes::usage_bytes`].
    pub fn measure(&self, ready: &Ready) -> Result<Stats, VolumeError> {
        let path = &ready.host_path;
        let top = self.sys().open(path).map_err(failed("open", path))?;
        if ready.device {
            let device = self.sys().probe_device(&top).map_err(failed("measure", path))?;
            return Ok(Stats { total_bytes: device.bytes, ..Stats::default() });
        }
        let mounted = self.sys().stat(&top).map_err(failed("read", path))?.mount_root;
        if !mounted && self.maker(path).is_some_and(VolumePlugin::is_served) {
            // It is just being mounted again.
            return Err(failed("measure", path)(ErrorKind::NotConnected.into()));
        }
        let room = self.sys().room(&top).map_err(failed("measure", path))?;
        let stats = Stats {
            total_bytes: room.total_bytes,
            used_bytes: room.used_bytes,
            available_bytes: room.free_bytes,
            inodes: room.inodes,
            used_inodes: room.inodes.saturating_sub(room.free_inodes),
            free_inodes: room.free_inodes,
            healthy: None,
        };
        let own = path.starts_with(&self.pods_dir);
        if !own || mounted {
            return Ok(stats);
        }
        let used = tree::usage(self.sys(), &top).map_err(failed("measure", path))?;
        Ok(Stats { used_bytes: used.bytes, used_inodes: used.inodes, ..stats })
    }
}
