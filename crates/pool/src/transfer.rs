//! A volume as a stream: a tar archive that GNU tar and bsdtar read too.
//!
//! | member | what |
//! |---|---|
//! | `volume.json` | its record |
//! | `image` | of `backend=image`: the image, sparse (PAX 1.0) |
//! | `data/…` | of the others: its files, with owners, modes, times; without sockets |
//! | `end` | empty; without it the archive was cut off |
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, FileTypeExt},
    path::{Path, PathBuf},
};

use tar::{Archive, Builder, Entry, EntryType, Header};

use crate::{
    Backend, Id, NewVolume, Pool, Volume,
    error::{PoolError, failed},
    pool::{DATA, IMAGE},
    record::encode,
};

/// Is told how many bytes of how many are through.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

const VOLUME: &str = "volume.json";
const END: &str = "end";
/// Longest record and longest map of data that are read, in bytes.
const RECORD_BYTES_MAX: u64 = 64 << 10;
const MAP_BYTES_MAX: u64 = 256 << 20;
const CHUNK_BYTES: usize = 1 << 20;
/// Tar's unit, in bytes.
const BLOCK_BYTES: usize = 512;

fn broken(why: impl Into<String>) -> PoolError {
    PoolError::Invalid(format!("the archive cannot be imported: {}", why.into()))
}

/// An error of the stream, not of this machine's disks.
fn unreadable(error: io::Error) -> PoolError {
    broken(format!("{error}; it is damaged or was cut off"))
}

fn unwritten(error: io::Error) -> PoolError {
    failed("write", Path::new("the archive"))(error)
}

fn header(bytes: u64, kind: EntryType) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(bytes);
    header.set_mode(0o600);
    header
}

fn add(archive: &mut Builder<&mut dyn Write>, name: &str, content: &[u8]) -> io::Result<()> {
    let mut header = header(content.len() as u64, EntryType::Regular);
    archive.append_data(&mut header, name, content)
}

/// One record of an extended header: its own length, a name, a value.
fn extension(name: &str, value: &str) -> String {
    let rest = format!(" {name}={value}\n");
    let mut length = rest.len();
    // The length counts its own digits.
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    format!("{length}{rest}")
}

/// Writes an image as a sparse member.
fn add_image(
    archive: &mut Builder<&mut dyn Write>,
    image: &Path,
    data: &[(u64, u64)],
    progress: Progress<'_>,
) -> io::Result<()> {
    let mut file = File::open(image)?;
    let size = file.metadata()?.len();
    let mut map = format!("{}\n", data.len() + 1);
    for (start, stop) in data {
        map.push_str(&format!("{start}\n{}\n", stop - start));
    }
    map.push_str(&format!("{size}\n0\n"));
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK_BYTES), 0);
    let total: u64 = data.iter().map(|(start, stop)| stop - start).sum();

    let said = [("major", "1"), ("minor", "0"), ("name", IMAGE), ("realsize", &size.to_string())];
    let said: String = said.map(|(name, value)| extension(&format!("GNU.sparse.{name}"), value)).concat();
    let mut before = header(said.len() as u64, EntryType::XHeader);
    archive.append_data(&mut before, "PaxHeaders.0/image", said.as_bytes())?;
    let mut member = header(map.len() as u64 + total, EntryType::Regular);
    member.set_path("GNUSparseFile.0/image")?;
    member.set_cksum();
    let out = archive.get_mut();
    out.write_all(member.as_bytes())?;
    out.write_all(&map)?;
    let (mut done, mut chunk) = (0, vec![0; CHUNK_BYTES]);
    for (start, stop) in data {
        file.seek(SeekFrom::Start(*start))?;
        let mut left = stop - start;
        while left > 0 {
            let part = &mut chunk[..usize::try_from(left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES))];
            file.read_exact(part)?;
            out.write_all(part)?;
            left -= part.len() as u64;
            done += part.len() as u64;
            progress(done, total);
        }
    }
    let padding = total.next_multiple_of(BLOCK_BYTES as u64) - total;
    out.write_all(&[0; BLOCK_BYTES][..usize::try_from(padding).unwrap_or(0)])
}

/// Calls `act` with everything below a directory, without following links; parents come first.
fn walk(dir: &Path, act: &mut dyn FnMut(&Path, &fs::Metadata) -> io::Result<()>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let found = entry.metadata()?;
        // Nobody can be at the other end of one that is unpacked.
        if found.file_type().is_socket() {
            continue;
        }
        act(&entry.path(), &found)?;
        if found.is_dir() {
            walk(&entry.path(), act)?;
        }
    }
    Ok(())
}

fn add_files(archive: &mut Builder<&mut dyn Write>, data: &Path, progress: Progress<'_>) -> io::Result<()> {
    let (mut total, mut done) = (0, 0);
    let bytes = |found: &fs::Metadata| if found.is_file() { found.len() } else { 0 };
    walk(data, &mut |_, found| {
        total += bytes(found);
        Ok(())
    })?;
    archive.append_path_with_name(data, DATA)?;
    walk(data, &mut |path, found| {
        let name = Path::new(DATA).join(path.strip_prefix(data).map_err(io::Error::other)?);
        archive.append_path_with_name(path, name)?;
        done += bytes(found);
        progress(done, total);
        Ok(())
    })
}

/// A copy in `making/` that goes when it is no longer read.
struct Copy<'a> {
    pool: &'a Pool,
    dir: PathBuf,
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        // The next start removes what this cannot.
        let _ = self.pool.kernel.remove(&self.dir);
    }
}

impl Pool {
    /// Writes a volume as an archive. One that is in use is copied first, as a snapshot would be, and may be used meanwhile;
    /// the files of a directory that is in use are read as they come. One that is not in use is kept from being used.
    ///
    /// # Errors
    /// No such volume, somebody works on it, no room for the copy, or the machine or the writer failed.
    pub fn export(&self, id: &Id, out: &mut dyn Write, progress: Progress<'_>) -> Result<(), PoolError> {
        let turn = self.turn(id)?;
        let volume = self.existing(id)?;
        let in_use = self.staged_at(id)?.is_some() || self.mounted_publication(id)?.is_some();
        let mut turn = Some(turn);
        let copy = if in_use && volume.backend != Backend::Directory {
            let dir = self.dir.join("making").join(format!("export.{id}"));
            self.kernel.remove(&dir).map_err(failed("remove", &dir))?;
            self.kernel.ensure_dir(&dir).map_err(failed("make", &dir))?;
            let copy = Copy { pool: self, dir };
            self.copy_quiet(&volume, &copy.dir)?;
            Some(copy)
        } else {
            None
        };
        if in_use {
            turn = None;
        }
        let from = copy.as_ref().map_or_else(|| self.volume_dir(id), |copy| copy.dir.clone());
        let mut archive = Builder::new(out);
        archive.follow_symlinks(false);
        add(&mut archive, VOLUME, &encode(&volume)).map_err(unwritten)?;
        let content = from.join(if volume.backend == Backend::Image { IMAGE } else { DATA });
        let added = if volume.backend == Backend::Image {
            let data = self.kernel.data_in(&content).map_err(failed("read", &content))?;
            add_image(&mut archive, &content, &data, progress)
        } else {
            add_files(&mut archive, &content, progress)
        };
        added.map_err(failed("export", &content))?;
        add(&mut archive, END, b"").and_then(|()| archive.into_inner()?.flush()).map_err(unwritten)?;
        drop(turn);
        Ok(())
    }

    /// Makes a volume of that name from an archive that [`Pool::export`] wrote, with the backend and the size that it had.
    ///
    /// # Errors
    /// There is a volume of that name, the archive is none of ours, damaged or cut off, there is no room, or the machine
    /// failed. Nothing is left then.
    pub fn import(&self, name: &str, from: &mut dyn Read, progress: Progress<'_>) -> Result<Volume, PoolError> {
        let id = Id::of_name(name);
        let _turn = self.turn(&id)?;
        if self.volume(&id).is_some() {
            let difference = "an archive makes a new one; delete that one, or take another name".to_owned();
            return Err(PoolError::Exists { what: "volume", name: name.to_owned(), difference });
        }
        let mut archive = Archive::new(from);
        archive.set_preserve_permissions(true);
        archive.set_preserve_ownerships(true);
        archive.set_unpack_xattrs(true);
        let mut members = archive.entries().map_err(unreadable)?;
        let was = record(members.next().ok_or_else(|| broken("it is empty"))?.map_err(unreadable)?)?;
        let new = NewVolume {
            name: name.to_owned(),
            required_bytes: was.bytes,
            limit_bytes: 0,
            backend: was.backend,
            content: was.content,
            format: was.format,
            limit_required: false,
            origin: None,
            shares_room: was.shares_room,
            // They are about the one that it was.
            notes: Default::default(),
        };
        let volume = self.plan(id.clone(), &new)?;
        if volume.bytes != was.bytes {
            return Err(broken(format!("a volume cannot have {} bytes", was.bytes)));
        }
        if volume.keeps_room() {
            self.make_room(volume.bytes)?;
        }
        let place = self.volume_dir(&id);
        let made = self.put_in_place(&format!("volume.{id}"), &place, |half| {
            let volume = self.fill(volume, half, false)?;
            let mut ended = false;
            for member in members.by_ref() {
                let member = member.map_err(unreadable)?;
                let path = member.path().map_err(unreadable)?.into_owned();
                if path == Path::new(END) {
                    ended = true;
                } else if volume.backend == Backend::Image {
                    read_image(member, &half.join(IMAGE), volume.bytes, progress)?;
                } else {
                    unpack(member, &path, half, volume.bytes, progress)?;
                }
            }
            if !ended {
                return Err(broken("its end is missing: it was cut off"));
            }
            if volume.backend != Backend::Image {
                self.kernel.sync(half).map_err(failed("write", half))?;
            }
            Ok(volume)
        });
        let made = self.look_again(&id, made)?;
        self.remember(made.clone());
        Ok(made)
    }
}

/// Reads the first member.
fn record(member: Entry<'_, impl Read>) -> Result<Volume, PoolError> {
    let mut text = Vec::new();
    let is_it = member.path().is_ok_and(|path| path == Path::new(VOLUME));
    member.take(RECORD_BYTES_MAX).read_to_end(&mut text).map_err(unreadable)?;
    let volume = serde_json::from_slice(&text).ok().filter(|_| is_it);
    volume.ok_or_else(|| broken("it does not begin with the record of a volume"))
}

/// Puts one file of a volume in its place.
fn unpack(
    mut member: Entry<'_, impl Read>,
    path: &Path,
    half: &Path,
    bytes: u64,
    progress: Progress<'_>,
) -> Result<(), PoolError> {
    if !path.starts_with(DATA) {
        return Err(broken(format!("{} is none of its files", path.display())));
    }
    // Leaves out what would lead outside; what links lead to is not followed.
    let unpacked = member.unpack_in(half).map_err(|e| match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => failed("unpack", path)(e),
        _ => unreadable(e),
    })?;
    if !unpacked {
        return Err(broken(format!("{} leads out of the volume", path.display())));
    }
    progress(member.size(), bytes);
    Ok(())
}

/// A line of decimal digits.
fn number(from: &mut impl Read, read: &mut u64) -> Result<u64, PoolError> {
    let mut value: u64 = 0;
    loop {
        let mut byte = [0];
        from.read_exact(&mut byte).map_err(unreadable)?;
        *read += 1;
        match byte[0] {
            b'\n' if *read <= MAP_BYTES_MAX => return Ok(value),
            digit @ b'0'..=b'9' if *read <= MAP_BYTES_MAX => {
                let grown = value.checked_mul(10).and_then(|v| v.checked_add(u64::from(digit - b'0')));
                value = grown.ok_or_else(|| broken("a number in it is too large"))?;
            }
            _ => return Err(broken("its map of data is damaged")),
        }
    }
}

fn read_image(
    mut member: Entry<'_, impl Read>,
    image: &Path,
    bytes: u64,
    progress: Progress<'_>,
) -> Result<(), PoolError> {
    let mut is_sparse = false;
    for said in member.pax_extensions().map_err(unreadable)?.into_iter().flatten() {
        let said = said.map_err(unreadable)?;
        is_sparse |= (said.key(), said.value()) == (Ok("GNU.sparse.major"), Ok("1"));
    }
    if !is_sparse {
        return Err(broken("its image is not sparse as ours are"));
    }
    // Byte by byte, and most of the stream comes in large parts.
    let mut member = io::BufReader::with_capacity(CHUNK_BYTES, member);
    let mut read = 0;
    let count = number(&mut member, &mut read)?;
    let mut map = Vec::new();
    for _ in 0..count {
        let (start, length) = (number(&mut member, &mut read)?, number(&mut member, &mut read)?);
        let end = start.checked_add(length).filter(|end| *end <= bytes);
        if end.is_none() || map.last().is_some_and(|(_, before)| *before > start) {
            return Err(broken("its map of data leads out of the image"));
        }
        map.push((start, start + length));
    }
    let padding = read.next_multiple_of(BLOCK_BYTES as u64) - read;
    io::copy(&mut member.by_ref().take(padding), &mut io::sink()).map_err(unreadable)?;

    let file = File::options().write(true).open(image).map_err(failed("open", image))?;
    let total: u64 = map.iter().map(|(start, stop)| stop - start).sum();
    let (mut done, mut chunk) = (0, vec![0; CHUNK_BYTES]);
    for (mut at, stop) in map {
        while at < stop {
            let part = &mut chunk[..usize::try_from(stop - at).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES))];
            member.read_exact(part).map_err(unreadable)?;
            file.write_all_at(part, at).map_err(failed("write", image))?;
            at += part.len() as u64;
            done += part.len() as u64;
            progress(done, total);
        }
    }
    file.sync_all().map_err(failed("write", image))
}

#[test]
fn lengths_of_extensions_count_themselves() {
    for (name, value) in [("a", "b"), ("size", "123456"), ("n", &"x".repeat(93)), ("n", &"x".repeat(92))] {
        let said = extension(name, value);
        let (length, _) = said.split_once(' ').expect("a length");
        assert_eq!(length.parse(), Ok(said.len()));
    }
}
