//! Everything below the container's root: kernel file systems, devices, the pod's volumes, and what is hidden.
//!
//! Sources are cloned as detached mounts in the host's mount namespace, targets are opened beneath the root: no path is
//! ever walked twice, and none outside the root on the container's behalf.
use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, StatxFlags, statx},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
    },
};

use super::{lookup, userns, why};
use crate::{
    cgroup::Cgroups,
    contract::{Mount, Propagation},
    devices::DEFAULT_NODES,
    kernel::{MountAttr, mount_setattr},
    launch::Launch,
};

/// Files and directories of the kernel that tell or change too much about the host.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Names in a host's `/dev` that a privileged container gets its own version of.
const OWN_DEV: [&str; 12] =
    ["pts", "shm", "mqueue", "console", "ptmx", "fd", "stdin", "stdout", "stderr", "core", "lxd", "hugepages"];

/// `PROC_SUPER_MAGIC`.
const PROC: u64 = 0x9fa0;

const NO_EXEC: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV).union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// Detached copies of host mounts, and host device nodes.
pub(super) struct Sources {
    shm: OwnedFd,
    volumes: Vec<(Mount, OwnedFd)>,
    cgroups: Vec<(String, OwnedFd)>,
    version_2: bool,
    nodes: Vec<(PathBuf, Stat)>,
}

impl Sources {
    pub(super) fn open(launch: &Launch, cgroups: &Cgroups) -> io::Result<Self> {
        let mut volumes = Vec::new();
        for mount in &launch.mounts {
            if mount.propagation == Propagation::Bidirectional {
                require_shared(&mount.host_path)?;
            }
            volumes.push((mount.clone(), source(mount)?));
        }
        // Parents before what is mounted inside them; otherwise as the pod lists them.
        volumes.sort_by_key(|(m, _)| m.container_path.components().count());
        let mut views = Vec::new();
        for (name, dir) in cgroups.views(&launch.cgroup) {
            views.push((name, clone_tree(&dir)?));
        }
        let mut nodes = if launch.privileged { host_nodes(Path::new("/dev"), Path::new("/dev"))? } else { Vec::new() };
        for device in &launch.devices {
            let stat = rustix::fs::stat(&device.host_path)
                .map_err(|e| why(&e.into(), format!("look at device {}", device.host_path.display())))?;
            nodes.push((device.container_path.clone(), stat));
        }
        let version_2 = matches!(cgroups, Cgroups::V2(_));
        Ok(Self { shm: clone_tree(&launch.shm)?, volumes, cgroups: views, version_2, nodes })
    }
}

/// What a container will see at a mount point, with all attributes, as a detached mount.
pub(crate) fn source(mount: &Mount) -> io::Result<OwnedFd> {
    let source = clone_tree(&mount.host_path)?;
    let propagation = match mount.propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE.bits(),
        Propagation::HostToContainer => MountPropagationFlags::DOWNSTREAM.bits(),
        // Cloned as a peer of the host's mount if that is shared.
        Propagation::Bidirectional => 0,
    };
    let set = |recursive, attr| {
        mount_setattr(source.as_fd(), recursive, &attr)
            .map_err(|e| why(&e, format!("set up the mount of {}", mount.host_path.display())))
    };
    if let Some((from, to)) = mount.group_map {
        let users = userns::swapping_groups(from, to).map_err(|e| why(&e, "map groups of files".to_owned()))?;
        let (userns_fd, map) =
            (users.as_raw_fd().cast_unsigned().into(), MountAttrFlags::MOUNT_ATTR_IDMAP.bits().into());
        set(false, MountAttr { set: map, userns_fd, ..MountAttr::default() })?;
    }
    if propagation != 0 {
        set(true, MountAttr { propagation: propagation.into(), ..MountAttr::default() })?;
    }
    if mount.read_only || mount.recursive_read_only {
        let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into();
        set(mount.recursive_read_only, MountAttr { set: read_only, ..MountAttr::default() })?;
    }
    Ok(source)
}

/// A detached copy of the mount tree at a host path.
fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags).map_err(|e| why(&e.into(), format!("open mount source {}", path.display())))
}

/// Mounts made in the container reach the host only through a shared mount: without one the promise would be broken silently.
fn require_shared(path: &Path) -> io::Result<()> {
    let id = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)
        .map_err(|e| why(&e.into(), format!("open mount source {}", path.display())))?
        .stx_mnt_id;
    match unshared(&std::fs::read_to_string("/proc/self/mountinfo")?, id) {
        None => Ok(()),
        Some(at) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "path {path:?} is mounted on {at:?} but it is not a shared mount; make it one on this node with mount \
                 --make-shared, or do not ask for mountPropagation Bidirectional"
            ),
        )),
    }
}

/// Where the mount of this number is, if it is there and not shared.
fn unshared(mountinfo: &str, id: u64) -> Option<&str> {
    let mut fields = mountinfo.lines().map(|l| l.split(' ')).find_map(|mut fields| {
        let own = fields.next()?.parse() == Ok(id);
        own.then_some(fields)
    })?;
    let at = fields.nth(3)?;
    let shared = fields.skip(1).take_while(|f| *f != "-").any(|f| f.starts_with("shared:"));
    (!shared).then_some(at)
}

#[test]
fn mounts_that_are_not_shared() {
    let table = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
                 28 27 0:5 /a /s rw shared:3 master:1 - ext4 /dev/vda rw\n29 27 0:5 / /m rw master:1 - tmpfs shared:4 rw\n";
    for (id, want) in [(27, Some("/")), (28, None), (29, Some("/m")), (2, None)] {
        assert_eq!(unshared(table, id), want, "{id}");
    }
}

/// All device nodes of the host, as `(path, node)`.
fn host_nodes(dir: &Path, shown: &Path) -> io::Result<Vec<(PathBuf, Stat)>> {
    let mut nodes = Vec::new();
    for entry in std::fs::read_dir(dir)?.flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|n| OWN_DEV.contains(&n)) {
            continue;
        }
        let Ok(stat) = rustix::fs::lstat(entry.path()) else { continue };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => nodes.extend(host_nodes(&entry.path(), &shown.join(&name)).unwrap_or_default()),
            FileType::CharacterDevice | FileType::BlockDevice => nodes.push((shown.join(&name), stat)),
            _ => {}
        }
    }
    Ok(nodes)
}

/// Mounts all of it below `root`.
pub(super) fn populate(root: &OwnedFd, launch: &Launch, sources: Sources) -> io::Result<()> {
    // Modes below are meant literally.
    rustix::process::umask(Mode::empty());
    let read_only = if launch.privileged { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_RDONLY };
    attach_new(root, "/proc", "proc", &[], NO_EXEC)?;
    let dev = MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_STRICTATIME);
    attach_new(root, "/dev", "tmpfs", &[("mode", "755"), ("size", "65536k")], dev)?;
    let pts = MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NOEXEC);
    let pts_options = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
    attach_new(root, "/dev/pts", "devpts", &pts_options, pts)?;
    attach_new(root, "/dev/mqueue", "mqueue", &[], NO_EXEC)?;
    attach_new(root, "/sys", "sysfs", &[], NO_EXEC | read_only)?;
    show_cgroups(root, sources.cgroups, sources.version_2, read_only)?;
    attach(root, "/dev/shm".as_ref(), &sources.shm)?;
    make_devices(root, &sources.nodes)?;
    for (mount, source) in &sources.volumes {
        attach_volume(root, mount, source).map_err(|e| {
            why(&e, format!("mount {} on {}", mount.host_path.display(), mount.container_path.display()))
        })?;
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(())
}

/// A new file system, not yet attached anywhere.
fn new_fs(kind: &str, options: &[(&str, &str)], attr: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(&fs, *key)?;
        } else {
            fsconfig_set_string(&fs, *key, *value)?;
        }
    }
    fsconfig_create(&fs)?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attr)
}

fn attach_new(
    root: &OwnedFd,
    path: &str,
    kind: &str,
    options: &[(&str, &str)],
    attr: MountAttrFlags,
) -> io::Result<()> {
    let context = |e: &io::Error| why(e, format!("mount {kind} on {path}"));
    let fs = new_fs(kind, options, attr).map_err(|e| context(&e.into()))?;
    attach(root, path.as_ref(), &fs).map_err(|e| context(&e))
}

/// Attaches a detached directory mount, making the mount point if missing.
fn attach(root: &OwnedFd, path: &Path, mount: &OwnedFd) -> io::Result<()> {
    attach_at(&lookup::directory(root, path)?, mount)
}

pub(super) fn attach_at(target: &OwnedFd, mount: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}

fn attach_volume(root: &OwnedFd, mount: &Mount, source: &OwnedFd) -> io::Result<()> {
    let path = &mount.container_path;
    let target = if lookup::is_directory(source)? { lookup::directory(root, path)? } else { lookup::file(root, path)? };
    // An image could have made the mount point a link into /proc; a mount there would deceive whoever trusts /proc.
    if is_proc(&target)? && !(path.as_path() == Path::new("/proc") && is_proc(source)?) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a mount point inside /proc is not allowed"));
    }
    attach_at(&target, source)
}

fn is_proc(fd: &OwnedFd) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(fd)?.f_type as u64 == PROC)
}

fn show_cgroups(
    root: &OwnedFd,
    views: Vec<(String, OwnedFd)>,
    version_2: bool,
    read_only: MountAttrFlags,
) -> io::Result<()> {
    const AT: &str = "/sys/fs/cgroup";
    if version_2 {
        return attach_new(root, AT, "cgroup2", &[], NO_EXEC | read_only);
    }
    // Filled while writable, then turned read-only.
    let top = new_fs("tmpfs", &[("mode", "755")], NO_EXEC)?;
    attach(root, AT.as_ref(), &top)?;
    let attr = MountAttr { set: (NO_EXEC | read_only).bits().into(), ..MountAttr::default() };
    for (name, view) in views {
        mount_setattr(view.as_fd(), true, &attr)?;
        attach(root, &Path::new(AT).join(&name), &view)?;
        for alias in name.split(',').filter(|a| *a != name) {
            rustix::fs::symlinkat(&name, &top, alias)?;
        }
    }
    mount_setattr(top.as_fd(), false, &MountAttr { set: read_only.bits().into(), ..MountAttr::default() })
}

fn make_devices(root: &OwnedFd, extra: &[(PathBuf, Stat)]) -> io::Result<()> {
    let dev = lookup::directory(root, "/dev".as_ref())?;
    let mode = Mode::from_raw_mode(0o666);
    for (name, major, minor) in DEFAULT_NODES {
        rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, mode, rustix::fs::makedev(major, minor))
            .map_err(|e| why(&e.into(), format!("make device /dev/{name}")))?;
    }
    for (name, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        rustix::fs::symlinkat(to, &dev, name)?;
    }
    for (path, stat) in extra {
        let parent = lookup::directory(root, path.parent().unwrap_or(Path::new("/")))?;
        let name =
            path.file_name().ok_or_else(|| io::Error::other(format!("device path {} has no name", path.display())))?;
        let (kind, mode) = (FileType::from_raw_mode(stat.st_mode), Mode::from_raw_mode(stat.st_mode & 0o777));
        match rustix::fs::mknodat(&parent, name, kind, mode, stat.st_rdev) {
            Ok(()) => {
                rustix::fs::chownat(
                    &parent,
                    name,
                    Some(rustix::fs::Uid::from_raw(stat.st_uid)),
                    Some(rustix::fs::Gid::from_raw(stat.st_gid)),
                    rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
                )?;
            }
            Err(Errno::EXIST) => {}
            Err(e) => return Err(why(&e.into(), format!("make device {}", path.display()))),
        }
    }
    Ok(())
}

/// Shows the container's terminal as `/dev/console`.
pub(super) fn console(root: &OwnedFd, slave: &OwnedFd) -> io::Result<()> {
    let target = lookup::file(root, "/dev/console".as_ref())?;
    attach_at(&target, &clone_fd(slave)?)
}

/// A detached copy of what a descriptor names.
fn clone_fd(fd: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(fd, "", flags)?)
}

/// Hides and write-protects what the container must not see or change. Last, because it may make the root read-only.
pub(super) fn protect(root: &OwnedFd, launch: &Launch) -> io::Result<()> {
    let read_only = MountAttr { set: MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into(), ..MountAttr::default() };
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    if !launch.privileged && !launch.unmasked_proc {
        // What follows hides by path, so the path must lead to the real thing: an image may have a link there.
        if !is_proc(&lookup::open(root, "/proc".as_ref(), flags)?)? {
            return Err(io::Error::other(
                "/proc of the image must be a directory, so that the kernel's can be mounted on it",
            ));
        }
        let null = lookup::open(root, "/dev/null".as_ref(), flags)?;
        for path in MASKED {
            let Some(target) = existing(root, path, flags)? else { continue };
            let cover = if lookup::is_directory(&target)? {
                new_fs("tmpfs", &[("size", "0")], NO_EXEC | MountAttrFlags::MOUNT_ATTR_RDONLY)?
            } else {
                clone_fd(&null)?
            };
            attach_at(&target, &cover).map_err(|e| why(&e, format!("hide {path}")))?;
        }
        for path in READ_ONLY {
            let Some(target) = existing(root, path, flags)? else { continue };
            let copy = clone_fd(&target)?;
            mount_setattr(copy.as_fd(), false, &read_only)?;
            attach_at(&target, &copy).map_err(|e| why(&e, format!("make {path} read-only")))?;
        }
    }
    if launch.read_only_root {
        mount_setattr(root.as_fd(), false, &read_only).map_err(|e| why(&e, "make the root read-only".to_owned()))?;
    }
    Ok(())
}

fn existing(root: &OwnedFd, path: &str, flags: OFlags) -> io::Result<Option<OwnedFd>> {
    match lookup::open(root, path.as_ref(), flags) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}
