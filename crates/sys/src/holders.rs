//! Who keeps a device in use.
use std::{
    collections::BTreeSet,
    fmt, fs,
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{major, minor};

/// How many processes are named.
const NAMED: usize = 3;

/// A device is in use: by whom.
#[derive(Debug)]
struct Held(Vec<Holder>);

#[derive(Debug, PartialEq, Eq)]
struct Holder {
    pid: u32,
    name: String,
    how: How,
}

#[derive(Debug, PartialEq, Eq)]
enum How {
    /// It has a descriptor of it.
    Open,
    /// Its filesystem is mounted in the process's mount namespace, which is not this process's.
    Mounted,
}

impl std::error::Error for Held {}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is still in use")?;
        for (nth, Holder { pid, name, how }) in self.0.iter().enumerate() {
            f.write_str(if nth == 0 { ": " } else { ", " })?;
            match how {
                How::Open => write!(f, "process {pid} ({name}) has it open")?,
                How::Mounted => write!(
                    f,
                    "process {pid} ({name}) has a copy of this machine's mounts from before it was unmounted"
                )?,
            }
        }
        Ok(())
    }
}

/// `EBUSY` of a device, by kind, with those who use it.
pub(crate) fn busy(device: &Path) -> io::Error {
    io::Error::new(ErrorKind::ResourceBusy, Held(holders(Path::new("/proc"), device)))
}

fn holders(proc: &Path, device: &Path) -> Vec<Holder> {
    let Ok(number) = fs::metadata(device).map(|m| m.rdev()) else { return Vec::new() };
    let number = format!("{}:{}", major(number), minor(number));
    let own = namespace(&proc.join("self"));
    let mut seen: BTreeSet<PathBuf> = own.into_iter().collect();
    let mut found = Vec::new();
    for entry in fs::read_dir(proc).into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let process = entry.path();
        // One process of each namespace is named: ended, it may let go.
        let how = if has_open(&process, device) {
            How::Open
        } else if namespace(&process).is_some_and(|ns| seen.insert(ns)) && has_mounted(&process, &number) {
            How::Mounted
        } else {
            continue;
        };
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default().trim_end().to_owned();
        found.push(Holder { pid, name, how });
        if found.len() == NAMED {
            break;
        }
    }
    found
}

fn namespace(process: &Path) -> Option<PathBuf> {
    fs::read_link(process.join("ns/mnt")).ok()
}

/// Whether a filesystem of the device, `major:minor`, is in the process's table of mounts.
fn has_mounted(process: &Path, device: &str) -> bool {
    let table = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(2) == Some(device))
}

fn has_open(process: &Path, device: &Path) -> bool {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    descriptors.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|path| path == device))
}

#[test]
fn one_process_of_each_other_namespace_is_named() {
    let proc = tempfile::tempdir().expect("a directory");
    // Of `/dev/null`, which is 1:3 everywhere.
    let table = "27 1 254:0 / / rw - ext4 /dev/vda rw\n28 27 1:3 / /with\\040blank rw - ext4 /dev/null rw\n";
    let processes = [
        ("self", 1, table),
        ("10", 1, table),
        ("11", 2, table),
        ("12", 2, table),
        ("13", 3, "1 0 1:5 / / rw - ext4 /x rw\n"),
    ];
    for (pid, ns, table) in processes {
        let dir = proc.path().join(pid);
        fs::create_dir_all(dir.join("ns")).expect("a directory");
        std::os::unix::fs::symlink(format!("mnt:[{ns}]"), dir.join("ns/mnt")).expect("a link");
        fs::write(dir.join("mountinfo"), table).expect("a table");
        fs::write(dir.join("comm"), format!("p{pid}\n")).expect("a name");
    }
    let found = holders(proc.path(), Path::new("/dev/null"));
    let [Holder { pid: 11 | 12, how: How::Mounted, .. }] = found.as_slice() else { panic!("{found:?}") };
    let open = proc.path().join("13/fd");
    fs::create_dir(&open).and_then(|()| std::os::unix::fs::symlink("/dev/null", open.join("4"))).expect("a link");
    let text = Held(holders(proc.path(), Path::new("/dev/null"))).to_string();
    assert!(text.contains("process 13 (p13) has it open"), "{text}");
    assert_eq!(Held(Vec::new()).to_string(), "it is still in use");
}
