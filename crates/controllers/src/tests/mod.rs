//! Controllers run against a small API server of the tests: all of them, over all objects, until nothing is left to do.
mod binding;
mod candidates;
mod growth;
mod handshake;
mod in_tree;
mod lifecycle;
mod placement;
mod reclaiming;
mod sharing;
mod simulator;
mod snapshots;
mod sources;
mod waiting;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaim},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::{Value, from_value, json};

use crate::{
    Action, Answer, CONTROLLERS, Call, Change, Context, Decision, Entry, Failure, Key, Meta, Note, Object, Target,
    Unless, World, protection, rules,
};

/// What happens to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Happens,
    /// Never arrives.
    Lost,
    /// Is decided on the world as it was one write earlier.
    Stale,
}

/// The objects, with the rules that decisions count on: versions, conflicts, finalizers.
struct Cluster {
    objects: BTreeMap<Key, Value>,
    /// As they were before the last write.
    before: BTreeMap<Key, Value>,
    revision: u64,
    now: Timestamp,
    notes: BTreeSet<(String, &'static str, String)>,
    actions: Vec<String>,
    fates: Vec<Fate>,
    /// What a watch of each kind tells, from the first write on.
    events: BTreeMap<&'static str, Vec<(u64, Change)>>,
    /// Since when nodes are missing, kept over the worlds that are made anew.
    world: World,
    /// What drivers answer.
    driver: Option<Driver>,
}

type Driver = Box<dyn FnMut(&Call) -> Result<Answer, Failure>>;

fn kind_of(object: &Value) -> &'static str {
    let name = object["kind"].as_str().unwrap();
    api::KINDS.iter().find(|k| k.kind == name).unwrap().kind
}

fn entry(object: &Value) -> Entry {
    let kind = kind_of(object);
    let meta: ObjectMeta = from_value(object["metadata"].clone()).unwrap();
    let meta = Arc::new(Meta::new(kind, &meta));
    let object = object.clone();
    let object = match kind {
        "Pod" => Object::Pod(from_value(object).map(Arc::new).unwrap()),
        "PersistentVolumeClaim" => Object::Claim(from_value::<PersistentVolumeClaim>(object).unwrap().into()),
        "PersistentVolume" => Object::Volume(from_value::<PersistentVolume>(object).unwrap().into()),
        "StorageClass" => Object::Class(from_value(object).map(Arc::new).unwrap()),
        "Node" => Object::Node(from_value(object).map(Arc::new).unwrap()),
        "Namespace" => Object::Namespace(from_value(object).map(Arc::new).unwrap()),
        "ResourceQuota" => Object::Quota(from_value(object).map(Arc::new).unwrap()),
        "Service" => Object::Service(from_value(object).map(Arc::new).unwrap()),
        "CSIDriver" => Object::CsiDriver(from_value(object).map(Arc::new).unwrap()),
        "CSINode" => Object::CsiNode(from_value(object).map(Arc::new).unwrap()),
        "VolumeAttachment" => Object::Attachment(from_value(object).map(Arc::new).unwrap()),
        "VolumeSnapshot" => Object::Snapshot(from_value(object).map(Arc::new).unwrap()),
        "VolumeSnapshotContent" => Object::SnapshotContent(from_value(object).map(Arc::new).unwrap()),
        "VolumeSnapshotClass" => Object::SnapshotClass(from_value(object).map(Arc::new).unwrap()),
        "ConfigMap" => Object::RootCa(object["data"]["ca.crt"].as_str().unwrap_or_default().into()),
        _ => Object::Other,
    };
    Entry { meta, object }
}

impl Cluster {
    fn new() -> Self {
        Self {
            objects: BTreeMap::new(),
            before: BTreeMap::new(),
            revision: 1,
            now: "2030-01-01T00:00:00Z".parse().unwrap(),
            notes: BTreeSet::new(),
            actions: Vec::new(),
            fates: Vec::new(),
            events: BTreeMap::new(),
            world: World::default(),
            driver: None,
        }
    }

    /// Stores a new object as the server would, with the fields that every object has.
    fn make(&mut self, mut object: Value) -> Key {
        let kind = kind_of(&object);
        let namespaced = crate::namespaced_kinds().any(|k| k.kind == kind);
        if namespaced && object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = json!("ns");
        }
        self.revision += 1;
        object["metadata"]["uid"] = json!(format!("uid-{}", self.revision));
        object["metadata"]["creationTimestamp"] = json!(self.now);
        match kind {
            "PersistentVolumeClaim" => {
                object["metadata"]["finalizers"] = json!(["kubernetes.io/pvc-protection"]);
                object["status"] = json!({ "phase": "Pending" });
            }
            "PersistentVolume" => {
                object["metadata"]["finalizers"] = json!(["kubernetes.io/pv-protection"]);
                object["status"] = json!({ "phase": "Pending" });
            }
            "Namespace" => object["spec"] = json!({ "finalizers": ["kubernetes"] }),
            _ => {}
        }
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = Key::new(kind, &text("namespace"), &text("name"));
        self.store(&key, object);
        key
    }

    fn store(&mut self, key: &Key, mut object: Value) {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let going = !object["metadata"]["deletionTimestamp"].is_null();
        let list = |v: &Value| v.as_array().map_or(0, Vec::len);
        if !self.fates.is_empty() {
            self.before = self.objects.clone();
        }
        let gone = going && list(&object["metadata"]["finalizers"]) + list(&object["spec"]["finalizers"]) == 0;
        let new = (!gone).then(|| entry(&object));
        self.events.entry(key.kind).or_default().push((self.revision, Change { key: key.clone(), old: None, new }));
        if gone {
            self.objects.remove(key);
        } else {
            self.objects.insert(key.clone(), object);
        }
    }

    fn get(&self, key: &Key) -> &Value {
        static NONE: Value = Value::Null;
        self.objects.get(key).unwrap_or(&NONE)
    }

    fn edit(&mut self, key: &Key, patch: Value) {
        let mut object = self.get(key).clone();
        json_patch::merge(&mut object, &patch);
        self.store(key, object);
    }

    fn delete(&mut self, key: &Key, finalizer: Option<&str>) {
        let Some(mut object) = self.objects.get(key).cloned() else { return };
        object["metadata"]["deletionTimestamp"] = json!(self.now);
        if let Some(finalizer) = finalizer {
            let mut finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            finalizers.push(json!(finalizer));
            object["metadata"]["finalizers"] = finalizers.into();
        }
        self.store(key, object);
    }

    fn refresh(&mut self, objects: &BTreeMap<Key, Value>) {
        let gone: Vec<Key> = api::KINDS
            .iter()
            .flat_map(|k| self.world.entries(k.kind))
            .map(|e| e.meta.key.clone())
            .filter(|k| !objects.contains_key(k))
            .collect();
        for key in gone {
            self.world.apply(key, None, self.now);
        }
        for (key, object) in objects {
            self.world.apply(key.clone(), Some(entry(object)), self.now);
        }
    }

    /// Whether the target is there in the state that the decision was made on.
    fn holds(&self, target: &Target) -> bool {
        let meta = &self.get(&target.key)["metadata"];
        let version = target.resource_version.as_deref();
        meta["uid"] == json!(target.uid) && version.is_none_or(|v| meta["resourceVersion"] == json!(v))
    }

    fn perform(&mut self, action: Action) -> bool {
        match action {
            Action::Create { key, object } => {
                let free = !self.objects.contains_key(&key);
                if free {
                    self.make(object);
                }
                free
            }
            Action::Patch { target, subresource, patch } => {
                let status = patch.as_object().unwrap().keys().all(|field| field == "status");
                assert_eq!(status, subresource == Some("status"), "the server takes no other part: {patch}");
                let holds = self.holds(&target);
                if holds {
                    self.edit(&target.key, patch);
                }
                holds
            }
            Action::Delete { target, propagation, .. } => {
                let holds = self.holds(&target);
                if holds {
                    let foreground = propagation == Some("Foreground");
                    self.delete(&target.key, foreground.then_some("foregroundDeletion"));
                }
                holds
            }
            Action::Bind { pod, node } => {
                let holds = self.holds(&pod);
                if holds {
                    self.edit(&pod.key, json!({ "spec": { "nodeName": node } }));
                }
                holds
            }
            Action::Empty { namespace, kinds } => {
                let alive = |k: &Key, o: &Value| {
                    *k.namespace == *namespace
                        && kinds.contains(&k.kind)
                        && o["metadata"]["deletionTimestamp"].is_null()
                };
                let found: Vec<Key> =
                    self.objects.iter().filter(|(k, o)| alive(k, o)).map(|(k, _)| k.clone()).collect();
                found.iter().for_each(|key| self.delete(key, None));
                !found.is_empty()
            }
            Action::Finalize { namespace, finalizers } => {
                let holds = self.holds(&namespace) && !self.objects.keys().any(|k| k.namespace == namespace.key.name);
                if holds {
                    self.edit(&namespace.key, json!({ "spec": { "finalizers": finalizers } }));
                }
                holds
            }
            Action::Call(call) => panic!("there are no drivers here: {call:?}"),
            Action::Checked { unless, then } => !self.forbidden(&unless) && self.perform(*then),
        }
    }

    fn forbidden(&self, unless: &Unless) -> bool {
        match unless {
            Unless::Exists(all) => all.iter().any(|(key, uid)| {
                let object = self.get(key);
                !object.is_null() && (uid.is_empty() || object["metadata"]["uid"] == json!(uid))
            }),
            Unless::Going(all) => all.iter().any(|(key, uid)| {
                let meta = &self.get(key)["metadata"];
                meta["uid"] != json!(uid) || !meta["deletionTimestamp"].is_null()
            }),
            Unless::Had { namespace, claims, but } => {
                self.objects.iter().filter(|(k, _)| k.kind == "Pod" && *k.namespace == **namespace).any(|(_, o)| {
                    let pod = entry(o);
                    pod.meta.uid != *but
                        && matches!(&pod.object, Object::Pod(p) if claims.iter().any(|c| rules::runs_with(p, c)))
                })
            }
            Unless::Used { namespace, claim, .. } => {
                let Some(claim) = self.objects.get(&Key::new("PersistentVolumeClaim", namespace, claim)).map(entry)
                else {
                    return true;
                };
                self.objects.iter().filter(|(k, _)| k.kind == "Pod" && *k.namespace == **namespace).any(|(_, o)| {
                    let pod = entry(o);
                    matches!(&pod.object, Object::Pod(p) if protection::uses(p, &pod.meta.uid, &claim.meta))
                })
            }
        }
    }

    /// One decision of each controller on each key that any object concerns; whether anything was written.
    fn round(&mut self, check: &mut dyn FnMut(&Cluster)) -> bool {
        let mut acted = false;
        let context = Context { now: self.now, root_ca: Some("PEM".into()) };
        for controller in CONTROLLERS {
            let objects = self.objects.clone();
            self.refresh(&objects);
            let mut keys = BTreeSet::new();
            for (key, object) in &objects {
                let change = Change { key: key.clone(), old: None, new: Some(entry(object)) };
                (controller.wakes)(&self.world, &change, &mut |key| {
                    keys.insert(key);
                });
            }
            for key in keys {
                let fate = self.fates.pop().unwrap_or(Fate::Happens);
                // Something went unnoticed: this round says nothing about being settled.
                acted |= fate != Fate::Happens;
                let seen = if fate == Fate::Stale { self.before.clone() } else { self.objects.clone() };
                self.refresh(&seen);
                let mut decision = (controller.decide)(&key, &self.world, &context);
                assert_eq!(decision, (controller.decide)(&key, &self.world, &context), "equal input, equal output");
                if let (Some(Action::Call(call)), Some(driver)) = (&decision.action, &mut self.driver)
                    && fate != Fate::Lost
                {
                    let answer = driver(call);
                    let now = self.objects.clone();
                    self.refresh(&now);
                    decision = (controller.heard)(&key, &self.world, &context, call, &answer);
                }
                let done = match decision.action {
                    Some(action) if fate != Fate::Lost => {
                        let text = format!("{}: {action:?}", controller.name);
                        let done = self.perform(action);
                        if done {
                            self.actions.push(text);
                            check(self);
                        }
                        acted |= done;
                        done
                    }
                    Some(_) => false,
                    None => fate != Fate::Stale,
                };
                if done {
                    self.notes
                        .extend(decision.notes.into_iter().map(|n: Note| (n.about.to_string(), n.reason, n.message)));
                }
            }
        }
        acted
    }

    fn settle_checking(&mut self, check: &mut dyn FnMut(&Cluster)) {
        for _ in 0..60 {
            if !self.round(check) {
                return;
            }
        }
        let last = &self.actions[self.actions.len().saturating_sub(8)..];
        panic!("does not settle: {last:#?}");
    }

    fn settle(&mut self) {
        self.settle_checking(&mut |_| {});
    }

    fn noted(&self, reason: &str) -> Vec<&str> {
        self.notes.iter().filter(|(_, r, _)| *r == reason).map(|(_, _, m)| m.as_str()).collect()
    }

    fn phase(&self, key: &Key) -> &str {
        self.get(key)["status"]["phase"].as_str().unwrap_or("gone")
    }
}

fn pv(name: &str, size: &str, more: Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": name },
        "spec": {
            "capacity": { "storage": size }, "accessModes": ["ReadWriteOnce"], "storageClassName": "k",
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": { "path": "/data" }, "volumeMode": "Filesystem",
        },
    });
    json_patch::merge(&mut object, &more);
    object
}

fn pvc(name: &str, size: &str, more: Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": name },
        "spec": {
            "resources": { "requests": { "storage": size } }, "accessModes": ["ReadWriteOnce"],
            "storageClassName": "k", "volumeMode": "Filesystem",
        },
    });
    json_patch::merge(&mut object, &more);
    object
}

fn class(name: &str, provisioner: &str, late: bool) -> Value {
    let mode = if late { "WaitForFirstConsumer" } else { "Immediate" };
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": name },
        "provisioner": provisioner, "volumeBindingMode": mode,
    })
}

fn pod(name: &str, more: Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "containers": [{ "name": "c", "image": "i" }], "schedulerName": "default-scheduler" },
    });
    json_patch::merge(&mut object, &more);
    object
}

fn claiming(claim: &str) -> Value {
    json!({ "spec": { "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": claim } }] } })
}

fn node(name: &str, more: Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "status": {
            "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "10" },
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    });
    json_patch::merge(&mut object, &more);
    object
}

fn on_host(name: &str) -> Value {
    json!({ "spec": { "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
        { "key": "kubernetes.io/hostname", "operator": "In", "values": [name] }
    ] }] } } } })
}
