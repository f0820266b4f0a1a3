//! `holdfast volume list`: objects of the API, joined with what the drivers of this machine keep.
use std::collections::BTreeMap;

use api::select::reaches;
use api::snapshot::VolumeSnapshotContent;
use driver::admin::Kept;
use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use serde::Serialize;

use super::{
    about,
    drivers::{Local, Place},
    object, quantity,
};
use crate::{
    client::{Error, get::align, is_not_found},
    errors::say,
};

/// One volume, or one claim that waits for its own. What nobody says is left out.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    claim: String,
    /// The PersistentVolume.
    #[serde(skip_serializing_if = "String::is_empty")]
    volume: String,
    driver: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    handle: String,
    /// As the object says it; without one, as the driver does.
    #[serde(skip_serializing_if = "String::is_empty")]
    size: String,
    /// What it takes of the machine's disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    used_bytes: Option<u64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    backend: String,
    /// Nodes that reach it; none: all do, or nobody knows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshots: Option<usize>,
    state: String,
    /// What is wrong with it, as its driver says.
    #[serde(skip_serializing_if = "String::is_empty")]
    trouble: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted_at: Option<jiff::Timestamp>,
}

pub async fn run(place: &Place, namespace: Option<String>, deleted: bool, output: &str) -> Result<(), Error> {
    let (drivers, silent) = place.locals().await;
    let mut kept = Vec::new();
    for driver in &drivers {
        kept.extend(driver.volumes().await?.into_iter().map(|kept| (driver, kept)));
    }
    let mut rows = volumes(place, &mut kept).await?;
    rows.extend(waiting(place).await?);
    rows.extend(kept.iter().filter(|(_, kept)| deleted || kept.deleted == 0).map(|(driver, kept)| alone(driver, kept)));
    rows.retain(|row| namespace.as_ref().is_none_or(|n| *n == row.namespace));
    let key = |r: &Row| (r.namespace.clone(), r.claim.clone(), r.deleted_at, r.volume.clone(), r.handle.clone());
    rows.sort_by_key(key);
    if drivers.is_empty() {
        let silent = silent.join("; ");
        eprintln!("What drivers know is left out: none of holdfast's answers on this machine ({silent}).");
    }
    match output {
        "json" => say(serde_json::to_string_pretty(&rows)?),
        _ => print(&rows),
    }
}

/// The objects of our volumes; takes what was found for them from `kept`.
async fn volumes(place: &Place, kept: &mut Vec<(&Local, Kept)>) -> Result<Vec<Row>, Error> {
    let nodes: Vec<Node> = place.list("/api/v1/nodes").await?;
    let snapshots = snapshots(place).await?;
    let all: Vec<PersistentVolume> = place.list(object::VOLUMES).await?;
    let mut rows = Vec::new();
    for volume in &all {
        let Some((driver, handle)) = object::source(volume).filter(|(driver, _)| object::is_ours(driver)) else {
            continue;
        };
        let is_it = |(by, kept): &(&Local, Kept)| {
            kept.deleted == 0 && by.name == driver && object::is_same(&driver, kept, &handle)
        };
        let found = kept.iter().position(is_it).map(|at| kept.swap_remove(at).1);
        let count =
            snapshots.as_ref().map(|counts| counts.get(&(driver.clone(), handle.clone())).copied().unwrap_or(0));
        rows.push(Row { snapshots: count, nodes: names(volume, &nodes), driver, handle, ..row(volume, found) });
    }
    Ok(rows)
}

fn row(volume: &PersistentVolume, kept: Option<Kept>) -> Row {
    let spec = volume.spec.clone().unwrap_or_default();
    let claim = spec.claim_ref.unwrap_or_default();
    let phase = volume.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_else(|| "Pending".into());
    let is_going = volume.metadata.deletion_timestamp.is_some();
    let mut row = Row {
        namespace: claim.namespace.unwrap_or_default(),
        claim: claim.name.unwrap_or_default(),
        volume: volume.metadata.name.clone().unwrap_or_default(),
        size: spec.capacity.and_then(|c| c.get("storage").map(|q| q.0.clone())).unwrap_or_default(),
        state: if is_going { "Terminating".into() } else { phase },
        ..Row::default()
    };
    if let Some(kept) = kept {
        row.used_bytes = used(&kept);
        row.backend = kept.backend;
        row.trouble = kept.trouble;
    }
    row
}

/// What a volume takes, where somebody counts it. A deleted directory is counted by nobody.
fn used(kept: &Kept) -> Option<u64> {
    (!kept.unlimited && (kept.deleted == 0 || kept.backend == "image")).then_some(kept.taken_bytes)
}

/// The nodes that reach a volume, unless all do.
fn names(volume: &PersistentVolume, nodes: &[Node]) -> Vec<String> {
    if volume.spec.as_ref().is_none_or(|s| s.node_affinity.is_none()) {
        return Vec::new();
    }
    nodes.iter().filter(|node| reaches(volume, node)).filter_map(|node| node.metadata.name.clone()).collect()
}

/// How many snapshots that can be used there are of each volume, by driver and handle; `None` where the server knows none.
async fn snapshots(place: &Place) -> Result<Option<BTreeMap<(String, String), usize>>, Error> {
    let path = format!("/apis/{}/v1/volumesnapshotcontents", api::snapshot::GROUP);
    let all: Vec<VolumeSnapshotContent> = match place.list(&path).await {
        Err(error) if is_not_found(&error) => return Ok(None),
        other => other?,
    };
    let mut counts = BTreeMap::new();
    for content in all.into_iter().filter(VolumeSnapshotContent::is_ready) {
        if let Some(handle) = content.spec.source.and_then(|s| s.volume_handle) {
            *counts.entry((content.spec.driver, handle)).or_default() += 1;
        }
    }
    Ok(Some(counts))
}

/// Claims of our classes that have no volume yet.
async fn waiting(place: &Place) -> Result<Vec<Row>, Error> {
    let classes: Vec<StorageClass> = place.list(object::CLASSES).await?;
    let driver_of = |name: &str| {
        let class = classes.iter().find(|c| c.metadata.name.as_deref() == Some(name))?;
        let driver = in_tree::driver_of(&class.provisioner).unwrap_or(&class.provisioner);
        object::is_ours(driver).then(|| driver.to_owned())
    };
    let claims: Vec<PersistentVolumeClaim> = place.list(object::CLAIMS).await?;
    let row = |claim: PersistentVolumeClaim| {
        let spec = claim.spec.unwrap_or_default();
        if spec.volume_name.as_ref().is_some_and(|v| !v.is_empty()) {
            return None;
        }
        let requests = spec.resources.and_then(|r| r.requests).unwrap_or_default();
        Some(Row {
            driver: driver_of(spec.storage_class_name.as_deref()?)?,
            namespace: claim.metadata.namespace.unwrap_or_default(),
            claim: claim.metadata.name.unwrap_or_default(),
            size: requests.get("storage").map(|q| q.0.clone()).unwrap_or_default(),
            state: "Pending".into(),
            ..Row::default()
        })
    };
    Ok(claims.into_iter().filter_map(row).collect())
}

/// A volume that only its driver knows.
fn alone(driver: &Local, kept: &Kept) -> Row {
    let seconds = i64::try_from(kept.deleted).unwrap_or(i64::MAX);
    let deleted_at = (kept.deleted != 0).then(|| jiff::Timestamp::from_second(seconds).ok()).flatten();
    Row {
        namespace: kept.namespace.clone(),
        claim: kept.claim.clone(),
        driver: driver.name.clone(),
        handle: kept.handle.clone(),
        size: quantity(kept.bytes),
        used_bytes: used(kept),
        backend: kept.backend.clone(),
        state: if kept.deleted == 0 { "Unknown to the API" } else { "Deleted" }.into(),
        trouble: kept.trouble.clone(),
        deleted_at,
        ..Row::default()
    }
}

fn print(rows: &[Row]) -> Result<(), Error> {
    if rows.is_empty() {
        eprintln!("No volumes found.");
        return Ok(());
    }
    let head = ["NAMESPACE", "CLAIM", "VOLUME", "SIZE", "USED", "BACKEND", "NODE", "SNAPSHOTS", "STATE"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    let now = jiff::Timestamp::now();
    for row in rows {
        let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        let mut state = row.state.clone();
        if let Some(at) = row.deleted_at {
            state += &format!(" {} ago", api::age::human(now.as_second().saturating_sub(at.as_second())));
        }
        if !row.trouble.is_empty() {
            state += &format!(": {}", row.trouble);
        }
        lines.push(vec![
            or_none(&row.namespace),
            or_none(&row.claim),
            or_none(if row.volume.is_empty() { &row.handle } else { &row.volume }),
            or_none(&row.size),
            row.used_bytes.map_or("-".into(), about),
            or_none(&row.backend),
            or_none(&row.nodes.join(",")),
            row.snapshots.map_or("-".into(), |n| n.to_string()),
            state,
        ]);
    }
    align(&lines).iter().try_for_each(say)
}
