//! Who the driver is.
use csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse, Identity,
    PluginCapability, PluginCapabilityType, PluginExpansion, PluginExpansionType, PluginService, PluginServiceType,
    ProbeRequest, ProbeResponse, Status,
};

use crate::{Driver, NAME};

#[async_trait::async_trait]
impl Identity for Driver {
    async fn get_plugin_info(&self, _: GetPluginInfoRequest) -> Result<GetPluginInfoResponse, Status> {
        let vendor_version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(GetPluginInfoResponse { name: NAME.to_owned(), vendor_version, ..Default::default() })
    }

    async fn get_plugin_capabilities(
        &self,
        _: GetPluginCapabilitiesRequest,
    ) -> Result<GetPluginCapabilitiesResponse, Status> {
        let service =
            |service: PluginServiceType| PluginCapabilityType::Service(PluginService { r#type: service.into() });
        let online = PluginExpansion { r#type: PluginExpansionType::Online.into() };
        let all = [
            service(PluginServiceType::ControllerService),
            service(PluginServiceType::VolumeAccessibilityConstraints),
            PluginCapabilityType::VolumeExpansion(online),
        ];
        let capabilities = all.map(|r#type| PluginCapability { r#type: Some(r#type) }).into();
        Ok(GetPluginCapabilitiesResponse { capabilities })
    }

    async fn probe(&self, _: ProbeRequest) -> Result<ProbeResponse, Status> {
        Ok(ProbeResponse { ready: Some(true) })
    }
}
