//! Reading named parts of an image archive: a directory, or a tar file with random access.
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    error::{ImageError, file},
    layers::{Compression, compression, decompressed},
    manifest::DOCUMENT_MAX_BYTES,
};

/// Where an import reads from.
pub enum Archive {
    Directory(PathBuf),
    Tar { path: PathBuf, file: Arc<File>, parts: HashMap<String, Part> },
}

/// One entry of a tar file.
#[derive(Debug, Clone)]
pub enum Part {
    /// Offset and length of its content.
    Content(u64, u64),
    /// Another entry's name; docker archives share layers so.
    Link(String),
    Other,
}

impl Archive {
    /// Opens `path`. A compressed tar file is expanded into an unnamed file in `tmp` first.
    pub fn open(path: &Path, tmp: &Path) -> Result<Self, ImageError> {
        let mut archive = File::open(path).map_err(file("open image file", path))?;
        let facts = archive.metadata().map_err(file("open image file", path))?;
        if facts.is_dir() {
            return Ok(Self::Directory(path.into()));
        }
        let bad = |why: &str| ImageError::Import { file: path.into(), why: why.into() };
        if !facts.is_file() {
            return Err(bad("it is neither a regular file nor a directory"));
        }
        let mut start = [0; 4];
        archive.read_exact_at(&mut start, 0).map_err(|_| bad("it is too short to be an archive"))?;
        if compression(&start) != Compression::None {
            let mut plain = tempfile::tempfile_in(tmp).map_err(file("create file in", tmp))?;
            let copied = decompressed(&archive).and_then(|mut from| io::copy(&mut from, &mut plain));
            copied.map_err(file("decompress", path))?;
            archive = plain;
        }
        archive.rewind().map_err(file("read", path))?;
        let parts = index(&archive).map_err(|e| match e.kind() {
            // What the reader of tar says of rubbish quotes the rubbish.
            io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => bad(
                "it is damaged, or not an OCI layout, OCI archive, docker archive or root file system in tar format",
            ),
            _ => file("read", path)(e),
        })?;
        if parts.is_empty() {
            return Err(bad("the archive is empty"));
        }
        Ok(Self::Tar { path: path.into(), file: Arc::new(archive), parts })
    }

    /// The path the user gave.
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Tar { path, .. } => path,
        }
    }

    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(dir) => dir.join(name).is_file(),
            Self::Tar { .. } => self.part(name).is_some(),
        }
    }

    fn part(&self, name: &str) -> Option<(u64, u64)> {
        let Self::Tar { parts, .. } = self else { return None };
        let mut name = name;
        for _ in 0..8 {
            match parts.get(name)? {
                Part::Content(offset, length) => return Some((*offset, *length)),
                Part::Link(to) => name = to,
                Part::Other => return None,
            }
        }
        None
    }

    /// The content of a part. `name` must not come from outside unchecked: it is joined to a directory.
    pub fn part_reader(&self, name: &str) -> Result<Box<dyn Read + Send>, ImageError> {
        match self {
            Self::Directory(dir) => {
                let path = dir.join(name);
                Ok(Box::new(File::open(&path).map_err(file("open", path))?))
            }
            Self::Tar { path, file, .. } => {
                let (offset, length) = self.part(name).ok_or_else(|| ImageError::Import {
                    file: path.clone(),
                    why: format!("{name:?} is missing in it; the archive is incomplete"),
                })?;
                Ok(Box::new(Slice { file: file.clone(), offset, end: offset.saturating_add(length) }))
            }
        }
    }

    /// A small part as a whole.
    pub fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let mut bytes = vec![];
        let limited = self.part_reader(name)?.take(DOCUMENT_MAX_BYTES + 1).read_to_end(&mut bytes);
        limited.map_err(file("read", self.path().join(name)))?;
        if bytes.len() as u64 > DOCUMENT_MAX_BYTES {
            let why = format!("{name:?} in it is too large to be a manifest");
            return Err(ImageError::Import { file: self.path().into(), why });
        }
        Ok(bytes)
    }

    /// The tar file itself, from its start.
    pub fn whole(&self) -> Option<Box<dyn Read + Send>> {
        match self {
            Self::Directory(_) => None,
            Self::Tar { file, .. } => Some(Box::new(Slice { file: file.clone(), offset: 0, end: u64::MAX })),
        }
    }
}

fn index(archive: &File) -> io::Result<HashMap<String, Part>> {
    let mut parts = HashMap::new();
    for entry in tar::Archive::new(archive).entries_with_seek()? {
        let entry = entry?;
        let Some(name) = std::str::from_utf8(&entry.path_bytes()).ok().and_then(plain_name) else { continue };
        let kind = entry.header().entry_type();
        let part = if kind.is_file() {
            Part::Content(entry.raw_file_position(), entry.size())
        } else if kind.is_symlink() || kind.is_hard_link() {
            let target = entry.link_name_bytes().and_then(|l| String::from_utf8(l.into_owned()).ok());
            let base = if kind.is_symlink() { name.rsplit_once('/').map_or("", |(dir, _)| dir) } else { "" };
            target.and_then(|t| plain_name(&format!("{base}/{t}"))).map_or(Part::Other, Part::Link)
        } else {
            Part::Other
        };
        parts.insert(name, part);
    }
    Ok(parts)
}

/// Resolves `.` and `..` as text.
fn plain_name(name: &str) -> Option<String> {
    let mut parts = vec![];
    for part in name.split('/').filter(|p| !p.is_empty() && *p != ".") {
        match part {
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// A range of a shared file; does not move the file's own position.
struct Slice {
    file: Arc<File>,
    offset: u64,
    end: u64,
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.file.read_at(&mut buffer[..room], self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}
