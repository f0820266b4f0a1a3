//! `hostPath`: a file or directory of the node, as it is. Nothing of it is ever changed in owner or removed.
use std::{io::ErrorKind, path::Path};

use sys::{FileKind, Sys};

use crate::{
    contract::{HostPathType, Ownership, Ready, Source, VolumePlugin},
    error::VolumeError,
    place::{ensure_path, failed},
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

    fn set_up(&self, source: &Source, _: Ownership, dir: &Path, sys: &dyn Sys) -> Result<Ready, VolumeError> {
        let Source::HostPath { path, kind } = source else { return Err(mismatch(self)) };
        check(path, *kind, sys)?;
        Ok(ready(dir, path, false))
    }

    fn tear_down(&self, dir: &Path, sys: &dyn Sys) -> Result<(), VolumeError> {
        tear_down_dir(dir, sys)
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
