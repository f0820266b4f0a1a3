//! Writing a pod's status: only the node's own parts, and only if the object is still the same incarnation.
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Patch, PatchParams};
use serde_json::{Map, Value, json};

use super::{Shared, identity};

/// Condition types that the node keeps.
const OWN: &[&str] = &["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];

/// How a write went.
#[derive(Debug)]
pub enum Written {
    Done,
    /// The object is gone, or another one has its name now.
    Gone,
    /// Try again.
    Failed(kube::Error),
}

/// Writes `status`; `before` is what the API is believed to have.
pub async fn write(shared: &Shared, pod: &Pod, before: &PodStatus, status: &PodStatus) -> Written {
    let (name, namespace, uid) = identity(pod);
    let patch = patch(uid, before, status);
    let api = shared.api::<Pod>(namespace);
    match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
        Ok(_) => Written::Done,
        Err(kube::Error::Api(s)) if s.code == 404 || (s.code == 409 && s.message.contains("uid")) => Written::Gone,
        Err(error) => Written::Failed(error),
    }
}

/// A strategic merge patch. Lists that merge by key are replaced where they changed; what went away becomes null.
pub fn patch(uid: &str, before: &PodStatus, status: &PodStatus) -> Value {
    let object = |s: &PodStatus| match serde_json::to_value(s) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (old, mut new) = (object(before), object(status));
    for key in old.keys() {
        new.entry(key.clone()).or_insert(Value::Null);
    }
    // Written by others.
    for key in ["nominatedNodeName", "resize", "resourceClaimStatuses"] {
        new.remove(key);
    }
    for key in ["podIPs", "hostIPs"] {
        if old.get(key) == new.get(key) {
            new.remove(key);
        } else if let Some(Value::Array(list)) = new.get_mut(key) {
            list.push(json!({"$patch": "replace"}));
        }
    }
    if let Some(Value::Array(list)) = new.get_mut("conditions") {
        let had: Vec<_> = before.conditions.iter().flatten().map(|c| c.type_.as_str()).collect();
        list.retain(|c| {
            let kind = c["type"].as_str().unwrap_or_default();
            OWN.contains(&kind) || !had.contains(&kind)
        });
        for condition in list.iter_mut().filter_map(Value::as_object_mut) {
            for key in ["reason", "message", "lastProbeTime"] {
                condition.entry(key).or_insert(Value::Null);
            }
        }
    }
    json!({"metadata": {"uid": uid}, "status": new})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(v: Value) -> PodStatus {
        serde_json::from_value(v).expect("a status")
    }

    #[test]
    fn patches_touch_the_nodes_own_parts_only() {
        let before = status(json!({"phase": "Pending", "reason": "X", "podIPs": [{"ip": "10.0.0.1"}],
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "gate", "status": "True"}]}));
        let after =
            status(json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.2"}], "hostIPs": [{"ip": "192.0.2.1"}],
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "gate", "status": "True"},
                           {"type": "Ready", "status": "True"}]}));
        let p = patch("u", &before, &after);
        assert_eq!(p["metadata"]["uid"], "u");
        assert_eq!(p["status"]["reason"], Value::Null);
        assert!(p["status"].as_object().expect("object").contains_key("reason"));
        assert_eq!(p["status"]["podIPs"], json!([{"ip": "10.0.0.2"}, {"$patch": "replace"}]));
        let kinds: Vec<_> =
            p["status"]["conditions"].as_array().expect("list").iter().map(|c| c["type"].clone()).collect();
        assert_eq!(kinds, ["Ready"]);
    }

    #[test]
    fn equal_address_lists_are_left_out() {
        let s = status(json!({"podIPs": [{"ip": "10.0.0.1"}]}));
        assert!(patch("u", &s, &s)["status"].get("podIPs").is_none());
    }
}
