//! Environment variables and what they refer to.
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::check::{items, text};
use crate::field::{Errors, Path};
use crate::names;
use crate::quantity::Quantity;

const VARIABLE_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Every field of a pod that the downward API knows, in whichever place.
const KNOWN_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

const SIZE_DIVISORS: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

pub(crate) fn variables(at: &Path<'_>, list: &Option<Vec<core::EnvVar>>, e: &mut Errors) {
    for (i, variable) in items(list).enumerate() {
        let at = at.index(i);
        if e.need(&at.field("name"), &variable.name) {
            e.invalid_all(&at.field("name"), &variable.name, names::env_name(&variable.name));
        }
        if let Some(from) = &variable.value_from {
            value_from(&at.field("valueFrom"), from, text(&variable.value), e);
        }
    }
}

fn value_from(at: &Path<'_>, from: &core::EnvVarSource, value: &str, e: &mut Errors) {
    let mut count = 0;
    if let Some(field) = &from.field_ref {
        count += 1;
        field_selector(&at.field("fieldRef"), field, VARIABLE_FIELDS, e);
    }
    if let Some(resource) = &from.resource_field_ref {
        count += 1;
        resource_selector(&at.field("resourceFieldRef"), resource, false, e);
    }
    if let Some(key) = &from.config_map_key_ref {
        count += 1;
        key_selector(&at.field("configMapKeyRef"), &key.name, &key.key, e);
    }
    if let Some(key) = &from.secret_key_ref {
        count += 1;
        key_selector(&at.field("secretKeyRef"), &key.name, &key.key, e);
    }
    if let Some(file) = &from.file_key_ref {
        count += 1;
        file_key_selector(&at.field("fileKeyRef"), file, e);
    }
    if count == 0 {
        e.invalid(
            at,
            &"",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        );
    } else if !value.is_empty() {
        e.invalid(at, &"", "may not be specified when `value` is not empty");
    } else if count > 1 {
        e.invalid(at, &"", "may not have more than one field specified at a time");
    }
}

fn key_selector(at: &Path<'_>, name: &str, key: &str, e: &mut Errors) {
    e.dns_subdomain(&at.field("name"), name);
    if e.need(&at.field("key"), key) {
        e.invalid_all(&at.field("key"), &key, names::config_key(key));
    }
}

fn file_key_selector(at: &Path<'_>, file: &core::FileKeySelector, e: &mut Errors) {
    if e.need(&at.field("key"), &file.key) {
        e.invalid_all(&at.field("key"), &file.key, names::env_name(&file.key));
    }
    if e.need(&at.field("volumeName"), &file.volume_name) {
        e.dns_label(&at.field("volumeName"), &file.volume_name);
    }
    if e.need(&at.field("path"), &file.path) {
        e.no_backsteps(&at.field("path"), &file.path);
    }
}

/// A field of the pod: one of `allowed`, or one label or annotation by key.
pub(crate) fn field_selector(at: &Path<'_>, selector: &core::ObjectFieldSelector, allowed: &[&str], e: &mut Errors) {
    let path = selector.field_path.as_str();
    if !e.need(&at.field("apiVersion"), text(&selector.api_version)) || !e.need(&at.field("fieldPath"), path) {
        return;
    }
    let path_at = at.field("fieldPath");
    if text(&selector.api_version) != "v1" {
        let detail = format!("error converting fieldPath: unsupported pod version: {}", text(&selector.api_version));
        return e.invalid(&path_at, &path, &detail);
    }
    let Some((base, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) else {
        // The old name of a field that lives on elsewhere.
        let path = if path == "spec.host" { "spec.nodeName" } else { path };
        if !KNOWN_FIELDS.contains(&path) {
            e.invalid(&path_at, &path, &format!("error converting fieldPath: field label not supported: {path}"));
        } else if !allowed.contains(&path) {
            e.not_supported(&path_at, &path, allowed);
        }
        return;
    };
    match base {
        "metadata.annotations" => e.label_key(at, &key.to_lowercase()),
        "metadata.labels" => e.label_key(at, key),
        _ => {
            let detail = format!("error converting fieldPath: field label does not support subscript: {path}");
            e.invalid(&path_at, &path, &detail);
        }
    }
}

/// A container's resource. In volumes (`in_volume`) the container must be named.
pub(crate) fn resource_selector(
    at: &Path<'_>,
    selector: &core::ResourceFieldSelector,
    in_volume: bool,
    e: &mut Errors,
) {
    let resource = selector.resource.as_str();
    let huge = resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    if in_volume && text(&selector.container_name).is_empty() {
        e.required(&at.field("containerName"), "");
    } else if resource.is_empty() {
        e.required(&at.field("resource"), "");
    } else if !huge && !RESOURCE_FIELDS.contains(&resource) {
        e.not_supported(&at.field("resource"), &resource, RESOURCE_FIELDS);
    }
    if let Some(divisor) = &selector.divisor {
        check_divisor(&at.field("divisor"), resource, huge, divisor, e);
    }
}

fn check_divisor(at: &Path<'_>, resource: &str, huge: bool, text: &Text, e: &mut Errors) {
    let Some(divisor) = e.quantity(at, text).filter(|d: &Quantity| !d.is_zero()) else { return };
    let written = divisor.to_string();
    let (allowed, named): (&[&str], &str) = match resource {
        "limits.cpu" | "requests.cpu" => (&["1m", "1"], "cpu"),
        "limits.memory" | "requests.memory" => (SIZE_DIVISORS, "memory"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => (SIZE_DIVISORS, "local ephemeral storage"),
        _ if huge => (SIZE_DIVISORS, "hugepages"),
        _ => return,
    };
    if !allowed.contains(&written.as_str()) {
        let list = if named == "cpu" { "1m and 1".to_owned() } else { allowed.join(", ") };
        e.invalid(at, &resource, &format!("only divisor's values {list} are supported with the {named} resource"));
    }
}

pub(crate) fn from_sources(at: &Path<'_>, list: &Option<Vec<core::EnvFromSource>>, e: &mut Errors) {
    let whole = at;
    for (i, source) in items(list).enumerate() {
        let at = at.index(i);
        if let Some(prefix) = source.prefix.as_deref().filter(|p| !p.is_empty()) {
            e.invalid_all(&at.field("prefix"), &prefix, names::env_name(prefix));
        }
        let refs = [
            ("configMapRef", source.config_map_ref.as_ref().map(|r| r.name.as_str())),
            ("secretRef", source.secret_ref.as_ref().map(|r| r.name.as_str())),
        ];
        for (field, name) in refs {
            let at = at.field(field);
            if let Some(name) = name
                && e.need(&at.field("name"), name)
            {
                e.invalid_all(&at.field("name"), &name, names::prefix_of(names::dns_subdomain, name));
            }
        }
        match refs.iter().filter(|(_, name)| name.is_some()).count() {
            0 => e.invalid(whole, &"", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => e.invalid(whole, &"", "may not have more than one field specified at a time"),
        }
    }
}
