//! `emptyDir`: a directory, or a memory filesystem, that lives as long as its pod.
//!
//! A limit is the kernel's to hold: of memory by the size of the filesystem; of a directory by a quota where its filesystem
//! has them, else by a filesystem of that size in a file (`image`). A host that has neither, lacks a program for it or has
//! a smaller disk gives a plain directory, whose limit is enforced by whoever watches [`crate::PodVolumes::usage_bytes`].
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use sys::{FsMount, Handle, Reach, Sys, Unmount};

use crate::{
    contract::{Machine, Medium, Ownership, Ready, Source, VolumePlugin},
    error::VolumeError,
    place::{ensure_dir, failed, if_found},
    plugins::{DATA, data_dir, is_marked, mark, mismatch, own, ready, tear_down_dir, tmpfs},
};

pub(super) struct EmptyDir;

/// The file with the volume's filesystem.
const IMAGE: &str = "image";
/// The same while it is made.
const UNFINISHED: &str = "image.new";
/// What makers of filesystems leave in them; an empty volume is empty.
const FOUND: &str = "lost+found";

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
        let (data, fresh) = match (medium, limit_bytes) {
            (Medium::Memory, limit) => data_dir(sys, &top, dir, Some(&tmpfs(sys, *limit)))?,
            (Medium::HugePages { page_bytes }, limit) => {
                let options = huge_pages(*page_bytes, *limit);
                let mount = FsMount { kind: "hugetlbfs", source: "nodev", read_only: false, options: &options };
                data_dir(sys, &top, dir, Some(&|at| sys.mount(at, &mount)))?
            }
            (Medium::Disk, None) => data_dir(sys, &top, dir, None)?,
            (Medium::Disk, Some(bytes)) => Limited { sys, top: &top, dir, path: dir.join(DATA) }.data(*bytes)?,
        };
        let path = dir.join(DATA);
        if fresh {
            own(sys, &data, &path, owner, false)?;
            mark(sys, &top, dir)?;
        }
        Ok(ready(dir, &path, false))
    }

    fn tear_down(&self, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
        // A quota is found by the directory's number, which another may have next: it sets its own. So nothing depends on
        // this, but that quotas of what is gone do not pile up.
        if let Some(data) = if_found(on.sys.open(&dir.join(DATA))).map_err(failed("open", dir.join(DATA)))? {
            let _ = on.sys.limit_tree(&data, None);
        }
        tear_down_dir(dir, on.sys)
    }
}

fn huge_pages(page_bytes: u64, limit_bytes: Option<u64>) -> Vec<String> {
    let size = limit_bytes.map(|bytes| format!("size={bytes}"));
    let all = ["nodev".to_owned(), "mode=1777".to_owned(), format!("pagesize={page_bytes}")];
    all.into_iter().chain(size).collect()
}

/// A volume on the disk whose limit the kernel is to hold.
struct Limited<'a> {
    sys: &'a dyn Sys,
    top: &'a Handle,
    dir: &'a Path,
    path: PathBuf,
}

impl Limited<'_> {
    /// The volume's directory, and whether it is new.
    fn data(&self, bytes: u64) -> Result<(Handle, bool), VolumeError> {
        let (sys, path) = (self.sys, &self.path);
        let below = ensure_dir(sys, self.top, OsStr::new(DATA), 0o777).map_err(failed("create", path))?;
        let is_mounted = sys.stat(&below).map_err(failed("read", path))?.mount_root;
        // What a volume is made of is settled before the pod has it, and never changes after.
        let fresh = !is_marked(sys, self.top, self.dir)?;
        let data = match () {
            () if is_mounted => below,
            () if fresh => self.make(below, bytes)?,
            () => match self.image()? {
                // After a reboot.
                Some(image) => self.mount(&image, &below)?,
                None => below,
            },
        };
        if fresh {
            if_found(sys.remove_dir(&data, OsStr::new(FOUND))).map_err(failed("remove", path.join(FOUND)))?;
            let mode = sys.stat(&data).map_err(failed("read", path))?.mode;
            if mode & 0o777 != 0o777 {
                sys.set_mode(&data, mode | 0o777).map_err(failed("change the mode of", path))?;
            }
        }
        Ok((data, fresh))
    }

    /// Bounds an empty directory by the first means that this host has.
    fn make(&self, below: Handle, bytes: u64) -> Result<Handle, VolumeError> {
        let (sys, path) = (self.sys, &self.path);
        if sys.limit_tree(&below, Some(bytes)).is_ok() {
            return Ok(below);
        }
        // What the disk does not have needs no other bound.
        if sys.room(&below).map_err(failed("measure", path))?.total_bytes > bytes
            && let Ok(data) = self.image_of(&below, bytes)
        {
            return Ok(data);
        }
        // Half of an attempt must not come to light later, over the pod's files.
        if self.open()?.1 {
            let unmounted = sys.unmount(self.top, OsStr::new(DATA), Unmount::Strict);
            unmounted.map_err(|errno| VolumeError::Unmount { target: path.clone(), errno })?;
        }
        self.remove(IMAGE)?;
        self.remove(UNFINISHED)?;
        Ok(below)
    }

    fn image_of(&self, below: &Handle, bytes: u64) -> Result<Handle, VolumeError> {
        let image = match self.image()? {
            Some(image) => image,
            None => {
                self.remove(UNFINISHED)?;
                let made = self.sys.make_bounded(self.top, OsStr::new(UNFINISHED), bytes);
                made.map_err(failed("make a filesystem in", self.dir.join(UNFINISHED)))?;
                let done = self.sys.rename(self.top, OsStr::new(UNFINISHED), OsStr::new(IMAGE));
                done.map_err(failed("write", self.dir.join(IMAGE)))?;
                let image = self.sys.open_at(self.top, Path::new(IMAGE), Reach::Plain);
                image.map_err(failed("open", self.dir.join(IMAGE)))?
            }
        };
        self.mount(&image, below)
    }

    fn mount(&self, image: &Handle, below: &Handle) -> Result<Handle, VolumeError> {
        let mounted = self.sys.mount_bounded(image, below);
        mounted.map_err(|errno| VolumeError::Mount { target: self.path.clone(), errno })?;
        self.open().map(|(data, _)| data)
    }

    fn image(&self) -> Result<Option<Handle>, VolumeError> {
        if_found(self.sys.open_at(self.top, Path::new(IMAGE), Reach::Plain))
            .map_err(failed("open", self.dir.join(IMAGE)))
    }

    /// What is at the volume's path now, and whether that is a mount.
    fn open(&self) -> Result<(Handle, bool), VolumeError> {
        let data = self.sys.open_at(self.top, Path::new(DATA), Reach::Plain).map_err(failed("open", &self.path))?;
        let is_mounted = self.sys.stat(&data).map_err(failed("read", &self.path))?.mount_root;
        Ok((data, is_mounted))
    }

    fn remove(&self, name: &str) -> Result<(), VolumeError> {
        if_found(self.sys.remove_file(self.top, OsStr::new(name))).map_err(failed("remove", self.dir.join(name)))?;
        Ok(())
    }
}
