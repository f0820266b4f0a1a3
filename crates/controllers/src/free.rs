//! The volumes that are there for the taking, ordered so that the best one for a claim is found without a look at all.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Node, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim};

use crate::claim::{attributes_of, capacity, class_of, class_of_volume, modes_of, requested, volume_mode_of};

/// The label of nodes that says their host, by which local volumes name their node.
const HOST: &str = "kubernetes.io/hostname";

/// What a volume must have in common with a claim besides its class and its size.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Sort {
    /// Access modes; the number of different ones comes first in the order.
    modes: (usize, BTreeSet<String>),
    volume_mode: String,
    attributes: String,
}

/// Volumes of one sort, by size, then by name.
type Shelf = BTreeSet<(Quantity, Arc<str>)>;

/// Volumes by sort. There are few sorts, however many volumes there are.
type Shelves = BTreeMap<Sort, Shelf>;

/// What a claim, or the node it goes to, asks for by value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Mark {
    /// A label's key and value.
    Label(String, String),
    /// The name by which nodes are called in node affinities.
    Host(String),
    /// Volumes that are not bound to hosts by that name.
    NoHost,
}

/// Free volumes of one class: all of them, and those with each mark.
#[derive(Debug, Default)]
struct Class {
    all: Shelves,
    marked: HashMap<Mark, Shelves>,
}

/// Free volumes by class.
#[derive(Debug, Default)]
pub(crate) struct Free(HashMap<String, Class>);

impl Free {
    /// Puts a free volume in, or takes it out in the state that it was put in.
    pub(crate) fn set(&mut self, name: &Arc<str>, volume: &PersistentVolume, add: bool) {
        let modes: BTreeSet<String> = modes_of(volume).iter().cloned().collect();
        let sort = Sort {
            modes: (modes.len(), modes),
            volume_mode: volume_mode_of(volume).to_owned(),
            attributes: attributes_of(volume).to_owned(),
        };
        let item = (volume.spec.as_ref().map_or(Quantity::ZERO, capacity), name.clone());
        let class = self.0.entry(class_of_volume(volume).to_owned()).or_default();
        for mark in marks(volume) {
            let shelves = class.marked.entry(mark.clone()).or_default();
            put(shelves, &sort, &item, add);
            if shelves.is_empty() {
                class.marked.remove(&mark);
            }
        }
        put(&mut class.all, &sort, &item, add);
        if class.all.is_empty() {
            self.0.remove(class_of_volume(volume));
        }
    }

    /// How many a class has.
    pub(crate) fn count(&self, class: &str) -> usize {
        self.0.get(class).map_or(0, |class| count(&class.all))
    }

    /// The smallest volume that a claim can have and that `keep` lets pass; with `few_modes` the smallest of those with
    /// the fewest access modes. The name breaks ties. `node` is where it has to be within reach; `keep` judges that.
    ///
    /// Only volumes with the rarest of the labels that the claim asks for are looked at; without such, and with a node,
    /// only those that its host has or that no host has for itself.
    pub(crate) fn best<'a>(
        &'a self,
        claim: &PersistentVolumeClaim,
        node: Option<&Node>,
        few_modes: bool,
        keep: impl Fn(&str) -> bool,
    ) -> Option<&'a str> {
        let least = (requested(claim), Arc::from(""));
        let wanted = claim.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
        let shelves = self.0.get(class_of(claim))?.to_look_at(claim, node);
        let sorts = shelves.into_iter().flatten().filter(|(sort, _)| {
            sort.volume_mode == crate::claim::mode_of(claim)
                && sort.attributes == crate::claim::attributes_wanted(claim)
                && wanted.iter().all(|m| sort.modes.1.contains(m))
        });
        let firsts = sorts.filter_map(|(sort, shelf)| {
            let modes = if few_modes { sort.modes.0 } else { 0 };
            shelf.range(least.clone()..).find(|(_, name)| keep(name)).map(|(size, name)| (modes, size, name))
        });
        firsts.min().map(|(_, _, name)| &**name)
    }
}

impl Class {
    fn to_look_at(&self, claim: &PersistentVolumeClaim, node: Option<&Node>) -> Vec<&Shelves> {
        let selector = claim.spec.as_ref().and_then(|s| s.selector.as_ref());
        let labels = selector.into_iter().flat_map(|s| s.match_labels.iter().flatten());
        let mut asked: Vec<Mark> = labels.map(|(k, v)| Mark::Label(k.clone(), v.clone())).collect();
        for rule in selector.into_iter().flat_map(|s| s.match_expressions.iter().flatten()) {
            if let ("In", [value]) = (rule.operator.as_str(), rule.values.as_deref().unwrap_or_default()) {
                asked.push(Mark::Label(rule.key.clone(), value.clone()));
            }
        }
        let of = |mark: &Mark| self.marked.get(mark);
        if !asked.is_empty() {
            let rarest = asked.iter().map(of).min_by_key(|shelves| shelves.map_or(0, count));
            return rarest.flatten().into_iter().collect();
        }
        let Some(node) = node else { return vec![&self.all] };
        let host = node.metadata.labels.as_ref().and_then(|l| l.get(HOST)).map(|host| Mark::Host(host.clone()));
        host.iter().filter_map(of).chain(of(&Mark::NoHost)).collect()
    }
}

fn count(shelves: &Shelves) -> usize {
    shelves.values().map(BTreeSet::len).sum()
}

fn put(shelves: &mut Shelves, sort: &Sort, item: &(Quantity, Arc<str>), add: bool) {
    if add {
        shelves.entry(sort.clone()).or_default().insert(item.clone());
    } else if let Some(shelf) = shelves.get_mut(sort) {
        shelf.remove(item);
        if shelf.is_empty() {
            shelves.remove(sort);
        }
    }
}

/// The marks of a volume: its labels, and the hosts that all of its node affinity's terms name, if they do.
fn marks(volume: &PersistentVolume) -> Vec<Mark> {
    let labels = volume.metadata.labels.iter().flatten().map(|(k, v)| Mark::Label(k.clone(), v.clone()));
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
    let terms =
        affinity.and_then(|a| a.required.as_ref()).map(|s| s.node_selector_terms.as_slice()).unwrap_or_default();
    let hosts_of = |term: &NodeSelectorTerm| {
        let rules = term.match_expressions.as_deref().unwrap_or_default();
        rules.iter().find(|r| r.key == HOST && r.operator == "In").and_then(|r| r.values.clone())
    };
    let hosts: Option<Vec<Vec<String>>> = terms.iter().map(hosts_of).collect();
    let mut marks: Vec<Mark> = labels.collect();
    match hosts.filter(|hosts| !hosts.is_empty()) {
        Some(hosts) => marks.extend(hosts.into_iter().flatten().map(Mark::Host)),
        None => marks.push(Mark::NoHost),
    }
    marks
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn volume(size: &str, modes: &[&str]) -> PersistentVolume {
        from_value(json!({ "spec": { "capacity": { "storage": size }, "accessModes": modes } })).unwrap()
    }
    fn claim(size: &str, modes: &[&str]) -> PersistentVolumeClaim {
        from_value(json!({ "spec": { "resources": { "requests": { "storage": size } }, "accessModes": modes } }))
            .unwrap()
    }

    #[test]
    fn the_best_is_the_smallest_of_the_fewest_modes() {
        let (one, two) = (&["ReadWriteOnce"][..], &["ReadWriteOnce", "ReadOnlyMany"][..]);
        let mut free = Free::default();
        for (name, size, modes) in [("c", "2Gi", one), ("b", "2048Mi", one), ("a", "1Gi", two), ("d", "5Gi", one)] {
            free.set(&name.into(), &volume(size, modes), true);
        }
        let best =
            |free: &Free, size, modes, few| free.best(&claim(size, modes), None, few, |_| true).map(str::to_owned);
        assert_eq!(best(&free, "1Gi", one, true).as_deref(), Some("b"));
        assert_eq!(best(&free, "1Gi", one, false).as_deref(), Some("a"));
        assert_eq!(best(&free, "1Gi", two, true).as_deref(), Some("a"));
        assert_eq!(best(&free, "3Gi", one, true).as_deref(), Some("d"));
        assert_eq!(best(&free, "6Gi", one, true), None);
        assert_eq!(free.best(&claim("1Gi", one), None, true, |name| name != "b"), Some("c"));
        free.set(&"b".into(), &volume("2Gi", one), false);
        assert_eq!(best(&free, "1Gi", one, true).as_deref(), Some("c"));
        for (name, size, modes) in [("c", "2Gi", one), ("a", "1Gi", two), ("d", "5Gi", one)] {
            free.set(&name.into(), &volume(size, modes), false);
        }
        assert_eq!(free.count(""), 0);
    }

    /// What `keep` was asked about.
    fn asked(
        free: &Free,
        claim: &PersistentVolumeClaim,
        node: Option<&Node>,
        keep: &[&str],
    ) -> (Option<String>, usize) {
        let count = std::cell::Cell::new(0);
        let best = free.best(claim, node, true, |name| {
            count.set(count.get() + 1);
            keep.contains(&name)
        });
        (best.map(str::to_owned), count.get())
    }

    #[test]
    fn who_asks_by_label_or_host_is_not_shown_the_others() {
        let mut free = Free::default();
        for i in 0..1_000 {
            let mut object = json!({
                "metadata": { "labels": { "n": i.to_string(), "all": "yes" } },
                "spec": { "capacity": { "storage": "1Gi" } },
            });
            if i % 2 == 0 {
                object["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"] = json!([{
                    "matchExpressions": [{ "key": HOST, "operator": "In", "values": [format!("h{i}")] }],
                }]);
            }
            free.set(&format!("v{i}").into(), &from_value(object).unwrap(), true);
        }
        let claim = |selector: serde_json::Value| -> PersistentVolumeClaim {
            from_value(json!({ "spec": { "selector": selector } })).unwrap()
        };
        let node = |host: &str| from_value::<Node>(json!({ "metadata": { "labels": { HOST: host } } })).unwrap();
        let by_label = claim(json!({ "matchLabels": { "all": "yes", "n": "7" } }));
        assert_eq!(asked(&free, &by_label, None, &["v7"]), (Some("v7".into()), 1));
        let by_rule = claim(json!({ "matchExpressions": [{ "key": "n", "operator": "In", "values": ["8"] }] }));
        assert_eq!(asked(&free, &by_rule, Some(&node("h8")), &["v8"]), (Some("v8".into()), 1));
        let nobodys = claim(json!({ "matchLabels": { "n": "7", "other": "x" } }));
        assert_eq!(asked(&free, &nobodys, None, &["v7"]), (None, 0));
        assert_eq!(asked(&free, &claim(json!(null)), Some(&node("h8")), &["v8"]), (Some("v8".into()), 501));
        assert_eq!(asked(&free, &claim(json!(null)), Some(&node("h7")), &["v8"]), (None, 500));
        assert_eq!(asked(&free, &claim(json!(null)), None, &["v0"]), (Some("v0".into()), 1));
    }
}
