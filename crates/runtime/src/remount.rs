//! Replaces what running containers see at their mount points, without a moment in which something else is there.
//!
//! The new mount is put beneath the old one, which then goes: whoever looks meets the one or the other. Needs Linux 6.5.
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
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
/// Runs on a thread of its own, which enters the container's mount namespace and ends there.
pub(crate) fn show(init: &ProcessRef, list: &[Mount]) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{}/ns/mnt", init.pid))?;
    let root = open(format!("/proc/{}/root", init.pid), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    // What was opened is of that process, and not of a later one with its number.
    if !init.is_alive() {
        return Err(Errno::SRCH.into());
    }
    let sources = list.iter().map(|mount| Ok((mount, mounts::source(mount)?))).collect::<io::Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        let work = || {
            nix::sched::unshare(CloneFlags::CLONE_FS)?;
            let descriptors = open("/proc/thread-self/fd", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            nix::sched::setns(namespace, CloneFlags::CLONE_NEWNS)?;
            rustix::process::fchdir(&descriptors)?;
            for (mount, source) in sources {
                replace(&root, mount, &source)
                    .map_err(|e| why(&e, format!("show another file on {}", mount.container_path.display())))?;
            }
            Ok(())
        };
        std::thread::Builder::new().name("remount".into()).spawn_scoped(scope, work)?.join().unwrap_or_else(|panic| {
            std::panic::resume_unwind(panic);
        })
    })
}

fn look(at: &OwnedFd) -> io::Result<Statx> {
    Ok(statx(at, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?)
}

/// The working directory is that of the thread's descriptors.
fn replace(root: &OwnedFd, mount: &Mount, source: &OwnedFd) -> io::Result<()> {
    let target = lookup::open(root, &mount.container_path, OFlags::PATH)?;
    let (old, new) = (look(&target)?, look(source)?);
    let device = |s: &Statx| (s.stx_dev_major, s.stx_dev_minor);
    if device(&old) != device(&new) || !old.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(io::Error::other("something else is mounted there"));
    }
    if old.stx_ino == new.stx_ino {
        return Ok(());
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_BENEATH;
    move_mount(source, "", &target, "", flags)
        .map_err(|e| why(&e.into(), "put it beneath (needs Linux 6.5)".into()))?;
    // By the descriptor: exactly the mount that was looked at, whatever has its name by now.
    Ok(unmount(target.as_raw_fd().to_string(), UnmountFlags::DETACH)?)
}
