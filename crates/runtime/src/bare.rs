//! A mount namespace with almost nothing in it, from which those of containers are copied.
//!
//! A namespace made of the host's has a copy of each of its mounts until they are dropped. While it has them, no filesystem
//! ends that is unmounted on the host: its disk stays in use, by a process that has nothing to do with it, which in the end
//! is the one that does the work of unmounting it. And all of that is copied and dropped for each container.
use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::sched::CloneFlags;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount};

use crate::init::why;

/// In the namespace, empty directories to mount on.
pub(crate) const LAYERS: &str = "/layers";
pub(crate) const WRITABLE: &str = "/writable";
pub(crate) const ROOT: &str = "/root";

/// An empty, read-only root with the host's `/proc`. It lasts as long as the descriptor, or a process that entered it.
pub(crate) struct Bare(OwnedFd);

impl Bare {
    /// Makes it. What is mounted on `place`, a directory, is seen in the new namespace only.
    pub(crate) fn make(place: &Path) -> io::Result<Self> {
        // By a thread, whose end leaves only the descriptor.
        std::thread::scope(|scope| {
            { std::thread::Builder::new().name("bare".into()).spawn_scoped(scope, || build(place))?.join() }
                .map_err(|_| io::Error::other("the thread that makes a mount namespace panicked"))?
        })
        .map(Self)
    }

    /// Takes it from a message.
    pub(crate) fn received(descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let [namespace] = <[OwnedFd; 1]>::try_from(descriptors)
            .map_err(|_| io::Error::other("the daemon did not pass on a mount namespace"))?;
        Ok(Self(namespace))
    }

    /// Puts this process, which must have one thread, into a copy of it. Working directory and root are its root afterwards.
    pub(crate) fn enter_copy(&self, and: CloneFlags) -> io::Result<()> {
        nix::sched::setns(&self.0, CloneFlags::CLONE_NEWNS)
            .map_err(|e| why(&e.into(), "enter the bare mount namespace".to_owned()))?;
        nix::sched::unshare(CloneFlags::CLONE_NEWNS | and)
            .map_err(|e| why(&e.into(), "make a mount namespace".to_owned()))
    }
}

impl AsFd for Bare {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn build(place: &Path) -> io::Result<OwnedFd> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    let namespace = File::open("/proc/thread-self/ns/mnt")?.into();
    // Nothing that happens here may reach the host.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("none", place, "tmpfs", flags, Some(c"size=64k,mode=755"))?;
    for path in ["/proc", LAYERS, WRITABLE, ROOT] {
        fs::create_dir(place.join(path.trim_start_matches('/')))?;
    }
    mount_bind("/proc", place.join("proc"))?;
    rustix::mount::mount_remount(place, flags | MountFlags::RDONLY, c"")?;
    rustix::process::chdir(place)?;
    // With both arguments the same, the old root ends up stacked on the new one and can be detached in place.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_host_is_in_it() {
        let place = tempfile::tempdir().unwrap();
        let bare = Bare::make(place.path()).unwrap();
        // By a thread of its own, which is the one that moves.
        let (points, written) = std::thread::scope(|scope| {
            let look = || {
                nix::sched::unshare(CloneFlags::CLONE_FS).unwrap();
                bare.enter_copy(CloneFlags::empty()).unwrap();
                let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
                let points: Vec<_> = table.lines().map(|l| l.split(' ').nth(4).unwrap().to_owned()).collect();
                (points, fs::write("/new", "").map_err(|e| e.kind()))
            };
            scope.spawn(look).join().unwrap()
        });
        assert_eq!(points, ["/", "/proc"]);
        assert_eq!(written, Err(io::ErrorKind::ReadOnlyFilesystem));
        let host = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!host.contains(place.path().to_str().unwrap()));
    }
}
