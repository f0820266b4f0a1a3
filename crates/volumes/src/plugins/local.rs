//! `local` persistent volumes: a directory of the node that an administrator has made.
use std::{io::ErrorKind, path::Path};

use sys::{FileKind, Sys};

use crate::{
    contract::{Ownership, Ready, Source, VolumePlugin},
    error::VolumeError,
    place::failed,
    plugins::{is_marked, mark, mismatch, own, ready, tear_down_dir},
};

pub(super) struct Local;

impl VolumePlugin for Local {
    fn name(&self) -> &'static str {
        "kubernetes.io~local-volume"
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::Local { .. })
    }

    fn set_up(&self, source: &Source, owner: Ownership, dir: &Path, sys: &dyn Sys) -> Result<Ready, VolumeError> {
        let Source::Local { path, read_only } = source else { return Err(mismatch(self)) };
        let unusable = |why, errno| VolumeError::LocalPath { path: path.clone(), why, errno };
        let volume = sys.open(path).map_err(|errno| match errno.kind() {
            ErrorKind::NotFound => unusable("it does not exist", Some(errno)),
            _ => unusable("it cannot be opened", Some(errno)),
        })?;
        match sys.stat(&volume).map_err(failed("read", path))?.kind {
            FileKind::Directory => {}
            FileKind::BlockDevice => {
                return Err(unusable("it is a block device, which this node does not mount", None));
            }
            _ => return Err(unusable("only directory and block device are supported", None)),
        }
        let top = sys.open(dir).map_err(failed("open", dir))?;
        if !is_marked(sys, &top, dir)? {
            if !read_only {
                own(sys, &volume, path, owner, false)?;
            }
            mark(sys, &top, dir)?;
        }
        Ok(ready(dir, path, *read_only))
    }

    fn tear_down(&self, dir: &Path, sys: &dyn Sys) -> Result<(), VolumeError> {
        tear_down_dir(dir, sys)
    }
}
