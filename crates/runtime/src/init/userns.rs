//! User namespaces that only say how the owners of files are seen through a mount.
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::OwnedFd,
};

use nix::{
    sched::CloneFlags,
    sys::wait::waitpid,
    unistd::{ForkResult, pipe},
};

use crate::kernel;

/// As many identities as there are.
const ALL: u64 = u32::MAX as u64;

/// A user namespace in which two groups have changed places, and all else is as it is outside.
///
/// Only for processes with one thread: another is made for a moment.
pub(super) fn swapping_groups(a: u32, b: u32) -> io::Result<OwnedFd> {
    let (theirs, ours) = pipe()?;
    let (mut done, ready) = pipe().map(|(read, write)| (File::from(read), write))?;
    match kernel::fork()? {
        ForkResult::Child => {
            drop((ours, done));
            let code = i32::from(nix::sched::unshare(CloneFlags::CLONE_NEWUSER).is_err());
            let _ = File::from(ready).write_all(&[0]);
            // Lives until the other end is closed.
            let _ = File::from(theirs).read(&mut [0]);
            kernel::exit_now(code)
        }
        ForkResult::Parent { child } => {
            drop((theirs, ready));
            let made = done.read_exact(&mut [0]).and_then(|()| {
                let of = |file: &str| format!("/proc/{child}/{file}");
                fs::write(of("uid_map"), format!("0 0 {ALL}"))?;
                fs::write(of("gid_map"), swapped(a, b))?;
                Ok(File::open(of("ns/user"))?.into())
            });
            drop(ours);
            waitpid(child, None)?;
            made
        }
    }
}

/// Lines `FIRST-IN-THE-NAMESPACE FIRST-OUTSIDE COUNT`.
fn swapped(a: u32, b: u32) -> String {
    let (low, high) = (u64::from(a.min(b)), u64::from(a.max(b)));
    let parts = [
        (0, 0, low),
        (low, high, 1),
        (low + 1, low + 1, high - low - 1),
        (high, low, 1),
        (high + 1, high + 1, ALL - high - 1),
    ];
    parts
        .into_iter()
        .filter(|p| p.2 > 0)
        .map(|(inside, outside, count)| format!("{inside} {outside} {count}\n"))
        .collect()
}

#[test]
fn two_groups_change_places() {
    assert_eq!(swapped(5, 2), "0 0 2\n2 5 1\n3 3 2\n5 2 1\n6 6 4294967289\n");
    assert_eq!(swapped(0, 1), "0 1 1\n1 0 1\n2 2 4294967293\n");
}
