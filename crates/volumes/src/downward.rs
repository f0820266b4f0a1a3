//! Field and resource references of the downward API, for volumes and for `env[].valueFrom`.
use std::{collections::BTreeMap, fmt::Write};

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use crate::{
    contract::Inputs,
    error::VolumeError,
    quantity::{Amount, div_ceil},
};

fn invalid(message: String) -> VolumeError {
    VolumeError::Invalid { message }
}

/// The value of a `fieldRef`. A field that has no value yet is the empty string.
///
/// Knows the fields of `env` too (`spec.nodeName`, `status.podIP`, ...), which validation refuses in volumes.
/// # Errors
/// `Invalid` for a field that the downward API does not offer.
pub fn field_value(pod: &Pod, path: &str) -> Result<String, VolumeError> {
    let meta = &pod.metadata;
    let of = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default()
    };
    if let Some((field, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")).filter(|(f, _)| !f.is_empty())
    {
        return match field {
            "metadata.annotations" => Ok(of(&meta.annotations, key)),
            "metadata.labels" => Ok(of(&meta.labels, key)),
            _ => Err(invalid(format!("fieldPath {path:?} does not support subscript"))),
        };
    }
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let text = |field: Option<&String>| Ok(field.cloned().unwrap_or_default());
    let joined = |all: Vec<&str>| Ok(all.join(","));
    match path {
        "metadata.annotations" => Ok(map_lines(meta.annotations.as_ref())),
        "metadata.labels" => Ok(map_lines(meta.labels.as_ref())),
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "spec.nodeName" => text(spec.and_then(|s| s.node_name.as_ref())),
        "spec.serviceAccountName" => text(spec.and_then(|s| s.service_account_name.as_ref())),
        "spec.restartPolicy" => text(spec.and_then(|s| s.restart_policy.as_ref())),
        "spec.schedulerName" => text(spec.and_then(|s| s.scheduler_name.as_ref())),
        "status.phase" => text(status.and_then(|s| s.phase.as_ref())),
        "status.hostIP" => text(status.and_then(|s| s.host_ip.as_ref())),
        "status.podIP" => text(status.and_then(|s| s.pod_ip.as_ref())),
        "status.hostIPs" => {
            joined(status.and_then(|s| s.host_ips.as_ref()).into_iter().flatten().map(|h| h.ip.as_str()).collect())
        }
        "status.podIPs" => {
            joined(status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|p| p.ip.as_str()).collect())
        }
        _ => Err(invalid(format!("unsupported fieldPath: {path}"))),
    }
}

/// `key="value"` lines, sorted by key, values quoted as Go quotes them.
fn map_lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> =
        map.into_iter().flatten().map(|(key, value)| format!("{key}={}", go_quote(value))).collect();
    lines.join("\n")
}

fn go_quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if printable(c) => out.push(c),
            c if u32::from(c) < 0x80 => drop(write!(out, "\\x{:02x}", u32::from(c))),
            c if u32::from(c) < 0x1_0000 => drop(write!(out, "\\u{:04x}", u32::from(c))),
            c => drop(write!(out, "\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

/// Whether Go prints a character as itself: Rust's `Debug` escapes the same classes (control, format, separators, private,
/// unassigned), once a letter before it makes it not the start of the text.
fn printable(c: char) -> bool {
    let text = ['a', c];
    c == '\'' || text.iter().collect::<String>().escape_debug().eq(text)
}

/// The value of a `resourceFieldRef` for a container: whole multiples of the divisor, rounded up.
///
/// A limit that is not set is what the node can give ([`Inputs::node_cpu_milli`], [`Inputs::node_memory_bytes`]).
/// # Errors
/// `Invalid` for a resource that the downward API does not offer, or a divisor that is no quantity.
pub fn resource_value(
    container: &Container,
    selector: &ResourceFieldSelector,
    inputs: &Inputs,
) -> Result<String, VolumeError> {
    let unsupported = || invalid(format!("unsupported container resource : {}", selector.resource));
    let (list, resource) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let known = matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-");
    if !known {
        return Err(unsupported());
    }
    let resources = container.resources.as_ref();
    let set = match list {
        "limits" => resources.and_then(|r| r.limits.as_ref()),
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _ => return Err(unsupported()),
    };
    let amount = set.and_then(|m| m.get(resource)).and_then(|q| Amount::parse(&q.0)).unwrap_or(Amount::ZERO);
    let amount = match (list, resource) {
        ("limits", "cpu") if amount == Amount::ZERO => Amount::milli(inputs.node_cpu_milli),
        ("limits", "memory") if amount == Amount::ZERO => Amount::whole(inputs.node_memory_bytes),
        _ => amount,
    };
    let one = Amount::whole(1);
    let divisor = match selector.divisor.as_ref().map(|q| q.0.as_str()).filter(|text| !text.is_empty()) {
        Some(text) => Amount::parse(text).ok_or_else(|| invalid(format!("divisor {text:?} is not a quantity")))?,
        None => one,
    };
    let divisor = if divisor == Amount::ZERO { one } else { divisor };
    let (value, by) = match resource {
        "cpu" => (amount.milli_value(), divisor.milli_value()),
        _ => (amount.value(), divisor.value()),
    };
    if by <= 0 {
        return Err(invalid(format!("divisor of {} must be positive", selector.resource)));
    }
    Ok(div_ceil(value, by).to_string())
}

/// [`resource_value`] for the container that the selector names, or `default` if it names none.
pub fn pod_resource_value(
    pod: &Pod,
    default: Option<&Container>,
    selector: &ResourceFieldSelector,
    inputs: &Inputs,
) -> Result<String, VolumeError> {
    let name = selector.container_name.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let all = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let found = if name.is_empty() { default } else { all.into_iter().find(|c| c.name == name) };
    let container = found.ok_or_else(|| invalid(format!("container {name} not found")))?;
    resource_value(container, selector, inputs)
}
