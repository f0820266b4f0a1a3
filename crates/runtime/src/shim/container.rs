//! A container's shim: makes the container, then serves until it has ended.
use std::{
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
};

use nix::unistd::ForkResult;
use rustix::pipe::{PipeFlags, pipe_with};

use super::{
    clients::Client,
    log::Log,
    serve::{Output, Shim},
};
use crate::{
    bare::Bare,
    cgroup::Cgroups,
    devices,
    init::{self, ChildMessage, Prepared, Stdio},
    kernel,
    launch::{Identity, Launch, ProcessRef, State},
    records,
    wire::{self, Failure, Reply, frame},
};

/// The shim of the container whose directory is `dir`.
pub(super) fn main(dir: &Path) -> io::Result<()> {
    let parent = parent(dir)?;
    let Some(((), fds)) = wire::recv(&parent)? else { return Ok(()) };
    let bare = Bare::received(fds)?;
    super::detach()?;
    // The directory may be moved together with all data: from here on it is reached as the current one.
    std::env::set_current_dir(dir)?;
    nix::sys::prctl::set_child_subreaper(true)?;
    let launch: Launch = records::read(&dir.join(records::LAUNCH))?
        .ok_or_else(|| io::Error::other(format!("{} has no launch description", dir.display())))?;
    let cgroups = Cgroups::detect()?;
    let instance = launch.cgroup.split('/').next().unwrap_or_default();
    if let Err(error) = cgroups.leave_service(&format!("{instance}/shims")) {
        // Without it, stopping the daemon's service ends the containers; that is no reason not to run them.
        eprintln!("{error}");
    }
    match create(dir, launch, cgroups.clone(), bare) {
        Ok(mut shim) => {
            shim.adopt(Client::new(parent)?, &Reply::Created);
            shim.serve()
        }
        Err((failure, group)) => {
            let _ = cgroups.remove(&group);
            let mut out = Vec::new();
            wire::put_frame(&mut out, frame::REPLY, &serde_json::to_vec(&Reply::CreateFailed(failure))?);
            io::Write::write_all(&mut &parent, &out)
        }
    }
}

fn parent(dir: &Path) -> io::Result<UnixStream> {
    if !dir.is_absolute() {
        return Err(io::Error::other("the container's directory must be given as an absolute path"));
    }
    super::parent_socket()
}

/// What the shim keeps of a container's stdio.
struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

fn create(dir: &Path, launch: Launch, cgroups: Cgroups, bare: Bare) -> Result<Shim, (Failure, String)> {
    let group = launch.cgroup.clone();
    try_create(dir, launch, cgroups, bare).map_err(|failure| (failure, group))
}

fn try_create(dir: &Path, launch: Launch, cgroups: Cgroups, bare: Bare) -> Result<Shim, Failure> {
    crate::identity::check_not_root(&launch.user, &launch.image_user)?;
    let log = Log::open(&launch.log_path)
        .map_err(|e| Failure::Other(format!("open log {}: {e}", launch.log_path.display())))?;
    cgroups.create(&launch.cgroup, &launch.resources)?;
    if !launch.privileged {
        cgroups.restrict_devices(&launch.cgroup, &device_rules(&launch)?)?;
    }
    let prepared = Prepared::open(&launch, &cgroups, bare)?;
    let listener = listen(dir)?;
    let (stdio, mut ends) = stdio(&launch)?;
    let (channel, theirs) = UnixStream::pair()?;
    init::choose_pid_namespace(&launch.pid)?;
    let child = match kernel::fork()? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            // Else the child would keep its own channel, and the shim's socket, alive.
            drop((channel, listener, ends));
            init::run(&launch, prepared, stdio, theirs)
        }
    };
    drop((theirs, prepared, stdio));
    let (identity, master) = await_ready(&channel)?;
    if let Some(master) = master {
        ends.stdin = launch.stdin.then(|| master.try_clone()).transpose()?;
        ends.stdout = Some(master);
    }
    let own = ProcessRef::of(std::process::id().cast_signed())?;
    let state = State { shim: own, init: ProcessRef::of(child.as_raw())?, identity, started_at: None };
    records::write(&dir.join(records::STATE), &state, false)?;
    let outputs = [
        ends.stdout.map(|fd| Output::new(fd, super::log::Stream::Stdout)).transpose()?,
        ends.stderr.map(|fd| Output::new(fd, super::log::Stream::Stderr)).transpose()?,
    ];
    Ok(Shim::new(".".into(), launch, cgroups, state, listener, channel, log, outputs, ends.stdin)?)
}

fn device_rules(launch: &Launch) -> io::Result<Vec<devices::Rule>> {
    let mut rules = devices::defaults();
    for device in &launch.devices {
        let stat = rustix::fs::stat(&device.host_path)
            .map_err(|e| io::Error::other(format!("look at device {}: {e}", device.host_path.display())))?;
        let rule = devices::rule_for(&stat, &device.permissions)
            .ok_or_else(|| io::Error::other(format!("{} is not a device", device.host_path.display())))?;
        rules.push(rule);
    }
    Ok(rules)
}

/// Listens in the container's directory. The path goes through a descriptor, because socket addresses are short.
fn listen(dir: &Path) -> io::Result<UnixListener> {
    let opened = File::open(dir)?;
    let _ = std::fs::remove_file(dir.join(records::SOCKET));
    let listener = UnixListener::bind(records::short_path(&opened, records::SOCKET))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn stdio(launch: &Launch) -> io::Result<(Option<Stdio>, Ends)> {
    if launch.process.tty {
        return Ok((None, Ends { stdin: None, stdout: None, stderr: None }));
    }
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from);
    let (stdin, stdin_end) = if launch.stdin {
        let (read, write) = pipe()?;
        (read, Some(write))
    } else {
        (File::open("/dev/null")?.into(), None)
    };
    let (stdout_end, stdout) = pipe()?;
    let (stderr_end, stderr) = pipe()?;
    let ends = Ends { stdin: stdin_end, stdout: Some(stdout_end), stderr: Some(stderr_end) };
    Ok((Some(Stdio { stdin, stdout, stderr, terminal: false }), ends))
}

fn await_ready(channel: &UnixStream) -> Result<(Identity, Option<OwnedFd>), Failure> {
    match wire::recv::<ChildMessage>(channel)? {
        Some((ChildMessage::Ready(identity), mut fds)) => Ok((identity, fds.pop())),
        Some((ChildMessage::Failed(failure), _)) => Err(failure),
        Some((ChildMessage::ExecFailed(text), _)) => Err(Failure::Other(text)),
        None => Err(Failure::Other("the container's first process died while it was being prepared".to_owned())),
    }
}
