//! A repository of this machine, copied: no program of git is started for it, and no link of it is followed.
//!
//! What is read of it are its objects, its branches and its tags. Its configuration, hooks and alternates are not.
use std::{
    collections::BTreeMap,
    fs::File,
    io::{ErrorKind, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use gix::{ObjectId, Repository, refs::FullName};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, openat2};

use crate::{
    process::{Failed, Limits},
    revision::{REMOTE, quoted},
    watch::Watch,
};

/// Bytes of a file of references; all that a server may have fit.
const REFERENCES_BYTES: u64 = 64 << 20;
/// Directories in each other below `refs`.
const DEEPEST: usize = 32;

/// Copies the repository in `dir` to `at`, as a clone of `url`.
pub(crate) fn copy(url: &str, dir: &OwnedFd, at: &Path, limits: &Limits, watch: &Watch) -> Result<Repository, Failed> {
    let unread = |e: std::io::Error| match e.kind() {
        ErrorKind::PermissionDenied => Failed::repository("it cannot be read by everybody on the node, as it must be"),
        ErrorKind::FileTooLarge => {
            Failed::repository(format!("it is larger than {} MiB, which is the limit", limits.bytes >> 20))
        }
        _ => Failed::repository(format!("it cannot be copied: {e}")),
    };
    let source = Source::open(dir).map_err(unread)?.ok_or_else(|| Failed::repository("there is no repository"))?;
    let made = gix::ThreadSafeRepository::init_opts(
        at,
        gix::create::Kind::WithWorktree,
        gix::create::Options::default(),
        crate::clone::options(false),
    );
    let git = made.map_err(|e| crate::clone::failed(&e, limits))?.to_thread_local().git_dir().to_path_buf();
    let mut left = limits.bytes;
    source.copy_objects(&git.join("objects"), &mut left, watch).map_err(unread)?;
    let references = source.references(watch).map_err(unread)?;
    let head = source.text("HEAD").map_err(unread)?.unwrap_or_default();
    write(&git, url, &references, head.trim()).map_err(unread)?;
    let opened = gix::open_opts(at, crate::clone::options(false));
    opened.map_err(|e| crate::clone::failed(&e, limits))
}

/// Writes what a clone has beside objects: the source's branches as the remote's, its tags, one branch of its own.
fn write(git: &Path, url: &str, references: &BTreeMap<String, ObjectId>, head: &str) -> std::io::Result<()> {
    std::fs::remove_dir_all(git.join("hooks"))?;
    let mut packed = BTreeMap::new();
    for (name, id) in references {
        match name.strip_prefix("refs/heads/") {
            Some(branch) => packed.insert(format!("{REMOTE}{branch}"), id),
            None => packed.insert(name.clone(), id),
        };
    }
    let lines: String = packed.iter().map(|(name, id)| format!("{id} {name}\n")).collect();
    std::fs::write(git.join("packed-refs"), lines)?;
    let mut config = std::fs::read_to_string(git.join("config"))?;
    config += &format!("[remote \"origin\"]\n\turl = {}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n", quoted(url));
    match head.strip_prefix("ref: ").map(str::trim).and_then(|name| name.strip_prefix("refs/heads/")) {
        Some(branch) if FullName::try_from(format!("refs/heads/{branch}")).is_ok() => {
            let name = format!("refs/heads/{branch}");
            if let Some(id) = references.get(&name) {
                let file = git.join(&name);
                std::fs::create_dir_all(file.parent().unwrap_or(git))?;
                std::fs::write(file, format!("{id}\n"))?;
                config += &format!("[branch {}]\n\tremote = origin\n\tmerge = {name}\n", quoted(branch));
            }
            std::fs::write(git.join("HEAD"), format!("ref: {name}\n"))?;
        }
        _ => {
            if let Ok(id) = ObjectId::from_hex(head.as_bytes()) {
                std::fs::write(git.join("HEAD"), format!("{id}\n"))?;
            }
        }
    }
    std::fs::write(git.join("config"), config)
}

/// The directory that holds `objects` and `refs`.
struct Source(OwnedFd);

impl Source {
    /// `None`: it is no repository.
    fn open(dir: &OwnedFd) -> std::io::Result<Option<Self>> {
        let git = match child(dir, ".git", OFlags::DIRECTORY) {
            Err(e) if e.kind() == ErrorKind::NotFound => child(dir, ".", OFlags::DIRECTORY)?,
            found => found?,
        };
        match child(&git, "objects", OFlags::DIRECTORY) {
            Ok(_) => Ok(Some(Self(git))),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn copy_objects(&self, to: &Path, left: &mut u64, watch: &Watch) -> std::io::Result<()> {
        let objects = child(&self.0, "objects", OFlags::DIRECTORY)?;
        for (name, _) in list(&objects)? {
            let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
            let wanted: fn(&str) -> bool = match name.as_str() {
                "pack" => {
                    |file| file.starts_with("pack-") && [".pack", ".idx", ".rev"].iter().any(|end| file.ends_with(end))
                }
                fan if fan.len() == 2 && hex(fan) => {
                    |file| file.len() == 38 && file.bytes().all(|b| b.is_ascii_hexdigit())
                }
                _ => continue,
            };
            let from = child(&objects, &name, OFlags::DIRECTORY)?;
            let to = to.join(&name);
            std::fs::create_dir_all(&to)?;
            for (file, _) in list(&from)?.into_iter().filter(|(file, _)| wanted(file)) {
                let mut input = regular(&from, &file)?;
                let mut output = File::create_new(to.join(&file))?;
                let copied = std::io::copy(&mut (&mut input).take(*left + 1), &mut output)?;
                *left = left.checked_sub(copied).ok_or(ErrorKind::FileTooLarge)?;
                watch.tick();
            }
        }
        Ok(())
    }

    /// Branches and tags with what they are.
    fn references(&self, watch: &Watch) -> std::io::Result<BTreeMap<String, ObjectId>> {
        let mut found = BTreeMap::new();
        for line in self.text("packed-refs")?.unwrap_or_default().lines() {
            if let Some((id, name)) = line.split_once(' ') {
                note(&mut found, name, id);
            }
        }
        let mut todo = vec![(PathBuf::from("refs/heads"), 0), (PathBuf::from("refs/tags"), 0)];
        while let Some((path, depth)) = todo.pop() {
            let name = path.to_string_lossy();
            let dir = match child(&self.0, &name, OFlags::DIRECTORY) {
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                found => found?,
            };
            for (entry, kind) in list(&dir)? {
                watch.tick();
                let path = path.join(&entry);
                match kind {
                    FileType::Directory if depth < DEEPEST => todo.push((path, depth + 1)),
                    FileType::RegularFile => {
                        let mut text = String::new();
                        regular(&dir, &entry)?.take(256).read_to_string(&mut text)?;
                        note(&mut found, &path.to_string_lossy(), text.trim());
                    }
                    _ => {}
                }
            }
        }
        Ok(found)
    }

    fn text(&self, name: &str) -> std::io::Result<Option<String>> {
        let file = match regular(&self.0, name) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        let mut text = String::new();
        let length = file.take(REFERENCES_BYTES + 1).read_to_string(&mut text)?;
        if length as u64 > REFERENCES_BYTES { Err(ErrorKind::FileTooLarge.into()) } else { Ok(Some(text)) }
    }
}

/// Keeps a reference whose name and value are such.
fn note(found: &mut BTreeMap<String, ObjectId>, name: &str, id: &str) {
    let wanted = name.starts_with("refs/heads/") || name.starts_with("refs/tags/");
    if wanted
        && FullName::try_from(name).is_ok()
        && let Ok(id) = ObjectId::from_hex(id.as_bytes())
    {
        found.insert(name.to_owned(), id);
    }
}

/// Opens something below a directory; no link is followed, and nothing waits.
fn child(dir: &OwnedFd, name: &str, flags: OFlags) -> std::io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(dir, name, flags, Mode::empty(), resolve)?)
}

fn regular(dir: &OwnedFd, name: &str) -> std::io::Result<File> {
    let file = File::from(child(dir, name, OFlags::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(ErrorKind::InvalidData.into()),
    }
}

fn list(dir: &OwnedFd) -> std::io::Result<Vec<(String, FileType)>> {
    let mut all = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        match entry.file_name().to_str() {
            Ok(name) if name != "." && name != ".." => all.push((name.to_owned(), entry.file_type())),
            _ => {}
        }
    }
    Ok(all)
}
