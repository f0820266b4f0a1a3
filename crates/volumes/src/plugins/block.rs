//! Volumes that are a block device with a filesystem: formatted if empty, mounted, grown.
//!
//! The filesystem is mounted once per pod, in the volume's directory: the kernel lets all such mounts share it.
use std::{ffi::OsStr, io::ErrorKind, path::Path};

use rustix::io::Errno;
use sys::{Device, DeviceContent, DeviceMount, Handle, Reach, Sys};

use crate::{
    contract::Growth,
    error::VolumeError,
    place::{PRIVATE, ensure_dir, failed, if_found},
    plugins::DATA,
};

/// What an empty device gets where nothing else is asked for.
const DEFAULT_FILESYSTEM: &str = "ext4";
/// In the volume's directory: the device is being formatted.
pub(super) const FORMATTING: &str = "formatting";
/// What can be made and mounted here: names of others never get near a program or the kernel.
const FILESYSTEMS: [&str; 5] = ["ext2", "ext3", "ext4", "xfs", "btrfs"];

pub(super) struct BlockDevice<'a> {
    pub device: &'a Handle,
    pub path: &'a Path,
    pub sys: &'a dyn Sys,
}

impl BlockDevice<'_> {
    fn unusable(&self, why: impl Into<String>) -> impl FnOnce(Option<std::io::Error>) -> VolumeError {
        let (path, why) = (self.path.to_path_buf(), why.into());
        move |errno| VolumeError::Device { path, why, errno }
    }

    fn stuck(&self, why: impl Into<String>) -> impl FnOnce(Option<std::io::Error>) -> VolumeError {
        let (path, why) = (self.path.to_path_buf(), why.into());
        move |errno| VolumeError::Growth { path, why, errno }
    }

    /// Mounts the device on `data` in the volume's directory, unless it is there. Returns its top.
    pub(super) fn mount(
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

    /// Fails unless the device has at least `bytes`. Returns what it is.
    pub(super) fn has(&self, bytes: u64) -> Result<Device, VolumeError> {
        let device = self.sys.probe_device(self.device).map_err(failed("read", self.path))?;
        if device.bytes < bytes {
            let why = format!(
                "the device has {} bytes, which is less than the {bytes} that are asked for; enlarge the device, or ask \
                 for less in the claim",
                device.bytes
            );
            return Err(self.stuck(why)(None));
        }
        Ok(device)
    }

    /// Lets the filesystem have at least `bytes`, which the device has been given.
    pub(super) fn grow(&self, dir: &Path, bytes: u64) -> Result<Growth, VolumeError> {
        let (sys, device) = (self.sys, self.has(bytes)?);
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
