//! The container's root: an overlay of the image's layers, visible in the container's mount namespace only.
//!
//! Mounted there and not on the host, it needs no clean-up: it goes with the container's last process, and a crash of
//! anything leaves no mount behind.
use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::{MountFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags, open_tree},
};

use super::{mounts, why};
use crate::{
    bare,
    kernel::{MountAttr, mount_setattr},
    launch::{Launch, UPPER, WORK},
};

/// What the root is made of, as detached mounts: overlayfs takes no directory of another mount namespace.
pub(super) struct Layers {
    /// Top-most first.
    lower: Vec<OwnedFd>,
    writable: OwnedFd,
}

impl Layers {
    pub(super) fn open(launch: &Launch) -> io::Result<Self> {
        let lower = launch.lower.iter().map(|path| copy(path)).collect::<io::Result<_>>()?;
        Ok(Self { lower, writable: copy(&launch.writable)? })
    }
}

/// A detached mount of a directory, without what is mounted below it and without a tie to the host's.
fn copy(path: &Path) -> io::Result<OwnedFd> {
    let context = |e: &io::Error| why(e, format!("open {}", path.display()));
    let copy = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .map_err(|e| context(&e.into()))?;
    let private = MountAttr { propagation: MountPropagationFlags::PRIVATE.bits().into(), ..MountAttr::default() };
    mount_setattr(copy.as_fd(), false, &private).map_err(|e| context(&e))?;
    Ok(copy)
}

/// Mounts the root and returns it. The calling process must be in a bare mount namespace of its own.
pub(super) fn build(layers: Layers) -> io::Result<OwnedFd> {
    let open = |path: &str| Ok::<_, io::Error>(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?);
    // All on the same directory, one above the other: they are used by their descriptors.
    for layer in &layers.lower {
        mounts::attach_at(&open(bare::LAYERS)?, layer).map_err(|e| why(&e, "mount a layer of the image".to_owned()))?;
    }
    mounts::attach_at(&open(bare::WRITABLE)?, &layers.writable)
        .map_err(|e| why(&e, "mount the container's own layer".to_owned()))?;
    // By descriptor: the option string has a limit that the paths of an image with many layers exceed.
    let short = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let lower = layers.lower.iter().map(short).collect::<Vec<_>>().join(":");
    let own = short(&layers.writable);
    // Volatile: without it the end of every container syncs the whole file system below, and nothing is gained: no container
    // comes back after a crash of the host, a new one with a new upper layer does. What shall last is in volumes.
    let options = format!("lowerdir={lower},upperdir={own}/{UPPER},workdir={own}/{WORK},volatile");
    let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
    rustix::mount::mount("overlay", bare::ROOT, "overlay", MountFlags::empty(), Some(options.as_c_str()))
        .map_err(|e| why(&e.into(), "mount the image's layers as overlay".to_owned()))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(bare::ROOT, flags, Mode::empty())?)
}

/// Makes `root` the root directory and drops every other mount.
pub(super) fn enter(root: &OwnedFd) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // With both arguments the same, the old root ends up stacked on the new one and can be detached in place.
    rustix::process::pivot_root(".", ".").map_err(|e| why(&e.into(), "enter the container's root".to_owned()))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(|e| why(&e.into(), "detach the old root".to_owned()))?;
    Ok(rustix::process::chdir("/")?)
}
