//! From a `flexVolume` source, of a persistent volume or of a pod, to what a driver is told. Pure.
use std::collections::BTreeMap;

use api::Quantity;
use k8s_openapi::api::core::v1::{FlexVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod};

use crate::{
    contract::{Inputs, Resolved, Source},
    csi_source::{PodOf, pod_of},
    drivers::SecretRef,
};

/// A volume of a program on the node. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlexVolume {
    /// `vendor/driver`, or `driver`.
    pub driver: String,
    /// Of the persistent volume, or of a pod's own volume that pod's name for it.
    pub name: String,
    /// It is a persistent volume.
    pub persistent: bool,
    /// Empty: the driver's choice.
    pub fs_type: String,
    pub read_only: bool,
    pub options: BTreeMap<String, String>,
    pub secret: Option<SecretRef>,
    pub pod: PodOf,
    /// The name of this node.
    pub node: String,
    /// What the claim was told that it has, in bytes; 0 where that is not known.
    pub has_bytes: u64,
}

/// A pod's own volume.
pub(crate) fn inline(pod: &Pod, name: &str, s: &FlexVolumeSource, inputs: &Inputs) -> Resolved {
    let owner = pod_of(pod);
    let secret = s.secret_ref.as_ref().filter(|r| !r.name.is_empty());
    let secret = secret.map(|r| SecretRef { namespace: owner.namespace.clone(), name: r.name.clone() });
    let read_only = s.read_only == Some(true);
    let source = FlexVolume {
        driver: s.driver.clone(),
        name: name.to_owned(),
        persistent: false,
        fs_type: s.fs_type.clone().unwrap_or_default(),
        read_only,
        options: s.options.clone().unwrap_or_default(),
        secret,
        pod: owner,
        node: inputs.node_name.clone(),
        has_bytes: 0,
    };
    Resolved { source: Source::Flex(Box::new(source)), read_only, mount_options: Vec::new() }
}

/// A persistent volume of a driver, as a pod uses it by its claim; `None`: it is of another kind.
pub(crate) fn persistent(
    pod: &Pod,
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    read_only: bool,
    inputs: &Inputs,
) -> Option<Resolved> {
    let spec = volume.spec.as_ref()?;
    let s = spec.flex_volume.as_ref().filter(|_| spec.volume_mode.as_deref() != Some("Block"))?;
    let owner = pod_of(pod);
    let filled = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    let secret = s.secret_ref.as_ref().and_then(|r| {
        let namespace = filled(&r.namespace).unwrap_or_else(|| owner.namespace.clone());
        Some(SecretRef { namespace, name: filled(&r.name)? })
    });
    let has = claim.status.as_ref().and_then(|s| s.capacity.as_ref()?.get("storage"));
    let has = has.and_then(|q| Quantity::try_from(q).ok()).and_then(|q| u64::try_from(q.value()).ok());
    // Upstream looks at the claim's use alone; who says of a volume that it is only read means it.
    let read_only = read_only || s.read_only == Some(true);
    let source = FlexVolume {
        driver: s.driver.clone(),
        name: volume.metadata.name.clone().unwrap_or_default(),
        persistent: true,
        fs_type: s.fs_type.clone().unwrap_or_default(),
        read_only,
        options: s.options.clone().unwrap_or_default(),
        secret,
        pod: owner,
        node: inputs.node_name.clone(),
        has_bytes: has.unwrap_or_default(),
    };
    let mount_options = spec.mount_options.clone().unwrap_or_default();
    Some(Resolved { source: Source::Flex(Box::new(source)), read_only, mount_options })
}
