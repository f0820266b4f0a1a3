//! Plugins that Kubernetes once had, whose storage no driver takes over by another name: who made them, when they ended,
//! what replaces them. Nothing here is ever connected to.
use k8s_openapi::api::core::v1::{PersistentVolumeSpec, Volume};

/// A plugin that ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    /// The provisioner of its classes: `kubernetes.io/quobyte`.
    pub plugin: &'static str,
    /// The field of volumes: `quobyte`.
    pub field: &'static str,
    /// The CSI driver of the same vendor; empty where there is none.
    pub driver: &'static str,
    /// What became of it, and what replaces it: sentences.
    pub story: &'static str,
}

const ENDED: [Ended; 4] = [
    Ended {
        plugin: "kubernetes.io/quobyte",
        field: "quobyte",
        driver: "csi.quobyte.com",
        story: "Kubernetes removed its quobyte plugin in v1.25 (August 2022), and its client was never part of Kubernetes. \
                Quobyte's CSI driver csi.quobyte.com replaces it: make a persistent volume of that driver for the same \
                Quobyte volume, and let a claim use it",
    },
    Ended {
        plugin: "kubernetes.io/scaleio",
        field: "scaleIO",
        driver: "csi-vxflexos.dellemc.com",
        story: "Dell EMC ScaleIO became VxFlex OS and then PowerFlex, and Kubernetes removed its scaleIO plugin in v1.22 \
                (August 2021). Dell's CSI driver for PowerFlex, csi-vxflexos.dellemc.com, replaces it: make a persistent \
                volume of that driver for the same volume, and let a claim use it",
    },
    Ended {
        plugin: "kubernetes.io/storageos",
        field: "storageos",
        driver: "",
        story: "StorageOS became Ondat, which Akamai bought and ended in 2023, and Kubernetes removed its storageos plugin \
                in v1.25 (August 2022). Nothing serves such volumes any more: restore the data from a backup into a volume \
                of any CSI driver, and let a claim use it",
    },
    Ended {
        plugin: "kubernetes.io/photon-pd",
        field: "photonPersistentDisk",
        driver: "csi.vsphere.vmware.com",
        story: "VMware ended Photon Platform in 2017, and Kubernetes removed its photonPersistentDisk plugin in v1.16 \
                (September 2019). Nothing serves such disks any more; for disks of vSphere, VMware's CSI driver \
                csi.vsphere.vmware.com replaces it: copy the data into a volume of that driver, and let a claim use it",
    },
];

fn find(field: &str) -> Option<&'static Ended> {
    ENDED.iter().find(|e| e.field == field)
}

/// Such a plugin by the provisioner of its classes.
pub fn ended_provisioner(provisioner: &str) -> Option<&'static Ended> {
    ENDED.iter().find(|e| e.plugin == provisioner)
}

/// The plugin of a volume that a pod names itself.
pub fn ended_inline(volume: &Volume) -> Option<&'static Ended> {
    let named = [
        (volume.quobyte.is_some(), "quobyte"),
        (volume.scale_io.is_some(), "scaleIO"),
        (volume.storageos.is_some(), "storageos"),
        (volume.photon_persistent_disk.is_some(), "photonPersistentDisk"),
    ];
    named.into_iter().find(|(is, _)| *is).and_then(|(_, field)| find(field))
}

/// The plugin of a persistent volume.
pub fn ended_volume(spec: &PersistentVolumeSpec) -> Option<&'static Ended> {
    let named = [
        (spec.quobyte.is_some(), "quobyte"),
        (spec.scale_io.is_some(), "scaleIO"),
        (spec.storageos.is_some(), "storageos"),
        (spec.photon_persistent_disk.is_some(), "photonPersistentDisk"),
    ];
    named.into_iter().find(|(is, _)| *is).and_then(|(_, field)| find(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_by_its_field_and_its_provisioner() {
        for ended in &ENDED {
            let source = match ended.field {
                "quobyte" => serde_json::json!({"registry": "r:1", "volume": "v"}),
                "scaleIO" => {
                    serde_json::json!({"gateway": "g", "system": "s", "secretRef": {"name": "n"}, "volumeName": "v"})
                }
                "storageos" => serde_json::json!({"volumeName": "v"}),
                _ => serde_json::json!({"pdID": "p"}),
            };
            let volume: Volume = serde_json::from_value(serde_json::json!({"name": "v", ended.field: source})).unwrap();
            let spec: PersistentVolumeSpec = serde_json::from_value(serde_json::json!({ended.field: source})).unwrap();
            assert_eq!(ended_inline(&volume), Some(ended));
            assert_eq!(ended_volume(&spec), Some(ended));
            assert_eq!(ended_provisioner(ended.plugin), Some(ended));
            assert!(ended.story.contains("Kubernetes removed"), "{}", ended.field);
        }
        assert_eq!(ended_inline(&Volume::default()), None);
    }
}
