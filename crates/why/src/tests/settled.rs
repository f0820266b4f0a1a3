//! Objects that are as they should be, that go, or that went wrong for good.
use serde_json::json;

use super::*;
use crate::Verdict::{Fine, Retrying, Stuck, Waiting};

#[test]
fn all_is_well() {
    let user = pod(
        "web",
        json!({"spec": {"nodeName": "n1"}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}),
    );
    let objects = [bound_claim("v"), volume_on("v", "n1"), user, node("n1", true)];
    check("claim", "c", &objects, Fine, "none", &["Bound to volume v", "used by web"]);
    check("volume", "v", &objects, Fine, "none", &["Bound to claim ns/c"]);
    check("pod", "web", &objects, Fine, "none", &["runs on node n1"]);
    check("volume", "v", &[volume("v", json!({}))], Fine, "none", &["Available"]);
    check(
        "class",
        "s",
        &[class("s", "kubernetes.io/no-provisioner", true)],
        Fine,
        "none",
        &["people make its volumes"],
    );
}

#[test]
fn lost() {
    let lost = with(bound_claim("v"), json!({"status": {"phase": "Lost"}}));
    check("claim", "c", &[lost], Stuck, "volume-lost", &["never leaves Lost"]);
    check("claim", "c", &[bound_claim("v")], Stuck, "volume-lost", &["does not exist"]);
}

#[test]
fn terminating_claim() {
    let going = with(bound_claim("v"), json!({"metadata": {"deletionTimestamp": "2026-01-01T11:00:00Z"}}));
    let user = pod("web", json!({"spec": {"nodeName": "n1"}}));
    let words = ["pod(s) web use it", "kubectl delete pod web -n ns", "2026-01-01T11:00:00Z (60m ago)"];
    check("claim", "c", &[going.clone(), user.clone()], Stuck, "claim-in-use", &words);
    let ends = with(user, json!({"metadata": {"deletionTimestamp": "2026-01-01T11:59:00Z"}}));
    check("claim", "c", &[going.clone(), ends], Waiting, "claim-in-use", &[]);
    check("claim", "c", std::slice::from_ref(&going), Waiting, "going", &[]);
    let held = with(going, json!({"metadata": {"finalizers": ["example.com/backup"]}}));
    check("claim", "c", &[held], Stuck, "finalizer", &["example.com/backup"]);
}

#[test]
fn terminating_volume() {
    let going = with(volume_on("v", "n1"), json!({"metadata": {"deletionTimestamp": "2026-01-01T11:00:00Z"}}));
    check("volume", "v", &[going.clone(), bound_claim("v")], Stuck, "volume-in-use", &["kubectl delete pvc c -n ns"]);
    let attachment = json!({"kind": "VolumeAttachment", "metadata": {"name": "csi-1"},
        "spec": {"attacher": "d", "nodeName": "n1", "source": {"persistentVolumeName": "v"}}});
    check("volume", "v", &[going.clone(), attachment], Stuck, "still-attached", &["node n1", "csi-1"]);
    let held =
        with(going, json!({"metadata": {"finalizers": ["external-provisioner.volume.kubernetes.io/finalizer"]}}));
    check("volume", "v", &[held], Stuck, "finalizer", &["external-provisioner"]);
}

#[test]
fn terminating_pod() {
    let going =
        pod("web", json!({"metadata": {"deletionTimestamp": "2026-01-01T11:00:00Z"}, "spec": {"nodeName": "n1"}}));
    check("pod", "web", &[going.clone(), node("n1", false)], Stuck, "node-lost", &["out-of-service"]);
    check("pod", "web", &[going.clone(), node("n1", true)], Stuck, "cannot-end", &["--force"]);
    let held = with(going, json!({"metadata": {"finalizers": ["example.com/x"]}}));
    check("pod", "web", &[held], Stuck, "finalizer", &["example.com/x"]);
}

#[test]
fn reclaim() {
    let failed = volume("v", json!({"status": {"phase": "Failed", "message": "no deletable volume plugin matched"}}));
    check("volume", "v", &[failed], Stuck, "reclaim-failed", &["no deletable volume plugin matched"]);
    let deleting = json!({"spec": {"persistentVolumeReclaimPolicy": "Delete", "claimRef": {"namespace": "ns", "name": "c"}}, "status": {"phase": "Released"}});
    let told = event("PersistentVolume", "v", "VolumeFailedDelete", "disk is in use");
    check("volume", "v", &[volume("v", deleting.clone()), told], Retrying, "reclaim-failed", &["disk is in use"]);
    check("volume", "v", &[volume("v", deleting)], Waiting, "reclaiming", &[]);
}

#[test]
fn expansion() {
    let condition = |kind: &str| {
        let conditions = json!([{"type": kind, "status": "True", "message": "too big"}]);
        [with(bound_claim("v"), json!({"status": {"conditions": conditions}})), volume("v", json!({}))]
    };
    check("claim", "c", &condition("FileSystemResizePending"), Waiting, "file-system-resize", &["a pod that mounts"]);
    check("claim", "c", &condition("ControllerResizeError"), Retrying, "expansion-failed", &["too big"]);
}

#[test]
fn what_could_not_be_read_is_told() {
    let mut facts = facts(&[bound_claim("v")]);
    facts.unread = vec!["volumes (forbidden)".into()];
    let answer = ask("claim", "c", &facts);
    assert_eq!(answer.verdict, Fine, "a volume that could not be read is not missing: {answer:?}");
    assert!(answer.text(now()).iter().any(|l| l.contains("volumes (forbidden)")));
}
