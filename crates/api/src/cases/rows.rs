//! Rows of `kubectl get`, field selectors, warnings.
use jiff::Timestamp;
use serde_json::{Value, json};

use super::pod::pod;
use super::volumes::{pv, pvc};
use super::*;

/// The cells of an object, an hour after 2020 began.
pub(super) fn row(name: &str, body: Value) -> Vec<Value> {
    let now: Timestamp = "2020-01-01T01:00:00Z".parse().expect("a time");
    let mut object = object(name, body);
    object["metadata"]["creationTimestamp"] = json!("2020-01-01T00:00:00Z");
    kind(name).strategy.row(&object, now)
}

/// The first cells of a pod with this status: ready, status, restarts.
fn pod_row(spec: Value, status: Value, metadata: Value) -> [String; 3] {
    let mut body = pod(spec);
    body["status"] = status;
    body["metadata"] = json!({"name": "x"});
    merge(&mut body["metadata"], &metadata);
    let cells = row("Pod", body);
    [1, 2, 3].map(|i| cells[i].as_str().expect("text").to_owned())
}

fn container(state: Value, ready: bool, restarts: i32) -> Value {
    json!({"name": "c", "image": "i", "imageID": "", "ready": ready, "restartCount": restarts, "state": state})
}

#[test]
fn pods_say_what_they_wait_for() {
    let check = |spec: Value, status: Value, want: [&str; 3]| {
        assert_eq!(pod_row(spec, status.clone(), json!({})), want, "{status}")
    };
    let of = |c: Value| json!({"phase": "Running", "containerStatuses": [c]});
    check(json!({}), json!({"phase": "Pending"}), ["0/1", "Pending", "0"]);
    check(json!({}), of(container(json!({"running": {}}), true, 0)), ["1/1", "Running", "0"]);
    check(
        json!({}),
        of(container(json!({"waiting": {"reason": "ContainerCreating"}}), false, 0)),
        ["0/1", "ContainerCreating", "0"],
    );
    check(
        json!({}),
        of(container(json!({"waiting": {"reason": "CrashLoopBackOff"}}), false, 4)),
        ["0/1", "CrashLoopBackOff", "4"],
    );
    let mut crashed = container(json!({"waiting": {"reason": "CrashLoopBackOff"}}), false, 4);
    crashed["lastState"] = json!({"terminated": {"exitCode": 1, "finishedAt": "2020-01-01T00:55:00Z"}});
    check(json!({}), of(crashed), ["0/1", "CrashLoopBackOff", "4 (5m ago)"]);
    check(
        json!({}),
        json!({"phase": "Succeeded", "containerStatuses": [container(json!({"terminated": {"exitCode": 0, "reason": "Completed"}}), false, 0)]}),
        ["0/1", "Completed", "0"],
    );
    check(json!({}), of(container(json!({"terminated": {"exitCode": 3}}), false, 0)), ["0/1", "ExitCode:3", "0"]);
    check(
        json!({}),
        of(container(json!({"terminated": {"exitCode": 137, "signal": 9}}), false, 0)),
        ["0/1", "Signal:9", "0"],
    );
    check(json!({}), json!({"phase": "Failed", "reason": "Evicted"}), ["0/1", "Evicted", "0"]);
    check(
        json!({}),
        json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
        ["0/1", "SchedulingGated", "0"],
    );
    let gone = json!({"deletionTimestamp": "2020-01-01T00:30:00Z"});
    assert_eq!(pod_row(json!({}), of(container(json!({"running": {}}), true, 0)), gone.clone())[1], "Terminating");
    assert_eq!(pod_row(json!({}), json!({"phase": "Failed"}), gone.clone())[1], "Failed");
    assert_eq!(pod_row(json!({}), json!({"phase": "Running", "reason": "NodeLost"}), gone)[1], "Unknown");
}

#[test]
fn init_containers_come_first() {
    let spec = json!({"initContainers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]});
    let init = |a: Value, b: Value| {
        let of = |name: &str, state: Value| json!({"name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state});
        let status = json!({"phase": "Pending", "initContainerStatuses": [of("a", a), of("b", b)], "containerStatuses": [container(json!({"waiting": {"reason": "PodInitializing"}}), false, 0)]});
        pod_row(spec.clone(), status, json!({}))[1].clone()
    };
    let done = json!({"terminated": {"exitCode": 0, "reason": "Completed"}});
    assert_eq!(init(json!({"running": {}}), json!({"waiting": {"reason": "PodInitializing"}})), "Init:0/2");
    assert_eq!(init(done.clone(), json!({"running": {}})), "Init:1/2");
    assert_eq!(init(done.clone(), json!({"waiting": {"reason": "ErrImagePull"}})), "Init:ErrImagePull");
    assert_eq!(init(json!({"terminated": {"exitCode": 1, "reason": "Error"}}), json!({})), "Init:Error");
    assert_eq!(init(json!({"terminated": {"exitCode": 2}}), json!({})), "Init:ExitCode:2");
    assert_eq!(init(done.clone(), done), "PodInitializing");
    let sidecar = json!({"initContainers": [{"name": "a", "image": "i", "restartPolicy": "Always"}]});
    let status = json!({"phase": "Running", "initContainerStatuses": [{"name": "a", "image": "i", "imageID": "", "ready": true, "started": true, "restartCount": 2, "state": {"running": {}}}], "containerStatuses": [container(json!({"running": {}}), true, 1)]});
    assert_eq!(pod_row(sidecar, status, json!({})), ["2/2", "Running", "3"]);
}

#[test]
fn wide_cells_of_pods() {
    let mut body = pod(json!({"nodeName": "a", "readinessGates": [{"conditionType": "x.y/z"}]}));
    body["status"] = json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "x.y/z", "status": "True"}]});
    assert_eq!(row("Pod", body)[5..], [json!("10.0.0.1"), json!("a"), json!("<none>"), json!("1/1")]);
    assert_eq!(
        row("Pod", pod(json!({})))[4..],
        [json!("60m"), json!("<none>"), json!("<none>"), json!("<none>"), json!("<none>")]
    );
}

#[test]
fn volumes_and_claims() {
    let mut claim = pvc(json!({"volumeName": "v", "storageClassName": "s", "volumeMode": "Filesystem"}));
    claim["status"] =
        json!({"phase": "Bound", "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"]});
    assert_eq!(
        row("PersistentVolumeClaim", claim),
        [
            json!("x"),
            json!("Bound"),
            json!("v"),
            json!("2Gi"),
            json!("RWO,RWX"),
            json!("s"),
            json!("<unset>"),
            json!("60m"),
            json!("Filesystem")
        ]
    );
    let mut waiting = pvc(json!({}));
    waiting["status"] = json!({"phase": "Pending"});
    assert_eq!(
        row("PersistentVolumeClaim", waiting)[1..6],
        [json!("Pending"), json!(""), json!(""), json!(""), json!("")]
    );
    let mut volume =
        pv(json!({"claimRef": {"namespace": "n", "name": "c"}, "persistentVolumeReclaimPolicy": "Retain"}));
    volume["status"] = json!({"phase": "Bound"});
    assert_eq!(
        row("PersistentVolume", volume)[..6],
        [json!("x"), json!("1Gi"), json!("RWO"), json!("Retain"), json!("Bound"), json!("n/c")]
    );
    let class = json!({"provisioner": "a.b", "metadata": {"name": "x", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}});
    assert_eq!(
        row("StorageClass", class),
        [json!("x (default)"), json!("a.b"), json!("Delete"), json!("Immediate"), json!(false), json!("60m")]
    );
}

#[test]
fn the_rest() {
    assert_eq!(row("ConfigMap", json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": ""}}))[1], 3);
    assert_eq!(row("Secret", json!({"type": "Opaque", "data": {"a": ""}}))[1..3], [json!("Opaque"), json!(1)]);
    let node = json!({"metadata": {"name": "x", "labels": {"node-role.kubernetes.io/worker": "", "kubernetes.io/role": "edge"}}, "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}],
        "nodeInfo": {"architecture": "amd64", "kernelVersion": "6.1", "kubeletVersion": "v1.36.0"}}});
    assert_eq!(
        row("Node", node),
        [
            json!("x"),
            json!("Ready,SchedulingDisabled"),
            json!("edge,worker"),
            json!("60m"),
            json!("v1.36.0"),
            json!("1.2.3.4"),
            json!("<none>"),
            json!("<unknown>"),
            json!("6.1 (amd64)"),
            json!("<unknown>")
        ]
    );
    let event = json!({"involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec"}, "type": "Normal", "reason": "R", "message": " m ", "source": {"component": "c", "host": "h"},
        "firstTimestamp": "2020-01-01T00:50:00Z", "lastTimestamp": "2020-01-01T00:59:30Z", "count": 3});
    assert_eq!(
        row("Event", event),
        [
            json!("30s"),
            json!("Normal"),
            json!("R"),
            json!("pod/p"),
            json!("spec"),
            json!("c, h"),
            json!("m"),
            json!("10m"),
            json!(3),
            json!("x")
        ]
    );
    let quota = json!({"status": {"hard": {"pods": "2", "limits.cpu": "1"}, "used": {"pods": "1"}}});
    assert_eq!(row("ResourceQuota", quota)[1..3], [json!("pods: 1/2"), json!("limits.cpu: 0/1")]);
    let service = json!({"spec": {"type": "NodePort", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}], "selector": {"a": "b"}}});
    assert_eq!(
        row("Service", service)[1..],
        [json!("NodePort"), json!("10.0.0.1"), json!("<none>"), json!("80:30080/TCP"), json!("60m"), json!("a=b")]
    );
    let endpoints = json!({"subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "1.1.1.2"}, {"ip": "1.1.1.3"}, {"ip": "1.1.1.4"}], "ports": [{"port": 80}]}]});
    assert_eq!(row("Endpoints", endpoints)[1], "1.1.1.1:80,1.1.1.2:80,1.1.1.3:80 + 1 more...");
    assert_eq!(row("Endpoints", json!({}))[1], "<none>");
    let deployment = json!({"spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "j"}]}}}, "status": {"readyReplicas": 1}});
    assert_eq!(
        row("Deployment", deployment)[1..],
        [json!("1/2"), json!(0), json!(0), json!("60m"), json!("c,d"), json!("i,j"), json!("a=b")]
    );
}

#[test]
fn workloads_that_nothing_acts_on_yet() {
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let controller = json!({"spec": {"replicas": 2, "selector": {"a": "b"}, "template": template}});
    assert_eq!(
        row("ReplicationController", controller)[1..],
        [json!(2), json!(0), json!(0), json!("60m"), json!("c"), json!("i"), json!("a=b")]
    );
    let cron =
        json!({"spec": {"schedule": "@daily", "suspend": false, "jobTemplate": {"spec": {"template": template}}}});
    assert_eq!(
        row("CronJob", cron)[1..8],
        [json!("@daily"), json!("<none>"), json!("False"), json!(0), json!("<none>"), json!("60m"), json!("c")]
    );
    let ingress = json!({"spec": {"rules": [{"host": "a"}, {"host": "b"}, {"host": "c"}, {"host": "d"}], "tls": [{}]}});
    assert_eq!(
        row("Ingress", ingress)[1..],
        [json!("<none>"), json!("a,b,c + 1 more..."), json!(""), json!("80, 443"), json!("60m")]
    );
}

#[test]
fn names_of_columns_are_upstreams() {
    let names = |kind: &str| super::kind(kind).columns.iter().map(|c| c.name).collect::<Vec<_>>().join("|");
    assert_eq!(names("Pod"), "Name|Ready|Status|Restarts|Age|IP|Node|Nominated Node|Readiness Gates");
    assert_eq!(
        names("PersistentVolumeClaim"),
        "Name|Status|Volume|Capacity|Access Modes|StorageClass|VolumeAttributesClass|Age|VolumeMode"
    );
    assert_eq!(
        names("PersistentVolume"),
        "Name|Capacity|Access Modes|Reclaim Policy|Status|Claim|StorageClass|VolumeAttributesClass|Reason|Age|VolumeMode"
    );
    assert_eq!(names("Event"), "Last Seen|Type|Reason|Object|Subobject|Source|Message|First Seen|Count|Name");
    assert_eq!(
        names("Node"),
        "Name|Status|Roles|Age|Version|Internal-IP|External-IP|OS-Image|Kernel-Version|Container-Runtime"
    );
}

#[test]
fn selectable_fields_have_the_promised_names() {
    for kind in crate::KINDS {
        let mut o = json!({"metadata": {"name": "x"}});
        kind.strategy.default(&mut o);
        let got: Vec<&str> = kind.strategy.selectable(&o).iter().map(|(name, _)| *name).collect();
        for name in kind.strategy.selectable_names() {
            assert!(got.contains(name), "{} promises {name}", kind.kind);
        }
        assert!(kind.kind == "Event" || got.len() == kind.strategy.selectable_names().len(), "{}", kind.kind);
    }
    let mut p = object("Pod", pod(json!({"nodeName": "a", "hostNetwork": true})));
    p["status"] = json!({"phase": "Running", "podIP": "1.2.3.4"});
    let fields = kind("Pod").strategy.selectable(&p);
    let get = |name: &str| fields.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str());
    assert_eq!(
        (get("spec.nodeName"), get("spec.hostNetwork"), get("status.phase"), get("status.podIP")),
        (Some("a"), Some("true"), Some("Running"), Some("1.2.3.4"))
    );
}

#[test]
fn warnings() {
    let warn = |name: &str, body: Value| kind(name).strategy.warnings(&object(name, body));
    assert!(warn("Pod", pod(json!({}))).is_empty());
    let twice = json!({"containers": [{"name": "c", "image": "i", "env": [{"name": "A"}, {"name": "A"}]}]});
    assert_eq!(
        warn("Pod", pod(twice)),
        ["spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply"]
    );
    let check = |spec: Value, says: &str| {
        let got = warn("Pod", pod(spec));
        assert!(got.len() == 1 && got[0].starts_with(says), "{got:?}");
    };
    check(
        json!({"nodeSelector": {"beta.kubernetes.io/os": "linux"}}),
        "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
    );
    let term = json!({"matchExpressions": [{"key": "failure-domain.beta.kubernetes.io/zone", "operator": "Exists"}]});
    check(
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}}),
        "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].key: failure-domain.beta.kubernetes.io/zone is deprecated since v1.17",
    );
    let items = json!([{"key": "a", "path": "x"}, {"key": "b", "path": "x/y"}]);
    check(
        json!({"volumes": [{"name": "v", "configMap": {"name": "m", "items": items}}]}),
        "volume \"v\" (ConfigMap \"m\"): overlapping paths: \"x/y\" with \"x\"",
    );
    let token = json!([{"serviceAccountToken": {"path": "t"}}, {"secret": {"name": "s", "items": [{"key": "k", "path": "t/"}]}}]);
    check(
        json!({"volumes": [{"name": "v", "projected": {"sources": token}}]}),
        "volume \"v\" (Projected): overlapping paths: \"t\" (Secret \"s\") with \"t\" (ServiceAccountToken)",
    );
    check(
        json!({"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "hostIP": "1.2.3.4"}]}]}),
        "spec.containers[0].ports[0]: hostIP set without hostPort",
    );
    assert!(
        kind("Pod")
            .strategy
            .update_warnings(&object("Pod", pod(json!({"nodeSelector": {"beta.kubernetes.io/os": "linux"}}))))
            .is_empty()
    );
    let mut dotted = pod(json!({}));
    dotted["metadata"] = json!({"name": "a.b"});
    assert!(warn("Pod", dotted)[0].starts_with("metadata.name: this is used in the Pod's hostname"));
    let topology = json!([{"matchLabelExpressions": [{"key": "beta.kubernetes.io/arch", "values": ["x"]}]}]);
    assert_eq!(warn("StorageClass", json!({"provisioner": "a.b", "allowedTopologies": topology})).len(), 1);
    assert_eq!(
        warn("Secret", json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "", "tls.key": ""}})),
        ["tls: failed to find any PEM data in certificate input"]
    );
    assert_eq!(warn("PersistentVolume", pv(json!({"persistentVolumeReclaimPolicy": "Recycle"}))).len(), 1);
    let fraction = warn("PersistentVolumeClaim", pvc(json!({"resources": {"requests": {"storage": "1.5"}}})));
    assert_eq!(
        fraction,
        ["spec.resources.requests[storage]: fractional byte value \"1500m\" is invalid, must be an integer"]
    );
}
