//! Volumes: of pods, PersistentVolumes, claims.
use serde_json::{Value, json};

use super::pod::{one, pod};
use super::*;

/// Mistakes in a pod's only volume, without its path.
#[track_caller]
fn volume(source: Value, want: &[(&str, &'static str)]) {
    let mut v = json!({"name": "v"});
    merge(&mut v, &source);
    let full: Vec<(String, &'static str)> = want.iter().map(|(f, r)| (format!("spec.volumes[0]{f}"), *r)).collect();
    let want: Vec<(&str, &'static str)> = full.iter().map(|(f, r)| (f.as_str(), *r)).collect();
    check("Pod", pod(json!({"volumes": [v]})), &want);
}

#[test]
fn sources_of_pod_volumes() {
    volume(json!({}), &[]);
    volume(json!({"name": ""}), &[(".name", REQUIRED)]);
    volume(json!({"name": "A"}), &[(".name", INVALID)]);
    volume(json!({"emptyDir": {}, "hostPath": {"path": "/a"}}), &[(".hostPath", FORBIDDEN)]);
    volume(json!({"emptyDir": {"sizeLimit": "-1"}}), &[(".emptyDir.sizeLimit", FORBIDDEN)]);
    volume(json!({"hostPath": {"path": "/a"}}), &[]);
    volume(json!({"hostPath": {"path": ""}}), &[(".hostPath.path", REQUIRED)]);
    volume(json!({"hostPath": {"path": "/a/../b"}}), &[(".hostPath.path", INVALID)]);
    volume(json!({"hostPath": {"path": "/a", "type": "Pipe"}}), &[(".hostPath.type", UNSUPPORTED)]);
    volume(json!({"secret": {}}), &[(".secret.secretName", REQUIRED)]);
    volume(json!({"secret": {"secretName": "s", "defaultMode": 0o1000}}), &[(".secret.defaultMode", INVALID)]);
    volume(
        json!({"secret": {"secretName": "s", "items": [{"key": "a", "path": "a", "mode": -1}]}}),
        &[(".secret.items[0].mode", INVALID)],
    );
    volume(
        json!({"configMap": {"name": "m", "items": [{"key": "a", "path": "../a"}]}}),
        &[(".configMap.items[0].path", INVALID)],
    );
    volume(
        json!({"configMap": {"name": "m", "items": [{"key": "a", "path": "/a"}]}}),
        &[(".configMap.items[0].path", INVALID)],
    );
    volume(
        json!({"configMap": {"name": "m", "items": [{"key": "a", "path": "..a"}]}}),
        &[(".configMap.items[0].path", INVALID)],
    );
    volume(
        json!({"configMap": {"name": "m", "items": [{"key": "", "path": ""}]}}),
        &[(".configMap.items[0].key", REQUIRED), (".configMap.items[0].path", REQUIRED)],
    );
    volume(json!({"configMap": {}}), &[(".configMap.name", REQUIRED)]);
    volume(json!({"persistentVolumeClaim": {"claimName": ""}}), &[(".persistentVolumeClaim.claimName", REQUIRED)]);
    volume(json!({"nfs": {"server": "", "path": "a"}}), &[(".nfs.server", REQUIRED), (".nfs.path", INVALID)]);
    volume(json!({"gitRepo": {"repository": "r", "directory": "../a"}}), &[(".gitRepo.directory", INVALID)]);
    volume(json!({"gitRepo": {"repository": ""}}), &[(".gitRepo.repository", REQUIRED)]);
    volume(json!({"csi": {"driver": "a/b"}}), &[(".csi.driver", INVALID)]);
    volume(
        json!({"iscsi": {"targetPortal": "", "iqn": "x", "lun": 256}}),
        &[(".iscsi.targetPortal", REQUIRED), (".iscsi.iqn", INVALID), (".iscsi.lun", INVALID)],
    );
    volume(json!({"iscsi": {"targetPortal": "h:1", "iqn": "iqn.2024-01.com.example:a", "lun": 0}}), &[]);
    volume(
        json!({"iscsi": {"targetPortal": "h:1", "iqn": "iqn.2024-01.com.example:a", "lun": 0, "chapAuthSession": true}}),
        &[(".iscsi.secretRef", REQUIRED)],
    );
    volume(json!({"glusterfs": {"endpoints": "", "path": "p"}}), &[(".glusterfs.endpoints", REQUIRED)]);
    volume(json!({"rbd": {"monitors": [], "image": ""}}), &[(".rbd.monitors", REQUIRED), (".rbd.image", REQUIRED)]);
    volume(json!({"cephfs": {"monitors": []}}), &[(".cephfs.monitors", REQUIRED)]);
    volume(json!({"fc": {"targetWWNs": ["a"]}}), &[(".fc.lun", REQUIRED)]);
    volume(json!({"fc": {}}), &[(".fc.targetWWNs", REQUIRED)]);
    volume(
        json!({"flexVolume": {"driver": "d", "options": {"kubernetes.io/x": "y"}}}),
        &[(".flexVolume.options[kubernetes.io/x]", INVALID)],
    );
    volume(
        json!({"azureDisk": {"diskName": "d", "diskURI": "x", "kind": "Managed"}}),
        &[(".azureDisk.diskURI", UNSUPPORTED)],
    );
    volume(
        json!({"gcePersistentDisk": {"pdName": "", "partition": 300}}),
        &[(".persistentDisk.pdName", REQUIRED), (".persistentDisk.partition", INVALID)],
    );
    volume(json!({"image": {}}), &[(".image.reference", REQUIRED)]);
}

#[test]
fn volumes_of_vendors_that_ended() {
    volume(json!({"quobyte": {"registry": "r:7861", "volume": "v"}}), &[]);
    volume(
        json!({"quobyte": {"registry": "", "volume": ""}}),
        &[(".quobyte.registry", REQUIRED), (".quobyte.volume", REQUIRED)],
    );
    let secret = json!({"name": "s"});
    volume(json!({"scaleIO": {"gateway": "https://g", "system": "s", "secretRef": secret, "volumeName": "v"}}), &[]);
    volume(
        json!({"scaleIO": {"gateway": "", "system": "", "secretRef": secret, "volumeName": ""}}),
        &[(".scaleIO.gateway", REQUIRED), (".scaleIO.system", REQUIRED), (".scaleIO.volumeName", REQUIRED)],
    );
    volume(json!({"storageos": {"volumeName": "v"}}), &[]);
    volume(json!({"storageos": {"volumeName": ""}}), &[(".storageos.volumeName", REQUIRED)]);
    volume(json!({"photonPersistentDisk": {"pdID": "p"}}), &[]);
    volume(json!({"photonPersistentDisk": {"pdID": ""}}), &[(".photonPersistentDisk.pdID", REQUIRED)]);
    volume(json!({"flocker": {"datasetName": "d"}}), &[]);
    volume(json!({"flocker": {}}), &[(".flocker", REQUIRED)]);
}

#[test]
fn derived_volumes() {
    volume(json!({"downwardAPI": {"items": [{"path": "a", "fieldRef": {"fieldPath": "metadata.labels"}}]}}), &[]);
    volume(
        json!({"downwardAPI": {"items": [{"path": "a", "fieldRef": {"fieldPath": "spec.shoeSize"}}]}}),
        &[(".downwardAPI.fieldRef.fieldPath", INVALID)],
    );
    volume(json!({"downwardAPI": {"items": [{"path": "a"}]}}), &[(".downwardAPI", REQUIRED)]);
    volume(
        json!({"downwardAPI": {"items": [{"path": "a", "resourceFieldRef": {"resource": "limits.cpu"}}]}}),
        &[(".downwardAPI.resourceFieldRef.containerName", REQUIRED)],
    );
    let item = json!([{"key": "a", "path": "same"}]);
    volume(
        json!({"projected": {"sources": [{"secret": {"name": "s", "items": item}}, {"configMap": {"name": "m"}}]}}),
        &[],
    );
    volume(
        json!({"projected": {"sources": [{"secret": {"name": "s", "items": item}}, {"configMap": {"name": "m", "items": item}}]}}),
        &[(".projected", INVALID)],
    );
    volume(
        json!({"projected": {"sources": [{"secret": {"name": "s"}, "configMap": {"name": "m"}}]}}),
        &[(".projected.sources[0]", FORBIDDEN)],
    );
    volume(
        json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 60}}]}}),
        &[(".projected.sources[0].serviceAccountToken.expirationSeconds", INVALID)],
    );
    volume(
        json!({"projected": {"sources": [{"serviceAccountToken": {"path": ""}}]}}),
        &[(".projected.path", REQUIRED)],
    );
    let template = |spec: Value| json!({"ephemeral": {"volumeClaimTemplate": {"spec": spec}}});
    volume(template(json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}})), &[]);
    volume(
        template(json!({"resources": {"requests": {"storage": "1Gi"}}})),
        &[(".ephemeral.volumeClaimTemplate.spec.accessModes", REQUIRED)],
    );
    volume(json!({"ephemeral": {}}), &[(".ephemeral.volumeClaimTemplate", REQUIRED)]);
    let two = json!([{"name": "v", "emptyDir": {}}, {"name": "v", "emptyDir": {}}]);
    check("Pod", pod(json!({"volumes": two})), &[("spec.volumes[1].name", DUPLICATE)]);
}

/// A pod with volumes `v` and `w` (scratch) and `p` (a claim) and these fields of its container.
#[track_caller]
fn mounting(fields: Value, want: &[(&str, &'static str)]) {
    let mut body = one(fields);
    body["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {}}, {"name": "p", "persistentVolumeClaim": {"claimName": "c"}}]);
    let full: Vec<(String, &'static str)> = want.iter().map(|(f, r)| (format!("spec.containers[0].{f}"), *r)).collect();
    let want: Vec<(&str, &'static str)> = full.iter().map(|(f, r)| (f.as_str(), *r)).collect();
    check("Pod", body, &want);
}

#[test]
fn mounts_and_devices() {
    let m = |list: Value, want: &[(&str, &'static str)]| mounting(json!({"volumeMounts": list}), want);
    m(json!([{"name": "v", "mountPath": "/v", "subPath": "a/b"}, {"name": "w", "mountPath": "/w"}]), &[]);
    m(json!([{"name": "x", "mountPath": "/v"}]), &[("volumeMounts[0].name", NOT_FOUND)]);
    m(json!([{"name": "v", "mountPath": ""}]), &[("volumeMounts[0].mountPath", REQUIRED)]);
    m(
        json!([{"name": "v", "mountPath": "/v"}, {"name": "w", "mountPath": "/v"}]),
        &[("volumeMounts[1].mountPath", INVALID)],
    );
    m(json!([{"name": "v", "mountPath": "/v", "subPath": "/a"}]), &[("volumeMounts.subPath", INVALID)]);
    m(json!([{"name": "v", "mountPath": "/v", "subPath": "a/../b"}]), &[("volumeMounts.subPath", INVALID)]);
    m(
        json!([{"name": "v", "mountPath": "/v", "subPath": "a", "subPathExpr": "b"}]),
        &[("volumeMounts[0].subPathExpr", INVALID)],
    );
    m(
        json!([{"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}]),
        &[("volumeMounts.mountPropagation", FORBIDDEN)],
    );
    m(
        json!([{"name": "v", "mountPath": "/v", "mountPropagation": "Sideways"}]),
        &[("volumeMounts.mountPropagation", UNSUPPORTED)],
    );
    m(
        json!([{"name": "v", "mountPath": "/v", "recursiveReadOnly": "Enabled"}]),
        &[("volumeMounts.recursiveReadOnly", FORBIDDEN)],
    );
    let d = |list: Value, want: &[(&str, &'static str)]| mounting(json!({"volumeDevices": list}), want);
    d(json!([{"name": "p", "devicePath": "/dev/x"}]), &[]);
    d(json!([{"name": "v", "devicePath": "/dev/x"}]), &[("volumeDevices[0].name", INVALID)]);
    d(json!([{"name": "p", "devicePath": "/dev/../x"}]), &[("volumeDevices[0].devicePath", INVALID)]);
    d(json!([{"name": "x", "devicePath": "/dev/x"}]), &[("volumeDevices[0].name", NOT_FOUND)]);
    mounting(
        json!({"volumeDevices": [{"name": "p", "devicePath": "/dev/x"}], "volumeMounts": [{"name": "p", "mountPath": "/v"}]}),
        &[("volumeMounts[0].name", INVALID), ("volumeDevices[0].name", INVALID)],
    );
}

pub(super) fn pv(fields: Value) -> Value {
    let mut spec =
        json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/mnt"}});
    merge(&mut spec, &fields);
    json!({"spec": spec})
}

#[test]
fn persistent_volumes() {
    let p = |fields: Value, want: &[(&str, &'static str)]| check("PersistentVolume", pv(fields), want);
    let source = |fields: Value, want: &[(&str, &'static str)]| {
        let mut all = json!({"hostPath": null});
        merge(&mut all, &json!({}));
        for (key, value) in fields.as_object().expect("an object") {
            all[key] = value.clone();
        }
        all["hostPath"] = Value::Null;
        check("PersistentVolume", pv(all), want);
    };
    p(json!({}), &[]);
    p(json!({"capacity": null}), &[("spec.capacity", REQUIRED), ("spec.capacity", UNSUPPORTED)]);
    p(json!({"capacity": {"storage": "0"}}), &[("spec.capacity[storage]", INVALID)]);
    p(json!({"accessModes": null}), &[("spec.accessModes", REQUIRED)]);
    p(json!({"accessModes": ["ReadSometimes"]}), &[("spec.accessModes", UNSUPPORTED)]);
    p(json!({"accessModes": ["ReadWriteOncePod", "ReadWriteOnce"]}), &[("spec.accessModes", FORBIDDEN)]);
    p(json!({"nfs": {"server": "s", "path": "/"}}), &[("spec.nfs", FORBIDDEN)]);
    p(json!({"hostPath": {"path": "/a/../b"}}), &[("spec.hostPath.path", INVALID)]);
    p(
        json!({"hostPath": {"path": "/"}, "persistentVolumeReclaimPolicy": "Recycle"}),
        &[("spec.persistentVolumeReclaimPolicy", FORBIDDEN)],
    );
    p(json!({"persistentVolumeReclaimPolicy": "Burn"}), &[("spec.persistentVolumeReclaimPolicy", UNSUPPORTED)]);
    p(json!({"volumeMode": "Tape"}), &[("spec.volumeMode", UNSUPPORTED)]);
    p(json!({"storageClassName": "A"}), &[("spec.storageClassName", INVALID)]);
    p(json!({"nodeAffinity": {}}), &[("spec.nodeAffinity.required", REQUIRED)]);
    p(json!({"volumeAttributesClassName": "gold"}), &[("spec.csi", REQUIRED)]);
    source(json!({}), &[("spec", REQUIRED)]);
    source(json!({"local": {"path": "/a"}}), &[("spec.nodeAffinity", REQUIRED)]);
    let here = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}]}});
    source(json!({"local": {"path": "/a/../b"}, "nodeAffinity": here}), &[("spec.local.path", INVALID)]);
    source(json!({"csi": {"driver": "csi.example.com"}}), &[("spec.csi.volumeHandle", REQUIRED)]);
    source(
        json!({"csi": {"driver": "csi.example.com", "volumeHandle": "h", "nodePublishSecretRef": {"name": "s"}}}),
        &[("spec.csi.nodePublishSecretRef.namespace", REQUIRED)],
    );
    source(json!({"iscsi": {"targetPortal": "h:1", "iqn": "nonsense", "lun": 0}}), &[("spec.iscsi.iqn", INVALID)]);
    source(json!({"nfs": {"path": "/a"}}), &[("spec.nfs.server", REQUIRED)]);
}

pub(super) fn pvc(fields: Value) -> Value {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    merge(&mut spec, &fields);
    json!({"spec": spec})
}

#[test]
fn claims() {
    let c = |fields: Value, want: &[(&str, &'static str)]| check("PersistentVolumeClaim", pvc(fields), want);
    c(json!({}), &[]);
    c(json!({"accessModes": null}), &[("spec.accessModes", REQUIRED)]);
    c(json!({"resources": null}), &[("spec.resources[storage]", REQUIRED)]);
    c(json!({"resources": {"requests": {"storage": "0"}}}), &[("spec.resources[storage]", INVALID)]);
    c(json!({"resources": {"requests": {"storage": "-5"}}}), &[("spec.resources[storage]", INVALID)]);
    let selector = |e: Value| json!({"selector": {"matchExpressions": [e]}});
    c(selector(json!({"key": "a", "operator": "In"})), &[("spec.selector.matchExpressions[0].values", REQUIRED)]);
    c(
        selector(json!({"key": "a", "operator": "Exists", "values": ["x"]})),
        &[("spec.selector.matchExpressions[0].values", FORBIDDEN)],
    );
    c(selector(json!({"key": "a", "operator": "Near"})), &[("spec.selector.matchExpressions[0].operator", INVALID)]);
    c(json!({"selector": {"matchLabels": {"not ok": "x"}}}), &[("spec.selector.matchLabels", INVALID)]);
    c(json!({"volumeMode": "Tape"}), &[("spec.volumeMode", UNSUPPORTED)]);
    c(json!({"storageClassName": ""}), &[]);
    c(json!({"storageClassName": "A"}), &[("spec.storageClassName", INVALID)]);
    let secret = json!({"kind": "Secret", "name": "s"});
    c(
        json!({"dataSource": secret, "dataSourceRef": secret}),
        &[("spec.dataSource", INVALID), ("spec.dataSourceRef", INVALID)],
    );
    c(json!({"dataSource": secret}), &[]);
    let claim = |name: &str| json!({"kind": "PersistentVolumeClaim", "name": name});
    c(json!({"dataSource": claim("a"), "dataSourceRef": claim("b")}), &[("spec", INVALID)]);
    c(
        json!({"dataSourceRef": claim("")}),
        &[("spec.dataSource.name", REQUIRED), ("spec.dataSourceRef.name", REQUIRED)],
    );
}
