//! Block storage of OpenStack.
use k8s_openapi::api::{
    core::v1::{
        CSIPersistentVolumeSource, CinderPersistentVolumeSource, PersistentVolume, PersistentVolumeSpec, Volume,
    },
    storage::v1::StorageClass,
};

use crate::{ONCE, Plugin, Why, gce_pd::with_fs_type, inline, source, spec, topology};

pub struct Cinder;

const DRIVER: &str = "cinder.csi.openstack.org";
const ZONE_KEY: &str = "topology.cinder.csi.openstack.org/zone";

fn csi(id: String, fs_type: Option<String>, read_only: Option<bool>) -> CSIPersistentVolumeSource {
    CSIPersistentVolumeSource { read_only, fs_type, ..source(DRIVER, id) }
}

impl Plugin for Cinder {
    fn name(&self) -> &'static str {
        "kubernetes.io/cinder"
    }

    fn driver(&self) -> &'static str {
        DRIVER
    }

    fn made(&self, spec: &PersistentVolumeSpec) -> bool {
        spec.cinder.is_some()
    }

    fn is_inline(&self, volume: &Volume) -> bool {
        volume.cinder.is_some()
    }

    /// The driver knows the other parameters, `availability` too.
    fn class(&self, class: &mut StorageClass) -> Result<(), Why> {
        class.parameters = class.parameters.take().map(with_fs_type);
        topology::class(class, ZONE_KEY);
        Ok(())
    }

    fn inline(&self, volume: &Volume, _: &str) -> Result<PersistentVolume, Why> {
        let disk = volume.cinder.clone().unwrap_or_default();
        let name = format!("{DRIVER}-{}", disk.volume_id);
        Ok(inline(name, ONCE, csi(disk.volume_id, disk.fs_type, disk.read_only)))
    }

    fn to_csi(&self, volume: &mut PersistentVolume) -> Result<(), Why> {
        let disk = spec(volume).cinder.take().unwrap_or_default();
        topology::to_csi(volume, ZONE_KEY, false);
        spec(volume).csi = Some(csi(disk.volume_id, disk.fs_type, disk.read_only));
        Ok(())
    }

    fn back(&self, volume: &mut PersistentVolume, source: CSIPersistentVolumeSource) -> Result<(), Why> {
        let disk = CinderPersistentVolumeSource {
            volume_id: source.volume_handle,
            fs_type: source.fs_type,
            read_only: source.read_only,
            secret_ref: None,
        };
        // No zone says what region it is in.
        topology::from_csi(volume, ZONE_KEY, None)?;
        spec(volume).cinder = Some(disk);
        Ok(())
    }
}
