//! What Kubernetes 1.36 answers to hundreds of volumes, claims, classes, drivers and pods with volumes, most of them wrong in one way:
//! status code, reason, message, causes, warnings and, where it accepts, what it stores. We answer the same.
//!
//! A case is a base of `upstream/bases.json` changed by the merge patch `with`, and created; then changed by each patch of `then`
//! (`status`: of the subresource). Its `answer` is the one to the last request. `causes` are `field: reason: message`, each once
//! (of an update upstream tells some mistakes twice); the message of the answer follows from them unless it is there. `stored` is
//! a merge patch from what was sent to what is stored, without metadata and, unless the last request was for the status, without
//! status. What follows the first line of a message, the difference between two objects in upstream's inner notation, is not part
//! of a case.
//!
//! Where we answer differently on purpose, `ours` has our answer and says `why`.
use api::strategic::merge_patch;
use serde_json::{Map, Value, json};

use super::{Client, Reply};

const CASES: &[(&str, &str)] = &[
    ("volumes", include_str!("upstream/volumes.json")),
    ("claims", include_str!("upstream/claims.json")),
    ("classes", include_str!("upstream/classes.json")),
    ("pods", include_str!("upstream/pods.json")),
    ("drivers", include_str!("upstream/drivers.json")),
];

fn list(text: &str) -> Vec<Value> {
    serde_json::from_str(text).unwrap()
}

fn collection(kind: &str) -> &'static str {
    match kind {
        "PersistentVolume" => "/api/v1/persistentvolumes",
        "PersistentVolumeClaim" => "/api/v1/namespaces/default/persistentvolumeclaims",
        "Pod" => "/api/v1/namespaces/default/pods",
        "StorageClass" => "/apis/storage.k8s.io/v1/storageclasses",
        "VolumeAttributesClass" => "/apis/storage.k8s.io/v1/volumeattributesclasses",
        "CSIDriver" => "/apis/storage.k8s.io/v1/csidrivers",
        "CSINode" => "/apis/storage.k8s.io/v1/csinodes",
        "CSIStorageCapacity" => "/apis/storage.k8s.io/v1/namespaces/default/csistoragecapacities",
        "VolumeAttachment" => "/apis/storage.k8s.io/v1/volumeattachments",
        other => panic!("no cases of {other}"),
    }
}

fn first_line(text: &str) -> &str {
    text.split('\n').next().unwrap_or_default()
}

/// Each text once, in order.
fn once(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    texts.filter(|text| seen.insert(text.clone())).collect()
}

/// `Kind "name" is invalid: ` and the causes, each once.
fn message_of(kind: &str, name: &str, causes: &[String]) -> String {
    let group = if collection(kind).contains("storage.k8s.io") { ".storage.k8s.io" } else { "" };
    let mut parts = once(causes.iter().map(|cause| {
        let (field, rest) = cause.split_once(": ").unwrap();
        let (_, says) = rest.split_once(": ").unwrap();
        format!("{field}: {says}")
    }));
    let all = if parts.len() == 1 { parts.remove(0) } else { format!("[{}]", parts.join(", ")) };
    format!("{kind}{group} {name:?} is invalid: {all}")
}

/// The part of an object that cases are about.
fn body(object: &Value, status: bool) -> Value {
    let mut object = object.clone();
    let map = object.as_object_mut().unwrap();
    for key in ["metadata", "apiVersion", "kind"] {
        map.remove(key);
    }
    if !status {
        map.remove("status");
    } else if let Some(status) = map.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("lastPhaseTransitionTime");
    }
    without_nulls(object)
}

/// A member that is null is as good as none: a patch cannot say the one or the other.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(k, v)| (k, without_nulls(v)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(list) => list.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// What became of a case's requests.
struct Done {
    kind: String,
    /// The name that was sent.
    name: String,
    /// Of the object.
    path: String,
    created: bool,
    /// Whether the last request was for the status.
    status: bool,
    /// What the last request asked for.
    sent: Value,
    reply: Reply,
}

impl Done {
    async fn clean(&self, client: &Client) {
        if self.created {
            client.ok("PATCH", &self.path, json!({"metadata": {"finalizers": null}})).await;
            client
                .call(
                    "DELETE",
                    &self.path,
                    json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}),
                )
                .await;
        }
    }
}

async fn perform(client: &Client, bases: &Value, case: &Value) -> Done {
    let base = &bases[case["base"].as_str().unwrap()];
    let kind = base["kind"].as_str().unwrap().to_owned();
    let mut sent = case.get("with").map_or(base.clone(), |change| merge_patch(base, change));
    let name = sent["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let mut reply = client.call("POST", collection(&kind), sent.clone()).await;
    let path = format!("{}/{}", collection(&kind), reply.json["metadata"]["name"].as_str().unwrap_or_default());
    let created = reply.code < 300;
    let mut status = false;
    for step in case["then"].as_array().map_or(&[][..], Vec::as_slice) {
        assert!(reply.code < 300, "{}: a step before the last one fails: {}", case["case"], reply.text);
        let (what, patch) = step.as_object().unwrap().iter().next().unwrap();
        sent = merge_patch(&reply.json, patch);
        status = what == "status";
        let path = if status { format!("{path}/status") } else { path.clone() };
        reply = client.call("PATCH", &path, patch.clone()).await;
    }
    Done { kind, name, path, created, status, sent, reply }
}

/// Runs a case; gives the expected and the real answer in the same form.
async fn run(client: &Client, bases: &Value, case: &Value) -> (Value, Value) {
    let done = perform(client, bases, case).await;
    done.clean(client).await;
    let Done { kind, name, status, sent, reply, .. } = done;
    let mut want = case.get("ours").unwrap_or(&case["answer"]).clone();
    let mut got = json!({"code": reply.code});
    let warnings: Vec<String> = reply.headers.get_all("warning").iter().map(|v| unquote(v.to_str().unwrap())).collect();
    if !warnings.is_empty() {
        got["warnings"] = warnings.into();
    }
    want.as_object_mut().unwrap().remove("why");
    if reply.code < 300 && want["code"].as_u64().is_some_and(|code| code < 300) {
        let mut stored = body(&sent, status);
        if let Some(change) = want.as_object_mut().unwrap().remove("stored") {
            stored = merge_patch(&stored, &change);
        }
        want["stored"] = without_nulls(stored);
        got["stored"] = body(&reply.json, status);
        return (want, got);
    }
    got["reason"] = reply.json["reason"].clone();
    let message = reply.json["message"].as_str().unwrap_or_default();
    match reply.json["details"]["causes"].as_array() {
        Some(causes) => {
            let text = |c: &Value, key: &str| c[key].as_str().unwrap_or_default().to_owned();
            let one = |c: &Value| format!("{}: {}: {}", text(c, "field"), text(c, "reason"), text(c, "message"));
            let causes: Vec<String> = causes.iter().map(one).collect();
            let short: Vec<String> = once(causes.iter().map(|c| first_line(c).to_owned()));
            // The message goes with the causes, differences included; what is compared is without them.
            got["message"] = match message == message_of(&kind, &name, &causes) {
                true => message_of(&kind, &name, &short),
                false => message.to_owned(),
            }
            .into();
            got["causes"] = short.into();
        }
        None => got["message"] = first_line(message).into(),
    }
    if want.get("message").is_none()
        && let Some(causes) = want["causes"].as_array()
    {
        let causes: Vec<String> = causes.iter().map(|c| c.as_str().unwrap().to_owned()).collect();
        want["message"] = message_of(&kind, &name, &causes).into();
    }
    (want, got)
}

/// What differs, a line for each value.
fn differences(at: &str, want: &Value, got: &Value, out: &mut Vec<String>) {
    match (want, got) {
        (Value::Object(w), Value::Object(g)) => {
            let keys: std::collections::BTreeSet<&String> = w.keys().chain(g.keys()).collect();
            for key in keys {
                differences(&format!("{at}.{key}"), &want[key], &got[key], out);
            }
        }
        (Value::Array(w), Value::Array(g)) if w.len() == g.len() => {
            for (i, (w, g)) in w.iter().zip(g).enumerate() {
                differences(&format!("{at}[{i}]"), w, g, out);
            }
        }
        _ if want != got => out.push(format!("  {at}: Kubernetes {want}\n  {at}: holdfast   {got}")),
        _ => {}
    }
}

/// The text of a `Warning` header.
fn unquote(header: &str) -> String {
    let text = header.strip_prefix("299 - \"").and_then(|t| t.strip_suffix('"')).unwrap_or(header);
    text.replace("\\\"", "\"").replace("\\\\", "\\")
}

async fn client() -> Client {
    let client = Client::new().await;
    for (name, expands) in [("grows", true), ("fixed", false)] {
        let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name}, "provisioner": "example.com/disk", "allowVolumeExpansion": expands});
        client.ok("POST", "/apis/storage.k8s.io/v1/storageclasses", class).await;
    }
    client
}

#[tokio::test]
async fn kubernetes_answers_the_same() {
    let bases: Value = serde_json::from_str(include_str!("upstream/bases.json")).unwrap();
    let client = client().await;
    let (mut count, mut on_purpose, mut wrong): (_, _, Vec<String>) = (0, 0, Vec::new());
    for (file, text) in CASES {
        for case in list(text) {
            count += 1;
            on_purpose += usize::from(case.get("ours").is_some_and(|o| o["why"].is_string()));
            let (want, got) = run(&client, &bases, &case).await;
            if want != got {
                wrong.push(format!("{file}: {}", case["case"].as_str().unwrap()));
                differences("", &want, &got, &mut wrong);
            }
        }
    }
    assert!(wrong.is_empty(), "of {count} cases:\n{}", wrong.join("\n"));
    assert!(count >= 800, "{count} cases");
    assert_eq!(on_purpose, 17, "cases that we answer differently");
}

/// Columns and cells of `kubectl get -o wide`, ages apart.
#[tokio::test]
async fn kubernetes_shows_the_same_tables() {
    let bases: Value = serde_json::from_str(include_str!("upstream/bases.json")).unwrap();
    let columns: Value = serde_json::from_str(include_str!("upstream/columns.json")).unwrap();
    let client = client().await;
    let mut wrong = Vec::new();
    for case in list(include_str!("upstream/rows.json")) {
        let done = perform(&client, &bases, &case).await;
        assert!(done.reply.code < 300, "{}: {}", case["case"], done.reply.text);
        if case["deleted"] == true {
            client.ok("DELETE", &done.path, Value::Null).await;
        }
        let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
        let table = client.raw("GET", &done.path, "", accept, "").await.json;
        let definitions = table["columnDefinitions"].as_array().unwrap();
        let shown: Vec<Value> =
            definitions.iter().map(|c| json!([c["name"], c["type"], c["format"], c["priority"]])).collect();
        let mut cells = table["rows"][0]["cells"].clone();
        for (i, column) in definitions.iter().enumerate() {
            if ["Age", "Created At"].contains(&column["name"].as_str().unwrap()) {
                cells[i] = "".into();
            }
        }
        let want = json!({"columns": columns[&done.kind], "cells": case["cells"]});
        let got = json!({"columns": shown, "cells": cells});
        if want != got {
            wrong.push(case["case"].as_str().unwrap().to_owned());
            differences("", &want, &got, &mut wrong);
        }
        done.clean(&client).await;
    }
    assert!(wrong.is_empty(), "cases:\n{}", wrong.join("\n"));
}
