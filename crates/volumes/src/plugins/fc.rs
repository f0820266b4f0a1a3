//! `fc` volumes: disks of a Fibre Channel fabric, which the kernel finds by itself, or when it is asked to look again.
//!
//! ```text
//! <pods>/<uid>/volumes/kubernetes.io~fc/<volume>/volume.json     what the pod's disk is named; written before it is looked for
//! ```
//! With the last pod that has a disk by any of its names, the disk goes from the machine, unless somebody else has it. It is
//! found again by its name then: what the kernel called it may be another disk after a reboot.
use std::path::Path;

use serde::{Deserialize, Serialize};
use sys::Sys;

use crate::{
    contract::{FcDisk, FcSource, Growth, Machine, Ownership, Ready, Source, VolumePlugin},
    error::VolumeError,
    place::{directories, failed, if_found},
    plugins::{
        block::BlockDevice,
        mismatch,
        record::{read, write},
        scsi::{
            DiskUse, disk_behind, is_joined, is_used, multipath_of, names, paths_of, remove_disk, rescan_all,
            rescan_sizes, set_up_disk, unmount,
        },
        tear_down_dir,
    },
};

pub(super) struct Fc;

const NAME: &str = "kubernetes.io~fc";
const VOLUME: &str = "volume.json";

/// Which disk a pod's volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    disk: FcDisk,
}

impl VolumePlugin for Fc {
    fn name(&self) -> &'static str {
        NAME
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::Fc(_))
    }

    fn depends_on_others(&self) -> bool {
        true
    }

    fn takes_mount_options(&self) -> bool {
        true
    }

    fn set_up(&self, source: &Source, owner: &Ownership, dir: &Path, on: &Machine<'_>) -> Result<Ready, VolumeError> {
        let Source::Fc(source) = source else { return Err(mismatch(self)) };
        write(dir, VOLUME, &Record { disk: source.disk.clone() }, on.sys)?;
        let wanted = DiskUse {
            fs_type: source.fs_type.as_deref(),
            read_only: source.read_only,
            block: source.block,
            mount_options: &source.mount_options,
        };
        // Two pods that look for disks at once would only disturb each other.
        let find =
            || on.shared.alone_while("fc", on.cancel, || find(source, on.sys)).unwrap_or(Err(VolumeError::Cancelled));
        let device = find()?;
        let set_up = || {
            let path = Path::new("/dev").join(&device);
            // The last pod before this one may have taken it away meanwhile.
            let there = if_found(on.sys.open(&path)).map_err(failed("open", &path))?.is_some();
            let path = if there { path } else { Path::new("/dev").join(find()?) };
            set_up_disk(&path, &wanted, owner, dir, on)
        };
        on.shared.alone_while(&key(&device), on.cancel, set_up).unwrap_or(Err(VolumeError::Cancelled))
    }

    fn tear_down(&self, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
        if let Some(record) = read::<Record>(dir, VOLUME, on.sys)? {
            unmount(dir, on.sys)?;
            if let Some(device) = look(&record.disk, on.sys)? {
                on.shared.alone(&key(&device), || {
                    if has_others(&device, dir, on)? { Ok(()) } else { remove_disk(on.sys, &device) }
                })?;
            }
        }
        // The record goes last: it is what a later try begins with.
        tear_down_dir(dir, on.sys)
    }

    fn expand(&self, source: &Source, dir: &Path, bytes: u64, on: &Machine<'_>) -> Result<Growth, VolumeError> {
        let Source::Fc(source) = source else { return Err(mismatch(self)) };
        let Some(name) = look(&source.disk, on.sys)? else { return Ok(Growth::NotSetUp) };
        let joined = Some(name.as_str()).filter(|name| is_joined(name));
        rescan_sizes(on.sys, &paths_of(on.sys, &name)?, joined)?;
        let path = Path::new("/dev").join(&name);
        let device = on.sys.open(&path).map_err(failed("open", &path))?;
        let device = BlockDevice { device: &device, path: &path, sys: on.sys };
        if source.block { device.has(bytes).map(|_| Growth::Done) } else { device.grow(dir, bytes) }
    }
}

/// What calls about a disk exclude each other by.
fn key(device: &str) -> String {
    format!("fc disk {device}")
}

/// Whether somebody else than the volume in `dir` has a disk: a pod, by whatever name, or the machine itself.
fn has_others(device: &str, dir: &Path, on: &Machine<'_>) -> Result<bool, VolumeError> {
    for pod in names(on.sys, on.pods)? {
        let volumes = on.pods.join(pod).join("volumes").join(NAME);
        for other in directories(&volumes, on.sys)?.into_iter().map(|name| volumes.join(name)).filter(|o| o != dir) {
            let Some(record) = read::<Record>(&other, VOLUME, on.sys)? else { continue };
            if look(&record.disk, on.sys)?.is_some_and(|found| found == device) {
                return Ok(true);
            }
        }
    }
    is_used(on.sys, device)
}

/// The device of a disk; several paths to it are one device.
fn find(source: &FcSource, sys: &dyn Sys) -> Result<String, VolumeError> {
    let mut found = look(&source.disk, sys)?;
    if !found.as_deref().is_some_and(is_joined) {
        rescan_all(sys)?;
        found = look(&source.disk, sys)?;
    }
    found.ok_or_else(|| {
        let looked = match &source.disk {
            FcDisk::Lun { ports, lun } => {
                let ports: Vec<String> = ports.iter().map(|p| format!("fc-0x{p}-lun-{lun}")).collect();
                format!("/dev/disk/by-path has no {}; check fc.targetWWNs, fc.lun", ports.join(", "))
            }
            FcDisk::Ids(ids) => {
                let ids: Vec<String> = ids.iter().map(|id| format!("scsi-{id}")).collect();
                format!("/dev/disk/by-id has no {}; check fc.wwids", ids.join(", "))
            }
        };
        let why = format!("no fc disk found: {looked}, and that the fabric lets this node see the disk");
        VolumeError::Disk { volume: source.name.clone(), why, cause: None }
    })
}

/// Looks among the links that the device manager makes.
fn look(disk: &FcDisk, sys: &dyn Sys) -> Result<Option<String>, VolumeError> {
    let mut single = None;
    type Test = Box<dyn Fn(&str) -> bool>;
    let (dir, wanted): (&Path, Vec<Test>) = match disk {
        FcDisk::Lun { ports, lun } => {
            let is = |port: &String| -> Test {
                let tail = format!("fc-0x{port}-lun-{lun}");
                Box::new(move |name| {
                    let before = name.to_lowercase();
                    let before = before.strip_suffix(&tail);
                    before.is_some_and(|b| b.is_empty() || (b.starts_with("pci-") && b.ends_with('-')))
                })
            };
            (Path::new("/dev/disk/by-path"), ports.iter().map(is).collect())
        }
        FcDisk::Ids(ids) => {
            let is = |id: &String| -> Test {
                let link = format!("scsi-{id}");
                Box::new(move |name| name == link)
            };
            (Path::new("/dev/disk/by-id"), ids.iter().map(is).collect())
        }
    };
    let links = names(sys, dir)?;
    for is_it in wanted {
        for link in links.iter().filter(|name| is_it(name)) {
            let Some(disk) = disk_behind(sys, dir, link) else { continue };
            if let Some(device) = multipath_of(sys, &disk)? {
                return Ok(Some(device));
            }
            single.get_or_insert(disk);
        }
    }
    Ok(single)
}
