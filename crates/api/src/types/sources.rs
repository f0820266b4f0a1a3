//! Where volumes come from: the rules of every source, in pods and in PersistentVolumes.
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1 as core;

use crate::check::{is_empty, items, text};
use crate::field::{Errors, Path};
use crate::names;

const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
const TWO_SOURCES: &str = "may not specify more than 1 volume type";

/// Runs the checks of each source that is set; only the first one may be, as upstream reports it.
/// A row: the value, the field named in "more than 1", the field its own mistakes are reported at, the check.
macro_rules! sources {
    ($at:ident, $e:ident, $count:ident; $($value:expr, $name:literal, $own:literal, $check:expr;)*) => {$(
        if let Some(source) = &$value {
            if $count > 0 {
                $e.forbidden(&$at.field($name), TWO_SOURCES);
            } else {
                $count += 1;
                #[allow(clippy::redundant_closure_call)]
                ($check)(&$at.field($own), source, &mut *$e);
            }
        }
    )*};
}

/// The source of a pod's volume. `pod` is empty for templates.
pub(crate) fn pod_volume(at: &Path<'_>, v: &core::Volume, pod: &str, e: &mut Errors) {
    let mut count = 0;
    sources! { at, e, count;
        v.empty_dir, "emptyDir", "emptyDir", empty_dir;
        v.host_path, "hostPath", "hostPath", host_path;
        v.git_repo, "gitRepo", "gitRepo", git_repo;
        v.gce_persistent_disk, "gcePersistentDisk", "persistentDisk", gce_disk;
        v.aws_elastic_block_store, "awsElasticBlockStore", "awsElasticBlockStore", aws_disk;
        v.secret, "secret", "secret", secret;
        v.nfs, "nfs", "nfs", nfs;
        v.iscsi, "iscsi", "iscsi", |at: &Path<'_>, s: &core::ISCSIVolumeSource, e: &mut Errors| {
            let chap = s.chap_auth_discovery == Some(true) || s.chap_auth_session == Some(true);
            iscsi(at, &Iscsi { portal: &s.target_portal, iqn: &s.iqn, lun: s.lun, initiator: s.initiator_name.as_deref(), chap_without_secret: chap && s.secret_ref.is_none() }, "must be valid format starting with iqn, eui, or naa", e);
        };
        v.glusterfs, "glusterfs", "glusterfs", |at: &Path<'_>, s: &core::GlusterfsVolumeSource, e: &mut Errors| {
            e.need(&at.field("endpoints"), &s.endpoints);
            e.need(&at.field("path"), &s.path);
        };
        v.flocker, "flocker", "flocker", flocker;
        v.persistent_volume_claim, "persistentVolumeClaim", "persistentVolumeClaim", |at: &Path<'_>, s: &core::PersistentVolumeClaimVolumeSource, e: &mut Errors| {
            e.need(&at.field("claimName"), &s.claim_name);
        };
        v.rbd, "rbd", "rbd", |at: &Path<'_>, s: &core::RBDVolumeSource, e: &mut Errors| rbd(at, &s.monitors, &s.image, e);
        v.cinder, "cinder", "cinder", |at: &Path<'_>, s: &core::CinderVolumeSource, e: &mut Errors| {
            e.need(&at.field("volumeID"), &s.volume_id);
            local_secret(at, s.secret_ref.as_ref(), e);
        };
        v.cephfs, "cephFS", "cephfs", |at: &Path<'_>, s: &core::CephFSVolumeSource, e: &mut Errors| monitors(at, &s.monitors, e);
        v.quobyte, "quobyte", "quobyte", quobyte;
        v.downward_api, "downwarAPI", "downwardAPI", downward_api;
        v.fc, "fc", "fc", fibre_channel;
        v.flex_volume, "flexVolume", "flexVolume", |at: &Path<'_>, s: &core::FlexVolumeSource, e: &mut Errors| flex(at, &s.driver, &s.options, e);
        v.config_map, "configMap", "configMap", config_map;
        v.azure_file, "azureFile", "azureFile", |at: &Path<'_>, s: &core::AzureFileVolumeSource, e: &mut Errors| {
            e.need(&at.field("secretName"), &s.secret_name);
            e.need(&at.field("shareName"), &s.share_name);
        };
        v.vsphere_volume, "vsphereVolume", "vsphereVolume", vsphere;
        v.photon_persistent_disk, "photonPersistentDisk", "photonPersistentDisk", photon;
        v.portworx_volume, "portworxVolume", "portworxVolume", portworx;
        v.azure_disk, "azureDisk", "azureDisk", azure_disk;
        v.storageos, "storageos", "storageos", |at: &Path<'_>, s: &core::StorageOSVolumeSource, e: &mut Errors| {
            storage_os(at, text(&s.volume_name), text(&s.volume_namespace), e);
            local_secret(at, s.secret_ref.as_ref(), e);
        };
        v.projected, "projected", "projected", projected;
        v.scale_io, "scaleIO", "scaleIO", |at: &Path<'_>, s: &core::ScaleIOVolumeSource, e: &mut Errors| scale_io(at, &s.gateway, &s.system, text(&s.volume_name), e);
        v.csi, "csi", "csi", |at: &Path<'_>, s: &core::CSIVolumeSource, e: &mut Errors| {
            e.csi_driver_name(&at.field("driver"), &s.driver);
            if let Some(secret) = &s.node_publish_secret_ref
                && e.need(&at.field("nodePublishSecretRef").field("name"), &secret.name)
            {
                e.dns_subdomain(&at.field("name"), &secret.name);
            }
        };
        v.ephemeral, "ephemeral", "ephemeral", ephemeral;
        v.image, "image", "image", |at: &Path<'_>, s: &core::ImageVolumeSource, e: &mut Errors| {
            e.need(&at.field("reference"), text(&s.reference));
            if let Some(policy) = s.pull_policy.as_deref() {
                e.one_of(&at.field("pullPolicy"), policy, &["Always", "IfNotPresent", "Never"]);
            }
        };
    }
    if count == 0 {
        e.required(at, "must specify a volume type");
    }
    const TOO_LONG: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
    if let Some(iscsi) = &v.iscsi
        && iscsi.initiator_name.is_some()
        && v.name.len() + 1 + iscsi.target_portal.len() > 64
    {
        e.invalid(&at.field("name"), &v.name, TOO_LONG);
    }
    if v.ephemeral.is_some() && !pod.is_empty() && !v.name.is_empty() {
        let claim = format!("{pod}-{}", v.name);
        let details = names::dns_subdomain(&claim).into_iter().map(|m| format!("PVC name {claim:?}: {m}"));
        e.invalid_all(&at.field("name"), &v.name, details);
    }
}

/// The source of a PersistentVolume named `name`.
pub(crate) fn persistent_volume(
    at: &Path<'_>,
    v: &core::PersistentVolumeSpec,
    name: &str,
    has_affinity: bool,
    e: &mut Errors,
) {
    let mut count = 0;
    let spec_at = at;
    sources! { at, e, count;
        v.host_path, "hostPath", "hostPath", host_path;
        v.gce_persistent_disk, "gcePersistentDisk", "persistentDisk", gce_disk;
        v.aws_elastic_block_store, "awsElasticBlockStore", "awsElasticBlockStore", aws_disk;
        v.glusterfs, "glusterfs", "glusterfs", |at: &Path<'_>, s: &core::GlusterfsPersistentVolumeSource, e: &mut Errors| {
            e.need(&at.field("endpoints"), &s.endpoints);
            e.need(&at.field("path"), &s.path);
            match s.endpoints_namespace.as_deref() {
                Some("") => e.invalid(&at.field("endpointsNamespace"), &"", "if the endpointnamespace is set, it must be a valid namespace name"),
                Some(ns) => e.dns_label(&at.field("endpointsNamespace"), ns),
                None => {}
            }
        };
        v.flocker, "flocker", "flocker", flocker;
        v.nfs, "nfs", "nfs", nfs;
        v.rbd, "rbd", "rbd", |at: &Path<'_>, s: &core::RBDPersistentVolumeSource, e: &mut Errors| rbd(at, &s.monitors, &s.image, e);
        v.quobyte, "quobyte", "quobyte", quobyte;
        v.cephfs, "cephFS", "cephfs", |at: &Path<'_>, s: &core::CephFSPersistentVolumeSource, e: &mut Errors| monitors(at, &s.monitors, e);
        v.iscsi, "iscsi", "iscsi", |at: &Path<'_>, s: &core::ISCSIPersistentVolumeSource, e: &mut Errors| {
            let chap = s.chap_auth_discovery == Some(true) || s.chap_auth_session == Some(true);
            iscsi(at, &Iscsi { portal: &s.target_portal, iqn: &s.iqn, lun: s.lun, initiator: s.initiator_name.as_deref(), chap_without_secret: chap && s.secret_ref.is_none() }, "must be valid format", e);
            if s.initiator_name.is_some() && name.len() + 1 + s.target_portal.len() > 64 {
                e.invalid(&at.field("targetportal"), &s.target_portal, "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.");
            }
            if let Some(secret) = &s.secret_ref {
                e.need(&at.field("secretRef").field("name"), text(&secret.name));
            }
        };
        v.cinder, "cinder", "cinder", |at: &Path<'_>, s: &core::CinderPersistentVolumeSource, e: &mut Errors| {
            e.need(&at.field("volumeID"), &s.volume_id);
            if let Some(secret) = &s.secret_ref {
                e.need(&at.field("secretRef").field("name"), text(&secret.name));
                e.need(&at.field("secretRef").field("namespace"), text(&secret.namespace));
            }
        };
        v.fc, "fc", "fc", fibre_channel;
        v.flex_volume, "flexVolume", "flexVolume", |at: &Path<'_>, s: &core::FlexPersistentVolumeSource, e: &mut Errors| flex(at, &s.driver, &s.options, e);
        v.azure_file, "azureFile", "azureFile", |at: &Path<'_>, s: &core::AzureFilePersistentVolumeSource, e: &mut Errors| {
            e.need(&at.field("secretName"), &s.secret_name);
            e.need(&at.field("shareName"), &s.share_name);
            if s.secret_namespace.as_deref() == Some("") {
                e.required(&at.field("secretNamespace"), "");
            }
        };
        v.vsphere_volume, "vsphereVolume", "vsphereVolume", vsphere;
        v.photon_persistent_disk, "photonPersistentDisk", "photonPersistentDisk", photon;
        v.portworx_volume, "portworxVolume", "portworxVolume", portworx;
        v.azure_disk, "azureDisk", "azureDisk", azure_disk;
        v.scale_io, "scaleIO", "scaleIO", |at: &Path<'_>, s: &core::ScaleIOPersistentVolumeSource, e: &mut Errors| scale_io(at, &s.gateway, &s.system, text(&s.volume_name), e);
        v.local, "local", "local", |at: &Path<'_>, s: &core::LocalVolumeSource, e: &mut Errors| {
            if e.need(&at.field("path"), &s.path) {
                e.no_backsteps(&at.field("path"), &s.path);
            }
            if !has_affinity {
                e.required(&spec_at.field("nodeAffinity"), "Local volume requires node affinity");
            }
        };
        v.storageos, "storageos", "storageos", |at: &Path<'_>, s: &core::StorageOSPersistentVolumeSource, e: &mut Errors| {
            storage_os(at, text(&s.volume_name), text(&s.volume_namespace), e);
            if let Some(secret) = &s.secret_ref {
                e.need(&at.field("secretRef").field("name"), text(&secret.name));
                e.need(&at.field("secretRef").field("namespace"), text(&secret.namespace));
            }
        };
        v.csi, "csi", "csi", csi_persistent;
    }
    if count == 0 {
        e.required(at, "must specify a volume type");
    }
}

fn empty_dir(at: &Path<'_>, s: &core::EmptyDirVolumeSource, e: &mut Errors) {
    let at = at.field("sizeLimit");
    if let Some(limit) = &s.size_limit
        && e.quantity(&at, limit).is_some_and(|q| q.sign() < 0)
    {
        e.forbidden(&at, "SizeLimit field must be a valid resource quantity");
    }
}

fn host_path(at: &Path<'_>, s: &core::HostPathVolumeSource, e: &mut Errors) {
    if e.need(&at.field("path"), &s.path) {
        e.no_backsteps(&at.field("path"), &s.path);
        if let Some(kind) = &s.type_ {
            e.one_of(&at.field("type"), kind, HOST_PATH_TYPES);
        }
    }
}

fn git_repo(at: &Path<'_>, s: &core::GitRepoVolumeSource, e: &mut Errors) {
    e.need(&at.field("repository"), &s.repository);
    e.descending(&at.field("directory"), text(&s.directory));
}

fn partition(at: &Path<'_>, partition: Option<i32>, e: &mut Errors) {
    if let Some(p) = partition.filter(|p| !(0..=255).contains(p)) {
        e.invalid(&at.field("partition"), &p, "must be between 1 and 255, inclusive");
    }
}

fn gce_disk(at: &Path<'_>, s: &core::GCEPersistentDiskVolumeSource, e: &mut Errors) {
    e.need(&at.field("pdName"), &s.pd_name);
    partition(at, s.partition, e);
}

fn aws_disk(at: &Path<'_>, s: &core::AWSElasticBlockStoreVolumeSource, e: &mut Errors) {
    e.need(&at.field("volumeID"), &s.volume_id);
    partition(at, s.partition, e);
}

fn secret(at: &Path<'_>, s: &core::SecretVolumeSource, e: &mut Errors) {
    e.need(&at.field("secretName"), text(&s.secret_name));
    e.file_mode(&at.field("defaultMode"), s.default_mode);
    keys_to_paths(at, &s.items, e);
}

fn config_map(at: &Path<'_>, s: &core::ConfigMapVolumeSource, e: &mut Errors) {
    e.need(&at.field("name"), &s.name);
    e.file_mode(&at.field("defaultMode"), s.default_mode);
    keys_to_paths(at, &s.items, e);
}

fn keys_to_paths(at: &Path<'_>, list: &Option<Vec<core::KeyToPath>>, e: &mut Errors) {
    let list_at = at.field("items");
    for (i, item) in items(list).enumerate() {
        let at = list_at.index(i);
        e.need(&at.field("key"), &item.key);
        e.need(&at.field("path"), &item.path);
        e.not_reserved(&at.field("path"), &item.path);
        e.file_mode(&at.field("mode"), item.mode);
    }
}

fn nfs(at: &Path<'_>, s: &core::NFSVolumeSource, e: &mut Errors) {
    e.need(&at.field("server"), &s.server);
    e.need(&at.field("path"), &s.path);
    if !s.path.starts_with('/') {
        e.invalid(&at.field("path"), &s.path, "must be an absolute path");
    }
}

struct Iscsi<'a> {
    portal: &'a str,
    iqn: &'a str,
    lun: i32,
    initiator: Option<&'a str>,
    chap_without_secret: bool,
}

fn iscsi(at: &Path<'_>, s: &Iscsi<'_>, unknown_form: &str, e: &mut Errors) {
    e.need(&at.field("targetPortal"), s.portal);
    if e.need(&at.field("iqn"), s.iqn) {
        iscsi_name(&at.field("iqn"), s.iqn, unknown_form, e);
    }
    e.range(&at.field("lun"), s.lun.into(), 0, 255);
    if s.chap_without_secret {
        e.required(&at.field("secretRef"), "");
    }
    if let Some(initiator) = s.initiator {
        iscsi_name(&at.field("initiatorname"), initiator, unknown_form, e);
    }
}

fn iscsi_name(at: &Path<'_>, name: &str, unknown_form: &str, e: &mut Errors) {
    let fixed = |length: usize| name.len() == 4 + length && name[4..].bytes().all(|b| b.is_ascii_alphanumeric());
    let good = match name.get(..3) {
        Some("iqn") => is_iqn(name),
        Some("eui") => fixed(16),
        Some("naa") => fixed(32),
        _ => return e.invalid(at, &name, unknown_form),
    };
    if !good {
        e.invalid(at, &name, "must be valid format");
    }
}

/// `iqn.YYYY-MM.reversed.domain:name`
fn is_iqn(name: &str) -> bool {
    let Some((authority, target)) = name.strip_prefix("iqn.").and_then(|rest| rest.split_once(':')) else {
        return false;
    };
    let digits =
        |range: std::ops::Range<usize>| authority.get(range).is_some_and(|t| t.bytes().all(|b| b.is_ascii_digit()));
    digits(0..4)
        && digits(5..7)
        && authority.get(4..5) == Some("-")
        && authority.get(7..8) == Some(".")
        && authority.len() > 8
        && authority[8..].bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        && !target.is_empty()
        && !target.contains(|c: char| c.is_whitespace() || ",;*&$|".contains(c))
}

fn flocker(at: &Path<'_>, s: &core::FlockerVolumeSource, e: &mut Errors) {
    let (name, uuid) = (text(&s.dataset_name), text(&s.dataset_uuid));
    match (name.is_empty(), uuid.is_empty()) {
        (true, true) => e.required(at, "one of datasetName and datasetUUID is required"),
        (false, false) => e.invalid(at, &"resource", "datasetName and datasetUUID can not be specified simultaneously"),
        _ => {}
    }
    if name.contains('/') {
        e.invalid(&at.field("datasetName"), &name, "must not contain '/'");
    }
}

fn monitors(at: &Path<'_>, monitors: &[String], e: &mut Errors) {
    if monitors.is_empty() {
        e.required(&at.field("monitors"), "");
    }
}

fn rbd(at: &Path<'_>, list: &[String], image: &str, e: &mut Errors) {
    monitors(at, list, e);
    e.need(&at.field("image"), image);
}

fn local_secret(at: &Path<'_>, secret: Option<&core::LocalObjectReference>, e: &mut Errors) {
    if let Some(secret) = secret {
        e.need(&at.field("secretRef").field("name"), &secret.name);
    }
}

fn quobyte(at: &Path<'_>, s: &core::QuobyteVolumeSource, e: &mut Errors) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    if s.registry.is_empty() {
        e.required(&at.field("registry"), PAIRS);
    } else if text(&s.tenant).len() >= 65 {
        e.required(&at.field("tenant"), "must be a UUID and may not exceed a length of 64 characters");
    } else {
        for _ in s.registry.split(',').filter(|pair| !is_host_and_port(pair)) {
            e.invalid(&at.field("registry"), &s.registry, PAIRS);
        }
    }
    e.need(&at.field("volume"), &s.volume);
}

/// `host:port`, where an IPv6 address is in brackets.
fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host = match host.strip_prefix('[') {
        Some(rest) => match rest.strip_suffix(']') {
            Some(host) => host,
            None => return false,
        },
        None if host.contains(':') => return false,
        None => host,
    };
    !host.contains(['[', ']']) && !port.contains(['[', ']'])
}

fn fibre_channel(at: &Path<'_>, s: &core::FCVolumeSource, e: &mut Errors) {
    let (wwns, wwids) = (is_empty(&s.target_wwns), is_empty(&s.wwids));
    if wwns && wwids {
        e.required(&at.field("targetWWNs"), "must specify either targetWWNs or wwids, but not both");
    }
    if !wwns && !wwids {
        e.invalid(&at.field("targetWWNs"), &s.target_wwns, "targetWWNs and wwids can not be specified simultaneously");
    }
    if !wwns {
        match s.lun {
            None => e.required(&at.field("lun"), "lun is required if targetWWNs is specified"),
            Some(lun) => e.range(&at.field("lun"), lun.into(), 0, 255),
        }
    }
}

fn flex(at: &Path<'_>, driver: &str, options: &Option<BTreeMap<String, String>>, e: &mut Errors) {
    e.need(&at.field("driver"), driver);
    for key in options.iter().flatten().map(|(k, _)| k) {
        let domain = format!(".{}", key.split_once('/').map_or(key.as_str(), |(d, _)| d).to_lowercase());
        if domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io") {
            e.invalid(&at.field("options").key(key), key, "kubernetes.io and k8s.io namespaces are reserved");
        }
    }
}

fn vsphere(at: &Path<'_>, s: &core::VsphereVirtualDiskVolumeSource, e: &mut Errors) {
    e.need(&at.field("volumePath"), &s.volume_path);
}

fn photon(at: &Path<'_>, s: &core::PhotonPersistentDiskVolumeSource, e: &mut Errors) {
    e.need(&at.field("pdID"), &s.pd_id);
}

fn portworx(at: &Path<'_>, s: &core::PortworxVolumeSource, e: &mut Errors) {
    e.need(&at.field("volumeID"), &s.volume_id);
}

fn azure_disk(at: &Path<'_>, s: &core::AzureDiskVolumeSource, e: &mut Errors) {
    e.need(&at.field("diskName"), &s.disk_name);
    e.need(&at.field("diskURI"), &s.disk_uri);
    if let Some(mode) = &s.caching_mode {
        e.one_of(&at.field("cachingMode"), mode, &["None", "ReadOnly", "ReadWrite"]);
    }
    let Some(kind) = &s.kind else { return };
    e.one_of(&at.field("kind"), kind, &["Dedicated", "Managed", "Shared"]);
    let (start, form) = if kind == "Managed" {
        (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        )
    } else {
        ("https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd")
    };
    if !s.disk_uri.starts_with(start) {
        e.not_supported(&at.field("diskURI"), &s.disk_uri, &[form]);
    }
}

fn storage_os(at: &Path<'_>, name: &str, namespace: &str, e: &mut Errors) {
    if e.need(&at.field("volumeName"), name) {
        e.dns_label(&at.field("volumeName"), name);
    }
    if !namespace.is_empty() {
        e.dns_label(&at.field("volumeNamespace"), namespace);
    }
}

fn scale_io(at: &Path<'_>, gateway: &str, system: &str, volume: &str, e: &mut Errors) {
    e.need(&at.field("gateway"), gateway);
    e.need(&at.field("system"), system);
    e.need(&at.field("volumeName"), volume);
}

fn csi_persistent(at: &Path<'_>, s: &core::CSIPersistentVolumeSource, e: &mut Errors) {
    e.csi_driver_name(&at.field("driver"), &s.driver);
    e.need(&at.field("volumeHandle"), &s.volume_handle);
    for (name, secret) in [
        ("controllerPublishSecretRef", &s.controller_publish_secret_ref),
        ("controllerExpandSecretRef", &s.controller_expand_secret_ref),
        ("nodePublishSecretRef", &s.node_publish_secret_ref),
        ("nodeExpandSecretRef", &s.node_expand_secret_ref),
    ] {
        let at = at.field(name);
        let Some(secret) = secret else { continue };
        if e.need(&at.field("name"), text(&secret.name)) {
            e.dns_subdomain(&at.field("name"), text(&secret.name));
        }
        if e.need(&at.field("namespace"), text(&secret.namespace)) {
            e.dns_label(&at.field("namespace"), text(&secret.namespace));
        }
    }
}

fn ephemeral(at: &Path<'_>, s: &core::EphemeralVolumeSource, e: &mut Errors) {
    let at = at.field("volumeClaimTemplate");
    let Some(template) = &s.volume_claim_template else { return e.required(&at, "") };
    if let Some(meta) = &template.metadata {
        let at = at.field("metadata");
        e.annotations(&at.field("annotations"), &meta.annotations);
        e.labels(&at.field("labels"), &meta.labels);
        for (name, set) in [
            ("name", !text(&meta.name).is_empty()),
            ("generateName", !text(&meta.generate_name).is_empty()),
            ("namespace", !text(&meta.namespace).is_empty()),
            ("selfLink", !text(&meta.self_link).is_empty()),
            // Upstream's spelling.
            ("uID", !text(&meta.uid).is_empty()),
            ("resourceVersion", !text(&meta.resource_version).is_empty()),
            ("generation", meta.generation.unwrap_or(0) != 0),
            ("creationTimestamp", meta.creation_timestamp.is_some()),
            ("deletionTimestamp", meta.deletion_timestamp.is_some()),
            ("deletionGracePeriodSeconds", meta.deletion_grace_period_seconds.is_some()),
            ("ownerReferences", meta.owner_references.is_some()),
            ("finalizers", meta.finalizers.is_some()),
            ("managedFields", meta.managed_fields.is_some()),
        ] {
            if set {
                e.forbidden(&at.field(name), "cannot be set");
            }
        }
    }
    super::claim::validate_spec(&at.field("spec"), &template.spec, e);
}

const FILE_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// One file of the downward API; upstream names no item in the path.
fn downward_file(at: &Path<'_>, file: &core::DownwardAPIVolumeFile, e: &mut Errors) {
    e.need(&at.field("path"), &file.path);
    e.not_reserved(&at.field("path"), &file.path);
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(field), resource) => {
            super::env::field_selector(&at.field("fieldRef"), field, FILE_FIELDS, e);
            if resource.is_some() {
                e.invalid(at, &"resource", "fieldRef and resourceFieldRef can not be specified simultaneously");
            }
        }
        (None, Some(resource)) => super::env::resource_selector(&at.field("resourceFieldRef"), resource, true, e),
        (None, None) => e.required(at, "one of fieldRef and resourceFieldRef is required"),
    }
    e.file_mode(&at.field("mode"), file.mode);
}

fn downward_api(at: &Path<'_>, s: &core::DownwardAPIVolumeSource, e: &mut Errors) {
    e.file_mode(&at.field("defaultMode"), s.default_mode);
    for file in items(&s.items) {
        downward_file(at, file, e);
    }
}

fn projected(at: &Path<'_>, s: &core::ProjectedVolumeSource, e: &mut Errors) {
    e.file_mode(&at.field("defaultMode"), s.default_mode);
    let list = at.field("sources");
    let mut taken = BTreeSet::new();
    for (i, source) in items(&s.sources).enumerate() {
        projection(at, &list.index(i), source, &mut taken, e);
    }
}

/// One source of a projected volume; `whole` is the volume, which conflicts between sources are reported at.
fn projection<'s>(
    whole: &Path<'_>,
    at: &Path<'_>,
    source: &'s core::VolumeProjection,
    taken: &mut BTreeSet<&'s str>,
    e: &mut Errors,
) {
    const CONFLICT: &str = "conflicting duplicate paths";
    let mut count = 0;
    let mut claim = |path: &'s str, shown: &str, e: &mut Errors| {
        if !path.is_empty() && !taken.insert(path) {
            e.invalid(whole, &shown, CONFLICT);
        }
    };
    if let Some(secret) = &source.secret {
        count += 1;
        let at = at.field("secret");
        e.need(&at.field("name"), &secret.name);
        keys_to_paths(&at, &secret.items, e);
        items(&secret.items).for_each(|item| claim(&item.path, &secret.name, e));
    }
    if let Some(map) = &source.config_map {
        count += 1;
        let at = at.field("configMap");
        e.need(&at.field("name"), &map.name);
        keys_to_paths(&at, &map.items, e);
        items(&map.items).for_each(|item| claim(&item.path, &map.name, e));
    }
    if let Some(downward) = &source.downward_api {
        count += 1;
        for file in items(&downward.items) {
            downward_file(&at.field("downwardAPI"), file, e);
            claim(&file.path, &file.path, e);
        }
    }
    if let Some(token) = &source.service_account_token {
        count += 1;
        let seconds_at = at.field("serviceAccountToken");
        let seconds_at = seconds_at.field("expirationSeconds");
        let seconds = token.expiration_seconds.unwrap_or(3600);
        if seconds < 10 * 60 {
            e.invalid(&seconds_at, &seconds, "may not specify a duration less than 10 minutes");
        }
        if seconds > 1 << 32 {
            e.invalid(&seconds_at, &seconds, "may not specify a duration larger than 2^32 seconds");
        }
        if e.need(&whole.field("path"), &token.path) {
            e.not_reserved(&whole.field("path"), &token.path);
        }
    }
    if let Some(bundle) = &source.cluster_trust_bundle {
        count += 1;
        super::trust::projection(&at.field("clusterTrustBundle"), bundle, e);
        claim(&bundle.path, &bundle.path, e);
    }
    if count > 1 {
        e.forbidden(at, "may not specify more than 1 volume type per source");
    }
}
