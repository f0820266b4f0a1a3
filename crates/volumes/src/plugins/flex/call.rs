//! Calls of a driver: a program with a command, paths and one JSON object of options as arguments, which answers with
//! another JSON object.
use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, ErrorKind},
    path::{Component, Path, PathBuf},
    time::Duration,
};

use serde_json::{Map, Value};
use sys::{Bounds, Program, Ran};

use crate::contract::{FlexVolume, Machine};

/// A driver may make a filesystem, or wait for a cloud.
const TIME: Duration = Duration::from_secs(120);
/// Upstream's patience with an attachment.
const TIME_TO_ATTACH: Duration = Duration::from_secs(600);
const OUTPUT_BYTES: usize = 64 << 10;
/// Of what it said in place of an answer, so much is told.
const TOLD_CHARS: usize = 300;
/// Lines of secrets that are this long say something by themselves.
const LINE: usize = 8;
/// Drivers find the programs of the host with this.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a driver did not do what it was asked for.
#[derive(Debug)]
pub(super) enum Failure {
    /// It does not know this command: the node does it itself, where it can.
    NotSupported,
    Failed(String),
    Cancelled,
}

/// What a driver says that it can; what it does not speak of, it can, but for figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// Volumes are attached, and mounted once for all pods, before they are mounted for one.
    pub attach: bool,
    /// The node gives the files to the pod's group.
    pub fs_group: bool,
    pub fs_resize: bool,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    pub device: String,
    pub attached: bool,
    pub capabilities: Capabilities,
}

/// A driver that is there.
pub(super) struct Driver<'a> {
    path: PathBuf,
    on: &'a Machine<'a>,
    /// What must not be told, whatever the driver says.
    secrets: Vec<String>,
}

/// The directory and the name of a driver's program: `vendor~driver` and `driver`. `None`: no driver has such a name.
pub(super) fn file_of(driver: &str) -> Option<(String, &str)> {
    let plain = |part: &str| {
        let mut parts = Path::new(part).components();
        let one = matches!((parts.next(), parts.next()), (Some(Component::Normal(name)), None) if name == part);
        // Upstream looks at no hidden directory.
        one && !part.starts_with('.') && !part.contains(['~', '\0'])
    };
    let name = driver.rsplit('/').next().filter(|_| driver.split('/').all(plain))?;
    Some((driver.replace('/', "~"), name))
}

impl<'a> Driver<'a> {
    /// Finds a driver: as soon as its file is there, it is used.
    pub(super) fn find(driver: &str, on: &'a Machine<'a>) -> Result<Self, String> {
        let Some((dir, name)) = file_of(driver) else {
            return Err(format!("no volume plugin matched: {driver:?} is not a name that a driver can have"));
        };
        let path = on.settings.flex_dir.join(dir).join(name);
        match on.sys.open(&path) {
            Ok(_) => Ok(Self { path, on, secrets: Vec::new() }),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Err(format!(
                "no volume plugin matched: this node has no program {} for driver {driver:?}; install it, and it is used \
                 at the next try",
                path.display()
            )),
            Err(e) => Err(format!("the program {} of driver {driver:?} cannot be opened: {e}", path.display())),
        }
    }

    /// What it says must not show these.
    pub(super) fn hide(&mut self, secrets: impl IntoIterator<Item = String>) {
        self.secrets.extend(secrets.into_iter().flat_map(|secret| parts(&secret)));
        // One that is the beginning of another would leave the rest of that.
        self.secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    }

    /// Asks it to do something.
    pub(super) fn call(&self, command: &str, rest: &[&str]) -> Result<Status, Failure> {
        let arguments: Vec<OsString> = std::iter::once(&command).chain(rest).map(OsString::from).collect();
        let environment = [("PATH".into(), PATH.into())];
        let program = Program { environment: &environment, ..Program::new(&self.path, &arguments) };
        let time = if command == "waitforattach" { TIME_TO_ATTACH } else { TIME };
        let bounds = Bounds { time, output_bytes: OUTPUT_BYTES };
        match self.on.sys.run(&program, &bounds, &|| self.on.cancel.is_cancelled()) {
            Ok(ran) => self.heard(command, &ran),
            Err(e) if e.kind() == ErrorKind::Interrupted => Err(Failure::Cancelled),
            Err(e) => Err(Failure::Failed(self.not_run(command, time, &e))),
        }
    }

    fn not_run(&self, command: &str, time: Duration, error: &io::Error) -> String {
        let path = self.path.display();
        match error.kind() {
            ErrorKind::TimedOut => {
                format!("{command} command failed: {path} took longer than {} s and was killed", time.as_secs())
            }
            ErrorKind::PermissionDenied => {
                format!("{command} command failed: {path} may not be executed; make it executable (chmod +x)")
            }
            _ => format!("{command} command failed: {error}"),
        }
    }

    fn heard(&self, command: &str, ran: &Ran) -> Result<Status, Failure> {
        let Some(answer) = serde_json::from_slice::<Map<String, Value>>(&ran.output).ok().map(lowered) else {
            let said =
                [&ran.output, &ran.errors].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned()).join(" ");
            let how = ran.status.map_or("by a signal".into(), |status| format!("with status {status}"));
            let path = self.path.display();
            let why = format!("{command} command failed: {path} ended {how} and answered with no JSON object");
            return Err(Failure::Failed(self.tell(&why, said.trim())));
        };
        let text = |key: &str| answer.get(key).and_then(Value::as_str).unwrap_or_default();
        match (text("status"), ran.status) {
            ("Success", Some(0)) => Ok(Status {
                device: text("device").to_owned(),
                attached: answer.get("attached").and_then(Value::as_bool).unwrap_or(false),
                capabilities: capabilities(answer.get("capabilities")),
            }),
            ("Success", status) => {
                let how = status.map_or("a signal".into(), |status| format!("status {status}"));
                let path = self.path.display();
                Err(Failure::Failed(format!(
                    "{command} command failed: {path} answered Success, and ended with {how}: a mistake of the driver"
                )))
            }
            ("Not supported", _) => Err(Failure::NotSupported),
            (status, _) => {
                let why = format!("{command} command failed, status: {status}, reason");
                Err(Failure::Failed(self.tell(&why, text("message"))))
            }
        }
    }

    /// A sentence with what the driver said, but for secrets, and not at any length.
    fn tell(&self, why: &str, said: &str) -> String {
        let hidden = without(&self.secrets, said);
        let mut shown: String = hidden.chars().take(TOLD_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
        if hidden.chars().nth(TOLD_CHARS).is_some() {
            shown.push_str("...");
        }
        format!("{why}: {shown}")
    }
}

/// What of a secret a driver may repeat: all of it, without the line end that many have, and the lines of a key.
fn parts(secret: &str) -> Vec<String> {
    let lines = secret.lines().map(str::trim).filter(|line| line.len() >= LINE);
    lines.chain([secret, secret.trim()]).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn without(secrets: &[String], said: &str) -> String {
    secrets.iter().fold(said.to_owned(), |said, secret| said.replace(secret, "***"))
}

/// Keys in any case are the same, as for upstream's decoder.
fn lowered(object: Map<String, Value>) -> Map<String, Value> {
    object.into_iter().map(|(key, value)| (key.to_lowercase(), value)).collect()
}

fn capabilities(said: Option<&Value>) -> Capabilities {
    let said = said.and_then(Value::as_object).cloned().map(lowered).unwrap_or_default();
    let can = |key: &str| said.get(key).and_then(Value::as_bool).unwrap_or(true);
    Capabilities { attach: can("attach"), fs_group: can("fsgroup"), fs_resize: can("requiresfsresize") }
}

/// The object of options that a driver is told; `more` is what only mounting for a pod tells. What the volume's author says
/// cannot be any of the node's keys: the API refuses those.
pub(super) fn options(source: &FlexVolume, more: &BTreeMap<String, String>) -> String {
    let own = [
        ("kubernetes.io/fsType", source.fs_type.as_str()),
        ("kubernetes.io/readwrite", if source.read_only { "ro" } else { "rw" }),
        ("kubernetes.io/pvOrVolumeName", &source.name),
    ];
    let mut all: BTreeMap<&str, &str> = own.into();
    all.extend(more.iter().chain(&source.options).map(|(key, value)| (key.as_str(), value.as_str())));
    serde_json::json!(all).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_drivers_never_lead_elsewhere() {
        assert_eq!(file_of("example.com/nfs"), Some(("example.com~nfs".into(), "nfs")));
        assert_eq!(file_of("lvm"), Some(("lvm".into(), "lvm")));
        for wrong in ["", "/", "a/", "/a", "..", "../x", "a/../b", "a//b", ".hidden", "a/.b", "a~b", "a\0", "a/."] {
            assert_eq!(file_of(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn secrets_are_hidden_as_drivers_repeat_them() {
        let hidden = |secret: &str, said: &str| {
            let mut all = parts(secret);
            all.sort_by_key(|part| std::cmp::Reverse(part.len()));
            without(&all, said)
        };
        assert_eq!(hidden("1234\n", "user u, password 1234"), "user u, password ***");
        assert_eq!(hidden("-----KEY-----\nMIIEvQIBADAN\n", "bad line MIIEvQIBADAN in key"), "bad line *** in key");
        assert_eq!(hidden("one\n", "one\n"), "***");
        assert_eq!(hidden("", "nothing"), "nothing");
    }

    #[test]
    fn what_is_not_said_can_be_done() {
        let read = |text: &str| capabilities(serde_json::from_str::<Value>(text).ok().as_ref());
        let all = Capabilities { attach: true, fs_group: true, fs_resize: true };
        assert_eq!(capabilities(None), all);
        assert_eq!(read("{}"), all);
        assert_eq!(read(r#"{"attach": false}"#), Capabilities { attach: false, ..all });
        assert_eq!(
            read(r#"{"Attach": false, "fsGroup": false, "requiresFSResize": false}"#),
            Capabilities { attach: false, fs_group: false, fs_resize: false }
        );
    }
}
