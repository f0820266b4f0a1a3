//! Images: files that hold a volume, what makes them block devices, and the durable files that describe them.
//!
//! All paths here lie in directories that no pod can change, so they are followed as they are. "Durable" means that it
//! survives a loss of power from the moment the call returns.
use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{SeekFrom, copy_file_range, fstatfs, fstatvfs, seek},
    io::Errno,
};

use crate::{Sys, block, real::RealSys};

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

/// How a copy came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// It shares its blocks with the original until one of them is written: instant, whatever the size.
    Shared,
    /// Every byte that is not a hole was copied.
    Whole,
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
    /// Room of the filesystem that `path` is on.
    fn space(&self, path: &Path) -> io::Result<Space>;

    /// Makes a file of that size whose content is zeros and takes no space; `EEXIST` if there is one.
    fn make_image(&self, image: &Path, bytes: u64) -> io::Result<()>;
    /// Gives an image another size.
    fn resize_image(&self, image: &Path, bytes: u64) -> io::Result<()>;
    /// Size of an image, and how much of it takes space, in bytes.
    fn image_size(&self, image: &Path) -> io::Result<(u64, u64)>;
    /// Copies an image, durably, without what is a hole; `EEXIST` if there is something at `to`.
    fn copy_image(&self, from: &Path, to: &Path) -> io::Result<Copied>;

    /// The block device that an image is behind, if it is behind one.
    fn attached(&self, image: &Path) -> io::Result<Option<PathBuf>>;
    /// Puts an image behind a block device with sectors of 4,096 bytes.
    fn attach(&self, image: &Path) -> io::Result<PathBuf>;
    /// Tells a device that its image has grown.
    fn refresh(&self, device: &Path) -> io::Result<()>;
    /// Takes a device from its image. `EBUSY`: somebody uses it; it goes when they let go.
    fn detach(&self, device: &Path) -> io::Result<()>;

    /// Repairs a filesystem that no mount has, as far as that needs no decision, where its kind does not do so itself when
    /// it is mounted. False: this host lacks the program for it.
    fn check_filesystem(&self, device: &Path, kind: &str) -> io::Result<bool>;
    /// How many errors the kernel has met in the filesystem of a device since it was made or repaired, where its kind counts.
    fn filesystem_errors(&self, device: &Path) -> u64;
    /// Halts all writes to the mounted filesystem and brings what is in memory to its device. `EBUSY`: it is frozen.
    fn freeze(&self, mounted: &Path) -> io::Result<()>;
    /// Lets writes go on. `EINVAL`: it is not frozen.
    fn thaw(&self, mounted: &Path) -> io::Result<()>;
}

/// A file that is being written, beside the one whose place it takes.
const UNFINISHED: &str = ".new";
const FUSE_MAGIC: i64 = 0x6573_5546;
/// How often a device that somebody else took first is given up for another one.
const ATTACH_TRIES: usize = 64;
const SECTOR_BYTES: u32 = 4096;
/// How often and how far apart it is looked whether a device is free of its image.
const DETACH_LOOKS: u32 = 100;
const DETACH_WAIT: Duration = Duration::from_millis(10);

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
            Ok(found) if found.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(e) => Err(e),
        };
        match removed {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let stat = fstatvfs(File::open(path)?)?;
        Ok(Space {
            total_bytes: stat.f_blocks * stat.f_frsize,
            used_bytes: stat.f_blocks.saturating_sub(stat.f_bfree) * stat.f_frsize,
            free_bytes: stat.f_bavail * stat.f_frsize,
            inodes: stat.f_files,
            free_inodes: stat.f_ffree,
        })
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

    fn attached(&self, image: &Path) -> io::Result<Option<PathBuf>> {
        let meta = match fs::metadata(image) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        for entry in fs::read_dir("/sys/block")? {
            let name = entry?.file_name();
            // Opening a device keeps others from detaching it: only those whose file has such a name are looked at. Only
            // a device with a file has this file.
            let backing = Path::new("/sys/block").join(&name).join("loop/backing_file");
            if !fs::read(backing).is_ok_and(|file| may_be(&file, image)) {
                continue;
            }
            let device = Path::new("/dev").join(&name);
            if loop_status(&device)?.is_some_and(|s| (s.device, s.inode) == (meta.dev(), meta.ino())) {
                return Ok(Some(device));
            }
        }
        Ok(None)
    }

    fn attach(&self, image: &Path) -> io::Result<PathBuf> {
        let file = OpenOptions::new().read(true).write(true).open(image)?;
        // A loop device that goes past the cache loses writes on FUSE.
        #[allow(clippy::unnecessary_cast)] // The type of `f_type` differs between architectures.
        let direct = fstatfs(&file)?.f_type as i64 != FUSE_MAGIC;
        let control = File::open("/dev/loop-control")?;
        for _ in 0..ATTACH_TRIES {
            let number = loop_ioctl(&control, LOOP_CTL_GET_FREE, 0)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(true).open(&path)?;
            let mut config = LoopConfig {
                fd: u32::try_from(file.as_raw_fd()).map_err(|_| Errno::BADF)?,
                block_size: SECTOR_BYTES,
                ..LoopConfig::default()
            };
            config.info.flags = if direct { LO_FLAGS_DIRECT_IO } else { 0 };
            match loop_ioctl(&device, LOOP_CONFIGURE, std::ptr::from_ref(&config) as usize) {
                Err(e) if e.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
                other => return other.map(|_| path),
            }
        }
        Err(Errno::BUSY.into())
    }

    fn refresh(&self, device: &Path) -> io::Result<()> {
        loop_ioctl(&File::open(device)?, LOOP_SET_CAPACITY, 0).map(drop)
    }

    fn detach(&self, device: &Path) -> io::Result<()> {
        match loop_ioctl(&File::open(device)?, LOOP_CLR_FD, 0) {
            // It has no image any more.
            Err(e) if e.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => return Ok(()),
            other => other?,
        };
        // Where somebody has the device open, and be it to look at it, the kernel waits for that.
        for _ in 0..DETACH_LOOKS {
            if loop_status(device)?.is_none() {
                return Ok(());
            }
            std::thread::sleep(DETACH_WAIT);
        }
        Err(Errno::BUSY.into())
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

    fn freeze(&self, mounted: &Path) -> io::Result<()> {
        loop_ioctl(&File::open(mounted)?, FIFREEZE, 0).map(drop)
    }

    fn thaw(&self, mounted: &Path) -> io::Result<()> {
        loop_ioctl(&File::open(mounted)?, FITHAW, 0).map(drop)
    }
}

/// Whether what the kernel says of a device's file can be said of `image`: it has the same name in a directory of the same
/// name. Where these are is told differently in other mount namespaces.
fn may_be(said: &[u8], image: &Path) -> bool {
    let said = Path::new(OsStr::from_bytes(said.trim_ascii_end()));
    let tail = |path: &Path| {
        (path.file_name().map(OsStr::to_owned), path.parent().and_then(|p| p.file_name()).map(OsStr::to_owned))
    };
    tail(said) == tail(image)
}

/// Copies what is not a hole; `to` is empty and gets the size of `from`.
fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let end = from.metadata()?.len();
    to.set_len(end)?;
    let mut at = 0;
    while at < end {
        let start = match seek(from, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            other => other?,
        };
        let stop = seek(from, SeekFrom::Hole(start))?;
        let (mut read, mut written) = (start, start);
        while read < stop {
            let most = usize::try_from(stop - read).unwrap_or(usize::MAX);
            if copy_file_range(from.as_fd(), Some(&mut read), to.as_fd(), Some(&mut written), most)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        at = stop;
    }
    Ok(())
}

const LOOP_CLR_FD: u64 = 0x4C01;
const LOOP_GET_STATUS64: u64 = 0x4C05;
const LOOP_SET_CAPACITY: u64 = 0x4C07;
const LOOP_CONFIGURE: u64 = 0x4C0A;
const LOOP_CTL_GET_FREE: u64 = 0x4C82;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const FIFREEZE: u64 = 0xC004_5877;
const FITHAW: u64 = 0xC004_5878;

/// `struct loop_info64`
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`
#[repr(C)]
#[derive(Default)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

impl Default for LoopInfo {
    fn default() -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// What a loop device says of its file; `None` if it has none, or is gone.
fn loop_status(device: &Path) -> io::Result<Option<LoopInfo>> {
    let gone =
        |e: &io::Error| e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(Errno::NXIO.raw_os_error());
    let file = match File::open(device) {
        Err(e) if gone(&e) => return Ok(None),
        other => other?,
    };
    if !file.metadata()?.file_type().is_block_device() {
        return Ok(None);
    }
    let mut info = LoopInfo::default();
    match loop_ioctl(&file, LOOP_GET_STATUS64, std::ptr::from_mut(&mut info) as usize) {
        Err(e) if gone(&e) => Ok(None),
        other => other.map(|_| Some(info)),
    }
}

/// `argument` is zero, or the address of the struct that the request takes.
#[allow(unsafe_code)]
fn loop_ioctl(file: &File, request: u64, argument: usize) -> io::Result<i32> {
    // SAFETY: the descriptor is open for the whole call. The requests of this file take no argument, or the address of a
    // `LoopInfo` or `LoopConfig` that lives in the caller's frame and has the layout that the kernel reads or writes.
    let result = unsafe { nix::libc::ioctl(file.as_raw_fd(), request as _, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[test]
fn structs_have_the_kernels_size() {
    assert_eq!(size_of::<LoopInfo>(), 232);
    assert_eq!(size_of::<LoopConfig>(), 304);
}
