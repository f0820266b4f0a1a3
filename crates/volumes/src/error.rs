//! What can go wrong with a volume, said so that the reader knows what to do.
use std::{io, path::PathBuf, time::Duration};

use crate::contract::Next;

/// A failure around one pod volume. Branch on [`VolumeError::next`] only.
///
/// Where upstream has a message for the case, the message begins with it word for word: people and scripts search for it.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("mount {} failed; the kernel log on this node says why", target.display())]
    Mount {
        target: PathBuf,
        #[source]
        errno: io::Error,
    },
    #[error("unmount {} failed; a process still holds it open", target.display())]
    Unmount {
        target: PathBuf,
        #[source]
        errno: io::Error,
    },
    #[error("{action} {} failed", path.display())]
    Files {
        /// `create`, `write`, `read`, `remove`, `change the owner of`, ...
        action: &'static str,
        path: PathBuf,
        #[source]
        errno: io::Error,
    },
    /// An API object that the volume names does not exist. `kind` is lower case, as in upstream's messages.
    #[error("{kind} {name:?} not found")]
    NotFound { kind: &'static str, name: String },
    /// The caller did not look an object up that [`crate::needs`] names.
    #[error("{kind} {name:?} was not read yet")]
    NotRead { kind: &'static str, name: String },
    /// A bundle of trusted certificates that does not exist, by its name or by its signer and labels.
    #[error("{}", no_bundle(name.as_deref(), signer.as_deref()))]
    TrustBundle { name: Option<String>, signer: Option<String> },
    #[error("configmap references non-existent config key: {key}: configmap {name:?} has no such key")]
    ConfigKey { name: String, key: String },
    #[error("references non-existent secret key: {key}: secret {name:?} has no such key")]
    SecretKey { name: String, key: String },
    /// Of two files one would have to be a directory.
    #[error(
        "path {:?} cannot be a file: {:?} is one too, of the same volume; change the path of one of them", below.display(), file.display()
    )]
    Collision { file: PathBuf, below: PathBuf },
    /// A driver did not do what it was asked for, or is not there; all words are upstream's.
    #[error("{why}")]
    Csi {
        /// `MountVolume.MountDevice`, ...
        operation: &'static str,
        /// The volume's name in sentences.
        volume: String,
        why: String,
    },
    /// A program of a `flexVolume` did not do what it was asked for, or is not there.
    #[error("{why}")]
    Flex {
        /// `MountVolume.SetUp`, ...
        operation: &'static str,
        /// The volume's name in sentences.
        volume: String,
        why: String,
    },
    /// Flocker has not brought a dataset to this node.
    #[error("{why}")]
    Flocker {
        why: String,
        #[source]
        cause: Option<Box<flocker::Error>>,
    },
    /// A volume of GlusterFS that is not mounted; all words are upstream's where it has some.
    #[error("{why}")]
    Gluster {
        why: String,
        /// An object has to change first.
        waits: bool,
    },
    /// A volume that is not attached to this node.
    #[error("{why}")]
    Attach {
        /// Name of the persistent volume.
        volume: String,
        why: String,
        /// Attaching failed; else it may just take its time.
        failed: bool,
    },
    /// Containers use a volume as something that it is not.
    #[error("{message}")]
    Use { message: String },
    /// A driver that does not say that it has volumes of that life.
    #[error("{message}")]
    Lifecycle { message: String },
    /// A claim that cannot be used (yet); `why` is upstream's wording.
    #[error("error processing PVC {namespace}/{claim}: {why}")]
    Claim { namespace: String, claim: String, why: String },
    #[error("hostPath type check failed: {} is not {expected}", path.display())]
    HostPathType {
        path: PathBuf,
        /// `a directory`, `a file`, ...
        expected: &'static str,
    },
    #[error("local volume path {} is not usable: {why}; make it on this node or change the persistent volume", path.display())]
    LocalPath {
        path: PathBuf,
        why: &'static str,
        #[source]
        errno: Option<io::Error>,
    },
    /// A block device that cannot be a volume; `why` includes the way out.
    #[error("block device {} cannot be used: {why}", path.display())]
    Device {
        path: PathBuf,
        why: String,
        #[source]
        errno: Option<io::Error>,
    },
    /// A disk of somebody else that cannot be had; `why` names the field that it is about, and includes the way out.
    #[error("volume {volume:?}: {why}")]
    Disk {
        /// Name of the persistent volume, or the pod's name for its own.
        volume: String,
        why: String,
        #[source]
        cause: Option<io::Error>,
    },
    /// `why` includes the way out.
    #[error("{} cannot be grown: {why}", path.display())]
    Growth {
        path: PathBuf,
        why: String,
        #[source]
        errno: Option<io::Error>,
    },
    /// What is behind a released volume could not be emptied or removed; `why` includes the way out.
    #[error("{} cannot be reclaimed: {why}", path.display())]
    Reclaim {
        path: PathBuf,
        why: &'static str,
        #[source]
        errno: Option<io::Error>,
    },
    #[error(
        "Mount options are not supported for this volume type: remove mount option {options:?} from the persistent volume"
    )]
    MountOptions { options: String },
    /// A volume of a plugin that Kubernetes no longer has, of a vendor whose storage nobody serves under that name.
    #[error("failed to get Plugin from volumeSpec for volume {name:?} err=no volume plugin matched. {story}")]
    Ended {
        /// The pod volume's name, or the persistent volume's.
        name: String,
        /// What became of it and what replaces it.
        story: &'static str,
    },
    /// A directory of an NFS server that cannot be mounted now; `why` includes the way out.
    #[error("nfs {export} cannot be mounted: {why}")]
    Nfs {
        /// `server:path`
        export: String,
        why: String,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    #[error("volume source {kind} is not supported by this node")]
    Unsupported { kind: String },
    /// Something in the pod that can never work; the message says which field.
    #[error("{message}")]
    Invalid { message: String },
    /// A sub-path that no volume can have.
    #[error("{}", bad_sub_path(sub_path, *absolute))]
    SubPathText {
        /// As it is shown: an expression stays one, as its values may be secret.
        sub_path: String,
        /// It is not relative; else it leads upwards.
        absolute: bool,
    },
    /// The message names no path: that would tell a pod's author about the host's files.
    #[error("failed to {action} for volumeMount {volume:?} of container {container:?}: {}", about_sub_path(errno))]
    SubPath {
        /// `prepare subPath` or `create subPath directory`
        action: &'static str,
        volume: String,
        container: String,
        errno: io::Error,
    },
    /// A repository that could not be cloned; `why` begins with the field and has no word of the server.
    #[error("clone of {repository} failed: {why}")]
    GitRepo {
        /// Without a password.
        repository: String,
        why: String,
    },
    /// The pod is ending: nobody wants the volume any more.
    #[error("the pod is ending")]
    Cancelled,
    /// More than one source of a projected volume failed.
    #[error("[{}]", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Several { errors: Vec<VolumeError> },
}

fn no_bundle(name: Option<&str>, signer: Option<&str>) -> String {
    match name {
        Some(name) => {
            format!("while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io {name:?} not found")
        }
        None => {
            let signer = signer.unwrap_or_default();
            format!(
                "combination of signerName and labelSelector matched zero ClusterTrustBundles: signerName {signer:?}"
            )
        }
    }
}

fn bad_sub_path(sub_path: &str, absolute: bool) -> String {
    match absolute {
        true => format!("error SubPath `{sub_path}` must not be an absolute path"),
        false => format!("unable to provision SubPath `{sub_path}`: must not contain '..'"),
    }
}

/// What is wrong with a sub-path. All that these words tell is about the volume, which is the pod's.
fn about_sub_path(errno: &io::Error) -> String {
    match errno.kind() {
        io::ErrorKind::CrossesDevices => "its subPath leads out of the volume".into(),
        io::ErrorKind::NotFound => "its subPath does not exist in the volume, and is not made there".into(),
        io::ErrorKind::AlreadyExists => "its subPath is a link that leads nowhere".into(),
        _ => format!("its subPath cannot be opened: {}", base::chain(errno)),
    }
}

impl VolumeError {
    /// What the caller does next.
    pub fn next(&self) -> Next {
        let soon = Next::Retry { after: Duration::from_millis(500) };
        match self {
            Self::Mount { .. } | Self::Unmount { .. } | Self::Files { .. } | Self::Cancelled => soon,
            // Someone may make the file or fix the path on the node, which nothing announces.
            Self::HostPathType { .. } | Self::LocalPath { .. } | Self::SubPath { .. } | Self::Reclaim { .. } => soon,
            Self::Device { .. }
            | Self::Disk { .. }
            | Self::Growth { .. }
            | Self::Csi { .. }
            | Self::Flex { .. }
            | Self::Flocker { .. } => soon,
            Self::Gluster { waits: false, .. } | Self::GitRepo { .. } | Self::Nfs { .. } => soon,
            Self::Gluster { .. }
            | Self::NotFound { .. }
            | Self::NotRead { .. }
            | Self::TrustBundle { .. }
            | Self::ConfigKey { .. }
            | Self::SecretKey { .. }
            | Self::Collision { .. }
            | Self::Claim { .. }
            | Self::MountOptions { .. }
            | Self::Attach { .. }
            | Self::Lifecycle { .. }
            | Self::Use { .. } => Next::WaitForObject,
            Self::Unsupported { .. } | Self::Ended { .. } | Self::Invalid { .. } | Self::SubPathText { .. } => {
                Next::GiveUp
            }
            Self::Several { errors } => {
                // The most patient answer that still makes progress: an object to wait for, else a retry.
                let all: Vec<Next> = errors.iter().map(Self::next).collect();
                let hopeless = all.contains(&Next::GiveUp);
                let waits = all.contains(&Next::WaitForObject);
                if hopeless {
                    Next::GiveUp
                } else if waits {
                    Next::WaitForObject
                } else {
                    soon
                }
            }
        }
    }

    /// Event reason for `kubectl describe`, or the container's waiting reason for sub-paths, spelled as upstream spells it.
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            Self::MountOptions { .. } => Some("UnsupportedMountOption"),
            Self::SubPath { .. } | Self::SubPathText { .. } => Some("CreateContainerConfigError"),
            // Upstream has no event for unmounting.
            Self::Unmount { .. } | Self::Cancelled => None,
            Self::Growth { .. } => Some("VolumeResizeFailed"),
            Self::Attach { .. } => Some("FailedAttachVolume"),
            Self::Csi { operation, .. } if operation.starts_with("MapVolume") => Some("FailedMapVolume"),
            Self::Flex { operation, .. } if operation.starts_with("AttachVolume") => Some("FailedAttachVolume"),
            Self::Mount { .. }
            | Self::Flex { .. }
            | Self::Flocker { .. }
            | Self::Gluster { .. }
            | Self::Csi { .. }
            | Self::Nfs { .. }
            | Self::Lifecycle { .. }
            | Self::Use { .. }
            | Self::Files { .. }
            | Self::NotFound { .. }
            | Self::NotRead { .. }
            | Self::TrustBundle { .. }
            | Self::ConfigKey { .. }
            | Self::SecretKey { .. }
            | Self::Collision { .. }
            | Self::Claim { .. }
            | Self::HostPathType { .. }
            | Self::LocalPath { .. }
            | Self::Device { .. }
            | Self::Disk { .. }
            | Self::GitRepo { .. }
            | Self::Reclaim { .. }
            | Self::Unsupported { .. }
            | Self::Ended { .. }
            | Self::Invalid { .. }
            | Self::Several { .. } => Some("FailedMount"),
        }
    }
}
