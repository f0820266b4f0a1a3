//! Volumes on this machine.
use std::path::PathBuf;

use csi::*;
use pool::{Content, Health, Id, Pool, PoolError, Publish, Stage, Usage};

use crate::{Driver, capability, required, signed, volume_id};

fn path(what: &str, text: &str) -> Result<PathBuf, Status> {
    let path = PathBuf::from(required(what, text)?);
    if !path.is_absolute() {
        return Err(Status::invalid_argument(format!("{what} {text:?} is not an absolute path")));
    }
    Ok(path)
}

fn existing(capability: Option<&VolumeCapability>) -> Result<&VolumeCapability, Status> {
    capability.ok_or_else(|| Status::invalid_argument("volume_capability is missing"))
}

/// A filesystem is not given as a device, nor the other way round.
fn fits(pool: &Pool, id: &Id, content: &Content) -> Result<(), PoolError> {
    let is_block = |content: &Content| *content == Content::Block;
    match pool.volume(id) {
        Some(volume) if is_block(&volume.content) != is_block(content) => {
            Err(PoolError::Invalid(format!("volume {id} is {:?} and cannot be had as {content:?}", volume.content)))
        }
        _ => Ok(()),
    }
}

fn usage(usage: Usage) -> Vec<VolumeUsage> {
    let figures = |unit: UsageUnit, total: u64, used: u64, available: u64| VolumeUsage {
        unit: unit.into(),
        total: signed(total),
        used: signed(used),
        available: signed(available),
    };
    match usage {
        Usage::Block(bytes) => vec![figures(UsageUnit::Bytes, bytes, 0, 0)],
        Usage::Filesystem(space) => {
            let used = space.inodes.saturating_sub(space.free_inodes);
            vec![
                figures(UsageUnit::Bytes, space.total_bytes, space.used_bytes, space.free_bytes),
                figures(UsageUnit::Inodes, space.inodes, used, space.free_inodes),
            ]
        }
    }
}

#[async_trait::async_trait]
impl Node for Driver {
    async fn node_get_capabilities(
        &self,
        _: NodeGetCapabilitiesRequest,
    ) -> Result<NodeGetCapabilitiesResponse, Status> {
        use NodeRpcType as Can;
        let all = [
            Can::StageUnstageVolume,
            Can::GetVolumeStats,
            Can::ExpandVolume,
            Can::VolumeCondition,
            Can::SingleNodeMultiWriter,
        ];
        let capability = |can: Can| NodeCapability::Rpc(NodeRpc { r#type: can.into() });
        let capabilities = all.into_iter().map(|can| NodeServiceCapability { r#type: Some(capability(can)) }).collect();
        Ok(NodeGetCapabilitiesResponse { capabilities })
    }

    async fn node_get_info(&self, _: NodeGetInfoRequest) -> Result<NodeGetInfoResponse, Status> {
        let accessible_topology = Some(self.topology());
        Ok(NodeGetInfoResponse { node_id: self.node.clone(), max_volumes_per_node: 0, accessible_topology })
    }

    async fn node_stage_volume(&self, request: NodeStageVolumeRequest) -> Result<NodeStageVolumeResponse, Status> {
        let id = volume_id(&request.volume_id)?;
        let at = path("staging_target_path", &request.staging_target_path)?;
        let capability = existing(request.volume_capability.as_ref())?;
        let content = capability::one(capability, capability::DEFAULT_FILESYSTEM)?;
        let options = match &capability.access_type {
            Some(AccessType::Mount(mount)) => mount.mount_flags.clone(),
            _ => Vec::new(),
        };
        self.with(move |pool| {
            fits(pool, &id, &content)?;
            pool.stage(&id, &Stage { at: &at, options: &options })
        })
        .await?;
        Ok(NodeStageVolumeResponse {})
    }

    async fn node_unstage_volume(
        &self,
        request: NodeUnstageVolumeRequest,
    ) -> Result<NodeUnstageVolumeResponse, Status> {
        let id = volume_id(&request.volume_id)?;
        let at = path("staging_target_path", &request.staging_target_path)?;
        self.with(move |pool| pool.unstage(&id, &at)).await?;
        Ok(NodeUnstageVolumeResponse {})
    }

    async fn node_publish_volume(
        &self,
        request: NodePublishVolumeRequest,
    ) -> Result<NodePublishVolumeResponse, Status> {
        let id = volume_id(&request.volume_id)?;
        let at = path("target_path", &request.target_path)?;
        let staged = path("staging_target_path", &request.staging_target_path)?;
        let capability = existing(request.volume_capability.as_ref())?;
        let content = capability::one(capability, capability::DEFAULT_FILESYSTEM)?;
        let alone = capability::alone(capability);
        let read_only = request.readonly || capability::reads_only(capability);
        self.with(move |pool| {
            fits(pool, &id, &content)?;
            pool.publish(&id, &Publish { staged: &staged, at: &at, read_only, alone })
        })
        .await?;
        Ok(NodePublishVolumeResponse {})
    }

    async fn node_unpublish_volume(
        &self,
        request: NodeUnpublishVolumeRequest,
    ) -> Result<NodeUnpublishVolumeResponse, Status> {
        let id = volume_id(&request.volume_id)?;
        let at = path("target_path", &request.target_path)?;
        self.with(move |pool| pool.unpublish(&id, &at)).await?;
        Ok(NodeUnpublishVolumeResponse {})
    }

    async fn node_get_volume_stats(
        &self,
        request: NodeGetVolumeStatsRequest,
    ) -> Result<NodeGetVolumeStatsResponse, Status> {
        let id = volume_id(&request.volume_id)?;
        // A path that is not even absolute is one where the volume is not.
        let at = PathBuf::from(required("volume_path", &request.volume_path)?);
        self.with(move |pool| {
            let usage = usage(pool.usage(&id, &at)?);
            let (abnormal, message) = match pool.health(&id)? {
                Health::Good => (false, "the volume is well".to_owned()),
                Health::Bad(message) => (true, message),
            };
            Ok(NodeGetVolumeStatsResponse { usage, volume_condition: Some(VolumeCondition { abnormal, message }) })
        })
        .await
    }

    async fn node_expand_volume(&self, request: NodeExpandVolumeRequest) -> Result<NodeExpandVolumeResponse, Status> {
        let id = volume_id(&request.volume_id)?;
        required("volume_path", &request.volume_path)?;
        let range = request.capacity_range.filter(|_| self.grows_on_node);
        let (required_bytes, limit_bytes) = crate::controller::range(range)?;
        let grow = move |pool: &pool::Pool| {
            if required_bytes > 0 {
                pool.expand(&id, required_bytes, limit_bytes)?;
            }
            pool.expand_filesystem(&id)
        };
        let bytes = self.with(grow).await?;
        Ok(NodeExpandVolumeResponse { capacity_bytes: signed(bytes) })
    }
}
