//! `--stand-in`: drivers of clouds that this machine plays.
use std::{collections::BTreeMap, fs, str::FromStr, sync::Arc};

use base::Layout;
use driver::stand_in::{FACES, Face, LABEL, StandIn};
use k8s_openapi::api::storage::v1::CSIDriver;
use kube::api::{Api, DeleteParams, ListParams};
use pool::{Pool, PoolError};
use serde_json::json;
use sys::RealSys;

use super::drivers::{Brought, made};
use crate::{
    client::Error,
    errors::{Doing, said},
};

/// A cloud's driver, and the zone that this machine is in there.
#[derive(Clone)]
pub struct Wanted {
    pub face: &'static Face,
    pub zone: String,
}

impl FromStr for Wanted {
    type Err = String;

    /// `gce-pd`, or `gce-pd=us-east1-b`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (word, zone) = text.split_once('=').map_or((text, None), |(word, zone)| (word, Some(zone)));
        let face = face(word)?;
        let zone = zone.unwrap_or(face.default_zone);
        let good = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        // It becomes the value of a label of the node.
        let edge = |c: char| c.is_ascii_alphanumeric();
        let fits = zone.len() <= 63 && zone.chars().all(good) && zone.starts_with(edge) && zone.ends_with(edge);
        if !fits {
            return Err(format!("zone {zone:?} is none; write for example {word}={}", face.default_zone));
        }
        Ok(Self { face, zone: zone.to_owned() })
    }
}

/// The cloud of a word.
pub fn face(word: &str) -> Result<&'static Face, String> {
    Face::of(word).ok_or_else(|| {
        let known = FACES.map(|f| f.word).join(", ");
        format!("there is nothing to stand in for {word:?}; there are {known}")
    })
}

/// The disks of a cloud; `None`: another process has them.
pub fn disks(layout: &Layout, face: &Face) -> Result<Option<Pool>, Error> {
    let dir = layout.stand_in(face.word);
    if let Some(above) = dir.parent() {
        fs::create_dir_all(above).doing(|| format!("make {}", above.display()))?;
    }
    match Pool::open(&dir, Arc::new(RealSys)) {
        Ok(pool) => Ok(Some(pool)),
        Err(PoolError::Locked(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Opens the disks of every driver that is played.
pub fn open(layout: &Layout, node: &str, wanted: &[Wanted]) -> Result<Vec<Brought>, Error> {
    let mut all: Vec<Brought> = Vec::new();
    for Wanted { face, zone } in wanted {
        if all.iter().any(|b| b.name == face.driver) {
            return said(format!("--stand-in names {} twice; once is enough", face.word));
        }
        let Some(pool) = disks(layout, face)?.map(Arc::new) else {
            let dir = layout.stand_in(face.word);
            return said(format!("another process has {}; wait until it has ended", dir.display()));
        };
        let driver = StandIn::new(face, zone, pool.clone(), node);
        all.push(Brought::new(layout, face.driver, pool, move || driver.routes()));
    }
    Ok(all)
}

/// The labels of a node that say in which zone and region it is: in the words of each cloud, and in Kubernetes' for the first.
pub fn labels(wanted: &[Wanted]) -> BTreeMap<String, String> {
    let Some(Wanted { face, zone }) = wanted.first() else { return BTreeMap::new() };
    let region = (face.region)(zone).map(|region| ("topology.kubernetes.io/region".to_owned(), region));
    let first = [("topology.kubernetes.io/zone".to_owned(), zone.clone())].into_iter().chain(region);
    // A zone that an earlier start left there would be a contradiction.
    first.chain(wanted.iter().map(|w| (w.face.zone_key.to_owned(), w.zone.clone()))).collect()
}

/// Makes the objects by which people find the drivers, marked as what they are, and removes those of earlier starts.
pub async fn announce(client: &kube::Client, wanted: &[Wanted]) -> Result<(), Error> {
    let drivers: Api<CSIDriver> = Api::all(client.clone());
    let ours = drivers.list(&ListParams::default().labels(LABEL)).await?;
    for old in ours.items.iter().filter_map(|d| d.metadata.name.as_deref()) {
        if wanted.iter().all(|w| w.face.driver != old) {
            drivers.delete(old, &DeleteParams::default()).await?;
        }
    }
    for Wanted { face, zone } in wanted {
        let note = format!(
            "Not the driver of {}: holdfast stands in for it with local volumes of this machine, in zone {zone}.",
            face.word
        );
        let object: CSIDriver = serde_json::from_value(json!({
            "metadata": {
                "name": face.driver,
                "labels": { LABEL: face.word },
                "annotations": { "kubernetes.io/description": note },
            },
            "spec": {
                "attachRequired": true, "podInfoOnMount": false, "fsGroupPolicy": "File",
                "storageCapacity": false, "volumeLifecycleModes": ["Persistent"],
            },
        }))?;
        made("CSIDriver", drivers.create(&Default::default(), &object).await)?;
    }
    Ok(())
}

#[test]
fn words_and_zones() {
    let parse = |text: &str| text.parse::<Wanted>().map(|w| (w.face.word, w.zone));
    assert_eq!(parse("gce-pd"), Ok(("gce-pd", "europe-west1-b".into())));
    assert_eq!(parse("aws-ebs=eu-central-1c"), Ok(("aws-ebs", "eu-central-1c".into())));
    assert!(parse("floppy").is_err_and(|e| e.contains("azure-disk")));
    assert!(parse("gce-pd=a b").is_err_and(|e| e.contains("gce-pd=europe-west1-b")));
    assert!(parse("gce-pd=").is_err());
    let labels = labels(&["aws-ebs=eu-central-1c".parse().expect("known"), "gce-pd".parse().expect("known")]);
    assert_eq!(labels["topology.kubernetes.io/zone"], "eu-central-1c");
    assert_eq!(labels["topology.kubernetes.io/region"], "eu-central-1");
    assert_eq!(labels["topology.gke.io/zone"], "europe-west1-b");
}

/// Those who wait are told the words that `up` takes.
#[test]
fn everybody_knows_the_same_words() {
    assert_eq!(in_tree::STAND_INS, FACES.map(|f| (f.word, f.driver)));
}
