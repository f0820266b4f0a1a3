//! Namespaces and Nodes.
use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceStatus, Node, Taint};
use serde_json::Value;

use super::{AGE, NAME, col, wide};
use crate::age::age;
use crate::check::{items, text};
use crate::contract::{Column, SelectableFields};
use crate::field::{Errors, Path};
use crate::names;
use crate::quantity::canonical_map;
use crate::typed::Rules;

/// Label of every namespace that carries its name.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";
const KUBERNETES_FINALIZER: &str = "kubernetes";

impl Rules for Namespace {
    const COLUMNS: &'static [Column] = &[NAME, col("Status", "string", "The status of the namespace"), AGE];
    const STATUS: bool = true;
    const SELECTABLE: &'static [&'static str] = &["status.phase"];

    fn default(&mut self) {
        if let Some(name) = self.metadata.name.clone().filter(|n| !n.is_empty()) {
            self.metadata.labels.get_or_insert_default().insert(NAMESPACE_NAME_LABEL.to_owned(), name);
        }
        self.spec.get_or_insert_default();
        self.status.get_or_insert_default().phase.get_or_insert_with(|| "Active".to_owned());
    }

    fn prepare_create(&mut self) {
        let finalizers = self.spec.get_or_insert_default().finalizers.get_or_insert_default();
        if !finalizers.iter().any(|f| f == KUBERNETES_FINALIZER) {
            finalizers.push(KUBERNETES_FINALIZER.to_owned());
        }
        self.status = Some(NamespaceStatus { phase: Some("Active".to_owned()), conditions: None });
    }

    fn prepare_update(&mut self, old: &Self) {
        // They change through the subresource `finalize` only.
        self.spec.get_or_insert_default().finalizers = old.spec.as_ref().and_then(|s| s.finalizers.clone());
    }

    fn validate(&self, e: &mut Errors) {
        let at = Path::top("spec");
        let at = at.field("finalizers");
        for name in self.spec.iter().flat_map(|s| items(&s.finalizers)) {
            e.label_key(&at, name);
            if !name.contains('/') && ![KUBERNETES_FINALIZER, "orphan", "foregroundDeletion"].contains(&name.as_str()) {
                e.invalid(&at, name, "name is neither a standard finalizer name nor is it fully qualified");
            }
        }
    }

    fn validate_status_update(&self, _old: &Self, e: &mut Errors) {
        let at = Path::top("status");
        let at = at.field("Phase");
        let phase = self.status.as_ref().map_or("", |s| text(&s.phase));
        let (want, state) =
            if self.metadata.deletion_timestamp.is_none() { ("Active", "empty") } else { ("Terminating", "not empty") };
        if phase != want {
            e.invalid(&at, &phase, &format!("may only be '{want}' if `deletionTimestamp` is {state}"));
        }
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        vec![
            self.metadata.name.clone().into(),
            self.status.as_ref().map_or("", |s| text(&s.phase)).into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
        ]
    }

    fn selectable(&self) -> SelectableFields {
        vec![("status.phase", self.status.as_ref().map_or("", |s| text(&s.phase)).to_owned())]
    }
}

fn taints(at: &Path<'_>, taints: &[Taint], e: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, taint) in taints.iter().enumerate() {
        let at = at.index(i);
        e.label_key(&at.field("key"), &taint.key);
        let value = text(&taint.value);
        let errors = names::label_value(value);
        if !errors.is_empty() {
            e.invalid(&at.field("value"), &value, &errors.join(";"));
        }
        if taint.effect.is_empty() {
            e.required(&at.field("effect"), "");
        } else {
            e.one_of(&at.field("effect"), &taint.effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        }
        if !seen.insert((&taint.effect, &taint.key)) {
            e.duplicate(&at, taint);
        }
    }
}

fn node_resources(node: &Node, e: &mut Errors) {
    let at = Path::top("status");
    let Some(status) = &node.status else { return };
    for (field, map) in [("capacity", &status.capacity), ("allocatable", &status.allocatable)] {
        let list = at.field(field);
        for (resource, value) in map.iter().flatten() {
            e.resource_quantity(&list.key(resource), resource, value);
        }
    }
}

/// Roles of a node, by its labels, sorted.
fn roles(node: &Node) -> Vec<&str> {
    let mut roles = BTreeSet::new();
    for (key, value) in node.metadata.labels.iter().flatten() {
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some("") => {}
            Some(role) => {
                roles.insert(role);
            }
            None if key == "kubernetes.io/role" && !value.is_empty() => {
                roles.insert(value);
            }
            None => {}
        }
    }
    roles.into_iter().collect()
}

/// Whether a text is a range of addresses: `10.9.8.0/24`.
fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let most = match address.parse() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.parse::<u8>().is_ok_and(|bits| bits <= most)
}

impl Rules for Node {
    const COLUMNS: &'static [Column] = &[
        NAME,
        col("Status", "string", "The status of the node"),
        col("Roles", "string", "The roles of the node"),
        AGE,
        col("Version", "string", "Version of the node agent."),
        wide("Internal-IP", "string", "Address within the cluster."),
        wide("External-IP", "string", "Address from outside."),
        wide("OS-Image", "string", "Operating system of the node."),
        wide("Kernel-Version", "string", "Kernel of the node."),
        wide("Container-Runtime", "string", "Runtime and its version."),
    ];
    const STATUS: bool = true;
    const STATUS_AT_CREATE: bool = true;
    const SELECTABLE: &'static [&'static str] = &["spec.unschedulable"];

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        // The older field is the first of the newer one.
        match spec.pod_cidrs.as_ref().and_then(|c| c.first()) {
            Some(first) => spec.pod_cidr = Some(first.clone()),
            None if !text(&spec.pod_cidr).is_empty() => spec.pod_cidrs = Some(spec.pod_cidr.iter().cloned().collect()),
            None => {}
        }
        if let Some(status) = &mut self.status {
            canonical_map(&mut status.capacity);
            canonical_map(&mut status.allocatable);
            if status.allocatable.is_none() {
                status.allocatable = status.capacity.clone();
            }
        }
    }

    fn validate(&self, e: &mut Errors) {
        let meta = Path::top("metadata");
        if let Some(list) = self.spec.as_ref().and_then(|s| s.taints.as_ref()) {
            taints(&meta.field("taints"), list, e);
        }
        node_resources(self, e);
        let at = Path::top("spec");
        let list = at.field("podCIDRs");
        for (i, range) in self.spec.iter().flat_map(|s| items(&s.pod_cidrs)).enumerate() {
            if !is_cidr(range) {
                let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                e.invalid(&list.index(i), range, detail);
            }
        }
    }

    fn warnings(&self) -> Vec<String> {
        let Some(spec) = &self.spec else { return Vec::new() };
        let removed = spec.config_source.is_some().then_some("spec.configSource: the feature is removed");
        let unused = (!text(&spec.external_id).is_empty())
            .then_some("spec.externalID: this field is deprecated, and is unused by Kubernetes");
        removed.into_iter().chain(unused).map(str::to_owned).collect()
    }

    fn validate_update(&self, old: &Self, e: &mut Errors) {
        self.validate(e);
        let at = Path::top("spec");
        let (new, old) = (self.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
        if old.pod_cidrs.as_ref().is_some_and(|c| !c.is_empty()) && new.pod_cidrs != old.pod_cidrs {
            e.forbidden(&at.field("podCIDRs"), "node updates may not change podCIDR except from \"\" to valid");
        }
        if !text(&old.provider_id).is_empty() && new.provider_id != old.provider_id {
            e.forbidden(&at.field("providerID"), "node updates may not change providerID except from \"\" to valid");
        }
    }

    fn validate_status_update(&self, _old: &Self, e: &mut Errors) {
        node_resources(self, e);
        let at = Path::top("status");
        let list = at.field("addresses");
        let mut seen = BTreeSet::new();
        for (i, address) in self.status.iter().flat_map(|s| items(&s.addresses)).enumerate() {
            if !seen.insert((&address.type_, &address.address)) {
                e.duplicate(&list.index(i), address);
            }
        }
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        let status = self.status.clone().unwrap_or_default();
        let ready = items(&status.conditions).find(|c| c.type_ == "Ready");
        let mut state = match ready {
            Some(c) if c.status == "True" => "Ready",
            Some(_) => "NotReady",
            None => "Unknown",
        }
        .to_owned();
        if self.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
            state.push_str(",SchedulingDisabled");
        }
        let roles = roles(self).join(",");
        let info = status.node_info.clone().unwrap_or_default();
        let address =
            |kind: &str| items(&status.addresses).find(|a| a.type_ == kind).map_or("<none>", |a| a.address.as_str());
        let known = |t: &str| if t.is_empty() { "<unknown>".to_owned() } else { t.to_owned() };
        let mut kernel = known(&info.kernel_version);
        if !info.architecture.is_empty() {
            kernel = format!("{kernel} ({})", info.architecture);
        }
        vec![
            self.metadata.name.clone().into(),
            state.into(),
            if roles.is_empty() { "<none>".to_owned() } else { roles }.into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
            info.kubelet_version.clone().into(),
            address("InternalIP").into(),
            address("ExternalIP").into(),
            known(&info.os_image).into(),
            kernel.into(),
            known(&info.container_runtime_version).into(),
        ]
    }

    fn selectable(&self) -> SelectableFields {
        let unschedulable = self.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
        vec![("spec.unschedulable", unschedulable.to_string())]
    }
}
