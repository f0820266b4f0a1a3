//! An iSCSI target beside a fake kernel, and the programs by which machines reach it.
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use iscsi::{Cause, Chap, Outcome, Wish};
use sys::{FakeSys, FileKind, Program, Ran};

/// The target's name.
pub const TARGET: &str = "iqn.2026-11.test:t";
const RECORDS: &str = "/etc/iscsi";
const HOSTS: &str = "/sys/class/iscsi_host";

/// A target, and all that a machine has of it.
pub struct FakeTarget {
    sys: Weak<FakeSys>,
    state: Mutex<State>,
}

struct State {
    /// Those that answer.
    portals: BTreeSet<String>,
    /// Sizes in bytes.
    luns: BTreeMap<u32, u64>,
    read_only: bool,
    chap: Option<Chap>,
    /// By what it proves who it is.
    proof: Option<Chap>,
    /// What programs were run for, without what they were told in secret.
    log: Vec<String>,
    interfaces: BTreeSet<String>,
    /// Portal and interface of each host of the kernel.
    sessions: BTreeMap<u32, (String, String)>,
    /// Whether disks of several paths are joined.
    joins: bool,
}

impl FakeTarget {
    /// A target with one portal and LUN 1 that everybody may have. `by_kernel`: the machine has the kernel's initiator.
    pub fn new(sys: &Arc<FakeSys>, by_kernel: bool) -> Arc<Self> {
        let state = State {
            portals: ["10.0.0.1:3260".to_owned()].into(),
            luns: [(1, 1 << 20)].into(),
            read_only: false,
            chap: None,
            proof: None,
            log: Vec::new(),
            interfaces: ["default".to_owned()].into(),
            sessions: BTreeMap::new(),
            joins: false,
        };
        let target = Arc::new(Self { sys: Arc::downgrade(sys), state: Mutex::new(state) });
        if by_kernel {
            sys.with_content("/usr/sbin/iscsiadm", b"");
            sys.with_dir("/sys/class/iscsi_transport");
        }
        let runs = target.clone();
        sys.with_programs(move |program| runs.run(program));
        let acts = target.clone();
        sys.with_settings(move |path, what| acts.set(path, what));
        target
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sys(&self) -> Arc<FakeSys> {
        self.sys.upgrade().expect("the kernel runs its programs")
    }

    /// What programs were run for so far.
    pub fn log(&self) -> Vec<String> {
        self.state().log.clone()
    }

    /// The portals that answer from now on.
    pub fn answer_at(&self, portals: &[&str]) {
        self.state().portals = portals.iter().map(|p| (*p).to_owned()).collect();
    }

    /// The LUNs that there are from now on, with their sizes.
    pub fn have(&self, luns: &[(u32, u64)]) {
        self.state().luns = luns.iter().copied().collect();
    }

    /// Takes no writes from now on.
    pub fn refuse_writes(&self) {
        self.state().read_only = true;
    }

    /// Lets only those in who prove who they are.
    pub fn want(&self, user: &str, secret: &str) {
        self.state().chap = Some(Chap { user: user.into(), secret: secret.into() });
    }

    /// Proves who it is to those who ask for that.
    pub fn prove(&self, user: &str, secret: &str) {
        self.state().proof = Some(Chap { user: user.into(), secret: secret.into() });
    }

    /// Lets disks of one LUN become one device.
    pub fn join_paths(&self) {
        self.state().joins = true;
    }

    /// The sessions of the kernel: portal and interface.
    pub fn sessions(&self) -> Vec<(String, String)> {
        self.state().sessions.values().cloned().collect()
    }

    fn run(&self, program: &Program<'_>) -> io::Result<Ran> {
        let arguments: Vec<String> = program.arguments.iter().map(|a| a.to_string_lossy().into_owned()).collect();
        if program.name == Some(OsStr::new(iscsi::SERVER)) {
            self.serve(Path::new(&arguments[0]), program.input);
            return Ok(Ran::default());
        }
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let name = program.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (status, output) = match name.as_str() {
            "iscsiadm" => self.administer(&words),
            "multipath" | "multipathd" | "modprobe" => (0, String::new()),
            _ => return Err(io::ErrorKind::NotFound.into()),
        };
        self.state().log.push(format!("{name} {}: {status}", words.join(" ")));
        Ok(Ran { status: Some(status), output: output.into_bytes(), errors: Vec::new() })
    }

    /// As the process that serves a LUN as a file.
    fn serve(&self, dir: &Path, wish: &[u8]) {
        let wish: Wish = serde_json::from_slice(wish).expect("a wish");
        let sys = self.sys();
        let outcome = {
            let mut state = self.state();
            state.log.push(format!("serve {} LUN {} as {}", wish.target, wish.lun, wish.initiator));
            let judged = wish.portals.iter().map(|portal| (portal.clone(), state.judge(&wish, portal)));
            let mut causes = Vec::new();
            let mut served = None;
            for (portal, verdict) in judged {
                match verdict {
                    Ok(bytes) if served.is_none() => {
                        served = Some(Outcome::Serving { portal, bytes, read_only: state.read_only });
                    }
                    Ok(_) => {}
                    Err(cause) => causes.push((portal, cause)),
                }
            }
            served.unwrap_or(Outcome::Refused { causes })
        };
        match &outcome {
            Outcome::Serving { bytes, .. } => {
                let bytes = usize::try_from(*bytes).expect("a small disk");
                sys.with_content(dir.join(iscsi::EXPORT), &vec![0; bytes]);
            }
            // It ends when it has said so.
            _ => sys.kill_attendants(),
        }
        sys.with_content(dir.join(iscsi::STATUS), &serde_json::to_vec(&outcome).expect("plain data"));
    }

    /// As open-iscsi's `iscsiadm`. Returns its status and what it says.
    fn administer(&self, words: &[&str]) -> (i32, String) {
        const NOT_FOUND: i32 = 21;
        let of = |option: &str| words.iter().position(|w| *w == option).map_or("", |at| words[at + 1]);
        let (mode, action, portal, interface) = (of("-m"), of("-o"), of("-p"), of("-I"));
        let sys = self.sys();
        let (address, port) = portal.rsplit_once(':').unwrap_or_default();
        let found = format!("{RECORDS}/send_targets/{address},{port}/st_config");
        let node = format!("{RECORDS}/nodes/{}/{address},{port},1/{interface}", of("-T"));
        match (mode, action) {
            ("iface", "show") if !self.state().interfaces.contains(interface) => (NOT_FOUND, String::new()),
            ("iface", "show") => {
                let empty = "iface.hwaddress = <empty>\niface.initiatorname = <empty>";
                (
                    0,
                    format!(
                        "# BEGIN\niface.iscsi_ifacename = {interface}\niface.transport_name = tcp\n{empty}\n# END\n"
                    ),
                )
            }
            ("iface", "new") => (if self.state().interfaces.insert(interface.into()) { 0 } else { 15 }, String::new()),
            ("iface", "delete") => {
                (if self.state().interfaces.remove(interface) { 0 } else { NOT_FOUND }, String::new())
            }
            ("iface", _) => (0, String::new()),
            ("discoverydb", "new") => {
                sys.with_content(found, b"# BEGIN RECORD\nkey = value\n# END RECORD\n");
                (0, String::new())
            }
            ("discoverydb", "delete") => {
                sys.without(Path::new(&found).parent().expect("a parent"));
                (0, String::new())
            }
            ("discoverydb", "update") => (0, String::new()),
            ("discoverydb", _) => {
                if !self.state().portals.contains(portal) {
                    return (8, "iscsiadm: cannot make connection".into());
                }
                let known = format!("{RECORDS}/nodes/{TARGET}/{address},{port},1/{interface}");
                sys.with_content(known, b"# BEGIN RECORD\nkey = value\n# END RECORD\n");
                (0, format!("{portal},1 {TARGET}"))
            }
            ("node", _) if words.contains(&"--logout") => (self.log_out(portal, interface), String::new()),
            ("node", _) if !sys.has(&node) => (NOT_FOUND, "iscsiadm: No records found".into()),
            ("node", "update") => (0, String::new()),
            ("node", "delete") => {
                sys.without(Path::new(&node));
                (0, String::new())
            }
            ("node", _) => (self.log_in(portal, interface, &node), String::new()),
            _ => (7, "iscsiadm: what?".into()),
        }
    }

    fn log_in(&self, portal: &str, interface: &str, record: &str) -> i32 {
        let sys = self.sys();
        let record = String::from_utf8(sys.content(record)).expect("text");
        let says = |key: &str, value: &str| record.lines().any(|line| line == format!("{key} = {value}"));
        let mut state = self.state();
        if !state.portals.contains(portal) {
            return 8;
        }
        if let Some(chap) = &state.chap
            && !(says("node.session.auth.username", &chap.user) && says("node.session.auth.password", &chap.secret))
        {
            return 24;
        }
        let proof = state.proof.as_ref();
        let is_proved = |key: &str, own: Option<&str>| {
            let line = record.lines().find_map(|line| line.strip_prefix(&format!("{key} = ")));
            line.is_none() || line == own
        };
        if !is_proved("node.session.auth.username_in", proof.map(|p| p.user.as_str()))
            || !is_proved("node.session.auth.password_in", proof.map(|p| p.secret.as_str()))
        {
            return 19;
        }
        if state.sessions.values().any(|s| *s == (portal.to_owned(), interface.to_owned())) {
            return 15;
        }
        let number = (3..).find(|n| !state.sessions.contains_key(n)).expect("there are enough numbers");
        state.sessions.insert(number, (portal.to_owned(), interface.to_owned()));
        drop(state);
        let session = session(number);
        let facts = session.join(format!("iscsi_session/session{number}"));
        sys.with_content(facts.join("targetname"), format!("{TARGET}\n").as_bytes());
        sys.with_content(facts.join("ifacename"), format!("{interface}\n").as_bytes());
        let connection = format!("connection{number}:0");
        let facts = session.join(&connection).join("iscsi_connection").join(&connection);
        let (address, port) = portal.rsplit_once(':').expect("an address and a port");
        sys.with_content(facts.join("persistent_address"), address.as_bytes());
        sys.with_content(facts.join("persistent_port"), port.as_bytes());
        sys.with_content(format!("/sys/class/scsi_host/host{number}/scan"), b"");
        0
    }

    fn log_out(&self, portal: &str, interface: &str) -> i32 {
        let wanted = (portal.to_owned(), interface.to_owned());
        let found = self.state().sessions.iter().find(|(_, s)| **s == wanted).map(|(number, _)| *number);
        let Some(number) = found else { return 21 };
        self.state().sessions.remove(&number);
        let sys = self.sys();
        let disks: Vec<u32> = self.state().luns.keys().copied().collect();
        disks.iter().for_each(|lun| self.forget(&disk(number, *lun)));
        sys.without(Path::new(HOSTS).join(format!("host{number}")));
        sys.without(format!("/sys/class/scsi_host/host{number}"));
        0
    }

    fn forget(&self, disk: &str) {
        let sys = self.sys();
        sys.without(Path::new("/dev").join(disk));
        sys.without(Path::new("/sys/block").join(disk));
        sys.without(Path::new("/sys/block/dm-0/slaves").join(disk));
        for number in self.state().sessions.keys() {
            for lun in 0..10 {
                if disk == self::disk(*number, lun) {
                    sys.without(unit(*number, lun));
                }
            }
        }
    }

    /// What files of the kernel do.
    fn set(&self, path: &Path, what: &[u8]) {
        let what = String::from_utf8_lossy(what);
        let parts: Vec<String> = path.iter().map(|p| p.to_string_lossy().into_owned()).collect();
        match parts.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["/", "sys", "class", "scsi_host", host, "scan"] => {
                let number = host.trim_start_matches("host").parse().expect("a host's number");
                let lun = what.rsplit(' ').next().and_then(|l| l.parse().ok()).expect("a LUN");
                self.find(number, lun);
            }
            ["/", "sys", "block", disk, "device", "delete"] => self.forget(disk),
            _ => {}
        }
    }

    fn find(&self, number: u32, lun: u32) {
        let (bytes, joins) = {
            let state = self.state();
            (state.luns.get(&lun).copied(), state.joins)
        };
        let (sys, name) = (self.sys(), disk(number, lun));
        let Some(bytes) = bytes else { return };
        let device = Path::new("/dev").join(&name);
        if sys.has(&device) {
            return;
        }
        sys.with_dir(unit(number, lun).join("block").join(&name));
        sys.with_file(&device, FileKind::BlockDevice);
        sys.with_disk(&device, bytes, false);
        for file in ["delete", "rescan"] {
            sys.with_content(format!("/sys/block/{name}/device/{file}"), b"");
        }
        if joins {
            sys.with_dir(Path::new("/sys/block/dm-0/slaves").join(&name));
            if !sys.has("/dev/dm-0") {
                sys.with_file("/dev/dm-0", FileKind::BlockDevice);
                sys.with_disk("/dev/dm-0", bytes, false);
            }
        }
    }
}

impl State {
    fn judge(&self, wish: &Wish, portal: &str) -> Result<u64, Cause> {
        if !self.portals.contains(portal) {
            return Err(Cause::Portal("Connection refused".into()));
        }
        if self.chap.is_some() && self.chap != wish.chap {
            return Err(Cause::Login);
        }
        if wish.target != TARGET {
            return Err(Cause::Target);
        }
        self.luns.get(&wish.lun).copied().ok_or(Cause::Lun)
    }
}

fn session(number: u32) -> PathBuf {
    Path::new(HOSTS).join(format!("host{number}/device/session{number}"))
}

fn unit(number: u32, lun: u32) -> PathBuf {
    session(number).join(format!("target{number}:0:0/{number}:0:0:{lun}"))
}

fn disk(number: u32, lun: u32) -> String {
    format!("sd{number}x{lun}")
}
