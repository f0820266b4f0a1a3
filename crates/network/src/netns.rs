//! Network namespaces pinned by a bind mount, and work inside them.
//!
//! A thread that entered a namespace is never reused: each piece of work gets its own thread, which then ends.
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, SocketFlags, SocketType, sockopt},
};

use crate::error::{NetworkError, kernel};

/// `f_type` of a namespace file system.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Whether `path` is a pinned namespace (of whatever type): a mount of nsfs.
pub fn is_netns(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|s| s.f_type as u64 == NSFS_MAGIC)
}

/// Makes a new network namespace and pins it at `path`, whose parent must exist. Does nothing if `path` is one already.
pub fn create_netns(path: &Path) -> Result<(), NetworkError> {
    if is_netns(path) {
        return Ok(());
    }
    let name = || path.display().to_string();
    fs::File::create(path).map_err(|source| NetworkError::File {
        action: "create network namespace",
        path: path.into(),
        source,
    })?;
    let made = on_own_thread(|| -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    })?;
    made.map_err(|source| {
        let _ = fs::remove_file(path);
        kernel("create network namespace", name())(source)
    })
}

/// Unpins the namespace at `path` and removes the file; its interfaces vanish when the last process in it ends.
/// Succeeds if there is none.
pub fn remove_netns(path: &Path) -> Result<(), NetworkError> {
    while is_netns(path) {
        umount2(path, MntFlags::MNT_DETACH)
            .map_err(|e| kernel("unmount network namespace", path.display().to_string())(e.into()))?;
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(NetworkError::File { action: "remove network namespace", path: path.into(), source: e })
        }
        _ => Ok(()),
    }
}

/// Runs `work` on a thread of its own inside the namespace at `path` and returns its result.
pub fn in_netns<R: Send>(path: &Path, work: impl FnOnce() -> R + Send) -> Result<R, NetworkError> {
    let ns = open(path)?;
    on_own_thread(|| -> io::Result<R> {
        setns(&ns, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })?
    .map_err(kernel("enter network namespace", path.display().to_string()))
}

pub(crate) fn open(path: &Path) -> Result<OwnedFd, NetworkError> {
    if !is_netns(path) {
        return Err(NetworkError::NoNetns(path.into()));
    }
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| kernel("open network namespace", path.display().to_string())(e.into()))
}

fn on_own_thread<R: Send>(work: impl FnOnce() -> R + Send) -> Result<R, NetworkError> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .map_err(kernel("start a thread for", "network namespace work"))?
            .join()
            .map_err(|_| NetworkError::Internal("work in a network namespace panicked".into()))
    })
}

/// Connects to `localhost:port` inside the namespace at `path` (or the caller's own, with `None`), IPv4 first.
pub async fn dial(path: Option<&Path>, port: u16) -> io::Result<tokio::net::TcpStream> {
    let path: Option<PathBuf> = path.map(Into::into);
    let hosts = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let mut first = None;
    for host in hosts {
        match dial_one(path.clone(), SocketAddr::new(host, port)).await {
            Ok(stream) => return Ok(stream),
            Err(e) => first = first.or(Some(e)),
        }
    }
    Err(first.unwrap_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused)))
}

async fn dial_one(path: Option<PathBuf>, to: SocketAddr) -> io::Result<tokio::net::TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let make = move || -> io::Result<OwnedFd> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        Ok(socket)
    };
    // A socket belongs to the namespace it was made in for ever, so only its making has to happen inside.
    let socket = match path {
        None => make()?,
        Some(path) => tokio::task::spawn_blocking(move || in_netns(&path, make).map_err(io::Error::other)?)
            .await
            .map_err(io::Error::other)??,
    };
    let socket = tokio::net::TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    tokio::time::timeout(Duration::from_secs(10), socket.connect(to)).await.map_err(io::Error::other)?
}
