//! Images: files that hold a volume, what makes them block devices, and the durable files that describe them.
//!
//! All paths here lie in directories that no pod can change, so they are followed as they are. "Durable" means that it
//! survives a loss of power from the moment the call returns.
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{SeekFrom, StatVfs, copy_file_range, fstatvfs, seek},
    io::Errno,
};

use crate::{Sys, block, btrfs, loops, mountinfo, quota, real::RealSys};

/// Room of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub total_bytes: u64,
    pub used_bytes: u64,
    /// What processes other than root may still take.
    pub free_bytes: u64,
    /// How many files there can be; 0 where the filesystem has no limit of its own.
    pub inodes: u64,
    pub free_inodes: u64,
}

impl Space {
    pub(crate) fn of(stat: &StatVfs) -> Self {
        // Whoever serves a filesystem may say anything.
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        // All ones: inodes are neither bounded nor counted (hugetlbfs).
        let counted = |inodes: u64| if inodes == u64::MAX { 0 } else { inodes };
        Self {
            total_bytes: bytes(stat.f_blocks),
            used_bytes: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
            free_bytes: bytes(stat.f_bavail),
            inodes: counted(stat.f_files),
            free_inodes: counted(stat.f_ffree),
        }
    }
}

/// How a copy came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// It shares its blocks with the original until one of them is written: instant, whatever the size.
    Shared,
    /// Every byte that is not a hole was copied.
    Whole,
}

/// What a device does with writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Takes them.
    Write,
    /// Refuses them, whoever asks.
    Read,
}

/// What an engine of volumes in files needs of the kernel.
///
/// Errors are the kernel's own; callers add the names.
pub trait Disk: Send + Sync {
    /// Makes a directory for root alone, durably; one that is there is left as it is.
    fn ensure_dir(&self, dir: &Path) -> io::Result<()>;
    /// Names in a directory, in order.
    fn names(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// The whole content of a file.
    fn read(&self, file: &Path) -> io::Result<Vec<u8>>;
    /// Gives a file this content, durably and at once: nobody ever sees half of it.
    fn write(&self, file: &Path, content: &[u8]) -> io::Result<()>;
    /// Moves a file or directory within one filesystem, durably. `EEXIST` or `ENOTEMPTY` if there is something at `to`.
    fn move_to(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file, or a directory with all that is in it; follows no link. What is not there counts as removed.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes all that was written to the filesystem of `path` durable.
    fn sync(&self, path: &Path) -> io::Result<()>;
    /// Room of the filesystem that `path` is on.
    fn space(&self, path: &Path) -> io::Result<Space>;

    /// Makes a file of that size whose content is zeros and takes no space; `EEXIST` if there is one.
    fn make_image(&self, image: &Path, bytes: u64) -> io::Result<()>;
    /// Gives an image another size.
    fn resize_image(&self, image: &Path, bytes: u64) -> io::Result<()>;
    /// Size of an image, and how much of it takes space, in bytes.
    fn image_size(&self, image: &Path) -> io::Result<(u64, u64)>;
    /// Where an image is not a hole: begin and end of each stretch, in bytes, in order.
    fn data_in(&self, image: &Path) -> io::Result<Vec<(u64, u64)>>;
    /// Copies an image, durably, without what is a hole; `EEXIST` if there is something at `to`.
    fn copy_image(&self, from: &Path, to: &Path) -> io::Result<Copied>;

    /// The block device of that kind that an image is behind, if it is behind one.
    fn attached(&self, image: &Path, access: Access) -> io::Result<Option<PathBuf>>;
    /// Puts an image behind a block device with sectors of 4,096 bytes. It may be behind one of each kind; what the one has
    /// cached, the other does not see, as two machines would not.
    fn attach(&self, image: &Path, access: Access) -> io::Result<PathBuf>;
    /// Tells a device that its image has grown.
    fn refresh(&self, device: &Path) -> io::Result<()>;
    /// Takes a device from its image. `EBUSY` (by kind; the error says who): somebody uses it; it goes when they let go.
    fn detach(&self, device: &Path) -> io::Result<()>;

    /// Whether this host has the program that makes such filesystems.
    fn can_format(&self, kind: &str) -> bool;
    /// As [`Sys::make_filesystem`], with words for the program, which nobody but the caller judges. The caller sees to it that
    /// nobody else does so with that device meanwhile.
    fn format(&self, device: &Path, kind: &str, options: &[String]) -> io::Result<()>;
    /// Gives the filesystem of a copy an identity of its own, where its kind cannot be mounted beside its original otherwise.
    fn set_apart(&self, device: &Path, kind: &str) -> io::Result<()>;
    /// Repairs a filesystem that no mount has, as far as that needs no decision, where its kind does not do so itself when
    /// it is mounted. False: this host lacks the program for it.
    fn check_filesystem(&self, device: &Path, kind: &str) -> io::Result<bool>;
    /// How many errors the kernel has met in the filesystem of a device since it was made or repaired, where its kind counts.
    fn filesystem_errors(&self, device: &Path) -> u64;
    /// Whether the filesystem of a device is mounted and takes no writes at any of its mounts.
    fn filesystem_read_only(&self, device: &Path) -> bool;
    /// Halts all writes to the mounted filesystem and brings what is in memory to its device. `EBUSY`: it is frozen.
    fn freeze(&self, mounted: &Path) -> io::Result<()>;
    /// Lets writes go on. `EINVAL`: it is not frozen.
    fn thaw(&self, mounted: &Path) -> io::Result<()>;

    /// Makes an empty btrfs subvolume, durably; `EOPNOTSUPP` on any other filesystem, `EEXIST` if there is something.
    fn make_subvolume(&self, dir: &Path) -> io::Result<()>;
    /// Makes `to` a writable copy of the subvolume `from` as it is at this instant, durably; they share their blocks.
    fn copy_subvolume(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Bounds what can be in a directory and below: of a btrfs subvolume by its qgroup, else by the quota of `project`, a
    /// number that no other directory of the filesystem has. `EOPNOTSUPP`: neither can be had here.
    fn limit_directory(&self, dir: &Path, project: u32, bytes: u64) -> io::Result<()>;
    /// How much a directory that is bounded has, in bytes, as far as the filesystem counted. `EOPNOTSUPP` as above.
    fn limited_usage(&self, dir: &Path, project: u32) -> io::Result<u64>;
}

/// A file that is being written, beside the one whose place it takes.
const UNFINISHED: &str = ".new";
const FIFREEZE: u64 = 0xC004_5877;
const FITHAW: u64 = 0xC004_5878;

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), sync_dir)
}

impl Disk for RealSys {
    fn ensure_dir(&self, dir: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && fs::symlink_metadata(dir)?.is_dir() => Ok(()),
            Err(e) => Err(e),
            Ok(()) => sync_parent(dir),
        }
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = fs::read_dir(dir)?
            .map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn read(&self, file: &Path) -> io::Result<Vec<u8>> {
        fs::read(file)
    }

    fn write(&self, file: &Path, content: &[u8]) -> io::Result<()> {
        let mut unfinished = file.as_os_str().to_owned();
        unfinished.push(UNFINISHED);
        let unfinished = PathBuf::from(unfinished);
        let mut new = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        new.write_all(content)?;
        new.sync_all()?;
        fs::rename(&unfinished, file)?;
        sync_parent(file)
    }

    fn move_to(&self, from: &Path, to: &Path) -> io::Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?;
        sync_parent(to)?;
        if from.parent() == to.parent() { Ok(()) } else { sync_parent(from) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => {
                btrfs::remove_inside(path)?;
                fs::remove_dir_all(path)
            }
            Ok(_) => fs::remove_file(path),
            Err(e) => Err(e),
        };
        match removed {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::syncfs(File::open(path)?)?)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        Ok(Space::of(&fstatvfs(File::open(path)?)?))
    }

    fn make_image(&self, image: &Path, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(image)?;
        file.set_len(bytes)?;
        file.sync_all()?;
        sync_parent(image)
    }

    fn resize_image(&self, image: &Path, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(image)?;
        file.set_len(bytes)?;
        file.sync_all()
    }

    fn image_size(&self, image: &Path) -> io::Result<(u64, u64)> {
        let meta = fs::metadata(image)?;
        Ok((meta.len(), meta.blocks() * 512))
    }

    fn data_in(&self, image: &Path) -> io::Result<Vec<(u64, u64)>> {
        data_in(&File::open(image)?)
    }

    fn copy_image(&self, from: &Path, to: &Path) -> io::Result<Copied> {
        let source = File::open(from)?;
        let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        let how = match rustix::fs::ioctl_ficlone(&target, &source) {
            Ok(()) => Copied::Shared,
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::XDEV | Errno::NOTTY | Errno::NOSYS) => {
                copy_data(&source, &target)?;
                Copied::Whole
            }
            Err(e) => return Err(e.into()),
        };
        target.sync_all()?;
        sync_parent(to)?;
        Ok(how)
    }

    fn attached(&self, image: &Path, access: Access) -> io::Result<Option<PathBuf>> {
        loops::attached(image, access)
    }

    fn attach(&self, image: &Path, access: Access) -> io::Result<PathBuf> {
        loops::attach(image, access)
    }

    fn refresh(&self, device: &Path) -> io::Result<()> {
        loops::refresh(device)
    }

    fn detach(&self, device: &Path) -> io::Result<()> {
        loops::detach(device)
    }

    fn can_format(&self, kind: &str) -> bool {
        block::maker(kind).is_some_and(|(program, _)| block::installed(program).is_some())
    }

    fn format(&self, device: &Path, kind: &str, options: &[String]) -> io::Result<()> {
        block::make(&self.open(device)?, kind, options)
    }

    fn set_apart(&self, device: &Path, kind: &str) -> io::Result<()> {
        if kind == "btrfs" { block::rename_btrfs(&self.open(device)?) } else { Ok(()) }
    }

    fn check_filesystem(&self, device: &Path, kind: &str) -> io::Result<bool> {
        if !kind.starts_with("ext") {
            return Ok(true);
        }
        match block::repair_ext(&self.open(device)?) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            other => other.map(|()| true),
        }
    }

    fn filesystem_errors(&self, device: &Path) -> u64 {
        let Some(name) = device.file_name() else { return 0 };
        let counter = Path::new("/sys/fs/ext4").join(name).join("errors_count");
        fs::read_to_string(counter).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn filesystem_read_only(&self, device: &Path) -> bool {
        let Ok(mounts) = fs::read("/proc/thread-self/mountinfo") else { return false };
        fs::metadata(device).is_ok_and(|found| mountinfo::filesystem_is_read_only(&mounts, found.rdev()))
    }

    fn freeze(&self, mounted: &Path) -> io::Result<()> {
        loops::request(&File::open(mounted)?, FIFREEZE, 0).map(drop)
    }

    fn thaw(&self, mounted: &Path) -> io::Result<()> {
        loops::request(&File::open(mounted)?, FITHAW, 0).map(drop)
    }

    fn make_subvolume(&self, dir: &Path) -> io::Result<()> {
        btrfs::make(dir)?;
        sync_parent(dir)
    }

    fn copy_subvolume(&self, from: &Path, to: &Path) -> io::Result<()> {
        btrfs::copy(from, to)?;
        sync_parent(to)
    }

    fn limit_directory(&self, dir: &Path, project: u32, bytes: u64) -> io::Result<()> {
        if btrfs::is_subvolume(dir)? { btrfs::limit(dir, bytes) } else { quota::limit(dir, project, bytes) }
    }

    fn limited_usage(&self, dir: &Path, project: u32) -> io::Result<u64> {
        if btrfs::is_subvolume(dir)? { btrfs::usage(dir) } else { quota::usage(dir, project) }
    }
}

/// Where a file is not a hole.
fn data_in(file: &File) -> io::Result<Vec<(u64, u64)>> {
    let end = file.metadata()?.len();
    let (mut at, mut found) = (0, Vec::new());
    while at < end {
        let start = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            other => other?,
        };
        at = seek(file, SeekFrom::Hole(start))?;
        found.push((start, at));
    }
    Ok(found)
}

/// Copies what is not a hole; `to` is empty and gets the size of `from`.
fn copy_data(from: &File, to: &File) -> io::Result<()> {
    to.set_len(from.metadata()?.len())?;
    for (start, stop) in data_in(from)? {
        let (mut read, mut written) = (start, start);
        while read < stop {
            let most = usize::try_from(stop - read).unwrap_or(usize::MAX);
            if copy_file_range(from.as_fd(), Some(&mut read), to.as_fd(), Some(&mut written), most)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    Ok(())
}
