//! `storage.k8s.io`: classes, CSI objects, attachments.
use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::TopologySelectorTerm;
use k8s_openapi::api::storage::v1::{
    CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass, VolumeError,
};
use serde_json::{Value, json};

use super::{AGE, NAME, col};
use crate::age::age;
use crate::check::{IMMUTABLE, is_empty, items, text};
use crate::contract::Column;
use crate::field::{Errors, Path};
use crate::quantity::canonical_option;
use crate::typed::Rules;

const PARAMETERS_MAX: usize = 512;
const PARAMETERS_SIZE_MAX: usize = 256 * 1024;

/// Whether a class is the one that claims without a class get.
pub fn is_default_class(annotations: Option<&BTreeMap<String, String>>) -> bool {
    let keys = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    annotations.is_some_and(|a| keys.iter().any(|k| a.get(*k).is_some_and(|v| v == "true")))
}

fn provisioner(at: &Path<'_>, name: &str, e: &mut Errors) {
    if e.need(at, name) {
        e.label_key(at, &name.to_lowercase());
    }
}

fn parameters(at: &Path<'_>, parameters: &Option<BTreeMap<String, String>>, e: &mut Errors) {
    let mut size = 0;
    let count = parameters.as_ref().map_or(0, BTreeMap::len);
    if count > PARAMETERS_MAX {
        return e.too_long(at, PARAMETERS_MAX);
    }
    for (key, value) in parameters.iter().flatten() {
        if key.is_empty() {
            e.invalid(at, key, "field can not be empty.");
        }
        size += key.len() + value.len();
    }
    if size > PARAMETERS_SIZE_MAX {
        e.too_long(at, PARAMETERS_SIZE_MAX);
    }
}

fn topology(at: &Path<'_>, term: &TopologySelectorTerm, e: &mut Errors) {
    let list = at.field("matchLabelExpressions");
    let mut keys = BTreeSet::new();
    for (i, requirement) in items(&term.match_label_expressions).enumerate() {
        let at = list.index(i);
        if requirement.values.is_empty() {
            e.required(&at.field("values"), "");
        }
        let mut values = BTreeSet::new();
        for (j, value) in requirement.values.iter().enumerate() {
            if !values.insert(value) {
                e.duplicate(&at.field("values").index(j), value);
            }
        }
        e.label_key(&at.field("key"), &requirement.key);
        if !keys.insert(&requirement.key) {
            e.duplicate(&at.field("key"), &requirement.key);
        }
    }
}

impl Rules for StorageClass {
    const COLUMNS: &'static [Column] = &[
        NAME,
        col("Provisioner", "string", "Who makes the volumes."),
        col("ReclaimPolicy", "string", "What happens to a volume when its claim is gone."),
        col("VolumeBindingMode", "string", "When claims are bound to volumes."),
        col("AllowVolumeExpansion", "string", "Whether claims may grow."),
        AGE,
    ];

    fn default(&mut self) {
        self.reclaim_policy.get_or_insert_with(|| "Delete".to_owned());
        self.volume_binding_mode.get_or_insert_with(|| "Immediate".to_owned());
    }

    fn validate(&self, e: &mut Errors) {
        provisioner(&Path::top("provisioner"), &self.provisioner, e);
        parameters(&Path::top("parameters"), &self.parameters, e);
        if !text(&self.reclaim_policy).is_empty() {
            e.one_of(&Path::top("reclaimPolicy"), text(&self.reclaim_policy), &["Delete", "Retain"]);
        }
        let at = Path::top("volumeBindingMode");
        match &self.volume_binding_mode {
            Some(mode) => {
                e.one_of(&at, mode, &["Immediate", "WaitForFirstConsumer"]);
            }
            None => e.required(&at, ""),
        }
        let list = Path::top("allowedTopologies");
        // Two terms are the same when they allow the same values for the same keys, in whatever order.
        let mut seen: Vec<BTreeMap<&str, BTreeSet<&str>>> = Vec::new();
        for (i, term) in items(&self.allowed_topologies).enumerate() {
            let at = list.index(i);
            topology(&at, term, e);
            let meaning: BTreeMap<_, _> = items(&term.match_label_expressions)
                .map(|r| (r.key.as_str(), r.values.iter().map(String::as_str).collect()))
                .collect();
            // A term that asks for nothing is as good as written twice.
            if meaning.is_empty() || seen.contains(&meaning) {
                e.duplicate(&at.field("matchLabelExpressions"), &"");
            }
            seen.push(meaning);
        }
    }

    fn validate_update(&self, old: &Self, e: &mut Errors) {
        self.validate(e);
        e.same(&Path::top("parameters"), &self.parameters, &old.parameters);
        e.same(&Path::top("provisioner"), &self.provisioner, &old.provisioner);
        e.same(&Path::top("reclaimPolicy"), &self.reclaim_policy, &old.reclaim_policy);
        e.same(&Path::top("volumeBindingMode"), &self.volume_binding_mode, &old.volume_binding_mode);
    }

    fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        for (i, term) in items(&self.allowed_topologies).enumerate() {
            for (j, expression) in items(&term.match_label_expressions).enumerate() {
                out.extend(
                    super::node_labels::deprecated(&expression.key)
                        .map(|says| format!("allowedTopologies[{i}].matchLabelExpressions[{j}].key: {says}")),
                );
            }
        }
        out
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        let mut name = self.metadata.name.clone().unwrap_or_default();
        if is_default_class(self.metadata.annotations.as_ref()) {
            name.push_str(" (default)");
        }
        vec![
            name.into(),
            self.provisioner.clone().into(),
            self.reclaim_policy.as_deref().unwrap_or("Delete").into(),
            self.volume_binding_mode.as_deref().unwrap_or("Immediate").into(),
            self.allow_volume_expansion.unwrap_or(false).into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
        ]
    }
}

impl Rules for VolumeAttributesClass {
    const COLUMNS: &'static [Column] =
        &[NAME, col("DriverName", "string", "The CSI driver that the class is for."), AGE];

    fn default(&mut self) {}

    fn validate(&self, e: &mut Errors) {
        provisioner(&Path::top("driverName"), &self.driver_name, e);
        parameters(&Path::top("parameters"), &self.parameters, e);
        if self.parameters.as_ref().is_none_or(BTreeMap::is_empty) {
            e.required(&Path::top("parameters"), "must contain at least one key/value pair");
        }
    }

    fn validate_update(&self, old: &Self, e: &mut Errors) {
        if self.driver_name != old.driver_name {
            e.forbidden(&Path::top("driverName"), "updates to driverName are forbidden.");
        }
        if self.parameters != old.parameters {
            e.forbidden(&Path::top("parameters"), "updates to parameters are forbidden.");
        }
        self.validate(e);
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        vec![
            self.metadata.name.clone().into(),
            self.driver_name.clone().into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
        ]
    }
}

impl Rules for CSIDriver {
    const COLUMNS: &'static [Column] = &[
        NAME,
        col("AttachRequired", "boolean", "Whether volumes must be attached to a node before use."),
        col("PodInfoOnMount", "boolean", "Whether the driver is told about the pod at mount."),
        col("StorageCapacity", "boolean", "Whether the driver reports how much it can still make."),
        col("TokenRequests", "string", "Audiences of the tokens that the driver needs."),
        col("RequiresRepublish", "boolean", "Whether the driver wants to be called again from time to time."),
        col("Modes", "string", "Kinds of volumes that the driver supports."),
        AGE,
    ];
    const GENERATION: bool = true;

    fn default(&mut self) {
        let spec = &mut self.spec;
        spec.attach_required.get_or_insert(true);
        spec.pod_info_on_mount.get_or_insert(false);
        spec.storage_capacity.get_or_insert(false);
        spec.fs_group_policy.get_or_insert_with(|| "ReadWriteOnceWithFSType".to_owned());
        spec.requires_republish.get_or_insert(false);
        spec.se_linux_mount.get_or_insert(false);
        if is_empty(&spec.volume_lifecycle_modes) {
            spec.volume_lifecycle_modes = Some(vec!["Persistent".to_owned()]);
        }
    }

    fn validate(&self, e: &mut Errors) {
        let at = Path::top("spec");
        if let Some(policy) = &self.spec.fs_group_policy {
            e.one_of(&at.field("fsGroupPolicy"), policy, &["File", "None", "ReadWriteOnceWithFSType"]);
        }
        let list = at.field("tokenRequests");
        let mut audiences = BTreeSet::new();
        for (i, request) in items(&self.spec.token_requests).enumerate() {
            let at = list.index(i);
            if !audiences.insert(&request.audience) {
                e.duplicate(&at.field("audience"), &request.audience);
                continue;
            }
            let Some(seconds) = request.expiration_seconds else { continue };
            if seconds < 600 {
                e.invalid(&at.field("expirationSeconds"), &seconds, "may not specify a duration less than 10 minutes");
            }
            if seconds > 1 << 32 {
                e.invalid(
                    &at.field("expirationSeconds"),
                    &seconds,
                    "may not specify a duration larger than 2^32 seconds",
                );
            }
        }
        for mode in items(&self.spec.volume_lifecycle_modes) {
            e.one_of(&at.field("volumeLifecycleModes"), mode, &["Persistent", "Ephemeral"]);
        }
        if let Some(seconds) = self.spec.node_allocatable_update_period_seconds.filter(|s| *s < 10) {
            e.invalid(
                &at.field("nodeAllocatableUpdatePeriodSeconds"),
                &seconds,
                "must be greater than or equal to 10 seconds",
            );
        }
        if let Some(set) = self.spec.service_account_token_in_secrets
            && is_empty(&self.spec.token_requests)
        {
            let detail = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
            e.invalid(&at.field("serviceAccountTokenInSecrets"), &set, detail);
        }
    }

    fn validate_update(&self, old: &Self, e: &mut Errors) {
        self.validate(e);
        let at = Path::top("spec");
        e.same(&at.field("attachedRequired"), &self.spec.attach_required, &old.spec.attach_required);
        e.same(&at.field("volumeLifecycleModes"), &self.spec.volume_lifecycle_modes, &old.spec.volume_lifecycle_modes);
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        let spec = &self.spec;
        let modes = spec.volume_lifecycle_modes.clone().unwrap_or_default().join(",");
        let tokens = spec.token_requests.as_ref().map_or("<unset>".to_owned(), |list| {
            list.iter().map(|t| t.audience.as_str()).collect::<Vec<_>>().join(",")
        });
        vec![
            self.metadata.name.clone().into(),
            spec.attach_required.unwrap_or(true).into(),
            spec.pod_info_on_mount.unwrap_or(false).into(),
            spec.storage_capacity.unwrap_or(false).into(),
            tokens.into(),
            spec.requires_republish.unwrap_or(false).into(),
            if modes.is_empty() { "<none>".to_owned() } else { modes }.into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
        ]
    }
}

impl Rules for CSINode {
    const COLUMNS: &'static [Column] =
        &[NAME, col("Drivers", "integer", "Drivers indicates the number of CSI drivers registered on the node"), AGE];

    fn default(&mut self) {}

    fn validate(&self, e: &mut Errors) {
        let list = Path::top("spec");
        let list = list.field("drivers");
        let mut names = BTreeSet::new();
        for (i, driver) in self.spec.drivers.iter().enumerate() {
            let at = list.index(i);
            e.csi_driver_name(&at.field("name"), &driver.name);
            if e.need(&at.field("nodeID"), &driver.node_id) && driver.node_id.len() > 256 {
                e.invalid(&at.field("nodeID"), &driver.node_id, "must be 256 characters or less");
            }
            if let Some(count) = driver.allocatable.as_ref().and_then(|a| a.count) {
                let at = at.field("allocatable");
                e.not_negative(&at.field("count"), count.into());
            }
            if !names.insert(&driver.name) {
                e.duplicate(&at.field("name"), &driver.name);
            }
            let mut keys = BTreeSet::new();
            for key in items(&driver.topology_keys) {
                e.need(&at, key);
                if !keys.insert(key) {
                    e.duplicate(&at, key);
                }
                e.label_key(&at, key);
            }
        }
    }

    fn validate_update(&self, old: &Self, e: &mut Errors) {
        self.validate(e);
        let at = Path::top("spec");
        for was in &old.spec.drivers {
            for is in self.spec.drivers.iter().filter(|d| d.name == was.name) {
                let (mut is, mut was) = (is.clone(), was.clone());
                (is.allocatable, was.allocatable) = (None, None);
                if is != was {
                    // By upstream's inner names.
                    let shown = json!({"Name": is.name, "NodeID": is.node_id, "TopologyKeys": is.topology_keys, "Allocatable": null});
                    e.invalid(&at.field("drivers"), &shown, IMMUTABLE);
                }
            }
        }
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        vec![
            self.metadata.name.clone().into(),
            self.spec.drivers.len().into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
        ]
    }
}

impl Rules for CSIStorageCapacity {
    const COLUMNS: &'static [Column] = super::PLAIN;

    fn default(&mut self) {
        canonical_option(&mut self.capacity);
        canonical_option(&mut self.maximum_volume_size);
    }

    fn validate(&self, e: &mut Errors) {
        if let Some(selector) = &self.node_topology {
            e.label_selector(&Path::top("nodeTopology"), selector);
        }
        e.dns_subdomain(&Path::top("storageClassName"), &self.storage_class_name);
        if let Some(capacity) = &self.capacity {
            e.quantity_not_negative(&Path::top("capacity"), capacity);
        }
    }

    fn validate_update(&self, old: &Self, e: &mut Errors) {
        if self.node_topology != old.node_topology {
            e.invalid(&Path::top("nodeTopology"), &self.node_topology, IMMUTABLE);
        }
        e.same(&Path::top("storageClassName"), &self.storage_class_name, &old.storage_class_name);
    }

    fn row(&self, _now: Timestamp) -> Vec<Value> {
        super::plain_row(&self.metadata)
    }
}

fn volume_error(at: &Path<'_>, error: Option<&VolumeError>, e: &mut Errors) {
    let Some(error) = error else { return };
    if text(&error.message).len() > 1024 {
        e.too_long(&at.field("message"), 256 * 1024);
    }
    if let Some(code) = error.error_code {
        e.range(&at.field("errorCode"), code.into(), 0, i32::MAX.into());
    }
}

impl Rules for VolumeAttachment {
    const COLUMNS: &'static [Column] = &[
        NAME,
        Column { format: "name", ..col("Attacher", "string", "The driver that attaches the volume.") },
        col("PV", "string", "The volume."),
        col("Node", "string", "The node that the volume is attached to."),
        col("Attached", "boolean", "Whether it is attached."),
        AGE,
    ];
    const STATUS: bool = true;

    fn default(&mut self) {
        if let Some(spec) = &mut self.spec.source.inline_volume_spec {
            super::volume::default_source(spec);
        }
    }

    fn validate(&self, e: &mut Errors) {
        let at = Path::top("spec");
        e.csi_driver_name(&at.field("attacher"), &self.spec.attacher);
        let source_at = at.field("source");
        let source = &self.spec.source;
        const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
        match (&source.inline_volume_spec, &source.persistent_volume_name) {
            (None, None) => e.required(&source_at, ONE),
            (Some(_), Some(_)) => e.forbidden(&source_at, ONE),
            (None, Some(name)) if name.is_empty() => {
                let at = source_at.field("persistentVolumeName");
                e.required(&at, "must specify non empty persistentVolumeName");
                e.dns_subdomain(&at, name);
            }
            (None, Some(name)) => e.dns_subdomain(&source_at.field("persistentVolumeName"), name),
            (Some(spec), None) => {
                super::volume::validate_inline(&source_at.field("inlineVolumeSpec"), spec, e);
            }
        }
        e.dns_subdomain(&at.field("nodeName"), &self.spec.node_name);
        self.validate_status(e);
    }

    fn validate_update(&self, old: &Self, e: &mut Errors) {
        self.validate(e);
        if self.spec != old.spec {
            // By upstream's inner names.
            let source = &self.spec.source;
            let source = json!({"PersistentVolumeName": source.persistent_volume_name, "InlineVolumeSpec": source.inline_volume_spec});
            let shown = json!({"Attacher": self.spec.attacher, "Source": source, "NodeName": self.spec.node_name});
            e.invalid(&Path::top("spec"), &shown, IMMUTABLE);
        }
    }

    fn validate_status_update(&self, _old: &Self, e: &mut Errors) {
        self.validate_status(e);
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        vec![
            self.metadata.name.clone().into(),
            self.spec.attacher.clone().into(),
            text(&self.spec.source.persistent_volume_name).into(),
            self.spec.node_name.clone().into(),
            self.status.as_ref().is_some_and(|s| s.attached).into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
        ]
    }
}

/// The part of an attachment's rules that its status has by itself.
trait ValidateStatus {
    fn validate_status(&self, e: &mut Errors);
}

impl ValidateStatus for VolumeAttachment {
    fn validate_status(&self, e: &mut Errors) {
        let Some(status) = &self.status else { return };
        let at = Path::top("status");
        let size: usize = status.attachment_metadata.iter().flatten().map(|(k, v)| k.len() + v.len()).sum();
        if size > PARAMETERS_SIZE_MAX {
            e.too_long(&at.field("attachmentMetadata"), PARAMETERS_SIZE_MAX);
        }
        volume_error(&at.field("attachError"), status.attach_error.as_ref(), e);
        volume_error(&at.field("detachError"), status.detach_error.as_ref(), e);
    }
}
