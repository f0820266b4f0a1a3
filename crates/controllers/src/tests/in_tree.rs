//! Classes and volumes by in-tree names, made and deleted by the drivers that took over.
use std::collections::BTreeMap;

use csi::{ControllerRpcType, CreateVolumeResponse, Facts, PluginServiceType, Topology};

use super::*;
use crate::{
    call::{Answer, Request},
    provision, reclaim,
};

const DRIVER: &str = "pd.csi.storage.gke.io";

/// A cluster as the driver's host sees it.
fn with_driver(cluster: &mut Cluster) -> Context {
    let objects = cluster.objects.clone();
    cluster.refresh(&objects);
    let facts = Facts {
        name: DRIVER.into(),
        services: [PluginServiceType::VolumeAccessibilityConstraints].into(),
        controller: [ControllerRpcType::CreateDeleteVolume].into(),
        ..Facts::default()
    };
    cluster.world.set_drivers([(DRIVER.to_owned(), Arc::new(facts))].into());
    Context { now: cluster.now, root_ca: None }
}

fn without_driver(cluster: &mut Cluster) {
    cluster.world.set_drivers(BTreeMap::new());
    cluster.settle();
}

fn asked(decision: Decision) -> crate::Call {
    match decision.action {
        Some(Action::Call(call)) => *call,
        other => panic!("no call: {other:?} {:?}", decision.notes),
    }
}

#[test]
fn a_volume_of_an_in_tree_class_is_an_in_tree_volume() {
    let mut cluster = Cluster::new();
    let mut fast = class("fast", "kubernetes.io/gce-pd", false);
    fast["parameters"] = json!({ "type": "pd-ssd", "zone": "europe-west1-b", "fstype": "xfs" });
    cluster.make(fast);
    let claim = cluster.make(pvc("c", "100Mi", json!({ "spec": { "storageClassName": "fast" } })));
    cluster.settle();
    let told = cluster.noted("ExternalProvisioning").concat();
    assert!(told.ends_with("`holdfast up --stand-in gce-pd` stands in for it."), "{told}");

    let context = with_driver(&mut cluster);
    let call = asked(provision::decide(&claim, &cluster.world, &context));
    let Request::CreateVolume(request) = &call.request else { panic!("{call:?}") };
    assert_eq!((&*call.driver, request.parameters.get("type").map(String::as_str)), (DRIVER, Some("pd-ssd")));
    let told =
        request.parameters.iter().filter_map(|(key, value)| Some((key.strip_prefix("csi.storage.k8s.io/")?, &**value)));
    let of_claim = [("pv/name", &*request.name), ("pvc/name", "c"), ("pvc/namespace", "ns")];
    assert_eq!(told.collect::<Vec<_>>(), of_claim);
    assert_eq!(request.parameters.len(), 1 + of_claim.len(), "{:?}", request.parameters);
    let place = Topology { segments: [("topology.gke.io/zone".to_owned(), "europe-west1-b".to_owned())].into() };
    assert_eq!(request.accessibility_requirements.as_ref().map(|r| &r.requisite[..]), Some(&[place.clone()][..]));

    let made = csi::Volume {
        volume_id: format!("projects/p/zones/europe-west1-b/disks/{}", request.name),
        capacity_bytes: 10 << 30,
        accessible_topology: vec![place],
        volume_context: [("holdfast.dev/stand-in".to_owned(), "gce-pd".to_owned())].into(),
        ..Default::default()
    };
    let name = request.name.clone();
    let answer = Ok(Answer::CreateVolume(Box::new(CreateVolumeResponse { volume: Some(made) })));
    let heard = provision::heard(&claim, &cluster.world, &context, &call, &answer);
    let Some(Action::Create { key, object }) = heard.action else { panic!("{heard:?}") };
    assert_eq!(object["spec"]["gcePersistentDisk"], json!({ "pdName": name, "fsType": "xfs" }));
    assert_eq!(object["spec"]["csi"], Value::Null);
    let notes = &object["metadata"]["annotations"];
    assert_eq!(notes["pv.kubernetes.io/provisioned-by"], "kubernetes.io/gce-pd");
    assert_eq!(notes["pv.kubernetes.io/migrated-to"], DRIVER);
    assert_eq!(notes["holdfast.dev/stand-in"], "gce-pd");
    let labels = &object["metadata"]["labels"];
    assert_eq!(labels["topology.kubernetes.io/zone"], "europe-west1-b");
    assert_eq!(labels["topology.kubernetes.io/region"], "europe-west1");

    // It is bound, and when its claim goes, the driver deletes what it made.
    cluster.make(object);
    without_driver(&mut cluster);
    assert_eq!((cluster.phase(&claim), cluster.phase(&key)), ("Bound", "Bound"));
    cluster.delete(&claim, None);
    cluster.settle();
    assert_eq!(cluster.phase(&key), "Released");
    let context = with_driver(&mut cluster);
    let kept = reclaim::decide(&key, &cluster.world, &context).action.expect("the finalizer");
    assert!(cluster.perform(kept));
    let context = with_driver(&mut cluster);
    let call = asked(reclaim::decide(&key, &cluster.world, &context));
    let Request::DeleteVolume(request) = &call.request else { panic!("{call:?}") };
    assert_eq!(request.volume_id, format!("projects/UNSPECIFIED/zones/europe-west1-b/disks/{name}"));
}

#[test]
fn a_class_that_cannot_be_translated_says_why() {
    let mut cluster = Cluster::new();
    let mut both = class("both", "kubernetes.io/gce-pd", false);
    both["parameters"] = json!({ "zone": "z" });
    both["allowedTopologies"] =
        json!([{ "matchLabelExpressions": [{ "key": "topology.gke.io/zone", "values": ["z"] }] }]);
    cluster.make(both);
    let claim = cluster.make(pvc("c", "1Gi", json!({ "spec": { "storageClassName": "both" } })));
    cluster.settle();
    let context = with_driver(&mut cluster);
    let decision = provision::decide(&claim, &cluster.world, &context);
    assert!(decision.action.is_none(), "{decision:?}");
    let note = &decision.notes[0];
    assert!(note.reason == "ProvisioningFailed" && note.message.contains("allowedTopologies"), "{note:?}");
}

#[test]
fn a_disk_that_a_pod_names_itself_is_attached_while_it_is_used() {
    let mut cluster = Cluster::new();
    let machine = cluster.make(node("n", json!({})));
    cluster.make(node("m", json!({})));
    let own = |name: &str, node: &str, disk: Value| {
        pod(name, json!({ "spec": { "nodeName": node, "volumes": [{ "name": "d", "gcePersistentDisk": disk }] } }))
    };
    let first = cluster.make(own("a", "n", json!({ "pdName": "d" })));
    let second = cluster.make(own("b", "n", json!({ "pdName": "d" })));
    let elsewhere = cluster.make(own("c", "m", json!({ "pdName": "d" })));
    cluster.settle();
    let attachments = |cluster: &Cluster| -> Vec<Value> {
        cluster.objects.iter().filter(|(k, _)| k.kind == "VolumeAttachment").map(|(_, o)| o["spec"].clone()).collect()
    };
    let all = attachments(&cluster);
    assert_eq!(all.len(), 1, "one node at a time: {all:?}");
    let handle = "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d";
    assert_eq!((&all[0]["attacher"], &all[0]["nodeName"]), (&json!(DRIVER), &json!("n")));
    assert_eq!(all[0]["source"]["inlineVolumeSpec"]["csi"]["volumeHandle"], handle);
    let in_use = json!({ "status": { "volumesInUse": [format!("kubernetes.io/csi/{DRIVER}^{handle}")] } });
    cluster.edit(&machine, in_use);
    cluster.delete(&first, None);
    cluster.delete(&second, None);
    cluster.settle();
    assert_eq!(attachments(&cluster)[0]["nodeName"], "n", "its node still has it");
    cluster.edit(&machine, json!({ "status": { "volumesInUse": null } }));
    cluster.settle();
    let all = attachments(&cluster);
    assert_eq!((all.len(), &all[0]["nodeName"]), (1, &json!("m")), "the next one's turn");
    cluster.delete(&elsewhere, None);
    cluster.make(json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": { "name": "ebs.csi.aws.com" },
        "spec": { "attachRequired": false },
    }));
    let disk = json!({ "name": "d", "awsElasticBlockStore": { "volumeID": "vol-1" } });
    cluster.make(pod("free", json!({ "spec": { "nodeName": "n", "volumes": [disk] } })));
    cluster.settle();
    assert_eq!(attachments(&cluster), Vec::<Value>::new());
}

#[test]
fn an_in_tree_volume_grows_by_its_driver() {
    let mut cluster = Cluster::new();
    let volume =
        cluster.make(pv("v", "1Gi", json!({ "spec": { "hostPath": null, "gcePersistentDisk": { "pdName": "d" } } })));
    let claim = cluster.make(pvc("c", "1Gi", json!({ "spec": { "volumeName": "v" } })));
    cluster.settle();
    assert_eq!(cluster.phase(&volume), "Bound");
    cluster.edit(&claim, json!({ "spec": { "resources": { "requests": { "storage": "2Gi" } } } }));
    let objects = cluster.objects.clone();
    cluster.refresh(&objects);
    let facts = Facts { name: DRIVER.into(), controller: [ControllerRpcType::ExpandVolume].into(), ..Facts::default() };
    cluster.world.set_drivers([(DRIVER.to_owned(), Arc::new(facts))].into());
    let context = Context { now: cluster.now, root_ca: None };
    let begun = crate::expand::decide(&claim, &cluster.world, &context).action.expect("says so first");
    assert!(cluster.perform(begun));
    let objects = cluster.objects.clone();
    cluster.refresh(&objects);
    let call = asked(crate::expand::decide(&claim, &cluster.world, &context));
    let Request::ControllerExpandVolume(request) = &call.request else { panic!("{call:?}") };
    assert_eq!(request.volume_id, "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d");
}
