//! PersistentVolumeClaims.
use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use serde_json::Value;

use super::{AGE, NAME, col, wide};
use crate::age::age;
use crate::check::{is_empty, is_native_resource, items, text};
use crate::contract::Column;
use crate::field::{Errors, Path};
use crate::quantity::{Quantity, canonical_map};
use crate::typed::Rules;

/// Annotation that named the class before the field did; it still counts.
pub const BETA_STORAGE_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
pub(crate) const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
pub(crate) const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];

const ALLOCATION_STATES: &[&str] = &[
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];

pub(crate) fn default_spec(spec: &mut PersistentVolumeClaimSpec) {
    spec.volume_mode.get_or_insert_with(|| "Filesystem".to_owned());
    if let Some(resources) = &mut spec.resources {
        canonical_map(&mut resources.requests);
        canonical_map(&mut resources.limits);
    }
}

fn storage_request(spec: Option<&PersistentVolumeClaimSpec>) -> Option<&Text> {
    spec?.resources.as_ref()?.requests.as_ref()?.get("storage")
}

/// `RWO,ROX,RWX,RWOP`: each mode once, in this order.
pub(crate) fn modes_in_short(modes: &Option<Vec<String>>) -> String {
    let short =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let set: Vec<&str> = short.iter().filter(|(m, _)| items(modes).any(|x| x == m)).map(|(_, s)| *s).collect();
    set.join(",")
}

/// The class that a claim or volume names: by annotation, else by field.
pub(crate) fn class_of<'a>(annotations: &'a Option<BTreeMap<String, String>>, field: &'a Option<String>) -> &'a str {
    annotations.as_ref().and_then(|a| a.get(BETA_STORAGE_CLASS)).map_or_else(|| text(field), String::as_str)
}

pub(crate) fn access_modes(at: &Path<'_>, modes: &Option<Vec<String>>, e: &mut Errors) {
    for mode in items(modes) {
        e.one_of(at, mode, ACCESS_MODES);
    }
    let (pod, other): (Vec<_>, Vec<_>) =
        items(modes).filter(|m| ACCESS_MODES.contains(&m.as_str())).partition(|m| *m == "ReadWriteOncePod");
    if !pod.is_empty() && !other.is_empty() {
        e.forbidden(at, "may not use ReadWriteOncePod with other access modes");
    }
}

/// The rules of a claim's spec, also for claims that a pod's ephemeral volume makes.
pub(crate) fn validate_spec(at: &Path<'_>, spec: &PersistentVolumeClaimSpec, e: &mut Errors) {
    if is_empty(&spec.access_modes) {
        e.required(&at.field("accessModes"), "at least 1 access mode is required");
    }
    if let Some(selector) = &spec.selector {
        e.label_selector(&at.field("selector"), selector);
    }
    access_modes(&at.field("accessModes"), &spec.access_modes, e);
    let size_at = at.field("resources");
    let size_at = size_at.key("storage");
    match storage_request(Some(spec)) {
        None => e.required(&size_at, ""),
        Some(size) => {
            e.quantity_positive(&size_at, size);
        }
    }
    for (field, class) in [
        ("storageClassName", &spec.storage_class_name),
        ("volumeAttributesClassName", &spec.volume_attributes_class_name),
    ] {
        if !text(class).is_empty() {
            e.dns_subdomain(&at.field(field), text(class));
        }
    }
    if let Some(mode) = &spec.volume_mode {
        e.one_of(&at.field("volumeMode"), mode, VOLUME_MODES);
    }
    data_sources(at, spec, e);
}

fn data_sources(at: &Path<'_>, spec: &PersistentVolumeClaimSpec, e: &mut Errors) {
    if let Some(s) = &spec.data_source {
        data_source(&at.field("dataSource"), &s.name, &s.kind, text(&s.api_group), e);
    }
    let Some(r) = &spec.data_source_ref else { return };
    data_source(&at.field("dataSourceRef"), &r.name, &r.kind, text(&r.api_group), e);
    let namespace = text(&r.namespace);
    if !namespace.is_empty() {
        let at = at.field("dataSourceRef");
        e.dns_label(&at.field("namespace"), namespace);
    }
    let Some(s) = &spec.data_source else { return };
    // Upstream shows a path as the value, of which nothing is visible.
    let shown = serde_json::json!({});
    if !namespace.is_empty() {
        e.invalid(at, &shown, "may not be specified when dataSourceRef.namespace is specified");
    } else if (&s.api_group, &s.kind, &s.name) != (&r.api_group, &r.kind, &r.name) {
        e.invalid(at, &shown, "must match dataSourceRef");
    }
}

fn data_source(at: &Path<'_>, name: &str, kind: &str, group: &str, e: &mut Errors) {
    e.need(&at.field("name"), name);
    e.need(&at.field("kind"), kind);
    if group.is_empty() {
        if kind != "PersistentVolumeClaim" {
            e.invalid(at, &kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup");
        }
    } else {
        e.dns_subdomain(&at.field("apiGroup"), group);
    }
}

fn number(text: Option<&Text>) -> Quantity {
    text.and_then(|t| Quantity::try_from(t).ok()).unwrap_or(Quantity::ZERO)
}

/// What may change in a claim: its volume while it has none, its class while it has none,
/// and, once bound, its size and its attributes class.
fn validate_change(new: &PersistentVolumeClaim, old: &PersistentVolumeClaim, e: &mut Errors) {
    let (Some(new_spec), Some(old_spec)) = (&new.spec, &old.spec) else { return };
    let (mut changed, mut kept) = (new_spec.clone(), old_spec.clone());
    if text(&old_spec.volume_name).is_empty() {
        kept.volume_name = changed.volume_name.clone();
    }
    let annotation =
        |c: &PersistentVolumeClaim| c.metadata.annotations.as_ref().and_then(|a| a.get(BETA_STORAGE_CLASS)).cloned();
    let (was, is) = (annotation(old), annotation(new));
    let upgraded = was.is_some()
        && old_spec.storage_class_name.is_none()
        && new_spec.storage_class_name == was
        && (is.is_none() || is == was);
    if upgraded {
        changed.storage_class_name = None;
    } else {
        let at = Path::top("metadata");
        if was.clone().unwrap_or_default() != is.clone().unwrap_or_default() {
            let at = at.field("annotations");
            e.invalid(&at.field(BETA_STORAGE_CLASS), &is.unwrap_or_default(), crate::check::IMMUTABLE);
        }
        if old_spec.storage_class_name.is_none() && (was.is_none() || was == new_spec.storage_class_name) {
            changed.storage_class_name = None;
        }
    }
    let phase = new.status.as_ref().and_then(|s| s.phase.as_deref());
    if phase == Some("Bound") {
        if let Some(requests) = changed.resources.as_mut().and_then(|r| r.requests.as_mut())
            && let Some(size) = storage_request(old.spec.as_ref())
        {
            requests.insert("storage".to_owned(), size.clone());
        }
        changed.volume_attributes_class_name = kept.volume_attributes_class_name.clone();
    }
    if changed != kept {
        let (was, is) =
            (serde_json::to_value(&kept).unwrap_or_default(), serde_json::to_value(&changed).unwrap_or_default());
        let diff = super::difference(&was, &is);
        let detail =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        e.forbidden(&Path::top("spec"), &format!("{detail}\n{diff}"));
    }
    let (new_size, old_size) = (number(storage_request(Some(new_spec))), number(storage_request(Some(old_spec))));
    let has = old.status.as_ref().and_then(|s| s.capacity.as_ref()).and_then(|c| c.get("storage"));
    let spec_at = Path::top("spec");
    if new_size < old_size && new_size <= number(has) {
        let at = spec_at.field("resources");
        let at = at.field("requests");
        e.forbidden(&at.field("storage"), "field can not be less than status.capacity");
    }
    e.same(&Path::top("volumeMode"), &new_spec.volume_mode, &old_spec.volume_mode);
    let current = old.status.as_ref().and_then(|s| s.current_volume_attributes_class_name.as_ref());
    if old_spec.volume_attributes_class_name != new_spec.volume_attributes_class_name && current.is_some() {
        let at = spec_at.field("volumeAttributesClassName");
        let to = match new_spec.volume_attributes_class_name.as_deref() {
            None => "nil",
            Some("") => "empty string",
            Some(_) => return,
        };
        e.forbidden(
            &at,
            &format!("update to {to} is forbidden when status.currentVolumeAttributesClassName is not nil"),
        );
    }
}

fn resource_key(at: &Path<'_>, key: &str, e: &mut Errors) {
    let before = e.len();
    e.label_key(at, key);
    if e.len() == before && is_native_resource(key) && key != "storage" {
        e.not_supported(at, &key, &["storage"]);
    }
}

impl Rules for PersistentVolumeClaim {
    const COLUMNS: &'static [Column] = &[
        NAME,
        col("Status", "string", "Phase of the claim."),
        col("Volume", "string", "Name of the volume that backs the claim."),
        col("Capacity", "string", "Size of that volume."),
        col("Access Modes", "string", "Access modes of that volume."),
        col("StorageClass", "string", "StorageClass of the pvc"),
        col("VolumeAttributesClass", "string", "VolumeAttributesClass of the pvc"),
        AGE,
        wide("VolumeMode", "string", "Whether the volume holds a filesystem or is a raw block device."),
    ];
    const STATUS: bool = true;

    fn default(&mut self) {
        default_spec(self.spec.get_or_insert_default());
        let status = self.status.get_or_insert_default();
        status.phase.get_or_insert_with(|| "Pending".to_owned());
        canonical_map(&mut status.capacity);
        canonical_map(&mut status.allocated_resources);
    }

    fn prepare_create(&mut self) {
        self.status = Some(PersistentVolumeClaimStatus { phase: Some("Pending".to_owned()), ..Default::default() });
        let spec = self.spec.get_or_insert_default();
        drop_other_namespaces(spec);
        complete_data_sources(spec, true);
    }

    fn prepare_update(&mut self, old: &Self) {
        let had = old.spec.as_ref().is_some_and(|s| s.data_source.is_some() || s.data_source_ref.is_some());
        if let Some(spec) = &mut self.spec {
            if old.spec.as_ref().is_none_or(|s| s.data_source_ref.is_none()) {
                drop_other_namespaces(spec);
            }
            complete_data_sources(spec, !had);
        }
    }

    fn validate(&self, e: &mut Errors) {
        validate_spec(&Path::top("spec"), self.spec.as_ref().unwrap_or(&PersistentVolumeClaimSpec::default()), e);
    }

    fn validate_update(&self, old: &Self, e: &mut Errors) {
        self.validate(e);
        validate_change(self, old, e);
    }

    fn validate_status_update(&self, _old: &Self, e: &mut Errors) {
        let Some(status) = &self.status else { return };
        let at = Path::top("status");
        let list = at.field("capacity");
        for (resource, size) in status.capacity.iter().flatten() {
            e.basic_resource(&list.key(resource), size);
        }
        let list = at.field("allocatedResourceStatuses");
        for (resource, state) in status.allocated_resource_statuses.iter().flatten() {
            resource_key(&list, resource, e);
            if !ALLOCATION_STATES.contains(&state.as_str()) {
                e.not_supported(&list, resource, ALLOCATION_STATES);
            }
        }
        let list = at.field("allocatedResources");
        for (resource, size) in status.allocated_resources.iter().flatten() {
            let before = e.len();
            resource_key(&list, resource, e);
            if e.len() == before {
                e.basic_resource(&list.key(resource), size);
            }
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let annotations = self.metadata.annotations.as_ref();
        if annotations.is_some_and(|a| a.contains_key(BETA_STORAGE_CLASS)) {
            warnings.push(format!(
                "metadata.annotations[{BETA_STORAGE_CLASS}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
            ));
        }
        if let Some(spec) = &self.spec {
            fractions("spec", spec, &mut warnings);
        }
        warnings
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let bound = !text(&spec.volume_name).is_empty();
        let phase = if self.metadata.deletion_timestamp.is_some() { "Terminating" } else { text(&status.phase) };
        let size = status.capacity.as_ref().and_then(|c| c.get("storage")).map_or("0", |q| q.0.as_str());
        vec![
            self.metadata.name.clone().into(),
            phase.into(),
            text(&spec.volume_name).into(),
            if bound { size } else { "" }.into(),
            if bound { modes_in_short(&status.access_modes) } else { String::new() }.into(),
            class_of(&self.metadata.annotations, &spec.storage_class_name).into(),
            spec.volume_attributes_class_name.as_deref().unwrap_or("<unset>").into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
            spec.volume_mode.as_deref().unwrap_or("<unset>").into(),
        ]
    }
}

/// Warnings about sizes that are no whole number of bytes, in the spec at the path `at`.
pub(super) fn fractions(at: &str, spec: &PersistentVolumeClaimSpec, out: &mut Vec<String>) {
    let resources = spec.resources.as_ref();
    for (field, amounts) in [
        ("requests", resources.and_then(|r| r.requests.as_ref())),
        ("limits", resources.and_then(|r| r.limits.as_ref())),
    ] {
        let size = amounts.and_then(|a| a.get("storage")).and_then(|t| Quantity::try_from(t).ok());
        if let Some(size) = size.filter(|s| !s.is_whole()) {
            out.push(format!(
                "{at}.resources.{field}[storage]: fractional byte value \"{size}\" is invalid, must be an integer"
            ));
        }
    }
}

/// Data from other namespaces is upstream's alpha: switched off, a reference to it counts as not given.
fn drop_other_namespaces(spec: &mut PersistentVolumeClaimSpec) {
    if spec.data_source_ref.as_ref().is_some_and(|r| !text(&r.namespace).is_empty()) {
        spec.data_source_ref = None;
    }
}

/// `dataSource` and `dataSourceRef` say the same: each is filled in from the other. What the older field cannot
/// express is dropped from it where `drop` says so, as it always was.
fn complete_data_sources(spec: &mut PersistentVolumeClaimSpec, drop: bool) {
    use k8s_openapi::api::core::v1::{TypedLocalObjectReference, TypedObjectReference};
    const SNAPSHOT: (&str, &str) = ("snapshot.storage.k8s.io", "VolumeSnapshot");
    let fits = |s: &TypedLocalObjectReference| {
        (text(&s.api_group).is_empty() && s.kind == "PersistentVolumeClaim")
            || (text(&s.api_group), s.kind.as_str()) == SNAPSHOT
    };
    if drop && spec.data_source_ref.is_none() && spec.data_source.as_ref().is_some_and(|s| !fits(s)) {
        spec.data_source = None;
    }
    match (&spec.data_source, &spec.data_source_ref) {
        (Some(s), None) => {
            spec.data_source_ref = Some(TypedObjectReference {
                api_group: s.api_group.clone(),
                kind: s.kind.clone(),
                name: s.name.clone(),
                namespace: None,
            });
        }
        (None, Some(r)) if text(&r.namespace).is_empty() => {
            spec.data_source = Some(TypedLocalObjectReference {
                api_group: r.api_group.clone(),
                kind: r.kind.clone(),
                name: r.name.clone(),
            });
        }
        _ => {}
    }
}
