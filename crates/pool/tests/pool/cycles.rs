//! Volumes come and go, and nothing of them stays. `HOLDFAST_CYCLES` says how many; CI has few.
use std::{fs, path::Path};

use pool::{Backend, NewVolume, Pool};

use crate::common::{Rig, filesystem, new};

const MIB: u64 = 1 << 20;
const CYCLES: usize = 60;
/// What a process may grow by after it has warmed up, in KiB: pages that the allocator keeps.
const SLACK_KIB: u64 = 1024;

/// What a machine has more of when something leaks.
#[derive(Debug, PartialEq, Eq)]
struct Things {
    mounts: usize,
    devices: usize,
    descriptors: usize,
    files: usize,
    threads: usize,
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, |entries| entries.flatten().count())
}

fn files(dir: &Path) -> usize {
    let below = |e: fs::DirEntry| if e.file_type().is_ok_and(|t| t.is_dir()) { files(&e.path()) } else { 0 };
    fs::read_dir(dir).map_or(0, |entries| entries.flatten().map(|e| 1 + below(e)).sum())
}

impl Things {
    fn of(rig: &Rig) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        // Other tests have theirs.
        let ours = rig.path("").to_string_lossy().into_owned();
        Self {
            mounts: mounts.lines().filter(|line| line.contains(&ours)).count(),
            devices: rig.devices().len(),
            descriptors: count(Path::new("/proc/self/fd")),
            files: files(&rig.path("")),
            threads: count(Path::new("/proc/self/task")),
        }
    }
}

fn memory_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).expect("memory");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number")
}

fn cycle(rig: &Rig, pool: &Pool, number: usize) {
    let wanted = match number % 6 {
        4 => NewVolume { backend: Backend::Directory, ..new(&format!("v{number}"), 8 * MIB) },
        5 => NewVolume { content: filesystem("ext3"), ..new(&format!("v{number}"), 8 * MIB) },
        _ => new(&format!("v{number}"), 8 * MIB),
    };
    let (staged, published) = (rig.path("staged"), rig.path("published"));
    let id = pool.create(&wanted).expect("made").id;
    rig.up(pool, &id, &staged, &published).expect("up");
    fs::write(published.join("page"), number.to_string()).expect("written");
    rig.down(pool, &id, &staged, &published).expect("down");
    pool.delete(&id).expect("deleted");
    pool.empty_trash(u64::MAX).expect("emptied");
}

#[test]
fn many_volumes_leave_nothing() {
    let cycles = std::env::var("HOLDFAST_CYCLES").map_or(CYCLES, |n| n.parse().expect("a number"));
    let rig = Rig::new();
    let pool = rig.pool();
    let warm = cycles / 10;
    (0..warm).for_each(|n| cycle(&rig, &pool, n));
    let (things, memory) = (Things::of(&rig), memory_kib());
    (warm..cycles).for_each(|n| cycle(&rig, &pool, n));
    assert_eq!(Things::of(&rig), things, "something of {cycles} volumes stays");
    let grown = memory_kib().saturating_sub(memory);
    println!("{cycles} volumes: {things:?} before and after, {memory} KiB of memory before and {grown} more after");
    assert!(grown < SLACK_KIB, "{cycles} volumes took {grown} KiB of memory and keep it");
}
