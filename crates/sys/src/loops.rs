//! Loop devices: what makes a file a block device.
use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{fs::fstatfs, io::Errno};

use crate::{disk::Access, holders};

const FUSE_MAGIC: i64 = 0x6573_5546;
/// How often a device that somebody else took first is given up for another one.
const ATTACH_TRIES: usize = 64;
const SECTOR_BYTES: u32 = 4096;
/// What is on a disk made elsewhere may count in these.
const FOREIGN_SECTOR_BYTES: u32 = 512;
/// How often and how far apart it is looked whether a device is free of its image.
const DETACH_LOOKS: u32 = 100;
const DETACH_WAIT: Duration = Duration::from_millis(10);

pub(crate) fn attached(image: &Path, access: Access) -> io::Result<Option<PathBuf>> {
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
        let is_it = |s: &LoopInfo| {
            let refuses = s.flags & LO_FLAGS_READ_ONLY != 0;
            (s.device, s.inode) == (meta.dev(), meta.ino()) && refuses == (access == Access::Read)
        };
        if loop_status(&device)?.as_ref().is_some_and(is_it) {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

pub(crate) fn attach(image: &Path, access: Access) -> io::Result<PathBuf> {
    let file = OpenOptions::new().read(true).write(access == Access::Write).open(image)?;
    configure(&file, access, SECTOR_BYTES, 0).map(|(path, _)| path)
}

/// With the sectors that disks of other machines have.
pub(crate) fn attach_foreign(image: &Path, access: Access) -> io::Result<PathBuf> {
    let file = OpenOptions::new().read(true).write(access == Access::Write).open(image)?;
    configure(&file, access, FOREIGN_SECTOR_BYTES, 0).map(|(path, _)| path)
}

/// Puts a file behind a device that lets go of it as soon as nobody has the device open or mounted any more.
pub(crate) fn lend(file: &File) -> io::Result<(PathBuf, File)> {
    configure(file, Access::Write, SECTOR_BYTES, LO_FLAGS_AUTOCLEAR)
}

fn configure(file: &File, access: Access, sector_bytes: u32, flags: u32) -> io::Result<(PathBuf, File)> {
    let writes = access == Access::Write;
    // A loop device that goes past the cache loses writes on FUSE.
    #[allow(clippy::unnecessary_cast)] // The type of `f_type` differs between architectures.
    let direct = fstatfs(file)?.f_type as i64 != FUSE_MAGIC;
    let control = File::open("/dev/loop-control")?;
    for _ in 0..ATTACH_TRIES {
        let number = request(&control, LOOP_CTL_GET_FREE, 0)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).write(writes).open(&path)?;
        let mut config = LoopConfig {
            fd: u32::try_from(file.as_raw_fd()).map_err(|_| Errno::BADF)?,
            block_size: sector_bytes,
            ..LoopConfig::default()
        };
        let kind = if direct { LO_FLAGS_DIRECT_IO } else { 0 } | if writes { 0 } else { LO_FLAGS_READ_ONLY };
        config.info.flags = flags | kind;
        match request(&device, LOOP_CONFIGURE, std::ptr::from_ref(&config) as usize) {
            Err(e) if e.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => continue,
            other => other?,
        };
        if writes && let Err(e) = keep_flushes(number) {
            drop(device);
            detach(&path)?;
            return Err(e);
        }
        return Ok((path, device));
    }
    Err(Errno::BUSY.into())
}

/// The device that a file is behind, by the file's full name: its filesystem may not answer any more.
pub(crate) fn named(file: &Path) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let backing = Path::new("/sys/block").join(&name).join("loop/backing_file");
        if fs::read(backing).is_ok_and(|said| said.trim_ascii_end() == file.as_os_str().as_bytes()) {
            return Ok(Some(Path::new("/dev").join(name)));
        }
    }
    Ok(None)
}

/// Lets the device pass on what asks for durability. A device whose cache somebody declared harmless keeps that for its
/// next file: its filesystem then believes that every write is durable, and none is.
fn keep_flushes(number: i32) -> io::Result<()> {
    const HARMLESS: &str = "write through";
    let setting = PathBuf::from(format!("/sys/block/loop{number}/queue/write_cache"));
    let is_harmless = || fs::read_to_string(&setting).is_ok_and(|is| is.trim() == HARMLESS);
    if !is_harmless() {
        return Ok(());
    }
    let written = fs::write(&setting, "write back");
    if is_harmless() {
        let why = written.err().map_or_else(|| "the kernel keeps it".to_owned(), |e| e.to_string());
        let why = format!(
            "{} says \"{HARMLESS}\", with which data can be lost, and cannot be changed: {why}",
            setting.display()
        );
        return Err(io::Error::other(why));
    }
    Ok(())
}

pub(crate) fn refresh(device: &Path) -> io::Result<()> {
    request(&File::open(device)?, LOOP_SET_CAPACITY, 0).map(drop)
}

pub(crate) fn detach(device: &Path) -> io::Result<()> {
    match request(&File::open(device)?, LOOP_CLR_FD, 0) {
        // It has no image any more.
        Err(e) if e.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => return Ok(()),
        other => other?,
    };
    // Where somebody has the device open, and be it to look at it, the kernel waits for that.
    for _ in 0..DETACH_LOOKS {
        match loop_status(device) {
            Ok(None) => return Ok(()),
            Ok(Some(_)) => {}
            // It has a file yet, whose filesystem does not answer any more.
            Err(e) if matches!(e.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::NOTCONN | Errno::IO)) => {}
            Err(e) => return Err(e),
        }
        std::thread::sleep(DETACH_WAIT);
    }
    Err(holders::busy(device))
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

const LOOP_CLR_FD: u64 = 0x4C01;
const LOOP_GET_STATUS64: u64 = 0x4C05;
const LOOP_SET_CAPACITY: u64 = 0x4C07;
const LOOP_CONFIGURE: u64 = 0x4C0A;
const LOOP_CTL_GET_FREE: u64 = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

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
    match request(&file, LOOP_GET_STATUS64, std::ptr::from_mut(&mut info) as usize) {
        Err(e) if gone(&e) => Ok(None),
        other => other.map(|_| Some(info)),
    }
}

/// `argument` is zero, or the address of the struct that the request takes.
#[allow(unsafe_code)]
pub(crate) fn request(file: &File, request: u64, argument: usize) -> io::Result<i32> {
    // SAFETY: the descriptor is open for the whole call. The requests of this file take no argument, or the address of a
    // `LoopInfo` or `LoopConfig` that lives in the caller's frame and has the layout that the kernel reads or writes.
    let result = unsafe { nix::libc::ioctl(file.as_raw_fd(), request as _, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[test]
fn a_device_passes_on_flushes_whatever_its_last_user_did() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    File::create(&image).and_then(|f| f.set_len(1 << 20)).expect("an image");
    let setting = |device: &Path| {
        let name = device.file_name().expect("a name").to_string_lossy().into_owned();
        PathBuf::from(format!("/sys/block/{name}/queue/write_cache"))
    };
    let first = attach(&image, Access::Write).expect("a device");
    fs::write(setting(&first), "write through").expect("set");
    detach(&first).expect("free");
    // Others take devices meanwhile.
    let met = (0..50).any(|_| {
        let device = attach(&image, Access::Write).expect("a device");
        let is = fs::read_to_string(setting(&device)).expect("a setting");
        detach(&device).expect("free");
        assert_eq!(is.trim(), "write back", "{}", device.display());
        device == first
    });
    assert!(met, "{} was never free", first.display());
}

#[test]
fn structs_have_the_kernels_size() {
    assert_eq!(size_of::<LoopInfo>(), 232);
    assert_eq!(size_of::<LoopConfig>(), 304);
}

#[test]
fn whoever_keeps_a_device_in_use_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    File::create(&image).and_then(|f| f.set_len(1 << 20)).expect("an image");
    let device = attach(&image, Access::Write).expect("a device");
    let sleep = |input: File| std::process::Command::new("sleep").arg("600").stdin(input).spawn();
    let mut user = File::open(&device).and_then(sleep).expect("sleep");
    let error = detach(&device).expect_err("it is in use");
    user.kill().and_then(|()| user.wait()).expect("end it");
    assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy);
    let who = format!("process {} (sleep) has it open", user.id());
    assert!(error.to_string().contains(&who), "{error}");
    detach(&device).expect("free");
}
