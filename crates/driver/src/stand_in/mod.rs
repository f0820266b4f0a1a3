//! Local volumes under the name of a cloud's driver, so that what was written for that cloud runs on one machine: its disks'
//! names, zones, types, smallest sizes and limits. Behind it is the same driver as `local.csi.holdfast`, on a pool of its own.
//!
//! Disks take the space that is written to them, whatever their size: clouds' smallest disks are larger than many a laptop has room.
//!
//! Absent on purpose: how a volume is kept; whatever a cloud does to speed, price or keys.
mod controller;
mod face;
mod names;
mod node;
mod order;

use std::{collections::BTreeMap, sync::Arc};

use csi::{Status, Topology};
use pool::{Pool, Volume};
use tonic::service::RoutesBuilder;

pub use face::{FACES, Face};
pub use order::BY_NAME;

use crate::{Driver, routes_of};

/// On what a stand-in makes: the word for the cloud's driver.
pub const LABEL: &str = "holdfast.dev/stand-in";
/// Between the zones of a disk that is in several.
const BETWEEN_ZONES: &str = "__";

/// One stand-in on one machine.
#[derive(Clone)]
pub struct StandIn {
    face: &'static Face,
    zone: String,
    node: String,
    inner: Driver,
}

/// A disk, as its record in the pool says it.
struct Disk {
    handle: String,
    zones: Vec<String>,
    volume: Volume,
}

/// A disk's record is called after its zones and its handle.
fn record(zones: &[String], handle: &str) -> String {
    format!("{} {handle}", zones.join(BETWEEN_ZONES))
}

impl Disk {
    fn of(volume: Volume) -> Option<Self> {
        let (zones, handle) = volume.name.split_once(' ')?;
        let zones = zones.split(BETWEEN_ZONES).map(str::to_owned).collect();
        Some(Self { handle: handle.to_owned(), zones, volume })
    }
}

/// What the cloud calls a volume of a stand-in's pool.
pub(crate) fn handle(volume: Volume) -> Option<String> {
    Disk::of(volume).map(|disk| disk.handle)
}

impl StandIn {
    /// A stand-in for `face` with the disks in `pool`, on the machine that is called `node`, which is in `zone`.
    pub fn new(face: &'static Face, zone: impl Into<String>, pool: Arc<Pool>, node: impl Into<String>) -> Self {
        let node = node.into();
        Self { face, zone: zone.into(), inner: Driver::new(pool, node.clone()), node }
    }

    /// The services, for [`csi::Listener::serve`].
    pub fn routes(&self) -> RoutesBuilder {
        routes_of(self.clone())
    }

    fn place(&self, zone: &str) -> Topology {
        Topology { segments: BTreeMap::from([(self.face.zone_key.to_owned(), zone.to_owned())]) }
    }

    /// The disk of a handle.
    fn disk(&self, handle: &str) -> Option<Disk> {
        let all = self.inner.pool.volumes().into_iter().filter_map(Disk::of);
        let mut all = all.filter(|d| (self.face.same)(&d.handle, handle));
        // A name without a zone may be that of several; the one that is here is meant.
        let first = all.next()?;
        if first.zones.contains(&self.zone) {
            return Some(first);
        }
        Some(all.find(|d| d.zones.contains(&self.zone)).unwrap_or(first))
    }

    /// # Errors
    /// There is no such disk.
    fn existing(&self, handle: &str) -> Result<Disk, Status> {
        let handle = crate::required("volume_id", handle)?;
        self.disk(handle).ok_or_else(|| {
            let Face { word, form, .. } = self.face;
            Status::not_found(format!(
                "there is no disk {handle:?}; `holdfast disk list` has those that are here, and `holdfast disk create \
                 --stand-in {word} NAME` makes one, where NAME is {form}"
            ))
        })
    }

    /// # Errors
    /// There is no such disk, or it is in another zone.
    fn here(&self, handle: &str) -> Result<Disk, Status> {
        let disk = self.existing(handle)?;
        if disk.zones.contains(&self.zone) {
            return Ok(disk);
        }
        let zones = disk.zones.join(", ");
        let why = format!("disk {} is in zone {zones}, and node {} in zone {}", disk.handle, self.node, self.zone);
        Err(Status::failed_precondition(why))
    }
}
