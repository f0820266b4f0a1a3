//! Messages of `pluginregistration.Registration` (Kubernetes' kubelet plugin registration, version 1).
use prost::Message;

/// What [`PluginInfo::r#type`] says for a CSI driver.
pub const CSI_PLUGIN: &str = "CSIPlugin";

#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct InfoRequest {}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct PluginInfo {
    /// Kind of plugin: [`CSI_PLUGIN`] here, `DevicePlugin` or `DRAPlugin` elsewhere.
    #[prost(string, tag = "1")]
    pub r#type: String,
    #[prost(string, tag = "2")]
    pub name: String,
    /// Path of the socket of the plugin itself; empty: the one that was asked.
    #[prost(string, tag = "3")]
    pub endpoint: String,
    #[prost(string, repeated, tag = "4")]
    pub supported_versions: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct RegistrationStatus {
    #[prost(bool, tag = "1")]
    pub plugin_registered: bool,
    #[prost(string, tag = "2")]
    pub error: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct RegistrationStatusResponse {}
