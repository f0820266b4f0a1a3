//! `local` persistent volumes: a directory of the node that an administrator has made, or a block device.
//!
//! The filesystem of a device is mounted once per pod, in the volume's directory: the kernel lets all such mounts share it.
use std::{io::ErrorKind, path::Path};

use sys::{FileKind, Handle, Sys};

use crate::{
    contract::{Growth, Machine, Ownership, Ready, Source, VolumePlugin},
    error::VolumeError,
    place::failed,
    plugins::{DATA, block::BlockDevice, is_marked, mark, mismatch, own, ready, shown_group, tear_down_dir},
};

pub(super) struct Local;

impl VolumePlugin for Local {
    fn name(&self) -> &'static str {
        "kubernetes.io~local-volume"
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::Local { .. } | Source::LocalDevice { .. })
    }

    fn takes_mount_options(&self) -> bool {
        true
    }

    fn set_up(&self, source: &Source, owner: &Ownership, dir: &Path, on: &Machine<'_>) -> Result<Ready, VolumeError> {
        let sys = on.sys;
        let (path, read_only, fs_type, mount_options) = match source {
            Source::Local { path, read_only, fs_type, mount_options } => (path, read_only, fs_type, mount_options),
            Source::LocalDevice { path, read_only } => return device(path, *read_only, dir, sys),
            _ => return Err(mismatch(self)),
        };
        let volume = open(path, sys)?;
        let top = sys.open(dir).map_err(failed("open", dir))?;
        let (volume, path) = match volume {
            Place::Directory(_) if !mount_options.is_empty() => {
                return Err(VolumeError::MountOptions { options: mount_options.join(",") });
            }
            Place::Directory(volume) => (volume, path.clone()),
            Place::Device(device) => {
                let device = BlockDevice { device: &device, path, sys };
                let wanted = (fs_type.as_deref(), *read_only, mount_options.as_slice());
                (device.mount(&top, dir, wanted)?, dir.join(DATA))
            }
        };
        let group_map = if *read_only { None } else { shown_group(sys, &volume, &path, owner)? };
        if !is_marked(sys, &top, dir)? {
            if !read_only && group_map.is_none() {
                own(sys, &volume, &path, owner, false)?;
            }
            mark(sys, &top, dir)?;
        }
        Ok(Ready { group_map, ..ready(dir, &path, *read_only) })
    }

    fn tear_down(&self, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
        tear_down_dir(dir, on.sys)
    }

    fn expand(&self, source: &Source, dir: &Path, bytes: u64, on: &Machine<'_>) -> Result<Growth, VolumeError> {
        let sys = on.sys;
        let path = match source {
            Source::Local { path, .. } => path,
            // It has what it has.
            Source::LocalDevice { .. } => return Ok(Growth::NotHere),
            _ => return Err(mismatch(self)),
        };
        match open(path, sys)? {
            // It has what its filesystem has; as upstream, that is taken for what was asked for.
            Place::Directory(_) => Ok(Growth::Done),
            Place::Device(device) => BlockDevice { device: &device, path, sys }.grow(dir, bytes),
        }
    }
}

/// Mounts a device, formatted if it is empty, on `data` in the directory `dir`, which is open as `top`, unless it is there.
pub(super) fn mount_device(
    path: &Path,
    (top, dir): (&Handle, &Path),
    (fs_type, read_only): (Option<&str>, bool),
    sys: &dyn Sys,
) -> Result<(), VolumeError> {
    match open(path, sys)? {
        Place::Device(device) => {
            let device = BlockDevice { device: &device, path, sys };
            device.mount(top, dir, (fs_type, read_only, &[])).map(drop)
        }
        Place::Directory(_) => {
            let why = "it is a directory, not a block device";
            Err(VolumeError::LocalPath { path: path.into(), why, errno: None })
        }
    }
}

/// Lets the filesystem of a device that is mounted at `at` have all of the device.
pub(super) fn grow_device(path: &Path, at: &Path, bytes: u64, sys: &dyn Sys) -> Result<Growth, VolumeError> {
    match open(path, sys)? {
        Place::Device(device) => {
            let above = at.parent().unwrap_or(at);
            BlockDevice { device: &device, path, sys }.grow(above, bytes)
        }
        Place::Directory(_) => Ok(Growth::Done),
    }
}

/// A block device as it is, for `volumeDevices`.
fn device(path: &Path, read_only: bool, dir: &Path, sys: &dyn Sys) -> Result<Ready, VolumeError> {
    match open(path, sys)? {
        Place::Device(_) => Ok(Ready { device: true, ..ready(dir, path, read_only) }),
        Place::Directory(_) => {
            let why = "it is a directory, and the volume's volumeMode Block asks for a block device";
            Err(VolumeError::LocalPath { path: path.into(), why, errno: None })
        }
    }
}

enum Place {
    Directory(Handle),
    Device(Handle),
}

fn open(path: &Path, sys: &dyn Sys) -> Result<Place, VolumeError> {
    let unusable = |why, errno| VolumeError::LocalPath { path: path.to_path_buf(), why, errno };
    let volume = sys.open(path).map_err(|errno| match errno.kind() {
        ErrorKind::NotFound => unusable("it does not exist", Some(errno)),
        _ => unusable("it cannot be opened", Some(errno)),
    })?;
    match sys.stat(&volume).map_err(failed("read", path))?.kind {
        FileKind::Directory => Ok(Place::Directory(volume)),
        FileKind::BlockDevice => Ok(Place::Device(volume)),
        _ => Err(unusable("only directory and block device are supported", None)),
    }
}
