//! What a pod's spec gets where it says nothing.
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use std::collections::BTreeMap;

use crate::check::text;
use crate::quantity::{canonical_map, canonical_option};

/// Mode of files from ConfigMaps and the like: 0644.
const FILE_MODE: i32 = 0o644;
/// Resources that a whole pod may ask for.
const POD_LEVEL: &[&str] = &["cpu", "memory"];

/// Whether the newest image must be looked for each time: no tag and no digest, or the tag `latest`.
pub fn is_latest(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, None), |(n, d)| (n, Some(d)));
    // A colon before the last slash belongs to the registry's port.
    let tag = name.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    match (tag, digest) {
        (Some(tag), _) => tag == "latest",
        (None, Some(_)) => false,
        (None, None) => true,
    }
}

fn pull_policy(image: &str) -> String {
    if is_latest(image) { "Always" } else { "IfNotPresent" }.to_owned()
}

fn or(field: &mut Option<String>, value: &str) {
    if text(field).is_empty() {
        *field = Some(value.to_owned());
    }
}

fn or_number(field: &mut Option<i32>, value: i32) {
    if field.unwrap_or(0) == 0 {
        *field = Some(value);
    }
}

fn http_get(action: Option<&mut core::HTTPGetAction>) {
    if let Some(action) = action {
        or(&mut action.path, "/");
        or(&mut action.scheme, "HTTP");
    }
}

fn probe(probe: Option<&mut core::Probe>) {
    let Some(probe) = probe else { return };
    or_number(&mut probe.timeout_seconds, 1);
    or_number(&mut probe.period_seconds, 10);
    or_number(&mut probe.success_threshold, 1);
    or_number(&mut probe.failure_threshold, 3);
    http_get(probe.http_get.as_mut());
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn field_ref(field: Option<&mut core::ObjectFieldSelector>) {
    if let Some(field) = field {
        or(&mut field.api_version, "v1");
    }
}

fn variables(list: &mut Option<Vec<core::EnvVar>>) {
    for from in list.iter_mut().flatten().filter_map(|v| v.value_from.as_mut()) {
        field_ref(from.field_ref.as_mut());
        if let Some(file) = &mut from.file_key_ref {
            file.optional.get_or_insert(false);
        }
        if let Some(resource) = &mut from.resource_field_ref {
            resource_ref(resource);
        }
    }
}

fn resource_ref(resource: &mut core::ResourceFieldSelector) {
    canonical_option(&mut resource.divisor);
    resource.divisor.get_or_insert_with(|| Text("0".to_owned()));
}

/// Containers and ephemeral containers have the same fields in two types.
macro_rules! container {
    ($c:expr) => {{
        let c = $c;
        let image = text(&c.image).to_owned();
        or(&mut c.image_pull_policy, &pull_policy(&image));
        or(&mut c.termination_message_path, "/dev/termination-log");
        or(&mut c.termination_message_policy, "File");
        for port in c.ports.iter_mut().flatten() {
            or(&mut port.protocol, "TCP");
        }
        variables(&mut c.env);
        probe(c.liveness_probe.as_mut());
        probe(c.readiness_probe.as_mut());
        probe(c.startup_probe.as_mut());
        if let Some(lifecycle) = &mut c.lifecycle {
            for handler in [&mut lifecycle.post_start, &mut lifecycle.pre_stop].into_iter().flatten() {
                http_get(handler.http_get.as_mut());
            }
        }
        let resources = c.resources.get_or_insert_default();
        canonical_map(&mut resources.limits);
        canonical_map(&mut resources.requests);
        if let Some(context) = &mut c.security_context
            && context.proc_mount.as_deref() == Some("")
        {
            context.proc_mount = None;
        }
    }};
}

pub(crate) fn azure_disk(s: &mut core::AzureDiskVolumeSource) {
    s.caching_mode.get_or_insert_with(|| "ReadWrite".to_owned());
    s.fs_type.get_or_insert_with(|| "ext4".to_owned());
    s.read_only.get_or_insert(false);
    s.kind.get_or_insert_with(|| "Shared".to_owned());
}

fn has_source(volume: &core::Volume) -> bool {
    let bare = core::Volume { name: volume.name.clone(), ..Default::default() };
    *volume != bare
}

fn downward_items(list: &mut Option<Vec<core::DownwardAPIVolumeFile>>) {
    for file in list.iter_mut().flatten() {
        field_ref(file.field_ref.as_mut());
        if let Some(resource) = &mut file.resource_field_ref {
            resource_ref(resource);
        }
    }
}

fn volume(v: &mut core::Volume) {
    if !has_source(v) {
        v.empty_dir = Some(core::EmptyDirVolumeSource::default());
    }
    if let Some(s) = &mut v.empty_dir {
        canonical_option(&mut s.size_limit);
    }
    if let Some(s) = &mut v.host_path {
        s.type_.get_or_insert_default();
    }
    if let Some(s) = &mut v.secret {
        s.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(s) = &mut v.config_map {
        s.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(s) = &mut v.downward_api {
        s.default_mode.get_or_insert(FILE_MODE);
        downward_items(&mut s.items);
    }
    if let Some(s) = &mut v.projected {
        s.default_mode.get_or_insert(FILE_MODE);
        for source in s.sources.iter_mut().flatten() {
            if let Some(downward) = &mut source.downward_api {
                downward_items(&mut downward.items);
            }
            if let Some(token) = &mut source.service_account_token {
                token.expiration_seconds.get_or_insert(3600);
            }
            // Upstream's beta, off unless asked for: as if not given.
            source.pod_certificate = None;
        }
    }
    if let Some(s) = &mut v.iscsi {
        or(&mut s.iscsi_interface, "default");
    }
    if let Some(s) = &mut v.rbd {
        or(&mut s.pool, "rbd");
        or(&mut s.user, "admin");
        or(&mut s.keyring, "/etc/ceph/keyring");
    }
    if let Some(s) = &mut v.azure_disk {
        azure_disk(s);
    }
    if let Some(s) = &mut v.scale_io {
        or(&mut s.storage_mode, "ThinProvisioned");
        or(&mut s.fs_type, "xfs");
    }
    if let Some(template) = v.ephemeral.as_mut().and_then(|s| s.volume_claim_template.as_mut()) {
        template.metadata.get_or_insert_default();
        super::claim::default_spec(&mut template.spec);
    }
    if let Some(s) = &mut v.image
        && text(&s.pull_policy).is_empty()
    {
        let policy = pull_policy(text(&s.reference));
        s.pull_policy = Some(policy);
    }
}

/// Defaults of a pod's spec, in a pod or in a template.
pub(crate) fn spec(spec: &mut core::PodSpec) {
    or(&mut spec.dns_policy, "ClusterFirst");
    or(&mut spec.restart_policy, "Always");
    or(&mut spec.scheduler_name, "default-scheduler");
    spec.security_context.get_or_insert_default();
    spec.termination_grace_period_seconds.get_or_insert(30);
    // Two names of one field.
    if text(&spec.service_account_name).is_empty() {
        spec.service_account_name = spec.service_account.clone().filter(|n| !n.is_empty());
    }
    spec.service_account = spec.service_account_name.clone();
    spec.volumes.iter_mut().flatten().for_each(volume);
    for c in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        container!(c);
    }
    for c in spec.ephemeral_containers.iter_mut().flatten() {
        container!(c);
    }
    canonical_map(&mut spec.overhead);
    if let Some(resources) = &mut spec.resources {
        canonical_map(&mut resources.limits);
        canonical_map(&mut resources.requests);
    }
    // On the host's network a container's port is the host's.
    if spec.host_network == Some(true) {
        let all = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
        for port in all.flat_map(|c| c.ports.iter_mut().flatten()) {
            or_number(&mut port.host_port, port.container_port);
        }
    }
}

/// Defaults that only pods themselves get, not the templates of pods.
pub(crate) fn pod(pod: &mut core::Pod) {
    let spec = pod.spec.get_or_insert_default();
    for c in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        if let Some(resources) = &mut c.resources
            && let Some(limits) = &resources.limits
        {
            let requests = resources.requests.get_or_insert_default();
            for (name, value) in limits {
                requests.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
    }
    spec.enable_service_links.get_or_insert(true);
    pod_level_requests(spec);
}

/// Requests of the whole pod, where it has limits of its own: what its containers ask for, else the limits.
fn pod_level_requests(spec: &mut core::PodSpec) {
    let asked = crate::pod::requests(spec);
    let Some(resources) = &mut spec.resources else { return };
    let Some(limits) = resources.limits.clone().filter(|l| !l.is_empty()) else { return };
    let mut requests: BTreeMap<String, Text> = resources.requests.take().unwrap_or_default();
    for name in POD_LEVEL {
        if let Some(q) = asked.get(*name).filter(|_| !requests.contains_key(*name)) {
            requests.insert((*name).to_owned(), (*q).into());
        }
    }
    for (name, limit) in limits {
        if POD_LEVEL.contains(&name.as_str()) || name.starts_with("hugepages-") {
            requests.entry(name).or_insert(limit);
        }
    }
    resources.requests = (!requests.is_empty()).then_some(requests);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_without_a_fixed_version_are_always_pulled() {
        for (image, want) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1.2", false),
            ("host:5000/nginx", true),
            ("host:5000/nginx:1", false),
            ("nginx@sha256:00", false),
            ("nginx:latest@sha256:00", true),
        ] {
            assert_eq!(is_latest(image), want, "{image}");
        }
    }
}
