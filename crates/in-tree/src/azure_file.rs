//! File shares of Microsoft's cloud.
use k8s_openapi::api::{
    core::v1::{
        AzureFilePersistentVolumeSource, CSIPersistentVolumeSource, PersistentVolume, PersistentVolumeSpec,
        SecretReference, Volume,
    },
    storage::v1::StorageClass,
};

use crate::{Plugin, Why, annotation, inline, map, source, spec};

pub struct AzureFile;

const DRIVER: &str = "file.csi.azure.com";
const RESOURCE_GROUP: &str = "kubernetes.io/azure-file-resource-group";

struct Share<'a> {
    group: &'a str,
    secret: &'a str,
    /// Of the secret.
    namespace: &'a str,
    name: &'a str,
    /// What tells two mounts of a share apart.
    volume: &'a str,
    read_only: Option<bool>,
}

impl Share<'_> {
    /// `GROUP#ACCOUNT#SHARE#VOLUME#NAMESPACE`, the account as the secret's name says it.
    fn csi(&self) -> CSIPersistentVolumeSource {
        let account =
            self.secret.split_once("azure-storage-account-").and_then(|(_, rest)| Some(rest.rsplit_once("-secret")?.0));
        let account = account.filter(|a| !a.is_empty()).unwrap_or(self.secret);
        let handle = [self.group, account, self.name, self.volume, self.namespace].join("#");
        CSIPersistentVolumeSource {
            read_only: self.read_only,
            volume_attributes: Some(map([("sharename", self.name)])),
            node_stage_secret_ref: Some(SecretReference {
                name: Some(self.secret.to_owned()),
                namespace: Some(self.namespace.to_owned()),
            }),
            ..source(DRIVER, handle)
        }
    }
}

/// Group, account and share of a handle.
fn parts(handle: &str) -> Result<(&str, &str, &str), Why> {
    let parts: Vec<&str> = handle.split('#').collect();
    match parts[..] {
        [group, account, share, ..] => Ok((group, account, share)),
        _ => Err(format!("handle {handle:?} is not of the form GROUP#ACCOUNT#SHARE")),
    }
}

impl Plugin for AzureFile {
    fn name(&self) -> &'static str {
        "kubernetes.io/azure-file"
    }

    fn driver(&self) -> &'static str {
        DRIVER
    }

    fn made(&self, spec: &PersistentVolumeSpec) -> bool {
        spec.azure_file.is_some()
    }

    fn is_inline(&self, volume: &Volume) -> bool {
        volume.azure_file.is_some()
    }

    /// The driver knows the plugin's parameters.
    fn class(&self, _: &mut StorageClass) -> Result<(), Why> {
        Ok(())
    }

    fn inline(&self, volume: &Volume, namespace: &str) -> Result<PersistentVolume, Why> {
        let file = volume.azure_file.clone().unwrap_or_default();
        let share = Share {
            group: "",
            secret: &file.secret_name,
            namespace: if namespace.is_empty() { "default" } else { namespace },
            name: &file.share_name,
            volume: &volume.name,
            read_only: file.read_only,
        };
        let source = share.csi();
        Ok(inline(source.volume_handle.clone(), "ReadWriteMany", source))
    }

    fn to_csi(&self, volume: &mut PersistentVolume) -> Result<(), Why> {
        let file = spec(volume).azure_file.take().unwrap_or_default();
        let claim = spec(volume).claim_ref.as_ref().and_then(|r| r.namespace.clone());
        let namespace = file.secret_namespace.or(claim).filter(|n| !n.is_empty());
        let namespace = namespace.ok_or("neither secretNamespace nor a claimRef says where its secret is")?;
        let share = Share {
            group: annotation(volume, RESOURCE_GROUP).unwrap_or_default(),
            secret: &file.secret_name,
            namespace: &namespace,
            name: &file.share_name,
            volume: volume.metadata.name.as_deref().unwrap_or_default(),
            read_only: file.read_only,
        };
        let source = share.csi();
        spec(volume).csi = Some(source);
        Ok(())
    }

    fn back(&self, volume: &mut PersistentVolume, source: CSIPersistentVolumeSource) -> Result<(), Why> {
        let attribute = |name: &str| {
            let all = source.volume_attributes.iter().flatten();
            all.filter(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone()).next()
        };
        let mut file = AzureFilePersistentVolumeSource {
            read_only: source.read_only,
            secret_name: attribute("secretname").unwrap_or_default(),
            secret_namespace: attribute("secretnamespace"),
            share_name: attribute("sharename").unwrap_or_default(),
        };
        if let Some(SecretReference { name: Some(name), namespace }) =
            source.node_stage_secret_ref.clone().filter(|s| s.name.as_deref().is_some_and(|n| !n.is_empty()))
        {
            file.secret_name = name;
            file.secret_namespace = Some(namespace.unwrap_or_default());
        }
        if file.share_name.is_empty() || file.secret_name.is_empty() {
            let (group, account, share) = parts(&source.volume_handle)?;
            if file.share_name.is_empty() {
                share.clone_into(&mut file.share_name);
            }
            if file.secret_name.is_empty() {
                file.secret_name = format!("azure-storage-account-{account}-secret");
            }
            if !group.is_empty() {
                let annotations = volume.metadata.annotations.get_or_insert_default();
                annotations.insert(RESOURCE_GROUP.to_owned(), group.to_owned());
            }
        }
        file.secret_namespace.get_or_insert_with(|| "default".to_owned());
        spec(volume).azure_file = Some(file);
        Ok(())
    }
}
