//! Checks that many kinds share.
use std::collections::BTreeMap;
use std::path::{Component, Path as FilePath};

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::field::{Errors, Path};
use crate::names;
use crate::quantity::Quantity;

pub(crate) const IMMUTABLE: &str = "field is immutable";
pub(crate) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub(crate) const POSITIVE: &str = "must be greater than zero";
const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// Shorthand: the items of an optional list.
pub(crate) fn items<T>(list: &Option<Vec<T>>) -> impl Iterator<Item = &T> {
    list.iter().flatten()
}

pub(crate) fn is_empty<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

pub(crate) fn text(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or_default()
}

impl Errors {
    /// A text that must not be empty; says whether it is not.
    pub(crate) fn need(&mut self, at: &Path<'_>, value: &str) -> bool {
        if value.is_empty() {
            self.required(at, "");
        }
        !value.is_empty()
    }

    pub(crate) fn dns_label(&mut self, at: &Path<'_>, value: &str) {
        self.invalid_all(at, &value, names::dns_label(value));
    }

    pub(crate) fn dns_subdomain(&mut self, at: &Path<'_>, value: &str) {
        self.invalid_all(at, &value, names::dns_subdomain(value));
    }

    pub(crate) fn one_of(&mut self, at: &Path<'_>, value: &str, supported: &[&str]) -> bool {
        let known = supported.contains(&value);
        if !known {
            self.not_supported(at, &value, supported);
        }
        known
    }

    pub(crate) fn not_negative(&mut self, at: &Path<'_>, value: i64) {
        if value < 0 {
            self.invalid(at, &value, NOT_NEGATIVE);
        }
    }

    pub(crate) fn range(&mut self, at: &Path<'_>, value: i64, low: i64, high: i64) {
        self.invalid_all(at, &value, names::in_range(value, low, high));
    }

    pub(crate) fn file_mode(&mut self, at: &Path<'_>, mode: Option<i32>) {
        if let Some(mode) = mode.filter(|m| !(0..=0o777).contains(m)) {
            self.invalid(at, &mode, FILE_MODE);
        }
    }

    /// `..` must not be a part of the path.
    pub(crate) fn no_backsteps(&mut self, at: &Path<'_>, path: &str) {
        if path.split('/').any(|part| part == "..") {
            self.invalid(at, &path, "must not contain '..'");
        }
    }

    /// A path below some directory.
    pub(crate) fn descending(&mut self, at: &Path<'_>, path: &str) {
        if path.starts_with('/') {
            self.invalid(at, &path, "must be a relative path");
        }
        self.no_backsteps(at, path);
    }

    /// A path below a volume's root whose first part cannot be confused with the volume's own `..data`.
    pub(crate) fn not_reserved(&mut self, at: &Path<'_>, path: &str) {
        self.descending(at, path);
        if path.starts_with("..") && !path.starts_with("../") {
            self.invalid(at, &path, "must not start with '..'");
        }
    }

    pub(crate) fn label_key(&mut self, at: &Path<'_>, key: &str) {
        self.invalid_all(at, &key, names::qualified_name(key));
    }

    pub(crate) fn labels(&mut self, at: &Path<'_>, labels: &Option<BTreeMap<String, String>>) {
        for (key, value) in labels.iter().flatten() {
            self.label_key(at, key);
            self.invalid_all(at, value, names::label_value(value));
        }
    }

    pub(crate) fn annotations(&mut self, at: &Path<'_>, annotations: &Option<BTreeMap<String, String>>) {
        const SIZE_MAX: usize = 256 * 1024;
        let mut size = 0;
        for (key, value) in annotations.iter().flatten() {
            self.invalid_all(at, key, names::qualified_name(&key.to_lowercase()));
            size += key.len() + value.len();
        }
        if size > SIZE_MAX {
            self.too_long(at, SIZE_MAX);
        }
    }

    pub(crate) fn label_selector(&mut self, at: &Path<'_>, selector: &LabelSelector) {
        self.labels(&at.field("matchLabels"), &selector.match_labels);
        let list = at.field("matchExpressions");
        for (i, e) in items(&selector.match_expressions).enumerate() {
            let at = list.index(i);
            let values = at.field("values");
            match e.operator.as_str() {
                "In" | "NotIn" if is_empty(&e.values) => {
                    self.required(&values, "must be specified when `operator` is 'In' or 'NotIn'");
                }
                "Exists" | "DoesNotExist" if !is_empty(&e.values) => {
                    self.forbidden(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
                other => self.invalid(&at.field("operator"), &other, "not a valid selector operator"),
            }
            self.label_key(&at.field("key"), &e.key);
            for (j, value) in items(&e.values).enumerate() {
                self.invalid_all(&values.index(j), value, names::label_value(value));
            }
        }
    }

    pub(crate) fn node_selector(&mut self, at: &Path<'_>, selector: &NodeSelector) {
        let list = at.field("nodeSelectorTerms");
        if selector.node_selector_terms.is_empty() {
            self.required(&list, "must have at least one node selector term");
        }
        for (i, term) in selector.node_selector_terms.iter().enumerate() {
            self.node_selector_term(&list.index(i), term);
        }
    }

    pub(crate) fn node_selector_term(&mut self, at: &Path<'_>, term: &NodeSelectorTerm) {
        let list = at.field("matchExpressions");
        for (i, e) in items(&term.match_expressions).enumerate() {
            let at = list.index(i);
            let values = at.field("values");
            let count = items(&e.values).count();
            match e.operator.as_str() {
                "In" | "NotIn" if count == 0 => {
                    self.required(&values, "must be specified when `operator` is 'In' or 'NotIn'");
                }
                "Exists" | "DoesNotExist" if count > 0 => {
                    self.forbidden(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
                }
                "Gt" | "Lt" if count != 1 => {
                    self.required(&values, "must be specified single value when `operator` is 'Lt' or 'Gt'");
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
                other => self.invalid(&at.field("operator"), &other, "not a valid selector operator"),
            }
            self.label_key(&at.field("key"), &e.key);
            for (j, value) in items(&e.values).enumerate() {
                self.invalid_all(&values.index(j), value, names::label_value(value));
            }
        }
        let list = at.field("matchFields");
        for (i, e) in items(&term.match_fields).enumerate() {
            let at = list.index(i);
            let one = items(&e.values).count() == 1;
            if !matches!(e.operator.as_str(), "In" | "NotIn") {
                self.invalid(&at.field("operator"), &e.operator, "not a valid selector operator");
            } else if !one {
                let at = at.field("values");
                self.required(&at, "must be only one value when `operator` is 'In' or 'NotIn' for node field selector");
            }
            if e.key != "metadata.name" {
                self.invalid(&at.field("key"), &e.key, "not a valid field selector key");
                continue;
            }
            for (j, value) in items(&e.values).enumerate() {
                self.invalid_all(&at.field("values").index(j), value, names::dns_subdomain(value));
            }
        }
    }

    /// A quantity; a text that is none is reported and gives `None`.
    pub(crate) fn quantity(&mut self, at: &Path<'_>, text: &Text) -> Option<Quantity> {
        match Quantity::try_from(text) {
            Ok(q) => Some(q),
            Err(error) => {
                self.invalid(at, &text.0, &error.to_string());
                None
            }
        }
    }

    /// A quantity of at least zero.
    pub(crate) fn quantity_not_negative(&mut self, at: &Path<'_>, text: &Text) -> Option<Quantity> {
        let q = self.quantity(at, text)?;
        if q.sign() < 0 {
            self.invalid(at, &q.to_string(), NOT_NEGATIVE);
        }
        Some(q)
    }

    /// A quantity that an amount of a resource can be: at least zero. Says whether it is.
    pub(crate) fn basic_resource(&mut self, at: &Path<'_>, text: &Text) -> bool {
        let Some(q) = self.quantity(at, text) else { return false };
        let negative = q.value() < 0;
        if negative {
            self.invalid(at, &q.value(), "must be a valid resource quantity");
        }
        !negative
    }

    /// A quantity above zero.
    pub(crate) fn quantity_positive(&mut self, at: &Path<'_>, text: &Text) -> Option<Quantity> {
        let q = self.quantity(at, text)?;
        if q.sign() <= 0 {
            self.invalid(at, &q.to_string(), POSITIVE);
        }
        Some(q)
    }

    /// The value of a resource: not negative, and whole where the resource cannot be split.
    pub(crate) fn resource_quantity(&mut self, at: &Path<'_>, resource: &str, text: &Text) -> Option<Quantity> {
        let q = self.quantity_not_negative(at, text)?;
        if is_integer_resource(resource) && q.milli_value() % 1000 != 0 {
            self.invalid(at, &q.to_string(), "must be an integer");
        }
        Some(q)
    }

    pub(crate) fn same<T: PartialEq + serde::Serialize>(&mut self, at: &Path<'_>, new: &T, old: &T) {
        if new != old {
            self.invalid(at, new, IMMUTABLE);
        }
    }

    pub(crate) fn csi_driver_name(&mut self, at: &Path<'_>, name: &str) {
        if !self.need(at, name) {
            return;
        }
        if name.len() > names::LABEL_MAX {
            self.too_long(at, names::LABEL_MAX);
        }
        self.invalid_all(at, &name, names::dns_subdomain(&name.to_lowercase()));
    }
}

/// Resources that are counted in whole units: objects, and extended resources of vendors.
fn is_integer_resource(resource: &str) -> bool {
    const COUNTED: &[&str] = &[
        "pods",
        "services",
        "replicationcontrollers",
        "resourcequotas",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
        "services.nodeports",
        "services.loadbalancers",
    ];
    COUNTED.contains(&resource) || resource.starts_with("count/") || is_extended_resource(resource)
}

/// Whether Kubernetes itself defines the resource: no domain, or its own.
pub(crate) fn is_native_resource(resource: &str) -> bool {
    !resource.contains('/') || resource.contains("kubernetes.io/")
}

pub(crate) fn is_extended_resource(resource: &str) -> bool {
    !is_native_resource(resource) && !resource.starts_with("requests.")
}

/// Whether a path leads to the root, by its text alone.
pub(crate) fn is_root(path: &str) -> bool {
    let mut depth = 0_usize;
    for part in FilePath::new(path).components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::ParentDir => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    path.starts_with('/') && depth == 0
}
