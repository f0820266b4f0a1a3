//! `holdfast volume snapshot` and `restore`: objects, and waiting for what becomes of them.
use std::time::{Duration, Instant};

use api::snapshot::{GROUP, VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use serde_json::{Value, json};

use super::{Named, drivers::Place, object};
use crate::{
    client::{Error, is_not_found},
    errors::{said, say},
};

const POLL_EVERY: Duration = Duration::from_millis(100);

fn snapshots(namespace: &str) -> String {
    format!("/apis/{GROUP}/v1/namespaces/{namespace}/volumesnapshots")
}

fn cluster(plural: &str) -> String {
    format!("/apis/{GROUP}/v1/{plural}")
}

/// Takes a snapshot of a claim and waits for it.
pub async fn take(
    place: &Place,
    claim: &Named,
    name: Option<String>,
    class: Option<String>,
    timeout: u64,
) -> Result<(), Error> {
    let found = existing_claim(place, claim).await?;
    let class = match class {
        Some(class) => class,
        None => class_of(place, claim, &found).await?,
    };
    let now = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S%3f");
    let name = name.unwrap_or_else(|| format!("{}-{now}", claim.name));
    let wanted = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "VolumeSnapshot",
        "metadata": { "namespace": claim.namespace, "name": name },
        "spec": { "volumeSnapshotClassName": class, "source": { "persistentVolumeClaimName": claim.name } },
    });
    place.create(&snapshots(&claim.namespace), &wanted).await?;
    let path = format!("{}/{name}", snapshots(&claim.namespace));
    let started = Instant::now();
    loop {
        let snapshot: Option<VolumeSnapshot> = place.find(&path).await?;
        let Some(snapshot) = snapshot else {
            return said(format!("snapshot {name} was deleted while it was waited for"));
        };
        if snapshot.is_ready() {
            return say(name);
        }
        if started.elapsed().as_secs() >= timeout {
            let error = snapshot.status.and_then(|s| s.error?.message);
            let error = error.unwrap_or_else(|| "nothing was said about it".to_owned());
            return said(format!(
                "snapshot {name} is not ready after {timeout} s: {error}; it goes on; `holdfast why vs/{name} -n {}` says more",
                claim.namespace
            ));
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

async fn existing_claim(place: &Place, claim: &Named) -> Result<PersistentVolumeClaim, Error> {
    match place.find(&object::claim_path(claim)).await? {
        Some(found) => Ok(found),
        None => said(format!("there is no claim {claim}; `holdfast volume list` shows those that there are")),
    }
}

/// The class of snapshots for a claim's driver; made if there is none.
async fn class_of(place: &Place, named: &Named, claim: &PersistentVolumeClaim) -> Result<String, Error> {
    let name = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|v| !v.is_empty());
    let volume: Option<PersistentVolume> = match &name {
        Some(name) => place.find(&object::volume_path(name)).await?,
        None => None,
    };
    let Some(volume) = volume else {
        return said(format!("claim {named} has no volume yet, so there is nothing to take a snapshot of"));
    };
    let Some((driver, _)) = object::source(&volume) else {
        let name = name.unwrap_or_default();
        return said(format!("claim {named} has volume {name}, which is of no CSI driver: only those make snapshots"));
    };
    let classes: Vec<VolumeSnapshotClass> = match place.list(&cluster("volumesnapshotclasses")).await {
        Err(error) if is_not_found(&error) => {
            return said("this cluster does not know VolumeSnapshots; install the CRDs of snapshot.storage.k8s.io");
        }
        other => other?,
    };
    let mine = || classes.iter().filter(|c| c.driver == driver);
    if let Some(class) = mine().find(|c| c.is_default()).or_else(|| mine().next()) {
        return Ok(class.metadata.name.clone().unwrap_or_default());
    }
    let class = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "VolumeSnapshotClass",
        "metadata": { "name": driver }, "driver": driver, "deletionPolicy": "Delete",
    });
    place.create(&cluster("volumesnapshotclasses"), &class).await?;
    eprintln!("VolumeSnapshotClass {driver} made, as there was none for this driver.");
    Ok(driver)
}

/// A claim that is to begin as a snapshot.
pub struct NewClaim {
    pub name: String,
    pub class: Option<String>,
    pub size: Option<String>,
}

/// Makes a claim from a snapshot, and waits for its volume where it is made at once.
pub async fn restore(place: &Place, named: &Named, new: &NewClaim, timeout: u64) -> Result<(), Error> {
    let path = format!("{}/{}", snapshots(&named.namespace), named.name);
    let Some(snapshot): Option<VolumeSnapshot> = place.find(&path).await? else {
        return said(format!("there is no VolumeSnapshot {named}"));
    };
    let claim = Named { namespace: named.namespace.clone(), name: new.name.clone() };
    let wanted = wanted(place, &snapshot, &claim, new).await?;
    let collection = format!("/api/v1/namespaces/{}/persistentvolumeclaims", claim.namespace);
    let made = place.create(&collection, &wanted).await?;
    let class = made["spec"]["storageClassName"].as_str().unwrap_or_default().to_owned();
    let late = match class.as_str() {
        "" => false,
        class => {
            let found: Option<StorageClass> = place.find(&format!("{}/{class}", object::CLASSES)).await?;
            found.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
        }
    };
    if late {
        eprintln!("The volume of claim {claim} is made when the first pod uses it: class {class} waits for that.");
        return say(&new.name);
    }
    let started = Instant::now();
    loop {
        let now = existing_claim(place, &claim).await?;
        if now.status.and_then(|s| s.phase).as_deref() == Some("Bound") {
            return say(&new.name);
        }
        if started.elapsed().as_secs() >= timeout {
            return said(format!(
                "claim {claim} is not bound after {timeout} s; it goes on; `holdfast why pvc/{} -n {}` says more",
                claim.name, claim.namespace
            ));
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

/// The claim to make: like that of which the snapshot was taken, as far as that is known.
async fn wanted(place: &Place, snapshot: &VolumeSnapshot, claim: &Named, new: &NewClaim) -> Result<Value, Error> {
    let from = snapshot.claim_name().map(|name| Named { namespace: claim.namespace.clone(), name: name.to_owned() });
    let origin: Option<PersistentVolumeClaim> = match &from {
        Some(from) => place.find(&object::claim_path(from)).await?,
        None => None,
    };
    let origin = origin.and_then(|c| c.spec).unwrap_or_default();
    let content: Option<VolumeSnapshotContent> = match snapshot.bound_content() {
        Some(name) => place.find(&format!("{}/{name}", cluster("volumesnapshotcontents"))).await?,
        None => None,
    };
    let mode = content.and_then(|c| c.spec.source_volume_mode).or(origin.volume_mode);
    let size = new.size.clone().or_else(|| Some(snapshot.status.as_ref()?.restore_size.clone()?.0));
    let Some(size) = size else {
        let name = snapshot.metadata.name.as_deref().unwrap_or_default();
        return said(format!(
            "snapshot {name} does not say how large it is yet; wait until it is ready, or give --size"
        ));
    };
    let mut spec = json!({
        "accessModes": origin.access_modes.unwrap_or_else(|| vec!["ReadWriteOnce".to_owned()]),
        "volumeMode": mode.unwrap_or_else(|| "Filesystem".to_owned()),
        "resources": { "requests": { "storage": size } },
        "dataSource": { "apiGroup": GROUP, "kind": "VolumeSnapshot", "name": snapshot.metadata.name },
    });
    if let Some(class) = new.class.clone().or(origin.storage_class_name) {
        spec["storageClassName"] = json!(class);
    }
    Ok(json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": { "namespace": claim.namespace, "name": claim.name },
        "spec": spec,
    }))
}
