//! What the kernel says of SCSI disks in `/sys` and `/dev`, and what it is asked to do there.
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use sys::Sys;

use crate::{
    contract::{Machine, Ownership, Ready},
    error::VolumeError,
    place::{failed, if_found},
    plugins::{DATA, block::BlockDevice, is_marked, mark, own, ready, shown_group},
};

const BLOCK: &str = "/sys/block";

/// Names in a directory, in order; none where there is no such directory.
pub(super) fn names(sys: &dyn Sys, path: &Path) -> Result<Vec<String>, VolumeError> {
    let Some(dir) = if_found(sys.open(path)).map_err(failed("open", path))? else { return Ok(Vec::new()) };
    let listed = match sys.list(&dir) {
        // Devices come and go.
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        listed => listed.map_err(failed("read", path))?,
    };
    let mut names: Vec<String> = listed.into_iter().filter_map(|e| e.name.into_string().ok()).collect();
    names.sort_unstable();
    Ok(names)
}

/// What a small file says; `None` where there is none, or where it is about something that is not there.
pub(super) fn text(sys: &dyn Sys, path: &Path) -> Result<Option<String>, VolumeError> {
    match sys.open(path).and_then(|file| sys.read_file(&file)) {
        Ok(data) => Ok(Some(String::from_utf8_lossy(&data).trim().to_owned())),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::NotConnected) => {
            Ok(None)
        }
        Err(e) => Err(failed("read", path)(e)),
    }
}

/// Tells the kernel something by one of its files.
pub(super) fn set(sys: &dyn Sys, path: &Path, what: &str) -> Result<(), VolumeError> {
    let file = sys.open(path).map_err(failed("open", path))?;
    sys.write_setting(&file, what.as_bytes()).map_err(failed("write", path))
}

/// The name of the disk that a link of `/dev/disk` leads to.
pub(super) fn disk_behind(sys: &dyn Sys, dir: &Path, link: &str) -> Option<String> {
    let dir = sys.open(dir).ok()?;
    let target = sys.read_link(&dir, link.as_ref()).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// The device that has a disk as one of its paths.
pub(super) fn multipath_of(sys: &dyn Sys, disk: &str) -> Result<Option<String>, VolumeError> {
    if disk.starts_with("dm-") {
        return Ok(Some(disk.to_owned()));
    }
    for device in names(sys, Path::new(BLOCK))?.into_iter().filter(|d| d.starts_with("dm-")) {
        if names(sys, &Path::new(BLOCK).join(&device).join("slaves"))?.iter().any(|slave| slave == disk) {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

/// Lets the kernel look for disks at all of its SCSI hosts.
pub(super) fn rescan_all(sys: &dyn Sys) -> Result<(), VolumeError> {
    let hosts = Path::new("/sys/class/scsi_host");
    for host in names(sys, hosts)? {
        set(sys, &hosts.join(host).join("scan"), "- - -")?;
    }
    Ok(())
}

/// Lets the kernel forget a disk.
pub(super) fn forget(sys: &dyn Sys, disk: &str) -> Result<(), VolumeError> {
    match set(sys, &Path::new(BLOCK).join(disk).join("device/delete"), "1") {
        Err(VolumeError::Files { errno, .. }) if errno.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// A program of the host, wherever distributions have it.
pub(super) fn program(sys: &dyn Sys, name: &str) -> Option<PathBuf> {
    const DIRECTORIES: [&str; 6] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"];
    DIRECTORIES.map(|dir| Path::new(dir).join(name)).into_iter().find(|file| sys.open(file).is_ok())
}

/// How a pod uses a disk.
pub(super) struct DiskUse<'a> {
    pub fs_type: Option<&'a str>,
    pub read_only: bool,
    pub block: bool,
    pub mount_options: &'a [String],
}

/// Makes a disk a volume in `dir`: as it is, or with its filesystem.
pub(super) fn set_up_disk(
    device: &Path,
    wanted: &DiskUse<'_>,
    owner: &Ownership,
    dir: &Path,
    on: &Machine<'_>,
) -> Result<Ready, VolumeError> {
    let sys = on.sys;
    if wanted.block {
        return Ok(Ready { device: true, ..ready(dir, device, wanted.read_only) });
    }
    let top = sys.open(dir).map_err(failed("open", dir))?;
    let handle = sys.open(device).map_err(failed("open", device))?;
    let on_device = BlockDevice { device: &handle, path: device, sys };
    let volume = on_device.mount(&top, dir, (wanted.fs_type, wanted.read_only, wanted.mount_options))?;
    let path = dir.join(DATA);
    let group_map = if wanted.read_only { None } else { shown_group(sys, &volume, &path, owner)? };
    if !is_marked(sys, &top, dir)? {
        if !wanted.read_only && group_map.is_none() {
            own(sys, &volume, &path, owner, false)?;
        }
        mark(sys, &top, dir)?;
    }
    Ok(Ready { group_map, ..ready(dir, &path, wanted.read_only) })
}
