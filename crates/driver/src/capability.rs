//! What volumes of this driver can be to a pod.
use csi::{
    AccessType, ControllerCapability, ControllerGetCapabilitiesResponse, ControllerRpc, ControllerRpcType,
    ControllerServiceCapability, Mode, Status, VolumeCapability,
};
use pool::Content;

/// What a filesystem is made as where nobody says.
pub const DEFAULT_FILESYSTEM: &str = "ext4";
/// What is made here.
const FILESYSTEMS: [&str; 5] = ["ext4", "xfs", "btrfs", "ext3", "ext2"];

/// What a driver says that it offers.
pub fn offered(calls: impl IntoIterator<Item = ControllerRpcType>) -> ControllerGetCapabilitiesResponse {
    let capability = |call: ControllerRpcType| ControllerServiceCapability {
        r#type: Some(ControllerCapability::Rpc(ControllerRpc { r#type: call.into() })),
    };
    ControllerGetCapabilitiesResponse { capabilities: calls.into_iter().map(capability).collect() }
}

/// What a volume with all of these capabilities is; with this filesystem, where they name none.
pub fn content(capabilities: &[VolumeCapability], default: &str) -> Result<Content, Status> {
    let mut all = capabilities.iter().map(|capability| one(capability, default));
    let first = all.next().ok_or_else(|| Status::invalid_argument("volume capabilities are missing"))??;
    for other in all {
        if other? != first {
            return Err(Status::invalid_argument("one volume cannot be all of these: a filesystem, or a block device"));
        }
    }
    Ok(first)
}

/// What a volume with this capability is; with this filesystem, where it names none.
pub fn one(capability: &VolumeCapability, default: &str) -> Result<Content, Status> {
    let mode = capability.access_mode.as_ref().map_or(0, |m| m.mode);
    match Mode::try_from(mode) {
        Ok(Mode::Unknown) | Err(_) => return Err(Status::invalid_argument("the access mode is missing or unknown")),
        // Several nodes: those that the volume's topology allows, which is one.
        Ok(_) => {}
    }
    match &capability.access_type {
        None => Err(Status::invalid_argument("a capability says neither block nor mount")),
        Some(AccessType::Block(_)) => Ok(Content::Block),
        Some(AccessType::Mount(mount)) => {
            let kind = if mount.fs_type.is_empty() { default } else { &mount.fs_type };
            if !FILESYSTEMS.contains(&kind) {
                let why = format!("filesystem {kind:?} is none of {}", FILESYSTEMS.join(", "));
                return Err(Status::invalid_argument(why));
            }
            Ok(Content::Filesystem(kind.to_owned()))
        }
    }
}

/// Kubernetes' word for the access mode of a capability.
pub fn mode_word(capability: &VolumeCapability) -> Option<&'static str> {
    Some(match capability.access_mode.as_ref()?.mode() {
        Mode::Unknown => return None,
        Mode::SingleNodeSingleWriter => "ReadWriteOncePod",
        Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly => "ReadOnlyMany",
        Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => "ReadWriteMany",
        Mode::SingleNodeWriter | Mode::SingleNodeMultiWriter => "ReadWriteOnce",
    })
}

/// Whether only one publication is allowed at a time.
pub fn alone(capability: &VolumeCapability) -> bool {
    capability.access_mode.as_ref().is_some_and(|m| m.mode() == Mode::SingleNodeSingleWriter)
}

/// Whether a publication may only read, whatever else is said.
pub fn reads_only(capability: &VolumeCapability) -> bool {
    let modes = [Mode::SingleNodeReaderOnly, Mode::MultiNodeReaderOnly];
    capability.access_mode.as_ref().is_some_and(|m| modes.contains(&m.mode()))
}
