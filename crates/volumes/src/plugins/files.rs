//! `configMap`, `secret`, `downwardAPI`, `projected`: small files that change together.
use std::path::Path;

use sys::tree;

use crate::{
    contract::{Machine, Ownership, Ready, Source, VolumePlugin},
    error::VolumeError,
    place::{ensure_dir, failed},
    plugins::{DATA, data_dir, mark, mismatch, ready, tear_down_dir, tmpfs, writer},
};

pub(crate) struct Files;

impl VolumePlugin for Files {
    fn name(&self) -> &'static str {
        "kubernetes.io~projected"
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::Files { .. })
    }

    fn set_up(&self, source: &Source, owner: &Ownership, dir: &Path, on: &Machine<'_>) -> Result<Ready, VolumeError> {
        let sys = on.sys;
        let Source::Files { files, in_memory, mount_points, followed } = source else { return Err(mismatch(self)) };
        let top = sys.open(dir).map_err(failed("open", dir))?;
        let memory = tmpfs(sys, None);
        let (data, fresh) = data_dir(sys, &top, dir, in_memory.then_some(&memory as _))?;
        let path = dir.join(DATA);
        // Containers see the volume read-only: where another volume is mounted inside must exist before.
        for point in mount_points {
            let mut at = None;
            for part in point {
                let above = at.as_ref().unwrap_or(&data);
                at = Some(ensure_dir(sys, above, part, 0o755).map_err(failed("create", path.join(point)))?);
            }
        }
        writer::write(sys, &data, files, owner.fs_group, *followed).map_err(failed("write", &path))?;
        if let Some(gid) = owner.fs_group {
            tree::give_one_to_group(sys, &data, gid, true).map_err(failed("change the group of", &path))?;
        }
        if fresh {
            mark(sys, &top, dir)?;
        }
        Ok(ready(dir, &path, true))
    }

    fn tear_down(&self, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
        tear_down_dir(dir, on.sys)
    }
}
