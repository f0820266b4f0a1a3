//! What the kernel says of SCSI disks in `/sys` and `/dev`, and what it is asked to do there.
use std::{
    ffi::OsString,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use sys::{Bounds, Program, Reach, Sys, Unmount, tree};

use crate::{
    contract::{Machine, Ownership, Ready},
    error::VolumeError,
    place::{failed, if_found},
    plugins::{DATA, block::BlockDevice, is_marked, mark, own, ready, shown_group},
};

const BLOCK: &str = "/sys/block";
/// Of programs that tell the kernel something about disks.
const BOUNDS: Bounds = Bounds { time: Duration::from_secs(30), output_bytes: 16 << 10 };

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
    if is_joined(disk) {
        return Ok(Some(disk.to_owned()));
    }
    for device in names(sys, Path::new(BLOCK))?.into_iter().filter(|d| d.starts_with("dm-")) {
        if names(sys, &Path::new(BLOCK).join(&device).join("slaves"))?.iter().any(|slave| slave == disk) {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

/// Whether a device is made of others.
pub(super) fn is_joined(device: &str) -> bool {
    device.starts_with("dm-")
}

/// The disks that are the paths of a device; one that is not joined is its own.
pub(super) fn paths_of(sys: &dyn Sys, device: &str) -> Result<Vec<String>, VolumeError> {
    if !is_joined(device) {
        return Ok(vec![device.to_owned()]);
    }
    names(sys, &Path::new(BLOCK).join(device).join("slaves"))
}

/// Runs a program of the host, if it is installed. Whether it did what it should.
fn tell(sys: &dyn Sys, name: &str, arguments: &[&str]) -> bool {
    let Some(path) = program(sys, name) else { return false };
    let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
    sys.run(&Program::new(&path, &arguments), &BOUNDS, &|| false).is_ok_and(|ran| ran.status == Some(0))
}

/// Lets multipathd write back and give up a device. Whether it did.
pub(super) fn flush_joined(sys: &dyn Sys, device: &str) -> bool {
    tell(sys, "multipath", &["-f", &format!("/dev/{device}")])
}

/// Lets the kernel see the sizes of disks as they are now, and multipathd that of the device that joins them.
pub(super) fn rescan_sizes(sys: &dyn Sys, disks: &[String], joined: Option<&str>) -> Result<(), VolumeError> {
    for disk in disks {
        let file = Path::new(BLOCK).join(disk).join("device/rescan");
        // What is no SCSI disk is asked by nobody.
        if if_found(sys.open(&file)).map_err(failed("open", &file))?.is_some() {
            set(sys, &file, "1")?;
        }
    }
    if let Some(device) = joined {
        // Where it fails, the device is seen to be too small.
        tell(sys, "multipathd", &["resize", "map", device]);
    }
    Ok(())
}

/// Whether somebody on this machine has a device, or a part of it, mounted, or made something of it.
pub(super) fn is_used(sys: &dyn Sys, device: &str) -> Result<bool, VolumeError> {
    let top = Path::new(BLOCK).join(device);
    let parts = names(sys, &top)?.into_iter().filter(|name| name.starts_with(device));
    let all: Vec<PathBuf> = std::iter::once(top.clone()).chain(parts.map(|part| top.join(part))).collect();
    let mounts = text(sys, Path::new("/proc/self/mountinfo"))?.unwrap_or_default();
    let swaps = text(sys, Path::new("/proc/swaps"))?.unwrap_or_default();
    for place in all {
        let number = text(sys, &place.join("dev"))?;
        let name = format!("/dev/{}", place.file_name().unwrap_or_default().to_string_lossy());
        // Some filesystems have numbers that are no device's, but all name it.
        let is_mounted =
            mounts.lines().any(|line| line.split(' ').any(|word| Some(word) == number.as_deref() || word == name));
        let is_swap = swaps.lines().any(|line| line.split_whitespace().next() == Some(&name));
        if is_mounted || is_swap || !names(sys, &place.join("holders"))?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes a disk with its paths from the machine, as far as it lets itself be taken: what multipathd keeps stays whole.
pub(super) fn remove_disk(sys: &dyn Sys, device: &str) -> Result<(), VolumeError> {
    let paths = paths_of(sys, device)?;
    if is_joined(device) && !flush_joined(sys, device) {
        return Ok(());
    }
    for path in &paths {
        // What cannot be written back now is not written back by another try either.
        tell(sys, "blockdev", &["--flushbufs", &format!("/dev/{path}")]);
        // A disk that stays is no harm: it is found again by who wants it next.
        let _ = forget(sys, path);
    }
    Ok(())
}

/// Takes what is mounted in a volume's directory from the pod, and leaves its record.
pub(super) fn unmount(dir: &Path, sys: &dyn Sys) -> Result<(), VolumeError> {
    let (Some(above), Some(name)) = (dir.parent(), dir.file_name()) else { return Ok(()) };
    let Some(top) = if_found(sys.open(above)).map_err(failed("open", above))? else { return Ok(()) };
    if if_found(sys.open_at(&top, Path::new(name), Reach::Plain)).map_err(failed("open", dir))?.is_none() {
        return Ok(());
    }
    tree::unmount_all(sys, &top, name, &|_| Unmount::Strict)
        .map_err(|(point, errno)| VolumeError::Unmount { target: above.join(point), errno })
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
