//! `status.volumesInUse` of the node: the attached volumes that it has, or is about to have, set up. Who detaches volumes
//! leaves these alone, so a volume is told of before it is used, and until nothing of it is left here.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use base::chain;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use parking_lot::Mutex;
use serde_json::json;

use crate::agent::Shared;

/// The volumes in use, by upstream's name for each, with the UIDs of their pods.
#[derive(Default)]
pub struct InUse {
    users: Mutex<BTreeMap<String, BTreeSet<String>>>,
    /// What the API was told last by this process.
    told: tokio::sync::Mutex<Option<Vec<String>>>,
}

/// Upstream's name for a volume among all volumes.
pub fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

impl InUse {
    /// Takes in what an earlier process has set up.
    pub fn adopt(&self, volume: String, pod_uid: String) {
        self.users.lock().entry(volume).or_default().insert(pod_uid);
    }

    /// What the status says.
    pub fn list(&self) -> Vec<String> {
        self.users.lock().keys().cloned().collect()
    }
}

/// Tells of a volume that a pod is about to use. It must not be used before this succeeds.
pub async fn take(shared: &Shared, volume: String, pod_uid: &str) -> Result<(), kube::Error> {
    shared.csi.in_use.adopt(volume, pod_uid.to_owned());
    tell(shared).await
}

/// Tells that nothing is left of a pod.
pub fn release(shared: &Arc<Shared>, pod_uid: &str) {
    let mut changed = false;
    shared.csi.in_use.users.lock().retain(|_, pods| {
        changed |= pods.remove(pod_uid);
        !pods.is_empty()
    });
    if !changed {
        return;
    }
    let shared = shared.clone();
    tokio::spawn(async move {
        if let Err(error) = tell(&shared).await {
            // The status is written again soon enough, and until then the volume merely stays attached.
            tracing::debug!(error = chain(&error), "could not tell which volumes are in use");
        }
    });
}

async fn tell(shared: &Shared) -> Result<(), kube::Error> {
    let mut told = shared.csi.in_use.told.lock().await;
    let now = shared.csi.in_use.list();
    if told.as_ref() == Some(&now) {
        return Ok(());
    }
    *told = None;
    let nodes: Api<Node> = Api::all(shared.client.clone());
    let list = if now.is_empty() { json!(null) } else { json!(now) };
    let patch = Patch::Merge(json!({ "status": { "volumesInUse": list } }));
    nodes.patch_status(&shared.config.node_name, &PatchParams::default(), &patch).await?;
    *told = Some(now);
    Ok(())
}
