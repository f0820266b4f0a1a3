//! Pod sandboxes: pinned namespaces without a process, a cgroup, an address.
use std::{
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::Path,
    sync::Arc,
};

use jiff::Timestamp;
use nix::sched::CloneFlags;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use super::{
    Inner, client, io_error,
    state::{SandboxRecord, is_plain_name},
};
use crate::{
    contract::{PodUid, Resources, RuntimeError, SandboxSpec},
    launch::ProcessRef,
    records,
    shim::{HoldReply, Mode},
    wire,
};

/// Size of a pod's `/dev/shm`.
const SHM_OPTIONS: &std::ffi::CStr = c"mode=1777,size=65536k";

impl Inner {
    /// Makes the sandbox or completes it. The caller holds the pod's lock.
    pub(super) async fn make_sandbox(self: &Arc<Self>, spec: &SandboxSpec) -> Result<(), RuntimeError> {
        let uid = &spec.uid;
        if !is_plain_name(&uid.0) {
            return Err(RuntimeError::Other(format!("pod UID {:?} cannot be a directory's name", uid.0)));
        }
        let path = self.pod_dir(uid).join(records::SANDBOX);
        let old: Option<SandboxRecord> = records::read(&path).map_err(io_error("read the pod's record"))?;
        let mut record = match old {
            Some(old) if old.complete && self.is_healthy(uid, &old) => return Ok(()),
            // Half-made in this boot: every step below tolerates what is there.
            Some(old) if !old.complete && old.boot == self.boot => SandboxRecord { spec: spec.clone(), ..old },
            old => {
                if old.is_some() {
                    self.unmake_sandbox(uid).await?;
                }
                SandboxRecord {
                    spec: spec.clone(),
                    created_at: Timestamp::now(),
                    boot: self.boot.clone(),
                    ips: Vec::new(),
                    complete: false,
                    hold: None,
                }
            }
        };
        let dir = self.pod_dir(uid);
        fs::create_dir_all(&dir).map_err(io_error(format!("make {}", dir.display())))?;
        records::write(&path, &record, false).map_err(io_error("write the pod's record"))?;
        let (inner, wanted, place) = (self.clone(), spec.clone(), dir.clone());
        let made = tokio::task::spawn_blocking(move || inner.make_namespaces(&wanted, &place)).await;
        made.map_err(|e| RuntimeError::Other(e.to_string()))??;
        if spec.share_process_namespace && !spec.host_pid && !record.hold.as_ref().is_some_and(ProcessRef::is_alive) {
            record.hold = Some(self.hold_pid_namespace(uid, &dir).await?);
            records::write(&path, &record, false).map_err(io_error("write the pod's record"))?;
        }
        if !spec.host_network {
            record.ips = self.connect(spec, &dir.join("net")).await?;
        }
        record.complete = true;
        records::write(&path, &record, false).map_err(io_error("write the pod's record"))
    }

    fn make_namespaces(&self, spec: &SandboxSpec, dir: &Path) -> Result<(), RuntimeError> {
        let group = self.pod_group(&spec.uid);
        self.cgroups.create(&group, &spec.resources).map_err(io_error("make the pod's cgroup"))?;
        if !spec.host_network {
            let net = dir.join("net");
            network::create_netns(&net).map_err(other("make the pod's network namespace"))?;
            network::in_netns(&net, || set_sysctls(spec, is_net_sysctl))
                .map_err(other("enter the pod's network namespace"))??;
        }
        pin(spec, dir)?;
        if !spec.host_ipc {
            let shm = dir.join("shm");
            fs::create_dir_all(&shm).map_err(io_error(format!("make {}", shm.display())))?;
            if !is_mount_point(&shm).map_err(io_error(format!("look at {}", shm.display())))? {
                let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
                mount("shm", &shm, "tmpfs", flags, Some(SHM_OPTIONS))
                    .map_err(|e| io_error(format!("mount {}", shm.display()))(e.into()))?;
            }
        }
        Ok(())
    }

    async fn connect(&self, spec: &SandboxSpec, net: &Path) -> Result<Vec<std::net::IpAddr>, RuntimeError> {
        let uid = &spec.uid.0;
        let ips = self.network.attach(uid, net).await.map_err(other(format!("give pod {uid} an address")))?;
        let mut ports = Vec::new();
        for port in &spec.host_ports {
            ports.push(network::HostPort {
                host_ip: port.host_ip,
                host_port: port.host_port,
                container_port: port.container_port,
                protocol: port.protocol.parse().map_err(RuntimeError::Other)?,
            });
        }
        self.network.forward(uid, &ports).await.map_err(other(format!("forward host ports to pod {uid}")))?;
        Ok(ips)
    }

    async fn hold_pid_namespace(self: &Arc<Self>, uid: &PodUid, dir: &Path) -> Result<ProcessRef, RuntimeError> {
        let action = || format!("make the shared process namespace of pod {}", uid.0);
        let errors = File::create(dir.join(records::SHIM_LOG)).map_err(io_error(action()))?;
        let (socket, mut child) =
            client::spawn(&self.exe, Mode::Hold, None, Some(errors)).map_err(io_error(action()))?;
        // A leaf of its own: version 2 hands controllers down only from groups without processes.
        let group = format!("{}/hold", self.pod_group(uid));
        self.cgroups.create(&group, &Resources::default()).map_err(io_error(action()))?;
        let inner = self.clone();
        let dialogue = move || {
            wire::send(&socket, &group, &[inner.bare.as_fd()])?;
            wire::recv::<HoldReply>(&socket)
        };
        let reply = tokio::task::spawn_blocking(dialogue).await;
        let _ = child.wait().await;
        match reply.map_err(|e| RuntimeError::Other(e.to_string()))?.map_err(io_error(action()))? {
            Some((HoldReply::Holding(process), _)) => Ok(process),
            Some((HoldReply::Failed(text), _)) => Err(RuntimeError::Other(format!("{}: {text}", action()))),
            None => Err(RuntimeError::Other(format!("{}: its first process died", action()))),
        }
    }

    /// Removes all of a sandbox, however much of it exists. The caller holds the pod's lock.
    pub(super) async fn unmake_sandbox(self: &Arc<Self>, uid: &PodUid) -> Result<(), RuntimeError> {
        if !is_plain_name(&uid.0) {
            return Ok(());
        }
        let dir = self.pod_dir(uid);
        let containers = self.read_containers().map_err(io_error("list containers"))?;
        let mine = containers.into_iter().filter(|c| c.record.pod == *uid).map(|c| c.record.id);
        futures::future::try_join_all(mine.map(|id| async move { self.remove_container(&id).await })).await?;
        self.network.detach(&uid.0).await.map_err(other(format!("detach pod {} from the network", uid.0)))?;
        network::remove_netns(&dir.join("net")).map_err(other("remove the pod's network namespace"))?;
        for name in ["ipc", "uts", "shm"] {
            detach(&dir.join(name)).map_err(io_error(format!("unmount {}", dir.join(name).display())))?;
        }
        if let Ok(Some(SandboxRecord { hold: Some(hold), boot, .. })) = records::read(&dir.join(records::SANDBOX))
            && boot == self.boot
            && hold.is_alive()
        {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(hold.pid), nix::sys::signal::Signal::SIGKILL);
        }
        let (cgroups, group) = (self.cgroups.clone(), self.pod_group(uid));
        let removed = tokio::task::spawn_blocking(move || {
            cgroups.remove(&group)?;
            match fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            }
        });
        let removed = removed.await.map_err(|e| RuntimeError::Other(e.to_string()))?;
        removed.map_err(io_error(format!("remove what is left of pod {}", uid.0)))
    }
}

/// Pins new IPC and UTS namespaces. Made by a thread that ends at once; the mounts keep them.
fn pin(spec: &SandboxSpec, dir: &Path) -> Result<(), RuntimeError> {
    let wanted =
        [(!spec.host_ipc, "ipc", CloneFlags::CLONE_NEWIPC), (!spec.host_network, "uts", CloneFlags::CLONE_NEWUTS)];
    let missing: Vec<_> = wanted.into_iter().filter(|(w, name, _)| *w && !network::is_netns(&dir.join(name))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let work = || -> Result<(), RuntimeError> {
        for (_, name, flag) in &missing {
            let path = dir.join(name);
            let failed = |e: io::Error| io_error(format!("pin the pod's {name} namespace at {}", path.display()))(e);
            nix::sched::unshare(*flag).map_err(|e| failed(e.into()))?;
            match *name {
                "uts" => rustix::system::sethostname(spec.hostname.as_bytes()).map_err(|e| failed(e.into()))?,
                _ => set_sysctls(spec, |s| !is_net_sysctl(s))?,
            }
            File::create(&path).map_err(failed)?;
            mount_bind(format!("/proc/thread-self/ns/{name}"), &path).map_err(|e| failed(e.into()))?;
        }
        Ok(())
    };
    std::thread::scope(|s| s.spawn(work).join())
        .map_err(|_| RuntimeError::Other("the thread that makes a pod's namespaces panicked".to_owned()))?
}

fn is_net_sysctl(name: &str) -> bool {
    name.starts_with("net.")
}

/// Whether the kernel keeps this setting per namespace, so that setting it changes nothing for the host.
fn is_namespaced(name: &str) -> bool {
    is_net_sysctl(name)
        || name.starts_with("kernel.shm")
        || name.starts_with("kernel.msg")
        || name == "kernel.sem"
        || name.starts_with("fs.mqueue.")
}

/// Sets those of the pod's sysctls that `mine` picks, in the calling thread's namespaces.
fn set_sysctls(spec: &SandboxSpec, mine: impl Fn(&str) -> bool) -> Result<(), RuntimeError> {
    for (name, value) in &spec.sysctls {
        // Both spellings are in use: `a.b` and `a/b`.
        let name = name.replace('/', ".");
        if !is_namespaced(&name) || name.contains("..") {
            return Err(RuntimeError::Other(format!(
                "sysctl {name:?} is not namespaced; it can only be set on the host"
            )));
        }
        if mine(&name) {
            let path = Path::new("/proc/sys").join(name.replace('.', "/"));
            fs::write(&path, value).map_err(io_error(format!("set sysctl {name} to {value:?}")))?;
        }
    }
    Ok(())
}

/// Unmounts what is mounted on `path`, however often, if anything.
fn detach(path: &Path) -> io::Result<()> {
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    let device = |p: &Path| rustix::fs::stat(p).map(|s| s.st_dev);
    Ok(device(path)? != device(path.parent().unwrap_or(path))?)
}

/// Wraps an error of another crate, with its causes.
fn other<E: std::error::Error + 'static>(action: impl Into<String>) -> impl FnOnce(E) -> RuntimeError {
    let action = action.into();
    move |e| RuntimeError::Other(format!("{action}: {}", base::chain(&e)))
}

#[test]
fn only_settings_of_namespaces_may_be_set() {
    for name in
        ["net.ipv4.ip_unprivileged_port_start", "kernel.shmmax", "kernel.msgmax", "kernel.sem", "fs.mqueue.msg_max"]
    {
        assert!(is_namespaced(name), "{name}");
    }
    for name in ["kernel.panic", "vm.overcommit_memory", "fs.file-max", "kernel.semantics"] {
        assert!(!is_namespaced(name), "{name}");
    }
}
