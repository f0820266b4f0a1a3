//! The container's root: an overlay of the image's layers, visible in the container's mount namespace only.
//!
//! Mounted there and not on the host, it needs no clean-up: it goes with the container's last process, and a crash of
//! anything leaves no mount behind.
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags},
    mount::{MountFlags, MountPropagationFlags, UnmountFlags},
};

use super::why;
use crate::launch::Launch;

/// Mounts the root and returns it. The calling process must be in a mount namespace of its own.
pub(super) fn build(launch: &Launch) -> io::Result<OwnedFd> {
    // Nothing that happens here may reach the host.
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|e| why(&e.into(), "make the mount namespace private".to_owned()))?;
    let open = |path: &Path| File::open(path).map_err(|e| why(&e, format!("open {}", path.display())));
    let lower = launch.lower.iter().map(|p| open(p)).collect::<io::Result<Vec<_>>>()?;
    let (upper, work) = (open(&launch.upper)?, open(&launch.work)?);
    // By descriptor: the option string has a limit that the paths of an image with many layers exceed.
    let short = |f: &File| format!("/proc/self/fd/{}", f.as_raw_fd());
    let layers = lower.iter().map(short).collect::<Vec<_>>().join(":");
    // Volatile: without it the end of every container syncs the whole file system below, and nothing is gained: no container
    // comes back after a crash of the host, a new one with a new upper layer does. What shall last is in volumes.
    let options = format!("lowerdir={layers},upperdir={},workdir={},volatile", short(&upper), short(&work));
    let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
    rustix::mount::mount("overlay", &launch.target, "overlay", MountFlags::empty(), Some(options.as_c_str()))
        .map_err(|e| why(&e.into(), format!("mount the image's layers as overlay on {}", launch.target.display())))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(&launch.target, flags, Mode::empty())?)
}

/// Makes `root` the root directory and drops every other mount.
pub(super) fn enter(root: &OwnedFd) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // With both arguments the same, the old root ends up stacked on the new one and can be detached in place.
    rustix::process::pivot_root(".", ".").map_err(|e| why(&e.into(), "enter the container's root".to_owned()))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)
        .map_err(|e| why(&e.into(), "detach the host's root".to_owned()))?;
    Ok(rustix::process::chdir("/")?)
}
