//! The process that clones: what it is told, how it is shut in, what it answers.
use std::{
    io::{Read, Write},
    os::fd::{OwnedFd, RawFd},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use rustix::fs::{Mode, OFlags, open};
use serde::{Deserialize, Serialize};
use sys::confine::{self, confine};

use crate::{
    clone,
    request::{Location, Plan},
    watch::Watch,
};

/// The argument that makes this program the one that clones.
pub const ARGUMENT: &str = "__git-clone";
/// How long a clone may take. The process ends itself after that, too.
pub const TIME: Duration = Duration::from_secs(30 * 60);
/// How long nothing may happen at all.
const SILENCE: Duration = Duration::from_secs(30);
/// What an order may have; it is a few fields.
const ORDER_BYTES: u64 = 64 << 10;
/// Memory of the process, mapped packs aside.
const MEMORY_BYTES: u64 = 1 << 30;
const OPEN_FILES: u64 = 512;
/// What the process's environment must have: memory that the allocator only sets aside would count as used.
pub const ENVIRONMENT: (&str, &str) = ("MIMALLOC_ARENA_EAGER_COMMIT", "0");

/// How much a repository may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Of its history as it is sent, and of its files as they are checked out, in bytes, together.
    pub bytes: u64,
    /// Files, links and directories that are checked out.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 4 << 30, entries: 1_000_000 }
    }
}

/// What the process is told, on its standard input: a URL's password is in it.
#[derive(Serialize, Deserialize)]
pub struct Order {
    pub plan: Plan,
    pub limits: Limits,
    /// The number under which it has the directory to fill: empty, `nobody`'s.
    pub volume: RawFd,
    /// The number under which it has a local repository, for a plan of one.
    pub local: Option<RawFd>,
}

impl Order {
    /// As the process reads it.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn to_input(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }
}

/// What was cloned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cloned {
    /// What is checked out; `None`: the repository is empty.
    pub commit: Option<String>,
    /// Files, links and directories.
    pub entries: u64,
}

/// Why there is no clone, in words for the pod's author: no byte of them is the server's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("gitRepo.{field}: {why}")]
pub struct Failed {
    /// `repository` or `revision`: what to look at.
    pub field: String,
    pub why: String,
}

impl Failed {
    pub(crate) fn repository(why: impl Into<String>) -> Self {
        Self { field: "repository".into(), why: why.into() }
    }

    pub(crate) fn revision(why: impl Into<String>) -> Self {
        Self { field: "revision".into(), why: why.into() }
    }
}

/// What the process answered. `status` is its exit status, `None` if a signal ended it.
///
/// # Errors
/// What it said, or that it ended without a word.
pub fn heard(status: Option<i32>, output: &[u8]) -> Result<Cloned, Failed> {
    match serde_json::from_slice::<Result<Cloned, Failed>>(output) {
        Ok(Ok(cloned)) if status == Some(0) => Ok(cloned),
        Ok(Err(failed)) => Err(failed),
        _ => Err(Failed::repository(format!(
            "the process that clones ended {} without an answer; a repository that needs more than {} MiB of memory does that",
            status.map_or("by a signal".to_owned(), |status| format!("with status {status}")),
            MEMORY_BYTES >> 20,
        ))),
    }
}

/// Clones, if this process was started for that. To be called first in `main`, before any thread exists.
pub fn maybe_run() -> Option<ExitCode> {
    (std::env::args_os().nth(1)? == ARGUMENT).then(run)
}

/// Tells how it went. The first to be told wins: the process ends by it.
pub(crate) fn answer(result: &Result<Cloned, Failed>) -> ! {
    let text = serde_json::to_vec(result).unwrap_or_default();
    let mut output = std::io::stdout().lock();
    let said = output.write_all(&text).and_then(|()| output.flush());
    std::process::exit(i32::from(result.is_err() || said.is_err()))
}

fn run() -> ExitCode {
    let order = match read_order() {
        Ok(order) => order,
        Err(why) => {
            eprintln!("holdfast {ARGUMENT} is started by holdfast itself: {why}");
            return ExitCode::from(2);
        }
    };
    answer(&work(&order))
}

fn read_order() -> Result<Order, String> {
    let mut text = Vec::new();
    std::io::stdin().lock().take(ORDER_BYTES).read_to_end(&mut text).map_err(|e| e.to_string())?;
    serde_json::from_slice(&text).map_err(|e| e.to_string())
}

fn work(order: &Order) -> Result<Cloned, Failed> {
    let shut_in = |e: std::io::Error| Failed::repository(format!("the process that clones could not be confined: {e}"));
    let volume = take(order.volume).map_err(shut_in)?;
    let local = order.local.map(take).transpose().map_err(shut_in)?;
    let limits = confine::Limits { file_bytes: order.limits.bytes, memory_bytes: MEMORY_BYTES, open_files: OPEN_FILES };
    let place = confine(&volume, &limits).map_err(shut_in)?;
    drop(volume);
    let watch = Watch::start(SILENCE, TIME);
    let at: std::path::PathBuf = order.plan.directory.iter().fold(place, |at, name| at.join(name));
    std::fs::create_dir_all(&at).map_err(|e| Failed::repository(format!("its directory cannot be made: {e}")))?;
    fill(order, &at, local.as_ref(), &watch)
}

fn fill(order: &Order, at: &Path, local: Option<&OwnedFd>, watch: &Watch) -> Result<Cloned, Failed> {
    let repo = match (&order.plan.location, local) {
        (Location::Server { url, credentials }, _) => {
            clone::from_server(url, credentials.as_ref(), at, &order.limits, watch)?
        }
        (Location::Files { url }, Some(dir)) => crate::local::copy(url, dir, at, &order.limits, watch)?,
        (Location::Files { .. }, None) => return Err(Failed::repository("the local repository was not opened")),
    };
    let target = crate::revision::settle(&repo, &order.plan.revision)?;
    crate::checkout::check_out(&repo, target, &order.limits, watch)
}

/// A directory that was passed on, and no other way to it.
fn take(number: RawFd) -> std::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = open(format!("/proc/self/fd/{number}"), flags, Mode::empty())?;
    nix::unistd::close(number)?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_as_it_is_and_silence_is_a_failure() {
        let cloned = Cloned { commit: Some("c0ffee".into()), entries: 3 };
        let text = serde_json::to_vec(&Ok::<_, Failed>(cloned.clone())).expect("an answer");
        assert_eq!(heard(Some(0), &text), Ok(cloned));
        let failed = Failed::revision("not there");
        let told = serde_json::to_vec(&Err::<Cloned, _>(failed.clone())).expect("an answer");
        assert_eq!(heard(Some(1), &told), Err(failed));
        for (status, output) in [(Some(0), &b""[..]), (None, b""), (Some(101), b"{}"), (Some(1), &text)] {
            assert_eq!(heard(status, output).expect_err("no answer").field, "repository");
        }
    }
}
