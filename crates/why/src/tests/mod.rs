//! Each cause set up as objects and Events; the explanation has to name it.
mod causes;
mod settled;
mod snapshots;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, from_value, json};

use crate::{Answer, Facts, Subject, Verdict, explain};

/// The time at which everything is asked.
pub(super) fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}
fn ago(seconds: i64) -> String {
    (now() - SignedDuration::from_secs(seconds)).to_string()
}

/// Facts from objects of any of the kinds.
pub(super) fn facts(objects: &[Value]) -> Facts {
    let mut facts = Facts { config_maps: Some(Vec::new()), secrets: Some(Vec::new()), ..Facts::default() };
    for object in objects {
        let o = object.clone();
        match object["kind"].as_str().unwrap() {
            "PersistentVolumeClaim" => facts.claims.push(from_value(o).unwrap()),
            "PersistentVolume" => facts.volumes.push(from_value(o).unwrap()),
            "StorageClass" => facts.classes.push(from_value(o).unwrap()),
            "Pod" => facts.pods.push(from_value(o).unwrap()),
            "Node" => facts.nodes.push(from_value(o).unwrap()),
            "Event" => facts.events.push(from_value(o).unwrap()),
            "CSIDriver" => facts.drivers.push(from_value(o).unwrap()),
            "CSINode" => facts.csi_nodes.push(from_value(o).unwrap()),
            "VolumeAttachment" => facts.attachments.push(from_value(o).unwrap()),
            "Lease" => facts.leases.push(from_value(o).unwrap()),
            "ConfigMap" => facts.config_maps.as_mut().unwrap().push(from_value(o).unwrap()),
            "VolumeSnapshot" => facts.snapshots.push(from_value(o).unwrap()),
            "VolumeSnapshotContent" => facts.snapshot_contents.push(from_value(o).unwrap()),
            "VolumeSnapshotClass" => facts.snapshot_classes.push(from_value(o).unwrap()),
            other => panic!("{other}"),
        }
    }
    facts
}

/// Puts fields over an object's own, as a merge patch does.
pub(super) fn with(mut object: Value, change: Value) -> Value {
    fn merge(into: &mut Value, change: Value) {
        match change {
            Value::Object(fields) if into.is_object() => {
                for (key, value) in fields {
                    merge(&mut into[&key], value);
                }
            }
            other => *into = other,
        }
    }
    merge(&mut object, change);
    object
}

pub(super) fn claim(name: &str, change: Value) -> Value {
    let base = json!({"kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "ns", "uid": "uid-of-the-claim",
            "creationTimestamp": ago(600), "finalizers": ["kubernetes.io/pvc-protection"]},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}, "storageClassName": "",
            "volumeMode": "Filesystem"},
        "status": {"phase": "Pending"}});
    with(base, change)
}
pub(super) fn volume(name: &str, change: Value) -> Value {
    let base = json!({"kind": "PersistentVolume", "metadata": {"name": name, "uid": name, "creationTimestamp": ago(900)},
        "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"}, "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/data"}},
        "status": {"phase": "Available"}});
    with(base, change)
}
pub(super) fn class(name: &str, provisioner: &str, late: bool) -> Value {
    let mode = if late { "WaitForFirstConsumer" } else { "Immediate" };
    json!({"kind": "StorageClass", "metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode})
}
/// A pod with one volume, `data`, on a claim `c`.
pub(super) fn pod(name: &str, change: Value) -> Value {
    let base = json!({"kind": "Pod", "metadata": {"name": name, "namespace": "ns", "uid": name, "creationTimestamp": ago(600)},
        "spec": {"schedulerName": "default-scheduler", "containers": [{"name": "main", "image": "app"}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]},
        "status": {"phase": "Pending"}});
    with(base, change)
}
pub(super) fn node(name: &str, ready: bool) -> Value {
    json!({"kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"conditions": [{"type": "Ready", "status": if ready { "True" } else { "Unknown" }}]}})
}
pub(super) fn event(kind: &str, name: &str, reason: &str, message: &str) -> Value {
    json!({"kind": "Event", "metadata": {"name": format!("{name}.{reason}"), "namespace": "ns"},
        "involvedObject": {"kind": kind, "name": name, "namespace": "ns"}, "reason": reason, "message": message,
        "firstTimestamp": ago(300), "lastTimestamp": ago(10)})
}
pub(super) fn volume_on(name: &str, node: &str) -> Value {
    let terms = json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]);
    let affinity = json!({"required": {"nodeSelectorTerms": terms}});
    volume(
        name,
        json!({"spec": {"nodeAffinity": affinity, "claimRef": {"namespace": "ns", "name": "c", "uid": "uid-of-the-claim"}},
        "status": {"phase": "Bound"}}),
    )
}
pub(super) fn bound_claim(volume: &str) -> Value {
    claim(
        "c",
        json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": volume},
        "status": {"phase": "Bound"}}),
    )
}

pub(super) fn ask(kind: &str, name: &str, facts: &Facts) -> Answer {
    let (namespace, name) = ("ns".to_owned(), name.to_owned());
    let subject = match kind {
        "claim" => Subject::Claim { namespace, name },
        "volume" => Subject::Volume(name),
        "class" => Subject::Class(name),
        "snapshot" => Subject::Snapshot { namespace, name },
        _ => Subject::Pod { namespace, name },
    };
    explain(&subject, facts, now()).expect("the object is among the facts")
}

/// The explanation has this verdict and cause, and its text has each of the words.
#[track_caller]
pub(super) fn check(
    kind: &str,
    name: &str,
    objects: &[Value],
    verdict: Verdict,
    cause: &str,
    words: &[&str],
) -> Answer {
    let answer = ask(kind, name, &facts(objects));
    let text = answer.text(now()).join("\n");
    assert_eq!((answer.verdict, answer.cause), (verdict, cause), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing from:\n{text}");
    }
    assert_eq!(answer.is_normal(), matches!(verdict, Verdict::Fine | Verdict::Waiting));
    answer
}
