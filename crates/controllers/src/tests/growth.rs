//! Claims that ask for more than they have.
use serde_json::json;

use super::*;

fn bound(cluster: &mut Cluster, source: Value) -> (Key, Key) {
    let volume = cluster.make(pv("v", "1Gi", json!({ "spec": source })));
    let claim = cluster.make(pvc("c", "1Gi", json!({})));
    cluster.settle();
    assert_eq!(cluster.phase(&claim), "Bound");
    (volume, claim)
}

fn ask(cluster: &mut Cluster, claim: &Key, size: &str) {
    cluster.edit(claim, json!({ "spec": { "resources": { "requests": { "storage": size } } } }));
    cluster.settle();
}

#[test]
fn what_nobody_here_can_grow_is_left_to_others() {
    let mut cluster = Cluster::new();
    let (volume, claim) = bound(&mut cluster, json!({}));
    let before = cluster.get(&volume).clone();
    assert_eq!(cluster.noted("ExternalExpanding"), [""; 0]);
    ask(&mut cluster, &claim, "2Gi");
    assert_eq!(cluster.noted("ExternalExpanding"), ["waiting for an external controller to expand this PVC"]);
    assert_eq!(cluster.get(&volume), &before);
    let status = &cluster.get(&claim)["status"];
    assert_eq!((&status["capacity"]["storage"], &status["conditions"]), (&json!("1Gi"), &Value::Null));
}

#[test]
fn the_driver_in_place_of_an_in_tree_plugin_is_asked() {
    let mut cluster = Cluster::new();
    let (_, claim) = bound(&mut cluster, json!({ "hostPath": null, "gcePersistentDisk": { "pdName": "d" } }));
    ask(&mut cluster, &claim, "2Gi");
    let told = "CSI migration enabled for kubernetes.io/gce-pd; waiting for external resizer to expand the pvc";
    assert_eq!(cluster.noted("ExternalExpanding"), [told]);
    let resizer = &cluster.get(&claim)["metadata"]["annotations"]["volume.kubernetes.io/storage-resizer"];
    assert_eq!(resizer, "pd.csi.storage.gke.io");
}

#[test]
fn a_local_volume_is_grown_by_its_node_once_its_object_says_that_there_is_more() {
    let mut cluster = Cluster::new();
    let local = json!({ "hostPath": null, "local": { "path": "/dev/d" } });
    let (volume, claim) = bound(&mut cluster, local);
    let status = |cluster: &Cluster| cluster.get(&claim)["status"].clone();
    let kept =
        |cluster: &Cluster| cluster.get(&volume)["metadata"]["annotations"][api::growth::PRE_RESIZE_CAPACITY].clone();
    ask(&mut cluster, &claim, "3Gi");
    assert_eq!(cluster.noted("ExternalExpanding").len(), 1);
    assert_eq!(status(&cluster)["allocatedResources"], Value::Null);
    cluster.edit(&volume, json!({ "spec": { "capacity": { "storage": "3Gi" } } }));
    cluster.settle();
    assert_eq!(status(&cluster)["allocatedResources"]["storage"], "3Gi");
    assert_eq!(status(&cluster)["allocatedResourceStatuses"]["storage"], "NodeResizePending");
    assert_eq!(status(&cluster)["conditions"][1]["type"], "FileSystemResizePending");
    assert_eq!(kept(&cluster), "1Gi");

    // The node fails; the claim asks for less; what the node finds infeasible is asked for anew.
    cluster.edit(&claim, json!({ "status": { "allocatedResourceStatuses": { "storage": "NodeResizeInProgress" } } }));
    ask(&mut cluster, &claim, "2Gi");
    assert_eq!(status(&cluster)["allocatedResources"]["storage"], "3Gi", "the node is at it");
    cluster.edit(&claim, json!({ "status": { "allocatedResourceStatuses": { "storage": "NodeResizeInfeasible" } } }));
    cluster.settle();
    assert_eq!(status(&cluster)["allocatedResources"]["storage"], "2Gi");
    assert_eq!(status(&cluster)["allocatedResourceStatuses"]["storage"], "NodeResizePending");

    let parsed = from_value(cluster.get(&claim).clone()).unwrap();
    let done = api::growth::finished(&parsed, &k8s_openapi::apimachinery::pkg::api::resource::Quantity("2Gi".into()));
    cluster.edit(&claim, json!({ "status": done }));
    cluster.settle();
    assert_eq!(kept(&cluster), "1Gi", "the volume still says more than the claim has");
    cluster.edit(&volume, json!({ "spec": { "capacity": { "storage": "2Gi" } } }));
    cluster.settle();
    assert_eq!(kept(&cluster), Value::Null);
    assert_eq!(status(&cluster)["conditions"], Value::Null);
}
