//! `GET /stats/summary`: what runs here and what it uses.
use std::sync::Arc;

use axum::{extract::State, response::Response};
use runtime::ContainerState;
use serde_json::json;

use crate::{
    Node,
    agent::{identity, volume_stats::VolumeStats},
};

pub async fn summary(State(node): State<Arc<Node>>) -> Response {
    let views: Vec<_> = node.workers.lock().values().map(|h| h.view.borrow().clone()).collect();
    let now = node.shared.clock.now();
    let mut pods = Vec::new();
    for view in views {
        let (name, namespace, uid) = identity(&view.pod);
        let mut containers = Vec::new();
        for c in view.sandbox.iter().flat_map(|s| &s.containers) {
            let ContainerState::Running { started_at, .. } = &c.state else { continue };
            // One that ended meanwhile has no figures.
            let Ok(usage) = node.shared.runtime.usage(&c.id).await else { continue };
            containers.push(json!({
                "name": c.name, "startTime": started_at,
                "cpu": {"time": now, "usageCoreNanoSeconds": usage.cpu_nanoseconds},
                "memory": {"time": now, "workingSetBytes": usage.memory_working_set_bytes},
            }));
        }
        let mut volumes = Vec::new();
        for VolumeStats { name, claim, at, stats, .. } in node.shared.volume_stats.of(uid) {
            let mut one = json!({
                "time": at, "name": name,
                "availableBytes": stats.available_bytes, "capacityBytes": stats.total_bytes,
                "usedBytes": stats.used_bytes, "inodesFree": stats.free_inodes, "inodes": stats.inodes,
                "inodesUsed": stats.used_inodes,
            });
            if let Some(claim) = claim {
                one["pvcRef"] = json!({"name": claim, "namespace": namespace});
            }
            if let Some(health) = stats.healthy {
                one["volumeHealthStats"] = json!({"abnormal": health.is_err()});
            }
            volumes.push(one);
        }
        let mut described = json!({
            "podRef": {"name": name, "namespace": namespace, "uid": uid},
            "startTime": view.status.start_time, "containers": containers,
        });
        if !volumes.is_empty() {
            described["volume"] = volumes.into();
        }
        pods.push(described);
    }
    super::json(&json!({"node": {"nodeName": node.shared.config.node_name}, "pods": pods}))
}
