//! Changes all files of a directory at one instant.
//!
//! ```text
//! key        -> ..data/key
//! sub        -> ..data/sub
//! ..data     -> ..2026_11_22_18_30_00.000000001      (replaced by rename)
//! ..2026_11_22_18_30_00.000000001/{key,sub/file}
//! ```
//! Everything but `..data` and what it leads to is derived from the wanted files and what is there, so a call that was cut
//! off at any point is finished by the next one.
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::atomic::AtomicU64,
    time::Duration,
};

use sys::{FileKind, Handle, Reach, Sys, tree};

use crate::{
    contract::FileEntry,
    place::{ensure_dir, if_found},
};

const CURRENT: &str = "..data";
const NEXT: &str = "..data_tmp";

/// Makes `files` the content of `dir`. Writes nothing if it already is. With `keep_previous`, the version that readers saw
/// before stays there.
pub(super) fn write(
    sys: &dyn Sys,
    dir: &Handle,
    files: &BTreeMap<PathBuf, FileEntry>,
    group: Option<u32>,
    keep_previous: bool,
) -> io::Result<()> {
    let mut current = current(sys, dir)?;
    let previous = current.clone().filter(|_| keep_previous);
    let up_to_date = match &current {
        Some(name) => holds(sys, dir, name, files)?,
        None => false,
    };
    if !up_to_date {
        let version = write_version(sys, dir, files, group)?;
        if_found(sys.remove_file(dir, OsStr::new(NEXT)))?;
        sys.make_link(dir, OsStr::new(NEXT), Path::new(&version))?;
        sys.rename(dir, OsStr::new(NEXT), OsStr::new(CURRENT))?;
        current = Some(version);
    }
    let tops: BTreeSet<&OsStr> = files.keys().filter_map(|p| p.iter().next()).collect();
    link(sys, dir, files, &tops, group)?;
    sweep(sys, dir, &tops, [current.as_deref(), previous.as_deref()])
}

/// The name of the version that readers see.
fn current(sys: &dyn Sys, dir: &Handle) -> io::Result<Option<OsString>> {
    let Some(target) = if_found(sys.read_link(dir, OsStr::new(CURRENT)))? else { return Ok(None) };
    // Only a name that this writer could have made; anything else is replaced.
    let ours = target.components().count() == 1 && target.as_os_str().as_encoded_bytes().starts_with(b"..");
    Ok(ours.then(|| target.into_os_string()))
}

/// Whether a version has exactly these files with this content. Modes and owners follow from the pod, which never changes.
fn holds(sys: &dyn Sys, dir: &Handle, version: &OsStr, files: &BTreeMap<PathBuf, FileEntry>) -> io::Result<bool> {
    let top = match sys.open_at(dir, Path::new(version), Reach::Child) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        found => found?,
    };
    if !sys.stat(&top)?.is_dir() {
        return Ok(false);
    }
    for (path, entry) in files {
        let Some(file) = if_found(sys.open_at(&top, path, Reach::Child))? else { return Ok(false) };
        if sys.stat(&file)?.kind != FileKind::File || sys.read_file(&file)? != entry.data {
            return Ok(false);
        }
    }
    Ok(count(sys, &top)? == files.len())
}

/// Files below a directory that this writer made, which is never deep.
fn count(sys: &dyn Sys, dir: &Handle) -> io::Result<usize> {
    let mut files = 0;
    for entry in sys.list(dir)? {
        files += match entry.kind {
            FileKind::Directory => count(sys, &sys.open_at(dir, Path::new(&entry.name), Reach::Child)?)?,
            _ => 1,
        };
    }
    Ok(files)
}

/// Writes all files into a new directory that nothing leads to yet.
fn write_version(
    sys: &dyn Sys,
    dir: &Handle,
    files: &BTreeMap<PathBuf, FileEntry>,
    group: Option<u32>,
) -> io::Result<OsString> {
    let mut now = sys.now();
    let name = loop {
        let name = OsString::from(stamp(now));
        match sys.make_dir(dir, &name, 0o755) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => now += Duration::from_nanos(1),
            made => {
                made?;
                break name;
            }
        }
    };
    let top = sys.open_at(dir, Path::new(&name), Reach::Child)?;
    sys.set_mode(&top, 0o755)?;
    for (path, entry) in files {
        let mut above = None;
        for part in path.parent().into_iter().flat_map(Path::iter) {
            above = Some(ensure_dir(sys, above.as_ref().unwrap_or(&top), part, 0o755)?);
        }
        let above = above.as_ref().unwrap_or(&top);
        let file_name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
        sys.write_new(above, file_name, &entry.data, entry.mode)?;
        if entry.uid.is_some() {
            sys.set_owner(&sys.open_at(above, Path::new(file_name), Reach::Child)?, entry.uid, None)?;
        }
    }
    if let Some(gid) = group {
        tree::give_to_group(sys, &top, gid, true, &AtomicU64::new(0))?;
    }
    Ok(name)
}

/// Makes the names that containers use, once.
fn link(
    sys: &dyn Sys,
    dir: &Handle,
    files: &BTreeMap<PathBuf, FileEntry>,
    tops: &BTreeSet<&OsStr>,
    group: Option<u32>,
) -> io::Result<()> {
    for name in tops {
        match sys.make_link(dir, name, &Path::new(CURRENT).join(name)) {
            // A link from before, or a mount point of another volume.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
            made => made?,
        }
        let uid = files.get(Path::new(name)).and_then(|f| f.uid);
        if uid.or(group).is_some() {
            sys.set_owner(&sys.open_at(dir, Path::new(name), Reach::Child)?, uid, group)?;
        }
    }
    Ok(())
}

/// Removes links of keys that are gone, old versions, and what calls that were cut off have left.
fn sweep(sys: &dyn Sys, dir: &Handle, tops: &BTreeSet<&OsStr>, keep: [Option<&OsStr>; 2]) -> io::Result<()> {
    for entry in sys.list(dir)? {
        let name = entry.name.as_os_str();
        let ours = name.as_encoded_bytes().starts_with(b"..");
        if ours && name != CURRENT && !keep.contains(&Some(name)) {
            tree::remove(sys, dir, name)?;
        } else if !ours && entry.kind == FileKind::Link && !tops.contains(name) {
            let target = if_found(sys.read_link(dir, name))?;
            if target.is_some_and(|t| t.starts_with(CURRENT)) {
                if_found(sys.remove_file(dir, name))?;
            }
        }
    }
    Ok(())
}

/// `..2026_11_22_18_30_00.000000001`, in UTC.
fn stamp(since_1970: Duration) -> String {
    let seconds = since_1970.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days to a civil date, counting years from March so that the leap day comes last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let nanos = since_1970.subsec_nanos();
    format!("..{year:04}_{month:02}_{day:02}_{hour:02}_{minute:02}_{second:02}.{nanos:09}")
}

#[test]
fn stamps_are_dates() {
    for (seconds, want) in [
        (0, "..1970_01_01_00_00_00.000000005"),
        (951_782_399, "..2000_02_28_23_59_59.000000005"),
        (951_782_400, "..2000_02_29_00_00_00.000000005"),
        (1_795_372_953, "..2026_11_22_18_42_33.000000005"),
        (4_107_542_400, "..2100_03_01_00_00_00.000000005"),
    ] {
        assert_eq!(stamp(Duration::new(seconds, 5)), want);
    }
}
