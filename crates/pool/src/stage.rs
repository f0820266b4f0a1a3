//! Bringing a volume to a path of this machine, and taking it away again.
use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use sys::{Access, DeviceContent, DeviceMount, Handle, Space, Sys, Unmount, tree};

use crate::{
    Backend, Content, Id, Limit, Pool, Volume,
    error::{PoolError, failed},
};

/// Where a volume is staged, in its directory: what a restart, a snapshot and a deletion need to know.
const STAGED: &str = "staged";

/// How a volume is staged.
#[derive(Debug, Clone, Copy)]
pub struct Stage<'a> {
    /// A directory. Of a block volume: not used.
    pub at: &'a Path,
    /// As after `mount -o`, one each.
    pub options: &'a [String],
}

/// How full a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    Filesystem(Space),
    /// Its size in bytes: nobody knows what of it is used.
    Block(u64),
}

/// How a volume fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Good,
    /// One sentence for a person.
    Bad(String),
}

pub(crate) fn is_mounted(sys: &dyn Sys, at: &Path) -> Result<bool, PoolError> {
    match sys.open(at).and_then(|h| sys.stat(&h)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|s| s.mount_root).map_err(failed("read", at)),
    }
}

pub(crate) fn parts(at: &Path) -> Result<(&Path, &OsStr), PoolError> {
    match (at.parent(), at.file_name()) {
        (Some(above), Some(name)) if at.is_absolute() => Ok((above, name)),
        _ => Err(PoolError::Invalid(format!("{} is no path to mount at", at.display()))),
    }
}

/// What a filesystem is mounted with besides what is asked for.
fn usual_options(kind: &str, asked: &[String]) -> Vec<String> {
    // What pods delete goes back to the machine.
    let mut options = Vec::new();
    if matches!(kind, "ext4" | "xfs" | "btrfs") {
        options.push("discard".to_owned());
    }
    // A copy has the name of its original, which may be mounted beside it.
    if kind == "xfs" {
        options.push("nouuid".to_owned());
    }
    // Writing on after an error makes it worse.
    if kind.starts_with("ext") && !asked.iter().any(|o| o.starts_with("errors=")) {
        options.push("errors=remount-ro".to_owned());
    }
    options
}

impl Pool {
    /// What the kernel calls a pool's things by.
    pub(crate) fn sys(&self) -> &dyn Sys {
        &*self.kernel
    }

    fn staged_file(&self, id: &Id) -> PathBuf {
        self.volume_dir(id).join(STAGED)
    }

    /// Where the volume's filesystem was mounted last.
    fn staged_file_path(&self, id: &Id) -> Result<Option<PathBuf>, PoolError> {
        let file = self.staged_file(id);
        match self.kernel.read(&file) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => {
                let text = other.map_err(failed("read", &file))?;
                Ok(Some(PathBuf::from(String::from_utf8_lossy(&text).into_owned())))
            }
        }
    }

    /// Where the volume's filesystem is mounted now.
    pub(crate) fn staged_at(&self, id: &Id) -> Result<Option<PathBuf>, PoolError> {
        match self.staged_file_path(id)? {
            // After a reboot nothing is.
            Some(at) => Ok(is_mounted(self.sys(), &at)?.then_some(at)),
            None => Ok(None),
        }
    }

    /// Takes a volume that nobody uses from its devices.
    pub(crate) fn release(&self, volume: &Volume) -> Result<(), PoolError> {
        let id = &volume.id;
        if let Some(at) = self.staged_at(id)? {
            return Err(PoolError::State(format!("volume {id} is in use at {}; unstage it first", at.display())));
        }
        if let Some(at) = self.mounted_publication(id)? {
            return Err(PoolError::State(format!("volume {id} is in use at {}; unpublish it first", at.display())));
        }
        if volume.backend != Backend::Image {
            return Ok(());
        }
        for device in self.devices(id)? {
            self.kernel.detach(&device).map_err(failed("detach", &device))?;
        }
        Ok(())
    }

    /// The device of a volume's image.
    pub(crate) fn device(&self, id: &Id, access: Access) -> Result<PathBuf, PoolError> {
        let image = self.image(id);
        match self.kernel.attached(&image, access).map_err(failed("find the device of", &image))? {
            Some(device) => Ok(device),
            None => self.kernel.attach(&image, access).map_err(failed("attach", &image)),
        }
    }

    /// Prepares a volume: its device, its filesystem (made, repaired or grown if need be), its mount.
    ///
    /// # Errors
    /// No such volume, it is staged elsewhere, its content is no filesystem, or the machine failed.
    pub fn stage(&self, id: &Id, stage: &Stage<'_>) -> Result<(), PoolError> {
        let _turn = self.turn(id)?;
        let volume = self.existing(id)?;
        if volume.backend != Backend::Image {
            return if stage.options.is_empty() {
                Ok(())
            } else {
                Err(PoolError::Invalid("a directory is not mounted, so mount options mean nothing for it".into()))
            };
        }
        if let Some(other) = self.staged_at(id)?.filter(|other| other != stage.at) {
            return Err(PoolError::State(format!("volume {id} is staged at {} already", other.display())));
        }
        let device = self.device(id, Access::Write)?;
        let Content::Filesystem(kind) = &volume.content else { return Ok(()) };
        if is_mounted(self.sys(), stage.at)? {
            return Ok(());
        }
        let file = self.staged_file(id);
        self.kernel.write(&file, stage.at.as_os_str().as_encoded_bytes()).map_err(failed("write", &file))?;
        self.mount(&volume, kind, &device, stage)
    }

    fn mount(&self, volume: &Volume, wanted: &str, path: &Path, stage: &Stage<'_>) -> Result<(), PoolError> {
        let sys = self.sys();
        let device = sys.open(path).map_err(failed("open", path))?;
        let probed = sys.probe_device(&device).map_err(failed("read", path))?;
        let mut outgrown = false;
        let kind = match probed.content {
            DeviceContent::Empty => {
                let made = self.kernel.format(path, wanted, &volume.format);
                made.map_err(failed("make a filesystem on", path))?;
                wanted.to_owned()
            }
            DeviceContent::Filesystem(kind) => {
                let checked = self.kernel.check_filesystem(path, &kind);
                if !checked.map_err(|e| self.needs_a_person(volume, &kind, &e))? {
                    tracing::warn!(volume = %volume.id, kind, "not checked: the program for it is not installed");
                }
                if volume.filesystem_bytes == 0 {
                    // It began as a copy.
                    self.kernel.set_apart(path, &kind).map_err(failed("rename the filesystem on", path))?;
                }
                outgrown = volume.filesystem_bytes != volume.bytes;
                kind
            }
            DeviceContent::Other => {
                let why =
                    format!("volume {} holds data that is no filesystem known here; it is left as it is", volume.id);
                return Err(PoolError::State(why));
            }
        };
        let grown = outgrown && sys.grow_unmounted(&device, &kind).map_err(failed("grow the filesystem on", path))?;
        self.make_target(stage.at, true)?;
        let at = sys.open(stage.at).map_err(failed("open", stage.at))?;
        let mut options = usual_options(&kind, stage.options);
        options.extend_from_slice(stage.options);
        let mount = DeviceMount { kind: &kind, read_only: false, options: &options };
        sys.mount_device(&device, &at, &mount).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidInput if !stage.options.is_empty() => {
                let why = format!("volume {} cannot be mounted with {}: {e}", volume.id, stage.options.join(","));
                PoolError::Invalid(why)
            }
            io::ErrorKind::InvalidData => self.needs_a_person(volume, &kind, &e),
            _ => failed("mount on", stage.at)(e),
        })?;
        if outgrown && !grown {
            self.grow_mounted(&device, stage.at)?;
        }
        self.filesystem_has_all(volume)
    }

    fn needs_a_person(&self, volume: &Volume, kind: &str, error: &io::Error) -> PoolError {
        let program = if kind == "xfs" { "xfs_repair" } else { "fsck" };
        PoolError::State(format!(
            "the filesystem of volume {} has to be repaired by a person: {error}; run {program} on {} while nothing uses the \
             volume, or make a new one from a snapshot",
            volume.id,
            self.image(&volume.id).display()
        ))
    }

    fn grow_mounted(&self, device: &Handle, at: &Path) -> Result<(), PoolError> {
        let top = self.sys().open(at).map_err(failed("open", at))?;
        self.sys().grow_filesystem(device, &top).map_err(|error| {
            if error.kind() != std::io::ErrorKind::PermissionDenied {
                return failed("grow the filesystem at", at)(error);
            }
            // ext4's rule; other filesystems ask for CAP_SYS_ADMIN only, without which nothing here works.
            let why = "the kernel grows it in use only for a process with CAP_SYS_RESOURCE, which this one has not got";
            PoolError::State(format!(
                "{why}; end the pods that use the volume here, and it has its size when the next starts"
            ))
        })
    }

    fn filesystem_has_all(&self, volume: &Volume) -> Result<(), PoolError> {
        if volume.filesystem_bytes == volume.bytes {
            return Ok(());
        }
        self.write_record(&Volume { filesystem_bytes: volume.bytes, ..volume.clone() })
    }

    /// Lets the filesystem of a staged volume have all of the volume. Returns the volume's size.
    ///
    /// # Errors
    /// It is not staged, or the machine failed.
    pub fn expand_filesystem(&self, id: &Id) -> Result<u64, PoolError> {
        let _turn = self.turn(id)?;
        let volume = self.existing(id)?;
        if volume.backend == Backend::Image
            && volume.content != Content::Block
            && volume.filesystem_bytes != volume.bytes
        {
            let Some(at) = self.staged_at(id)? else {
                return Err(PoolError::State(format!("volume {id} is not staged here; it grows when it is")));
            };
            let path = self.device(id, Access::Write)?;
            let device = self.sys().open(&path).map_err(failed("open", &path))?;
            self.grow_mounted(&device, &at)?;
            self.filesystem_has_all(&volume)?;
        }
        Ok(volume.bytes)
    }

    /// Undoes staging. What is not staged, or not there at all, counts as done.
    ///
    /// # Errors
    /// Somebody uses it, or the machine failed.
    pub fn unstage(&self, id: &Id, at: &Path) -> Result<(), PoolError> {
        let _turn = self.turn(id)?;
        self.unmount(at)?;
        let Some(volume) = self.volume(id) else { return Ok(()) };
        if volume.backend == Backend::Image {
            self.release(&volume)?;
        }
        let file = self.staged_file(id);
        self.kernel.remove(&file).map_err(failed("remove", &file))
    }

    pub(crate) fn unmount(&self, at: &Path) -> Result<(), PoolError> {
        let (above, name) = parts(at)?;
        self.unmount_inside(at)?;
        while is_mounted(self.sys(), at)? {
            let above_dir = self.sys().open(above).map_err(failed("open", above))?;
            self.sys().unmount(&above_dir, name, Unmount::Strict).map_err(failed("unmount", at))?;
        }
        Ok(())
    }

    /// Unmounts what those who used a volume have left mounted in it.
    pub(crate) fn unmount_inside(&self, at: &Path) -> Result<(), PoolError> {
        let (above, name) = parts(at)?;
        match self.sys().open(above) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            opened => tree::unmount_inside(self.sys(), &opened.map_err(failed("open", above))?, name)
                .map_err(|(_, errno)| failed("unmount what is in", at)(errno)),
        }
    }

    /// Makes what a mount is to cover, unless it is there.
    pub(crate) fn make_target(&self, at: &Path, directory: bool) -> Result<(), PoolError> {
        let (above, name) = parts(at)?;
        let above_dir = self.sys().open(above).map_err(failed("open", above))?;
        let made = if directory {
            self.sys().make_dir(&above_dir, name, 0o750)
        } else {
            self.sys().write_new(&above_dir, name, b"", 0o600)
        };
        match made {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(failed("make", at)(e)),
            _ => Ok(()),
        }
    }

    /// How full a volume is that is mounted at a path.
    ///
    /// # Errors
    /// No such volume, it is not there, or the machine failed.
    pub fn usage(&self, id: &Id, at: &Path) -> Result<Usage, PoolError> {
        let volume = self.existing(id)?;
        if !is_mounted(self.sys(), at)? {
            return Err(PoolError::NotFound { what: "mount of the volume at", id: at.display().to_string() });
        }
        if volume.content == Content::Block {
            return Ok(Usage::Block(volume.bytes));
        }
        let mut space = self.kernel.space(at).map_err(failed("see the room of", at))?;
        if volume.limit == Limit::Quota {
            // The filesystem tells about all of itself.
            let data = self.data(id);
            let used = self.kernel.limited_usage(&data, volume.project);
            space.used_bytes = used.map_err(failed("see the quota of", &data))?;
            space.free_bytes = space.free_bytes.min(volume.bytes.saturating_sub(space.used_bytes));
            space.total_bytes = volume.bytes;
        }
        Ok(Usage::Filesystem(space))
    }

    /// How a volume fares.
    ///
    /// # Errors
    /// No such volume, or the machine failed.
    pub fn health(&self, id: &Id) -> Result<Health, PoolError> {
        let volume = self.existing(id)?;
        let bad = |why: String| Ok(Health::Bad(why));
        if volume.backend != Backend::Image {
            let data = self.data(id);
            return match self.kernel.space(&data) {
                Ok(_) => Ok(Health::Good),
                Err(e) => bad(format!("its directory {} cannot be read: {e}", data.display())),
            };
        }
        let image = self.image(id);
        match self.kernel.image_size(&image) {
            Err(e) => return bad(format!("its image {} cannot be read: {e}", image.display())),
            Ok((bytes, _)) if bytes < volume.bytes => {
                return bad(format!("its image has {bytes} bytes instead of {}", volume.bytes));
            }
            Ok(_) => {}
        }
        let device = self.kernel.attached(&image, Access::Write).map_err(failed("find the device of", &image))?;
        let (Some(device), Some(staged)) = (device, self.staged_file_path(id)?) else { return Ok(Health::Good) };
        let way_out = "end the pods that use it, so that it is checked when it is mounted next";
        if let Err(e) = self.kernel.space(&staged) {
            return bad(format!("its filesystem does not answer: {e}; {way_out}"));
        }
        match self.kernel.filesystem_errors(&device) {
            0 => {}
            errors => return bad(format!("its filesystem met {errors} error(s); {way_out}")),
        }
        if self.kernel.filesystem_read_only(&device) {
            return bad(format!("its filesystem takes no writes any more; {way_out}"));
        }
        Ok(Health::Good)
    }
}
