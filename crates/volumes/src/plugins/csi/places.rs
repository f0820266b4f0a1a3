//! Where a volume is staged and published.
use std::path::{Path, PathBuf};

use sys::Sys;

use super::record::Record;
use crate::{
    contract::{CsiSource, Machine},
    csi_source::digest,
    error::VolumeError,
    place::{PRIVATE, ensure_path, remove_empty, remove_point, remove_tree},
};

const MOUNT: &str = "mount";
const GLOBAL_MOUNT: &str = "globalmount";

/// The paths that a driver is told.
pub(super) struct Places {
    pub stage: PathBuf,
    pub target: PathBuf,
    block: bool,
    /// The volume's directory at the pod.
    dir: PathBuf,
}

impl Places {
    pub(super) fn of(source: &CsiSource, dir: &Path, on: &Machine<'_>) -> Self {
        Self::at(&source.driver, &source.handle, &source.name, source.block, dir, on)
    }

    pub(super) fn recorded(record: &Record, dir: &Path, on: &Machine<'_>) -> Self {
        Self::at(&record.driver, &record.handle, &record.name, record.block, dir, on)
    }

    fn at(driver: &str, handle: &str, name: &str, block: bool, dir: &Path, on: &Machine<'_>) -> Self {
        let csi = on.plugins.join("kubernetes.io/csi");
        let dir = dir.to_path_buf();
        if !block {
            let stage = csi.join(driver).join(digest(&[handle])).join(GLOBAL_MOUNT);
            return Self { stage, target: dir.join(MOUNT), block, dir };
        }
        // <pods>/<uid>/volumes/<plugin>/<volume>
        let pod = dir.ancestors().nth(3).and_then(Path::file_name).unwrap_or_default();
        let devices = csi.join("volumeDevices");
        Self {
            stage: devices.join("staging").join(name),
            target: devices.join("publish").join(name).join(pod),
            block,
            dir,
        }
    }

    /// Makes the directory that the driver stages in, with a record beside it for those who look there.
    pub(super) fn make_stage(&self, record: &Record, sys: &dyn Sys) -> Result<(), VolumeError> {
        ensure_path(sys, &self.stage, PRIVATE)?;
        match self.stage.parent() {
            Some(above) if !self.block => record.write(above, sys),
            _ => Ok(()),
        }
    }

    /// The driver makes the target itself.
    pub(super) fn make_target_parent(&self, sys: &dyn Sys) -> Result<(), VolumeError> {
        match self.target.parent() {
            Some(above) if self.block => ensure_path(sys, above, PRIVATE).map(drop),
            _ => Ok(()),
        }
    }

    /// Removes what a driver should have removed, and what was made around it.
    pub(super) fn remove_target(&self, sys: &dyn Sys) -> Result<(), VolumeError> {
        remove_point(&self.target, sys)?;
        match self.target.parent() {
            Some(above) if above != self.dir => remove_empty(above, sys),
            _ => Ok(()),
        }
    }

    /// Removes the stage and what is around it.
    pub(super) fn remove_stage(&self, sys: &dyn Sys) -> Result<(), VolumeError> {
        match self.stage.parent() {
            Some(above) if !self.block => {
                remove_point(&self.stage, sys)?;
                remove_tree(above, sys)
            }
            // Drivers keep files of their own there.
            _ => remove_tree(&self.stage, sys),
        }
    }
}
