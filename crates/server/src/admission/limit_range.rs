//! A namespace's LimitRanges: defaults for its pods' containers, bounds for its pods and claims.
use api::limit_range;
use k8s_openapi::api::core::v1::{Container, LimitRange, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

use crate::{
    Inner, object,
    status::{ApiError, ApiResult, Subject},
};

fn ranges(inner: &Inner, namespace: &str) -> Vec<LimitRange> {
    let page = inner.store.list(&format!("/core/limitranges/{namespace}/"), None, None, &|_| true);
    page.records.iter().filter_map(|r| serde_json::from_slice(&r.value).ok()).collect()
}

/// Gives the containers of a new pod what they do not say.
pub(super) fn set_defaults(inner: &Inner, namespace: &str, pod: &mut Value) {
    let ranges = ranges(inner, namespace);
    if ranges.is_empty() {
        return;
    }
    // What does not fit is left for validation to name.
    let Ok(mut typed) = serde_json::from_value::<Pod>(pod.clone()) else { return };
    for range in &ranges {
        limit_range::set_defaults(range, &mut typed);
    }
    // Only what was filled in goes back: the types here may be older than the schema.
    if let Some(annotations) = &typed.metadata.annotations {
        object::meta_mut(pod).insert("annotations".to_owned(), json!(annotations));
    }
    let Some(spec) = &typed.spec else { return };
    write_back(pod, "containers", &spec.containers);
    write_back(pod, "initContainers", spec.init_containers.as_deref().unwrap_or_default());
}

fn write_back(pod: &mut Value, list: &str, filled: &[Container]) {
    let Some(containers) = pod["spec"][list].as_array_mut() else { return };
    for (container, filled) in containers.iter_mut().zip(filled) {
        container["resources"] = json!(filled.resources);
    }
}

/// Refuses a pod that is out of bounds.
pub(super) fn check_pod(inner: &Inner, namespace: &str, pod: &Value) -> ApiResult<()> {
    let ranges = ranges(inner, namespace);
    if ranges.is_empty() {
        return Ok(());
    }
    let Ok(typed) = serde_json::from_value::<Pod>(pod.clone()) else { return Ok(()) };
    refuse("pods", pod, ranges.iter().map(|range| limit_range::check_pod(range, &typed)))
}

/// Refuses a claim that is out of bounds.
pub(super) fn check_claim(inner: &Inner, namespace: &str, claim: &Value) -> ApiResult<()> {
    let ranges = ranges(inner, namespace);
    if ranges.is_empty() {
        return Ok(());
    }
    let Ok(typed) = serde_json::from_value::<PersistentVolumeClaim>(claim.clone()) else { return Ok(()) };
    refuse("persistentvolumeclaims", claim, ranges.iter().map(|range| limit_range::check_claim(range, &typed)))
}

/// Refuses a claim that is given a size out of bounds. One that was out of bounds before the range was made may still change
/// in other ways: binding it must not fail.
pub(super) fn check_resized(inner: &Inner, new: &Value, old: &Value) -> ApiResult<()> {
    if new["spec"]["resources"] == old["spec"]["resources"] || !old["metadata"]["deletionTimestamp"].is_null() {
        return Ok(());
    }
    check_claim(inner, object::meta(new, "namespace"), new)
}

/// The first limit range that is broken decides the message, as upstream.
fn refuse(resource: &str, object: &Value, mut found: impl Iterator<Item = Vec<String>>) -> ApiResult<()> {
    let Some(mut broken) = found.find(|list| !list.is_empty()) else { return Ok(()) };
    let why = match broken.len() {
        1 => broken.remove(0),
        _ => format!("[{}]", broken.join(", ")),
    };
    Err(ApiError::forbidden(Subject { group: "", resource, name: object::meta(object, "name") }, &why))
}
