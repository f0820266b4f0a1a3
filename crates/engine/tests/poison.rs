//! Objects that the server takes and that make no sense, thousands of them: a claim beside them binds, and nobody who
//! looks after them runs in circles.
#![allow(clippy::unwrap_used, reason = "a step that fails here fails the test")]
mod support;

use std::time::Duration;

use futures::{StreamExt, stream};
use serde_json::{Value, json};
use support::*;

const AMOUNTS: [&str; 10] =
    ["1E", "9223372036854775807", "1m", "0.1", "1e-9", "1e18", "8Ei", "1n", "999999999999999999999999", "1e+3"];

/// A word of a length that names may have.
fn long(prefix: &str, letter: &str) -> String {
    let labels = format!("{}.", letter.repeat(60)).repeat(5);
    let name: String = format!("{prefix}-{labels}").chars().take(252).collect();
    format!("{}z", name.trim_end_matches(['.', '-']))
}

fn with(mut object: Value, more: Value) -> Value {
    fn merge(into: &mut Value, more: Value) {
        match (into, more) {
            (Value::Object(into), Value::Object(more)) => {
                more.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
            }
            (into, more) => *into = more,
        }
    }
    merge(&mut object, more);
    object
}

/// As many labels as an object can carry, 1.4 MiB of them.
fn labels() -> Value {
    let all = (0..11_000).map(|i| (format!("example.com/{}-{i}", "l".repeat(40)), json!("v".repeat(60))));
    Value::Object(all.collect())
}

fn expressions(count: usize) -> Vec<Value> {
    let all = (0..count).map(|i| json!({ "key": format!("example.com/key-{i}"), "operator": "DoesNotExist" }));
    all.chain([json!({ "key": "tier", "operator": "In", "values": ["nobody"] })]).collect()
}

/// Volumes that nobody can have, and such as look like the ordinary claim's.
fn volumes() -> Vec<Value> {
    let mut all = Vec::new();
    for i in 0..240 {
        let reference = match i % 3 {
            0 => json!({ "namespace": "nowhere", "name": "none", "uid": format!("gone-{i}") }),
            1 => json!({ "namespace": "ns", "name": "good", "uid": format!("earlier-{i}") }),
            _ => json!({ "namespace": "ns", "name": format!("none-{i}") }),
        };
        let policy = if i % 2 == 0 { "Delete" } else { "Retain" };
        let more = json!({ "spec": { "claimRef": reference, "persistentVolumeReclaimPolicy": policy } });
        all.push(with(volume(&format!("dangling-{i}"), "5Gi"), more));
    }
    for i in 0..60 {
        let small = json!({ "spec": { "claimRef": { "namespace": "ns", "name": "good" } } });
        all.push(with(volume(&format!("small-{i}"), "1Mi"), small));
        all.push(volume(&format!("of-its-class-{i}"), "1Mi"));
    }
    for (i, amount) in AMOUNTS.iter().enumerate() {
        all.push(with(volume(&format!("amount-{i}"), amount), json!({ "spec": { "storageClassName": "amounts" } })));
    }
    let terms: Vec<Value> = (0..1000)
        .map(|i| json!({ "matchExpressions": [{ "key": "zone", "operator": "In", "values": [format!("z{i}")] }] }))
        .collect();
    let affinity = json!({ "spec": { "nodeAffinity": { "required": { "nodeSelectorTerms": terms } }, "storageClassName": "late" } });
    for i in 0..4 {
        all.push(with(volume(&format!("affine-{i}"), "5Gi"), affinity.clone()));
        let words = "каша 🥣 ".repeat(250 * 1024 / 16);
        let junk = json!({ "metadata": { "annotations": {
            "example.com/words": words, "volume.alpha.kubernetes.io/pre-resize-capacity": "many",
            "pv.kubernetes.io/provisioned-by": "☃", "pv.kubernetes.io/migrated-to": "☃",
        } } });
        all.push(with(volume(&format!("wordy-{i}"), "1Mi"), junk));
    }
    all.push(with(volume("labelled", "1Mi"), json!({ "metadata": { "labels": labels() } })));
    let name = long("v", "a");
    all.push(with(volume(&name, "5Gi"), json!({ "spec": { "storageClassName": long("c", "b") } })));
    all
}

fn claims() -> Vec<Value> {
    let mut all = Vec::new();
    for i in 0..160 {
        let named = json!({ "spec": { "volumeName": format!("none-{i}") } });
        all.push(with(claim(&format!("named-{i}"), "1Gi"), named));
        let unknown = json!({ "spec": { "storageClassName": format!("none-{}", i % 7) } });
        all.push(with(claim(&format!("classless-{i}"), "1Gi"), unknown));
        let class = json!({ "metadata": { "annotations": { "volume.beta.kubernetes.io/storage-class": "☃" } } });
        all.push(with(claim(&format!("annotated-{i}"), "1Gi"), class));
    }
    for i in 0..20 {
        let selector = json!({ "spec": { "selector": { "matchExpressions": expressions(1000) } } });
        all.push(with(claim(&format!("choosy-{i}"), "1Ki"), selector));
        all.push(claim(&format!("large-{i}"), "8Ei"));
    }
    for (i, amount) in AMOUNTS.iter().enumerate() {
        all.push(with(claim(&format!("amount-{i}"), amount), json!({ "spec": { "storageClassName": "amounts" } })));
    }
    for i in 0..4 {
        let done = json!({ "metadata": {
            "annotations": { "pv.kubernetes.io/bind-completed": "☃", "pv.kubernetes.io/bound-by-controller": "", "x": "y".repeat(250 * 1024) },
            "finalizers": ["example.com/never"],
        } });
        all.push(with(claim(&format!("done-{i}"), "1Gi"), done));
    }
    all.push(with(claim("labelled", "9Gi"), json!({ "metadata": { "labels": labels() } })));
    all.push(claim(&long("c", "a"), "9Gi"));
    all
}

fn classes() -> Vec<Value> {
    let parameters: serde_json::Map<String, Value> =
        (0..500).map(|i| (format!("parameter-{i}"), json!("p".repeat(400)))).collect();
    let class = |name: &str, more: Value| {
        let least = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": name },
            "provisioner": "kubernetes.io/no-provisioner",
        });
        with(least, more)
    };
    vec![
        class("late", json!({ "volumeBindingMode": "WaitForFirstConsumer" })),
        class("giant", json!({ "parameters": parameters, "mountOptions": vec!["noatime"; 500] })),
        class(&long("c", "b"), json!({})),
    ]
}

/// Pods whose claims are not there, are many, or are one that is named a hundred times.
fn pods() -> Vec<Value> {
    let volumes = |claims: &mut dyn Iterator<Item = String>| -> Value {
        let all = claims
            .enumerate()
            .map(|(i, name)| json!({ "name": format!("v{i}"), "persistentVolumeClaim": { "claimName": name } }));
        json!({ "spec": { "volumes": all.collect::<Vec<_>>() } })
    };
    let mut all: Vec<Value> = (0..100).map(|i| pod(&format!("claimless-{i}"), &format!("none-{i}"))).collect();
    all.push(with(pod("many", "x"), volumes(&mut (0..100).map(|i| format!("named-{i}")))));
    all.push(with(pod("again", "x"), volumes(&mut (0..100).map(|_| "large-0".to_owned()))));
    all
}

/// Every controller's counts, and what the server last wrote.
async fn counts(cluster: &Cluster) -> (u64, u64, Value) {
    let stats = cluster.engine.stats();
    let list = cluster.send("GET", &format!("{VOLUMES}?limit=1"), Value::Null).await;
    let sum = |of: fn(&engine::Stats) -> u64| stats.iter().map(|(_, s)| of(s)).sum();
    (sum(|s| s.decisions), sum(|s| s.actions + s.conflicts + s.failures), list["metadata"]["resourceVersion"].clone())
}

/// Waits until nobody does anything.
async fn rest(cluster: &Cluster) -> (u64, u64, Value) {
    let mut last = counts(cluster).await;
    let mut same = 0;
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = counts(cluster).await;
        same = if now == last { same + 1 } else { 0 };
        last = now;
        if same == 5 {
            return last;
        }
    }
    panic!("does not come to rest: {:#?}", cluster.engine.stats());
}

async fn make_all(cluster: &Cluster, path: &str, objects: Vec<Value>) {
    stream::iter(objects).for_each_concurrent(16, |object| async { drop(cluster.make(path, object).await) }).await;
}

/// Objects that own themselves or each other, all being deleted in the foreground.
async fn circles(cluster: &Cluster) {
    let maps = format!("{NS}/configmaps");
    for size in [1_usize, 2, 5] {
        let name = |i: usize| format!("circle-{size}-{}", i % size);
        let mut uids = Vec::new();
        for i in 0..size {
            let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name(i) } });
            uids.push(cluster.make(&maps, map).await["metadata"]["uid"].clone());
        }
        for i in 0..size {
            let owners = json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": name(i + 1),
                "uid": uids[(i + 1) % size], "blockOwnerDeletion": true }]);
            let patch = json!({ "metadata": { "ownerReferences": owners } });
            cluster.send("PATCH", &format!("{maps}/{}", name(i)), patch).await;
        }
        cluster.delete(&format!("{maps}/{}?propagationPolicy=Foreground", name(0))).await;
        for i in 0..size {
            cluster.wait(&format!("{maps}/{}", name(i)), "gone", Value::is_null).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poisoned_objects_stop_nobody() {
    let cluster = Cluster::start().await;
    cluster.make("/api/v1/namespaces", namespace()).await;
    cluster.wait(&format!("{NS}/serviceaccounts/default"), "made", |o| !o.is_null()).await;
    cluster.make("/api/v1/nodes", node()).await;
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "q" },
        "spec": { "hard": { "requests.storage": "999999999999E", "persistentvolumeclaims": "100k" } },
    });
    cluster.make(&format!("{NS}/resourcequotas"), quota).await;
    let (volumes, claims, pods) = (volumes(), claims(), pods());
    let objects = u64::try_from(volumes.len() + claims.len() + pods.len()).unwrap();
    make_all(&cluster, "/apis/storage.k8s.io/v1/storageclasses", classes()).await;
    make_all(&cluster, VOLUMES, volumes).await;
    make_all(&cluster, CLAIMS, claims).await;
    make_all(&cluster, PODS, pods).await;
    for i in 0..4 {
        cluster.delete(&format!("{CLAIMS}/done-{i}")).await;
    }
    circles(&cluster).await;

    // Nobody has to wait for all this to be looked at.
    cluster.make(VOLUMES, volume("good", "2Gi")).await;
    cluster.make(CLAIMS, claim("good", "1Gi")).await;
    let bound = cluster.wait(&format!("{CLAIMS}/good"), "Bound", phase("Bound")).await;
    assert_eq!(bound["spec"]["volumeName"], "good");
    cluster.make(PODS, pod("good", "good")).await;
    cluster.wait(&format!("{PODS}/good"), "scheduled", |p| p["spec"]["nodeName"] == "n").await;

    let (decisions, writes, revision) = rest(&cluster).await;
    println!("{objects} objects: {decisions} decisions, {writes} writes: {:#?}", cluster.engine.stats());
    assert!(writes < objects * 6, "{writes} writes for {objects} objects");
    assert!(decisions < objects * 60, "{decisions} decisions for {objects} objects");
    // One more ordinary pair costs what it always costs.
    cluster.make(VOLUMES, volume("last", "2Gi")).await;
    cluster.make(CLAIMS, claim("last", "1Gi")).await;
    cluster.wait(&format!("{CLAIMS}/last"), "Bound", phase("Bound")).await;
    let (more, written, later) = rest(&cluster).await;
    println!("one more pair: {} decisions, {} writes", more - decisions, written - writes);
    assert!(written - writes <= 16, "{} writes for one pair", written - writes);
    assert!(more - decisions <= 200, "{} decisions for one pair", more - decisions);
    assert_ne!(revision, later);
    cluster.stop().await;
}
