//! `local` persistent volumes: a directory of the node that an administrator has made, or a block device.
//!
//! The filesystem of a device is mounted once per pod, in the volume's directory: the kernel lets all such mounts share it.
use std::{ffi::OsStr, io::ErrorKind, path::Path};

use sys::{Bind, FileKind, Handle, MountOptions, Sys, tree};

use crate::{
    contract::{Growth, Machine, Ownership, Ready, Source, VolumePlugin},
    error::VolumeError,
    place::{PRIVATE, ensure_dir, failed, if_found, unmounting},
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
            Place::Directory(volume) if mount_options.is_empty() => (volume, path.clone()),
            Place::Directory(volume) => {
                show(&volume, (&top, dir), mount_options, sys)?;
                (volume, dir.join(DATA))
            }
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
        // What others mounted in the directory itself stays theirs.
        if let Some(top) = if_found(on.sys.open(dir)).map_err(failed("open", dir))? {
            tree::isolate_all(on.sys, &top, OsStr::new(DATA)).map_err(unmounting(&dir.join(DATA)))?;
        }
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

/// Shows a directory by a mount of its own on `data` in the volume's directory, with mount options, unless it is there.
fn show(
    volume: &Handle,
    (top, dir): (&Handle, &Path),
    mount_options: &[String],
    sys: &dyn Sys,
) -> Result<(), VolumeError> {
    let path = dir.join(DATA);
    let options =
        MountOptions::of(mount_options).map_err(|word| VolumeError::MountOptions { options: word.to_owned() })?;
    let data = ensure_dir(sys, top, OsStr::new(DATA), PRIVATE).map_err(failed("create", &path))?;
    if sys.stat(&data).map_err(failed("read", &path))?.mount_root {
        return Ok(());
    }
    let bind = Bind { recursive: true, options, ..Bind::default() };
    sys.bind(volume, &data, &bind).map_err(|errno| VolumeError::Mount { target: path, errno })
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
