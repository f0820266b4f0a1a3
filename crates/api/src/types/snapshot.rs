//! The rules of `snapshot.storage.k8s.io`. Elsewhere these kinds come as custom resources; messages are those of the
//! published definitions.
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::Value;

use super::{NAME, col};
use crate::age::age;
use crate::contract::Column;
use crate::field::{Errors, Path};
use crate::snapshot::{
    DELETE, RETAIN, VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent, VolumeSnapshotContentSpec,
    VolumeSnapshotSpec,
};
use crate::typed::Rules;

/// Rules over several fields are not looked at in an object whose fields are wrong by themselves.
fn checked_by_itself(e: &mut Errors) -> bool {
    let right = e.is_empty();
    if !right {
        const REST: &str = "some validation rules were not checked because the object was invalid; correct the existing \
                            errors to complete validation";
        e.invalid(&Path::top("<nil>"), &"null", REST);
    }
    right
}

/// Of two fields, exactly one may be set.
fn exactly_one<T>(at: &Path<'_>, fields: [(&str, &Option<T>); 2], e: &mut Errors) {
    let [(first, a), (second, b)] = fields;
    if a.is_some() == b.is_some() {
        e.invalid_whole(at, &format!("exactly one of {first} and {second} must be set"));
    }
}

/// A field that, once set, stays as it is.
fn stays(at: &Path<'_>, name: &str, new: &Option<String>, old: &Option<String>, e: &mut Errors) {
    match (old, new) {
        (Some(_), None) => e.invalid_whole(at, &format!("{name} is required once set")),
        (Some(old), Some(new)) if old != new => {
            e.invalid(&at.field(name), new, &format!("{name} is immutable"));
        }
        _ => {}
    }
}

fn deletion_policy(at: &Path<'_>, policy: &str, e: &mut Errors) {
    if e.need(at, policy) {
        e.one_of(at, policy, &[DELETE, RETAIN]);
    }
}

fn cell<T: Into<Value> + Clone>(value: Option<&T>) -> Value {
    value.cloned().map_or(Value::Null, Into::into)
}

const AGE: Column = col("Age", "date", "Time since the object was created.");

impl VolumeSnapshot {
    fn check(&self, old: Option<&Self>, e: &mut Errors) {
        let spec_at = Path::top("spec");
        let at = spec_at.field("source");
        match &self.spec.source {
            Some(_) => {}
            None if self.spec == VolumeSnapshotSpec::default() => e.required(&spec_at, ""),
            None => e.required(&at, ""),
        }
        let (true, Some(source)) = (checked_by_itself(e), &self.spec.source) else { return };
        let (claim, content) = (&source.persistent_volume_claim_name, &source.volume_snapshot_content_name);
        if let Some(was) = old.and_then(|old| old.spec.source.as_ref()) {
            stays(&at, "persistentVolumeClaimName", claim, &was.persistent_volume_claim_name, e);
            stays(&at, "volumeSnapshotContentName", content, &was.volume_snapshot_content_name, e);
        }
        exactly_one(&at, [("volumeSnapshotContentName", content), ("persistentVolumeClaimName", claim)], e);
        if let Some("") = self.spec.volume_snapshot_class_name.as_deref() {
            const EMPTY: &str = "volumeSnapshotClassName must not be the empty string when set";
            e.invalid(&spec_at.field("volumeSnapshotClassName"), &"", EMPTY);
        }
    }
}

impl Rules for VolumeSnapshot {
    const COLUMNS: &'static [Column] = &[
        NAME,
        col("ReadyToUse", "boolean", "Whether a volume can be made from the snapshot."),
        col("SourcePVC", "string", "The claim that the snapshot is of."),
        col("SourceSnapshotContent", "string", "The VolumeSnapshotContent of a snapshot that existed already."),
        col("RestoreSize", "string", "The least size of a volume made from it."),
        col("SnapshotClass", "string", "The VolumeSnapshotClass asked for."),
        col("SnapshotContent", "string", "The VolumeSnapshotContent that it is bound to, or is about to be."),
        col("CreationTime", "date", "The moment that the snapshot shows."),
        AGE,
    ];
    const STATUS: bool = true;
    const GENERATION: bool = true;

    fn default(&mut self) {}

    fn validate(&self, e: &mut Errors) {
        self.check(None, e);
    }

    fn validate_update(&self, old: &Self, e: &mut Errors) {
        self.check(Some(old), e);
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        let source = self.spec.source.as_ref();
        let status = self.status.as_ref();
        vec![
            self.metadata.name.clone().into(),
            cell(status.and_then(|s| s.ready_to_use.as_ref())),
            cell(source.and_then(|s| s.persistent_volume_claim_name.as_ref())),
            cell(source.and_then(|s| s.volume_snapshot_content_name.as_ref())),
            cell(status.and_then(|s| s.restore_size.as_ref()).map(|size| &size.0)),
            cell(self.spec.volume_snapshot_class_name.as_ref()),
            cell(status.and_then(|s| s.bound_volume_snapshot_content_name.as_ref())),
            status.and_then(|s| s.creation_time.as_ref()).map_or(Value::Null, |time| age(Some(time), now).into()),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
        ]
    }
}

impl VolumeSnapshotContent {
    fn check(&self, old: Option<&Self>, e: &mut Errors) {
        let spec = &self.spec;
        let spec_at = Path::top("spec");
        let (at, ref_at) = (spec_at.field("source"), spec_at.field("volumeSnapshotRef"));
        if *spec == VolumeSnapshotContentSpec::default() {
            e.required(&spec_at, "");
        } else {
            deletion_policy(&spec_at.field("deletionPolicy"), &spec.deletion_policy, e);
            e.need(&spec_at.field("driver"), &spec.driver);
            if spec.source.is_none() {
                e.required(&at, "");
            }
            if spec.volume_snapshot_ref == ObjectReference::default() {
                e.required(&ref_at, "");
            }
        }
        self.check_status(e);
        let (true, Some(source)) = (checked_by_itself(e), &spec.source) else { return };
        if let Some(was) = old {
            stays(&spec_at, "sourceVolumeMode", &spec.source_volume_mode, &was.spec.source_volume_mode, e);
        }
        if let Some(was) = old.and_then(|old| old.spec.source.as_ref()) {
            stays(&at, "volumeHandle", &source.volume_handle, &was.volume_handle, e);
            stays(&at, "snapshotHandle", &source.snapshot_handle, &was.snapshot_handle, e);
        }
        exactly_one(&at, [("volumeHandle", &source.volume_handle), ("snapshotHandle", &source.snapshot_handle)], e);
        let reference = &spec.volume_snapshot_ref;
        if reference.name.is_none() || reference.namespace.is_none() {
            const BOTH: &str = "both spec.volumeSnapshotRef.name and spec.volumeSnapshotRef.namespace must be set";
            e.invalid_whole(&ref_at, BOTH);
        }
    }

    fn check_status(&self, e: &mut Errors) {
        if let Some(size) = self.status.as_ref().and_then(|s| s.restore_size).filter(|size| *size < 0) {
            let at = Path::top("status");
            let at = at.field("restoreSize");
            e.invalid(&at, &size, "status.restoreSize in body should be greater than or equal to 0");
        }
    }
}

impl Rules for VolumeSnapshotContent {
    const COLUMNS: &'static [Column] = &[
        NAME,
        col("ReadyToUse", "boolean", "Whether a volume can be made from the snapshot."),
        col("RestoreSize", "integer", "The least size in bytes of a volume made from it."),
        col("DeletionPolicy", "string", "Whether the snapshot goes with its VolumeSnapshot."),
        col("Driver", "string", "The CSI driver that has the snapshot."),
        col("VolumeSnapshotClass", "string", "The VolumeSnapshotClass that it was made with."),
        col("VolumeSnapshot", "string", "The VolumeSnapshot that it is for."),
        col("VolumeSnapshotNamespace", "string", "The namespace of that VolumeSnapshot."),
        AGE,
    ];
    const STATUS: bool = true;
    const GENERATION: bool = true;

    fn default(&mut self) {}

    fn validate(&self, e: &mut Errors) {
        self.check(None, e);
    }

    fn validate_update(&self, old: &Self, e: &mut Errors) {
        self.check(Some(old), e);
    }

    fn validate_status_update(&self, _old: &Self, e: &mut Errors) {
        self.check_status(e);
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        let spec = &self.spec;
        let status = self.status.as_ref();
        vec![
            self.metadata.name.clone().into(),
            cell(status.and_then(|s| s.ready_to_use.as_ref())),
            cell(status.and_then(|s| s.restore_size.as_ref())),
            spec.deletion_policy.clone().into(),
            spec.driver.clone().into(),
            cell(spec.volume_snapshot_class_name.as_ref()),
            cell(spec.volume_snapshot_ref.name.as_ref()),
            cell(spec.volume_snapshot_ref.namespace.as_ref()),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
        ]
    }
}

impl Rules for VolumeSnapshotClass {
    const COLUMNS: &'static [Column] = &[
        NAME,
        col("Driver", "string", "The CSI driver that makes the snapshots."),
        col("DeletionPolicy", "string", "Whether a snapshot goes with its VolumeSnapshot."),
        AGE,
    ];
    const GENERATION: bool = true;

    fn default(&mut self) {}

    fn validate(&self, e: &mut Errors) {
        deletion_policy(&Path::top("deletionPolicy"), &self.deletion_policy, e);
        e.need(&Path::top("driver"), &self.driver);
        checked_by_itself(e);
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        vec![
            self.metadata.name.clone().into(),
            self.driver.clone().into(),
            self.deletion_policy.clone().into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
        ]
    }
}
