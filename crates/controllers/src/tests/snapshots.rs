//! Snapshots, with a driver that is a map.
use std::{cell::RefCell, rc::Rc};

use csi::{Code, ControllerRpcType, Facts};
use proptest::prelude::*;

use super::*;
use crate::Request;

const CONTENT_FINALIZER: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";

/// A driver: what it was asked, what it has, and what goes wrong next.
#[derive(Default)]
struct Store {
    calls: Vec<Call>,
    /// Name to handle.
    made: BTreeMap<String, String>,
    /// Answers that come instead of the driver's own, the first first.
    script: Vec<Result<csi::Snapshot, Failure>>,
    /// The answer from then on, instead of the driver's own.
    always: Option<Result<csi::Snapshot, Failure>>,
}

impl Store {
    fn answer(&mut self, call: &Call) -> Result<Answer, Failure> {
        self.calls.push(call.clone());
        let scripted = (!self.script.is_empty()).then(|| self.script.remove(0)).or_else(|| self.always.clone());
        match &call.request {
            Request::CreateSnapshot(r) => {
                let snapshot = match scripted {
                    Some(answer) => answer?,
                    None => {
                        let handle = format!("handle-of-{}", r.name);
                        self.made.insert(r.name.clone(), handle.clone());
                        let source_volume_id = r.source_volume_id.clone();
                        made(&handle, &source_volume_id)
                    }
                };
                Ok(Answer::CreateSnapshot(Box::new(csi::CreateSnapshotResponse { snapshot: Some(snapshot) })))
            }
            Request::DeleteSnapshot(r) => {
                if let Some(answer) = scripted {
                    answer?;
                }
                self.made.retain(|_, handle| *handle != r.snapshot_id);
                Ok(Answer::DeleteSnapshot(Box::default()))
            }
            Request::ListSnapshots(_) => {
                let entries = match scripted {
                    Some(answer) => vec![csi::SnapshotEntry { snapshot: Some(answer?) }],
                    None => Vec::new(),
                };
                let response = csi::ListSnapshotsResponse { entries, ..Default::default() };
                Ok(Answer::ListSnapshots(Box::new(response)))
            }
            other => panic!("{other:?}"),
        }
    }
}

fn made(handle: &str, volume: &str) -> csi::Snapshot {
    csi::Snapshot {
        snapshot_id: handle.into(),
        source_volume_id: volume.into(),
        ready_to_use: true,
        size_bytes: 1 << 30,
        ..Default::default()
    }
}

fn refusal(code: Code, message: &str) -> Failure {
    Failure { code: Some(code), message: message.into() }
}

fn facts(lists: bool) -> Facts {
    let mut facts = Facts { name: "d.e".into(), ..Default::default() };
    facts.controller.insert(ControllerRpcType::CreateDeleteSnapshot);
    if lists {
        facts.controller.insert(ControllerRpcType::ListSnapshots);
    }
    facts
}

fn register(cluster: &mut Cluster, facts: Facts) -> Rc<RefCell<Store>> {
    let store = Rc::new(RefCell::new(Store::default()));
    let shared = store.clone();
    cluster.world.set_drivers([(facts.name.clone(), Arc::new(facts))].into());
    cluster.driver = Some(Box::new(move |call| shared.borrow_mut().answer(call)));
    store
}

fn with(kind: &str, name: &str, more: Value) -> Value {
    let mut object = json!({ "apiVersion": "snapshot.storage.k8s.io/v1", "kind": kind, "metadata": { "name": name } });
    json_patch::merge(&mut object, &more);
    object
}

fn of_claim(name: &str, claim: &str) -> Value {
    with("VolumeSnapshot", name, json!({ "spec": { "source": { "persistentVolumeClaimName": claim } } }))
}

fn snapshot_class(name: &str, policy: &str, default: bool) -> Value {
    let annotations = json!({ "snapshot.storage.kubernetes.io/is-default-class": default.to_string() });
    let more = json!({
        "metadata": { "annotations": annotations }, "driver": "d.e", "deletionPolicy": policy,
        "parameters": {
            "speed": "high",
            "csi.storage.k8s.io/snapshotter-secret-name": "${volumesnapshot.name}",
            "csi.storage.k8s.io/snapshotter-secret-namespace": "${volumesnapshot.namespace}",
        },
    });
    with("VolumeSnapshotClass", name, more)
}

fn csi_volume(name: &str, driver: &str) -> Value {
    let source = json!({ "driver": driver, "volumeHandle": format!("handle-of-{name}") });
    pv(name, "1Gi", json!({ "spec": { "hostPath": null, "csi": source } }))
}

/// A claim that is bound to a driver's volume, and a class.
fn stage(policy: &str) -> (Cluster, Key) {
    let mut cluster = Cluster::new();
    cluster.make(csi_volume("v", "d.e"));
    let claim = cluster.make(pvc("c", "1Gi", json!({})));
    cluster.make(snapshot_class("k", policy, true));
    cluster.settle();
    assert_eq!(cluster.phase(&claim), "Bound");
    (cluster, claim)
}

fn content_of(cluster: &Cluster, snapshot: &Key) -> Key {
    let uid = cluster.get(snapshot)["metadata"]["uid"].as_str().unwrap_or_default();
    Key::new("VolumeSnapshotContent", "", &format!("snapcontent-{uid}"))
}

fn error_of<'a>(cluster: &'a Cluster, key: &Key) -> &'a str {
    cluster.get(key)["status"]["error"]["message"].as_str().unwrap_or_default()
}

#[test]
fn a_snapshot_of_a_claim_is_made_and_shown() {
    let (mut cluster, claim) = stage("Delete");
    let store = register(&mut cluster, facts(false));
    let unready = csi::Snapshot { ready_to_use: false, ..made("h", "handle-of-v") };
    store.borrow_mut().script = vec![Ok(unready), Ok(made("h", "handle-of-v"))];
    let key = cluster.make(of_claim("s", "c"));
    cluster.settle();

    let (snapshot, uid) = (cluster.get(&key), cluster.get(&key)["metadata"]["uid"].clone());
    let content_key = content_of(&cluster, &key);
    assert_eq!(snapshot["spec"]["volumeSnapshotClassName"], "k");
    let status = &snapshot["status"];
    let shown = json!({
        "boundVolumeSnapshotContentName": &*content_key.name, "readyToUse": true, "restoreSize": "1Gi",
        "creationTime": "2030-01-01T00:00:00Z",
    });
    assert_eq!(*status, shown);
    let both = [
        "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection",
        "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection",
    ];
    assert_eq!(snapshot["metadata"]["finalizers"], json!(both));

    let content = cluster.get(&content_key);
    let spec = &content["spec"];
    assert_eq!(content["metadata"]["finalizers"], json!([CONTENT_FINALIZER]));
    assert_eq!(spec["source"], json!({ "volumeHandle": "handle-of-v" }));
    assert_eq!((&spec["driver"], &spec["deletionPolicy"]), (&json!("d.e"), &json!("Delete")));
    assert_eq!((&spec["volumeSnapshotClassName"], &spec["sourceVolumeMode"]), (&json!("k"), &json!("Filesystem")));
    let reference = &spec["volumeSnapshotRef"];
    assert_eq!((&reference["name"], &reference["uid"]), (&json!("s"), &uid));
    let annotations = json!({
        "snapshot.storage.kubernetes.io/deletion-secret-name": "s",
        "snapshot.storage.kubernetes.io/deletion-secret-namespace": "ns",
    });
    assert_eq!(content["metadata"]["annotations"], annotations, "nothing is being created any more");
    assert_eq!(content["status"]["creationTime"], 1_893_456_000_000_000_000_i64);
    assert_eq!(
        (&content["status"]["snapshotHandle"], &content["status"]["restoreSize"]),
        (&json!("h"), &json!(1 << 30))
    );

    let calls = std::mem::take(&mut store.borrow_mut().calls);
    let asked = csi::CreateSnapshotRequest {
        source_volume_id: "handle-of-v".into(),
        name: format!("snapshot-{}", uid.as_str().unwrap()),
        parameters: [("speed".into(), "high".into())].into(),
        ..Default::default()
    };
    let call = Call::new("d.e", asked).with_secret(Some(("ns".into(), "s".into())));
    assert_eq!(calls, [call.clone(), call], "asked until it was ready");
    assert_eq!(cluster.get(&claim)["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    for (reason, message) in [
        ("CreatingSnapshot", "Waiting for a snapshot ns/s to be created by the CSI driver."),
        ("SnapshotCreated", "Snapshot ns/s was successfully created by the CSI driver."),
        ("SnapshotReady", "Snapshot ns/s is ready to use."),
    ] {
        assert_eq!(cluster.noted(reason), [message]);
    }
}

/// What a snapshot says, and in which Event, in a cluster that lacks something.
#[track_caller]
fn complains(change: impl FnOnce(&mut Cluster) -> Value, reason: &str, message: &str) {
    let (mut cluster, _) = stage("Delete");
    let snapshot = change(&mut cluster);
    let key = cluster.make(snapshot);
    cluster.settle();
    assert_eq!(error_of(&cluster, &key), message);
    assert!(cluster.noted(reason).contains(&message), "{:?}", cluster.notes);
}

#[test]
fn what_keeps_a_snapshot_is_told() {
    const DEFAULT: &str = "SetDefaultSnapshotClassFailed";
    const CREATE: &str = "SnapshotContentCreationFailed";
    let class = Key::new("VolumeSnapshotClass", "", "k");
    complains(
        |_| {
            with(
                "VolumeSnapshot",
                "s",
                json!({ "spec": { "source": { "persistentVolumeClaimName": "c" }, "volumeSnapshotClassName": "x" } }),
            )
        },
        "GetSnapshotClassFailed",
        "Failed to get snapshot class with error volumesnapshotclass.snapshot.storage.k8s.io \"x\" not found",
    );
    complains(
        |_| of_claim("s", "x"),
        DEFAULT,
        "Failed to set default snapshot class with error failed to retrieve PVC x from the lister: \
         \"persistentvolumeclaim \\\"x\\\" not found\"",
    );
    complains(
        |cluster| {
            cluster.make(pvc("unbound", "9Gi", json!({})));
            of_claim("s", "unbound")
        },
        DEFAULT,
        "Failed to set default snapshot class with error the PVC unbound is not yet bound to a PV, will not attempt to \
         take a snapshot",
    );
    complains(
        |cluster| {
            cluster.make(pv("h", "2Gi", json!({})));
            cluster.make(pvc("host", "2Gi", json!({})));
            of_claim("s", "host")
        },
        DEFAULT,
        "Failed to set default snapshot class with error snapshotting non-CSI volumes is not supported, snapshot:ns/s",
    );
    complains(
        |cluster| {
            cluster.edit(&class, json!({ "driver": "x.y" }));
            of_claim("s", "c")
        },
        DEFAULT,
        "Failed to set default snapshot class with error cannot find default snapshot class",
    );
    complains(
        |cluster| {
            cluster.make(snapshot_class("l", "Delete", true));
            of_claim("s", "c")
        },
        DEFAULT,
        "Failed to set default snapshot class with error 2 default snapshot classes were found",
    );
    complains(
        |cluster| {
            let half = json!({ "parameters": { "csi.storage.k8s.io/snapshotter-secret-name": null } });
            cluster.edit(&class, half);
            of_claim("s", "c")
        },
        CREATE,
        "Failed to create snapshot content with error failed to get input parameters to create snapshot s: \"failed to \
         get name and namespace template from params: either name and namespace for Snapshotter secrets specified, Both \
         must be specified\"",
    );
    complains(
        |cluster| {
            cluster.edit(&class, json!({ "driver": "x.y" }));
            let named = json!({ "spec": { "volumeSnapshotClassName": "k" } });
            let mut snapshot = of_claim("s", "c");
            json_patch::merge(&mut snapshot, &named);
            snapshot
        },
        CREATE,
        "Failed to create snapshot content with error VolumeSnapshotClass k is of driver x.y, but volume v is of driver d.e",
    );
    complains(
        |cluster| {
            let pod = cluster.make(pod("p", claiming("c")));
            cluster.edit(&pod, json!({ "spec": { "nodeName": "n" } }));
            cluster.make(node("n", json!({})));
            cluster.delete(&Key::new("PersistentVolumeClaim", "ns", "c"), None);
            of_claim("s", "c")
        },
        CREATE,
        "Failed to create snapshot content with error snapshot controller failed to update c on API server: cannot add \
         finalizer on claim because it is being deleted",
    );
    complains(|_| of_content("s", "x"), "SnapshotContentMissing", "VolumeSnapshotContent is missing");
    complains(
        |cluster| {
            cluster.make(existing("e", "other"));
            of_content("s", "e")
        },
        "SnapshotContentMisbound",
        "VolumeSnapshotContent [e] is bound to a different snapshot",
    );
    complains(
        |cluster| {
            let mut content = existing("e", "s");
            content["spec"]["source"] = json!({ "volumeHandle": "v" });
            cluster.make(content);
            of_content("s", "e")
        },
        "SnapshotContentMismatch",
        "VolumeSnapshotContent is dynamically provisioned while expecting a pre-provisioned one",
    );
}

fn of_content(name: &str, content: &str) -> Value {
    with("VolumeSnapshot", name, json!({ "spec": { "source": { "volumeSnapshotContentName": content } } }))
}

/// A content of a snapshot that exists already.
fn existing(name: &str, snapshot: &str) -> Value {
    let spec = json!({
        "driver": "d.e", "deletionPolicy": "Retain", "source": { "snapshotHandle": "old" },
        "volumeSnapshotRef": { "name": snapshot, "namespace": "ns" },
    });
    with("VolumeSnapshotContent", name, json!({ "spec": spec }))
}

#[test]
fn what_was_wrong_and_is_not_any_more_is_forgotten() {
    let (mut cluster, _) = stage("Delete");
    register(&mut cluster, facts(false));
    let key = cluster.make(of_claim("s", "late"));
    cluster.settle();
    assert_eq!(cluster.get(&key)["status"]["readyToUse"], Value::Null, "nothing is known of it");
    cluster.make(csi_volume("w", "d.e"));
    cluster.make(pvc("late", "1Gi", json!({})));
    cluster.settle();
    assert_eq!(cluster.get(&key)["status"]["readyToUse"], true);
    assert_eq!(error_of(&cluster, &key), "");
}

#[test]
fn a_snapshot_that_exists_is_bound_both_ways() {
    for lists in [false, true] {
        let (mut cluster, _) = stage("Delete");
        let store = register(&mut cluster, facts(lists));
        store.borrow_mut().script = vec![Ok(csi::Snapshot { size_bytes: 5 << 30, ..made("old", "") })];
        let content = cluster.make(existing("e", "s"));
        let mut snapshot = of_content("s", "e");
        snapshot["spec"]["volumeSnapshotClassName"] = json!("k");
        let key = cluster.make(snapshot);
        cluster.settle();
        let (snapshot, content) = (cluster.get(&key), cluster.get(&content));
        assert_eq!(content["spec"]["volumeSnapshotRef"]["uid"], snapshot["metadata"]["uid"]);
        assert_eq!(content["spec"]["volumeSnapshotClassName"], "k");
        assert_eq!(content["metadata"]["finalizers"], json!([CONTENT_FINALIZER]));
        assert_eq!(snapshot["status"]["boundVolumeSnapshotContentName"], "e");
        assert_eq!(snapshot["status"]["readyToUse"], true);
        let size = if lists { json!("5Gi") } else { Value::Null };
        assert_eq!(snapshot["status"]["restoreSize"], size, "{lists}");
        assert_eq!(store.borrow().calls.len(), usize::from(lists));
    }
}

#[test]
fn a_snapshot_that_does_not_exist_is_not_ready() {
    let (mut cluster, _) = stage("Delete");
    register(&mut cluster, facts(true));
    let content = cluster.make(existing("e", "s"));
    let key = cluster.make(of_content("s", "e"));
    cluster.settle();
    let words = "Failed to check and update snapshot content: failed to list snapshot for content e: \"can not find \
                 snapshot for snapshotID old\"";
    assert_eq!((error_of(&cluster, &content), error_of(&cluster, &key)), (words, words));
    assert_eq!(cluster.noted("SnapshotContentCheckandUpdateFailed"), [words]);
}

#[test]
fn what_is_behind_goes_or_stays_as_its_policy_says() {
    for (policy, goes) in [("Delete", true), ("Retain", false)] {
        let (mut cluster, _) = stage(policy);
        let store = register(&mut cluster, facts(false));
        let key = cluster.make(of_claim("s", "c"));
        cluster.settle();
        let content = content_of(&cluster, &key);
        cluster.delete(&key, None);
        cluster.settle();
        assert!(cluster.get(&key).is_null(), "{policy}");
        assert_eq!(cluster.get(&content).is_null(), goes, "{policy}");
        assert_eq!(store.borrow().made.is_empty(), goes, "{policy}");
        cluster.delete(&content, None);
        cluster.settle();
        assert!(cluster.get(&content).is_null(), "{policy}");
        assert_eq!(store.borrow().made.is_empty(), goes, "what is to stay stays");
    }
}

#[test]
fn a_content_that_is_deleted_first_goes_with_its_snapshot() {
    let (mut cluster, _) = stage("Delete");
    let store = register(&mut cluster, facts(false));
    let key = cluster.make(of_claim("s", "c"));
    cluster.settle();
    let content = content_of(&cluster, &key);
    cluster.delete(&content, None);
    cluster.settle();
    assert!(!cluster.get(&content).is_null() && !store.borrow().made.is_empty());
    cluster.edit(&key, json!({ "metadata": { "finalizers": null } }));
    cluster.delete(&key, None);
    cluster.settle();
    assert!(cluster.get(&content).is_null() && store.borrow().made.is_empty(), "nobody needs it any more");
}

#[test]
fn a_snapshot_outlives_the_making_of_volumes_from_it() {
    let (mut cluster, _) = stage("Delete");
    register(&mut cluster, facts(false));
    let key = cluster.make(of_claim("s", "c"));
    cluster.settle();
    let source = json!({ "kind": "VolumeSnapshot", "apiGroup": "snapshot.storage.k8s.io", "name": "s" });
    let restored = cluster.make(pvc("r", "1Gi", json!({ "spec": { "dataSource": source, "storageClassName": "" } })));
    cluster.delete(&key, None);
    cluster.settle();
    assert!(!cluster.get(&content_of(&cluster, &key)).is_null());
    assert_eq!(cluster.noted("SnapshotDeletePending"), ["Snapshot is being used to restore a PVC"]);
    cluster.delete(&restored, None);
    cluster.settle();
    assert!(cluster.get(&key).is_null());
}

#[test]
fn a_claim_outlives_the_making_of_its_snapshots() {
    let (mut cluster, claim) = stage("Delete");
    let key = cluster.make(of_claim("s", "c"));
    cluster.settle();
    cluster.delete(&claim, None);
    cluster.settle();
    assert_eq!(cluster.phase(&claim), "Bound", "the snapshot is not made yet");
    register(&mut cluster, facts(false));
    cluster.settle();
    assert_eq!(cluster.get(&key)["status"]["readyToUse"], true);
    assert_eq!(cluster.phase(&claim), "gone");
}

#[test]
fn what_the_driver_refuses_is_told_and_tried_again() {
    let (mut cluster, _) = stage("Delete");
    let store = register(&mut cluster, facts(false));
    store.borrow_mut().always = Some(Err(refusal(Code::ResourceExhausted, "no room")));
    let key = cluster.make(of_claim("s", "c"));
    cluster.settle();
    let content = content_of(&cluster, &key);
    let words = "Failed to create snapshot: failed to take snapshot of the volume handle-of-v: \"rpc error: code = \
                 ResourceExhausted desc = no room\"";
    assert_eq!((error_of(&cluster, &content), error_of(&cluster, &key)), (words, words));
    assert_eq!(cluster.noted("SnapshotCreationFailed"), [words]);
    assert_eq!(cluster.get(&key)["status"]["readyToUse"], false);
    store.borrow_mut().always = None;
    cluster.settle();
    assert_eq!((error_of(&cluster, &content), error_of(&cluster, &key)), ("", ""));
    assert_eq!(cluster.get(&key)["status"]["readyToUse"], true);
}

#[test]
fn a_content_waits_for_a_driver_that_may_be_at_it() {
    let (mut cluster, _) = stage("Delete");
    let store = register(&mut cluster, facts(false));
    store.borrow_mut().always = Some(Err(refusal(Code::DeadlineExceeded, "late")));
    let key = cluster.make(of_claim("s", "c"));
    cluster.settle();
    let content = content_of(&cluster, &key);
    cluster.delete(&key, None);
    cluster.settle();
    assert!(!cluster.get(&content).is_null(), "the driver may have made it");
    store.borrow_mut().always = Some(Err(refusal(Code::NotFound, "the volume is gone")));
    cluster.settle();
    assert!(cluster.get(&content).is_null() && cluster.get(&key).is_null());
    assert!(store.borrow().made.is_empty());
}

#[test]
fn a_volume_has_one_snapshot_made_at_a_time() {
    let (mut cluster, _) = stage("Delete");
    let keys = ["a", "b"].map(|name| cluster.make(of_claim(name, "c")));
    cluster.settle();
    let contents = keys.map(|key| content_of(&cluster, &key));
    cluster.world.set_drivers([("d.e".to_owned(), Arc::new(facts(false)))].into());
    let asks = |cluster: &mut Cluster, key: &Key| {
        let objects = cluster.objects.clone();
        cluster.refresh(&objects);
        let snapshotter = CONTROLLERS.iter().find(|c| c.name == "snapshotter").unwrap();
        let context = Context { now: cluster.now, root_ca: None };
        (snapshotter.decide)(key, &cluster.world, &context).action.is_some()
    };
    assert_eq!(contents.each_ref().map(|key| asks(&mut cluster, key)), [true, false]);
    let begun = |yes: Value| {
        let name = "snapshot.storage.kubernetes.io/volumesnapshot-being-created";
        json!({ "metadata": { "annotations": { name: yes } } })
    };
    cluster.edit(&contents[1], begun(json!("yes")));
    assert_eq!(contents.each_ref().map(|key| asks(&mut cluster, key)), [false, true], "the one that was begun with");
    cluster.edit(&contents[1], begun(Value::Null));
    cluster.edit(&contents[0], json!({ "status": { "error": { "message": "no" } } }));
    assert_eq!(contents.each_ref().map(|key| asks(&mut cluster, key)), [false, true], "the one that failed waits");
    cluster.edit(&contents[1], json!({ "status": { "snapshotHandle": "h", "readyToUse": true } }));
    assert!(asks(&mut cluster, &contents[0]));
    register(&mut cluster, facts(false));
    cluster.settle();
    let ready = cluster.objects.values().filter(|o| o["kind"] == "VolumeSnapshot" && o["status"]["readyToUse"] == true);
    assert_eq!(ready.count(), 2);
}

#[test]
fn a_driver_that_lies_is_not_believed() {
    let lies = [
        (csi::Snapshot::default(), "driver d.e answered CreateSnapshot without saying which snapshot it made"),
        (made("h", "other"), "driver d.e answered with snapshot \\\"h\\\", which is of volume other"),
        (made("first", "handle-of-v"), "driver d.e answered with snapshot \\\"first\\\", but that is what"),
    ];
    for (lie, words) in lies {
        let (mut cluster, _) = stage("Delete");
        let store = register(&mut cluster, facts(false));
        store.borrow_mut().script = vec![Ok(made("first", "handle-of-v"))];
        cluster.make(of_claim("a", "c"));
        cluster.settle();
        store.borrow_mut().always = Some(Ok(lie));
        let key = cluster.make(of_claim("s", "c"));
        cluster.settle();
        assert!(error_of(&cluster, &key).contains(words), "{words}: {}", error_of(&cluster, &key));
        assert_eq!(cluster.get(&content_of(&cluster, &key))["status"]["snapshotHandle"], Value::Null);
    }
}

#[test]
fn a_driver_without_snapshots_is_named() {
    let (mut cluster, _) = stage("Delete");
    register(&mut cluster, Facts { name: "d.e".into(), ..Default::default() });
    let key = cluster.make(of_claim("s", "c"));
    cluster.settle();
    let words = "Failed to create snapshot: CSI driver d.e does not support snapshots: controller \
                 CREATE_DELETE_SNAPSHOT capability is not reported";
    assert_eq!(error_of(&cluster, &key), words);
}

#[test]
fn a_content_that_is_lost_is_not_made_anew() {
    let (mut cluster, _) = stage("Delete");
    let store = register(&mut cluster, facts(false));
    let key = cluster.make(of_claim("s", "c"));
    cluster.settle();
    let content = content_of(&cluster, &key);
    cluster.edit(&content, json!({ "metadata": { "finalizers": null } }));
    cluster.delete(&content, None);
    let asked = store.borrow().calls.len();
    cluster.settle();
    assert_eq!(error_of(&cluster, &key), "VolumeSnapshotContent is missing");
    assert_eq!(cluster.get(&key)["status"]["readyToUse"], false);
    assert_eq!(store.borrow().calls.len(), asked, "another moment is another snapshot");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever is lost or overtaken: a snapshot comes to be ready, and leaves nothing behind.
    #[test]
    fn nothing_is_left_of_a_snapshot(
        fates in prop::collection::vec(prop_oneof![Just(Fate::Happens), Just(Fate::Lost), Just(Fate::Stale)], 0..40),
        failures in prop::collection::vec(any::<bool>(), 0..4),
        early in any::<bool>(),
    ) {
        let (mut cluster, claim) = stage("Delete");
        let store = register(&mut cluster, facts(false));
        store.borrow_mut().script = failures
            .iter()
            .map(|last| Err(refusal(if *last { Code::Internal } else { Code::Aborted }, "no")))
            .collect();
        cluster.fates = fates;
        let key = cluster.make(of_claim("s", "c"));
        if early {
            for _ in 0..3 {
                cluster.round(&mut |_| {});
            }
        } else {
            for _ in 0..5 {
                cluster.settle();
            }
            prop_assert_eq!(&cluster.get(&key)["status"]["readyToUse"], &json!(true));
        }
        cluster.delete(&key, None);
        for _ in 0..5 {
            cluster.settle();
        }
        prop_assert!(cluster.get(&key).is_null());
        prop_assert!(store.borrow().made.is_empty());
        prop_assert!(cluster.objects.keys().all(|k| k.kind != "VolumeSnapshotContent"));
        prop_assert_eq!(&cluster.get(&claim)["metadata"]["finalizers"], &json!(["kubernetes.io/pvc-protection"]));
    }
}
