//! What makes a pod's spec valid, and what may change in it.
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1 as core;

use super::container::{self, Around, choice};
use crate::check::{is_empty, items, text};
use crate::field::{Errors, Path};
use crate::names;

/// All rules of a spec; `name` is the pod's, empty for a template.
pub(crate) fn spec(at: &Path<'_>, spec: &core::PodSpec, name: &str, e: &mut Errors) {
    if spec.termination_grace_period_seconds.is_none() {
        e.required(&at.field("terminationGracePeriodSeconds"), "");
    }
    let around = Around { spec, volumes: volumes(&at.field("volumes"), spec, name, e) };
    container::containers(&at.field("containers"), &around, e);
    container::init_containers(&at.field("initContainers"), &around, e);
    container::ephemeral_containers(&at.field("ephemeralContainers"), &around, e);
    if let Some(r) = &spec.resources {
        container::resources(&at.field("resources"), r, container::pod_resource, e);
    }
    host_network(at, spec, e);
    choice(&at.field("restartPolicy"), text(&spec.restart_policy), &["Always", "OnFailure", "Never"], e);
    choice(
        &at.field("dnsPolicy"),
        text(&spec.dns_policy),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        e,
    );
    e.labels(&at.field("nodeSelector"), &spec.node_selector);
    if let Some(context) = &spec.security_context {
        security(&at.field("securityContext"), context, spec, e);
    }
    if let Some(affinity) = &spec.affinity {
        super::scheduling::affinity(&at.field("affinity"), affinity, e);
    }
    dns(&at.field("dnsConfig"), spec, e);
    for (i, gate) in items(&spec.readiness_gates).enumerate() {
        let at = at.field("readinessGates");
        let at = at.index(i);
        e.label_key(&at.field("conditionType"), &gate.condition_type);
    }
    super::scheduling::gates(&at.field("schedulingGates"), spec, e);
    super::scheduling::spread(&at.field("topologySpreadConstraints"), spec, e);
    host_users(at, spec, e);
    names_and_numbers(at, spec, e);
    super::scheduling::tolerations(&at.field("tolerations"), &spec.tolerations, e);
    host_aliases(&at.field("hostAliases"), spec, e);
    if let Some(policy) = &spec.preemption_policy {
        choice(&at.field("preemptionPolicy"), policy, &["PreemptLowerPriority", "Never"], e);
    }
    for (resource, amount) in spec.overhead.iter().flatten() {
        let at = at.field("overhead");
        e.resource_quantity(&at.key(resource), resource, amount);
    }
    if let Some(os) = &spec.os {
        let at = at.field("os");
        if e.need(&at.field("name"), &os.name) {
            e.one_of(&at, &os.name, &["linux", "windows"]);
        }
    }
    file_key_volumes(at, spec, e);
}

/// Checks the volumes; gives those without mistakes.
fn volumes<'s>(
    at: &Path<'_>,
    spec: &'s core::PodSpec,
    pod: &str,
    e: &mut Errors,
) -> BTreeMap<&'s str, &'s core::Volume> {
    let made: BTreeSet<String> = match pod {
        "" => BTreeSet::new(),
        _ => items(&spec.volumes).filter(|v| v.ephemeral.is_some()).map(|v| format!("{pod}-{}", v.name)).collect(),
    };
    let mut valid = BTreeMap::new();
    for (i, volume) in items(&spec.volumes).enumerate() {
        let at = at.index(i);
        let before = e.len();
        super::sources::pod_volume(&at, volume, pod, e);
        if e.need(&at.field("name"), &volume.name) {
            e.dns_label(&at.field("name"), &volume.name);
        }
        if valid.contains_key(volume.name.as_str()) {
            e.duplicate(&at.field("name"), &volume.name);
        }
        if e.len() == before {
            valid.insert(volume.name.as_str(), volume);
        }
        if let Some(claim) = &volume.persistent_volume_claim
            && made.contains(&claim.claim_name)
        {
            let at = at.field("persistentVolumeClaim");
            let detail = "must not reference a PVC that gets created for an ephemeral volume";
            e.invalid(&at.field("claimName"), &claim.claim_name, detail);
        }
    }
    valid
}

fn host_network(at: &Path<'_>, spec: &core::PodSpec, e: &mut Errors) {
    if spec.host_network != Some(true) {
        return;
    }
    let list = at.field("containers");
    for (i, c) in spec.containers.iter().enumerate() {
        let at = list.index(i);
        let ports_at = at.field("ports");
        for (j, port) in items(&c.ports).enumerate() {
            let host = port.host_port.unwrap_or(0);
            if host != port.container_port {
                let at = ports_at.index(j);
                e.invalid(&at.field("hostPort"), &host, "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
}

fn host_users(at: &Path<'_>, spec: &core::PodSpec, e: &mut Errors) {
    const DETAIL: &str = "when `hostUsers` is false";
    if spec.host_users != Some(false) {
        return;
    }
    for (field, set) in [("hostNetwork", spec.host_network), ("HostPID", spec.host_pid), ("HostIPC", spec.host_ipc)] {
        if set == Some(true) {
            e.forbidden(&at.field(field), DETAIL);
        }
    }
    for (i, c) in spec.containers.iter().enumerate() {
        if !is_empty(&c.volume_devices) {
            let at = at.field("containers");
            let at = at.index(i);
            e.forbidden(&at.field("volumeDevices"), DETAIL);
        }
    }
}

fn security(at: &Path<'_>, s: &core::PodSecurityContext, spec: &core::PodSpec, e: &mut Errors) {
    if let Some(group) = s.fs_group {
        e.range(&at.field("fsGroup"), group, 0, i32::MAX.into());
    }
    container::ids(at, s.run_as_user, s.run_as_group, e);
    for (i, group) in items(&s.supplemental_groups).enumerate() {
        let at = at.field("supplementalGroups");
        e.range(&at.index(i), *group, 0, i32::MAX.into());
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        e.invalid(&at.field("shareProcessNamespace"), &true, detail);
    }
    sysctls(&at.field("sysctls"), s, e);
    for (field, value, known) in [
        ("fsGroupChangePolicy", &s.fs_group_change_policy, &["Always", "OnRootMismatch"]),
        ("supplementalGroupsPolicy", &s.supplemental_groups_policy, &["Merge", "Strict"]),
        ("seLinuxChangePolicy", &s.se_linux_change_policy, &["MountOption", "Recursive"]),
    ] {
        if let Some(value) = value {
            e.one_of(&at.field(field), value, known);
        }
    }
    if let Some(profile) = &s.seccomp_profile {
        container::seccomp(&at.field("seccompProfile"), profile, e);
    }
    if let Some(profile) = &s.app_armor_profile {
        container::app_armor(&at.field("appArmorProfile"), profile, e);
    }
}

fn sysctls(at: &Path<'_>, s: &core::PodSecurityContext, e: &mut Errors) {
    const REGEX: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
    let part = |p: &str| {
        let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = p.as_bytes();
        bytes.first().is_some_and(|b| edge(*b))
            && bytes.last().is_some_and(|b| edge(*b))
            && bytes.iter().all(|&b| edge(b) || b == b'-' || b == b'_')
    };
    let mut taken = BTreeSet::new();
    for (i, sysctl) in items(&s.sysctls).enumerate() {
        let at = at.index(i);
        let at = at.field("name");
        let name = &sysctl.name;
        if name.is_empty() {
            e.required(&at, "");
        } else if name.len() > 253 || !name.split(['.', '/']).all(part) {
            e.invalid(&at, name, &format!("must have at most 253 characters and match regex {REGEX}"));
        } else if !taken.insert(name) {
            e.duplicate(&at, name);
        }
    }
}

fn dns(at: &Path<'_>, spec: &core::PodSpec, e: &mut Errors) {
    const SEARCHES_MAX: usize = 32;
    const SEARCH_TEXT_MAX: usize = 2048;
    let none = text(&spec.dns_policy) == "None";
    let Some(config) = &spec.dns_config else {
        if none {
            e.required(at, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        return;
    };
    let servers_at = at.field("nameservers");
    if none && is_empty(&config.nameservers) {
        return e.required(&servers_at, "must provide at least one DNS nameserver when `dnsPolicy` is None");
    }
    if items(&config.nameservers).count() > 3 {
        e.invalid(&servers_at, &config.nameservers, "must not have more than 3 nameservers");
    }
    for (i, server) in items(&config.nameservers).enumerate() {
        ip(&servers_at.index(i), server, e);
    }
    let searches_at = at.field("searches");
    let count = items(&config.searches).count();
    let length = items(&config.searches).map(String::len).sum::<usize>() + count.saturating_sub(1);
    if count > SEARCHES_MAX {
        e.invalid(&searches_at, &config.searches, &format!("must not have more than {SEARCHES_MAX} search paths"));
    }
    if length > SEARCH_TEXT_MAX {
        let detail =
            format!("must not have more than {SEARCH_TEXT_MAX} characters (including spaces) in the search list");
        e.invalid(&searches_at, &config.searches, &detail);
    }
    for (i, search) in items(&config.searches).enumerate().filter(|(_, s)| *s != ".") {
        // Underscores are allowed here, unlike in other names.
        let plain = search.strip_suffix('.').unwrap_or(search).replace('_', "a");
        e.invalid_all(&searches_at.index(i), search, names::dns_subdomain(&plain));
    }
    let options_at = at.field("options");
    for (i, option) in items(&config.options).enumerate() {
        if text(&option.name).is_empty() {
            e.required(&options_at.index(i), "must not be empty");
        }
    }
}

fn ip(at: &Path<'_>, address: &str, e: &mut Errors) {
    if address.parse::<std::net::IpAddr>().is_err() {
        e.invalid(at, &address, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}

fn host_aliases(at: &Path<'_>, spec: &core::PodSpec, e: &mut Errors) {
    for (i, alias) in items(&spec.host_aliases).enumerate() {
        let at = at.index(i);
        ip(&at.field("ip"), &alias.ip, e);
        let list = at.field("hostnames");
        for (j, name) in items(&alias.hostnames).enumerate() {
            e.dns_subdomain(&list.index(j), name);
        }
    }
}

fn names_and_numbers(at: &Path<'_>, spec: &core::PodSpec, e: &mut Errors) {
    for (field, name) in [
        ("serviceAccountName", &spec.service_account_name),
        ("nodeName", &spec.node_name),
        ("priorityClassName", &spec.priority_class_name),
        ("runtimeClassName", &spec.runtime_class_name),
    ] {
        if !text(name).is_empty() {
            e.dns_subdomain(&at.field(field), text(name));
        }
    }
    for (field, name) in [("hostname", &spec.hostname), ("subdomain", &spec.subdomain)] {
        if !text(name).is_empty() {
            e.dns_label(&at.field(field), text(name));
        }
    }
    if let Some(seconds) = spec.active_deadline_seconds {
        e.range(&at.field("activeDeadlineSeconds"), seconds, 1, i32::MAX.into());
    }
    if let Some(name) = &spec.hostname_override {
        let at = at.field("hostnameOverride");
        if spec.set_hostname_as_fqdn == Some(true) {
            e.forbidden(&at, "may not be specified when setHostnameAsFQDN is true");
        }
        if spec.host_network == Some(true) {
            e.forbidden(&at, "may not be specified when hostNetwork is true");
        }
        if name.len() > 64 {
            e.too_long(&at, 64);
        }
        e.dns_subdomain(&at, name);
    }
}

/// Variables read from files name a scratch volume.
fn file_key_volumes(at: &Path<'_>, spec: &core::PodSpec, e: &mut Errors) {
    let init = spec.init_containers.as_deref().unwrap_or_default();
    for (field, list) in [("initContainers", init), ("containers", spec.containers.as_slice())] {
        let list_at = at.field(field);
        for (i, c) in list.iter().enumerate() {
            let at = list_at.index(i);
            let env_at = at.field("env");
            for (j, variable) in items(&c.env).enumerate() {
                let Some(file) = variable.value_from.as_ref().and_then(|f| f.file_key_ref.as_ref()) else { continue };
                let at = env_at.index(j);
                let at = at.field("valueFrom");
                let at = at.field("fileKeyRef");
                let at = at.field("volumeName");
                match items(&spec.volumes).find(|v| v.name == file.volume_name) {
                    None => e.not_found(&at, &file.volume_name),
                    Some(v) if v.empty_dir.is_none() => {
                        e.invalid(&at, &file.volume_name, "referenced volume must be of type emptyDir");
                    }
                    Some(_) => {}
                }
            }
        }
    }
}

/// Fields of a running pod that its owner may change.
const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// What an update changed that it may not.
pub(crate) fn change(new: &core::PodSpec, old: &core::PodSpec, e: &mut Errors) {
    let at = Path::top("spec");
    let (new_init, old_init) =
        (new.init_containers.as_deref().unwrap_or_default(), old.init_containers.as_deref().unwrap_or_default());
    for (field, new, old) in
        [("containers", new.containers.len(), old.containers.len()), ("initContainers", new_init.len(), old_init.len())]
    {
        if new != old {
            return e.forbidden(&at.field(field), "pod updates may not add or remove containers");
        }
    }
    for (field, list) in [("containers", new.containers.as_slice()), ("initContainers", new_init)] {
        let at = at.field(field);
        for (i, c) in list.iter().enumerate() {
            container::image_text(&at.index(i), text(&c.image), e);
        }
    }
    if !deadline(&at.field("activeDeadlineSeconds"), new, old, e) {
        return;
    }
    only_added_tolerations(&at.field("tolerations"), new, old, e);
    only_removed_gates(&at.field("schedulingGates"), new, old, e);
    let mut compared = new.clone();
    for (c, was) in compared.containers.iter_mut().zip(&old.containers) {
        c.image = was.image.clone();
    }
    for (c, was) in compared.init_containers.iter_mut().flatten().zip(old_init) {
        c.image = was.image.clone();
    }
    compared.active_deadline_seconds = old.active_deadline_seconds;
    compared.tolerations = old.tolerations.clone();
    compared.scheduling_gates = old.scheduling_gates.clone();
    if old.termination_grace_period_seconds.is_some_and(|s| s < 0) && new.termination_grace_period_seconds == Some(1) {
        compared.termination_grace_period_seconds = old.termination_grace_period_seconds;
    }
    // A pod that is not yet up for scheduling may still be restricted to fewer nodes.
    if !is_empty(&old.scheduling_gates) {
        let narrower = old
            .node_selector
            .iter()
            .flatten()
            .all(|(k, v)| new.node_selector.as_ref().and_then(|s| s.get(k)) == Some(v));
        if narrower {
            compared.node_selector = old.node_selector.clone();
        }
    }
    if compared != *old {
        let (was, is) =
            (serde_json::to_value(old).unwrap_or_default(), serde_json::to_value(&compared).unwrap_or_default());
        let diff = super::difference(&was, &is);
        e.forbidden(&at, &format!("pod updates may not change fields other than {UPDATABLE}\n{diff}"));
    }
}

fn deadline(at: &Path<'_>, new: &core::PodSpec, old: &core::PodSpec, e: &mut Errors) -> bool {
    let before = e.len();
    match (new.active_deadline_seconds, old.active_deadline_seconds) {
        (Some(is), _) if !(0..=i64::from(i32::MAX)).contains(&is) => e.range(at, is, 0, i32::MAX.into()),
        (Some(is), Some(was)) if was < is => e.invalid(at, &is, "must be less than or equal to previous value"),
        (None, Some(_)) => {
            e.invalid(at, &serde_json::Value::Null, "must not update from a positive integer to nil value");
            return true;
        }
        _ => {}
    }
    e.len() == before
}

fn only_added_tolerations(at: &Path<'_>, new: &core::PodSpec, old: &core::PodSpec, e: &mut Errors) {
    let kept = |was: &core::Toleration| {
        items(&new.tolerations).any(|is| {
            let mut same = was.clone();
            same.toleration_seconds = is.toleration_seconds;
            same == *is
        })
    };
    if !items(&old.tolerations).all(kept) {
        e.forbidden(at, "existing toleration can not be modified except its tolerationSeconds");
    }
}

fn only_removed_gates(at: &Path<'_>, new: &core::PodSpec, old: &core::PodSpec, e: &mut Errors) {
    for gate in items(&new.scheduling_gates).filter(|g| !items(&old.scheduling_gates).any(|o| o.name == g.name)) {
        let detail = format!("only deletion is allowed, but found new scheduling gate '{}'", gate.name);
        e.forbidden(at, &detail);
    }
}
