//! Volumes of Portworx.
use k8s_openapi::api::{
    core::v1::{
        CSIPersistentVolumeSource, PersistentVolume, PersistentVolumeSpec, PortworxVolumeSource, SecretReference,
        Volume,
    },
    storage::v1::StorageClass,
};

use crate::{Map, ONCE, Plugin, READ_MANY, Why, annotation, inline, source, spec};

pub struct Portworx;

const DRIVER: &str = "pxd.portworx.com";
const SECRET: &str = "openstorage.io/auth-secret-name";
const SECRET_NAMESPACE: &str = "openstorage.io/auth-secret-namespace";
/// What needs the secret.
const USERS: [&str; 6] =
    ["provisioner", "controller-publish", "node-publish", "node-stage", "controller-expand", "node-expand"];

impl Plugin for Portworx {
    fn name(&self) -> &'static str {
        "kubernetes.io/portworx-volume"
    }

    fn driver(&self) -> &'static str {
        DRIVER
    }

    fn made(&self, spec: &PersistentVolumeSpec) -> bool {
        spec.portworx_volume.is_some()
    }

    fn is_inline(&self, volume: &Volume) -> bool {
        volume.portworx_volume.is_some()
    }

    fn class(&self, class: &mut StorageClass) -> Result<(), Why> {
        let mut parameters = Map::new();
        for (name, value) in class.parameters.take().unwrap_or_default() {
            let end = match &*name.to_ascii_lowercase() {
                SECRET => "name",
                SECRET_NAMESPACE => "namespace",
                _ => {
                    parameters.insert(name, value);
                    continue;
                }
            };
            let all = USERS.map(|user| (format!("csi.storage.k8s.io/{user}-secret-{end}"), value.clone()));
            parameters.extend(all);
        }
        class.parameters = Some(parameters).filter(|p| !p.is_empty());
        Ok(())
    }

    fn inline(&self, volume: &Volume, _: &str) -> Result<PersistentVolume, Why> {
        let disk = volume.portworx_volume.clone().unwrap_or_default();
        let mode = if disk.read_only == Some(true) { READ_MANY } else { ONCE };
        let csi = CSIPersistentVolumeSource { fs_type: disk.fs_type, ..source(DRIVER, &*disk.volume_id) };
        Ok(inline(format!("{DRIVER}-{}", disk.volume_id), mode, csi))
    }

    fn to_csi(&self, volume: &mut PersistentVolume) -> Result<(), Why> {
        let disk = spec(volume).portworx_volume.take().unwrap_or_default();
        let named = |key| annotation(volume, key).map(str::to_owned);
        let secret = named(SECRET).zip(named(SECRET_NAMESPACE));
        let secret = secret.map(|(name, namespace)| SecretReference { name: Some(name), namespace: Some(namespace) });
        spec(volume).csi = Some(CSIPersistentVolumeSource {
            fs_type: disk.fs_type,
            controller_publish_secret_ref: secret.clone(),
            node_stage_secret_ref: secret.clone(),
            node_publish_secret_ref: secret.clone(),
            controller_expand_secret_ref: secret.clone(),
            node_expand_secret_ref: secret,
            ..source(DRIVER, disk.volume_id)
        });
        Ok(())
    }

    fn back(&self, volume: &mut PersistentVolume, source: CSIPersistentVolumeSource) -> Result<(), Why> {
        spec(volume).portworx_volume = Some(PortworxVolumeSource {
            volume_id: source.volume_handle,
            fs_type: source.fs_type,
            read_only: source.read_only,
        });
        Ok(())
    }
}
