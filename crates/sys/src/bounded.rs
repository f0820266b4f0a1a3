//! A directory that holds so many bytes and no more, on a host whose filesystems have no quotas: a file with a filesystem
//! of that size, behind a block device that goes with its mount.
use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, Mode, OFlags, ftruncate, openat, unlinkat};

use crate::{
    DeviceMount, Handle, Reach, Sys, block, loops,
    real::{RealSys, fd},
};

const KIND: &str = "ext4";
const BLOCK_BYTES: u64 = 4096;
/// What one block of bitmap can speak of.
const GROUP_BLOCKS: u64 = 8 * BLOCK_BYTES;
const INODES_PER_BLOCK: u64 = 16;
const DESCRIPTORS_PER_BLOCK: u64 = 64;
/// Fewer than these the program that makes filesystems refuses.
const LEAST_BLOCKS: u64 = 64;
/// What it wants in a last group that is not whole, beyond the group's own tables.
const LAST_GROUP_BLOCKS: u64 = 64;
/// From here on one inode per block would make tables that take long to lay out.
const LARGE_BLOCKS: u64 = (16 << 30) / BLOCK_BYTES;
/// All that it has, whatever a distribution's configuration adds. No journal: what is in there does not outlive its pod.
/// Checksums let the kernel see that tables were never written, so that nobody has to.
const FEATURES: &str = "none,extent,flex_bg,sparse_super2,filetype,dir_index,dir_nlink,extra_isize,large_file,huge_file,\
                        metadata_csum,64bit";
/// What is deleted goes back to the host, and the kernel does not write tables that nobody uses. With unwritten extents it
/// would need blocks, of which there may be none, when data is on the medium already.
const OPTIONS: [&str; 3] = ["discard", "noinit_itable", "dioread_lock"];
/// Where a filesystem says whether it was unmounted, and how.
const STATE_AT: u64 = 1024 + 58;
const STATE_CLEAN: u8 = 1;

/// A filesystem with room for so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    blocks: u64,
    inodes: u64,
}

impl Layout {
    /// Room for `bytes`, directories included, and for a file per block, or fewer where it is large; no more room than that
    /// unless it is tiny.
    fn of(bytes: u64) -> Self {
        let wanted = bytes / BLOCK_BYTES;
        let ratios = if wanted > LARGE_BLOCKS { [4, 5, 6] } else { [1, 2, 3] };
        let mut tried = ratios.map(|per_inode| Self::with(wanted, per_inode));
        tried.sort_by_key(|(_, excess)| *excess);
        tried[0].0
    }

    /// One inode for so many blocks; and how many more blocks than wanted it has for files.
    fn with(wanted: u64, per_inode: u64) -> (Self, u64) {
        let mut blocks = wanted.max(LEAST_BLOCKS);
        loop {
            let groups = blocks.div_ceil(GROUP_BLOCKS);
            let inodes = (blocks / per_inode).div_ceil(groups).next_multiple_of(INODES_PER_BLOCK);
            // Two bitmaps and a table in each group; the superblock, and a descriptor of each group.
            let each = 2 + inodes / INODES_PER_BLOCK;
            let needed = wanted + 1 + groups.div_ceil(DESCRIPTORS_PER_BLOCK) + groups * each;
            let last = needed % GROUP_BLOCKS;
            let short = if groups > 1 && last != 0 { (each + LAST_GROUP_BLOCKS).saturating_sub(last) } else { 0 };
            if needed + short <= blocks {
                return (Self { blocks, inodes: inodes * groups }, blocks - needed);
            }
            blocks = needed + short;
        }
    }
}

/// Makes the file, without taking space for what nobody has written.
pub(crate) fn make(dir: &Handle, name: &OsStr, bytes: u64) -> io::Result<()> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(fd(dir)?, name, flags, Mode::RUSR | Mode::WUSR)?;
    let layout = Layout::of(bytes);
    let made = ftruncate(&file, layout.blocks * BLOCK_BYTES).map_err(io::Error::from);
    let made = made.and_then(|()| {
        let image = RealSys.open_at(dir, Path::new(name), Reach::Child)?;
        let options = [
            "-b",
            &BLOCK_BYTES.to_string(),
            "-I",
            &(BLOCK_BYTES / INODES_PER_BLOCK).to_string(),
            "-N",
            &layout.inodes.to_string(),
            "-O",
            FEATURES,
            "-E",
            "nodiscard,lazy_itable_init=1,num_backup_sb=0",
        ]
        .map(str::to_owned);
        block::make(&image, KIND, &options)
    });
    if made.is_err() {
        unlinkat(fd(dir)?, name, AtFlags::empty())?;
    }
    made
}

/// Mounts what was made, repaired first if the machine went down with it.
pub(crate) fn mount(image: &Handle, at: &Handle) -> io::Result<()> {
    let file = File::from(block::reopen(image, OFlags::RDWR)?);
    let mut state = [0];
    file.read_exact_at(&mut state, STATE_AT)?;
    if state[0] & STATE_CLEAN == 0 {
        block::repair_ext(image)?;
    }
    // Held open, it is there until the mount holds it; then it goes with that, whoever unmounts.
    let (path, _device) = loops::lend(&file)?;
    let device = RealSys.open(&path)?;
    let options = OPTIONS.map(str::to_owned);
    block::mount(&device, at, &DeviceMount { kind: KIND, read_only: false, options: &options })?;
    keep_nothing_back(&path);
    Ok(())
}

/// The kernel keeps 2 % for what it promised before it knew where; it stops promising when there is little room anyway.
/// Where this cannot be said, there is so much less.
fn keep_nothing_back(device: &Path) {
    let name = device.file_name().unwrap_or_default();
    let setting: PathBuf = [OsStr::new("/sys/fs/ext4"), name, OsStr::new("reserved_clusters")].iter().collect();
    let _ = std::fs::write(setting, "0");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_what_was_asked_and_hardly_more() {
        let mib = (1..=40).map(|n| n * n * n);
        let sizes = mib.chain([64, 127, 128, 129, 250, 500, 512, 1000, 1024, 10_240, 51_200, 102_400]);
        for bytes in sizes.map(|mib: u64| mib << 20) {
            let wanted = bytes / BLOCK_BYTES;
            let layout = Layout::of(bytes);
            let groups = layout.blocks.div_ceil(GROUP_BLOCKS);
            let tables = layout.inodes / INODES_PER_BLOCK + 2 * groups + groups.div_ceil(DESCRIPTORS_PER_BLOCK) + 1;
            let room = layout.blocks - tables;
            assert!(room >= wanted && room - wanted <= wanted / 1000, "{layout:?} for {bytes}: {room} for {wanted}");
        }
    }
}
