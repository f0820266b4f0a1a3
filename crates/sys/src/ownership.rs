//! What is noted at a directory about the owners of all that is below it.
use std::{io, os::fd::BorrowedFd};

use rustix::{
    fs::{XattrFlags, fstatfs, getxattr, removexattr, setxattr},
    io::Errno,
};

use crate::real::proc_path;

/// Only a process with `CAP_SYS_ADMIN` in the host's user namespace sets or reads it.
const GIVEN: &str = "trusted.holdfast.group";
/// Magic numbers of filesystems whose mounts can show files as another's: ext2 to ext4, XFS, btrfs.
const MAPPED: [i64; 3] = [0xef53, 0x5846_5342, 0x9123_683e];

/// The noted group, where mounts can show it as another.
pub(crate) fn given_to(at: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    if !MAPPED.contains(&fstatfs(at)?.f_type) {
        return Ok(None);
    }
    let mut text = [0_u8; 16];
    match getxattr(proc_path(at), GIVEN, &mut text) {
        Ok(length) => Ok(text.get(..length).and_then(|t| std::str::from_utf8(t).ok()?.parse().ok())),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE | Errno::PERM) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Notes a group, or that there is none.
pub(crate) fn note_given(at: BorrowedFd<'_>, gid: Option<u32>) -> io::Result<()> {
    let done = match gid {
        Some(gid) => setxattr(proc_path(at), GIVEN, gid.to_string().as_bytes(), XattrFlags::empty()),
        None => removexattr(proc_path(at), GIVEN),
    };
    match done {
        // It is a help, no more.
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ROFS | Errno::NOSPC | Errno::DQUOT) => {
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}
