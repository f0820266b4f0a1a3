//! The contract between the node agent and volume plugins.
use crate::error::VolumeError;
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use api::downward::NodeSize;
use k8s_openapi::api::{
    certificates::v1beta1::ClusterTrustBundle,
    storage::v1::{CSIDriver, VolumeAttachment},
};

pub use crate::{
    csi_source::{CsiSource, FsGroupPolicy, PodOf},
    drivers::{DriverError, Drivers, SecretRef, TokenWish},
    fc_source::{FcDisk, FcSource},
    flex_source::FlexVolume,
    iscsi_source::IscsiSource,
    machine::{Cancel, Machine},
    plugins::{
        flocker::{FlockerVolume, Named},
        glusterfs::{GlusterVolume, endpoints_of},
        nfs::NfsSource,
    },
    settings::Settings,
};

/// What a pod volume is made of, resolved: every API object that it names has been read. One variant per mechanism.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Empty at first, gone with the pod.
    EmptyDir {
        medium: Medium,
        /// Exact for memory, and for a disk where the host can; else enforced by whoever watches its usage.
        limit_bytes: Option<u64>,
    },
    /// A path of the node, as it is.
    HostPath { path: PathBuf, kind: HostPathType },
    /// `local` persistent volume of `volumeMode: Block`: a block device of the node, as it is.
    LocalDevice { path: PathBuf, read_only: bool },
    /// `local` persistent volume: a directory of the node, or a block device with a filesystem.
    Local {
        path: PathBuf,
        read_only: bool,
        /// Of a device. `None`: what is on it; an empty one gets ext4.
        fs_type: Option<String>,
        /// Of a device, as after `mount -o`, one each.
        mount_options: Vec<String>,
    },
    /// The files of an image or artifact that is on the node.
    Image {
        /// `sha256:...`
        id: String,
        /// Directories for overlayfs, top-most first.
        layers: Vec<PathBuf>,
    },
    /// A LUN of an iSCSI target.
    Iscsi(Box<IscsiSource>),
    /// A disk of a Fibre Channel fabric.
    Fc(Box<FcSource>),
    /// A volume of a CSI driver.
    Csi(Box<CsiSource>),
    /// `flexVolume`: a volume of a program on the node.
    Flex(Box<FlexVolume>),
    /// `flocker`: a dataset that Flocker mounts on this node.
    Flocker(FlockerVolume),
    /// `glusterfs`: a volume that the client of GlusterFS mounts.
    Glusterfs(Box<GlusterVolume>),
    /// A directory of an NFS server.
    Nfs(Box<NfsSource>),
    /// A working tree of a git repository, cloned for its pod.
    GitRepo(Box<git::Request>),
    /// configMap, secret, downwardAPI, projected: a directory of small files, switched atomically.
    Files {
        files: BTreeMap<PathBuf, FileEntry>,
        in_memory: bool,
        /// Directories that must exist in it because containers mount other volumes there.
        mount_points: BTreeSet<PathBuf>,
        /// Sub-paths of it follow changes: what they show now stays until it is set up again without this.
        followed: bool,
    },
}

impl Source {
    /// The name that the volume's directory has, where that is not the pod's name for it.
    pub fn own_name(&self) -> Option<&str> {
        match self {
            Self::Csi(source) => Some(&source.name),
            Self::Flex(source) if source.persistent => Some(&source.name),
            _ => None,
        }
    }
}

/// Where an `emptyDir` keeps its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    Disk,
    Memory,
    /// Memory in pages of that size, which the node has set aside.
    HugePages {
        page_bytes: u64,
    },
}

/// `hostPath.type`; `Unset` is the empty string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPathType {
    Unset,
    DirectoryOrCreate,
    Directory,
    FileOrCreate,
    File,
    Socket,
    CharDevice,
    BlockDevice,
}

/// One file of a `Files` volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Its content.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner, where it is not root (service account tokens of non-root pods).
    pub uid: Option<u32>,
}

/// Ownership that the pod's security context asks for.
#[derive(Debug, Clone, Default)]
pub struct Ownership {
    pub fs_group: Option<u32>,
    /// `fsGroupChangePolicy: OnRootMismatch`.
    pub on_root_mismatch: bool,
    /// With it, a volume that was given to another group whole need only be shown as this one's, rights as they are.
    pub mapped: bool,
    /// Counts the files that were given to the group, while that goes on.
    pub given: Arc<AtomicU64>,
}

/// What the plugin made: the host path to bind into containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The pod volume's name.
    pub volume: String,
    /// What containers bind, unless by a sub-path.
    pub host_path: PathBuf,
    /// The volume can only be mounted read-only (`persistentVolumeClaim.readOnly`, ROX).
    pub read_only: bool,
    /// It is a block device for containers' `volumeDevices`.
    pub device: bool,
    /// A group of files that containers are to see as another.
    pub group_map: Option<GroupMap>,
}

/// Files of one group shown as another's, and the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupMap {
    /// The group on the medium.
    pub from: u32,
    /// The group that is seen.
    pub to: u32,
}

/// How full a volume is, and how it fares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// In bytes.
    pub total_bytes: u64,
    pub used_bytes: u64,
    pub available_bytes: u64,
    pub inodes: u64,
    pub used_inodes: u64,
    pub free_inodes: u64,
    /// How it fares, what is wrong in the driver's words; `None`: nobody looks.
    pub healthy: Option<Result<(), String>>,
}

/// Who serves a volume that is set up.
#[derive(Debug)]
pub enum Served {
    /// Nobody in particular: the kernel, a driver.
    ByNobody,
    /// A process of this node. This becomes readable when it ends; then the volume is to be set up again.
    By(OwnedFd),
    /// A process that has ended.
    ByTheDead,
}

/// What reclaiming leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reclaiming {
    /// The volume, empty, as its next user wants it.
    Recycle,
    /// Nothing.
    Delete,
}

/// How far growing a volume came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    /// The volume has the size.
    Done,
    /// It is to be set up first, and asked again.
    NotSetUp,
    /// Volumes of this kind do not grow on a node; nothing is to be said about their size.
    NotHere,
}

/// One kind of volume. Stateless: all state is on disk, in the mount table or in the arguments.
pub trait VolumePlugin: Sync + Send {
    /// Stable name used in directory names and metrics (`kubernetes.io~empty-dir`); never change it after release.
    fn name(&self) -> &'static str;
    /// Whether this plugin makes such sources into volumes; exactly one plugin does.
    fn accepts(&self, source: &Source) -> bool;
    /// Makes the volume ready in `dir` (which only this volume uses) and says which host path to mount.
    /// Idempotent: must finish whatever an earlier, failed call began. Called again when the source's content changed.
    fn set_up(&self, source: &Source, own: &Ownership, dir: &Path, on: &Machine<'_>) -> Result<Ready, VolumeError>;
    /// Undoes `set_up` with nothing but the directory: the API object may be gone. Idempotent.
    fn tear_down(&self, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError>;
    /// The pod of the volume in `dir` is being ended and has this time for it: its processes may wait for somebody who does
    /// not answer, and must not wait longer. Idempotent; the latest call counts. It must not wait for anybody.
    fn ending(&self, dir: &Path, grace: Duration, on: &Machine<'_>) -> Result<(), VolumeError> {
        let _ = (dir, grace, on);
        Ok(())
    }
    /// Whether undoing depends on somebody who may not answer for minutes.
    fn depends_on_others(&self) -> bool {
        false
    }
    /// Whether volumes of this kind may be served by a process of this node, which somebody may kill: what is mounted is then
    /// mounted anew by `set_up`, and is another filesystem to all who see it.
    fn is_served(&self) -> bool {
        false
    }
    /// Who serves the volume that is set up in `dir`.
    fn served(&self, dir: &Path, on: &Machine<'_>) -> Result<Served, VolumeError> {
        let _ = (dir, on);
        Ok(Served::ByNobody)
    }
    /// Whether volumes of this kind are mounted, so that a persistent volume's mount options mean something.
    fn takes_mount_options(&self) -> bool {
        false
    }
    /// Lets what is in a volume, set up in `dir` or not yet, have at least `bytes` of space, of which the medium has been
    /// given as much already. Pods may be using it. Idempotent: finishes what an earlier call began. Plugins whose
    /// volumes have no size of their own keep this answer.
    fn expand(&self, source: &Source, dir: &Path, bytes: u64, on: &Machine<'_>) -> Result<Growth, VolumeError> {
        let _ = (source, dir, bytes, on);
        Ok(Growth::NotHere)
    }
    /// How full a volume is that is set up in `dir`. `None`: nobody can say.
    fn stats(&self, source: &Source, dir: &Path, on: &Machine<'_>) -> Result<Option<Stats>, VolumeError> {
        let _ = (source, dir, on);
        Ok(None)
    }
    /// Reclaims what is behind a persistent volume that no pod uses any more. Idempotent: finishes what an earlier call
    /// began. Plugins that cannot do it for anything they accept keep this answer.
    fn reclaim(&self, source: &Source, how: Reclaiming, on: &Machine<'_>) -> Result<(), VolumeError> {
        let _ = (source, on);
        Err(VolumeError::Unsupported { kind: format!("{} with reclaim policy {how:?}", self.name()) })
    }
}

/// What the caller does next. The only thing a caller may branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Retry { after: Duration },
    WaitForObject,
    GiveUp,
}

/// An object or token that resolving a pod volume needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Need {
    ConfigMap(String),
    Secret(String),
    /// All bundles of trusted certificates.
    TrustBundles,
    /// A claim of the pod's namespace, and then the volume it is bound to.
    Claim(String),
    /// An Endpoints object.
    Endpoints {
        namespace: String,
        name: String,
    },
    /// The CSIDriver object of that name.
    Driver(String),
    /// A disk of a driver that the pod names itself: the CSIDriver object and, where the driver attaches, the VolumeAttachment.
    Disk {
        driver: String,
        handle: String,
    },
    /// A service account token of the pod: audience (`None`: the API server's) and seconds of validity.
    Token {
        audience: Option<String>,
        expiration_seconds: i64,
    },
}

/// What was found for the needs of a pod. An absent key was not looked up; `None` means it does not exist.
#[derive(Debug, Default, Clone)]
pub struct Inputs {
    pub config_maps: BTreeMap<String, Option<k8s_openapi::api::core::v1::ConfigMap>>,
    pub secrets: BTreeMap<String, Option<k8s_openapi::api::core::v1::Secret>>,
    /// By name, once they were looked up.
    pub trust_bundles: Option<Arc<BTreeMap<String, ClusterTrustBundle>>>,
    pub claims: BTreeMap<String, Option<k8s_openapi::api::core::v1::PersistentVolumeClaim>>,
    /// By volume name.
    pub volumes: BTreeMap<String, Option<k8s_openapi::api::core::v1::PersistentVolume>>,
    /// Endpoints objects by namespace and name.
    pub endpoints: BTreeMap<(String, String), Option<k8s_openapi::api::core::v1::Endpoints>>,
    /// CSIDriver objects by name.
    pub drivers: BTreeMap<String, Option<CSIDriver>>,
    /// VolumeAttachments by name.
    pub attachments: BTreeMap<String, Option<VolumeAttachment>>,
    /// The name of this node.
    pub node_name: String,
    /// Only `Need::Token` keys.
    pub tokens: BTreeMap<Need, String>,
    /// The default of `resourceFieldRef` limits, and the bound of volumes in memory.
    pub node: NodeSize,
}

/// A pod volume whose objects were all found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub source: Source,
    /// `persistentVolumeClaim.readOnly`, or a volume that is only read.
    pub read_only: bool,
    /// `spec.mountOptions` of the persistent volume.
    pub mount_options: Vec<String>,
}
