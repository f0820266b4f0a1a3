//! The kernel boundary: mounts, `openat2`, fd-based removal; `RealSys` and a `FakeSys` with a real mount table.
//!
//! Everything that a pod can touch is reached from a [`Handle`] that is already held, never by a path from the root:
//! a name that is swapped for a link between two calls then leads nowhere new.
//! - S1: recursive removal never leaves the filesystem that it began on, and refuses while anything is mounted at or
//!   below its target. (tree tests on both kernels)
//! - S2: `Reach::Beneath` never yields a file outside the directory it starts from. (exchange race test of `volumes`)
//!
//! The only crate of the workspace (besides container start-up in `runtime`) where `unsafe` may appear.
//! Absent on purpose: Kubernetes words, policy, shell commands.
mod block;
mod bounded;
mod btrfs;
pub mod confine;
mod disk;
pub mod fake;
mod holders;
mod loops;
mod mountinfo;
mod ownership;
mod program;
mod quota;
pub mod real;
pub mod tree;

pub use disk::{Access, Copied, Disk, Space};
pub use fake::{FakeSys, When};
pub use program::{Bounds, Program, Ran, inherited};
pub use real::RealSys;

use std::{
    ffi::{OsStr, OsString},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

/// An open place in the file tree: what was opened stays what it is, whatever happens to its name.
///
/// It gives no right to read or write by itself (`O_PATH`), and opening never blocks, whatever the file's type.
#[derive(Debug)]
pub struct Handle(pub(crate) Inner);

#[derive(Debug)]
pub(crate) enum Inner {
    Fd(OwnedFd),
    Fake(fake::Place),
}

impl Handle {
    /// The file descriptor, for callers outside this crate that start processes; `None` on a fake kernel.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            Inner::Fd(fd) => Some(fd.as_fd()),
            Inner::Fake(_) => None,
        }
    }
}

/// How far a look-up below a directory may reach. Magic links (`/proc/*/fd`) are refused by all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Follows no link and crosses no mount; a link as the last component is opened itself.
    Child,
    /// Follows no link, crosses mounts; a link as the last component is opened itself.
    Plain,
    /// Follows links that stay inside the directory; fails with `EXDEV` on one that leads out.
    Beneath,
    /// Follows links as if the directory were `/`, as a process in a container would.
    InRoot,
    /// The directory above: the path is ignored.
    Parent,
}

/// The type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    Directory,
    File,
    Link,
    Socket,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// What `stat` says. The identity of a file is (`device`, `inode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub kind: FileKind,
    /// Permission bits with set-id and sticky bits (07777).
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size_bytes: u64,
    /// Space taken on the medium.
    pub allocated_bytes: u64,
    pub links: u32,
    pub device: u64,
    pub inode: u64,
    /// Whether this is the root of a mount.
    pub mount_root: bool,
}

impl Stat {
    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }
    /// Device and inode.
    pub fn id(&self) -> (u64, u64) {
        (self.device, self.inode)
    }
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: OsString,
    pub kind: FileKind,
}

/// A memory filesystem to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tmpfs {
    /// Exact capacity (rounded up to whole pages by the kernel); `None`: half of the memory.
    pub size_bytes: Option<u64>,
    /// Mode of its root directory.
    pub mode: u32,
}

/// How a bind mount is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bind {
    /// Also bind what is mounted below the source.
    pub recursive: bool,
    pub read_only: ReadOnly,
    pub propagation: Propagation,
    pub options: MountOptions,
}

/// What `mount -o` can say about a mount itself, whatever filesystem it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MountOptions {
    /// `MOUNT_ATTR_*` of the kernel.
    pub(crate) set: u64,
}

impl MountOptions {
    /// What words say, as after `mount -o`, one each.
    ///
    /// # Errors
    /// The first word that is for a filesystem to understand.
    pub fn of(words: &[String]) -> Result<Self, &str> {
        let mut set = 0;
        for word in words {
            set |= block::attribute(word).ok_or(word.as_str())?.bits();
        }
        Ok(Self { set: set.into() })
    }
}

/// Which mounts of a bind refuse writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadOnly {
    #[default]
    No,
    /// The mount itself; mounts below it keep their state.
    Top,
    /// The mount and all mounts below it.
    Recursive,
}

/// Where later mounts and unmounts at and below a mount show up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Propagation {
    /// As the source has it.
    #[default]
    Inherit,
    /// Nowhere.
    Private,
    /// Receives what happens at the source, sends nothing back.
    Slave,
    /// Both ways.
    Shared,
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub bytes: u64,
    pub content: DeviceContent,
}

/// What is on a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceContent {
    /// Its beginning, where every filesystem has its marks, is zero.
    Empty,
    /// A filesystem that can be mounted and grown here, by the name that the kernel has for it.
    Filesystem(String),
    /// Anything else: partitions, somebody's data.
    Other,
}

/// How the filesystem of a device is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMount<'a> {
    /// `ext4`, `xfs`, ...
    pub kind: &'a str,
    /// Of this mount; others of the same device may write.
    pub read_only: bool,
    /// As after `mount -o`, one each.
    pub options: &'a [String],
}

/// A filesystem that is on no block device: of a server, of memory, of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsMount<'a> {
    /// `nfs`, `hugetlbfs`, `fuse`, ...
    pub kind: &'a str,
    pub source: &'a str,
    pub read_only: bool,
    /// As after `mount -o`, one each; what is not about the mount itself goes to the filesystem.
    pub options: &'a [String],
}

/// What happens to a mount that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmount {
    /// Fails with `EBUSY` while in use.
    Strict,
    /// As strict, for filesystems of servers: once the mount is gone from the tree, the end of the filesystem, with what is
    /// not written yet, is waited for 10 s at most. The kernel may want to take leave of a server that does not answer.
    FromServer,
    /// As from a server; and whoever waits for the one who serves the filesystem is told an error, so that he lets go.
    Forced,
    /// Gone from the tree at once, from the kernel when the last user lets go. Only for binds, whose data lives elsewhere.
    Lazy,
}

/// The one door to the kernel.
///
/// Errors are the kernel's own; callers add the names. Paths are absolute. A `name` is one component.
pub trait Sys: Send + Sync {
    /// Time since 1970.
    fn now(&self) -> Duration;

    /// Opens a path from the root, following links. Only for paths that no pod can change, or whose target is only inspected.
    fn open(&self, path: &Path) -> io::Result<Handle>;
    /// Opens something below `dir`. `EAGAIN` of a racing rename was retried a bounded number of times.
    fn open_at(&self, dir: &Handle, path: &Path, reach: Reach) -> io::Result<Handle>;
    /// What a handle holds; of a link, the link itself.
    fn stat(&self, at: &Handle) -> io::Result<Stat>;
    /// `stat` of one name without following it.
    fn stat_at(&self, dir: &Handle, name: &OsStr) -> io::Result<Stat>;
    /// All names but `.` and `..`, in no order.
    fn list(&self, dir: &Handle) -> io::Result<Vec<Entry>>;
    /// The whole content of a regular file.
    fn read_file(&self, file: &Handle) -> io::Result<Vec<u8>>;
    /// Where a link leads; `EINVAL` for anything else.
    fn read_link(&self, dir: &Handle, name: &OsStr) -> io::Result<PathBuf>;

    /// The process's umask applies: follow with `set_mode` where the mode must be exact.
    fn make_dir(&self, dir: &Handle, name: &OsStr, mode: u32) -> io::Result<()>;
    /// Makes a regular file with exactly this mode; fails with `EEXIST` if the name is taken, by a link too.
    fn write_new(&self, dir: &Handle, name: &OsStr, data: &[u8], mode: u32) -> io::Result<()>;
    /// Writes to a file of the kernel's, which acts on what it is given at once.
    fn write_setting(&self, file: &Handle, data: &[u8]) -> io::Result<()>;
    /// Makes a symbolic link; `target` may not exist.
    fn make_link(&self, dir: &Handle, name: &OsStr, target: &Path) -> io::Result<()>;
    /// Atomically gives `from` the name `to`, replacing what had it.
    fn rename(&self, dir: &Handle, from: &OsStr, to: &OsStr) -> io::Result<()>;
    /// Removes a name that is not a directory.
    fn remove_file(&self, dir: &Handle, name: &OsStr) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, dir: &Handle, name: &OsStr) -> io::Result<()>;
    /// Not for links, whose mode means nothing.
    fn set_mode(&self, at: &Handle, mode: u32) -> io::Result<()>;
    /// `None` leaves it. Works on links themselves.
    fn set_owner(&self, at: &Handle, uid: Option<u32>, gid: Option<u32>) -> io::Result<()>;

    /// The group that all below a directory was given to, if that was noted, and if the kernel can show this filesystem's
    /// files as another group's.
    fn given_to(&self, at: &Handle) -> io::Result<Option<u32>>;
    /// Notes that all below a directory was given to a group, or with `None` that this is so no longer. Only root of this
    /// host can; a filesystem that cannot keep it forgets it.
    fn note_given(&self, at: &Handle, gid: Option<u32>) -> io::Result<()>;

    /// Mounts a new memory filesystem over `at`. The handle goes on meaning what is now hidden.
    fn mount_tmpfs(&self, at: &Handle, tmpfs: &Tmpfs) -> io::Result<()>;
    /// Size and content of a block device.
    fn probe_device(&self, device: &Handle) -> io::Result<Device>;
    /// Makes a filesystem on a device that has none, whatever else is on it; `EEXIST` if it has. `ENOENT` names the program
    /// that this host lacks; `ENODEV` is for kinds that nobody here can make.
    fn make_filesystem(&self, device: &Handle, kind: &str) -> io::Result<()>;
    /// Mounts a device's filesystem over the directory `at`, which may be done any number of times.
    fn mount_device(&self, device: &Handle, at: &Handle, mount: &DeviceMount<'_>) -> io::Result<()>;
    /// Mounts a filesystem over the directory `at`. `ENODEV`: the kernel does not know this kind. May wait as long as the
    /// one who serves it lets it.
    fn mount(&self, at: &Handle, mount: &FsMount<'_>) -> io::Result<()>;
    /// A new connection to the kernel for a filesystem that a process serves: what the option `fd` of a `fuse` mount names.
    /// `ENOENT`, `ENODEV`, `EPERM`: this machine has, or allows, none.
    fn fuse(&self) -> io::Result<OwnedFd>;
    /// Lets the filesystem of a device, mounted at `at`, have all of the device. Idempotent. `EPERM` from ext4 means that
    /// the process lacks `CAP_SYS_RESOURCE`, `EOPNOTSUPP` that this kind cannot be grown.
    fn grow_filesystem(&self, device: &Handle, at: &Handle) -> io::Result<()>;
    /// The same for one that no mount has, if that is the only way here. False: mount it and use `grow_filesystem`.
    fn grow_unmounted(&self, device: &Handle, kind: &str) -> io::Result<bool>;
    /// Shows directories as one over the directory `at`, read-only, with no program in it to be run: what is in an earlier one
    /// hides what is in a later one, as overlayfs has it.
    fn mount_layers(&self, layers: &[Handle], at: &Handle) -> io::Result<()>;
    /// Room of the filesystem at a place.
    fn room(&self, at: &Handle) -> io::Result<Space>;
    /// Bounds what can be in an empty directory and below by a quota of its filesystem; `None` lifts that. `EOPNOTSUPP`: its
    /// filesystem has none.
    fn limit_tree(&self, dir: &Handle, bytes: Option<u64>) -> io::Result<()>;
    /// Makes a file that holds an empty filesystem with room for `bytes` of files, for [`Sys::mount_bounded`]; it takes no more
    /// space than what is in it. `EEXIST` if the name is taken. `ENOENT` names the program that this host lacks.
    fn make_bounded(&self, dir: &Handle, name: &OsStr, bytes: u64) -> io::Result<()>;
    /// Mounts the filesystem in such a file over the directory `at`. What the kernel needs for that goes with the mount.
    fn mount_bounded(&self, image: &Handle, at: &Handle) -> io::Result<()>;
    /// The loop device that a file is behind, also if the file's filesystem does not answer any more. The file is not
    /// behind one under another name.
    fn loop_of(&self, file: &Handle) -> io::Result<Option<PathBuf>>;
    /// Puts a file behind a loop device with sectors of 512 bytes.
    fn attach_loop(&self, file: &Handle, access: Access) -> io::Result<PathBuf>;
    /// Tells a loop device that its file has another size now.
    fn refresh_loop(&self, device: &Path) -> io::Result<()>;
    /// Takes a loop device from its file. `EBUSY` (by kind; the real kernel's error says who): somebody uses it; it goes when
    /// they let go.
    fn detach_loop(&self, device: &Path) -> io::Result<()>;
    /// Shows `source` at `target`; both are directories, or neither is. All options hold from the first instant on.
    fn bind(&self, source: &Handle, target: &Handle, bind: &Bind) -> io::Result<()>;
    /// Mounts made or undone at the mount that this is the root of show up nowhere else from now on, nor others' here.
    fn isolate(&self, at: &Handle) -> io::Result<()>;
    /// Removes the topmost mount at a name. Never follows a link.
    fn unmount(&self, dir: &Handle, name: &OsStr, how: Unmount) -> io::Result<()>;
    /// Mount points at (empty path) and below a directory, relative to it, in an order that allows unmounting.
    /// Stacked mounts appear once each.
    fn mounts_below(&self, dir: &Handle) -> io::Result<Vec<PathBuf>>;

    /// Runs a program to its end. It dies with this process. `TimedOut`, `Interrupted` (`cancelled` said so, which is
    /// asked every 20 ms or so): it was killed, with all that it started.
    fn run(&self, program: &Program<'_>, bounds: &Bounds, cancelled: &dyn Fn() -> bool) -> io::Result<Ran>;
    /// Starts an attendant: a program that outlives this process. Its record is the file `name` in `dir`, which it holds
    /// locked as long as it lives; what it says goes to `name.log` there. Idempotent: one that lives is left alone.
    fn start(&self, program: &Program<'_>, dir: &Handle, name: &OsStr) -> io::Result<()>;
    /// The process id of the attendant with that record; `None`: there is none, or it has ended.
    fn attendant(&self, dir: &Handle, name: &OsStr) -> io::Result<Option<u32>>;
    /// What becomes readable when the attendant with that record ends; `None`: there is none, or it has ended.
    fn attendant_end(&self, dir: &Handle, name: &OsStr) -> io::Result<Option<OwnedFd>>;
    /// Asks an attendant to end, kills it if it does not within 5 s, and removes its record and log. Idempotent.
    fn end(&self, dir: &Handle, name: &OsStr) -> io::Result<()>;
}
