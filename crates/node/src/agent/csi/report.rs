//! What the API is told of this node's drivers: the CSINode, and on the Node its places and what drivers call it.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use base::chain;
use csi::NodeGetInfoResponse;
use k8s_openapi::{
    api::{
        core::v1::Node,
        storage::v1::{CSIDriver, CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use parking_lot::Mutex;
use serde_json::json;

use crate::agent::{Shared, pinned};

const NODE_ID: &str = "csi.volume.kubernetes.io/nodeid";
const MIGRATED: &str = "storage.alpha.kubernetes.io/migrated-plugins";
/// The in-tree plugins whose volumes are their CSI drivers', in Kubernetes 1.36.
const MIGRATED_PLUGINS: &str = "kubernetes.io/aws-ebs,kubernetes.io/azure-disk,kubernetes.io/azure-file,\
                                kubernetes.io/cinder,kubernetes.io/gce-pd,kubernetes.io/portworx-volume,\
                                kubernetes.io/vsphere-volume";
/// Drivers that were here before this process have this long to be found again.
const TIME_TO_COME_BACK: Duration = Duration::from_secs(30);
/// What others took away is put back after this.
const AGAIN: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(2);
const TRIES: usize = 5;

/// What telling has to remember.
pub struct Reporter {
    since: Instant,
    /// Drivers that this process has told of.
    told: Mutex<BTreeSet<String>>,
    telling: tokio::sync::Mutex<()>,
}

impl Default for Reporter {
    fn default() -> Self {
        Self { since: Instant::now(), told: Mutex::default(), telling: tokio::sync::Mutex::default() }
    }
}

/// Keeps the API's idea of the drivers true, for ever.
pub async fn keep(shared: Arc<Shared>) {
    let mut drivers = shared.config.drivers.watch();
    let mut asked = BTreeMap::new();
    loop {
        let refresh = ask_again(&shared, &mut asked).await;
        let wait = match tell(&shared).await {
            Ok(()) => AGAIN,
            Err(why) => {
                tracing::warn!(why, "could not tell of this node's CSI drivers; it is tried again");
                RETRY
            }
        };
        tokio::select! {
            changed = drivers.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(refresh.map_or(wait, |period| period.min(wait))) => {}
        }
    }
}

/// Asks drivers anew how many volumes the node takes, as often as their objects say. Gives back how often that is.
async fn ask_again(shared: &Shared, asked: &mut BTreeMap<String, Instant>) -> Option<Duration> {
    let plugins = shared.config.drivers.watch().borrow().clone();
    asked.retain(|name, _| plugins.contains_key(name));
    let objects: Api<CSIDriver> = Api::all(shared.client.clone());
    let mut shortest = None;
    for (name, plugin) in plugins.iter() {
        // What cannot be read now is read next time.
        let Ok(Some(object)) = objects.get_opt(name).await else { continue };
        let seconds = object.spec.node_allocatable_update_period_seconds.and_then(|s| u64::try_from(s).ok());
        let Some(period) = seconds.filter(|s| *s > 0).map(Duration::from_secs) else { continue };
        shortest = Some(shortest.map_or(period, |other: Duration| other.min(period)));
        let last = *asked.entry(name.clone()).or_insert_with(Instant::now);
        if last.elapsed() >= period {
            asked.insert(name.clone(), Instant::now());
            if let Err(error) = shared.config.drivers.add(&plugin.socket).await {
                tracing::debug!(error = chain(&error), driver = name, "could not ask a driver about its node again");
            }
        }
    }
    shortest
}

/// Tells of the drivers that are known now.
///
/// # Errors
/// A sentence; some of it may have been told.
pub async fn tell(shared: &Shared) -> Result<(), String> {
    let _one = shared.csi.reporter.telling.lock().await;
    let plugins = shared.config.drivers.watch().borrow().clone();
    let mut infos: BTreeMap<String, NodeGetInfoResponse> = BTreeMap::new();
    for (name, plugin) in plugins.iter() {
        // A controller alone has nothing to say about a node.
        let Some(info) = &plugin.facts.node_info else { continue };
        if info.node_id.is_empty() {
            return Err("error adding CSI driver node info: driverNodeID must not be empty".into());
        }
        infos.insert(name.clone(), info.clone());
    }
    let mut last = String::new();
    for _ in 0..TRIES {
        let done = match write_node(shared, &infos).await {
            Ok(node) => write_csi_node(shared, &node, &infos).await,
            Err(failure) => Err(failure),
        };
        match done {
            Ok(()) => {
                shared.csi.reporter.told.lock().extend(infos.into_keys());
                return Ok(());
            }
            Err(Failure::Stale(why)) => last = why,
            Err(Failure::Refused(why)) => return Err(why),
        }
    }
    Err(last)
}

enum Failure {
    /// Somebody else wrote meanwhile.
    Stale(String),
    Refused(String),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        let why = format!("error updating CSINode object with CSI driver node info: {}", chain(&error));
        match error {
            kube::Error::Api(status) if status.code == 409 => Self::Stale(why),
            _ => Self::Refused(why),
        }
    }
}

/// Whether what is said of a driver that is not here now goes on being said.
fn stays(shared: &Shared, driver: &str) -> bool {
    let reporter = &shared.csi.reporter;
    reporter.since.elapsed() < TIME_TO_COME_BACK && !reporter.told.lock().contains(driver)
}

/// The places that a driver is at, by label.
fn places(info: &NodeGetInfoResponse) -> BTreeMap<String, String> {
    info.accessible_topology.as_ref().map(|t| t.segments.clone()).unwrap_or_default()
}

async fn write_node(shared: &Shared, infos: &BTreeMap<String, NodeGetInfoResponse>) -> Result<Node, Failure> {
    let nodes: Api<Node> = Api::all(shared.client.clone());
    let node = nodes.get(&shared.config.node_name).await?;
    let meta = &node.metadata;
    let has = |key: &str| meta.labels.as_ref().and_then(|l| l.get(key));
    let mut labels = BTreeMap::new();
    for (key, value) in infos.values().flat_map(places) {
        match has(&key) {
            Some(old) if *old == value => {}
            Some(old) => {
                return Err(Failure::Refused(format!(
                    "error updating Node object with CSI driver node info: detected topology value collision: driver \
                     reported {key:?}:{value:?} but existing label is {key:?}:{old:?}"
                )));
            }
            None => drop(labels.insert(key, value)),
        }
    }
    let said = meta.annotations.as_ref().and_then(|a| a.get(NODE_ID)).map(String::as_str).unwrap_or_default();
    // What cannot be read is nobody's.
    let mut ids: BTreeMap<String, String> = serde_json::from_str(said).unwrap_or_default();
    ids.retain(|driver, _| stays(shared, driver));
    ids.extend(infos.iter().map(|(name, info)| (name.clone(), info.node_id.clone())));
    let wanted = (!ids.is_empty()).then(|| json!(ids).to_string());
    if labels.is_empty() && wanted.as_deref().unwrap_or_default() == said {
        return Ok(node);
    }
    let patch = json!({ "metadata": { "labels": labels, "annotations": { NODE_ID: wanted } } });
    let patch = Patch::Merge(pinned(meta, patch));
    Ok(nodes.patch(&shared.config.node_name, &PatchParams::default(), &patch).await?)
}

fn described(name: &str, info: &NodeGetInfoResponse) -> CSINodeDriver {
    let most = i32::try_from(info.max_volumes_per_node).unwrap_or(i32::MAX);
    CSINodeDriver {
        name: name.to_owned(),
        node_id: info.node_id.clone(),
        topology_keys: Some(places(info).into_keys().collect()),
        allocatable: (info.max_volumes_per_node > 0).then_some(VolumeNodeResources { count: Some(most) }),
    }
}

async fn write_csi_node(
    shared: &Shared,
    node: &Node,
    infos: &BTreeMap<String, NodeGetInfoResponse>,
) -> Result<(), Failure> {
    let objects: Api<CSINode> = Api::all(shared.client.clone());
    let name = &shared.config.node_name;
    let uid = node.metadata.uid.clone().unwrap_or_default();
    let own = |object: &CSINode| {
        let owners = object.metadata.owner_references.iter().flatten();
        owners.filter(|o| o.kind == "Node").any(|o| o.uid == uid)
    };
    let mut object = match objects.get_opt(name).await? {
        Some(object) if own(&object) => object,
        // It tells of a node of that name that is gone.
        Some(_) => {
            objects.delete(name, &DeleteParams::default()).await?;
            return Err(Failure::Stale(format!("CSINode {name:?} was owned by different node, deleted it")));
        }
        None => objects.create(&PostParams::default(), &empty(name, &uid)).await?,
    };
    let before = object.clone();
    object.metadata.annotations.get_or_insert_default().insert(MIGRATED.into(), MIGRATED_PLUGINS.into());
    let mut drivers: Vec<CSINodeDriver> = Vec::new();
    let mut changed = false;
    for old in &before.spec.drivers {
        match infos.get(&old.name) {
            // Upstream's API lets a driver's entry come and go, and nothing but its count change.
            Some(info)
                if described(&old.name, info).node_id != old.node_id
                    || keys(&described(&old.name, info)) != keys(old) =>
            {
                changed = true;
            }
            Some(info) => drivers.push(described(&old.name, info)),
            None if stays(shared, &old.name) => drivers.push(old.clone()),
            None => {}
        }
    }
    if changed {
        object.spec.drivers = drivers.clone();
        object = objects.replace(name, &PostParams::default(), &object).await?;
    }
    let known: BTreeSet<String> = drivers.iter().map(|d| d.name.clone()).collect();
    let new = infos.iter().filter(|(name, _)| !known.contains(*name));
    drivers.extend(new.map(|(name, info)| described(name, info)));
    object.spec.drivers = drivers;
    if changed || object != before {
        objects.replace(name, &PostParams::default(), &object).await?;
    }
    Ok(())
}

fn keys(driver: &CSINodeDriver) -> BTreeSet<&String> {
    driver.topology_keys.iter().flatten().collect()
}

fn empty(name: &str, uid: &str) -> CSINode {
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    };
    let metadata =
        ObjectMeta { name: Some(name.to_owned()), owner_references: Some(vec![owner]), ..ObjectMeta::default() };
    CSINode { metadata, spec: CSINodeSpec { drivers: Vec::new() } }
}
