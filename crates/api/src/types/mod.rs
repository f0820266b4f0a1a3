//! The rules of each kind, by group.
pub mod claim;
pub mod cluster;
mod config;
mod container;
mod cron;
mod env;
pub mod event;
mod ingress;
mod network;
mod node_labels;
mod pod;
pub(crate) mod pod_defaults;
mod pod_row;
pub(crate) mod pod_validation;
mod pod_warnings;
mod probe;
mod scheduling;
mod snapshot;
mod sources;
pub mod storage;
pub(crate) mod trust;
pub mod volume;
mod volume_paths;
mod workload;
mod workload_more;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::contract::Column;

/// A column shown always.
pub(crate) const fn col(name: &'static str, kind: &'static str, description: &'static str) -> Column {
    Column { name, kind, format: "", description, priority: 0 }
}

/// A column shown with `-o wide`.
pub(crate) const fn wide(name: &'static str, kind: &'static str, description: &'static str) -> Column {
    Column { name, kind, format: "", description, priority: 1 }
}

/// The name column, first in almost every table.
pub(crate) const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    description: "Name of the object, unique among its kind and namespace.",
    priority: 0,
};

/// The age column.
pub(crate) const AGE: Column = col("Age", "string", "Time since the object was created.");

/// The columns of kinds that have no table of their own.
pub(crate) const PLAIN: &[Column] = &[NAME, col("Created At", "date", "When the object was created.")];

/// The cells of `PLAIN`.
pub(crate) fn plain_row(metadata: &ObjectMeta) -> Vec<Value> {
    let created = metadata.creation_timestamp.as_ref().map(|t| t.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    vec![metadata.name.clone().into(), created.into()]
}

/// `a=b,c=d`, as `kubectl` shows selectors.
pub(crate) fn labels_text(labels: &Option<BTreeMap<String, String>>) -> String {
    let pairs: Vec<String> = labels.iter().flatten().map(|(k, v)| format!("{k}={v}")).collect();
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}

/// What differs between two values, a line for each field gone (`-`) and each field new (`+`).
pub(crate) fn difference(old: &Value, new: &Value) -> String {
    let mut lines = Vec::new();
    compare("", old, new, &mut lines);
    lines.join("\n")
}

fn compare(at: &str, old: &Value, new: &Value, lines: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(was), Value::Object(is)) => {
            let inner = |key: &str| if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
            for (key, value) in was {
                compare(&inner(key), value, is.get(key).unwrap_or(&Value::Null), lines);
            }
            for (key, value) in is.iter().filter(|(key, _)| !was.contains_key(*key)) {
                compare(&inner(key), &Value::Null, value, lines);
            }
        }
        (Value::Array(was), Value::Array(is)) => {
            for i in 0..was.len().max(is.len()) {
                let get = |list: &[Value]| list.get(i).cloned().unwrap_or_default();
                compare(&format!("{at}[{i}]"), &get(was), &get(is), lines);
            }
        }
        _ if old != new => {
            for (sign, value) in [('-', old), ('+', new)] {
                if !value.is_null() {
                    lines.push(format!("{sign} {at}: {value}"));
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_name_the_fields() {
        let old = json!({"a": {"b": 1, "same": true}, "list": [1, 2], "gone": "x"});
        let new = json!({"a": {"b": 2, "same": true}, "list": [1], "new": {"c": "d"}});
        assert_eq!(difference(&old, &new), "- a.b: 1\n+ a.b: 2\n- list[1]: 2\n- gone: \"x\"\n+ new: {\"c\":\"d\"}");
    }
}
