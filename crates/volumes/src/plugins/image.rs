//! `image`: the files of an OCI image or artifact, read-only. The node has pulled it before it comes here.
//!
//! Each image that the volume was made of has a mount of its own, named by the image: a container that is restarted may get
//! a newer one beside containers that have the old. The names also say which images are in use.
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use sys::{FileKind, Handle, Reach};

use crate::{
    contract::{Machine, Ownership, Ready, Source, VolumePlugin},
    error::VolumeError,
    place::{PRIVATE, ensure_dir, failed, if_found, one_name},
    plugins::{mismatch, ready, tear_down_dir},
};

pub(crate) struct Image;

const NAME: &str = "kubernetes.io~image";
/// Below all layers: overlayfs wants two.
const NOTHING: &str = "nothing";
const DIGEST: &str = "sha256:";

impl VolumePlugin for Image {
    fn name(&self) -> &'static str {
        NAME
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::Image { .. })
    }

    fn set_up(&self, source: &Source, _: &Ownership, dir: &Path, on: &Machine<'_>) -> Result<Ready, VolumeError> {
        let Source::Image { id, layers } = source else { return Err(mismatch(self)) };
        let name = one_name(id.strip_prefix(DIGEST).unwrap_or(id))?;
        // Containers of a pod may start side by side.
        on.shared.alone(&dir.to_string_lossy(), || {
            let path = dir.join(name);
            let top = on.sys.open(dir).map_err(failed("open", dir))?;
            let nothing = ensure_dir(on.sys, &top, OsStr::new(NOTHING), 0o755).map_err(failed("create", dir))?;
            let data = ensure_dir(on.sys, &top, name, PRIVATE).map_err(failed("create", &path))?;
            if !on.sys.stat(&data).map_err(failed("read", &path))?.mount_root {
                let open = |layer: &PathBuf| on.sys.open(layer).map_err(failed("open", layer));
                let mut parts: Vec<Handle> = layers.iter().map(open).collect::<Result<_, _>>()?;
                parts.push(nothing);
                let mounted = on.sys.mount_layers(&parts, &data);
                mounted.map_err(|errno| VolumeError::Mount { target: path.clone(), errno })?;
            }
            Ok(ready(dir, &path, true))
        })
    }

    fn tear_down(&self, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
        tear_down_dir(dir, on.sys)
    }
}

/// The images that volumes of pods are made of.
pub(crate) fn in_use(on: &Machine<'_>) -> Result<Vec<String>, VolumeError> {
    let list = |path: &Path| -> Result<Vec<String>, VolumeError> {
        let Some(dir) = if_found(on.sys.open(path)).map_err(failed("open", path))? else { return Ok(Vec::new()) };
        let here = on.sys.open_at(&dir, Path::new(""), Reach::Plain).map_err(failed("open", path))?;
        // It may have been removed meanwhile.
        let entries = if_found(on.sys.list(&here)).map_err(failed("read", path))?.unwrap_or_default();
        let dirs = entries.into_iter().filter(|e| e.kind == FileKind::Directory);
        Ok(dirs.filter_map(|e| e.name.into_string().ok()).collect())
    };
    let mut images = Vec::new();
    for pod in list(on.pods)? {
        let volumes = on.pods.join(pod).join("volumes").join(NAME);
        for volume in list(&volumes)? {
            let names = list(&volumes.join(volume))?;
            images.extend(names.into_iter().filter(|name| name != NOTHING).map(|name| format!("{DIGEST}{name}")));
        }
    }
    Ok(images)
}
