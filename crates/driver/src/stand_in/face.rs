//! What each cloud's driver is to those who use it: names, places, disks' names, sizes, parameters.
//!
//! Sources: the documentation of the drivers and of the clouds' disks, as of 2026.
use csi::{Mode, Status};

use super::names::{self, uuid};

const GIB: u64 = 1 << 30;

/// A kind of disk that a class can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskType {
    pub name: &'static str,
    /// The smallest that there is.
    pub least_gib: u64,
}

const fn disk(name: &'static str, least_gib: u64) -> DiskType {
    DiskType { name, least_gib }
}

/// How a cloud's driver looks from outside.
pub struct Face {
    /// As on the command line: `gce-pd`.
    pub word: &'static str,
    /// As classes and volumes name it: `pd.csi.storage.gke.io`.
    pub driver: &'static str,
    /// The label by which volumes say where they are.
    pub zone_key: &'static str,
    /// Where this machine is if nobody says.
    pub default_zone: &'static str,
    /// The part of a zone's name that is its region; `None`: the name says nothing of it.
    pub region: fn(&str) -> Option<String>,
    /// Volumes that a node takes, as of a common machine of that cloud.
    pub most_volumes: u16,
    /// The first is what a class gets that asks for none.
    pub types: &'static [DiskType],
    /// The parameter that names the type, in lower case.
    pub type_parameter: &'static str,
    /// Other parameters that the driver knows, in lower case; `*` at the end stands for anything.
    pub parameters: &'static [&'static str],
    pub largest_gib: u64,
    /// Sizes are whole multiples of this, in bytes.
    pub step_bytes: u64,
    /// A disk may be read on several nodes at once.
    pub read_many: bool,
    /// What the driver calls the disk that is made for a name, in a zone or, with `true`, in a region.
    pub handle: fn(name: &str, zone: &str, regional: bool) -> String,
    /// What the driver calls the disk that people call so in a zone; `None`: nothing there is called that.
    pub named: fn(name: &str, zone: &str) -> Option<String>,
    /// How disks are called, for those who wrote something else.
    pub form: &'static str,
    /// Whether a disk's handle is meant by another one, which may say less.
    pub same: fn(handle: &str, asked: &str) -> bool,
    /// What the driver calls a node.
    pub node: fn(name: &str, zone: &str) -> String,
}

/// Every cloud that can be stood in for.
pub const FACES: [Face; 5] = [GCE, AWS, AZURE, CINDER, VSPHERE];

const GCE: Face = Face {
    word: "gce-pd",
    driver: "pd.csi.storage.gke.io",
    zone_key: "topology.gke.io/zone",
    default_zone: "europe-west1-b",
    region: |zone| zone.rsplit_once('-').map(|(region, _)| region.to_owned()),
    most_volumes: 127,
    types: &[
        disk("pd-standard", 10),
        disk("pd-balanced", 10),
        disk("pd-ssd", 10),
        disk("pd-extreme", 500),
        disk("hyperdisk-balanced", 4),
        disk("hyperdisk-throughput", 2048),
        disk("hyperdisk-extreme", 64),
    ],
    type_parameter: "type",
    parameters: &[
        "replication-type",
        "disk-encryption-kms-key",
        "labels",
        "resource-tags",
        "provisioned-iops-on-create",
        "provisioned-throughput-on-create",
        "enable-confidential-storage",
        "storage-pools",
    ],
    largest_gib: 64 << 10,
    step_bytes: GIB,
    read_many: true,
    handle: names::gce,
    named: names::gce_named,
    form: "a name like data-1, or projects/P/zones/Z/disks/NAME",
    same: names::gce_same,
    node: |name, zone| format!("projects/{}/zones/{zone}/instances/{name}", names::PROJECT),
};

const AWS: Face = Face {
    word: "aws-ebs",
    driver: "ebs.csi.aws.com",
    zone_key: "topology.ebs.csi.aws.com/zone",
    default_zone: "us-east-1a",
    region: |zone| Some(zone.trim_end_matches(|c: char| c.is_ascii_lowercase()).to_owned()),
    most_volumes: 39,
    types: &[
        disk("gp3", 1),
        disk("gp2", 1),
        disk("io1", 4),
        disk("io2", 4),
        disk("st1", 125),
        disk("sc1", 125),
        disk("standard", 1),
    ],
    type_parameter: "type",
    parameters: &[
        "iopspergb",
        "allowautoiopspergbincrease",
        "iops",
        "throughput",
        "encrypted",
        "kmskeyid",
        "blockexpress",
        "blocksize",
        "inodesize",
        "bytesperinode",
        "numberofinodes",
        "ext4bigalloc",
        "ext4clustersize",
        "tagspecification*",
    ],
    largest_gib: 64 << 10,
    step_bytes: GIB,
    read_many: false,
    handle: |name, _, _| format!("vol-0{}", names::digest(name, 16)),
    named: |name, _| (name.starts_with("vol-") && !name.contains('/')).then(|| name.to_owned()),
    form: "vol- and letters or digits, like vol-0123456789abcdef0",
    same: |handle, asked| handle == asked,
    node: |name, _| format!("i-0{}", names::digest(name, 16)),
};

const AZURE: Face = Face {
    word: "azure-disk",
    driver: "disk.csi.azure.com",
    zone_key: "topology.disk.csi.azure.com/zone",
    default_zone: "westeurope-1",
    region: |zone| zone.rsplit_once('-').map(|(region, _)| region.to_owned()),
    most_volumes: 16,
    types: &[
        disk("StandardSSD_LRS", 1),
        disk("Standard_LRS", 1),
        disk("Premium_LRS", 1),
        disk("StandardSSD_ZRS", 1),
        disk("Premium_ZRS", 1),
        disk("PremiumV2_LRS", 1),
        disk("UltraSSD_LRS", 4),
    ],
    type_parameter: "skuname",
    parameters: &[
        "storageaccounttype",
        "kind",
        "cachingmode",
        "fstype",
        "location",
        "resourcegroup",
        "subscriptionid",
        "diskiopsreadwrite",
        "diskmbpsreadwrite",
        "logicalsectorsize",
        "tags",
        "tagvaluedelimiter",
        "diskencryptionsetid",
        "diskencryptiontype",
        "writeacceleratorenabled",
        "networkaccesspolicy",
        "publicnetworkaccess",
        "diskaccessid",
        "enablebursting",
        "enableperformanceplus",
        "perfprofile",
        "maxshares",
    ],
    largest_gib: 32767,
    step_bytes: GIB,
    read_many: false,
    handle: |name, _, _| names::azure(name),
    named: names::azure_named,
    form: "a name like data-1, or /subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/disks/NAME",
    same: |handle, asked| handle.eq_ignore_ascii_case(asked),
    node: |name, _| name.to_owned(),
};

const CINDER: Face = Face {
    word: "cinder",
    driver: "cinder.csi.openstack.org",
    zone_key: "topology.cinder.csi.openstack.org/zone",
    default_zone: "nova",
    region: |_| None,
    most_volumes: 256,
    // Types are what a cloud's administrator makes of them.
    types: &[disk("*", 1)],
    type_parameter: "type",
    parameters: &["availability", "cinder.csi.openstack.org/*"],
    largest_gib: 64 << 10,
    step_bytes: GIB,
    read_many: false,
    handle: |name, _, _| uuid(name),
    named: |name, _| (!name.is_empty() && !name.contains('/')).then(|| name.to_owned()),
    form: "an id like 57ed4f6c-6a7d-4f06-8d0b-2a9bd0cd2a75",
    same: |handle, asked| handle == asked,
    node: |name, _| uuid(name),
};

const VSPHERE: Face = Face {
    word: "vsphere",
    driver: "csi.vsphere.vmware.com",
    zone_key: "topology.csi.vmware.com/zone",
    default_zone: "zone-a",
    region: |_| None,
    most_volumes: 59,
    types: &[disk("*", 0)],
    // Nothing there is told apart by a type.
    type_parameter: "",
    parameters: &["storagepolicyname", "datastoreurl", "csimigration", "*-migrationparam"],
    largest_gib: 62 << 10,
    step_bytes: 1 << 20,
    read_many: false,
    handle: |name, _, _| uuid(name),
    named: |name, _| (!name.is_empty()).then(|| name.to_owned()),
    form: "the path of a virtual disk, like [datastore1] volumes/data.vmdk",
    same: |handle, asked| handle == asked,
    node: |name, _| uuid(name),
};

impl Face {
    /// The face of a word of `--stand-in`.
    pub fn of(word: &str) -> Option<&'static Self> {
        const ALL: &[Face] = &FACES;
        ALL.iter().find(|f| f.word == word)
    }

    /// # Errors
    /// The cloud has no such disks.
    pub(super) fn allows(&self, mode: Mode, copies_something: bool) -> Result<(), Status> {
        use Mode::{
            MultiNodeReaderOnly, SingleNodeMultiWriter, SingleNodeReaderOnly, SingleNodeSingleWriter, SingleNodeWriter,
        };
        match mode {
            SingleNodeWriter | SingleNodeReaderOnly | SingleNodeSingleWriter | SingleNodeMultiWriter => Ok(()),
            MultiNodeReaderOnly if self.read_many && copies_something => Ok(()),
            MultiNodeReaderOnly if self.read_many => Err(Status::invalid_argument(
                "a new disk is empty, so ReadOnlyMany alone is no use: give the claim a dataSource, or name a disk that exists",
            )),
            _ => {
                let modes = if self.read_many {
                    "ReadWriteOnce, ReadWriteOncePod or ReadOnlyMany"
                } else {
                    "ReadWriteOnce or ReadWriteOncePod"
                };
                Err(Status::invalid_argument(format!(
                    "disks of {} are attached to one node: ask for {modes}",
                    self.driver
                )))
            }
        }
    }
}

#[test]
fn faces_are_told_apart() {
    for (i, face) in FACES.iter().enumerate() {
        assert!(
            FACES[..i].iter().all(|f| f.word != face.word && f.driver != face.driver && f.zone_key != face.zone_key)
        );
        assert!(Face::of(face.word).is_some_and(|f| f.driver == face.driver));
        let handle = (face.handle)("pvc-1", face.default_zone, false);
        assert!((face.same)(&handle, &handle));
        assert_ne!(handle, (face.handle)("pvc-2", face.default_zone, false));
        assert_ne!((face.node)("a", face.default_zone), (face.node)("b", face.default_zone));
    }
    assert!(Face::of("floppy").is_none());
    let regions = FACES.map(|f| (f.region)(f.default_zone));
    assert_eq!(regions, [Some("europe-west1".into()), Some("us-east-1".into()), Some("westeurope".into()), None, None]);
}
