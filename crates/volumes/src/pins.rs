//! Sub-paths of volumes, pinned for containers.
//!
//! ```text
//! <pods>/<uid>/volume-subpaths/<volume>/<container>/<index>        a bind mount of what was found
//! <pods>/<uid>/volume-subpaths/<volume>/<container>/<index>.path   the sub-path, where it may be looked up again
//! ```
use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use sys::{Bind, FileKind, Handle, Propagation, Reach, ReadOnly, Unmount, tree};

use crate::{
    PodVolumes,
    contract::{Ready, VolumePlugin},
    error::VolumeError,
    place::{PRIVATE, ensure_below, ensure_dir, ensure_path, failed, if_found, one_name, unmounting},
    plugins::Files,
    sub_path::{self, Failure},
};

pub(crate) const SUB_PATHS: &str = "volume-subpaths";
/// Follows the index in the name of the file that says which sub-path was pinned.
const RECORD: &str = ".path";

/// What a container's volume mount shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    pub container: String,
    /// Of the volume mount among the container's.
    pub index: usize,
    pub host_path: PathBuf,
}

impl PodVolumes {
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
        // Slave: later mounts of the node show up, and unmounting here can never unmount anything there.
        self.mount_path_of((pod_uid, container, index), ready, sub_path, Propagation::Slave)
    }

    /// As [`PodVolumes::mount_path`] for a container whose mounts in there are to reach the host: the volume is on a shared
    /// mount, or the runtime will refuse it.
    ///
    /// # Errors
    /// As there.
    pub fn shared_mount_path(
        &self,
        pod_uid: &str,
        container: &str,
        index: usize,
        ready: &Ready,
        sub_path: Option<&str>,
    ) -> Result<PathBuf, VolumeError> {
        self.mount_path_of((pod_uid, container, index), ready, sub_path, Propagation::Inherit)
    }

    fn mount_path_of(
        &self,
        place: (&str, &str, usize),
        ready: &Ready,
        sub_path: Option<&str>,
        propagation: Propagation,
    ) -> Result<PathBuf, VolumeError> {
        let inside = sub_path::clean(sub_path.unwrap_or_default())?;
        if inside.as_os_str().is_empty() {
            return Ok(ready.host_path.clone());
        }
        self.one_at_a_time(place.0, ready, || self.pin_sub_path(place, ready, &inside, propagation))
    }

    fn one_at_a_time<T>(&self, pod_uid: &str, ready: &Ready, act: impl FnOnce() -> T) -> T {
        self.machine().shared.alone(&format!("sub-paths {pod_uid} {}", ready.volume), act)
    }

    fn pin_sub_path(
        &self,
        (pod_uid, container, index): (&str, &str, usize),
        ready: &Ready,
        inside: &Path,
        propagation: Propagation,
    ) -> Result<PathBuf, VolumeError> {
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
        let found = sub_path::open(self.sys(), &root, inside, may_create).map_err(|failure| match failure {
            Failure::Create(errno) => fail("create subPath directory", errno),
            Failure::Prepare(errno) => prepare(errno),
        })?;
        let pods = ensure_path(self.sys(), self.pods_dir(), PRIVATE)?;
        let (dir, path) =
            ensure_below(self.sys(), pods, self.pods_dir(), &[pod, OsStr::new(SUB_PATHS), volume, owner])?;
        let name = index.to_string();
        let path = path.join(&name);
        let pinned = self.pin(&found, &dir, OsStr::new(&name), &path, &bind(ready, propagation));
        let noted = pinned.and_then(|()| match self.may_be_followed(&ready.host_path) {
            true => self.note(&dir, &name, &path, inside),
            false => Ok(()),
        });
        match noted {
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
        self.maker(path).is_some_and(|plugin| !plugin.takes_mount_options())
    }

    /// Whether the volume's files may be replaced as a whole: when they change, or when it is served anew.
    fn may_be_followed(&self, path: &Path) -> bool {
        self.maker(path).is_some_and(|plugin| plugin.is_served() || plugin.name() == Files.name())
    }

    /// Notes which sub-path was pinned.
    fn note(&self, dir: &Handle, index: &str, path: &Path, inside: &Path) -> Result<(), VolumeError> {
        let name = format!("{index}{RECORD}");
        let fail = |errno| failed("write", path.with_file_name(&name))(errno);
        if_found(self.sys().remove_file(dir, OsStr::new(&name))).map_err(fail)?;
        self.sys().write_new(dir, OsStr::new(&name), inside.as_os_str().as_bytes(), 0o600).map_err(fail)
    }

    /// Looks again for what containers have pinned of a volume whose files were replaced, or that is served anew, and pins that. Gives back all
    /// such pins; one whose path does not exist any more keeps what it had and is not among them.
    ///
    /// Must not overlap with making a container of the pod: a pin is away for a moment.
    /// # Errors
    /// What could not be looked up or pinned; calling again finishes it.
    pub fn follow(&self, pod_uid: &str, ready: &Ready) -> Result<Vec<Pinned>, VolumeError> {
        self.one_at_a_time(pod_uid, ready, || self.pin_again(pod_uid, ready))
    }

    fn pin_again(&self, pod_uid: &str, ready: &Ready) -> Result<Vec<Pinned>, VolumeError> {
        let (sys, mut pins) = (self.sys(), Vec::new());
        let (pod, volume) = (one_name(pod_uid)?, one_name(&ready.volume)?);
        let path = self.pods_dir().join(pod).join(SUB_PATHS).join(volume);
        let Some(top) = if_found(sys.open(&path)).map_err(failed("open", &path))? else { return Ok(pins) };
        let root = sys.open(&ready.host_path).map_err(failed("open", &ready.host_path))?;
        for container in sys.list(&top).map_err(failed("read", &path))? {
            let path = path.join(&container.name);
            let opened = sys.open_at(&top, Path::new(&container.name), Reach::Plain);
            let Some(dir) = if_found(opened).map_err(failed("open", &path))? else { continue };
            for entry in sys.list(&dir).map_err(failed("read", &path))? {
                let Some(index) = entry.name.to_str().and_then(|n| n.strip_suffix(RECORD)) else { continue };
                let (Ok(number), Some(container)) = (index.parse(), container.name.to_str()) else { continue };
                let path = path.join(index);
                let record = sys.open_at(&dir, Path::new(&entry.name), Reach::Plain).and_then(|at| sys.read_file(&at));
                let inside = PathBuf::from(OsString::from_vec(record.map_err(failed("read", &path))?));
                let found = if_found(sys.open_at(&root, &inside, Reach::Beneath));
                let Some(found) = found.map_err(failed("open", ready.host_path.join(&inside)))? else { continue };
                self.pin(&found, &dir, OsStr::new(index), &path, &bind(ready, Propagation::Slave))?;
                pins.push(Pinned { container: container.into(), index: number, host_path: path });
            }
        }
        Ok(pins)
    }

    /// Binds what was found to a name of the node's own; keeps a pin of the same file.
    fn pin(&self, found: &Handle, dir: &Handle, name: &OsStr, path: &Path, bind: &Bind) -> Result<(), VolumeError> {
        let sys = self.sys();
        let look = |e| failed("read", path)(e);
        let wanted = sys.stat(found).map_err(look)?;
        if let Some(old) = if_found(sys.open_at(dir, Path::new(name), Reach::Plain)).map_err(look)? {
            // One whose server has ended says nothing of itself any more; one that was shared was isolated since.
            let same = sys.stat(&old).is_ok_and(|old| old.mount_root && old.id() == wanted.id());
            if same && bind.propagation != Propagation::Inherit {
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
        sys.bind(found, &target, bind).map_err(|errno| VolumeError::Mount { target: path.into(), errno })
    }

    pub(crate) fn unpin(&self, dir: &Handle, name: &OsStr, path: &Path) -> Result<(), VolumeError> {
        tree::isolate_all(self.sys(), dir, name).map_err(unmounting(path))?;
        // Lazy is harmless: a pin only shows data that lives elsewhere.
        tree::unmount_all(self.sys(), dir, name, &|_| Unmount::Lazy).map_err(unmounting(path))?;
        tree::remove(self.sys(), dir, name).map_err(failed("remove", path))
    }

    /// Takes a path of [`PodVolumes::shared_mount_path`] out of what it shares, once a container has been made with it: what the
    /// container mounts goes to the volume and not there, so that it stays when the pin goes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn keep_apart(&self, path: &Path) -> Result<(), VolumeError> {
        let inside = path.strip_prefix(self.pods_dir()).ok().and_then(|inside| inside.iter().nth(1));
        if inside != Some(OsStr::new(SUB_PATHS)) {
            return Ok(());
        }
        let pin = self.sys().open(path).and_then(|at| self.sys().isolate(&at));
        pin.map_err(|errno| VolumeError::Mount { target: path.into(), errno })
    }

    /// Undoes the sub-path pins of one container. Idempotent.
    pub fn release_container(&self, pod_uid: &str, container: &str) -> Result<(), VolumeError> {
        let (pod, owner) = (one_name(pod_uid)?, one_name(container)?);
        let path = self.pods_dir().join(pod).join(SUB_PATHS);
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
}

/// How what was found is bound.
fn bind(ready: &Ready, propagation: Propagation) -> Bind {
    let read_only = if ready.read_only { ReadOnly::Top } else { ReadOnly::No };
    Bind { read_only, propagation, ..Bind::default() }
}
