//! From ConfigMaps, Secrets, pod fields and tokens to the files of a volume.
use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use api::{
    downward::{field_value, resource_value},
    selector::Labels,
};
use k8s_openapi::{
    ByteString,
    api::{
        certificates::v1beta1::ClusterTrustBundle,
        core::v1::{
            ClusterTrustBundleProjection, ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource,
            Secret, ServiceAccountTokenProjection, VolumeProjection,
        },
    },
};

use crate::{
    contract::{FileEntry, Inputs, Need},
    error::VolumeError,
};

pub(crate) type Files = BTreeMap<PathBuf, FileEntry>;

/// Upstream's `defaultMode`, should an object come without it.
pub(crate) const DEFAULT_MODE: i32 = 0o644;
/// Upstream's `expirationSeconds` of projected tokens.
pub(crate) const DEFAULT_EXPIRATION_SECONDS: i64 = 3600;

fn entry(data: Vec<u8>, mode: i32) -> FileEntry {
    FileEntry { data, mode: u32::try_from(mode).unwrap_or(0o644) & 0o777, uid: None }
}

/// Adds a file; its path must stay below the volume and must not look like the writer's own names.
fn add(files: &mut Files, path: &str, entry: FileEntry) -> Result<(), VolumeError> {
    files.insert(clean(path)?, entry);
    Ok(())
}

fn clean(path: &str) -> Result<PathBuf, VolumeError> {
    let refuse = |why: &str| VolumeError::Invalid { message: format!("invalid path: {why}: {path}") };
    if path.is_empty() {
        return Err(VolumeError::Invalid { message: "invalid path: must not be empty: \"\"".into() });
    }
    if path.len() > 4096 {
        return Err(refuse("must be less than or equal to 4096 characters"));
    }
    let mut out = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::RootDir | Component::Prefix(_) => return Err(refuse("must be relative path")),
            Component::ParentDir => return Err(refuse("must not contain '..'")),
            Component::CurDir => {}
            Component::Normal(name) if name.len() > 255 => {
                return Err(refuse("filenames must be less than or equal to 255 characters"));
            }
            Component::Normal(name) => out.push(name),
        }
    }
    match out.components().next() {
        None => Err(refuse("must name a file")),
        Some(first) if first.as_os_str().as_encoded_bytes().starts_with(b"..") => {
            Err(refuse("must not start with '..'"))
        }
        Some(_) => Ok(out),
    }
}

/// Refuses files that would have to be directories for others.
pub(crate) fn without_collisions(files: Files) -> Result<Files, VolumeError> {
    let above = |path: &Path| path.ancestors().skip(1).find(|a| files.contains_key(*a)).map(Path::to_path_buf);
    match files.keys().find_map(|path| Some((above(path)?, path.clone()))) {
        Some((file, below)) => Err(VolumeError::Collision { file, below }),
        None => Ok(files),
    }
}

/// Which keys of an object become which files.
pub(crate) struct Selection<'a> {
    pub items: &'a [KeyToPath],
    pub default_mode: i32,
    pub optional: bool,
}

impl Selection<'_> {
    fn select<'v>(
        &self,
        all: impl Iterator<Item = (&'v String, &'v [u8])>,
        missing: impl Fn(&str) -> VolumeError,
    ) -> Result<Files, VolumeError> {
        let all: BTreeMap<&String, &[u8]> = all.collect();
        let mut files = Files::new();
        if self.items.is_empty() {
            for (key, data) in all {
                add(&mut files, key, entry(data.to_vec(), self.default_mode))?;
            }
            return Ok(files);
        }
        for item in self.items {
            match all.get(&item.key) {
                Some(data) => {
                    add(&mut files, &item.path, entry(data.to_vec(), item.mode.unwrap_or(self.default_mode)))?;
                }
                None if self.optional => {}
                None => return Err(missing(&item.key)),
            }
        }
        Ok(files)
    }
}

/// Finds a looked-up object: `Ok(None)` if it does not exist and need not.
pub(crate) fn find<'a, T>(
    objects: &'a BTreeMap<String, Option<T>>,
    kind: &'static str,
    name: &str,
    optional: bool,
) -> Result<Option<&'a T>, VolumeError> {
    match objects.get(name) {
        Some(Some(object)) => Ok(Some(object)),
        Some(None) if optional => Ok(None),
        Some(None) => Err(VolumeError::NotFound { kind, name: name.into() }),
        None => Err(VolumeError::NotRead { kind, name: name.into() }),
    }
}

pub(crate) fn config_map(inputs: &Inputs, name: &str, selection: &Selection) -> Result<Files, VolumeError> {
    let empty = ConfigMap::default();
    let object = find(&inputs.config_maps, "configmap", name, selection.optional)?.unwrap_or(&empty);
    let text = object.data.iter().flatten().map(|(k, v)| (k, v.as_bytes()));
    let binary = object.binary_data.iter().flatten().map(|(k, v)| (k, v.0.as_slice()));
    selection.select(binary.chain(text), |key| VolumeError::ConfigKey { name: name.into(), key: key.into() })
}

pub(crate) fn secret(inputs: &Inputs, name: &str, selection: &Selection) -> Result<Files, VolumeError> {
    let empty = Secret::default();
    let object = find(&inputs.secrets, "secret", name, selection.optional)?.unwrap_or(&empty);
    let data = object.data.iter().flatten().map(|(k, v): (_, &ByteString)| (k, v.0.as_slice()));
    selection.select(data, |key| VolumeError::SecretKey { name: name.into(), key: key.into() })
}

pub(crate) fn downward(
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    default_mode: i32,
    inputs: &Inputs,
) -> Result<Files, VolumeError> {
    let mut files = Files::new();
    let mut errors = Vec::new();
    for item in items {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => field_value(pod, &field.field_path),
            (None, Some(resource)) => resource_value(pod, None, resource, inputs.node),
            (None, None) => Ok(String::new()),
        };
        match value {
            Ok(value) => {
                add(&mut files, &item.path, entry(value.into_bytes(), item.mode.unwrap_or(default_mode)))?;
            }
            Err(e) => errors.push(VolumeError::Invalid { message: e.to_string() }),
        }
    }
    one_or_several(files, errors)
}

/// All sources of a projected volume; of two files with one path the later source wins.
pub(crate) fn projected(pod: &Pod, source: &ProjectedVolumeSource, inputs: &Inputs) -> Result<Files, VolumeError> {
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    let mut files = Files::new();
    let mut errors = Vec::new();
    for part in source.sources.iter().flatten() {
        match projection(pod, part, mode, inputs) {
            Ok(more) => files.extend(more),
            Err(e) => errors.push(e),
        }
    }
    one_or_several(files, errors)
}

fn projection(pod: &Pod, part: &VolumeProjection, mode: i32, inputs: &Inputs) -> Result<Files, VolumeError> {
    let items = |items: &Option<Vec<KeyToPath>>| items.clone().unwrap_or_default();
    if let Some(p) = &part.secret {
        let (items, optional) = (items(&p.items), p.optional == Some(true));
        secret(inputs, &p.name, &Selection { items: &items, default_mode: mode, optional })
    } else if let Some(p) = &part.config_map {
        let (items, optional) = (items(&p.items), p.optional == Some(true));
        config_map(inputs, &p.name, &Selection { items: &items, default_mode: mode, optional })
    } else if let Some(p) = &part.downward_api {
        downward(pod, p.items.as_deref().unwrap_or_default(), mode, inputs)
    } else if let Some(p) = &part.service_account_token {
        token(pod, p, mode, inputs)
    } else if let Some(p) = &part.cluster_trust_bundle {
        trust_bundle(pod, p, mode, inputs)
    } else if part.pod_certificate.is_some() {
        Err(VolumeError::Unsupported { kind: "projected.podCertificate".into() })
    } else {
        Ok(Files::new())
    }
}

pub(crate) fn token_need(source: &ServiceAccountTokenProjection) -> Need {
    Need::Token {
        audience: source.audience.clone().filter(|a| !a.is_empty()),
        expiration_seconds: source.expiration_seconds.unwrap_or(DEFAULT_EXPIRATION_SECONDS),
    }
}

fn token(pod: &Pod, source: &ServiceAccountTokenProjection, mode: i32, inputs: &Inputs) -> Result<Files, VolumeError> {
    let need = token_need(source);
    let token = inputs.tokens.get(&need).ok_or_else(|| VolumeError::NotRead {
        kind: "serviceaccounttoken",
        name: source.audience.clone().unwrap_or_default(),
    })?;
    let mut files = Files::new();
    add(&mut files, &source.path, for_owner(pod, token.clone().into_bytes(), mode))?;
    Ok(files)
}

/// A file that only its owner reads, where the pod says whose it is; a group that owns the volume gets its right when
/// the group is set.
fn for_owner(pod: &Pod, data: Vec<u8>, mode: i32) -> FileEntry {
    let uid = only_user(pod);
    let group = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|c| c.fs_group);
    let mode = if uid.is_some() || group.is_some() { 0o600 } else { mode };
    FileEntry { uid, ..entry(data, mode) }
}

/// Trusted certificates: each once, in one order, and nothing else.
fn trust_bundle(
    pod: &Pod,
    source: &ClusterTrustBundleProjection,
    mode: i32,
    inputs: &Inputs,
) -> Result<Files, VolumeError> {
    let optional = source.optional == Some(true);
    let signer = source.signer_name.as_deref();
    let shown = source.name.as_deref().or(signer).unwrap_or_default();
    let all = inputs.trust_bundles.as_deref();
    let all = all.ok_or_else(|| VolumeError::NotRead { kind: "clustertrustbundle", name: shown.into() })?;
    let chosen: Vec<&ClusterTrustBundle> = match (&source.name, signer) {
        (Some(name), _) => all.get(name).into_iter().collect(),
        (None, Some(signer)) => {
            let selector = Labels::from_object(source.label_selector.as_ref())
                .map_err(|e| VolumeError::Invalid { message: format!("while parsing label selector: {e}") })?;
            let of_signer = all.values().filter(|b| b.spec.signer_name.as_deref() == Some(signer));
            of_signer.filter(|b| selector.matches(b.metadata.labels.as_ref())).collect()
        }
        (None, None) => {
            let message = "ClusterTrustBundle projection requires either name or signerName to be set".into();
            return Err(VolumeError::Invalid { message });
        }
    };
    if chosen.is_empty() && !optional {
        return Err(VolumeError::TrustBundle { name: source.name.clone(), signer: source.signer_name.clone() });
    }
    let text = api::certificate::normalize(chosen.iter().map(|b| b.spec.trust_bundle.as_str()));
    let mut files = Files::new();
    add(&mut files, &source.path, for_owner(pod, text.into_bytes(), mode))?;
    Ok(files)
}

/// The user of all containers, if they all say the same one.
fn only_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let init = spec.init_containers.iter().flatten().map(|c| &c.security_context);
    let own = init.chain(spec.containers.iter().map(|c| &c.security_context));
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| &c.security_context);
    let mut users = own.chain(ephemeral).map(|c| c.as_ref().and_then(|c| c.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|u| u == Some(first)).then_some(u32::try_from(first).ok()).flatten()
}

fn one_or_several(files: Files, mut errors: Vec<VolumeError>) -> Result<Files, VolumeError> {
    match errors.len() {
        0 => Ok(files),
        1 => Err(errors.remove(0)),
        _ => Err(VolumeError::Several { errors }),
    }
}
