//! `emptyDir`: a directory, or a memory filesystem, that lives as long as its pod.
//!
//! The limit of a directory is enforced by whoever watches [`crate::PodVolumes::usage_bytes`]; that of memory by the kernel.
use std::path::Path;

use crate::{
    contract::{Machine, Medium, Ownership, Ready, Source, VolumePlugin},
    error::VolumeError,
    place::failed,
    plugins::{DATA, data_dir, mark, mismatch, own, ready, tear_down_dir},
};

pub(super) struct EmptyDir;

impl VolumePlugin for EmptyDir {
    fn name(&self) -> &'static str {
        "kubernetes.io~empty-dir"
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::EmptyDir { .. })
    }

    fn set_up(&self, source: &Source, owner: &Ownership, dir: &Path, on: &Machine<'_>) -> Result<Ready, VolumeError> {
        let sys = on.sys;
        let Source::EmptyDir { medium, limit_bytes } = source else { return Err(mismatch(self)) };
        let top = sys.open(dir).map_err(failed("open", dir))?;
        let memory = (*medium == Medium::Memory).then_some(*limit_bytes);
        let (data, fresh) = data_dir(sys, &top, dir, memory)?;
        let path = dir.join(DATA);
        if fresh {
            own(sys, &data, &path, owner, false)?;
            mark(sys, &top, dir)?;
        }
        Ok(ready(dir, &path, false))
    }

    fn tear_down(&self, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
        tear_down_dir(dir, on.sys)
    }
}
