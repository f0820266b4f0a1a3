//! Where a volume is staged and published.
use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use rustix::io::Errno;
use sys::{Handle, Sys, Unmount, tree};

use super::record::Record;
use crate::{
    contract::{CsiSource, Machine},
    csi_source::digest,
    error::VolumeError,
    place::{PRIVATE, ensure_path, failed, if_found},
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
        remove(&self.target, sys)?;
        match self.target.parent() {
            Some(above) if above != self.dir => remove_empty(above, sys),
            _ => Ok(()),
        }
    }

    /// Removes the stage and what is around it.
    pub(super) fn remove_stage(&self, sys: &dyn Sys) -> Result<(), VolumeError> {
        match self.stage.parent() {
            Some(above) if !self.block => {
                remove(&self.stage, sys)?;
                remove_all(above, sys)
            }
            // Drivers keep files of their own there.
            _ => remove_all(&self.stage, sys),
        }
    }
}

/// Opens the directory of a path that no pod can change, with the last name of the path.
fn above<'a>(path: &'a Path, sys: &dyn Sys) -> Result<Option<(Handle, &'a OsStr)>, VolumeError> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    Ok(if_found(sys.open(above)).map_err(failed("open", above))?.map(|dir| (dir, name)))
}

/// Unmounts and removes a file or an empty directory. One that is not empty is left: it may hold what a pod has written,
/// and whose driver only said that it took it away.
fn remove(path: &Path, sys: &dyn Sys) -> Result<(), VolumeError> {
    let Some((dir, name)) = above(path, sys)? else { return Ok(()) };
    unmount(path, &dir, name, sys)?;
    let Some(stat) = if_found(sys.stat_at(&dir, name)).map_err(failed("read", path))? else { return Ok(()) };
    let removed = if stat.is_dir() { sys.remove_dir(&dir, name) } else { sys.remove_file(&dir, name) };
    if_found(removed).map(drop).map_err(failed("remove", path))
}

fn remove_all(path: &Path, sys: &dyn Sys) -> Result<(), VolumeError> {
    let Some((dir, name)) = above(path, sys)? else { return Ok(()) };
    unmount(path, &dir, name, sys)?;
    tree::remove(sys, &dir, name).map_err(failed("remove", path))
}

fn unmount(path: &Path, dir: &Handle, name: &OsStr, sys: &dyn Sys) -> Result<(), VolumeError> {
    let fail = |(_, errno)| VolumeError::Unmount { target: path.to_path_buf(), errno };
    tree::unmount_all(sys, dir, name, &|_| Unmount::Strict).map_err(fail)
}

/// Removes a directory that nothing is in any more.
fn remove_empty(path: &Path, sys: &dyn Sys) -> Result<(), VolumeError> {
    let Some((dir, name)) = above(path, sys)? else { return Ok(()) };
    let full = |e: &io::Error| e.raw_os_error() == Some(Errno::NOTEMPTY.raw_os_error());
    match if_found(sys.remove_dir(&dir, name)) {
        Err(e) if full(&e) => Ok(()),
        removed => removed.map(drop).map_err(failed("remove", path)),
    }
}
