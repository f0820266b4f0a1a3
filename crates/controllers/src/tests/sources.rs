//! What new volumes begin with.
use csi::{ContentSource, ControllerRpcType, Facts};

use super::*;
use crate::content_source::{Content, content_source};

fn facts() -> Facts {
    let mut facts = Facts { name: "d.e".into(), ..Default::default() };
    facts.controller.insert(ControllerRpcType::CreateDeleteSnapshot);
    facts.controller.insert(ControllerRpcType::CloneVolume);
    facts
}

fn group(kind: &str, name: &str, more: Value) -> Value {
    let mut object = json!({ "apiVersion": "snapshot.storage.k8s.io/v1", "kind": kind, "metadata": { "name": name } });
    json_patch::merge(&mut object, &more);
    object
}

/// A bound claim `c` of 2Gi and a ready snapshot `s` of 1Gi, both of driver `d.e`.
fn stage() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.make(class("k", "d.e", false));
    let source = json!({ "spec": { "hostPath": null, "csi": { "driver": "d.e", "volumeHandle": "volume" } } });
    cluster.make(pv("v", "2Gi", source));
    cluster.make(pvc("c", "2Gi", json!({})));
    let snapshot = cluster.make(group(
        "VolumeSnapshot",
        "s",
        json!({ "spec": { "source": { "volumeSnapshotContentName": "e" } } }),
    ));
    let uid = cluster.get(&snapshot)["metadata"]["uid"].clone();
    let status = json!({ "snapshotHandle": "snapshot", "readyToUse": true, "restoreSize": 1 << 30 });
    let spec = json!({
        "driver": "d.e", "deletionPolicy": "Retain", "source": { "snapshotHandle": "snapshot" },
        "sourceVolumeMode": "Filesystem", "volumeSnapshotRef": { "name": "s", "namespace": "ns", "uid": uid },
    });
    cluster.make(group("VolumeSnapshotContent", "e", json!({ "spec": spec, "status": status })));
    cluster.settle();
    assert_eq!(cluster.get(&snapshot)["status"]["readyToUse"], true);
    cluster
}

fn from(kind: &str, name: &str) -> Value {
    let group = if kind == "VolumeSnapshot" { json!("snapshot.storage.k8s.io") } else { Value::Null };
    json!({ "spec": { "dataSource": { "apiGroup": group, "kind": kind, "name": name } } })
}

/// What a claim of `size` with these fields is told in a cluster that was changed.
fn asked(mut cluster: Cluster, size: &str, more: Value, driver: &Facts) -> Result<Content, String> {
    let key = cluster.make(pvc("new", size, more));
    let objects = cluster.objects.clone();
    cluster.refresh(&objects);
    let (meta, claim) = cluster.world.claim("ns", "new").unwrap();
    assert_eq!(meta.key, key);
    content_source((meta, claim), cluster.world.class("k").unwrap().1, driver, &cluster.world)
}

#[test]
fn a_claim_gets_what_its_source_has() {
    let of = |content| match content {
        Ok(Content::From { source, protect: Some(action) }) => {
            let Action::Patch { target, patch, .. } = *action else { panic!("{action:?}") };
            (source.r#type.unwrap(), target.key.to_string(), patch["metadata"]["finalizers"].as_array().cloned())
        }
        other => panic!("{other:?}"),
    };
    let (source, whom, finalizers) = of(asked(stage(), "1Gi", from("VolumeSnapshot", "s"), &facts()));
    assert_eq!(source, ContentSource::Snapshot(csi::SnapshotSource { snapshot_id: "snapshot".into() }));
    let finalizer = json!("provisioner.storage.kubernetes.io/volumesnapshot-as-source-protection");
    assert_eq!((&*whom, finalizers.unwrap().contains(&finalizer)), ("VolumeSnapshot ns/s", true));
    let (source, whom, finalizers) = of(asked(stage(), "3Gi", from("PersistentVolumeClaim", "c"), &facts()));
    assert_eq!(source, ContentSource::Volume(csi::VolumeSource { volume_id: "volume".into() }));
    let finalizer = json!("provisioner.storage.kubernetes.io/cloning-protection");
    assert_eq!((&*whom, finalizers.unwrap().contains(&finalizer)), ("PersistentVolumeClaim ns/c", true));
    let by_reference = json!({ "spec": { "dataSourceRef": { "kind": "PersistentVolumeClaim", "name": "c" } } });
    assert!(matches!(asked(stage(), "2Gi", by_reference, &facts()), Ok(Content::From { .. })));
    assert_eq!(asked(stage(), "1Gi", json!({}), &facts()), Ok(Content::Empty));
    let foreign = json!({ "spec": { "dataSource": { "apiGroup": "x.y", "kind": "Book", "name": "b" } } });
    assert_eq!(asked(stage(), "1Gi", foreign, &facts()), Ok(Content::Populated));
}

#[test]
fn a_source_that_does_not_do_is_told_why() {
    const RESTORE: &str = "error getting handle for DataSource Type VolumeSnapshot by Name s: ";
    const CLONE: &str = "error getting handle for DataSource Type PersistentVolumeClaim by Name c: ";
    const INVALID: &str = "claim in dataSource not bound or invalid";
    let content = Key::new("VolumeSnapshotContent", "", "e");
    let snapshot = Key::new("VolumeSnapshot", "ns", "s");
    let claim = Key::new("PersistentVolumeClaim", "ns", "c");
    let volume = Key::new("PersistentVolume", "", "v");
    let block = json!({ "spec": { "volumeMode": "Block" } });
    // What is changed, the size asked for, more of the claim, the end of the sentence.
    type Case<'a> = (&'a Key, Value, &'a str, Value, &'a str);
    let restores: [Case; 10] = [
        (&snapshot, json!({ "status": null }), "1Gi", json!({}), "snapshot s not bound"),
        (
            &snapshot,
            json!({ "status": { "boundVolumeSnapshotContentName": "x" } }),
            "1Gi",
            json!({}),
            "error getting snapshotcontent x for snapshot s",
        ),
        (
            &content,
            json!({ "spec": { "volumeSnapshotRef": { "uid": "x" } } }),
            "1Gi",
            json!({}),
            "snapshotcontent e for snapshot s is bound to a different snapshot",
        ),
        (
            &content,
            json!({ "spec": { "driver": "x.y" } }),
            "1Gi",
            json!({}),
            "snapshotcontent e for snapshot s is not handled by CSI driver of StorageClass k",
        ),
        (&snapshot, json!({ "status": { "readyToUse": false } }), "1Gi", json!({}), "snapshot s is not Ready"),
        (
            &content,
            json!({ "status": { "snapshotHandle": null } }),
            "1Gi",
            json!({}),
            "snapshot handle s is not available",
        ),
        (
            &snapshot,
            json!({}),
            "1023Mi",
            json!({}),
            "requested volume size 1072693248 is less than the size 1073741824 for the source snapshot s",
        ),
        (
            &snapshot,
            json!({}),
            "1Gi",
            block.clone(),
            "requested volume ns/new modifies the mode of the source volume but does not have permission to do so. \
             snapshot.storage.kubernetes.io/allow-volume-mode-change annotation is not present on snapshotcontent e",
        ),
        (
            &content,
            json!({ "metadata": { "annotations": { "snapshot.storage.kubernetes.io/allow-volume-mode-change": "no" } } }),
            "1Gi",
            block.clone(),
            "requested volume ns/new modifies the mode of the source volume but does not have permission to do so. failed \
             to convert snapshot.storage.kubernetes.io/allow-volume-mode-change annotation value to boolean with error: \
             strconv.ParseBool: parsing \"no\": invalid syntax",
        ),
        (
            &snapshot,
            json!({ "metadata": { "deletionTimestamp": "2030-01-01T00:00:00Z" } }),
            "1Gi",
            json!({}),
            "snapshot s is being deleted",
        ),
    ];
    for (key, change, size, mut more, end) in restores {
        let mut cluster = stage();
        cluster.edit(key, change);
        json_patch::merge(&mut more, &from("VolumeSnapshot", "s"));
        assert_eq!(asked(cluster, size, more, &facts()), Err(format!("{RESTORE}{end}")));
    }
    let clones: [Case; 8] = [
        (
            &claim,
            json!({ "status": { "phase": "Pending" } }),
            "2Gi",
            json!({}),
            "the PVC DataSource c must have a status of Bound.  Got Pending",
        ),
        (
            &claim,
            json!({ "metadata": { "deletionTimestamp": "2030-01-01T00:00:00Z" } }),
            "2Gi",
            json!({}),
            "the PVC DataSource c is currently being deleted",
        ),
        (
            &claim,
            json!({}),
            "1Gi",
            json!({}),
            "error, new PVC request must be greater than or equal in size to the specified PVC data source, requested \
             1073741824 but source is 2147483648",
        ),
        (&volume, json!({ "spec": { "csi": { "driver": "x.y" } } }), "2Gi", json!({}), INVALID),
        (&volume, json!({ "spec": { "claimRef": { "uid": "x" } } }), "2Gi", json!({}), INVALID),
        (&volume, json!({ "status": { "phase": "Released" } }), "2Gi", json!({}), INVALID),
        (
            &claim,
            json!({ "spec": { "storageClassName": "" } }),
            "2Gi",
            json!({}),
            "the source PVC (c) storageclass cannot be empty",
        ),
        (
            &volume,
            json!({}),
            "2Gi",
            block,
            "the source PVC and destination PVCs must have the same volume mode for cloning.  Source is Filesystem, but \
             new PVC requested Block",
        ),
    ];
    for (key, change, size, mut more, end) in clones {
        let mut cluster = stage();
        cluster.edit(key, change);
        json_patch::merge(&mut more, &from("PersistentVolumeClaim", "c"));
        assert_eq!(asked(cluster, size, more, &facts()), Err(format!("{CLONE}{end}")));
    }
}

#[test]
fn what_no_change_of_the_source_would_mend_is_told_by_itself() {
    let told = |more: Value, driver: &Facts, words: &str| {
        assert_eq!(asked(stage(), "2Gi", more, driver), Err(words.to_owned()));
    };
    let missing = from("PersistentVolumeClaim", "x");
    told(
        missing,
        &facts(),
        "error getting handle for DataSource Type PersistentVolumeClaim by Name x: error getting PVC x (namespace \"ns\") \
         from api server: persistentvolumeclaim \"x\" not found",
    );
    told(
        from("VolumeSnapshot", "x"),
        &facts(),
        "error getting handle for DataSource Type VolumeSnapshot by Name x: error getting snapshot x from api server: \
         volumesnapshots.snapshot.storage.k8s.io \"x\" not found",
    );
    let elsewhere =
        json!({ "spec": { "dataSourceRef": { "kind": "PersistentVolumeClaim", "name": "c", "namespace": "x" } } });
    told(
        elsewhere,
        &facts(),
        "dataSourceRef namespace specified but the CrossNamespaceVolumeDataSource feature is disabled",
    );
    let mut other_group = from("VolumeSnapshot", "s");
    other_group["spec"]["dataSource"]["apiGroup"] = json!("x.y");
    told(
        other_group,
        &facts(),
        "the PVC source does not belong to the right APIGroup. Expected snapshot.storage.k8s.io, Got x.y",
    );
    let poor = Facts { name: "d.e".into(), ..Default::default() };
    told(
        from("VolumeSnapshot", "s"),
        &poor,
        "CSI driver does not support snapshot restore: controller CREATE_DELETE_SNAPSHOT capability is not reported",
    );
    told(
        from("PersistentVolumeClaim", "c"),
        &poor,
        "CSI driver does not support clone operations: controller CLONE_VOLUME capability is not reported",
    );
}

#[test]
fn a_source_is_let_go_when_no_claim_waits_for_it() {
    let restored = "provisioner.storage.kubernetes.io/volumesnapshot-as-source-protection";
    let cloned = "provisioner.storage.kubernetes.io/cloning-protection";
    let mut cluster = stage();
    let (snapshot, claim) = (Key::new("VolumeSnapshot", "ns", "s"), Key::new("PersistentVolumeClaim", "ns", "c"));
    for (key, finalizer) in [(&snapshot, restored), (&claim, cloned)] {
        let mut all = cluster.get(key)["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        all.push(json!(finalizer));
        cluster.edit(key, json!({ "metadata": { "finalizers": all } }));
    }
    let elsewhere = |source: Value| {
        let mut more = json!({ "spec": { "storageClassName": "none" } });
        json_patch::merge(&mut more, &source);
        more
    };
    let waiting = [
        cluster.make(pvc("a", "1Gi", elsewhere(from("VolumeSnapshot", "s")))),
        cluster.make(pvc("b", "2Gi", elsewhere(from("PersistentVolumeClaim", "c")))),
    ];
    cluster.delete(&snapshot, None);
    cluster.delete(&claim, None);
    cluster.settle();
    assert!(!cluster.get(&snapshot).is_null() && !cluster.get(&claim).is_null());
    waiting.iter().for_each(|key| cluster.delete(key, None));
    cluster.settle();
    assert!(cluster.get(&snapshot).is_null() && cluster.get(&claim).is_null());
}

#[test]
fn a_claim_keeps_what_its_source_lacks() {
    let mut cluster = stage();
    let snapshot = Key::new("VolumeSnapshot", "ns", "s");
    cluster.edit(&snapshot, json!({ "status": { "readyToUse": false } }));
    cluster.edit(&Key::new("VolumeSnapshotContent", "", "e"), json!({ "status": { "readyToUse": false } }));
    let key = cluster.make(pvc("new", "1Gi", from("VolumeSnapshot", "s")));
    cluster.now = "2030-01-01T00:00:02Z".parse().unwrap();
    cluster.settle();
    let condition = |cluster: &Cluster| cluster.get(&key)["status"]["conditions"][0].clone();
    let (reason, message) = ("SnapshotNotReady", "Its volume is to be made from snapshot s, which is not ready");
    assert_eq!((&condition(&cluster)["reason"], &condition(&cluster)["message"]), (&json!(reason), &json!(message)));
    cluster.edit(&Key::new("VolumeSnapshotContent", "", "e"), json!({ "status": { "readyToUse": true } }));
    cluster.settle();
    assert_eq!(condition(&cluster)["reason"], "ExternalProvisioner");
}
