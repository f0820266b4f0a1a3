//! `GET /stats/summary`: what runs here and what it uses.
use std::sync::Arc;

use axum::{extract::State, response::Response};
use jiff::Timestamp;
use runtime::ContainerState;
use rustix::fs::StatVfs;
use serde_json::{Value, json};

use crate::{
    Node,
    agent::{identity, volume_stats::VolumeStats},
};

pub async fn summary(State(node): State<Arc<Node>>) -> Response {
    let views: Vec<_> = node.workers.lock().values().map(|h| h.view.borrow().clone()).collect();
    let now = node.shared.clock.now();
    let layout = &node.shared.config.layout;
    let disk = rustix::fs::statvfs(layout.root()).ok();
    let mut pods = Vec::new();
    for view in views {
        let (name, namespace, uid) = identity(&view.pod);
        let scratch = node.shared.volume_stats.scratch(uid);
        let mut containers = Vec::new();
        for c in view.sandbox.iter().flat_map(|s| &s.containers) {
            let ContainerState::Running { started_at, .. } = &c.state else { continue };
            // One that ended meanwhile has no figures.
            let Ok(usage) = node.shared.runtime.usage(&c.id).await else { continue };
            let mut one = json!({
                "name": c.name, "startTime": started_at,
                "cpu": {"time": now, "usageCoreNanoSeconds": usage.cpu_nanoseconds},
                "memory": {"time": now, "workingSetBytes": usage.memory_working_set_bytes},
            });
            if let Some((at, of)) = scratch.as_ref().and_then(|(at, all)| Some((at, all.containers.get(&c.name)?))) {
                one["rootfs"] = filesystem(disk.as_ref(), *at, of.root_bytes);
                one["logs"] = filesystem(disk.as_ref(), *at, of.log_bytes);
            }
            containers.push(one);
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
        if let Some((at, scratch)) = scratch {
            described["ephemeral-storage"] = filesystem(disk.as_ref(), at, scratch.total_bytes());
        }
        pods.push(described);
    }
    let mut described = json!({"nodeName": node.shared.config.node_name});
    if let Some(disk) = &disk {
        let used = disk.f_blocks.saturating_sub(disk.f_bfree) * disk.f_frsize;
        described["fs"] = filesystem(Some(disk), now, used);
    }
    super::json(&json!({"node": described, "pods": pods}))
}

/// Figures of something on the node's disk.
fn filesystem(disk: Option<&StatVfs>, at: Timestamp, used_bytes: u64) -> Value {
    let mut figures = json!({"time": at, "usedBytes": used_bytes});
    if let Some(disk) = disk {
        figures["availableBytes"] = (disk.f_bavail * disk.f_frsize).into();
        figures["capacityBytes"] = (disk.f_blocks * disk.f_frsize).into();
        figures["inodesFree"] = disk.f_ffree.into();
        figures["inodes"] = disk.f_files.into();
    }
    figures
}
