//! What objects get where they say nothing.
use serde_json::{Value, json};

use super::pod::{one, pod};
use super::volumes::{pv, pvc};
use super::*;

/// Checks that the defaulted object has these values at these places (JSON pointers).
#[track_caller]
fn has(name: &str, body: Value, want: &[(&str, Value)]) {
    let mut object = object(name, body);
    kind(name).strategy.default(&mut object);
    for (at, value) in want {
        assert_eq!(object.pointer(at).unwrap_or(&Value::Null), value, "{at} of {object:#}");
    }
    let mut again = object.clone();
    kind(name).strategy.default(&mut again);
    assert_eq!(again, object, "defaulting twice changes nothing");
}

#[test]
fn pods() {
    has(
        "Pod",
        pod(json!({})),
        &[
            ("/spec/restartPolicy", json!("Always")),
            ("/spec/dnsPolicy", json!("ClusterFirst")),
            ("/spec/schedulerName", json!("default-scheduler")),
            ("/spec/terminationGracePeriodSeconds", json!(30)),
            ("/spec/securityContext", json!({})),
            ("/spec/enableServiceLinks", json!(true)),
            ("/spec/containers/0/imagePullPolicy", json!("Always")),
            ("/spec/containers/0/terminationMessagePath", json!("/dev/termination-log")),
            ("/spec/containers/0/terminationMessagePolicy", json!("File")),
            ("/spec/containers/0/resources", json!({})),
            ("/spec/tolerations", Value::Null),
        ],
    );
    has("Pod", one(json!({"image": "i:1"})), &[("/spec/containers/0/imagePullPolicy", json!("IfNotPresent"))]);
    has(
        "Pod",
        one(json!({"ports": [{"containerPort": 80}]})),
        &[("/spec/containers/0/ports/0/protocol", json!("TCP")), ("/spec/containers/0/ports/0/hostPort", Value::Null)],
    );
    let host = json!({"spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}});
    has("Pod", host, &[("/spec/containers/0/ports/0/hostPort", json!(80))]);
    let limits = json!({"resources": {"limits": {"cpu": "1000m", "memory": "1024Mi"}, "requests": {"cpu": 0.5}}});
    has(
        "Pod",
        one(limits),
        &[(
            "/spec/containers/0/resources",
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}}),
        )],
    );
    let probe = json!({"livenessProbe": {"httpGet": {"port": 80}}});
    has(
        "Pod",
        one(probe),
        &[(
            "/spec/containers/0/livenessProbe",
            json!({"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}),
        )],
    );
    let env = json!({"env": [{"name": "a", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]});
    has("Pod", one(env), &[("/spec/containers/0/env/0/valueFrom/fieldRef/apiVersion", json!("v1"))]);
    has(
        "Pod",
        pod(json!({"serviceAccount": "s"})),
        &[("/spec/serviceAccountName", json!("s")), ("/spec/serviceAccount", json!("s"))],
    );
    has("Pod", pod(json!({"serviceAccountName": "s"})), &[("/spec/serviceAccount", json!("s"))]);
}

#[test]
fn volumes_of_pods() {
    let v = |source: Value, want: Value| {
        let mut volume = json!({"name": "v"});
        merge(&mut volume, &source);
        let mut full = json!({"name": "v"});
        merge(&mut full, &want);
        let body = pod(json!({"volumes": [volume]}));
        let mut object = object("Pod", body);
        kind("Pod").strategy.default(&mut object);
        assert_eq!(object["spec"]["volumes"][0], full);
    };
    v(json!({}), json!({"emptyDir": {}}));
    v(json!({"emptyDir": {"sizeLimit": "1024Mi"}}), json!({"emptyDir": {"sizeLimit": "1Gi"}}));
    v(json!({"hostPath": {"path": "/a"}}), json!({"hostPath": {"path": "/a", "type": ""}}));
    v(json!({"secret": {"secretName": "s"}}), json!({"secret": {"secretName": "s", "defaultMode": 420}}));
    v(json!({"configMap": {"name": "m"}}), json!({"configMap": {"name": "m", "defaultMode": 420}}));
    v(
        json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}),
        json!({"projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}}]}}),
    );
    v(
        json!({"downwardAPI": {"items": [{"path": "a", "fieldRef": {"fieldPath": "metadata.name"}}]}}),
        json!({"downwardAPI": {"defaultMode": 420, "items": [{"path": "a", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}]}}),
    );
    v(
        json!({"iscsi": {"targetPortal": "p", "iqn": "q", "lun": 0}}),
        json!({"iscsi": {"targetPortal": "p", "iqn": "q", "lun": 0, "iscsiInterface": "default"}}),
    );
}

#[test]
fn storage() {
    has(
        "PersistentVolume",
        pv(json!({"capacity": {"storage": "1024Mi"}})),
        &[
            ("/spec/persistentVolumeReclaimPolicy", json!("Retain")),
            ("/spec/volumeMode", json!("Filesystem")),
            ("/spec/hostPath/type", json!("")),
            ("/spec/capacity/storage", json!("1Gi")),
            ("/status/phase", json!("Pending")),
        ],
    );
    has(
        "PersistentVolumeClaim",
        pvc(json!({"resources": {"requests": {"storage": "0.5Gi"}}})),
        &[
            ("/spec/volumeMode", json!("Filesystem")),
            ("/spec/resources/requests/storage", json!("512Mi")),
            ("/status/phase", json!("Pending")),
            ("/spec/storageClassName", Value::Null),
        ],
    );
    has(
        "StorageClass",
        json!({"provisioner": "a.b"}),
        &[("/reclaimPolicy", json!("Delete")), ("/volumeBindingMode", json!("Immediate"))],
    );
    has(
        "CSIDriver",
        json!({"spec": {}}),
        &[
            ("/spec/attachRequired", json!(true)),
            ("/spec/fsGroupPolicy", json!("ReadWriteOnceWithFSType")),
            ("/spec/volumeLifecycleModes", json!(["Persistent"])),
        ],
    );
}

#[test]
fn the_rest() {
    has(
        "Secret",
        json!({"stringData": {"a": "hello"}, "data": {"b": "eA=="}}),
        &[("/type", json!("Opaque")), ("/data", json!({"a": "aGVsbG8=", "b": "eA=="})), ("/stringData", Value::Null)],
    );
    has(
        "Namespace",
        json!({"metadata": {"name": "x"}}),
        &[("/metadata/labels", json!({"kubernetes.io/metadata.name": "x"})), ("/status/phase", json!("Active"))],
    );
    has("Node", json!({"status": {"capacity": {"cpu": "2000m"}}}), &[("/status/allocatable", json!({"cpu": "2"}))]);
    has(
        "Service",
        json!({"spec": {"ports": [{"port": 80}]}}),
        &[
            ("/spec/type", json!("ClusterIP")),
            ("/spec/sessionAffinity", json!("None")),
            ("/spec/ports/0", json!({"port": 80, "protocol": "TCP", "targetPort": 80})),
            ("/spec/internalTrafficPolicy", json!("Cluster")),
        ],
    );
    has(
        "LimitRange",
        json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1000m"}}]}}),
        &[(
            "/spec/limits/0",
            json!({"type": "Container", "max": {"cpu": "1"}, "default": {"cpu": "1"}, "defaultRequest": {"cpu": "1"}}),
        )],
    );
    has(
        "Deployment",
        json!({"spec": {"selector": {}, "template": {}}}),
        &[
            ("/spec/replicas", json!(1)),
            (
                "/spec/strategy",
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}),
            ),
            ("/spec/template/spec/restartPolicy", json!("Always")),
            ("/spec/template/spec/enableServiceLinks", Value::Null),
        ],
    );
    has("Job", json!({"spec": {"template": {}}}), &[("/spec/completions", json!(1)), ("/spec/backoffLimit", json!(6))]);
    has(
        "ConfigMap",
        json!({"data": {"capacity": "1024Mi", "n": "1"}}),
        &[("/data", json!({"capacity": "1024Mi", "n": "1"}))],
    );
}

#[test]
fn what_clients_cannot_set_is_dropped() {
    let body = json!({"spec": pvc(json!({}))["spec"], "status": {"phase": "Bound", "capacity": {"storage": "9Gi"}}});
    assert_eq!(created("PersistentVolumeClaim", body)["status"], json!({"phase": "Pending"}));
    let source = json!({"kind": "PersistentVolumeClaim", "name": "a"});
    let claim = created("PersistentVolumeClaim", pvc(json!({"dataSource": source})));
    assert_eq!(claim["spec"]["dataSourceRef"], source);
    let odd =
        created("PersistentVolumeClaim", pvc(json!({"dataSource": {"apiGroup": "x.y", "kind": "Z", "name": "a"}})));
    assert_eq!(odd["spec"].get("dataSource"), None);
    let node = created("Node", json!({"status": {"phase": "Running"}}));
    assert_eq!(node["status"]["phase"], "Running");
    let volume = created("PersistentVolume", pv(json!({})));
    assert!(volume["status"]["lastPhaseTransitionTime"].is_string());
}

#[test]
fn empty_lists_are_not_kept() {
    let mut o = object(
        "Pod",
        pod(json!({"tolerations": [], "volumes": [], "containers": [{"name": "c", "image": "i", "args": []}]})),
    );
    kind("Pod").strategy.default(&mut o);
    assert!(o["spec"].get("tolerations").is_none() && o["spec"]["containers"][0].get("args").is_none());
}
