//! The controllers on a real API server in this process: what a user would see.
#![allow(clippy::unwrap_used, reason = "a step that fails here fails the test")]
mod support;

use serde_json::{Value, json};
use support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_with_a_claim_from_start_to_end() {
    let cluster = Cluster::start().await;
    cluster.make("/api/v1/namespaces", namespace()).await;
    cluster.wait(&format!("{NS}/serviceaccounts/default"), "made", |o| !o.is_null()).await;
    let map = cluster.wait(&format!("{NS}/configmaps/kube-root-ca.crt"), "made", |o| !o.is_null()).await;
    assert_eq!(map["data"]["ca.crt"], cluster.server.ca_certificate());
    cluster.make("/api/v1/nodes", node()).await;
    cluster.make(PODS, pod("p", "c")).await;
    cluster.event("FailedScheduling", "0/1 nodes are available: persistentvolumeclaim \"c\" not found.").await;
    cluster.make(CLAIMS, claim("c", "1Gi")).await;
    cluster.event("FailedScheduling", "pod has unbound immediate PersistentVolumeClaims.").await;
    cluster.event("ProvisioningFailed", "storageclass.storage.k8s.io \"k\" not found").await;
    cluster.make(VOLUMES, volume("v", "2Gi")).await;
    let bound = cluster.wait(&format!("{CLAIMS}/c"), "Bound", phase("Bound")).await;
    assert_eq!((&bound["spec"]["volumeName"], &bound["status"]["capacity"]["storage"]), (&json!("v"), &json!("2Gi")));
    cluster.wait(&format!("{PODS}/p"), "scheduled", |p| p["spec"]["nodeName"] == "n").await;
    let event = cluster.event("Scheduled", "Successfully assigned ns/p to n").await;
    assert_eq!((&event["type"], &event["source"]["component"]), (&json!("Normal"), &json!("default-scheduler")));
    // In use: the claim stays until the pod is gone.
    cluster.delete(&format!("{CLAIMS}/c")).await;
    let going = cluster.wait(&format!("{CLAIMS}/c"), "going", |c| !c["metadata"]["deletionTimestamp"].is_null()).await;
    assert_eq!(going["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    cluster.make(PODS, pod("q", "c")).await;
    cluster.event("FailedScheduling", "persistentvolumeclaim \"c\" is being deleted").await;
    cluster.delete(&format!("{PODS}/p?gracePeriodSeconds=0")).await;
    cluster.wait(&format!("{CLAIMS}/c"), "gone", Value::is_null).await;
    cluster.wait(&format!("{VOLUMES}/v"), "Released", phase("Released")).await;
    cluster.delete(&format!("{VOLUMES}/v")).await;
    cluster.wait(&format!("{VOLUMES}/v"), "gone", Value::is_null).await;
    cluster.delete(NS).await;
    cluster.wait(NS, "gone", Value::is_null).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_claims_get_a_volume_each() {
    const MANY: usize = 40;
    let cluster = Cluster::start().await;
    cluster.make("/api/v1/namespaces", namespace()).await;
    let one = async |i: usize| {
        if i.is_multiple_of(2) {
            cluster.make(VOLUMES, volume(&format!("v{i}"), "1Gi")).await;
            cluster.make(CLAIMS, claim(&format!("c{i}"), "1Gi")).await;
        } else {
            cluster.make(CLAIMS, claim(&format!("c{i}"), "1Gi")).await;
            cluster.make(VOLUMES, volume(&format!("v{i}"), "1Gi")).await;
        }
    };
    futures::future::join_all((0..MANY).map(one)).await;
    let mut used = std::collections::BTreeSet::new();
    for i in 0..MANY {
        let claim = cluster.wait(&format!("{CLAIMS}/c{i}"), "Bound", phase("Bound")).await;
        assert!(used.insert(claim["spec"]["volumeName"].as_str().unwrap().to_owned()));
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_owned_goes_and_namespaces_end() {
    let cluster = Cluster::start().await;
    cluster.make("/api/v1/namespaces", namespace()).await;
    let maps = format!("{NS}/configmaps");
    for (name, query) in [("back", "Background"), ("fore", "Foreground"), ("orphan", "Orphan")] {
        let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        let owner = cluster.make(&maps, map(name)).await;
        let mut kid = map(&format!("{name}-kid"));
        kid["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": owner["metadata"]["uid"],
            "blockOwnerDeletion": true,
        }]);
        cluster.make(&maps, kid).await;
        cluster.delete(&format!("{maps}/{name}?propagationPolicy={query}")).await;
        cluster.wait(&format!("{maps}/{name}"), "gone", Value::is_null).await;
        let kid = format!("{maps}/{name}-kid");
        if query == "Orphan" {
            cluster.wait(&kid, "orphaned", |k| k["metadata"]["ownerReferences"].is_null()).await;
        } else {
            cluster.wait(&kid, "gone", Value::is_null).await;
        }
    }
    let held =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "finalizers": ["example.com/x"]}});
    cluster.make(&format!("{NS}/secrets"), held).await;
    cluster.make(CLAIMS, claim("c", "1Gi")).await;
    cluster.delete(NS).await;
    cluster.wait(NS, "waiting", |n| n["status"]["conditions"].to_string().contains("example.com/x in 1")).await;
    cluster.send("PATCH", &format!("{NS}/secrets/s"), json!({"metadata": {"finalizers": null}})).await;
    cluster.wait(NS, "gone", Value::is_null).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn room_is_not_given_twice() {
    const ROOM: usize = 10;
    let cluster = Cluster::start().await;
    cluster.make("/api/v1/namespaces", namespace()).await;
    cluster.wait(&format!("{NS}/serviceaccounts/default"), "made", |o| !o.is_null()).await;
    let one = async |i: usize| {
        let spec = json!({"containers": [{"name": "c", "image": "i"}]});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{i}")}, "spec": spec});
        cluster.make(PODS, pod).await;
    };
    futures::future::join_all((0..ROOM * 2).map(one)).await;
    // All wait for a node, and are decided at once when it comes.
    cluster.make("/api/v1/nodes", node()).await;
    let settled = |list: &Value| {
        let told = |p: &&Value| p["status"]["conditions"].to_string().contains("Too many pods");
        list["items"].as_array().unwrap().iter().filter(told).count() >= ROOM
    };
    let pods = cluster.wait(PODS, "decided", settled).await;
    let bound = pods["items"].as_array().unwrap().iter().filter(|p| p["spec"]["nodeName"] == "n").count();
    assert_eq!(bound, ROOM);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_for_one_pod_alone_goes_from_pod_to_pod() {
    let cluster = Cluster::start().await;
    cluster.make("/api/v1/namespaces", namespace()).await;
    cluster.wait(&format!("{NS}/serviceaccounts/default"), "made", |o| !o.is_null()).await;
    cluster.make("/api/v1/nodes", node()).await;
    let alone = |mut object: Value| {
        object["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
        object
    };
    cluster.make(VOLUMES, alone(volume("v", "1Gi"))).await;
    cluster.make(CLAIMS, alone(claim("c", "1Gi"))).await;
    cluster.make(PODS, pod("p", "c")).await;
    cluster.wait(&format!("{PODS}/p"), "scheduled", |p| p["spec"]["nodeName"] == "n").await;
    cluster.make(PODS, pod("q", "c")).await;
    cluster.event("FailedScheduling", "ReadWriteOncePod access mode already in-use by another pod").await;
    cluster.delete(&format!("{PODS}/p?gracePeriodSeconds=0")).await;
    cluster.wait(&format!("{PODS}/q"), "scheduled", |p| p["spec"]["nodeName"] == "n").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_hears_why_its_ephemeral_claim_is_refused() {
    let cluster = Cluster::start().await;
    cluster.make("/api/v1/namespaces", namespace()).await;
    cluster.wait(&format!("{NS}/serviceaccounts/default"), "made", |o| !o.is_null()).await;
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"},
        "spec": {"hard": {"persistentvolumeclaims": "0"}}});
    cluster.make(&format!("{NS}/resourcequotas"), quota).await;
    let mut pod = pod("p", "x");
    pod["spec"]["volumes"] =
        json!([{"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": claim("x", "1Gi")["spec"]}}}]);
    cluster.make(PODS, pod).await;
    let why = "ephemeral volume v: create PVC p-v: persistentvolumeclaims \"p-v\" is forbidden: exceeded quota: none";
    let event = cluster.event("FailedBinding", why).await;
    assert_eq!((&event["type"], &event["involvedObject"]["kind"]), (&json!("Warning"), &json!("Pod")));
    // Once there is room it is made.
    cluster.delete(&format!("{NS}/resourcequotas/none")).await;
    cluster.wait(&format!("{CLAIMS}/p-v"), "made", |c| !c.is_null()).await;
}
