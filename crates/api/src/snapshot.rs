//! `snapshot.storage.k8s.io`: snapshots of volumes, what is behind them, and their classes. The type library has none of
//! these types, so they are defined here.
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::check::text;

/// The group of these kinds.
pub const GROUP: &str = "snapshot.storage.k8s.io";
/// Deletion policy: what is behind goes with the snapshot.
pub const DELETE: &str = "Delete";
/// Deletion policy: what is behind stays.
pub const RETAIN: &str = "Retain";

/// The annotation on the class of a driver's snapshots that name none.
const IS_DEFAULT: &str = "snapshot.storage.kubernetes.io/is-default-class";

/// Writes types as clients see them: fields in camel case, and none that is not set. In brackets: the fields that the
/// schema demands.
macro_rules! objects {
    ($($(#[$about:meta])* $name:ident $schema:tt [$($required:tt),*] {
        $($(#[$meaning:meta])* $field:ident: $type:ty,)*
    })*) => {$(
        $(#[$about])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase", default)]
        #[schemars(rename = $schema, transform = published, extend("required" = Vec::<&str>::from([$($required),*])))]
        pub struct $name {
            $($(#[$meaning])* #[serde(skip_serializing_if = "is_unset")] pub $field: $type,)*
        }
    )*};
}

objects! {
    /// A request for a snapshot of a claim's volume as it is now, or for one that exists already.
    VolumeSnapshot "io.k8s.storage.snapshot.v1.VolumeSnapshot" ["spec"] {
        /// The version of this representation.
        api_version: Option<String>,
        /// VolumeSnapshot.
        kind: Option<String>,
        /// Standard metadata.
        metadata: ObjectMeta,
        /// What is asked for.
        spec: VolumeSnapshotSpec,
        /// What became of it. Only to be believed where the VolumeSnapshotContent points back at this object.
        status: Option<VolumeSnapshotStatus>,
    }
    /// What a VolumeSnapshot asks for.
    VolumeSnapshotSpec "io.k8s.storage.snapshot.v1.VolumeSnapshotSpec" ["source"] {
        /// Where the snapshot comes from; cannot be changed.
        source: Option<VolumeSnapshotSource>,
        /// The VolumeSnapshotClass to make it with; without one, the default class of the volume's driver.
        volume_snapshot_class_name: Option<String>,
    }
    /// Where a snapshot comes from: exactly one of its fields is set.
    VolumeSnapshotSource "io.k8s.storage.snapshot.v1.VolumeSnapshotSource" [] {
        /// The claim, of the same namespace, whose volume a snapshot is to be made of.
        persistent_volume_claim_name: Option<String>,
        /// The VolumeSnapshotContent of a snapshot that exists already.
        volume_snapshot_content_name: Option<String>,
    }
    /// What became of a VolumeSnapshot.
    VolumeSnapshotStatus "io.k8s.storage.snapshot.v1.VolumeSnapshotStatus" [] {
        /// The VolumeSnapshotContent that it is bound to, or is about to be.
        bound_volume_snapshot_content_name: Option<String>,
        /// The moment that the snapshot shows, as the driver tells it.
        creation_time: Option<Time>,
        /// Whether a volume can be made from it.
        ready_to_use: Option<bool>,
        /// The least size of a volume made from it.
        restore_size: Option<Quantity>,
        /// What went wrong last; gone after success.
        error: Option<VolumeSnapshotError>,
        /// The VolumeGroupSnapshot that it is part of.
        volume_group_snapshot_name: Option<String>,
    }
    /// What went wrong when a snapshot was made.
    VolumeSnapshotError "io.k8s.storage.snapshot.v1.VolumeSnapshotError" [] {
        /// When.
        time: Option<Time>,
        /// What; nothing secret.
        message: Option<String>,
    }
    /// A snapshot as the storage system has it.
    VolumeSnapshotContent "io.k8s.storage.snapshot.v1.VolumeSnapshotContent" ["spec"] {
        /// The version of this representation.
        api_version: Option<String>,
        /// VolumeSnapshotContent.
        kind: Option<String>,
        /// Standard metadata.
        metadata: ObjectMeta,
        /// What the snapshot is and whose.
        spec: VolumeSnapshotContentSpec,
        /// What the driver tells of it.
        status: Option<VolumeSnapshotContentStatus>,
    }
    /// What a VolumeSnapshotContent is and whose.
    VolumeSnapshotContentSpec "io.k8s.storage.snapshot.v1.VolumeSnapshotContentSpec"
        ["deletionPolicy", "driver", "source", "volumeSnapshotRef"] {
        /// The VolumeSnapshot that it is for. The binding counts where that one names this object too.
        volume_snapshot_ref: ObjectReference,
        /// Whether the snapshot goes with its VolumeSnapshot (Delete) or stays (Retain).
        deletion_policy: String,
        /// The CSI driver that has the snapshot.
        driver: String,
        /// The VolumeSnapshotClass that it was made with, which may have changed or gone since.
        volume_snapshot_class_name: Option<String>,
        /// Whether it is to be made or exists already; cannot be changed.
        source: Option<VolumeSnapshotContentSource>,
        /// The mode of the volume that it is of, Filesystem or Block, where that is known; cannot be changed.
        source_volume_mode: Option<String>,
    }
    /// What a snapshot is made from: exactly one of its fields is set.
    VolumeSnapshotContentSource "io.k8s.storage.snapshot.v1.VolumeSnapshotContentSource" [] {
        /// The driver's name of the volume that a snapshot is to be made of.
        volume_handle: Option<String>,
        /// The driver's name of a snapshot that exists already.
        snapshot_handle: Option<String>,
    }
    /// What the driver tells of a snapshot.
    VolumeSnapshotContentStatus "io.k8s.storage.snapshot.v1.VolumeSnapshotContentStatus" [] {
        /// The driver's name of the snapshot; none while it is not made.
        snapshot_handle: Option<String>,
        /// The moment that it shows, in nanoseconds since 1970 began (UTC).
        creation_time: Option<i64>,
        /// The least size in bytes of a volume made from it.
        restore_size: Option<i64>,
        /// Whether a volume can be made from it.
        ready_to_use: Option<bool>,
        /// What went wrong last; gone after success.
        error: Option<VolumeSnapshotError>,
        /// The driver's name of the group snapshot that it is part of.
        volume_group_snapshot_handle: Option<String>,
    }
    /// How snapshots are made.
    VolumeSnapshotClass "io.k8s.storage.snapshot.v1.VolumeSnapshotClass" ["deletionPolicy", "driver"] {
        /// The version of this representation.
        api_version: Option<String>,
        /// VolumeSnapshotClass.
        kind: Option<String>,
        /// Standard metadata.
        metadata: ObjectMeta,
        /// The CSI driver that makes them.
        driver: String,
        /// What the driver is told.
        parameters: Option<BTreeMap<String, String>>,
        /// Whether a snapshot goes with its VolumeSnapshot (Delete) or stays (Retain).
        deletion_policy: String,
    }
}

fn is_unset<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Brings a derived schema to the form of the type library's: no field is null, and none has a default.
fn published(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else { return };
    if object.get("required").and_then(Value::as_array).is_some_and(Vec::is_empty) {
        object.remove("required");
    }
    let Some(Value::Object(fields)) = object.get_mut("properties") else { return };
    for field in fields.values_mut().filter_map(Value::as_object_mut) {
        field.remove("default");
        if let Some(Value::Array(choices)) = field.remove("anyOf")
            && let Some(Value::Object(choice)) = choices.into_iter().next()
        {
            field.extend(choice);
        }
        if let Some(Value::Array(types)) = field.get("type")
            && let Some(first) = types.first().cloned()
        {
            field.insert("type".to_owned(), first);
        }
    }
}

impl VolumeSnapshot {
    /// The claim to make it of.
    pub fn claim_name(&self) -> Option<&str> {
        self.spec.source.as_ref()?.persistent_volume_claim_name.as_deref()
    }
    /// The content that exists already.
    pub fn content_name(&self) -> Option<&str> {
        self.spec.source.as_ref()?.volume_snapshot_content_name.as_deref()
    }
    /// The content that it says it is bound to.
    pub fn bound_content(&self) -> Option<&str> {
        self.status.as_ref()?.bound_volume_snapshot_content_name.as_deref().filter(|name| !name.is_empty())
    }
    /// Whether it says that volumes can be made from it.
    pub fn is_ready(&self) -> bool {
        self.status.as_ref().and_then(|s| s.ready_to_use).unwrap_or(false)
    }
}

impl VolumeSnapshotContent {
    /// The volume to make it of.
    pub fn volume_handle(&self) -> Option<&str> {
        self.spec.source.as_ref()?.volume_handle.as_deref()
    }
    /// The snapshot that exists already.
    pub fn snapshot_handle(&self) -> Option<&str> {
        self.spec.source.as_ref()?.snapshot_handle.as_deref()
    }
    /// Whether it says that volumes can be made from it.
    pub fn is_ready(&self) -> bool {
        self.status.as_ref().and_then(|s| s.ready_to_use).unwrap_or(false)
    }
    /// Whether it is bound to this incarnation of a snapshot.
    pub fn is_for(&self, namespace: &str, name: &str, uid: &str) -> bool {
        let r = &self.spec.volume_snapshot_ref;
        text(&r.namespace) == namespace && text(&r.name) == name && text(&r.uid) == uid
    }
}

impl VolumeSnapshotClass {
    /// Whether its driver's snapshots without a class get this one.
    pub fn is_default(&self) -> bool {
        self.metadata.annotations.as_ref().and_then(|a| a.get(IS_DEFAULT)).is_some_and(|value| value == "true")
    }
}
