//! The calls of NFS version 3 (RFC 1813), one function each, and what they carry.
use std::{ffi::OsStr, fmt, os::unix::ffi::OsStrExt, sync::Arc, time::Duration};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::{
    rpc::{Answer, Client, Credential, GiveUp, Procedure, RpcError, SLICE},
    xdr::{Malformed, Reader, Writer},
};

pub(crate) const PROGRAM: u32 = 100_003;
pub(crate) const VERSION: u32 = 3;
/// Longest file handle.
pub(crate) const LONGEST_HANDLE: usize = 64;
/// Longest name and link target that is believed.
const LONGEST_PATH: usize = 4096;
/// So many times larger than was asked for, a part of a directory may be.
const PAGE_SLACK: usize = 2;

/// What a server calls a file.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Vec<u8>", into = "Vec<u8>")]
pub(crate) struct Fh(pub Arc<[u8]>);

impl fmt::Debug for Fh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl From<Vec<u8>> for Fh {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<Fh> for Vec<u8> {
    fn from(fh: Fh) -> Self {
        fh.0.to_vec()
    }
}

/// Since 1970: seconds and nanoseconds. 32 bits each is what the protocol has.
pub(crate) type Time = (u32, u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    BlockDevice,
    CharDevice,
    Link,
    Socket,
    Fifo,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::File, Self::Directory, Self::BlockDevice, Self::CharDevice, Self::Link, Self::Socket, Self::Fifo];

    fn number(self) -> u32 {
        Self::ALL.iter().zip(1..).find(|(k, _)| **k == self).map_or(0, |(_, n)| n)
    }
}

/// What a server says about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attr {
    pub kind: Kind,
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub used: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    pub file_id: u64,
    pub accessed: Time,
    pub modified: Time,
    pub changed: Time,
}

/// A time to be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetTime {
    Now,
    To(Time),
}

/// What is to be changed about a file.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Changes {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub accessed: Option<SetTime>,
    pub modified: Option<SetTime>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// `nfsstat3`, or `mountstat3`, whose numbers mean the same.
    #[error("{}", errno_of(*.0))]
    Status(u32),
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

impl From<Malformed> for Fault {
    fn from(malformed: Malformed) -> Self {
        Self::Rpc(malformed.into())
    }
}

impl Fault {
    /// What a program that wanted something of the file is told.
    pub fn errno(&self) -> i32 {
        let errno = match self {
            Self::Status(status) => errno_of(*status),
            Self::Rpc(RpcError::GivenUp) => Errno::INTR,
            Self::Rpc(_) => Errno::IO,
        };
        errno.raw_os_error()
    }

    pub fn is(&self, errno: Errno) -> bool {
        matches!(self, Self::Status(s) if errno_of(*s) == errno)
    }
}

const TRY_LATER: u32 = 10_008;
const NOT_SUPPORTED: u32 = 10_004;

pub(crate) fn errno_of(status: u32) -> Errno {
    match status {
        63 => Errno::NAMETOOLONG,
        66 => Errno::NOTEMPTY,
        69 => Errno::DQUOT,
        70 | 10_001 => Errno::STALE,
        71 => Errno::REMOTE,
        10_003 | 10_005 | 10_007 => Errno::INVAL,
        NOT_SUPPORTED => Errno::OPNOTSUPP,
        10_006 => Errno::REMOTEIO,
        // The numbers up to here are those that Unix has everywhere.
        1..=40 => Errno::from_raw_os_error(status.cast_signed()),
        _ => Errno::IO,
    }
}

/// Who asks, and whether he still waits.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub who: &'a Credential,
    pub give_up: GiveUp<'a>,
}

/// A name in a directory, and what it leads to.
#[derive(Debug, Clone)]
pub(crate) struct DirEntry {
    pub name: Vec<u8>,
    /// Where reading goes on after this one.
    pub cookie: u64,
    pub found: Option<(Fh, Attr)>,
}

/// A part of a directory.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub entries: Vec<DirEntry>,
    pub verifier: [u8; 8],
    pub end: bool,
}

/// What `WRITE` did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written {
    pub count: usize,
    /// It will survive the server's crash.
    pub stable: bool,
    /// Another one means that the server forgot what was not stable.
    pub verifier: [u8; 8],
}

/// What a server can and prefers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FsInfo {
    pub read_most: u32,
    pub write_most: u32,
    pub list_prefers: u32,
}

/// Space, in bytes and files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FsStat {
    pub bytes: [u64; 3],
    pub files: [u64; 3],
}

/// How a file is made.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Create {
    /// Whatever has the name is fine.
    Open { mode: u32 },
    /// Only here, which a repeated call finds out by the number.
    Exclusive { verifier: u64 },
}

/// The calls.
pub(crate) struct Nfs(pub Client);

/// The arguments of most calls begin with a file, often with a name in it.
fn at(dir: &Fh, name: &OsStr) -> Writer {
    let mut args = Writer::default();
    args.opaque(&dir.0).opaque(name.as_bytes());
    args
}

fn of(fh: &Fh) -> Writer {
    let mut args = Writer::default();
    args.opaque(&fh.0);
    args
}

impl Nfs {
    fn call(&self, number: u32, args: &Writer, asker: Asker<'_>) -> Result<Answer, Fault> {
        self.call_with(number, (args, None), asker)
    }

    /// Calls, again where the server asks for time.
    fn call_with(&self, number: u32, args: (&Writer, Option<&[u8]>), asker: Asker<'_>) -> Result<Answer, Fault> {
        let what = Procedure { program: PROGRAM, version: VERSION, number };
        loop {
            let answer = self.0.call(what, asker.who, args, asker.give_up)?;
            if answer.reader().u32()? != TRY_LATER {
                return Ok(answer);
            }
            for _ in 0..4 {
                std::thread::sleep(SLICE);
                if (asker.give_up)() {
                    return Err(RpcError::GivenUp.into());
                }
            }
        }
    }

    pub fn getattr(&self, fh: &Fh, asker: Asker<'_>) -> Result<Attr, Fault> {
        let answer = self.call(1, &of(fh), asker)?;
        Ok(attr(&mut ok(&answer)?)?)
    }

    /// The new attributes, where the server says them.
    pub fn setattr(&self, fh: &Fh, changes: &Changes, asker: Asker<'_>) -> Result<Option<Attr>, Fault> {
        let mut args = of(fh);
        sattr(&mut args, changes);
        args.bool(false);
        let answer = self.call(2, &args, asker)?;
        Ok(wcc(&mut ok(&answer)?)?)
    }

    pub fn lookup(&self, dir: &Fh, name: &OsStr, asker: Asker<'_>) -> Result<(Fh, Attr), Fault> {
        let answer = self.call(3, &at(dir, name), asker)?;
        let mut r = ok(&answer)?;
        let found = handle(&mut r)?;
        let attr = match r.option(attr)? {
            Some(attr) => attr,
            None => self.getattr(&found, asker)?,
        };
        Ok((found, attr))
    }

    /// What of `wanted` (bits of `ACCESS`) may be done, and the attributes.
    pub fn access(&self, fh: &Fh, wanted: u32, asker: Asker<'_>) -> Result<(Option<Attr>, u32), Fault> {
        let mut args = of(fh);
        args.u32(wanted);
        let answer = self.call(4, &args, asker)?;
        let mut r = ok(&answer)?;
        Ok((r.option(attr)?, r.u32()?))
    }

    pub fn readlink(&self, fh: &Fh, asker: Asker<'_>) -> Result<Vec<u8>, Fault> {
        let answer = self.call(5, &of(fh), asker)?;
        let mut r = ok(&answer)?;
        r.option(attr)?;
        Ok(r.opaque(LONGEST_PATH)?.to_vec())
    }

    /// Hands what was read, and whether the file ends there, to `take`, without a copy.
    pub fn read<T>(
        &self,
        fh: &Fh,
        (offset, count): (u64, u32),
        asker: Asker<'_>,
        take: impl FnOnce(&[u8], bool) -> T,
    ) -> Result<T, Fault> {
        let mut args = of(fh);
        args.u64(offset).u32(count);
        let answer = self.call(6, &args, asker)?;
        let mut r = ok(&answer)?;
        r.option(attr)?;
        let (_count, end) = (r.u32()?, r.bool()?);
        Ok(take(r.opaque(count as usize)?, end))
    }

    pub fn write(
        &self,
        fh: &Fh,
        (offset, data): (u64, &[u8]),
        stable: bool,
        asker: Asker<'_>,
    ) -> Result<Written, Fault> {
        let mut args = of(fh);
        let count = u32::try_from(data.len()).map_err(|_| Malformed)?;
        args.u64(offset).u32(count).u32(if stable { 2 } else { 0 });
        let answer = self.call_with(7, (&args, Some(data)), asker)?;
        let mut r = ok(&answer)?;
        wcc(&mut r)?;
        let (count, stable, verifier) = (r.u32()? as usize, r.u32()? == 2, r.array()?);
        if count == 0 && !data.is_empty() || count > data.len() {
            return Err(Malformed.into());
        }
        Ok(Written { count, stable, verifier })
    }

    /// `None`: the server did not say what was made.
    pub fn create(
        &self,
        dir: &Fh,
        name: &OsStr,
        how: Create,
        asker: Asker<'_>,
    ) -> Result<(Option<Fh>, Option<Attr>), Fault> {
        let mut args = at(dir, name);
        match how {
            Create::Open { mode } => sattr(args.u32(0), &Changes { mode: Some(mode), ..Changes::default() }),
            Create::Exclusive { verifier } => drop(args.u32(2).u64(verifier)),
        }
        made(&self.call(8, &args, asker)?)
    }

    pub fn mkdir(
        &self,
        dir: &Fh,
        name: &OsStr,
        mode: u32,
        asker: Asker<'_>,
    ) -> Result<(Option<Fh>, Option<Attr>), Fault> {
        let mut args = at(dir, name);
        sattr(&mut args, &Changes { mode: Some(mode), ..Changes::default() });
        self.make(9, &args, (dir, name), asker)
    }

    pub fn symlink(
        &self,
        dir: &Fh,
        name: &OsStr,
        target: &[u8],
        asker: Asker<'_>,
    ) -> Result<(Option<Fh>, Option<Attr>), Fault> {
        let mut args = at(dir, name);
        sattr(&mut args, &Changes { mode: Some(0o777), ..Changes::default() });
        args.opaque(target);
        self.make(10, &args, (dir, name), asker)
    }

    pub fn mknod(
        &self,
        dir: &Fh,
        name: &OsStr,
        (kind, mode, device): (Kind, u32, (u32, u32)),
        asker: Asker<'_>,
    ) -> Result<(Option<Fh>, Option<Attr>), Fault> {
        let mut args = at(dir, name);
        args.u32(kind.number());
        sattr(&mut args, &Changes { mode: Some(mode), ..Changes::default() });
        if matches!(kind, Kind::BlockDevice | Kind::CharDevice) {
            args.u32(device.0).u32(device.1);
        }
        self.make(11, &args, (dir, name), asker)
    }

    /// A call that was repeated may find what its first try made.
    fn make(
        &self,
        number: u32,
        args: &Writer,
        (dir, name): (&Fh, &OsStr),
        asker: Asker<'_>,
    ) -> Result<(Option<Fh>, Option<Attr>), Fault> {
        let answer = self.call(number, args, asker)?;
        match made(&answer) {
            Err(e) if answer.repeated && e.is(Errno::EXIST) => {
                self.lookup(dir, name, asker).map(|(fh, attr)| (Some(fh), Some(attr)))
            }
            other => other,
        }
    }

    pub fn remove(&self, dir: &Fh, name: &OsStr, asker: Asker<'_>) -> Result<(), Fault> {
        gone(&self.call(12, &at(dir, name), asker)?)
    }

    pub fn rmdir(&self, dir: &Fh, name: &OsStr, asker: Asker<'_>) -> Result<(), Fault> {
        gone(&self.call(13, &at(dir, name), asker)?)
    }

    pub fn rename(
        &self,
        (from, name): (&Fh, &OsStr),
        (to, new_name): (&Fh, &OsStr),
        asker: Asker<'_>,
    ) -> Result<(), Fault> {
        let mut args = at(from, name);
        args.opaque(&to.0).opaque(new_name.as_bytes());
        gone(&self.call(14, &args, asker)?)
    }

    pub fn link(&self, fh: &Fh, (dir, name): (&Fh, &OsStr), asker: Asker<'_>) -> Result<Option<Attr>, Fault> {
        let mut args = of(fh);
        args.opaque(&dir.0).opaque(name.as_bytes());
        let answer = self.call(15, &args, asker)?;
        match ok(&answer) {
            Err(e) if answer.repeated && e.is(Errno::EXIST) => Ok(None),
            other => Ok(other?.option(attr)?),
        }
    }

    /// A part of a directory, with what its names lead to where the server can say so.
    pub fn list(
        &self,
        dir: &Fh,
        (cookie, verifier): (u64, [u8; 8]),
        (bytes, plus): (u32, bool),
        asker: Asker<'_>,
    ) -> Result<Page, Fault> {
        let mut args = of(dir);
        args.u64(cookie).fixed(&verifier);
        if plus {
            args.u32(bytes / 4).u32(bytes);
        } else {
            args.u32(bytes);
        }
        let answer = self.call(if plus { 17 } else { 16 }, &args, asker)?;
        let mut r = ok(&answer)?;
        // An open directory keeps its page: a server that sends more than it may would fill the memory with them.
        if r.0.len() > bytes as usize * PAGE_SLACK {
            return Err(Malformed.into());
        }
        r.option(attr)?;
        let mut page = Page { verifier: r.array()?, ..Page::default() };
        while r.bool()? {
            let (_file_id, name, cookie) = (r.u64()?, r.opaque(LONGEST_PATH)?.to_vec(), r.u64()?);
            let found = match plus {
                true => {
                    let attr = r.option(attr)?;
                    r.option(handle)?.zip(attr)
                }
                false => None,
            };
            page.entries.push(DirEntry { name, cookie, found });
        }
        page.end = r.bool()?;
        Ok(page)
    }

    pub fn fsstat(&self, root: &Fh, asker: Asker<'_>) -> Result<FsStat, Fault> {
        let answer = self.call(18, &of(root), asker)?;
        let mut r = ok(&answer)?;
        r.option(attr)?;
        let mut three = || -> Result<[u64; 3], Malformed> { Ok([r.u64()?, r.u64()?, r.u64()?]) };
        Ok(FsStat { bytes: three()?, files: three()? })
    }

    pub fn fsinfo(&self, root: &Fh, asker: Asker<'_>) -> Result<FsInfo, Fault> {
        let answer = self.call(19, &of(root), asker)?;
        let mut r = ok(&answer)?;
        r.option(attr)?;
        let (read_most, _, _) = (r.u32()?, r.u32()?, r.u32()?);
        let (write_most, _, _, list_prefers) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
        Ok(FsInfo { read_most, write_most, list_prefers })
    }

    /// The verifier: what was written under another one is lost.
    pub fn commit(&self, fh: &Fh, asker: Asker<'_>) -> Result<[u8; 8], Fault> {
        let mut args = of(fh);
        args.u64(0).u32(0);
        let answer = self.call(21, &args, asker)?;
        let mut r = ok(&answer)?;
        wcc(&mut r)?;
        Ok(r.array()?)
    }
}

/// Whether a server cannot list with attributes.
pub(crate) fn is_unsupported(fault: &Fault) -> bool {
    matches!(fault, Fault::Status(NOT_SUPPORTED) | Fault::Rpc(RpcError::Refused(_)))
}

/// What follows the status of a call that succeeded.
fn ok(answer: &Answer) -> Result<Reader<'_>, Fault> {
    let mut r = answer.reader();
    match r.u32()? {
        0 => Ok(r),
        status => Err(Fault::Status(status)),
    }
}

/// A call that was repeated may find that its first try did it.
fn gone(answer: &Answer) -> Result<(), Fault> {
    match ok(answer) {
        Err(e) if answer.repeated && e.is(Errno::NOENT) => Ok(()),
        other => other.map(drop),
    }
}

fn made(answer: &Answer) -> Result<(Option<Fh>, Option<Attr>), Fault> {
    let mut r = ok(answer)?;
    Ok((r.option(handle)?, r.option(attr)?))
}

pub(crate) fn handle(r: &mut Reader<'_>) -> Result<Fh, Malformed> {
    Ok(Fh(r.opaque(LONGEST_HANDLE)?.into()))
}

fn attr(r: &mut Reader<'_>) -> Result<Attr, Malformed> {
    let kind = (r.u32()? as usize).checked_sub(1).and_then(|n| Kind::ALL.get(n)).copied().ok_or(Malformed)?;
    let (mode, links, uid, gid) = (r.u32()? & 0o7777, r.u32()?, r.u32()?, r.u32()?);
    let (size, used, device) = (r.u64()?, r.u64()?, (r.u32()?, r.u32()?));
    let (_file_system, file_id) = (r.u64()?, r.u64()?);
    let mut time = || -> Result<Time, Malformed> { Ok((r.u32()?, r.u32()?.min(999_999_999))) };
    let (accessed, modified, changed) = (time()?, time()?, time()?);
    Ok(Attr { kind, mode, links, uid, gid, size, used, device, file_id, accessed, modified, changed })
}

/// What a call that changes something says about the file: as it is now.
fn wcc(r: &mut Reader<'_>) -> Result<Option<Attr>, Malformed> {
    // Size and two times from before.
    r.option(|r| r.fixed(24))?;
    r.option(attr)
}

fn sattr(args: &mut Writer, changes: &Changes) {
    for word in [changes.mode, changes.uid, changes.gid] {
        match word {
            Some(word) => args.bool(true).u32(word),
            None => args.bool(false),
        };
    }
    match changes.size {
        Some(size) => args.bool(true).u64(size),
        None => args.bool(false),
    };
    for time in [changes.accessed, changes.modified] {
        match time {
            None => args.u32(0),
            Some(SetTime::Now) => args.u32(1),
            Some(SetTime::To((seconds, nanoseconds))) => args.u32(2).u32(seconds).u32(nanoseconds),
        };
    }
}

/// Time since 1970.
pub(crate) fn since_1970((seconds, nanoseconds): Time) -> Duration {
    Duration::new(seconds.into(), nanoseconds)
}
