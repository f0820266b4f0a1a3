//! Replaces what running containers see at their mount points, without a moment in which something else is there.
//!
//! The new mount is put beneath the old one, which then goes: whoever looks meets the one or the other. Needs Linux 6.5.
//! What a process served that has ended is replaced by what another serves in its place, on older kernels too.
use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use nix::sched::CloneFlags;
use rustix::{
    fs::{AtFlags, Mode, OFlags, Statx, StatxAttributes, StatxFlags, open, statx},
    io::Errno,
    mount::{MoveMountFlags, UnmountFlags, move_mount, unmount},
};

use crate::{
    contract::Mount,
    init::{lookup, mounts, why},
    launch::ProcessRef,
};

/// Shows the present files at the host paths of `mounts` in the container of this process. Those it shows already stay.
///
/// `all` are the container's mounts: what is mounted inside of one that is replaced is mounted again. One that fails keeps no
/// other. Runs on a thread of its own, which enters the container's mount namespace and ends there.
pub(crate) fn show(init: &ProcessRef, list: &[Mount], all: &[Mount]) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{}/ns/mnt", init.pid))?;
    let root = open(format!("/proc/{}/root", init.pid), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let tables = Tables {
        here: fs::read_to_string("/proc/self/mountinfo")?,
        there: fs::read_to_string(format!("/proc/{}/mountinfo", init.pid))?,
    };
    // What was opened is of that process, and not of a later one with its number.
    if !init.is_alive() {
        return Err(Errno::SRCH.into());
    }
    let sources = list.iter().map(|mount| Ok((mount, mounts::source(mount)?, inside(mount, all)?)));
    let sources = sources.collect::<io::Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        let work = || {
            nix::sched::unshare(CloneFlags::CLONE_FS)?;
            let descriptors = open("/proc/thread-self/fd", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            nix::sched::setns(namespace, CloneFlags::CLONE_NEWNS)?;
            rustix::process::fchdir(&descriptors)?;
            let mut result = Ok(());
            for (mount, source, inner) in sources {
                let done = replace(&root, mount, &source, &inner, &tables)
                    .map_err(|e| why(&e, format!("show what is there by now on {}", mount.container_path.display())));
                result = result.and(done);
            }
            result
        };
        std::thread::Builder::new().name("remount".into()).spawn_scoped(scope, work)?.join().unwrap_or_else(|panic| {
            std::panic::resume_unwind(panic);
        })
    })
}

/// What is mounted on the host, and in the container.
struct Tables {
    here: String,
    there: String,
}

impl Tables {
    /// Whether the container's mount is of a filesystem that a process serves, and the new one is what has come in its place:
    /// the same kind, under another number. Containers cannot mount such; whatever else is where their mount point leads
    /// by now, such as what hides the host's files from them, stays.
    fn is_successor(&self, old: &Statx, new: &Statx) -> bool {
        let before = lines(&self.there).find(|line| line.id == old.stx_mnt_id).map(|line| line.kind);
        let device = (new.stx_dev_major, new.stx_dev_minor);
        let now = lines(&self.here).find(|line| line.device == device).map(|line| line.kind);
        before.is_some_and(|kind| kind.starts_with("fuse") && now == Some(kind))
    }

    /// How much is mounted inside of the container's mount, and inside of that.
    fn inside(&self, old: &Statx) -> usize {
        let mut found = vec![old.stx_mnt_id];
        // Parents come first, but for what was moved since: a mount that is missed makes them differ, which is told.
        for line in lines(&self.there) {
            if found.contains(&line.parent) {
                found.push(line.id);
            }
        }
        found.len() - 1
    }
}

/// A line of a mount table.
struct Line<'a> {
    id: u64,
    parent: u64,
    device: (u32, u32),
    /// `ext4`, `fuse.x`, ...
    kind: &'a str,
}

fn lines(table: &str) -> impl Iterator<Item = Line<'_>> {
    table.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let (id, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let (major, minor) = fields.next()?.split_once(':')?;
        let kind = filesystem.split(' ').next()?;
        Some(Line { id, parent, device: (major.parse().ok()?, minor.parse().ok()?), kind })
    })
}

/// Without asking whoever serves it, who may be gone.
fn look(at: &OwnedFd) -> io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    Ok(statx(at, "", flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)?)
}

/// What of a container's mounts is inside of one of them, outer ones first: where in it, and what is to be there.
fn inside<'a>(mount: &Mount, all: &'a [Mount]) -> io::Result<Vec<(&'a Path, OwnedFd)>> {
    let below = |m: &'a Mount| m.container_path.strip_prefix(&mount.container_path).ok().map(|path| (path, m));
    let mut inner: Vec<_> = all.iter().filter_map(below).filter(|(path, _)| !path.as_os_str().is_empty()).collect();
    inner.sort_by_key(|(path, _)| path.components().count());
    inner.into_iter().map(|(path, m)| Ok((path, mounts::source(m)?))).collect()
}

/// The working directory is that of the thread's descriptors.
fn replace(
    root: &OwnedFd,
    mount: &Mount,
    source: &OwnedFd,
    inner: &[(&Path, OwnedFd)],
    tables: &Tables,
) -> io::Result<()> {
    let target = lookup::open(root, &mount.container_path, OFlags::PATH)?;
    let (old, new) = (look(&target)?, look(source)?);
    let device = |s: &Statx| (s.stx_dev_major, s.stx_dev_minor);
    let same_device = device(&old) == device(&new);
    let is_root = old.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    if !is_root || !(same_device || tables.is_successor(&old, &new)) {
        return Err(io::Error::other("something else is mounted there"));
    }
    if same_device && old.stx_ino == new.stx_ino {
        return Ok(());
    }
    if !same_device && tables.inside(&old) != inner.len() {
        return Err(io::Error::other("something was mounted inside of it, which would be lost"));
    }
    let over = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    let beneath = match move_mount(source, "", &target, "", over | MoveMountFlags::MOVE_MOUNT_BENEATH) {
        Ok(()) => true,
        // Before Linux 6.5: what nobody serves any more may as well stay, hidden.
        Err(Errno::INVAL) if !same_device => {
            move_mount(source, "", &target, "", over)?;
            false
        }
        Err(e) => return Err(why(&e.into(), "put it beneath (needs Linux 6.5)".into())),
    };
    // By their descriptors: exactly the mounts that are meant, whatever has their names by now.
    let detach = |mount: &OwnedFd| unmount(mount.as_raw_fd().to_string(), UnmountFlags::DETACH);
    if !same_device && let Err(error) = fill(source, inner) {
        // Neither half of it.
        detach(source)?;
        return Err(error);
    }
    if beneath {
        detach(&target)?;
    }
    Ok(())
}

/// Mounts inside of a new mount what was inside of the old one.
fn fill(new: &OwnedFd, inner: &[(&Path, OwnedFd)]) -> io::Result<()> {
    for (path, source) in inner {
        let at = lookup::open(new, path, OFlags::PATH)
            .map_err(|e| why(&e, format!("find {} in it, where something else is mounted", path.display())))?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(source, "", &at, "", flags)?;
    }
    Ok(())
}

#[test]
fn mounts_are_told_by_kind_and_number() {
    let table = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
                 31 27 0:52 / /d rw shared:3 master:1 - fuse.nfs 10.0.0.1:/a\\040-\\040b rw,user_id=0\nodd\n";
    let all: Vec<_> = lines(table).map(|l| (l.id, l.parent, l.device, l.kind)).collect();
    assert_eq!(all, [(27, 1, (254, 0), "ext4"), (31, 27, (0, 52), "fuse.nfs")]);
}
