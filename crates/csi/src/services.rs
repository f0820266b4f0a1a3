//! The services: CSI's three, and the one by which a kubelet learns of a driver.
use crate::{messages::*, registration::*, service};

service! {
    /// Who the driver is.
    "csi.v1.Identity": Identity, IdentityServer, IdentityClient;
    /// Name and version.
    get_plugin_info = "GetPluginInfo" (GetPluginInfoRequest) -> GetPluginInfoResponse;
    /// Which services and constraints it has.
    get_plugin_capabilities = "GetPluginCapabilities" (GetPluginCapabilitiesRequest) -> GetPluginCapabilitiesResponse;
    /// Whether it is ready to serve.
    probe = "Probe" (ProbeRequest) -> ProbeResponse;
}

service! {
    /// Volumes and snapshots as a whole, wherever they are.
    "csi.v1.Controller": Controller, ControllerServer, ControllerClient;
    /// Makes the volume of that name, or finds the one it made before.
    create_volume = "CreateVolume" (CreateVolumeRequest) -> CreateVolumeResponse;
    /// Removes a volume; one that is not there counts as removed.
    delete_volume = "DeleteVolume" (DeleteVolumeRequest) -> DeleteVolumeResponse;
    /// Attaches a volume to a node.
    controller_publish_volume = "ControllerPublishVolume"
        (ControllerPublishVolumeRequest) -> ControllerPublishVolumeResponse;
    /// Detaches a volume from a node.
    controller_unpublish_volume = "ControllerUnpublishVolume"
        (ControllerUnpublishVolumeRequest) -> ControllerUnpublishVolumeResponse;
    /// Says whether a volume has all of these capabilities.
    validate_volume_capabilities = "ValidateVolumeCapabilities"
        (ValidateVolumeCapabilitiesRequest) -> ValidateVolumeCapabilitiesResponse;
    /// Lists volumes, in pages.
    list_volumes = "ListVolumes" (ListVolumesRequest) -> ListVolumesResponse;
    /// How much room is left for volumes of that kind and place.
    get_capacity = "GetCapacity" (GetCapacityRequest) -> GetCapacityResponse;
    /// Which of the optional calls are offered.
    controller_get_capabilities = "ControllerGetCapabilities"
        (ControllerGetCapabilitiesRequest) -> ControllerGetCapabilitiesResponse;
    /// Makes the snapshot of that name, or finds the one it made before.
    create_snapshot = "CreateSnapshot" (CreateSnapshotRequest) -> CreateSnapshotResponse;
    /// Removes a snapshot; one that is not there counts as removed.
    delete_snapshot = "DeleteSnapshot" (DeleteSnapshotRequest) -> DeleteSnapshotResponse;
    /// Lists snapshots, in pages.
    list_snapshots = "ListSnapshots" (ListSnapshotsRequest) -> ListSnapshotsResponse;
    /// Grows a volume.
    controller_expand_volume = "ControllerExpandVolume"
        (ControllerExpandVolumeRequest) -> ControllerExpandVolumeResponse;
    /// One volume and its health.
    controller_get_volume = "ControllerGetVolume" (ControllerGetVolumeRequest) -> ControllerGetVolumeResponse;
    /// Changes a volume's changeable parameters.
    controller_modify_volume = "ControllerModifyVolume"
        (ControllerModifyVolumeRequest) -> ControllerModifyVolumeResponse;
}

service! {
    /// Volumes on this machine.
    "csi.v1.Node": Node, NodeServer, NodeClient;
    /// Prepares a volume once for the machine.
    node_stage_volume = "NodeStageVolume" (NodeStageVolumeRequest) -> NodeStageVolumeResponse;
    /// Undoes staging.
    node_unstage_volume = "NodeUnstageVolume" (NodeUnstageVolumeRequest) -> NodeUnstageVolumeResponse;
    /// Brings a volume to the path of one pod.
    node_publish_volume = "NodePublishVolume" (NodePublishVolumeRequest) -> NodePublishVolumeResponse;
    /// Takes a volume from the path of one pod.
    node_unpublish_volume = "NodeUnpublishVolume" (NodeUnpublishVolumeRequest) -> NodeUnpublishVolumeResponse;
    /// How full a volume is, in bytes and inodes, and how it fares.
    node_get_volume_stats = "NodeGetVolumeStats" (NodeGetVolumeStatsRequest) -> NodeGetVolumeStatsResponse;
    /// Grows the filesystem to its device.
    node_expand_volume = "NodeExpandVolume" (NodeExpandVolumeRequest) -> NodeExpandVolumeResponse;
    /// Which of the optional calls are offered.
    node_get_capabilities = "NodeGetCapabilities" (NodeGetCapabilitiesRequest) -> NodeGetCapabilitiesResponse;
    /// The machine's name to the driver, its place, and how many volumes it takes.
    node_get_info = "NodeGetInfo" (NodeGetInfoRequest) -> NodeGetInfoResponse;
}

service! {
    /// What a driver offers on the socket by which a kubelet finds it.
    "pluginregistration.Registration": Registration, RegistrationServer, RegistrationClient;
    /// The driver's name, its socket, and the versions it speaks.
    get_info = "GetInfo" (InfoRequest) -> PluginInfo;
    /// Whether the kubelet took it.
    notify_registration_status = "NotifyRegistrationStatus" (RegistrationStatus) -> RegistrationStatusResponse;
}
