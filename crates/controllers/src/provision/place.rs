//! Where a new volume has to be reachable from, and where one that was made is.
//! Source: external-provisioner, `pkg/controller/topology.go`; CSI, `TopologyRequirement`.
use std::collections::BTreeMap;

use csi::{Topology, TopologyRequirement};
use k8s_openapi::api::{
    core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, TopologySelectorTerm, VolumeNodeAffinity},
    storage::v1::StorageClass,
};

use crate::world::World;

type Segments = BTreeMap<String, String>;

/// The places that a driver is told for a volume, of which `node` comes first if it is chosen already. `None`: any will do.
///
/// # Errors
/// A sentence about a node that does not say where it is.
pub(crate) fn requirement(
    world: &World,
    driver: &str,
    class: &StorageClass,
    node: Option<&str>,
) -> Result<Option<TopologyRequirement>, String> {
    let chosen = match node {
        None => None,
        Some(node) => {
            let keys = keys_of(world, driver, node).ok_or_else(|| {
                format!("error getting CSINode for selected node {node:?}: driver {driver} is not there")
            })?;
            if keys.is_empty() {
                return Ok(None);
            }
            let place = place_of(world, node, keys).ok_or_else(|| {
                format!("topology labels from selected node {node} does not match topology keys from CSINode {keys:?}")
            })?;
            Some(place)
        }
    };
    let allowed = class.allowed_topologies.as_deref().unwrap_or_default();
    let mut places =
        if allowed.is_empty() { everywhere(world, driver) } else { allowed.iter().flat_map(flat).collect() };
    places.sort_unstable();
    places.dedup();
    if places.is_empty() && chosen.is_none() {
        return Ok(None);
    }
    let mut preferred = places.clone();
    if let Some(chosen) = &chosen {
        let within = |place: &Segments| place.iter().all(|(key, value)| chosen.get(key) == Some(value));
        let Some(first) = preferred.iter().position(within) else {
            let node = node.unwrap_or_default();
            return Err(format!("selected node {node} is in none of the topologies {places:?} that the class allows"));
        };
        preferred.rotate_left(first);
    }
    let topologies = |all: Vec<Segments>| all.into_iter().map(|segments| Topology { segments }).collect();
    Ok(Some(TopologyRequirement { requisite: topologies(places), preferred: topologies(preferred) }))
}

/// The labels by which a driver tells places on a node apart; `None` where it does not serve the node.
fn keys_of<'a>(world: &'a World, driver: &str, node: &str) -> Option<&'a [String]> {
    let (_, csi_node) = world.csi_node(node)?;
    let found = csi_node.spec.drivers.iter().find(|d| d.name == driver)?;
    Some(found.topology_keys.as_deref().unwrap_or_default())
}

/// A node's place, if its labels say all of it.
fn place_of(world: &World, node: &str, keys: &[String]) -> Option<Segments> {
    let labels = world.node(node)?.1.metadata.labels.as_ref()?;
    keys.iter().map(|key| Some((key.clone(), labels.get(key)?.clone()))).collect()
}

/// The places of all nodes that the driver serves, each once.
pub(crate) fn places_of(world: &World, driver: &str) -> Vec<Segments> {
    let mut places = everywhere(world, driver);
    places.sort_unstable();
    places.dedup();
    places
}

fn everywhere(world: &World, driver: &str) -> Vec<Segments> {
    let nodes = world.csi_nodes().map(|(meta, _)| &*meta.key.name);
    let places = nodes.filter_map(|node| place_of(world, node, keys_of(world, driver, node)?));
    places.filter(|place| !place.is_empty()).collect()
}

/// Every combination of values that a term allows.
fn flat(term: &TopologySelectorTerm) -> Vec<Segments> {
    let mut all = vec![Segments::new()];
    for expression in term.match_label_expressions.iter().flatten() {
        let with = |place: &Segments, value: &String| {
            let mut place = place.clone();
            place.insert(expression.key.clone(), value.clone());
            place
        };
        all = all.iter().flat_map(|place| expression.values.iter().map(move |value| with(place, value))).collect();
    }
    all
}

/// Which nodes reach a volume, as a persistent volume says it.
pub(crate) fn affinity(places: &[Topology]) -> Option<VolumeNodeAffinity> {
    let term = |place: &Topology| NodeSelectorTerm {
        match_expressions: Some(
            place
                .segments
                .iter()
                .map(|(key, value)| NodeSelectorRequirement {
                    key: key.clone(),
                    operator: "In".into(),
                    values: Some(vec![value.clone()]),
                })
                .collect(),
        ),
        match_fields: None,
    };
    let terms: Vec<_> = places.iter().filter(|p| !p.segments.is_empty()).map(term).collect();
    (!terms.is_empty()).then_some(VolumeNodeAffinity { required: Some(NodeSelector { node_selector_terms: terms }) })
}
