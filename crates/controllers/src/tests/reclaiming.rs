//! What the controllers say and keep of volumes that nodes reclaim.
use serde_json::json;

use super::*;

#[test]
fn a_volume_that_no_node_reclaims_says_so_until_one_comes() {
    for (policy, path, reason, does) in [
        ("Recycle", "/data", "VolumeFailedRecycle", "empties it"),
        ("Delete", "/tmp/v", "VolumeFailedDelete", "deletes what is behind it"),
    ] {
        let mut cluster = Cluster::new();
        let spec = json!({ "persistentVolumeReclaimPolicy": policy, "hostPath": { "path": path } });
        let mut more = on_host("m");
        json_patch::merge(&mut more, &json!({ "spec": spec }));
        let volume = cluster.make(pv("v", "1Gi", more));
        let claim = cluster.make(pvc("c", "1Gi", json!({})));
        cluster.make(node("n", json!({})));
        cluster.settle();
        cluster.delete(&claim, None);
        cluster.settle();
        let why = format!("the volume stays Released until a node that reaches it {does}, and there is no such node");
        let status = |cluster: &Cluster| cluster.get(&volume)["status"].clone();
        assert_eq!((cluster.phase(&volume), &status(&cluster)["message"]), ("Released", &json!(why)));
        assert_eq!(cluster.noted(reason), [why.as_str()]);
        let down = json!({ "status": { "conditions": [{ "type": "Ready", "status": "Unknown" }] } });
        let m = cluster.make(node("m", down));
        cluster.settle();
        assert_eq!(status(&cluster)["message"], why, "it is down");
        cluster.edit(&m, json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } }));
        cluster.settle();
        assert_eq!((cluster.phase(&volume), &status(&cluster)["message"]), ("Released", &Value::Null));
        // Kept after all.
        cluster.delete(&m, None);
        cluster.edit(&volume, json!({ "spec": { "persistentVolumeReclaimPolicy": "Retain" } }));
        cluster.settle();
        assert_eq!(status(&cluster)["message"], Value::Null);
    }
}

#[test]
fn the_finalizer_of_in_tree_volumes_follows_their_policy() {
    const OURS: &str = "kubernetes.io/pv-controller";
    const EXTERNAL: &str = "external-provisioner.volume.kubernetes.io/finalizer";
    const PROTECTION: &str = "kubernetes.io/pv-protection";
    let table: &[(&str, &str, &[&str], &[&str])] = &[
        ("kubernetes.io/host-path", "Delete", &[], &[PROTECTION, OURS]),
        ("kubernetes.io/host-path", "Delete", &[EXTERNAL, OURS], &[PROTECTION, OURS]),
        ("kubernetes.io/host-path", "Retain", &[OURS, EXTERNAL], &[PROTECTION]),
        ("kubernetes.io/host-path", "Recycle", &[OURS], &[PROTECTION]),
        ("kubernetes.io/host-path", "Retain", &[EXTERNAL], &[PROTECTION]),
        ("kubernetes.io/gce-pd", "Delete", &[OURS, EXTERNAL], &[PROTECTION, EXTERNAL]),
        ("example.com/maker", "Delete", &[EXTERNAL], &[PROTECTION, EXTERNAL]),
        ("", "Delete", &[OURS], &[PROTECTION, OURS]),
    ];
    for (maker, policy, before, after) in table {
        let mut cluster = Cluster::new();
        let annotations =
            if maker.is_empty() { json!({}) } else { json!({ "pv.kubernetes.io/provisioned-by": maker }) };
        let more =
            json!({ "metadata": { "annotations": annotations }, "spec": { "persistentVolumeReclaimPolicy": policy } });
        let volume = cluster.make(pv("v", "1Gi", more));
        let given: Vec<&str> = [PROTECTION].iter().chain(*before).copied().collect();
        cluster.edit(&volume, json!({ "metadata": { "finalizers": given } }));
        cluster.settle();
        let metadata = cluster.get(&volume)["metadata"].clone();
        assert_eq!(metadata["finalizers"], json!(after), "{maker} {policy} {before:?}");
        let driver = if *maker == "kubernetes.io/gce-pd" { json!("pd.csi.storage.gke.io") } else { Value::Null };
        assert_eq!(metadata["annotations"]["pv.kubernetes.io/migrated-to"], driver);
    }
    // One that is going gets none.
    let mut cluster = Cluster::new();
    let annotations = json!({ "pv.kubernetes.io/provisioned-by": "kubernetes.io/host-path" });
    let more =
        json!({ "metadata": { "annotations": annotations }, "spec": { "persistentVolumeReclaimPolicy": "Delete" } });
    let volume = cluster.make(pv("v", "1Gi", more));
    cluster.edit(&volume, json!({ "metadata": { "finalizers": ["example.com/mine"] } }));
    cluster.delete(&volume, None);
    cluster.settle();
    assert_eq!(cluster.get(&volume)["metadata"]["finalizers"], json!(["example.com/mine"]));
}
