//! How much of the node's disk a pod takes: what its containers write to their roots, their logs, its volumes on the disk,
//! and the files that it shares with the node, which it may write as well (CVE-2020-8557).
use std::{collections::BTreeMap, fs, path::Path};

use k8s_openapi::api::core::v1::Volume;
use volumes::{PodVolumes, VolumeError};

use super::{Shared, identity, worker::View};
use crate::spec::container;

/// What one container takes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OfContainer {
    /// Its writable layer.
    pub root_bytes: u64,
    pub log_bytes: u64,
}

/// What a pod takes, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scratch {
    pub containers: BTreeMap<String, OfContainer>,
    /// Volumes that are local and end with the pod.
    pub volume_bytes: u64,
    /// `/etc/hosts`, `/etc/resolv.conf`, `/etc/hostname`, termination messages.
    pub file_bytes: u64,
}

impl Scratch {
    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        let containers: u64 = self.containers.values().map(|c| c.root_bytes + c.log_bytes).sum();
        containers + self.volume_bytes + self.file_bytes
    }
}

/// Whether a volume takes the node's disk and ends with its pod.
fn is_scratch(volume: &Volume) -> bool {
    let on_disk = volume.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref().unwrap_or_default().is_empty());
    on_disk || volume.config_map.is_some() || volume.git_repo.is_some()
}

/// In a pod's directory: what is counted as volumes, or is none of the pod's.
const NOT_FILES: [&str; 3] = ["volumes", "volume-subpaths", "holds"];

/// Measures a pod. Reads directories: it blocks.
///
/// # Errors
/// Also when a container moves directories while they are counted; ask again.
pub fn measure(shared: &Shared, view: &View) -> Result<Scratch, VolumeError> {
    let volumes: &PodVolumes = &shared.volumes;
    let (name, namespace, uid) = identity(&view.pod);
    let logs = container::log_dir(&shared.config.layout, namespace, name, uid);
    let mut scratch = Scratch::default();
    for one in view.sandbox.iter().flat_map(|s| &s.containers) {
        let known = scratch.containers.entry(one.name.clone());
        // Logs of all its incarnations are in one directory.
        let of = match known {
            std::collections::btree_map::Entry::Occupied(of) => of.into_mut(),
            std::collections::btree_map::Entry::Vacant(new) => {
                let log_bytes = volumes.tree_bytes(&logs.join(&one.name))?;
                new.insert(OfContainer { root_bytes: 0, log_bytes })
            }
        };
        if let Some(layer) = shared.runtime.writable_layer(&one.id) {
            of.root_bytes += volumes.tree_bytes(&layer)?;
        }
    }
    let own = view.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter(|v| is_scratch(v));
    for ready in own.filter_map(|v| view.volumes.get(&v.name)) {
        scratch.volume_bytes += volumes.usage_bytes(ready)?;
    }
    scratch.file_bytes = files(volumes, &shared.config.layout.pods().join(uid))?;
    Ok(scratch)
}

fn files(volumes: &PodVolumes, dir: &Path) -> Result<u64, VolumeError> {
    // The pod may be about to go.
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let files = entries.filter(|e| !NOT_FILES.iter().any(|name| e.file_name() == *name));
    files.map(|e| volumes.tree_bytes(&e.path())).sum()
}
