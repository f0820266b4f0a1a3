//! Persistent disks of Google Cloud.
use k8s_openapi::api::{
    core::v1::{
        CSIPersistentVolumeSource, GCEPersistentDiskVolumeSource, PersistentVolume, PersistentVolumeSpec, Volume,
    },
    storage::v1::StorageClass,
};

use crate::{FS_TYPE, ONCE, Plugin, READ_MANY, Why, inline, map, partition, source, spec, topology};

pub struct GcePd;

const DRIVER: &str = "pd.csi.storage.gke.io";
const ZONE_KEY: &str = "topology.gke.io/zone";
/// A part of a handle that the translation cannot know.
const UNSPECIFIED: &str = "UNSPECIFIED";

/// `projects/PROJECT/zones/ZONE/disks/NAME`, `projects/PROJECT/regions/REGION/disks/NAME`, and nodes' names
/// `projects/PROJECT/zones/ZONE/instances/NAME`: project, `zones` or `regions`, which one, and the name.
fn parts(handle: &str) -> Option<(&str, &str, &str, &str)> {
    let parts: Vec<&str> = handle.split('/').collect();
    match parts[..] {
        [_, project, scope, place, _, name, ..] => Some((project, scope, place, name)),
        _ => None,
    }
}

fn region(zones: &[&str]) -> Result<String, Why> {
    let of = |zone: &str| {
        let (region, letter) = zone.rsplit_once('-')?;
        (region.matches('-').count() == 1 && !letter.is_empty()).then(|| region.to_owned())
    };
    topology::one_region(zones, of, "europe-west1-b")
}

fn handle(volume: &PersistentVolume, name: &str) -> Result<String, Why> {
    let label = |key| topology::label(volume, key).filter(|l| !l.is_empty());
    let zones = label(topology::BETA_ZONE).or_else(|| label(topology::ZONE)).unwrap_or(UNSPECIFIED);
    let zones: Vec<&str> = zones.split(topology::BETWEEN_ZONES).collect();
    Ok(match &zones[..] {
        [zone] => format!("projects/{UNSPECIFIED}/zones/{zone}/disks/{name}"),
        _ => format!("projects/{UNSPECIFIED}/regions/{}/disks/{name}", region(&zones)?),
    })
}

fn csi(disk: &GCEPersistentDiskVolumeSource, handle: String) -> CSIPersistentVolumeSource {
    let partition = disk.partition.filter(|p| *p != 0).map_or_else(String::new, |p| p.to_string());
    CSIPersistentVolumeSource {
        read_only: disk.read_only,
        fs_type: disk.fs_type.clone(),
        volume_attributes: Some(map([("partition", &partition)])),
        ..source(DRIVER, handle)
    }
}

/// The plugin looked at no modes and attached for one writer; the driver refuses what it cannot do.
fn modes(given: &[String]) -> Vec<String> {
    let only_reads = !given.is_empty() && given.iter().all(|m| m == READ_MANY);
    vec![if only_reads { READ_MANY } else { ONCE }.to_owned()]
}

impl Plugin for GcePd {
    fn name(&self) -> &'static str {
        "kubernetes.io/gce-pd"
    }

    fn driver(&self) -> &'static str {
        DRIVER
    }

    fn made(&self, spec: &PersistentVolumeSpec) -> bool {
        spec.gce_persistent_disk.is_some()
    }

    fn is_inline(&self, volume: &Volume) -> bool {
        volume.gce_persistent_disk.is_some()
    }

    fn class(&self, class: &mut StorageClass) -> Result<(), Why> {
        class_with_zones_and_fs_type(class, ZONE_KEY)
    }

    fn inline(&self, volume: &Volume, _: &str) -> Result<PersistentVolume, Why> {
        let disk = volume.gce_persistent_disk.clone().unwrap_or_default();
        let mode = if disk.read_only == Some(true) { READ_MANY } else { ONCE };
        let handle = format!("projects/{UNSPECIFIED}/zones/{UNSPECIFIED}/disks/{}", disk.pd_name);
        Ok(inline(format!("{DRIVER}-{}", disk.pd_name), mode, csi(&disk, handle)))
    }

    fn to_csi(&self, volume: &mut PersistentVolume) -> Result<(), Why> {
        let disk = spec(volume).gce_persistent_disk.take().unwrap_or_default();
        let source = csi(&disk, handle(volume, &disk.pd_name)?);
        topology::to_csi(volume, ZONE_KEY, true);
        let spec = spec(volume);
        spec.csi = Some(source);
        spec.access_modes = spec.access_modes.as_deref().map(modes);
        Ok(())
    }

    fn back(&self, volume: &mut PersistentVolume, source: CSIPersistentVolumeSource) -> Result<(), Why> {
        let (.., name) = parts(&source.volume_handle).ok_or_else(|| {
            format!("handle {:?} is not of the form projects/P/zones/Z/disks/D", source.volume_handle)
        })?;
        let disk = GCEPersistentDiskVolumeSource {
            pd_name: name.to_owned(),
            partition: partition(source.volume_attributes.as_ref())?,
            fs_type: source.fs_type,
            read_only: source.read_only,
        };
        topology::from_csi(volume, ZONE_KEY, Some(region))?;
        spec(volume).gce_persistent_disk = Some(disk);
        Ok(())
    }

    fn repair(&self, handle: &str, node: &str) -> Result<String, Why> {
        let (project, scope, place, name) =
            parts(handle).ok_or("its handle is not of the form projects/P/zones/Z/disks/D")?;
        if project != UNSPECIFIED {
            return Ok(handle.to_owned());
        }
        let (project, _, zone, _) = parts(node).ok_or_else(|| {
            format!("node {node:?} is not of the form projects/P/zones/Z/instances/I, which is needed")
        })?;
        let place = match (scope, place) {
            ("zones", UNSPECIFIED) => zone.to_owned(),
            ("regions", UNSPECIFIED) => region(&[zone])?,
            ("zones" | "regions", place) => place.to_owned(),
            _ => return Err(format!("its handle has {scope:?} in place of zones or regions")),
        };
        Ok(format!("projects/{project}/{scope}/{place}/disks/{name}"))
    }
}

/// What the classes of Google's and Amazon's disks have in common.
pub fn class_with_zones_and_fs_type(class: &mut StorageClass, key: &str) -> Result<(), Why> {
    let mut parameters = class.parameters.take().unwrap_or_default();
    topology::class_with_zones(class, key, &mut parameters)?;
    class.parameters = Some(with_fs_type(parameters));
    Ok(())
}

/// The file system by the name that every driver's provisioner knows.
pub fn with_fs_type(parameters: crate::Map) -> crate::Map {
    let named = |name: String| if name.eq_ignore_ascii_case("fstype") { FS_TYPE.to_owned() } else { name };
    parameters.into_iter().map(|(name, value)| (named(name), value)).collect()
}
