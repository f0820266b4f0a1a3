//! What each request of the kernel comes to in calls of the server.
use std::{
    ffi::{OsStr, OsString},
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use rustix::io::Errno;

use super::{
    Mounted,
    nodes::{Hidden, Node, TOP},
    writes::Open,
};
use crate::{
    proto::{Asker, Attr, Changes, Create, Fault, Fh, Kind, SetTime},
    rpc::Credential,
};

/// Bits of `ACCESS`.
const READ: u32 = 1;
const MODIFY: u32 = 4;
const EXTEND: u32 = 8;
const EXECUTE: u32 = 0x20;
/// Names that stand for files that were removed while they were open, as every NFS client has them.
const HIDDEN: &str = ".nfs";

/// `None`: the server did not say.
type Made = (Option<Fh>, Option<Attr>);

fn status(errno: Errno) -> Fault {
    Fault::Status(errno.raw_os_error().cast_unsigned())
}

/// What a process wants of a file that it opens.
#[derive(Clone, Copy)]
pub(super) struct Wish {
    pub read: bool,
    pub write: bool,
    pub sync: bool,
}

impl Mounted {
    pub(super) fn node(&self, id: u64) -> Result<Arc<Node>, Fault> {
        self.nodes.get(id).ok_or(Fault::Status(70))
    }

    pub(super) fn look_up(&self, dir: u64, name: &OsStr, asker: Asker<'_>) -> Result<(Arc<Node>, Attr), Fault> {
        let (fh, attr) = self.nfs.lookup(&self.node(dir)?.fh, name, asker)?;
        Ok((self.nodes.remember(fh, &attr), attr))
    }

    /// The node of what was made under a name, asked for where the server did not say what it made.
    pub(super) fn entered(
        &self,
        (dir, name): (&Node, &OsStr),
        made: Made,
        asker: Asker<'_>,
    ) -> Result<(Arc<Node>, Attr), Fault> {
        let (fh, attr) = match made {
            (Some(fh), Some(attr)) => (fh, attr),
            (Some(fh), None) => {
                let attr = self.nfs.getattr(&fh, asker)?;
                (fh, attr)
            }
            (None, _) => self.nfs.lookup(&dir.fh, name, asker)?,
        };
        Ok((self.nodes.remember(fh, &attr), attr))
    }

    pub(super) fn change(&self, node: &Node, changes: &Changes, asker: Asker<'_>) -> Result<Attr, Fault> {
        if changes.size.is_some() {
            // Repeated later, an earlier write would undo it.
            self.writes.make_safe(&self.nfs, node, asker.give_up)?;
        }
        match self.nfs.setattr(&node.fh, changes, asker)? {
            Some(attr) => Ok(attr),
            None => self.nfs.getattr(&node.fh, asker),
        }
    }

    /// Opens a file. Returns it, and whether the kernel's pages of it are still right.
    pub(super) fn open_file(&self, id: u64, wish: Wish, asker: Asker<'_>) -> Result<(Open, bool), Fault> {
        let node = self.node(id)?;
        // Running a program needs to read it, which a server lets those do who may execute it.
        let mut wanted = Vec::new();
        if wish.read {
            wanted.push(READ | EXECUTE);
        }
        if wish.write {
            wanted.push(MODIFY | EXTEND);
        }
        let all = wanted.iter().fold(0, |all, one| all | one);
        let (attr, granted) = self.nfs.access(&node.fh, all, asker)?;
        if wanted.iter().any(|any| granted & any == 0) {
            return Err(status(Errno::ACCESS));
        }
        let attr = attr.map_or_else(|| self.nfs.getattr(&node.fh, asker), Ok)?;
        Ok(self.opened(node, &attr, wish, asker.who))
    }

    /// The server's attributes as they are now decide whether the kernel's pages are thrown away: what another client
    /// wrote before it closed the file is seen by who opens it now.
    pub(super) fn opened(&self, node: Arc<Node>, attr: &Attr, wish: Wish, who: &Credential) -> (Open, bool) {
        let now = Some((attr.modified, attr.changed, attr.size));
        let before = std::mem::replace(&mut node.state.lock().seen, now);
        let same = before.is_none() || before == now;
        if !same && let Some(notifier) = self.notifier.get() {
            // The size too, which the kernel believes for a while. It may have forgotten the file meanwhile.
            let _ = notifier.inval_inode(fuser::INodeNo(node.id), -1, 0);
        }
        self.nodes.opened(&node);
        (Open { node, who: who.clone(), sync: wish.sync, listing: Default::default() }, before == now)
    }

    pub(super) fn create(
        &self,
        dir: u64,
        name: &OsStr,
        (mode, exclusive, truncate): (u32, bool, bool),
        asker: Asker<'_>,
    ) -> Result<(Arc<Node>, Attr), Fault> {
        let dir = self.node(dir)?;
        if !exclusive {
            let made = self.nfs.create(&dir.fh, name, Create::Open { mode }, asker)?;
            let (node, attr) = self.entered((&dir, name), made, asker)?;
            if truncate && attr.size > 0 {
                let attr = self.change(&node, &Changes { size: Some(0), ..Changes::default() }, asker);
                return self.or_forget(node, attr);
            }
            return Ok((node, attr));
        }
        let made = self.nfs.create(&dir.fh, name, Create::Exclusive { verifier: rand::random() }, asker)?;
        let (node, _) = self.entered((&dir, name), made, asker)?;
        // The server kept the number where times and, with some, the mode belong.
        let now = Some(SetTime::Now);
        let changes = Changes { mode: Some(mode), accessed: now, modified: now, ..Changes::default() };
        let attr = self.change(&node, &changes, asker);
        self.or_forget(node, attr)
    }

    /// The kernel is not told about a node whose request fails after all.
    fn or_forget(&self, node: Arc<Node>, attr: Result<Attr, Fault>) -> Result<(Arc<Node>, Attr), Fault> {
        match attr {
            Ok(attr) => Ok((node, attr)),
            Err(fault) => {
                self.nodes.forget(node.id, 1);
                Err(fault)
            }
        }
    }

    pub(super) fn make_node(
        &self,
        dir: u64,
        name: &OsStr,
        (mode, device): (u32, (u32, u32)),
        asker: Asker<'_>,
    ) -> Result<(Arc<Node>, Attr), Fault> {
        let kind = match mode & 0o170_000 {
            0o010_000 => Kind::Fifo,
            0o020_000 => Kind::CharDevice,
            0o060_000 => Kind::BlockDevice,
            0o140_000 => Kind::Socket,
            0o100_000 => return self.create(dir, name, (mode & 0o7777, true, false), asker),
            _ => return Err(status(Errno::INVAL)),
        };
        let dir = self.node(dir)?;
        let made = self.nfs.mknod(&dir.fh, name, (kind, mode & 0o7777, device), asker)?;
        self.entered((&dir, name), made, asker)
    }

    /// Removes a name. A file that somebody has open goes on under another until nobody has.
    pub(super) fn unlink(&self, dir: u64, name: &OsStr, asker: Asker<'_>) -> Result<(), Fault> {
        let dir = self.node(dir)?;
        if self.hide((&dir, name), asker)? { Ok(()) } else { self.nfs.remove(&dir.fh, name, asker) }
    }

    /// Renames a file that somebody has open and that has no other name. Returns whether it did.
    fn hide(&self, (dir, name): (&Node, &OsStr), asker: Asker<'_>) -> Result<bool, Fault> {
        if self.nodes.open.load(Ordering::Relaxed) == 0 {
            return Ok(false);
        }
        let (fh, attr) = match self.nfs.lookup(&dir.fh, name, asker) {
            Err(fault) if fault.is(Errno::NOENT) => return Ok(false),
            other => other?,
        };
        let Some(node) = self.nodes.by_handle(&fh) else { return Ok(false) };
        if attr.links > 1 || attr.kind != Kind::File {
            return Ok(false);
        }
        let hidden: OsString = format!("{HIDDEN}{:016x}{:08x}", attr.file_id, rand::random::<u32>()).into();
        {
            let mut state = node.state.lock();
            if state.opens == 0 {
                return Ok(false);
            }
            if state.hidden.as_ref().is_some_and(|h| h.name == name) {
                return Err(status(Errno::BUSY));
            }
            state.hidden = Some(Hidden { dir: dir.fh.clone(), name: hidden.clone(), who: asker.who.clone() });
        }
        let renamed = self.nfs.rename((&dir.fh, name), (&dir.fh, &hidden), asker);
        let mut state = node.state.lock();
        match renamed {
            Err(fault) => {
                state.hidden = None;
                Err(fault)
            }
            // Closed meanwhile: nobody would come to remove it.
            Ok(()) if state.opens == 0 => {
                drop(state);
                self.nfs.remove(&dir.fh, &hidden, asker).map(|()| true)
            }
            Ok(()) => Ok(true),
        }
    }

    pub(super) fn rename(
        &self,
        (from, name): (u64, &OsStr),
        (to, new_name): (u64, &OsStr),
        asker: Asker<'_>,
    ) -> Result<(), Fault> {
        let (from, to) = (self.node(from)?, self.node(to)?);
        // What the new name stands for goes; somebody may have it open.
        if self.nodes.open.load(Ordering::Relaxed) > 0 {
            let source = self.nfs.lookup(&from.fh, name, asker)?.0;
            let same = match self.nfs.lookup(&to.fh, new_name, asker) {
                Ok((target, _)) => target == source,
                Err(_) => true,
            };
            // Two names of one file both stay.
            if !same {
                self.hide((&to, new_name), asker)?;
            }
        }
        self.nfs.rename((&from.fh, name), (&to.fh, new_name), asker)
    }

    /// Reads up to `size` bytes, fewer only at the file's end.
    pub(super) fn read(&self, node: &Node, (offset, size): (u64, u32), asker: Asker<'_>, reply: fuser::ReplyData) {
        let mut reply = Some(reply);
        let mut all = Vec::new();
        let outcome = loop {
            let done = all.len() as u32;
            let (at, left) = (offset + u64::from(done), size - done);
            let read = self.nfs.read(&node.fh, (at, left.min(self.export.read_size)), asker, |data, end| {
                let finished = end || data.is_empty() || data.len() as u32 == left;
                // Most often all of it is here: it goes on as it came.
                if finished
                    && done == 0
                    && let Some(reply) = reply.take()
                {
                    reply.data(data);
                } else {
                    all.extend_from_slice(data);
                }
                finished
            });
            match read {
                Ok(true) => break Ok(()),
                Ok(false) => {}
                Err(fault) => break Err(fault),
            }
        };
        match (outcome, reply) {
            (Ok(()), Some(reply)) => reply.data(&all),
            (Err(fault), Some(reply)) => reply.error(fuser::Errno::from_i32(fault.errno())),
            (_, None) => {}
        }
    }

    /// What remains to be done for a file that a process has closed. Nobody waits for it, or hears of its failure.
    pub(super) fn close(self: &Arc<Self>, open: &Open) {
        let node = Arc::clone(&open.node);
        let hidden = self.nodes.closed(&node);
        if hidden.is_none() && node.unsafe_writes.lock().is_empty() {
            return;
        }
        let this = Arc::clone(self);
        let finish = move || {
            let never = || false;
            match hidden {
                Some(hidden) => {
                    this.writes.forget(&node);
                    let asker = Asker { who: &hidden.who, give_up: &never };
                    if let Err(fault) = this.nfs.remove(&hidden.dir, &hidden.name, asker) {
                        eprintln!("{} remains: {fault}", hidden.name.display());
                    }
                }
                None => {
                    if let Err(fault) = this.writes.make_safe(&this.nfs, &node, &never) {
                        eprintln!("writes to file {} are lost: {fault}", node.id);
                        this.writes.forget(&node);
                    }
                }
            }
        };
        if std::thread::Builder::new().name("closing".into()).spawn(finish).is_err() {
            eprintln!("no thread can be started to finish a closed file");
        }
    }

    /// The number that a file has for those who list its directory.
    pub(super) fn number(&self, fh: &Fh, attr: &Attr) -> u64 {
        self.nodes.by_handle(fh).map_or(attr.file_id, |node| if node.id == TOP { attr.file_id } else { node.id })
    }
}

/// A time to be set, as the server takes it: whole seconds since 1970 within 32 bits.
pub(super) fn set_time(time: fuser::TimeOrNow) -> SetTime {
    match time {
        fuser::TimeOrNow::Now => SetTime::Now,
        fuser::TimeOrNow::SpecificTime(time) => {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            SetTime::To((u32::try_from(since.as_secs()).unwrap_or(u32::MAX), since.subsec_nanos()))
        }
    }
}
