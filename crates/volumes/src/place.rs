//! Directories of the node's own: made, opened and named safely.
use std::{
    ffi::OsStr,
    io::{self, ErrorKind},
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::io::Errno;
use sys::{FileKind, Handle, Reach, Sys, Unmount, tree};

use crate::{error::VolumeError, machine::Machine};

/// Directories between the pods directory and what containers see: nobody but the node looks in.
pub(crate) const PRIVATE: u32 = 0o750;

/// Turns a failed call into an error that says what was tried on which path.
pub(crate) fn failed(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.into();
    move |errno| VolumeError::Files { action, path, errno }
}

/// Refuses a name that could lead elsewhere: identifiers become directory names.
pub(crate) fn one_name(name: &str) -> Result<&OsStr, VolumeError> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(part)), None) if part == name => Ok(part),
        _ => {
            Err(VolumeError::Invalid { message: format!("{name:?} is not a valid name of a pod, volume or container") })
        }
    }
}

/// Opens a subdirectory, making it, with exactly this mode, if need be. An existing one keeps its mode.
pub(crate) fn ensure_dir(sys: &dyn Sys, above: &Handle, name: &OsStr, mode: u32) -> io::Result<Handle> {
    match sys.open_at(above, Path::new(name), Reach::Plain) {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        found => {
            let found = found?;
            let is_dir = sys.stat(&found)?.is_dir();
            return if is_dir { Ok(found) } else { Err(ErrorKind::NotADirectory.into()) };
        }
    }
    match sys.make_dir(above, name, mode) {
        // Another pod's set-up made it meanwhile.
        Err(e) if e.kind() == ErrorKind::AlreadyExists => return sys.open_at(above, Path::new(name), Reach::Plain),
        made => made?,
    }
    let made = sys.open_at(above, Path::new(name), Reach::Plain)?;
    let got = sys.stat(&made)?.mode;
    if got & 0o777 != mode {
        // The umask took bits away.
        sys.set_mode(&made, (got & 0o7000) | mode)?;
    }
    Ok(made)
}

/// Opens an absolute path as a directory, making it and its parents if need be. Links on the way are followed.
pub(crate) fn ensure_path(sys: &dyn Sys, path: &Path, mode: u32) -> Result<Handle, VolumeError> {
    match sys.open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        found => return found.map_err(failed("open", path)),
    }
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed("open", path)(ErrorKind::InvalidInput.into()));
    };
    let above = ensure_path(sys, above, mode)?;
    ensure_dir(sys, &above, name, mode).map_err(failed("create", path))
}

/// Opens a directory below `above`, making what is missing of `parts`.
pub(crate) fn ensure_below(
    sys: &dyn Sys,
    mut above: Handle,
    path: &Path,
    parts: &[&OsStr],
) -> Result<(Handle, PathBuf), VolumeError> {
    let mut path = path.to_path_buf();
    for part in parts {
        path.push(part);
        above = ensure_dir(sys, &above, part, PRIVATE).map_err(failed("create", &path))?;
    }
    Ok((above, path))
}

/// `None` where the path does not exist.
pub(crate) fn if_found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// How long those who wait for a server may take to let go, once they are told that it is not there.
const LETTING_GO: Duration = Duration::from_secs(2);
/// Between looks at whether they have.
const LOOK: Duration = Duration::from_millis(20);

/// Unmounts what is at a name and below, of a server that may not answer. Nobody uses it any more but this node, which may
/// be asking how full it is. Tells what could not be unmounted, and why.
pub(crate) fn unmount_from_server(on: &Machine<'_>, dir: &Handle, name: &OsStr) -> Result<(), (PathBuf, io::Error)> {
    let (begun, patience) = (Instant::now(), on.settings.last_writes);
    loop {
        let how = if begun.elapsed() < patience { Unmount::FromServer } else { Unmount::Forced };
        match tree::unmount_all(on.sys, dir, name, &|_| how) {
            Err((_, e)) if e.kind() == ErrorKind::ResourceBusy && begun.elapsed() < patience + LETTING_GO => {
                std::thread::sleep(LOOK);
            }
            other => return other,
        }
    }
}

/// Opens the directory of a path that no pod can change, with the last name of the path.
fn above<'a>(path: &'a Path, sys: &dyn Sys) -> Result<Option<(Handle, &'a OsStr)>, VolumeError> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    Ok(if_found(sys.open(above)).map_err(failed("open", above))?.map(|dir| (dir, name)))
}

/// Unmounts what containers left mounted inside a volume: whoever is to unmount the volume would find it busy.
pub(crate) fn unmount_inside(path: &Path, sys: &dyn Sys) -> Result<(), VolumeError> {
    let Some((dir, name)) = above(path, sys)? else { return Ok(()) };
    tree::unmount_inside(sys, &dir, name).map_err(unmounting(path))
}

/// Turns a mount that stays into an error that names the volume's path.
pub(crate) fn unmounting(path: &Path) -> impl FnOnce((PathBuf, io::Error)) -> VolumeError {
    let target = path.to_path_buf();
    move |(_, errno)| VolumeError::Unmount { target, errno }
}

/// Unmounts and removes a file or an empty directory. One that is not empty is left: it may hold what a pod has written,
/// and whose driver only said that it took it away.
pub(crate) fn remove_point(path: &Path, sys: &dyn Sys) -> Result<(), VolumeError> {
    let Some((dir, name)) = above(path, sys)? else { return Ok(()) };
    unmount_point(path, &dir, name, sys)?;
    let Some(stat) = if_found(sys.stat_at(&dir, name)).map_err(failed("read", path))? else { return Ok(()) };
    let removed = if stat.is_dir() { sys.remove_dir(&dir, name) } else { sys.remove_file(&dir, name) };
    if_found(removed).map(drop).map_err(failed("remove", path))
}

/// Unmounts and removes a directory of the node's own with what is in it.
pub(crate) fn remove_tree(path: &Path, sys: &dyn Sys) -> Result<(), VolumeError> {
    let Some((dir, name)) = above(path, sys)? else { return Ok(()) };
    unmount_point(path, &dir, name, sys)?;
    tree::remove(sys, &dir, name).map_err(failed("remove", path))
}

fn unmount_point(path: &Path, dir: &Handle, name: &OsStr, sys: &dyn Sys) -> Result<(), VolumeError> {
    tree::unmount_all(sys, dir, name, &|_| Unmount::Strict).map_err(unmounting(path))
}

/// Removes a directory that nothing is in any more.
pub(crate) fn remove_empty(path: &Path, sys: &dyn Sys) -> Result<(), VolumeError> {
    let Some((dir, name)) = above(path, sys)? else { return Ok(()) };
    let full = |e: &io::Error| e.raw_os_error() == Some(Errno::NOTEMPTY.raw_os_error());
    match if_found(sys.remove_dir(&dir, name)) {
        Err(e) if full(&e) => Ok(()),
        removed => removed.map(drop).map_err(failed("remove", path)),
    }
}

/// Names of the directories in one that may not be there.
pub(crate) fn directories(path: &Path, sys: &dyn Sys) -> Result<Vec<String>, VolumeError> {
    let Some(dir) = if_found(sys.open(path)).map_err(failed("open", path))? else { return Ok(Vec::new()) };
    let entries = match if_found(sys.list(&dir)).map_err(failed("read", path))? {
        Some(entries) => entries,
        None => return Ok(Vec::new()),
    };
    let dirs = entries.into_iter().filter(|e| e.kind == FileKind::Directory);
    Ok(dirs.filter_map(|e| e.name.into_string().ok()).collect())
}
