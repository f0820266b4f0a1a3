//! `iscsi` volumes: LUNs of targets, by the kernel's initiator where there is one, else by a process of this machine's own.
//!
//! ```text
//! <pods>/<uid>/volumes/kubernetes.io~iscsi/<volume>/volume.json     which LUN the pod has; written before anything is done
//! <plugins>/kubernetes.io/iscsi/<sha256 of target, LUN, initiator>/stage.json     how this machine has it
//! <plugins>/kubernetes.io/iscsi/<...>/export                        where a process serves it, behind a loop device
//! ```
//! This machine has a LUN once, whatever portals its pods name: two devices for one disk would not know of each other's
//! writes. It goes with the last pod that has a record of it.
mod chap;
mod kernel;
mod served;
mod stage;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use self::stage::{Mechanism, Record, Stage};
use crate::{
    contract::{Growth, IscsiSource, Machine, Ownership, Ready, Source, VolumePlugin},
    error::VolumeError,
    place::failed,
    plugins::{
        block::BlockDevice,
        mismatch,
        scsi::{DiskUse, set_up_disk, unmount},
        tear_down_dir,
    },
};

pub(super) struct Iscsi;

const NAME: &str = "kubernetes.io~iscsi";

impl VolumePlugin for Iscsi {
    fn name(&self) -> &'static str {
        NAME
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::Iscsi(_))
    }

    fn depends_on_others(&self) -> bool {
        true
    }

    fn takes_mount_options(&self) -> bool {
        true
    }

    fn set_up(&self, source: &Source, owner: &Ownership, dir: &Path, on: &Machine<'_>) -> Result<Ready, VolumeError> {
        let Source::Iscsi(source) = source else { return Err(mismatch(self)) };
        let stage = Stage::of(source, on);
        let wanted = DiskUse {
            fs_type: source.fs_type.as_deref(),
            read_only: source.read_only,
            block: source.block,
            mount_options: &source.mount_options,
        };
        let device = attach(source, &stage, dir, on)?;
        alone(&stage.key(), on, || set_up_disk(&device, &wanted, owner, dir, on))
    }

    fn tear_down(&self, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
        let Some(record) = Record::read(dir, on.sys)? else {
            return tear_down_dir(dir, on.sys);
        };
        let stage = Stage::recorded(&record, on);
        // Who was told that the pod ends has said how long; else there is no pod any more that could wait.
        if !record.ends(dir, on)? {
            served::hurry(&stage, None, on)?;
        }
        on.shared.alone(&stage.key(), || {
            unmount(dir, on.sys)?;
            if !record.has_others(dir, on)? {
                detach(&stage, on)?;
            }
            // The record goes last: it is what a later try begins with.
            tear_down_dir(dir, on.sys)
        })
    }

    fn ending(&self, dir: &Path, grace: Duration, on: &Machine<'_>) -> Result<(), VolumeError> {
        match Record::read(dir, on.sys)? {
            Some(record) if !record.ends(dir, on)? => served::hurry(&Stage::recorded(&record, on), Some(grace), on),
            _ => Ok(()),
        }
    }

    fn expand(&self, source: &Source, dir: &Path, bytes: u64, on: &Machine<'_>) -> Result<Growth, VolumeError> {
        let Source::Iscsi(source) = source else { return Err(mismatch(self)) };
        let stage = Stage::of(source, on);
        on.shared.alone(&stage.key(), || {
            let Some(record) = stage.read(on.sys)? else { return Ok(Growth::NotSetUp) };
            let device = match record.mechanism {
                Mechanism::Kernel => kernel::refresh(&record, on)?,
                Mechanism::Served => served::refresh(&stage, on)?,
            };
            let Some(path) = device else { return Ok(Growth::NotSetUp) };
            let device = on.sys.open(&path).map_err(failed("open", &path))?;
            let device = BlockDevice { device: &device, path: &path, sys: on.sys };
            if source.block { device.has(bytes).map(|_| Growth::Done) } else { device.grow(dir, bytes) }
        })
    }
}

/// What is wrong with a volume, and what to do.
fn trouble(volume: &str, why: impl Into<String>) -> VolumeError {
    VolumeError::Disk { volume: volume.to_owned(), why: why.into(), cause: None }
}

/// Lets one call at a time at something, as long as that is wanted.
fn alone<T>(key: &str, on: &Machine<'_>, act: impl FnOnce() -> Result<T, VolumeError>) -> Result<T, VolumeError> {
    on.wanted()?;
    on.shared.alone_while(key, on.cancel, act).unwrap_or(Err(VolumeError::Cancelled))
}

/// Lets this machine have the LUN, and the pod a record of it. Returns the LUN's device.
fn attach(source: &IscsiSource, stage: &Stage, dir: &Path, on: &Machine<'_>) -> Result<PathBuf, VolumeError> {
    let pods = Record { stage: stage.name.clone() };
    let mechanism = alone(&stage.key(), on, || {
        pods.write(dir, on.sys)?;
        match stage.read(on.sys)? {
            Some(known) => Ok(known.mechanism),
            None => kernel::is_there(on).map(|there| if there { Mechanism::Kernel } else { Mechanism::Served }),
        }
    })?;
    let attached = match mechanism {
        Mechanism::Kernel => alone(&stage.key(), on, || kernel::attach(source, stage, on)),
        Mechanism::Served => served::attach(source, stage, dir, on),
    };
    if attached.is_err() {
        on.shared.alone(&stage.key(), || {
            // What cannot be undone now is undone by the next try, or with the pod.
            if matches!(pods.has_others(dir, on), Ok(false)) {
                let _ = detach(stage, on);
            }
        });
    }
    attached
}

/// Takes the LUN from this machine.
fn detach(stage: &Stage, on: &Machine<'_>) -> Result<(), VolumeError> {
    match stage.read(on.sys)?.map(|record| (record.mechanism, record)) {
        Some((Mechanism::Kernel, record)) => kernel::detach(&record, stage, on)?,
        Some((Mechanism::Served, _)) | None => served::end(stage, true, on)?,
    }
    stage.remove(on.sys)
}
