//! What a driver was asked for, on disk: all that taking it back needs.
use std::{
    ffi::OsStr,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sys::Sys;

use super::{Flex, call::file_of};
use crate::{
    contract::{FlexVolume, Machine, VolumePlugin},
    error::VolumeError,
    place::{directories, failed, if_found},
};

const FILE: &str = "flex.json";
const PART: &str = "flex.json.part";

/// A volume that a pod has, or is about to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub driver: String,
    /// See [`FlexVolume::name`].
    pub name: String,
    pub persistent: bool,
    pub node: String,
    /// The driver attaches its volumes, and mounts them once for all pods.
    pub attaches: bool,
    /// What attaching it gave; `None`: it may or may not be attached.
    pub device: Option<String>,
}

impl Record {
    pub(super) fn of(source: &FlexVolume, attaches: bool) -> Self {
        Self {
            driver: source.driver.clone(),
            name: source.name.clone(),
            persistent: source.persistent,
            node: source.node.clone(),
            attaches,
            device: None,
        }
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(data).ok()?;
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let yes = |key: &str| value.get(key).and_then(Value::as_bool);
        Some(Self {
            driver: text("driver")?,
            name: text("name")?,
            persistent: yes("persistent")?,
            node: text("node")?,
            attaches: yes("attaches")?,
            device: text("device"),
        })
    }

    pub(super) fn write(&self, dir: &Path, sys: &dyn Sys) -> Result<(), VolumeError> {
        if Self::read(dir, sys)?.is_some_and(|old| old == *self) {
            return Ok(());
        }
        let path = dir.join(FILE);
        let data = json!({
            "driver": self.driver, "name": self.name, "persistent": self.persistent, "node": self.node,
            "attaches": self.attaches, "device": self.device,
        });
        let top = sys.open(dir).map_err(failed("open", dir))?;
        if_found(sys.remove_file(&top, OsStr::new(PART))).map_err(failed("write", &path))?;
        let data = data.to_string();
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

    /// The record of another pod of this machine that has the volume, or may have it: one that knows the device, if there
    /// is one. Only persistent volumes are shared; upstream takes pods' own volumes of one name for one.
    pub(super) fn other(&self, dir: &Path, on: &Machine<'_>) -> Result<Option<Self>, VolumeError> {
        let mut found: Option<Self> = None;
        if !self.persistent {
            return Ok(None);
        }
        for pod in directories(on.pods, on.sys)? {
            let at = on.pods.join(pod).join("volumes").join(Flex.name()).join(&self.name);
            let Some(other) = Self::read(&at, on.sys)?.filter(|_| at != dir) else { continue };
            let same = (&other.driver, other.persistent) == (&self.driver, true);
            if same && found.as_ref().is_none_or(|f| f.device.is_none()) {
                found = Some(other);
            }
        }
        Ok(found)
    }

    /// Where the driver mounts the volume once for all pods.
    pub(super) fn shared(&self, dir: &Path, on: &Machine<'_>) -> PathBuf {
        let name = match self.persistent {
            true => self.name.clone(),
            false => format!("{}-{}", self.name, pod_of(dir).to_string_lossy()),
        };
        on.plugins.join("kubernetes.io/flexvolume").join(&self.driver).join("mounts").join(name)
    }

    /// Where the driver mounts it for the pod: a kubelet's place, beside the directory with the record.
    pub(super) fn target(&self, dir: &Path) -> PathBuf {
        let volumes = dir.ancestors().nth(2).unwrap_or(dir);
        // It was a driver's name when the record was written.
        let driver = file_of(&self.driver).map(|(dir, _)| dir).unwrap_or_default();
        volumes.join(driver).join(dir.file_name().unwrap_or_default())
    }
}

/// The pod of a volume's directory: `<pods>/<uid>/volumes/<plugin>/<volume>`.
fn pod_of(dir: &Path) -> &OsStr {
    dir.ancestors().nth(3).and_then(Path::file_name).unwrap_or_default()
}
