//! Finds out at the start what would otherwise make every pod fail.
use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use super::io_error;
use crate::contract::RuntimeError;

/// Whether containers' roots, which are overlays with their upper layer below `dir`, can be mounted.
pub(super) fn overlay(dir: &Path) -> Result<(), RuntimeError> {
    let place = dir.join("probe");
    let tried = try_overlay(&place).map(drop);
    // Of an earlier start too, that was killed here.
    let _ = fs::remove_dir_all(&place);
    match tried {
        // A full disk stops new containers, not the ones that run.
        Err(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            tracing::warn!(dir = %dir.display(), error = %e, "the data directory's file system is full");
            Ok(())
        }
        Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => {
            Err(io_error("containers need overlayfs, which this kernel lacks; load it with: modprobe overlay")(e))
        }
        tried => tried.map_err(io_error(format!(
            "containers' file systems cannot be overlays below {}; choose a data directory on ext4, xfs, btrfs or tmpfs",
            dir.display()
        ))),
    }
}

/// Makes an overlay that is never put into the tree of mounts: it ends with its descriptor.
fn try_overlay(place: &Path) -> io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let mut dirs = Vec::new();
    for key in ["lowerdir", "upperdir", "workdir"] {
        let path = place.join(key);
        fs::create_dir_all(&path)?;
        let dir = File::open(path)?;
        fsconfig_set_string(&context, key, format!("/proc/self/fd/{}", dir.as_raw_fd()))?;
        dirs.push(dir);
    }
    // As containers' roots are; its end would sync the whole file system otherwise.
    fsconfig_set_flag(&context, "volatile")?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

#[test]
fn an_overlay_on_an_overlay_is_refused_and_one_elsewhere_is_not() {
    let dir = tempfile::tempdir().unwrap();
    overlay(dir.path()).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let mount = try_overlay(&dir.path().join("lower")).unwrap();
    let inside = format!("/proc/self/fd/{}", mount.as_raw_fd());
    let text = base::chain(&overlay(Path::new(&inside)).unwrap_err());
    assert!(text.contains(&inside) && text.contains("choose a data directory on ext4"), "{text}");
    assert_eq!(fs::read_dir(inside).unwrap().count(), 0);
}
