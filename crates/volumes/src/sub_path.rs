//! Finding, or making, a sub-path of a volume without ever leaving it.
//!
//! The pod may rename and link whatever it likes in the volume meanwhile. So nothing is looked at by name and used by name
//! later: the kernel resolves in one guarded step, and what it found is held from then on.
use std::{
    ffi::OsStr,
    io::{self, ErrorKind},
    path::{Component, Path, PathBuf},
};

use sys::{Handle, Reach, Sys};

use crate::error::VolumeError;

/// How often a path is looked up again after someone changed it in between.
const TRIES: usize = 16;

/// What went wrong, by upstream's two messages.
pub(crate) enum Failure {
    Create(io::Error),
    Prepare(io::Error),
}

/// The sub-path as names below the volume; empty for the volume itself.
///
/// # Errors
/// Upstream's messages for absolute paths and for `..`.
pub(crate) fn clean(sub_path: &str) -> Result<PathBuf, VolumeError> {
    if sub_path.starts_with('/') {
        return Err(VolumeError::SubPathText { sub_path: sub_path.to_owned(), absolute: true });
    }
    let parts = Path::new(sub_path).components();
    if parts.clone().any(|p| p == Component::ParentDir) {
        return Err(VolumeError::SubPathText { sub_path: sub_path.to_owned(), absolute: false });
    }
    Ok(parts.filter(|p| matches!(p, Component::Normal(_))).collect())
}

/// Opens `path` inside `volume`. Directories that are missing are made with the volume's own mode if `may_create`.
pub(crate) fn open(sys: &dyn Sys, volume: &Handle, path: &Path, may_create: bool) -> Result<Handle, Failure> {
    for _ in 0..TRIES {
        match sys.open_at(volume, path, Reach::Beneath) {
            Err(e) if e.kind() == ErrorKind::NotFound && may_create => {}
            found => return found.map_err(Failure::Prepare),
        }
        create(sys, volume, path).map_err(Failure::Create)?;
    }
    Err(Failure::Prepare(ErrorKind::NotFound.into()))
}

/// Makes the missing directories of a path; who else makes them at the same time does no harm.
fn create(sys: &dyn Sys, volume: &Handle, path: &Path) -> io::Result<()> {
    let mode = sys.stat(volume)?.mode;
    let parts: Vec<&OsStr> = path.iter().collect();
    let mut above = sys.open_at(volume, Path::new(""), Reach::Beneath)?;
    let mut made_one = false;
    for (n, part) in parts.iter().enumerate() {
        // What exists may lead through links inside the volume; below what was made just now there is none of ours.
        let found = if made_one {
            sys.open_at(&above, Path::new(part), Reach::Plain)
        } else {
            sys.open_at(volume, &parts[..=n].iter().collect::<PathBuf>(), Reach::Beneath)
        };
        above = match found {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                match sys.make_dir(&above, part, mode & 0o777) {
                    // A link that leads nowhere, or somebody else was quicker: looked up again by the caller.
                    Err(e) if e.kind() == ErrorKind::AlreadyExists && made_one => return Ok(()),
                    made => made?,
                }
                made_one = true;
                let made = sys.open_at(&above, Path::new(part), Reach::Plain)?;
                let stat = sys.stat(&made)?;
                if !stat.is_dir() {
                    return Err(ErrorKind::NotADirectory.into());
                }
                // The pod may have put another directory in its place, which must not become open to all. Only one with
                // something in it is worth that, and ours is empty.
                if stat.mode != mode && sys.list(&made)?.is_empty() {
                    sys.set_mode(&made, mode)?;
                }
                made
            }
            found => found?,
        };
    }
    Ok(())
}
