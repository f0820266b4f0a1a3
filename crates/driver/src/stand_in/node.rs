//! Disks on this machine.
use csi::*;
use pool::Content;

use super::{Disk, StandIn};
use crate::{capability, required};

impl StandIn {
    fn id(&self, handle: &str) -> Result<String, Status> {
        Ok(self.existing(handle)?.volume.id.to_string())
    }

    /// A disk that was made by hand is nothing yet; it becomes what it is first used as.
    async fn becomes(&self, disk: &Disk, wanted: Content) -> Result<(), Status> {
        let formatted = disk.volume.filesystem_bytes != 0;
        let same_kind = (wanted == Content::Block) == (disk.volume.content == Content::Block);
        if wanted == disk.volume.content || (same_kind && formatted) {
            return Ok(());
        }
        let id = disk.volume.id.clone();
        self.inner.with(move |pool| pool.use_as(&id, wanted)).await
    }
}

fn whole(context: &std::collections::BTreeMap<String, String>) -> Result<(), Status> {
    match context.get("partition").map(String::as_str) {
        None | Some("" | "0") => Ok(()),
        Some(number) => Err(Status::invalid_argument(format!(
            "partition {number} of the disk is wanted, and stand-ins' disks have no partitions; leave partition out"
        ))),
    }
}

#[async_trait::async_trait]
impl Node for StandIn {
    async fn node_get_capabilities(
        &self,
        request: NodeGetCapabilitiesRequest,
    ) -> Result<NodeGetCapabilitiesResponse, Status> {
        self.inner.node_get_capabilities(request).await
    }

    async fn node_get_info(&self, _: NodeGetInfoRequest) -> Result<NodeGetInfoResponse, Status> {
        Ok(NodeGetInfoResponse {
            node_id: (self.face.node)(&self.node, &self.zone),
            max_volumes_per_node: self.face.most_volumes.into(),
            accessible_topology: Some(self.place(&self.zone)),
        })
    }

    async fn node_stage_volume(&self, request: NodeStageVolumeRequest) -> Result<NodeStageVolumeResponse, Status> {
        required("volume_id", &request.volume_id)?;
        required("staging_target_path", &request.staging_target_path)?;
        let capability = request
            .volume_capability
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("volume_capability is missing"))?;
        whole(&request.volume_context)?;
        let disk = self.here(&request.volume_id)?;
        let own = match &disk.volume.content {
            Content::Filesystem(kind) => kind,
            Content::Block => capability::DEFAULT_FILESYSTEM,
        };
        let wanted = capability::one(capability, own)?;
        self.becomes(&disk, wanted).await?;
        let volume_id = disk.volume.id.to_string();
        self.inner.node_stage_volume(NodeStageVolumeRequest { volume_id, ..request }).await
    }

    async fn node_unstage_volume(
        &self,
        request: NodeUnstageVolumeRequest,
    ) -> Result<NodeUnstageVolumeResponse, Status> {
        required("volume_id", &request.volume_id)?;
        required("staging_target_path", &request.staging_target_path)?;
        // What is not there is staged nowhere, though something may be mounted at that path.
        let volume_id = self.disk(&request.volume_id).map_or_else(|| "gone".to_owned(), |d| d.volume.id.to_string());
        self.inner.node_unstage_volume(NodeUnstageVolumeRequest { volume_id, ..request }).await
    }

    async fn node_publish_volume(
        &self,
        mut request: NodePublishVolumeRequest,
    ) -> Result<NodePublishVolumeResponse, Status> {
        required("volume_id", &request.volume_id)?;
        let mode = request.volume_capability.as_ref().and_then(|c| c.access_mode.as_ref()).map(AccessMode::mode);
        request.readonly |= matches!(mode, Some(Mode::MultiNodeReaderOnly | Mode::SingleNodeReaderOnly));
        request.volume_id = self.id(&request.volume_id)?;
        self.inner.node_publish_volume(request).await
    }

    async fn node_unpublish_volume(
        &self,
        mut request: NodeUnpublishVolumeRequest,
    ) -> Result<NodeUnpublishVolumeResponse, Status> {
        required("volume_id", &request.volume_id)?;
        required("target_path", &request.target_path)?;
        request.volume_id = self.id(&request.volume_id)?;
        self.inner.node_unpublish_volume(request).await
    }

    async fn node_get_volume_stats(
        &self,
        mut request: NodeGetVolumeStatsRequest,
    ) -> Result<NodeGetVolumeStatsResponse, Status> {
        request.volume_id = self.id(&request.volume_id)?;
        self.inner.node_get_volume_stats(request).await
    }

    async fn node_expand_volume(
        &self,
        mut request: NodeExpandVolumeRequest,
    ) -> Result<NodeExpandVolumeResponse, Status> {
        request.volume_id = self.id(&request.volume_id)?;
        self.inner.node_expand_volume(request).await
    }
}
