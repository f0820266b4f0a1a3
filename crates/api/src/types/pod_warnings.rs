//! What is allowed in a pod but surely not meant.
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodAffinityTerm, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use super::node_labels;
use crate::check::{items, text};
use crate::names;
use crate::quantity::Quantity;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
/// Resources that are counted in whole bytes.
const BYTES: [&str; 2] = ["memory", "ephemeral-storage"];

pub(crate) fn warnings(pod: &Pod) -> Vec<String> {
    let mut out = Vec::new();
    let details = names::dns_label(pod.metadata.name.as_deref().unwrap_or_default());
    if !details.is_empty() {
        out.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]",
            details.join(" ")
        ));
    }
    if let Some(spec) = &pod.spec {
        placement(spec, &mut out);
    }
    for (key, says) in [
        (
            "scheduler.alpha.kubernetes.io/critical-pod",
            "non-functional in v1.16+; use the \"priorityClassName\" field instead",
        ),
        ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
        ("security.alpha.kubernetes.io/unsafe-sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    ] {
        if pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(key)) {
            out.push(format!("metadata.annotations[{key}]: {says}"));
        }
    }
    let Some(spec) = &pod.spec else { return out };
    volumes(spec, &mut out);
    super::volume_paths::warnings(&spec.volumes, &mut out);
    repeated("hostAliases", "ip", items(&spec.host_aliases).map(|a| a.ip.as_str()), &mut out);
    repeated("imagePullSecrets", "name", items(&spec.image_pull_secrets).map(|s| s.name.as_str()), &mut out);
    for (i, _) in items(&spec.image_pull_secrets).enumerate().filter(|(_, s)| s.name.is_empty()) {
        out.push(format!("spec.imagePullSecrets[{i}].name: invalid empty name \"\""));
    }
    fractions("spec.overhead", spec.overhead.as_ref(), &mut out);
    old_seccomp(pod, spec, &mut out);
    containers(spec, &mut out);
    ports(spec, &mut out);
    if spec.termination_grace_period_seconds.is_some_and(|s| s < 0) {
        out.push(
            "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
                .to_owned(),
        );
    }
    affinity(spec, &mut out);
    out
}

/// Where the pod may run.
fn placement(spec: &PodSpec, out: &mut Vec<String>) {
    for key in spec.node_selector.iter().flat_map(BTreeMap::keys) {
        out.extend(node_labels::deprecated(key).map(|says| format!("spec.nodeSelector[{key}]: {says}")));
    }
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    for (i, term) in required.iter().flat_map(|r| &r.node_selector_terms).enumerate() {
        node_labels::term(&format!("spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms[{i}]"), term, false, out);
    }
    let preferred = affinity.iter().flat_map(|a| items(&a.preferred_during_scheduling_ignored_during_execution));
    for (i, term) in preferred.enumerate() {
        let at = format!("spec.affinity.nodeAffinity.{PREFERRED}[{i}].preference");
        node_labels::term(&at, &term.preference, true, out);
    }
    for (i, c) in items(&spec.topology_spread_constraints).enumerate() {
        let at = format!("spec.topologySpreadConstraints[{i}]");
        if let Some(says) = node_labels::deprecated(&c.topology_key) {
            out.push(format!("{at}.topologyKey: {} is {says}", c.topology_key));
        }
        if c.label_selector.is_none() {
            out.push(format!("{at}.labelSelector: a null labelSelector results in matching no pod"));
        }
    }
}

/// Annotations that once chose a seccomp profile.
fn old_seccomp(pod: &Pod, spec: &PodSpec, out: &mut Vec<String>) {
    const POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    const CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
    let mut check = |key: &str, chosen: bool| {
        if !chosen && pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(key)) {
            out.push(format!(
                "metadata.annotations[{key}]: non-functional in v1.27+; use the \"seccompProfile\" field instead"
            ));
        }
    };
    check(POD, spec.security_context.as_ref().is_some_and(|s| s.seccomp_profile.is_some()));
    for (_, c) in visit(spec) {
        let chosen = c.security_context.as_ref().is_some_and(|s| s.seccomp_profile.is_some());
        check(&format!("{CONTAINER}{}", c.name), chosen);
    }
}

/// Amounts of bytes that are no whole number.
fn fractions(at: &str, amounts: Option<&BTreeMap<String, Text>>, out: &mut Vec<String>) {
    for resource in BYTES {
        let amount = amounts.and_then(|m| m.get(resource)).and_then(|q| Quantity::try_from(q).ok());
        if let Some(q) = amount.filter(|q| q.milli_value() % 1000 != 0) {
            let q = q.to_string();
            out.push(format!("{at}[{resource}]: fractional byte value {q:?} is invalid, must be an integer"));
        }
    }
}

fn repeated<'s>(list: &str, field: &str, values: impl Iterator<Item = &'s str>, out: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    for (i, value) in values.enumerate() {
        if !seen.insert(value) {
            out.push(format!("spec.{list}[{i}].{field}: duplicate {field} {value:?}"));
        }
    }
}

fn volumes(spec: &PodSpec, out: &mut Vec<String>) {
    for (i, v) in items(&spec.volumes).enumerate() {
        for (field, used, says) in [
            (
                "photonPersistentDisk",
                v.photon_persistent_disk.is_some(),
                "deprecated in v1.11, non-functional in v1.16+",
            ),
            ("gitRepo", v.git_repo.is_some(), "deprecated in v1.11, and disabled by default in v1.33+"),
            ("scaleIO", v.scale_io.is_some(), "deprecated in v1.16, non-functional in v1.22+"),
            ("flocker", v.flocker.is_some(), "deprecated in v1.22, non-functional in v1.25+"),
            ("storageOS", v.storageos.is_some(), "deprecated in v1.22, non-functional in v1.25+"),
            ("quobyte", v.quobyte.is_some(), "deprecated in v1.22, non-functional in v1.25+"),
            ("glusterfs", v.glusterfs.is_some(), "deprecated in v1.25, non-functional in v1.26+"),
            ("cephfs", v.cephfs.is_some(), "deprecated in v1.28, non-functional in v1.31+"),
            ("rbd", v.rbd.is_some(), "deprecated in v1.28, non-functional in v1.31+"),
        ] {
            if used {
                out.push(format!("spec.volumes[{i}].{field}: {says}"));
            }
        }
        if let Some(template) = v.ephemeral.as_ref().and_then(|s| s.volume_claim_template.as_ref()) {
            let at = format!("spec.volumes[{i}].ephemeral.volumeClaimTemplate.spec");
            super::claim::fractions(&at, &template.spec, out);
        }
    }
}

/// Every container of the pod with its path, in upstream's order.
fn visit(spec: &PodSpec) -> impl Iterator<Item = (String, &Container)> {
    let init = items(&spec.init_containers).enumerate().map(|(i, c)| (format!("spec.initContainers[{i}]"), c));
    init.chain(spec.containers.iter().enumerate().map(|(i, c)| (format!("spec.containers[{i}]"), c)))
}

fn containers(spec: &PodSpec, out: &mut Vec<String>) {
    for (at, c) in visit(spec) {
        if let Some(r) = &c.resources {
            fractions(&format!("{at}.resources.limits"), r.limits.as_ref(), out);
            fractions(&format!("{at}.resources.requests"), r.requests.as_ref(), out);
        }
        let mut seen = std::collections::BTreeSet::new();
        for (i, variable) in items(&c.env).enumerate() {
            let itself = format!("$({})", variable.name);
            let value = text(&variable.value);
            // A variable may extend its earlier self: `PATH=$(PATH):/opt`.
            let extends = variable.value_from.is_none() && value != itself && value.contains(&itself);
            if !seen.insert(&variable.name) && !extends {
                out.push(format!(
                    "{at}.env[{i}]: hides previous definition of {:?}, which may be dropped when using apply",
                    variable.name
                ));
            }
        }
    }
}

fn ports(spec: &PodSpec, out: &mut Vec<String>) {
    let mut seen: BTreeMap<(i32, &str), Vec<(String, &ContainerPort)>> = BTreeMap::new();
    let mut by_name: BTreeMap<&str, String> = BTreeMap::new();
    let mut same_names = Vec::new();
    for (at, c) in visit(spec) {
        for (i, port) in items(&c.ports).enumerate() {
            let at = format!("{at}.ports[{i}]");
            if !text(&port.host_ip).is_empty() && port.host_port.unwrap_or(0) == 0 {
                out.push(format!(
                    "{at}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{} Protocol:{} HostIP:{}}}",
                    text(&port.name),
                    port.container_port,
                    text(&port.protocol),
                    text(&port.host_ip)
                ));
            }
            let others = seen.entry((port.container_port, text(&port.protocol))).or_default();
            for (other_at, other) in others.iter() {
                let (ip, other_ip) = (text(&port.host_ip), text(&other.host_ip));
                let (host, other_host) = (port.host_port.unwrap_or(0), other.host_port.unwrap_or(0));
                if (ip, host) == (other_ip, other_host) {
                    out.push(format!("{at}: duplicate port definition with {other_at}"));
                } else if host == 0 || other_host == 0 {
                    out.push(format!("{at}: overlapping port definition with {other_at}"));
                } else if host == other_host && (ip.is_empty() != other_ip.is_empty()) {
                    out.push(format!("{at}: dangerously ambiguous port definition with {other_at}"));
                }
            }
            others.push((at.clone(), port));
            let name = text(&port.name);
            if name.is_empty() {
                continue;
            }
            match by_name.get(name) {
                Some(first) => same_names.push(format!(
                    "{at}: duplicate port name {name:?} with {first}, services and probes that select ports by name will use {first}"
                )),
                None => {
                    by_name.insert(name, at);
                }
            }
        }
    }
    out.append(&mut same_names);
}

fn affinity(spec: &PodSpec, out: &mut Vec<String>) {
    let Some(affinity) = &spec.affinity else { return };
    let (with, apart) = (affinity.pod_affinity.as_ref(), affinity.pod_anti_affinity.as_ref());
    let mut check = |at: String, term: &PodAffinityTerm| {
        if term.label_selector.is_none() {
            out.push(format!("{at}.labelSelector: a null labelSelector results in matching no pod"));
        }
    };
    for (i, t) in with.iter().flat_map(|a| items(&a.required_during_scheduling_ignored_during_execution)).enumerate() {
        check(format!("spec.affinity.podAffinity.{REQUIRED}[{i}]"), t);
    }
    for (i, t) in with.iter().flat_map(|a| items(&a.preferred_during_scheduling_ignored_during_execution)).enumerate() {
        check(format!("spec.affinity.podAffinity.{PREFERRED}[{i}].podAffinityTerm"), &t.pod_affinity_term);
    }
    for (i, t) in apart.iter().flat_map(|a| items(&a.required_during_scheduling_ignored_during_execution)).enumerate() {
        check(format!("spec.affinity.podAntiAffinity.{REQUIRED}[{i}]"), t);
    }
    for (i, t) in apart.iter().flat_map(|a| items(&a.preferred_during_scheduling_ignored_during_execution)).enumerate()
    {
        check(format!("spec.affinity.podAntiAffinity.{PREFERRED}[{i}].podAffinityTerm"), &t.pod_affinity_term);
    }
}
