use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn bound_to(cluster: &Cluster, claim: &Key) -> String {
    let volume = cluster.get(claim)["spec"]["volumeName"].as_str().unwrap_or_default().to_owned();
    if cluster.phase(claim) == "Bound" { volume } else { format!("({})", cluster.phase(claim)) }
}

#[test]
fn a_claim_gets_the_volume_that_fits_best() {
    let modes = |m: &[&str]| json!({ "spec": { "accessModes": m } });
    let labels = |tier: &str| json!({ "metadata": { "labels": { "tier": tier } } });
    let select = |e: Value| json!({ "spec": { "selector": e } });
    let none = || json!({});
    type Volumes = Vec<(&'static str, &'static str, Value)>;
    let table: Vec<(&str, Volumes, (&str, Value), &str)> = vec![
        ("smallest", vec![("a", "10Gi", none()), ("b", "1Gi", none()), ("c", "5Gi", none())], ("3Gi", none()), "c"),
        ("exact", vec![("a", "6Gi", none()), ("b", "5Gi", none()), ("c", "5121Mi", none())], ("5Gi", none()), "b"),
        ("numbers", vec![("a", "1G", none()), ("b", "1024Mi", none())], ("1Gi", none()), "b"),
        ("too small", vec![("a", "1Gi", none())], ("2Gi", none()), "(Pending)"),
        (
            "all modes",
            vec![("a", "1Gi", none()), ("b", "9Gi", modes(&["ReadWriteOnce", "ReadWriteMany"]))],
            ("1Gi", modes(&["ReadWriteMany", "ReadWriteOnce"])),
            "b",
        ),
        (
            "fewest modes",
            vec![("a", "8Gi", none()), ("b", "1Gi", modes(&["ReadWriteOnce", "ReadWriteMany"]))],
            ("1Gi", none()),
            "a",
        ),
        (
            "a mode twice is one mode",
            vec![
                ("a", "2Gi", modes(&["ReadWriteOnce", "ReadOnlyMany"])),
                ("b", "8Gi", modes(&["ReadWriteOnce", "ReadWriteOnce", "ReadWriteOnce"])),
            ],
            ("1Gi", none()),
            "b",
        ),
        ("one pod alone", vec![("a", "1Gi", none())], ("1Gi", modes(&["ReadWriteOncePod"])), "(Pending)"),
        (
            "attributes class",
            vec![("a", "1Gi", none()), ("b", "2Gi", json!({"spec": {"volumeAttributesClassName": "gold"}}))],
            ("1Gi", json!({"spec": {"volumeAttributesClassName": "gold"}})),
            "b",
        ),
        (
            "named, whatever its labels",
            vec![("a", "1Gi", labels("a"))],
            ("1Gi", json!({"spec": {"volumeName": "a", "selector": {"matchLabels": {"tier": "b"}}}})),
            "a",
        ),
        (
            "reserved for another incarnation",
            vec![("a", "1Gi", json!({"spec": {"claimRef": {"namespace": "ns", "name": "c", "uid": "x"}}}))],
            ("1Gi", none()),
            "(Pending)",
        ),
        (
            "reserved, and too small",
            vec![("a", "1Gi", json!({"spec": {"claimRef": {"namespace": "ns", "name": "c"}}}))],
            ("2Gi", none()),
            "(Pending)",
        ),
        (
            "pointed at each other by hand",
            vec![("a", "1Gi", json!({"spec": {"claimRef": {"namespace": "ns", "name": "c"}}}))],
            ("2Gi", json!({"spec": {"volumeName": "a"}})),
            "a",
        ),
        (
            "no class is a class",
            vec![("a", "1Gi", json!({"spec": {"storageClassName": null}})), ("b", "1Gi", none())],
            ("1Gi", json!({"spec": {"storageClassName": ""}})),
            "a",
        ),
        ("other class", vec![("a", "1Gi", json!({"spec": {"storageClassName": "x"}}))], ("1Gi", none()), "(Pending)"),
        (
            "legacy class",
            vec![(
                "a",
                "1Gi",
                json!({"spec": {"storageClassName": null},
                       "metadata": {"annotations": {"volume.beta.kubernetes.io/storage-class": "k"}}}),
            )],
            ("1Gi", none()),
            "a",
        ),
        (
            "selector",
            vec![("a", "1Gi", labels("a")), ("b", "2Gi", labels("b"))],
            ("1Gi", select(json!({"matchLabels": {"tier": "b"}}))),
            "b",
        ),
        ("mode", vec![("a", "1Gi", json!({"spec": {"volumeMode": "Block"}}))], ("1Gi", none()), "(Pending)"),
        (
            "reserved elsewhere",
            vec![("a", "1Gi", json!({"spec": {"claimRef": {"namespace": "other", "name": "c"}}}))],
            ("1Gi", none()),
            "(Pending)",
        ),
        (
            "reserved for it wins",
            vec![
                ("a", "1Gi", none()),
                ("b", "9Gi", json!({"spec": {"claimRef": {"namespace": "ns", "name": "c"}, "storageClassName": "x"}})),
            ],
            ("1Gi", none()),
            "b",
        ),
        ("named", vec![("a", "1Gi", none()), ("b", "9Gi", none())], ("1Gi", json!({"spec": {"volumeName": "b"}})), "b"),
        ("node affinity", vec![("a", "1Gi", on_host("nowhere"))], ("1Gi", none()), "a"),
    ];
    for (what, volumes, (size, more), expected) in table {
        let mut cluster = Cluster::new();
        cluster.make(class("k", "kubernetes.io/no-provisioner", false));
        volumes.into_iter().for_each(|(name, size, more)| drop(cluster.make(pv(name, size, more))));
        cluster.settle();
        let claim = cluster.make(pvc("c", size, more));
        cluster.settle();
        assert_eq!(bound_to(&cluster, &claim), expected, "{what}");
    }
}

#[test]
fn both_sides_tell_who_bound_them() {
    let annotations = |c: &Cluster, key: &Key| c.get(key)["metadata"]["annotations"].clone();
    let mut cluster = Cluster::new();
    let volume = cluster.make(pv("v", "2Gi", json!({})));
    let claim = cluster.make(pvc("c", "1Gi", json!({})));
    cluster.settle();
    let both = json!({ "pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes" });
    assert_eq!(annotations(&cluster, &claim), both);
    assert_eq!(annotations(&cluster, &volume), json!({ "pv.kubernetes.io/bound-by-controller": "yes" }));
    let status = &cluster.get(&claim)["status"];
    assert_eq!(status, &json!({"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "2Gi"}}));
    assert_eq!(cluster.phase(&volume), "Bound");

    let mut cluster = Cluster::new();
    let reserved = json!({ "spec": { "claimRef": { "namespace": "ns", "name": "c" } } });
    let volume = cluster.make(pv("v", "2Gi", reserved));
    let claim = cluster.make(pvc("c", "1Gi", json!({ "spec": { "volumeName": "v" } })));
    cluster.settle();
    assert_eq!(annotations(&cluster, &claim), json!({ "pv.kubernetes.io/bind-completed": "yes" }));
    assert_eq!(annotations(&cluster, &volume), Value::Null);
}

#[test]
fn what_a_waiting_claim_is_told() {
    let named = |more: Value| {
        let mut spec = json!({ "spec": { "volumeName": "v" } });
        json_patch::merge(&mut spec, &more);
        spec
    };
    let table = [
        (
            json!({"spec": {"storageClassName": ""}}),
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
        ),
        (
            json!({"spec": {"storageClassName": "gone"}}),
            "ProvisioningFailed",
            "storageclass.storage.k8s.io \"gone\" not found",
        ),
        (
            json!({"spec": {"storageClassName": "late"}}),
            "WaitForFirstConsumer",
            "waiting for first consumer to be created before binding",
        ),
        (
            json!({"spec": {"storageClassName": "csi"}}),
            "ExternalProvisioning",
            "Waiting for a volume to be created either by the external provisioner 'csi.example.com' or manually by \
             the system administrator. If volume creation is delayed, please verify that the provisioner is running \
             and correctly registered.",
        ),
        (
            named(json!({"spec": {"resources": {"requests": {"storage": "9Gi"}}}})),
            "VolumeMismatch",
            "Cannot bind to requested volume \"v\": requested PV is too small",
        ),
        (
            named(json!({"spec": {"storageClassName": "other"}})),
            "VolumeMismatch",
            "Cannot bind to requested volume \"v\": storageClassName does not match",
        ),
        (
            named(json!({"spec": {"accessModes": ["ReadWriteMany"]}})),
            "VolumeMismatch",
            "Cannot bind to requested volume \"v\": incompatible accessMode",
        ),
        (
            named(json!({"spec": {"volumeMode": "Block"}})),
            "VolumeMismatch",
            "Cannot bind to requested volume \"v\": incompatible volumeMode",
        ),
        (
            json!({"spec": {"volumeName": "taken"}}),
            "FailedBinding",
            "volume \"taken\" already bound to a different claim.",
        ),
    ];
    for (more, reason, message) in table {
        let mut cluster = Cluster::new();
        cluster.make(class("late", "csi.example.com", true));
        cluster.make(class("csi", "csi.example.com", false));
        cluster.make(pv("v", "1Gi", json!({})));
        cluster.make(pv("taken", "1Gi", json!({"spec": {"claimRef": {"namespace": "x", "name": "y"}}})));
        cluster.settle();
        let claim = cluster.make(pvc("c", "1Gi", more.clone()));
        cluster.settle();
        assert_eq!(cluster.noted(reason), [message], "{more}: {:?}", cluster.notes);
        assert_eq!(cluster.phase(&claim), "Pending", "{more}");
    }
}

#[test]
fn a_default_class_reaches_claims_that_name_none() {
    let mut cluster = Cluster::new();
    let claim = cluster.make(pvc("c", "1Gi", json!({"spec": {"storageClassName": null}})));
    let opted_out = cluster.make(pvc("d", "1Gi", json!({"spec": {"storageClassName": ""}})));
    cluster.settle();
    let mut default = class("std", "csi.example.com", false);
    default["metadata"]["annotations"] = json!({ "storageclass.kubernetes.io/is-default-class": "true" });
    cluster.make(default);
    cluster.settle();
    assert_eq!(cluster.get(&claim)["spec"]["storageClassName"], "std");
    assert_eq!(cluster.get(&opted_out)["spec"]["storageClassName"], "");
}

#[test]
fn the_end_of_a_claim_releases_its_volume() {
    let csi = json!({"spec": {"csi": {"driver": "d", "volumeHandle": "h"}, "hostPath": null}});
    let nfs = json!({"spec": {"nfs": {"server": "s", "path": "/p"}, "hostPath": null}});
    let table = [
        ("Retain", json!({}), "Released", None),
        // A node does these.
        ("Recycle", json!({}), "Released", None),
        ("Delete", json!({"spec": {"hostPath": {"path": "/tmp/v"}}}), "Released", None),
        ("Delete", csi, "Released", None),
        (
            "Delete",
            nfs,
            "Failed",
            Some("error getting deleter volume plugin for volume \"v\": no deletable volume plugin matched"),
        ),
        ("Delete", json!({}), "Failed", Some("host_path deleter only supports /tmp/.+ but received provided /data")),
    ];
    for (policy, more, phase, message) in table {
        let mut cluster = Cluster::new();
        cluster.make(node("n", json!({})));
        let mut volume = pv("v", "1Gi", more);
        volume["spec"]["persistentVolumeReclaimPolicy"] = json!(policy);
        let volume = cluster.make(volume);
        let claim = cluster.make(pvc("c", "1Gi", json!({})));
        cluster.settle();
        cluster.delete(&claim, None);
        cluster.settle();
        assert_eq!((cluster.phase(&claim), cluster.phase(&volume)), ("gone", phase), "{policy}");
        assert_eq!(cluster.noted("VolumeFailedDelete").first().copied(), message, "{policy}");
        // A new claim of the same name is another claim.
        let again = cluster.make(pvc("c", "1Gi", json!({})));
        cluster.settle();
        assert_eq!((cluster.phase(&again), cluster.phase(&volume)), ("Pending", phase));
        // An administrator gives it free.
        cluster.edit(&volume, json!({"spec": {"claimRef": null}}));
        cluster.settle();
        assert_eq!((bound_to(&cluster, &again).as_str(), cluster.phase(&volume)), ("v", "Bound"));
    }
}

#[test]
fn a_bound_claim_says_when_it_lost_its_volume() {
    let mut cluster = Cluster::new();
    let volume = cluster.make(pv("v", "1Gi", json!({})));
    let claim = cluster.make(pvc("c", "1Gi", json!({})));
    cluster.settle();
    cluster.edit(&volume, json!({"spec": {"claimRef": null}}));
    cluster.settle();
    let uid = cluster.get(&claim)["metadata"]["uid"].clone();
    assert_eq!(cluster.get(&volume)["spec"]["claimRef"]["uid"], uid, "the pair is restored");
    cluster.objects.remove(&volume);
    cluster.settle();
    assert_eq!(cluster.phase(&claim), "Lost");
    assert_eq!(cluster.noted("ClaimLost").len(), 1);
    assert_eq!(cluster.get(&claim)["status"], json!({ "phase": "Lost" }));
}

#[test]
fn a_reservation_that_came_to_nothing_is_given_up() {
    let by_us = |volume: &mut Value| {
        volume["metadata"]["annotations"] = json!({ "pv.kubernetes.io/bound-by-controller": "yes" });
    };
    // Deleted, or of a class that the claim turned out not to be of, before the claim was pointed at it.
    for (class, deleted, phase) in [("k", true, "gone"), ("x", false, "Available")] {
        let mut cluster = Cluster::new();
        let claim = cluster.make(pvc("c", "1Gi", json!({})));
        let mut volume = pv("v", "1Gi", json!({ "spec": { "storageClassName": class } }));
        by_us(&mut volume);
        volume["spec"]["claimRef"] =
            json!({ "namespace": "ns", "name": "c", "uid": cluster.get(&claim)["metadata"]["uid"] });
        let volume = cluster.make(volume);
        cluster.edit(&volume, json!({ "status": { "phase": "Bound" } }));
        if deleted {
            cluster.delete(&volume, None);
        }
        cluster.settle();
        assert_eq!((bound_to(&cluster, &claim).as_str(), cluster.phase(&volume)), ("(Pending)", phase), "{class}");
    }
}

#[test]
fn a_bound_claim_tells_size_and_attributes_of_its_volume() {
    let mut cluster = Cluster::new();
    let mut grown = pv("v", "5Gi", json!({ "spec": { "volumeAttributesClassName": "gold" } }));
    grown["metadata"]["annotations"] = json!({ "volume.alpha.kubernetes.io/pre-resize-capacity": "2Gi" });
    let volume = cluster.make(grown);
    let claim = cluster.make(pvc("c", "1Gi", json!({ "spec": { "volumeAttributesClassName": "gold" } })));
    cluster.settle();
    let status = cluster.get(&claim)["status"].clone();
    assert_eq!(status["capacity"], json!({ "storage": "2Gi" }), "the file system has not grown yet");
    assert_eq!(status["currentVolumeAttributesClassName"], "gold");
    // Lost and found: the attributes may have changed since, and others tell.
    let lost = cluster.objects.remove(&volume).unwrap();
    cluster.settle();
    assert_eq!(cluster.get(&claim)["status"], json!({ "phase": "Lost" }));
    cluster.objects.insert(volume, lost);
    cluster.settle();
    assert_eq!(cluster.phase(&claim), "Bound");
    assert_eq!(cluster.get(&claim)["status"]["currentVolumeAttributesClassName"], Value::Null);
}

/// What must hold after every single write (B1, B2).
fn check(cluster: &Cluster, bound: &mut BTreeMap<String, String>) {
    let mut holders = BTreeMap::new();
    for (key, object) in cluster.objects.iter().filter(|(k, _)| k.kind == "PersistentVolumeClaim") {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let volume = text(&object["spec"]["volumeName"]);
        if object["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"].is_null() {
            continue;
        }
        let uid = text(&object["metadata"]["uid"]);
        let before = bound.entry(uid.clone()).or_insert_with(|| volume.clone());
        assert_eq!(*before, volume, "B2: {key} changed its volume");
        let other = holders.insert(volume.clone(), uid.clone());
        assert_eq!(other, None, "two claims are bound to {volume}");
        let reference = &cluster.get(&Key::new("PersistentVolume", "", &volume))["spec"]["claimRef"]["uid"];
        assert_eq!(text(reference), uid, "B1: {volume} is reserved for another claim than {key}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn binding_survives_lost_and_stale_writes(
        volumes in prop::collection::vec((1..6u32, 0..3usize), 0..6),
        claims in prop::collection::vec((1..6u32, 0..3usize, 0..8usize), 0..6),
        fates in prop::collection::vec(
            prop_oneof![3 => Just(Fate::Happens), 1 => Just(Fate::Lost), 1 => Just(Fate::Stale)], 0..200),
        deleted in 0..6usize,
    ) {
        let mut cluster = Cluster::new();
        cluster.fates = fates;
        let classes = ["k", "l", ""];
        for (i, (size, class)) in volumes.iter().enumerate() {
            let spec = json!({ "spec": { "storageClassName": classes[*class] } });
            cluster.make(pv(&format!("v{i}"), &format!("{size}Gi"), spec));
        }
        let mut keys = Vec::new();
        for (i, (size, class, named)) in claims.iter().enumerate() {
            let mut spec = json!({ "spec": { "storageClassName": classes[*class] } });
            if *named < volumes.len() {
                spec["spec"]["volumeName"] = json!(format!("v{named}"));
            }
            keys.push(cluster.make(pvc(&format!("c{i}"), &format!("{size}Gi"), spec)));
        }
        let mut bound = BTreeMap::new();
        cluster.settle_checking(&mut |c| check(c, &mut bound));
        if let Some(key) = keys.get(deleted) {
            cluster.delete(key, None);
            cluster.settle_checking(&mut |c| check(c, &mut bound));
            prop_assert_eq!(cluster.phase(key), "gone");
        }
        // B3: settled is settled, and no claim waits while a volume would do.
        let actions = cluster.actions.len();
        cluster.settle();
        prop_assert_eq!(cluster.actions.len(), actions);
        for (key, claim) in cluster.objects.iter().filter(|(k, _)| k.kind == "PersistentVolumeClaim") {
            let waits = cluster.phase(key) == "Pending" && claim["spec"]["volumeName"].is_null();
            let size = |v: &Value| v.as_str().unwrap_or("0Gi").trim_end_matches("Gi").parse::<u32>().unwrap();
            let wants = size(&claim["spec"]["resources"]["requests"]["storage"]);
            let fit = cluster.objects.iter().any(|(k, v)| k.kind == "PersistentVolume"
                && cluster.phase(k) == "Available"
                && v["spec"]["storageClassName"] == claim["spec"]["storageClassName"]
                && size(&v["spec"]["capacity"]["storage"]) >= wants);
            prop_assert!(!(waits && fit), "{} waits in vain", key);
        }
    }
}
