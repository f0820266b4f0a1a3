//! The processes that outlive the daemon: one per container, and the short-lived ones that run a command in a container.
//!
//! They are the daemon's own binary, run again under another name. They never start a thread.
mod clients;
mod container;
mod exec;
mod hold;
mod log;
mod serve;

use std::{
    ffi::OsStr,
    io,
    os::unix::{ffi::OsStrExt, net::UnixStream},
    path::{Path, PathBuf},
    process::ExitCode,
};

pub(crate) use hold::HoldReply;
pub(crate) use serve::set_size;

use crate::kernel;

/// `argv[0]` of these processes.
pub(crate) const NAME: &str = "holdfast-shim";

/// What such a process is for; `argv[1]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Keeps one container; `argv[2]` is its directory.
    Container,
    /// Runs one command in a container.
    Exec,
    /// Keeps a pod's shared PID namespace.
    Hold,
}

impl Mode {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Exec => "exec",
            Self::Hold => "hold",
        }
    }
}

/// If this process was started as a shim, does the shim's work and returns its exit code; `None` in every other process.
///
/// Call it first thing in `main`, before any thread or async runtime exists.
#[must_use]
pub fn maybe_run_shim() -> Option<ExitCode> {
    let mut args = std::env::args_os();
    let name = args.next()?;
    if Path::new(&name).file_name().map(OsStr::as_bytes) != Some(NAME.as_bytes()) {
        return None;
    }
    // From here on nobody else may look into this process or its children: they see the host from inside a container's
    // namespaces. A program that is run later starts afresh.
    let _ = nix::sys::prctl::set_dumpable(false);
    let mode = args.next()?;
    let dir = PathBuf::from(args.next().unwrap_or_default());
    let result = match mode.to_str()? {
        "container" => container::main(&dir),
        "exec" => exec::main(),
        "hold" => hold::main(),
        _ => Err(io::Error::other("unknown mode; this program is started by the daemon only")),
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is the shim's own log file.
            eprintln!("{NAME} {}: {error}", mode.to_string_lossy());
            ExitCode::FAILURE
        }
    })
}

/// Takes the socket to the parent from descriptor 0.
fn parent_socket() -> io::Result<UnixStream> {
    Ok(UnixStream::from(kernel::take_stdin()?))
}

/// Leaves the caller's session and becomes an orphan, so that nobody's death or signal reaches this process.
fn detach() -> io::Result<()> {
    rustix::process::setsid()?;
    if let nix::unistd::ForkResult::Parent { .. } = kernel::fork()? {
        kernel::exit_now(0);
    }
    std::env::set_current_dir("/")?;
    Ok(())
}

/// The shell's convention: a signal's number plus 128.
fn exit_code(status: nix::sys::wait::WaitStatus) -> Option<i32> {
    match status {
        nix::sys::wait::WaitStatus::Exited(_, code) => Some(code),
        nix::sys::wait::WaitStatus::Signaled(_, signal, _) => Some(128 + signal as i32),
        _ => None,
    }
}
