//! Snapshots, their contents and classes.
use serde_json::{Value, json};

use super::*;

fn messages(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
}

/// Checks that creating the object is refused with exactly these sentences.
#[track_caller]
fn says(name: &str, body: Value, want: &[&str]) {
    let object = created(name, body);
    assert_eq!(messages(&kind(name).strategy.validate(&object)), want, "{object:#}");
}

/// Checks that a change is refused with exactly these sentences.
#[track_caller]
fn says_of_update(name: &str, old: Value, change: Value, want: &[&str]) {
    let fields: Vec<&str> = want.iter().map(|w| w.split(": ").next().expect("a field")).collect();
    let pairs: Vec<_> = fields.into_iter().map(|field| (field, INVALID)).collect();
    assert_eq!(messages(&check_update(name, old, change, &pairs)), want);
}

fn snapshot(source: Value) -> Value {
    json!({"spec": {"source": source}})
}

fn content(source: Value) -> Value {
    json!({"spec": {"source": source, "deletionPolicy": "Delete", "driver": "d.e",
        "volumeSnapshotRef": {"name": "s", "namespace": "n"}}})
}

const UNCHECKED: &str = "<nil>: Invalid value: \"null\": some validation rules were not checked because the object was \
                         invalid; correct the existing errors to complete validation";

#[test]
fn a_snapshot_has_one_source() {
    const ONE: &str = "spec.source: Invalid value: exactly one of volumeSnapshotContentName and persistentVolumeClaimName must be set";
    says("VolumeSnapshot", snapshot(json!({"persistentVolumeClaimName": "c"})), &[]);
    says("VolumeSnapshot", snapshot(json!({"volumeSnapshotContentName": "v"})), &[]);
    says("VolumeSnapshot", snapshot(json!({})), &[ONE]);
    says(
        "VolumeSnapshot",
        snapshot(json!({"persistentVolumeClaimName": "c", "volumeSnapshotContentName": "v"})),
        &[ONE],
    );
    says("VolumeSnapshot", json!({}), &["spec: Required value", UNCHECKED]);
    let class = json!({"spec": {"volumeSnapshotClassName": "k"}});
    says("VolumeSnapshot", class, &["spec.source: Required value", UNCHECKED]);
    let class = json!({"spec": {"source": {"persistentVolumeClaimName": "c"}, "volumeSnapshotClassName": ""}});
    says(
        "VolumeSnapshot",
        class,
        &[
            "spec.volumeSnapshotClassName: Invalid value: \"\": volumeSnapshotClassName must not be the empty string when set",
        ],
    );
}

#[test]
fn a_snapshot_keeps_its_source() {
    let of_claim = snapshot(json!({"persistentVolumeClaimName": "c"}));
    let of_content = snapshot(json!({"volumeSnapshotContentName": "v"}));
    let says = |old: &Value, source: Value, want: &[&str]| {
        says_of_update("VolumeSnapshot", old.clone(), snapshot(source), want);
    };
    says(&of_claim, json!({}), &[]);
    says(
        &of_claim,
        json!({"persistentVolumeClaimName": "other"}),
        &["spec.source.persistentVolumeClaimName: Invalid value: \"other\": persistentVolumeClaimName is immutable"],
    );
    says(
        &of_claim,
        json!({"persistentVolumeClaimName": null, "volumeSnapshotContentName": "v"}),
        &["spec.source: Invalid value: persistentVolumeClaimName is required once set"],
    );
    says(
        &of_content,
        json!({"volumeSnapshotContentName": "w"}),
        &["spec.source.volumeSnapshotContentName: Invalid value: \"w\": volumeSnapshotContentName is immutable"],
    );
    says(
        &of_content,
        json!({"volumeSnapshotContentName": null, "persistentVolumeClaimName": "c"}),
        &["spec.source: Invalid value: volumeSnapshotContentName is required once set"],
    );
}

#[test]
fn a_content_has_one_source_and_a_snapshot() {
    const ONE: &str = "spec.source: Invalid value: exactly one of volumeHandle and snapshotHandle must be set";
    const BOTH: &str = "spec.volumeSnapshotRef: Invalid value: both spec.volumeSnapshotRef.name and \
                        spec.volumeSnapshotRef.namespace must be set";
    says("VolumeSnapshotContent", content(json!({"volumeHandle": "v"})), &[]);
    says("VolumeSnapshotContent", content(json!({"snapshotHandle": "s"})), &[]);
    says("VolumeSnapshotContent", content(json!({})), &[ONE]);
    says("VolumeSnapshotContent", content(json!({"volumeHandle": "v", "snapshotHandle": "s"})), &[ONE]);
    for reference in [json!({"name": "s"}), json!({"namespace": "n"})] {
        let mut without = content(json!({"volumeHandle": "v"}));
        without["spec"]["volumeSnapshotRef"] = reference;
        says("VolumeSnapshotContent", without, &[BOTH]);
    }
    let mut wrong = content(json!({}));
    wrong["spec"]["deletionPolicy"] = json!("Keep");
    wrong["spec"]["driver"] = json!("");
    says(
        "VolumeSnapshotContent",
        wrong,
        &[
            "spec.deletionPolicy: Unsupported value: \"Keep\": supported values: \"Delete\", \"Retain\"",
            "spec.driver: Required value",
            UNCHECKED,
        ],
    );
    says("VolumeSnapshotContent", json!({}), &["spec: Required value", UNCHECKED]);
}

#[test]
fn a_content_keeps_its_source() {
    let volume = content(json!({"volumeHandle": "v"}));
    let snapshot = content(json!({"snapshotHandle": "s"}));
    let says = |old: &Value, spec: Value, want: &[&str]| {
        says_of_update("VolumeSnapshotContent", old.clone(), json!({"spec": spec}), want);
    };
    says(&snapshot, json!({"volumeSnapshotRef": {"uid": "u"}, "volumeSnapshotClassName": "k"}), &[]);
    says(&volume, json!({"deletionPolicy": "Retain", "sourceVolumeMode": "Block"}), &[]);
    says(
        &volume,
        json!({"source": {"volumeHandle": "w"}}),
        &["spec.source.volumeHandle: Invalid value: \"w\": volumeHandle is immutable"],
    );
    says(
        &volume,
        json!({"source": {"volumeHandle": null, "snapshotHandle": "s"}}),
        &["spec.source: Invalid value: volumeHandle is required once set"],
    );
    says(
        &snapshot,
        json!({"source": {"snapshotHandle": "t"}}),
        &["spec.source.snapshotHandle: Invalid value: \"t\": snapshotHandle is immutable"],
    );
    says(
        &snapshot,
        json!({"source": {"snapshotHandle": null, "volumeHandle": "v"}}),
        &["spec.source: Invalid value: snapshotHandle is required once set"],
    );
    let mut of_block = volume.clone();
    of_block["spec"]["sourceVolumeMode"] = json!("Block");
    says(
        &of_block,
        json!({"sourceVolumeMode": "Filesystem"}),
        &["spec.sourceVolumeMode: Invalid value: \"Filesystem\": sourceVolumeMode is immutable"],
    );
    says(&of_block, json!({"sourceVolumeMode": null}), &["spec: Invalid value: sourceVolumeMode is required once set"]);
    let mut status = created("VolumeSnapshotContent", volume);
    status["status"] = json!({"restoreSize": -1});
    let errors = kind("VolumeSnapshotContent").strategy.validate_status_update(&status, &status);
    assert_eq!(
        messages(&errors),
        ["status.restoreSize: Invalid value: -1: status.restoreSize in body should be greater than or equal to 0"]
    );
}

#[test]
fn a_class_names_a_driver_and_a_policy() {
    says("VolumeSnapshotClass", json!({"driver": "d.e", "deletionPolicy": "Retain"}), &[]);
    says("VolumeSnapshotClass", json!({}), &["deletionPolicy: Required value", "driver: Required value", UNCHECKED]);
    check_update(
        "VolumeSnapshotClass",
        json!({"driver": "d.e", "deletionPolicy": "Retain"}),
        json!({"deletionPolicy": "Delete"}),
        &[],
    );
}

#[test]
fn changes_of_a_class_count_although_it_has_no_spec() {
    let strategy = kind("VolumeSnapshotClass").strategy;
    let old = created("VolumeSnapshotClass", json!({"driver": "d.e", "deletionPolicy": "Retain"}));
    let mut new = old.clone();
    new["metadata"]["labels"] = json!({"a": "b"});
    assert_eq!(strategy.generation_changes(&new, &old), Some(false));
    new["parameters"] = json!({"a": "b"});
    assert_eq!(strategy.generation_changes(&new, &old), Some(true));
    assert_eq!(strategy.generation_changes(&old, &new), Some(true));
}

#[test]
fn what_is_not_known_yet_is_an_empty_cell() {
    let of = |name, body| super::rows::row(name, body);
    assert_eq!(
        of("VolumeSnapshot", snapshot(json!({"persistentVolumeClaimName": "c"}))),
        [
            json!("x"),
            Value::Null,
            json!("c"),
            Value::Null,
            Value::Null,
            Value::Null,
            Value::Null,
            Value::Null,
            json!("60m")
        ]
    );
    let mut ready = snapshot(json!({"volumeSnapshotContentName": "v"}));
    ready["spec"]["volumeSnapshotClassName"] = json!("k");
    ready["status"] = json!({"readyToUse": true, "boundVolumeSnapshotContentName": "v", "restoreSize": "1Gi",
        "creationTime": "2020-01-01T00:58:00Z"});
    assert_eq!(
        of("VolumeSnapshot", ready),
        [
            json!("x"),
            json!(true),
            Value::Null,
            json!("v"),
            json!("1Gi"),
            json!("k"),
            json!("v"),
            json!("2m"),
            json!("60m")
        ]
    );
    let mut made = content(json!({"volumeHandle": "v"}));
    made["status"] = json!({"readyToUse": false, "restoreSize": 1024});
    assert_eq!(
        of("VolumeSnapshotContent", made),
        [
            json!("x"),
            json!(false),
            json!(1024),
            json!("Delete"),
            json!("d.e"),
            Value::Null,
            json!("s"),
            json!("n"),
            json!("60m")
        ]
    );
    let class = json!({"driver": "d.e", "deletionPolicy": "Retain"});
    assert_eq!(of("VolumeSnapshotClass", class), [json!("x"), json!("d.e"), json!("Retain"), json!("60m")]);
}

#[test]
fn their_schemas_have_the_form_of_the_librarys() {
    use crate::schema::{DecodeError, decode, definition};
    let schemas = crate::schema::library_schemas(
        ["io.k8s.storage.snapshot.v1.VolumeSnapshotContent"].into_iter(),
        "/definitions",
    );
    let spec = &schemas["io.k8s.storage.snapshot.v1.VolumeSnapshotContentSpec"];
    assert_eq!(spec["required"], json!(["deletionPolicy", "driver", "source", "volumeSnapshotRef"]));
    assert_eq!(spec["properties"]["driver"]["type"], "string");
    assert_eq!(
        spec["properties"]["source"]["$ref"],
        "#/definitions/io.k8s.storage.snapshot.v1.VolumeSnapshotContentSource"
    );
    let text = serde_json::to_string(&schemas).expect("JSON");
    for foreign in ["anyOf", "\"null\"", "\"default\":"] {
        assert!(!text.contains(foreign), "{foreign} in {text}");
    }
    let status =
        definition("io.k8s.storage.snapshot.v1.VolumeSnapshot").and_then(|d| d.field("status")).expect("a field");
    assert!(matches!(status.kind, crate::schema::Type::Object(of) if of.short_name() == "VolumeSnapshotStatus"));
    let decoded = decode(
        "io.k8s.storage.snapshot.v1.VolumeSnapshot",
        br#"{"spec":{"source":{"persistentVolumeClaimName":"c","other":1}},"status":{"restoreSize":"1Gi","creationTime":"2020-01-01T00:00:00Z"}}"#,
    )
    .expect("a snapshot");
    assert_eq!(decoded.problems, ["unknown field \"spec.source.other\""]);
    assert_eq!(decoded.value["status"], json!({"restoreSize": "1Gi", "creationTime": "2020-01-01T00:00:00Z"}));
    let wrong = decode("io.k8s.storage.snapshot.v1.VolumeSnapshotContent", br#"{"status":{"creationTime":"now"}}"#);
    assert!(matches!(wrong, Err(DecodeError::Mismatch { field, .. }) if field == "status.creationTime"));
}
