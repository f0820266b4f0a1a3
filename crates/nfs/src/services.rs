//! The services around an NFS server: where its programs listen (portmapper), and the handle of an export (mountd).
use std::net::{IpAddr, SocketAddr};

use crate::{
    proto::{Fault, Fh, LONGEST_HANDLE},
    rpc::{Client, Credential, GiveUp, Patience, Procedure, RpcError},
    xdr::Writer,
};

const PORTMAPPER: (u32, u32) = (100_000, 2);
const PORTMAPPER_PORT: u16 = 111;
const MOUNT: (u32, u32) = (100_005, 3);
const TCP: u32 = 6;

/// One try, and an error.
pub(crate) const ONCE: Patience = Patience { tries: Some(1), answer: std::time::Duration::from_secs(5) };

/// A server that listens there.
pub(crate) fn fixed(addr: SocketAddr, patience: Patience) -> Client {
    Client::new(Box::new(move |_| Ok(addr)), patience)
}

/// The TCP port of a program; `None`: it is not registered.
pub(crate) fn port_of(
    host: IpAddr,
    (program, version): (u32, u32),
    give_up: GiveUp<'_>,
) -> Result<Option<u16>, RpcError> {
    let mut args = Writer::default();
    args.u32(program).u32(version).u32(TCP).u32(0);
    let what = Procedure { program: PORTMAPPER.0, version: PORTMAPPER.1, number: 3 };
    let client = fixed((host, PORTMAPPER_PORT).into(), ONCE);
    let answer = client.call(what, &Credential::unix(0, 0, &[]), (&args, None), give_up)?;
    Ok(u16::try_from(answer.reader().u32()?).ok().filter(|p| *p != 0))
}

/// Where mountd listens.
pub(crate) fn mountd(host: IpAddr, give_up: GiveUp<'_>) -> Result<Option<u16>, RpcError> {
    port_of(host, MOUNT, give_up)
}

/// The handle of the directory at `path`. Errors are `mountstat3`, whose numbers are those of NFS.
pub(crate) fn mount(addr: SocketAddr, path: &[u8], give_up: GiveUp<'_>) -> Result<Fh, Fault> {
    let mut args = Writer::default();
    args.opaque(path);
    let what = Procedure { program: MOUNT.0, version: MOUNT.1, number: 1 };
    let answer = fixed(addr, ONCE).call(what, &Credential::unix(0, 0, &[]), (&args, None), give_up)?;
    let mut r = answer.reader();
    match r.u32()? {
        0 => Ok(Fh(r.opaque(LONGEST_HANDLE)?.into())),
        status => Err(Fault::Status(status)),
    }
}
