//! What the CSI plugin needs from the drivers of this machine and from the API, as calls that block.
use std::collections::BTreeMap;

use csi::{
    Facts, NodeExpandVolumeRequest, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, Status,
};

use crate::csi_source::PodOf;

/// Why a driver did not do what it was asked for.
#[derive(Debug, Clone)]
pub enum DriverError {
    /// There is none of that name here, now.
    Absent,
    /// It refused, or did not answer in time.
    Failed(Status),
}

/// A Secret that a volume names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRef {
    pub namespace: String,
    pub name: String,
}

/// A service account token that a driver wants (`CSIDriver.spec.tokenRequests`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenWish {
    /// Empty: the API server's.
    pub audience: String,
    pub expiration_seconds: Option<i64>,
}

/// The drivers of this machine. Every call blocks until it is answered, and ends by itself when that takes too long.
pub trait Drivers: Send + Sync {
    /// What a driver says of itself; `None` where there is none of that name.
    fn facts(&self, driver: &str) -> Option<Facts>;
    /// Prepares a volume once for the machine.
    fn stage(&self, driver: &str, request: NodeStageVolumeRequest) -> Result<(), DriverError>;
    /// Undoes staging.
    fn unstage(&self, driver: &str, request: NodeUnstageVolumeRequest) -> Result<(), DriverError>;
    /// Brings a volume to the path of one pod.
    fn publish(&self, driver: &str, request: NodePublishVolumeRequest) -> Result<(), DriverError>;
    /// Takes a volume from the path of one pod.
    fn unpublish(&self, driver: &str, request: NodeUnpublishVolumeRequest) -> Result<(), DriverError>;
    /// Lets a filesystem have what its volume has.
    fn expand(&self, driver: &str, request: NodeExpandVolumeRequest) -> Result<(), DriverError>;
    /// How full a volume is, and how it fares.
    fn stats(
        &self,
        driver: &str,
        request: NodeGetVolumeStatsRequest,
    ) -> Result<NodeGetVolumeStatsResponse, DriverError>;
    /// What is in a Secret, as the API has it now.
    ///
    /// # Errors
    /// Why it cannot be had.
    fn secret(&self, secret: &SecretRef) -> Result<BTreeMap<String, String>, String>;
    /// What is in a Secret of the type `kind`, as bytes.
    ///
    /// # Errors
    /// Why it cannot be had; also where it is of another type.
    fn secret_of_type(&self, secret: &SecretRef, kind: &str) -> Result<BTreeMap<String, Vec<u8>>, String>;
    /// Tokens of a pod's service account, in the JSON that drivers read: by audience, `token` and `expirationTimestamp`.
    ///
    /// # Errors
    /// Why they cannot be had.
    fn tokens(&self, pod: &PodOf, wishes: &[TokenWish]) -> Result<String, String>;
}

/// A machine without drivers.
pub(crate) struct NoDrivers;

impl Drivers for NoDrivers {
    fn facts(&self, _: &str) -> Option<Facts> {
        None
    }
    fn stage(&self, _: &str, _: NodeStageVolumeRequest) -> Result<(), DriverError> {
        Err(DriverError::Absent)
    }
    fn unstage(&self, _: &str, _: NodeUnstageVolumeRequest) -> Result<(), DriverError> {
        Err(DriverError::Absent)
    }
    fn publish(&self, _: &str, _: NodePublishVolumeRequest) -> Result<(), DriverError> {
        Err(DriverError::Absent)
    }
    fn unpublish(&self, _: &str, _: NodeUnpublishVolumeRequest) -> Result<(), DriverError> {
        Err(DriverError::Absent)
    }
    fn expand(&self, _: &str, _: NodeExpandVolumeRequest) -> Result<(), DriverError> {
        Err(DriverError::Absent)
    }
    fn stats(&self, _: &str, _: NodeGetVolumeStatsRequest) -> Result<NodeGetVolumeStatsResponse, DriverError> {
        Err(DriverError::Absent)
    }
    fn secret(&self, _: &SecretRef) -> Result<BTreeMap<String, String>, String> {
        Err("there is no API here".into())
    }
    fn secret_of_type(&self, _: &SecretRef, _: &str) -> Result<BTreeMap<String, Vec<u8>>, String> {
        Err("there is no API here".into())
    }
    fn tokens(&self, _: &PodOf, _: &[TokenWish]) -> Result<String, String> {
        Err("there is no API here".into())
    }
}
