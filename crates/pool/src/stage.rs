//! Bringing a volume to a path of this machine, and taking it away again.
use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use sys::{Bind, DeviceContent, DeviceMount, Handle, ReadOnly, Space, Sys, Unmount};

use crate::{
    Backend, Content, Id, Pool, Volume,
    error::{PoolError, failed},
    record::{decode, encode},
};

/// Where a volume is staged, in its directory: what a restart, a snapshot and a deletion need to know.
const STAGED: &str = "staged";
/// Where it is published: a list of paths.
const PUBLISHED: &str = "published";

/// How a volume is staged.
#[derive(Debug, Clone, Copy)]
pub struct Stage<'a> {
    /// A directory. Of a block volume: not used.
    pub at: &'a Path,
    /// As after `mount -o`, one each.
    pub options: &'a [String],
}

/// How a staged volume is published.
#[derive(Debug, Clone, Copy)]
pub struct Publish<'a> {
    /// Where it is staged.
    pub staged: &'a Path,
    /// A directory, or a file for a block volume; made if it is not there.
    pub at: &'a Path,
    pub read_only: bool,
    /// Only if it is published nowhere else.
    pub alone: bool,
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

fn is_mounted(sys: &dyn Sys, at: &Path) -> Result<bool, PoolError> {
    match sys.open(at).and_then(|h| sys.stat(&h)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|s| s.mount_root).map_err(failed("read", at)),
    }
}

fn parts(at: &Path) -> Result<(&Path, &OsStr), PoolError> {
    match (at.parent(), at.file_name()) {
        (Some(above), Some(name)) if at.is_absolute() => Ok((above, name)),
        _ => Err(PoolError::Invalid(format!("{} is no path to mount at", at.display()))),
    }
}

impl Pool {
    /// What the kernel calls a pool's things by.
    fn sys(&self) -> &dyn Sys {
        &*self.kernel
    }

    fn staged_file(&self, id: &Id) -> PathBuf {
        self.volume_dir(id).join(STAGED)
    }

    /// Where the volume's filesystem is mounted now.
    pub(crate) fn staged_at(&self, id: &Id) -> Result<Option<PathBuf>, PoolError> {
        let file = self.staged_file(id);
        let at = match self.kernel.read(&file) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => PathBuf::from(String::from_utf8_lossy(&other.map_err(failed("read", &file))?).into_owned()),
        };
        // After a reboot nothing is.
        Ok(is_mounted(self.sys(), &at)?.then_some(at))
    }

    /// Takes a volume that nobody uses from its device.
    pub(crate) fn release(&self, id: &Id) -> Result<(), PoolError> {
        if let Some(at) = self.staged_at(id)? {
            return Err(PoolError::State(format!("volume {id} is in use at {}; unstage it first", at.display())));
        }
        let image = self.image(id);
        match self.kernel.attached(&image).map_err(failed("find the device of", &image))? {
            Some(device) => self.kernel.detach(&device).map_err(failed("detach", &device)),
            None => Ok(()),
        }
    }

    /// The device of a volume's image.
    fn device(&self, id: &Id) -> Result<PathBuf, PoolError> {
        let image = self.image(id);
        match self.kernel.attached(&image).map_err(failed("find the device of", &image))? {
            Some(device) => Ok(device),
            None => self.kernel.attach(&image).map_err(failed("attach", &image)),
        }
    }

    /// Prepares a volume: its device, its filesystem (made, repaired or grown if need be), its mount.
    ///
    /// # Errors
    /// No such volume, it is staged elsewhere, its content is no filesystem, or the machine failed.
    pub fn stage(&self, id: &Id, stage: &Stage<'_>) -> Result<(), PoolError> {
        let _turn = self.turn(id)?;
        let volume = self.existing(id)?;
        if volume.backend == Backend::Directory {
            return if stage.options.is_empty() {
                Ok(())
            } else {
                Err(PoolError::Invalid("a directory is not mounted, so mount options mean nothing for it".into()))
            };
        }
        if let Some(other) = self.staged_at(id)?.filter(|other| other != stage.at) {
            return Err(PoolError::State(format!("volume {id} is staged at {} already", other.display())));
        }
        let device = self.device(id)?;
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
                sys.make_filesystem(&device, wanted).map_err(failed("make a filesystem on", path))?;
                wanted.to_owned()
            }
            DeviceContent::Filesystem(kind) => {
                if !self.kernel.check_filesystem(path, &kind).map_err(failed("repair the filesystem on", path))? {
                    tracing::warn!(volume = %volume.id, kind, "not checked: the program for it is not installed");
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
        // What pods delete goes back to the machine.
        let mut options = vec!["discard".to_owned()];
        options.extend_from_slice(stage.options);
        let mount = DeviceMount { kind: &kind, read_only: false, options: &options };
        sys.mount_device(&device, &at, &mount).map_err(failed("mount on", stage.at))?;
        if outgrown && !grown {
            self.grow_mounted(&device, stage.at)?;
        }
        self.filesystem_has_all(volume)
    }

    fn grow_mounted(&self, device: &Handle, at: &Path) -> Result<(), PoolError> {
        let top = self.sys().open(at).map_err(failed("open", at))?;
        self.sys().grow_filesystem(device, &top).map_err(failed("grow the filesystem at", at))
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
            let path = self.device(id)?;
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
            self.release(id)?;
        }
        let file = self.staged_file(id);
        self.kernel.remove(&file).map_err(failed("remove", &file))
    }

    fn unmount(&self, at: &Path) -> Result<(), PoolError> {
        let (above, name) = parts(at)?;
        while is_mounted(self.sys(), at)? {
            let above_dir = self.sys().open(above).map_err(failed("open", above))?;
            self.sys().unmount(&above_dir, name, Unmount::Strict).map_err(failed("unmount", at))?;
        }
        Ok(())
    }

    /// Makes what a mount is to cover, unless it is there.
    fn make_target(&self, at: &Path, directory: bool) -> Result<(), PoolError> {
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

    /// Where the volume was to be published, mounted or not.
    fn published(&self, id: &Id) -> Result<Vec<PathBuf>, PoolError> {
        let file = self.volume_dir(id).join(PUBLISHED);
        match self.kernel.read(&file) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => decode(&file, &other.map_err(failed("read", &file))?),
        }
    }

    fn set_published(&self, id: &Id, paths: &[PathBuf]) -> Result<(), PoolError> {
        let file = self.volume_dir(id).join(PUBLISHED);
        self.kernel.write(&file, &encode(&paths)).map_err(failed("write", &file))
    }

    /// Writes down that a volume is going to be at `publish.at`.
    fn note(&self, id: &Id, publish: &Publish<'_>) -> Result<(), PoolError> {
        let mut paths = self.published(id)?;
        for other in paths.iter().filter(|other| publish.alone && *other != publish.at) {
            if is_mounted(self.sys(), other)? {
                let why = format!("volume {id} is for one pod alone, and is published at {}", other.display());
                return Err(PoolError::State(why));
            }
        }
        if paths.iter().any(|p| p == publish.at) {
            return Ok(());
        }
        paths.push(publish.at.to_owned());
        self.set_published(id, &paths)
    }

    /// Shows a staged volume at one more path.
    ///
    /// # Errors
    /// No such volume, it is not staged, or the machine failed.
    pub fn publish(&self, id: &Id, publish: &Publish<'_>) -> Result<(), PoolError> {
        let _turn = self.turn(id)?;
        let volume = self.existing(id)?;
        let source = match (volume.backend, &volume.content) {
            (Backend::Directory, _) => self.data(id),
            (Backend::Image, Content::Block) => self.device(id)?,
            (Backend::Image, Content::Filesystem(_)) => match self.staged_at(id)? {
                Some(at) if at == publish.staged => at,
                _ => {
                    let why = format!("volume {id} is not staged at {}", publish.staged.display());
                    return Err(PoolError::State(why));
                }
            },
        };
        self.note(id, publish)?;
        self.make_target(publish.at, volume.content != Content::Block)?;
        if is_mounted(self.sys(), publish.at)? {
            return Ok(());
        }
        let from = self.sys().open(&source).map_err(failed("open", &source))?;
        let to = self.sys().open(publish.at).map_err(failed("open", publish.at))?;
        let read_only = if publish.read_only { ReadOnly::Top } else { ReadOnly::No };
        let bind = Bind { read_only, ..Bind::default() };
        self.sys().bind(&from, &to, &bind).map_err(failed("mount on", publish.at))
    }

    /// Undoes publishing, and removes the path. What is not there counts as done.
    ///
    /// # Errors
    /// Somebody uses it, or the machine failed.
    pub fn unpublish(&self, id: &Id, at: &Path) -> Result<(), PoolError> {
        let _turn = self.turn(id)?;
        self.unmount(at)?;
        if self.volume(id).is_some() {
            let mut paths = self.published(id)?;
            if paths.iter().any(|p| p == at) {
                paths.retain(|p| p != at);
                self.set_published(id, &paths)?;
            }
        }
        let (above, name) = parts(at)?;
        let above_dir = match self.sys().open(above) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed("open", above))?,
        };
        let removed = match self.sys().stat_at(&above_dir, name) {
            Ok(found) if found.is_dir() => self.sys().remove_dir(&above_dir, name),
            Ok(_) => self.sys().remove_file(&above_dir, name),
            Err(e) => Err(e),
        };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", at)(e)),
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
        match volume.content {
            Content::Block => Ok(Usage::Block(volume.bytes)),
            Content::Filesystem(_) => {
                self.kernel.space(at).map(Usage::Filesystem).map_err(failed("see the room of", at))
            }
        }
    }

    /// How a volume fares.
    ///
    /// # Errors
    /// No such volume.
    pub fn health(&self, id: &Id) -> Result<Health, PoolError> {
        let volume = self.existing(id)?;
        if volume.backend == Backend::Directory {
            return Ok(Health::Good);
        }
        let image = self.image(id);
        match self.kernel.image_size(&image) {
            Err(e) => return Ok(Health::Bad(format!("its image {} cannot be read: {e}", image.display()))),
            Ok((bytes, _)) if bytes < volume.bytes => {
                return Ok(Health::Bad(format!("its image has {bytes} bytes instead of {}", volume.bytes)));
            }
            Ok(_) => {}
        }
        let device = self.kernel.attached(&image).map_err(failed("find the device of", &image))?;
        Ok(match device.map_or(0, |device| self.kernel.filesystem_errors(&device)) {
            0 => Health::Good,
            errors => Health::Bad(format!(
                "its filesystem met {errors} error(s); end the pods that use it, so that it is checked when it is mounted next"
            )),
        })
    }
}
