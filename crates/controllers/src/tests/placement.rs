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
        (json!({}), claiming("c"), "persistentvolumeclaim \"c\" not found.", UNHELPFUL),
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
