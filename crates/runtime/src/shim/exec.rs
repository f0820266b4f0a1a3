//! Runs one command in a container: enters its namespaces, forks, waits, tells the exit code.
//!
//! The command dies with the connection to the daemon.
use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::{
    sched::CloneFlags,
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Mode, OFlags},
    process::{PidfdFlags, pidfd_open},
};

use crate::{
    cgroup::Cgroups,
    init::{self, Stdio, become_program},
    kernel,
    launch::{ExecReply, ExecRequest},
    wire,
};

pub(super) fn main() -> io::Result<()> {
    let parent = super::parent_socket()?;
    rustix::process::setsid()?;
    let Some((request, fds)) = wire::recv::<ExecRequest>(&parent)? else { return Ok(()) };
    match start(&request, fds) {
        Ok((child, master)) => {
            let fds: Vec<_> = master.iter().map(AsFd::as_fd).collect();
            wire::send(&parent, &ExecReply::Started, &fds)?;
            drop(master);
            let code = wait(&parent, child)?;
            // The daemon may be gone; then nobody wants to know.
            let _ = wire::send(&parent, &ExecReply::Exited(code), &[]);
            Ok(())
        }
        Err(text) => wire::send(&parent, &ExecReply::Failed(text), &[]),
    }
}

/// The command's process and, with a terminal, its master.
fn start(request: &ExecRequest, fds: Vec<OwnedFd>) -> Result<(Pid, Option<OwnedFd>), String> {
    enter(request).map_err(|e| e.to_string()).and_then(|(doors, home)| {
        let (stdio, master) = stdio(request, fds).map_err(|e| e.to_string())?;
        let (channel, theirs) = UnixStream::pair().map_err(|e| e.to_string())?;
        let child = match kernel::fork().map_err(|e| e.to_string())? {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                drop((channel, master));
                run(request, doors, &stdio, &theirs)
            }
        };
        drop((theirs, stdio, doors));
        // Else this process would keep the container's volumes mounted a moment longer than the container lives.
        nix::sched::setns(home, CloneFlags::CLONE_NEWNS).map_err(|e| format!("leave the container: {e}"))?;
        match wire::recv::<String>(&channel) {
            Ok(Some((text, _))) => {
                let _ = waitpid(child, None);
                Err(text)
            }
            Ok(None) | Err(_) => Ok((child, master)),
        }
    })
}

/// Joins the container's namespaces. Returns the doors of its cgroup and the mount namespace it came from.
fn enter(request: &ExecRequest) -> io::Result<(Vec<File>, File)> {
    let pid = rustix::process::Pid::from_raw(request.init.pid).ok_or_else(gone)?;
    let init = pidfd_open(pid, PidfdFlags::empty())?;
    // Checked after opening: what the descriptor names is the process that has this start time.
    if !request.init.is_alive() {
        return Err(gone());
    }
    let doors = Cgroups::detect()?.doors(&request.cgroup)?;
    let home = File::open("/proc/self/ns/mnt")?;
    init::set_oom_score(request.process.oom_score_adj);
    let all = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    nix::sched::setns(init, all).map_err(|e| init::why(&e.into(), "enter the container".to_owned()))?;
    Ok((doors, home))
}

fn gone() -> io::Error {
    io::Error::other("the container is not running")
}

fn stdio(request: &ExecRequest, fds: Vec<OwnedFd>) -> io::Result<(Stdio, Option<OwnedFd>)> {
    if request.process.tty {
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let (master, slave) = init::open_terminal(&root)?;
        return Ok((Stdio::terminal(slave)?, Some(master)));
    }
    let [stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(fds)
        .map_err(|_| io::Error::other("a command without terminal needs three descriptors"))?;
    Ok((Stdio { stdin, stdout, stderr, terminal: false }, None))
}

/// The child. Never returns.
fn run(request: &ExecRequest, doors: Vec<File>, stdio: &Stdio, channel: &UnixStream) -> ! {
    let joined = doors.into_iter().try_for_each(|mut d| d.write_all(b"0"));
    let text = match joined.and_then(|()| Ok(rustix::process::setsid()?)) {
        Ok(_) => become_program(&request.process, &request.identity, stdio),
        Err(e) => format!("join the container's cgroup: {e}"),
    };
    let _ = wire::send(channel, &text, &[]);
    kernel::exit_now(127);
}

/// Waits for the command's end, or kills it when the daemon hangs up.
fn wait(parent: &UnixStream, child: Pid) -> io::Result<i32> {
    let pid = rustix::process::Pid::from_raw(child.as_raw()).ok_or_else(gone)?;
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let mut fds = [PollFd::new(&ended, PollFlags::IN), PollFd::new(parent, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let hung_up = !fds[1].revents().is_empty();
        if fds[0].revents().is_empty() && !hung_up {
            continue;
        }
        if hung_up {
            // The command leads a session of its own: take what it started along.
            let _ = kill(Pid::from_raw(-child.as_raw()), Signal::SIGKILL);
            let _ = kill(child, Signal::SIGKILL);
        }
        if let Some(code) = super::exit_code(waitpid(child, None)?) {
            return Ok(code);
        }
    }
}
