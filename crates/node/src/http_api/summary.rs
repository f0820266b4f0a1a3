//! `GET /stats/summary`: what runs here and what it uses.
use std::sync::Arc;

use axum::{extract::State, response::Response};
use runtime::ContainerState;
use serde_json::json;

use crate::{Node, agent::identity};

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
        pods.push(json!({
            "podRef": {"name": name, "namespace": namespace, "uid": uid},
            "startTime": view.status.start_time, "containers": containers,
        }));
    }
    super::json(&json!({"node": {"nodeName": node.shared.config.node_name}, "pods": pods}))
}
