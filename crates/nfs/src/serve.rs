//! The attendant of one mount: a process of its own that outlives whoever mounted, and ends when the mount does.
use std::{
    fs, io,
    net::SocketAddr,
    os::fd::RawFd,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use crate::{
    find::{Export, NFS_PORT},
    fs::{Face, Mounted},
    proto::{Nfs, PROGRAM, VERSION},
    rpc::{Client, GiveUp, Patience, RpcError},
    services::port_of,
};

/// The name that the program is started under to be an attendant.
pub const ATTENDANT: &str = "holdfast-nfs";
/// How many requests are worked on at a time.
const THREADS: usize = 16;
/// How far the kernel reads ahead, in KiB; its default is made for disks that are near.
const READ_AHEAD_KIB: &str = "1024";
/// Among those that the kernel kills when memory runs out, it comes after nearly all.
const OUT_OF_MEMORY_LAST: &str = "-900";

/// The arguments of an attendant: the connection to the kernel (a descriptor of `/dev/fuse` that it inherits), and where
/// the mount is. The export comes on its standard input, as [`Export`] in JSON.
pub fn arguments(connection: RawFd, at: &Path) -> Vec<std::ffi::OsString> {
    vec![connection.to_string().into(), at.as_os_str().to_owned()]
}

/// If this process was started as an attendant, serves the mount and returns its exit code; `None` in every other process.
#[must_use]
pub fn maybe_serve() -> Option<ExitCode> {
    let mut args = std::env::args_os();
    let name = args.next()?;
    if Path::new(&name).file_name()? != ATTENDANT {
        return None;
    }
    let connection = args.next().and_then(|a| a.to_str()?.parse::<RawFd>().ok());
    let at = PathBuf::from(args.next().unwrap_or_default());
    let served = connection.ok_or_else(|| io::Error::other("this program is started by the daemon only"));
    Some(match served.and_then(|connection| serve(connection, &at)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is the attendant's own log file.
            eprintln!("{ATTENDANT}: {}: {error}", at.display());
            ExitCode::FAILURE
        }
    })
}

fn serve(connection: RawFd, at: &Path) -> io::Result<()> {
    let export: Export = serde_json::from_reader(io::stdin().lock())?;
    let connection = sys::inherited(connection)?;
    let mounted = Arc::new(Mounted::new(export.clone(), client(&export)));
    let mut config = fuser::Config::default();
    config.acl = fuser::SessionACL::All;
    config.n_threads = Some(THREADS);
    let session = fuser::Session::from_fd(Face(Arc::clone(&mounted)), connection, config.acl, config)?;
    // It was not set before: nothing else runs yet.
    let _ = mounted.notifier.set(session.notifier());
    // Its end would take the files of all the pod's programs along, and what they may still have to write. Best effort.
    let _ = fs::write("/proc/self/oom_score_adj", OUT_OF_MEMORY_LAST);
    read_ahead(at);
    session.run()
}

fn client(export: &Export) -> Nfs {
    let (host, port, moves) = (export.host, export.port, export.moves);
    let tuning = export.tuning;
    let tries = tuning.soft.then_some(tuning.repeats.saturating_add(1));
    let known = parking_lot::Mutex::new(Some(port));
    let locate = move |give_up: GiveUp<'_>| -> Result<SocketAddr, RpcError> {
        // The port that worked is tried first; then whoever can say is asked.
        if let Some(port) = known.lock().take() {
            return Ok((host, port).into());
        }
        let found = if moves { port_of(host, (PROGRAM, VERSION), give_up)? } else { Some(port) };
        *known.lock() = Some(port);
        Ok((host, found.unwrap_or(NFS_PORT)).into())
    };
    Nfs(Client::new(Box::new(locate), Patience { tries, answer: tuning.answer }))
}

/// Lets the kernel read further ahead on this mount. It works without.
fn read_ahead(at: &Path) {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let table = String::from_utf8_lossy(&table);
    let device = table.lines().rev().find_map(|line| {
        let mut fields = line.split(' ');
        let (device, point) = (fields.nth(2)?, fields.nth(1)?);
        (Path::new(point) == at).then_some(device)
    });
    if let Some(device) = device {
        let _ = fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD_KIB);
    }
}
