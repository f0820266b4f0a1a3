//! What differs between the backends: making, copying, bounding and measuring what holds a volume's data.
use std::{collections::BTreeSet, io, path::Path};

use sys::Access;

use crate::{
    Backend, Id, Limit, Origin, Pool, Volume,
    error::{PoolError, failed},
    pool::{DATA, IMAGE},
};

/// Set in every number of a quota: people and other programs give small ones.
const PROJECT: u32 = 1 << 31;

/// Of the top of a new volume.
const OPEN: u32 = 0o755;

impl Volume {
    /// Whether its size is kept free for it.
    pub(crate) fn keeps_room(&self) -> bool {
        self.backend != Backend::Directory && !self.shares_room
    }
}

fn unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
}

impl Pool {
    /// Makes what holds a volume's data in a directory; returns the record, with what came of it.
    pub(crate) fn fill(&self, mut volume: Volume, half: &Path, limit_required: bool) -> Result<Volume, PoolError> {
        let (kernel, image, data) = (&self.kernel, half.join(IMAGE), half.join(DATA));
        match (volume.backend, &volume.origin) {
            (Backend::Directory, _) => {
                kernel.ensure_dir(&data).map_err(failed("make", &data))?;
                // As the top of a new filesystem is; nobody else comes this far on the host.
                let top = kernel.open(&data).map_err(failed("open", &data))?;
                kernel.set_mode(&top, OPEN).map_err(failed("set the mode of", &data))?;
                volume.project = self.project_for(&data)?;
                volume.limit = match kernel.limit_directory(&data, volume.project, volume.bytes) {
                    Ok(()) => Limit::Quota,
                    Err(e) if unsupported(&e) && limit_required => return Err(self.no_quota()),
                    Err(e) if unsupported(&e) => {
                        volume.project = 0;
                        Limit::None
                    }
                    Err(e) => return Err(failed("set the quota of", &data)(e)),
                };
            }
            (Backend::Subvolume, None) => kernel.make_subvolume(&data).map_err(|e| self.no_subvolume(&data, e))?,
            (Backend::Image, None) => kernel.make_image(&image, volume.bytes).map_err(failed("make", &image))?,
            (_, Some(Origin::Snapshot(id))) => self.copy(volume.backend, &self.snapshot_dir(id), half)?,
            (_, Some(Origin::Volume(id))) => self.copy_volume(id, half)?,
        }
        match volume.backend {
            Backend::Directory => {}
            Backend::Subvolume => {
                kernel.limit_directory(&data, 0, volume.bytes).map_err(failed("set the quota of", &data))?;
                volume.limit = Limit::Quota;
            }
            Backend::Image => kernel.resize_image(&image, volume.bytes).map_err(failed("enlarge", &image))?,
        }
        Ok(volume)
    }

    fn no_quota(&self) -> PoolError {
        PoolError::State(format!(
            "the class asks for a limit of directories, and the filesystem of pool {} has no quotas of projects; mount it \
             with prjquota where kernel and filesystem have that, or use backend=image",
            self.dir.display()
        ))
    }

    fn no_subvolume(&self, data: &Path, error: io::Error) -> PoolError {
        if unsupported(&error) {
            let why =
                format!("pool {} is not on btrfs, so it has no subvolumes; use backend=image", self.dir.display());
            return PoolError::State(why);
        }
        failed("make", data)(error)
    }

    /// A number that no other directory of the filesystem has: that of its inode, so that pools that share a filesystem, and
    /// volumes that are made at once, need not know of each other. Of a filesystem with larger numbers than quotas have, that
    /// of no other volume here, nor of one that may come back.
    fn project_for(&self, data: &Path) -> Result<u32, PoolError> {
        let opened = self.kernel.open(data).map_err(failed("open", data))?;
        let inode = self.kernel.stat(&opened).map_err(failed("look at", data))?.inode;
        let trashed = self.trashed()?.into_iter().map(|t| t.volume);
        let taken: BTreeSet<u32> = self.volumes().into_iter().chain(trashed).map(|v| v.project).collect();
        let own = (inode & u64::from(PROJECT - 1)) as u32;
        let mut numbers = (own..PROJECT).chain(1..own).map(|n| PROJECT | n);
        Ok(numbers.find(|n| !taken.contains(n)).expect("there are fewer volumes than numbers"))
    }

    /// Copies what holds the data from the directory of a volume or snapshot to another.
    pub(crate) fn copy(&self, backend: Backend, from: &Path, to: &Path) -> Result<(), PoolError> {
        if backend == Backend::Subvolume {
            let data = from.join(DATA);
            return self.kernel.copy_subvolume(&data, &to.join(DATA)).map_err(failed("copy", &data));
        }
        let image = from.join(IMAGE);
        let how = self.kernel.copy_image(&image, &to.join(IMAGE)).map_err(failed("copy", &image))?;
        tracing::debug!(from = %from.display(), ?how, "copied an image");
        Ok(())
    }

    /// Lets a volume have more, where it is not its filesystem that does.
    pub(crate) fn enlarge(&self, volume: &Volume, bytes: u64) -> Result<(), PoolError> {
        if volume.backend != Backend::Image {
            let data = self.data(&volume.id);
            return match volume.limit {
                Limit::Quota => {
                    let set = self.kernel.limit_directory(&data, volume.project, bytes);
                    set.map_err(failed("set the quota of", &data))
                }
                Limit::Size | Limit::None => Ok(()),
            };
        }
        let image = self.image(&volume.id);
        self.kernel.resize_image(&image, bytes).map_err(failed("enlarge", &image))?;
        for device in self.devices(&volume.id)? {
            self.kernel.refresh(&device).map_err(failed("enlarge", &device))?;
        }
        Ok(())
    }

    /// The devices that a volume's image is behind.
    pub(crate) fn devices(&self, id: &Id) -> Result<Vec<std::path::PathBuf>, PoolError> {
        let image = self.image(id);
        let mut found = Vec::new();
        for access in [Access::Write, Access::Read] {
            found.extend(self.kernel.attached(&image, access).map_err(failed("find the device of", &image))?);
        }
        Ok(found)
    }

    /// What a volume takes of its filesystem, in bytes; zero where nobody knows.
    pub fn taken_bytes(&self, volume: &Volume) -> u64 {
        match (volume.backend, volume.limit) {
            (Backend::Image, _) => self.kernel.image_size(&self.image(&volume.id)).unwrap_or_default().1,
            (_, Limit::Quota) => self.kernel.limited_usage(&self.data(&volume.id), volume.project).unwrap_or_default(),
            _ => 0,
        }
    }
}
