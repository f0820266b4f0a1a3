use serde_json::json;

use super::*;

fn owned(kind: &str, name: &str, owner: &Key, cluster: &Cluster, block: bool) -> Value {
    json!({
        "apiVersion": "v1", "kind": kind,
        "metadata": { "name": name, "ownerReferences": [{
            "apiVersion": "v1", "kind": owner.kind, "name": &*owner.name,
            "uid": cluster.get(owner)["metadata"]["uid"], "blockOwnerDeletion": block,
        }] },
    })
}

#[test]
fn a_claim_outlives_the_scheduled_pods_that_name_it() {
    let mut cluster = Cluster::new();
    cluster.make(pv("v", "1Gi", json!({})));
    let claim = cluster.make(pvc("c", "1Gi", json!({})));
    let mut on_node = claiming("c");
    on_node["spec"]["nodeName"] = json!("n");
    cluster.make(node("n", json!({"spec": {"unschedulable": true}})));
    let pods = ["p", "q"].map(|name| cluster.make(pod(name, on_node.clone())));
    cluster.make(pod("unscheduled", claiming("c")));
    cluster.settle();
    cluster.delete(&claim, None);
    for pod in &pods {
        cluster.settle();
        assert_eq!(cluster.phase(&claim), "Bound");
        cluster.delete(pod, None);
    }
    cluster.settle();
    assert!(cluster.get(&claim).is_null());
}

#[test]
fn a_bound_volume_outlives_its_deletion() {
    let mut cluster = Cluster::new();
    let volume = cluster.make(pv("v", "1Gi", json!({})));
    let free = cluster.make(pv("free", "9Gi", json!({})));
    let claim = cluster.make(pvc("c", "1Gi", json!({})));
    cluster.settle();
    cluster.delete(&volume, None);
    cluster.delete(&free, None);
    cluster.settle();
    assert_eq!((cluster.phase(&volume), cluster.phase(&free), cluster.phase(&claim)), ("Bound", "gone", "Bound"));
    cluster.delete(&claim, None);
    cluster.settle();
    assert_eq!(cluster.phase(&volume), "gone");
}

#[test]
fn namespaces_have_what_pods_need() {
    let mut cluster = Cluster::new();
    let namespace = cluster.make(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ns"}}));
    cluster.settle();
    let account = Key::new("ServiceAccount", "ns", "default");
    let map = Key::new("ConfigMap", "ns", "kube-root-ca.crt");
    assert!(!cluster.get(&account).is_null());
    assert_eq!(cluster.get(&map)["data"], json!({ "ca.crt": "PEM" }));
    cluster.edit(&map, json!({"data": {"ca.crt": "old"}}));
    cluster.settle();
    assert_eq!(cluster.get(&map)["data"], json!({ "ca.crt": "PEM" }));
    cluster.delete(&namespace, None);
    cluster.settle();
    assert!(cluster.objects.is_empty(), "{:?}", cluster.objects.keys());
}

#[test]
fn a_namespace_waits_for_what_is_held_in_it_and_says_so() {
    let mut cluster = Cluster::new();
    let namespace = cluster.make(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ns"}}));
    let held =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "finalizers": ["example.com/x"]}});
    let held = cluster.make(held);
    cluster.settle();
    cluster.delete(&namespace, None);
    cluster.settle();
    let conditions = cluster.get(&namespace)["status"]["conditions"].clone();
    let message = |kind: &str| {
        let all = conditions.as_array().unwrap();
        all.iter().find(|c| c["type"] == kind).unwrap()["message"].as_str().unwrap().to_owned()
    };
    assert_eq!(message("NamespaceContentRemaining"), "Some resources are remaining: secrets. has 1 resource instances");
    assert_eq!(
        message("NamespaceFinalizersRemaining"),
        "Some content in the namespace has finalizers remaining: example.com/x in 1 resource instances"
    );
    cluster.edit(&held, json!({"metadata": {"finalizers": null}}));
    cluster.settle();
    assert!(cluster.objects.is_empty(), "{:?}", cluster.objects.keys());
}

#[test]
fn dependents_go_as_their_owner_was_deleted() {
    for (finalizer, survives) in [(None, false), (Some("foregroundDeletion"), false), (Some("orphan"), true)] {
        let mut cluster = Cluster::new();
        let owner = cluster.make(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "o"}}));
        let child = cluster.make(owned("ConfigMap", "kid", &owner, &cluster, true));
        let grandchild = cluster.make(owned("Secret", "grandkid", &child, &cluster, true));
        cluster.settle();
        assert_eq!(cluster.objects.len(), 3);
        cluster.delete(&owner, finalizer);
        cluster.settle();
        assert!(cluster.get(&owner).is_null(), "{finalizer:?}");
        assert_eq!(!cluster.get(&child).is_null(), survives, "{finalizer:?}");
        assert_eq!(!cluster.get(&grandchild).is_null(), survives, "{finalizer:?}");
        if survives {
            assert_eq!(cluster.get(&child)["metadata"]["ownerReferences"], json!([]));
        }
    }
}

#[test]
fn an_object_goes_with_its_last_owner() {
    let mut cluster = Cluster::new();
    let [a, b] =
        ["a", "b"].map(|n| cluster.make(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": n}})));
    let mut child = owned("ConfigMap", "kid", &a, &cluster, false);
    let second = owned("ConfigMap", "kid", &b, &cluster, false);
    let reference = second["metadata"]["ownerReferences"][0].clone();
    child["metadata"]["ownerReferences"].as_array_mut().unwrap().push(reference.clone());
    let child = cluster.make(child);
    let mut foreign = owned("ConfigMap", "foreign", &a, &cluster, false);
    foreign["metadata"]["ownerReferences"][0]["apiVersion"] = json!("example.com/v1");
    let foreign = cluster.make(foreign);
    cluster.delete(&a, None);
    cluster.settle();
    assert_eq!(cluster.get(&child)["metadata"]["ownerReferences"], json!([reference]));
    cluster.delete(&b, None);
    cluster.settle();
    assert!(cluster.get(&child).is_null());
    assert!(!cluster.get(&foreign).is_null(), "an owner of an unknown kind is taken to exist");
}

#[test]
fn ephemeral_volumes_have_claims_of_their_pod() {
    let mut cluster = Cluster::new();
    let volumes = json!({ "spec": { "volumes": [{ "name": "scratch", "ephemeral": { "volumeClaimTemplate": {
        "metadata": { "labels": { "l": "1" } }, "spec": pvc("", "1Gi", json!({}))["spec"],
    } } }] } });
    let pod = cluster.make(pod("p", volumes.clone()));
    cluster.settle();
    let claim = Key::new("PersistentVolumeClaim", "ns", "p-scratch");
    let made = cluster.get(&claim);
    assert_eq!(made["metadata"]["labels"], json!({ "l": "1" }));
    assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], cluster.get(&pod)["metadata"]["uid"]);
    cluster.delete(&pod, None);
    cluster.settle();
    assert!(cluster.get(&claim).is_null());
    cluster.make(pvc("p-scratch", "1Gi", json!({})));
    cluster.make(super::pod("p", volumes));
    cluster.settle();
    let told = "ephemeral volume scratch: PVC ns/p-scratch was not created for pod ns/p (pod is not owner)";
    assert_eq!(cluster.noted("FailedBinding"), [told]);
}

#[test]
fn pods_of_a_node_that_is_gone_are_given_up_after_a_while() {
    let mut cluster = Cluster::new();
    let lost = cluster.make(pod("lost", json!({"spec": {"nodeName": "gone"}})));
    let kept = cluster.make(pod("kept", json!({"spec": {"nodeName": "n"}})));
    cluster.make(node("n", json!({})));
    cluster.settle();
    cluster.now += jiff::SignedDuration::from_secs(39);
    cluster.settle();
    assert!(!cluster.get(&lost).is_null());
    cluster.now += jiff::SignedDuration::from_secs(1);
    cluster.settle();
    assert!(cluster.get(&lost).is_null() && !cluster.get(&kept).is_null());
}

#[test]
fn quotas_show_what_is_used() {
    let mut cluster = Cluster::new();
    let hard = json!({"requests.storage": "5Gi", "persistentvolumeclaims": "4", "pods": "3", "count/secrets": "1"});
    let quota = cluster
        .make(json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": hard}}));
    let claim = cluster.make(pvc("c", "1Gi", json!({})));
    cluster.make(pvc("d", "2Gi", json!({})));
    cluster.settle();
    let used = |cluster: &Cluster| cluster.get(&quota)["status"]["used"].clone();
    assert_eq!(
        used(&cluster),
        json!({"requests.storage": "3Gi", "persistentvolumeclaims": "2", "pods": "0", "count/secrets": "0"})
    );
    cluster.delete(&claim, None);
    cluster.settle();
    assert_eq!(used(&cluster)["requests.storage"], "2Gi");
}

#[test]
fn an_attributes_class_outlives_its_users() {
    let mut cluster = Cluster::new();
    let class = |name: &str| json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttributesClass", "metadata": {"name": name}, "driverName": "d", "parameters": {"a": "b"}});
    let classes: Vec<Key> =
        ["asked", "had", "coming", "of-a-volume", "unused"].map(class).map(|c| cluster.make(c)).into();
    let of = |name: &str| json!({"spec": {"volumeAttributesClassName": name}});
    cluster.make(pv("v", "1Gi", of("had")));
    let claim = cluster.make(pvc("c", "1Gi", of("had")));
    let volume = cluster.make(pv("w", "1Gi", of("of-a-volume")));
    cluster.settle();
    let modify = json!({"status": "Pending", "targetVolumeAttributesClassName": "coming"});
    cluster.edit(
        &claim,
        json!({"spec": {"volumeAttributesClassName": "asked"}, "status": {"modifyVolumeStatus": modify}}),
    );
    cluster.settle();
    for key in &classes {
        assert_eq!(cluster.get(key)["metadata"]["finalizers"], json!(["kubernetes.io/vac-protection"]), "{key:?}");
        cluster.delete(key, None);
    }
    cluster.settle();
    let there = |cluster: &Cluster| classes.iter().map(|key| !cluster.get(key).is_null()).collect::<Vec<_>>();
    assert_eq!(there(&cluster), [true, true, true, true, false]);
    cluster.edit(&claim, json!({"status": {"modifyVolumeStatus": null}}));
    cluster.settle();
    assert_eq!(there(&cluster), [true, true, false, true, false]);
    cluster.delete(&volume, None);
    cluster.delete(&claim, None);
    cluster.settle();
    assert_eq!(there(&cluster), [false, true, false, false, false], "the released volume has one still");
}

#[test]
fn protection_comes_back_to_what_lives() {
    let mut cluster = Cluster::new();
    let volume = cluster.make(pv("v", "1Gi", json!({})));
    let claim = cluster.make(pvc("c", "1Gi", json!({})));
    cluster.settle();
    for key in [&volume, &claim] {
        cluster.edit(key, json!({ "metadata": { "finalizers": ["example.com/mine"] } }));
        cluster.settle();
        let finalizers = &cluster.get(key)["metadata"]["finalizers"];
        assert_eq!(finalizers.as_array().map(Vec::len), Some(2), "{finalizers}");
        cluster.edit(key, json!({ "metadata": { "finalizers": ["example.com/mine"] } }));
        cluster.delete(key, None);
        cluster.settle();
        assert_eq!(cluster.get(key)["metadata"]["finalizers"], json!(["example.com/mine"]), "it is going");
    }
}

#[test]
fn what_owns_itself_or_its_owner_goes_all_the_same() {
    for names in [&["a"][..], &["a", "b"], &["a", "b", "c"]] {
        for propagation in ["foregroundDeletion", "example.com/none"] {
            let mut cluster = Cluster::new();
            let map = |name: &str| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name } });
            let keys: Vec<Key> = names.iter().map(|name| cluster.make(map(name))).collect();
            for (i, key) in keys.iter().enumerate() {
                let owner = &keys[(i + 1) % keys.len()];
                let owners =
                    owned("ConfigMap", &key.name, owner, &cluster, true)["metadata"]["ownerReferences"].clone();
                cluster.edit(key, json!({ "metadata": { "ownerReferences": owners } }));
            }
            cluster.settle();
            cluster.delete(&keys[0], Some(propagation).filter(|p| *p == "foregroundDeletion"));
            cluster.settle();
            assert!(keys.iter().all(|key| cluster.get(key).is_null()), "{names:?} {propagation}");
        }
    }
}
