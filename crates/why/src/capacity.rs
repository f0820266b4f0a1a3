//! What storage drivers say of the room that is left for volumes.
use api::Quantity;
use controllers::rules::class_of;
use jiff::Timestamp;
use k8s_openapi::api::{core::v1::PersistentVolumeClaim, storage::v1::CSIStorageCapacity};

use crate::facts::{Facts, name_of};

/// One sentence for each place that the claim's class has storage in: how much is free, how much is asked for, how old
/// the figure is.
pub(crate) fn said(facts: &Facts, claim: &PersistentVolumeClaim) -> Vec<String> {
    let requests = claim.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    let Some(asked) = requests.and_then(|r| r.get("storage")) else { return Vec::new() };
    let of_class = facts.capacities.iter().filter(|c| c.storage_class_name == class_of(claim));
    of_class.map(|capacity| one(capacity, &asked.0)).collect()
}

fn one(capacity: &CSIStorageCapacity, asked: &str) -> String {
    let amount = |text: &str| Quantity::parse(text).ok();
    let free = capacity.capacity.as_ref().map_or("an unknown amount", |q| q.0.as_str());
    let most =
        capacity.maximum_volume_size.as_ref().map(|q| format!(", volumes of at most {}", q.0)).unwrap_or_default();
    let short = amount(free).zip(amount(asked)).is_some_and(|(free, asked)| free < asked);
    let relation = if short { "too little for" } else { "asked for are" };
    let age = said_at(capacity).map(|t| format!(", as said at {t:.0}")).unwrap_or_default();
    format!("{}: {free} free{most}, {relation} {asked}{age}", place(capacity))
}

/// Where it is, as its driver labels nodes.
fn place(capacity: &CSIStorageCapacity) -> String {
    let labels = capacity.node_topology.as_ref().and_then(|t| t.match_labels.as_ref());
    let labels: Vec<_> = labels.into_iter().flatten().map(|(k, v)| format!("{k}={v}")).collect();
    if labels.is_empty() { name_of(&capacity.metadata).to_owned() } else { labels.join(", ") }
}

/// When the driver last wrote the figure.
fn said_at(capacity: &CSIStorageCapacity) -> Option<Timestamp> {
    let meta = &capacity.metadata;
    let written = meta.managed_fields.iter().flatten().filter_map(|f| f.time.as_ref()).map(|t| t.0);
    written.max().or_else(|| meta.creation_timestamp.as_ref().map(|t| t.0))
}
