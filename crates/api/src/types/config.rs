//! ConfigMaps, Secrets, ServiceAccounts, LimitRanges, ResourceQuotas, Leases, PriorityClasses.
use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, LimitRange, LimitRangeItem, ResourceQuota, Secret, ServiceAccount};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use serde_json::Value;

use super::{AGE, NAME, col, wide};
use crate::age::age;
use crate::check::{items, text};
use crate::contract::{Column, SelectableFields};
use crate::field::{Errors, Path};
use crate::names;
use crate::quantity::{Quantity, canonical_map};
use crate::typed::Rules;

/// Most bytes that a ConfigMap or Secret may hold.
const DATA_MAX: usize = 1024 * 1024;
const IMMUTABLE_SET: &str = "field is immutable when `immutable` is set";

impl Rules for ConfigMap {
    const COLUMNS: &'static [Column] = &[NAME, col("Data", "string", "Number of entries."), AGE];

    fn default(&mut self) {}

    fn validate(&self, e: &mut Errors) {
        let (data, binary) = (Path::top("data"), Path::top("binaryData"));
        let mut size = 0;
        for (key, value) in self.data.iter().flatten() {
            e.invalid_all(&data.key(key), key, names::config_key(key));
            if self.binary_data.as_ref().is_some_and(|b| b.contains_key(key)) {
                e.invalid(&data.key(key), key, "duplicate of key present in binaryData");
            }
            size += value.len();
        }
        for (key, value) in self.binary_data.iter().flatten() {
            e.invalid_all(&binary.key(key), key, names::config_key(key));
            size += value.0.len();
        }
        if size > DATA_MAX {
            // The whole object: upstream writes a path of one empty step.
            e.too_long(&Path::top("[]"), DATA_MAX);
        }
    }

    fn validate_update(&self, old: &Self, e: &mut Errors) {
        if old.immutable == Some(true) {
            if self.immutable != Some(true) {
                e.forbidden(&Path::top("immutable"), IMMUTABLE_SET);
            }
            if self.data != old.data {
                e.forbidden(&Path::top("data"), IMMUTABLE_SET);
            }
            if self.binary_data != old.binary_data {
                e.forbidden(&Path::top("binaryData"), IMMUTABLE_SET);
            }
        }
        self.validate(e);
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        let count = self.data.as_ref().map_or(0, BTreeMap::len) + self.binary_data.as_ref().map_or(0, BTreeMap::len);
        vec![
            self.metadata.name.clone().into(),
            count.into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
        ]
    }
}

fn secret_of_type(secret: &Secret, e: &mut Errors) {
    let at = Path::top("data");
    let value = |key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map(|v| v.0.as_slice());
    let mut json = |key: &str| match value(key) {
        None => e.required(&at.key(key), ""),
        Some(bytes) => {
            if let Err(error) = serde_json::from_slice::<BTreeMap<String, Value>>(bytes) {
                let why = crate::schema::syntax_error(bytes).unwrap_or_else(|| error.to_string());
                e.invalid(&at.key(key), &"<secret contents redacted>", &why);
            }
        }
    };
    match text(&secret.type_) {
        "kubernetes.io/dockercfg" => json(".dockercfg"),
        "kubernetes.io/dockerconfigjson" => json(".dockerconfigjson"),
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            if secret.metadata.annotations.as_ref().and_then(|a| a.get(key)).is_none_or(String::is_empty) {
                let at = Path::top("metadata");
                let at = at.field("annotations");
                e.required(&at.key(key), "");
            }
        }
        "kubernetes.io/basic-auth" if value("username").is_none() && value("password").is_none() => {
            e.required(&at.key("username"), "");
            e.required(&at.key("password"), "");
        }
        "kubernetes.io/ssh-auth" if value("ssh-privatekey").is_none_or(<[u8]>::is_empty) => {
            e.required(&at.key("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"] {
                if value(key).is_none() {
                    e.required(&at.key(key), "");
                }
            }
        }
        _ => {}
    }
}

/// How certificates and keys in text form begin.
const PEM_BEGIN: &[u8] = b"-----BEGIN ";

impl Rules for Secret {
    const COLUMNS: &'static [Column] =
        &[NAME, col("Type", "string", "What the secret is for."), col("Data", "string", "Number of entries."), AGE];
    const SELECTABLE: &'static [&'static str] = &["type"];

    fn default(&mut self) {
        if text(&self.type_).is_empty() {
            self.type_ = Some("Opaque".to_owned());
        }
        // `stringData` is a way to write `data`, never stored.
        if let Some(plain) = self.string_data.take() {
            let data = self.data.get_or_insert_default();
            data.extend(plain.into_iter().map(|(key, value)| (key, ByteString(value.into_bytes()))));
        }
    }

    fn validate(&self, e: &mut Errors) {
        let at = Path::top("data");
        let mut size = 0;
        for (key, value) in self.data.iter().flatten() {
            e.invalid_all(&at.key(key), key, names::config_key(key));
            size += value.0.len();
        }
        if size > DATA_MAX {
            e.too_long(&at, DATA_MAX);
        }
        secret_of_type(self, e);
    }

    fn prepare_update(&mut self, old: &Self) {
        // Clients that leave the type out mean the one it has.
        if text(&self.type_).is_empty() {
            self.type_ = old.type_.clone();
        }
    }

    fn validate_update(&self, old: &Self, e: &mut Errors) {
        if self.type_ != old.type_ {
            e.invalid(&Path::top("type"), &self.type_, crate::check::IMMUTABLE);
        }
        if old.immutable == Some(true) {
            if self.immutable != Some(true) {
                e.forbidden(&Path::top("immutable"), IMMUTABLE_SET);
            }
            if self.data != old.data {
                e.forbidden(&Path::top("data"), IMMUTABLE_SET);
            }
        }
        self.validate(e);
    }

    fn warnings(&self) -> Vec<String> {
        if text(&self.type_) != "kubernetes.io/tls" {
            return Vec::new();
        }
        let has_pem = |key: &str| {
            let value = self.data.as_ref().and_then(|d| d.get(key)).map(|v| v.0.as_slice()).unwrap_or_default();
            value.windows(PEM_BEGIN.len()).any(|part| part == PEM_BEGIN)
        };
        let missing = [("tls.crt", "certificate"), ("tls.key", "key")].into_iter().find(|(key, _)| !has_pem(key));
        missing.map(|(_, what)| format!("tls: failed to find any PEM data in {what} input")).into_iter().collect()
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        vec![
            self.metadata.name.clone().into(),
            text(&self.type_).into(),
            self.data.as_ref().map_or(0, BTreeMap::len).into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
        ]
    }

    fn selectable(&self) -> SelectableFields {
        vec![("type", text(&self.type_).to_owned())]
    }
}

impl Rules for ServiceAccount {
    const COLUMNS: &'static [Column] = &[NAME, AGE];

    fn default(&mut self) {}

    fn validate(&self, _e: &mut Errors) {}

    fn warnings(&self) -> Vec<String> {
        const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";
        let used = self.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(ENFORCE));
        let says = "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets";
        used.then(|| format!("metadata.annotations[{ENFORCE}]: {says}")).into_iter().collect()
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        vec![self.metadata.name.clone().into(), age(self.metadata.creation_timestamp.as_ref(), now).into()]
    }
}

fn default_limits(item: &mut LimitRangeItem) {
    if item.type_ == "Container" {
        let (mut limits, mut requests) =
            (item.default.take().unwrap_or_default(), item.default_request.take().unwrap_or_default());
        for (key, value) in item.max.iter().flatten() {
            limits.entry(key.clone()).or_insert_with(|| value.clone());
        }
        for (key, value) in limits.iter().chain(item.min.iter().flatten()) {
            requests.entry(key.clone()).or_insert_with(|| value.clone());
        }
        item.default = (!limits.is_empty()).then_some(limits);
        item.default_request = (!requests.is_empty()).then_some(requests);
    }
    let maps =
        [&mut item.default, &mut item.default_request, &mut item.max, &mut item.min, &mut item.max_limit_request_ratio];
    maps.into_iter().for_each(canonical_map);
}

fn read(at: &Path<'_>, map: &Option<BTreeMap<String, Text>>, e: &mut Errors) -> BTreeMap<String, Quantity> {
    let mut out = BTreeMap::new();
    for (key, value) in map.iter().flatten() {
        e.label_key(&at.key(key), key);
        if let Some(q) = e.quantity(&at.key(key), value) {
            out.insert(key.clone(), q);
        }
    }
    out
}

fn limits(at: &Path<'_>, item: &LimitRangeItem, e: &mut Errors) {
    let (min_at, default_at, request_at) = (at.field("min"), at.field("default"), at.field("defaultRequest"));
    let ratio_at = at.field("maxLimitRequestRatio");
    let max = read(&at.field("max"), &item.max, e);
    let min = read(&min_at, &item.min, e);
    let (mut limit, mut request) = (BTreeMap::new(), BTreeMap::new());
    if item.type_ == "Pod" {
        for (at, map) in [(&default_at, &item.default), (&request_at, &item.default_request)] {
            if map.as_ref().is_some_and(|m| !m.is_empty()) {
                e.forbidden(at, "may not be specified when `type` is 'Pod'");
            }
        }
    } else {
        limit = read(&default_at, &item.default, e);
        request = read(&request_at, &item.default_request, e);
    }
    if item.type_ == "PersistentVolumeClaim" && !min.contains_key("storage") && !max.contains_key("storage") {
        e.required(
            &at.field("limits"),
            "either minimum or maximum storage value is required, but neither was provided",
        );
    }
    let ratio = read(&ratio_at, &item.max_limit_request_ratio, e);
    let keys: BTreeSet<&String> = [&max, &min, &limit, &request, &ratio].into_iter().flat_map(BTreeMap::keys).collect();
    for key in keys {
        let get = |map: &BTreeMap<String, Quantity>| map.get(key).copied();
        let (max, min, limit, request) = (get(&max), get(&min), get(&limit), get(&request));
        let mut order = |low: Option<Quantity>,
                         low_name: &str,
                         high: Option<Quantity>,
                         high_name: &str,
                         at: &Path<'_>,
                         shown: Option<Quantity>| {
            if let (Some(low), Some(high), Some(shown)) = (low, high, shown)
                && low > high
            {
                let detail = format!("{low_name} value {low} is greater than {high_name} value {high}");
                e.invalid(&at.key(key), &shown.to_string(), &detail);
            }
        };
        order(min, "min", max, "max", &min_at, min);
        order(min, "min", request, "default request", &request_at, request);
        order(request, "default request", max, "max", &request_at, request);
        order(request, "default request", limit, "default limit", &request_at, request);
        order(min, "min", limit, "default", &default_at, min);
        order(limit, "default", max, "max", &default_at, max);
        if let Some(ratio) = get(&ratio).filter(|r| *r < Quantity::whole(1)) {
            e.invalid(&ratio_at.key(key), &ratio.to_string(), &format!("ratio {ratio} is less than 1"));
        }
    }
}

impl Rules for LimitRange {
    const COLUMNS: &'static [Column] = super::PLAIN;

    fn default(&mut self) {
        self.spec.get_or_insert_default().limits.iter_mut().for_each(default_limits);
    }

    fn validate(&self, e: &mut Errors) {
        let list = Path::top("spec");
        let list = list.field("limits");
        let mut types = BTreeSet::new();
        for (i, item) in self.spec.iter().flat_map(|s| &s.limits).enumerate() {
            let at = list.index(i);
            let kind = &item.type_;
            let before = e.len();
            e.label_key(&at.field("type"), kind);
            if e.len() == before
                && !kind.contains('/')
                && !["Pod", "Container", "PersistentVolumeClaim"].contains(&kind.as_str())
            {
                e.invalid(&at.field("type"), kind, "must be a standard limit type or fully qualified");
            }
            if !types.insert(kind) {
                e.duplicate(&at.field("type"), kind);
            }
            limits(&at, item, e);
        }
    }

    fn row(&self, _now: Timestamp) -> Vec<Value> {
        super::plain_row(&self.metadata)
    }
}

impl Rules for ResourceQuota {
    const COLUMNS: &'static [Column] = &[
        NAME,
        col("Request", "string", "Request represents a minimum amount of cpu/memory that a container may consume."),
        col(
            "Limit",
            "string",
            "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node.",
        ),
        AGE,
    ];
    const STATUS: bool = true;

    fn default(&mut self) {
        canonical_map(&mut self.spec.get_or_insert_default().hard);
        if let Some(status) = &mut self.status {
            canonical_map(&mut status.hard);
            canonical_map(&mut status.used);
        }
    }

    fn validate(&self, e: &mut Errors) {
        let spec_at = Path::top("spec");
        let list = spec_at.field("hard");
        for (resource, value) in self.spec.iter().flat_map(|s| s.hard.iter().flatten()) {
            let at = list.key(resource);
            e.label_key(&at, resource);
            e.resource_quantity(&at, resource, value);
        }
        const SCOPES: &[&str] = &[
            "BestEffort",
            "CrossNamespacePodAffinity",
            "NotBestEffort",
            "NotTerminating",
            "PriorityClass",
            "Terminating",
            "VolumeAttributesClass",
        ];
        for scope in self.spec.iter().flat_map(|s| items(&s.scopes)) {
            if !SCOPES.contains(&scope.as_str()) {
                e.invalid(&spec_at.field("scopes"), scope, "unsupported scope");
            }
        }
    }

    fn validate_update(&self, old: &Self, e: &mut Errors) {
        self.validate(e);
        let scopes = |q: &Self| q.spec.iter().flat_map(|s| items(&s.scopes)).cloned().collect::<BTreeSet<_>>();
        if scopes(self) != scopes(old) {
            let at = Path::top("spec");
            e.invalid(&at.field("scopes"), &scopes(self), crate::check::IMMUTABLE);
        }
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        let status = self.status.clone().unwrap_or_default();
        for (resource, hard) in status.hard.iter().flatten() {
            let used = status.used.as_ref().and_then(|u| u.get(resource)).map_or("0", |q| q.0.as_str());
            let column = if resource.starts_with("limits.") { &mut limits } else { &mut requests };
            column.push(format!("{resource}: {used}/{}", hard.0));
        }
        vec![
            self.metadata.name.clone().into(),
            requests.join(", ").into(),
            limits.join(", ").into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
        ]
    }
}

impl Rules for Lease {
    const COLUMNS: &'static [Column] = &[NAME, col("Holder", "string", "Who holds the lease."), AGE];

    fn default(&mut self) {}

    fn validate(&self, e: &mut Errors) {
        let at = Path::top("spec");
        let Some(spec) = &self.spec else { return };
        if let Some(seconds) = spec.lease_duration_seconds.filter(|s| *s <= 0) {
            e.invalid(&at.field("leaseDurationSeconds"), &seconds, "must be greater than 0");
        }
        if let Some(count) = spec.lease_transitions.filter(|c| *c < 0) {
            e.invalid(&at.field("leaseTransitions"), &count, "must be greater than or equal to 0");
        }
        if !text(&spec.preferred_holder).is_empty() && text(&spec.strategy).is_empty() {
            e.forbidden(&at.field("preferredHolder"), "may only be specified if `strategy` is defined");
        }
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        vec![
            self.metadata.name.clone().into(),
            self.spec.as_ref().map_or("", |s| text(&s.holder_identity)).into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
        ]
    }
}

impl Rules for PriorityClass {
    const COLUMNS: &'static [Column] = &[
        NAME,
        col("Value", "integer", "The priority."),
        col("Global-Default", "boolean", "Whether pods without a class get this one."),
        AGE,
        wide("PreemptionPolicy", "string", "Whether pods of this class may drive out others."),
    ];

    fn default(&mut self) {
        self.preemption_policy.get_or_insert_with(|| "PreemptLowerPriority".to_owned());
    }

    fn validate(&self, e: &mut Errors) {
        const USER_MAX: i32 = 1_000_000_000;
        let name = self.metadata.name.as_deref().unwrap_or_default();
        if name.starts_with("system-") && !matches!(name, "system-node-critical" | "system-cluster-critical") {
            let at = Path::top("metadata");
            let detail = "priority class names with 'system-' prefix are reserved for system use only";
            e.forbidden(&at.field("name"), detail);
        } else if !name.starts_with("system-") && self.value.unwrap_or(0) > USER_MAX {
            let detail = format!("maximum allowed value of a user defined priority is {USER_MAX}");
            e.forbidden(&Path::top("value"), &detail);
        }
        if let Some(policy) = &self.preemption_policy {
            e.one_of(&Path::top("preemptionPolicy"), policy, &["Never", "PreemptLowerPriority"]);
        }
    }

    fn validate_update(&self, old: &Self, e: &mut Errors) {
        if self.value != old.value {
            e.forbidden(&Path::top("value"), "may not be changed in an update.");
        }
        e.same(&Path::top("preemptionPolicy"), &self.preemption_policy, &old.preemption_policy);
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        vec![
            self.metadata.name.clone().into(),
            self.value.unwrap_or(0).into(),
            self.global_default.unwrap_or(false).into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
            text(&self.preemption_policy).into(),
        ]
    }
}
