//! Giving a whole tree to a group, by several threads where it is large.
//!
//! A thread that has nothing to do takes half of what another still has before it in one directory: the one nearest to the
//! top, so that it is worth while. A flat directory of a million files is divided as well as a deep tree.
use std::{
    ffi::OsString,
    io::{self, ErrorKind},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    thread::Scope,
};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use super::{AtMount, Frame, KEEP_OPEN, is, walk_from};
use crate::{FileKind, Handle, Reach, Stat, Sys};

/// Entries after which a tree is worth a second thread.
const LARGE: u64 = 512;
/// More threads than this gain nothing: the filesystem's own locks are what they wait for.
const MOST_THREADS: usize = 8;

/// Makes a tree usable for a group: group owner, and rights as an `fsGroup` gives them. The top directory comes last, so
/// that its group says that all is done.
///
/// Files whose filesystem refuses the change are left as they are. `given` counts files while they are done.
pub fn give_to_group(sys: &dyn Sys, top: &Handle, gid: u32, read_only: bool, given: &AtomicU64) -> io::Result<()> {
    let again = sys.open_at(top, Path::new(""), Reach::Child)?;
    let crew = Crew {
        sys,
        wish: Wish { gid, read_only },
        given,
        jobs: Mutex::new(Jobs { waiting: vec![Frame::open(sys, again, OsString::new())?], ..Jobs::default() }),
        news: Condvar::new(),
        hungry: AtomicUsize::new(0),
        failed: AtomicBool::new(false),
    };
    std::thread::scope(|scope| crew.work(Some(scope)));
    match crew.jobs.into_inner().error {
        Some(error) => Err(error),
        None => Wish { gid, read_only }.give(sys, top),
    }
}

/// [`give_to_group`] for one file or directory.
pub fn give_one_to_group(sys: &dyn Sys, at: &Handle, gid: u32, read_only: bool) -> io::Result<()> {
    Wish { gid, read_only }.give(sys, at)
}

#[derive(Clone, Copy)]
struct Wish {
    gid: u32,
    read_only: bool,
}

impl Wish {
    fn mode(self, stat: &Stat) -> u32 {
        let rights = if self.read_only { 0o440 } else { 0o660 };
        stat.mode | rights | if stat.is_dir() { 0o2110 } else { 0 }
    }

    fn is_fulfilled(self, stat: &Stat) -> bool {
        stat.gid == self.gid && (stat.kind == FileKind::Link || self.mode(stat) == stat.mode)
    }

    fn give(self, sys: &dyn Sys, at: &Handle) -> io::Result<()> {
        let stat = sys.stat(at)?;
        // Mode after owner: a change of owner clears set-id bits.
        let tolerate = |result: io::Result<()>| match result {
            Err(e) if [Errno::PERM, Errno::ROFS, Errno::OPNOTSUPP].iter().any(|no| is(&e, *no)) => {
                tracing::debug!(inode = stat.inode, error = %e, "file keeps its group");
                Ok(())
            }
            other => other,
        };
        if stat.gid != self.gid {
            tolerate(sys.set_owner(at, None, Some(self.gid)))?;
        }
        let mode = self.mode(&stat);
        if stat.kind == FileKind::Link || (mode == stat.mode && stat.gid == self.gid) {
            return Ok(());
        }
        tolerate(sys.set_mode(at, mode))
    }
}

/// Directories with entries that nobody has begun with.
#[derive(Default)]
struct Jobs {
    waiting: Vec<Frame>,
    busy: usize,
    /// The first that went wrong.
    error: Option<io::Error>,
}

struct Crew<'a> {
    sys: &'a dyn Sys,
    wish: Wish,
    given: &'a AtomicU64,
    jobs: Mutex<Jobs>,
    news: Condvar,
    /// Threads that wait for a job and have none coming.
    hungry: AtomicUsize,
    failed: AtomicBool,
}

impl Crew<'_> {
    /// Takes jobs until there is none. The first thread calls others once the tree turns out to be large.
    fn work<'scope, 'env>(&'scope self, mut scope: Option<&'scope Scope<'scope, 'env>>) {
        while let Some(job) = self.next() {
            let done = self.subtree(job, &mut scope);
            let mut jobs = self.jobs.lock();
            jobs.busy -= 1;
            if let Err(error) = done {
                self.failed.store(true, Ordering::Relaxed);
                jobs.error.get_or_insert(error);
            }
            self.news.notify_all();
        }
    }

    fn next(&self) -> Option<Frame> {
        let mut jobs = self.jobs.lock();
        loop {
            if jobs.error.is_some() {
                return None;
            }
            if let Some(job) = jobs.waiting.pop() {
                jobs.busy += 1;
                return Some(job);
            }
            if jobs.busy == 0 {
                return None;
            }
            self.hungry.fetch_add(1, Ordering::Relaxed);
            self.news.wait(&mut jobs);
            self.hungry.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn subtree<'scope, 'env>(
        &'scope self,
        job: Frame,
        scope: &mut Option<&'scope Scope<'scope, 'env>>,
    ) -> io::Result<()> {
        let sys = self.sys;
        let mut share = |stack: &mut [Frame]| {
            if self.failed.load(Ordering::Relaxed) {
                // Somebody else's error is the one that counts.
                return Err(Errno::CANCELED.into());
            }
            if self.given.load(Ordering::Relaxed) >= LARGE
                && let Some(scope) = scope.take()
            {
                let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST_THREADS));
                (1..threads).for_each(|_| drop(scope.spawn(|| self.work(None))));
            }
            if self.hungry.load(Ordering::Relaxed) > 0 { self.share(stack) } else { Ok(()) }
        };
        walk_from(sys, job, AtMount::Skip, &mut share, &mut |dir, entry| {
            self.given.fetch_add(1, Ordering::Relaxed);
            let unless_gone = |result: io::Result<()>| match result {
                Err(e) if e.kind() == ErrorKind::NotFound || is(&e, Errno::XDEV) => Ok(()),
                other => other,
            };
            // Most files of a volume that was used before are as they should be: one call then.
            unless_gone(match sys.stat_at(dir, &entry.name) {
                Ok(stat) if self.wish.is_fulfilled(&stat) => Ok(()),
                Ok(_) => {
                    let opened = sys.open_at(dir, Path::new(&entry.name), Reach::Child);
                    opened.and_then(|at| self.wish.give(sys, &at))
                }
                Err(e) => Err(e),
            })
        })
    }

    /// Gives half of a directory to whoever waits.
    fn share(&self, stack: &mut [Frame]) -> io::Result<()> {
        let far = stack.len().saturating_sub(KEEP_OPEN);
        let Some(frame) = stack[far..].iter_mut().find(|f| f.dir.is_some() && f.entries.len() > 1) else {
            return Ok(());
        };
        let mut jobs = self.jobs.lock();
        if jobs.waiting.len() >= self.hungry.load(Ordering::Relaxed) {
            return Ok(());
        }
        let dir = frame.dir.as_ref().expect("just seen");
        let dir = self.sys.open_at(dir, Path::new(""), Reach::Child)?;
        let mut mine: Vec<_> = std::mem::take(&mut frame.entries).collect();
        let others = mine.split_off(mine.len() / 2);
        frame.entries = mine.into_iter();
        jobs.waiting.push(Frame { dir: Some(dir), id: frame.id, name: OsString::new(), entries: others.into_iter() });
        self.news.notify_one();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::RealSys;

    fn tree(shape: &[(usize, usize)]) -> tempfile::TempDir {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        for (n, (depth, files)) in shape.iter().enumerate() {
            let mut at = scratch.path().join(format!("d{n}"));
            (0..*depth).for_each(|_| at.push("d"));
            std::fs::create_dir_all(&at).expect("make directories");
            for file in 0..*files {
                std::fs::write(at.join(file.to_string()), "").expect("write a file");
            }
        }
        scratch
    }

    /// Files of a tree that do not have the group, or lack rights.
    fn wrong(dir: &Path, gid: u32) -> usize {
        let wanted = |m: &std::fs::Metadata| if m.is_dir() { 0o2770 } else { 0o660 };
        let here = |m: &std::fs::Metadata| m.gid() != gid || m.permissions().mode() & wanted(m) != wanted(m);
        let entries = std::fs::read_dir(dir).expect("read a directory").map(|e| e.expect("an entry"));
        let below = entries.map(|e| match e.metadata().expect("metadata") {
            m if m.is_dir() => wrong(&e.path(), gid),
            m => usize::from(here(&m)),
        });
        below.sum::<usize>() + usize::from(here(&dir.metadata().expect("metadata")))
    }

    #[test]
    fn trees_of_any_shape_are_given_whole_by_several_threads() {
        for shape in [&[(0, 3000)][..], &[(3 * KEEP_OPEN, 900), (1, 900), (0, 900), (0, 0)], &[(0, 20); 60], &[]] {
            let scratch = tree(shape);
            let top = RealSys.open(scratch.path()).expect("open");
            let given = AtomicU64::new(0);
            give_to_group(&RealSys, &top, 4242, false, &given).expect("give");
            assert_eq!(wrong(scratch.path(), 4242), 0, "{shape:?}");
            let entries: usize = shape.iter().map(|(depth, files)| 1 + depth + files).sum();
            assert_eq!(given.into_inner() as usize, entries, "{shape:?}: each once");
        }
    }

    #[test]
    fn an_error_ends_the_work_of_all_and_leaves_the_top() {
        let fake = crate::FakeSys::default();
        for n in 0..1200 {
            fake.with_file(format!("/top/d{}/{n}", n % 7), FileKind::File);
        }
        fake.fail(3000, crate::When::Before);
        let top = fake.open(Path::new("/top")).expect("open");
        let failed = give_to_group(&fake, &top, 4242, false, &AtomicU64::new(0)).expect_err("one call fails");
        assert!(is(&failed, Errno::IO), "{failed}");
        assert_ne!(fake.stat(&top).expect("stat").gid, 4242);
    }
}
