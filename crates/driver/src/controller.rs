//! Volumes and snapshots as a whole.
use std::collections::{BTreeMap, BTreeSet};

use csi::*;
use pool::{Content, Health, Id, NewSnapshot, NewVolume, Origin, Pool};

use crate::{Driver, TOPOLOGY_KEY, capability, parameters::Parameters, required, signed, volume_id};

/// What provisioners say of the claim, if they are asked to (`--extra-create-metadata`).
const FOR_NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
const FOR_CLAIM: &str = "csi.storage.k8s.io/pvc/name";
/// Notes of a volume: its claim, and its access modes in Kubernetes' words, with commas.
pub(crate) const NOTE_NAMESPACE: &str = "namespace";
pub(crate) const NOTE_CLAIM: &str = "claim";
pub(crate) const NOTE_MODES: &str = "modes";

/// Begins a token that says after which id the next page starts.
const AFTER: &str = "after:";

/// The part of a list that a page shows, and the token of the next page.
fn page<T>(all: Vec<T>, id: impl Fn(&T) -> &Id, max_entries: i32, token: &str) -> Result<(Vec<T>, String), Status> {
    let most = usize::try_from(max_entries).map_err(|_| Status::invalid_argument("max_entries is negative"))?;
    let after = match token {
        "" => None,
        _ => Some(token.strip_prefix(AFTER).and_then(Id::parse).ok_or_else(|| {
            Status::aborted(format!("starting_token {token:?} is none of ours; list again from the beginning"))
        })?),
    };
    let mut rest: Vec<T> = all.into_iter().filter(|item| after.as_ref().is_none_or(|after| id(item) > after)).collect();
    let more = most != 0 && rest.len() > most;
    if more {
        rest.truncate(most);
    }
    let next = rest.last().filter(|_| more).map_or_else(String::new, |last| format!("{AFTER}{}", id(last)));
    Ok((rest, next))
}

pub(crate) fn range(range: Option<CapacityRange>) -> Result<(u64, u64), Status> {
    let range = range.unwrap_or_default();
    let bytes = |n: i64| u64::try_from(n).map_err(|_| Status::invalid_argument("a capacity is negative"));
    Ok((bytes(range.required_bytes)?, bytes(range.limit_bytes)?))
}

fn origin(source: Option<VolumeContentSource>) -> Result<Option<Origin>, Status> {
    let Some(source) = source else { return Ok(None) };
    match source.r#type {
        None => Err(Status::invalid_argument("volume_content_source names nothing")),
        Some(ContentSource::Snapshot(s)) => {
            let id = required("snapshot_id", &s.snapshot_id)?;
            let none = || Status::not_found(format!("there is no snapshot {id:?}"));
            Ok(Some(Origin::Snapshot(Id::parse(id).ok_or_else(none)?)))
        }
        Some(ContentSource::Volume(v)) => Ok(Some(Origin::Volume(volume_id(&v.volume_id)?))),
    }
}

/// For whom a volume is made, and as what: those who look for it when it is deleted know it by that.
fn notes(parameters: &BTreeMap<String, String>, capabilities: &[VolumeCapability]) -> BTreeMap<String, String> {
    let told = [(FOR_NAMESPACE, NOTE_NAMESPACE), (FOR_CLAIM, NOTE_CLAIM)];
    let mut notes: BTreeMap<String, String> =
        told.iter().filter_map(|(from, to)| Some(((*to).to_owned(), parameters.get(*from)?.clone()))).collect();
    let modes: BTreeSet<&str> = capabilities.iter().filter_map(capability::mode_word).collect();
    notes.insert(NOTE_MODES.to_owned(), modes.into_iter().collect::<Vec<_>>().join(","));
    notes
}

impl Driver {
    fn said(&self, volume: &pool::Volume) -> Volume {
        let content_source = volume.origin.as_ref().map(|origin| VolumeContentSource {
            r#type: Some(match origin {
                Origin::Snapshot(id) => ContentSource::Snapshot(SnapshotSource { snapshot_id: id.to_string() }),
                Origin::Volume(id) => ContentSource::Volume(VolumeSource { volume_id: id.to_string() }),
            }),
        });
        Volume {
            volume_id: volume.id.to_string(),
            capacity_bytes: signed(volume.bytes),
            content_source,
            accessible_topology: vec![self.topology()],
            ..Default::default()
        }
    }

    /// The filesystem of what a volume is to begin as a copy of.
    fn filesystem_of(&self, origin: Option<&Origin>) -> Option<String> {
        let content = match origin? {
            Origin::Snapshot(id) => self.pool.snapshot(id)?.content,
            Origin::Volume(id) => self.pool.volume(id)?.content,
        };
        match content {
            Content::Filesystem(kind) => Some(kind),
            Content::Block => None,
        }
    }

    /// Whether a volume here is where it is wanted.
    fn reachable(&self, wanted: Option<&TopologyRequirement>) -> Result<(), Status> {
        let places = wanted.map_or(&[][..], |w| if w.requisite.is_empty() { &w.preferred } else { &w.requisite });
        let here = |place: &Topology| place.segments.get(TOPOLOGY_KEY).is_none_or(|node| *node == self.node);
        if places.is_empty() || places.iter().any(here) {
            return Ok(());
        }
        Err(Status::resource_exhausted(format!("this driver makes volumes on node {} only", self.node)))
    }
}

fn snapshot(snapshot: &pool::Snapshot) -> Snapshot {
    let seconds = i64::try_from(snapshot.made).unwrap_or(i64::MAX);
    Snapshot {
        size_bytes: signed(snapshot.bytes),
        snapshot_id: snapshot.id.to_string(),
        source_volume_id: snapshot.volume.to_string(),
        creation_time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
        ready_to_use: true,
        ..Default::default()
    }
}

fn condition(pool: &Pool, id: &Id) -> Option<VolumeCondition> {
    Some(match pool.health(id).ok()? {
        Health::Good => VolumeCondition { abnormal: false, message: "the volume is well".to_owned() },
        Health::Bad(message) => VolumeCondition { abnormal: true, message },
    })
}

#[async_trait::async_trait]
impl Controller for Driver {
    async fn controller_get_capabilities(
        &self,
        _: ControllerGetCapabilitiesRequest,
    ) -> Result<ControllerGetCapabilitiesResponse, Status> {
        use ControllerRpcType as Can;
        let all = [
            Can::CreateDeleteVolume,
            Can::ListVolumes,
            Can::GetCapacity,
            Can::CreateDeleteSnapshot,
            Can::ListSnapshots,
            Can::CloneVolume,
            Can::ExpandVolume,
            Can::VolumeCondition,
            Can::GetVolume,
            Can::SingleNodeMultiWriter,
        ];
        let offered = all.into_iter().filter(|can| !(self.grows_on_node && *can == Can::ExpandVolume));
        Ok(capability::offered(offered))
    }

    async fn create_volume(&self, request: CreateVolumeRequest) -> Result<CreateVolumeResponse, Status> {
        let name = required("name", &request.name)?.to_owned();
        let parameters = Parameters::parse(&request.parameters)?;
        let origin = origin(request.volume_content_source)?;
        let default = parameters.filesystem.clone().or_else(|| self.filesystem_of(origin.as_ref()));
        let default = default.as_deref().unwrap_or(capability::DEFAULT_FILESYSTEM);
        let content = capability::content(&request.volume_capabilities, default)?;
        let (required_bytes, limit_bytes) = range(request.capacity_range)?;
        self.reachable(request.accessibility_requirements.as_ref())?;
        let notes = notes(&request.parameters, &request.volume_capabilities);
        let new = NewVolume {
            name,
            required_bytes,
            limit_bytes,
            backend: parameters.backend,
            content,
            format: parameters.format,
            limit_required: parameters.limit_required,
            origin,
            shares_room: parameters.overcommit,
            notes,
        };
        let volume = self.with(move |pool| pool.create(&new)).await?;
        Ok(CreateVolumeResponse { volume: Some(self.said(&volume)) })
    }

    async fn delete_volume(&self, request: DeleteVolumeRequest) -> Result<DeleteVolumeResponse, Status> {
        // An id that no volume can have is one that is not there, which is what is wanted.
        if let Some(id) = Id::parse(required("volume_id", &request.volume_id)?) {
            self.with(move |pool| pool.delete(&id)).await?;
        }
        Ok(DeleteVolumeResponse {})
    }

    async fn validate_volume_capabilities(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<ValidateVolumeCapabilitiesResponse, Status> {
        let id = volume_id(&request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("volume capabilities are missing"));
        }
        let volume = self.pool.volume(&id).ok_or_else(|| Status::not_found(format!("there is no volume {id}")))?;
        let own = match &volume.content {
            Content::Filesystem(kind) => kind,
            Content::Block => capability::DEFAULT_FILESYSTEM,
        };
        let (confirmed, message) = match capability::content(&request.volume_capabilities, own) {
            Ok(content) if content == volume.content => {
                let confirmed = Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: request.mutable_parameters,
                };
                (Some(confirmed), String::new())
            }
            Ok(_) => (None, format!("the volume is {:?}", volume.content)),
            Err(status) => (None, status.message().to_owned()),
        };
        Ok(ValidateVolumeCapabilitiesResponse { confirmed, message })
    }

    async fn list_volumes(&self, request: ListVolumesRequest) -> Result<ListVolumesResponse, Status> {
        let (volumes, next_token) = page(self.pool.volumes(), |v| &v.id, request.max_entries, &request.starting_token)?;
        let driver = self.clone();
        let entries = self
            .with(move |pool| {
                let entry = |volume: &pool::Volume| VolumeEntry {
                    volume: Some(driver.said(volume)),
                    status: Some(VolumeStatus { volume_condition: condition(pool, &volume.id), ..Default::default() }),
                };
                Ok(volumes.iter().map(entry).collect())
            })
            .await?;
        Ok(ListVolumesResponse { entries, next_token })
    }

    async fn controller_get_volume(
        &self,
        request: ControllerGetVolumeRequest,
    ) -> Result<ControllerGetVolumeResponse, Status> {
        let id = volume_id(&request.volume_id)?;
        let volume = self.pool.volume(&id).ok_or_else(|| Status::not_found(format!("there is no volume {id}")))?;
        let volume_condition = self.with(move |pool| Ok(condition(pool, &id))).await?;
        let status = VolumeStatus { volume_condition, ..Default::default() };
        Ok(ControllerGetVolumeResponse { volume: Some(self.said(&volume)), status: Some(status) })
    }

    async fn get_capacity(&self, request: GetCapacityRequest) -> Result<GetCapacityResponse, Status> {
        let elsewhere = request
            .accessible_topology
            .as_ref()
            .is_some_and(|place| place.segments.get(TOPOLOGY_KEY).is_some_and(|node| *node != self.node));
        let parameters = Parameters::parse(&request.parameters)?;
        let default = parameters.filesystem.as_deref().unwrap_or(capability::DEFAULT_FILESYSTEM);
        let possible = request.volume_capabilities.is_empty()
            || capability::content(&request.volume_capabilities, default).is_ok();
        if elsewhere || !possible {
            return Ok(GetCapacityResponse::default());
        }
        let room = signed(self.with(|pool| pool.room()).await?);
        Ok(GetCapacityResponse { available_capacity: room, maximum_volume_size: Some(room), minimum_volume_size: None })
    }

    async fn create_snapshot(&self, request: CreateSnapshotRequest) -> Result<CreateSnapshotResponse, Status> {
        let name = required("name", &request.name)?.to_owned();
        let volume = volume_id(&request.source_volume_id)?;
        let taken = self.with(move |pool| pool.take_snapshot(&NewSnapshot { name, volume })).await?;
        Ok(CreateSnapshotResponse { snapshot: Some(snapshot(&taken)) })
    }

    async fn delete_snapshot(&self, request: DeleteSnapshotRequest) -> Result<DeleteSnapshotResponse, Status> {
        if let Some(id) = Id::parse(required("snapshot_id", &request.snapshot_id)?) {
            self.with(move |pool| pool.delete_snapshot(&id)).await?;
        }
        Ok(DeleteSnapshotResponse {})
    }

    async fn list_snapshots(&self, request: ListSnapshotsRequest) -> Result<ListSnapshotsResponse, Status> {
        let is = |wanted: &str, id: &Id| wanted.is_empty() || wanted == id.as_str();
        let mut all = self.pool.snapshots();
        all.retain(|s| is(&request.snapshot_id, &s.id) && is(&request.source_volume_id, &s.volume));
        let (found, next_token) = page(all, |s| &s.id, request.max_entries, &request.starting_token)?;
        let entries = found.iter().map(|s| SnapshotEntry { snapshot: Some(snapshot(s)) }).collect();
        Ok(ListSnapshotsResponse { entries, next_token })
    }

    async fn controller_expand_volume(
        &self,
        request: ControllerExpandVolumeRequest,
    ) -> Result<ControllerExpandVolumeResponse, Status> {
        let id = volume_id(&request.volume_id)?;
        if request.capacity_range.is_none() {
            return Err(Status::invalid_argument("capacity_range is missing"));
        }
        let (required, limit) = range(request.capacity_range)?;
        let (bytes, volume) = self
            .with(move |pool| {
                let bytes = pool.expand(&id, required, limit)?;
                Ok((bytes, pool.volume(&id)))
            })
            .await?;
        let node_expansion_required =
            volume.is_some_and(|v| v.backend == pool::Backend::Image && v.content != pool::Content::Block);
        Ok(ControllerExpandVolumeResponse { capacity_bytes: signed(bytes), node_expansion_required })
    }
}
