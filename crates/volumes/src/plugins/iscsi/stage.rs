//! What this machine has of LUNs, and which pods have them, on disk.
use std::{
    ffi::OsStr,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sys::{Handle, Sys, Unmount, tree};

use super::NAME;
use crate::{
    contract::{IscsiSource, Machine},
    csi_source::digest,
    error::VolumeError,
    place::{PRIVATE, ensure_path, failed, if_found},
    plugins::scsi::names,
};

const VOLUME: &str = "volume.json";
const STAGE: &str = "stage.json";

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
    pub(super) fn unmount(&self, sys: &dyn Sys) -> Result<(), VolumeError> {
        let (Some(above), Some(name)) = (self.dir.parent(), self.dir.file_name()) else { return Ok(()) };
        let Some(above_dir) = if_found(sys.open(above)).map_err(failed("open", above))? else { return Ok(()) };
        tree::unmount_all(sys, &above_dir, name, &|_| Unmount::Strict)
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

    /// Whether another volume of a pod than that in `dir` is this LUN, or may be.
    pub(super) fn has_others(&self, dir: &Path, on: &Machine<'_>) -> Result<bool, VolumeError> {
        for pod in names(on.sys, on.pods)? {
            let volumes = on.pods.join(pod).join("volumes").join(NAME);
            for volume in names(on.sys, &volumes)? {
                let other = volumes.join(volume);
                if other != dir && Self::read(&other, on.sys)?.is_some_and(|r| r.stage == self.stage) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// Reads a record. One that was cut off by a power failure counts as none: nothing is mounted after that.
fn read<T: DeserializeOwned>(dir: &Path, name: &str, sys: &dyn Sys) -> Result<Option<T>, VolumeError> {
    let path = dir.join(name);
    let data = match sys.open(&path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        file => file.and_then(|file| sys.read_file(&file)).map_err(failed("read", &path))?,
    };
    Ok(serde_json::from_slice(&data).ok())
}

/// Writes a record at once, or leaves the one that says the same.
fn write<T>(dir: &Path, name: &str, record: &T, sys: &dyn Sys) -> Result<(), VolumeError>
where
    T: Serialize + DeserializeOwned + PartialEq,
{
    if read::<T>(dir, name, sys)?.is_some_and(|old| old == *record) {
        return Ok(());
    }
    let path = dir.join(name);
    let data = serde_json::to_vec(record).map_err(|e| failed("write", &path)(e.into()))?;
    replace(dir, name, &data, sys)
}

/// Gives a file this content at once.
pub(super) fn replace(dir: &Path, name: &str, data: &[u8], sys: &dyn Sys) -> Result<(), VolumeError> {
    let (path, part) = (dir.join(name), format!("{name}.part"));
    let top = sys.open(dir).map_err(failed("open", dir))?;
    if_found(sys.remove_file(&top, OsStr::new(&part))).map_err(failed("write", &path))?;
    sys.write_new(&top, OsStr::new(&part), data, 0o600).map_err(failed("write", &path))?;
    sys.rename(&top, OsStr::new(&part), OsStr::new(name)).map_err(failed("write", &path))
}
