//! What is asked of a driver, in its words.
use std::collections::BTreeMap;

use csi::{
    AccessMode, AccessType, BlockVolume, CapacityRange, Facts, Mode, MountVolume, NodeExpandVolumeRequest,
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeRpcType, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, UsageUnit, VolumeCapability,
};

use super::{places::Places, record::Record};
use crate::{
    contract::{CsiSource, DriverError, Machine, Ownership, SecretRef, Stats},
    error::VolumeError,
};

/// What goes on, by upstream's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    MountDevice,
    SetUp,
    MapDevice,
    MapPod,
    Expand,
    Stats,
    Unpublish,
    Unstage,
}

impl Operation {
    /// Of staging and of publishing a volume.
    pub(super) fn of_set_up(source: &CsiSource) -> (Self, Self) {
        match (source.ephemeral, source.block) {
            (true, _) => (Self::SetUp, Self::SetUp),
            (_, true) => (Self::MapDevice, Self::MapPod),
            _ => (Self::MountDevice, Self::SetUp),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::MountDevice => "MountVolume.MountDevice",
            Self::SetUp => "MountVolume.SetUp",
            Self::MapDevice => "MapVolume.SetUpDevice",
            Self::MapPod => "MapVolume.MapPodDevice",
            Self::Expand => "NodeExpandVolume.NodeExpandVolume",
            Self::Stats => "NodeGetVolumeStats",
            Self::Unpublish => "UnmountVolume.TearDown",
            Self::Unstage => "UnmountDevice",
        }
    }

    /// Where upstream notices that there is no driver.
    fn without_driver(self) -> &'static str {
        match self {
            Self::MountDevice => "kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: ",
            Self::SetUp => "kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: ",
            Self::MapDevice => "kubernetes.io/csi: blockMapper.SetUpDevice failed to get CSI client: ",
            Self::MapPod => "kubernetes.io/csi: blockMapper.MapPodDevice failed to get CSI client: ",
            Self::Expand | Self::Stats => "",
            Self::Unpublish => "kubernetes.io/csi: Unmounter.TearDownAt failed to get CSI client: ",
            Self::Unstage => "kubernetes.io/csi: attacher.UnmountDevice failed to create newCsiDriverClient: ",
        }
    }
}

/// A driver that is there, asked about one volume.
pub(super) struct Call<'a> {
    pub facts: Facts,
    pub operation: Operation,
    driver: &'a str,
    handle: &'a str,
    name: &'a str,
    source: Option<&'a CsiSource>,
    on: &'a Machine<'a>,
}

impl<'a> Call<'a> {
    /// Fails if the driver is not there.
    pub(super) fn new(source: &'a CsiSource, operation: Operation, on: &'a Machine<'a>) -> Result<Self, VolumeError> {
        Self::to((&source.driver, &source.handle, &source.name), Some(source), operation, on)
    }

    /// The same driver at something else.
    pub(super) fn during(self, operation: Operation) -> Self {
        Self { operation, ..self }
    }

    /// The same with nothing but what is on disk.
    pub(super) fn of_record(
        record: &'a Record,
        operation: Operation,
        on: &'a Machine<'a>,
    ) -> Result<Self, VolumeError> {
        Self::to((&record.driver, &record.handle, &record.name), None, operation, on)
    }

    fn to(
        (driver, handle, name): (&'a str, &'a str, &'a str),
        source: Option<&'a CsiSource>,
        operation: Operation,
        on: &'a Machine<'a>,
    ) -> Result<Self, VolumeError> {
        match on.drivers.facts(driver) {
            Some(facts) => Ok(Self { facts, operation, driver, handle, name, source, on }),
            None => Err(absent(driver, name, operation)),
        }
    }

    fn failed(&self) -> impl FnOnce(DriverError) -> VolumeError {
        let (driver, name, operation) = (self.driver, self.name, self.operation);
        move |error| match error {
            DriverError::Absent => absent(driver, name, operation),
            DriverError::Failed(status) if status.code() == csi::Code::Unavailable => {
                let why = csi::rpc_error(&status);
                self::error(operation, name, format!("{why}; driver {driver} does not answer on this node"))
            }
            DriverError::Failed(status) => self::error(operation, name, csi::rpc_error(&status)),
        }
    }

    fn secrets(&self, which: &str, secret: Option<&SecretRef>) -> Result<BTreeMap<String, String>, VolumeError> {
        let Some(secret) = secret else { return Ok(BTreeMap::new()) };
        self.on.drivers.secret(secret).map_err(|why| {
            let SecretRef { namespace, name } = secret;
            error(self.operation, self.name, format!("fetching {which} {namespace}/{name} failed: {why}"))
        })
    }

    fn capability(&self, source: &CsiSource, group: Option<u32>) -> VolumeCapability {
        let group = group.filter(|_| self.facts.can_here(NodeRpcType::VolumeMountGroup));
        let access_type = match source.block {
            true => AccessType::Block(BlockVolume {}),
            false => AccessType::Mount(MountVolume {
                fs_type: source.fs_type.clone(),
                mount_flags: source.mount_options.clone(),
                volume_mount_group: group.map(|g| g.to_string()).unwrap_or_default(),
            }),
        };
        let several = self.facts.can_here(NodeRpcType::SingleNodeMultiWriter);
        let mode = mode(source.access_modes.first().map_or("ReadWriteOnce", String::as_str), several);
        VolumeCapability { access_type: Some(access_type), access_mode: Some(AccessMode { mode: mode.into() }) }
    }

    /// What only a volume whose objects were read can be asked.
    fn source(&self) -> Result<&'a CsiSource, VolumeError> {
        self.source.ok_or_else(|| error(self.operation, self.name, "its objects are gone".into()))
    }

    pub(super) fn stage(&self, places: &Places, owner: &Ownership) -> Result<(), VolumeError> {
        let source = self.source()?;
        let request = NodeStageVolumeRequest {
            volume_id: source.handle.clone(),
            publish_context: source.publish_context.clone(),
            staging_target_path: text(&places.stage),
            volume_capability: Some(self.capability(source, owner.fs_group)),
            secrets: self.secrets("NodeStageSecretRef", source.stage_secret.as_ref())?,
            volume_context: source.attributes.clone(),
        };
        self.on.drivers.stage(self.driver, request).map_err(self.failed())
    }

    pub(super) fn publish(&self, places: &Places, staged: bool, owner: &Ownership) -> Result<(), VolumeError> {
        let source = self.source()?;
        let mut volume_context = source.published_attributes();
        let mut secrets = self.secrets("NodePublishSecretRef", source.publish_secret.as_ref())?;
        if !source.tokens.is_empty() && !source.block {
            let tokens = self.on.drivers.tokens(&source.pod, &source.tokens).map_err(|why| {
                let what = "kubernetes.io/csi: mounter.SetUpAt failed to get service accoount token attributes";
                error(self.operation, self.name, format!("{what}: {why}"))
            })?;
            let into = if source.tokens_in_secrets { &mut secrets } else { &mut volume_context };
            into.insert("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), tokens);
        }
        let request = NodePublishVolumeRequest {
            volume_id: source.handle.clone(),
            publish_context: source.publish_context.clone(),
            // Upstream names it for devices even where nothing is staged.
            staging_target_path: if staged || source.block { text(&places.stage) } else { String::new() },
            target_path: text(&places.target),
            volume_capability: Some(self.capability(source, owner.fs_group)),
            readonly: source.read_only,
            secrets,
            volume_context,
        };
        self.on.drivers.publish(self.driver, request).map_err(self.failed())
    }

    pub(super) fn unpublish(&self, places: &Places) -> Result<(), VolumeError> {
        let request =
            NodeUnpublishVolumeRequest { volume_id: self.handle.to_owned(), target_path: text(&places.target) };
        unless_unknown(self.on.drivers.unpublish(self.driver, request)).map_err(self.failed())
    }

    pub(super) fn unstage(&self, places: &Places) -> Result<(), VolumeError> {
        let request =
            NodeUnstageVolumeRequest { volume_id: self.handle.to_owned(), staging_target_path: text(&places.stage) };
        unless_unknown(self.on.drivers.unstage(self.driver, request)).map_err(self.failed())
    }

    pub(super) fn expand(&self, places: &Places, bytes: u64) -> Result<(), VolumeError> {
        let source = self.source()?;
        let request = NodeExpandVolumeRequest {
            volume_id: source.handle.clone(),
            volume_path: text(&places.target),
            capacity_range: Some(CapacityRange {
                required_bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
                limit_bytes: 0,
            }),
            staging_target_path: self.staging(places),
            volume_capability: Some(self.capability(source, None)),
            secrets: self.secrets("NodeExpandSecretRef", source.expand_secret.as_ref())?,
        };
        self.on.drivers.expand(self.driver, request).map_err(self.failed())
    }

    fn staging(&self, places: &Places) -> String {
        let stages = self.facts.can_here(NodeRpcType::StageUnstageVolume);
        if stages && self.source.is_some_and(|s| !s.ephemeral) { text(&places.stage) } else { String::new() }
    }

    pub(super) fn stats(&self, places: &Places) -> Result<Stats, VolumeError> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: self.handle.to_owned(),
            volume_path: text(&places.target),
            staging_target_path: self.staging(places),
        };
        let said = self.on.drivers.stats(self.driver, request).map_err(self.failed())?;
        let mut stats = Stats::default();
        let number = |n: i64| u64::try_from(n).unwrap_or(0);
        for usage in &said.usage {
            let (total, used, available) = (number(usage.total), number(usage.used), number(usage.available));
            match usage.unit() {
                UsageUnit::Bytes => {
                    (stats.total_bytes, stats.used_bytes, stats.available_bytes) = (total, used, available);
                }
                UsageUnit::Inodes => (stats.inodes, stats.used_inodes, stats.free_inodes) = (total, used, available),
                UsageUnit::Unknown => {}
            }
        }
        if self.facts.can_here(NodeRpcType::VolumeCondition) {
            let condition = said.volume_condition.unwrap_or_default();
            stats.healthy = Some(if condition.abnormal { Err(condition.message) } else { Ok(()) });
        }
        Ok(stats)
    }
}

/// A volume that its driver does not know is nowhere: its pod does not wait for ever, as it does upstream.
fn unless_unknown(done: Result<(), DriverError>) -> Result<(), DriverError> {
    match done {
        Err(DriverError::Failed(status)) if status.code() == csi::Code::NotFound => Ok(()),
        done => done,
    }
}

/// CSI's word for an access mode. A driver that does not tell writers of one node apart is not told either.
fn mode(access_mode: &str, several_writers: bool) -> Mode {
    match (access_mode, several_writers) {
        ("ReadWriteOnce" | "ReadWriteOncePod", false) => Mode::SingleNodeWriter,
        ("ReadWriteOnce", true) => Mode::SingleNodeMultiWriter,
        ("ReadWriteOncePod", true) => Mode::SingleNodeSingleWriter,
        ("ReadOnlyMany", _) => Mode::MultiNodeReaderOnly,
        ("ReadWriteMany", _) => Mode::MultiNodeMultiWriter,
        _ => Mode::Unknown,
    }
}

fn text(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}

fn absent(driver: &str, volume: &str, operation: Operation) -> VolumeError {
    let why = format!("driver name {driver} not found in the list of registered CSI drivers");
    error(operation, volume, format!("{}{why}", operation.without_driver()))
}

fn error(operation: Operation, volume: &str, why: String) -> VolumeError {
    let why = match operation {
        // Nobody who hears of it knows which of the pod's volumes it is about.
        Operation::Unpublish | Operation::Unstage => {
            format!("{} failed for volume {volume:?} : {why}", operation.name())
        }
        _ => why,
    };
    VolumeError::Csi { operation: operation.name(), volume: volume.to_owned(), why }
}
