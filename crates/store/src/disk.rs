//! The few file operations that durability rests on, behind a trait so that tests can lose what was not synced.
#[cfg(test)]
pub(crate) mod fake;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// One directory of files. A created, renamed or removed name is durable after [`Disk::sync_names`].
pub(crate) trait Disk: Send + Sync + 'static {
    fn names(&self) -> io::Result<Vec<String>>;
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// An empty file of that name, whatever was there before.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// An existing file, to be appended to.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    fn sync_names(&self) -> io::Result<()>;
}

/// A file that grows at its end. Its data is durable after [`DiskFile::sync`].
pub(crate) trait DiskFile: Send {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Cuts the file to `len` bytes.
    fn cut(&mut self, len: u64) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
    /// Bytes that can be appended before the file itself has to grow, which makes a sync slower.
    fn room(&self) -> u64;
    /// Puts so many durable zeros after the end, which appending overwrites: readers of the file find them there.
    fn make_room(&mut self, bytes: u64) -> io::Result<()>;
}

/// A directory of the machine.
pub(crate) struct RealDisk {
    dir: PathBuf,
}

impl RealDisk {
    /// Makes the directory (mode 0700) when it is missing.
    pub(crate) fn new(dir: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Takes the directory for this process until the file is dropped; the pid of the holder (if known) otherwise.
    pub(crate) fn lock(&self) -> io::Result<Result<File, Option<u32>>> {
        let path = self.dir.join("lock");
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Ok(Err(fs::read_to_string(&path)?.trim().parse().ok()));
            }
            Err(fs::TryLockError::Error(e)) => return Err(e),
        }
        // Only for the message above: a full disk does not keep anybody from reading the store.
        if let Err(error) = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())) {
            tracing::warn!(path = %path.display(), %error, "cannot note who holds the store");
        }
        Ok(Ok(file))
    }
}

impl Disk for RealDisk {
    fn names(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.dir)?.map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned())).collect()
    }
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.dir.join(name))
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let path = self.dir.join(name);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Box::new(RealFile { file, end: 0, room: 0 }))
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().write(true).open(self.dir.join(name))?;
        let end = file.metadata()?.len();
        Ok(Box::new(RealFile { file, end, room: 0 }))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }
    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

/// Room is made only where so many times as much is free: others on the disk need theirs more.
const ROOM_SHARE: u64 = 16;

struct RealFile {
    file: File,
    end: u64,
    room: u64,
}

impl RealFile {
    /// Zeros up to so many bytes after the end.
    fn write_zeros(&self, bytes: u64) -> io::Result<()> {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        let mut at = self.end + self.room;
        let end = self.end + bytes;
        while at < end {
            let part = (end - at).min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..part as usize], at)?;
            at += part;
        }
        Ok(())
    }
}

impl DiskFile for RealFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.end)?;
        let more = bytes.len() as u64;
        self.end += more;
        self.room = self.room.saturating_sub(more);
        Ok(())
    }
    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)?;
        (self.end, self.room) = (len, 0);
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn room(&self) -> u64 {
        self.room
    }
    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        let space = rustix::fs::fstatvfs(&self.file)?;
        if space.f_bavail * space.f_frsize < bytes * ROOM_SHARE {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let made = self.write_zeros(bytes).and_then(|()| self.file.sync_data());
        match made {
            Ok(()) => self.room = bytes.max(self.room),
            // What was written of it is of no use.
            Err(_) => self.file.set_len(self.end + self.room)?,
        }
        made
    }
}

/// Forgets everything: a store that lives in memory only.
pub(crate) struct NoDisk;

impl Disk for NoDisk {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }
    fn read(&self, _: &str) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }
    fn create(&self, _: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(Self))
    }
    fn open(&self, _: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(Self))
    }
    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for NoDisk {
    fn append(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn cut(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn room(&self) -> u64 {
        u64::MAX
    }
    fn make_room(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }
}
