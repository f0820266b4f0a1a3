//! Field and resource references of the downward API, for volumes and for `env[].valueFrom`.
use std::{collections::BTreeMap, fmt::Write};

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use crate::check::items;
use crate::pod::amount_of;
use crate::quantity::Quantity;

/// Why a reference has no value; upstream's sentences.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DownwardError {
    #[error("fieldPath {0:?} does not support subscript")]
    Subscript(String),
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    #[error("unsupported container resource : {0}")]
    Resource(String),
    #[error("divisor {0:?} is not a positive quantity")]
    Divisor(String),
    #[error("container {0} not found")]
    Container(String),
}

/// What the node can give to pods: the value of a limit that a container does not set.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct NodeSize {
    /// Thousandths of a CPU.
    pub cpu_milli: i64,
    pub memory_bytes: i64,
}

/// The value of a `fieldRef`. A field that has no value yet is the empty string.
///
/// Knows the fields of `env` too (`spec.nodeName`, `status.podIP`, ...), which validation refuses in volumes.
/// # Errors
/// For a field that the downward API does not offer.
pub fn field_value(pod: &Pod, path: &str) -> Result<String, DownwardError> {
    let meta = &pod.metadata;
    let of = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default()
    };
    if let Some((field, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")).filter(|(f, _)| !f.is_empty())
    {
        return match field {
            "metadata.annotations" => Ok(of(&meta.annotations, key)),
            "metadata.labels" => Ok(of(&meta.labels, key)),
            _ => Err(DownwardError::Subscript(path.into())),
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
        _ => Err(DownwardError::Field(path.into())),
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

/// The value of a `resourceFieldRef`: whole multiples of the divisor, rounded up. The container is the one that the selector
/// names, or `default` where it names none. A CPU or memory limit that is not set is what the node has.
///
/// # Errors
/// For a resource that the downward API does not offer, a divisor that is no positive quantity, or an unknown container.
pub fn resource_value(
    pod: &Pod,
    default: Option<&Container>,
    selector: &ResourceFieldSelector,
    node: NodeSize,
) -> Result<String, DownwardError> {
    let container = named(pod, default, selector.container_name.as_deref().unwrap_or_default())?;
    let unsupported = || DownwardError::Resource(selector.resource.clone());
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
    let amount = amount_of(set, resource).filter(|q| !q.is_zero()).unwrap_or_else(|| match (list, resource) {
        ("limits", "cpu") => Quantity::milli(node.cpu_milli),
        ("limits", "memory") => Quantity::bytes(node.memory_bytes),
        _ => Quantity::ZERO,
    });
    let divisor = divisor(selector)?;
    let (value, by) = match resource {
        "cpu" => (amount.milli_value(), divisor.milli_value()),
        _ => (amount.value(), divisor.value()),
    };
    Ok((value / by + i64::from(value % by > 0)).to_string())
}

/// The selector's divisor; one where none is given.
fn divisor(selector: &ResourceFieldSelector) -> Result<Quantity, DownwardError> {
    let text = selector.divisor.as_ref().map(|q| q.0.as_str()).filter(|text| !text.is_empty());
    let Some(text) = text else { return Ok(Quantity::whole(1)) };
    match Quantity::parse(text) {
        Ok(q) if q.is_zero() => Ok(Quantity::whole(1)),
        Ok(q) if q.sign() > 0 => Ok(q),
        _ => Err(DownwardError::Divisor(text.into())),
    }
}

fn named<'a>(pod: &'a Pod, default: Option<&'a Container>, name: &str) -> Result<&'a Container, DownwardError> {
    let spec = pod.spec.as_ref();
    let mut all = spec.into_iter().flat_map(|s| s.containers.iter().chain(items(&s.init_containers)));
    let found = if name.is_empty() { default } else { all.find(|c| c.name == name) };
    found.ok_or_else(|| DownwardError::Container(name.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "pod-uid", "labels": {"tier": "x", "app": "web"},
                "annotations": {"note": "say \"hi\"\nthere", "odd": "\u{7f}\u{1}\\\t\u{a0}é\u{200b}e\u{301}'"}},
            "spec": {"nodeName": "n", "serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "150m", "memory": "40Mi"},
                    "requests": {"memory": "20Mi", "cpu": "10m", "ephemeral-storage": "1500"}}},
                {"name": "free"}], "initContainers": [{"name": "init", "resources": {"limits": {"cpu": "2"}}}]},
            "status": {"podIP": "10.0.0.1", "hostIP": "192.0.2.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                "hostIPs": [{"ip": "192.0.2.1"}]}
        }))
        .expect("a valid pod")
    }

    #[test]
    fn fields_of_the_pod() {
        for (path, want) in [
            ("metadata.name", "p"),
            ("metadata.namespace", "ns"),
            ("metadata.uid", "pod-uid"),
            ("metadata.labels", "app=\"web\"\ntier=\"x\""),
            ("metadata.labels['app']", "web"),
            ("metadata.labels['none']", ""),
            ("metadata.annotations['note']", "say \"hi\"\nthere"),
            // As Go quotes: escapes for what does not print, é as itself.
            (
                "metadata.annotations",
                "note=\"say \\\"hi\\\"\\nthere\"\nodd=\"\\x7f\\x01\\\\\\t\\u00a0é\\u200be\u{301}'\"",
            ),
            ("spec.nodeName", "n"),
            ("spec.serviceAccountName", "sa"),
            ("status.podIP", "10.0.0.1"),
            ("status.podIPs", "10.0.0.1,fd00::1"),
            ("status.hostIP", "192.0.2.1"),
            ("status.hostIPs", "192.0.2.1"),
            ("spec.unknown", "error: unsupported fieldPath: spec.unknown"),
            ("spec['x']", "error: fieldPath \"spec['x']\" does not support subscript"),
        ] {
            let got = field_value(&pod(), path).unwrap_or_else(|e| format!("error: {e}"));
            assert_eq!(got, want, "{path}");
        }
    }

    #[test]
    fn resources_of_containers() {
        let pod = pod();
        let first = pod.spec.as_ref().and_then(|s| s.containers.first());
        let node = NodeSize { cpu_milli: 4000, memory_bytes: 8 << 30 };
        for (container, resource, divisor, want) in [
            ("c", "limits.cpu", "", "1"),
            ("c", "limits.cpu", "1m", "150"),
            ("c", "limits.cpu", "100m", "2"),
            ("c", "requests.cpu", "1", "1"),
            ("c", "limits.memory", "1Mi", "40"),
            ("c", "requests.memory", "3", "6990507"),
            ("c", "requests.ephemeral-storage", "1k", "2"),
            ("c", "limits.hugepages-2Mi", "", "0"),
            // Unset limits are what the node can give; unset requests are nothing.
            ("free", "limits.cpu", "1m", "4000"),
            ("free", "limits.memory", "1Gi", "8"),
            ("free", "requests.cpu", "1m", "0"),
            ("init", "limits.cpu", "", "2"),
            ("", "limits.cpu", "1m", "150"),
            ("c", "limits.cpu", "-1", "error: divisor \"-1\" is not a positive quantity"),
            ("gone", "limits.cpu", "", "error: container gone not found"),
            ("c", "limits.gpu", "", "error: unsupported container resource : limits.gpu"),
            ("c", "cpu", "", "error: unsupported container resource : cpu"),
        ] {
            let selector = json!({"containerName": container, "resource": resource, "divisor": divisor});
            let got = resource_value(&pod, first, &serde_json::from_value(selector).expect("valid"), node);
            assert_eq!(got.unwrap_or_else(|e| format!("error: {e}")), want, "{container} {resource} / {divisor}");
        }
    }
}
