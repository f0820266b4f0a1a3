//! Defaults that depend on other objects, and protections that every object of a kind gets.
use k8s_openapi::api::core::v1::PodSpec;
use serde_json::{Value, json};

use crate::{
    Inner, object,
    status::{ApiError, ApiResult, Subject},
};

/// Pods stay five minutes on a node that is not ready or cannot be reached.
pub(super) fn tolerations(pod: &mut Value) {
    let Some(map) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let given = map.get("tolerations").cloned().unwrap_or_default();
    // What does not fit is left for validation to name.
    let Ok(tolerations) = serde_json::from_value(given) else { return };
    let mut spec = PodSpec { tolerations, ..PodSpec::default() };
    api::pod::tolerate_node_trouble(&mut spec);
    map.insert("tolerations".to_owned(), json!(spec.tolerations));
}

/// Resolves `priorityClassName`; without one, the default class or 0.
pub(super) fn priority(inner: &Inner, pod: &mut Value) -> ApiResult<()> {
    if !pod["spec"].is_object() {
        return Ok(());
    }
    let class = |name: &str| -> Option<Value> {
        let record = inner.store.get(&format!("/scheduling.k8s.io/priorityclasses/{name}"))?;
        serde_json::from_slice(&record.value).ok()
    };
    let name = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let found = match name.as_str() {
        "" => default_class(inner),
        "system-node-critical" => Some(json!({"value": 2_000_001_000})),
        "system-cluster-critical" => Some(json!({"value": 2_000_000_000})),
        name => Some(class(name).ok_or_else(|| {
            let subject = Subject { group: "", resource: "pods", name: object::meta(pod, "name") };
            ApiError::forbidden(subject, &format!("no PriorityClass with name {name} was found"))
        })?),
    };
    let found = found.unwrap_or_else(|| json!({}));
    if name.is_empty()
        && let Some(default) = found["metadata"]["name"].as_str()
    {
        pod["spec"]["priorityClassName"] = default.into();
    }
    pod["spec"]["priority"] = found["value"].as_i64().unwrap_or(0).into();
    if pod["spec"]["preemptionPolicy"].is_null() {
        let policy = found["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority");
        pod["spec"]["preemptionPolicy"] = policy.into();
    }
    Ok(())
}

/// The class marked as the default one; the lowest of several.
fn default_class(inner: &Inner) -> Option<Value> {
    let page = inner.store.list("/scheduling.k8s.io/priorityclasses/", None, None, &|_| true);
    page.records
        .iter()
        .filter_map(|r| serde_json::from_slice::<Value>(&r.value).ok())
        .filter(|c| c["globalDefault"] == true)
        .min_by_key(|c| c["value"].as_i64())
}

/// Adds a finalizer unless it is there.
pub(super) fn finalizer(object: &mut Value, finalizer: &str) {
    let mut list: Vec<Value> = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    if !list.iter().any(|f| f == finalizer) {
        list.push(finalizer.into());
        object::meta_mut(object).insert("finalizers".into(), list.into());
    }
}

/// Gives a claim that names no class the newest default class; of equally old ones the first by name.
pub(super) fn storage_class(inner: &Inner, claim: &mut Value) {
    const BETA: &str = "volume.beta.kubernetes.io/storage-class";
    const DEFAULT: &[&str] =
        &["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    // An empty class is a choice: no class.
    let named = !claim["spec"]["storageClassName"].is_null() || !claim["metadata"]["annotations"][BETA].is_null();
    if named || !claim["spec"].is_object() {
        return;
    }
    let page = inner.store.list("/storage.k8s.io/storageclasses/", None, None, &|_| true);
    let mut classes: Vec<(String, String)> = page
        .records
        .iter()
        .filter_map(|r| serde_json::from_slice::<Value>(&r.value).ok())
        .filter(|c| DEFAULT.iter().any(|a| c["metadata"]["annotations"][*a] == "true"))
        .map(|c| (object::meta(&c, "creationTimestamp").to_owned(), object::meta(&c, "name").to_owned()))
        .collect();
    classes.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    if let Some((_, name)) = classes.first() {
        claim["spec"]["storageClassName"] = name.as_str().into();
    }
}
