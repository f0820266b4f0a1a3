//! Volumes of CSI drivers, by a kubelet's names and places: a driver may be told of paths by its vendor's manifests only.
//!
//! ```text
//! <pods>/<uid>/volumes/kubernetes.io~csi/<volume>/vol_data.json     what a driver was asked for; written before it is
//! <pods>/<uid>/volumes/kubernetes.io~csi/<volume>/mount             where a driver publishes a filesystem
//! <plugins>/kubernetes.io/csi/<driver>/<sha256 of handle>/globalmount           where it stages one
//! <plugins>/kubernetes.io/csi/volumeDevices/publish/<volume>/<uid>              where it publishes a device
//! <plugins>/kubernetes.io/csi/volumeDevices/staging/<volume>                    where it stages one
//! ```
//! A volume is staged once for all pods of the machine, and as long as one of them has a record of it.
mod calls;
mod places;
mod record;

use std::path::Path;

use csi::NodeRpcType;
use sys::Sys;

use self::{
    calls::{Call, Operation},
    places::Places,
    record::{Record, each, has_others},
};
use crate::{
    contract::{CsiSource, Growth, Machine, Ownership, Ready, Source, Stats, VolumePlugin},
    error::VolumeError,
    place::{failed, if_found, unmount_inside},
    plugins::{is_marked, mark, mismatch, own, shown_group, tear_down_dir},
};

pub(super) struct Csi;

impl VolumePlugin for Csi {
    fn name(&self) -> &'static str {
        "kubernetes.io~csi"
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::Csi(_))
    }

    fn depends_on_others(&self) -> bool {
        true
    }

    fn takes_mount_options(&self) -> bool {
        true
    }

    fn set_up(&self, source: &Source, owner: &Ownership, dir: &Path, on: &Machine<'_>) -> Result<Ready, VolumeError> {
        let Source::Csi(source) = source else { return Err(mismatch(self)) };
        on.shared.alone(&key(&source.driver, &source.handle), || set_up(source, owner, dir, on))
    }

    fn tear_down(&self, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
        let Some(record) = Record::read(dir, on.sys)? else {
            // No driver was asked for anything yet.
            return tear_down_dir(dir, on.sys);
        };
        on.shared.alone(&key(&record.driver, &record.handle), || tear_down(&record, dir, on))
    }

    fn expand(&self, source: &Source, dir: &Path, bytes: u64, on: &Machine<'_>) -> Result<Growth, VolumeError> {
        let Source::Csi(source) = source else { return Err(mismatch(self)) };
        let top = if_found(on.sys.open(dir)).map_err(failed("open", dir))?;
        let Some(top) = top else { return Ok(Growth::NotSetUp) };
        if !is_marked(on.sys, &top, dir)? {
            return Ok(Growth::NotSetUp);
        }
        let call = Call::new(source, Operation::Expand, on)?;
        if !call.facts.can_here(NodeRpcType::ExpandVolume) {
            // As upstream: who has no such call has nothing to do here.
            return Ok(Growth::Done);
        }
        let places = Places::of(source, dir, on);
        on.shared.alone(&key(&source.driver, &source.handle), || call.expand(&places, bytes))?;
        Ok(Growth::Done)
    }

    fn stats(&self, source: &Source, dir: &Path, on: &Machine<'_>) -> Result<Option<Stats>, VolumeError> {
        let Source::Csi(source) = source else { return Err(mismatch(self)) };
        let call = Call::new(source, Operation::Stats, on)?;
        if !call.facts.can_here(NodeRpcType::GetVolumeStats) {
            return Ok(None);
        }
        call.stats(&Places::of(source, dir, on)).map(Some)
    }
}

/// A volume of a driver that a pod of this machine has, or is about to have, and that was attached to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedVolume {
    pub pod_uid: String,
    pub driver: String,
    pub handle: String,
}

/// All such volumes, from the disk.
pub(crate) fn attached(on: &Machine<'_>) -> Result<Vec<AttachedVolume>, VolumeError> {
    let mut all = Vec::new();
    each(on, |dir, record| {
        let pod = dir.ancestors().nth(3).and_then(Path::file_name).unwrap_or_default();
        if record.attached {
            let pod_uid = pod.to_string_lossy().into_owned();
            all.push(AttachedVolume { pod_uid, driver: record.driver, handle: record.handle });
        }
    })?;
    Ok(all)
}

fn key(driver: &str, handle: &str) -> String {
    format!("{driver}^{handle}")
}

/// Stages the volume, unless another pod had that done, and publishes it to the pod.
fn set_up(source: &CsiSource, owner: &Ownership, dir: &Path, on: &Machine<'_>) -> Result<Ready, VolumeError> {
    let places = Places::of(source, dir, on);
    let top = on.sys.open(dir).map_err(failed("open", dir))?;
    let finished = is_marked(on.sys, &top, dir)?;
    let ready = Ready {
        volume: source.name.clone(),
        host_path: places.target.clone(),
        read_only: source.read_only,
        device: source.block,
        group_map: None,
    };
    let (first, second) = Operation::of_set_up(source);
    let call = match Call::new(source, first, on) {
        // It is there from before this process began; its driver may be on its way, too.
        Err(_) if finished && is_mounted(on.sys, &places.target) => return seen(ready, source, owner, on),
        call => call?,
    };
    let stages = !source.ephemeral && call.facts.can_here(NodeRpcType::StageUnstageVolume);
    let record = Record::of(source, stages);
    record.write(dir, on.sys)?;
    if !source.ephemeral {
        places.make_stage(&record, on.sys)?;
    }
    if stages && !on.shared.is_staged(&places.stage) {
        call.stage(&places, owner)?;
        on.shared.set_staged(&places.stage, true);
    }
    places.make_target_parent(on.sys)?;
    let call = call.during(second);
    if let Err(error) = call.publish(&places, stages, owner) {
        // Whatever made it fail, the next try begins at the beginning.
        on.shared.set_staged(&places.stage, false);
        return Err(error);
    }
    if !finished {
        let by_driver = call.facts.can_here(NodeRpcType::VolumeMountGroup);
        if !by_driver && source.takes_group() {
            let data = on.sys.open(&places.target).map_err(failed("open", &places.target))?;
            if shown_group(on.sys, &data, &places.target, owner)?.is_none() {
                own(on.sys, &data, &places.target, owner, false)?;
            }
        }
        mark(on.sys, &top, dir)?;
    }
    seen(ready, source, owner, on)
}

/// With the group that containers see it as, where that is not its own.
fn seen(ready: Ready, source: &CsiSource, owner: &Ownership, on: &Machine<'_>) -> Result<Ready, VolumeError> {
    if ready.device || !source.takes_group() || !owner.mapped {
        return Ok(ready);
    }
    let data = on.sys.open(&ready.host_path).map_err(failed("open", &ready.host_path))?;
    let group_map = shown_group(on.sys, &data, &ready.host_path, owner)?;
    Ok(Ready { group_map, ..ready })
}

fn is_mounted(sys: &dyn Sys, path: &Path) -> bool {
    sys.open(path).and_then(|at| sys.stat(&at)).is_ok_and(|stat| stat.mount_root)
}

/// Takes the volume from the pod and, if no other pod has it, from the machine. The record goes last: it is what a later
/// try begins with.
fn tear_down(record: &Record, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
    let places = Places::recorded(record, dir, on);
    let unpublish = Call::of_record(record, Operation::Unpublish, on)?;
    unmount_inside(&places.target, on.sys)?;
    unpublish.unpublish(&places)?;
    places.remove_target(on.sys)?;
    if !record.ephemeral && !has_others(record, dir, on)? {
        unstage(record, &places, on)?;
    }
    tear_down_dir(dir, on.sys)
}

fn unstage(record: &Record, places: &Places, on: &Machine<'_>) -> Result<(), VolumeError> {
    on.shared.set_staged(&places.stage, false);
    let call = Call::of_record(record, Operation::Unstage, on)?;
    if record.stages || call.facts.can_here(NodeRpcType::StageUnstageVolume) {
        unmount_inside(&places.stage, on.sys)?;
        call.unstage(places)?;
    }
    places.remove_stage(on.sys)
}
