//! Selectors inside objects, applied: label selectors of claims, node selectors of volumes and pods.
use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

type Labels = BTreeMap<String, String>;

/// Whether labels satisfy a selector; an empty one matches everything.
pub fn labels_match(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let empty = Labels::new();
    let labels = labels.unwrap_or(&empty);
    let equal = selector.match_labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    equal
        && selector.match_expressions.iter().flatten().all(|r| {
            let values = r.values.as_deref().unwrap_or_default();
            holds(&r.operator, labels.get(&r.key), values)
        })
}

fn holds(operator: &str, value: Option<&String>, values: &[String]) -> bool {
    let compare = |greater: bool| {
        let wanted = values.first().and_then(|v| v.parse::<i64>().ok());
        let Some((have, wanted)) = value.and_then(|v| v.parse::<i64>().ok()).zip(wanted) else { return false };
        if greater { have > wanted } else { have < wanted }
    };
    match operator {
        "In" => value.is_some_and(|v| values.contains(v)),
        "NotIn" => !value.is_some_and(|v| values.contains(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(true),
        "Lt" => compare(false),
        _ => false,
    }
}

/// Whether a node satisfies one of the terms. A term without requirements matches nothing.
pub fn node_matches(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, node))
}

/// Whether a node satisfies every requirement of a term.
pub fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let all = |rs: &Option<Vec<NodeSelectorRequirement>>, value: &dyn Fn(&str) -> Option<String>| {
        rs.iter().flatten().all(|r| holds(&r.operator, value(&r.key).as_ref(), r.values.as_deref().unwrap_or_default()))
    };
    let some = term.match_expressions.as_ref().is_some_and(|r| !r.is_empty())
        || term.match_fields.as_ref().is_some_and(|r| !r.is_empty());
    some && all(&term.match_expressions, &|key| labels.and_then(|l| l.get(key)).cloned())
        && all(&term.match_fields, &|key| (key == "metadata.name").then(|| node.metadata.name.clone()).flatten())
}

/// Whether a node can reach a volume.
pub fn reaches(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
    affinity.and_then(|a| a.required.as_ref()).is_none_or(|selector| node_matches(selector, node))
}

/// Labels by which volumes without node affinity say where they are, and the names that replaced the first two.
const ZONES: [(&str, &str); 4] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("topology.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "topology.kubernetes.io/region"),
];

/// Whether a node is in the zone and region that a volume's labels name (`a__b` names two). A node that names none
/// is in all of them; a malformed label says nothing.
pub fn in_zone(volume: &PersistentVolume, node: &Node) -> bool {
    let of_node = |key: &str| node.metadata.labels.as_ref().and_then(|l| l.get(key));
    if ZONES.iter().all(|(key, _)| of_node(key).is_none()) {
        return true;
    }
    ZONES.iter().all(|(key, today)| {
        let Some(label) = volume.metadata.labels.as_ref().and_then(|l| l.get(*key)) else { return true };
        let zones: Vec<&str> = label.split("__").map(str::trim).collect();
        zones.contains(&"")
            || of_node(key).or_else(|| of_node(today)).is_some_and(|zone| zones.contains(&zone.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    #[test]
    fn selectors_of_labels() {
        let table = [
            (json!({}), true),
            (json!({"matchLabels": {"tier": "a"}}), true),
            (json!({"matchLabels": {"tier": "b"}}), false),
            (json!({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "z"]}]}), true),
            (json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["a"]}]}), false),
            (json!({"matchExpressions": [{"key": "none", "operator": "NotIn", "values": ["a"]}]}), true),
            (json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}), true),
            (json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}), false),
        ];
        let labels = Labels::from([("tier".to_owned(), "a".to_owned())]);
        for (selector, expected) in table {
            let parsed: LabelSelector = from_value(selector.clone()).unwrap();
            assert_eq!(labels_match(&parsed, Some(&labels)), expected, "{selector}");
        }
    }

    #[test]
    fn selectors_of_nodes() {
        let node: Node = from_value(json!({"metadata": {"name": "n", "labels": {"zone": "a", "disks": "4"}}})).unwrap();
        let matches = |terms: Value| node_matches(&from_value(json!({"nodeSelectorTerms": terms})).unwrap(), &node);
        let one =
            |key: &str, operator: &str, values: Value| json!({"key": key, "operator": operator, "values": values});
        assert!(!matches(json!([])));
        assert!(!matches(json!([{}])));
        assert!(matches(json!([{"matchExpressions": [one("zone", "In", json!(["b"]))]},
            {"matchExpressions": [one("zone", "In", json!(["a"])), one("disks", "Gt", json!(["3"]))]}])));
        assert!(!matches(json!([{"matchExpressions": [one("disks", "Lt", json!(["4"]))]}])));
        assert!(!matches(json!([{"matchExpressions": [one("zone", "Gt", json!(["1"]))]}])));
        assert!(matches(json!([{"matchFields": [one("metadata.name", "In", json!(["n"]))]}])));
        assert!(!matches(json!([{"matchFields": [one("metadata.name", "NotIn", json!(["n"]))]}])));
    }
    #[test]
    fn zones_of_volumes() {
        let (old_zone, zone) = ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone");
        let (old_region, region) = ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region");
        let table = [
            (json!({old_zone: "a"}), json!({}), true),
            (json!({old_zone: "a"}), json!({"other": "b"}), true),
            (json!({old_zone: "a"}), json!({old_zone: "a"}), true),
            (json!({old_zone: "a"}), json!({old_zone: "b"}), false),
            (json!({old_region: "r"}), json!({old_region: "r"}), true),
            (json!({old_region: "r"}), json!({old_region: "s"}), false),
            (json!({zone: "a"}), json!({zone: "a"}), true),
            (json!({zone: "a"}), json!({zone: "b"}), false),
            (json!({region: "r"}), json!({region: "r"}), true),
            (json!({region: "r"}), json!({region: "s"}), false),
            (json!({zone: "a", region: "a"}), json!({zone: "a"}), false),
            (json!({zone: "a"}), json!({old_zone: "a"}), false),
            (json!({old_zone: "a"}), json!({zone: "a"}), true),
            (json!({old_zone: "a"}), json!({zone: "b"}), false),
            (json!({zone: "a__b"}), json!({zone: "b"}), true),
            (json!({zone: "a__b"}), json!({zone: "c"}), false),
            (json!({zone: "a__"}), json!({zone: "c"}), true),
            (json!({}), json!({zone: "c"}), true),
        ];
        for (of_volume, of_node, expected) in table {
            let volume = from_value(json!({ "metadata": { "labels": of_volume } })).unwrap();
            let node = from_value(json!({ "metadata": { "labels": of_node } })).unwrap();
            assert_eq!(in_zone(&volume, &node), expected, "{of_volume} {of_node}");
        }
    }
}
