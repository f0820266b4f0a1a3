//! Block devices and the filesystems on them: what is there, making one, mounting it, growing it to the device's size.
use std::{
    ffi::OsStr,
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, process::ExitStatusExt},
    },
    path::PathBuf,
    process::{Command, Stdio},
};

use parking_lot::Mutex;
use rustix::{
    fs::{self, CWD, Mode, OFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
        fsopen,
    },
};

use crate::{
    Device, DeviceContent, DeviceMount, FsMount, Handle,
    real::{attach, fd, proc_path},
};

/// Where the magic numbers of all filesystems that are told apart here lie, and what has to be zero for "empty".
const HEAD_BYTES: usize = 128 << 10;
const EXT_SUPER: usize = 1024;
const BTRFS_SUPER: usize = 64 << 10;
const EXT_MAGIC: i64 = 0xEF53;
const XFS_MAGIC: i64 = 0x5846_5342;
const BTRFS_MAGIC: i64 = 0x9123_683E;

pub(crate) fn reopen(handle: &Handle, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(fs::open(proc_path(fd(handle)?), flags | OFlags::CLOEXEC, Mode::empty())?)
}

/// The name under which programs find the file, or device.
pub(crate) fn name_of(device: &Handle) -> io::Result<PathBuf> {
    let target = fs::readlinkat(CWD, proc_path(fd(device)?), Vec::new())?;
    Ok(PathBuf::from(OsStr::from_bytes(target.as_bytes())))
}

/// Size and content of a device.
pub(crate) fn probe(device: &Handle) -> io::Result<Device> {
    let mut file = std::fs::File::from(reopen(device, OFlags::RDONLY)?);
    let bytes = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let mut head = Vec::with_capacity(HEAD_BYTES);
    file.take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    Ok(Device { bytes, content: content(&head) })
}

/// Reads what the first bytes of a device say.
fn content(head: &[u8]) -> DeviceContent {
    let at = |from: usize, len: usize| head.get(from..from + len).unwrap_or_default();
    let number = |from: usize| at(from, 4).iter().rev().fold(0u32, |n, b| (n << 8) | u32::from(*b));
    let known = |name: &str| DeviceContent::Filesystem(name.to_owned());
    if at(EXT_SUPER + 56, 2) == [0x53, 0xEF] {
        // Extents or anything later make it ext4; a journal alone, ext3.
        let (journal, later) = (number(EXT_SUPER + 92) & 4 != 0, number(EXT_SUPER + 96) & !0x17 != 0);
        return known(if later {
            "ext4"
        } else if journal {
            "ext3"
        } else {
            "ext2"
        });
    }
    if at(0, 4) == b"XFSB" {
        return known("xfs");
    }
    if at(BTRFS_SUPER + 64, 8) == b"_BHRfS_M" {
        return known("btrfs");
    }
    if head.iter().all(|b| *b == 0) { DeviceContent::Empty } else { DeviceContent::Other }
}

/// Where a program of the host is.
pub(crate) fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Services often have a search path without these.
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.extend(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
    dirs.into_iter().map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Runs a program of the host, without a shell; what users may put into its arguments was judged by who calls this crate.
fn run(program: &str, arguments: &[&str], device: &Handle, good: &[i32]) -> io::Result<()> {
    let device = name_of(device)?;
    let program = installed(program)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{program} is not installed")))?;
    let ran = Command::new(&program).args(arguments).arg(&device).stdin(Stdio::null()).output()?;
    match ran.status.code() {
        Some(code) if good.contains(&code) => Ok(()),
        code => {
            // The checkers complain where others talk.
            let said = if ran.stderr.trim_ascii().is_empty() { &ran.stdout } else { &ran.stderr };
            let said = String::from_utf8_lossy(said);
            let how = code.map_or_else(|| format!("signal {:?}", ran.status.signal()), |code| format!("status {code}"));
            let message = format!("{} ended with {how}: {}", program.display(), said.trim());
            Err(io::Error::other(message))
        }
    }
}

/// The program that makes such filesystems, and its first arguments.
pub(crate) fn maker(kind: &str) -> Option<(&'static str, &'static [&'static str])> {
    Some(match kind {
        "ext2" => ("mkfs.ext2", &["-q", "-F", "-m0"]),
        "ext3" => ("mkfs.ext3", &["-q", "-F", "-m0"]),
        "ext4" => ("mkfs.ext4", &["-q", "-F", "-m0"]),
        "xfs" => ("mkfs.xfs", &["-q", "-f"]),
        "btrfs" => ("mkfs.btrfs", &["-q"]),
        _ => return None,
    })
}

/// As [`make`], for devices that many may want at once.
pub(crate) fn make_once(device: &Handle, kind: &str) -> io::Result<()> {
    // Two pods may want the same new device: what the first has written meanwhile must not be lost to the second.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock();
    make(device, kind, &[])
}

/// Makes a filesystem with the host's program for it, unless there is one.
pub(crate) fn make(device: &Handle, kind: &str, options: &[String]) -> io::Result<()> {
    if let DeviceContent::Filesystem(_) = probe(device)?.content {
        return Err(Errno::EXIST.into());
    }
    let (program, first) = maker(kind).ok_or(Errno::NODEV)?;
    let arguments: Vec<&str> = first.iter().copied().chain(options.iter().map(String::as_str)).collect();
    run(program, &arguments, device, &[0])
}

/// Mounts the filesystem of a device. A second mount of it shares all with the first.
pub(crate) fn mount(device: &Handle, at: &Handle, mount: &DeviceMount<'_>) -> io::Result<()> {
    // Whether the filesystem itself is read-only is the same for all its mounts; so that is only so where it must be.
    match mount_as(device, at, mount, false) {
        Err(e) if mount.read_only && refuses_writes(&e) => mount_as(device, at, mount, true),
        other => other,
    }
}

fn refuses_writes(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

fn is(error: &io::Error, any: &[Errno]) -> bool {
    any.iter().any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}

fn mount_as(device: &Handle, at: &Handle, mount: &DeviceMount<'_>, all_read_only: bool) -> io::Result<()> {
    let source = name_of(device)?;
    let wanted = FsWanted {
        kind: mount.kind,
        source: source.as_os_str(),
        read_only: mount.read_only,
        all_read_only,
        options: mount.options,
    };
    mount_new(at, &wanted)
}

/// Mounts a filesystem that is on no device.
pub(crate) fn mount_filesystem(at: &Handle, mount: &FsMount<'_>) -> io::Result<()> {
    let FsMount { kind, source, read_only, options } = *mount;
    mount_new(at, &FsWanted { kind, source: OsStr::new(source), read_only, all_read_only: false, options })
}

struct FsWanted<'a> {
    kind: &'a str,
    source: &'a OsStr,
    /// Of this mount.
    read_only: bool,
    /// Of the filesystem.
    all_read_only: bool,
    options: &'a [String],
}

fn mount_new(at: &Handle, wanted: &FsWanted<'_>) -> io::Result<()> {
    let context = fsopen(wanted.kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    mount_in(context.as_fd(), at, wanted).map_err(|e| explained(e, &context))
}

/// An error of mounting with what the kernel said about it, if it did.
fn explained(error: io::Error, context: &OwnedFd) -> io::Error {
    let mut said = Vec::new();
    let mut message = [0; 1024];
    // One message at a time, until there is none.
    while let Ok(length @ 1..) = rustix::io::read(context, &mut message) {
        said.push(String::from_utf8_lossy(&message[..length]).trim().to_owned());
    }
    let kind = if is(&error, &[Errno::UCLEAN]) { io::ErrorKind::InvalidData } else { error.kind() };
    if said.is_empty() && kind == error.kind() {
        return error;
    }
    said.insert(0, error.to_string());
    io::Error::new(kind, said.join("; "))
}

/// What an option says about a mount itself; `None`: it is for the filesystem.
pub(crate) fn attribute(option: &str) -> Option<MountAttrFlags> {
    Some(match option {
        "ro" => MountAttrFlags::MOUNT_ATTR_RDONLY,
        "nosuid" => MountAttrFlags::MOUNT_ATTR_NOSUID,
        "nodev" => MountAttrFlags::MOUNT_ATTR_NODEV,
        "noexec" => MountAttrFlags::MOUNT_ATTR_NOEXEC,
        "noatime" => MountAttrFlags::MOUNT_ATTR_NOATIME,
        "nodiratime" => MountAttrFlags::MOUNT_ATTR_NODIRATIME,
        "strictatime" => MountAttrFlags::MOUNT_ATTR_STRICTATIME,
        "defaults" | "rw" | "suid" | "dev" | "exec" | "relatime" => MountAttrFlags::empty(),
        _ => return None,
    })
}

fn mount_in(fs: BorrowedFd<'_>, at: &Handle, mount: &FsWanted<'_>) -> io::Result<()> {
    fsconfig_set_string(fs, "source", mount.source)?;
    let mut attributes = MountAttrFlags::empty();
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, mount.read_only);
    for option in mount.options {
        match (attribute(option), option.split_once('=')) {
            (Some(attribute), _) => attributes |= attribute,
            (None, Some((key, value))) => fsconfig_set_string(fs, key, value)?,
            (None, None) => fsconfig_set_flag(fs, option.as_str())?,
        }
    }
    if mount.all_read_only {
        fsconfig_set_flag(fs, "ro")?;
    }
    fsconfig_create(fs)?;
    let tree = fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    attach(tree.as_fd(), fd(at)?)
}

/// Grows a mounted filesystem to all of its device.
pub(crate) fn grow(device: &Handle, at: &Handle) -> io::Result<()> {
    let bytes = probe(device)?.bytes;
    let top = reopen(at, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let stat = fs::fstatfs(&top)?;
    let block_bytes = u64::try_from(stat.f_bsize).ok().filter(|b| *b > 0).ok_or(Errno::INVAL)?;
    #[allow(clippy::unnecessary_cast)] // The type of `f_type` differs between architectures.
    match stat.f_type as i64 {
        EXT_MAGIC => ioctl(&top, EXT4_IOC_RESIZE_FS, &mut (bytes / block_bytes)),
        XFS_MAGIC => {
            let mut geometry = XfsGeometry::default();
            ioctl(&top, XFS_IOC_FSGEOMETRY_V1, &mut geometry)?;
            let newblocks = bytes / block_bytes;
            // The kernel takes an equal size for a request to shrink by nothing, which older ones refuse.
            if newblocks <= geometry.datablocks {
                return Ok(());
            }
            ioctl(&top, XFS_IOC_FSGROWFSDATA, &mut XfsGrowth { newblocks, imaxpct: geometry.imaxpct, padding: 0 })
        }
        BTRFS_MAGIC => {
            let mut arguments = BtrfsResize { fd: 0, name: [0; 4088] };
            arguments.name[..3].copy_from_slice(b"max");
            ioctl(&top, BTRFS_IOC_RESIZE, &mut arguments)
        }
        _ => Err(Errno::OPNOTSUPP.into()),
    }
}

/// Grows a filesystem that is not mounted, where the kernel would not let this process grow it mounted. Returns whether
/// that was the case and could be done.
pub(crate) fn grow_unmounted(device: &Handle, kind: &str) -> io::Result<bool> {
    // ext2 to ext4 are grown mounted only by those with CAP_SYS_RESOURCE; the rest needs no more than root.
    if !kind.starts_with("ext") || may_grow_ext()? {
        return Ok(false);
    }
    match reopen(device, OFlags::RDONLY | OFlags::EXCL) {
        // A mount somewhere has it.
        Err(e) if is(&e, &[Errno::BUSY]) => return Ok(false),
        other => drop(other?),
    }
    // 1: something was repaired.
    let checked = run("e2fsck", &["-f", "-p"], device, &[0, 1]);
    match checked.and_then(|()| run("resize2fs", &[], device, &[0])) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true),
    }
}

/// Replays the journal and repairs what needs no decision.
pub(crate) fn repair_ext(device: &Handle) -> io::Result<()> {
    // 1: something was repaired.
    run("e2fsck", &["-p"], device, &[0, 1])
}

/// The kernel takes two of one name for one filesystem on two devices; or tells them apart, and then does not let them grow.
pub(crate) fn rename_btrfs(device: &Handle) -> io::Result<()> {
    run("btrfstune", &["-f", "-m"], device, &[0])
}

fn may_grow_ext() -> io::Result<bool> {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let effective = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    Ok(effective >> CAP_SYS_RESOURCE & 1 == 1)
}

pub(crate) const fn request(direction: u64, kind: u8, number: u64, size: usize) -> u64 {
    (direction << 30) | ((size as u64) << 16) | ((kind as u64) << 8) | number
}

const EXT4_IOC_RESIZE_FS: u64 = request(1, b'f', 16, size_of::<u64>());
const XFS_IOC_FSGEOMETRY_V1: u64 = request(2, b'X', 100, size_of::<XfsGeometry>());
const XFS_IOC_FSGROWFSDATA: u64 = request(1, b'X', 110, size_of::<XfsGrowth>());
const BTRFS_IOC_RESIZE: u64 = request(1, 0x94, 3, size_of::<BtrfsResize>());

/// `struct xfs_fsop_geom_v1`
#[repr(C)]
#[derive(Default)]
struct XfsGeometry {
    before: [u32; 7],
    imaxpct: u32,
    datablocks: u64,
    after: [u64; 5],
    rest: [u32; 7],
}

/// `struct xfs_growfs_data`
#[repr(C)]
struct XfsGrowth {
    newblocks: u64,
    imaxpct: u32,
    padding: u32,
}

/// `struct btrfs_ioctl_vol_args`
#[repr(C)]
struct BtrfsResize {
    fd: i64,
    name: [u8; 4088],
}

/// A request whose number says the size of `T`.
#[allow(unsafe_code)]
pub(crate) fn ioctl<T>(file: &impl AsRawFd, request: u64, argument: &mut T) -> io::Result<()> {
    debug_assert_eq!((request >> 16 & 0x3fff) as usize, size_of::<T>());
    // SAFETY: the descriptor is open for the whole call, and the kernel reads or writes at most `size_of::<T>()` bytes,
    // which the request's number states, of a plain struct that lives as long as the call.
    let result = unsafe { nix::libc::ioctl(file.as_raw_fd(), request as _, std::ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[test]
fn requests_have_the_kernels_numbers() {
    assert_eq!(EXT4_IOC_RESIZE_FS, 0x4008_6610);
    assert_eq!(XFS_IOC_FSGEOMETRY_V1, 0x8070_5864);
    assert_eq!(XFS_IOC_FSGROWFSDATA, 0x4010_586e);
    assert_eq!(BTRFS_IOC_RESIZE, 0x5000_9403);
}

#[test]
fn content_is_told_by_magic_numbers() {
    let known = |name: &str| DeviceContent::Filesystem(name.into());
    let of = |bytes: &[(usize, &[u8])]| {
        let mut head = vec![0; HEAD_BYTES];
        bytes.iter().for_each(|(at, data)| head[*at..*at + data.len()].copy_from_slice(data));
        content(&head)
    };
    let ext: (usize, &[u8]) = (1080, &[0x53, 0xEF]);
    assert_eq!(of(&[]), DeviceContent::Empty);
    assert_eq!(of(&[(HEAD_BYTES - 1, &[1])]), DeviceContent::Other);
    assert_eq!(of(&[ext]), known("ext2"));
    assert_eq!(of(&[ext, (1116, &[4])]), known("ext3"));
    assert_eq!(of(&[ext, (1116, &[4]), (1120, &[0x42])]), known("ext4"));
    assert_eq!(of(&[(0, b"XFSB")]), known("xfs"));
    assert_eq!(of(&[(65600, b"_BHRfS_M")]), known("btrfs"));
    assert_eq!(content(&[]), DeviceContent::Empty);
}
