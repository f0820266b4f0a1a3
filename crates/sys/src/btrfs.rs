//! Subvolumes of btrfs: making, copying, removing and bounding them, by requests to the kernel; no program is needed.
use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

use rustix::{fs::fstatfs, io::Errno};

use crate::block::{ioctl, request};

const BTRFS_MAGIC: i64 = 0x9123_683E;
/// Inode of every subvolume's root.
const ROOT_INODE: u64 = 256;
const QUOTA_TREE: u64 = 8;
const QGROUP_INFO: u32 = 242;
const QUOTA_ENABLE: u64 = 1;
const LIMIT_REFERENCED: u64 = 1;

const SUBVOL_CREATE: u64 = request(1, 0x94, 14, size_of::<Name>());
const SNAP_DESTROY: u64 = request(1, 0x94, 15, size_of::<Name>());
const TREE_SEARCH: u64 = request(3, 0x94, 17, size_of::<Search>());
const INO_LOOKUP: u64 = request(3, 0x94, 18, size_of::<Lookup>());
const SNAP_CREATE_V2: u64 = request(1, 0x94, 23, size_of::<Copy>());
const QUOTA_CTL: u64 = request(3, 0x94, 40, size_of::<QuotaControl>());
const QGROUP_CREATE: u64 = request(1, 0x94, 42, size_of::<QgroupCreate>());
const QGROUP_LIMIT: u64 = request(2, 0x94, 43, size_of::<QgroupLimit>());

/// `struct btrfs_ioctl_vol_args`
#[repr(C)]
struct Name {
    fd: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_vol_args_v2`
#[repr(C)]
struct Copy {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

/// `struct btrfs_ioctl_ino_lookup_args`
#[repr(C)]
struct Lookup {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}

/// `struct btrfs_ioctl_search_args`
#[repr(C)]
struct Search {
    tree: u64,
    objects: [u64; 2],
    offsets: [u64; 2],
    transactions: [u64; 2],
    kinds: [u32; 2],
    most: u32,
    unused: [u32; 9],
    found: [u8; 3992],
}

/// `struct btrfs_ioctl_quota_ctl_args`
#[repr(C)]
struct QuotaControl {
    command: u64,
    status: u64,
}

/// `struct btrfs_ioctl_qgroup_create_args`
#[repr(C)]
struct QgroupCreate {
    create: u64,
    qgroup: u64,
}

/// `struct btrfs_ioctl_qgroup_limit_args`
#[repr(C)]
struct QgroupLimit {
    qgroup: u64,
    flags: u64,
    referenced: u64,
    rest: [u64; 3],
}

fn on_btrfs(file: &File) -> io::Result<bool> {
    #[allow(clippy::unnecessary_cast)] // The type of `f_type` differs between architectures.
    Ok(fstatfs(file)?.f_type as i64 == BTRFS_MAGIC)
}

/// The directory above, which has to be of btrfs, and a name in it.
fn place(path: &Path) -> io::Result<(File, &OsStr)> {
    let (above, name) = path.parent().zip(path.file_name()).ok_or(Errno::INVAL)?;
    let above = File::open(above)?;
    if on_btrfs(&above)? { Ok((above, name)) } else { Err(Errno::OPNOTSUPP.into()) }
}

fn fill<const N: usize>(name: &OsStr) -> io::Result<[u8; N]> {
    let mut field = [0; N];
    let bytes = name.as_bytes();
    // The last byte ends the name.
    field.get_mut(..bytes.len()).filter(|_| bytes.len() < N).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(bytes);
    Ok(field)
}

/// Whether this is the root of a subvolume.
pub(crate) fn is_subvolume(dir: &Path) -> io::Result<bool> {
    let file = File::open(dir)?;
    Ok(on_btrfs(&file)? && file.metadata()?.ino() == ROOT_INODE)
}

pub(crate) fn make(dir: &Path) -> io::Result<()> {
    let (above, name) = place(dir)?;
    ioctl(&above, SUBVOL_CREATE, &mut Name { fd: 0, name: fill(name)? })?;
    rustix::fs::syncfs(&above)?;
    Ok(())
}

pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let (above, name) = place(to)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&source).into();
    ioctl(&above, SNAP_CREATE_V2, &mut Copy { fd, transid: 0, flags: 0, unused: [0; 4], name: fill(name)? })?;
    rustix::fs::syncfs(&above)?;
    Ok(())
}

/// Removes the subvolumes that are directly in a directory, whatever is in them: at once, where files would go one by one.
pub(crate) fn remove_inside(dir: &Path) -> io::Result<()> {
    let file = File::open(dir)?;
    if !on_btrfs(&file)? {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() || !is_subvolume(&entry.path())? {
            continue;
        }
        let qgroup = tree(&entry.path())?;
        match ioctl(&file, SNAP_DESTROY, &mut Name { fd: 0, name: fill(&entry.file_name())? }) {
            // Users made subvolumes in it: it is emptied file by file, which removes those too.
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => fs::remove_dir_all(entry.path())?,
            other => other?,
        }
        // Fails where quotas were never turned on, or the kernel removes it itself.
        let _ = ioctl(&file, QGROUP_CREATE, &mut QgroupCreate { create: 0, qgroup });
    }
    Ok(())
}

/// The number of a subvolume, which is that of its qgroup.
fn tree(dir: &Path) -> io::Result<u64> {
    let mut lookup = Lookup { tree: 0, object: ROOT_INODE, name: [0; 4080] };
    ioctl(&File::open(dir)?, INO_LOOKUP, &mut lookup)?;
    Ok(lookup.tree)
}

/// Bounds what a subvolume refers to, its own and what it shares.
pub(crate) fn limit(dir: &Path, bytes: u64) -> io::Result<()> {
    let file = File::open(dir)?;
    // Turned on already is fine.
    ioctl(&file, QUOTA_CTL, &mut QuotaControl { command: QUOTA_ENABLE, status: 0 })?;
    let mut limit = QgroupLimit { qgroup: tree(dir)?, flags: LIMIT_REFERENCED, referenced: bytes, rest: [0; 3] };
    ioctl(&file, QGROUP_LIMIT, &mut limit)?;
    rustix::fs::syncfs(&file)?;
    Ok(())
}

/// What a subvolume refers to, in bytes, as of the last commit.
pub(crate) fn usage(dir: &Path) -> io::Result<u64> {
    let id = tree(dir)?;
    let mut search = Search {
        tree: QUOTA_TREE,
        objects: [0, 0],
        offsets: [id, id],
        transactions: [0, u64::MAX],
        kinds: [QGROUP_INFO, QGROUP_INFO],
        most: 1,
        unused: [0; 9],
        found: [0; 3992],
    };
    ioctl(&File::open(dir)?, TREE_SEARCH, &mut search)?;
    if search.most == 0 {
        // No quotas: nobody counts.
        return Err(Errno::OPNOTSUPP.into());
    }
    // A header of 32 bytes, the generation, and what is referred to.
    let mut referenced = [0; 8];
    referenced.copy_from_slice(&search.found[40..48]);
    Ok(u64::from_le_bytes(referenced))
}

#[test]
fn requests_have_the_kernels_numbers() {
    assert_eq!((SUBVOL_CREATE, SNAP_DESTROY), (0x5000_940e, 0x5000_940f));
    assert_eq!((TREE_SEARCH, INO_LOOKUP), (0xd000_9411, 0xd000_9412));
    assert_eq!((SNAP_CREATE_V2, QUOTA_CTL), (0x5000_9417, 0xc010_9428));
    assert_eq!((QGROUP_CREATE, QGROUP_LIMIT), (0x4010_942a, 0x8030_942b));
}
