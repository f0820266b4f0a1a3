//! The effects: watching the API, driving the runtime and the volumes, telling the API what happened.
pub mod attach;
pub mod csi;
pub mod events;
pub mod evict;
pub mod follow;
pub mod growth;
pub mod grpc_health;
pub mod holders;
pub mod hooks;
pub mod image_volumes;
pub mod images;
mod learn;
pub mod objects;
pub mod pod_files;
pub mod pod_volumes;
pub mod prober;
pub mod reclaim;
pub mod request;
pub mod rotate;
pub mod scratch;
pub mod start;
pub mod status_writer;
pub mod stop;
mod volume_failure;
pub mod volume_stats;
mod work;
pub mod worker;
pub mod writable;

use std::sync::Arc;

use base::Clock;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use runtime::Runtime;
use serde_json::{Value, json};
use volumes::PodVolumes;

use crate::{Config, machine::Capacity};

/// What all parts of one node share.
pub struct Shared {
    pub config: Config,
    pub client: kube::Client,
    pub runtime: Arc<dyn Runtime>,
    pub volumes: Arc<PodVolumes>,
    pub clock: Arc<dyn Clock>,
    pub events: events::Recorder,
    pub objects: objects::Objects,
    pub images: images::Images,
    pub holders: holders::Holders,
    pub attachments: attach::Attachments,
    pub csi: csi::State,
    pub volume_stats: volume_stats::Latest,
    pub capacity: Capacity,
    pub following: follow::Following,
}

impl Shared {
    /// Addresses of the node as text, primary first.
    pub fn host_ips(&self) -> Vec<String> {
        self.config.addresses.iter().map(ToString::to_string).collect()
    }
    /// The typed API of one namespace.
    pub fn api<K>(&self, namespace: &str) -> kube::Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        <K as kube::Resource>::DynamicType: Default,
    {
        kube::Api::namespaced(self.client.clone(), namespace)
    }
}

/// Makes a merge patch hold for the state of the object that was read, and no other.
fn pinned(meta: &ObjectMeta, mut patch: Value) -> Value {
    patch["metadata"]["resourceVersion"] = json!(meta.resource_version);
    patch["metadata"]["uid"] = json!(meta.uid);
    patch
}

/// Name, namespace and UID of a pod's object.
pub fn identity(pod: &Pod) -> (&str, &str, &str) {
    let m = &pod.metadata;
    (
        m.name.as_deref().unwrap_or_default(),
        m.namespace.as_deref().unwrap_or_default(),
        m.uid.as_deref().unwrap_or_default(),
    )
}
