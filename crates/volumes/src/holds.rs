//! Which pods of this node have which persistent volumes, on disk: `<pods>/<uid>/holds/<persistent volume>`.
//!
//! A mark is made before a volume is set up and goes with the pod's directory, so that a restart in between, or a pod
//! whose object is long gone, lets nobody else at the volume.
use std::{ffi::OsStr, io::ErrorKind, path::Path};

use sys::{FileKind, Reach};

use crate::{
    PodVolumes,
    error::VolumeError,
    place::{PRIVATE, ensure_below, ensure_path, failed, if_found, one_name},
};

const HOLDS: &str = "holds";

/// A persistent volume that a pod has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    pub pod_uid: String,
    /// `namespace/name`; empty if the mark was cut off.
    pub pod: String,
    /// Name of the persistent volume.
    pub volume: String,
}

impl PodVolumes {
    /// Marks that a pod is about to have a persistent volume. Idempotent.
    ///
    /// # Errors
    /// The mark could not be made; the volume must not be set up then.
    pub fn hold(&self, hold: &Hold) -> Result<(), VolumeError> {
        let (pod, name) = (one_name(&hold.pod_uid)?, one_name(&hold.volume)?);
        let pods = ensure_path(self.sys(), self.pods_dir(), PRIVATE)?;
        let (dir, path) = ensure_below(self.sys(), pods, self.pods_dir(), &[pod, OsStr::new(HOLDS)])?;
        match self.sys().write_new(&dir, name, hold.pod.as_bytes(), 0o600) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(failed("write", path.join(name))),
        }
    }

    /// All marks, in no order.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn holds(&self) -> Result<Vec<Hold>, VolumeError> {
        let sys = self.sys();
        let mut all = Vec::new();
        for pod_uid in self.pods()? {
            let path = self.pods_dir().join(&pod_uid).join(HOLDS);
            let Some(dir) = if_found(sys.open(&path)).map_err(failed("open", &path))? else { continue };
            for entry in sys.list(&dir).map_err(failed("read", &path))? {
                let file = sys.open_at(&dir, Path::new(&entry.name), Reach::Child);
                let Some(file) = if_found(file).map_err(failed("open", &path))? else { continue };
                if entry.kind != FileKind::File {
                    continue;
                }
                let pod = sys.read_file(&file).map_err(failed("read", &path))?;
                let (pod, volume) = (String::from_utf8_lossy(&pod).into_owned(), entry.name.into_string());
                all.extend(volume.ok().map(|volume| Hold { pod_uid: pod_uid.clone(), pod, volume }));
            }
        }
        Ok(all)
    }
}
