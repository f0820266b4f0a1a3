//! Shutting a process of this program in, before it handles what strangers made.
use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::unistd::{Gid, Uid};
use rustix::{
    fs::{CWD, Mode, OFlags, open},
    mount::{MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount_change, open_tree, unmount},
    process::{Resource, Rlimit, Signal},
};

use crate::{
    mountinfo::points,
    real::{attach, set_attr},
};

/// Who a confined process is: `nobody`, on every distribution.
pub const NOBODY: u32 = 65534;

/// What a confined process may use at most. In bytes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of one file.
    pub file_bytes: u64,
    /// Of its memory, mapped files aside.
    pub memory_bytes: u64,
    pub open_files: u64,
}

/// Behind everything that somebody waits for.
const NICE: i32 = 10;

/// Directories that every machine has and that a confined process does not need: its own is shown in place of one.
const PLACES: [&str; 4] = ["/mnt", "/srv", "/media", "/tmp"];

/// What such a process may need of the machine: its libraries, names of hosts and users, certificates. Other places are seen as
/// far as they are on one of the filesystems that these are on.
const NEEDED: [&str; 10] = [
    "/etc",
    "/usr",
    "/lib",
    "/lib64",
    "/proc",
    "/dev",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
    "/var/lib/ca-certificates",
];

/// The variables of the environment that name more of it.
const NAMING: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// Confines this process, for good, to the directory `own`, which is [`NOBODY`]'s, as the process is afterwards: returns the
/// path that it has from now on, and that is the working directory too. All other files are read-only, none can be executed,
/// and nothing gives rights back. It has none of the machine's mounts but those that it needs, so that what others unmount is
/// not in use because of it. The process dies with its parent. Open descriptors stay as they are.
///
/// # Errors
/// The process must end: it may be confined in part.
///
/// To be called by a process with one thread only, as root.
pub fn confine(own: impl AsFd, limits: &Limits) -> io::Result<PathBuf> {
    let own = own.as_fd();
    // Before the mounts are this process's own: a mount of another table cannot be cloned.
    let tree = open_tree(
        own,
        "",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH,
    )?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS | nix::sched::CloneFlags::CLONE_NEWIPC)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let open_dir = |path: &str| open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    leave_mounts(&needed(std::env::var_os))?;
    let nothing = nix::libc::MOUNT_ATTR_NOSUID | nix::libc::MOUNT_ATTR_NOEXEC;
    set_attr(open_dir("/")?.as_fd(), true, nothing | nix::libc::MOUNT_ATTR_RDONLY, 0)?;
    set_attr(tree.as_fd(), false, nothing | nix::libc::MOUNT_ATTR_NODEV, 0)?;
    let (place, at) = PLACES
        .iter()
        .find_map(|place| Some((*place, open_dir(place).ok()?)))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("none of {} exists", PLACES.join(", "))))?;
    attach(tree.as_fd(), at.as_fd())?;
    nix::unistd::chdir(place)?;
    limit(limits)?;
    give_up_rights()?;
    rustix::fs::accessat(CWD, ".", rustix::fs::Access::WRITE_OK, rustix::fs::AtFlags::empty())?;
    Ok(PathBuf::from(place))
}

fn needed(variable: impl Fn(&'static str) -> Option<OsString>) -> Vec<PathBuf> {
    let named = NAMING.into_iter().filter_map(variable);
    let named: Vec<_> = named.flat_map(|value| std::env::split_paths(&value).collect::<Vec<_>>()).collect();
    NEEDED.into_iter().map(PathBuf::from).chain(named).collect()
}

/// Whether what is mounted there has a part in one of the places.
fn is_part(mounted: &Path, needed: &[PathBuf]) -> bool {
    needed.iter().any(|place| place.starts_with(mounted) || mounted.starts_with(place))
}

/// Leaves this process, whose mounts are its own, only those that have a part in the places.
fn leave_mounts(needed: &[PathBuf]) -> io::Result<()> {
    let copy = |path: &Path| open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
    let mut points = points(&std::fs::read("/proc/self/mountinfo")?);
    points.retain(|at| at.parent().is_some() && is_part(at, needed));
    let root = copy(Path::new("/"))?;
    // What is out of sight, below another mount, has no part in anything.
    let kept: Vec<(PathBuf, OwnedFd)> =
        points.into_iter().filter_map(|at| copy(&at).ok().map(|mount| (at, mount))).collect();
    // On the old root, whose place it takes.
    attach(root.as_fd(), open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?.as_fd())?;
    for (at, mount) in kept {
        let below = at.strip_prefix("/").unwrap_or(&at);
        let target = rustix::fs::openat(&root, below, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        attach(mount.as_fd(), target.as_fd())?;
    }
    rustix::process::fchdir(&root)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

fn limit(limits: &Limits) -> io::Result<()> {
    // A write beyond the limit then fails, instead of ending the process.
    let mut signals = nix::sys::signal::SigSet::empty();
    signals.add(nix::sys::signal::Signal::SIGXFSZ);
    signals.thread_block()?;
    let all = [
        (Resource::Fsize, limits.file_bytes),
        (Resource::Data, limits.memory_bytes),
        (Resource::Nofile, limits.open_files),
        (Resource::Core, 0),
    ];
    // What it works on is a stranger's choice, and not more urgent than anything else here.
    rustix::process::setpriority_process(None, NICE)?;
    for (resource, bytes) in all {
        rustix::process::setrlimit(resource, Rlimit { current: Some(bytes), maximum: Some(bytes) })?;
    }
    Ok(())
}

fn give_up_rights() -> io::Result<()> {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    nix::unistd::setgroups(&[])?;
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    rustix::thread::set_no_new_privs(true)?;
    // After the change of user, which takes it back.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    match nix::unistd::setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)) {
        Err(_) => Ok(()),
        Ok(()) => Err(io::Error::other("the process could become root again")),
    }
}

#[test]
fn what_a_confined_process_keeps_of_the_mounts() {
    let needed = needed(|name| (name == "SSL_CERT_DIR").then(|| "/srv/certs:/opt/more".into()));
    for (at, kept) in [
        ("/etc", true),
        ("/etc/ssl/certs", true),
        ("/run", true),
        ("/run/systemd/resolve", true),
        ("/srv", true),
        ("/opt/more/x", true),
        ("/opt/other", false),
        ("/run/netns", false),
        ("/home", false),
        ("/var/lib/holdfast/kubelet/pods/u/volumes/x/v/data", false),
    ] {
        assert_eq!(is_part(Path::new(at), &needed), kept, "{at}");
    }
}
