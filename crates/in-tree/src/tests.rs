//! What goes in and what comes out, after the tables of upstream's own tests.
use k8s_openapi::api::{
    core::v1::{PersistentVolume, Volume},
    storage::v1::StorageClass,
};
use proptest::prelude::*;
use serde_json::{Value, from_value, json, to_value};

use crate::*;

const AZURE_URI: &str = "/subscriptions/12/resourceGroups/23/providers/Microsoft.Compute/disks/name";

fn volume(value: &Value) -> PersistentVolume {
    from_value(value.clone()).expect("a volume")
}

fn affinity(terms: &[&[(&str, &[&str])]]) -> Value {
    let is = |(key, values): &(&str, &[&str])| json!({"key": key, "operator": "In", "values": values});
    let terms: Vec<Value> =
        terms.iter().map(|t| json!({"matchExpressions": t.iter().map(is).collect::<Vec<_>>()})).collect();
    json!({"required": {"nodeSelectorTerms": terms}})
}

#[test]
fn names_of_plugins_and_drivers() {
    for (plugin, driver) in [
        ("kubernetes.io/gce-pd", "pd.csi.storage.gke.io"),
        ("kubernetes.io/aws-ebs", "ebs.csi.aws.com"),
        ("kubernetes.io/azure-disk", "disk.csi.azure.com"),
        ("kubernetes.io/azure-file", "file.csi.azure.com"),
        ("kubernetes.io/cinder", "cinder.csi.openstack.org"),
        ("kubernetes.io/vsphere-volume", "csi.vsphere.vmware.com"),
        ("kubernetes.io/portworx-volume", "pxd.portworx.com"),
        ("kubernetes.io/rbd", "rbd.csi.ceph.com"),
        ("kubernetes.io/cephfs", "cephfs.csi.ceph.com"),
    ] {
        assert_eq!(driver_of(plugin), Some(driver));
        assert_eq!(plugin_of(driver), Some(plugin));
        assert!(drivers().any(|d| d == (driver, plugin)));
    }
    assert_eq!(drivers().count(), 9);
    assert_eq!(driver_of("kubernetes.io/host-path"), None);
    assert_eq!(plugin_of("local.csi.example.com"), None);
}

/// Parameters and topologies in, out; `Err` with a word of the reason.
#[test]
fn classes() {
    let by = |key: &str, zones: &[&str]| json!([{"matchLabelExpressions": [{"key": key, "values": zones}]}]);
    let (gce, aws, azure) =
        ("topology.gke.io/zone", "topology.ebs.csi.aws.com/zone", "topology.disk.csi.azure.com/zone");
    let (cinder, vsphere) = ("topology.cinder.csi.openstack.org/zone", "topology.csi.vmware.com/zone");
    let (ga, beta) = (topology::ZONE, topology::BETA_ZONE);
    let (none, nothing) = (json!(null), json!({}));
    let ceph = json!({"adminId": "kubeadmin", "monitors": "10.70.53.126:6789,10.70.53.156:6789", "pool": "replicapool",
        "adminSecretName": "ceph-admin-secret", "adminSecretNamespace": "default"});
    let ceph_to = |part: &str| {
        json!({"adminId": "kubeadmin", "pool": "replicapool", "clusterID": "7982de6a23b77bce50b1ba9f2e879cce",
            "monitors": "10.70.53.126:6789,10.70.53.156:6789",
            "csi.storage.k8s.io/controller-expand-secret-name": "ceph-admin-secret",
            "csi.storage.k8s.io/controller-expand-secret-namespace": "default",
            "csi.storage.k8s.io/node-stage-secret-name": "ceph-admin-secret",
            "csi.storage.k8s.io/node-stage-secret-namespace": "default",
            "csi.storage.k8s.io/provisioner-secret-name": "ceph-admin-secret",
            "csi.storage.k8s.io/provisioner-secret-namespace": "default",
            part: if part == "migration" { "true" } else { "cephfs" }})
    };
    let without = |name: &str| {
        let mut fewer = ceph.clone();
        fewer.as_object_mut().expect("an object").remove(name);
        fewer
    };
    let mut wrong = ceph.clone();
    wrong["monitors"] = json!("");
    let secret = |end: &str| {
        let all =
            ["provisioner", "controller-publish", "node-publish", "node-stage", "controller-expand", "node-expand"];
        all.map(|user| (format!("csi.storage.k8s.io/{user}-secret-{end}"), json!("s")))
    };
    let portworx_to: serde_json::Map<String, Value> =
        secret("name").into_iter().chain(secret("namespace")).chain([("repl".to_owned(), json!("2"))]).collect();
    let migration = json!({"csimigration": "true"});
    let ok = |parameters: Value, topologies: &Value| Ok((parameters, topologies.clone()));
    type Row<'a> = (&'a str, Value, Value, Result<(Value, Value), &'a str>);
    let table: Vec<Row<'_>> = vec![
        ("gce-pd", json!({"foo": "bar"}), none.clone(), ok(json!({"foo": "bar"}), &none)),
        ("gce-pd", nothing.clone(), none.clone(), ok(nothing.clone(), &none)),
        ("gce-pd", json!({"FsType": "xfs"}), none.clone(), ok(json!({"csi.storage.k8s.io/fstype": "xfs"}), &none)),
        ("gce-pd", json!({"zone": "foo"}), none.clone(), ok(nothing.clone(), &by(gce, &["foo"]))),
        ("gce-pd", json!({"zones": "a,b,c"}), none.clone(), ok(nothing.clone(), &by(gce, &["a", "b", "c"]))),
        ("gce-pd", nothing.clone(), by(gce, &["foo"]), ok(nothing.clone(), &by(gce, &["foo"]))),
        ("gce-pd", nothing.clone(), by(beta, &["foo"]), ok(nothing.clone(), &by(gce, &["foo"]))),
        ("gce-pd", nothing.clone(), by(ga, &["foo"]), ok(nothing.clone(), &by(gce, &["foo"]))),
        ("gce-pd", nothing.clone(), by("rack", &["foo"]), ok(nothing.clone(), &by("rack", &["foo"]))),
        ("gce-pd", json!({"zone": "foo"}), by(gce, &["foo"]), Err("only one of them")),
        ("aws-ebs", json!({"zone": "foo"}), by(ga, &["foo"]), Err("only one of them")),
        (
            "aws-ebs",
            json!({"fstype": "ext3", "zones": "x,y"}),
            none.clone(),
            ok(json!({"csi.storage.k8s.io/fstype": "ext3"}), &by(aws, &["x", "y"])),
        ),
        (
            "aws-ebs",
            json!({"iopsPerGB": "100"}),
            none.clone(),
            ok(json!({"iopsPerGB": "100", "allowautoiopspergbincrease": "true"}), &none),
        ),
        (
            "azure-disk",
            json!({"foo": "bar", "fstype": "xfs"}),
            none.clone(),
            ok(json!({"foo": "bar", "fstype": "xfs"}), &none),
        ),
        ("azure-disk", json!({"zones": "a,b"}), none.clone(), ok(nothing.clone(), &by(azure, &["a", "b"]))),
        ("azure-disk", nothing.clone(), by(beta, &["foo"]), ok(nothing.clone(), &by(azure, &["foo"]))),
        (
            "azure-disk",
            nothing.clone(),
            by(ga, &["0", "1234", "centralus-1"]),
            ok(nothing.clone(), &by(azure, &["", "", "centralus-1"])),
        ),
        ("azure-disk", json!({"zone": "foo"}), by(azure, &["foo"]), Err("only one of them")),
        (
            "azure-file",
            json!({"skuName": "Standard_LRS"}),
            by(ga, &["z"]),
            ok(json!({"skuName": "Standard_LRS"}), &by(ga, &["z"])),
        ),
        (
            "cinder",
            json!({"availability": "nova", "fstype": "ext3"}),
            by(beta, &["nova"]),
            ok(json!({"availability": "nova", "csi.storage.k8s.io/fstype": "ext3"}), &by(cinder, &["nova"])),
        ),
        ("vsphere-volume", json!({"unknownparam": "value"}), none.clone(), ok(migration.clone(), &none)),
        ("vsphere-volume", nothing.clone(), by(beta, &["zone-a"]), ok(migration, &by(vsphere, &["zone-a"]))),
        (
            "vsphere-volume",
            json!({"storagePolicyName": "p", "datastore": "d", "fstype": "ext4", "diskformat": "thin",
                "hostfailurestotolerate": "1", "forceprovisioning": "yes", "cachereservation": "25", "diskstripes": "4",
                "objectspacereservation": "10", "iopslimit": "32"}),
            by(ga, &["zone-a"]),
            ok(
                json!({"storagepolicyname": "p", "datastore-migrationparam": "d", "csi.storage.k8s.io/fstype": "ext4",
                    "diskformat-migrationparam": "thin", "hostfailurestotolerate-migrationparam": "1",
                    "forceprovisioning-migrationparam": "yes", "cachereservation-migrationparam": "25",
                    "diskstripes-migrationparam": "4", "objectspacereservation-migrationparam": "10",
                    "iopslimit-migrationparam": "32", "csimigration": "true"}),
                &by(vsphere, &["zone-a"]),
            ),
        ),
        (
            "portworx-volume",
            json!({"openstorage.io/auth-secret-name": "s", "openstorage.io/auth-secret-namespace": "s", "repl": "2"}),
            none.clone(),
            ok(portworx_to.into(), &none),
        ),
        ("rbd", ceph.clone(), none.clone(), ok(ceph_to("migration"), &none)),
        ("rbd", wrong, none.clone(), Err("monitors")),
        ("rbd", without("monitors"), none.clone(), Err("monitors")),
        ("rbd", without("adminSecretName"), none.clone(), Err("adminSecretName")),
        ("cephfs", ceph.clone(), none.clone(), ok(ceph_to("fsName"), &none)),
    ];
    for (plugin, parameters, topologies, wanted) in table {
        let provisioner = format!("kubernetes.io/{plugin}");
        let class: StorageClass = from_value(json!({
            "metadata": {"name": "c"}, "provisioner": provisioner, "parameters": parameters, "allowedTopologies": topologies,
        }))
        .expect("a class");
        match (class_to_csi(&class), wanted) {
            (Ok(class), Ok((parameters, topologies))) => {
                assert_eq!(json!(class.parameters), parameters, "{plugin}");
                assert_eq!(json!(class.allowed_topologies), topologies, "{plugin} {parameters}");
                assert_eq!(Some(&*class.provisioner), driver_of(&provisioner));
            }
            (Err(error), Err(word)) => {
                let text = error.to_string();
                assert!(text.contains(word) && text.contains("class \"c\"") && text.contains(plugin), "{text}");
            }
            (got, wanted) => panic!("{plugin} {parameters}: {got:?} instead of {wanted:?}"),
        }
    }
    let other = StorageClass { provisioner: "example.com/x".into(), ..Default::default() };
    assert_eq!(*class_to_csi(&other).expect("no change"), other);
}

/// Volumes there, what they are for the driver, and what they are when they come back where that differs.
fn volumes() -> Vec<(Value, Value)> {
    let cluster = "b7f67366bb43f32e07d8a261a7840da9";
    let secret = json!({"name": "s", "namespace": "ns"});
    let vmdk = "[vsan] 6785a85e/kubernetes-dynamic-pvc-1.vmdk";
    vec![
        (
            json!({"gcePersistentDisk": {"pdName": "d", "fsType": "ext4"}}),
            json!({"driver": "pd.csi.storage.gke.io", "volumeHandle": "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d",
                "fsType": "ext4", "volumeAttributes": {"partition": ""}}),
        ),
        (
            json!({"gcePersistentDisk": {"pdName": "d", "partition": 3, "readOnly": true}}),
            json!({"driver": "pd.csi.storage.gke.io", "volumeHandle": "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d",
                "readOnly": true, "volumeAttributes": {"partition": "3"}}),
        ),
        (
            json!({"awsElasticBlockStore": {"volumeID": "vol01", "fsType": "ext3", "partition": 1, "readOnly": true}}),
            json!({"driver": "ebs.csi.aws.com", "volumeHandle": "vol01", "fsType": "ext3", "readOnly": true,
                "volumeAttributes": {"partition": "1"}}),
        ),
        (
            json!({"awsElasticBlockStore": {"volumeID": "vol01"}}),
            json!({"driver": "ebs.csi.aws.com", "volumeHandle": "vol01", "volumeAttributes": {"partition": "0"}}),
        ),
        (
            json!({"azureDisk": {"cachingMode": "ReadOnly", "diskName": "name", "diskURI": AZURE_URI, "fsType": "xfs",
                "kind": "Managed", "readOnly": true}}),
            json!({"driver": "disk.csi.azure.com", "volumeHandle": AZURE_URI, "fsType": "xfs", "readOnly": true,
                "volumeAttributes": {"cachingmode": "ReadOnly", "fstype": "xfs", "kind": "Managed"}}),
        ),
        (
            json!({"azureFile": {"shareName": "share", "secretName": "s", "secretNamespace": "ns", "readOnly": true}}),
            json!({"driver": "file.csi.azure.com", "volumeHandle": "rg#s#share#v#ns", "readOnly": true,
                "nodeStageSecretRef": secret, "volumeAttributes": {"sharename": "share"}}),
        ),
        (
            json!({"cinder": {"volumeID": "id", "fsType": "ext4", "readOnly": true}}),
            json!({"driver": "cinder.csi.openstack.org", "volumeHandle": "id", "fsType": "ext4", "readOnly": true}),
        ),
        (
            json!({"portworxVolume": {"volumeID": "id", "fsType": "ext4"}}),
            json!({"driver": "pxd.portworx.com", "volumeHandle": "id", "fsType": "ext4"}),
        ),
        (
            json!({"vsphereVolume": {"volumePath": vmdk, "fsType": "ext4", "storagePolicyName": "gold"}}),
            json!({"driver": "csi.vsphere.vmware.com", "volumeHandle": vmdk, "fsType": "ext4",
                "volumeAttributes": {"storagepolicyname": "gold"}}),
        ),
        (
            json!({"rbd": {"monitors": ["10.70.53.126:6789"], "pool": "replicapool", "image": "kubernetes-dynamic-pvc-e4",
                "user": "admin", "fsType": "ext4", "secretRef": secret}}),
            json!({"driver": "rbd.csi.ceph.com", "fsType": "ext4",
                "volumeHandle": format!("mig_mons-{cluster}_image-e4_7265706c696361706f6f6c"),
                "nodeStageSecretRef": secret, "controllerExpandSecretRef": secret,
                "volumeAttributes": {"clusterID": cluster, "imageFeatures": "layering", "imageFormat": "",
                    "imageName": "kubernetes-dynamic-pvc-e4", "journalPool": "", "migration": "true",
                    "pool": "replicapool", "staticVolume": "true", "tryOtherMounters": "true"}}),
        ),
        (
            json!({"cephfs": {"monitors": ["10.70.53.126:6789"], "path": "/a", "user": "admin", "secretRef": secret}}),
            json!({"driver": "cephfs.csi.ceph.com", "volumeHandle": format!("mig_mons-{cluster}_path-2f61"),
                "nodeStageSecretRef": secret,
                "volumeAttributes": {"clusterID": cluster, "fsName": "cephfs", "monitors": "10.70.53.126:6789",
                    "rootPath": "/a", "staticVolume": "true", "adminId": "admin"}}),
        ),
    ]
}

fn in_tree(source: &Value) -> Value {
    let mut spec = source.clone();
    spec["accessModes"] = json!(["ReadWriteOnce"]);
    spec["mountOptions"] = json!(["noatime"]);
    let annotations = source.get("azureFile").map(|_| json!({"kubernetes.io/azure-file-resource-group": "rg"}));
    json!({"metadata": {"name": "v", "annotations": annotations}, "spec": spec})
}

#[test]
fn volumes_and_back() {
    for (source, wanted) in volumes() {
        let before = volume(&in_tree(&source));
        let there = volume_to_csi(&before).expect("translated").into_owned();
        let spec = there.spec.as_ref().expect("a spec");
        assert_eq!(to_value(&spec.csi).expect("json"), wanted, "{source}");
        assert_eq!(
            plugin_of_volume(before.spec.as_ref().expect("a spec")),
            plugin_of(&spec.csi.as_ref().expect("csi").driver)
        );
        assert_eq!(plugin_of_volume(spec), None, "the plugin's source is gone");
        assert_eq!(spec.mount_options, before.spec.as_ref().and_then(|s| s.mount_options.clone()));
        assert_eq!(volume_to_csi(&there).expect("it is one"), Cow::Borrowed(&there), "twice is once");

        let mut there = there;
        let mut wanted = before.clone();
        if source.get("vsphereVolume").is_some() {
            let path = spec_of(&wanted).vsphere_volume.as_ref().map(|v| v.volume_path.clone()).expect("a path");
            let csi = there.spec.as_mut().and_then(|s| s.csi.as_mut()).expect("csi");
            csi.volume_attributes.get_or_insert_default().insert("initialvolumefilepath".into(), path);
            // What the class said of policies is the driver's since.
            wanted.spec.as_mut().and_then(|s| s.vsphere_volume.as_mut()).expect("vsphere").storage_policy_name = None;
        }
        let back = volume_from_csi(&there).expect("translated").expect("an in-tree driver's");
        if source.get("rbd").is_some() {
            let notes = back.metadata.annotations.as_ref().expect("annotations");
            assert_eq!(notes["clusterID"], "b7f67366bb43f32e07d8a261a7840da9");
            let again = volume_to_csi(&back).expect("translated");
            let handle =
                |v: &PersistentVolume| v.spec.as_ref().and_then(|s| s.csi.as_ref()).map(|c| c.volume_handle.clone());
            assert_eq!(handle(&again), handle(&there), "what came back is the same disk");
            continue;
        }
        assert_eq!(back, wanted);
    }
    let other = volume(&json!({"spec": {"csi": {"driver": "example.com", "volumeHandle": "h"}}}));
    assert_eq!(volume_from_csi(&other), Ok(None));
    assert_eq!(*volume_to_csi(&other).expect("no change"), other);
}

fn spec_of(volume: &PersistentVolume) -> &PersistentVolumeSpec {
    volume.spec.as_ref().expect("a spec")
}

#[test]
fn what_a_driver_cannot_do_is_refused() {
    let handle = |driver: &str, handle: &str| json!({"csi": {"driver": driver, "volumeHandle": handle}});
    for (spec, word) in [
        (json!({"azureDisk": {"diskName": "d", "diskURI": "u", "kind": "Dedicated"}}), "Dedicated"),
        (json!({"azureFile": {"shareName": "s", "secretName": "n"}}), "secretNamespace"),
        (json!({"awsElasticBlockStore": {"volumeID": "aws://us-west-2a/0239"}}), "aws://ZONE/vol-ID"),
        (json!({"cephfs": {"monitors": ["m"], "secretFile": "/etc/key"}}), "secretRef"),
    ] {
        let error = volume_to_csi(&volume(&json!({"metadata": {"name": "v"}, "spec": spec}))).expect_err("refused");
        let text = error.to_string();
        assert!(text.contains(word) && text.contains("volume \"v\""), "{text}");
    }
    for (spec, word) in [
        (handle("disk.csi.azure.com", "x"), "resourceGroups"),
        (handle("file.csi.azure.com", "share"), "GROUP#ACCOUNT#SHARE"),
        (handle("pd.csi.storage.gke.io", "disk"), "projects/"),
        (handle("csi.vsphere.vmware.com", "id"), "initialvolumefilepath"),
        (handle("cephfs.csi.ceph.com", "id"), "monitors"),
        (
            json!({"csi": {"driver": "ebs.csi.aws.com", "volumeHandle": "v", "volumeAttributes": {"partition": "x"}}}),
            "\"x\"",
        ),
    ] {
        let error = volume_from_csi(&volume(&json!({"metadata": {"name": "v"}, "spec": spec}))).expect_err("refused");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn shares_by_handle_alone() {
    let share = |csi: Value| volume(&json!({"metadata": {"name": "v"}, "spec": {"csi": csi}}));
    let of = |csi: Value| {
        let back = volume_from_csi(&share(csi)).expect("translated").expect("a share");
        (to_value(&spec_of(&back).azure_file).expect("json"), back.metadata.annotations.unwrap_or_default())
    };
    let driver = "file.csi.azure.com";
    let (file, notes) = of(json!({"driver": driver, "volumeHandle": "rg#st#pvc-file-dynamic#diskname.vhd"}));
    assert_eq!(
        file,
        json!({"secretName": "azure-storage-account-st-secret", "shareName": "pvc-file-dynamic", "secretNamespace": "default"})
    );
    assert_eq!(notes["kubernetes.io/azure-file-resource-group"], "rg");
    let named = json!({"shareName": "share", "secretName": "s", "secretNamespace": "ns"});
    let (file, notes) = of(json!({"driver": driver, "volumeHandle": "rg#st#x", "volumeAttributes": named}));
    assert_eq!(file, named);
    assert!(notes.is_empty());
    let claimed = json!({"metadata": {"name": "v"}, "spec": {"claimRef": {"namespace": "ns"},
        "azureFile": {"shareName": "share", "secretName": "azure-storage-account-acc-secret"}}});
    let there = volume_to_csi(&volume(&claimed)).expect("translated").into_owned();
    assert_eq!(spec_of(&there).csi.as_ref().expect("csi").volume_handle, "#acc#share#v#ns");
}

/// Where volumes are: labels or affinity in, affinity out.
#[test]
fn topologies_to_drivers() {
    let (ga, beta) = (topology::ZONE, topology::BETA_ZONE);
    let (gce, aws) = ("topology.gke.io/zone", "topology.ebs.csi.aws.com/zone");
    let (vz, vr) = ("topology.csi.vmware.com/zone", "topology.csi.vmware.com/region");
    let disk = json!({"gcePersistentDisk": {"pdName": "d"}});
    let ebs = json!({"awsElasticBlockStore": {"volumeID": "vol01"}});
    let cinder = json!({"cinder": {"volumeID": "vol1"}});
    let vmdk = json!({"vsphereVolume": {"volumePath": "p"}});
    let none = json!(null);
    let table = [
        (&disk, json!({beta: "us-east1-a"}), none.clone(), affinity(&[&[(gce, &["us-east1-a"])]])),
        (
            &disk,
            json!({ga: "us-east1-a", topology::REGION: "us-east1"}),
            none.clone(),
            affinity(&[&[(gce, &["us-east1-a"])]]),
        ),
        (&disk, json!({}), none.clone(), none.clone()),
        (&disk, json!({}), affinity(&[&[(beta, &["us-east1-a"])]]), affinity(&[&[(gce, &["us-east1-a"])]])),
        (&disk, json!({}), affinity(&[&[(gce, &["us-east1-a"])]]), affinity(&[&[(gce, &["us-east1-a"])]])),
        (
            &disk,
            json!({beta: "us-east1-a"}),
            affinity(&[&[(beta, &["us-east1-b"])]]),
            affinity(&[&[(gce, &["us-east1-b"])]]),
        ),
        (&disk, json!({ga: "eu-w1-c__eu-w1-b"}), none.clone(), affinity(&[&[(gce, &["eu-w1-b", "eu-w1-c"])]])),
        (
            &disk,
            json!({}),
            affinity(&[&[(ga, &["eu-w1-f"])], &[(ga, &["eu-w1-g"])]]),
            affinity(&[&[(gce, &["eu-w1-f"])], &[(gce, &["eu-w1-g"])]]),
        ),
        (
            &disk,
            json!({ga: "us-east1-a"}),
            affinity(&[&[("rack", &["1"])]]),
            affinity(&[&[("rack", &["1"]), (gce, &["us-east1-a"])]]),
        ),
        (
            &disk,
            json!({}),
            affinity(&[&[(ga, &["us-east1-a"]), (beta, &["us-east1-b"])]]),
            affinity(&[&[(gce, &["us-east1-a"]), (beta, &["us-east1-b"])]]),
        ),
        (&ebs, json!({beta: "us-east-1a"}), none.clone(), affinity(&[&[(aws, &["us-east-1a"])]])),
        (
            &ebs,
            json!({}),
            affinity(&[&[(beta, &["us-east-2a"]), (topology::BETA_REGION, &["us-east-2"])]]),
            affinity(&[&[(aws, &["us-east-2a"])]]),
        ),
        (
            &cinder,
            json!({ga: "nova"}),
            none.clone(),
            affinity(&[&[("topology.cinder.csi.openstack.org/zone", &["nova"])]]),
        ),
        (&vmdk, json!({ga: "z1", topology::REGION: "r1"}), none.clone(), affinity(&[&[(vz, &["z1"]), (vr, &["r1"])]])),
        (
            &vmdk,
            json!({}),
            affinity(&[&[(beta, &["z1"]), (topology::BETA_REGION, &["r1"])]]),
            affinity(&[&[(vz, &["z1"]), (vr, &["r1"])]]),
        ),
        (&vmdk, json!({ga: ""}), none.clone(), none),
    ];
    for (source, labels, before, after) in table {
        let mut spec = source.clone();
        spec["nodeAffinity"] = before.clone();
        let made = volume(&json!({"metadata": {"name": "v", "labels": labels}, "spec": spec}));
        let there = volume_to_csi(&made).expect("translated");
        assert_eq!(to_value(&spec_of(&there).node_affinity).expect("json"), after, "{labels} {before}");
    }
}

#[test]
fn topologies_from_drivers() {
    let (zone, region) = (topology::ZONE, topology::REGION);
    let gce = |handle: &str| json!({"csi": {"driver": "pd.csi.storage.gke.io", "volumeHandle": handle}});
    let vsphere = json!({"csi": {"driver": "csi.vsphere.vmware.com", "volumeHandle": "id",
        "volumeAttributes": {"initialvolumefilepath": "p"}}});
    let cinder = json!({"csi": {"driver": "cinder.csi.openstack.org", "volumeHandle": "id"}});
    let table = [
        (
            gce("projects/p/zones/europe-west1-b/disks/d"),
            affinity(&[&[("topology.gke.io/zone", &["europe-west1-b"])]]),
            affinity(&[&[(zone, &["europe-west1-b"]), (region, &["europe-west1"])]]),
            json!({zone: "europe-west1-b", region: "europe-west1"}),
        ),
        (
            gce("projects/p/regions/europe-west1/disks/d"),
            affinity(&[&[("topology.gke.io/zone", &["europe-west1-c", "europe-west1-b"])]]),
            affinity(&[&[(zone, &["europe-west1-c", "europe-west1-b"]), (region, &["europe-west1"])]]),
            json!({zone: "europe-west1-b__europe-west1-c", region: "europe-west1"}),
        ),
        (gce("projects/p/zones/z/disks/d"), json!(null), json!(null), json!(null)),
        (
            vsphere,
            affinity(&[&[("topology.csi.vmware.com/zone", &["z1"]), ("topology.csi.vmware.com/region", &["r1"])]]),
            affinity(&[&[(zone, &["z1"]), (region, &["r1"])]]),
            json!({zone: "z1", region: "r1"}),
        ),
        (
            cinder,
            affinity(&[&[("topology.cinder.csi.openstack.org/zone", &["nova"])]]),
            affinity(&[&[(zone, &["nova"])]]),
            json!({zone: "nova"}),
        ),
    ];
    for (source, before, after, labels) in table {
        let mut spec = source.clone();
        spec["nodeAffinity"] = before;
        let back = volume_from_csi(&volume(&json!({"spec": spec}))).expect("translated").expect("a driver's");
        assert_eq!(to_value(&spec_of(&back).node_affinity).expect("json"), after, "{source}");
        assert_eq!(json!(back.metadata.labels), labels, "{source}");
    }
    let strange = json!({"spec": {"csi": gce("projects/p/zones/z/disks/d")["csi"],
        "nodeAffinity": affinity(&[&[("topology.gke.io/zone", &["moon"])]])}});
    let error = volume_from_csi(&volume(&strange)).expect_err("no region can be told");
    assert!(error.to_string().contains("\"moon\""), "{error}");
}

#[test]
fn disks_of_google() {
    let handle = |labels: Value| {
        let made = json!({"metadata": {"name": "v", "labels": labels}, "spec": {"gcePersistentDisk": {"pdName": "d"}}});
        let made = volume(&made);
        let there = volume_to_csi(&made).map_err(|e| e.to_string());
        there.map(|v| spec_of(&v).csi.as_ref().expect("csi").volume_handle.clone())
    };
    let (ga, beta) = (topology::ZONE, topology::BETA_ZONE);
    let zonal = Ok("projects/UNSPECIFIED/zones/us-east1-a/disks/d".to_owned());
    let regional = Ok("projects/UNSPECIFIED/regions/us-central1/disks/d".to_owned());
    for key in [ga, beta] {
        assert_eq!(handle(json!({key: "us-east1-a"})), zonal);
        assert_eq!(handle(json!({key: "us-central1-a__us-central1-c"})), regional);
    }
    assert!(handle(json!({ga: "us-central1-a__us-east1-c"})).is_err_and(|e| e.contains("several regions")));

    let modes = |given: &[&str]| {
        let made = json!({"spec": {"gcePersistentDisk": {"pdName": "d"}, "accessModes": given}});
        let made = volume(&made);
        let there = volume_to_csi(&made).expect("translated");
        there.into_owned().spec.and_then(|s| s.access_modes).expect("modes")
    };
    let (rwo, rox, rwx) = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany");
    assert_eq!(modes(&[rox]), [rox]);
    for given in [&[rwo][..], &[rwx], &[rox, rwo], &[rwo, rwx], &[rwx, rox], &[rwx, rwo, rox], &[]] {
        assert_eq!(modes(given), [rwo], "{given:?}");
    }
}

#[test]
fn handles_are_completed_by_the_node() {
    let node = "projects/bing/zones/us-central1-c/instances/boom";
    for (handle, node, wanted) in [
        ("projects/foo/zones/bar/disks/baz", node, Ok("projects/foo/zones/bar/disks/baz")),
        ("projects/foo/regions/us-central1/disks/baz", "x", Ok("projects/foo/regions/us-central1/disks/baz")),
        ("projects/UNSPECIFIED/zones/bar/disks/baz", node, Ok("projects/bing/zones/bar/disks/baz")),
        ("projects/UNSPECIFIED/zones/UNSPECIFIED/disks/baz", node, Ok("projects/bing/zones/us-central1-c/disks/baz")),
        ("projects/UNSPECIFIED/regions/UNSPECIFIED/disks/baz", node, Ok("projects/bing/regions/us-central1/disks/baz")),
        ("projects/UNSPECIFIED/regions/us-west1/disks/baz", node, Ok("projects/bing/regions/us-west1/disks/baz")),
        ("foo", node, Err("its handle")),
        ("projects/UNSPECIFIED/regions/us-west1/disks/baz", "foo", Err("node \"foo\"")),
        ("projects/UNSPECIFIED/moons/us-west1/disks/baz", node, Err("moons")),
    ] {
        match (repair_handle("pd.csi.storage.gke.io", handle, node), wanted) {
            (Ok(got), Ok(wanted)) => assert_eq!(got, wanted),
            (Err(error), Err(word)) => assert!(error.to_string().contains(word), "{error}"),
            (got, wanted) => panic!("{handle}: {got:?} instead of {wanted:?}"),
        }
    }
    for driver in ["ebs.csi.aws.com", "example.com"] {
        assert_eq!(repair_handle(driver, "vol-1", node), Ok("vol-1".to_owned()));
    }
}

/// What a pod names itself: the volume's name, which is the same for all pods with the same disk, modes and source.
#[test]
fn volumes_that_pods_name() {
    let secret = json!({"name": "s", "namespace": "ns"});
    let cluster = "b7f67366bb43f32e07d8a261a7840da9";
    let table = [
        (
            json!({"gcePersistentDisk": {"pdName": "d", "readOnly": true, "partition": 2}}),
            "pd.csi.storage.gke.io-d",
            "ReadOnlyMany",
            json!({"driver": "pd.csi.storage.gke.io", "volumeHandle": "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d",
                "readOnly": true, "volumeAttributes": {"partition": "2"}}),
        ),
        (
            json!({"awsElasticBlockStore": {"volumeID": "aws://us-west-2a/vol-1"}}),
            "ebs.csi.aws.com-vol-1",
            "ReadWriteOnce",
            json!({"driver": "ebs.csi.aws.com", "volumeHandle": "vol-1", "volumeAttributes": {"partition": "0"}}),
        ),
        (
            json!({"azureDisk": {"diskName": "d", "diskURI": "uri"}}),
            "uri",
            "ReadWriteOnce",
            json!({"driver": "disk.csi.azure.com", "volumeHandle": "uri", "volumeAttributes": {"kind": "Managed"}}),
        ),
        (
            json!({"azureFile": {"shareName": "share", "secretName": "s"}}),
            "#s#share#x#ns",
            "ReadWriteMany",
            json!({"driver": "file.csi.azure.com", "volumeHandle": "#s#share#x#ns", "nodeStageSecretRef": secret,
                "volumeAttributes": {"sharename": "share"}}),
        ),
        (
            json!({"cinder": {"volumeID": "id"}}),
            "cinder.csi.openstack.org-id",
            "ReadWriteOnce",
            json!({"driver": "cinder.csi.openstack.org", "volumeHandle": "id"}),
        ),
        (
            json!({"vsphereVolume": {"volumePath": "p", "storagePolicyName": "gold"}}),
            "csi.vsphere.vmware.com-p",
            "ReadWriteOnce",
            json!({"driver": "csi.vsphere.vmware.com", "volumeHandle": "p", "volumeAttributes": {"storagepolicyname": "gold"}}),
        ),
        (
            json!({"portworxVolume": {"volumeID": "id", "readOnly": true}}),
            "pxd.portworx.com-id",
            "ReadOnlyMany",
            json!({"driver": "pxd.portworx.com", "volumeHandle": "id"}),
        ),
        (
            json!({"rbd": {"monitors": ["10.70.53.126:6789"], "image": "i", "secretRef": {"name": "s"}}}),
            "rbd.csi.ceph.com-i",
            "ReadWriteOnce",
            json!({"driver": "rbd.csi.ceph.com", "volumeHandle": "i", "nodeStageSecretRef": secret,
                "controllerExpandSecretRef": secret, "volumeAttributes": {"clusterID": cluster, "imageFeatures": "layering",
                "pool": "rbd", "staticVolume": "true"}}),
        ),
        (
            json!({"cephfs": {"monitors": ["10.70.53.126:6789"], "secretRef": {"name": "s"}}}),
            "cephfs.csi.ceph.com-mig_mons-b7f67366bb43f32e07d8a261a7840da9_path-2f",
            "ReadWriteMany",
            json!({"driver": "cephfs.csi.ceph.com", "volumeHandle": format!("mig_mons-{cluster}_path-2f"),
                "nodeStageSecretRef": secret, "volumeAttributes": {"clusterID": cluster, "fsName": "cephfs",
                "monitors": "10.70.53.126:6789", "rootPath": "/", "staticVolume": "true"}}),
        ),
    ];
    for (mut source, name, mode, csi) in table {
        source["name"] = json!("x");
        let of: Volume = from_value(source.clone()).expect("a volume");
        let made = inline_to_csi(&of, "ns").expect("translated").expect("an in-tree one");
        assert_eq!(made.metadata.name.as_deref(), Some(name));
        let spec = spec_of(&made);
        assert_eq!(spec.access_modes.as_deref(), Some(&[mode.to_owned()][..]));
        assert_eq!(spec.volume_mode.as_deref(), Some("Filesystem"));
        assert_eq!(to_value(&spec.csi).expect("json"), csi, "{source}");
        assert_eq!(plugin_of_inline(&of), plugin_of(&spec.csi.as_ref().expect("csi").driver));
    }
    let other: Volume = from_value(json!({"name": "x", "emptyDir": {}})).expect("a volume");
    assert_eq!(inline_to_csi(&other, "ns"), Ok(None));
    let blob: Volume =
        from_value(json!({"name": "x", "azureDisk": {"diskName": "d", "diskURI": "u", "kind": "Shared"}}))
            .expect("one");
    assert!(inline_to_csi(&blob, "ns").is_err());
}

proptest! {
    /// Volumes with whatever people call their disks and zones come back with what they had, and mean the same disk.
    #[test]
    fn there_and_back(
        which in 0..4_usize,
        id in "[a-z0-9-]{1,20}",
        letters in proptest::sample::subsequence(vec!["a", "b", "c"], 0..=3),
        old in any::<bool>(),
        as_affinity in any::<bool>(),
        fs_type in proptest::option::of("ext4|xfs"),
        partition in 0..9_i32,
        read_only in any::<bool>(),
    ) {
        let zones: Vec<String> = letters.iter().map(|l| if which == 1 { format!("us-west-2{l}") } else { format!("us-west2-{l}") }).collect();
        let key = if old { topology::BETA_ZONE } else { topology::ZONE };
        let mut source = [
            json!({"gcePersistentDisk": {"pdName": id, "partition": partition}}),
            json!({"awsElasticBlockStore": {"volumeID": format!("vol-{id}"), "partition": partition}}),
            json!({"cinder": {"volumeID": id}}),
            json!({"portworxVolume": {"volumeID": id}}),
        ][which].clone();
        let inner = source.as_object_mut().and_then(|o| o.values_mut().next()).expect("a source");
        if partition == 0 {
            inner.as_object_mut().expect("an object").remove("partition");
        }
        if let Some(kind) = fs_type {
            inner["fsType"] = json!(kind);
        }
        // The plugin's driver for this one is never told.
        if which != 3 {
            inner["readOnly"] = json!(read_only);
        }
        source["accessModes"] = json!([if read_only { "ReadOnlyMany" } else { "ReadWriteOnce" }]);
        let mut metadata = json!({"name": "v"});
        if !zones.is_empty() && which != 3 {
            match as_affinity {
                true => source["nodeAffinity"] = affinity(&[&[(key, &zones.iter().map(String::as_str).collect::<Vec<_>>())]]),
                false => metadata["labels"] = json!({key: zones.join("__")}),
            }
        }
        let before = volume(&json!({"metadata": metadata, "spec": source}));
        let there = volume_to_csi(&before).expect("translated").into_owned();
        let back = volume_from_csi(&there).expect("translated").expect("an in-tree driver's");
        let mut expected = before.clone();
        // What is told twice afterwards: affinity and labels.
        expected.metadata.labels.clone_from(&back.metadata.labels);
        expected.spec.as_mut().expect("a spec").node_affinity.clone_from(&spec_of(&back).node_affinity);
        prop_assert_eq!(&back, &expected);
        for (name, value) in before.metadata.labels.iter().flatten() {
            prop_assert_eq!(topology::label(&back, name), Some(&**value));
        }
        let again = volume_to_csi(&back).expect("translated");
        let places = |v: &PersistentVolume| {
            let of = |e: &k8s_openapi::api::core::v1::NodeSelectorRequirement| (e.key.clone(), e.values.clone());
            let terms = spec_of(v).node_affinity.iter().flat_map(|a| a.required.iter().flat_map(|r| r.node_selector_terms.clone()));
            terms.flat_map(|t| t.match_expressions.unwrap_or_default()).map(|e| of(&e)).filter(|(k, _)| k.contains("csi") || k.contains("gke")).collect::<Vec<_>>()
        };
        prop_assert_eq!(places(&again), places(&there));
    }
}
