//! Reading a directory: pages of the server's, handed on in the smaller ones that the kernel asks for.
use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use rustix::io::Errno;

use crate::proto::{Asker, Attr, DirEntry, Fault, Fh, Nfs, is_unsupported};

/// How far the reading of an open directory has come.
#[derive(Default)]
pub(super) struct Listing {
    verifier: [u8; 8],
    entries: Vec<DirEntry>,
    /// Where reading the entries began.
    from: u64,
    end: bool,
    fetched: bool,
}

/// What is listed how.
pub(super) struct Lister<'a> {
    pub nfs: &'a Nfs,
    pub dir: &'a Fh,
    pub bytes: u32,
    pub plus: bool,
    pub asker: Asker<'a>,
}

impl Listing {
    /// The entries from `offset` on, at least one unless the directory ends there. 0 begins anew.
    pub fn from(&mut self, offset: u64, lister: &Lister<'_>) -> Result<&[DirEntry], Fault> {
        if offset == 0 {
            *self = Self::default();
        }
        let at = match self.position(offset) {
            Some(at) if at < self.entries.len() || self.end => at,
            _ => {
                self.fetch(offset, lister)?;
                0
            }
        };
        Ok(&self.entries[at..])
    }

    fn position(&self, offset: u64) -> Option<usize> {
        match self.fetched {
            false => None,
            true if offset == self.from => Some(0),
            true => self.entries.iter().position(|e| e.cookie == offset).map(|at| at + 1),
        }
    }

    fn fetch(&mut self, cookie: u64, lister: &Lister<'_>) -> Result<(), Fault> {
        let Lister { nfs, dir, bytes, plus, asker } = *lister;
        let list = |verifier, plus| nfs.list(dir, (cookie, verifier), (bytes, plus), asker);
        let page = match list(self.verifier, plus) {
            Err(e) if plus && is_unsupported(&e) => list(self.verifier, false)?,
            // The directory changed, and the server is strict about it: go on as well as it can.
            Err(e) if cookie != 0 && e.is(Errno::INVAL) => list([0; 8], plus)?,
            other => other?,
        };
        self.verifier = page.verifier;
        // A page without entries would be asked for again and again.
        self.end = page.end || page.entries.is_empty();
        (self.entries, self.from, self.fetched) = (page.entries, cookie, true);
        Ok(())
    }
}

/// What a name leads to, asked for where the listing did not say. `None`: it is gone, or nobody may know.
pub(super) fn found(entry: &DirEntry, lister: &Lister<'_>) -> Result<Option<(Fh, Attr)>, Fault> {
    if let Some(found) = &entry.found {
        return Ok(Some(found.clone()));
    }
    match lister.nfs.lookup(lister.dir, OsStr::from_bytes(&entry.name), lister.asker) {
        Ok(found) => Ok(Some(found)),
        Err(Fault::Status(_)) => Ok(None),
        Err(fault) => Err(fault),
    }
}
