//! What runs in a container's first process, between fork and exec: namespaces, root filesystem, identity, program.
//!
//! Everything here happens in a single-threaded child of the shim, so ordinary code is allowed. Errors go to the shim as
//! text over the channel; nothing is printed.
pub(crate) mod lookup;
pub(crate) mod mounts;
mod process;
mod rootfs;
mod userns;

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::sched::CloneFlags;
use serde::{Deserialize, Serialize};

pub(crate) use process::{Stdio, become_program, drop_everything, open_terminal};

use crate::{
    bare::Bare,
    cgroup::Cgroups,
    kernel,
    launch::{Identity, Launch, PidNamespace},
    wire::{self, Failure},
};

/// What the child tells the shim.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ChildMessage {
    /// All is prepared; waiting for [`Go`]. With a terminal, its master comes along.
    Ready(Identity),
    Failed(Failure),
    /// The program cannot be run. Nothing after this.
    ExecFailed(String),
}

/// The shim's word to run the program.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Go;

/// Descriptors that must be opened before the child has left the host's namespaces.
pub(crate) struct Prepared {
    cgroup_doors: Vec<File>,
    namespaces: Vec<(OwnedFd, CloneFlags)>,
    bare: Bare,
    layers: rootfs::Layers,
    sources: mounts::Sources,
}

impl Prepared {
    /// Opens all of it. Runs in the shim, in the host's mount namespace.
    pub(crate) fn open(launch: &Launch, cgroups: &Cgroups, bare: Bare) -> io::Result<Self> {
        let mut namespaces = Vec::new();
        let wanted = [
            (&launch.net, CloneFlags::CLONE_NEWNET),
            (&launch.ipc, CloneFlags::CLONE_NEWIPC),
            (&launch.uts, CloneFlags::CLONE_NEWUTS),
        ];
        for (path, flag) in wanted {
            if let Some(path) = path {
                let file = File::open(path).map_err(|e| why(&e, format!("open namespace {}", path.display())))?;
                namespaces.push((file.into(), flag));
            }
        }
        Ok(Self {
            cgroup_doors: cgroups.doors(&launch.cgroup)?,
            namespaces,
            bare,
            layers: rootfs::Layers::open(launch)?,
            sources: mounts::Sources::open(launch, cgroups)?,
        })
    }
}

/// Puts the calling process's next children into the container's PID namespace.
pub(crate) fn choose_pid_namespace(pid: &PidNamespace) -> io::Result<()> {
    match pid {
        PidNamespace::New => Ok(nix::sched::unshare(CloneFlags::CLONE_NEWPID)?),
        PidNamespace::Host => Ok(()),
        PidNamespace::Join(path) => {
            let ns = File::open(path).map_err(|e| why(&e, format!("open namespace {}", path.display())))?;
            Ok(nix::sched::setns(ns, CloneFlags::CLONE_NEWPID)?)
        }
    }
}

/// The life of the child. Never returns.
pub(crate) fn run(launch: &Launch, prepared: Prepared, stdio: Option<Stdio>, channel: UnixStream) -> ! {
    let ready = prepare(launch, prepared, stdio);
    let (identity, stdio, master) = match ready {
        Ok(ready) => ready,
        Err(failure) => {
            let _ = wire::send(&channel, &ChildMessage::Failed(failure), &[]);
            kernel::exit_now(1);
        }
    };
    let fds: Vec<_> = master.iter().map(AsFd::as_fd).collect();
    if wire::send(&channel, &ChildMessage::Ready(identity.clone()), &fds).is_err() {
        kernel::exit_now(1);
    }
    drop(master);
    // End of file means that the shim is gone: so is the container.
    match wire::recv::<Go>(&channel) {
        Ok(Some(_)) => {}
        Ok(None) | Err(_) => kernel::exit_now(1),
    }
    let text = become_program(&launch.process, &identity, &stdio);
    let _ = wire::send(&channel, &ChildMessage::ExecFailed(text), &[]);
    kernel::exit_now(128);
}

/// Identity, stdio and (with a terminal) the terminal's master.
type Ready = (Identity, Stdio, Option<OwnedFd>);

fn prepare(launch: &Launch, prepared: Prepared, stdio: Option<Stdio>) -> Result<Ready, Failure> {
    for mut door in prepared.cgroup_doors {
        door.write_all(b"0").map_err(|e| why(&e, "join the container's cgroup".to_owned()))?;
    }
    set_oom_score(launch.process.oom_score_adj);
    rustix::process::setsid().map_err(io::Error::from)?;
    for (fd, flag) in prepared.namespaces {
        nix::sched::setns(fd, flag).map_err(|e| why(&e.into(), "enter the pod's namespaces".to_owned()))?;
    }
    // After joining the cgroup, so that the new cgroup namespace's root is the container's own group.
    prepared.bare.enter_copy(CloneFlags::CLONE_NEWCGROUP)?;
    drop(prepared.bare);
    let root = rootfs::build(prepared.layers)?;
    mounts::populate(&root, launch, prepared.sources)?;
    let identity = crate::identity::resolve(
        &launch.user,
        &launch.image_user,
        &lookup::read_text(&root, "etc/passwd"),
        &lookup::read_text(&root, "etc/group"),
    )?;
    // Before the root may turn read-only: a missing working directory is made.
    lookup::directory(&root, launch.process.cwd.as_ref())
        .map_err(|e| why(&e, format!("make working directory {}", launch.process.cwd)))?;
    let (stdio, master) = match stdio {
        Some(stdio) => (stdio, None),
        None => {
            let (master, slave) = process::open_terminal(&root)?;
            mounts::console(&root, &slave)?;
            (Stdio::terminal(slave)?, Some(master))
        }
    };
    mounts::protect(&root, launch)?;
    rootfs::enter(&root)?;
    Ok((identity, stdio, master))
}

/// Sets how readily the kernel kills this process. Lowering may be refused to us; that is no reason not to run.
pub(crate) fn set_oom_score(score: Option<i32>) {
    if let Some(score) = score {
        let _ = std::fs::write("/proc/self/oom_score_adj", score.to_string());
    }
}

/// Adds what was being done to an error.
pub(crate) fn why(error: &io::Error, action: String) -> io::Error {
    io::Error::new(error.kind(), format!("{action}: {error}"))
}
