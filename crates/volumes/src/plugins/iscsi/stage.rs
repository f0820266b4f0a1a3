//! What this machine has of LUNs, and which pods have them, on disk.
use std::{
    ffi::OsStr,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sys::{Handle, Sys, Unmount, tree};

use super::NAME;
use crate::{
    contract::{IscsiSource, Machine},
    csi_source::digest,
    error::VolumeError,
    place::{PRIVATE, ensure_path, failed, if_found},
    plugins::{
        record::{read, write},
        scsi::names,
    },
};

const VOLUME: &str = "volume.json";
const STAGE: &str = "stage.json";

/// In a volume's directory: its pod is being ended.
const ENDING: &str = "ending";

/// By what a machine has a LUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mechanism {
    Kernel,
    /// A process serves it as a file.
    Served,
}

/// How a machine has a LUN: all that undoing it needs. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StageRecord {
    pub mechanism: Mechanism,
    pub portals: Vec<String>,
    pub iqn: String,
    pub lun: u32,
    /// Of open-iscsi.
    pub interface: String,
    /// The interface was made for this LUN's initiator name.
    pub own_interface: bool,
}

/// The place of a LUN on this machine.
#[derive(Debug, Clone)]
pub(super) struct Stage {
    pub name: String,
    pub dir: PathBuf,
}

fn top(on: &Machine<'_>) -> PathBuf {
    on.plugins.join("kubernetes.io/iscsi")
}

impl Stage {
    pub(super) fn of(source: &IscsiSource, on: &Machine<'_>) -> Self {
        // Another initiator may be shown another disk under the same number.
        let who = source.initiator.as_deref().unwrap_or(&source.interface);
        let name = digest(&[&source.iqn, "\n", &source.lun.to_string(), "\n", who]);
        Self { dir: top(on).join(&name), name }
    }

    pub(super) fn recorded(record: &Record, on: &Machine<'_>) -> Self {
        Self { name: record.stage.clone(), dir: top(on).join(&record.stage) }
    }

    /// What calls about this LUN exclude each other by.
    pub(super) fn key(&self) -> String {
        format!("iscsi {}", self.name)
    }

    /// Its directory, made if need be.
    pub(super) fn make(&self, sys: &dyn Sys) -> Result<Handle, VolumeError> {
        ensure_path(sys, &self.dir, PRIVATE)
    }

    pub(super) fn read(&self, sys: &dyn Sys) -> Result<Option<StageRecord>, VolumeError> {
        read(&self.dir, STAGE, sys)
    }

    pub(super) fn write(&self, record: &StageRecord, sys: &dyn Sys) -> Result<(), VolumeError> {
        self.make(sys)?;
        write(&self.dir, STAGE, record, sys)
    }

    /// Removes its directory, in which nothing is mounted any more.
    pub(super) fn remove(&self, sys: &dyn Sys) -> Result<(), VolumeError> {
        let (Some(above), Some(name)) = (self.dir.parent(), self.dir.file_name()) else { return Ok(()) };
        let Some(above_dir) = if_found(sys.open(above)).map_err(failed("open", above))? else { return Ok(()) };
        tree::remove(sys, &above_dir, name).map_err(failed("remove", &self.dir))
    }

    /// Unmounts what is mounted in its directory: what a process that is gone has left.
    pub(super) fn unmount(&self, how: Unmount, sys: &dyn Sys) -> Result<(), VolumeError> {
        let (Some(above), Some(name)) = (self.dir.parent(), self.dir.file_name()) else { return Ok(()) };
        let Some(above_dir) = if_found(sys.open(above)).map_err(failed("open", above))? else { return Ok(()) };
        tree::unmount_all(sys, &above_dir, name, &|_| how)
            .map_err(|(point, errno)| VolumeError::Unmount { target: above.join(point), errno })
    }

    /// Whether this machine has another LUN by the same session.
    pub(super) fn shares_session(&self, record: &StageRecord, on: &Machine<'_>) -> Result<bool, VolumeError> {
        for name in names(on.sys, &top(on))?.into_iter().filter(|name| *name != self.name) {
            let other: Option<StageRecord> = read(&top(on).join(name), STAGE, on.sys)?;
            let same = |o: &StageRecord| {
                (o.mechanism, &o.iqn, &o.interface) == (record.mechanism, &record.iqn, &record.interface)
            };
            if other.as_ref().is_some_and(same) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Which LUN a pod's volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Name of the stage.
    pub stage: String,
}

impl Record {
    pub(super) fn read(dir: &Path, sys: &dyn Sys) -> Result<Option<Self>, VolumeError> {
        read(dir, VOLUME, sys)
    }

    pub(super) fn write(&self, dir: &Path, sys: &dyn Sys) -> Result<(), VolumeError> {
        write(dir, VOLUME, self, sys)
    }

    /// Marks that the pod of the volume in `dir` is being ended. Whether the LUN has a volume whose pod is not.
    pub(super) fn ends(&self, dir: &Path, on: &Machine<'_>) -> Result<bool, VolumeError> {
        let top = on.sys.open(dir).map_err(failed("open", dir))?;
        match on.sys.write_new(&top, OsStr::new(ENDING), b"", 0o600) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            made => made.map_err(failed("create", dir.join(ENDING)))?,
        }
        self.is_of_another(dir, &|other| on.sys.open(&other.join(ENDING)).is_err(), on)
    }

    /// Whether another volume of a pod than that in `dir` is this LUN, or may be.
    pub(super) fn has_others(&self, dir: &Path, on: &Machine<'_>) -> Result<bool, VolumeError> {
        self.is_of_another(dir, &|_| true, on)
    }

    fn is_of_another(&self, dir: &Path, counts: &dyn Fn(&Path) -> bool, on: &Machine<'_>) -> Result<bool, VolumeError> {
        for pod in names(on.sys, on.pods)? {
            let volumes = on.pods.join(pod).join("volumes").join(NAME);
            for volume in names(on.sys, &volumes)? {
                let other = volumes.join(volume);
                let same = other != dir && Self::read(&other, on.sys)?.is_some_and(|r| r.stage == self.stage);
                if same && counts(&other) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}
