//! `fc` volumes: disks of a Fibre Channel fabric, which the kernel finds by itself, or when it is asked to look again.
//!
//! What the kernel has found stays known to the machine when a pod lets go of it, so that nothing of it has to be recorded.
use std::path::{Path, PathBuf};

use sys::Sys;

use crate::{
    contract::{FcDisk, FcSource, Growth, Machine, Ownership, Ready, Source, VolumePlugin},
    error::VolumeError,
    place::failed,
    plugins::{
        block::BlockDevice,
        mismatch,
        scsi::{DiskUse, disk_behind, multipath_of, names, rescan_all, set_up_disk},
        tear_down_dir,
    },
};

pub(super) struct Fc;

impl VolumePlugin for Fc {
    fn name(&self) -> &'static str {
        "kubernetes.io~fc"
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::Fc(_))
    }

    fn takes_mount_options(&self) -> bool {
        true
    }

    fn set_up(&self, source: &Source, owner: &Ownership, dir: &Path, on: &Machine<'_>) -> Result<Ready, VolumeError> {
        let Source::Fc(source) = source else { return Err(mismatch(self)) };
        // Two pods that look for disks at once would only disturb each other.
        let found = on.shared.alone_while("fc", on.cancel, || find(source, on.sys));
        let device = found.unwrap_or(Err(VolumeError::Cancelled))?;
        let wanted = DiskUse {
            fs_type: source.fs_type.as_deref(),
            read_only: source.read_only,
            block: source.block,
            mount_options: &source.mount_options,
        };
        set_up_disk(&device, &wanted, owner, dir, on)
    }

    fn tear_down(&self, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
        tear_down_dir(dir, on.sys)
    }

    fn expand(&self, source: &Source, dir: &Path, bytes: u64, on: &Machine<'_>) -> Result<Growth, VolumeError> {
        let Source::Fc(source) = source else { return Err(mismatch(self)) };
        let path = find(source, on.sys)?;
        let device = on.sys.open(&path).map_err(failed("open", &path))?;
        let device = BlockDevice { device: &device, path: &path, sys: on.sys };
        if source.block { device.has(bytes).map(|_| Growth::Done) } else { device.grow(dir, bytes) }
    }
}

/// The device of a disk; several paths to it are one device.
fn find(source: &FcSource, sys: &dyn Sys) -> Result<PathBuf, VolumeError> {
    let mut found = look(source, sys)?;
    if !matches!(&found, Some(device) if device.starts_with("dm-")) {
        rescan_all(sys)?;
        found = look(source, sys)?;
    }
    let device = found.ok_or_else(|| {
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
    })?;
    Ok(Path::new("/dev").join(device))
}

/// Looks among the links that the device manager makes.
fn look(source: &FcSource, sys: &dyn Sys) -> Result<Option<String>, VolumeError> {
    let mut single = None;
    type Test = Box<dyn Fn(&str) -> bool>;
    let (dir, wanted): (&Path, Vec<Test>) = match &source.disk {
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
