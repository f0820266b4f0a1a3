//! From pods and objects to sources, as tables.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use k8s_openapi::api::{
    core::v1::{ConfigMap, Endpoints, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Volume},
    storage::v1::{CSIDriver, VolumeAttachment},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use volumes::{Inputs, Need, Next, PLUGINS, Resolved, Source, VolumeError, attachment_name, needs, resolve};

fn from<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a valid object")
}

fn pod() -> Pod {
    from(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "pod-uid", "labels": {"tier": "x", "app": "web"},
            "annotations": {"note": "say \"hi\"\nthere", "odd": "\u{7f}\u{1}\\\t\u{a0}é\u{200b}e\u{301}'"}},
        "spec": {"nodeName": "n", "serviceAccountName": "sa", "containers": [
            {"name": "c", "resources": {"limits": {"cpu": "150m", "memory": "40Mi"},
                "requests": {"memory": "20Mi", "cpu": "10m", "ephemeral-storage": "1500"}}},
            {"name": "free"}], "initContainers": [{"name": "init", "resources": {"limits": {"cpu": "2"}}}]},
        "status": {"podIP": "10.0.0.1", "hostIP": "192.0.2.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "hostIPs": [{"ip": "192.0.2.1"}]}
    }))
}

fn claim(change: Value) -> PersistentVolumeClaim {
    let mut claim = json!({"metadata": {"name": "c", "uid": "claim-uid"},
        "spec": {"volumeName": "pv", "accessModes": ["ReadWriteOnce"]}, "status": {"phase": "Bound"}});
    merge(&mut claim, change);
    from(claim)
}

fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change,
    }
}

fn volume(spec: Value) -> PersistentVolume {
    let mut volume = json!({"metadata": {"name": "pv"}, "spec": {"claimRef": {"uid": "claim-uid"}}});
    merge(&mut volume["spec"], spec);
    from(volume)
}

fn inputs() -> Inputs {
    let config: ConfigMap = from(json!({"data": {"a": "1", "b": "2"}, "binaryData": {"bin": "AP8="}}));
    let secret: Secret = from(json!({"data": {"k": "aHVzaA=="}}));
    let token = |audience: Option<&str>| Need::Token { audience: audience.map(Into::into), expiration_seconds: 600 };
    Inputs {
        config_maps: BTreeMap::from([("m".into(), Some(config)), ("none".into(), None)]),
        secrets: BTreeMap::from([("s".into(), Some(secret)), ("none".into(), None)]),
        claims: BTreeMap::from([("c".into(), Some(claim(json!({})))), ("none".into(), None)]),
        volumes: BTreeMap::from([("pv".into(), Some(volume(json!({"hostPath": {"path": "/data"}}))))]),
        tokens: BTreeMap::from([(token(Some("vault")), "T1".into()), (token(None), "T0".into())]),
        node: api::downward::NodeSize { cpu_milli: 4000, memory_bytes: 8 << 30 },
        node_name: "n".into(),
        ..Inputs::default()
    }
}

fn vol(source: Value) -> Volume {
    let mut volume = json!({"name": "v"});
    merge(&mut volume, source);
    from(volume)
}

/// A resolved volume in one line.
fn show(result: &Result<Resolved, VolumeError>) -> String {
    let r = match result {
        Ok(r) => r,
        Err(e) => return format!("error: {e}"),
    };
    let source = match &r.source {
        Source::Files { files, in_memory, mount_points, followed: _ } => {
            let file = |(path, e): (&std::path::PathBuf, &volumes::FileEntry)| {
                let owner = e.uid.map(|u| format!(" of {u}")).unwrap_or_default();
                format!("{}={}:{:o}{owner}", path.display(), String::from_utf8_lossy(&e.data).escape_debug(), e.mode)
            };
            let files: Vec<String> = files.iter().map(file).collect();
            let place = if *in_memory { "memory" } else { "disk" };
            let points: String = mount_points.iter().map(|p| format!(" +{}", p.display())).collect();
            format!("{place} {}{points}", files.join(" "))
        }
        Source::EmptyDir { medium, limit_bytes } => format!("{medium:?} {limit_bytes:?}"),
        Source::HostPath { path, kind } => format!("host {} {kind:?}", path.display()),
        Source::Local { path, .. } => format!("local {}", path.display()),
        Source::GitRepo(request) => format!("{request:?}"),
        Source::LocalDevice { path, .. } => format!("device {}", path.display()),
        Source::Glusterfs(s) => format!("{} {} {}", s.servers.join("+"), s.path, s.mount_options.join(",")),
        Source::Flocker(s) => format!("{:?}", s.dataset),
        Source::Nfs(s) => format!("nfs {}:{} {}", s.server, s.path, s.mount_options.join(",")),
        Source::Flex(s) => format!("flex {} {}", s.driver, s.name),
        Source::Image { id, .. } => format!("image {id}"),
        Source::Iscsi(s) => format!("{} LUN {} at {} by {:?}", s.iqn, s.lun, s.portals.join(","), s.secret),
        Source::Fc(s) => format!("{:?}", s.disk),
        Source::Csi(s) => {
            let kind =
                [(s.ephemeral, " ephemeral"), (s.block, " block"), (s.attaches, " attached"), (s.pod_info, " info")];
            let kind: String = kind.into_iter().filter(|(is, _)| *is).map(|(_, word)| word).collect();
            let (driver, fs_type, name, context) = (&s.driver, &s.fs_type, &s.name, &s.publish_context);
            format!("{driver} {name} {fs_type:?} {:?}{kind} {context:?}", s.fs_group_policy)
        }
    };
    format!("{}{source}", if r.read_only { "ro " } else { "" })
}

#[test]
fn volumes_by_their_source() {
    let check = |source: Value, want: &str| {
        let got = resolve(&pod(), &vol(source.clone()), &inputs());
        assert_eq!(show(&got), want, "{source}");
    };
    check(json!({}), "Disk None");
    check(json!({"emptyDir": {}}), "Disk None");
    check(
        json!({"gitRepo": {"repository": "https://me:s3cret@h/x", "revision": "v1", "directory": "."}}),
        r#"Request("https://h/x", revision "v1", directory ".")"#,
    );
    check(json!({"gitRepo": {"repository": "x"}}), r#"Request("x", revision "", directory "")"#);
    check(json!({"emptyDir": {"sizeLimit": "2Mi"}}), "Disk Some(2097152)");
    check(json!({"emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}}), "Memory Some(8388608)");
    check(json!({"emptyDir": {"medium": "Memory"}}), "Memory Some(8589934592)");
    check(json!({"emptyDir": {"medium": "Memory", "sizeLimit": "1Ti"}}), "Memory Some(8589934592)");
    check(json!({"emptyDir": {"medium": "Paper"}}), "error: unknown storage medium \"Paper\"");
    check(
        json!({"emptyDir": {"medium": "HugePages-2Mi"}}),
        "error: medium HugePages-2Mi: hugePages storage requested, but there is no resource request for huge pages",
    );
    let huge = |resources: Value, source: Value, want: &str| {
        let mut pod = pod();
        let spec = pod.spec.as_mut().unwrap();
        let both = json!({"limits": resources, "requests": resources});
        spec.containers[0].resources = Some(serde_json::from_value(both).unwrap());
        assert_eq!(show(&resolve(&pod, &vol(json!({"emptyDir": source})), &inputs())), want, "{source}");
    };
    let one = json!({"memory": "1Gi", "hugepages-2Mi": "8Mi"});
    let two = json!({"memory": "1Gi", "hugepages-2Mi": "8Mi", "hugepages-1Gi": "2Gi"});
    huge(one.clone(), json!({"medium": "HugePages"}), "HugePages { page_bytes: 2097152 } Some(8388608)");
    let limited = json!({"medium": "HugePages-2Mi", "sizeLimit": "3Mi"});
    huge(one.clone(), limited, "HugePages { page_bytes: 2097152 } Some(4194304)");
    huge(two.clone(), json!({"medium": "HugePages-1Gi"}), "HugePages { page_bytes: 1073741824 } Some(2147483648)");
    huge(
        two,
        json!({"medium": "HugePages"}),
        "error: medium: HugePages can't be used if container requests multiple huge page sizes",
    );
    huge(
        one.clone(),
        json!({"medium": "HugePages-1Gi"}),
        "error: medium HugePages-1Gi: hugePages storage requested, but there is no resource request for huge pages",
    );
    huge(one, json!({"medium": "HugePages-big"}), "error: unknown storage medium \"HugePages-big\"");
    check(json!({"hostPath": {"path": "/x"}}), "host /x Unset");
    check(json!({"nfs": {"server": "s", "path": "/x"}}), "nfs s:/x ");
    check(json!({"nfs": {"server": "s", "path": "/x", "readOnly": true}}), "ro nfs s:/x ");
    check(json!({"hostPath": {"path": "/x", "type": ""}}), "host /x Unset");
    check(json!({"hostPath": {"path": "/x", "type": "Socket"}}), "host /x Socket");
    check(json!({"hostPath": {"path": "/x", "type": "Sock"}}), "error: Sock is an invalid volume type");
    check(json!({"hostPath": {"path": "/x/../y"}}), "error: invalid HostPath `/x/../y`: must not contain '..'");

    check(json!({"configMap": {"name": "m"}}), "ro disk a=1:644 b=2:644 bin=\\0\u{fffd}:644");
    check(
        json!({"configMap": {"name": "m", "defaultMode": 256, "items": [{"key": "a", "path": "x/y"},
        {"key": "b", "path": "b", "mode": 511}]}}),
        "ro disk b=2:777 x/y=1:400",
    );
    check(json!({"configMap": {"name": "none"}}), "error: configmap \"none\" not found");
    check(json!({"configMap": {"name": "none", "optional": true}}), "ro disk ");
    check(json!({"configMap": {"name": "unread"}}), "error: configmap \"unread\" was not read yet");
    check(
        json!({"configMap": {"name": "m", "items": [{"key": "k", "path": "k"}]}}),
        "error: configmap references non-existent config key: k: configmap \"m\" has no such key",
    );
    check(
        json!({"configMap": {"name": "m", "optional": true, "items": [{"key": "k", "path": "k"}, {"key": "a", "path": "a"}]}}),
        "ro disk a=1:644",
    );
    for (path, why) in [
        ("/abs", "must be relative path"),
        ("a/../../b", "must not contain '..'"),
        ("..data", "must not start with '..'"),
        (".", "must name a file"),
    ] {
        let source = json!({"configMap": {"name": "m", "items": [{"key": "a", "path": path}]}});
        check(source, &format!("error: invalid path: {why}: {path}"));
    }
    check(json!({"secret": {"secretName": "s"}}), "ro memory k=hush:644");
    check(json!({"secret": {"secretName": "none"}}), "error: secret \"none\" not found");
    check(
        json!({"secret": {"secretName": "s", "items": [{"key": "z", "path": "z"}]}}),
        "error: references non-existent secret key: z: secret \"s\" has no such key",
    );
}

#[test]
fn downward_and_projected_volumes() {
    let check = |source: Value, want: &str| assert_eq!(show(&resolve(&pod(), &vol(source), &inputs())), want);
    let item = |path: &str, resource: &str, divisor: &str| json!({"path": path, "resourceFieldRef": {"containerName": "c", "resource": resource, "divisor": divisor}});
    check(
        json!({"downwardAPI": {"items": [item("cpu", "limits.cpu", "1m"), item("mem", "limits.memory", "0"),
            item("memk", "requests.memory", "1Ki"), item("round", "limits.cpu", ""),
            {"path": "id/uid", "mode": 256, "fieldRef": {"fieldPath": "metadata.uid"}}]}}),
        "ro memory cpu=150:644 id/uid=pod-uid:400 mem=41943040:644 memk=20480:644 round=1:644",
    );
    let sources = json!([{"configMap": {"name": "m", "items": [{"key": "a", "path": "conf/a"}]}}, {"secret": {"name": "s"}},
        {"downwardAPI": {"items": [{"path": "conf/name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        {"serviceAccountToken": {"path": "tok", "expirationSeconds": 600, "audience": "vault"}},
        {"serviceAccountToken": {"path": "k", "expirationSeconds": 600}}]);
    check(
        json!({"projected": {"defaultMode": 288, "sources": sources}}),
        "ro memory conf/a=1:440 conf/name=p:440 k=T0:440 tok=T1:440",
    );
    check(json!({"projected": {}}), "ro memory ");
    // Which keys there are may change: it is looked at again.
    let under = |path: &str| {
        json!({"projected": {"sources": [{"secret": {"name": "s"}},
        {"configMap": {"name": "m", "items": [{"key": "a", "path": path}]}}]}})
    };
    let fix = "change the path of one of them";
    check(
        under("k/deep/er"),
        &format!("error: path \"k/deep/er\" cannot be a file: \"k\" is one too, of the same volume; {fix}"),
    );
    check(under("kk/deep"), "ro memory k=hush:644 kk/deep=1:644");
    check(
        json!({"projected": {"sources": [{"configMap": {"name": "none"}}, {"secret": {"name": "none"}}]}}),
        "error: [configmap \"none\" not found, secret \"none\" not found]",
    );
    check(
        json!({"projected": {"sources": [{"podCertificate": {"path": "x"}}]}}),
        "error: volume source projected.podCertificate is not supported by this node",
    );
}

#[test]
fn trust_bundles_are_chosen_by_name_or_by_signer_and_labels() {
    let bundle = |name: &str, signer: Option<&str>, label: &str, content: &str| {
        let text = format!("noise\n-----BEGIN CERTIFICATE-----\n{content}\n-----END CERTIFICATE-----\n");
        let object = json!({"metadata": {"name": name, "labels": {"l": label}}, "spec": {"signerName": signer, "trustBundle": text}});
        (name.to_owned(), from(object))
    };
    let mut inputs = inputs();
    inputs.trust_bundles = Some(std::sync::Arc::new(
        [
            bundle("plain", None, "x", "AAAA"),
            bundle("e.com:s:a", Some("e.com/s"), "x", "AQAA"),
            bundle("e.com:s:b", Some("e.com/s"), "y", "AAAA"),
            bundle("e.com:s:c", Some("e.com/s"), "y", "AQAA"),
        ]
        .into(),
    ));
    let (zero, one) = ("AAAA", "AQAA");
    // As `show` escapes it.
    let pem = |content: &str| format!("-----BEGIN CERTIFICATE-----\\n{content}\\n-----END CERTIFICATE-----\\n");
    let pod: Pod = from(json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}}));
    let check = |source: Value, want: &str| {
        let mut source = source;
        source["path"] = json!("ca");
        let volume = vol(json!({"projected": {"sources": [{"clusterTrustBundle": source}]}}));
        assert!(volumes::needs(&pod, &volume) == [Need::TrustBundles]);
        let want = if want.starts_with("error") { want.to_owned() } else { format!("ro memory ca={want}:644") };
        assert_eq!(show(&resolve(&pod, &volume, &inputs)), want, "{source}");
    };
    check(json!({"name": "plain"}), &pem(zero));
    let no = "error: while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io \"none\" not found";
    check(json!({"name": "none"}), no);
    check(json!({"name": "none", "optional": true}), "");
    let signer = |selector: Value| json!({"signerName": "e.com/s", "labelSelector": selector});
    check(signer(json!({})), &(pem(zero) + &pem(one)));
    check(signer(json!({"matchLabels": {"l": "x"}})), &pem(one));
    // Upstream: no selector at all matches nothing.
    let zero_found =
        "error: combination of signerName and labelSelector matched zero ClusterTrustBundles: signerName \"e.com/s\"";
    check(signer(Value::Null), zero_found);
    check(signer(json!({"matchLabels": {"l": "z"}})), zero_found);
    check(json!({"signerName": "e.com/other", "labelSelector": {}, "optional": true}), "");
}

#[test]
fn tokens_belong_to_the_only_user_or_the_group() {
    let source =
        vol(json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 600}}]}}));
    let check = |spec: Value, want: &str| {
        let pod: Pod = from(json!({"metadata": {"name": "p"}, "spec": spec}));
        assert_eq!(show(&resolve(&pod, &source, &inputs())), format!("ro memory t=T0:{want}"), "{spec}");
    };
    let user = |n: i64| json!({"name": "c", "securityContext": {"runAsUser": n}});
    check(json!({"containers": [{"name": "c"}]}), "644");
    check(json!({"containers": [user(5)]}), "600 of 5");
    check(json!({"containers": [user(5), {"name": "d"}]}), "644");
    check(json!({"containers": [user(5), user(6)]}), "644");
    check(json!({"securityContext": {"runAsUser": 5}, "containers": [user(5), {"name": "d"}]}), "600 of 5");
    check(
        json!({"securityContext": {"runAsUser": 5}, "containers": [{"name": "d"}], "initContainers": [user(6)]}),
        "644",
    );
    check(json!({"securityContext": {"fsGroup": 7}, "containers": [{"name": "d"}]}), "600");
}

#[test]
fn mount_points_inside_read_only_volumes_are_known() {
    let mounts = |list: &[(&str, &str)]| -> Vec<Value> {
        list.iter().map(|(name, path)| json!({"name": name, "mountPath": path})).collect()
    };
    let pod: Pod = from(json!({"metadata": {"name": "p"}, "spec": {
        "initContainers": [{"name": "i", "volumeMounts": mounts(&[("v", "/"), ("w", "/x/y")])}],
        "containers": [{"name": "c", "volumeMounts": mounts(&[("v", "/v/"), ("w", "/v/in/ner"), ("w", "/v/in/ner/more"),
            ("w", "/v2/no"), ("w", "/elsewhere")])}, {"name": "d", "volumeMounts": mounts(&[("w", "/v/only-d")])}]}}));
    let got = resolve(&pod, &vol(json!({"configMap": {"name": "m", "items": []}})), &inputs());
    assert!(show(&got).ends_with(" +in/ner +x/y"), "{}", show(&got));
}

#[test]
fn claims_lead_to_their_volume_only_when_both_agree() {
    let check = |what: &str, change: &dyn Fn(&mut Inputs), pod_volume: Value, want: &str| {
        let mut inputs = inputs();
        change(&mut inputs);
        assert_eq!(show(&resolve(&pod(), &vol(pod_volume), &inputs)), want, "{what}");
    };
    let use_c = || json!({"persistentVolumeClaim": {"claimName": "c"}});
    let with_claim =
        |change: Value| move |i: &mut Inputs| drop(i.claims.insert("c".into(), Some(claim(change.clone()))));
    let with_volume =
        |spec: Value| move |i: &mut Inputs| drop(i.volumes.insert("pv".into(), Some(volume(spec.clone()))));
    let host = json!({"hostPath": {"path": "/data"}});

    check("bound", &|_| (), use_c(), "host /data Unset");
    check(
        "read-only use",
        &|_| (),
        json!({"persistentVolumeClaim": {"claimName": "c", "readOnly": true}}),
        "ro host /data Unset",
    );
    check("ROX", &with_claim(json!({"spec": {"accessModes": ["ReadOnlyMany"]}})), use_c(), "ro host /data Unset");
    check("local", &with_volume(json!({"local": {"path": "/l"}})), use_c(), "local /l");
    check(
        "no claim",
        &|_| (),
        json!({"persistentVolumeClaim": {"claimName": "none"}}),
        "error: error processing PVC ns/none: failed to fetch PVC from API server: persistentvolumeclaims \"none\" not found",
    );
    check(
        "pending",
        &with_claim(json!({"status": {"phase": "Pending"}})),
        use_c(),
        "error: error processing PVC ns/c: PVC is not bound",
    );
    check(
        "no volume name",
        &with_claim(json!({"spec": {"volumeName": ""}})),
        use_c(),
        "error: error processing PVC ns/c: PVC has empty pvc.Spec.VolumeName",
    );
    let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    check("deleted", &with_claim(deleted.clone()), use_c(), "error: error processing PVC ns/c: PVC is being deleted");
    let mut protected = deleted;
    merge(&mut protected, json!({"metadata": {"finalizers": ["kubernetes.io/pvc-protection"]}}));
    check("deleted, still protected", &with_claim(protected), use_c(), "host /data Unset");
    check(
        "volume gone",
        &|i| drop(i.volumes.insert("pv".into(), None)),
        use_c(),
        "error: error processing PVC ns/c: failed to fetch PV pv from API server: persistentvolumes \"pv\" not found",
    );
    check("volume unread", &|i| i.volumes.clear(), use_c(), "error: persistentvolume \"pv\" was not read yet");
    let mut other = host.clone();
    merge(&mut other, json!({"claimRef": {"uid": "other"}}));
    check(
        "someone else's",
        &with_volume(other),
        use_c(),
        "error: error processing PVC ns/c: found PV object pv but its \
        pv.Spec.ClaimRef.UID other does not point to claim.UID claim-uid",
    );
    let mut free = host.clone();
    merge(&mut free, json!({"claimRef": null}));
    check(
        "unbound volume",
        &with_volume(free),
        use_c(),
        "error: error processing PVC ns/c: found PV object pv but it has a \
        nil pv.Spec.ClaimRef indicating it is not yet bound to the claim",
    );
    let mut block = host;
    merge(&mut block, json!({"volumeMode": "Block"}));
    check(
        "block",
        &with_volume(block),
        use_c(),
        "error: volume source persistentVolume.hostPath with volumeMode Block is not supported by this node",
    );

    let own = |uid: &str| {
        let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true}]);
        let claim = claim(json!({"metadata": {"ownerReferences": owner}}));
        move |i: &mut Inputs| drop(i.claims.insert("p-v".into(), Some(claim.clone())))
    };
    check("ephemeral", &own("pod-uid"), json!({"ephemeral": {}}), "host /data Unset");
    check(
        "ephemeral of a stranger",
        &own("other"),
        json!({"ephemeral": {}}),
        "error: PVC ns/p-v was not created for pod ns/p (pod is not owner)",
    );
    check(
        "nfs",
        &with_volume(
            json!({"nfs": {"server": "s", "path": "/x", "readOnly": true}, "mountOptions": ["soft", "ro"], "hostPath": null}),
        ),
        use_c(),
        "ro nfs s:/x soft,ro",
    );
    let noted = |inputs: &mut Inputs| {
        with_volume(json!({"nfs": {"server": "s", "path": "/x"}, "mountOptions": ["soft"], "hostPath": null}))(inputs);
        let volume = inputs.volumes.get_mut("pv").unwrap().as_mut().unwrap();
        let note = ("volume.beta.kubernetes.io/mount-options".to_owned(), "hard, vers=3".to_owned());
        volume.metadata.annotations = Some(BTreeMap::from([note]));
    };
    check("nfs with the old annotation", &noted, use_c(), "nfs s:/x hard,vers=3");
    let options = with_volume(json!({"hostPath": {"path": "/d"}, "mountOptions": ["noatime"]}));
    let mut inputs = inputs();
    options(&mut inputs);
    assert_eq!(resolve(&pod(), &vol(use_c()), &inputs).unwrap().mount_options, ["noatime"]);
}

/// A table of what objects say, and what is made of them.
#[test]
fn volumes_of_drivers() {
    let handle = "h";
    let csi = |spec: Value| {
        let mut wanted = json!({"accessModes": ["ReadWriteOnce"],
            "csi": {"driver": "d.example", "volumeHandle": handle, "fsType": "ext4"}});
        merge(&mut wanted, spec);
        Some(volume(wanted))
    };
    let name = attachment_name(handle, "d.example", "n");
    let attached = |status: Value| {
        let meta = json!({"name": name});
        let spec = json!({"attacher": "d.example", "nodeName": "n", "source": {"persistentVolumeName": "pv"}});
        from::<VolumeAttachment>(json!({"metadata": meta, "spec": spec, "status": status}))
    };
    let driver = |spec: Value| Some(from::<CSIDriver>(json!({"metadata": {"name": "d.example"}, "spec": spec})));
    let claim = || json!({"persistentVolumeClaim": {"claimName": "c"}});
    let inline = || json!({"csi": {"driver": "d.example", "readOnly": true, "volumeAttributes": {"a": "1"}}});
    let check = |what: &str, d: Option<CSIDriver>, a: Option<VolumeAttachment>, source: Value, want: &str| {
        let mut inputs = inputs();
        inputs.volumes.insert("pv".into(), csi(json!({})));
        inputs.drivers.insert("d.example".into(), d);
        inputs.attachments.insert(name.clone(), a);
        assert_eq!(show(&resolve(&pod(), &vol(source), &inputs)), want, "{what}");
    };
    let free = || driver(json!({"attachRequired": false}));
    check("not attached by its driver", free(), None, claim(), "d.example pv \"ext4\" OnceWithFsType {}");
    let waiting = format!(
        "error: timed out waiting for external-attacher of d.example CSI driver to attach volume h; \
         there is no VolumeAttachment {name} yet"
    );
    check("nobody has attached it", driver(json!({})), None, claim(), &waiting);
    let missing = format!("{waiting}. There is no CSIDriver d.example; see that the driver is installed");
    check("perhaps nobody will", None, None, claim(), &missing);
    let known = attached(json!({"attached": true, "attachmentMetadata": {"port": "7"}}));
    let there = "d.example pv \"ext4\" OnceWithFsType attached {\"port\": \"7\"}";
    check("attached", None, Some(known.clone()), claim(), there);
    let failed = attached(json!({"attached": false, "attachError": {"message": "no room"}}));
    check("attaching failed", None, Some(failed), claim(), "error: no room");
    let mut going = known.clone();
    going.metadata.deletion_timestamp = from(json!("2026-01-01T00:00:00Z"));
    check("detaching", None, Some(going), claim(), "error: volume attachment is being deleted");
    let modes =
        |modes: Value| driver(json!({"attachRequired": false, "podInfoOnMount": true, "volumeLifecycleModes": modes}));
    check(
        "only for pods",
        modes(json!(["Ephemeral"])),
        None,
        claim(),
        "error: kubernetes.io/csi: mounter.SetupAt failed to check volume lifecycle mode: volume mode \"Persistent\" not \
         supported by driver d.example (only supports [\"Ephemeral\"])",
    );
    check(
        "a pod's own",
        modes(json!(["Ephemeral"])),
        None,
        inline(),
        "ro d.example v \"\" OnceWithFsType ephemeral info {}",
    );
    check(
        "a pod's own of an unknown driver",
        None,
        None,
        inline(),
        "error: kubernetes.io/csi: mounter.SetupAt failed to check volume lifecycle mode: volume mode \"Ephemeral\" not \
         supported by driver d.example (no CSIDriver object)",
    );
    let mut unread = inputs();
    unread.volumes.insert("pv".into(), csi(json!({"volumeMode": "Block"})));
    assert!(matches!(resolve(&pod(), &vol(claim()), &unread), Err(VolumeError::NotRead { .. })));
    unread.drivers.insert("d.example".into(), free());
    assert_eq!(
        show(&resolve(&pod(), &vol(claim()), &unread)),
        "d.example pv \"ext4\" OnceWithFsType block {}",
        "as a device"
    );
    let mut user = pod();
    user.spec.as_mut().unwrap().containers[0].volume_mounts = from(json!([{"name": "v", "mountPath": "/v"}]));
    assert_eq!(
        show(&resolve(&user, &vol(claim()), &unread)),
        "error: volume v has volumeMode Block, but is specified in volumeMounts"
    );
}

#[test]
fn disks_of_clouds_are_their_drivers() {
    let gce = "pd.csi.storage.gke.io";
    let mut inputs = inputs();
    let disk = |name: &str| json!({"gcePersistentDisk": {"pdName": name, "fsType": "ext4", "readOnly": true}});
    inputs.volumes.insert("pv".into(), Some(volume(disk("d"))));
    let driver: CSIDriver = from(json!({"metadata": {"name": gce}, "spec": {"attachRequired": false}}));
    inputs.drivers.insert(gce.into(), Some(driver));
    let claimed = vol(json!({"persistentVolumeClaim": {"claimName": "c"}}));
    assert_eq!(show(&resolve(&pod(), &claimed, &inputs)), format!("{gce} pv \"ext4\" OnceWithFsType {{}}"));
    let own = vol(disk("d"));
    assert_eq!(show(&resolve(&pod(), &own, &inputs)), format!("ro {gce} {gce}-d \"ext4\" OnceWithFsType {{}}"));
    let handle = "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d";
    assert_eq!(needs(&pod(), &own), [Need::Disk { driver: gce.into(), handle: handle.into() }]);
    let aws = "ebs.csi.aws.com";
    inputs.volumes.insert("pv".into(), Some(volume(json!({"awsElasticBlockStore": {"volumeID": "vol-1"}}))));
    inputs.drivers.insert(aws.into(), None);
    inputs.attachments.insert(attachment_name("vol-1", aws, "n"), None);
    let waits = show(&resolve(&pod(), &claimed, &inputs));
    assert!(waits.ends_with("`holdfast up --stand-in aws-ebs` stands in for it."), "{waits}");
    inputs.volumes.insert("pv".into(), Some(volume(json!({"awsElasticBlockStore": {"volumeID": "aws://z/x"}}))));
    let refused = show(&resolve(&pod(), &claimed, &inputs));
    assert!(refused.starts_with("error: ") && refused.contains("aws://ZONE/vol-ID"), "{refused}");
}

#[test]
fn needs_name_every_object() {
    let check = |source: Value, want: &[Need]| assert_eq!(needs(&pod(), &vol(source)), want);
    let token = |audience: Option<&str>, expiration_seconds| Need::Token {
        audience: audience.map(Into::into),
        expiration_seconds,
    };
    check(json!({"configMap": {"name": "m"}}), &[Need::ConfigMap("m".into())]);
    check(json!({"secret": {"secretName": "s"}}), &[Need::Secret("s".into())]);
    check(json!({"persistentVolumeClaim": {"claimName": "c"}}), &[Need::Claim("c".into())]);
    check(json!({"ephemeral": {}}), &[Need::Claim("p-v".into())]);
    check(json!({"csi": {"driver": "d"}}), &[Need::Driver("d".into())]);
    check(json!({"emptyDir": {}}), &[]);
    check(
        json!({"projected": {"sources": [{"secret": {"name": "s"}}, {"configMap": {"name": "m"}}, {"downwardAPI": {}},
            {"serviceAccountToken": {"path": "a"}}, {"serviceAccountToken": {"path": "b", "audience": "x", "expirationSeconds": 700}}]}}),
        &[Need::Secret("s".into()), Need::ConfigMap("m".into()), token(None, 3600), token(Some("x"), 700)],
    );
}

#[test]
fn errors_say_what_to_do_next() {
    let next = |source: Value| resolve(&pod(), &vol(source), &inputs()).unwrap_err().next();
    for name in ["none", "unread"] {
        assert_eq!(next(json!({"configMap": {"name": name}})), Next::WaitForObject);
        assert_eq!(next(json!({"secret": {"secretName": name}})), Next::WaitForObject);
        assert_eq!(next(json!({"persistentVolumeClaim": {"claimName": name}})), Next::WaitForObject);
    }
    assert_eq!(next(json!({"hostPath": {"path": "/a/../b"}})), Next::GiveUp);
    let both = json!({"projected": {"sources": [{"configMap": {"name": "none"}}, {"secret": {"name": "none"}}]}});
    assert_eq!(next(both), Next::WaitForObject);
}

/// The names of a type's fields, as the API documents them.
fn fields<T: schemars::JsonSchema>(but: &[&str]) -> Vec<String> {
    let schema = schemars::SchemaGenerator::default().into_root_schema_for::<T>();
    let properties = schema.as_value()["properties"].as_object().expect("an object type").clone();
    let fields: Vec<String> =
        properties.into_iter().map(|(name, _)| name).filter(|n| !but.contains(&n.as_str())).collect();
    assert!(fields.len() > 15, "{fields:?}");
    fields
}

/// A source is either taken by exactly one plugin or refused by name.
fn known(field: &str, kind: &str, result: &Result<Resolved, VolumeError>) -> bool {
    match result {
        Ok(resolved) => {
            let takers = PLUGINS.iter().filter(|p| p.accepts(&resolved.source)).count();
            assert_eq!(takers, 1, "{field} is taken by {takers} plugins");
            true
        }
        Err(VolumeError::Unsupported { kind: named }) => {
            assert_eq!(named, kind);
            false
        }
        Err(VolumeError::Ended { .. }) => {
            let ended = ["quobyte", "scaleIO", "storageos", "photonPersistentDisk"];
            assert!(ended.contains(&field), "{field}");
            false
        }
        Err(e) => panic!("{field}: {e}"),
    }
}

#[test]
fn every_source_of_the_api_is_taken_by_one_plugin_or_refused_by_name() {
    let mut inputs = inputs();
    inputs.config_maps.insert(String::new(), Some(ConfigMap::default()));
    inputs.secrets.insert(String::new(), Some(Secret::default()));
    inputs.claims.insert(String::new(), Some(claim(json!({}))));
    let served: Endpoints = from(json!({"subsets": [{"addresses": [{"ip": "192.0.2.1"}]}]}));
    inputs.endpoints.insert(("ns".into(), String::new()), Some(served));
    let both = json!({"attachRequired": false, "volumeLifecycleModes": ["Persistent", "Ephemeral"]});
    let driver: CSIDriver = from(json!({"metadata": {}, "spec": both}));
    for name in in_tree::drivers().map(|(name, _)| name).chain([""]) {
        inputs.drivers.insert(name.to_owned(), Some(driver.clone()));
    }
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "pod-uid", "controller": true}]);
    inputs.claims.insert("p-v".into(), Some(claim(json!({"metadata": {"ownerReferences": owner}}))));
    let least = |field: &str| match field {
        "cephfs" => json!({"secretRef": {"name": "s"}}),
        "azureFile" => json!({"secretNamespace": "ns"}),
        "iscsi" => json!({"targetPortal": "10.0.0.1", "iqn": "iqn.2026-11.test:t", "lun": 1}),
        "fc" => json!({"wwids": ["3600508b4"]}),
        _ => json!({}),
    };
    let taken: Vec<String> = fields::<Volume>(&["name"])
        .into_iter()
        .filter(|field| known(field, field, &resolve(&pod(), &vol(json!({field: least(field)})), &inputs)))
        .collect();
    let supported = [
        "awsElasticBlockStore",
        "azureDisk",
        "azureFile",
        "cephfs",
        "cinder",
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "fc",
        "flexVolume",
        "flocker",
        "gcePersistentDisk",
        "gitRepo",
        "glusterfs",
        "hostPath",
        "iscsi",
        "nfs",
        "persistentVolumeClaim",
        "portworxVolume",
        "projected",
        "rbd",
        "secret",
        "vsphereVolume",
    ];
    assert_eq!(taken, supported);

    let not_sources = [
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeAttributesClassName",
        "volumeMode",
    ];
    let taken: Vec<String> = fields::<k8s_openapi::api::core::v1::PersistentVolumeSpec>(&not_sources)
        .into_iter()
        .filter(|field| {
            inputs
                .volumes
                .insert("pv".into(), Some(volume(json!({field.as_str(): least(field), "storageClassName": "x"}))));
            let claimed = vol(json!({"persistentVolumeClaim": {"claimName": "c"}}));
            known(field, &format!("persistentVolume.{field}"), &resolve(&pod(), &claimed, &inputs))
        })
        .collect();
    let clouds = ["awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "gcePersistentDisk"];
    let others = ["portworxVolume", "rbd", "vsphereVolume"];
    let here = ["csi", "fc", "flexVolume", "flocker", "glusterfs", "hostPath", "iscsi", "local", "nfs"];
    let mut supported = [&clouds[..], &others, &here].concat();
    supported.sort_unstable();
    assert_eq!(taken, supported);
}
