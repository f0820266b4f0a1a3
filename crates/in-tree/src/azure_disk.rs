//! Managed disks of Microsoft's cloud.
use k8s_openapi::api::{
    core::v1::{AzureDiskVolumeSource, CSIPersistentVolumeSource, PersistentVolume, PersistentVolumeSpec, Volume},
    storage::v1::StorageClass,
};

use crate::{ONCE, Plugin, Why, inline, map, source, spec, topology};

pub struct AzureDisk;

const DRIVER: &str = "disk.csi.azure.com";
const ZONE_KEY: &str = "topology.disk.csi.azure.com/zone";
const MANAGED: &str = "Managed";

fn csi(disk: AzureDiskVolumeSource) -> Result<CSIPersistentVolumeSource, Why> {
    if let Some(kind) = disk.kind.filter(|k| !k.eq_ignore_ascii_case(MANAGED)) {
        return Err(format!("its kind is {kind}; the driver has managed disks only"));
    }
    let mut attributes = map([("kind", MANAGED)]);
    attributes.extend(disk.caching_mode.filter(|m| !m.is_empty()).map(|mode| ("cachingmode".to_owned(), mode)));
    attributes.extend(disk.fs_type.clone().map(|kind| ("fstype".to_owned(), kind)));
    Ok(CSIPersistentVolumeSource {
        read_only: disk.read_only,
        fs_type: disk.fs_type,
        volume_attributes: Some(attributes),
        ..source(DRIVER, disk.disk_uri)
    })
}

/// The last part of `…/subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/disks/NAME`, or of `http…/vhds/NAME`.
fn name(uri: &str) -> Option<&str> {
    let managed = !(uri.len() > 4 && uri.get(..4).is_some_and(|s| s.eq_ignore_ascii_case("http")));
    let after = |text: &'_ str, word: &str| text.find(word).map(|at| at + word.len());
    let name = if managed {
        let group = after(uri, "/subscriptions/")?;
        let provider = group + after(&uri[group..], "/resourceGroups/")?;
        uri[provider..].rsplit_once("/providers/Microsoft.Compute/disks/")?.1
    } else {
        uri[after(uri, "://")?..].rsplit_once("/vhds/")?.1
    };
    (!name.is_empty()).then_some(name)
}

impl Plugin for AzureDisk {
    fn name(&self) -> &'static str {
        "kubernetes.io/azure-disk"
    }

    fn driver(&self) -> &'static str {
        DRIVER
    }

    fn made(&self, spec: &PersistentVolumeSpec) -> bool {
        spec.azure_disk.is_some()
    }

    fn is_inline(&self, volume: &Volume) -> bool {
        volume.azure_disk.is_some()
    }

    fn class(&self, class: &mut StorageClass) -> Result<(), Why> {
        let mut parameters = class.parameters.take().unwrap_or_default();
        topology::class_with_zones(class, ZONE_KEY, &mut parameters)?;
        class.parameters = Some(parameters);
        let all = class.allowed_topologies.iter_mut().flatten();
        let all = all.flat_map(|t| t.match_label_expressions.iter_mut().flatten());
        // Where there are no zones, Kubernetes counts fault domains, and the driver has an empty zone.
        let is_domain = |zone: &str| !zone.is_empty() && zone.bytes().all(|b| b.is_ascii_digit());
        let zones = all.filter(|e| e.key == ZONE_KEY).flat_map(|e| &mut e.values);
        zones.filter(|z| is_domain(z)).for_each(String::clear);
        Ok(())
    }

    fn inline(&self, volume: &Volume, _: &str) -> Result<PersistentVolume, Why> {
        let source = csi(volume.azure_disk.clone().unwrap_or_default())?;
        Ok(inline(source.volume_handle.clone(), ONCE, source))
    }

    fn to_csi(&self, volume: &mut PersistentVolume) -> Result<(), Why> {
        let disk = spec(volume).azure_disk.take().unwrap_or_default();
        spec(volume).csi = Some(csi(disk)?);
        Ok(())
    }

    fn back(&self, volume: &mut PersistentVolume, source: CSIPersistentVolumeSource) -> Result<(), Why> {
        const FORM: &str = "/subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/disks/NAME";
        let uri = source.volume_handle;
        let disk_name = name(&uri).ok_or_else(|| format!("handle {uri:?} is not of the form {FORM}"))?.to_owned();
        let attribute = |name: &str| {
            let all = source.volume_attributes.iter().flatten();
            all.filter(|(k, v)| k.eq_ignore_ascii_case(name) && !v.is_empty()).map(|(_, v)| v.clone()).next()
        };
        let disk = AzureDiskVolumeSource {
            caching_mode: attribute("cachingmode"),
            disk_name,
            fs_type: attribute("fstype").or_else(|| source.fs_type.clone()),
            kind: Some(MANAGED.to_owned()),
            read_only: source.read_only,
            disk_uri: uri,
        };
        spec(volume).azure_disk = Some(disk);
        Ok(())
    }
}

#[test]
fn names() {
    for (uri, wanted) in [
        ("testurl/subscriptions/12/resourceGroups/23/providers/Microsoft.Compute/disks/name", Some("name")),
        ("testurl/subscriptions/23/providers/Microsoft.Compute/disks/name", None),
        ("/subscriptions/12/resourceGroups/23/providers/Microsoft.Compute/disks/", None),
        ("test.com", None),
        ("http://test.com/vhds/name", Some("name")),
        ("HTTP://test.com", None),
        ("http://test.io/name", None),
    ] {
        assert_eq!(name(uri), wanted, "{uri}");
    }
}
