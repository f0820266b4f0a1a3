//! The complete, resolved description of one container that the daemon hands to a shim (`launch.json`).
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::contract::{Device, Mount, Resources, Seccomp, User};

/// Of the container's root, the layer that takes writes.
pub(crate) const UPPER: &str = "upper";
/// What overlayfs needs beside it.
pub(crate) const WORK: &str = "work";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Launch {
    /// Read-only layers, top-most first.
    pub lower: Vec<PathBuf>,
    /// Directory that has [`UPPER`] and [`WORK`].
    pub writable: PathBuf,
    pub read_only_root: bool,
    pub net: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    pub pid: PidNamespace,
    /// Host directory shown as `/dev/shm`.
    pub shm: PathBuf,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    pub privileged: bool,
    pub unmasked_proc: bool,
    /// The container's cgroup, relative to every hierarchy's root.
    pub cgroup: String,
    pub resources: Resources,
    pub process: Process,
    /// `USER` of the image.
    pub image_user: String,
    pub user: User,
    pub stdin: bool,
    pub stdin_once: bool,
    pub log_path: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PidNamespace {
    New,
    Host,
    Join(PathBuf),
}

/// What the container's program, and every command run beside it, is given.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Process {
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: String,
    /// Bit set of capabilities.
    pub capabilities: u64,
    pub no_new_privileges: bool,
    pub seccomp: Seccomp,
    pub oom_score_adj: Option<i32>,
    pub tty: bool,
}

/// A user as numbers, and where it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// What a shim knows once the container's process exists (`state.json`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    pub shim: ProcessRef,
    pub init: ProcessRef,
    pub identity: Identity,
    pub started_at: Option<jiff::Timestamp>,
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessRef {
    pub pid: i32,
    /// Clock ticks since boot.
    pub start: u64,
}

impl ProcessRef {
    /// The process that has `pid` now.
    pub(crate) fn of(pid: i32) -> std::io::Result<Self> {
        let (_, start) = stat(pid)?;
        Ok(Self { pid, start })
    }

    /// Whether it still exists and is not a zombie.
    pub(crate) fn is_alive(&self) -> bool {
        stat(self.pid).is_ok_and(|(state, start)| start == self.start && !matches!(state, 'Z' | 'X'))
    }
}

/// State letter and start time of a process.
fn stat(pid: i32) -> std::io::Result<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let odd = || std::io::Error::other(format!("/proc/{pid}/stat has an unknown form"));
    // The command's name may contain spaces and parentheses: count from its last one.
    let (_, rest) = text.rsplit_once(") ").ok_or_else(odd)?;
    let mut fields = rest.split(' ');
    let state = fields.next().and_then(|s| s.chars().next()).ok_or_else(odd)?;
    let start = fields.nth(18).and_then(|s| s.parse().ok()).ok_or_else(odd)?;
    Ok((state, start))
}

/// A command to run beside a container's program; sent to a fresh process with its stdio (or, with a terminal, none).
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecRequest {
    pub init: ProcessRef,
    pub cgroup: String,
    pub process: Process,
    pub identity: Identity,
}

/// What the process that runs a command answers: one of the first two, then `Exited`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ExecReply {
    /// It runs. With a terminal, its master comes along.
    Started,
    Failed(String),
    Exited(i32),
}

#[test]
fn a_process_is_told_from_another() {
    let me = ProcessRef::of(std::process::id() as i32).unwrap();
    assert!(me.is_alive());
    assert!(!ProcessRef { start: me.start + 1, ..me }.is_alive());
}
