//! Ingresses: what clients read and write; nothing here routes requests.
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{HTTPIngressPath, Ingress, IngressBackend};
use serde_json::Value;

use super::{AGE, NAME, col};
use crate::age::age;
use crate::check::{is_empty, items, text};
use crate::contract::Column;
use crate::field::{Errors, Path};
use crate::names;
use crate::typed::Rules;

/// Most hosts that a row names.
const HOSTS_SHOWN: usize = 3;
/// Most characters of the addresses in a row.
const ADDRESSES_SHOWN: usize = 16;

fn backend(at: &Path<'_>, backend: &IngressBackend, e: &mut Errors) {
    let service = match (&backend.resource, &backend.service) {
        (Some(_), Some(_)) => return e.invalid(at, &"", "cannot set both resource and service backends"),
        (None, None) => return e.invalid(at, &"", "resource or service backend is required"),
        (Some(resource), None) => {
            let at = at.field("resource");
            e.need(&at.field("kind"), &resource.kind);
            e.need(&at.field("name"), &resource.name);
            return;
        }
        (None, Some(service)) => service,
    };
    let service_at = at.field("service");
    if e.need(&service_at.field("name"), &service.name) {
        e.dns_label(&service_at.field("name"), &service.name);
    }
    let port_at = service_at.field("port");
    let port = service.port.clone().unwrap_or_default();
    match (text(&port.name), port.number.unwrap_or(0)) {
        ("", 0) => e.required(at, "port name or number is required"),
        ("", number) => e.invalid_all(&port_at.field("number"), &number, names::port_number(number.into())),
        (name, 0) => e.invalid_all(&port_at.field("name"), &name, names::port_name(name)),
        _ => e.invalid(at, &"", "cannot set both port name & port number"),
    }
}

fn path(at: &Path<'_>, path: &HTTPIngressPath, e: &mut Errors) {
    const NEVER_IN: &[&str] = &["//", "/./", "/../", "%2f", "%2F"];
    const NEVER_LAST: &[&str] = &["/..", "/."];
    if path.path_type.is_empty() {
        return e.required(&at.field("pathType"), "pathType must be specified");
    }
    let (text, path_at) = (text(&path.path), at.field("path"));
    match path.path_type.as_str() {
        "Exact" | "Prefix" => {
            if !text.starts_with('/') {
                e.invalid(&path_at, &text, "must be an absolute path");
            }
            for part in NEVER_IN.iter().filter(|p| text.contains(**p)) {
                e.invalid(&path_at, &text, &format!("must not contain '{part}'"));
            }
            for part in NEVER_LAST.iter().filter(|p| text.ends_with(**p)) {
                e.invalid(&path_at, &text, &format!("cannot end with '{part}'"));
            }
        }
        "ImplementationSpecific" => {
            if !text.is_empty() && !text.starts_with('/') {
                e.invalid(&path_at, &text, "must be an absolute path");
            }
        }
        other => e.not_supported(&at.field("pathType"), &other, &["Exact", "ImplementationSpecific", "Prefix"]),
    }
    backend(&at.field("backend"), &path.backend, e);
}

fn host(at: &Path<'_>, host: &str, e: &mut Errors) {
    if host.parse::<std::net::IpAddr>().is_ok() {
        e.invalid(at, &host, "must be a DNS name, not an IP address");
    }
    e.dns_subdomain(at, host.strip_prefix("*.").unwrap_or(host));
}

impl Rules for Ingress {
    const COLUMNS: &'static [Column] = &[
        NAME,
        col("Class", "string", "Who is to serve the ingress."),
        col("Hosts", "string", "Hosts that the rules are about."),
        col("Address", "string", "Where it is served."),
        col("Ports", "string", "Ports that are open."),
        AGE,
    ];
    const STATUS: bool = true;
    const GENERATION: bool = true;

    fn default(&mut self) {}

    fn validate(&self, e: &mut Errors) {
        let at = Path::top("spec");
        let spec = self.spec.clone().unwrap_or_default();
        if is_empty(&spec.rules) && spec.default_backend.is_none() {
            e.invalid(&at, &Value::Null, "either `defaultBackend` or `rules` must be specified");
        }
        if let Some(default) = &spec.default_backend {
            backend(&at.field("defaultBackend"), default, e);
        }
        let rules_at = at.field("rules");
        for (i, rule) in items(&spec.rules).enumerate() {
            let at = rules_at.index(i);
            if !text(&rule.host).is_empty() {
                host(&at.field("host"), text(&rule.host), e);
            }
            let Some(http) = &rule.http else { continue };
            let http_at = at.field("http");
            let paths_at = http_at.field("paths");
            if http.paths.is_empty() {
                e.required(&paths_at, "");
            }
            for (j, one) in http.paths.iter().enumerate() {
                path(&paths_at.index(j), one, e);
            }
        }
        if let Some(class) = &spec.ingress_class_name {
            e.dns_subdomain(&at.field("ingressClassName"), class);
        }
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let hosts: Vec<&str> = items(&spec.rules).map(|r| text(&r.host)).filter(|h| !h.is_empty()).collect();
        let shown = hosts.iter().take(HOSTS_SHOWN).copied().collect::<Vec<_>>().join(",");
        let balancer = self.status.as_ref().and_then(|s| s.load_balancer.as_ref());
        let mut addresses: Vec<&str> = balancer
            .iter()
            .flat_map(|b| items(&b.ingress))
            .map(|i| if text(&i.ip).is_empty() { text(&i.hostname) } else { text(&i.ip) })
            .filter(|a| !a.is_empty())
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        let mut address = addresses.join(",");
        if address.chars().count() > ADDRESSES_SHOWN {
            address = address.chars().take(ADDRESSES_SHOWN - 3).chain("...".chars()).collect();
        }
        vec![
            self.metadata.name.clone().into(),
            spec.ingress_class_name.unwrap_or_else(|| "<none>".to_owned()).into(),
            match hosts.len() {
                0 => "*".to_owned(),
                n if n > HOSTS_SHOWN => format!("{shown} + {} more...", n - HOSTS_SHOWN),
                _ => shown,
            }
            .into(),
            address.into(),
            if is_empty(&spec.tls) { "80" } else { "80, 443" }.into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
        ]
    }
}
