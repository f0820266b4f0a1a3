//! A CSI driver of volumes that belong to one pod.
use std::{fs, path::Path, sync::Arc};

use csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse, Identity,
    IdentityServer, Listener, Node, NodeCapability, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse,
    NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeRpc, NodeRpcType, NodeServer, NodeServiceCapability,
    NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, ProbeRequest, ProbeResponse, Status, UsageUnit,
    VolumeUsage,
};

use crate::{
    common::{Instance, mounted_below},
    place::run,
};

/// A driver of volumes that belong to one pod: memory.
pub struct Memory;

pub const MEMORY: &str = "memory.example.com";

#[async_trait::async_trait]
impl Identity for Memory {
    async fn get_plugin_info(&self, _: GetPluginInfoRequest) -> Result<GetPluginInfoResponse, Status> {
        Ok(GetPluginInfoResponse { name: MEMORY.into(), vendor_version: "1".into(), ..Default::default() })
    }
    async fn get_plugin_capabilities(
        &self,
        _: GetPluginCapabilitiesRequest,
    ) -> Result<GetPluginCapabilitiesResponse, Status> {
        Ok(GetPluginCapabilitiesResponse::default())
    }
    async fn probe(&self, _: ProbeRequest) -> Result<ProbeResponse, Status> {
        Ok(ProbeResponse { ready: Some(true) })
    }
}

#[async_trait::async_trait]
impl Node for Memory {
    async fn node_get_capabilities(
        &self,
        _: NodeGetCapabilitiesRequest,
    ) -> Result<NodeGetCapabilitiesResponse, Status> {
        let stats = NodeCapability::Rpc(NodeRpc { r#type: NodeRpcType::GetVolumeStats.into() });
        Ok(NodeGetCapabilitiesResponse { capabilities: vec![NodeServiceCapability { r#type: Some(stats) }] })
    }
    async fn node_get_info(&self, _: NodeGetInfoRequest) -> Result<NodeGetInfoResponse, Status> {
        Ok(NodeGetInfoResponse { node_id: "here".into(), ..Default::default() })
    }
    async fn node_publish_volume(
        &self,
        request: NodePublishVolumeRequest,
    ) -> Result<NodePublishVolumeResponse, Status> {
        let path = Path::new(&request.target_path);
        fs::create_dir_all(path).expect("make the target");
        if mounted_below(path).is_empty() {
            run(&["mount", "-t", "tmpfs", "-o", "size=4m", "memory", &request.target_path]);
        }
        Ok(NodePublishVolumeResponse {})
    }
    async fn node_unpublish_volume(
        &self,
        request: NodeUnpublishVolumeRequest,
    ) -> Result<NodeUnpublishVolumeResponse, Status> {
        let path = Path::new(&request.target_path);
        if path.exists() {
            run(&["umount", "-R", &request.target_path]);
            fs::remove_dir(path).expect("remove the target");
        }
        Ok(NodeUnpublishVolumeResponse {})
    }
    async fn node_get_volume_stats(&self, _: NodeGetVolumeStatsRequest) -> Result<NodeGetVolumeStatsResponse, Status> {
        let bytes = VolumeUsage { total: 4 << 20, used: 77, available: (4 << 20) - 77, unit: UsageUnit::Bytes.into() };
        Ok(NodeGetVolumeStatsResponse { usage: vec![bytes], volume_condition: None })
    }
}

impl Memory {
    pub fn serve(runtime: &tokio::runtime::Runtime, instance: &Instance) {
        let dir = Path::new(&instance.data_dir()).join("kubelet/plugins/memory");
        fs::create_dir_all(&dir).expect("made");
        let _inside = runtime.enter();
        let listener = Listener::bind(&dir.join("csi.sock")).expect("a socket");
        let mut routes = tonic::service::RoutesBuilder::default();
        routes.add_service(IdentityServer(Arc::new(Memory)));
        routes.add_service(NodeServer(Arc::new(Memory)));
        runtime.spawn(listener.serve(routes, std::future::pending()));
    }
}
