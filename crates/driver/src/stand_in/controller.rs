//! Who the stand-in is, and its disks as a whole.
use std::collections::BTreeMap;

use csi::*;

use super::{Disk, LABEL, StandIn, order::Order, record};
use crate::{capability, required};

#[async_trait::async_trait]
impl Identity for StandIn {
    async fn get_plugin_info(&self, request: GetPluginInfoRequest) -> Result<GetPluginInfoResponse, Status> {
        let manifest = BTreeMap::from([(LABEL.to_owned(), self.face.word.to_owned())]);
        let info = self.inner.get_plugin_info(request).await?;
        Ok(GetPluginInfoResponse { name: self.face.driver.to_owned(), manifest, ..info })
    }

    async fn get_plugin_capabilities(
        &self,
        request: GetPluginCapabilitiesRequest,
    ) -> Result<GetPluginCapabilitiesResponse, Status> {
        self.inner.get_plugin_capabilities(request).await
    }

    async fn probe(&self, request: ProbeRequest) -> Result<ProbeResponse, Status> {
        self.inner.probe(request).await
    }
}

impl StandIn {
    /// A volume of the pool, as the cloud's driver would say it.
    fn said(&self, mut volume: Volume, disk: &Disk) -> Volume {
        volume.volume_id.clone_from(&disk.handle);
        volume.accessible_topology = disk.zones.iter().map(|zone| self.place(zone)).collect();
        volume.volume_context = BTreeMap::from([(LABEL.to_owned(), self.face.word.to_owned())]);
        if let Some(ContentSource::Volume(source)) = volume.content_source.as_mut().and_then(|s| s.r#type.as_mut()) {
            source.volume_id = self.handle_of(&source.volume_id);
        }
        volume
    }

    /// The disk whose id in the pool this is. Of one that is gone nothing better than its id is known.
    fn handle_of(&self, id: &str) -> String {
        let volume = pool::Id::parse(id).and_then(|id| self.inner.pool.volume(&id));
        volume.and_then(Disk::of).map_or_else(|| id.to_owned(), |disk| disk.handle)
    }

    fn snapshot(&self, mut snapshot: Snapshot) -> Snapshot {
        snapshot.source_volume_id = self.handle_of(&snapshot.source_volume_id);
        snapshot
    }

    /// What a disk begins as a copy of, by its id in the pool.
    fn origin(&self, source: Option<VolumeContentSource>) -> Result<Option<VolumeContentSource>, Status> {
        let Some(VolumeContentSource { r#type: Some(ContentSource::Volume(volume)) }) = &source else {
            return Ok(source);
        };
        let volume_id = self.existing(&volume.volume_id)?.volume.id.to_string();
        Ok(Some(VolumeContentSource { r#type: Some(ContentSource::Volume(VolumeSource { volume_id })) }))
    }

    fn check_modes(&self, all: &[VolumeCapability], copies_something: bool) -> Result<(), Status> {
        let modes = all.iter().filter_map(|c| c.access_mode.as_ref());
        modes
            .map(AccessMode::mode)
            .filter(|m| *m != Mode::Unknown)
            .try_for_each(|m| self.face.allows(m, copies_something))
    }
}

#[async_trait::async_trait]
impl Controller for StandIn {
    async fn controller_get_capabilities(
        &self,
        _: ControllerGetCapabilitiesRequest,
    ) -> Result<ControllerGetCapabilitiesResponse, Status> {
        use ControllerRpcType as Can;
        let all = [
            Can::CreateDeleteVolume,
            Can::PublishUnpublishVolume,
            Can::ListVolumes,
            Can::CreateDeleteSnapshot,
            Can::ListSnapshots,
            Can::CloneVolume,
            Can::ExpandVolume,
            Can::VolumeCondition,
            Can::GetVolume,
            Can::SingleNodeMultiWriter,
        ];
        Ok(capability::offered(all))
    }

    async fn create_volume(&self, request: CreateVolumeRequest) -> Result<CreateVolumeResponse, Status> {
        let name = required("name", &request.name)?;
        let order = Order::parse(self.face, &request.parameters)?;
        self.check_modes(&request.volume_capabilities, request.volume_content_source.is_some())?;
        let zones = order.zones(self.face, &self.zone, request.accessibility_requirements.as_ref())?;
        let handle = if order.by_name {
            let wrong = || {
                Status::invalid_argument(format!(
                    "{name:?} is no disk of {}: write {}",
                    self.face.driver, self.face.form
                ))
            };
            (self.face.named)(name, &zones[0]).ok_or_else(wrong)?
        } else if order.by_path {
            format!("[holdfast] volumes/{name}.vmdk")
        } else {
            (self.face.handle)(name, &zones[0], order.regional)
        };
        let asks_size = request.capacity_range.is_some_and(|range| range.required_bytes != 0);
        // A copy is as large as what it is of, unless it is to be larger.
        let capacity_range = match request.volume_content_source.is_some() && !asks_size {
            true => request.capacity_range,
            false => Some(order.size(self.face, request.capacity_range)?),
        };
        let asked = request.volume_content_source.clone();
        // What a provisioner says of the claim is noted.
        let mut parameters = request.parameters.clone();
        parameters.retain(|key, _| key.starts_with("csi.storage.k8s.io/pvc/"));
        parameters.insert("overcommit".to_owned(), "true".to_owned());
        let inner = CreateVolumeRequest {
            name: record(&zones, &handle),
            capacity_range,
            parameters,
            volume_content_source: self.origin(request.volume_content_source)?,
            accessibility_requirements: None,
            ..request
        };
        let mut made = self.inner.create_volume(inner).await?.volume.unwrap_or_default();
        let disk = self.existing(&handle)?;
        made = Volume { content_source: asked, ..self.said(made, &disk) };
        if order.by_path {
            made.volume_context.insert("initialvolumefilepath".to_owned(), handle);
        }
        Ok(CreateVolumeResponse { volume: Some(made) })
    }

    async fn delete_volume(&self, request: DeleteVolumeRequest) -> Result<DeleteVolumeResponse, Status> {
        let Some(disk) = self.disk(required("volume_id", &request.volume_id)?) else {
            return Ok(DeleteVolumeResponse {});
        };
        self.inner.delete_volume(DeleteVolumeRequest { volume_id: disk.volume.id.to_string(), ..request }).await
    }

    async fn controller_publish_volume(
        &self,
        request: ControllerPublishVolumeRequest,
    ) -> Result<ControllerPublishVolumeResponse, Status> {
        required("volume_id", &request.volume_id)?;
        let node = required("node_id", &request.node_id)?;
        let capability =
            request.volume_capability.ok_or_else(|| Status::invalid_argument("volume_capability is missing"))?;
        self.existing(&request.volume_id)?;
        if node != (self.face.node)(&self.node, &self.zone) {
            return Err(Status::not_found(format!(
                "there is no node {node:?}; disks here are attached to {}",
                self.node
            )));
        }
        self.here(&request.volume_id)?;
        self.check_modes(&[capability], true)?;
        Ok(ControllerPublishVolumeResponse::default())
    }

    async fn controller_unpublish_volume(
        &self,
        request: ControllerUnpublishVolumeRequest,
    ) -> Result<ControllerUnpublishVolumeResponse, Status> {
        required("volume_id", &request.volume_id)?;
        Ok(ControllerUnpublishVolumeResponse::default())
    }

    async fn validate_volume_capabilities(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<ValidateVolumeCapabilitiesResponse, Status> {
        let volume_id = self.existing(&request.volume_id)?.volume.id.to_string();
        if let Err(status) = self.check_modes(&request.volume_capabilities, true) {
            let message = status.message().to_owned();
            return Ok(ValidateVolumeCapabilitiesResponse { confirmed: None, message });
        }
        self.inner.validate_volume_capabilities(ValidateVolumeCapabilitiesRequest { volume_id, ..request }).await
    }

    async fn list_volumes(&self, request: ListVolumesRequest) -> Result<ListVolumesResponse, Status> {
        let mut all = self.inner.list_volumes(request).await?;
        let entries = std::mem::take(&mut all.entries).into_iter();
        all.entries = entries
            .filter_map(|mut entry| {
                let volume = entry.volume?;
                let disk = Disk::of(self.inner.pool.volume(&pool::Id::parse(&volume.volume_id)?)?)?;
                entry.volume = Some(self.said(volume, &disk));
                Some(entry)
            })
            .collect();
        Ok(all)
    }

    async fn controller_get_volume(
        &self,
        request: ControllerGetVolumeRequest,
    ) -> Result<ControllerGetVolumeResponse, Status> {
        let disk = self.existing(&request.volume_id)?;
        let volume_id = disk.volume.id.to_string();
        let mut got = self.inner.controller_get_volume(ControllerGetVolumeRequest { volume_id }).await?;
        got.volume = got.volume.map(|volume| self.said(volume, &disk));
        Ok(got)
    }

    async fn create_snapshot(&self, request: CreateSnapshotRequest) -> Result<CreateSnapshotResponse, Status> {
        required("name", &request.name)?;
        let source_volume_id = self.existing(&request.source_volume_id)?.volume.id.to_string();
        let asked = request.source_volume_id.clone();
        // Clouds' parameters say where snapshots are kept, which is here.
        let inner = CreateSnapshotRequest { source_volume_id, parameters: BTreeMap::new(), ..request };
        let taken = self.inner.create_snapshot(inner).await?;
        // In the words of who asked, who may know the disk's name and nothing else.
        let said = |snapshot| Snapshot { source_volume_id: asked, ..snapshot };
        Ok(CreateSnapshotResponse { snapshot: taken.snapshot.map(said) })
    }

    async fn delete_snapshot(&self, request: DeleteSnapshotRequest) -> Result<DeleteSnapshotResponse, Status> {
        self.inner.delete_snapshot(request).await
    }

    async fn list_snapshots(&self, mut request: ListSnapshotsRequest) -> Result<ListSnapshotsResponse, Status> {
        if let Some(disk) = self.disk(&request.source_volume_id) {
            request.source_volume_id = disk.volume.id.to_string();
        }
        let mut all = self.inner.list_snapshots(request).await?;
        for entry in &mut all.entries {
            entry.snapshot = entry.snapshot.take().map(|s| self.snapshot(s));
        }
        Ok(all)
    }

    async fn controller_expand_volume(
        &self,
        request: ControllerExpandVolumeRequest,
    ) -> Result<ControllerExpandVolumeResponse, Status> {
        let disk = self.existing(&request.volume_id)?;
        if request.capacity_range.is_none() {
            return Err(Status::invalid_argument("capacity_range is missing"));
        }
        let order = Order::parse(self.face, &BTreeMap::new())?;
        // Its type had its say when it was made.
        let order = Order { kind: super::face::DiskType { least_gib: 0, ..order.kind }, ..order };
        let capacity_range = Some(order.size(self.face, request.capacity_range)?);
        let volume_id = disk.volume.id.to_string();
        self.inner
            .controller_expand_volume(ControllerExpandVolumeRequest { volume_id, capacity_range, ..request })
            .await
    }
}
