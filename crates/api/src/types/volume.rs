//! PersistentVolumes.
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeSpec, PersistentVolumeStatus,
    VolumeNodeAffinity,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::claim::{BETA_STORAGE_CLASS, VOLUME_MODES, access_modes, class_of, modes_in_short};
use super::{AGE, NAME, col, wide};
use crate::age::age;
use crate::check::{IMMUTABLE, is_empty, is_root, items, text};
use crate::contract::Column;
use crate::field::{Errors, Path};
use crate::quantity::canonical_map;
use crate::typed::Rules;

/// An annotation with mount options, separated by commas, of the time before `mountOptions`.
pub const BETA_MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";

/// Fields of the spec that are not the volume's source.
pub const NOT_SOURCES: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

fn default_spec(spec: &mut PersistentVolumeSpec) {
    spec.persistent_volume_reclaim_policy.get_or_insert_with(|| "Retain".to_owned());
    spec.volume_mode.get_or_insert_with(|| "Filesystem".to_owned());
    default_source(spec);
}

/// What a volume without an object of its own gets, too.
pub(crate) fn default_source(spec: &mut PersistentVolumeSpec) {
    canonical_map(&mut spec.capacity);
    if let Some(s) = &mut spec.host_path {
        s.type_.get_or_insert_default();
    }
    if let Some(s) = &mut spec.iscsi {
        s.iscsi_interface.get_or_insert_with(|| "default".to_owned());
    }
    if let Some(s) = &mut spec.rbd {
        s.pool.get_or_insert_with(|| "rbd".to_owned());
        s.user.get_or_insert_with(|| "admin".to_owned());
        s.keyring.get_or_insert_with(|| "/etc/ceph/keyring".to_owned());
    }
    if let Some(s) = &mut spec.azure_disk {
        super::pod_defaults::azure_disk(s);
    }
    if let Some(s) = &mut spec.scale_io {
        s.storage_mode.get_or_insert_with(|| "ThinProvisioned".to_owned());
        s.fs_type.get_or_insert_with(|| "xfs".to_owned());
    }
}

fn validate_spec(at: &Path<'_>, spec: &PersistentVolumeSpec, name: &str, e: &mut Errors) {
    if is_empty(&spec.access_modes) {
        e.required(&at.field("accessModes"), "");
    }
    access_modes(&at.field("accessModes"), &spec.access_modes, e);
    let capacity_at = at.field("capacity");
    let capacity = spec.capacity.clone().unwrap_or_default();
    if capacity.is_empty() {
        e.required(&capacity_at, "");
    }
    if !capacity.contains_key("storage") || capacity.len() > 1 {
        e.not_supported(&capacity_at, &spec.capacity, &["storage"]);
    }
    for (resource, size) in &capacity {
        e.basic_resource(&capacity_at.key(resource), size);
        e.quantity_positive(&capacity_at.key(resource), size);
    }
    let policy = text(&spec.persistent_volume_reclaim_policy);
    if !policy.is_empty() {
        e.one_of(&at.field("persistentVolumeReclaimPolicy"), policy, &["Delete", "Recycle", "Retain"]);
    }
    if let Some(affinity) = &spec.node_affinity {
        let at = at.field("nodeAffinity");
        match &affinity.required {
            Some(selector) => e.node_selector(&at.field("required"), selector),
            None => e.required(&at.field("required"), "must specify required node constraints"),
        }
    }
    super::sources::persistent_volume(at, spec, name, spec.node_affinity.is_some(), e);
    if policy == "Recycle" && spec.host_path.as_ref().is_some_and(|s| is_root(&s.path)) {
        e.forbidden(&at.field("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'");
    }
    if !text(&spec.storage_class_name).is_empty() {
        e.dns_subdomain(&at.field("storageClassName"), text(&spec.storage_class_name));
    }
    if let Some(mode) = &spec.volume_mode {
        e.one_of(&at.field("volumeMode"), mode, VOLUME_MODES);
    }
    if let Some(class) = &spec.volume_attributes_class_name {
        let class_at = at.field("volumeAttributesClassName");
        if class.is_empty() {
            e.required(&class_at, "an empty string is disallowed");
        } else {
            e.dns_subdomain(&class_at, class);
        }
        if spec.csi.is_none() {
            e.required(&at.field("csi"), "has to be specified when using volumeAttributesClassName");
        }
    }
}

/// The rules of a volume that is part of an attachment, for the drivers that were once in the tree.
pub(crate) fn validate_inline(at: &Path<'_>, spec: &PersistentVolumeSpec, e: &mut Errors) {
    const INLINE: &str = "in the context of inline volumes";
    let not_here = format!("may not be specified {INLINE}");
    if spec.claim_ref.is_some() {
        e.forbidden(&at.field("claimRef"), &not_here);
    }
    if spec.capacity.as_ref().is_some_and(|c| !c.is_empty()) {
        e.forbidden(&at.field("capacity"), &not_here);
    }
    if spec.csi.is_none() {
        e.required(&at.field("csi"), &format!("has to be specified {INLINE}"));
    }
    if is_empty(&spec.access_modes) {
        e.required(&at.field("accessModes"), "");
    }
    access_modes(&at.field("accessModes"), &spec.access_modes, e);
    if !["", "Retain"].contains(&text(&spec.persistent_volume_reclaim_policy)) {
        e.forbidden(&at.field("persistentVolumeReclaimPolicy"), &format!("may only be Retain {INLINE}"));
    }
    if spec.node_affinity.is_some() {
        e.forbidden(&at.field("nodeAffinity"), &not_here);
    }
    super::sources::persistent_volume(at, spec, "", false, e);
    if !text(&spec.storage_class_name).is_empty() {
        e.forbidden(&at.field("storageClassName"), &not_here);
    }
    if spec.volume_mode.as_ref().is_some_and(|mode| mode != "Filesystem") {
        e.forbidden(&at.field("volumeMode"), &format!("may not specify volumeMode other than Filesystem {INLINE}"));
    }
}

/// The source alone, as JSON.
fn source(spec: &PersistentVolumeSpec) -> Value {
    let mut value = serde_json::to_value(spec).unwrap_or_default();
    if let Value::Object(map) = &mut value {
        map.retain(|key, _| !NOT_SOURCES.contains(&key.as_str()));
    }
    value
}

fn validate_change(new: &PersistentVolumeSpec, old: &PersistentVolumeSpec, e: &mut Errors) {
    let spec_at = Path::top("spec");
    let mut compared = new.clone();
    // A secret for growing the volume may be added later.
    if let (Some(is), Some(was)) = (&mut compared.csi, &old.csi)
        && was.controller_expand_secret_ref.is_none()
    {
        is.controller_expand_secret_ref = None;
    }
    let (was, is) = (source(old), source(&compared));
    if was != is {
        let detail =
            format!("spec.persistentvolumesource is immutable after creation\n{}", super::difference(&was, &is));
        e.forbidden(&spec_at.field("persistentvolumesource"), &detail);
    }
    e.same(&Path::top("volumeMode"), &new.volume_mode, &old.volume_mode);
    if let Some(was) = &old.node_affinity
        && !same_but_renewed(was, new.node_affinity.as_ref())
    {
        let detail = format!("{IMMUTABLE}, except for updating from beta label to GA");
        let shown = new.node_affinity.as_ref().map(in_inner_notation);
        e.invalid(&Path::top("nodeAffinity"), &shown, &detail);
    }
    if old.volume_attributes_class_name.is_some() && new.volume_attributes_class_name.is_none() {
        e.forbidden(&spec_at.field("volumeAttributesClassName"), "update from non-nil value to nil is forbidden");
    }
}

/// Whether two affinities are the same, but for labels that have their new names now.
fn same_but_renewed(old: &VolumeNodeAffinity, new: Option<&VolumeNodeAffinity>) -> bool {
    let Some(new) = new else { return false };
    let mut old = old.clone();
    let terms = |a: &VolumeNodeAffinity| a.required.as_ref().map(|r| r.node_selector_terms.clone()).unwrap_or_default();
    let all = |t: &NodeSelectorTerm| {
        [&t.match_expressions, &t.match_fields].map(|list| items(list).cloned().collect::<Vec<_>>())
    };
    for (old, new) in old.required.iter_mut().flat_map(|r| &mut r.node_selector_terms).zip(terms(new)) {
        for (list, new) in [&mut old.match_expressions, &mut old.match_fields].into_iter().zip(all(&new)) {
            for (old, new) in list.iter_mut().flatten().zip(new) {
                if super::node_labels::successor(&old.key) == Some(&new.key) {
                    old.key = new.key;
                }
            }
        }
    }
    old == *new
}

/// An affinity as upstream shows it in a refusal: by its inner names, with what is not set.
fn in_inner_notation(affinity: &VolumeNodeAffinity) -> Value {
    let requirements = |list: &Option<Vec<NodeSelectorRequirement>>| {
        list.as_ref().map(|list| {
            let one = |r: &NodeSelectorRequirement| json!({"Key": r.key, "Operator": r.operator, "Values": r.values});
            list.iter().map(one).collect::<Vec<_>>()
        })
    };
    let required = affinity.required.as_ref().map(|required| {
        let term = |t: &NodeSelectorTerm| {
            json!({"MatchExpressions": requirements(&t.match_expressions), "MatchFields": requirements(&t.match_fields)})
        };
        json!({"NodeSelectorTerms": required.node_selector_terms.iter().map(term).collect::<Vec<_>>()})
    });
    json!({"Required": required})
}

/// Mount options were an annotation once, for the types that have options.
fn old_mount_options(volume: &PersistentVolume, e: &mut Errors) {
    let Some(spec) = &volume.spec else { return };
    let has_options = spec.gce_persistent_disk.is_some()
        || spec.aws_elastic_block_store.is_some()
        || spec.glusterfs.is_some()
        || spec.nfs.is_some()
        || spec.rbd.is_some()
        || spec.quobyte.is_some()
        || spec.iscsi.is_some()
        || spec.cinder.is_some()
        || spec.cephfs.is_some()
        || spec.azure_file.is_some()
        || spec.vsphere_volume.is_some()
        || spec.azure_disk.is_some()
        || spec.photon_persistent_disk.is_some();
    let annotated = volume.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(BETA_MOUNT_OPTIONS));
    if annotated && !has_options {
        let at = Path::top("metadata");
        let at = at.field("annotations");
        e.forbidden(&at.field(BETA_MOUNT_OPTIONS), "may not specify mount options for this volume type");
    }
}

impl Rules for PersistentVolume {
    const COLUMNS: &'static [Column] = &[
        NAME,
        col("Capacity", "string", "Size of the volume."),
        col("Access Modes", "string", "Ways in which the volume can be mounted."),
        col("Reclaim Policy", "string", "What happens to the volume when its claim is gone."),
        col("Status", "string", "Whether the volume is available, bound to a claim, or released by one."),
        col("Claim", "string", "The claim that the volume belongs to."),
        col("StorageClass", "string", "StorageClass of the pv"),
        col("VolumeAttributesClass", "string", "VolumeAttributesClass of the pv"),
        col("Reason", "string", "Why the volume is in its state."),
        AGE,
        wide("VolumeMode", "string", "Whether the volume holds a filesystem or is a raw block device."),
    ];
    const STATUS: bool = true;

    fn default(&mut self) {
        default_spec(self.spec.get_or_insert_default());
        self.status.get_or_insert_default().phase.get_or_insert_with(|| "Pending".to_owned());
    }

    fn prepare_create(&mut self) {
        self.status = Some(PersistentVolumeStatus {
            phase: Some("Pending".to_owned()),
            last_phase_transition_time: Some(Time(whole_second(Timestamp::now()))),
            ..Default::default()
        });
    }

    fn prepare_status_update(&mut self, old: &Self) {
        let phase = |v: &Self| v.status.as_ref().and_then(|s| s.phase.clone());
        let (was, is) = (phase(old), phase(self));
        let was_time = old.status.as_ref().and_then(|s| s.last_phase_transition_time.clone());
        if let Some(status) = &mut self.status {
            if was != is
                && (status.last_phase_transition_time.is_none() || status.last_phase_transition_time == was_time)
            {
                status.last_phase_transition_time = Some(Time(whole_second(Timestamp::now())));
            } else if status.last_phase_transition_time.is_none() {
                status.last_phase_transition_time = was_time;
            }
        }
    }

    fn validate(&self, e: &mut Errors) {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        validate_spec(&Path::top("spec"), self.spec.as_ref().unwrap_or(&PersistentVolumeSpec::default()), name, e);
        old_mount_options(self, e);
    }

    fn validate_update(&self, old: &Self, e: &mut Errors) {
        self.validate(e);
        if let (Some(new), Some(old)) = (&self.spec, &old.spec) {
            validate_change(new, old, e);
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for (key, instead) in [
            (BETA_STORAGE_CLASS, "deprecated since v1.8; use \"storageClassName\" attribute instead"),
            (BETA_MOUNT_OPTIONS, "deprecated since v1.31; use \"mountOptions\" attribute instead"),
        ] {
            if self.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(key)) {
                warnings.push(format!("metadata.annotations[{key}]: {instead}"));
            }
        }
        let Some(spec) = &self.spec else { return warnings };
        if text(&spec.persistent_volume_reclaim_policy) == "Recycle" {
            warnings.push(
                "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning."
                    .to_owned(),
            );
        }
        let required = spec.node_affinity.as_ref().and_then(|a| a.required.as_ref());
        for (i, term) in required.iter().flat_map(|r| &r.node_selector_terms).enumerate() {
            let at = format!("spec.nodeAffinity.required.nodeSelectorTerms[{i}]");
            super::node_labels::term(&at, term, false, &mut warnings);
        }
        for (name, used, since) in [
            ("cephfs", spec.cephfs.is_some(), "deprecated in v1.28, non-functional in v1.31+"),
            (
                "photonPersistentDisk",
                spec.photon_persistent_disk.is_some(),
                "deprecated in v1.11, non-functional in v1.16+",
            ),
            ("scaleIO", spec.scale_io.is_some(), "deprecated in v1.16, non-functional in v1.22+"),
            ("storageOS", spec.storageos.is_some(), "deprecated in v1.22, non-functional in v1.25+"),
            ("glusterfs", spec.glusterfs.is_some(), "deprecated in v1.25, non-functional in v1.26+"),
            ("rbd", spec.rbd.is_some(), "deprecated in v1.28, non-functional in v1.31+"),
        ] {
            if used {
                warnings.push(format!("spec.{name}: {since}"));
            }
        }
        warnings
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let phase = if self.metadata.deletion_timestamp.is_some() { "Terminating" } else { text(&status.phase) };
        let claim = spec.claim_ref.as_ref().map(|c| format!("{}/{}", text(&c.namespace), text(&c.name)));
        vec![
            self.metadata.name.clone().into(),
            spec.capacity.as_ref().and_then(|c| c.get("storage")).map_or("0", |q| q.0.as_str()).into(),
            modes_in_short(&spec.access_modes).into(),
            text(&spec.persistent_volume_reclaim_policy).into(),
            phase.into(),
            claim.unwrap_or_default().into(),
            class_of(&self.metadata.annotations, &spec.storage_class_name).into(),
            spec.volume_attributes_class_name.as_deref().unwrap_or("<unset>").into(),
            text(&status.reason).into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
            spec.volume_mode.as_deref().unwrap_or("<unset>").into(),
        ]
    }
}

/// Times in objects have no fractions of a second.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
