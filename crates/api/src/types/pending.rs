//! Kinds that so far have only what every kind has.
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1 as apps, batch::v1 as batch, coordination::v1 as coordination, core::v1 as core};
use k8s_openapi::api::{scheduling::v1 as scheduling, storage::v1 as storage};
use serde_json::Value;

use super::{AGE, NAME};
use crate::age::age;
use crate::contract::Column;
use crate::field::Errors;
use crate::typed::Rules;

macro_rules! generic {
    ($($kind:ty: $status:literal;)*) => {$(
        impl Rules for $kind {
            const COLUMNS: &'static [Column] = &[NAME, AGE];
            const STATUS: bool = $status;
            fn default(&mut self) {}
            fn validate(&self, _e: &mut Errors) {}
            fn row(&self, now: Timestamp) -> Vec<Value> {
                vec![self.metadata.name.clone().into(), age(self.metadata.creation_timestamp.as_ref(), now).into()]
            }
        }
    )*};
}

generic! {
    core::ConfigMap: false;
    core::Endpoints: false;
    core::Event: false;
    core::LimitRange: false;
    core::Namespace: true;
    core::Node: true;
    core::PersistentVolumeClaim: true;
    core::PersistentVolume: true;
    core::Pod: true;
    core::ResourceQuota: true;
    core::Secret: false;
    core::ServiceAccount: false;
    core::Service: true;
    apps::DaemonSet: true;
    apps::Deployment: true;
    apps::ReplicaSet: true;
    apps::StatefulSet: true;
    batch::Job: true;
    coordination::Lease: false;
    scheduling::PriorityClass: false;
    storage::CSIDriver: false;
    storage::CSINode: false;
    storage::CSIStorageCapacity: false;
    storage::StorageClass: false;
    storage::VolumeAttachment: true;
    storage::VolumeAttributesClass: false;
}
