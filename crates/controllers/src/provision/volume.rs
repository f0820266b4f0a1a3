//! A volume as it is asked for, and the object of one that was made.
use std::collections::BTreeMap;

use api::{
    quantity::said,
    reclaim::{MIGRATED_TO, PROVISIONED_BY},
};
use csi::{AccessMode, AccessType, BlockVolume, ControllerRpcType, Facts, Mode, MountVolume, Volume, VolumeCapability};
use k8s_openapi::{
    api::{
        core::v1::{
            CSIPersistentVolumeSource, ObjectReference, PersistentVolume, PersistentVolumeClaim,
            PersistentVolumeClaimSpec, PersistentVolumeSpec,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::{Value, json};

use super::{
    class::{Parameters, Secret},
    place,
};
use crate::{claim::requested, decision::Meta, reclaim::FINALIZER};

/// How the attributes begin that are notes.
const FOR_PEOPLE: &str = "holdfast.dev/";

/// What a driver is asked that a volume can do: one capability for each access mode of the claim.
///
/// # Errors
/// A sentence about an access mode that CSI has no word for.
pub(super) fn capabilities(
    claim: &PersistentVolumeClaimSpec,
    driver: &Facts,
    fs_type: &str,
    mount_options: &[String],
) -> Result<Vec<VolumeCapability>, String> {
    let block = claim.volume_mode.as_deref() == Some("Block");
    let several = driver.can(ControllerRpcType::SingleNodeMultiWriter);
    let access_type = if block {
        AccessType::Block(BlockVolume {})
    } else {
        AccessType::Mount(MountVolume {
            fs_type: fs_type.to_owned(),
            mount_flags: mount_options.to_vec(),
            volume_mount_group: String::new(),
        })
    };
    let modes = claim.access_modes.iter().flatten().map(|mode| {
        let mode = access_mode(mode, several).ok_or_else(|| format!("unsupported AccessMode {mode:?}"))?;
        let access_mode = Some(AccessMode { mode: mode.into() });
        Ok(VolumeCapability { access_type: Some(access_type.clone()), access_mode })
    });
    modes.collect()
}

/// CSI's word for an access mode. `several`: the driver tells one pod alone from one node alone.
pub(crate) fn access_mode(mode: &str, several: bool) -> Option<Mode> {
    Some(match mode {
        "ReadWriteOnce" if several => Mode::SingleNodeMultiWriter,
        "ReadWriteOncePod" if several => Mode::SingleNodeSingleWriter,
        "ReadWriteOnce" | "ReadWriteOncePod" => Mode::SingleNodeWriter,
        "ReadOnlyMany" => Mode::MultiNodeReaderOnly,
        "ReadWriteMany" => Mode::MultiNodeMultiWriter,
        _ => return None,
    })
}

/// The object of a volume that a driver made for a claim: of a class by an in-tree name, one that the plugin could have made.
///
/// # Errors
/// A sentence about the class, or about an answer of the driver that the in-tree plugin has no word for.
pub(super) fn object(
    class: &StorageClass,
    claim: (&Meta, &PersistentVolumeClaim),
    driver: &str,
    made: &Volume,
) -> Result<Value, String> {
    let translated = in_tree::class_to_csi(class).map_err(|e| e.to_string())?;
    let mut object = by_driver(&translated, claim, driver, made)?;
    if in_tree::driver_of(&class.provisioner).is_some() {
        object = in_tree::volume_from_csi(&object).map_err(|e| e.to_string())?.unwrap_or(object);
        let annotations = object.metadata.annotations.get_or_insert_default();
        annotations.insert(PROVISIONED_BY.to_owned(), class.provisioner.clone());
        annotations.insert(MIGRATED_TO.to_owned(), driver.to_owned());
    }
    let mut object = serde_json::to_value(object).unwrap_or_default();
    object["apiVersion"] = json!("v1");
    object["kind"] = json!("PersistentVolume");
    Ok(object)
}

/// # Errors
/// See [`Parameters`].
fn by_driver(
    class: &StorageClass,
    (meta, claim): (&Meta, &PersistentVolumeClaim),
    driver: &str,
    made: &Volume,
) -> Result<PersistentVolume, String> {
    let parameters = Parameters::of(class)?;
    let name = super::name_for(meta);
    let secret = |purpose| parameters.reference(purpose, &name, claim);
    let spec = claim.spec.clone().unwrap_or_default();
    let block = spec.volume_mode.as_deref() == Some("Block");
    let policy = class.reclaim_policy.clone().unwrap_or_else(|| "Delete".into());
    let mut annotations = BTreeMap::from([(PROVISIONED_BY.to_owned(), driver.to_owned())]);
    if let Some((namespace, name)) = parameters.secret(Secret::Provisioner, &name, claim)? {
        annotations.insert(crate::reclaim::SECRET_NAME.into(), name);
        annotations.insert(crate::reclaim::SECRET_NAMESPACE.into(), namespace);
    }
    // A driver that says nothing about the size has made what it was asked for.
    let size = if made.capacity_bytes > 0 { said(made.capacity_bytes) } else { requested(claim).to_string() };
    let source = CSIPersistentVolumeSource {
        driver: driver.to_owned(),
        volume_handle: made.volume_id.clone(),
        fs_type: Some(parameters.fs_type.clone()).filter(|t| !block && !t.is_empty()),
        volume_attributes: (!made.volume_context.is_empty()).then(|| made.volume_context.clone()),
        controller_publish_secret_ref: secret(Secret::ControllerPublish)?,
        controller_expand_secret_ref: secret(Secret::ControllerExpand)?,
        node_stage_secret_ref: secret(Secret::NodeStage)?,
        node_publish_secret_ref: secret(Secret::NodePublish)?,
        node_expand_secret_ref: secret(Secret::NodeExpand)?,
        ..Default::default()
    };
    // What our drivers say of a volume to people, who look at the object first.
    let notes = made.volume_context.iter().filter(|(key, _)| key.starts_with(FOR_PEOPLE));
    annotations.extend(notes.map(|(key, value)| (key.clone(), value.clone())));
    Ok(PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            annotations: Some(annotations),
            finalizers: (policy == "Delete").then(|| vec![FINALIZER.to_owned()]),
            ..Default::default()
        },
        spec: Some(PersistentVolumeSpec {
            capacity: Some(BTreeMap::from([(
                "storage".to_owned(),
                k8s_openapi::apimachinery::pkg::api::resource::Quantity(size),
            )])),
            access_modes: spec.access_modes,
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("PersistentVolumeClaim".into()),
                namespace: Some(meta.key.namespace.to_string()),
                name: Some(meta.key.name.to_string()),
                uid: Some(meta.uid.clone()),
                resource_version: Some(meta.resource_version.clone()),
                ..Default::default()
            }),
            csi: Some(source),
            mount_options: class.mount_options.clone().filter(|_| !block),
            node_affinity: place::affinity(&made.accessible_topology),
            persistent_volume_reclaim_policy: Some(policy),
            storage_class_name: class.metadata.name.clone(),
            volume_attributes_class_name: spec.volume_attributes_class_name.filter(|n| !n.is_empty()),
            volume_mode: spec.volume_mode,
            ..Default::default()
        }),
        status: None,
    })
}
