//! Keeps the PID namespace that a pod's containers share: its first process, which collects orphans and sees nothing.
use std::io::{self, Write};

use nix::{
    sched::CloneFlags,
    sys::{
        signal::{SigSet, Signal},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid},
};
use rustix::{fs::Mode, mount::UnmountFlags};
use serde::{Deserialize, Serialize};

use crate::{bare::Bare, cgroup::Cgroups, init, kernel, launch::ProcessRef, wire};

/// What the daemon is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum HoldReply {
    Holding(ProcessRef),
    Failed(String),
}

/// Makes the namespace and leaves its first process behind. Dies when that is done: `kill` on the process ends it all.
pub(super) fn main() -> io::Result<()> {
    let parent = super::parent_socket()?;
    rustix::process::setsid()?;
    let Some((group, fds)) = wire::recv::<String>(&parent)? else { return Ok(()) };
    let bare = Bare::received(fds)?;
    let doors = Cgroups::detect()?.doors(&group)?;
    init::choose_pid_namespace(&crate::launch::PidNamespace::New)?;
    let (channel, theirs) = std::os::unix::net::UnixStream::pair()?;
    let child = match kernel::fork()? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop(channel);
            let joined = doors.into_iter().try_for_each(|mut d| d.write_all(b"0"));
            let ready = joined.and_then(|()| isolate(&bare)).map_err(|e| e.to_string());
            let failed = ready.is_err();
            if wire::send(&theirs, &ready.err(), &[]).is_err() || failed {
                kernel::exit_now(1);
            }
            drop((theirs, parent));
            collect_orphans()
        }
    };
    drop(theirs);
    let reply = match wire::recv::<Option<String>>(&channel)? {
        Some((None, _)) => HoldReply::Holding(ProcessRef::of(child.as_raw())?),
        Some((Some(text), _)) => HoldReply::Failed(text),
        None => HoldReply::Failed("the process died".to_owned()),
    };
    wire::send(&parent, &reply, &[])
}

/// Leaves the process nothing to be abused for: an empty root, no capabilities, no privileges.
fn isolate(bare: &Bare) -> io::Result<()> {
    nix::sys::prctl::set_name(c"pause")?;
    bare.enter_copy(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)?;
    rustix::mount::unmount("/proc", UnmountFlags::DETACH)?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    init::drop_everything()?;
    kernel::reset_signals();
    Ok(())
}

fn collect_orphans() -> ! {
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    let _ = children.thread_block();
    loop {
        while !matches!(waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)), Err(_) | Ok(WaitStatus::StillAlive)) {}
        let _ = children.wait();
    }
}
