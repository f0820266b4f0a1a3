//! Turns a layer's tar archive into a directory for overlayfs.
//!
//! The archive is an attack: every path is resolved by the kernel inside the layer's directory (`openat2` with
//! `RESOLVE_IN_ROOT`), the last component is never followed, `..` is refused, and attributes that steer overlayfs itself
//! are dropped. A whiteout `.wh.NAME` becomes a 0:0 character device, an opaque mark the attribute overlayfs reads.
use std::{
    ffi::{OsStr, OsString},
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use rustix::{
    fs::{self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, makedev},
    io::Errno,
};
use tar::EntryType;

use crate::error::{ImageError, SPACE};

/// The kernel's own limit of a path.
const PATH_MAX_BYTES: usize = 4096;
/// File content is written in pieces of this size.
const COPY_BYTES: usize = 256 << 10;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Why an entry was refused: by the kernel, or by us.
enum Refusal {
    Kernel(io::Error),
    Bad(&'static str),
}

impl From<Errno> for Refusal {
    fn from(e: Errno) -> Self {
        Self::Kernel(e.into())
    }
}
impl From<io::Error> for Refusal {
    fn from(e: io::Error) -> Self {
        Self::Kernel(e)
    }
}

/// Unpacks `archive` into the empty directory `tree` and returns the bytes of file content written. `wrote` hears of
/// each file's bytes.
pub fn unpack(archive: impl Read, tree: &Path, layer: &str, wrote: &mut dyn FnMut(u64)) -> Result<u64, ImageError> {
    let failed = |source| ImageError::Layer { layer: layer.into(), source };
    let root = fs::open(tree, directory_flags(), Mode::empty()).map_err(|e| failed(e.into()))?;
    let mut target = Target { root, parent: None, directories: vec![], buffer: vec![0; COPY_BYTES], size: 0 };
    // The layer's root is given by its `./` entry if there is one; not by our umask or private temporary mode.
    fs::fchmod(&target.root, Mode::from_raw_mode(0o755)).map_err(|e| failed(e.into()))?;
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let path = entry.path_bytes().into_owned();
        let before = target.size;
        target.add(&mut entry, &path).map_err(|refusal| ImageError::Entry {
            layer: layer.into(),
            entry: String::from_utf8_lossy(&path).into_owned(),
            why: match refusal {
                Refusal::Kernel(e) if e.kind() == io::ErrorKind::StorageFull => {
                    format!("no space left on device; {SPACE}")
                }
                Refusal::Kernel(e) => e.to_string(),
                Refusal::Bad(why) => why.into(),
            },
        })?;
        if target.size > before {
            wrote(target.size - before);
        }
    }
    target.finish_directories().map_err(failed)?;
    Ok(target.size)
}

struct Target {
    root: OwnedFd,
    /// Entries of one directory follow each other: keep the last one open.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Time stamps to set at the end, as every file made in a directory changes its own.
    directories: Vec<(Vec<u8>, Timestamps)>,
    buffer: Vec<u8>,
    size: u64,
}

/// What an entry says about its inode.
struct Attributes {
    mode: Mode,
    uid: Uid,
    gid: Gid,
    times: Timestamps,
    extended: Vec<(OsString, Vec<u8>)>,
}

impl Target {
    fn add<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, path: &[u8]) -> Result<(), Refusal> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::GNULongName | EntryType::GNULongLink) {
            return Ok(());
        }
        let path = clean(path)?;
        let attributes = attributes(entry)?;
        let Some((parent, name)) = split(&path) else {
            if kind != EntryType::Directory {
                return Err(Refusal::Bad("the archive's root must be a directory"));
            }
            let root = self.root.try_clone()?;
            apply(&root, &attributes)?;
            self.directories.push((path, attributes.times));
            return Ok(());
        };
        self.open_parent(parent)?;
        if name.starts_with(WHITEOUT) {
            return self.whiteout(name);
        }
        match kind {
            EntryType::Directory => self.directory(name, &path, attributes),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.file(entry, name, &attributes),
            EntryType::Symlink => self.symlink(entry, name, &attributes),
            EntryType::Link => self.hard_link(entry, name),
            EntryType::Char => self.node(entry, name, FileType::CharacterDevice, &attributes),
            EntryType::Block => self.node(entry, name, FileType::BlockDevice, &attributes),
            EntryType::Fifo => self.node(entry, name, FileType::Fifo, &attributes),
            _ => Err(Refusal::Bad("unknown kind of archive entry")),
        }
    }

    fn dir(&self) -> &OwnedFd {
        self.parent.as_ref().map_or(&self.root, |(_, fd)| fd)
    }

    /// Opens the directory at `path`, making what is missing.
    fn open_parent(&mut self, path: &[u8]) -> Result<(), Refusal> {
        if self.parent.as_ref().is_some_and(|(open, _)| open == path) {
            return Ok(());
        }
        let fd = match self.resolve(path, directory_flags()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => self.make_path(path)?,
            Err(e) => return Err(e.into()),
        };
        self.parent = Some((path.to_vec(), fd));
        Ok(())
    }

    fn resolve(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        resolve_in(&self.root, path, flags)
    }

    fn make_path(&self, path: &[u8]) -> Result<OwnedFd, Refusal> {
        for (end, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/').chain([(path.len(), &b'/')]) {
            let part = &path[..end];
            let Some((parent, name)) = split(part) else { continue };
            if self.resolve(part, directory_flags()).is_ok() {
                continue;
            }
            let parent = self.resolve(parent, directory_flags())?;
            fs::mkdirat(&parent, OsStr::from_bytes(name), Mode::from_raw_mode(0o755))?;
            let made = open_here(&parent, name, directory_flags())?;
            fs::fchmod(&made, Mode::from_raw_mode(0o755))?;
        }
        Ok(self.resolve(path, directory_flags())?)
    }

    /// Makes room for an entry of the same name that comes later in the archive and wins. Says whether a whiteout was
    /// in its place.
    fn clear(&mut self, name: &[u8]) -> Result<bool, Refusal> {
        let dir = self.dir();
        let Ok(old) = fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) else { return Ok(false) };
        let whiteout = FileType::from_raw_mode(old.st_mode) == FileType::CharacterDevice && old.st_rdev == 0;
        remove(dir, name)?;
        Ok(whiteout)
    }

    fn directory(&mut self, name: &[u8], path: &[u8], attributes: Attributes) -> Result<(), Refusal> {
        let made = match fs::mkdirat(self.dir(), OsStr::from_bytes(name), Mode::RWXU) {
            Err(Errno::EXIST) => match open_here(self.dir(), name, directory_flags()) {
                Ok(fd) => fd,
                Err(_) => {
                    let hid = self.clear(name)?;
                    fs::mkdirat(self.dir(), OsStr::from_bytes(name), Mode::RWXU)?;
                    let fd = open_here(self.dir(), name, directory_flags())?;
                    if hid {
                        make_opaque(&fd)?;
                    }
                    fd
                }
            },
            other => {
                other?;
                open_here(self.dir(), name, directory_flags())?
            }
        };
        apply(&made, &attributes)?;
        self.directories.push((path.to_vec(), attributes.times));
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        name: &[u8],
        attributes: &Attributes,
    ) -> Result<(), Refusal> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let make = |dir: &OwnedFd| fs::openat(dir, OsStr::from_bytes(name), flags, Mode::RUSR | Mode::WUSR);
        let fd = match make(self.dir()) {
            Err(Errno::EXIST) => {
                self.clear(name)?;
                make(self.dir())?
            }
            other => other?,
        };
        let mut file = std::fs::File::from(fd);
        loop {
            let n = entry.read(&mut self.buffer)?;
            if n == 0 {
                break;
            }
            file.write_all(&self.buffer[..n])?;
            self.size += n as u64;
        }
        apply(&file.into(), attributes)
    }

    fn symlink<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        name: &[u8],
        attributes: &Attributes,
    ) -> Result<(), Refusal> {
        let to = entry.link_name_bytes().ok_or(Refusal::Bad("symbolic link without a target"))?.into_owned();
        self.clear(name)?;
        let name = OsStr::from_bytes(name);
        // Where it points is the container's business: it is resolved there, never here.
        fs::symlinkat(OsStr::from_bytes(&to), self.dir(), name)?;
        self.set_owner_and_times(name, attributes)
    }

    fn hard_link<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, name: &[u8]) -> Result<(), Refusal> {
        let to = entry.link_name_bytes().ok_or(Refusal::Bad("hard link without a target"))?.into_owned();
        let to = clean(&to)?;
        let (to_parent, to_name) = split(&to).ok_or(Refusal::Bad("hard link to the archive's root"))?;
        let to_dir = self.resolve(to_parent, directory_flags())?;
        let (old, new) = (OsStr::from_bytes(to_name), OsStr::from_bytes(name));
        let before = fs::statat(&to_dir, old, AtFlags::SYMLINK_NOFOLLOW)?;
        if let Ok(there) = fs::statat(self.dir(), new, AtFlags::SYMLINK_NOFOLLOW)
            && (there.st_dev, there.st_ino) == (before.st_dev, before.st_ino)
        {
            return Ok(()); // a link to itself must not remove the only copy
        }
        self.clear(name)?;
        Ok(fs::linkat(&to_dir, old, self.dir(), new, AtFlags::empty())?)
    }

    fn node<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        name: &[u8],
        kind: FileType,
        attributes: &Attributes,
    ) -> Result<(), Refusal> {
        let number = |n: io::Result<Option<u32>>| -> Result<u32, Refusal> { Ok(n?.unwrap_or(0)) };
        let device = match kind {
            FileType::Fifo => 0,
            _ => makedev(number(entry.header().device_major())?, number(entry.header().device_minor())?),
        };
        self.clear(name)?;
        let name = OsStr::from_bytes(name);
        fs::mknodat(self.dir(), name, kind, attributes.mode, device)?;
        // The umask cut the mode; the node is ours alone until the layer is in place, so following is no danger.
        fs::chmodat(self.dir(), name, attributes.mode, AtFlags::empty())?;
        self.set_owner_and_times(name, attributes)?;
        Ok(fs::chmodat(self.dir(), name, attributes.mode, AtFlags::empty())?)
    }

    fn set_owner_and_times(&self, name: &OsStr, attributes: &Attributes) -> Result<(), Refusal> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        fs::chownat(self.dir(), name, Some(attributes.uid), Some(attributes.gid), flags)?;
        Ok(fs::utimensat(self.dir(), name, &attributes.times, flags)?)
    }

    fn whiteout(&mut self, name: &[u8]) -> Result<(), Refusal> {
        if name == OPAQUE {
            return make_opaque(self.dir());
        }
        let hidden = &name[WHITEOUT.len()..];
        if hidden.starts_with(WHITEOUT) {
            return Ok(()); // bookkeeping of an older union file system
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(Refusal::Bad("a whiteout must name an entry of its directory"));
        }
        // It speaks of the layers below. What this layer has at that name stays; of a directory only the rest is hidden.
        match open_here(self.dir(), hidden, directory_flags()) {
            Ok(directory) => make_opaque(&directory),
            Err(Errno::NOENT) => {
                let name = OsStr::from_bytes(hidden);
                Ok(fs::mknodat(self.dir(), name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0))?)
            }
            Err(_) => Ok(()),
        }
    }

    fn finish_directories(&mut self) -> io::Result<()> {
        for (path, times) in self.directories.iter().rev() {
            // A later entry may have replaced the directory by something else.
            if let Ok(fd) = self.resolve(path, directory_flags() | OFlags::NOFOLLOW) {
                fs::futimens(&fd, times)?;
            }
        }
        Ok(())
    }
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC
}

/// Opens `path` with all symbolic links taken as inside `root`.
fn resolve_in(root: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    // Renames elsewhere on the machine make the kernel ask for another try.
    for _ in 0..128 {
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match fs::openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens one entry of a directory, not following a symbolic link.
fn open_here(dir: &OwnedFd, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    fs::openat(dir, OsStr::from_bytes(name), flags | OFlags::NOFOLLOW, Mode::empty())
}

/// Removes an entry with all below it.
fn remove(dir: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match fs::unlinkat(dir, OsStr::from_bytes(name), AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other,
    }
    let inside = open_here(dir, name, directory_flags())?;
    for entry in fs::Dir::read_from(&inside)? {
        let entry = entry?;
        let below = entry.file_name().to_bytes();
        if below != b"." && below != b".." {
            remove(&inside, below)?;
        }
    }
    fs::unlinkat(dir, OsStr::from_bytes(name), AtFlags::REMOVEDIR)
}

fn make_opaque(dir: &OwnedFd) -> Result<(), Refusal> {
    Ok(fs::fsetxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty())?)
}

/// Components joined by one slash, without `.`; `..` is refused, a leading slash means the layer's root.
fn clean(path: &[u8]) -> Result<Vec<u8>, Refusal> {
    if path.len() > PATH_MAX_BYTES {
        return Err(Refusal::Bad("the path is too long"));
    }
    let mut clean = Vec::with_capacity(path.len());
    for part in path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".") {
        if part == b".." {
            return Err(Refusal::Bad("the path leads out of the layer"));
        }
        if part.contains(&0) {
            return Err(Refusal::Bad("the path contains a zero byte"));
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(part);
    }
    Ok(clean)
}

/// Parent and last component of a clean path; `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    })
}

fn attributes<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Attributes, Refusal> {
    let mut extended = vec![];
    let mut precise = None;
    if let Some(records) = entry.pax_extensions()? {
        // The parser takes lines: a value with a line break in it is lost, which costs an attribute, not the image.
        for record in records.flatten() {
            let key = record.key_bytes();
            if key == b"mtime" {
                precise = std::str::from_utf8(record.value_bytes()).ok().and_then(time);
            } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
                && is_allowed(name)
            {
                extended.push((OsStr::from_bytes(name).to_owned(), record.value_bytes().to_vec()));
            }
        }
    }
    let header = entry.header();
    let id = |n: io::Result<u64>| -> Result<u32, Refusal> {
        u32::try_from(n?).ok().filter(|n| *n != u32::MAX).ok_or(Refusal::Bad("the owner's number is too large"))
    };
    let seconds = i64::try_from(header.mtime()?).unwrap_or(0);
    let stamp = precise.unwrap_or(Timespec { tv_sec: seconds, tv_nsec: 0 });
    Ok(Attributes {
        mode: Mode::from_raw_mode(header.mode()? & 0o7777),
        uid: Uid::from_raw(id(header.uid())?),
        gid: Gid::from_raw(id(header.gid())?),
        times: Timestamps { last_access: stamp, last_modification: stamp },
        extended,
    })
}

/// `trusted.*` steers overlayfs (a redirect there would reach outside); SELinux labels belong to the host.
fn is_allowed(name: &[u8]) -> bool {
    let user = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
    user || name == b"security.capability" || name.starts_with(b"system.posix_acl_")
}

/// Seconds with an optional fraction, as pax writes them.
fn time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: digits.parse().ok()? })
}

fn apply(fd: &OwnedFd, attributes: &Attributes) -> Result<(), Refusal> {
    fs::fchown(fd, Some(attributes.uid), Some(attributes.gid))?;
    // After the owner: a change of owner clears the set-user-id bit and capabilities.
    fs::fchmod(fd, attributes.mode)?;
    for (name, value) in &attributes.extended {
        match fs::fsetxattr(fd, name.as_os_str(), value, XattrFlags::empty()) {
            // The data directory's file system has no such attributes: programs cope, as on any such system.
            Err(Errno::OPNOTSUPP) => {}
            other => other?,
        }
    }
    Ok(fs::futimens(fd, &attributes.times)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_or_refused() {
        let cleaned = |path: &str| clean(path.as_bytes()).ok().map(|p| String::from_utf8(p).expect("text"));
        let long = "a/".repeat(3000);
        let cases = [
            ("./a//b/./c/", Some("a/b/c")),
            ("/etc/passwd", Some("etc/passwd")),
            ("./", Some("")),
            ("a..b/...", Some("a..b/...")),
            ("..", None),
            ("../a", None),
            ("a/../b", None),
            ("a/..", None),
            ("a\0b", None),
            (&long, None),
        ];
        for (path, expect) in cases {
            assert_eq!(cleaned(path).as_deref(), expect, "{path:?}");
        }
    }

    #[test]
    fn pax_times_keep_their_fraction() {
        let read = |text| time(text).map(|t| (t.tv_sec, t.tv_nsec));
        assert_eq!(read("1700000000.123"), Some((1_700_000_000, 123_000_000)));
        assert_eq!(read("5"), Some((5, 0)));
        assert_eq!(read("1.0000000019"), Some((1, 1)));
        assert_eq!(read("x"), None);
    }
}
