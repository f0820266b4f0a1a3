//! Every pod runs as a service account of its namespace, whose token it finds in a projected volume.
use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    Inner, object,
    status::{ApiError, ApiResult, Subject},
};

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Seconds; an hour and a little, by which the token's lifetime is recognized as this one.
const TOKEN_SECONDS: i64 = 3607;
/// How long the `default` account of a new namespace is waited for.
const PATIENCE: Duration = Duration::from_millis(1000);
const PAUSE: Duration = Duration::from_millis(10);

pub(super) async fn admit(inner: &Inner, namespace: &str, pod: &mut Value) -> ApiResult<()> {
    if !pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null() {
        return mirror(pod);
    }
    if !pod["spec"].is_object() {
        // Validation says what is missing.
        return Ok(());
    }
    let given = |field: &str| pod["spec"][field].as_str().filter(|s| !s.is_empty()).map(str::to_owned);
    let name = given("serviceAccountName").or_else(|| given("serviceAccount")).unwrap_or_else(|| "default".to_owned());
    let Some(account) = find(inner, namespace, &name).await? else {
        let why = format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        let subject = Subject { group: "", resource: "pods", name: object::meta(pod, "name") };
        return Err(ApiError::forbidden(subject, &why));
    };
    pod["spec"]["serviceAccountName"] = name.as_str().into();
    pod["spec"]["serviceAccount"] = name.as_str().into();
    let automount = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if automount {
        mount_token(pod);
    }
    let secrets = &account["imagePullSecrets"];
    if pod["spec"]["imagePullSecrets"].as_array().is_none_or(Vec::is_empty)
        && secrets.as_array().is_some_and(|s| !s.is_empty())
    {
        pod["spec"]["imagePullSecrets"] = secrets.clone();
    }
    Ok(())
}

fn mirror(pod: &Value) -> ApiResult<()> {
    let name = &pod["spec"]["serviceAccountName"];
    if name.as_str().is_some_and(|n| !n.is_empty()) {
        let subject = Subject { group: "", resource: "pods", name: object::meta(pod, "name") };
        return Err(ApiError::forbidden(subject, "a mirror pod may not reference service accounts"));
    }
    Ok(())
}

/// The account. That of a new namespace is made by a controller: waits a little for it.
async fn find(inner: &Inner, namespace: &str, name: &str) -> ApiResult<Option<Value>> {
    let key = format!("/core/serviceaccounts/{namespace}/{name}");
    let patience = tokio::time::Instant::now() + if name == "default" { PATIENCE } else { Duration::ZERO };
    loop {
        if let Some(record) = inner.store.get(&key) {
            let account = serde_json::from_slice(&record.value).map_err(|e| crate::write::corrupt(&key, &e))?;
            return Ok(Some(account));
        }
        if tokio::time::Instant::now() >= patience {
            return Ok(None);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn mount_token(pod: &mut Value) {
    let existing = pod["spec"]["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v["name"].as_str())
        .find(|n| n.starts_with("kube-api-access-"))
        .map(str::to_owned);
    let volume = existing.clone().unwrap_or_else(|| object::generate_name("kube-api-access-"));
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        let Some(containers) = pod["spec"].get_mut(list).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            let mounts = container.get("volumeMounts").and_then(Value::as_array);
            if mounts.into_iter().flatten().any(|m| m["mountPath"] == MOUNT_PATH) {
                continue;
            }
            append(container, "volumeMounts", json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
            needed = true;
        }
    }
    if needed && existing.is_none() {
        let sources = json!([
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
            ]}},
        ]);
        let volume = json!({"name": volume, "projected": {"sources": sources, "defaultMode": 0o644}});
        append(&mut pod["spec"], "volumes", volume);
    }
}

fn append(object: &mut Value, list: &str, item: Value) {
    let Some(map) = object.as_object_mut() else { return };
    match map.entry(list).or_insert_with(|| json!([])) {
        Value::Array(items) => items.push(item),
        other => *other = json!([item]),
    }
}
