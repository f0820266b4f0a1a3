//! What makes a container valid.
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use super::{env, probe};
use crate::check::{is_empty, is_extended_resource, is_native_resource, items, text};
use crate::field::{Errors, Path};
use crate::names;
use crate::quantity::Quantity;

/// What the containers of a pod see of it.
pub(crate) struct Around<'a> {
    pub spec: &'a core::PodSpec,
    /// The pod's valid volumes by name.
    pub volumes: BTreeMap<&'a str, &'a core::Volume>,
}

/// The rules that every container obeys: containers, init and ephemeral containers.
pub(crate) fn common(at: &Path<'_>, c: &core::Container, around: &Around<'_>, e: &mut Errors) {
    if e.need(&at.field("name"), &c.name) {
        e.dns_label(&at.field("name"), &c.name);
    }
    e.need(&at.field("image"), text(&c.image));
    choice(
        &at.field("terminationMessagePolicy"),
        text(&c.termination_message_policy),
        &["File", "FallbackToLogsOnError"],
        e,
    );
    ports(&at.field("ports"), &c.ports, e);
    env::variables(&at.field("env"), &c.env, e);
    env::from_sources(&at.field("envFrom"), &c.env_from, e);
    mounts(&at.field("volumeMounts"), c, around, e);
    devices(&at.field("volumeDevices"), c, around, e);
    choice(&at.field("imagePullPolicy"), text(&c.image_pull_policy), &["Always", "IfNotPresent", "Never"], e);
    if let Some(r) = &c.resources {
        resources(&at.field("resources"), r, container_resource, e);
    }
    resize_policies(&at.field("resizePolicy"), c, around.spec, e);
    if let Some(context) = &c.security_context {
        security(&at.field("securityContext"), context, around.spec, e);
    }
}

/// A text that must be one of a few.
pub(crate) fn choice(at: &Path<'_>, value: &str, known: &[&str], e: &mut Errors) {
    if e.need(at, value) {
        e.one_of(at, value, known);
    }
}

/// The image of a pod's own container, not of a template's.
pub(crate) fn image_text(at: &Path<'_>, image: &str, e: &mut Errors) {
    if image.trim() != image {
        e.invalid(&at.field("image"), &image, "must not have leading or trailing whitespace");
    }
}

fn ports(at: &Path<'_>, list: &Option<Vec<core::ContainerPort>>, e: &mut Errors) {
    let mut taken = BTreeSet::new();
    for (i, port) in items(list).enumerate() {
        let at = at.index(i);
        let name = text(&port.name);
        if !name.is_empty() {
            let errors = names::port_name(name);
            if !errors.is_empty() {
                e.invalid_all(&at.field("name"), &name, errors);
            } else if !taken.insert(name) {
                e.duplicate(&at.field("name"), &name);
            }
        }
        if port.container_port == 0 {
            e.required(&at.field("containerPort"), "");
        } else {
            e.invalid_all(
                &at.field("containerPort"),
                &port.container_port,
                names::port_number(port.container_port.into()),
            );
        }
        if let Some(host) = port.host_port.filter(|p| *p != 0) {
            e.invalid_all(&at.field("hostPort"), &host, names::port_number(host.into()));
        }
        choice(&at.field("protocol"), text(&port.protocol), &["SCTP", "TCP", "UDP"], e);
    }
}

/// No two ports of these containers may take the same port of the host.
pub(crate) fn host_ports<'c>(at: &Path<'_>, list: impl Iterator<Item = (usize, &'c core::Container)>, e: &mut Errors) {
    let mut taken = BTreeSet::new();
    for (i, c) in list {
        let at = at.index(i);
        let at = at.field("ports");
        for (j, port) in items(&c.ports).enumerate() {
            let Some(host) = port.host_port.filter(|p| *p != 0) else { continue };
            let key = format!("{}/{}/{host}", text(&port.protocol), text(&port.host_ip));
            if !taken.insert(key.clone()) {
                let at = at.index(j);
                e.duplicate(&at.field("hostPort"), &key);
            }
        }
    }
}

fn mounts(at: &Path<'_>, c: &core::Container, around: &Around<'_>, e: &mut Errors) {
    let list = at;
    let mut paths = BTreeSet::new();
    for (i, mount) in items(&c.volume_mounts).enumerate() {
        let at = list.index(i);
        e.need(&at.field("name"), &mount.name);
        if !around.volumes.contains_key(mount.name.as_str()) {
            e.not_found(&at.field("name"), &mount.name);
        }
        e.need(&at.field("mountPath"), &mount.mount_path);
        if !paths.insert(&mount.mount_path) {
            e.invalid(&at.field("mountPath"), &mount.mount_path, "must be unique");
        }
        if items(&c.volume_devices).any(|d| d.name == mount.name) {
            e.invalid(&at.field("name"), &mount.name, "must not already exist in volumeDevices");
        }
        if items(&c.volume_devices).any(|d| d.device_path == mount.mount_path) {
            e.invalid(&at.field("mountPath"), &mount.mount_path, "must not already exist as a path in volumeDevices");
        }
        let (sub_path, expression) = (text(&mount.sub_path), text(&mount.sub_path_expr));
        // Upstream names the list, not the item, in the fields of the following.
        if !sub_path.is_empty() {
            e.descending(&list.field("subPath"), sub_path);
        }
        if !expression.is_empty() {
            if !sub_path.is_empty() {
                e.invalid(&at.field("subPathExpr"), &expression, "subPathExpr and subPath are mutually exclusive");
            }
            e.descending(&list.field("subPathExpr"), expression);
        }
        propagation(list, mount, c, e);
    }
}

fn propagation(list: &Path<'_>, mount: &core::VolumeMount, c: &core::Container, e: &mut Errors) {
    let at = list.field("mountPropagation");
    if let Some(mode) = &mount.mount_propagation {
        e.one_of(&at, mode, &["Bidirectional", "HostToContainer", "None"]);
        let privileged = c.security_context.as_ref().and_then(|s| s.privileged).unwrap_or(false);
        if mode == "Bidirectional" && !privileged {
            e.forbidden(&at, "Bidirectional mount propagation is available only to privileged containers");
        }
    }
    let at = list.field("recursiveReadOnly");
    match mount.recursive_read_only.as_deref() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if mount.read_only != Some(true) {
                e.forbidden(&at, "may only be specified when readOnly is true");
            }
            if mount.mount_propagation.as_deref().is_some_and(|m| m != "None") {
                e.forbidden(&at, "may only be specified when mountPropagation is None or not specified");
            }
        }
        Some(other) => e.not_supported(&at, &other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

fn devices(at: &Path<'_>, c: &core::Container, around: &Around<'_>, e: &mut Errors) {
    let (mut taken, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for (i, device) in items(&c.volume_devices).enumerate() {
        let at = at.index(i);
        let (name_at, path_at) = (at.field("name"), at.field("devicePath"));
        let (name, path) = (&device.name, &device.device_path);
        e.need(&name_at, name);
        if taken.contains(name) {
            e.invalid(&name_at, name, "must be unique");
        }
        match around.volumes.get(name.as_str()) {
            Some(v) if v.persistent_volume_claim.is_none() && v.ephemeral.is_none() => {
                let detail = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                e.invalid(&name_at, name, detail);
            }
            Some(_) => {}
            None => e.not_found(&name_at, name),
        }
        e.need(&path_at, path);
        if paths.contains(path) {
            e.invalid(&path_at, path, "must be unique");
        }
        if path.split('/').any(|part| part == "..") {
            e.invalid(&path_at, path, "can not contain backsteps ('..')");
        } else {
            paths.insert(path);
        }
        if items(&c.volume_mounts).any(|m| m.name == *name) {
            e.invalid(&name_at, name, "must not already exist in volumeMounts");
        }
        if items(&c.volume_mounts).any(|m| m.mount_path == *path) {
            e.invalid(&path_at, path, "must not already exist as a path in volumeMounts");
        }
        taken.insert(name);
    }
}

const STANDARD_RESOURCES: &[&str] = &["cpu", "memory", "ephemeral-storage"];

fn container_resource(at: &Path<'_>, name: &str, e: &mut Errors) {
    let before = e.len();
    e.label_key(at, name);
    if e.len() > before {
        return;
    }
    let huge = name.starts_with("hugepages-");
    if !name.contains('/') {
        if !STANDARD_RESOURCES.contains(&name) && !huge {
            let known = ["storage", "pods", "services", "secrets", "configmaps", "persistentvolumeclaims"];
            if !known.contains(&name) {
                e.invalid(at, &name, "must be a standard resource type or fully qualified");
            }
            e.invalid(at, &name, "must be a standard resource for containers");
        }
    } else if !is_native_resource(name) && !is_extended_resource(name) {
        e.invalid(at, &name, "doesn't follow extended resource name standard");
    }
}

/// A resource that a pod as a whole may ask for.
pub(crate) fn pod_resource(at: &Path<'_>, name: &str, e: &mut Errors) {
    if !matches!(name, "cpu" | "memory") && !name.starts_with("hugepages-") {
        e.not_supported(at, &name, &["cpu", "hugepages-", "memory"]);
    }
}

/// Whether a node may promise more of a resource than it has.
fn can_overcommit(name: &str) -> bool {
    is_native_resource(name) && !name.starts_with("hugepages-")
}

pub(crate) fn resources(
    at: &Path<'_>,
    r: &core::ResourceRequirements,
    name_rule: fn(&Path<'_>, &str, &mut Errors),
    e: &mut Errors,
) {
    let (limits_at, requests_at) = (at.field("limits"), at.field("requests"));
    let empty = BTreeMap::<String, Text>::new();
    let (limits, requests) = (r.limits.as_ref().unwrap_or(&empty), r.requests.as_ref().unwrap_or(&empty));
    for (name, value) in limits {
        let at = limits_at.key(name);
        name_rule(&at, name, e);
        e.resource_quantity(&at, name, value);
    }
    for (name, value) in requests {
        let at = requests_at.key(name);
        name_rule(&at, name, e);
        let Some(request) = e.resource_quantity(&at, name, value) else { continue };
        let overcommit = can_overcommit(name);
        match limits.get(name).and_then(|l| Quantity::try_from(l).ok()) {
            Some(limit) if request != limit && !overcommit => {
                e.invalid(&requests_at, &request.to_string(), &format!("must be equal to {name} limit of {limit}"));
            }
            Some(limit) if request > limit => {
                e.invalid(
                    &requests_at,
                    &request.to_string(),
                    &format!("must be less than or equal to {name} limit of {limit}"),
                );
            }
            None if !overcommit => e.required(&limits_at, "Limit must be set for non overcommitable resources"),
            _ => {}
        }
    }
    let any = |rule: fn(&str) -> bool| limits.keys().chain(requests.keys()).any(|name| rule(name));
    if any(|n| n.starts_with("hugepages-")) && !any(|n| matches!(n, "cpu" | "memory")) {
        e.forbidden(at, "HugePages require cpu or memory");
    }
}

fn resize_policies(at: &Path<'_>, c: &core::Container, spec: &core::PodSpec, e: &mut Errors) {
    let mut taken = BTreeSet::new();
    for policy in items(&c.resize_policy) {
        if !taken.insert(&policy.resource_name) {
            e.duplicate(at, &policy.resource_name);
        }
        choice(at, &policy.resource_name, &["cpu", "memory"], e);
        choice(at, &policy.restart_policy, &["NotRequired", "RestartContainer"], e);
        if text(&spec.restart_policy) == "Never" && policy.restart_policy != "NotRequired" {
            e.invalid(at, &policy.restart_policy, "must be 'NotRequired' when pod `restartPolicy` is 'Never'");
        }
    }
}

pub(crate) fn ids(at: &Path<'_>, user: Option<i64>, group: Option<i64>, e: &mut Errors) {
    for (field, id) in [("runAsUser", user), ("runAsGroup", group)] {
        if let Some(id) = id {
            e.range(&at.field(field), id, 0, i32::MAX.into());
        }
    }
}

pub(crate) fn seccomp(at: &Path<'_>, profile: &core::SeccompProfile, e: &mut Errors) {
    choice(&at.field("type"), &profile.type_, &["Localhost", "RuntimeDefault", "Unconfined"], e);
    let at = at.field("localhostProfile");
    match (&profile.localhost_profile, profile.type_ == "Localhost") {
        (None, true) => e.required(&at, "must be set when seccomp type is Localhost"),
        (Some(path), true) => e.descending(&at, path),
        (Some(_), false) => e.invalid(&at, profile, "can only be set when seccomp type is Localhost"),
        (None, false) => {}
    }
}

pub(crate) fn app_armor(at: &Path<'_>, profile: &core::AppArmorProfile, e: &mut Errors) {
    choice(&at.field("type"), &profile.type_, &["Localhost", "RuntimeDefault", "Unconfined"], e);
    let name_at = at.field("localhostProfile");
    match (profile.localhost_profile.as_deref(), profile.type_ == "Localhost") {
        (None, true) => e.required(&name_at, "must be set when AppArmor type is Localhost"),
        (Some(name), true) if name.trim().is_empty() => {
            e.required(&name_at, "must be set when AppArmor type is Localhost");
        }
        (Some(name), true) if name.len() > 4095 => e.too_long(&name_at, 4095),
        (Some(name), false) => e.invalid(&name_at, &name, "can only be set when AppArmor type is Localhost"),
        _ => {}
    }
}

fn security(at: &Path<'_>, s: &core::SecurityContext, spec: &core::PodSpec, e: &mut Errors) {
    ids(at, s.run_as_user, s.run_as_group, e);
    if let Some(kind) = &s.proc_mount {
        e.one_of(&at.field("procMount"), kind, &["Default", "Unmasked"]);
        if kind == "Unmasked" && spec.host_users != Some(false) {
            e.invalid(&at.field("procMount"), kind, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    if let Some(profile) = &s.seccomp_profile {
        seccomp(&at.field("seccompProfile"), profile, e);
    }
    if s.allow_privilege_escalation == Some(false) {
        if s.privileged == Some(true) {
            e.invalid(at, s, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        let added = s.capabilities.iter().flat_map(|c| items(&c.add)).any(|c| c == "CAP_SYS_ADMIN");
        if added {
            e.invalid(at, s, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
    if let Some(profile) = &s.app_armor_profile {
        app_armor(&at.field("appArmorProfile"), profile, e);
    }
}

fn restart_rules(at: &Path<'_>, c: &core::Container, e: &mut Errors) {
    let policy_at = at.field("restartPolicy");
    match &c.restart_policy {
        Some(policy) => {
            e.one_of(&policy_at, policy, &["Always", "Never", "OnFailure"]);
        }
        None if !is_empty(&c.restart_policy_rules) => {
            e.required(&policy_at, "must specify restartPolicy when restart rules are used");
        }
        None => {}
    }
    let list = at.field("restartPolicyRules");
    let count = items(&c.restart_policy_rules).count();
    if count > 20 {
        e.too_many(&list, count, 20);
    }
    for (i, rule) in items(&c.restart_policy_rules).enumerate() {
        let at = list.index(i);
        e.one_of(&at.field("action"), &rule.action, &["Restart", "RestartAllContainers"]);
        let codes_at = at.field("exitCodes");
        match &rule.exit_codes {
            Some(codes) => {
                e.one_of(&codes_at.field("operator"), &codes.operator, &["In", "NotIn"]);
            }
            None => e.required(&codes_at, "must be specified"),
        }
    }
}

pub(crate) fn containers(at: &Path<'_>, around: &Around<'_>, e: &mut Errors) {
    let list = &around.spec.containers;
    if list.is_empty() {
        return e.required(at, "");
    }
    let mut taken = BTreeSet::new();
    for (i, c) in list.iter().enumerate() {
        let at = at.index(i);
        common(&at, c, around, e);
        if !taken.insert(&c.name) {
            e.duplicate(&at.field("name"), &c.name);
        }
        if let Some(l) = &c.lifecycle {
            probe::lifecycle(&at.field("lifecycle"), l, around.spec, e);
        }
        probe::probes(&at, c, e);
        restart_rules(&at, c, e);
    }
    host_ports(at, list.iter().enumerate(), e);
}

pub(crate) fn init_containers(at: &Path<'_>, around: &Around<'_>, e: &mut Errors) {
    const NOT_ALLOWED: &str = "may not be set for init containers without restartPolicy=Always";
    let list = at;
    let mut taken: BTreeSet<&str> = around.spec.containers.iter().map(|c| c.name.as_str()).collect();
    for (i, c) in items(&around.spec.init_containers).enumerate() {
        let at = list.index(i);
        common(&at, c, around, e);
        restart_rules(&at, c, e);
        if !c.name.is_empty() && !taken.insert(&c.name) {
            e.duplicate(&at.field("name"), &c.name);
        }
        host_ports(list, std::iter::once((i, c)), e);
        if crate::pod::is_sidecar(c) {
            if let Some(l) = &c.lifecycle {
                probe::lifecycle(&at.field("lifecycle"), l, around.spec, e);
            }
            probe::probes(&at, c, e);
            continue;
        }
        for (field, set) in [
            ("lifecycle", c.lifecycle.is_some()),
            ("livenessProbe", c.liveness_probe.is_some()),
            ("readinessProbe", c.readiness_probe.is_some()),
            ("startupProbe", c.startup_probe.is_some()),
        ] {
            if set {
                e.forbidden(&at.field(field), NOT_ALLOWED);
            }
        }
    }
}

/// An ephemeral container seen as a container: they have the same fields but for the target.
fn as_container(c: &core::EphemeralContainer) -> core::Container {
    serde_json::to_value(c).and_then(serde_json::from_value).unwrap_or_default()
}

pub(crate) fn ephemeral_containers(at: &Path<'_>, around: &Around<'_>, e: &mut Errors) {
    const NOT_ALLOWED: &str = "cannot be set for an Ephemeral Container";
    let spec = around.spec;
    let others: BTreeSet<&str> =
        spec.containers.iter().chain(items(&spec.init_containers)).map(|c| c.name.as_str()).collect();
    let mut taken = others.clone();
    for (i, ephemeral) in items(&spec.ephemeral_containers).enumerate() {
        let at = at.index(i);
        let c = as_container(ephemeral);
        common(&at, &c, around, e);
        image_text(&at, text(&c.image), e);
        if !taken.insert(&ephemeral.name) {
            e.duplicate(&at.field("name"), &ephemeral.name);
        }
        let target = text(&ephemeral.target_container_name);
        if !target.is_empty() && !others.contains(target) {
            e.not_found(&at.field("targetContainerName"), &target);
        }
        let asks = c.resources.as_ref().is_some_and(|r| *r != core::ResourceRequirements::default());
        for (field, set) in [
            ("ports", !is_empty(&c.ports)),
            ("resources", asks),
            ("livenessProbe", c.liveness_probe.is_some()),
            ("readinessProbe", c.readiness_probe.is_some()),
            ("startupProbe", c.startup_probe.is_some()),
            ("lifecycle", c.lifecycle.is_some()),
            ("restartPolicy", c.restart_policy.is_some()),
        ] {
            if set {
                e.forbidden(&at.field(field), NOT_ALLOWED);
            }
        }
        let list = at.field("volumeMounts");
        for (j, mount) in items(&c.volume_mounts).enumerate() {
            let at = list.index(j);
            for (field, value) in [("subPath", &mount.sub_path), ("subPathExpr", &mount.sub_path_expr)] {
                if !text(value).is_empty() {
                    e.forbidden(&at.field(field), NOT_ALLOWED);
                }
            }
        }
    }
}
