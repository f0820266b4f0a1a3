//! The objects as they were last seen, indexed by what decisions ask for.
use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry as MapEntry},
    hash::Hash,
    ops::Bound,
    sync::Arc,
};

use api::{
    pod::{Amounts, requests},
    quantity::Quantity,
    snapshot::{VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent},
};
use csi::Facts;
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodSpec, ResourceQuota, Service},
    storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass},
};

use crate::{
    call::Call,
    claim,
    cold::Cold,
    decision::{Key, Meta},
    free::Free,
};

/// What of an object is kept besides its metadata.
#[derive(Debug, Clone)]
pub enum Object {
    Pod(Arc<Pod>),
    Claim(Cold<PersistentVolumeClaim>),
    Volume(Cold<PersistentVolume>),
    Class(Arc<StorageClass>),
    Node(Arc<Node>),
    Namespace(Arc<Namespace>),
    Quota(Arc<ResourceQuota>),
    Service(Arc<Service>),
    CsiNode(Arc<CSINode>),
    Attachment(Arc<VolumeAttachment>),
    CsiDriver(Arc<CSIDriver>),
    Room(Arc<CSIStorageCapacity>),
    Attributes(Arc<VolumeAttributesClass>),
    Snapshot(Arc<VolumeSnapshot>),
    SnapshotContent(Arc<VolumeSnapshotContent>),
    SnapshotClass(Arc<VolumeSnapshotClass>),
    /// The certificates in a namespace's `kube-root-ca.crt`.
    RootCa(Arc<str>),
    /// Metadata is enough.
    Other,
}

/// One object.
#[derive(Debug, Clone)]
pub struct Entry {
    pub meta: Arc<Meta>,
    pub object: Object,
}

/// A change of the world, told to controllers so that they name the keys to decide again.
#[derive(Debug, Clone)]
pub struct Change {
    pub key: Key,
    pub old: Option<Entry>,
    pub new: Option<Entry>,
}

type Table = BTreeMap<(Arc<str>, Arc<str>), Entry>;

/// Kinds whose objects are folded up when there are more than so many of them: most are settled, and not looked at.
const FOLDED: [&str; 2] = ["PersistentVolumeClaim", "PersistentVolume"];
const MOST_WHOLE: usize = 1_000;
/// Objects folded for each change of their kind, in turn.
const LOOKED_OVER: usize = 3;

/// What the pods of a node that have not ended take up together.
#[derive(Debug, Default)]
pub(crate) struct Load {
    pub(crate) pods: usize,
    pub(crate) requests: Amounts,
}

/// Everything seen. Fed by the engine, read by decisions.
#[derive(Debug, Default)]
pub struct World {
    tables: HashMap<&'static str, Table>,
    by_uid: HashMap<String, Key>,
    /// Owner UID to its dependents.
    dependents: Index<String>,
    pods_by_node: Index<String>,
    loads: HashMap<String, Load>,
    /// Namespace and claim name to the pods that name it.
    pods_by_claim: Index<(Arc<str>, String)>,
    unscheduled: BTreeSet<Key>,
    free: Free,
    /// Volumes that a write under way is to reserve: free no longer, though nothing shows it yet.
    held: HashSet<Key>,
    /// Namespace and claim name to the volumes whose claimRef names it.
    volumes_by_claim: Index<(Arc<str>, String)>,
    /// Driver and volume handle to the volumes of it; more than one is a mistake.
    volumes_by_handle: Index<(String, String)>,
    /// By the volume that they name.
    attachments_by_volume: Index<String>,
    unbound_by_class: Index<String>,
    /// Kind, namespace and name of what volumes are made from to the claims that wait for those.
    claims_by_source: Index<(&'static str, Arc<str>, String)>,
    claims_by_volume: Index<String>,
    missing_nodes: HashMap<String, Timestamp>,
    /// Storage drivers that can be called, by name.
    drivers: BTreeMap<String, Arc<Facts>>,
    /// Calls that may have left something behind although nothing in the API tells of it.
    doubts: HashMap<Key, Call>,
    /// Where the folding of each kind goes on.
    fold_from: HashMap<&'static str, (Arc<str>, Arc<str>)>,
}

macro_rules! getter {
    ($name:ident, $all:ident, $kind:literal, $variant:ident, $type:ty) => {
        /// One object of the kind and its metadata.
        pub fn $name(&self, namespace: &str, name: &str) -> Option<(&Meta, &$type)> {
            let entry = self.entry(&Key::new($kind, namespace, name))?;
            match &entry.object {
                Object::$variant(object) => Some((&entry.meta, object)),
                _ => None,
            }
        }
        /// All objects of the kind, by namespace and name.
        pub fn $all(&self) -> impl Iterator<Item = (&Meta, &$type)> {
            self.tables.get($kind).into_iter().flatten().filter_map(|(_, entry)| match &entry.object {
                Object::$variant(object) => Some((&*entry.meta, &**object)),
                _ => None,
            })
        }
    };
}

impl World {
    getter!(pod, pods, "Pod", Pod, Pod);
    getter!(claim, claims, "PersistentVolumeClaim", Claim, PersistentVolumeClaim);
    getter!(volume_in, volumes, "PersistentVolume", Volume, PersistentVolume);
    getter!(class_in, classes, "StorageClass", Class, StorageClass);
    getter!(node_in, nodes, "Node", Node, Node);
    getter!(namespace_in, namespaces, "Namespace", Namespace, Namespace);
    getter!(quota, quotas, "ResourceQuota", Quota, ResourceQuota);
    getter!(csi_node_in, csi_nodes, "CSINode", CsiNode, CSINode);
    getter!(csi_driver_in, csi_drivers, "CSIDriver", CsiDriver, CSIDriver);
    getter!(room, rooms, "CSIStorageCapacity", Room, CSIStorageCapacity);
    getter!(attributes_class_in, attributes_classes, "VolumeAttributesClass", Attributes, VolumeAttributesClass);
    getter!(attachment, attachments, "VolumeAttachment", Attachment, VolumeAttachment);
    getter!(snapshot, snapshots, "VolumeSnapshot", Snapshot, VolumeSnapshot);
    getter!(snapshot_content_in, snapshot_contents, "VolumeSnapshotContent", SnapshotContent, VolumeSnapshotContent);
    getter!(snapshot_class_in, snapshot_classes, "VolumeSnapshotClass", SnapshotClass, VolumeSnapshotClass);

    pub fn volume(&self, name: &str) -> Option<(&Meta, &PersistentVolume)> {
        self.volume_in("", name)
    }
    pub fn class(&self, name: &str) -> Option<(&Meta, &StorageClass)> {
        self.class_in("", name)
    }
    pub fn node(&self, name: &str) -> Option<(&Meta, &Node)> {
        self.node_in("", name)
    }
    pub fn snapshot_content(&self, name: &str) -> Option<(&Meta, &VolumeSnapshotContent)> {
        self.snapshot_content_in("", name)
    }
    pub fn snapshot_class(&self, name: &str) -> Option<(&Meta, &VolumeSnapshotClass)> {
        self.snapshot_class_in("", name)
    }
    /// What storage plugins say about a node.
    pub fn csi_node(&self, name: &str) -> Option<(&Meta, &CSINode)> {
        self.csi_node_in("", name)
    }
    /// Whether there is a CSIDriver of the name.
    pub fn has_driver(&self, name: &str) -> bool {
        self.entry(&Key::new("CSIDriver", "", name)).is_some()
    }
    /// What a driver wants of its host, as an administrator wrote it.
    pub fn csi_driver(&self, name: &str) -> Option<(&Meta, &CSIDriver)> {
        self.csi_driver_in("", name)
    }
    /// Parameters of volumes that may be changed.
    pub fn attributes_class(&self, name: &str) -> Option<(&Meta, &VolumeAttributesClass)> {
        self.attributes_class_in("", name)
    }
    pub fn namespace(&self, name: &str) -> Option<(&Meta, &Namespace)> {
        self.namespace_in("", name)
    }

    /// One object of any kind.
    pub fn entry(&self, key: &Key) -> Option<&Entry> {
        self.tables.get(key.kind)?.get(&(key.namespace.clone(), key.name.clone()))
    }

    /// All objects of a kind.
    pub fn entries(&self, kind: &str) -> impl Iterator<Item = &Entry> {
        self.tables.get(kind).into_iter().flat_map(|table| table.values())
    }

    /// How many objects of a kind there are.
    pub(crate) fn count(&self, kind: &str) -> usize {
        self.tables.get(kind).map_or(0, BTreeMap::len)
    }

    /// Objects of any kind in a namespace.
    pub fn in_namespace<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a Meta> {
        let namespace: Arc<str> = namespace.into();
        self.tables.values().flat_map(move |table| range(table, &namespace)).map(|entry| &*entry.meta)
    }
    /// Objects of one kind in a namespace.
    pub fn of_namespace<'a>(&'a self, kind: &str, namespace: &str) -> impl Iterator<Item = &'a Entry> {
        let namespace: Arc<str> = namespace.into();
        self.tables.get(kind).into_iter().flat_map(move |table| range(table, &namespace))
    }

    /// The object of a UID.
    pub fn by_uid(&self, uid: &str) -> Option<&Meta> {
        self.entry(self.by_uid.get(uid)?).map(|e| &*e.meta)
    }
    /// Objects that name the UID as an owner.
    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = &Meta> {
        self.dependents.get(uid).filter_map(|key| self.entry(key)).map(|e| &*e.meta)
    }
    /// Pods bound to a node, terminated ones too.
    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = (&Meta, &Pod)> {
        self.pods_of(self.pods_by_node.get(node))
    }
    /// What the pods of a node take up; `None` where there are none.
    pub(crate) fn load(&self, node: &str) -> Option<&Load> {
        self.loads.get(node)
    }
    /// Pods that name a claim, directly or by an ephemeral volume.
    pub fn pods_naming(&self, namespace: &str, claim: &str) -> impl Iterator<Item = (&Meta, &Pod)> {
        self.pods_of(self.pods_by_claim.get(&(namespace.into(), claim.to_owned())))
    }
    /// Pods that the scheduler has to find a node for.
    pub fn unscheduled(&self) -> impl Iterator<Item = &Key> {
        self.unscheduled.iter()
    }
    /// The best free volume for a claim (see [`Free::best`]) of those that `keep` lets pass.
    pub(crate) fn best_free(
        &self,
        claim: &PersistentVolumeClaim,
        node: Option<&Node>,
        keep: impl Fn(&Meta, &PersistentVolume) -> bool,
    ) -> Option<(&Meta, &PersistentVolume)> {
        let passes = |name: &str| self.volume(name).is_some_and(|(m, v)| !self.held.contains(&m.key) && keep(m, v));
        self.volume(self.free.best(claim, node, node.is_none(), passes)?)
    }
    /// How many free volumes of a class nobody holds.
    pub(crate) fn count_free(&self, class: &str) -> usize {
        let counts = |v: &PersistentVolume| claim::is_free(v) && claim::class_of_volume(v) == class;
        let held = self.held.iter().filter(|k| self.volume(&k.name).is_some_and(|(_, v)| counts(v)));
        self.free.count(class).saturating_sub(held.count())
    }
    /// Leaves a volume out of all choices until it is released: a write that reserves it is under way.
    pub fn hold(&mut self, volume: Key) {
        self.held.insert(volume);
    }
    /// Takes [`World::hold`] back. Where the write came to nothing, the change to be told is returned.
    pub fn release(&mut self, volume: &Key) -> Option<Change> {
        self.held.remove(volume);
        let entry = self.entry(volume)?.clone();
        let free = matches!(&entry.object, Object::Volume(v) if claim::is_free(v));
        free.then(|| Change { key: volume.clone(), old: Some(entry.clone()), new: Some(entry) })
    }
    /// Volumes whose claimRef has this namespace and name.
    pub fn volumes_reserved_for(
        &self,
        namespace: &str,
        claim: &str,
    ) -> impl Iterator<Item = (&Meta, &PersistentVolume)> {
        self.volumes_by_claim.get(&(namespace.into(), claim.to_owned())).filter_map(|k| self.volume(&k.name))
    }
    /// Volumes of a driver that have this handle.
    pub(crate) fn volumes_of_handle(&self, driver: &str, handle: &str) -> impl Iterator<Item = &Key> {
        self.volumes_by_handle.get(&(driver.to_owned(), handle.to_owned()))
    }
    /// Attachments that name a volume.
    pub(crate) fn attachments_of(&self, volume: &str) -> impl Iterator<Item = &Key> {
        self.attachments_by_volume.get(volume)
    }
    /// Claims of a class whose binding is not complete.
    pub fn unbound_claims(&self, class: &str) -> impl Iterator<Item = &Key> {
        self.unbound_by_class.get(class)
    }
    /// Claims of any class whose binding is not complete.
    pub(crate) fn unbound(&self) -> impl Iterator<Item = &Key> {
        self.unbound_by_class.0.values().flat_map(Keys::iter)
    }
    /// Claims whose binding is not complete, and whose volume is to be made from this snapshot or claim.
    pub(crate) fn claims_from(&self, kind: &'static str, namespace: &str, name: &str) -> impl Iterator<Item = &Key> {
        self.claims_by_source.get(&(kind, namespace.into(), name.to_owned()))
    }
    /// Claims whose `spec.volumeName` is this volume.
    pub fn claims_naming(&self, volume: &str) -> impl Iterator<Item = &Key> {
        self.claims_by_volume.get(volume)
    }
    /// Since when pods name a node that does not exist.
    pub fn missing_since(&self, node: &str) -> Option<Timestamp> {
        self.missing_nodes.get(node).copied()
    }

    fn pods_of<'a>(&'a self, keys: impl Iterator<Item = &'a Key>) -> impl Iterator<Item = (&'a Meta, &'a Pod)> {
        keys.filter_map(|k| self.pod(&k.namespace, &k.name))
    }

    /// A storage driver that can be called.
    pub fn driver(&self, name: &str) -> Option<&Facts> {
        self.drivers.get(name).map(|facts| &**facts)
    }
    /// All of them, by name.
    pub fn drivers(&self) -> impl Iterator<Item = &Facts> {
        self.drivers.values().map(|facts| &**facts)
    }
    /// Takes in which drivers there are now.
    pub fn set_drivers(&mut self, drivers: BTreeMap<String, Arc<Facts>>) {
        self.drivers = drivers;
    }
    /// A call about an object that may have left something behind, although the object does not tell of it.
    pub fn doubt(&self, key: &Key) -> Option<&Call> {
        self.doubts.get(key)
    }
    /// Remembers such a call, or with `None` that all is known again.
    pub fn set_doubt(&mut self, key: &Key, call: Option<Call>) {
        match call {
            Some(call) => drop(self.doubts.insert(key.clone(), call)),
            None => drop(self.doubts.remove(key)),
        }
    }

    /// Takes in the newest state of an object, `None` when it is gone.
    pub fn apply(&mut self, key: Key, new: Option<Entry>, now: Timestamp) -> Change {
        let table = self.tables.entry(key.kind).or_default();
        let id = (key.namespace.clone(), key.name.clone());
        let old = match new.clone() {
            Some(entry) => table.insert(id, entry),
            None => table.remove(&id),
        };
        if let Some(old) = &old {
            self.index(old, false);
        }
        if let Some(new) = &new {
            self.index(new, true);
        }
        self.note_missing_nodes(old.as_ref(), new.as_ref(), now);
        self.fold_kind(key.kind, LOOKED_OVER);
        Change { key, old, new }
    }

    /// Folds up to `most` objects of each kind of which there are many, where it stopped the last time; whether some
    /// are left before it begins again. One that is in use unfolds, which costs little.
    pub fn fold(&mut self, most: usize) -> bool {
        let mut left = false;
        for kind in FOLDED {
            left |= self.fold_kind(kind, most);
        }
        left
    }

    fn fold_kind(&mut self, kind: &'static str, most: usize) -> bool {
        let Some(table) = self.tables.get_mut(kind).filter(|t| FOLDED.contains(&kind) && t.len() > MOST_WHOLE) else {
            return false;
        };
        let from = self.fold_from.remove(kind).map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        for (id, entry) in table.range_mut((from, Bound::Unbounded)).take(most) {
            match &mut entry.object {
                Object::Claim(claim) => claim.fold(),
                Object::Volume(volume) => volume.fold(),
                _ => {}
            }
            last = Some(id.clone());
        }
        self.fold_from.extend(last.map(|id| (kind, id)));
        self.fold_from.contains_key(kind)
    }

    fn index(&mut self, entry: &Entry, add: bool) {
        let meta = &entry.meta;
        let key = &meta.key;
        if add {
            self.by_uid.insert(meta.uid.clone(), key.clone());
        } else {
            self.by_uid.remove(&meta.uid);
        }
        for owner in &meta.owners {
            self.dependents.set(owner.uid.clone(), key, add);
        }
        match &entry.object {
            Object::Pod(pod) => self.index_pod(key, pod, add),
            Object::Attachment(attachment) => {
                if let Some(volume) = &attachment.spec.source.persistent_volume_name {
                    self.attachments_by_volume.set(volume.clone(), key, add);
                }
            }
            Object::Claim(c) => {
                if !claim::volume_of(c).is_empty() {
                    self.claims_by_volume.set(claim::volume_of(c).to_owned(), key, add);
                }
                if !claim::is_bound(c) {
                    self.unbound_by_class.set(claim::class_of(c).to_owned(), key, add);
                    if let Some((kind, name)) = claim::source_of(c) {
                        self.claims_by_source.set((kind, key.namespace.clone(), name.to_owned()), key, add);
                    }
                }
            }
            Object::Volume(volume) => {
                if claim::is_free(volume) {
                    self.free.set(&key.name, volume, add);
                }
                let by_driver = in_tree::volume_to_csi(volume).ok();
                if let Some(source) = by_driver.iter().find_map(|v| v.spec.as_ref()?.csi.as_ref()) {
                    let handle = (source.driver.clone(), source.volume_handle.clone());
                    self.volumes_by_handle.set(handle, key, add);
                }
                if let Some((namespace, name)) = claim::reserved_for(volume) {
                    self.volumes_by_claim.set((namespace.into(), name.to_owned()), key, add);
                }
            }
            _ => {}
        }
    }

    fn index_pod(&mut self, key: &Key, pod: &Pod, add: bool) {
        let Some(spec) = &pod.spec else { return };
        match spec.node_name.as_deref().unwrap_or_default() {
            "" if add => drop(self.unscheduled.insert(key.clone())),
            "" => drop(self.unscheduled.remove(key)),
            node => {
                self.pods_by_node.set(node.to_owned(), key, add);
                if !claim::is_terminated(pod) {
                    self.load_node(node, spec, add);
                }
            }
        }
        for (_, name, _) in claim::claims_of(pod) {
            self.pods_by_claim.set((key.namespace.clone(), name), key, add);
        }
    }

    fn load_node(&mut self, node: &str, spec: &PodSpec, add: bool) {
        let load = self.loads.entry(node.to_owned()).or_default();
        for (name, amount) in requests(spec) {
            let sum = load.requests.entry(name).or_insert(Quantity::ZERO);
            *sum = if add { *sum + amount } else { *sum - amount };
        }
        load.pods = if add { load.pods + 1 } else { load.pods.saturating_sub(1) };
        if load.pods == 0 {
            self.loads.remove(node);
        }
    }

    fn note_missing_nodes(&mut self, old: Option<&Entry>, new: Option<&Entry>, now: Timestamp) {
        match (new.map(|e| &e.object), old.map(|e| (&e.object, &e.meta.key.name))) {
            (Some(Object::Pod(pod)), _) => {
                let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
                if !node.is_empty() && self.node(&node).is_none() {
                    self.missing_nodes.entry(node).or_insert(now);
                }
            }
            (Some(Object::Node(node)), _) => {
                self.missing_nodes.remove(node.metadata.name.as_deref().unwrap_or_default());
            }
            (None, Some((Object::Node(_), name))) if self.pods_on(name).next().is_some() => {
                self.missing_nodes.insert(name.to_string(), now);
            }
            (None, Some((Object::Pod(pod), _))) => {
                let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
                if self.missing_nodes.contains_key(&node) && self.pods_on(&node).next().is_none() {
                    self.missing_nodes.remove(&node);
                }
            }
            _ => {}
        }
    }
}

/// The part of a table that is in a namespace.
fn range<'a>(table: &'a Table, namespace: &Arc<str>) -> impl Iterator<Item = &'a Entry> + use<'a> {
    let namespace = namespace.clone();
    let first = (namespace.clone(), Arc::from(""));
    table.range(first..).take_while(move |((n, _), _)| *n == namespace).map(|(_, entry)| entry)
}

/// Keys under a value; a value without keys is forgotten.
#[derive(Debug)]
struct Index<V>(HashMap<V, Keys>);

/// Most values have one key, and a set takes the room of eleven.
#[derive(Debug)]
enum Keys {
    One(Key),
    Many(BTreeSet<Key>),
}

impl Keys {
    fn iter(&self) -> impl Iterator<Item = &Key> {
        let (one, many) = match self {
            Self::One(key) => (Some(key), None),
            Self::Many(keys) => (None, Some(keys)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

impl<V> Default for Index<V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<V: Hash + Eq> Index<V> {
    fn get<'a, Q>(&'a self, value: &Q) -> impl Iterator<Item = &'a Key> + use<'a, V, Q>
    where
        V: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.0.get(value).into_iter().flat_map(Keys::iter)
    }

    fn set(&mut self, value: V, key: &Key, add: bool) {
        match self.0.entry(value) {
            MapEntry::Vacant(vacant) if add => drop(vacant.insert(Keys::One(key.clone()))),
            MapEntry::Vacant(_) => {}
            MapEntry::Occupied(mut found) => {
                let empty = match (found.get_mut(), add) {
                    (Keys::One(one), true) if one == key => false,
                    (Keys::One(one), true) => {
                        let both = BTreeSet::from([one.clone(), key.clone()]);
                        *found.get_mut() = Keys::Many(both);
                        false
                    }
                    (Keys::One(one), false) => one == key,
                    (Keys::Many(keys), true) => {
                        keys.insert(key.clone());
                        false
                    }
                    (Keys::Many(keys), false) => {
                        keys.remove(key);
                        keys.is_empty()
                    }
                };
                if empty {
                    found.remove();
                }
            }
        }
    }
}
