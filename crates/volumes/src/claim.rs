//! From a claim to what its bound volume is made of.
use std::{borrow::Cow, path::PathBuf};

use api::types::volume::BETA_MOUNT_OPTIONS;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeSpec, Pod};
use serde_json::Value;

use crate::{
    contract::{FlockerVolume, Inputs, NfsSource, Resolved, Source},
    csi_source,
    error::VolumeError,
    fc_source, flex_source, iscsi_source,
    payload::find,
    plugins::glusterfs,
    resolve::host_path,
};

/// What a pod asks of a claim.
pub(crate) struct ClaimUse<'a> {
    /// The pod's name for the volume.
    pub volume: &'a str,
    pub claim: &'a str,
    pub read_only: bool,
    /// A generic ephemeral volume: the claim must be the pod's own.
    pub ephemeral: bool,
}

/// Checks that the claim and its volume point at each other and says what the volume is made of.
pub(crate) fn resolve(pod: &Pod, wanted: &ClaimUse, inputs: &Inputs) -> Result<Resolved, VolumeError> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let fail = |why: String| VolumeError::Claim { namespace: namespace.clone(), claim: wanted.claim.into(), why };
    let Some(claim) = find(&inputs.claims, "persistentvolumeclaim", wanted.claim, true)? else {
        let missing = format!("persistentvolumeclaims {:?} not found", wanted.claim);
        return Err(fail(format!("failed to fetch PVC from API server: {missing}")));
    };
    let meta = &claim.metadata;
    if wanted.ephemeral {
        let owners = meta.owner_references.iter().flatten();
        let own = owners.filter(|o| o.controller == Some(true)).any(|o| Some(&o.uid) == pod.metadata.uid.as_ref());
        if !own {
            let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
            let message = format!(
                "PVC {namespace}/{} was not created for pod {namespace}/{pod_name} (pod is not owner)",
                wanted.claim
            );
            return Err(VolumeError::Invalid { message });
        }
    }
    let protected = meta.finalizers.iter().flatten().any(|f| f == "kubernetes.io/pvc-protection");
    if meta.deletion_timestamp.is_some() && !protected {
        return Err(fail("PVC is being deleted".into()));
    }
    if claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound") {
        return Err(fail("PVC is not bound".into()));
    }
    let name = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
    if name.is_empty() {
        return Err(fail("PVC has empty pvc.Spec.VolumeName".into()));
    }
    let volume = match inputs.volumes.get(&name) {
        Some(Some(volume)) => volume,
        Some(None) => {
            let missing = format!("persistentvolumes {name:?} not found");
            return Err(fail(format!("failed to fetch PV {name} from API server: {missing}")));
        }
        None => return Err(VolumeError::NotRead { kind: "persistentvolume", name }),
    };
    let volume = &*with_mount_options(volume);
    let spec = volume.spec.as_ref().ok_or_else(|| fail(format!("found PV object {name} without a spec")))?;
    let Some(reference) = &spec.claim_ref else {
        let why = "but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim";
        return Err(fail(format!("found PV object {name} {why}")));
    };
    let (theirs, ours) = (reference.uid.as_deref().unwrap_or_default(), meta.uid.as_deref().unwrap_or_default());
    if theirs != ours {
        let why = format!("but its pv.Spec.ClaimRef.UID {theirs} does not point to claim.UID {ours}");
        return Err(fail(format!("found PV object {name} {why}")));
    }
    let modes = claim.spec.as_ref().and_then(|s| s.access_modes.clone()).unwrap_or_default();
    let only_read = !modes.is_empty() && modes.iter().all(|m| m == "ReadOnlyMany");
    check_use(pod, volume, wanted)?;
    let by_driver = in_tree::volume_to_csi(volume).map_err(|e| fail(e.to_string()))?;
    if let Some(mut resolved) = csi_source::persistent(pod, &by_driver, wanted.read_only, inputs)? {
        resolved.read_only |= only_read;
        return Ok(resolved);
    }
    let read_only = wanted.read_only || only_read;
    if let Some(resolved) = flex_source::persistent(pod, claim, volume, read_only, inputs) {
        return Ok(resolved);
    }
    if let Some(resolved) = glusterfs::persistent(pod, volume, read_only, inputs) {
        return resolved;
    }
    made_of(volume, spec, read_only)
}

/// A volume with the mount options that are in force: before they had a field, an annotation said them, and it still
/// goes before that. The API lets only types have it that it once was for.
fn with_mount_options(volume: &PersistentVolume) -> Cow<'_, PersistentVolume> {
    let noted = volume.metadata.annotations.as_ref().and_then(|a| a.get(BETA_MOUNT_OPTIONS));
    let (Some(noted), Some(spec)) = (noted, &volume.spec) else { return Cow::Borrowed(volume) };
    let words = noted.split(',').map(str::trim).filter(|word| !word.is_empty());
    let spec = PersistentVolumeSpec { mount_options: Some(words.map(str::to_owned).collect()), ..spec.clone() };
    Cow::Owned(PersistentVolume { spec: Some(spec), ..volume.clone() })
}

/// Containers mount a filesystem and are given a device, and not the other way round.
fn check_use(pod: &Pod, volume: &PersistentVolume, wanted: &ClaimUse) -> Result<(), VolumeError> {
    let mode = volume.spec.as_ref().and_then(|s| s.volume_mode.as_deref()).unwrap_or("Filesystem");
    let spec = pod.spec.as_ref();
    let members = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let name = wanted.volume;
    let (mut mounted, mut given) = (false, false);
    for container in members {
        mounted |= container.volume_mounts.iter().flatten().any(|m| m.name == name);
        given |= container.volume_devices.iter().flatten().any(|d| d.name == name);
    }
    let wrong = match mode {
        "Filesystem" if given => "volumeDevices",
        "Filesystem" => return Ok(()),
        _ if mounted => "volumeMounts",
        _ => return Ok(()),
    };
    Err(VolumeError::Use { message: format!("volume {name} has volumeMode {mode}, but is specified in {wrong}") })
}

/// What a persistent volume is made of, whoever uses it.
///
/// # Errors
/// `Unsupported` for what this node has no plugin for.
pub fn source_of(volume: &PersistentVolume) -> Result<Source, VolumeError> {
    let Some(spec) = &volume.spec else { return Err(VolumeError::Unsupported { kind: "persistentVolume".into() }) };
    made_of(volume, spec, false).map(|resolved| resolved.source)
}

fn made_of(volume: &PersistentVolume, spec: &PersistentVolumeSpec, read_only: bool) -> Result<Resolved, VolumeError> {
    if let Some(ended) = in_tree::ended_volume(spec) {
        let name = volume.metadata.name.clone().unwrap_or_default();
        return Err(VolumeError::Ended { name, story: ended.story });
    }
    let plain = |source| Ok(Resolved { source, read_only, mount_options: Vec::new() });
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    // Both are a filesystem or a device, and mount it themselves.
    if let Some(s) = &spec.iscsi {
        return plain(iscsi_source::persistent(name, spec, s, read_only)?);
    }
    if let Some(s) = &spec.fc {
        return plain(fc_source::persistent(name, spec, s, read_only)?);
    }
    match (spec.volume_mode.as_deref(), &spec.local) {
        (Some("Block"), Some(s)) => return plain(Source::LocalDevice { path: PathBuf::from(&s.path), read_only }),
        (None | Some("Filesystem"), _) => {}
        (Some(mode), _) => {
            let kind = format!("persistentVolume.{} with volumeMode {mode}", source_field(volume));
            return Err(VolumeError::Unsupported { kind });
        }
    }
    if let Some(s) = &spec.nfs {
        return Ok(NfsSource::resolved(s, spec.mount_options.as_deref().unwrap_or_default(), read_only));
    }
    let source = if let Some(s) = &spec.host_path {
        host_path(&s.path, s.type_.as_deref())?
    } else if let Some(s) = &spec.local {
        Source::Local {
            path: PathBuf::from(&s.path),
            read_only,
            fs_type: s.fs_type.clone().filter(|t| !t.is_empty()),
            mount_options: spec.mount_options.clone().unwrap_or_default(),
        }
    } else if let Some(s) = &spec.flocker {
        FlockerVolume::of(s, read_only)
    } else {
        return Err(VolumeError::Unsupported { kind: format!("persistentVolume.{}", source_field(volume)) });
    };
    Ok(Resolved { source, read_only, mount_options: spec.mount_options.clone().unwrap_or_default() })
}

/// The API's name of the one field that says what a volume is made of.
fn source_field(volume: &PersistentVolume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let fields = value.get("spec").and_then(Value::as_object);
    let source =
        fields.into_iter().flat_map(|f| f.keys()).find(|k| !api::types::volume::NOT_SOURCES.contains(&k.as_str()));
    source.map_or_else(|| "spec without a source".into(), Clone::clone)
}
