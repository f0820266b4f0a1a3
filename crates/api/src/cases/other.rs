//! Classes, configuration, the cluster's own objects, workloads.
use serde_json::{Value, json};

use super::*;

#[test]
fn storage_classes() {
    let c = |fields: Value, want: &[(&str, &'static str)]| {
        let mut body = json!({"provisioner": "csi.example.com"});
        merge(&mut body, &fields);
        check("StorageClass", body, want);
    };
    c(json!({}), &[]);
    c(json!({"provisioner": "kubernetes.io/no-provisioner"}), &[]);
    c(json!({"provisioner": ""}), &[("provisioner", REQUIRED)]);
    c(json!({"provisioner": "/no/good"}), &[("provisioner", INVALID)]);
    c(json!({"reclaimPolicy": "Recycle"}), &[("reclaimPolicy", UNSUPPORTED)]);
    c(json!({"volumeBindingMode": "Someday"}), &[("volumeBindingMode", UNSUPPORTED)]);
    c(json!({"parameters": {"": "x"}}), &[("parameters", INVALID)]);
    let term = json!({"matchLabelExpressions": [{"key": "z", "values": ["a"]}]});
    c(json!({"allowedTopologies": [term]}), &[]);
    c(json!({"allowedTopologies": [term, term]}), &[("allowedTopologies[1].matchLabelExpressions", DUPLICATE)]);
    c(
        json!({"allowedTopologies": [{"matchLabelExpressions": [{"key": "z", "values": []}]}]}),
        &[("allowedTopologies[0].matchLabelExpressions[0].values", REQUIRED)],
    );
    check("VolumeAttributesClass", json!({"parameters": {"a": "b"}}), &[("driverName", REQUIRED)]);
    check("VolumeAttributesClass", json!({"driverName": "d.e"}), &[("parameters", REQUIRED)]);
}

#[test]
fn csi_objects() {
    check("CSIDriver", json!({"spec": {}}), &[]);
    check("CSIDriver", json!({"spec": {"fsGroupPolicy": "All"}}), &[("spec.fsGroupPolicy", UNSUPPORTED)]);
    check(
        "CSIDriver",
        json!({"spec": {"tokenRequests": [{"audience": "a"}, {"audience": "a"}]}}),
        &[("spec.tokenRequests[1].audience", DUPLICATE)],
    );
    check(
        "CSINode",
        json!({"spec": {"drivers": [{"name": "d", "nodeID": ""}]}}),
        &[("spec.drivers[0].nodeID", REQUIRED)],
    );
    check(
        "CSINode",
        json!({"spec": {"drivers": [{"name": "d", "nodeID": "n"}, {"name": "d", "nodeID": "n"}]}}),
        &[("spec.drivers[1].name", DUPLICATE)],
    );
    check("CSIStorageCapacity", json!({"storageClassName": "s", "capacity": "-1"}), &[("capacity", INVALID)]);
    check(
        "VolumeAttachment",
        json!({"spec": {"attacher": "a.b", "nodeName": "n", "source": {}}}),
        &[("spec.source", REQUIRED)],
    );
    check(
        "VolumeAttachment",
        json!({"spec": {"attacher": "a.b", "nodeName": "n", "source": {"persistentVolumeName": "v"}}}),
        &[],
    );
}

#[test]
fn configuration() {
    check("ConfigMap", json!({"data": {"a.b": "c"}, "binaryData": {"d": "AA=="}}), &[]);
    check("ConfigMap", json!({"data": {"a/b": "c"}}), &[("data[a/b]", INVALID)]);
    check("ConfigMap", json!({"data": {"..": "c"}}), &[("data[..]", INVALID)]);
    check("ConfigMap", json!({"data": {"a": "c"}, "binaryData": {"a": "AA=="}}), &[("data[a]", INVALID)]);
    check("ConfigMap", json!({"data": {"a": "x".repeat(1024 * 1024 + 1)}}), &[("[]", TOO_LONG)]);
    check("Secret", json!({"stringData": {"a": "b"}}), &[]);
    check("Secret", json!({"stringData": {"not ok": "b"}}), &[("data[not ok]", INVALID)]);
    check("Secret", json!({"type": "kubernetes.io/tls"}), &[("data[tls.crt]", REQUIRED), ("data[tls.key]", REQUIRED)]);
    check("Secret", json!({"type": "kubernetes.io/dockerconfigjson"}), &[("data[.dockerconfigjson]", REQUIRED)]);
    check(
        "Secret",
        json!({"type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": "x"}}),
        &[("data[.dockerconfigjson]", INVALID)],
    );
    check("Secret", json!({"type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": "{}"}}), &[]);
    check(
        "Secret",
        json!({"type": "kubernetes.io/basic-auth"}),
        &[("data[username]", REQUIRED), ("data[password]", REQUIRED)],
    );
    check("Secret", json!({"type": "kubernetes.io/ssh-auth"}), &[("data[ssh-privatekey]", REQUIRED)]);
    check(
        "Secret",
        json!({"type": "kubernetes.io/service-account-token"}),
        &[("metadata.annotations[kubernetes.io/service-account.name]", REQUIRED)],
    );
    check(
        "Lease",
        json!({"spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}}),
        &[("spec.leaseDurationSeconds", INVALID), ("spec.leaseTransitions", INVALID)],
    );
}

#[test]
fn cluster_objects() {
    check("Namespace", json!({}), &[]);
    check("Namespace", json!({"spec": {"finalizers": ["mine"]}}), &[("spec.finalizers", INVALID)]);
    check("Namespace", json!({"spec": {"finalizers": ["example.com/mine"]}}), &[]);
    check("Node", json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}), &[]);
    check(
        "Node",
        json!({"spec": {"taints": [{"key": "a", "effect": "Shoo"}]}}),
        &[("metadata.taints[0].effect", UNSUPPORTED)],
    );
    let twice =
        json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoSchedule"}]}});
    check("Node", twice, &[("metadata.taints[1]", DUPLICATE)]);
    check(
        "Node",
        json!({"status": {"capacity": {"cpu": "-1"}}}),
        &[("status.capacity[cpu]", INVALID), ("status.allocatable[cpu]", INVALID)],
    );
    let event = |namespace: &str| json!({"involvedObject": {"kind": "Pod", "name": "p", "namespace": namespace}});
    check("Node", json!({"spec": {"podCIDR": "x"}}), &[("spec.podCIDRs[0]", INVALID)]);
    check("Node", json!({"spec": {"podCIDR": "10.0.0.0/24"}}), &[]);
    check("Event", event("n"), &[]);
    check("Event", event("m"), &[("involvedObject.namespace", INVALID)]);
    let mut new = event("n");
    merge(
        &mut new,
        &json!({"eventTime": "2020-01-01T00:00:00.000000Z", "reason": "R", "action": "A", "reportingComponent": "c"}),
    );
    check("Event", new, &[("reportingInstance", REQUIRED)]);
    check("ResourceQuota", json!({"spec": {"hard": {"pods": "1.5"}}}), &[("spec.hard[pods]", INVALID)]);
    check("LimitRange", json!({"spec": {"limits": [{"type": "Odd"}]}}), &[("spec.limits[0].type", INVALID)]);
    check(
        "LimitRange",
        json!({"spec": {"limits": [{"type": "PersistentVolumeClaim"}]}}),
        &[("spec.limits[0].limits", REQUIRED)],
    );
    let crossed = json!({"spec": {"limits": [{"type": "PersistentVolumeClaim", "min": {"storage": "2Gi"}, "max": {"storage": "1Gi"}}]}});
    check("LimitRange", crossed, &[("spec.limits[0].min[storage]", INVALID)]);
    check("PriorityClass", json!({"value": 2_000_000_000}), &[("value", FORBIDDEN)]);
    check("Service", json!({"spec": {"ports": [{"port": 80}]}}), &[]);
    check("Service", json!({"spec": {}}), &[("spec.ports", REQUIRED)]);
    check(
        "Service",
        json!({"spec": {"ports": [{"port": 80}, {"port": 81}]}}),
        &[("spec.ports[0].name", REQUIRED), ("spec.ports[1].name", REQUIRED)],
    );
    check("Endpoints", json!({"subsets": [{"ports": [{"port": 80}]}]}), &[("subsets[0]", REQUIRED)]);
}

#[test]
fn events_of_the_second_face_are_stricter() {
    let strategy = crate::find("events.k8s.io", "v1", "events").expect("served").strategy;
    let event = |more: Value| {
        let mut event = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "x", "namespace": "n"},
            "eventTime": "2020-01-01T00:00:00.000000Z", "reason": "R", "action": "A", "type": "Normal", "note": "m",
            "reportingController": "c", "reportingInstance": "i", "regarding": {"kind": "Pod", "namespace": "n"},
        });
        merge(&mut event, &more);
        event
    };
    let fields = |errors: Vec<crate::FieldError>| errors.into_iter().map(|e| e.field).collect::<Vec<_>>();
    let check =
        |more: Value, want: &[&str]| assert_eq!(fields(strategy.validate(&event(more.clone()))), want, "{more}");
    check(json!({}), &[]);
    check(json!({"type": "Odd"}), &["type"]);
    check(json!({"reportingController": "a b"}), &["reportingController"]);
    check(json!({"deprecatedCount": 1}), &["count"]);
    check(json!({"deprecatedSource": {"component": "c"}}), &["source"]);
    check(json!({"series": {"count": 1, "lastObservedTime": "2020-01-01T00:00:00.000000Z"}}), &["series.count"]);
    let change = |more: Value| fields(strategy.validate_update(&event(more), &event(json!({}))));
    assert!(change(json!({"series": {"count": 2, "lastObservedTime": "2020-01-01T00:00:00.000000Z"}})).is_empty());
    assert_eq!(change(json!({"note": "other"})), ["message"]);
    assert_eq!(change(json!({"reportingController": "d"})), ["reportingController"]);
}

#[test]
fn workloads() {
    let body = |labels: Value, policy: &str| json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}], "restartPolicy": policy}}}});
    for kind in ["Deployment", "ReplicaSet", "StatefulSet", "DaemonSet"] {
        check(kind, body(json!({"a": "b"}), "Always"), &[]);
        check(kind, body(json!({"a": "c"}), "Always"), &[("spec.template.metadata.labels", INVALID)]);
        check(kind, body(json!({"a": "b"}), "Never"), &[("spec.template.spec.restartPolicy", UNSUPPORTED)]);
    }
    let job =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": ""}], "restartPolicy": "Never"}}}});
    check("Job", job, &[("spec.template.spec.containers[0].image", REQUIRED)]);
    let template = |labels: Value, policy: &str| json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}], "restartPolicy": policy}});
    let controller = |labels: Value| json!({"spec": {"selector": {"a": "b"}, "template": template(labels, "Always")}});
    check("ReplicationController", controller(json!({"a": "b"})), &[]);
    check("ReplicationController", controller(json!({"a": "c"})), &[("spec.template.metadata.labels", INVALID)]);
    check("ReplicationController", json!({"spec": {}}), &[("spec.selector", REQUIRED), ("spec.template", REQUIRED)]);
    let cron = |schedule: &str, policy: &str| json!({"spec": {"schedule": schedule, "jobTemplate": {"spec": {"template": template(json!({}), policy)}}}});
    check("CronJob", cron("* * * * *", "Never"), &[]);
    check("CronJob", cron("* * *", "Never"), &[("spec.schedule", INVALID)]);
    check("CronJob", cron("@daily", "Always"), &[("spec.jobTemplate.spec.template.spec.restartPolicy", UNSUPPORTED)]);
    let path = |path: Value| json!({"spec": {"rules": [{"host": "a.b", "http": {"paths": [path]}}]}});
    let service = json!({"service": {"name": "s", "port": {"number": 80}}});
    check("Ingress", path(json!({"path": "/", "pathType": "Prefix", "backend": service})), &[]);
    check("Ingress", json!({"spec": {}}), &[("spec", INVALID)]);
    check(
        "Ingress",
        path(json!({"path": "x", "pathType": "Exact", "backend": {}})),
        &[("spec.rules[0].http.paths[0].path", INVALID), ("spec.rules[0].http.paths[0].backend", INVALID)],
    );
    let many: Vec<Value> =
        (0..21).map(|_| json!({"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}})).collect();
    let rules = json!({"spec": {"containers": [{"name": "c", "image": "i", "restartPolicy": "Never", "restartPolicyRules": many}]}});
    check("Pod", rules, &[("spec.containers[0].restartPolicyRules", TOO_MANY)]);
}

#[test]
fn malformed_times_are_reported_not_lost() {
    let object = object("Lease", json!({"spec": {"renewTime": "yesterday"}}));
    let errors = kind("Lease").strategy.validate(&object);
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].reason, "FieldValueTypeInvalid");
}
