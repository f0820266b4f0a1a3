//! Finds an export: the server's address, where its programs listen, the handle of the directory.
//!
//! Done by whoever mounts, before anything is mounted, so that a wrong name or a dead server is an error with a cause.
use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::mpsc::{RecvTimeoutError, channel},
};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::{
    options::{Options, Tuning},
    proto::{Asker, Fault, Fh, Nfs, PROGRAM, VERSION},
    rpc::{Credential, RpcError, SLICE},
    services::{self, ONCE, fixed, mountd, port_of},
};

/// Where NFS listens unless somebody says otherwise.
pub(crate) const NFS_PORT: u16 = 2049;
/// The largest piece that one call reads or writes: what FUSE hands over at once.
pub(crate) const LARGEST_PIECE: u32 = 1 << 20;

/// Asked while waiting: whether the volume is still wanted.
pub type GiveUp<'a> = &'a (dyn Fn() -> bool + Sync);

/// Why an export was not found; says the way out.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error("its name cannot be resolved; correct the volume's nfs.server, or the name service of this node")]
    Name {
        #[source]
        errno: std::io::Error,
    },
    #[error("its name has no address; correct the volume's nfs.server")]
    NoAddress,
    /// `what` with `addr` in it.
    #[error("{what} does not answer; start the server, or allow this node through its firewall")]
    Unreachable {
        what: String,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(
        "it does not serve NFS version 3 ({what}); enable version 3 on the server, or use a node whose kernel has an NFS client"
    )]
    NoVersion3 {
        what: String,
        #[source]
        cause: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    #[error("{why}")]
    Export {
        why: &'static str,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The volume is no longer wanted.
    #[error("given up, because the volume is no longer wanted")]
    GivenUp,
}

/// A directory of a server that was found: all that the client needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Export {
    pub(crate) host: IpAddr,
    pub(crate) port: u16,
    /// The port was looked up, and may be another one when the server starts again.
    pub(crate) moves: bool,
    pub(crate) root: Fh,
    pub(crate) read_size: u32,
    pub(crate) write_size: u32,
    pub(crate) list_size: u32,
    pub(crate) tuning: Tuning,
}

/// The address of a server.
///
/// # Errors
/// It has none, or nobody answers who could say.
pub fn resolve(server: &str, give_up: GiveUp<'_>) -> Result<IpAddr, FindError> {
    let bare = server.strip_prefix('[').and_then(|s| s.strip_suffix(']')).unwrap_or(server);
    if let Ok(addr) = bare.parse() {
        return Ok(addr);
    }
    // The C library's resolver cannot be interrupted: it is left behind when it is no longer wanted.
    let (tell, told) = channel();
    let name = (bare.to_owned(), 0);
    std::thread::spawn(move || tell.send(name.to_socket_addrs().map(Iterator::collect::<Vec<SocketAddr>>)));
    loop {
        match told.recv_timeout(SLICE) {
            Ok(Ok(found)) => return found.first().map(SocketAddr::ip).ok_or(FindError::NoAddress),
            Ok(Err(errno)) => return Err(FindError::Name { errno }),
            Err(RecvTimeoutError::Timeout) if give_up() => return Err(FindError::GivenUp),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(FindError::NoAddress),
        }
    }
}

/// Whether a server can be reached at all: the kernel's client, asked to mount, waits for minutes, and cannot be stopped.
///
/// # Errors
/// Says what does not answer.
pub fn reach(host: IpAddr, options: &Options, give_up: GiveUp<'_>) -> Result<(), FindError> {
    let port = options.port.unwrap_or(NFS_PORT);
    let null = |port| null((host, port).into(), give_up);
    match null(port) {
        Err(error @ RpcError::Connect { .. }) if options.port.is_none() => {
            // Version 3 may be elsewhere.
            match port_of(host, (PROGRAM, VERSION), give_up) {
                Ok(Some(found)) if found != port => null(found).map_err(unreachable(host, found)),
                _ => Err(unreachable(host, port)(error)),
            }
        }
        // Whether it likes the version is the kernel's to find out.
        Err(RpcError::Refused(_)) | Ok(()) => Ok(()),
        Err(error) => Err(unreachable(host, port)(error)),
    }
}

fn null(addr: SocketAddr, give_up: GiveUp<'_>) -> Result<(), RpcError> {
    let what = crate::rpc::Procedure { program: PROGRAM, version: VERSION, number: 0 };
    let args = crate::xdr::Writer::default();
    fixed(addr, ONCE).call(what, &Credential::unix(0, 0, &[]), (&args, None), give_up).map(drop)
}

fn unreachable(host: IpAddr, port: u16) -> impl Fn(RpcError) -> FindError {
    move |error| match error {
        RpcError::GivenUp => FindError::GivenUp,
        cause => {
            FindError::Unreachable { what: format!("NFS at {}", SocketAddr::from((host, port))), cause: cause.into() }
        }
    }
}

/// Whether the service runs on this machine that the kernel's version 3 needs for locks.
pub fn keeps_locks(give_up: GiveUp<'_>) -> bool {
    const STATUS: (u32, u32) = (100_024, 1);
    matches!(port_of([127, 0, 0, 1].into(), STATUS, give_up), Ok(Some(_)))
}

/// Finds the directory `path` of a server, over version 3.
///
/// # Errors
/// Says who did not answer, or what the server has against it.
pub fn find(host: IpAddr, path: &str, options: &Options, give_up: GiveUp<'_>) -> Result<Export, FindError> {
    let (port, moves) = nfs_port(host, options, give_up)?;
    let mount_port = match options.mount_port {
        Some(port) => port,
        None => mountd(host, give_up).map_err(no_portmapper(host))?.ok_or_else(|| FindError::NoVersion3 {
            what: "its portmapper knows no mount service over TCP".into(),
            cause: None,
        })?,
    };
    let root = services::mount((host, mount_port).into(), path.as_bytes(), give_up).map_err(|fault| match fault {
        Fault::Rpc(RpcError::GivenUp) => FindError::GivenUp,
        Fault::Rpc(RpcError::Refused(what)) => FindError::NoVersion3 { what: what.into(), cause: None },
        Fault::Rpc(cause) => {
            let what = format!("its mount service at {}", SocketAddr::from((host, mount_port)));
            FindError::Unreachable { what, cause: cause.into() }
        }
        fault => FindError::Export { why: why_not(&fault), cause: fault.into() },
    })?;
    let nfs = Nfs(fixed((host, port).into(), ONCE));
    let who = Credential::unix(0, 0, &[]);
    let info = nfs.fsinfo(&root, Asker { who: &who, give_up }).map_err(|fault| match fault {
        Fault::Rpc(RpcError::GivenUp) => FindError::GivenUp,
        Fault::Rpc(RpcError::Refused(what)) => FindError::NoVersion3 { what: what.into(), cause: None },
        Fault::Rpc(cause) => unreachable(host, port)(cause),
        fault => FindError::Export { why: "the server does not let this node use the directory", cause: fault.into() },
    })?;
    let piece = |wish: Option<u32>, most: u32| wish.unwrap_or(LARGEST_PIECE).min(most).clamp(512, LARGEST_PIECE);
    Ok(Export {
        host,
        port,
        moves,
        root,
        read_size: piece(options.tuning.read_size, info.read_most),
        write_size: piece(options.tuning.write_size, info.write_most),
        list_size: info.list_prefers.clamp(8 << 10, 64 << 10),
        tuning: options.tuning,
    })
}

/// Where NFS listens, and whether that was looked up.
fn nfs_port(host: IpAddr, options: &Options, give_up: GiveUp<'_>) -> Result<(u16, bool), FindError> {
    if let Some(port) = options.port {
        return Ok((port, false));
    }
    match port_of(host, (PROGRAM, VERSION), give_up) {
        Ok(Some(port)) => Ok((port, true)),
        Ok(None) => Err(FindError::NoVersion3 { what: "its portmapper does not know it".into(), cause: None }),
        // With both ports given, nobody needs a portmapper.
        Err(RpcError::Connect { .. } | RpcError::TimedOut { .. }) if options.mount_port.is_some() => {
            Ok((NFS_PORT, false))
        }
        Err(error) => Err(no_portmapper(host)(error)),
    }
}

fn no_portmapper(host: IpAddr) -> impl Fn(RpcError) -> FindError {
    move |error| match error {
        RpcError::GivenUp => FindError::GivenUp,
        cause => FindError::Unreachable {
            what: format!("its portmapper at {}", SocketAddr::from((host, 111))),
            cause: cause.into(),
        },
    }
}

/// What mountd has against a path, and the way out.
fn why_not(fault: &Fault) -> &'static str {
    if fault.is(Errno::NOENT) {
        "the server has no such directory to export; correct the volume's nfs.path, or export it"
    } else if fault.is(Errno::ACCESS) || fault.is(Errno::PERM) {
        "the server denies access; correct the volume's nfs.path, or export that to this node"
    } else if fault.is(Errno::NOTDIR) {
        "what the server has at nfs.path is not a directory"
    } else {
        "the server refuses to export it"
    }
}
