//! What may change after creation.
use serde_json::{Value, json};

use super::pod::pod;
use super::volumes::{pv, pvc};
use super::*;

#[test]
fn running_pods() {
    let p = |change: Value, want: &[(&str, &'static str)]| {
        check_update(
            "Pod",
            pod(json!({"activeDeadlineSeconds": 100, "tolerations": [{"key": "a", "operator": "Exists"}]})),
            json!({"spec": change}),
            want,
        )
    };
    p(json!({}), &[]);
    p(json!({"containers": [{"name": "c", "image": "j", "imagePullPolicy": "Always"}]}), &[]);
    p(json!({"containers": [{"name": "c", "image": ""}]}), &[("spec.containers[0].image", REQUIRED)]);
    p(json!({"activeDeadlineSeconds": 50}), &[]);
    p(json!({"activeDeadlineSeconds": 200}), &[("spec.activeDeadlineSeconds", INVALID)]);
    p(json!({"activeDeadlineSeconds": null}), &[("spec.activeDeadlineSeconds", INVALID)]);
    p(json!({"tolerations": [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}]}), &[]);
    p(json!({"tolerations": []}), &[("spec.tolerations", FORBIDDEN)]);
    p(json!({"schedulingGates": [{"name": "g"}]}), &[("spec.schedulingGates", FORBIDDEN)]);
    let errors = p(json!({"nodeName": "a"}), &[("spec", FORBIDDEN)]);
    assert!(
        errors[0]
            .message
            .starts_with("Forbidden: pod updates may not change fields other than `spec.containers[*].image`"),
        "{}",
        errors[0].message
    );
    assert!(errors[0].message.ends_with("\n+ nodeName: \"a\""), "{}", errors[0].message);
    p(
        json!({"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "i"}]}),
        &[("spec.containers", FORBIDDEN)],
    );
    p(json!({"containers": [{"name": "c", "image": "i", "command": ["x"]}]}), &[("spec", FORBIDDEN)]);
}

#[test]
fn volumes_keep_their_source() {
    let v = |change: Value, want: &[(&str, &'static str)]| {
        check_update("PersistentVolume", pv(json!({})), json!({"spec": change}), want)
    };
    v(
        json!({"claimRef": {"name": "c", "namespace": "n"}, "storageClassName": "other", "capacity": {"storage": "2Gi"}}),
        &[],
    );
    let errors = v(json!({"hostPath": {"path": "/mnt/other"}}), &[("spec.persistentvolumesource", FORBIDDEN)]);
    assert!(errors[0].message.contains("is immutable after creation"));
    v(json!({"hostPath": null, "nfs": {"server": "s", "path": "/"}}), &[("spec.persistentvolumesource", FORBIDDEN)]);
    v(json!({"volumeMode": "Block"}), &[("volumeMode", INVALID)]);
    let here = |zone: &str| json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]}]}});
    v(json!({"nodeAffinity": here("a")}), &[]);
    check_update(
        "PersistentVolume",
        pv(json!({"nodeAffinity": here("a")})),
        json!({"spec": {"nodeAffinity": here("b")}}),
        &[("nodeAffinity", INVALID)],
    );
}

/// A claim as a controller left it.
fn settled(status: Value, spec: Value, change: Value) -> Vec<(String, &'static str)> {
    let strategy = kind("PersistentVolumeClaim").strategy;
    let mut old = created("PersistentVolumeClaim", pvc(spec));
    old["status"] = status;
    let mut new = old.clone();
    merge(&mut new["spec"], &change);
    strategy.default(&mut new);
    strategy.prepare_update(&mut new, &old);
    strategy.validate_update(&new, &old).into_iter().map(|e| (e.field, e.reason)).collect()
}

#[test]
fn claims_keep_their_spec() {
    let c = |change: Value, want: &[(&str, &'static str)]| {
        check_update("PersistentVolumeClaim", pvc(json!({"storageClassName": "a"})), json!({"spec": change}), want)
    };
    c(json!({"volumeName": "v"}), &[]);
    for change in [
        json!({"storageClassName": "other"}),
        json!({"accessModes": ["ReadWriteMany"]}),
        json!({"selector": {"matchLabels": {"a": "b"}}}),
        json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "x"}}),
        json!({"resources": {"requests": {"storage": "2Gi"}}}),
        json!({"volumeAttributesClassName": "gold"}),
    ] {
        let errors = c(change, &[("spec", FORBIDDEN)]);
        assert!(errors[0].message.starts_with("Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n"));
    }
    check_update("PersistentVolumeClaim", pvc(json!({})), json!({"spec": {"storageClassName": "late"}}), &[]);
    let beta = json!({"metadata": {"name": "x", "namespace": "n", "annotations": {"volume.beta.kubernetes.io/storage-class": "b"}}, "spec": pvc(json!({}))["spec"]});
    check_update("PersistentVolumeClaim", beta.clone(), json!({"spec": {"storageClassName": "b"}}), &[]);
    check_update("PersistentVolumeClaim", beta, json!({"spec": {"storageClassName": "c"}}), &[("spec", FORBIDDEN)]);

    let bound = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}, "currentVolumeAttributesClassName": "gold"});
    let size = |s: &str| json!({"resources": {"requests": {"storage": s}}});
    assert_eq!(settled(bound.clone(), json!({"volumeName": "v"}), size("2Gi")), []);
    assert_eq!(
        settled(bound.clone(), json!({"volumeName": "v"}), size("512Mi")),
        [("spec.resources.requests.storage".to_owned(), FORBIDDEN)]
    );
    let gold = json!({"volumeName": "v", "volumeAttributesClassName": "gold"});
    assert_eq!(settled(bound.clone(), gold.clone(), json!({"volumeAttributesClassName": "platinum"})), []);
    assert_eq!(
        settled(bound, gold, json!({"volumeAttributesClassName": null})),
        [("spec.volumeAttributesClassName".to_owned(), FORBIDDEN)]
    );
}

#[test]
fn immutable_configuration_stays() {
    for kind in ["ConfigMap", "Secret"] {
        let old = json!({"data": {"a": "MQ=="}, "immutable": true});
        check_update(kind, old.clone(), json!({"data": {"a": "Mg=="}}), &[("data", FORBIDDEN)]);
        check_update(kind, old.clone(), json!({"immutable": null}), &[("immutable", FORBIDDEN)]);
        check_update(kind, old, json!({"metadata": {"labels": {"x": "y"}}}), &[]);
        check_update(kind, json!({"data": {"a": "MQ=="}}), json!({"data": {"a": "Mg=="}, "immutable": true}), &[]);
    }
    check_update(
        "Secret",
        json!({}),
        json!({"type": "kubernetes.io/ssh-auth", "data": {"ssh-privatekey": "MQ=="}}),
        &[("type", INVALID)],
    );
}

#[test]
fn other_objects() {
    let class = json!({"provisioner": "a.b", "parameters": {"x": "y"}});
    check_update("StorageClass", class.clone(), json!({"allowVolumeExpansion": true}), &[]);
    check_update("StorageClass", class.clone(), json!({"parameters": {"x": "z"}}), &[("parameters", INVALID)]);
    check_update(
        "StorageClass",
        class,
        json!({"provisioner": "c.d", "reclaimPolicy": "Retain", "volumeBindingMode": "WaitForFirstConsumer"}),
        &[("provisioner", INVALID), ("reclaimPolicy", INVALID), ("volumeBindingMode", INVALID)],
    );
    let attributes = json!({"driverName": "d.e", "parameters": {"iops": "100"}});
    check_update(
        "VolumeAttributesClass",
        attributes.clone(),
        json!({"parameters": {"iops": "200"}}),
        &[("parameters", FORBIDDEN)],
    );
    check_update("VolumeAttributesClass", attributes, json!({"driverName": "o.e"}), &[("driverName", FORBIDDEN)]);
    check_update(
        "Node",
        json!({"spec": {"providerID": "a"}}),
        json!({"spec": {"providerID": "b"}}),
        &[("spec.providerID", FORBIDDEN)],
    );
    let deployment = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b", "c": "d"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    check_update("Deployment", deployment.clone(), json!({"spec": {"replicas": 3}}), &[]);
    check_update(
        "Deployment",
        deployment,
        json!({"spec": {"selector": {"matchLabels": {"c": "d"}}}}),
        &[("spec.selector", INVALID)],
    );
    let attachment = json!({"spec": {"attacher": "a.b", "nodeName": "n", "source": {"persistentVolumeName": "v"}}});
    check_update("VolumeAttachment", attachment, json!({"spec": {"nodeName": "m"}}), &[("spec", INVALID)]);
}

#[test]
fn status_and_spec_are_written_apart() {
    let strategy = kind("Pod").strategy;
    let old = created("Pod", pod(json!({})));
    assert_eq!((&old["status"]["phase"], &old["status"]["qosClass"]), (&json!("Pending"), &json!("BestEffort")));
    let mut new = old.clone();
    new["status"]["phase"] = json!("Running");
    new["spec"]["nodeName"] = json!("elsewhere");
    new["metadata"]["labels"] = json!({"a": "b"});
    let mut by_status = new.clone();
    strategy.prepare_status_update(&mut by_status, &old);
    assert_eq!(by_status["status"]["phase"], "Running");
    assert_eq!(by_status["spec"], old["spec"]);
    assert_eq!(by_status["metadata"]["labels"]["a"], "b");
    strategy.prepare_update(&mut new, &old);
    assert_eq!(new["status"], old["status"]);
    assert_eq!(new["spec"]["nodeName"], "elsewhere");
    assert_eq!(strategy.generation_changes(&new, &old), Some(true));
    assert_eq!(strategy.generation_changes(&by_status, &old), Some(false));
    assert_eq!(kind("ConfigMap").strategy.generation_changes(&new, &old), None);
    let mut other = by_status.clone();
    other["status"]["qosClass"] = json!("Guaranteed");
    assert_eq!(strategy.validate_status_update(&other, &old)[0].field, "status.qosClass");
}

#[test]
fn ended_containers_stay_ended() {
    let strategy = kind("Pod").strategy;
    let mut old = created("Pod", pod(json!({"restartPolicy": "Never"})));
    old["status"]["containerStatuses"] = json!([{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0}}}]);
    let mut new = old.clone();
    assert!(strategy.validate_status_update(&new, &old).is_empty());
    new["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
    assert_eq!(strategy.validate_status_update(&new, &old)[0].field, "status.containerStatuses[0].state");
}

#[test]
fn namespaces_change_phase_with_deletion_only() {
    let strategy = kind("Namespace").strategy;
    let old = created("Namespace", json!({"metadata": {"name": "x"}}));
    assert_eq!(old["spec"]["finalizers"], json!(["kubernetes"]));
    let mut new = old.clone();
    new["status"]["phase"] = json!("Terminating");
    assert_eq!(strategy.validate_status_update(&new, &old)[0].field, "status.Phase");
    new["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z");
    assert!(strategy.validate_status_update(&new, &old).is_empty());
    new["spec"]["finalizers"] = json!([]);
    strategy.prepare_update(&mut new, &old);
    assert_eq!(new["spec"]["finalizers"], json!(["kubernetes"]));
}

#[test]
fn deletion_takes_time_only_where_something_runs() {
    let grace = |spec: Value, phase: &str, asked: Option<i64>| {
        let mut p = created("Pod", pod(spec));
        p["status"]["phase"] = json!(phase);
        kind("Pod").strategy.deletion_grace(&p, asked)
    };
    assert_eq!(grace(json!({"nodeName": "a"}), "Running", None), 30);
    assert_eq!(grace(json!({"nodeName": "a", "terminationGracePeriodSeconds": 5}), "Running", None), 5);
    assert_eq!(grace(json!({"nodeName": "a"}), "Running", Some(0)), 0);
    assert_eq!(grace(json!({"nodeName": "a"}), "Running", Some(-1)), 1);
    assert_eq!(grace(json!({}), "Pending", None), 0);
    assert_eq!(grace(json!({"nodeName": "a"}), "Failed", None), 0);
    assert_eq!(kind("ConfigMap").strategy.deletion_grace(&object("ConfigMap", json!({})), Some(9)), 0);
}
