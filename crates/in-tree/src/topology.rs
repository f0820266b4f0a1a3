//! Where volumes are: zone and region by Kubernetes' labels, and by drivers' own keys.
use std::collections::BTreeSet;

use k8s_openapi::api::{
    core::v1::{
        NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, TopologySelectorLabelRequirement,
        TopologySelectorTerm, VolumeNodeAffinity,
    },
    storage::v1::StorageClass,
};

use crate::{Map, Why, spec};

pub const ZONE: &str = "topology.kubernetes.io/zone";
pub const REGION: &str = "topology.kubernetes.io/region";
pub const BETA_ZONE: &str = "failure-domain.beta.kubernetes.io/zone";
pub const BETA_REGION: &str = "failure-domain.beta.kubernetes.io/region";
/// Between the zones of a label that has several.
pub const BETWEEN_ZONES: &str = "__";

/// The one region of some zones, if their names say it.
pub type RegionOf = fn(&[&str]) -> Result<String, Why>;

fn terms(volume: &PersistentVolume) -> impl Iterator<Item = &NodeSelectorTerm> {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
    affinity.and_then(|a| a.required.as_ref()).into_iter().flat_map(|r| &r.node_selector_terms)
}

fn terms_mut(volume: &mut PersistentVolume) -> impl Iterator<Item = &mut NodeSelectorTerm> {
    let affinity = volume.spec.as_mut().and_then(|s| s.node_affinity.as_mut());
    affinity.and_then(|a| a.required.as_mut()).into_iter().flat_map(|r| &mut r.node_selector_terms)
}

fn expressions(volume: &PersistentVolume) -> impl Iterator<Item = &NodeSelectorRequirement> {
    terms(volume).flat_map(|t| t.match_expressions.iter().flatten())
}

fn is(key: &str, values: impl IntoIterator<Item = String>) -> NodeSelectorRequirement {
    NodeSelectorRequirement {
        key: key.to_owned(),
        operator: "In".to_owned(),
        values: Some(values.into_iter().collect()),
    }
}

/// All values of a key, sorted, each once.
fn values(volume: &PersistentVolume, key: &str) -> BTreeSet<String> {
    expressions(volume).filter(|e| e.key == key).flat_map(|e| e.values.iter().flatten().cloned()).collect()
}

fn rename(volume: &mut PersistentVolume, from: &str, to: &str) {
    let all = terms_mut(volume).flat_map(|t| t.match_expressions.iter_mut().flatten());
    all.filter(|e| e.key == from).for_each(|e| to.clone_into(&mut e.key));
}

/// Adds a key to every term.
fn add<'a>(volume: &mut PersistentVolume, key: &str, zones: impl IntoIterator<Item = &'a str>) {
    let zones: BTreeSet<&str> = zones.into_iter().map(str::trim).filter(|z| !z.is_empty()).collect();
    if zones.is_empty() {
        return;
    }
    let affinity = spec(volume).node_affinity.get_or_insert_with(VolumeNodeAffinity::default);
    let terms = &mut affinity.required.get_or_insert_with(NodeSelector::default).node_selector_terms;
    if terms.is_empty() {
        terms.push(NodeSelectorTerm::default());
    }
    for term in terms {
        let wanted = is(key, zones.iter().map(|z| (*z).to_owned()));
        term.match_expressions.get_or_insert_default().push(wanted);
    }
}

pub fn label<'a>(volume: &'a PersistentVolume, key: &str) -> Option<&'a str> {
    volume.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn label_once(volume: &mut PersistentVolume, key: &str, value: impl FnOnce() -> String) {
    volume.metadata.labels.get_or_insert_default().entry(key.to_owned()).or_insert_with(value);
}

/// The labels of zone and region that a volume goes by: affinity before labels, today's names before the old ones.
fn names(volume: &PersistentVolume) -> (&'static str, &'static str) {
    let required = |key: &str| expressions(volume).any(|e| e.key == key);
    let old = !required(ZONE)
        && (required(BETA_ZONE) || (label(volume, ZONE).is_none() && label(volume, BETA_ZONE).is_some()));
    if old { (BETA_ZONE, BETA_REGION) } else { (ZONE, REGION) }
}

/// The driver's `key` for the zones that affinity or, failing that, labels name. Where a zone's name says its region, that is not
/// asked for beside it, as upstream goes on doing: so one machine can be a zone of several clouds.
pub fn to_csi(volume: &mut PersistentVolume, key: &str, says_region: bool) {
    let (zone, region) = names(volume);
    one_to_csi(volume, zone, key, true);
    if says_region {
        for term in terms_mut(volume) {
            let all = term.match_expressions.get_or_insert_default();
            if all.iter().any(|e| e.key == key) {
                all.retain(|e| ![REGION, BETA_REGION].contains(&&*e.key));
            }
        }
    }
    if region == BETA_REGION {
        // Nodes of today no longer have the old label.
        rename(volume, region, REGION);
    }
}

/// Zone and region, each by a driver's own key.
pub fn both_to_csi(volume: &mut PersistentVolume, zone_key: &str, region_key: &str) {
    let (zone, region) = names(volume);
    one_to_csi(volume, zone, zone_key, false);
    one_to_csi(volume, region, region_key, false);
}

fn one_to_csi(volume: &mut PersistentVolume, name: &str, key: &str, several: bool) {
    if !values(volume, name).is_empty() {
        rename(volume, name, key);
    } else if let Some(value) = label(volume, name).map(str::to_owned) {
        match several {
            true => add(volume, key, value.split(BETWEEN_ZONES)),
            false => add(volume, key, [&*value]),
        }
    }
}

/// Kubernetes' zone for the driver's `key`, in affinity and labels; and the region, where it can be told from the zones.
pub fn from_csi(volume: &mut PersistentVolume, key: &str, region_of: Option<RegionOf>) -> Result<(), Why> {
    let (zone, _) = names(volume);
    rename(volume, key, zone);
    if let Some(region_of) = region_of {
        add_regions(volume, region_of)?;
    }
    let zones = values(volume, zone);
    if !zones.is_empty() {
        label_once(volume, zone, || zones.into_iter().collect::<Vec<_>>().join(BETWEEN_ZONES));
    }
    Ok(())
}

fn add_regions(volume: &mut PersistentVolume, region_of: RegionOf) -> Result<(), Why> {
    let (zone, region) = names(volume);
    for term in terms_mut(volume) {
        let known = term.match_expressions.as_deref().unwrap_or_default();
        if known.iter().any(|e| e.key == region) {
            continue;
        }
        let zones = known.iter().filter(|e| e.key == zone).flat_map(|e| e.values.iter().flatten());
        let value = region_of(&zones.map(String::as_str).collect::<Vec<_>>())?;
        term.match_expressions.get_or_insert_default().push(is(region, [value]));
    }
    let regions = values(volume, region);
    if regions.len() == 1 {
        label_once(volume, region, || regions.into_iter().collect());
    }
    Ok(())
}

/// Kubernetes' zone and region for a driver's own keys of both.
pub fn both_from_csi(volume: &mut PersistentVolume, zone_key: &str, region_key: &str) {
    let (zone, region) = names(volume);
    for (key, name) in [(zone_key, zone), (region_key, region)] {
        rename(volume, key, name);
    }
    for name in [zone, region] {
        if let Some(first) = values(volume, name).into_iter().next() {
            label_once(volume, name, || first);
        }
    }
}

/// The one region of all zones.
pub fn one_region(zones: &[&str], region_of: impl Fn(&str) -> Option<String>, form: &str) -> Result<String, Why> {
    let mut regions = BTreeSet::new();
    for zone in zones {
        regions.insert(region_of(zone).ok_or_else(|| format!("zone {zone:?} is not of the form {form}"))?);
    }
    match (regions.pop_first(), regions.is_empty()) {
        (Some(region), true) => Ok(region),
        (None, _) => Err("no zone is given, so the region is not known".to_owned()),
        (Some(first), false) => {
            let others = regions.into_iter().collect::<Vec<_>>().join(", ");
            Err(format!("its zones are in several regions: {first}, {others}"))
        }
    }
}

/// The topologies of a class by the driver's `key`.
pub fn class(class: &mut StorageClass, key: &str) {
    let all = class.allowed_topologies.iter_mut().flatten();
    let all = all.flat_map(|t| t.match_label_expressions.iter_mut().flatten());
    all.filter(|e| [ZONE, BETA_ZONE].contains(&&*e.key)).for_each(|e| key.clone_into(&mut e.key));
}

/// The same, for plugins that had the parameters `zone` and `zones`, which are taken out of `parameters`.
pub fn class_with_zones(class_: &mut StorageClass, key: &str, parameters: &mut Map) -> Result<(), Why> {
    let mut zones = None;
    parameters.retain(|name, value| match &*name.to_ascii_lowercase() {
        "zone" => {
            zones = Some(vec![value.clone()]);
            false
        }
        "zones" => {
            zones = Some(value.split(',').map(str::to_owned).collect());
            false
        }
        _ => true,
    });
    let Some(values) = zones else {
        class(class_, key);
        return Ok(());
    };
    if class_.allowed_topologies.as_ref().is_some_and(|t| !t.is_empty()) {
        return Err("it has allowedTopologies and a parameter zone or zones; it can have only one of them".to_owned());
    }
    let wanted = TopologySelectorLabelRequirement { key: key.to_owned(), values };
    let term = TopologySelectorTerm { match_label_expressions: Some(vec![wanted]) };
    class_.allowed_topologies = Some(vec![term]);
    Ok(())
}
