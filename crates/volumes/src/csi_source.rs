//! From a `csi` source, of a persistent volume or of a pod, to what a driver is asked for. Pure.
use std::{collections::BTreeMap, fmt::Write};

use k8s_openapi::api::{
    core::v1::{CSIVolumeSource, PersistentVolume, Pod, SecretReference},
    storage::v1::{CSIDriver, CSIDriverSpec, VolumeAttachment},
};
use sha2::{Digest, Sha256};

use crate::{
    contract::{Inputs, Resolved, Source},
    drivers::{SecretRef, TokenWish},
    error::VolumeError,
};

/// A volume of a CSI driver. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsiSource {
    pub driver: String,
    /// The volume in the driver's words.
    pub handle: String,
    /// Of the persistent volume, or of a pod's own volume that pod's name for it.
    pub name: String,
    /// A pod's own: it is published and nothing else.
    pub ephemeral: bool,
    pub block: bool,
    /// As publishing is told: what `persistentVolumeClaim.readOnly` says.
    pub read_only: bool,
    /// Empty: the driver's choice.
    pub fs_type: String,
    pub access_modes: Vec<String>,
    pub mount_options: Vec<String>,
    pub attributes: BTreeMap<String, String>,
    /// It is attached to a node before that uses it.
    pub attaches: bool,
    /// What attaching gave (`VolumeAttachment.status.attachmentMetadata`).
    pub publish_context: BTreeMap<String, String>,
    pub stage_secret: Option<SecretRef>,
    pub publish_secret: Option<SecretRef>,
    pub expand_secret: Option<SecretRef>,
    pub pod: PodOf,
    /// Publishing is told about the pod.
    pub pod_info: bool,
    pub tokens: Vec<TokenWish>,
    /// Tokens go with the secrets, not with the attributes.
    pub tokens_in_secrets: bool,
    pub fs_group_policy: FsGroupPolicy,
    /// It is published again and again, with fresh tokens.
    pub republish: bool,
}

/// The pod that has a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodOf {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub service_account: String,
}

/// When this node gives a volume's files to the pod's `fsGroup`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FsGroupPolicy {
    /// If the volume names a filesystem and is for one node.
    #[default]
    OnceWithFsType,
    Always,
    Never,
}

impl FsGroupPolicy {
    fn of(spec: &CSIDriverSpec) -> Self {
        match spec.fs_group_policy.as_deref() {
            Some("File") => Self::Always,
            Some("None") => Self::Never,
            _ => Self::OnceWithFsType,
        }
    }
}

impl CsiSource {
    /// Whether this node gives the volume's files to the pod's group, where the driver does not do it itself.
    pub(crate) fn takes_group(&self) -> bool {
        let once = |m: &String| m == "ReadWriteOnce" || m == "ReadWriteOncePod";
        match self.fs_group_policy {
            _ if self.read_only || self.block => false,
            FsGroupPolicy::Never => false,
            FsGroupPolicy::Always => true,
            FsGroupPolicy::OnceWithFsType => {
                !self.fs_type.is_empty() && (self.ephemeral || self.access_modes.iter().any(once))
            }
        }
    }

    /// The attributes that publishing is told, the pod's included.
    pub(crate) fn published_attributes(&self) -> BTreeMap<String, String> {
        let mut all = self.attributes.clone();
        if self.pod_info {
            let pod = &self.pod;
            let facts = [
                ("pod.name", pod.name.as_str()),
                ("pod.namespace", &pod.namespace),
                ("pod.uid", &pod.uid),
                ("serviceAccount.name", &pod.service_account),
                ("ephemeral", if self.ephemeral { "true" } else { "false" }),
            ];
            all.extend(facts.map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value.to_owned())));
        }
        all
    }
}

/// SHA-256 of the parts, one after the other, in lower-case hexadecimal.
pub(crate) fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The name of the object by which a volume is attached to a node, as upstream makes it.
pub fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    format!("csi-{}", digest(&[handle, driver, node]))
}

/// Whether volumes of a driver are attached before a node uses them: unless its object says no.
pub fn attach_required(driver: Option<&CSIDriver>) -> bool {
    driver.is_none_or(|d| d.spec.attach_required != Some(false))
}

pub(crate) fn pod_of(pod: &Pod) -> PodOf {
    let (meta, spec) = (&pod.metadata, pod.spec.as_ref());
    let account = spec.and_then(|s| s.service_account_name.clone()).filter(|n| !n.is_empty());
    PodOf {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        service_account: account.unwrap_or_else(|| "default".into()),
    }
}

fn secret(reference: Option<&SecretReference>) -> Option<SecretRef> {
    let reference = reference?;
    let name = reference.name.clone().filter(|n| !n.is_empty())?;
    Some(SecretRef { namespace: reference.namespace.clone().unwrap_or_default(), name })
}

/// The driver's object, looked up before: `None` where it has none.
fn object<'a>(driver: &str, inputs: &'a Inputs) -> Result<Option<&'a CSIDriver>, VolumeError> {
    match inputs.drivers.get(driver) {
        Some(found) => Ok(found.as_ref()),
        None => Err(VolumeError::NotRead { kind: "csidriver", name: driver.to_owned() }),
    }
}

/// Refuses what the driver's object does not name among its modes.
fn check_mode(driver: &str, object: Option<&CSIDriver>, mode: &str) -> Result<(), VolumeError> {
    let why = match object {
        None if mode == "Persistent" => return Ok(()),
        None => format!("volume mode {mode:?} not supported by driver {driver} (no CSIDriver object)"),
        Some(object) => {
            let modes = object.spec.volume_lifecycle_modes.clone().unwrap_or_else(|| vec!["Persistent".into()]);
            if modes.iter().any(|m| m == mode) {
                return Ok(());
            }
            let modes: Vec<String> = modes.iter().map(|m| format!("{m:?}")).collect();
            let only = modes.join(" ");
            format!("volume mode {mode:?} not supported by driver {driver} (only supports [{only}])")
        }
    };
    let message = format!("kubernetes.io/csi: mounter.SetupAt failed to check volume lifecycle mode: {why}");
    Err(VolumeError::Lifecycle { message })
}

/// What the driver's object says about mounting.
fn with_settings(mut source: CsiSource, object: Option<&CSIDriver>) -> CsiSource {
    let Some(spec) = object.map(|o| &o.spec) else { return source };
    source.pod_info = spec.pod_info_on_mount == Some(true);
    source.fs_group_policy = FsGroupPolicy::of(spec);
    source.republish = spec.requires_republish == Some(true) && !source.block;
    source.tokens_in_secrets = spec.service_account_token_in_secrets == Some(true);
    let wish = |t: &k8s_openapi::api::storage::v1::TokenRequest| TokenWish {
        audience: t.audience.clone(),
        expiration_seconds: t.expiration_seconds,
    };
    source.tokens = spec.token_requests.iter().flatten().map(wish).collect();
    source
}

/// What attaching a volume to this node gave.
fn attached(source: &CsiSource, inputs: &Inputs) -> Result<BTreeMap<String, String>, VolumeError> {
    if !source.attaches {
        return Ok(BTreeMap::new());
    }
    let (handle, driver) = (&source.handle, &source.driver);
    let name = attachment_name(handle, driver, &inputs.node_name);
    let found = match inputs.attachments.get(&name) {
        Some(found) => found.as_ref(),
        None => return Err(VolumeError::NotRead { kind: "volumeattachment", name }),
    };
    let installed = inputs.drivers.get(driver).is_some_and(Option::is_some);
    let hint = match installed {
        true => String::new(),
        false => in_tree::not_here(driver).map_or_else(
            || format!(". There is no CSIDriver {driver}; see that the driver is installed"),
            |hint| format!(". {hint}"),
        ),
    };
    let fail = |why: String, failed: bool| VolumeError::Attach { volume: source.name.clone(), why, failed };
    let Some(VolumeAttachment { metadata, status, .. }) = found else {
        let waits = format!("timed out waiting for external-attacher of {driver} CSI driver to attach volume {handle}");
        return Err(fail(format!("{waits}; there is no VolumeAttachment {name} yet{hint}"), false));
    };
    if metadata.deletion_timestamp.is_some() {
        return Err(fail("volume attachment is being deleted".into(), false));
    }
    match status.as_ref() {
        Some(status) if status.attached => Ok(status.attachment_metadata.clone().unwrap_or_default()),
        status => match status.and_then(|s| s.attach_error.as_ref()) {
            Some(error) => Err(fail(error.message.clone().unwrap_or_default(), true)),
            None => {
                let waits =
                    format!("timed out waiting for external-attacher of {driver} CSI driver to attach volume {handle}");
                Err(fail(format!("{waits}; VolumeAttachment {name} does not say attached{hint}"), false))
            }
        },
    }
}

/// A persistent volume of a driver, as a pod uses it. `read_only`: as the claim's use says.
pub(crate) fn persistent(
    pod: &Pod,
    volume: &PersistentVolume,
    read_only: bool,
    inputs: &Inputs,
) -> Result<Option<Resolved>, VolumeError> {
    let Some(spec) = &volume.spec else { return Ok(None) };
    let Some(s) = &spec.csi else { return Ok(None) };
    let object = object(&s.driver, inputs)?;
    check_mode(&s.driver, object, "Persistent")?;
    let block = spec.volume_mode.as_deref() == Some("Block");
    let source = CsiSource {
        driver: s.driver.clone(),
        handle: s.volume_handle.clone(),
        name: volume.metadata.name.clone().unwrap_or_default(),
        ephemeral: false,
        block,
        read_only,
        fs_type: s.fs_type.clone().unwrap_or_default(),
        access_modes: spec.access_modes.clone().unwrap_or_default(),
        mount_options: spec.mount_options.clone().filter(|_| !block).unwrap_or_default(),
        attributes: s.volume_attributes.clone().unwrap_or_default(),
        attaches: attach_required(object),
        publish_context: BTreeMap::new(),
        stage_secret: secret(s.node_stage_secret_ref.as_ref()),
        publish_secret: secret(s.node_publish_secret_ref.as_ref()),
        expand_secret: secret(s.node_expand_secret_ref.as_ref()),
        pod: pod_of(pod),
        pod_info: false,
        tokens: Vec::new(),
        tokens_in_secrets: false,
        fs_group_policy: FsGroupPolicy::default(),
        republish: false,
    };
    let mut source = with_settings(source, object);
    source.publish_context = attached(&source, inputs)?;
    let mount_options = source.mount_options.clone();
    Ok(Some(Resolved { source: Source::Csi(Box::new(source)), read_only, mount_options }))
}

/// A pod's own volume of a driver.
pub(crate) fn inline(pod: &Pod, name: &str, s: &CSIVolumeSource, inputs: &Inputs) -> Result<Resolved, VolumeError> {
    let object = object(&s.driver, inputs)?;
    check_mode(&s.driver, object, "Ephemeral")?;
    let owner = pod_of(pod);
    let namespace = owner.namespace.clone();
    let publish_secret = s.node_publish_secret_ref.as_ref().map(|r| SecretRef { namespace, name: r.name.clone() });
    let read_only = s.read_only == Some(true);
    let source = CsiSource {
        driver: s.driver.clone(),
        handle: format!("csi-{}", digest(&[&owner.uid, name])),
        name: name.to_owned(),
        ephemeral: true,
        block: false,
        read_only,
        fs_type: s.fs_type.clone().unwrap_or_default(),
        access_modes: vec!["ReadWriteOnce".into()],
        mount_options: Vec::new(),
        attributes: s.volume_attributes.clone().unwrap_or_default(),
        attaches: false,
        publish_context: BTreeMap::new(),
        stage_secret: None,
        publish_secret: publish_secret.filter(|s| !s.name.is_empty()),
        expand_secret: None,
        pod: owner,
        pod_info: false,
        tokens: Vec::new(),
        tokens_in_secrets: false,
        fs_group_policy: FsGroupPolicy::default(),
        republish: false,
    };
    let source = with_settings(source, object);
    Ok(Resolved { source: Source::Csi(Box::new(source)), read_only, mount_options: Vec::new() })
}
