//! From an `fc` source, of a pod or of a persistent volume, to the disk that it means. Pure.
use k8s_openapi::api::core::v1::{FCVolumeSource, PersistentVolumeSpec};
use serde::{Deserialize, Serialize};

use crate::{contract::Source, error::VolumeError};

/// A disk of a Fibre Channel fabric, and how a pod uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FcSource {
    /// Name of the persistent volume, or the pod's name for its own.
    pub name: String,
    pub disk: FcDisk,
    /// `None`: what is on it; an empty one gets ext4.
    pub fs_type: Option<String>,
    pub read_only: bool,
    /// It is for `volumeDevices`.
    pub block: bool,
    pub mount_options: Vec<String>,
}

/// How a disk is named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FcDisk {
    /// A LUN of a target that has these ports.
    Lun { ports: Vec<String>, lun: u32 },
    /// By the world wide identifier of the disk; one of these.
    Ids(Vec<String>),
}

/// A volume that a pod names itself.
pub(crate) fn inline(name: &str, s: &FCVolumeSource) -> Result<Source, VolumeError> {
    of(name, s).map(|source| Source::Fc(Box::new(source)))
}

/// A persistent volume.
pub(crate) fn persistent(
    name: &str,
    spec: &PersistentVolumeSpec,
    s: &FCVolumeSource,
    read_only: bool,
) -> Result<Source, VolumeError> {
    let source = of(name, s)?;
    Ok(Source::Fc(Box::new(FcSource {
        read_only: source.read_only || read_only,
        block: spec.volume_mode.as_deref() == Some("Block"),
        mount_options: spec.mount_options.clone().unwrap_or_default(),
        ..source
    })))
}

fn of(name: &str, s: &FCVolumeSource) -> Result<FcSource, VolumeError> {
    let invalid = |why: String| VolumeError::Disk { volume: name.to_owned(), why, cause: None };
    let ports = s.target_wwns.clone().unwrap_or_default();
    let ids = s.wwids.clone().unwrap_or_default();
    let disk = match (ports.is_empty(), ids.is_empty(), s.lun) {
        (false, true, Some(lun)) => {
            let lun = u32::try_from(lun)
                .map_err(|_| invalid(format!("fc.lun {lun} cannot be used: LUNs are numbers from 0 on")))?;
            if let Some(bad) = ports.iter().find(|p| !is_hexadecimal(p)) {
                return Err(invalid(format!(
                    "fc.targetWWNs {bad:?} cannot be used: a port's name is 16 hexadecimal digits, as 50060e801049cfd1"
                )));
            }
            let ports = ports.iter().map(|p| p.trim_start_matches("0x").to_lowercase()).collect();
            FcDisk::Lun { ports, lun }
        }
        (true, false, _) => {
            // Blanks become underlines in names of devices.
            let ids: Vec<String> = ids.iter().map(|id| id.replace(' ', "_")).collect();
            if let Some(bad) = ids.iter().find(|id| id.is_empty() || id.contains('/') || id.contains('\0')) {
                return Err(invalid(format!("fc.wwids {bad:?} cannot be used: it is no disk's identifier")));
            }
            FcDisk::Ids(ids)
        }
        _ => {
            let why = "fc names no disk: it needs targetWWNs and lun, or wwids, and not both";
            return Err(invalid(why.to_owned()));
        }
    };
    Ok(FcSource {
        name: name.to_owned(),
        disk,
        fs_type: s.fs_type.clone().filter(|t| !t.is_empty()),
        read_only: s.read_only == Some(true),
        block: false,
        mount_options: Vec::new(),
    })
}

fn is_hexadecimal(port: &str) -> bool {
    let digits = port.strip_prefix("0x").unwrap_or(port);
    !digits.is_empty() && digits.len() <= 32 && digits.bytes().all(|b| b.is_ascii_hexdigit())
}
