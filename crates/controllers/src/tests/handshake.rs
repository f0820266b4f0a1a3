//! One look at one claim or volume, from every state that both can be in: what the binder writes and what it tells.
//!
//! Objects are written as words: name, size, then what they have beyond the least. `for=c/u` is a claimRef with a UID,
//! `at=v` the volume that a claim names, `by-us` and `done` the annotations of binding, `has=` the size in a status.
use serde_json::{Value, json};

use super::*;

const BY_US: &str = "pv.kubernetes.io/bound-by-controller";
const DONE: &str = "pv.kubernetes.io/bind-completed";
const MADE_BY: &str = "pv.kubernetes.io/provisioned-by";
const ASKED: &str = "volume.kubernetes.io/storage-provisioner";
const ASKED_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
const NODE: &str = "volume.kubernetes.io/selected-node";
const LEGACY: &str = "volume.beta.kubernetes.io/storage-class";
const PRE_RESIZE: &str = "volume.alpha.kubernetes.io/pre-resize-capacity";
const MIGRATED: &str = "pv.kubernetes.io/migrated-to";

/// Words that are an annotation each.
const ANNOTATIONS: [(&str, &str); 9] = [
    ("by-us", BY_US),
    ("done", DONE),
    ("made-by", MADE_BY),
    ("asked", ASKED),
    ("asked-beta", ASKED_BETA),
    ("node", NODE),
    ("legacy", LEGACY),
    ("pre", PRE_RESIZE),
    ("migrated", MIGRATED),
];

fn read(kind: &str, text: &str) -> Value {
    let mut words = text.split(' ');
    let (name, size) = (words.next().unwrap(), words.next().unwrap());
    let claim = kind == "PersistentVolumeClaim";
    let mut object = json!({
        "apiVersion": "v1", "kind": kind,
        "metadata": { "name": name, "uid": format!("u-{name}"), "annotations": {} },
        "spec": { "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem" },
        "status": {},
    });
    if claim {
        object["metadata"]["namespace"] = json!("ns");
        object["metadata"]["finalizers"] = json!(["kubernetes.io/pvc-protection"]);
        object["spec"]["resources"] = json!({ "requests": { "storage": size } });
    } else {
        object["metadata"]["finalizers"] = json!(["kubernetes.io/pv-protection"]);
        object["spec"]["capacity"] = json!({ "storage": size });
        object["spec"]["nfs"] = json!({ "server": "s", "path": "/p" });
        object["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain");
    }
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        if let Some((_, annotation)) = ANNOTATIONS.iter().find(|(w, _)| *w == key) {
            object["metadata"]["annotations"][annotation] = json!(if value.is_empty() { "yes" } else { value });
            continue;
        }
        match key {
            "for" => {
                let (name, uid) = value.split_once('/').map_or((value, None), |(n, u)| (n, Some(u)));
                object["spec"]["claimRef"] = json!({ "namespace": "ns", "name": name, "uid": uid });
            }
            "at" => object["spec"]["volumeName"] = json!(value),
            "class" => object["spec"]["storageClassName"] = json!(value),
            "vac" => object["spec"]["volumeAttributesClassName"] = json!(value),
            "vac-now" => object["status"]["currentVolumeAttributesClassName"] = json!(value),
            "policy" => object["spec"]["persistentVolumeReclaimPolicy"] = json!(value),
            "has" => object["status"]["capacity"] = json!({ "storage": value }),
            "block" => object["spec"]["volumeMode"] = json!("Block"),
            "rwx" => object["spec"]["accessModes"] = json!(["ReadWriteMany"]),
            "csi" => {
                object["spec"]["nfs"] = Value::Null;
                object["spec"]["csi"] = json!({ "driver": "d", "volumeHandle": "h" });
            }
            "labelled" => object["metadata"]["labels"] = json!({ "foo": "true" }),
            "selecting" => object["spec"]["selector"] = json!({ "matchLabels": { "foo": "true" } }),
            "going" => object["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:00Z"),
            phase => object["status"]["phase"] = json!(phase),
        }
    }
    object
}

/// The words of an object, in one order.
fn words(object: &Value) -> Vec<String> {
    let mut words = Vec::new();
    let (meta, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    let mut say = |key: &str, value: &Value| {
        if let Some(text) = value.as_str() {
            words.push(if key.is_empty() { text.to_owned() } else { format!("{key}={text}") });
        }
    };
    for (key, annotation) in ANNOTATIONS {
        say(key, &meta["annotations"][annotation]);
    }
    say("", &meta["name"]);
    say("", &status["phase"]);
    say("", &spec["volumeMode"]);
    say("", &spec["accessModes"][0]);
    say("at", &spec["volumeName"]);
    say("class", &spec["storageClassName"]);
    say("vac", &spec["volumeAttributesClassName"]);
    say("vac-now", &status["currentVolumeAttributesClassName"]);
    say("policy", &spec["persistentVolumeReclaimPolicy"]);
    say("has", &status["capacity"]["storage"]);
    say("message", &status["message"]);
    say("for", &spec["claimRef"]["name"]);
    say("for-uid", &spec["claimRef"]["uid"]);
    words.sort_unstable();
    words
}

struct Row {
    name: &'static str,
    volumes: &'static str,
    claims: &'static str,
    /// Which object is looked at.
    look_at: &'static str,
    volumes_after: &'static str,
    claims_after: &'static str,
    told: &'static str,
}

/// `name: "volumes" + "claims" [looked at] => "volumes" + "claims", "told";` with `;` between objects.
macro_rules! rows {
    ($($name:literal: $volumes:literal + $claims:literal [$at:literal] => $vafter:literal + $cafter:literal, $told:literal;)*) => {
        &[$(Row { name: $name, volumes: $volumes, claims: $claims, look_at: $at, volumes_after: $vafter,
            claims_after: $cafter, told: $told }),*]
    };
}

fn objects<'a>(kind: &'a str, text: &'a str) -> impl Iterator<Item = Value> + 'a {
    text.split("; ").filter(|t| !t.is_empty()).map(move |t| read(kind, t))
}

fn classes() -> Vec<Value> {
    vec![
        class("wait", "kubernetes.io/no-provisioner", true),
        class("external", "vendor.com/my-volume", false),
        class("external-wait", "vendor.com/my-volume-wait", true),
        class("internal", "kubernetes.io/unknown", false),
        class("gce", "kubernetes.io/gce-pd", false),
    ]
}

fn check(rows: &[Row], more: &[Value]) {
    for row in rows {
        let mut cluster = Cluster::new();
        for class in classes().iter().chain(more) {
            cluster.make(class.clone());
        }
        let all: Vec<Value> =
            objects("PersistentVolume", row.volumes).chain(objects("PersistentVolumeClaim", row.claims)).collect();
        for object in all {
            let key = Meta::new(kind_of(&object), &from_value(object["metadata"].clone()).unwrap()).key;
            cluster.store(&key, object);
        }
        let claim = Key::new("PersistentVolumeClaim", "ns", row.look_at);
        let volume = Key::new("PersistentVolume", "", row.look_at);
        let key = if cluster.get(&claim).is_null() { volume } else { claim };
        let told = look(&mut cluster, &key, row.name);
        assert_eq!(told.join(", "), row.told, "{}", row.name);
        for (kind, after) in [("PersistentVolume", row.volumes_after), ("PersistentVolumeClaim", row.claims_after)] {
            let is: Vec<_> = cluster.objects.iter().filter(|(k, _)| k.kind == kind).map(|(_, o)| words(o)).collect();
            let wanted: Vec<_> = objects(kind, after).map(|o| words(&o)).collect();
            assert_eq!(is, wanted, "{}", row.name);
        }
    }
}

/// Decides about one object, and about the volume that it was just given, until nothing is left to do; what was told.
fn look(cluster: &mut Cluster, key: &Key, name: &str) -> Vec<String> {
    let binder = CONTROLLERS.iter().find(|c| c.name == "binder").unwrap();
    let context = Context { now: cluster.now, root_ca: None };
    let mut told = BTreeSet::new();
    for _ in 0..10 {
        let objects = cluster.objects.clone();
        cluster.refresh(&objects);
        let mut decision = (binder.decide)(key, &cluster.world, &context);
        let claim = cluster.get(key);
        let given = Key::new("PersistentVolume", "", claim["spec"]["volumeName"].as_str().unwrap_or_default());
        let theirs = cluster.get(&given)["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"];
        if decision == Decision::settled() && theirs && !claim.is_null() {
            // A volume is marked Bound by a decision of its own.
            decision = (binder.decide)(&given, &cluster.world, &context);
        }
        let kind = |note: &Note| if note.warning { "Warning" } else { "Normal" };
        let done = decision.action.is_none_or(|action| cluster.perform(action));
        if done {
            told.extend(decision.notes.iter().map(|n| format!("{} {} on {}", kind(n), n.reason, n.about.name)));
        }
        if cluster.objects == objects {
            return told.into_iter().collect();
        }
    }
    panic!("{name} does not come to rest");
}

#[test]
fn a_claim_without_a_volume() {
    check(
        rows! {
            "successful bind": "v 1Gi Available class=" + "c 1Gi Pending" ["c"] =>
                "v 1Gi Bound class= for=c/u-c by-us" + "c 1Gi Bound at=v by-us done has=1Gi", "";
            "nothing fits": "v 1Gi Available class=" + "c 10Gi Pending" ["c"] =>
                "v 1Gi Available class=" + "c 10Gi Pending", "Normal FailedBinding on c";
            "reset to Pending": "v 1Gi Available class=" + "c 10Gi Bound has=3Gi vac-now=gold" ["c"] =>
                "v 1Gi Available class=" + "c 10Gi Pending", "Normal FailedBinding on c";
            "smallest": "v1 10Gi Available class=; v2 1Gi Available class=" + "c 1Gi Pending" ["c"] =>
                "v1 10Gi Available class=; v2 1Gi Bound class= for=c/u-c by-us" + "c 1Gi Bound at=v2 by-us done has=1Gi", "";
            "reserved by name, though a smaller one is free":
                "v1 10Gi Available class= for=c; v2 1Gi Available class=" + "c 1Gi Pending" ["c"] =>
                "v1 10Gi Bound class= for=c/u-c; v2 1Gi Available class=" + "c 1Gi Bound at=v1 by-us done has=10Gi", "";
            "reserved by UID, though a smaller one is free":
                "v1 10Gi Available class= for=c/u-c; v2 1Gi Available class=" + "c 1Gi Pending" ["c"] =>
                "v1 10Gi Bound class= for=c/u-c; v2 1Gi Available class=" + "c 1Gi Bound at=v1 by-us done has=10Gi", "";
            "reserved for another incarnation": "v 10Gi Available class= for=c/earlier" + "c 1Gi Pending" ["c"] =>
                "v 10Gi Available class= for=c/earlier" + "c 1Gi Pending", "Normal FailedBinding on c";
            "crash after the reservation": "v 1Gi Available class= for=c/u-c by-us" + "c 1Gi Pending" ["c"] =>
                "v 1Gi Bound class= for=c/u-c by-us" + "c 1Gi Bound at=v by-us done has=1Gi", "";
            "crash after the volume's phase": "v 1Gi Bound class= for=c/u-c by-us" + "c 1Gi Pending" ["c"] =>
                "v 1Gi Bound class= for=c/u-c by-us" + "c 1Gi Bound at=v by-us done has=1Gi", "";
            "crash before the claim's phase": "v 1Gi Bound class= for=c/u-c by-us" + "c 1Gi Pending at=v by-us done" ["c"] =>
                "v 1Gi Bound class= for=c/u-c by-us" + "c 1Gi Bound at=v by-us done has=1Gi", "";
            "selected": "v 1Gi Available class= labelled" + "c 1Gi Pending selecting" ["c"] =>
                "v 1Gi Bound class= labelled for=c/u-c by-us" + "c 1Gi Bound selecting at=v by-us done has=1Gi", "";
            "not selected": "v 1Gi Available class=" + "c 1Gi Pending selecting" ["c"] =>
                "v 1Gi Available class=" + "c 1Gi Pending selecting", "Normal FailedBinding on c";
            "late": "v 1Gi Available class=wait" + "c 1Gi Pending class=wait" ["c"] =>
                "v 1Gi Available class=wait" + "c 1Gi Pending class=wait", "Normal WaitForFirstConsumer on c";
            "late, but reserved": "v 1Gi Available class=wait for=c" + "c 1Gi Pending class=wait" ["c"] =>
                "v 1Gi Bound class=wait for=c/u-c" + "c 1Gi Bound class=wait at=v by-us done has=1Gi", "";
            "not Available yet, or not again":
                "v1 1Gi Pending class=; v2 1Gi Failed class=; v3 1Gi Released class=; v4 1Gi class=" + "c 1Gi Pending" ["c"] =>
                "v1 1Gi Pending class=; v2 1Gi Failed class=; v3 1Gi Released class=; v4 1Gi class=" + "c 1Gi Pending",
                "Normal FailedBinding on c";
            "on a chosen node": "v 1Gi Available class=wait for=c/u-c" + "c 1Gi Pending class=wait node=n" ["c"] =>
                "v 1Gi Bound class=wait for=c/u-c" + "c 1Gi Bound class=wait node=n at=v by-us done has=1Gi", "";
            "of its class, though a smaller one is free": "v1 1Gi Available class=; v2 10Gi Available class=gold" + "c 1Gi Pending class=gold" ["c"] =>
                "v1 1Gi Available class=; v2 10Gi Bound class=gold for=c/u-c by-us" + "c 1Gi Bound class=gold at=v2 by-us done has=10Gi", "";
            "without a class, though a smaller one has one": "v1 1Gi Available class=gold; v2 10Gi Available class=" + "c 1Gi Pending" ["c"] =>
                "v1 1Gi Available class=gold; v2 10Gi Bound class= for=c/u-c by-us" + "c 1Gi Bound at=v2 by-us done has=10Gi", "";
            "of its class, not of another": "v1 1Gi Available class=silver; v2 10Gi Available class=gold" + "c 1Gi Pending class=gold" ["c"] =>
                "v1 1Gi Available class=silver; v2 10Gi Bound class=gold for=c/u-c by-us" + "c 1Gi Bound class=gold at=v2 by-us done has=10Gi", "";
            "of the empty class": "v 1Gi Available" + "c 1Gi Pending class=" ["c"] =>
                "v 1Gi Bound for=c/u-c by-us" + "c 1Gi Bound class= at=v by-us done has=1Gi", "";
            "block": "v 10Gi Available class= block" + "c 10Gi Pending block" ["c"] =>
                "v 10Gi Bound class= block for=c/u-c by-us" + "c 10Gi Bound block at=v by-us done has=10Gi", "";
            "no file system, but block": "v 10Gi Available class=" + "c 10Gi Pending block" ["c"] =>
                "v 10Gi Available class=" + "c 10Gi Pending block", "Normal FailedBinding on c";
            "no block, but a file system": "v 10Gi Available class= block" + "c 10Gi Pending" ["c"] =>
                "v 10Gi Available class= block" + "c 10Gi Pending", "Normal FailedBinding on c";
            "mode differs in a class that is not there": "v 10Gi Available class=gold" + "c 10Gi Pending class=gold block" ["c"] =>
                "v 10Gi Available class=gold" + "c 10Gi Pending class=gold block", "Warning ProvisioningFailed on c";
            "class differs": "v 10Gi Available class=gold" + "c 10Gi Pending class=silver" ["c"] =>
                "v 10Gi Available class=gold" + "c 10Gi Pending class=silver", "Warning ProvisioningFailed on c";
            "reserved, block": "v 10Gi Available class= block for=c" + "c 10Gi Pending block" ["c"] =>
                "v 10Gi Bound class= block for=c/u-c" + "c 10Gi Bound block at=v by-us done has=10Gi", "";
            "reserved, of another mode": "v 10Gi Available class= block for=c" + "c 10Gi Pending" ["c"] =>
                "v 10Gi Available class= block for=c" + "c 10Gi Pending", "Normal FailedBinding on c";
            "the file system has yet to grow": "v 5Gi Available class= pre=2Gi" + "c 1Gi Pending" ["c"] =>
                "v 5Gi Bound class= pre=2Gi for=c/u-c by-us" + "c 1Gi Bound at=v by-us done has=2Gi", "";
            "a size before growth that is none": "v 5Gi Available class= pre=junk" + "c 1Gi Pending" ["c"] =>
                "v 5Gi Bound class= pre=junk for=c/u-c by-us" + "c 1Gi Bound at=v by-us done has=5Gi", "";
        },
        &[],
    );
}

#[test]
fn a_claim_that_names_its_volume() {
    check(
        rows! {
            "though a smaller one is free": "v1 10Gi Available class=; v2 1Gi Available class=" + "c 1Gi Pending at=v1" ["c"] =>
                "v1 10Gi Bound class= for=c/u-c by-us; v2 1Gi Available class=" + "c 1Gi Bound at=v1 done has=10Gi", "";
            "without the access mode": "v 1Gi Available class=" + "c 1Gi Pending at=v rwx" ["c"] =>
                "v 1Gi Available class=" + "c 1Gi Pending at=v rwx", "Warning VolumeMismatch on c";
            "not there": "" + "c 10Gi Pending at=v" ["c"] => "" + "c 10Gi Pending at=v", "";
            "not there, phase reset": "" + "c 10Gi Bound at=v has=1Gi" ["c"] => "" + "c 10Gi Pending at=v", "";
            "free": "v 1Gi Available class=" + "c 1Gi Pending at=v" ["c"] =>
                "v 1Gi Bound class= for=c/u-c by-us" + "c 1Gi Bound at=v done has=1Gi", "";
            "reserved by name": "v 1Gi Available class= for=c" + "c 1Gi Pending at=v" ["c"] =>
                "v 1Gi Bound class= for=c/u-c" + "c 1Gi Bound at=v done has=1Gi", "";
            "reserved by UID": "v 1Gi Available class= for=c/u-c" + "c 1Gi Pending at=v" ["c"] =>
                "v 1Gi Bound class= for=c/u-c" + "c 1Gi Bound at=v done has=1Gi", "";
            "somebody else's": "v 1Gi Bound class= for=d/u-d" + "c 1Gi Bound at=v" ["c"] =>
                "v 1Gi Bound class= for=d/u-d" + "c 1Gi Pending at=v", "Warning FailedBinding on c";
            // Upstream leaves the phase as it finds it.
            "somebody else's, named by us": "v 1Gi Bound class= for=d/u-d" + "c 1Gi Bound at=v by-us" ["c"] =>
                "v 1Gi Bound class= for=d/u-d" + "c 1Gi Pending at=v by-us", "Warning FailedBinding on c";
            "not selected": "v 1Gi Available class=" + "c 1Gi Pending selecting at=v" ["c"] =>
                "v 1Gi Bound class= for=c/u-c by-us" + "c 1Gi Bound selecting at=v done has=1Gi", "";
            "too small": "v 1Gi Available class=" + "c 2Gi Bound at=v" ["c"] =>
                "v 1Gi Available class=" + "c 2Gi Pending at=v", "Warning VolumeMismatch on c";
            "of another class": "v 1Gi Available class=gold" + "c 1Gi Bound at=v" ["c"] =>
                "v 1Gi Available class=gold" + "c 1Gi Pending at=v", "Warning VolumeMismatch on c";
            "of another class, modes alike": "v 10Gi Available class=gold" + "c 10Gi Pending class=silver at=v" ["c"] =>
                "v 10Gi Available class=gold" + "c 10Gi Pending class=silver at=v", "Warning VolumeMismatch on c";
            "of another attributes class": "v 1Gi Available class= vac=gold" + "c 1Gi Bound at=v" ["c"] =>
                "v 1Gi Available class= vac=gold" + "c 1Gi Pending at=v", "Warning VolumeMismatch on c";
            "of its attributes class": "v 1Gi Available class= vac=gold" + "c 1Gi Pending vac=gold at=v" ["c"] =>
                "v 1Gi Bound class= vac=gold for=c/u-c by-us" + "c 1Gi Bound vac=gold vac-now=gold at=v done has=1Gi", "";
            "of another mode": "v 10Gi Available class= block" + "c 10Gi Pending at=v" ["c"] =>
                "v 10Gi Available class= block" + "c 10Gi Pending at=v", "Warning VolumeMismatch on c";
            "block": "v 10Gi Available class= block" + "c 10Gi Pending block at=v" ["c"] =>
                "v 10Gi Bound class= block for=c/u-c by-us" + "c 10Gi Bound block at=v done has=10Gi", "";
            "going": "v 1Gi Available class= going" + "c 1Gi Pending at=v" ["c"] =>
                "v 1Gi Available class=" + "c 1Gi Pending at=v", "Warning VolumeMismatch on c";
        },
        &[],
    );
}

#[test]
fn a_claim_that_was_bound() {
    check(
        rows! {
            "without its volume's name": "" + "c 10Gi Bound by-us done" ["c"] => "" + "c 10Gi Lost by-us done", "Warning ClaimLost on c";
            "without its volume": "" + "c 10Gi Bound at=v by-us done has=1Gi" ["c"] =>
                "" + "c 10Gi Lost at=v by-us done", "Warning ClaimLost on c";
            "to one that forgot": "v 10Gi Available class=" + "c 10Gi Pending at=v by-us done" ["c"] =>
                "v 10Gi Bound class= for=c/u-c by-us" + "c 10Gi Bound at=v by-us done has=10Gi", "";
            "to one of another incarnation": "v 10Gi Available class= for=c/x" + "c 10Gi Pending at=v by-us done" ["c"] =>
                "v 10Gi Available class= for=c/x" + "c 10Gi Lost at=v by-us done", "Warning ClaimMisbound on c";
            "to its volume": "v 10Gi Available class= for=c/u-c" + "c 10Gi Pending at=v done" ["c"] =>
                "v 10Gi Bound class= for=c/u-c" + "c 10Gi Bound at=v done has=10Gi", "";
            "to somebody else's": "v 10Gi Available class= for=d/x" + "c 10Gi Pending at=v done" ["c"] =>
                "v 10Gi Available class= for=d/x" + "c 10Gi Lost at=v done", "Warning ClaimMisbound on c";
            "to one that it does not select": "v 10Gi Available class=" + "c 10Gi Pending selecting at=v by-us done" ["c"] =>
                "v 10Gi Bound class= for=c/u-c by-us" + "c 10Gi Bound selecting at=v by-us done has=10Gi", "";
            "and is": "v 10Gi Bound class= for=c/u-c" + "c 10Gi Bound at=v done has=1Gi" ["c"] =>
                "v 10Gi Bound class= for=c/u-c" + "c 10Gi Bound at=v done has=1Gi", "";
        },
        &[],
    );
}

#[test]
fn a_volume() {
    check(
        rows! {
            "new": "v 10Gi class=" + "" ["v"] => "v 10Gi Available class=" + "", "";
            "new and reserved": "v 10Gi Pending class= for=c" + "" ["v"] => "v 10Gi Available class= for=c" + "", "";
            "its claim gone": "v 10Gi Bound class= for=c/u-c" + "" ["v"] => "v 10Gi Released class= for=c/u-c" + "", "";
            "of another incarnation": "v 10Gi Bound class= for=c/x" + "c 10Gi Bound at=v done" ["v"] =>
                "v 10Gi Released class= for=c/x" + "c 10Gi Bound at=v done", "";
            "reserved by us, the claim does not know": "v 10Gi Bound class= for=c/u-c by-us" + "c 10Gi Pending class=" ["v"] =>
                "v 10Gi Bound class= for=c/u-c by-us" + "c 10Gi Pending class=", "";
            "reserved by hand, the claim does not know": "v 10Gi Bound class= for=c/u-c" + "c 10Gi Pending" ["v"] =>
                "v 10Gi Bound class= for=c/u-c" + "c 10Gi Pending", "";
            "its claim's": "v 10Gi Available class= for=c/u-c" + "c 10Gi Bound at=v" ["v"] =>
                "v 10Gi Bound class= for=c/u-c" + "c 10Gi Bound at=v", "";
            "reserved by us, bound elsewhere": "v 10Gi Bound class= for=c/u-c by-us" + "c 10Gi Bound at=w" ["v"] =>
                "v 10Gi Available class=" + "c 10Gi Bound at=w", "";
            "reserved by hand, bound elsewhere": "v 10Gi Bound class= for=c/u-c" + "c 10Gi Bound at=w" ["v"] =>
                "v 10Gi Available class= for=c" + "c 10Gi Bound at=w", "";
            "to be deleted, but its claim's": "v 10Gi Available class= policy=Delete for=c/u-c" + "c 10Gi Bound at=v" ["v"] =>
                "v 10Gi Bound class= policy=Delete for=c/u-c" + "c 10Gi Bound at=v", "";
            "made for it, but another was bound":
                "v 1Gi Bound class= policy=Delete csi for=c/u-c made-by=vendor.com/x; w 1Gi Bound class= policy=Delete csi for=c/u-c made-by=vendor.com/x"
                + "c 1Gi Bound at=w" ["v"] =>
                "v 1Gi Released class= policy=Delete csi for=c/u-c made-by=vendor.com/x; w 1Gi Bound class= policy=Delete csi for=c/u-c made-by=vendor.com/x"
                + "c 1Gi Bound at=w", "";
            "somebody else deletes it": "v 1Gi Bound class= policy=Delete csi for=c/u-c by-us" + "" ["v"] =>
                "v 1Gi Released class= policy=Delete csi for=c/u-c by-us" + "", "";
            "its driver deletes it": "v 1Gi Bound class= policy=Delete for=c/u-c by-us made-by=kubernetes.io/gce-pd migrated=pd.csi.storage.gke.io" + "" ["v"] =>
                "v 1Gi Released class= policy=Delete for=c/u-c by-us made-by=kubernetes.io/gce-pd migrated=pd.csi.storage.gke.io" + "", "";
            "of another mode than its claim": "v 10Gi Available class= for=c/u-c" + "c 10Gi Pending block" ["v"] =>
                "v 10Gi Available class= for=c/u-c" + "c 10Gi Pending block", "Warning VolumeMismatch on c, Warning VolumeMismatch on v";
            // Upstream tells of it and holds the volume for a claim that can never have it.
            "of another mode than its claim, reserved by us": "v 10Gi Available class= for=c/u-c by-us" + "c 10Gi Pending block" ["v"] =>
                "v 10Gi Available class=" + "c 10Gi Pending block", "";
        },
        &[],
    );
}

#[test]
fn a_claim_of_a_provisioner() {
    check(
        rows! {
            "class not there": "" + "c 1Gi Pending class=none" ["c"] => "" + "c 1Gi Pending class=none", "Warning ProvisioningFailed on c";
            "no class wanted": "" + "c 1Gi Pending class=" ["c"] => "" + "c 1Gi Pending class=", "Normal FailedBinding on c";
            "no class": "" + "c 1Gi Pending" ["c"] => "" + "c 1Gi Pending", "Normal FailedBinding on c";
            "external": "" + "c 1Gi Pending class=external" ["c"] =>
                "" + "c 1Gi Pending class=external asked=vendor.com/my-volume asked-beta=vendor.com/my-volume",
                "Normal ExternalProvisioning on c";
            "asked already, in today's words": "" + "c 1Gi Pending class=external asked=vendor.com/my-volume" ["c"] =>
                "" + "c 1Gi Pending class=external asked=vendor.com/my-volume", "Normal ExternalProvisioning on c";
            "asked of somebody else": "" + "c 1Gi Pending class=external asked=x asked-beta=x" ["c"] =>
                "" + "c 1Gi Pending class=external asked=vendor.com/my-volume asked-beta=vendor.com/my-volume",
                "Normal ExternalProvisioning on c";
            "unknown": "" + "c 1Gi Pending class=internal" ["c"] => "" + "c 1Gi Pending class=internal", "Warning ProvisioningFailed on c";
            "a driver took over": "" + "c 1Gi Pending class=gce" ["c"] =>
                "" + "c 1Gi Pending class=gce asked=pd.csi.storage.gke.io asked-beta=pd.csi.storage.gke.io",
                "Normal ExternalProvisioning on c";
            "a volume is there": "v 1Gi Available class=external" + "c 1Gi Pending class=external" ["c"] =>
                "v 1Gi Bound class=external for=c/u-c by-us" + "c 1Gi Bound class=external at=v by-us done has=1Gi", "";
            "a node was chosen: made there, not taken": "v 1Gi Available class=external-wait policy=Delete" + "c 1Gi Pending class=external-wait node=n" ["c"] =>
                "v 1Gi Available class=external-wait policy=Delete"
                + "c 1Gi Pending class=external-wait node=n asked=vendor.com/my-volume-wait asked-beta=vendor.com/my-volume-wait",
                "Normal ExternalProvisioning on c";
            "late without a node": "" + "c 1Gi Pending class=external-wait" ["c"] =>
                "" + "c 1Gi Pending class=external-wait", "Normal WaitForFirstConsumer on c";
            "made, reserved by the provisioner": "v 1Gi Bound class=external for=c/u-c by-us" + "c 1Gi Pending class=external" ["c"] =>
                "v 1Gi Bound class=external for=c/u-c by-us" + "c 1Gi Bound class=external at=v by-us done has=1Gi", "";
        },
        &[],
    );
}

#[test]
fn a_claim_is_given_the_default_class() {
    let default = |name: &str| {
        let mut default = class(name, "vendor.com/my-volume", false);
        default["metadata"]["annotations"] = json!({ "storageclass.kubernetes.io/is-default-class": "true" });
        default
    };
    check(
        rows! {
            "bound, the volume lost": "" + "c 1Gi Bound class=copper at=v by-us done" ["c"] =>
                "" + "c 1Gi Lost class=copper at=v by-us done", "Warning ClaimLost on c";
            "bound, the annotations lost": "" + "c 1Gi Bound class=copper at=v" ["c"] => "" + "c 1Gi Pending class=copper at=v", "";
            "of two defaults the first by name": "" + "c 1Gi Pending" ["c"] =>
                "" + "c 1Gi Pending class=aurum asked=vendor.com/my-volume asked-beta=vendor.com/my-volume",
                "Normal ExternalProvisioning on c";
            "has one": "" + "c 1Gi Pending class=copper" ["c"] => "" + "c 1Gi Pending class=copper", "Warning ProvisioningFailed on c";
            "has one of old": "" + "c 1Gi Pending legacy=copper" ["c"] => "" + "c 1Gi Pending legacy=copper", "Warning ProvisioningFailed on c";
            "wants none": "" + "c 1Gi Pending class=" ["c"] => "" + "c 1Gi Pending class=", "Normal FailedBinding on c";
            "a volume without a class is free": "v 1Gi Available" + "c 1Gi Pending" ["c"] =>
                "v 1Gi Bound for=c/u-c by-us" + "c 1Gi Bound at=v by-us done has=1Gi", "";
            "names its volume": "" + "c 1Gi Pending at=v" ["c"] => "" + "c 1Gi Pending at=v", "";
        },
        &[default("gold"), default("aurum")],
    );
}
