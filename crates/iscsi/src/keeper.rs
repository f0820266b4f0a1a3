//! The process beside QEMU's storage daemon: sets it up, looks after it, ends it when its target is lost.
use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsFd,
        unix::{fs::FileExt, fs::OpenOptionsExt, net::UnixStream},
    },
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, inotify},
    process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal},
};
use serde_json::{Value, json};

use crate::{
    Cause, ENDING, EXPORT, Outcome, REFRESH, Wish,
    qmp::{Answer, Monitor},
    relay::{Relay, reach},
    tell,
};

/// How long a target may take to answer one request; after that the session is begun anew, some times.
const REQUEST_SECONDS: u64 = 15;
/// How long the daemon may take for what it can do alone.
const DAEMON: Duration = Duration::from_secs(10);
/// Between two looks whether the target answers.
const LOOK: Duration = Duration::from_secs(5);
/// Between two looks at how long it has not answered.
const KEEP: Duration = Duration::from_secs(1);
/// The names that the daemon has for the things here.
const NODE: &str = "lun";
const AGAIN: &str = "again";
const SECRET: &str = "chap";

pub(crate) fn main(dir: &Path) -> io::Result<()> {
    let server = getppid().ok_or_else(|| io::Error::other("started by nobody"))?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != Some(server) {
        return Ok(());
    }
    std::env::set_current_dir(dir)?;
    let mut monitor = Monitor::new(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?));
    let wish: Wish = serde_json::from_str(&monitor.line()?)?;
    // A single portal needs nobody in between.
    let relay = if wish.portals.len() > 1 { Some(Relay::new(wish.portals.clone())?) } else { None };
    let mut keeper = Keeper { monitor, wish, server, relay };
    let begun = keeper.begin();
    match begun {
        Ok(outcome @ Outcome::Serving { .. }) => {
            let serving = tell(&outcome).and_then(|()| keeper.keep());
            // Nobody would look after it any more.
            keeper.end_server();
            serving
        }
        Ok(outcome) => {
            let told = tell(&outcome);
            keeper.end_server();
            told
        }
        Err(error) => {
            let why = format!("qemu-storage-daemon does not do what it is told: {error}");
            let told = tell(&Outcome::Unable { why });
            keeper.end_server();
            told
        }
    }
}

struct Keeper {
    monitor: Monitor,
    wish: Wish,
    server: Pid,
    relay: Option<Relay>,
}

impl Keeper {
    fn end_server(&self) {
        // One that is gone needs no end.
        let _ = kill_process(self.server, Signal::KILL);
    }

    /// Gets the LUN from the first portal that gives it, and shows it as a file.
    fn begin(&mut self) -> io::Result<Outcome> {
        self.monitor.begin(DAEMON)?;
        if let Some(chap) = &self.wish.chap {
            let secret = json!({ "qom-type": "secret", "id": SECRET, "data": chap.secret });
            if let Answer::Refused(why) = self.monitor.ask("object-add", secret, DAEMON)? {
                return Ok(Outcome::Unable { why });
            }
        }
        let mut causes = Vec::new();
        for (at, portal) in self.wish.portals.clone().into_iter().enumerate() {
            let Err(cause) = self.connect(at, NODE)? else { return self.serve(portal) };
            if let Cause::Other(why) = &cause
                && why.contains("nknown driver")
            {
                let why = "QEMU's driver for iSCSI is not installed (Debian's package qemu-block-extra)".to_owned();
                return Ok(Outcome::Unable { why });
            }
            causes.push((portal, cause));
        }
        Ok(Outcome::Refused { causes })
    }

    /// Lets the daemon log in at one of the portals.
    fn connect(&mut self, at: usize, node: &str) -> io::Result<Result<(), Cause>> {
        let wish = &self.wish;
        let portal = &wish.portals[at];
        // The daemon says of nobody why it does not reach him.
        if let Err(error) = reach(portal) {
            return Ok(Err(Cause::Portal(error.to_string())));
        }
        let way = self.relay.as_ref().map_or_else(|| portal.clone(), |relay| relay.address().to_string());
        let mut options = json!({
            "driver": "iscsi", "node-name": node, "transport": "tcp", "portal": way, "target": wish.target,
            "lun": wish.lun, "initiator-name": wish.initiator, "timeout": REQUEST_SECONDS,
            "auto-read-only": true, "discard": "unmap",
        });
        if let Some(chap) = &wish.chap {
            options["user"] = Value::from(chap.user.as_str());
            options["password-secret"] = Value::from(SECRET);
        }
        // It answers by itself when a request has taken too long; there are a few.
        let limit = Duration::from_secs(3 * REQUEST_SECONDS);
        let only = |portal| self.relay.iter().for_each(|relay| relay.only(portal));
        only(Some(at));
        let answer = self.monitor.ask("blockdev-add", options, limit);
        only(None);
        Ok(match answer? {
            Answer::Done(_) => Ok(()),
            Answer::Refused(why) => Err(cause(&why.replace(&way, portal))),
        })
    }

    fn serve(&mut self, portal: String) -> io::Result<Outcome> {
        let mut writable = true;
        loop {
            let mountpoint = std::env::current_dir()?.join(EXPORT);
            let options = json!({
                "type": "fuse", "id": EXPORT, "node-name": NODE, "mountpoint": mountpoint.to_string_lossy(),
                "writable": writable,
            });
            match self.monitor.ask("block-export-add", options, DAEMON)? {
                Answer::Done(_) => break,
                Answer::Refused(why) if writable && why.contains("read-only") => writable = false,
                Answer::Refused(why) => {
                    return Ok(Outcome::Unable { why: format!("a LUN cannot be shown as a file: {why}") });
                }
            }
        }
        let bytes = self.bytes(NODE)?;
        Ok(Outcome::Serving { portal, bytes, read_only: !writable })
    }

    /// The size of a LUN, as it was when the daemon logged in.
    fn bytes(&mut self, node: &str) -> io::Result<u64> {
        let answer = self.monitor.ask("query-named-block-nodes", json!({ "flat": true }), DAEMON)?;
        let Answer::Done(nodes) = answer else { return Err(io::Error::other("it does not list its nodes")) };
        let nodes = nodes.as_array().into_iter().flatten();
        let found = nodes.filter(|n| n["node-name"] == node).find_map(|n| n["image"]["virtual-size"].as_u64());
        found.ok_or_else(|| io::Error::other("it does not say how large the LUN is"))
    }

    /// Looks after the daemon until that ends, or the target is lost.
    fn keep(&mut self) -> io::Result<()> {
        let patience = Duration::from_secs(self.wish.patience_seconds);
        let asked = ask_on(patience)?;
        // Who is ending does not want to wait, which may be said at any time.
        let allowed = || match std::fs::read_to_string(ENDING).map(|seconds| seconds.trim().parse()) {
            Ok(Ok(seconds)) => patience.min(Duration::from_secs(seconds)),
            _ => patience,
        };
        let wishes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&wishes, ".", inotify::WatchFlags::CREATE)?;
        let look = KEEP.min(patience);
        let wait = Timespec { tv_sec: look.as_secs().try_into().unwrap_or(1), tv_nsec: look.subsec_nanos().into() };
        let monitor = self.monitor.descriptor()?;
        loop {
            let mut watched = [PollFd::new(&monitor, PollFlags::IN), PollFd::new(&wishes, PollFlags::IN)];
            match poll(&mut watched, Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            let [said, wished] = watched.map(|w| !w.revents().is_empty());
            if said && self.monitor.line().is_err() {
                return Ok(());
            }
            if wished {
                let mut events = [0; 4096];
                let _ = rustix::io::read(&wishes, &mut events);
                self.refresh()?;
            }
            let since = *asked.lock().unwrap_or_else(PoisonError::into_inner);
            if since.is_some_and(|since| since.elapsed() > allowed()) {
                return tell(&Outcome::Lost);
            }
        }
    }

    /// Reads the size of the LUN anew, if somebody wishes it.
    fn refresh(&mut self) -> io::Result<()> {
        if !Path::new(REFRESH).exists() {
            return Ok(());
        }
        // The daemon keeps the size that it saw at log-in: a second log-in sees the new one.
        for at in 0..self.wish.portals.len() {
            if self.connect(at, AGAIN)?.is_err() {
                continue;
            }
            let bytes = self.bytes(AGAIN)?;
            self.monitor.ask("blockdev-del", json!({ "node-name": AGAIN }), DAEMON)?;
            // A refusal leaves the size as it was, which whoever wished sees.
            self.monitor.ask("block_resize", json!({ "node-name": NODE, "size": bytes }), DAEMON)?;
            break;
        }
        std::fs::remove_file(REFRESH)
    }
}

/// What the daemon's words for a refusal mean.
fn cause(why: &str) -> Cause {
    let why = why.trim_start_matches("iSCSI: ").trim_start_matches("Failed to connect to LUN : ");
    if why.contains("Target not found") {
        Cause::Target
    } else if why.contains("LOGICAL_UNIT_NOT_SUPPORTED") {
        Cause::Lun
    } else if why.contains("Authentication failure") || why.contains("Authorization failure") {
        Cause::Login
    } else if why.contains("timed out") || why.contains("reconnect") {
        Cause::Portal("it does not answer".to_owned())
    } else {
        Cause::Other(why.to_owned())
    }
}

/// Goes on reading from the LUN, past all memory of it, in a thread. Since when it has waited for an answer.
fn ask_on(patience: Duration) -> io::Result<Arc<Mutex<Option<Instant>>>> {
    let direct = OFlags::DIRECT.bits().try_into().unwrap_or(0);
    let export: File = OpenOptions::new().read(true).custom_flags(direct).open(EXPORT)?;
    let since = Arc::new(Mutex::new(None));
    let shared = since.clone();
    let set = move |to: Option<Instant>| *shared.lock().unwrap_or_else(PoisonError::into_inner) = to;
    let pause = LOOK.min(patience / 4);
    std::thread::Builder::new().name("asks".into()).stack_size(64 << 10).spawn(move || {
        let mut block = vec![0; 512];
        loop {
            std::thread::sleep(pause);
            set(Some(Instant::now()));
            // An error is an answer too: it is for those who use the LUN.
            let _ = export.read_at(&mut block, 0);
            set(None);
        }
    })?;
    Ok(since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        let login =
            |what: &str| format!("iSCSI: Failed to connect to LUN : Failed to log in to target. Status: {what}");
        assert_eq!(cause(&login("Target not found(515)")), Cause::Target);
        assert_eq!(cause(&login("Authentication failure(513)")), Cause::Login);
        assert_eq!(cause(&login("Authorization failure(514)")), Cause::Login);
        let sense =
            "iSCSI: Failed to connect to LUN : SENSE KEY:ILLEGAL_REQUEST(5) ASCQ:LOGICAL_UNIT_NOT_SUPPORTED(0x2500)";
        assert_eq!(cause(sense), Cause::Lun);
        let gone = "iSCSI: Failed to connect to LUN : command timed out";
        assert_eq!(cause(gone), Cause::Portal("it does not answer".into()));
        assert_eq!(cause("Unknown driver 'iscsi'"), Cause::Other("Unknown driver 'iscsi'".into()));
    }
}
