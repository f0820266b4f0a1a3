//! PersistentVolumes: whose they are, and making one for a volume that has none.
use csi::{ControllerGetVolumeRequest, Topology};
use driver::{
    admin::Kept,
    stand_in::{FACES, Face},
};
use k8s_openapi::api::{core::v1::PersistentVolume, storage::v1::StorageClass};
use serde_json::{Value, json};

use super::{
    Named,
    drivers::{Local, Place},
    quantity,
};
use crate::{cli::volume::VolumeObject, client::Error, errors::said};

pub const VOLUMES: &str = "/api/v1/persistentvolumes";
pub const CLAIMS: &str = "/api/v1/persistentvolumeclaims";
pub const CLASSES: &str = "/apis/storage.k8s.io/v1/storageclasses";
const IS_DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
/// Begins what our drivers say of a volume to people.
const FOR_PEOPLE: &str = "holdfast.dev/";

/// Where a volume is.
pub fn volume_path(name: &str) -> String {
    format!("{VOLUMES}/{name}")
}

/// Where a claim is.
pub fn claim_path(claim: &Named) -> String {
    format!("{}/{}", claims_path(&claim.namespace), claim.name)
}

fn claims_path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims")
}

/// Driver and handle of a volume; of one by an in-tree name, as its CSI driver has it.
pub fn source(volume: &PersistentVolume) -> Option<(String, String)> {
    let volume = in_tree::volume_to_csi(volume).ok()?;
    let csi = volume.spec.as_ref()?.csi.as_ref()?;
    Some((csi.driver.clone(), csi.volume_handle.clone()))
}

/// Whether it is ours, or a cloud's for which we stand in.
pub fn is_ours(driver: &str) -> bool {
    driver == driver::NAME || face(driver).is_some()
}

fn face(driver: &str) -> Option<&'static Face> {
    let faces: &'static [Face] = &FACES;
    faces.iter().find(|f| f.driver == driver)
}

/// Whether a volume that a driver keeps is what an object calls so.
pub fn is_same(driver: &str, kept: &Kept, asked: &str) -> bool {
    kept.handle == asked || face(driver).is_some_and(|face| (face.same)(&kept.handle, asked))
}

/// The name of an object for a volume: the handle, or what of a cloud's handle can be one.
pub fn name_for(handle: &str) -> String {
    let last = handle.rsplit('/').next().unwrap_or(handle).trim_end_matches(".vmdk").to_ascii_lowercase();
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let name: String = last.chars().map(|c| if good(c) { c } else { '-' }).collect();
    name.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

/// The object that there is for a volume.
pub async fn existing(place: &Place, driver: &str, kept: &Kept) -> Result<Option<PersistentVolume>, Error> {
    let all: Vec<PersistentVolume> = place.list(VOLUMES).await?;
    Ok(all.into_iter().find(|v| source(v).is_some_and(|(d, handle)| d == driver && is_same(driver, kept, &handle))))
}

/// The class that a volume of a driver gets where nobody says: the default one, if it is of that driver.
async fn class(place: &Place, driver: &str) -> Result<String, Error> {
    let mut classes: Vec<StorageClass> = place.list(CLASSES).await?;
    classes.retain(|c| in_tree::driver_of(&c.provisioner).unwrap_or(&c.provisioner) == driver);
    let is_default =
        |c: &&StorageClass| c.metadata.annotations.iter().flatten().any(|(k, v)| k == IS_DEFAULT && v == "true");
    let chosen = classes.iter().find(is_default).or_else(|| classes.first());
    Ok(chosen.and_then(|c| c.metadata.name.clone()).unwrap_or_default())
}

/// Nodes that have all labels of one of these places.
fn affinity(places: &[Topology]) -> Value {
    let expression = |(key, value): (&String, &String)| json!({ "key": key, "operator": "In", "values": [value] });
    let term =
        |place: &Topology| json!({ "matchExpressions": place.segments.iter().map(expression).collect::<Vec<_>>() });
    let terms: Vec<Value> = places.iter().filter(|p| !p.segments.is_empty()).map(term).collect();
    if terms.is_empty() { Value::Null } else { json!({ "required": { "nodeSelectorTerms": terms } }) }
}

/// Makes the PersistentVolume `name` for a volume that its driver keeps, policy Retain, for a claim if there is one.
pub async fn make(
    place: &Place,
    driver: &Local,
    kept: &Kept,
    name: &str,
    claim: Option<&Named>,
    asked: &VolumeObject,
) -> Result<Value, Error> {
    let request = ControllerGetVolumeRequest { volume_id: kept.handle.clone() };
    let got = driver.controller.controller_get_volume(request).await.map_err(|s| driver.refused(&s))?;
    let volume = got.volume.unwrap_or_default();
    let class = match &asked.class {
        Some(class) => class.clone(),
        None => class(place, &driver.name).await?,
    };
    let modes: Vec<&str> = match (&asked.modes[..], &kept.modes[..]) {
        ([], []) => vec!["ReadWriteOnce"],
        ([], made_for) => made_for.iter().map(String::as_str).collect(),
        (asked, _) => asked.iter().map(String::as_str).collect(),
    };
    let mut annotations = json!({ "pv.kubernetes.io/provisioned-by": driver.name });
    for (key, value) in volume.volume_context.iter().filter(|(key, _)| key.starts_with(FOR_PEOPLE)) {
        annotations[key] = json!(value);
    }
    let mut source = json!({ "driver": driver.name, "volumeHandle": volume.volume_id });
    if !kept.filesystem.is_empty() {
        source["fsType"] = json!(kept.filesystem);
    }
    if !volume.volume_context.is_empty() {
        source["volumeAttributes"] = json!(volume.volume_context);
    }
    let mut object = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": { "name": name, "annotations": annotations },
        "spec": {
            "capacity": { "storage": quantity(kept.bytes) },
            "accessModes": modes,
            "volumeMode": if kept.filesystem.is_empty() { "Block" } else { "Filesystem" },
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": class,
            "csi": source,
        },
    });
    let affinity = affinity(&volume.accessible_topology);
    if !affinity.is_null() {
        object["spec"]["nodeAffinity"] = affinity;
    }
    if let Some(Named { namespace, name }) = claim {
        object["spec"]["claimRef"] =
            json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": name });
    }
    place.create(VOLUMES, &object).await
}

/// Makes the claim for which a volume is kept.
pub async fn make_claim(place: &Place, volume: &Value, claim: &Named) -> Result<(), Error> {
    let spec = &volume["spec"];
    let object = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": { "namespace": claim.namespace, "name": claim.name },
        "spec": {
            "accessModes": spec["accessModes"],
            "volumeMode": spec["volumeMode"],
            "storageClassName": spec["storageClassName"],
            "volumeName": volume["metadata"]["name"],
            "resources": { "requests": { "storage": spec["capacity"]["storage"] } },
        },
    });
    place.create(&claims_path(&claim.namespace), &object).await.map(drop)
}

/// Fails where somebody has that name.
pub async fn is_free(place: &Place, kind: &str, path: &str) -> Result<(), Error> {
    match place.find::<Value>(path).await? {
        None => Ok(()),
        Some(object) => {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            said(format!("there is a {kind} {name:?} already; choose another name, or delete that one"))
        }
    }
}

#[test]
fn objects_are_called_after_their_volumes() {
    for (handle, name) in [
        ("pvc-0c56", "pvc-0c56"),
        ("projects/holdfast/zones/z/disks/data-1", "data-1"),
        ("[holdfast] volumes/Data_1.vmdk", "data-1"),
        ("vol-0123", "vol-0123"),
    ] {
        assert_eq!(name_for(handle), name);
    }
}

#[test]
fn a_volume_without_a_place_is_everywhere() {
    assert_eq!(affinity(&[]), Value::Null);
    let place = Topology { segments: [("zone".to_owned(), "z".to_owned())].into() };
    let term = &affinity(&[place])["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
    assert_eq!(*term, json!({ "key": "zone", "operator": "In", "values": ["z"] }));
}
