//! LUNs by the kernel's initiator, which open-iscsi's `iscsiadm` directs.
//!
//! Who is logged in where, and what disks that gave, is read from `/sys`. Secrets go into open-iscsi's own records, which
//! only root can read, and never into arguments.
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use sys::{Bounds, Program, Ran, Sys};

use super::{
    alone,
    chap::{self, Words},
    stage::{Mechanism, Stage, StageRecord},
    trouble,
};
use crate::{
    contract::{IscsiSource, Machine},
    error::VolumeError,
    place::failed,
    plugins::{
        record::replace,
        scsi::{flush_joined, forget, is_joined, multipath_of, names, program, rescan_sizes, set, text},
    },
};

const TRANSPORT: &str = "/sys/class/iscsi_transport";
const HOSTS: &str = "/sys/class/iscsi_host";
/// Where distributions have open-iscsi's records.
const RECORDS: [&str; 2] = ["/etc/iscsi", "/var/lib/iscsi"];
/// `iscsiadm` gives up by itself before.
const BOUNDS: Bounds = Bounds { time: Duration::from_secs(150), output_bytes: 64 << 10 };
/// How long the kernel may take to show a disk, or multipathd to join several.
const APPEARS: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);
/// Exit statuses of `iscsiadm`.
const NO_SESSION: i32 = 2;
const TRANSPORT_FAILED: [i32; 4] = [4, 6, 8, 11];
const EXISTS: i32 = 15;
const LOGIN_FAILED: i32 = 19;
const NOT_FOUND: i32 = 21;
const REFUSED: i32 = 24;

/// Whether LUNs can be had from the kernel here.
pub(super) fn is_there(on: &Machine<'_>) -> Result<bool, VolumeError> {
    let sys = on.sys;
    if program(sys, "iscsiadm").is_none() {
        return Ok(false);
    }
    let shown = || sys.open(Path::new(TRANSPORT)).is_ok();
    if !shown()
        && let Some(modprobe) = program(sys, "modprobe")
    {
        let arguments: [OsString; 2] = ["-q".into(), "iscsi_tcp".into()];
        // A kernel without it says so by not having it.
        let _ = sys.run(&Program::new(&modprobe, &arguments), &BOUNDS, &|| on.cancel.is_cancelled());
        on.wanted()?;
    }
    Ok(shown())
}

/// A session with the target.
struct Session {
    /// `host3`
    host: String,
    /// Below which its disks are.
    path: PathBuf,
    portals: Vec<String>,
}

/// The sessions by which this record's LUN can be had.
fn sessions(record: &StageRecord, sys: &dyn Sys) -> Result<Vec<Session>, VolumeError> {
    let mut found = Vec::new();
    for host in names(sys, Path::new(HOSTS))? {
        let device = Path::new(HOSTS).join(&host).join("device");
        for name in names(sys, &device)?.into_iter().filter(|n| n.starts_with("session")) {
            let path = device.join(&name);
            let facts = path.join("iscsi_session").join(&name);
            let own = text(sys, &facts.join("ifacename"))?.is_none_or(|i| i == record.interface);
            if !own || text(sys, &facts.join("targetname"))?.as_deref() != Some(record.iqn.as_str()) {
                continue;
            }
            let mut portals = Vec::new();
            for connection in names(sys, &path)?.into_iter().filter(|n| n.starts_with("connection")) {
                let facts = path.join(&connection).join("iscsi_connection").join(&connection);
                for (address, port) in [("persistent_address", "persistent_port"), ("address", "port")] {
                    let read = |name| text(sys, &facts.join(name)).map(|said| said.filter(|t| !t.is_empty()));
                    if let (Some(address), Some(port)) = (read(address)?, read(port)?) {
                        let address = if address.contains(':') { format!("[{address}]") } else { address };
                        portals.push(format!("{address}:{port}"));
                    }
                }
            }
            found.push(Session { host: host.clone(), path, portals });
        }
    }
    Ok(found)
}

/// The disk of a LUN in a session.
fn disk(session: &Session, lun: u32, sys: &dyn Sys) -> Result<Option<String>, VolumeError> {
    let tail = format!(":{lun}");
    for target in names(sys, &session.path)?.into_iter().filter(|n| n.starts_with("target")) {
        let target = session.path.join(target);
        for unit in names(sys, &target)?.into_iter().filter(|n| n.ends_with(&tail) && n.split(':').count() == 4) {
            if let Some(disk) = names(sys, &target.join(unit).join("block"))?.into_iter().next() {
                return Ok(Some(disk));
            }
        }
    }
    Ok(None)
}

fn disks(record: &StageRecord, sys: &dyn Sys) -> Result<Vec<String>, VolumeError> {
    let sessions = sessions(record, sys)?;
    let found = sessions.iter().map(|session| disk(session, record.lun, sys));
    found.filter_map(Result::transpose).collect()
}

/// What both ways of calling `iscsiadm` need.
struct Admin<'a> {
    path: PathBuf,
    volume: &'a str,
    on: &'a Machine<'a>,
}

impl<'a> Admin<'a> {
    fn new(volume: &'a str, on: &'a Machine<'a>) -> Result<Self, VolumeError> {
        let path = program(on.sys, "iscsiadm")
            .ok_or_else(|| trouble(volume, "iscsiadm is not installed any more; install open-iscsi on this node"))?;
        Ok(Self { path, volume, on })
    }

    fn run(&self, arguments: &[&str]) -> Result<Ran, VolumeError> {
        let all: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let ran = self.on.sys.run(&Program::new(&self.path, &all), &BOUNDS, &|| self.on.cancel.is_cancelled());
        self.on.wanted()?;
        ran.map_err(failed("run", &self.path))
    }

    /// Any other status than these is an error, told after `what`.
    fn must(&self, what: &str, arguments: &[&str], good: &[i32]) -> Result<Ran, VolumeError> {
        let ran = self.run(arguments)?;
        match ran.status {
            Some(status) if status == 0 || good.contains(&status) => Ok(ran),
            status => {
                let how = status.map_or_else(|| "a signal".to_owned(), |s| format!("status {s}"));
                Err(trouble(self.volume, format!("{what}: iscsiadm ended with {how}: {}", said(&ran))))
            }
        }
    }
}

fn said(ran: &Ran) -> String {
    let said = if ran.errors.trim_ascii().is_empty() { &ran.output } else { &ran.errors };
    String::from_utf8_lossy(said).trim().replace('\n', "; ")
}

/// Logs in where this machine is not, and finds the LUN's device.
pub(super) fn attach(source: &IscsiSource, stage: &Stage, on: &Machine<'_>) -> Result<PathBuf, VolumeError> {
    let own_interface = source.initiator.is_some();
    // As upstream names it.
    let interface =
        if own_interface { format!("{}:{}", source.portals[0], source.name) } else { source.interface.clone() };
    let record = match stage.read(on.sys)? {
        Some(known) => known,
        None => StageRecord {
            mechanism: Mechanism::Kernel,
            portals: source.portals.clone(),
            iqn: source.iqn.clone(),
            lun: source.lun,
            interface,
            own_interface,
        },
    };
    if let Some(device) = joined(&record, &disks(&record, on.sys)?, 1, on)? {
        return Ok(device);
    }
    let words = Words::read(source, on)?;
    stage.write(&record, on.sys)?;
    // Sessions are shared by the LUNs of a target.
    alone(&format!("iscsi target {}", record.iqn), on, || log_in(source, &record, &words, on))?;
    let mut found = Vec::new();
    let until = Instant::now() + APPEARS;
    loop {
        let sessions = sessions(&record, on.sys)?;
        if found.len() < sessions.len() {
            found = disks(&record, on.sys)?;
        }
        if (!found.is_empty() && found.len() == sessions.len()) || Instant::now() > until {
            break;
        }
        on.wanted()?;
        std::thread::sleep(LOOK);
    }
    if found.is_empty() {
        let why = format!(
            "target {:?} at {} has no LUN {} for this node (iscsi.lun): no disk appeared in {} s",
            record.iqn,
            record.portals.join(", "),
            record.lun,
            APPEARS.as_secs()
        );
        return Err(trouble(&source.name, why));
    }
    let device = joined(&record, &found, record.portals.len(), on)?;
    device.ok_or_else(|| trouble(&source.name, format!("its disk {} has no device in /dev", found.join(", "))))
}

/// The one device of all paths to a disk, or the disk itself if there is none. Several portals are waited for.
fn joined(
    record: &StageRecord,
    disks: &[String],
    portals: usize,
    on: &Machine<'_>,
) -> Result<Option<PathBuf>, VolumeError> {
    let Some(first) = disks.first() else { return Ok(None) };
    let until = Instant::now() + APPEARS;
    let mut device = None;
    while device.is_none() {
        for disk in disks {
            device = device.or(multipath_of(on.sys, disk)?);
        }
        if portals < 2 || record.portals.len() < 2 || disks.len() < 2 || Instant::now() > until {
            break;
        }
        on.wanted()?;
        if device.is_none() {
            std::thread::sleep(LOOK);
        }
    }
    let path = Path::new("/dev").join(device.as_ref().unwrap_or(first));
    Ok(on.sys.open(&path).is_ok().then_some(path))
}

/// Logs in at each portal; one is enough.
fn log_in(source: &IscsiSource, record: &StageRecord, words: &Words, on: &Machine<'_>) -> Result<(), VolumeError> {
    let admin = Admin::new(&source.name, on)?;
    let field = format!("open-iscsi has no interface {:?} (iscsi.iscsiInterface)", source.interface);
    let shown = admin.must(&field, &["-m", "iface", "-I", &source.interface, "-o", "show"], &[])?;
    if let (true, Some(initiator)) = (record.own_interface, &source.initiator) {
        make_interface(&admin, &String::from_utf8_lossy(&shown.output), &record.interface, initiator)?;
    }
    let mut failures = Vec::new();
    for portal in &record.portals {
        let known = sessions(record, on.sys)?;
        let scanned = match known.iter().find(|s| s.portals.contains(portal)) {
            Some(session) => scan(session, record.lun, on.sys),
            None => log_in_at(&admin, source, record, portal, words).and_then(|()| {
                let known = sessions(record, on.sys)?;
                known.iter().filter(|s| s.portals.contains(portal)).try_for_each(|s| scan(s, record.lun, on.sys))
            }),
        };
        match scanned {
            Err(VolumeError::Disk { why, .. }) => failures.push(why),
            other => other?,
        }
    }
    if failures.len() < record.portals.len() {
        return Ok(());
    }
    let why = format!("failed to get any path for iscsi disk: {}", failures.join("; "));
    Err(trouble(&source.name, why))
}

/// Looks for one LUN and no other: those of others would come and go without anybody here knowing.
fn scan(session: &Session, lun: u32, sys: &dyn Sys) -> Result<(), VolumeError> {
    set(sys, &Path::new("/sys/class/scsi_host").join(&session.host).join("scan"), &format!("0 0 {lun}"))
}

/// Makes an interface like another one, with an initiator name of its own.
fn make_interface(admin: &Admin<'_>, like: &str, name: &str, initiator: &str) -> Result<(), VolumeError> {
    let field = "an interface for iscsi.initiatorName cannot be made";
    admin.must(field, &["-m", "iface", "-I", name, "-o", "new"], &[EXISTS])?;
    let settings = like.lines().filter(|l| l.starts_with("iface.")).filter_map(|l| l.split_once(" = "));
    let settings = settings
        .filter(|(key, value)| *value != "<empty>" && *key != "iface.iscsi_ifacename" && *key != "iface.initiatorname");
    for (key, value) in settings.chain([("iface.initiatorname", initiator)]) {
        admin.must(field, &["-m", "iface", "-I", name, "-o", "update", "-n", key, "-v", value], &[])?;
    }
    Ok(())
}

fn log_in_at(
    admin: &Admin<'_>,
    source: &IscsiSource,
    record: &StageRecord,
    portal: &str,
    words: &Words,
) -> Result<(), VolumeError> {
    let sys = admin.on.sys;
    let (iqn, interface) = (record.iqn.as_str(), record.interface.as_str());
    let discovery = ["-m", "discoverydb", "-t", "sendtargets", "-p", portal, "-I", interface];
    let node = ["-m", "node", "-p", portal, "-T", iqn, "-I", interface];
    let call = |base: &[&str], rest: &[&str]| -> Result<Ran, VolumeError> { admin.run(&[base, rest].concat()) };
    let at_portal = format!("portal {portal} (iscsi.targetPortal, iscsi.portals)");

    admin.must(&at_portal, &[&discovery[..], &["-o", "new"]].concat(), &[EXISTS])?;
    if source.chap_discovery {
        let method = ["-o", "update", "-n", "discovery.sendtargets.auth.authmethod", "-v", "CHAP"];
        admin.must(&at_portal, &[&discovery[..], &method].concat(), &[])?;
        let files = record_files(sys, "send_targets", portal, "st_config")?;
        remember(sys, &files, words.pairs(&chap::DISCOVERY).collect(), &source.name)?;
    }
    let found = call(&discovery, &["--discover"])?;
    if found.status != Some(0) {
        call(&discovery, &["-o", "delete"])?;
        let why = match found.status {
            Some(REFUSED) => format!("{at_portal} refuses user or password for discovery (iscsi.secretRef)"),
            Some(s) if TRANSPORT_FAILED.contains(&s) => format!("{at_portal} cannot be reached: {}", said(&found)),
            _ => format!("{at_portal}: failed to sendtargets: {}", said(&found)),
        };
        return Err(trouble(&source.name, why));
    }
    // Other LUNs of the target stay unseen. Old versions cannot do this, and it is not needed for anything else.
    call(&node, &["-o", "update", "-n", "node.session.scan", "-v", "manual"])?;
    if source.chap_session {
        let method = ["-o", "update", "-n", "node.session.auth.authmethod", "-v", "CHAP"];
        admin.must(
            &format!("{at_portal} has no target {iqn:?} for this node (iscsi.iqn)"),
            &[&node[..], &method].concat(),
            &[],
        )?;
        let files = record_files(sys, &format!("nodes/{iqn}"), portal, interface)?;
        remember(sys, &files, words.pairs(&chap::SESSION).collect(), &source.name)?;
    }
    let logged = call(&node, &["--login"])?;
    match logged.status {
        Some(0 | EXISTS) => {}
        status => {
            call(&node, &["-o", "delete"])?;
            let why = match status {
                Some(NOT_FOUND) => format!("{at_portal} has no target {iqn:?} for this node (iscsi.iqn)"),
                Some(REFUSED) => format!("target {iqn:?} at {portal} refuses user or password (iscsi.secretRef)"),
                Some(LOGIN_FAILED) if source.chap_session && words.asks_for_proof(&chap::SESSION) => format!(
                    "target {iqn:?} at {portal} does not prove who it is by {} and {} (iscsi.secretRef): {}",
                    chap::SESSION[2],
                    chap::SESSION[3],
                    said(&logged)
                ),
                Some(s) if TRANSPORT_FAILED.contains(&s) => format!("{at_portal} cannot be reached: {}", said(&logged)),
                _ => format!("failed to attach disk: target {iqn:?} at {portal}: {}", said(&logged)),
            };
            return Err(trouble(&source.name, why));
        }
    }
    // A machine that starts does not log in before a pod wants it.
    call(&node, &["-o", "update", "-n", "node.startup", "-v", "manual"])?;
    Ok(())
}

/// The files in which open-iscsi keeps what it knows of a portal.
fn record_files(sys: &dyn Sys, kind: &str, portal: &str, name: &str) -> Result<Vec<PathBuf>, VolumeError> {
    let (address, port) = portal.rsplit_once(':').unwrap_or((portal, ""));
    let start = format!("{},{port}", address.trim_matches(['[', ']']));
    let mut files = Vec::new();
    for top in RECORDS.map(|top| Path::new(top).join(kind)) {
        // Of nodes, the target's portal group follows.
        let portals = names(sys, &top)?.into_iter().filter(|n| *n == start || n.starts_with(&format!("{start},")));
        files.extend(portals.map(|portal| top.join(portal).join(name)).filter(|file| sys.open(file).is_ok()));
    }
    Ok(files)
}

/// Adds settings to records.
fn remember(sys: &dyn Sys, files: &[PathBuf], settings: Vec<(&str, &str)>, volume: &str) -> Result<(), VolumeError> {
    if files.is_empty() {
        return Err(trouble(
            volume,
            format!("open-iscsi's record is in none of {}; this version is not known", RECORDS.join(", ")),
        ));
    }
    for file in files {
        let old = text(sys, file)?.unwrap_or_default();
        let is_set =
            |line: &&str| settings.iter().any(|(key, _)| line.split_once(" = ").is_some_and(|(k, _)| k == *key));
        let mut lines: Vec<String> = old.lines().filter(|line| !is_set(line)).map(str::to_owned).collect();
        // Before the mark of the record's end.
        let end = lines.iter().rposition(|line| line.starts_with("# END")).unwrap_or(lines.len());
        lines.splice(end..end, settings.iter().map(|(key, value)| format!("{key} = {value}")));
        let (Some(dir), Some(name)) = (file.parent(), file.file_name()) else { continue };
        replace(dir, &name.to_string_lossy(), (lines.join("\n") + "\n").as_bytes(), sys)?;
    }
    Ok(())
}

/// Lets the kernel forget the LUN, and logs out if no other LUN of this machine needs the session.
pub(super) fn detach(record: &StageRecord, stage: &Stage, on: &Machine<'_>) -> Result<(), VolumeError> {
    on.shared.alone(&format!("iscsi target {}", record.iqn), || {
        let volume = format!("{} LUN {}", record.iqn, record.lun);
        let sys = on.sys;
        let disks = disks(record, sys)?;
        for disk in &disks {
            if let Some(device) = multipath_of(sys, disk)? {
                // What multipathd does not let go of, logging out takes away.
                flush_joined(sys, &device);
            }
        }
        disks.iter().try_for_each(|disk| forget(sys, disk))?;
        if stage.shares_session(record, on)? {
            return Ok(());
        }
        let admin = Admin::new(&volume, on)?;
        for portal in &record.portals {
            let node = ["-m", "node", "-p", portal, "-T", &record.iqn, "-I", &record.interface];
            admin.must("logging out failed", &[&node[..], &["--logout"]].concat(), &[NO_SESSION, NOT_FOUND])?;
            admin.must(
                "removing the record failed",
                &[&node[..], &["-o", "delete"]].concat(),
                &[NO_SESSION, NOT_FOUND],
            )?;
        }
        if record.own_interface {
            let gone = ["-m", "iface", "-I", &record.interface, "-o", "delete"];
            admin.must("removing the interface failed", &gone, &[NO_SESSION, NOT_FOUND])?;
        }
        Ok(())
    })
}

/// Lets the kernel see the LUN's size as it is now. `None`: there is no disk.
pub(super) fn refresh(record: &StageRecord, on: &Machine<'_>) -> Result<Option<PathBuf>, VolumeError> {
    let sys = on.sys;
    let disks = disks(record, sys)?;
    let device = joined(record, &disks, 1, on)?;
    let joined = device.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy());
    rescan_sizes(sys, &disks, joined.filter(|name| is_joined(name)).as_deref())?;
    Ok(device)
}
