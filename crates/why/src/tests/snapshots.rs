//! Why a snapshot is not ready, or not gone.
use serde_json::json;

use super::*;
use crate::Verdict::{Retrying, Stuck, Waiting};

const DRIVER: &str = "disks.example.com";

fn snapshot(change: Value) -> Value {
    let base = json!({"kind": "VolumeSnapshot", "metadata": {"name": "s", "namespace": "ns", "uid": "uid-of-the-snapshot",
            "creationTimestamp": ago(600)},
        "spec": {"source": {"persistentVolumeClaimName": "c"}}});
    with(base, change)
}

fn content(change: Value) -> Value {
    let base = json!({"kind": "VolumeSnapshotContent", "metadata": {"name": "e", "creationTimestamp": ago(600)},
        "spec": {"driver": DRIVER, "deletionPolicy": "Delete", "source": {"volumeHandle": "h"},
            "volumeSnapshotRef": {"namespace": "ns", "name": "s", "uid": "uid-of-the-snapshot"}}});
    with(base, change)
}

fn snapshot_class(name: &str, driver: &str) -> Value {
    let default = json!({"snapshot.storage.kubernetes.io/is-default-class": "true"});
    json!({"kind": "VolumeSnapshotClass", "metadata": {"name": name, "annotations": default}, "driver": driver,
        "deletionPolicy": "Delete"})
}

/// A bound claim of a driver's volume.
fn bound() -> [Value; 2] {
    let volume = volume("v", json!({"spec": {"hostPath": null, "csi": {"driver": DRIVER, "volumeHandle": "h"}}}));
    [claim("c", json!({"spec": {"volumeName": "v"}, "status": {"phase": "Bound"}})), volume]
}

#[track_caller]
fn says(objects: &[Value], verdict: Verdict, cause: &str, words: &[&str]) {
    let mut all = objects.to_vec();
    all.extend(bound());
    check("snapshot", "s", &all, verdict, cause, words);
}

#[test]
fn one_that_is_ready_is_fine() {
    let ready = json!({"status": {"readyToUse": true, "boundVolumeSnapshotContentName": "e"}});
    says(&[snapshot(ready)], Verdict::Fine, "none", &["ready to use"]);
}

#[test]
fn its_claim_or_class_may_be_wrong() {
    let of = |name: &str| snapshot(json!({"spec": {"source": {"persistentVolumeClaimName": name}}}));
    says(&[of("x")], Stuck, "claim-not-found", &["claim \"x\", which does not exist"]);
    let pending = claim("late", json!({}));
    says(&[of("late"), pending], Waiting, "claim-not-bound", &["holdfast why pvc/late -n ns"]);
    let by_host =
        [volume("h", json!({})), claim("host", json!({"spec": {"volumeName": "h"}, "status": {"phase": "Bound"}}))];
    let objects = [of("host"), by_host[0].clone(), by_host[1].clone()];
    says(&objects, Stuck, "not-a-csi-volume", &["volume h of claim host"]);
    let none = format!("no VolumeSnapshotClass is the default of driver {DRIVER}");
    says(&[snapshot(json!({}))], Stuck, "no-default-class", &["there are none", &none]);
    let other = snapshot_class("other", "x.y");
    says(&[snapshot(json!({})), other.clone()], Stuck, "no-default-class", &["there are other", &none]);
    let several = [snapshot(json!({})), snapshot_class("a", DRIVER), snapshot_class("b", DRIVER)];
    let fix = "kubectl annotate volumesnapshotclass b snapshot.storage.kubernetes.io/is-default-class-";
    says(&several, Stuck, "several-default-classes", &["a, b", fix]);
    let named = |class: &str| snapshot(json!({"spec": {"volumeSnapshotClassName": class}}));
    says(&[named("k"), other.clone()], Stuck, "class-not-found", &["\"k\" does not exist", "there are other"]);
    says(&[named("other"), other], Stuck, "class-of-another-driver", &["driver x.y", DRIVER]);
}

#[test]
fn a_wrong_class_is_explained_better_than_by_the_error() {
    let failed =
        json!({"spec": {"volumeSnapshotClassName": "k"}, "status": {"error": {"message": "Failed to get it"}}});
    says(&[snapshot(failed)], Stuck, "class-not-found", &["\"k\" does not exist"]);
}

#[test]
fn the_content_that_it_names_may_be_wrong() {
    let source = json!({"persistentVolumeClaimName": null, "volumeSnapshotContentName": "e"});
    let named = snapshot(json!({"spec": {"source": source}}));
    says(
        std::slice::from_ref(&named),
        Stuck,
        "snapshot-content-not-found",
        &["VolumeSnapshotContent \"e\" does not exist"],
    );
    let other = content(json!({"spec": {"volumeSnapshotRef": {"name": "t"}}}));
    says(&[named.clone(), other], Stuck, "snapshot-content-of-another", &["is for snapshot ns/t"]);
    let before = content(json!({"spec": {"volumeSnapshotRef": {"uid": "x"}}}));
    says(&[named, before], Stuck, "snapshot-content-of-another", &["with another UID"]);
}

#[test]
fn the_driver_may_fail_or_take_its_time() {
    let at_it = |error: Value| {
        let status = json!({"status": {"boundVolumeSnapshotContentName": "e", "readyToUse": false, "error": error}});
        [snapshot(status), content(json!({})), snapshot_class("k", DRIVER)]
    };
    let failed = json!({"message": "no room", "time": ago(60)});
    says(&at_it(failed), Retrying, "snapshot-failed", &["no room", "kubectl describe volumesnapshot s -n ns"]);
    says(&at_it(json!(null)), Stuck, "provisioner-not-running", &[DRIVER]);
    let mut running = at_it(json!(null)).to_vec();
    running.push(
        json!({"kind": "CSINode", "metadata": {"name": "n"}, "spec": {"drivers": [{"name": DRIVER, "nodeID": "n"}]}}),
    );
    running.push(json!({"kind": "Pod", "metadata": {"name": "disks-0", "namespace": "storage"},
        "spec": {"containers": [{"name": "main", "image": "x", "args": [format!("--driver-name={DRIVER}")]}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}));
    says(&running, Waiting, "snapshot-in-progress", &["has not finished it"]);
}

#[test]
fn nobody_may_have_begun() {
    let class = snapshot_class("k", DRIVER);
    let young = snapshot(json!({"metadata": {"creationTimestamp": ago(2)}}));
    says(&[young, class.clone()], Waiting, "snapshot-in-progress", &["no VolumeSnapshotContent was made for it"]);
    says(&[snapshot(json!({})), class], Stuck, "snapshot-controller-not-running", &["no VolumeSnapshotContent"]);
    let lost = snapshot(json!({"status": {"boundVolumeSnapshotContentName": "e"}}));
    says(&[lost, snapshot_class("k", DRIVER)], Stuck, "snapshot-content-lost", &["\"e\" does not exist"]);
}

#[test]
fn one_that_is_deleted_says_who_keeps_it() {
    let going = |more: Value| {
        let finalizer = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection";
        let base = json!({"metadata": {"deletionTimestamp": ago(60), "finalizers": [finalizer]},
            "status": {"readyToUse": true, "boundVolumeSnapshotContentName": "e"}});
        snapshot(with(base, more))
    };
    let source =
        json!({"spec": {"dataSource": {"kind": "VolumeSnapshot", "apiGroup": "snapshot.storage.k8s.io", "name": "s"}}});
    says(
        &[going(json!({})), content(json!({})), claim("r", source)],
        Waiting,
        "snapshot-in-use",
        &["claim ns/r waits for a volume made from it", "holdfast why pvc/r -n ns"],
    );
    let gone = content(json!({"metadata": {"deletionTimestamp": ago(60)}}));
    says(&[going(json!({})), gone], Stuck, "provisioner-not-running", &["has yet to delete what is behind it"]);
    says(&[going(json!({}))], Waiting, "finalizers", &["volumesnapshot-bound-protection"]);
}

#[test]
fn a_claim_waits_for_what_its_volume_is_to_be_made_from() {
    let of = |kind: &str, name: &str| {
        let group = if kind == "VolumeSnapshot" { json!("snapshot.storage.k8s.io") } else { json!(null) };
        let source = json!({"apiGroup": group, "kind": kind, "name": name});
        claim("r", json!({"spec": {"dataSource": source, "storageClassName": "fast"}}))
    };
    let fast = class("fast", DRIVER, false);
    let check = |objects: &[Value], verdict, cause, words: &[&str]| {
        let mut all = objects.to_vec();
        all.push(fast.clone());
        all.extend(bound());
        check("claim", "r", &all, verdict, cause, words);
    };
    let restores = || of("VolumeSnapshot", "s");
    check(&[restores()], Stuck, "snapshot-not-found", &["snapshot s, which does not exist"]);
    check(&[restores(), snapshot(json!({}))], Waiting, "snapshot-not-ready", &["holdfast why vs/s -n ns"]);
    let large = snapshot(json!({"status": {"readyToUse": true, "restoreSize": "6Gi"}}));
    check(&[restores(), large], Stuck, "snapshot-too-large", &["takes 6Gi, and the claim requests 5Gi"]);
    check(&[of("PersistentVolumeClaim", "x")], Stuck, "source-claim-not-found", &["claim x, which does not exist"]);
    let pending = claim("late", json!({}));
    let clones = of("PersistentVolumeClaim", "late");
    check(&[clones, pending], Waiting, "source-claim-not-bound", &["holdfast why pvc/late -n ns"]);
    let mut larger = bound();
    larger[0]["metadata"]["name"] = json!("big");
    larger[0]["spec"]["resources"]["requests"]["storage"] = json!("6Gi");
    let clones = of("PersistentVolumeClaim", "big");
    check(&[clones, larger[0].clone()], Stuck, "source-claim-too-large", &["takes 6Gi"]);
}
