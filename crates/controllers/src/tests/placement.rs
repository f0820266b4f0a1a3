use serde_json::json;

use super::*;

fn scheduled(cluster: &Cluster, pod: &Key) -> String {
    cluster.get(pod)["spec"]["nodeName"].as_str().unwrap_or_default().to_owned()
}

fn told(cluster: &Cluster, pod: &Key) -> String {
    let conditions = cluster.get(pod)["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|c| c["type"] == "PodScheduled").cloned().unwrap_or_default();
    assert_eq!(found["status"], "False");
    assert_eq!(found["reason"], "Unschedulable");
    found["message"].as_str().unwrap().to_owned()
}

const UNHELPFUL: &str = "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
const NO_VICTIMS: &str = "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";

#[test]
fn a_pod_is_told_why_it_fits_nowhere() {
    let requests = |cpu: &str| {
        json!({ "spec": { "containers": [{
        "name": "c", "image": "i", "resources": { "requests": { "cpu": cpu } },
        "ports": [{ "containerPort": 80, "hostPort": 8080 }],
    }] } })
    };
    let named = format!("{UNHELPFUL} Volume \"v\", claim \"c\": It does not exist.");
    let table = [
        (json!({"spec": {"unschedulable": true}}), json!({}), "1 node(s) were unschedulable.", UNHELPFUL),
        (
            json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}),
            json!({}),
            "1 node(s) had untolerated taint(s).",
            UNHELPFUL,
        ),
        (json!({"status": {"conditions": []}}), json!({}), "1 node(s) had untolerated taint(s).", UNHELPFUL),
        (
            json!({}),
            json!({"spec": {"nodeSelector": {"zone": "a"}}}),
            "1 node(s) didn't match Pod's node affinity/selector.",
            UNHELPFUL,
        ),
        (json!({}), requests("5"), "1 Insufficient cpu.", UNHELPFUL),
        (json!({"status": {"allocatable": {"pods": "1"}}}), json!({}), "1 Too many pods.", NO_VICTIMS),
        (json!({}), claiming("c"), "persistentvolumeclaim \"c\" not found.", &named),
        (json!({}), claiming("waits"), "pod has unbound immediate PersistentVolumeClaims.", UNHELPFUL),
        (json!({}), claiming("late"), "1 node(s) didn't find available persistent volumes to bind.", UNHELPFUL),
        (json!({}), claiming("far"), "1 node(s) didn't match PersistentVolume's node affinity.", UNHELPFUL),
        (json!({}), claiming("going"), "persistentvolumeclaim \"going\" is being deleted.", UNHELPFUL),
    ];
    for (on_node, in_pod, reason, preemption) in table {
        let mut cluster = Cluster::new();
        cluster.make(class("late", "kubernetes.io/no-provisioner", true));
        cluster.make(pvc("waits", "1Gi", json!({})));
        cluster.make(pvc("late", "1Gi", json!({"spec": {"storageClassName": "late"}})));
        let mut far = pv("far", "1Gi", on_host("elsewhere"));
        far["spec"]["claimRef"] = json!({ "namespace": "ns", "name": "far" });
        cluster.make(far);
        cluster.make(pvc("far", "1Gi", json!({})));
        let going = cluster.make(pvc("going", "1Gi", json!({})));
        cluster.edit(&going, json!({"metadata": {"finalizers": ["example.com/x"]}}));
        cluster.delete(&going, None);
        cluster.make(node("n", on_node));
        cluster.make(pod("other", json!({"spec": {"nodeName": "n"}})));
        let pod = cluster.make(pod("p", in_pod));
        cluster.settle();
        let message = format!("0/1 nodes are available: {reason} {preemption}");
        assert_eq!(told(&cluster, &pod), message);
        assert!(cluster.noted("FailedScheduling").contains(&message.as_str()), "{message}");
    }
    let mut cluster = Cluster::new();
    let pod = cluster.make(pod("p", json!({})));
    cluster.settle();
    assert_eq!(told(&cluster, &pod), "no nodes available to schedule pods");
}

#[test]
fn a_pod_goes_where_it_fits() {
    let tolerating =
        json!({"spec": {"tolerations": [{"operator": "Exists"}], "nodeSelector": {"kubernetes.io/hostname": "a"}}});
    let preferring = json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 50, "preference": {"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["c"]}]}}]}}}});
    for (more, expected) in [(json!({}), "b"), (tolerating, "a"), (preferring, "c")] {
        let mut cluster = Cluster::new();
        cluster.make(node("a", json!({"spec": {"unschedulable": true}})));
        cluster.make(node("b", json!({})));
        cluster.make(node("c", json!({})));
        let pod = cluster.make(pod("p", more));
        cluster.settle();
        assert_eq!(scheduled(&cluster, &pod), expected);
        assert_eq!(cluster.noted("Scheduled"), [format!("Successfully assigned ns/p to {expected}")]);
    }
}

#[test]
fn room_and_ports_are_given_once() {
    let mut cluster = Cluster::new();
    cluster.make(node("n", json!({})));
    let asks = |name: &str, cpu: &str, port: u16| {
        pod(
            name,
            json!({ "spec": { "containers": [{
        "name": "c", "image": "i", "resources": { "requests": { "cpu": cpu } },
        "ports": [{ "containerPort": 80, "hostPort": port }],
    }] } }),
        )
    };
    let first = cluster.make(asks("a", "2500m", 80));
    let second = cluster.make(asks("b", "2500m", 81));
    let third = cluster.make(asks("c", "100m", 80));
    cluster.settle();
    assert_eq!(scheduled(&cluster, &first), "n");
    assert_eq!(told(&cluster, &second), format!("0/1 nodes are available: 1 Insufficient cpu. {NO_VICTIMS}"));
    let ports = "1 node(s) didn't have free ports for the requested pod ports.";
    assert_eq!(told(&cluster, &third), format!("0/1 nodes are available: {ports} {NO_VICTIMS}"));
    cluster.delete(&first, None);
    cluster.settle();
    assert_eq!((scheduled(&cluster, &second), scheduled(&cluster, &third)), ("n".into(), "n".into()));
}

#[test]
fn a_late_claim_binds_where_its_pod_goes() {
    let mut cluster = Cluster::new();
    cluster.make(class("late", "kubernetes.io/no-provisioner", true));
    cluster.make(node("n", json!({})));
    let late = json!({"spec": {"storageClassName": "late"}});
    for (name, size, host) in [("far", "1Gi", "elsewhere"), ("near", "9Gi", "n"), ("nearer", "5Gi", "n")] {
        let mut volume = on_host(host);
        json_patch::merge(&mut volume, &late);
        cluster.make(pv(name, size, volume));
    }
    let claims = ["c", "d"].map(|name| cluster.make(pvc(name, "1Gi", late.clone())));
    cluster.settle();
    assert_eq!(cluster.phase(&claims[0]), "Pending");
    let two = json!({ "spec": { "volumes": [
        { "name": "v", "persistentVolumeClaim": { "claimName": "c" } },
        { "name": "w", "persistentVolumeClaim": { "claimName": "d" } },
    ] } });
    let pod = cluster.make(pod("p", two));
    cluster.settle();
    let volumes: Vec<_> = claims.iter().map(|c| cluster.get(c)["spec"]["volumeName"].as_str().unwrap()).collect();
    assert_eq!(volumes, ["nearer", "near"]);
    assert_eq!(scheduled(&cluster, &pod), "n");
}

#[test]
fn of_a_pods_late_claims_the_small_ones_choose_first() {
    let mut cluster = Cluster::new();
    cluster.make(class("late", "kubernetes.io/no-provisioner", true));
    cluster.make(node("n", json!({})));
    let late = json!({"spec": {"storageClassName": "late"}});
    ["5Gi", "6Gi"]
        .iter()
        .for_each(|size| drop(cluster.make(pv(&format!("v{size}").to_lowercase(), size, late.clone()))));
    let claims = [("big", "5Gi"), ("small", "1Gi")].map(|(name, size)| cluster.make(pvc(name, size, late.clone())));
    cluster.settle();
    let volumes: Vec<_> =
        ["big", "small"].map(|name| json!({ "name": name, "persistentVolumeClaim": { "claimName": name } })).into();
    let pod = cluster.make(pod("p", json!({ "spec": { "volumes": volumes } })));
    cluster.settle();
    assert_eq!(claims.map(|c| cluster.get(&c)["spec"]["volumeName"].clone()), ["v6gi", "v5gi"]);
    assert_eq!(scheduled(&cluster, &pod), "n");
}

#[test]
fn allowed_topologies_say_where_volumes_are_made() {
    let zone = |values: &[&str]| json!({"matchLabelExpressions": [{"key": "zone", "values": values}]});
    let table = [
        (json!(null), "n"),
        (json!([zone(&["a", "b"])]), "n"),
        (json!([zone(&["b"])]), ""),
        (json!([zone(&["b"]), zone(&["a"])]), "n"),
        // A term that asks for nothing matches nothing.
        (json!([{}]), ""),
    ];
    for (allowed, expected) in table {
        let mut cluster = Cluster::new();
        let mut late = class("late", "csi.example.com", true);
        late["allowedTopologies"] = allowed.clone();
        cluster.make(late);
        cluster.make(node("n", json!({"metadata": {"labels": {"zone": "a"}}})));
        let claim = cluster.make(pvc("c", "1Gi", json!({"spec": {"storageClassName": "late"}})));
        cluster.make(pod("p", claiming("c")));
        cluster.settle();
        let node = &cluster.get(&claim)["metadata"]["annotations"]["volume.kubernetes.io/selected-node"];
        assert_eq!(node.as_str().unwrap_or_default(), expected, "{allowed}");
    }
}

#[test]
fn a_late_claim_of_a_provisioner_is_told_the_node() {
    let mut cluster = Cluster::new();
    cluster.make(class("late", "csi.example.com", true));
    cluster.make(node("n", json!({})));
    let claim = cluster.make(pvc("c", "1Gi", json!({"spec": {"storageClassName": "late"}})));
    let pod = cluster.make(pod("p", claiming("c")));
    cluster.settle();
    assert_eq!(cluster.get(&claim)["metadata"]["annotations"]["volume.kubernetes.io/selected-node"], "n");
    assert_eq!(cluster.noted("ExternalProvisioning").len(), 1);
    assert_eq!(scheduled(&cluster, &pod), "");
    let mut volume = pv("made", "1Gi", json!({"spec": {"storageClassName": "late"}}));
    volume["spec"]["claimRef"] =
        json!({ "namespace": "ns", "name": "c", "uid": cluster.get(&claim)["metadata"]["uid"] });
    cluster.make(volume);
    cluster.settle();
    assert_eq!((cluster.phase(&claim), scheduled(&cluster, &pod).as_str()), ("Bound", "n"));
}

#[test]
fn other_schedulers_pods_are_left_alone() {
    let mut cluster = Cluster::new();
    cluster.make(node("n", json!({})));
    let mine = cluster.make(pod("p", json!({"spec": {"schedulerName": "mine"}})));
    let gated = cluster.make(pod("q", json!({"spec": {"schedulingGates": [{"name": "wait"}]}})));
    cluster.settle();
    assert_eq!((scheduled(&cluster, &mine), scheduled(&cluster, &gated)), (String::new(), String::new()));
}

/// A pod with claims, on one node beside what else there is: where it goes, or why not.
fn verdict(more: impl FnOnce(&mut Cluster), on_node: Value, in_pod: Value) -> String {
    let mut cluster = Cluster::new();
    cluster.make(class("late", "kubernetes.io/no-provisioner", true));
    cluster.make(node("n", on_node));
    more(&mut cluster);
    cluster.settle();
    let pod = cluster.make(pod("p", in_pod));
    cluster.settle();
    match scheduled(&cluster, &pod) {
        node if node.is_empty() => {
            let told = told(&cluster, &pod);
            let told = told.strip_prefix("0/1 nodes are available: ").unwrap();
            told.split(". preemption").next().unwrap().to_owned()
        }
        node => node,
    }
}

fn claiming_all(claims: &[&str]) -> Value {
    let volumes: Vec<_> =
        claims.iter().map(|c| json!({ "name": c, "persistentVolumeClaim": { "claimName": c } })).collect();
    json!({ "spec": { "volumes": volumes } })
}

fn pair(cluster: &mut Cluster, name: &str, in_volume: Value) {
    let mut volume = pv(name, "1Gi", in_volume);
    volume["spec"]["claimRef"] = json!({ "namespace": "ns", "name": name });
    cluster.make(volume);
    cluster.make(pvc(name, "1Gi", json!({})));
}

#[test]
fn every_claim_of_a_pod_has_a_say() {
    let (far, none) = (
        "1 node(s) didn't match PersistentVolume's node affinity",
        "1 node(s) didn't find available persistent volumes to bind",
    );
    let late = |name: &str| pvc(name, "1Gi", json!({ "spec": { "storageClassName": "late" } }));
    let both = |first: bool, second: bool| {
        verdict(
            |cluster| {
                pair(cluster, "a", if first { json!({}) } else { on_host("elsewhere") });
                if second {
                    cluster.make(pv("b", "1Gi", json!({ "spec": { "storageClassName": "late" } })));
                }
                cluster.make(late("b"));
            },
            json!({}),
            claiming_all(&["a", "b"]),
        )
    };
    assert_eq!(both(true, true), "n");
    assert_eq!(both(true, false), none);
    assert_eq!(both(false, true), far);
    assert_eq!(both(false, false), format!("{none}, {far}"));
    let two_of_one = |cluster: &mut Cluster| {
        cluster.make(pv("v", "1Gi", json!({ "spec": { "storageClassName": "late" } })));
        cluster.make(late("a"));
        cluster.make(late("b"));
    };
    assert_eq!(verdict(two_of_one, json!({}), claiming_all(&["a", "b"])), none);
    let named = |cluster: &mut Cluster| {
        cluster.make(pvc("a", "1Gi", json!({ "spec": { "storageClassName": "late", "volumeName": "none" } })));
    };
    assert_eq!(verdict(named, json!({}), claiming("a")), "pod has unbound immediate PersistentVolumeClaims");
    let lost = |cluster: &mut Cluster| {
        let more = json!({ "metadata": { "annotations": { "pv.kubernetes.io/bind-completed": "yes" } },
            "spec": { "volumeName": "gone" } });
        cluster.make(pvc("a", "1Gi", more));
    };
    let gone = "persistentvolumeclaim \"a\" bound to non-existent persistentvolume \"gone\"";
    assert_eq!(verdict(lost, json!({}), claiming("a")), gone);
}

#[test]
fn a_volume_in_a_zone_keeps_its_pod_there() {
    let table = [("a", "n"), ("b__a", "n"), ("b", "1 node(s) had no available volume zone")];
    for (zone, expected) in table {
        let labels = |zone: &str| json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": zone } } });
        let is = verdict(|cluster| pair(cluster, "c", labels(zone)), labels("a"), claiming("c"));
        assert_eq!(is, expected, "{zone}");
    }
}

#[test]
fn a_disk_that_one_pod_writes_to_is_for_one_pod() {
    let iscsi = |iqn: &str, read: bool| json!({ "iscsi": { "iqn": iqn, "readOnly": read } });
    let rbd =
        |monitor: &str, read: bool| json!({ "rbd": { "monitors": [monitor, "m"], "image": "i", "readOnly": read } });
    let taken = "1 node(s) had no available disk";
    let table = [
        (iscsi("a", false), iscsi("a", false), taken),
        (iscsi("a", false), iscsi("a", true), taken),
        (iscsi("a", true), iscsi("a", true), "n"),
        (iscsi("a", false), iscsi("b", false), "n"),
        (rbd("x", false), rbd("y", false), taken),
        (rbd("x", true), rbd("y", true), "n"),
        (json!({ "gcePersistentDisk": { "pdName": "d" } }), json!({ "gcePersistentDisk": { "pdName": "d" } }), taken),
        (
            json!({ "awsElasticBlockStore": { "volumeID": "d", "readOnly": true } }),
            json!({ "awsElasticBlockStore": { "volumeID": "d", "readOnly": true } }),
            taken,
        ),
        (iscsi("a", false), rbd("x", false), "n"),
    ];
    for (mut theirs, mut ours, expected) in table {
        for volume in [&mut theirs, &mut ours] {
            volume["name"] = json!("v");
            if let Some(iscsi) = volume.get_mut("iscsi") {
                iscsi["targetPortal"] = json!("p");
                iscsi["lun"] = json!(0);
            }
        }
        let other = pod("other", json!({ "spec": { "nodeName": "n", "volumes": [theirs] } }));
        let is = verdict(|c| drop(c.make(other)), json!({}), json!({ "spec": { "volumes": [ours] } }));
        assert_eq!(is, expected, "{theirs} {ours}");
    }
}

#[test]
fn a_node_takes_as_many_csi_volumes_as_its_drivers_hold() {
    let beyond = "1 node(s) exceed max volume count";
    let csi = |handle: &str| json!({ "spec": { "hostPath": null, "csi": { "driver": "d", "volumeHandle": handle } } });
    let attach_limit = |most: Value, driver: &str| {
        json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": { "name": "n" },
            "spec": { "drivers": [{ "name": driver, "nodeID": "i", "allocatable": { "count": most } }] },
        })
    };
    let verdict_with = |most: Value, claims: &[&str], attachment: bool| {
        verdict(
            |cluster| {
                cluster.make(attach_limit(most, "d"));
                ["a", "b", "c", "e"].iter().for_each(|name| pair(cluster, name, csi(name)));
                pair(cluster, "same", csi("a"));
                pair(cluster, "plain", json!({}));
                let mut other = claiming("a");
                other["spec"]["nodeName"] = json!("n");
                cluster.make(pod("other", other));
                if attachment {
                    cluster.make(json!({
                        "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": { "name": "x" },
                        "spec": { "attacher": "d", "nodeName": "n", "source": { "persistentVolumeName": "e" } },
                    }));
                }
            },
            json!({}),
            claiming_all(claims),
        )
    };
    assert_eq!(verdict_with(json!(2), &["b"], false), "n");
    assert_eq!(verdict_with(json!(2), &["b", "c"], false), beyond);
    assert_eq!(verdict_with(json!(2), &["b"], true), beyond);
    assert_eq!(verdict_with(json!(1), &["same", "plain"], false), "n", "what is there already needs no room");
    assert_eq!(verdict_with(json!(0), &["b"], false), beyond);
    assert_eq!(verdict_with(Value::Null, &["b", "c"], false), "n", "no limit is known");

    // A cloud's disks by their in-tree names: of claims, and named by pods.
    let disk = |name: &str| json!({ "name": name, "awsElasticBlockStore": { "volumeID": format!("vol-{name}") } });
    let cloud = |most: u8, volumes: Value| {
        verdict(
            |cluster| {
                cluster.make(attach_limit(json!(most), "ebs.csi.aws.com"));
                let source = json!({ "volumeID": "aws://us-west-2a/vol-a" });
                pair(cluster, "a", json!({ "spec": { "hostPath": null, "awsElasticBlockStore": source } }));
                let mut other = claiming("a");
                other["spec"]["nodeName"] = json!("n");
                cluster.make(pod("other", other));
            },
            json!({}),
            json!({ "spec": { "volumes": volumes } }),
        )
    };
    assert_eq!(cloud(2, json!([disk("b")])), "n");
    assert_eq!(cloud(1, json!([disk("b")])), beyond);
    assert_eq!(cloud(2, json!([disk("b"), disk("c")])), beyond);
    assert_eq!(cloud(1, json!([disk("a")])), "n", "the claim's volume is that disk");
    assert_eq!(cloud(1, json!([{ "name": "x", "cinder": { "volumeID": "y" } }])), "n", "another cloud's");
}

#[test]
fn a_clouds_disk_is_where_its_driver_says() {
    let driver = |labels: Value, registered: bool, zone: &str| {
        verdict(
            |cluster| {
                if registered {
                    cluster.make(json!({
                        "apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": { "name": "n" },
                        "spec": { "drivers": [{ "name": "pd.csi.storage.gke.io", "nodeID": "i" }] },
                    }));
                }
                pair(
                    cluster,
                    "a",
                    json!({
                        "metadata": { "labels": { "topology.kubernetes.io/zone": zone } },
                        "spec": { "hostPath": null, "gcePersistentDisk": { "pdName": "d" } },
                    }),
                );
            },
            json!({ "metadata": { "labels": labels } }),
            claiming("a"),
        )
    };
    let away = "1 node(s) didn't match PersistentVolume's node affinity";
    let gke = json!({ "topology.gke.io/zone": "z" });
    assert_eq!(driver(gke.clone(), true, "z"), "n");
    let other_cloud = json!({ "topology.gke.io/zone": "z", "topology.kubernetes.io/zone": "x" });
    assert_eq!(driver(other_cloud, true, "z"), "n", "the machine is a zone of another cloud too");
    assert_eq!(driver(gke.clone(), true, "y"), away);
    assert_eq!(driver(json!({}), true, "z"), away);
    assert_eq!(driver(json!({}), false, "z"), "n", "the driver's labels come with the driver");
    let outside = "1 node(s) had no available volume zone";
    assert_eq!(driver(json!({ "topology.kubernetes.io/zone": "y" }), false, "z"), outside);
}
