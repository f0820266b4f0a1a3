//! The Linux kernel. Needs 5.12 (`mount_setattr`) and `/proc`.
use std::{
    ffi::{OsStr, OsString},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    sync::mpsc::RecvTimeoutError,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::{
    fs::{self, AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, StatxFlags, Uid},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
    },
};

use crate::{
    Access, Bind, Bounds, Device, DeviceMount, Entry, FileKind, FsMount, Handle, Inner, Program, Propagation, Ran,
    Reach, ReadOnly, Space, Stat, Sys, Tmpfs, Unmount, block, bounded, loops, mountinfo, ownership, program, quota,
};

/// The kernel of this machine, in the mount namespace of the calling thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealSys;

/// The kernel answers `EAGAIN` when a rename anywhere races with a guarded look-up; a hostile pod can cause that at will.
const LOOKUP_TRIES: usize = 200;

/// How long the end of a server's filesystem is waited for that is gone from the tree.
const LEAVE: Duration = Duration::from_secs(10);

/// Room for some 500 mounts; more are read too.
const MOUNT_TABLE_BYTES: usize = 64 << 10;

pub(crate) fn fd(handle: &Handle) -> io::Result<BorrowedFd<'_>> {
    handle.fd().ok_or_else(|| io::Error::other("handle of another kernel"))
}

fn handle(fd: OwnedFd) -> Handle {
    Handle(Inner::Fd(fd))
}

/// The path by which the kernel reaches what `fd` holds. Of the thread: its mount namespace may be its own.
pub(crate) fn proc_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/thread-self/fd/{}", fd.as_raw_fd()))
}

fn kind(kind: FileType) -> FileKind {
    match kind {
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Link,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::CharDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::Fifo => FileKind::Fifo,
        FileType::RegularFile | FileType::Unknown => FileKind::File,
    }
}

fn statx(dir: BorrowedFd<'_>, name: &OsStr, flags: AtFlags) -> io::Result<Stat> {
    let s = fs::statx(dir, name, flags, StatxFlags::BASIC_STATS)?;
    Ok(Stat {
        kind: kind(FileType::from_raw_mode(s.stx_mode.into())),
        mode: u32::from(s.stx_mode) & 0o7777,
        uid: s.stx_uid,
        gid: s.stx_gid,
        size_bytes: s.stx_size,
        allocated_bytes: s.stx_blocks * 512,
        links: s.stx_nlink,
        device: (u64::from(s.stx_dev_major) << 32) | u64::from(s.stx_dev_minor),
        inode: s.stx_ino,
        mount_root: s.stx_attributes.contains(fs::StatxAttributes::MOUNT_ROOT),
    })
}

impl Sys for RealSys {
    fn now(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn open(&self, path: &Path) -> io::Result<Handle> {
        Ok(handle(fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?))
    }

    fn open_at(&self, dir: &Handle, path: &Path, reach: Reach) -> io::Result<Handle> {
        let safe = ResolveFlags::NO_MAGICLINKS;
        let (resolve, follow) = match reach {
            Reach::Child => {
                (safe | ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV, OFlags::NOFOLLOW)
            }
            Reach::Plain => (safe | ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS, OFlags::NOFOLLOW),
            Reach::Beneath => (safe | ResolveFlags::BENEATH, OFlags::empty()),
            Reach::InRoot => (safe | ResolveFlags::IN_ROOT, OFlags::empty()),
            Reach::Parent => (safe, OFlags::NOFOLLOW),
        };
        let path = match reach {
            Reach::Parent => Path::new(".."),
            _ if path.as_os_str().is_empty() => Path::new("."),
            _ => path,
        };
        for _ in 1..LOOKUP_TRIES {
            match fs::openat2(fd(dir)?, path, OFlags::PATH | OFlags::CLOEXEC | follow, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => continue,
                other => return Ok(handle(other?)),
            }
        }
        Err(Errno::AGAIN.into())
    }

    fn stat(&self, at: &Handle) -> io::Result<Stat> {
        statx(fd(at)?, OsStr::new(""), AtFlags::EMPTY_PATH)
    }

    fn stat_at(&self, dir: &Handle, name: &OsStr) -> io::Result<Stat> {
        statx(fd(dir)?, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
    }

    fn list(&self, dir: &Handle) -> io::Result<Vec<Entry>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut entries = Vec::new();
        for entry in Dir::new(fs::openat(fd(dir)?, ".", flags, Mode::empty())?)? {
            let entry = entry?;
            let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                // Some filesystems do not say in the listing.
                FileType::Unknown => match self.stat_at(dir, &name) {
                    Ok(stat) => stat.kind,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(e),
                },
                known => kind(known),
            };
            entries.push(Entry { name, kind });
        }
        Ok(entries)
    }

    fn read_file(&self, file: &Handle) -> io::Result<Vec<u8>> {
        let fd = fs::open(proc_path(fd(file)?), OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
        let mut data = Vec::new();
        std::fs::File::from(fd).read_to_end(&mut data)?;
        Ok(data)
    }

    fn read_link(&self, dir: &Handle, name: &OsStr) -> io::Result<PathBuf> {
        let target = fs::readlinkat(fd(dir)?, name, Vec::new())?;
        Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
    }

    fn make_dir(&self, dir: &Handle, name: &OsStr, mode: u32) -> io::Result<()> {
        Ok(fs::mkdirat(fd(dir)?, name, Mode::from_raw_mode(mode))?)
    }

    fn write_new(&self, dir: &Handle, name: &OsStr, data: &[u8], mode: u32) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(fd(dir)?, name, flags, Mode::RUSR | Mode::WUSR)?;
        let mut file = std::fs::File::from(fd);
        file.write_all(data)?;
        Ok(fs::fchmod(&file, Mode::from_raw_mode(mode))?)
    }

    fn write_setting(&self, file: &Handle, data: &[u8]) -> io::Result<()> {
        let file = block::reopen(file, OFlags::WRONLY)?;
        match rustix::io::write(&file, data)? {
            written if written == data.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    fn make_link(&self, dir: &Handle, name: &OsStr, target: &Path) -> io::Result<()> {
        Ok(fs::symlinkat(target, fd(dir)?, name)?)
    }

    fn rename(&self, dir: &Handle, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(fs::renameat(fd(dir)?, from, fd(dir)?, to)?)
    }

    fn remove_file(&self, dir: &Handle, name: &OsStr) -> io::Result<()> {
        Ok(fs::unlinkat(fd(dir)?, name, AtFlags::empty())?)
    }

    fn remove_dir(&self, dir: &Handle, name: &OsStr) -> io::Result<()> {
        Ok(fs::unlinkat(fd(dir)?, name, AtFlags::REMOVEDIR)?)
    }

    fn set_mode(&self, at: &Handle, mode: u32) -> io::Result<()> {
        // A handle is O_PATH, which fchmod refuses.
        match set_mode(fd(at)?, mode) {
            // Kernels before 6.6, and sandboxes that do not know the call: the kernel's own link leads to exactly that file.
            Err(e) if matches!(e.raw_os_error(), Some(nix::libc::ENOSYS | nix::libc::EPERM)) => {
                Ok(fs::chmod(proc_path(fd(at)?), Mode::from_raw_mode(mode))?)
            }
            done => done,
        }
    }

    fn set_owner(&self, at: &Handle, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        Ok(fs::chownat(fd(at)?, "", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH)?)
    }

    fn given_to(&self, at: &Handle) -> io::Result<Option<u32>> {
        ownership::given_to(fd(at)?)
    }

    fn note_given(&self, at: &Handle, gid: Option<u32>) -> io::Result<()> {
        ownership::note_given(fd(at)?, gid)
    }

    fn mount_tmpfs(&self, at: &Handle, tmpfs: &Tmpfs) -> io::Result<()> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let fs = context.as_fd();
        fsconfig_set_string(fs, "source", "tmpfs")?;
        fsconfig_set_string(fs, "mode", format!("{:o}", tmpfs.mode))?;
        if let Some(size) = tmpfs.size_bytes {
            fsconfig_set_string(fs, "size", size.to_string())?;
        }
        // Keeps secrets off the swap device; kernels before 6.4 do not know it.
        let _ = fsconfig_set_flag(fs, "noswap");
        fsconfig_create(fs)?;
        let mount = fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        attach(mount.as_fd(), fd(at)?)
    }

    fn mount_layers(&self, layers: &[Handle], at: &Handle) -> io::Result<()> {
        use rustix::mount::{MountFlags, mount};
        // By descriptor: the options have a limit that the paths of many layers exceed.
        let paths: io::Result<Vec<_>> =
            layers.iter().map(|l| Ok(proc_path(fd(l)?).to_string_lossy().into_owned())).collect();
        let options = std::ffi::CString::new(format!("lowerdir={}", paths?.join(":"))).map_err(io::Error::other)?;
        let flags = MountFlags::RDONLY | MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
        Ok(mount("overlay", proc_path(fd(at)?), "overlay", flags, Some(options.as_c_str()))?)
    }

    fn room(&self, at: &Handle) -> io::Result<Space> {
        let stat = fs::statvfs(proc_path(fd(at)?))?;
        Ok(Space::of(&stat))
    }

    fn limit_tree(&self, dir: &Handle, bytes: Option<u64>) -> io::Result<()> {
        quota::limit_tree(dir, bytes)
    }

    fn make_bounded(&self, dir: &Handle, name: &OsStr, bytes: u64) -> io::Result<()> {
        bounded::make(dir, name, bytes)
    }

    fn mount_bounded(&self, image: &Handle, at: &Handle) -> io::Result<()> {
        bounded::mount(image, at)
    }

    fn probe_device(&self, device: &Handle) -> io::Result<Device> {
        block::probe(device)
    }

    fn make_filesystem(&self, device: &Handle, kind: &str) -> io::Result<()> {
        block::make_once(device, kind)
    }

    fn mount_device(&self, device: &Handle, at: &Handle, mount: &DeviceMount<'_>) -> io::Result<()> {
        block::mount(device, at, mount)
    }

    fn mount(&self, at: &Handle, mount: &FsMount<'_>) -> io::Result<()> {
        block::mount_filesystem(at, mount)
    }

    fn fuse(&self) -> io::Result<std::os::fd::OwnedFd> {
        Ok(fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
    }

    fn grow_filesystem(&self, device: &Handle, at: &Handle) -> io::Result<()> {
        block::grow(device, at)
    }

    fn grow_unmounted(&self, device: &Handle, kind: &str) -> io::Result<bool> {
        block::grow_unmounted(device, kind)
    }

    fn loop_of(&self, file: &Handle) -> io::Result<Option<PathBuf>> {
        loops::named(&block::name_of(file)?)
    }

    fn attach_loop(&self, file: &Handle, access: Access) -> io::Result<PathBuf> {
        loops::attach_foreign(&block::name_of(file)?, access)
    }

    fn refresh_loop(&self, device: &Path) -> io::Result<()> {
        loops::refresh(device)
    }

    fn detach_loop(&self, device: &Path) -> io::Result<()> {
        loops::detach(device)
    }

    fn bind(&self, source: &Handle, target: &Handle, bind: &Bind) -> io::Result<()> {
        let mut flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        if bind.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let tree = open_tree(fd(source)?, "", flags)?;
        // Set while nobody can see the mount yet.
        let read_only = if bind.read_only == ReadOnly::No { 0 } else { nix::libc::MOUNT_ATTR_RDONLY };
        let set = bind.options.set | read_only;
        if set != 0 {
            set_attr(tree.as_fd(), bind.read_only == ReadOnly::Recursive, set, 0)?;
        }
        let propagation = match bind.propagation {
            Propagation::Inherit => 0,
            Propagation::Private => nix::libc::MS_PRIVATE,
            Propagation::Slave => nix::libc::MS_SLAVE,
            Propagation::Shared => nix::libc::MS_SHARED,
        };
        if propagation != 0 {
            set_attr(tree.as_fd(), bind.recursive, 0, propagation)?;
        }
        attach(tree.as_fd(), fd(target)?)
    }

    fn isolate(&self, at: &Handle) -> io::Result<()> {
        set_attr(fd(at)?, false, 0, nix::libc::MS_PRIVATE)
    }

    fn unmount(&self, dir: &Handle, name: &OsStr, how: Unmount) -> io::Result<()> {
        let flags = UnmountFlags::NOFOLLOW
            | match how {
                Unmount::Strict | Unmount::FromServer => UnmountFlags::empty(),
                Unmount::Forced => UnmountFlags::FORCE,
                Unmount::Lazy => UnmountFlags::DETACH,
            };
        match how {
            Unmount::Strict | Unmount::Lazy => Ok(rustix::mount::unmount(proc_path(fd(dir)?).join(name), flags)?),
            Unmount::FromServer | Unmount::Forced => unmount_from_server(self, dir, name, flags),
        }
    }

    fn mounts_below(&self, dir: &Handle) -> io::Result<Vec<PathBuf>> {
        let target = fs::readlinkat(CWD, proc_path(fd(dir)?), Vec::new())?;
        let top = Path::new(OsStr::from_bytes(target.as_bytes()));
        // In few reads: the kernel walks the table anew for each.
        let mut table = Vec::with_capacity(MOUNT_TABLE_BYTES);
        std::fs::File::open("/proc/thread-self/mountinfo")?.read_to_end(&mut table)?;
        Ok(mountinfo::points_below(&table, top))
    }

    fn run(&self, program: &Program<'_>, bounds: &Bounds, cancelled: &dyn Fn() -> bool) -> io::Result<Ran> {
        program::run(program, bounds, cancelled)
    }

    fn start(&self, program: &Program<'_>, dir: &Handle, name: &OsStr) -> io::Result<()> {
        program::start(program, dir, name)
    }

    fn attendant(&self, dir: &Handle, name: &OsStr) -> io::Result<Option<u32>> {
        program::attendant(dir, name)
    }

    fn attendant_end(&self, dir: &Handle, name: &OsStr) -> io::Result<Option<std::os::fd::OwnedFd>> {
        program::attendant_end(dir, name)
    }

    fn end(&self, dir: &Handle, name: &OsStr) -> io::Result<()> {
        program::end(dir, name)
    }
}

/// Puts a detached mount onto an open directory or file.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}

/// `fchmodat2`, which no safe wrapper offers for descriptors yet.
#[allow(unsafe_code)]
fn set_mode(at: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call, and the path is a NUL-terminated constant.
    let result = unsafe {
        nix::libc::syscall(nix::libc::SYS_fchmodat2, at.as_raw_fd(), c"".as_ptr(), mode, nix::libc::AT_EMPTY_PATH)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Unmounts by a thread of its own, which stays behind if the end of the filesystem takes long.
fn unmount_from_server(sys: &RealSys, dir: &Handle, name: &OsStr, flags: UnmountFlags) -> io::Result<()> {
    const LOOK: Duration = Duration::from_millis(50);
    let mut left = LEAVE;
    // Not by looking at what is mounted: its server might be asked.
    let mounted =
        || Ok::<_, io::Error>(sys.mounts_below(dir)?.iter().filter(|point| point.as_os_str() == name).count());
    let before = mounted()?;
    let (at, last) = (fd(dir)?.try_clone_to_owned()?, name.to_owned());
    let (tell, told) = std::sync::mpsc::channel();
    let unmount = move || {
        let _ = tell.send(rustix::mount::unmount(proc_path(at.as_fd()).join(last), flags));
    };
    std::thread::Builder::new().name("unmount".into()).spawn(unmount)?;
    loop {
        match told.recv_timeout(LOOK) {
            Ok(result) => return Ok(result?),
            Err(RecvTimeoutError::Timeout) if mounted()? == before => {}
            Err(RecvTimeoutError::Timeout) if left.is_zero() => return Ok(()),
            Err(RecvTimeoutError::Timeout) => left = left.saturating_sub(LOOK),
            Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("the thread that unmounts panicked")),
        }
    }
}

/// `mount_setattr` on an open mount, which no safe wrapper offers yet.
#[allow(unsafe_code)]
pub(crate) fn set_attr(mount: BorrowedFd<'_>, recursive: bool, set: u64, propagation: u64) -> io::Result<()> {
    // When times of access are noted is one choice of several: the kernel wants the old one taken away.
    let times = nix::libc::MOUNT_ATTR__ATIME;
    let attr_clr = if set & times == 0 { 0 } else { times };
    let attr = nix::libc::mount_attr { attr_set: set, attr_clr, propagation, userns_fd: 0 };
    let mut flags = nix::libc::AT_EMPTY_PATH;
    if recursive {
        flags |= nix::libc::AT_RECURSIVE;
    }
    // SAFETY: the descriptor is open for the whole call, the path is a NUL-terminated constant, and `attr` is a plain
    // struct of the size that is passed along, which the kernel only reads.
    let result = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(&attr),
            size_of_val(&attr),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
