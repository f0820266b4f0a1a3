//! Running a test where its mounts are nobody else's.
use std::{panic, thread};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Runs `test` in a thread with a mount namespace of its own, which takes all mounts along when it ends, also by a panic.
///
/// Needs root. Threads that `test` starts share the namespace.
pub fn in_mount_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("these tests need root");
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("make the mounts private");
            test()
        });
        run.join().unwrap_or_else(|cause| panic::resume_unwind(cause))
    })
}
