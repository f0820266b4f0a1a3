//! Work on whole trees, from handle to handle: removal, group change, usage.
//!
//! Any depth and any name: at most [`KEEP_OPEN`] directories are held open, and nothing recurses.
use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    io::{self, ErrorKind},
    path::Path,
    vec,
};

use rustix::io::Errno;

use crate::{Entry, FileKind, Handle, Reach, Sys};

mod group;

pub use group::{give_one_to_group, give_to_group};

/// Directories held open while going down; those further up are found again through `..` and checked.
const KEEP_OPEN: usize = 64;

/// What to do with a mount point met on the way. Nothing is ever changed behind one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AtMount {
    Skip,
    Refuse,
}

struct Frame {
    /// Closed while the walk is far below.
    dir: Option<Handle>,
    id: (u64, u64),
    name: OsString,
    entries: vec::IntoIter<Entry>,
}

impl Frame {
    fn open(sys: &dyn Sys, dir: Handle, name: OsString) -> io::Result<Self> {
        let id = sys.stat(&dir)?.id();
        let entries = sys.list(&dir)?.into_iter();
        Ok(Self { dir: Some(dir), id, name, entries })
    }
}

/// Calls `visit` for everything below `top` (not for `top`), contents before their directory.
fn walk(
    sys: &dyn Sys,
    top: Handle,
    at_mount: AtMount,
    visit: &mut dyn FnMut(&Handle, &Entry) -> io::Result<()>,
) -> io::Result<()> {
    walk_from(sys, Frame::open(sys, top, OsString::new())?, at_mount, &mut |_| Ok(()), visit)
}

/// [`walk`] for some entries of a directory. Before each step, `share` may take entries away from the directories on the
/// way, which are then somebody else's to visit.
fn walk_from(
    sys: &dyn Sys,
    top: Frame,
    at_mount: AtMount,
    share: &mut dyn FnMut(&mut [Frame]) -> io::Result<()>,
    visit: &mut dyn FnMut(&Handle, &Entry) -> io::Result<()>,
) -> io::Result<()> {
    let mut stack = vec![top];
    while !stack.is_empty() {
        share(&mut stack)?;
        let Some(frame) = stack.last_mut() else { break };
        let dir = frame.dir.as_ref().expect("the lowest directory is always open");
        match frame.entries.next() {
            Some(entry) if entry.kind == FileKind::Directory => {
                let opened = sys.open_at(dir, Path::new(&entry.name), Reach::Child);
                let frame = match opened.and_then(|child| Frame::open(sys, child, entry.name)) {
                    Ok(frame) => frame,
                    Err(e) if e.kind() == ErrorKind::NotFound => continue,
                    Err(e) if is(&e, Errno::XDEV) && at_mount == AtMount::Skip => continue,
                    Err(e) if is(&e, Errno::XDEV) => return Err(Errno::BUSY.into()),
                    Err(e) => return Err(e),
                };
                stack.push(frame);
                if let Some(far) = stack.len().checked_sub(KEEP_OPEN + 1) {
                    stack[far].dir = None;
                }
            }
            Some(entry) => visit(dir, &entry)?,
            None => {
                let done = stack.pop().expect("just seen");
                let Some(above) = stack.last_mut() else { return Ok(()) };
                if above.dir.is_none() {
                    let below = done.dir.as_ref().expect("the lowest directory is always open");
                    let found = sys.open_at(below, Path::new(""), Reach::Parent)?;
                    // Someone moved the directory elsewhere meanwhile: going on would change a stranger's files.
                    if sys.stat(&found)?.id() != above.id {
                        return Err(Errno::AGAIN.into());
                    }
                    above.dir = Some(found);
                }
                drop(done.dir);
                let dir = above.dir.as_ref().expect("opened above");
                visit(dir, &Entry { name: done.name, kind: FileKind::Directory })?;
            }
        }
    }
    Ok(())
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes `name` in `dir` with everything below it. A name that does not exist is fine.
///
/// # Errors
/// `EBUSY`, with nothing removed, while anything is mounted at or below it.
pub fn remove(sys: &dyn Sys, dir: &Handle, name: &OsStr) -> io::Result<()> {
    if sys.mounts_below(dir)?.iter().any(|point| point.starts_with(name)) {
        return Err(Errno::BUSY.into());
    }
    let top = match sys.open_at(dir, Path::new(name), Reach::Child) {
        Ok(top) => top,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) if is(&e, Errno::XDEV) => return Err(Errno::BUSY.into()),
        Err(e) => return Err(e),
    };
    if !sys.stat(&top)?.is_dir() {
        drop(top);
        return unless_gone(sys.remove_file(dir, name));
    }
    empty(sys, top)?;
    unless_gone(sys.remove_dir(dir, name))
}

/// Makes a tree root's, in which no file can be written by others or gives rights to who runs it. The top directory's mode
/// stays.
pub fn take(sys: &dyn Sys, top: &Handle) -> io::Result<()> {
    let own = |at: &Handle| sys.set_owner(at, Some(0), Some(0));
    let again = sys.open_at(top, Path::new(""), Reach::Child)?;
    walk(sys, again, AtMount::Refuse, &mut |dir, entry| {
        let at = sys.open_at(dir, Path::new(&entry.name), Reach::Child)?;
        own(&at)?;
        let stat = sys.stat(&at)?;
        match stat.kind {
            FileKind::Link => Ok(()),
            // Mode after owner: a change of owner clears set-id bits.
            FileKind::Directory => sys.set_mode(&at, 0o755),
            _ if stat.mode & 0o100 != 0 => sys.set_mode(&at, 0o755),
            _ => sys.set_mode(&at, 0o644),
        }
    })?;
    own(top)
}

/// Removes everything below an open directory; the directory stays as it is.
///
/// # Errors
/// `EBUSY`, with nothing removed, while anything is mounted below it; `ENOTEMPTY` if someone goes on making files.
pub fn clear(sys: &dyn Sys, top: &Handle) -> io::Result<()> {
    if sys.mounts_below(top)?.iter().any(|point| !point.as_os_str().is_empty()) {
        return Err(Errno::BUSY.into());
    }
    empty(sys, sys.open_at(top, Path::new(""), Reach::Child)?)?;
    match sys.list(top)?.is_empty() {
        true => Ok(()),
        false => Err(Errno::NOTEMPTY.into()),
    }
}

/// Removes everything below an open directory.
fn empty(sys: &dyn Sys, top: Handle) -> io::Result<()> {
    walk(sys, top, AtMount::Refuse, &mut |dir, entry| {
        unless_gone(match entry.kind {
            FileKind::Directory => sys.remove_dir(dir, &entry.name),
            _ => sys.remove_file(dir, &entry.name),
        })
    })
}

/// What a directory takes on its filesystem, itself included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub bytes: u64,
    /// Files of all kinds.
    pub inodes: u64,
}

/// What a file, or a directory with all that is in it, takes; hard links count once, other mounts not at all.
pub fn usage(sys: &dyn Sys, top: &Handle) -> io::Result<Usage> {
    let stat = sys.stat(top)?;
    let mut used = Usage { bytes: stat.allocated_bytes, inodes: 1 };
    if !stat.is_dir() {
        return Ok(used);
    }
    let mut seen = HashSet::new();
    let again = sys.open_at(top, Path::new(""), Reach::Child)?;
    walk(sys, again, AtMount::Skip, &mut |dir, entry| {
        match sys.stat_at(dir, &entry.name) {
            Ok(stat) if stat.is_dir() || stat.links < 2 || seen.insert(stat.id()) => {
                used.bytes += stat.allocated_bytes;
                used.inodes += 1;
            }
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        Ok(())
    })?;
    Ok(used)
}

/// Unmounts everything at and below `name` in `dir`, deepest first; `how` decides for each, given its path below `dir`.
///
/// # Errors
/// The path that could not be unmounted, with the kernel's error.
pub fn unmount_all(
    sys: &dyn Sys,
    dir: &Handle,
    name: &OsStr,
    how: &dyn Fn(&Path) -> crate::Unmount,
) -> Result<(), (std::path::PathBuf, io::Error)> {
    unmount_those(sys, dir, name, &|point| point.starts_with(name), how)
}

/// Unmounts all mounts below `dir` that are `meant`, in an order that allows it.
fn unmount_those(
    sys: &dyn Sys,
    dir: &Handle,
    name: &OsStr,
    meant: &dyn Fn(&Path) -> bool,
    how: &dyn Fn(&Path) -> crate::Unmount,
) -> Result<(), (std::path::PathBuf, io::Error)> {
    let here = || Path::new(name).to_path_buf();
    // Each round asks anew: unmounting may propagate, and stacked mounts surface one by one.
    for _ in 0..1024 {
        let points = sys.mounts_below(dir).map_err(|e| (here(), e))?;
        let Some(point) = points.into_iter().find(|p| meant(p)) else { return Ok(()) };
        let fail = |e| (point.clone(), e);
        let (above, last) = (point.parent().unwrap_or(Path::new("")), point.file_name().unwrap_or(name));
        let above = sys.open_at(dir, above, Reach::Plain).map_err(fail)?;
        match sys.unmount(&above, last, how(&point)) {
            // Gone between the question and the call.
            Err(e) if is(&e, Errno::INVAL) || e.kind() == ErrorKind::NotFound => {}
            other => other.map_err(fail)?,
        }
    }
    Err((here(), Errno::BUSY.into()))
}

/// Keeps what is mounted and unmounted at and below `name` in `dir` from showing up elsewhere.
///
/// # Errors
/// The path that it could not be done for, with the kernel's error.
pub fn isolate_all(sys: &dyn Sys, dir: &Handle, name: &OsStr) -> Result<(), (std::path::PathBuf, io::Error)> {
    let points = sys.mounts_below(dir).map_err(|e| (Path::new(name).to_path_buf(), e))?;
    for point in points.into_iter().filter(|p| p.starts_with(name)) {
        // One that is gone meanwhile shows up nowhere.
        if let Ok(at) = sys.open_at(dir, &point, Reach::Plain) {
            sys.isolate(&at).map_err(|e| (point, e))?;
        }
    }
    Ok(())
}

/// Unmounts everything below `name` in `dir`, but not what is mounted there itself: whoever is to unmount that would find it
/// busy. What came here from elsewhere stays mounted where it came from.
///
/// # Errors
/// The path that could not be unmounted, with the kernel's error.
pub fn unmount_inside(sys: &dyn Sys, dir: &Handle, name: &OsStr) -> Result<(), (std::path::PathBuf, io::Error)> {
    let inside = |point: &Path| point.starts_with(name) && point != Path::new(name);
    let points = sys.mounts_below(dir).map_err(|e| (Path::new(name).to_path_buf(), e))?;
    // Mostly there is nothing, and then nobody is asked who may not answer.
    if !points.iter().any(|point| inside(point)) {
        return Ok(());
    }
    isolate_all(sys, dir, name)?;
    unmount_those(sys, dir, name, &inside, &|_| crate::Unmount::Strict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RealSys;

    #[test]
    fn a_directory_that_is_moved_away_ends_the_walk() {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let top = scratch.path().join("top");
        let mut at = top.clone();
        for _ in 0..2 * KEEP_OPEN {
            at.push("d");
        }
        std::fs::create_dir_all(&at).expect("make a deep tree");
        std::fs::write(at.join("bottom"), "").expect("write a file");
        std::fs::write(scratch.path().join("stranger"), "").expect("write a file");
        let middle: std::path::PathBuf = at.ancestors().nth(KEEP_OPEN + 8).expect("deep enough").into();
        let mut visited = Vec::new();
        let walked = walk(&RealSys, RealSys.open(&top).expect("open"), AtMount::Refuse, &mut |_, entry| {
            if visited.is_empty() {
                std::fs::rename(&middle, scratch.path().join("moved"))?;
            }
            visited.push(entry.name.clone());
            Ok(())
        });
        assert!(walked.is_err_and(|e| is(&e, Errno::AGAIN)));
        assert!(!visited.contains(&OsString::from("stranger")) && visited.len() <= KEEP_OPEN + 9);
    }
}
