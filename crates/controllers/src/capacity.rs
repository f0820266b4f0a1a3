//! How much room drivers have, by class and place, so that the scheduler sends no pod where its volume cannot be made.
//!
//! In: the key of a CSIStorageCapacity, whose name says of what it tells. Out: the driver's call, then the object, where its answer
//! changed enough to matter.
//! Source: Kubernetes' "Storage Capacity"; external-provisioner, `pkg/capacity`.
use std::{collections::BTreeMap, time::Duration};

use api::quantity::said;
use csi::{ControllerRpcType, Facts, GetCapacityRequest, Topology};
use k8s_openapi::api::storage::v1::{CSIStorageCapacity, StorageClass};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    amount::amount,
    call::{Answer, Call, Failure},
    decision::{Action, Context, Decision, Key},
    provision::{Parameters, bytes, places_of},
    world::{Change, World},
};

const KIND: &str = "CSIStorageCapacity";
const NAMESPACE: &str = "kube-system";
/// On the objects that are kept here.
const MANAGED: (&str, &str) = ("csi.storage.k8s.io/managed-by", "holdfast");
/// How often drivers are asked; upstream's sidecar does it every minute.
const PERIOD: Duration = Duration::from_secs(30);
/// Differences below this part of the room are not worth a write.
const NOTEWORTHY: i64 = 64;

type Segments = BTreeMap<String, String>;

/// What one object tells of.
struct Room<'a> {
    driver: &'a Facts,
    class: &'a StorageClass,
    place: Segments,
}

impl Room<'_> {
    fn key(&self) -> Key {
        let mut hash = Sha256::new();
        let class = self.class.metadata.name.as_deref().unwrap_or_default();
        for part in
            [self.driver.name.as_str(), class].into_iter().chain(self.place.iter().flat_map(|(k, v)| [&**k, &**v]))
        {
            hash.update(part);
            hash.update([0]);
        }
        let hash = format!("{:x}", hash.finalize());
        Key::new(KIND, NAMESPACE, &format!("csisc-{}", &hash[..20]))
    }
}

/// Whether a driver's room is told, and decides where pods go.
pub(crate) fn is_told(world: &World, driver: &str) -> bool {
    world.csi_driver(driver).is_some_and(|(_, object)| object.spec.storage_capacity == Some(true))
}

/// All that is to be told.
fn rooms(world: &World) -> impl Iterator<Item = Room<'_>> {
    let drivers = world.drivers().filter(|d| d.can(ControllerRpcType::GetCapacity) && is_told(world, &d.name));
    drivers.flat_map(move |driver| {
        let classes = world.classes().map(|(_, c)| c).filter(|c| c.provisioner == driver.name);
        classes.flat_map(move |class| {
            let places = if driver.has_places() { places_of(world, &driver.name) } else { vec![Segments::new()] };
            places.into_iter().map(move |place| Room { driver, class, place })
        })
    })
}

pub(crate) fn decide(key: &Key, world: &World, _: &Context) -> Decision {
    let Some(room) = rooms(world).find(|room| room.key() == *key) else {
        let object = world.room(&key.namespace, &key.name);
        let ours = object.filter(|(_, o)| {
            o.metadata.labels.as_ref().and_then(|l| l.get(MANAGED.0)).map(String::as_str) == Some(MANAGED.1)
        });
        let target = ours.map(|(meta, _)| meta.target());
        return target.map(|target| Action::Delete { target, grace: None, propagation: None }).into();
    };
    let Ok(parameters) = Parameters::of(room.class) else { return Decision::settled() };
    let request = GetCapacityRequest {
        volume_capabilities: Vec::new(),
        parameters: parameters.own,
        accessible_topology: (!room.place.is_empty()).then(|| Topology { segments: room.place.clone() }),
    };
    Decision::act(Action::call(Call::new(&room.driver.name, request)))
}

pub(crate) fn heard(key: &Key, world: &World, _: &Context, _: &Call, answer: &Result<Answer, Failure>) -> Decision {
    let again = |action: Option<Action>| Decision { action, again: Some(PERIOD), ..Decision::settled() };
    let (Ok(Answer::GetCapacity(response)), Some(room)) = (answer, rooms(world).find(|room| room.key() == *key)) else {
        return again(None);
    };
    let total = response.available_capacity.max(0);
    let largest = response.maximum_volume_size;
    let known = world.room(&key.namespace, &key.name);
    if let Some((meta, object)) = known {
        let near = |old: Option<i64>, new: Option<i64>| match (old, new) {
            (Some(old), Some(new)) => old.abs_diff(new) <= old.unsigned_abs() / NOTEWORTHY.unsigned_abs(),
            (old, new) => old == new,
        };
        let size = |text: &Option<k8s_openapi::apimachinery::pkg::api::resource::Quantity>| {
            text.as_ref().map(|t| bytes(amount(t)))
        };
        if near(size(&object.capacity), Some(total)) && near(size(&object.maximum_volume_size), largest) {
            return again(None);
        }
        let patch = json!({ "capacity": said(total), "maximumVolumeSize": largest.map(said) });
        return again(Some(Action::patch(meta, patch)));
    }
    let labels: BTreeMap<&str, &str> = BTreeMap::from([MANAGED, ("csi.storage.k8s.io/drivername", &room.driver.name)]);
    let object: Value = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": KIND,
        "metadata": { "namespace": NAMESPACE, "name": &*key.name, "labels": labels },
        "storageClassName": room.class.metadata.name, "nodeTopology": { "matchLabels": room.place },
        "capacity": said(total), "maximumVolumeSize": largest.map(said),
    });
    again(Some(Action::Create { key: key.clone(), object }))
}

/// Whether a driver has said that it has room for a volume of this size, for a class, on a node with these labels.
pub(crate) fn has_room(world: &World, class: &str, labels: Option<&BTreeMap<String, String>>, size: i64) -> bool {
    let fits = |object: &CSIStorageCapacity| {
        let room = object.maximum_volume_size.as_ref().or(object.capacity.as_ref());
        room.is_some_and(|room| bytes(amount(room)) >= size)
            && object.node_topology.as_ref().is_some_and(|t| api::select::labels_match(t, labels))
    };
    // Of a class that is new, nothing was said yet; its driver has the last word anyway.
    let mut known = world.rooms().map(|(_, object)| object).filter(|o| o.storage_class_name == class).peekable();
    known.peek().is_none() || known.any(fits)
}

pub(crate) fn wakes(world: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    match change.key.kind {
        KIND => wake(change.key.clone()),
        "StorageClass" | "CSIDriver" | "CSINode" => {
            rooms(world).for_each(|room| wake(room.key()));
            world.rooms().for_each(|(meta, _)| wake(meta.key.clone()));
        }
        // Room that somebody may wait for.
        "PersistentVolume" if change.new.is_none() => rooms(world).for_each(|room| wake(room.key())),
        _ => {}
    }
}
