//! `holdfast disk`: disks of the clouds that this machine stands in for, with the daemon running or stopped.
use std::{fs, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use api::Quantity;
use base::Layout;
use csi::{
    AccessMode, AccessType, CapacityRange, ControllerClient, CreateVolumeRequest, DeleteVolumeRequest,
    ListVolumesRequest, Mode, MountVolume, Topology, TopologyRequirement, Volume, VolumeCapability,
};
use driver::stand_in::{BY_NAME, FACES, Face, StandIn};
use tokio::sync::oneshot;

use crate::{
    Outcome,
    cli::{DiskArgs, DiskCommand},
    client::{Error, get::align},
    errors::{Doing, said, say},
    up::{kubelet_dir, preflight, stand_ins},
};

const TIME_FOR_A_CALL: Duration = Duration::from_secs(60);

pub async fn run(args: DiskArgs) -> Outcome {
    match args.command {
        DiskCommand::Create { name, stand_in, size, zone, disk_type, data } => {
            let layout = kubelet_dir::find(Layout::new(&data.data_dir))?;
            let shelf = Shelf::open(&layout, stand_in, zone.as_deref()).await?;
            let made = shelf.create(&name, size.as_deref(), zone.as_deref(), disk_type).await?;
            say(made.volume_id)?;
        }
        DiskCommand::List { data } => list(&kubelet_dir::find(Layout::new(&data.data_dir))?).await?,
        DiskCommand::Rm { name, stand_in, data } => {
            remove(&kubelet_dir::find(Layout::new(&data.data_dir))?, &name, stand_in).await?
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The disks of one cloud.
struct Shelf {
    face: &'static Face,
    controller: ControllerClient,
    /// Serves them as long as this is there, where no daemon does.
    _served: Option<oneshot::Sender<()>>,
}

impl Shelf {
    /// The daemon's, if there is one.
    async fn open(layout: &Layout, face: &'static Face, zone: Option<&str>) -> Result<Self, Error> {
        let socket = layout.driver_socket(face.driver);
        let served = match stand_ins::disks(layout, face)? {
            None => None,
            Some(pool) => {
                let node = preflight::node_name(None)?;
                let driver = StandIn::new(face, zone.unwrap_or(face.default_zone), Arc::new(pool), node);
                Some(serve(&driver, &socket)?)
            }
        };
        let driver = csi::Driver::at(&socket, TIME_FOR_A_CALL);
        Ok(Self { face, controller: ControllerClient::new(&driver), _served: served })
    }

    async fn create(
        &self,
        name: &str,
        size: Option<&str>,
        zone: Option<&str>,
        disk_type: Option<String>,
    ) -> Result<Volume, Error> {
        let required_bytes = match size {
            None => 0,
            Some(text) => match text.parse::<Quantity>() {
                Ok(size) if size.sign() > 0 => size.value(),
                _ => return said(format!("--size {text:?} is no size; write for example 10Gi")),
            },
        };
        let segments = |zone: &str| [(self.face.zone_key.to_owned(), zone.to_owned())].into();
        let place = zone.map(|zone| TopologyRequirement {
            requisite: vec![Topology { segments: segments(zone) }],
            preferred: vec![],
        });
        let mut parameters = std::collections::BTreeMap::from([(BY_NAME.to_owned(), String::new())]);
        parameters.extend(disk_type.map(|t| (self.face.type_parameter.to_owned(), t)));
        // What it is in the end, its first user says.
        let capability = VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume::default())),
            access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        };
        let request = CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes, limit_bytes: 0 }),
            volume_capabilities: vec![capability],
            parameters,
            accessibility_requirements: place,
            ..Default::default()
        };
        let made = self.controller.create_volume(request).await;
        made.map_err(refused(self.face)).map(|r| r.volume.unwrap_or_default())
    }

    async fn disks(&self) -> Result<Vec<Volume>, Error> {
        let all = self.controller.list_volumes(ListVolumesRequest::default()).await.map_err(refused(self.face))?;
        Ok(all.entries.into_iter().filter_map(|e| e.volume).collect())
    }

    fn zones<'a>(&self, disk: &'a Volume) -> Vec<&'a str> {
        disk.accessible_topology.iter().filter_map(|t| t.segments.get(self.face.zone_key)).map(String::as_str).collect()
    }

    /// Whether a disk is what somebody calls so.
    fn is_called(&self, disk: &Volume, name: &str) -> bool {
        let meant = |zone: &&str| (self.face.named)(name, zone);
        disk.volume_id == name
            || self.zones(disk).iter().filter_map(meant).any(|n| (self.face.same)(&disk.volume_id, &n))
    }
}

fn refused(face: &'static Face) -> impl Fn(csi::Status) -> Error {
    move |status| format!("{}: {}", face.word, status.message()).into()
}

fn serve(driver: &StandIn, socket: &std::path::Path) -> Result<oneshot::Sender<()>, Error> {
    if let Some(above) = socket.parent() {
        fs::create_dir_all(above).doing(|| format!("make {}", above.display()))?;
    }
    let listener = csi::Listener::bind(socket)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let routes = driver.routes();
    tokio::spawn(async move {
        let served = listener.serve(routes, async { drop(stopped.await) }).await;
        if let Err(error) = served {
            tracing::warn!(error = base::chain(&error), "the disks are not served any more");
        }
    });
    Ok(stop)
}

/// Every cloud of which there are disks here.
async fn shelves(layout: &Layout) -> Result<Vec<Shelf>, Error> {
    let mut all = Vec::new();
    let faces: &'static [Face] = &FACES;
    for face in faces {
        let dir: PathBuf = layout.stand_in(face.word);
        if dir.try_exists().doing(|| format!("look for {}", dir.display()))? {
            all.push(Shelf::open(layout, face, None).await?);
        }
    }
    Ok(all)
}

async fn list(layout: &Layout) -> Result<(), Error> {
    let mut lines = vec![["STAND-IN", "DISK", "ZONE", "SIZE"].map(str::to_owned).to_vec()];
    for shelf in shelves(layout).await? {
        for disk in shelf.disks().await? {
            // Sizes are whole multiples of this.
            let mebibytes = format!("{}Mi", disk.capacity_bytes >> 20);
            let size = mebibytes.parse::<Quantity>().map_or(mebibytes, |q| q.to_string());
            lines.push(vec![shelf.face.word.to_owned(), disk.volume_id.clone(), shelf.zones(&disk).join(","), size]);
        }
    }
    align(&lines).iter().try_for_each(say)
}

async fn remove(layout: &Layout, name: &str, face: Option<&'static Face>) -> Result<(), Error> {
    let mut found = Vec::new();
    for shelf in shelves(layout).await? {
        if face.is_none_or(|f| f.word == shelf.face.word) {
            let called: Vec<Volume> = shelf.disks().await?.into_iter().filter(|d| shelf.is_called(d, name)).collect();
            found.extend(called.into_iter().map(|disk| disk.volume_id).zip(std::iter::repeat(shelf.face)));
            if let [(handle, _)] = &found[..]
                && face.is_some()
            {
                return delete(&shelf, handle).await;
            }
        }
    }
    match &found[..] {
        [] => said(format!("there is no disk {name:?}; `holdfast disk list` has those that are here")),
        [(handle, face)] => delete(&Shelf::open(layout, face, None).await?, handle).await,
        several => {
            let all: Vec<String> = several.iter().map(|(handle, face)| format!("{handle} of {}", face.word)).collect();
            said(format!("{name:?} may be {}; write the whole name, or --stand-in", all.join(" or ")))
        }
    }
}

async fn delete(shelf: &Shelf, handle: &str) -> Result<(), Error> {
    let request = DeleteVolumeRequest { volume_id: handle.to_owned(), ..Default::default() };
    shelf.controller.delete_volume(request).await.map_err(refused(shelf.face))?;
    say(format_args!("{handle} removed"))
}

/// A cloud, by the word on the command line.
pub fn face(word: &str) -> Result<&'static Face, String> {
    stand_ins::face(word)
}
