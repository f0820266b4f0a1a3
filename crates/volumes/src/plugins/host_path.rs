//! `hostPath`: a file or directory of the node, as it is. Nothing of it is ever changed in owner, and only reclaiming
//! a released volume removes anything.
use std::{
    io::{self, ErrorKind},
    path::{Component, Path},
};

use rustix::io::Errno;
use sys::{FileKind, Handle, Reach, Sys, tree};

use crate::{
    contract::{HostPathType, Machine, Ownership, Ready, Reclaiming, Source, VolumePlugin},
    error::VolumeError,
    place::{ensure_path, failed, if_found},
    plugins::{mismatch, ready, tear_down_dir},
};

pub(super) struct HostPath;

impl VolumePlugin for HostPath {
    fn name(&self) -> &'static str {
        "kubernetes.io~host-path"
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::HostPath { .. })
    }

    fn set_up(&self, source: &Source, _: &Ownership, dir: &Path, on: &Machine<'_>) -> Result<Ready, VolumeError> {
        let sys = on.sys;
        let Source::HostPath { path, kind } = source else { return Err(mismatch(self)) };
        check(path, *kind, sys)?;
        Ok(ready(dir, path, false))
    }

    fn tear_down(&self, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
        tear_down_dir(dir, on.sys)
    }

    fn reclaim(&self, source: &Source, how: Reclaiming, on: &Machine<'_>) -> Result<(), VolumeError> {
        let sys = on.sys;
        let Source::HostPath { path, .. } = source else { return Err(mismatch(self)) };
        let fail = |errno: io::Error| VolumeError::Reclaim { path: path.clone(), why: why(&errno), errno: Some(errno) };
        match how {
            Reclaiming::Recycle => recycle(path, sys),
            Reclaiming::Delete => delete(path, sys),
        }
        .map_err(fail)
    }
}

/// Checks, or makes, what is at a path of the node.
fn check(path: &Path, kind: HostPathType, sys: &dyn Sys) -> Result<(), VolumeError> {
    // A path that cannot be reached counts as absent, as upstream has it.
    let found = sys.open(path).and_then(|at| sys.stat(&at)).ok().map(|s| s.kind);
    let make_dir = || ensure_path(sys, path, 0o755).map(drop);
    let (wanted, expected) = match kind {
        // Container runtimes make a directory where nothing is.
        HostPathType::Unset => return if found.is_some() { Ok(()) } else { make_dir() },
        HostPathType::DirectoryOrCreate if found.is_none() => return make_dir(),
        HostPathType::FileOrCreate if found.is_none() => return make_file(path, sys),
        HostPathType::DirectoryOrCreate | HostPathType::Directory => (FileKind::Directory, "a directory"),
        HostPathType::FileOrCreate | HostPathType::File => (FileKind::File, "a file"),
        HostPathType::Socket => (FileKind::Socket, "a socket file"),
        HostPathType::CharDevice => (FileKind::CharDevice, "a character device"),
        HostPathType::BlockDevice => (FileKind::BlockDevice, "a block device"),
    };
    if found == Some(wanted) {
        return Ok(());
    }
    Err(VolumeError::HostPathType { path: path.into(), expected })
}

/// Makes an empty file, but no directory for it.
fn make_file(path: &Path, sys: &dyn Sys) -> Result<(), VolumeError> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed("create", path)(ErrorKind::InvalidInput.into()));
    };
    let above = sys.open(above).map_err(failed("create", path))?;
    match sys.write_new(&above, name, b"", 0o644) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(failed("create", path)),
    }
}

/// Opens a path of the node without following a link anywhere; `None` where it does not exist.
fn open_plain(path: &Path, sys: &dyn Sys) -> io::Result<Option<Handle>> {
    let root = sys.open(Path::new("/"))?;
    let inside = path.strip_prefix("/").map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
    let found = if_found(sys.open_at(&root, inside, Reach::Plain))?;
    match &found {
        Some(at) if sys.stat(at)?.kind == FileKind::Link => Err(Errno::LOOP.into()),
        _ => Ok(found),
    }
}

/// Whether a path names something below the root directory. Only such paths are ever emptied or removed.
fn is_below_root(path: &Path) -> bool {
    path.components().any(|part| matches!(part, Component::Normal(_)))
}

/// Empties a directory. One that does not exist holds nothing of the claim that is gone.
fn recycle(path: &Path, sys: &dyn Sys) -> io::Result<()> {
    if !is_below_root(path) {
        return Err(ErrorKind::InvalidInput.into());
    }
    let Some(top) = open_plain(path, sys)? else { return Ok(()) };
    match sys.stat(&top)?.kind {
        FileKind::Directory => tree::clear(sys, &top),
        _ => Err(ErrorKind::NotADirectory.into()),
    }
}

/// Removes a file, or a directory with what is in it.
fn delete(path: &Path, sys: &dyn Sys) -> io::Result<()> {
    let (Some(above), Some(name)) = (path.parent().filter(|a| is_below_root(a)), path.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    match open_plain(above, sys)? {
        Some(above) => tree::remove(sys, &above, name),
        None => Ok(()),
    }
}

/// What keeps a path from being emptied or removed, and the way out.
fn why(error: &io::Error) -> &'static str {
    let is = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
    match error.kind() {
        ErrorKind::InvalidInput => "only a directory below the root directory is; change the volume's path",
        _ if is(Errno::LOOP) => {
            "a symbolic link is on its path, and none is followed; name the directory that it leads to"
        }
        _ if is(Errno::BUSY) => "something is mounted in it; unmount that",
        ErrorKind::NotADirectory => "it is not a directory, or became another file meanwhile",
        ErrorKind::DirectoryNotEmpty => "files appear in it while it is emptied; stop what makes them",
        _ => "not everything in it could be removed",
    }
}
