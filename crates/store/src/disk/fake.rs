//! A disk that loses what was not synced: the survivor of a crash at any operation.
use std::{collections::BTreeMap, io, sync::Arc};

use parking_lot::Mutex;

use super::{Disk, DiskFile};

#[derive(Debug, Clone, Default)]
struct Data {
    synced: Vec<u8>,
    /// What the running system sees.
    current: Vec<u8>,
}

#[derive(Debug, Default)]
struct Inner {
    files: Vec<Data>,
    /// Names on the platter, and names as the running system sees them.
    synced: BTreeMap<String, usize>,
    names: BTreeMap<String, usize>,
    operations: usize,
    crash_at: usize,
    fail_append: bool,
}

/// What of the unsynced survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Survives {
    Nothing,
    /// Names, and this many thirds of the bytes.
    Thirds(usize),
    /// As three thirds, but the middle of the new bytes is zero: pages reach the platter in any order.
    Holes,
}

#[derive(Clone, Default)]
pub(crate) struct FakeDisk(Arc<Mutex<Inner>>);

impl FakeDisk {
    pub(crate) fn crashing_at(operation: usize) -> Self {
        let disk = Self::default();
        disk.0.lock().crash_at = operation;
        disk
    }

    pub(crate) fn operations(&self) -> usize {
        self.0.lock().operations
    }

    pub(crate) fn fail_appends(&self, fail: bool) {
        self.0.lock().fail_append = fail;
    }

    /// The disk after power returns.
    pub(crate) fn after_crash(&self, survives: Survives) -> Self {
        let inner = self.0.lock();
        let mut names = inner.synced.clone();
        if survives != Survives::Nothing {
            names = inner.names.clone();
        }
        let files: Vec<Data> = inner.files.iter().map(|file| survivor(file, survives)).collect();
        let after = Inner { files, synced: names.clone(), names, ..Inner::default() };
        Self(Arc::new(Mutex::new(after)))
    }

    /// Changes one byte of a file behind the store's back.
    pub(crate) fn flip(&self, name: &str, offset: usize) {
        let mut inner = self.0.lock();
        let file = inner.names[name];
        inner.files[file].current[offset] ^= 0x40;
        inner.files[file].synced[offset] ^= 0x40;
    }

    fn step(&self) -> io::Result<parking_lot::MutexGuard<'_, Inner>> {
        let mut inner = self.0.lock();
        inner.operations += 1;
        if inner.crash_at != 0 && inner.operations >= inner.crash_at {
            return Err(io::Error::other("power is off"));
        }
        Ok(inner)
    }
}

fn survivor(file: &Data, survives: Survives) -> Data {
    let Data { synced, current } = file;
    if survives == Survives::Nothing {
        return Data { synced: synced.clone(), current: synced.clone() };
    }
    // What was written since the last sync: behind the end, or over the zeros of the room made for it.
    let common = synced.iter().zip(current).take_while(|(s, c)| s == c).count();
    let new = current.len() - common;
    let old = |at: usize| synced.get(at).copied().unwrap_or_default();
    let bytes = match survives {
        Survives::Nothing | Survives::Thirds(_) if current.len() < synced.len() => current.clone(),
        Survives::Nothing => synced.clone(),
        Survives::Thirds(n) => {
            let reached = common + new * n / 3;
            [&current[..reached], synced.get(reached..).unwrap_or_default()].concat()
        }
        Survives::Holes => {
            let hole = common + new / 3..common + new * 2 / 3;
            current.iter().enumerate().map(|(i, byte)| if hole.contains(&i) { old(i) } else { *byte }).collect()
        }
    };
    Data { synced: bytes.clone(), current: bytes }
}

/// The disk, which of its files, and where that one ends, room aside.
struct FakeFile(FakeDisk, usize, usize);

impl Disk for FakeDisk {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.step()?.names.keys().cloned().collect())
    }
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let inner = self.step()?;
        Ok(inner.files[inner.names[name]].current.clone())
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.step()?;
        inner.files.push(Data::default());
        let file = inner.files.len() - 1;
        inner.names.insert(name.into(), file);
        drop(inner);
        Ok(Box::new(FakeFile(self.clone(), file, 0)))
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let inner = self.step()?;
        let file = inner.names[name];
        Ok(Box::new(FakeFile(self.clone(), file, inner.files[file].current.len())))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.step()?;
        let file = inner.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.names.insert(to.into(), file);
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.step()?.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }
    fn sync_names(&self) -> io::Result<()> {
        let mut inner = self.step()?;
        inner.synced = inner.names.clone();
        Ok(())
    }
}

impl DiskFile for FakeFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let off = self.0.step().err();
        let mut inner = self.0.0.lock();
        // The write that the power fails under may have reached the cache in part.
        let reached = if off.is_some() || inner.fail_append { bytes.len() / 2 } else { bytes.len() };
        if inner.crash_at == 0 || inner.operations <= inner.crash_at {
            let current = &mut inner.files[self.1].current;
            let end = self.2 + reached;
            current.resize(current.len().max(end), 0);
            current[self.2..end].copy_from_slice(&bytes[..reached]);
        }
        match off {
            Some(error) => Err(error),
            None if inner.fail_append => Err(io::ErrorKind::StorageFull.into()),
            None => {
                self.2 += bytes.len();
                Ok(())
            }
        }
    }
    fn cut(&mut self, len: u64) -> io::Result<()> {
        let mut inner = self.0.step()?;
        inner.files[self.1].current.truncate(len as usize);
        self.2 = len as usize;
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        let mut inner = self.0.step()?;
        let file = &mut inner.files[self.1];
        file.synced = file.current.clone();
        Ok(())
    }
    fn room(&self) -> u64 {
        (self.0.0.lock().files[self.1].current.len() - self.2) as u64
    }
    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        let mut inner = self.0.step()?;
        let file = &mut inner.files[self.1];
        file.current.resize(file.current.len().max(self.2 + bytes as usize), 0);
        drop(inner);
        self.sync()
    }
}
