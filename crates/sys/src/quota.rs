//! Quotas of projects: a bound on all that is in a directory, where the kernel and the mount of its filesystem have them
//! (`prjquota` of ext4, `pquota` of xfs).
use std::{fs::File, io, os::fd::AsRawFd, path::Path};

use rustix::io::Errno;

use crate::{
    Handle, Sys,
    block::{ioctl, request},
    real::{RealSys, fd, proc_path},
};

const FSGETXATTR: u64 = request(2, b'X', 31, size_of::<Attributes>());
const FSSETXATTR: u64 = request(1, b'X', 32, size_of::<Attributes>());
/// What is made in the directory is of its project.
const PROJECT_INHERIT: u32 = 0x200;
const GET_QUOTA: u32 = 0x80_0007;
const SET_QUOTA: u32 = 0x80_0008;
const GET_STATE: u32 = (b'X' as u32) << 8 | 8;
const STATE_VERSION: i8 = 1;
/// Quotas of projects are held, not only counted.
const PROJECTS_ENFORCED: u16 = 1 << 5;
const OF_PROJECT: u32 = 2;
const BLOCK_LIMITS: u32 = 1;
/// Unit of limits, in bytes.
const BLOCK_BYTES: u64 = 1024;

/// `struct fsxattr`
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_bytes: u32,
    extents: u32,
    project: u32,
    copy_extent_bytes: u32,
    padding: [u8; 8],
}

/// `struct if_dqblk`
#[repr(C)]
#[derive(Default)]
struct Quota {
    hard_blocks: u64,
    soft_blocks: u64,
    used_bytes: u64,
    hard_files: u64,
    soft_files: u64,
    used_files: u64,
    times: [u64; 2],
    valid: u32,
}

/// `struct fs_quota_statv`
#[repr(C)]
#[derive(Default)]
struct State {
    version: i8,
    padding: u8,
    flags: u16,
    in_core: u32,
    files_and_times: [u64; 19],
}

/// No such request, filesystem, or quota there: all mean that it cannot be had.
fn plain(error: io::Error) -> io::Error {
    let absent = [Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOTTY, Errno::SRCH, Errno::INVAL];
    let is_absent = absent.iter().any(|e| error.raw_os_error() == Some(e.raw_os_error()));
    if is_absent { Errno::OPNOTSUPP.into() } else { error }
}

#[allow(unsafe_code)]
fn quotactl<T>(dir: &File, command: u32, project: u32, value: &mut T) -> io::Result<()> {
    let command = command << 8 | OF_PROJECT;
    // SAFETY: the descriptor is open for the whole call, and the kernel reads or writes, in the caller's frame, one value of
    // the struct of this command, whose layout `T` has: only this module calls, `GET_STATE` with `State`, else with `Quota`.
    let result = unsafe {
        nix::libc::syscall(nix::libc::SYS_quotactl_fd, dir.as_raw_fd(), command, project, std::ptr::from_mut(value))
    };
    if result < 0 { Err(plain(io::Error::last_os_error())) } else { Ok(()) }
}

/// Puts a directory into a project and bounds that. What is in the directory already stays outside.
pub(crate) fn limit(dir: &Path, project: u32, bytes: u64) -> io::Result<()> {
    let dir = File::open(dir)?;
    // Asked first: a project without a quota would only be in the way later, and one that is only counted is no limit.
    let mut state = State { version: STATE_VERSION, ..State::default() };
    quotactl(&dir, GET_STATE, 0, &mut state)?;
    if state.flags & PROJECTS_ENFORCED == 0 {
        return Err(Errno::OPNOTSUPP.into());
    }
    let mut attributes = Attributes::default();
    ioctl(&dir, FSGETXATTR, &mut attributes).map_err(plain)?;
    if (attributes.project, attributes.flags & PROJECT_INHERIT) != (project, PROJECT_INHERIT) {
        attributes.project = project;
        attributes.flags |= PROJECT_INHERIT;
        ioctl(&dir, FSSETXATTR, &mut attributes).map_err(plain)?;
    }
    let blocks = bytes.div_ceil(BLOCK_BYTES);
    let mut quota = Quota { hard_blocks: blocks, soft_blocks: blocks, valid: BLOCK_LIMITS, ..Quota::default() };
    quotactl(&dir, SET_QUOTA, project, &mut quota)
}

/// Bounds a directory that no one else counts: its own number is its project, which no other directory of the filesystem
/// has.
pub(crate) fn limit_tree(dir: &Handle, bytes: Option<u64>) -> io::Result<()> {
    let inode = RealSys.stat(dir)?.inode;
    // Filesystems with larger numbers are few, and none of them has a quota of another kind.
    let project = u32::try_from(inode).map_err(|_| Errno::OPNOTSUPP)?;
    let path = proc_path(fd(dir)?);
    // A bound of nothing is none.
    limit(&path, project, bytes.unwrap_or(0))
}

/// What a project has, in bytes.
pub(crate) fn usage(dir: &Path, project: u32) -> io::Result<u64> {
    let mut quota = Quota::default();
    match quotactl(&File::open(dir)?, GET_QUOTA, project, &mut quota) {
        // xfs has none of a project without files and limits.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        other => other.map(|()| quota.used_bytes),
    }
}

#[test]
fn structs_have_the_kernels_layout() {
    assert_eq!((size_of::<Attributes>(), size_of::<Quota>(), size_of::<State>()), (28, 72, 160));
    assert_eq!((FSGETXATTR, FSSETXATTR), (0x801c_581f, 0x401c_5820));
}

#[test]
fn a_filesystem_without_quotas_says_so() {
    // Memory filesystems have no quotas of projects.
    let dir = std::path::Path::new("/dev/shm");
    for refused in [usage(dir, 7).map(drop), limit(dir, 7, 1 << 20)] {
        assert_eq!(refused.expect_err("none").raw_os_error(), Some(Errno::OPNOTSUPP.raw_os_error()));
    }
}
