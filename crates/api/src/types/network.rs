//! Services and Endpoints: what clients read and write; nothing here allocates addresses.
use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ClientIPConfig, Endpoints, Service, ServiceSpec, SessionAffinityConfig};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::{AGE, NAME, col, labels_text, wide};
use crate::age::age;
use crate::check::{is_empty, items, text};
use crate::contract::{Column, SelectableFields};
use crate::field::{Errors, Path};
use crate::names;
use crate::typed::Rules;

fn default_spec(spec: &mut ServiceSpec) {
    spec.session_affinity.get_or_insert_with(|| "None".to_owned());
    spec.type_.get_or_insert_with(|| "ClusterIP".to_owned());
    match text(&spec.session_affinity) {
        "None" => spec.session_affinity_config = None,
        "ClientIP" => {
            let config = spec.session_affinity_config.get_or_insert_with(SessionAffinityConfig::default);
            let client = config.client_ip.get_or_insert_with(ClientIPConfig::default);
            client.timeout_seconds.get_or_insert(10_800);
        }
        _ => {}
    }
    for port in spec.ports.iter_mut().flatten() {
        port.protocol.get_or_insert_with(|| "TCP".to_owned());
        let unset = match &port.target_port {
            None | Some(IntOrString::Int(0)) => true,
            Some(IntOrString::String(name)) => name.is_empty(),
            Some(IntOrString::Int(_)) => false,
        };
        if unset {
            port.target_port = Some(IntOrString::Int(port.port));
        }
    }
    let kind = text(&spec.type_).to_owned();
    let external =
        matches!(kind.as_str(), "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && !is_empty(&spec.external_ips));
    if external {
        spec.external_traffic_policy.get_or_insert_with(|| "Cluster".to_owned());
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        spec.internal_traffic_policy.get_or_insert_with(|| "Cluster".to_owned());
    }
    if kind == "LoadBalancer" {
        spec.allocate_load_balancer_node_ports.get_or_insert(true);
    }
}

fn validate_ports(at: &Path<'_>, spec: &ServiceSpec, e: &mut Errors) {
    let list = at.field("ports");
    let headless = text(&spec.cluster_ip) == "None";
    if is_empty(&spec.ports) && !headless && text(&spec.type_) != "ExternalName" {
        e.required(&list, "");
    }
    let many = items(&spec.ports).count() > 1;
    let (mut port_names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (i, port) in items(&spec.ports).enumerate() {
        let at = list.index(i);
        let name = text(&port.name);
        if name.is_empty() {
            if many {
                e.required(&at.field("name"), "");
            }
        } else {
            e.dns_label(&at.field("name"), name);
            if !port_names.insert(name) {
                e.duplicate(&at.field("name"), &name);
            }
        }
        e.invalid_all(&at.field("port"), &port.port, names::port_number(port.port.into()));
        if text(&port.protocol).is_empty() {
            e.required(&at.field("protocol"), "");
        } else {
            e.one_of(&at.field("protocol"), text(&port.protocol), &["SCTP", "TCP", "UDP"]);
        }
        if let Some(target) = &port.target_port {
            super::probe::port(&at.field("targetPort"), target, e);
        }
        if !numbers.insert((text(&port.protocol), port.port)) {
            e.duplicate(&at, &serde_json::json!({"port": port.port, "protocol": port.protocol}));
        }
    }
}

impl Rules for Service {
    const COLUMNS: &'static [Column] = &[
        NAME,
        col("Type", "string", "How the service is exposed."),
        col("Cluster-IP", "string", "Address within the cluster."),
        col("External-IP", "string", "Addresses from outside."),
        col("Port(s)", "string", "Ports that the service listens on."),
        AGE,
        wide("Selector", "string", "Which pods serve it."),
    ];
    const STATUS: bool = true;
    const SELECTABLE: &'static [&'static str] = &["spec.clusterIP", "spec.type"];

    fn default(&mut self) {
        default_spec(self.spec.get_or_insert_default());
    }

    fn validate(&self, e: &mut Errors) {
        let at = Path::top("spec");
        let default = ServiceSpec::default();
        let spec = self.spec.as_ref().unwrap_or(&default);
        validate_ports(&at, spec, e);
        e.labels(&at.field("selector"), &spec.selector);
        e.one_of(&at.field("sessionAffinity"), text(&spec.session_affinity), &["ClientIP", "None"]);
        e.one_of(&at.field("type"), text(&spec.type_), &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
        if text(&spec.type_) == "ExternalName" {
            let name = text(&spec.external_name);
            if name.is_empty() {
                e.required(&at.field("externalName"), "");
            } else {
                e.dns_subdomain(&at.field("externalName"), name.trim_end_matches('.'));
            }
        }
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let ports: Vec<String> = items(&spec.ports)
            .map(|p| match p.node_port.filter(|n| *n > 0) {
                Some(node) => format!("{}:{node}/{}", p.port, text(&p.protocol)),
                None => format!("{}/{}", p.port, text(&p.protocol)),
            })
            .collect();
        let or_none = |list: Vec<String>| if list.is_empty() { "<none>".to_owned() } else { list.join(",") };
        let mut external: Vec<String> = spec.external_ips.clone().unwrap_or_default();
        let outside = match text(&spec.type_) {
            "ClusterIP" | "NodePort" => or_none(external),
            "LoadBalancer" => {
                let ingress =
                    self.status.as_ref().and_then(|s| s.load_balancer.as_ref()).and_then(|l| l.ingress.clone());
                let found: BTreeSet<String> =
                    ingress.unwrap_or_default().into_iter().filter_map(|i| i.ip.or(i.hostname)).collect();
                let mut all: Vec<String> = found.into_iter().collect();
                all.append(&mut external);
                if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
            }
            "ExternalName" => text(&spec.external_name).to_owned(),
            _ => "<unknown>".to_owned(),
        };
        vec![
            self.metadata.name.clone().into(),
            text(&spec.type_).into(),
            items(&spec.cluster_ips).next().map_or("<none>", String::as_str).into(),
            outside.into(),
            or_none(ports).into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
            labels_text(&spec.selector).into(),
        ]
    }

    fn selectable(&self) -> SelectableFields {
        let get = |f: fn(&ServiceSpec) -> &Option<String>| self.spec.as_ref().map_or("", |s| text(f(s))).to_owned();
        vec![("spec.clusterIP", get(|s| &s.cluster_ip)), ("spec.type", get(|s| &s.type_))]
    }
}

impl Rules for Endpoints {
    const COLUMNS: &'static [Column] = &[NAME, col("Endpoints", "string", "Addresses and ports."), AGE];

    fn default(&mut self) {
        for port in self.subsets.iter_mut().flatten().flat_map(|s| s.ports.iter_mut().flatten()) {
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
    }

    fn validate(&self, e: &mut Errors) {
        let list = Path::top("subsets");
        for (i, subset) in items(&self.subsets).enumerate() {
            let at = list.index(i);
            if is_empty(&subset.addresses) && is_empty(&subset.not_ready_addresses) {
                e.required(&at, "must specify `addresses` or `notReadyAddresses`");
            }
            for (field, addresses) in
                [("addresses", &subset.addresses), ("notReadyAddresses", &subset.not_ready_addresses)]
            {
                let list = at.field(field);
                for (j, address) in items(addresses).enumerate() {
                    if address.ip.parse::<std::net::IpAddr>().is_err() {
                        let at = list.index(j);
                        e.invalid(
                            &at.field("ip"),
                            &address.ip,
                            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                        );
                    }
                }
            }
            let ports = at.field("ports");
            for (j, port) in items(&subset.ports).enumerate() {
                let at = ports.index(j);
                e.invalid_all(&at.field("port"), &port.port, names::port_number(port.port.into()));
            }
        }
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        const SHOWN: usize = 3;
        let mut all = Vec::new();
        for subset in items(&self.subsets) {
            if is_empty(&subset.ports) {
                all.extend(items(&subset.addresses).map(|a| a.ip.clone()));
            }
            for port in items(&subset.ports) {
                let join = |ip: &str| {
                    if ip.contains(':') { format!("[{ip}]:{}", port.port) } else { format!("{ip}:{}", port.port) }
                };
                all.extend(items(&subset.addresses).map(|a| join(&a.ip)));
            }
        }
        let mut shown = all.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(",");
        if is_empty(&self.subsets) {
            shown = "<none>".to_owned();
        } else if all.len() > SHOWN {
            shown = format!("{shown} + {} more...", all.len() - SHOWN);
        }
        vec![
            self.metadata.name.clone().into(),
            shown.into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
        ]
    }
}
