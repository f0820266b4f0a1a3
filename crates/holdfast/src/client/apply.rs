//! `holdfast apply`: creates, or changes what the file changed since it was applied last (a three-way merge).
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::{Error, Resources, Session, is_not_found, read_manifests};
use crate::{
    Outcome,
    cli::ApplyArgs,
    errors::{said, say},
};

/// The annotation that kubectl keeps too, in the same form, so that either can go on after the other.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

pub async fn run(args: ApplyArgs) -> Outcome {
    let session = Session::open(&args.server).await?;
    let resources = Resources::discover(&session).await?;
    for file in &args.files {
        let objects = read_manifests(file)?;
        if objects.is_empty() {
            return said(format!("{} holds no objects", file.display()));
        }
        for object in objects {
            say(apply(&session, &resources, object).await?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Applies one object; says what happened as kubectl does: `pod/web created`.
pub async fn apply(session: &Session, resources: &Resources, mut object: Value) -> Result<String, Error> {
    let resource = resources.of(&object)?;
    let Some(name) = object["metadata"]["name"].as_str().map(str::to_owned) else {
        return said(format!("a {} has no metadata.name; apply needs one", resource.kind));
    };
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or(&session.namespace).to_owned();
    let label = format!("{}{name}", resource.prefix());
    if resource.namespaced {
        object["metadata"]["namespace"] = namespace.as_str().into();
    }
    if !object["metadata"]["annotations"].is_object() {
        object["metadata"]["annotations"] = json!({});
    }
    if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
        annotations.remove(LAST_APPLIED);
    }
    object.sort_all_objects();
    let record = serde_json::to_string(&object)?;
    object["metadata"]["annotations"][LAST_APPLIED] = Value::String(record + "\n");
    let path = resource.path(Some(&namespace), Some(&name));
    let live = match session.get(&path).await {
        Ok(live) => live,
        Err(error) if is_not_found(&error) => {
            let body = ("application/json", serde_json::to_vec(&object)?);
            session.send("POST", &resource.path(Some(&namespace), None), "application/json", Some(body)).await?;
            return Ok(format!("{label} created"));
        }
        Err(error) => return Err(error),
    };
    let last = live["metadata"]["annotations"][LAST_APPLIED].as_str().and_then(|t| serde_json::from_str(t).ok());
    let patch = three_way(&last.unwrap_or(Value::Null), &object, &live);
    if patch.as_object().is_some_and(Map::is_empty) {
        return Ok(format!("{label} unchanged"));
    }
    let body = ("application/strategic-merge-patch+json", serde_json::to_vec(&patch)?);
    session.send("PATCH", &path, "application/json", Some(body)).await?;
    Ok(format!("{label} configured"))
}

/// The merge patch that brings `live` to `wanted`, deleting only what `last` had and `wanted` has no more.
/// Lists that differ are sent whole; the server merges them by their keys.
fn three_way(last: &Value, wanted: &Value, live: &Value) -> Value {
    let mut patch = Map::new();
    let empty = Map::new();
    let fields = |v: &Value| v.as_object().cloned().unwrap_or_default();
    let live_fields = live.as_object().unwrap_or(&empty);
    for (key, value) in fields(wanted) {
        match live_fields.get(&key) {
            Some(now) if now == &value => {}
            Some(now) if now.is_object() && value.is_object() => {
                let inner = three_way(&last[&key], &value, now);
                if inner.as_object().is_some_and(|m| !m.is_empty()) {
                    patch.insert(key, inner);
                }
            }
            Some(now) if covers(now, &value) => {}
            _ => {
                patch.insert(key, value);
            }
        }
    }
    for key in fields(last).keys().filter(|key| wanted.get(*key).is_none() && live_fields.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    Value::Object(patch)
}

/// Whether `live` holds all that `wanted` says, defaults aside.
fn covers(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            wanted.iter().all(|(k, w)| live.get(k).is_some_and(|l| covers(l, w)))
        }
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(l, w)| covers(l, w))
        }
        _ => live == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(why: &str, last: Value, wanted: Value, live: Value, patch: Value) {
        assert_eq!(three_way(&last, &wanted, &live), patch, "{why}");
    }

    #[test]
    fn three_way_table() {
        check("nothing to do", json!({"a": 1}), json!({"a": 1}), json!({"a": 1, "b": 2}), json!({}));
        check("changed", json!({"a": 1}), json!({"a": 2}), json!({"a": 1}), json!({"a": 2}));
        check("dropped", json!({"a": 1, "b": 1}), json!({"a": 1}), json!({"a": 1, "b": 1}), json!({"b": null}));
        check("someone else's stays", json!({}), json!({"a": 1}), json!({"a": 1, "x": 9}), json!({}));
        check("nested", json!({}), json!({"s": {"a": 2}}), json!({"s": {"a": 1, "d": 0}}), json!({"s": {"a": 2}}));
        check("list with defaults", json!({}), json!({"l": [{"n": 1}]}), json!({"l": [{"n": 1, "d": 0}]}), json!({}));
        check("list longer", json!({}), json!({"l": [1, 2]}), json!({"l": [1]}), json!({"l": [1, 2]}));
    }
}
