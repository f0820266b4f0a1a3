//! What a driver says of itself when it is asked once.
use std::collections::BTreeSet;

use crate::{Driver, messages::*, services::*};

/// A driver's name and abilities. They hold as long as its process lives.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// As objects name it: `local.csi.holdfast`.
    pub name: String,
    pub version: String,
    pub services: BTreeSet<PluginServiceType>,
    pub expansion: BTreeSet<PluginExpansionType>,
    /// Empty where it has no controller service.
    pub controller: BTreeSet<ControllerRpcType>,
    /// Empty where it has no node service.
    pub node: BTreeSet<NodeRpcType>,
    /// The machine in the driver's words, its place, and how many volumes it takes. `None` without a node service.
    pub node_info: Option<NodeGetInfoResponse>,
}

impl Facts {
    /// Asks a driver everything that there is to know.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` where it says that it is not ready yet, or answers without a name; else what it answered.
    pub async fn ask(driver: &Driver) -> Result<Self, tonic::Status> {
        let identity = IdentityClient::new(driver);
        let info = identity.get_plugin_info(GetPluginInfoRequest {}).await?;
        if info.name.is_empty() {
            return Err(tonic::Status::failed_precondition("the driver has no name"));
        }
        if identity.probe(ProbeRequest {}).await?.ready == Some(false) {
            return Err(tonic::Status::failed_precondition(format!("driver {} is not ready yet", info.name)));
        }
        let mut facts = Self { name: info.name, version: info.vendor_version, ..Self::default() };
        let said = identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await?;
        for capability in said.capabilities.into_iter().filter_map(|c| c.r#type) {
            match capability {
                PluginCapabilityType::Service(service) => drop(facts.services.insert(service.r#type())),
                PluginCapabilityType::VolumeExpansion(when) => drop(facts.expansion.insert(when.r#type())),
            }
        }
        if facts.services.contains(&PluginServiceType::ControllerService) {
            let controller = ControllerClient::new(driver);
            let said = controller.controller_get_capabilities(ControllerGetCapabilitiesRequest {}).await?;
            let all = said.capabilities.into_iter().filter_map(|c| c.r#type);
            facts.controller = all.map(|ControllerCapability::Rpc(rpc)| rpc.r#type()).collect();
        }
        facts.ask_node(&NodeClient::new(driver)).await?;
        Ok(facts)
    }

    /// A driver may be a controller only.
    async fn ask_node(&mut self, node: &NodeClient) -> Result<(), tonic::Status> {
        let said = match node.node_get_capabilities(NodeGetCapabilitiesRequest {}).await {
            Err(status) if status.code() == tonic::Code::Unimplemented => return Ok(()),
            said => said?,
        };
        let all = said.capabilities.into_iter().filter_map(|c| c.r#type);
        self.node = all.map(|NodeCapability::Rpc(rpc)| rpc.r#type()).collect();
        self.node_info = match node.node_get_info(NodeGetInfoRequest {}).await {
            Err(status) if status.code() == tonic::Code::Unimplemented => None,
            info => Some(info?),
        };
        Ok(())
    }

    /// Whether it offers this call of a controller.
    pub fn can(&self, call: ControllerRpcType) -> bool {
        self.controller.contains(&call)
    }

    /// Whether it offers this call of a node.
    pub fn can_here(&self, call: NodeRpcType) -> bool {
        self.node.contains(&call)
    }

    /// Whether its volumes are reached from some places only.
    pub fn has_places(&self) -> bool {
        self.services.contains(&PluginServiceType::VolumeAccessibilityConstraints)
    }
}
