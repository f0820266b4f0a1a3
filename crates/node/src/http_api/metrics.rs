//! `GET /metrics`: the figures of claims' volumes, by a kubelet's names.
use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use volumes::Stats;

use crate::Node;

/// A figure: its name, what it means, and where it is from.
type Figure = (&'static str, &'static str, fn(&Stats) -> Option<u64>);

const FIGURES: [Figure; 7] = [
    ("capacity_bytes", "Capacity in bytes of the volume", |s| Some(s.total_bytes)),
    ("available_bytes", "Number of available bytes in the volume", |s| Some(s.available_bytes)),
    ("used_bytes", "Number of used bytes in the volume", |s| Some(s.used_bytes)),
    ("inodes", "Maximum number of inodes in the volume", |s| Some(s.inodes)),
    ("inodes_free", "Number of free inodes in the volume", |s| Some(s.free_inodes)),
    ("inodes_used", "Number of used inodes in the volume", |s| Some(s.used_inodes)),
    (
        "health_status_abnormal",
        "Abnormal volume health status. The count is either 1 or 0. 1 indicates the volume is unhealthy, 0 indicates \
         volume is healthy",
        |s| s.healthy.as_ref().map(|health| u64::from(health.is_err())),
    ),
];

pub async fn metrics(State(node): State<Arc<Node>>) -> Response {
    // Several pods may have one claim.
    let mut claims: BTreeMap<(String, String), Stats> = BTreeMap::new();
    for one in node.shared.volume_stats.all() {
        if let Some(claim) = one.claim {
            claims.insert((one.namespace, claim), one.stats);
        }
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text(&claims)).into_response()
}

fn text(claims: &BTreeMap<(String, String), Stats>) -> String {
    let mut text = String::new();
    for (name, help, value) in FIGURES {
        let name = format!("kubelet_volume_stats_{name}");
        // Writing to a string cannot fail; names of objects need no quoting.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for ((namespace, claim), stats) in claims {
            if let Some(value) = value(stats) {
                let _ = writeln!(text, "{name}{{namespace=\"{namespace}\",persistentvolumeclaim=\"{claim}\"}} {value}");
            }
        }
    }
    text
}

#[test]
fn figures_are_told_by_claim() {
    let stats = Stats { total_bytes: 9, healthy: Some(Err("gone".into())), ..Stats::default() };
    let told = text(&BTreeMap::from([(("ns".into(), "c".into()), stats)]));
    let has = |line: &str| assert!(told.lines().any(|l| l == line), "{line} in {told}");
    has("kubelet_volume_stats_capacity_bytes{namespace=\"ns\",persistentvolumeclaim=\"c\"} 9");
    has("kubelet_volume_stats_health_status_abnormal{namespace=\"ns\",persistentvolumeclaim=\"c\"} 1");
    has("# TYPE kubelet_volume_stats_inodes_free gauge");
}
