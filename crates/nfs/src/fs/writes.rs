//! Writing: what the server may still lose is kept, and repeated where it did.
//!
//! - W1: what was written and then synced, or closed without an error, is on the server's disk, also when the server was
//!   started again in between.
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::{listing::Listing, nodes::Node};
use crate::{
    proto::{Asker, Fault, Nfs},
    rpc::{Credential, GiveUp, RpcError, SLICE},
};

/// What is kept for repetition of all files together before the server has to make it safe.
const KEEP_BYTES: usize = 32 << 20;
/// A server that forgets each time is not asked for ever.
const MOST_REPETITIONS: usize = 16;

/// What the server has in its memory only.
pub(super) struct Write {
    offset: u64,
    data: Vec<u8>,
    /// Of the server's life that it was written to.
    verifier: [u8; 8],
    who: Credential,
}

/// One open file or directory of the kernel's.
pub(super) struct Open {
    pub node: Arc<Node>,
    /// Whoever opened it: what he may do with it was decided then.
    pub who: Credential,
    /// Opened with `O_SYNC` or `O_DSYNC`.
    pub sync: bool,
    pub listing: parking_lot::Mutex<Listing>,
}

/// The writing part of a mount.
pub(super) struct Writes {
    piece: usize,
    kept: AtomicUsize,
}

impl Writes {
    /// `piece`: the most that one call writes.
    pub fn new(piece: u32) -> Self {
        Self { piece: piece as usize, kept: AtomicUsize::new(0) }
    }

    /// Writes all of `data`. `safe`: it is on the server's disk when this returns.
    pub fn write(
        &self,
        nfs: &Nfs,
        node: &Node,
        (offset, data): (u64, &[u8]),
        safe: bool,
        asker: Asker<'_>,
    ) -> Result<(), Fault> {
        {
            let _shared = loop {
                match node.writing.try_read_for(SLICE) {
                    Some(guard) => break guard,
                    None if (asker.give_up)() => return Err(RpcError::GivenUp.into()),
                    None => {}
                }
            };
            let (mut at, mut rest) = (offset, data);
            while !rest.is_empty() {
                let piece = &rest[..rest.len().min(self.piece)];
                let written = nfs.write(&node.fh, (at, piece), safe, asker)?;
                let (done, left) = rest.split_at(written.count);
                if !written.stable {
                    let (data, verifier, who) = (done.to_vec(), written.verifier, asker.who.clone());
                    node.unsafe_writes.lock().push(Write { offset: at, data, verifier, who });
                    self.kept.fetch_add(done.len(), Ordering::Relaxed);
                }
                (at, rest) = (at + done.len() as u64, left);
            }
        }
        if self.kept.load(Ordering::Relaxed) > KEEP_BYTES {
            // Others of the mount may have most of it; each makes its own safe when it comes here.
            self.make_safe(nfs, node, asker.give_up)?;
        }
        Ok(())
    }

    /// Lets the server put on its disk what was written, again where it lost it.
    pub fn make_safe(&self, nfs: &Nfs, node: &Node, give_up: GiveUp<'_>) -> Result<(), Fault> {
        if node.unsafe_writes.lock().is_empty() {
            return Ok(());
        }
        let _alone = loop {
            match node.writing.try_write_for(SLICE) {
                Some(guard) => break guard,
                None if give_up() => return Err(RpcError::GivenUp.into()),
                None => {}
            }
        };
        for _ in 0..MOST_REPETITIONS {
            let Some(who) = node.unsafe_writes.lock().first().map(|w| w.who.clone()) else { return Ok(()) };
            let now = nfs.commit(&node.fh, Asker { who: &who, give_up })?;
            let mut kept = std::mem::take(&mut *node.unsafe_writes.lock());
            // In their order, and from the first that is lost on: a later one may lie over it.
            let lost = kept.iter().position(|w| w.verifier != now);
            let again = lost.map_or_else(Vec::new, |at| kept.split_off(at));
            self.kept.fetch_sub(kept.iter().map(|w| w.data.len()).sum(), Ordering::Relaxed);
            if again.is_empty() {
                return Ok(());
            }
            eprintln!("the server lost {} writes that it had not put on its disk; they are written again", again.len());
            self.repeat(nfs, node, again, give_up)?;
        }
        Err(Fault::Rpc(RpcError::Refused("it forgets what it is given each time")))
    }

    /// Writes again; what was not reached stays kept.
    fn repeat(&self, nfs: &Nfs, node: &Node, writes: Vec<Write>, give_up: GiveUp<'_>) -> Result<(), Fault> {
        let mut failed = None;
        for mut write in writes {
            if failed.is_none() {
                match self.once_more(nfs, node, &write, give_up) {
                    Ok(verifier) => write.verifier = verifier,
                    Err(fault) => failed = Some(fault),
                }
            }
            node.unsafe_writes.lock().push(write);
        }
        failed.map_or(Ok(()), Err)
    }

    fn once_more(&self, nfs: &Nfs, node: &Node, write: &Write, give_up: GiveUp<'_>) -> Result<[u8; 8], Fault> {
        let (mut at, mut rest, mut verifier) = (write.offset, &write.data[..], write.verifier);
        while !rest.is_empty() {
            let asker = Asker { who: &write.who, give_up };
            let written = nfs.write(&node.fh, (at, &rest[..rest.len().min(self.piece)]), false, asker)?;
            verifier = written.verifier;
            rest = &rest[written.count..];
            at += written.count as u64;
        }
        Ok(verifier)
    }

    /// Gives up what cannot be made safe: whoever wrote it was told.
    pub fn forget(&self, node: &Node) {
        let lost = std::mem::take(&mut *node.unsafe_writes.lock());
        self.kept.fetch_sub(lost.iter().map(|w| w.data.len()).sum(), Ordering::Relaxed);
    }
}
