//! `local` persistent volumes: a directory of the node that an administrator has made, or a block device.
//!
//! The filesystem of a device is mounted once per pod, in the volume's directory: the kernel lets all such mounts share it.
use std::{
    ffi::OsStr,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use rustix::io::Errno;
use sys::{DeviceContent, DeviceMount, FileKind, Handle, Reach, Sys};

use crate::{
    contract::{Growth, Machine, Ownership, Ready, Source, VolumePlugin},
    error::VolumeError,
    place::{PRIVATE, ensure_dir, failed, if_found},
    plugins::{DATA, is_marked, mark, mismatch, own, ready, shown_group, tear_down_dir},
};

pub(super) struct Local;

/// What an empty device gets where nothing else is asked for.
const DEFAULT_FILESYSTEM: &str = "ext4";
/// In the volume's directory: the device is being formatted.
pub(super) const FORMATTING: &str = "formatting";
/// What can be made and mounted here: names of others never get near a program or the kernel.
const FILESYSTEMS: [&str; 5] = ["ext2", "ext3", "ext4", "xfs", "btrfs"];

impl VolumePlugin for Local {
    fn name(&self) -> &'static str {
        "kubernetes.io~local-volume"
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::Local { .. } | Source::LocalDevice { .. })
    }

    fn takes_mount_options(&self) -> bool {
        true
    }

    fn set_up(&self, source: &Source, owner: &Ownership, dir: &Path, on: &Machine<'_>) -> Result<Ready, VolumeError> {
        let sys = on.sys;
        let (path, read_only, fs_type, mount_options) = match source {
            Source::Local { path, read_only, fs_type, mount_options } => (path, read_only, fs_type, mount_options),
            Source::LocalDevice { path, read_only } => return device(path, *read_only, dir, sys),
            _ => return Err(mismatch(self)),
        };
        let volume = open(path, sys)?;
        let top = sys.open(dir).map_err(failed("open", dir))?;
        let (volume, path) = match volume {
            Place::Directory(_) if !mount_options.is_empty() => {
                return Err(VolumeError::MountOptions { options: mount_options.join(",") });
            }
            Place::Directory(volume) => (volume, path.clone()),
            Place::Device(device) => {
                let device = BlockDevice { device: &device, path, sys };
                let wanted = (fs_type.as_deref(), *read_only, mount_options.as_slice());
                (device.mount(&top, dir, wanted)?, dir.join(DATA))
            }
        };
        let group_map = if *read_only { None } else { shown_group(sys, &volume, &path, owner)? };
        if !is_marked(sys, &top, dir)? {
            if !read_only && group_map.is_none() {
                own(sys, &volume, &path, owner, false)?;
            }
            mark(sys, &top, dir)?;
        }
        Ok(Ready { group_map, ..ready(dir, &path, *read_only) })
    }

    fn tear_down(&self, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
        tear_down_dir(dir, on.sys)
    }

    fn expand(&self, source: &Source, dir: &Path, bytes: u64, on: &Machine<'_>) -> Result<Growth, VolumeError> {
        let sys = on.sys;
        let path = match source {
            Source::Local { path, .. } => path,
            // It has what it has.
            Source::LocalDevice { .. } => return Ok(Growth::NotHere),
            _ => return Err(mismatch(self)),
        };
        match open(path, sys)? {
            // It has what its filesystem has; as upstream, that is taken for what was asked for.
            Place::Directory(_) => Ok(Growth::Done),
            Place::Device(device) => BlockDevice { device: &device, path, sys }.grow(dir, bytes),
        }
    }
}

/// Mounts a device, formatted if it is empty, on `data` in the directory `dir`, which is open as `top`, unless it is there.
pub(super) fn mount_device(
    path: &Path,
    (top, dir): (&Handle, &Path),
    (fs_type, read_only): (Option<&str>, bool),
    sys: &dyn Sys,
) -> Result<(), VolumeError> {
    match open(path, sys)? {
        Place::Device(device) => {
            let device = BlockDevice { device: &device, path: &path.to_path_buf(), sys };
            device.mount(top, dir, (fs_type, read_only, &[])).map(drop)
        }
        Place::Directory(_) => {
            let why = "it is a directory, not a block device";
            Err(VolumeError::LocalPath { path: path.into(), why, errno: None })
        }
    }
}

/// Lets the filesystem of a device that is mounted at `at` have all of the device.
pub(super) fn grow_device(path: &Path, at: &Path, bytes: u64, sys: &dyn Sys) -> Result<Growth, VolumeError> {
    match open(path, sys)? {
        Place::Device(device) => {
            let above = at.parent().unwrap_or(at);
            BlockDevice { device: &device, path: &path.to_path_buf(), sys }.grow(above, bytes)
        }
        Place::Directory(_) => Ok(Growth::Done),
    }
}

/// A block device as it is, for `volumeDevices`.
fn device(path: &Path, read_only: bool, dir: &Path, sys: &dyn Sys) -> Result<Ready, VolumeError> {
    match open(path, sys)? {
        Place::Device(_) => Ok(Ready { device: true, ..ready(dir, path, read_only) }),
        Place::Directory(_) => {
            let why = "it is a directory, and the volume's volumeMode Block asks for a block device";
            Err(VolumeError::LocalPath { path: path.into(), why, errno: None })
        }
    }
}

enum Place {
    Directory(Handle),
    Device(Handle),
}

fn open(path: &Path, sys: &dyn Sys) -> Result<Place, VolumeError> {
    let unusable = |why, errno| VolumeError::LocalPath { path: path.to_path_buf(), why, errno };
    let volume = sys.open(path).map_err(|errno| match errno.kind() {
        ErrorKind::NotFound => unusable("it does not exist", Some(errno)),
        _ => unusable("it cannot be opened", Some(errno)),
    })?;
    match sys.stat(&volume).map_err(failed("read", path))?.kind {
        FileKind::Directory => Ok(Place::Directory(volume)),
        FileKind::BlockDevice => Ok(Place::Device(volume)),
        _ => Err(unusable("only directory and block device are supported", None)),
    }
}

struct BlockDevice<'a> {
    device: &'a Handle,
    path: &'a PathBuf,
    sys: &'a dyn Sys,
}

impl BlockDevice<'_> {
    fn unusable(&self, why: impl Into<String>) -> impl FnOnce(Option<std::io::Error>) -> VolumeError {
        let (path, why) = (self.path.clone(), why.into());
        move |errno| VolumeError::Device { path, why, errno }
    }

    fn stuck(&self, why: impl Into<String>) -> impl FnOnce(Option<std::io::Error>) -> VolumeError {
        let (path, why) = (self.path.clone(), why.into());
        move |errno| VolumeError::Growth { path, why, errno }
    }

    /// Mounts the device on `data` in the volume's directory, unless it is there. Returns its top.
    fn mount(
        &self,
        top: &Handle,
        dir: &Path,
        (fs_type, read_only, options): (Option<&str>, bool, &[String]),
    ) -> Result<Handle, VolumeError> {
        let (sys, name, path) = (self.sys, OsStr::new(DATA), dir.join(DATA));
        let data = ensure_dir(sys, top, name, PRIVATE).map_err(failed("create", &path))?;
        // After a reboot nothing is mounted. A second mount over that of an earlier try would never be undone.
        if sys.stat(&data).map_err(failed("read", &path))?.mount_root {
            return Ok(data);
        }
        let kind = self.filesystem(top, dir, fs_type, read_only)?;
        let mount = DeviceMount { kind: &kind, read_only, options };
        let tried =
            if options.is_empty() { String::new() } else { format!(" with mount options {}", options.join(",")) };
        let why = format!("mounting its {kind} filesystem{tried} failed; the kernel log on this node says why");
        sys.mount_device(self.device, &data, &mount).map_err(|e| self.unusable(why)(Some(e)))?;
        sys.open_at(top, Path::new(name), Reach::Plain).map_err(failed("open", &path))
    }

    /// The filesystem on the device, made if the device is empty.
    fn filesystem(
        &self,
        top: &Handle,
        dir: &Path,
        wanted: Option<&str>,
        read_only: bool,
    ) -> Result<String, VolumeError> {
        if let Some(other) = wanted.filter(|w| !FILESYSTEMS.contains(w)) {
            let known = FILESYSTEMS.join(", ");
            return Err(self.unusable(format!("fsType {other:?} is none of {known}; change the persistent volume"))(
                None,
            ));
        }
        let is_ext = |kind: &str| kind.starts_with("ext");
        let begun = if_found(self.sys.stat_at(top, OsStr::new(FORMATTING))).map_err(failed("read", dir))?.is_some();
        match self.sys.probe_device(self.device).map_err(failed("read", self.path))?.content {
            DeviceContent::Filesystem(found) => match wanted {
                // One driver serves all of the family.
                Some(wanted) if wanted == found || (is_ext(wanted) && is_ext(&found)) => Ok(wanted.to_owned()),
                None => Ok(found),
                Some(wanted) => {
                    let why = format!("failed to mount the volume as {wanted:?}, it already contains {found}");
                    Err(self.unusable(format!("{why}; change fsType, or wipe the device"))(None))
                }
            },
            DeviceContent::Empty if read_only => {
                let why = "cannot mount unformatted disk as we are manipulating it in read-only mode";
                Err(self.unusable(format!("{why}; let a pod that may write use it first"))(None))
            }
            DeviceContent::Empty => self.format(top, dir, wanted.unwrap_or(DEFAULT_FILESYSTEM)),
            // What is on it is the half of what was begun here.
            DeviceContent::Other if begun => self.format(top, dir, wanted.unwrap_or(DEFAULT_FILESYSTEM)),
            DeviceContent::Other => {
                let why = "it holds data, but none of the filesystems known here, and is left as it is; wipe its \
                           beginning if the data is of no use";
                Err(self.unusable(why)(None))
            }
        }
    }

    /// Makes a filesystem. A mark stands while that goes on: cut off, it leaves a device that is no longer empty.
    fn format(&self, top: &Handle, dir: &Path, kind: &str) -> Result<String, VolumeError> {
        let (sys, name) = (self.sys, OsStr::new(FORMATTING));
        match sys.write_new(top, name, b"", 0o600) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            other => other.map_err(failed("write", dir.join(FORMATTING)))?,
        }
        let why = format!("making the filesystem {kind} on it failed");
        sys.make_filesystem(self.device, kind).map_err(|e| self.unusable(why)(Some(e)))?;
        if_found(sys.remove_file(top, name)).map_err(failed("remove", dir.join(FORMATTING)))?;
        Ok(kind.to_owned())
    }

    fn grow(&self, dir: &Path, bytes: u64) -> Result<Growth, VolumeError> {
        let sys = self.sys;
        let device = sys.probe_device(self.device).map_err(failed("read", self.path))?;
        if device.bytes < bytes {
            let why = format!(
                "the device has {} bytes, which is less than the {bytes} that are asked for; enlarge the device, or ask \
                 for less in the claim",
                device.bytes
            );
            return Err(self.stuck(why)(None));
        }
        let path = dir.join(DATA);
        let data = if_found(sys.open(&path)).map_err(failed("open", &path))?;
        let mounted = match &data {
            Some(data) => sys.stat(data).map_err(failed("read", &path))?.mount_root,
            None => false,
        };
        let grown = match (data.filter(|_| mounted), device.content) {
            (Some(data), _) => sys.grow_filesystem(self.device, &data).map(|()| Growth::Done),
            (None, DeviceContent::Filesystem(kind)) => {
                sys.grow_unmounted(self.device, &kind).map(|done| if done { Growth::Done } else { Growth::NotSetUp })
            }
            (None, _) => Ok(Growth::NotSetUp),
        };
        grown.map_err(|errno| {
            let is = |e: Errno| errno.raw_os_error() == Some(e.raw_os_error());
            let why = if is(Errno::PERM) {
                "the kernel grows it in use only for a process with CAP_SYS_RESOURCE, which this node has not got; end \
                 the pods that use it here, and it is grown when the next one starts"
            } else if is(Errno::OPNOTSUPP) {
                "its filesystem cannot be grown"
            } else {
                "growing its filesystem failed; the kernel log on this node says why"
            };
            self.stuck(why)(Some(errno))
        })
    }
}
