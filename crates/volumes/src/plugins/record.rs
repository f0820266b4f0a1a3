//! Small files in which plugins keep what undoing needs.
use std::{ffi::OsStr, io::ErrorKind, path::Path};

use serde::{Serialize, de::DeserializeOwned};
use sys::Sys;

use crate::{
    error::VolumeError,
    place::{failed, if_found},
};

/// Reads a record. One that was cut off by a power failure counts as none: nothing is mounted after that.
pub(super) fn read<T: DeserializeOwned>(dir: &Path, name: &str, sys: &dyn Sys) -> Result<Option<T>, VolumeError> {
    let path = dir.join(name);
    let data = match sys.open(&path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        file => file.and_then(|file| sys.read_file(&file)).map_err(failed("read", &path))?,
    };
    Ok(serde_json::from_slice(&data).ok())
}

/// Writes a record at once, or leaves the one that says the same.
pub(super) fn write<T>(dir: &Path, name: &str, record: &T, sys: &dyn Sys) -> Result<(), VolumeError>
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
