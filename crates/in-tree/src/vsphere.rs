//! Virtual disks of vSphere.
use k8s_openapi::api::{
    core::v1::{
        CSIPersistentVolumeSource, PersistentVolume, PersistentVolumeSpec, Volume, VsphereVirtualDiskVolumeSource,
    },
    storage::v1::StorageClass,
};

use crate::{FS_TYPE, Map, ONCE, Plugin, Why, inline, source, spec, topology};

pub struct Vsphere;

const DRIVER: &str = "csi.vsphere.vmware.com";
const ZONE_KEY: &str = "topology.csi.vmware.com/zone";
const REGION_KEY: &str = "topology.csi.vmware.com/region";
const POLICY: &str = "storagepolicyname";
/// By which the driver says where the disk of a new volume is, if it is told that the class was the plugin's.
const PATH: &str = "initialvolumefilepath";

fn csi(disk: VsphereVirtualDiskVolumeSource) -> CSIPersistentVolumeSource {
    let policy = disk.storage_policy_name.filter(|p| !p.is_empty());
    CSIPersistentVolumeSource {
        fs_type: disk.fs_type,
        volume_attributes: policy.map(|p| Map::from([(POLICY.to_owned(), p)])),
        ..source(DRIVER, disk.volume_path)
    }
}

impl Plugin for Vsphere {
    fn name(&self) -> &'static str {
        "kubernetes.io/vsphere-volume"
    }

    fn driver(&self) -> &'static str {
        DRIVER
    }

    fn made(&self, spec: &PersistentVolumeSpec) -> bool {
        spec.vsphere_volume.is_some()
    }

    fn is_inline(&self, volume: &Volume) -> bool {
        volume.vsphere_volume.is_some()
    }

    /// Parameters that the driver has no word for are dropped.
    fn class(&self, class: &mut StorageClass) -> Result<(), Why> {
        let mut parameters = Map::new();
        for (name, value) in class.parameters.take().unwrap_or_default() {
            let name = match &*name.to_ascii_lowercase() {
                "fstype" => FS_TYPE.to_owned(),
                POLICY => POLICY.to_owned(),
                known @ ("datastore"
                | "diskformat"
                | "hostfailurestotolerate"
                | "forceprovisioning"
                | "cachereservation"
                | "diskstripes"
                | "objectspacereservation"
                | "iopslimit") => {
                    format!("{known}-migrationparam")
                }
                _ => continue,
            };
            parameters.insert(name, value);
        }
        parameters.insert("csimigration".to_owned(), "true".to_owned());
        class.parameters = Some(parameters);
        topology::class(class, ZONE_KEY);
        Ok(())
    }

    fn inline(&self, volume: &Volume, _: &str) -> Result<PersistentVolume, Why> {
        let disk = volume.vsphere_volume.clone().unwrap_or_default();
        Ok(inline(format!("{DRIVER}-{}", disk.volume_path), ONCE, csi(disk)))
    }

    fn to_csi(&self, volume: &mut PersistentVolume) -> Result<(), Why> {
        let disk = spec(volume).vsphere_volume.take().unwrap_or_default();
        topology::both_to_csi(volume, ZONE_KEY, REGION_KEY);
        spec(volume).csi = Some(csi(disk));
        Ok(())
    }

    fn back(&self, volume: &mut PersistentVolume, source: CSIPersistentVolumeSource) -> Result<(), Why> {
        let path = source.volume_attributes.as_ref().and_then(|a| a.get(PATH)).cloned();
        let path = path.ok_or_else(|| format!("its driver does not say where the disk is ({PATH})"))?;
        topology::both_from_csi(volume, ZONE_KEY, REGION_KEY);
        spec(volume).vsphere_volume =
            Some(VsphereVirtualDiskVolumeSource { fs_type: source.fs_type, volume_path: path, ..Default::default() });
        Ok(())
    }
}
