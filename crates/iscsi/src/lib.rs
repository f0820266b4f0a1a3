//! iSCSI without the kernel's initiator: the process that shows one LUN as a file, by QEMU's storage daemon.
//!
//! A LUN has two processes. The *server* becomes `qemu-storage-daemon`: it has the session and serves the file by FUSE. The
//! *keeper* beside it tells the server what to do over QMP, says in a file how that went, and ends the server when the target
//! has not answered for so long that nobody should wait any more, as the kernel's initiator does: what reads or writes the
//! LUN would wait for ever otherwise, and could not even be killed. The keeper dies with the server.
//!
//! Of several portals one is used at a time. When it is lost, the session goes on at another one: the keeper stands between
//! the server, which knows one address only, and the portals.
//!
//! Secrets come through the standard input and go to the server over QMP: no argument, environment or file ever has them.
//!
//! Absent on purpose: Kubernetes' words, the block device made of the file, what is on the LUN.
mod keeper;
mod qmp;
mod relay;
mod server;

use std::{ffi::OsStr, io, path::Path, process::ExitCode};

use serde::{Deserialize, Serialize};

/// `argv[0]` of the server until it has become QEMU's; `argv[1]` is its directory.
pub const SERVER: &str = "holdfast-iscsi";
const KEEPER: &str = "holdfast-iscsi-keeper";

/// In the directory of a LUN: an empty file, and the LUN once it is served.
pub const EXPORT: &str = "export";
/// In the directory of a LUN: how far it is, an [`Outcome`] in JSON; written at once.
pub const STATUS: &str = "status.json";
/// In the directory of a LUN: make this file, and the LUN's size is read anew; it goes when that is done.
pub const REFRESH: &str = "refresh";
/// In the directory of a LUN: for how many seconds its target may be silent from now on. It shortens
/// [`Wish::patience_seconds`] as long as it is there.
pub const ENDING: &str = "ending";

/// What the server reads from its standard input, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// `address:port`, tried in turn, also when the one in use is lost.
    pub portals: Vec<String>,
    pub target: String,
    pub lun: u32,
    /// This machine's name to the target.
    pub initiator: String,
    pub chap: Option<Chap>,
    /// How long the target may be silent before the server is ended.
    pub patience_seconds: u64,
}

/// What proves to the target who this machine is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chap {
    pub user: String,
    pub secret: String,
}

impl std::fmt::Debug for Chap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Chap")
    }
}

/// How serving a LUN went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The file is the LUN.
    Serving {
        portal: String,
        bytes: u64,
        /// The target takes no writes.
        read_only: bool,
    },
    /// No portal gave it; one cause for each that was tried.
    Refused { causes: Vec<(String, Cause)> },
    /// This machine cannot serve LUNs; what it lacks.
    Unable { why: String },
    /// The target was silent for too long, and all that was not written is lost.
    Lost,
}

/// Why a portal did not give a LUN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It cannot be reached, or does not answer.
    Portal(String),
    /// It has no such target for this initiator.
    Target,
    /// The target has no such LUN.
    Lun,
    /// The user or secret is wrong, or missing.
    Login,
    /// In the words of who refused.
    Other(String),
}

/// If this process was started as one of a LUN, does its work and returns its exit code; `None` in every other process.
///
/// Call it first thing in `main`, before any thread or async runtime exists.
#[must_use]
pub fn maybe_run() -> Option<ExitCode> {
    let mut args = std::env::args_os();
    let name = args.next()?;
    let name = Path::new(&name).file_name().and_then(OsStr::to_str)?;
    let run: fn(&Path) -> io::Result<()> = match name {
        SERVER => server::main,
        KEEPER => keeper::main,
        _ => return None,
    };
    let dir = args.next().unwrap_or_default();
    Some(match run(Path::new(&dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is this process's own log file.
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    })
}

/// Says how it went; a reader sees all of it or nothing.
fn tell(outcome: &Outcome) -> io::Result<()> {
    let part = format!("{STATUS}.part");
    std::fs::write(&part, serde_json::to_vec(outcome)?)?;
    std::fs::rename(part, STATUS)
}
