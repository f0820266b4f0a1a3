//! What was asked of a driver for a pod, on disk: all that taking it back needs. A kubelet's file, with its names.
use std::{ffi::OsStr, io::ErrorKind, path::Path};

use serde_json::{Value, json};
use sys::Sys;

use crate::{
    contract::{CsiSource, Machine, VolumePlugin},
    error::VolumeError,
    place::{directories, failed, if_found},
    plugins::csi::Csi,
};

pub(super) const FILE: &str = "vol_data.json";
const PART: &str = "vol_data.json.part";

/// A volume that a pod has, or is about to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub driver: String,
    pub handle: String,
    /// See [`CsiSource::name`].
    pub name: String,
    pub ephemeral: bool,
    pub block: bool,
    /// The driver was asked to stage it.
    pub stages: bool,
    /// It was attached to this node first.
    pub attached: bool,
}

impl Record {
    pub(super) fn of(source: &CsiSource, stages: bool) -> Self {
        Self {
            driver: source.driver.clone(),
            handle: source.handle.clone(),
            name: source.name.clone(),
            ephemeral: source.ephemeral,
            block: source.block,
            stages,
            attached: source.attaches,
        }
    }

    fn encode(&self) -> Value {
        let mode = if self.ephemeral { "Ephemeral" } else { "Persistent" };
        let word = |yes: bool| if yes { "true" } else { "false" };
        // All values are text, as a kubelet reads them.
        json!({
            "driverName": self.driver, "volumeHandle": self.handle, "specVolID": self.name, "volumeLifecycleMode": mode,
            "block": word(self.block), "staged": word(self.stages),
            "attached": word(self.attached),
        })
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(data).ok()?;
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        Some(Self {
            driver: text("driverName")?,
            handle: text("volumeHandle")?,
            name: text("specVolID")?,
            ephemeral: text("volumeLifecycleMode")? == "Ephemeral",
            block: text("block")? == "true",
            stages: text("staged")? == "true",
            attached: text("attached")? == "true",
        })
    }

    /// Writes it, or leaves the one that says the same.
    pub(super) fn write(&self, dir: &Path, sys: &dyn Sys) -> Result<(), VolumeError> {
        let path = dir.join(FILE);
        if Self::read(dir, sys)?.is_some_and(|old| old == *self) {
            return Ok(());
        }
        let top = sys.open(dir).map_err(failed("open", dir))?;
        if_found(sys.remove_file(&top, OsStr::new(PART))).map_err(failed("write", &path))?;
        let data = self.encode().to_string();
        sys.write_new(&top, OsStr::new(PART), data.as_bytes(), 0o600).map_err(failed("write", &path))?;
        sys.rename(&top, OsStr::new(PART), OsStr::new(FILE)).map_err(failed("write", &path))
    }

    /// Reads it. One that was cut off by a power failure counts as none: nothing is mounted after that.
    pub(super) fn read(dir: &Path, sys: &dyn Sys) -> Result<Option<Self>, VolumeError> {
        let path = dir.join(FILE);
        let data = match sys.open(&path) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            file => file.and_then(|file| sys.read_file(&file)).map_err(failed("read", &path))?,
        };
        Ok(Self::decode(&data))
    }
}

/// Whether another pod than the one whose directory this is has the volume, or may have it.
pub(super) fn has_others(record: &Record, dir: &Path, on: &Machine<'_>) -> Result<bool, VolumeError> {
    let same = |other: &Record| other.driver == record.driver && other.handle == record.handle;
    let mut found = false;
    each(on, |at, other| found |= at != dir && same(&other))?;
    Ok(found)
}

/// Calls `see` for each record of a pod on this machine, with its directory.
pub(super) fn each(on: &Machine<'_>, mut see: impl FnMut(&Path, Record)) -> Result<(), VolumeError> {
    for pod in directories(on.pods, on.sys)? {
        let volumes = on.pods.join(pod).join("volumes").join(Csi.name());
        for volume in directories(&volumes, on.sys)? {
            let dir = volumes.join(volume);
            if let Some(record) = Record::read(&dir, on.sys)? {
                see(&dir, record);
            }
        }
    }
    Ok(())
}
