use serde_json::json;

use super::*;
use crate::rules::WAITING;

fn condition(cluster: &Cluster, claim: &Key) -> Value {
    let all = cluster.get(claim)["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|c| c["type"] == WAITING).unwrap_or_default()
}

fn later(cluster: &mut Cluster, seconds: i64) {
    cluster.now += jiff::SignedDuration::from_secs(seconds);
    cluster.settle();
}

#[test]
fn a_claim_keeps_why_it_waits_until_it_is_bound() {
    let mut cluster = Cluster::new();
    cluster.make(class("k", "kubernetes.io/no-provisioner", false));
    cluster.make(node("n", json!({})));
    let claim = cluster.make(pvc("c", "5Gi", json!({})));
    let user = cluster.make(pod("p", claiming("c")));
    cluster.settle();
    assert_eq!(condition(&cluster, &claim), Value::Null, "it has only just begun to wait");
    later(&mut cluster, 1);
    let first = condition(&cluster, &claim);
    assert_eq!(first["reason"], "NoVolumes");
    assert_eq!(first["message"], "There is no volume at all, and nothing makes volumes of class k");
    assert_eq!(first["lastTransitionTime"], "2030-01-01T00:00:01Z");
    let scheduled = |cluster: &Cluster| {
        let all = cluster.get(&user)["status"]["conditions"].clone();
        all[0]["message"].as_str().unwrap_or_default().to_owned()
    };
    let told = scheduled(&cluster);
    assert!(told.starts_with("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. "), "{told}");
    assert!(
        told.ends_with("Volume \"v\", claim \"c\": There is no volume at all, and nothing makes volumes of class k."),
        "{told}"
    );

    // Another reason: another time. The same reason in other words: the same time.
    let volume = cluster.make(pv("small", "1Gi", json!({})));
    later(&mut cluster, 60);
    let small = condition(&cluster, &claim);
    assert_eq!(
        (&small["reason"], &small["lastTransitionTime"]),
        (&json!("NoFittingVolume"), &json!("2030-01-01T00:01:01Z"))
    );
    let words = "nearest miss small: it has 1Gi, the claim requests 5Gi";
    assert!(small["message"].as_str().unwrap().ends_with(words), "{small}");
    assert!(scheduled(&cluster).contains(words), "{}", scheduled(&cluster));
    cluster.edit(&volume, json!({"spec": {"capacity": {"storage": "2Gi"}}}));
    later(&mut cluster, 60);
    assert_eq!(condition(&cluster, &claim)["lastTransitionTime"], "2030-01-01T00:01:01Z");
    assert!(condition(&cluster, &claim)["message"].as_str().unwrap().contains("it has 2Gi"));

    // What others said of the claim stays when the reason goes.
    let other = json!({"type": "Resizing", "status": "True"});
    let both = json!([other, condition(&cluster, &claim)]);
    cluster.edit(&claim, json!({"status": {"conditions": both}}));
    cluster.edit(&volume, json!({"spec": {"capacity": {"storage": "5Gi"}}}));
    cluster.settle();
    assert_eq!(cluster.phase(&claim), "Bound");
    let left = &cluster.get(&claim)["status"]["conditions"];
    assert_eq!((left.as_array().map(Vec::len), &left[0]["type"]), (Some(1), &json!("Resizing")));
}

#[test]
fn a_claim_that_is_bound_at_once_is_never_written() {
    let mut cluster = Cluster::new();
    cluster.make(class("k", "kubernetes.io/no-provisioner", false));
    cluster.make(pv("v", "5Gi", json!({})));
    let claim = cluster.make(pvc("c", "5Gi", json!({})));
    cluster.settle();
    later(&mut cluster, 60);
    assert_eq!(cluster.phase(&claim), "Bound");
    assert!(!cluster.actions.iter().any(|a| a.starts_with("waiting")), "{:?}", cluster.actions);
}

#[test]
fn reasons_of_claims_that_somebody_else_serves() {
    let mut cluster = Cluster::new();
    cluster.make(class("late", "kubernetes.io/no-provisioner", true));
    cluster.make(class("csi", "csi.example.com", false));
    cluster.make(class("old", "kubernetes.io/gce-pd", false));
    let of = |class: &str| json!({"spec": {"storageClassName": class}});
    let table = [
        (
            "late",
            json!({}),
            "WaitForFirstConsumer",
            "Class late waits for the first pod that uses the claim, and there is none",
        ),
        ("csi", json!({}), "ExternalProvisioner", "Provisioner csi.example.com is to make its volume"),
        (
            "old",
            json!({}),
            "ProvisionerRemoved",
            "Class old asks for provisioner kubernetes.io/gce-pd, which Kubernetes no longer contains",
        ),
        ("gone", json!({}), "ClassNotFound", "Class \"gone\" does not exist, and no volume is of that class"),
        ("", json!({"spec": {"volumeName": "x"}}), "NamedVolumeMissing", "It names volume \"x\", which does not exist"),
    ];
    for (i, (class, more, ..)) in table.iter().enumerate() {
        let mut object = pvc(&format!("c{i}"), "1Gi", of(class));
        json_patch::merge(&mut object, more);
        cluster.make(object);
    }
    later(&mut cluster, 5);
    for (i, (_, _, reason, message)) in table.iter().enumerate() {
        let found = condition(&cluster, &Key::new("PersistentVolumeClaim", "ns", &format!("c{i}")));
        assert_eq!((&found["reason"], &found["message"]), (&json!(reason), &json!(message)));
    }
    // A pod that no node can take: the scheduler's words, in the claim's reason.
    cluster.make(node("n", json!({"spec": {"unschedulable": true}})));
    cluster.make(pv("v", "1Gi", of("late")));
    cluster.make(pod("p", claiming("c0")));
    later(&mut cluster, 60);
    let found = condition(&cluster, &Key::new("PersistentVolumeClaim", "ns", "c0"));
    assert_eq!(found["reason"], "WaitForPodScheduled");
    let message = found["message"].as_str().unwrap();
    assert!(message.starts_with("Pod p uses it and has no node yet: 0/1 nodes are available: "), "{message}");
}
