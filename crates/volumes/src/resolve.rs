//! From a pod volume and the objects it names to a [`Source`]. Pure.
use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

use api::{Quantity, pod::is_sidecar};
use k8s_openapi::{
    api::core::v1::{EmptyDirVolumeSource, PersistentVolume, Pod, Volume},
    apimachinery::pkg::api::resource::Quantity as Text,
};
use serde_json::Value;

use crate::{
    claim::{self, ClaimUse},
    contract::{FlockerVolume, HostPathType, Inputs, Medium, Need, NfsSource, Resolved, Source},
    csi_source,
    error::VolumeError,
    fc_source, flex_source,
    huge_pages::{self, HUGE_PAGES, HUGE_PAGES_OF},
    iscsi_source,
    payload::{self, DEFAULT_MODE, Selection},
    plugins::{git_repo, glusterfs},
};

/// A pod's annotation; see [`follows_sub_paths`].
const FOLLOW_SUB_PATHS: &str = "holdfast.dev/follow-sub-paths";

/// The objects and tokens that [`resolve`] needs for one volume of a pod. Duplicates are possible.
pub fn needs(pod: &Pod, volume: &Volume) -> Vec<Need> {
    if let Some(s) = &volume.config_map {
        return vec![Need::ConfigMap(s.name.clone())];
    }
    if let Some(s) = &volume.secret {
        return vec![Need::Secret(s.secret_name.clone().unwrap_or_default())];
    }
    if let Some(s) = &volume.persistent_volume_claim {
        return vec![Need::Claim(s.claim_name.clone())];
    }
    if let Some(s) = &volume.glusterfs {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        return vec![Need::Endpoints { namespace, name: s.endpoints.clone() }];
    }
    if let Some(s) = &volume.csi {
        return vec![Need::Driver(s.driver.clone())];
    }
    if volume.ephemeral.is_some() {
        return vec![Need::Claim(ephemeral_claim(pod, volume))];
    }
    if let Some(disk) = disk(pod, volume).ok().flatten().and_then(|v| v.spec?.csi) {
        return vec![Need::Disk { driver: disk.driver, handle: disk.volume_handle }];
    }
    let parts = volume.projected.iter().flat_map(|s| s.sources.iter().flatten());
    let need = |part: &k8s_openapi::api::core::v1::VolumeProjection| {
        let config_map = part.config_map.as_ref().map(|p| Need::ConfigMap(p.name.clone()));
        let secret = part.secret.as_ref().map(|p| Need::Secret(p.name.clone()));
        let token = part.service_account_token.as_ref().map(payload::token_need);
        let bundles = part.cluster_trust_bundle.as_ref().map(|_| Need::TrustBundles);
        secret.or(config_map).or(token).or(bundles)
    };
    parts.filter_map(need).collect()
}

/// Whether a pod wants what it mounts by sub-path from configMap, secret, downwardAPI and projected volumes to follow
/// their changes; elsewhere it stays as it was when the container started.
pub fn follows_sub_paths(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().and_then(|a| a.get(FOLLOW_SUB_PATHS)).is_some_and(|v| v == "true")
}

/// The name of the claim that belongs to a generic ephemeral volume.
fn ephemeral_claim(pod: &Pod, volume: &Volume) -> String {
    format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name)
}

/// What one volume of a pod is made of, given what was found for its [`needs`].
///
/// # Errors
/// What is missing or wrong, in upstream's words; [`VolumeError::next`] says whether waiting helps.
pub fn resolve(pod: &Pod, volume: &Volume, inputs: &Inputs) -> Result<Resolved, VolumeError> {
    let plain = |source| Ok(Resolved { source, read_only: false, mount_options: Vec::new() });
    let files = |files, in_memory| {
        let files = payload::without_collisions(files)?;
        let mount_points = nested_mount_points(pod, &volume.name);
        let source = Source::Files { files, in_memory, mount_points, followed: follows_sub_paths(pod) };
        Ok(Resolved { source, read_only: true, mount_options: Vec::new() })
    };
    if let Some(s) = &volume.empty_dir {
        plain(empty_dir(pod, s, inputs)?)
    } else if let Some(s) = &volume.host_path {
        plain(host_path(&s.path, s.type_.as_deref())?)
    } else if let Some(s) = &volume.config_map {
        let (items, optional) = (s.items.as_deref().unwrap_or_default(), s.optional == Some(true));
        let default_mode = s.default_mode.unwrap_or(DEFAULT_MODE);
        files(payload::config_map(inputs, &s.name, &Selection { items, default_mode, optional })?, false)
    } else if let Some(s) = &volume.secret {
        let (items, optional) = (s.items.as_deref().unwrap_or_default(), s.optional == Some(true));
        let default_mode = s.default_mode.unwrap_or(DEFAULT_MODE);
        let name = s.secret_name.as_deref().unwrap_or_default();
        files(payload::secret(inputs, name, &Selection { items, default_mode, optional })?, true)
    } else if let Some(s) = &volume.downward_api {
        let items = s.items.as_deref().unwrap_or_default();
        files(payload::downward(pod, items, s.default_mode.unwrap_or(DEFAULT_MODE), inputs)?, true)
    } else if let Some(s) = &volume.projected {
        files(payload::projected(pod, s, inputs)?, true)
    } else if let Some(s) = &volume.persistent_volume_claim {
        let read_only = s.read_only == Some(true);
        claim::resolve(
            pod,
            &ClaimUse { volume: &volume.name, claim: &s.claim_name, read_only, ephemeral: false },
            inputs,
        )
    } else if volume.ephemeral.is_some() {
        let name = ephemeral_claim(pod, volume);
        claim::resolve(pod, &ClaimUse { volume: &volume.name, claim: &name, read_only: false, ephemeral: true }, inputs)
    } else if let Some(s) = &volume.iscsi {
        plain(iscsi_source::inline(pod, &volume.name, s)?)
    } else if let Some(s) = &volume.fc {
        plain(fc_source::inline(&volume.name, s)?)
    } else if let Some(s) = &volume.csi {
        csi_source::inline(pod, &volume.name, s, inputs)
    } else if let Some(s) = &volume.nfs {
        Ok(NfsSource::resolved(s, &[], false))
    } else if let Some(s) = &volume.git_repo {
        plain(git_repo::resolve(pod, s))
    } else if let Some(resolved) = own_disk(pod, volume, inputs)? {
        Ok(resolved)
    } else if let Some(s) = &volume.flex_volume {
        Ok(flex_source::inline(pod, &volume.name, s, inputs))
    } else if let Some(s) = &volume.glusterfs {
        glusterfs::inline(pod, s, inputs)
    } else if let Some(s) = &volume.flocker {
        plain(FlockerVolume::of(s, false))
    } else if let Some(ended) = in_tree::ended_inline(volume) {
        Err(VolumeError::Ended { name: volume.name.clone(), story: ended.story })
    } else {
        match source_field(volume) {
            Some(kind) => Err(VolumeError::Unsupported { kind }),
            // A volume that says nothing is an emptyDir, as the API defaults it.
            None => plain(Source::EmptyDir { medium: Medium::Disk, limit_bytes: None }),
        }
    }
}

/// A disk of a cloud that the pod names itself, as a volume of the driver that took over.
fn disk(pod: &Pod, volume: &Volume) -> Result<Option<PersistentVolume>, VolumeError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    in_tree::inline_to_csi(volume, namespace).map_err(|e| VolumeError::Invalid { message: e.to_string() })
}

fn own_disk(pod: &Pod, volume: &Volume, inputs: &Inputs) -> Result<Option<Resolved>, VolumeError> {
    let Some(disk) = disk(pod, volume)? else { return Ok(None) };
    let read_only = disk.spec.as_ref().and_then(|s| s.csi.as_ref()).is_some_and(|s| s.read_only == Some(true));
    csi_source::persistent(pod, &disk, read_only, inputs).map_err(|error| match error {
        // Its name in the sentence is the driver's.
        VolumeError::Attach { volume: disk, why, failed } => {
            VolumeError::Attach { volume: disk, why: format!("{why} (the pod's volume {:?})", volume.name), failed }
        }
        other => other,
    })
}

/// Where containers mount other volumes inside this one, relative to it; of nested ones, the outermost.
fn nested_mount_points(pod: &Pod, volume: &str) -> BTreeSet<PathBuf> {
    let normal = |path: &str| -> PathBuf {
        Path::new(path).components().filter(|c| matches!(c, Component::Normal(_))).collect()
    };
    let spec = pod.spec.as_ref();
    let containers = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let mut points = BTreeSet::new();
    for container in containers {
        let mounts = container.volume_mounts.as_deref().unwrap_or_default();
        for outer in mounts.iter().filter(|m| m.name == volume && m.sub_path.as_deref().unwrap_or_default().is_empty())
        {
            let outer = normal(&outer.mount_path);
            let inner =
                mounts.iter().filter_map(|m| Some(normal(&m.mount_path).strip_prefix(&outer).ok()?.to_path_buf()));
            points.extend(inner.filter(|p| !p.as_os_str().is_empty()));
        }
    }
    let all = points.clone();
    points.retain(|p: &PathBuf| !all.iter().any(|other| other != p && p.starts_with(other)));
    points
}

/// The API's name of the source of a volume.
fn source_field(volume: &Volume) -> Option<String> {
    let value = serde_json::to_value(volume).unwrap_or_default();
    value.as_object().and_then(|fields: &serde_json::Map<String, Value>| fields.keys().find(|k| *k != "name").cloned())
}

fn empty_dir(pod: &Pod, source: &EmptyDirVolumeSource, inputs: &Inputs) -> Result<Source, VolumeError> {
    let limit = source.size_limit.as_ref().and_then(bytes);
    match source.medium.as_deref().unwrap_or_default() {
        "" => Ok(Source::EmptyDir { medium: Medium::Disk, limit_bytes: limit }),
        "Memory" => {
            // A pod cannot use more memory than it or the node has: its files in memory are counted as its own.
            let node = u64::try_from(inputs.node.memory_bytes).ok().filter(|b| *b > 0);
            let smallest = [node, memory_limit(pod), limit].into_iter().flatten().min();
            Ok(Source::EmptyDir { medium: Medium::Memory, limit_bytes: smallest })
        }
        huge if huge == HUGE_PAGES || huge.starts_with(HUGE_PAGES_OF) => huge_pages::source(pod, huge, limit),
        other => Err(VolumeError::Invalid { message: format!("unknown storage medium {other:?}") }),
    }
}

/// A size in bytes, rounded up; `None` for what is no positive quantity.
fn bytes(text: &Text) -> Option<u64> {
    let size = Quantity::try_from(text).ok()?.value();
    u64::try_from(size).ok().filter(|b| *b > 0)
}

/// The memory limit of a pod, if all of its containers have one.
fn memory_limit(pod: &Pod) -> Option<u64> {
    let spec = pod.spec.as_ref()?;
    let limit =
        |c: &k8s_openapi::api::core::v1::Container| bytes(c.resources.as_ref()?.limits.as_ref()?.get("memory")?);
    let (sidecars, init): (Vec<_>, Vec<_>) = spec.init_containers.iter().flatten().partition(|c| is_sidecar(c));
    let running: u64 = spec.containers.iter().chain(sidecars).map(limit).sum::<Option<u64>>()?;
    let largest_init = init.into_iter().map(limit).try_fold(0, |max, one| Some(one?.max(max)))?;
    Some(running.max(largest_init)).filter(|b| *b > 0)
}

pub(crate) fn host_path(path: &str, kind: Option<&str>) -> Result<Source, VolumeError> {
    let kind = match kind.unwrap_or_default() {
        "" => HostPathType::Unset,
        "DirectoryOrCreate" => HostPathType::DirectoryOrCreate,
        "Directory" => HostPathType::Directory,
        "FileOrCreate" => HostPathType::FileOrCreate,
        "File" => HostPathType::File,
        "Socket" => HostPathType::Socket,
        "CharDevice" => HostPathType::CharDevice,
        "BlockDevice" => HostPathType::BlockDevice,
        other => return Err(VolumeError::Invalid { message: format!("{other} is an invalid volume type") }),
    };
    if path.split('/').any(|part| part == "..") {
        return Err(VolumeError::Invalid { message: format!("invalid HostPath `{path}`: must not contain '..'") });
    }
    Ok(Source::HostPath { path: PathBuf::from(path), kind })
}
