//! LUNs that a process of this machine serves as files, behind loop devices.
//!
//! Whoever wants a LUN looks in turn with all others, and waits without keeping them from looking: a pod that ends gives up
//! at once, whoever else still waits.
use std::{
    ffi::{OsStr, OsString},
    io::ErrorKind,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use iscsi::{Cause, Outcome, Wish};
use sys::{Access, Handle, Program, Sys, Unmount};

use super::{
    alone,
    chap::Words,
    stage::{Mechanism, Record, Stage, StageRecord},
    trouble,
};
use crate::{
    contract::{IscsiSource, Machine},
    csi_source::digest,
    error::VolumeError,
    place::{failed, if_found},
    plugins::{record::replace, scsi::text},
};

/// The record of the process in the LUN's directory.
const SERVER: &str = "server";
/// Between looks whether the LUN is there: at first, and at most.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LOOK: Duration = Duration::from_millis(25);
/// How long the process may take for all portals, each, before it is given up.
const PER_PORTAL: Duration = Duration::from_secs(60);
/// How long a target may be silent: what the kernel's initiator allows (`replacement_timeout`).
const PATIENCE_SECONDS: u64 = 120;
/// The same while the last pod that uses the LUN ends: at least, and where nobody says how much time it has.
const LEAST_PATIENCE: Duration = Duration::from_secs(5);
const LAST_PATIENCE: Duration = Duration::from_secs(30);
/// How long reading a LUN's size anew may take.
const REFRESH: Duration = Duration::from_secs(30);

/// Where a LUN is on its way.
enum Step {
    There(PathBuf),
    Coming,
}

/// Lets a process serve the LUN, unless one does. Returns the loop device.
pub(super) fn attach(
    source: &IscsiSource,
    stage: &Stage,
    dir: &Path,
    on: &Machine<'_>,
) -> Result<PathBuf, VolumeError> {
    // Read before anything waits, and by no one who finds the LUN there.
    let mut wish = None;
    let until = Instant::now() + PER_PORTAL * u32::try_from(source.portals.len()).unwrap_or(u32::MAX);
    let (mut ours, mut pause) = (false, FIRST_LOOK);
    loop {
        let step = alone(&stage.key(), on, || step(source, stage, dir, (&mut wish, &mut ours), on))?;
        match step {
            Step::There(device) => return Ok(device),
            Step::Coming if Instant::now() > until => {
                return Err(trouble(
                    &source.name,
                    "the process that serves its LUN says nothing; the next try starts another",
                ));
            }
            Step::Coming => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(LOOK);
    }
}

/// One look. `ours`: this call has waited for the process that is there, and hears how it went.
fn step(
    source: &IscsiSource,
    stage: &Stage,
    dir: &Path,
    (wish, ours): (&mut Option<Vec<u8>>, &mut bool),
    on: &Machine<'_>,
) -> Result<Step, VolumeError> {
    let sys = on.sys;
    let top = stage.make(sys)?;
    let lives = lives(&top, stage, sys)?;
    let outcome = outcome(stage, sys)?;
    match (lives, outcome) {
        (true, Some(Outcome::Serving { read_only, .. })) => {
            let access = if read_only { Access::Read } else { Access::Write };
            // Of pods that are ending; this one is not.
            if_found(sys.remove_file(&top, OsStr::new(iscsi::ENDING)))
                .map_err(failed("remove", stage.dir.join(iscsi::ENDING)))?;
            return device(&top, stage, access, source, on).map(Step::There);
        }
        (true, None) => {
            *ours = true;
            return Ok(Step::Coming);
        }
        (_, Some(outcome)) if *ours => {
            let error = refusal(source, &outcome);
            end(stage, false, on)?;
            return Err(error);
        }
        (false, None)
            if *ours
                && if_found(sys.stat_at(&top, OsStr::new(SERVER))).map_err(failed("read", &stage.dir))?.is_some() =>
        {
            let said = text(sys, &stage.dir.join(format!("{SERVER}.log")))?.unwrap_or_default();
            end(stage, false, on)?;
            return Err(trouble(&source.name, format!("the process that serves its LUN ended: {said}")));
        }
        // Of an earlier process: it failed, or it is gone with what it served.
        _ => {}
    }
    let wish = match wish {
        Some(wish) => wish,
        None => wish.insert(self::wish(source, on)?),
    };
    end(stage, false, on).map_err(|error| still_used(source, dir, stage, error, on))?;
    start(source, stage, wish, on)?;
    *ours = true;
    Ok(Step::Coming)
}

/// A device that its pods still have, although what served it is gone.
fn still_used(source: &IscsiSource, dir: &Path, stage: &Stage, error: VolumeError, on: &Machine<'_>) -> VolumeError {
    let record = Record { stage: stage.name.clone() };
    let why = "the process that served its LUN has ended; what was not written then is lost";
    match record.has_others(dir, on) {
        Ok(true) => trouble(&source.name, format!("{why}; end all pods of this node that use it")),
        _ => error,
    }
}

fn lives(top: &Handle, stage: &Stage, sys: &dyn Sys) -> Result<bool, VolumeError> {
    match sys.attendant(top, OsStr::new(SERVER)) {
        Ok(found) => Ok(found.is_some()),
        // It is about to say its number.
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(e) => Err(failed("read", stage.dir.join(SERVER))(e)),
    }
}

fn outcome(stage: &Stage, sys: &dyn Sys) -> Result<Option<Outcome>, VolumeError> {
    let said = text(sys, &stage.dir.join(iscsi::STATUS))?;
    Ok(said.and_then(|said| serde_json::from_str(&said).ok()))
}

/// What the process is told.
fn wish(source: &IscsiSource, on: &Machine<'_>) -> Result<Vec<u8>, VolumeError> {
    let initiator = source.initiator.clone().map_or_else(|| initiator(on.sys), Ok)?;
    let wish = Wish {
        portals: source.portals.clone(),
        target: source.iqn.clone(),
        lun: source.lun,
        initiator,
        chap: Words::read(source, on)?.session(source)?,
        patience_seconds: PATIENCE_SECONDS,
    };
    serde_json::to_vec(&wish).map_err(|e| trouble(&source.name, e.to_string()))
}

/// This machine's name: open-iscsi's, if it has one, else one that stays the same.
fn initiator(sys: &dyn Sys) -> Result<String, VolumeError> {
    let told = text(sys, Path::new("/etc/iscsi/initiatorname.iscsi"))?.unwrap_or_default();
    if let Some(name) = told.lines().find_map(|l| l.strip_prefix("InitiatorName=")) {
        return Ok(name.trim().to_owned());
    }
    let machine = match text(sys, Path::new("/etc/machine-id"))?.filter(|id| !id.is_empty()) {
        Some(id) => id,
        None => text(sys, Path::new("/proc/sys/kernel/hostname"))?.unwrap_or_default(),
    };
    Ok(format!("iqn.2026-11.dev.holdfast:{}", &digest(&["iscsi initiator ", &machine])[..12]))
}

fn start(source: &IscsiSource, stage: &Stage, wish: &[u8], on: &Machine<'_>) -> Result<(), VolumeError> {
    let sys = on.sys;
    let record = StageRecord {
        mechanism: Mechanism::Served,
        portals: source.portals.clone(),
        iqn: source.iqn.clone(),
        lun: source.lun,
        interface: source.interface.clone(),
        own_interface: false,
    };
    stage.write(&record, sys)?;
    let top = stage.make(sys)?;
    let export = OsStr::new(iscsi::EXPORT);
    match sys.write_new(&top, export, b"", 0o600) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        made => made.map_err(failed("create", stage.dir.join(export)))?,
    }
    let arguments: [OsString; 1] = [stage.dir.clone().into()];
    let program =
        Program { name: Some(OsStr::new(iscsi::SERVER)), input: wish, ..Program::new(on.program, &arguments) };
    sys.start(&program, &top, OsStr::new(SERVER)).map_err(failed("start the server of", &stage.dir))
}

/// The loop device of the file that is the LUN.
fn device(
    top: &Handle,
    stage: &Stage,
    access: Access,
    source: &IscsiSource,
    on: &Machine<'_>,
) -> Result<PathBuf, VolumeError> {
    let path = stage.dir.join(iscsi::EXPORT);
    let export = on.sys.open_at(top, Path::new(iscsi::EXPORT), sys::Reach::Plain).map_err(failed("open", &path))?;
    if let Some(device) = on.sys.loop_of(&export).map_err(failed("find the device of", &path))? {
        return Ok(device);
    }
    on.sys.attach_loop(&export, access).map_err(|errno| VolumeError::Disk {
        volume: source.name.clone(),
        why: "no loop device can be had for its LUN; see whether /dev/loop-control is there".into(),
        cause: Some(errno),
    })
}

/// Ends what serves the LUN, if anything does, with its device. Idempotent. `last`: no pod has the LUN any more.
pub(super) fn end(stage: &Stage, last: bool, on: &Machine<'_>) -> Result<(), VolumeError> {
    let sys = on.sys;
    let Some(top) = if_found(sys.open(&stage.dir)).map_err(failed("open", &stage.dir))? else { return Ok(()) };
    let path = stage.dir.join(iscsi::EXPORT);
    // It may be one whose server is gone: it is opened, but not looked at.
    let export =
        if_found(sys.open_at(&top, Path::new(iscsi::EXPORT), sys::Reach::Plain)).map_err(failed("open", &path))?;
    let mut how = Unmount::Strict;
    if let Some(export) = export
        && let Some(device) = sys.loop_of(&export).map_err(failed("find the device of", &path))?
        && let Err(errno) = sys.detach_loop(&device)
    {
        // What a mount namespace of somebody else still holds has nobody behind it any more: it can neither be read nor
        // written, and the kernel frees it with that namespace.
        if !last || errno.kind() != ErrorKind::ResourceBusy || lives(&top, stage, sys)? {
            return Err(failed("detach", device)(errno));
        }
        how = Unmount::Lazy;
    }
    sys.end(&top, OsStr::new(SERVER)).map_err(failed("end the server of", &stage.dir))?;
    stage.unmount(how, sys)?;
    for file in [iscsi::STATUS, iscsi::REFRESH, iscsi::ENDING] {
        if_found(sys.remove_file(&top, OsStr::new(file))).map_err(failed("remove", stage.dir.join(file)))?;
    }
    Ok(())
}

/// Lets a target that is silent be given up soon: all pods that use the LUN are ending. `grace`: the time that they have;
/// `None`: they are gone, and whoever knew their time has said it, or nobody did.
///
/// Processes that wait for the target cannot be killed, nor can the filesystem be unmounted.
pub(super) fn hurry(stage: &Stage, grace: Option<Duration>, on: &Machine<'_>) -> Result<(), VolumeError> {
    let sys = on.sys;
    let path = stage.dir.join(iscsi::ENDING);
    if !stage.read(sys)?.is_some_and(|record| record.mechanism == Mechanism::Served) {
        return Ok(());
    }
    if grace.is_none() && if_found(sys.open(&path)).map_err(failed("open", &path))?.is_some() {
        return Ok(());
    }
    let seconds = grace.unwrap_or(LAST_PATIENCE).max(LEAST_PATIENCE).as_secs();
    replace(&stage.dir, iscsi::ENDING, seconds.to_string().as_bytes(), sys)
}

/// Lets the device have the size that its LUN has now. `None`: there is no device.
pub(super) fn refresh(stage: &Stage, on: &Machine<'_>) -> Result<Option<PathBuf>, VolumeError> {
    let sys = on.sys;
    let Some(top) = if_found(sys.open(&stage.dir)).map_err(failed("open", &stage.dir))? else { return Ok(None) };
    if !lives(&top, stage, sys)? || !matches!(outcome(stage, sys)?, Some(Outcome::Serving { .. })) {
        return Ok(None);
    }
    let (name, path) = (OsStr::new(iscsi::REFRESH), stage.dir.join(iscsi::REFRESH));
    match sys.write_new(&top, name, b"", 0o600) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        made => made.map_err(failed("create", &path))?,
    }
    let until = Instant::now() + REFRESH;
    while if_found(sys.stat_at(&top, name)).map_err(failed("read", &path))?.is_some() {
        on.wanted()?;
        if Instant::now() > until {
            let why = "its target does not say how large it is now; see whether its portals can be reached".to_owned();
            return Err(VolumeError::Growth { path: stage.dir.clone(), why, errno: None });
        }
        std::thread::sleep(LOOK);
    }
    let export = sys.open_at(&top, Path::new(iscsi::EXPORT), sys::Reach::Plain).map_err(failed("open", &path))?;
    let device = sys.loop_of(&export).map_err(failed("find the device of", &path))?;
    if let Some(device) = &device {
        sys.refresh_loop(device).map_err(failed("resize", device))?;
    }
    Ok(device)
}

/// How it went, for whoever waits for the volume.
fn refusal(source: &IscsiSource, outcome: &Outcome) -> VolumeError {
    let why = match outcome {
        Outcome::Refused { causes } => {
            let all: Vec<String> = causes.iter().map(|(portal, cause)| said(source, portal, cause)).collect();
            format!("failed to get any path for iscsi disk: {}", all.join("; "))
        }
        Outcome::Unable { why } => {
            format!(
                "this node cannot reach iSCSI targets: {why}; install qemu-storage-daemon (Debian's packages qemu-utils and \
                 qemu-system-common) with QEMU's iSCSI driver (qemu-block-extra), or open-iscsi where the kernel has iscsi_tcp"
            )
        }
        Outcome::Lost => "its target did not answer for so long that it was given up".to_owned(),
        Outcome::Serving { .. } => "the process that served its LUN ended".to_owned(),
    };
    trouble(&source.name, why)
}

fn said(source: &IscsiSource, portal: &str, cause: &Cause) -> String {
    let IscsiSource { iqn, lun, .. } = source;
    match cause {
        Cause::Portal(why) => format!("portal {portal} (iscsi.targetPortal, iscsi.portals) cannot be reached: {why}"),
        Cause::Target => format!("portal {portal} has no target {iqn:?} for this node (iscsi.iqn)"),
        Cause::Lun => format!("target {iqn:?} at {portal} has no LUN {lun} for this node (iscsi.lun)"),
        Cause::Login if source.chap_session => {
            let secret = source.secret.as_ref().map(|s| format!("{}/{}", s.namespace, s.name)).unwrap_or_default();
            format!("target {iqn:?} at {portal} refuses user or password of secret {secret} (iscsi.secretRef)")
        }
        Cause::Login => format!("target {iqn:?} at {portal} wants CHAP (iscsi.chapAuthSession, iscsi.secretRef)"),
        Cause::Other(why) => format!("target {iqn:?} at {portal}: {why}"),
    }
}
