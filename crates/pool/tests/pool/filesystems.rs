//! Each filesystem that can be made here, how it is made, mounted, checked and watched.
use std::{
    fs,
    path::Path,
    process::Command,
    sync::{Arc, atomic::Ordering},
};

use pool::{Content, Health, Id, Kind, NewVolume, Origin, Pool, PoolError, Stage, Usage};
use sys::{Access, Disk, RealSys, Space};

use crate::{
    common::{Rig, filesystem, fill, new},
    faults::Faulty,
};

const MIB: u64 = 1 << 20;

fn space(pool: &Pool, id: &Id, at: &Path) -> Space {
    match pool.usage(id, at).expect("usage") {
        Usage::Filesystem(space) => space,
        Usage::Block(_) => panic!("a filesystem"),
    }
}

fn one_life(kind: &str) {
    let rig = Rig::new();
    let pool = rig.pool();
    let wanted = NewVolume { content: filesystem(kind), ..new("v", 16 * MIB) };
    let volume = pool.create(&wanted).expect("made");
    let (staged, published) = (rig.path("staged"), rig.path("published"));
    rig.up(&pool, &volume.id, &staged, &published).expect("up");
    let room = space(&pool, &volume.id, &published);
    assert!(room.total_bytes <= volume.bytes && room.total_bytes > volume.bytes / 2, "{kind}: {room:?}");
    let fitted = fill(&published);
    assert!(fitted <= volume.bytes && fitted > volume.bytes / 3, "{kind}: {fitted} of {}", volume.bytes);
    fs::remove_file(published.join("fill")).expect("removed");
    fs::write(published.join("page"), "data").expect("written");
    rig.down(&pool, &volume.id, &staged, &published).expect("down");
    if !matches!(kind, "ext2" | "ext3") {
        let taken = RealSys.image_size(&rig.path("pool/volumes/v/image")).expect("an image").1;
        assert!(taken < volume.bytes / 2, "{kind}: what is deleted goes back, and {taken} bytes did not");
    }
    let bytes = pool.expand(&volume.id, volume.bytes * 2, 0).expect("larger");
    rig.up(&pool, &volume.id, &staged, &published).expect("up again");
    assert!(space(&pool, &volume.id, &published).total_bytes > bytes / 2, "{kind} did not grow");
    assert_eq!(fs::read_to_string(published.join("page")).expect("kept"), "data");
    assert_eq!(pool.health(&volume.id).expect("health"), Health::Good);
    rig.down(&pool, &volume.id, &staged, &published).expect("down");
    assert!(rig.devices().is_empty());
}

#[test]
fn ext2_and_ext3() {
    ["ext2", "ext3"].into_iter().for_each(one_life);
}

#[test]
fn xfs() {
    if RealSys.can_format("xfs") {
        one_life("xfs");
    }
}

#[test]
fn btrfs() {
    if RealSys.can_format("btrfs") {
        one_life("btrfs");
    }
}

/// A copy and its original are used side by side, and each has its own.
fn beside_its_original(kind: &str) {
    if !RealSys.can_format(kind) {
        return;
    }
    let rig = Rig::new();
    let pool = rig.pool();
    let wanted = NewVolume { content: filesystem(kind), ..new("v", 16 * MIB) };
    let volume = pool.create(&wanted).expect("made").id;
    let (staged, published, other) = (rig.path("staged"), rig.path("published"), rig.path("other"));
    rig.up(&pool, &volume, &staged, &published).expect("up");
    fs::write(published.join("page"), "before").expect("written");
    let copy = NewVolume { name: "copy".into(), origin: Some(Origin::Volume(volume.clone())), ..wanted };
    let copy = pool.create(&copy).expect("copied").id;
    pool.stage(&copy, &Stage { at: &other, options: &[] }).expect(kind);
    fs::write(published.join("page"), "of the original").expect("written");
    assert_eq!(fs::read_to_string(other.join("page")).expect("a copy"), "before", "{kind}");
    fs::write(other.join("page"), "of the copy").expect("written");
    assert_eq!(fs::read_to_string(published.join("page")).expect("kept"), "of the original", "{kind}");
    pool.unstage(&copy, &other).expect("unstaged");
    rig.down(&pool, &volume, &staged, &published).expect("down");
}

#[test]
fn copies_beside_their_originals() {
    ["ext4", "xfs", "btrfs"].into_iter().for_each(beside_its_original);
}

#[test]
fn xfs_grows_while_it_is_used_and_needs_a_size() {
    if !RealSys.can_format("xfs") {
        return;
    }
    let rig = Rig::new();
    let pool = rig.pool();
    let wanted = NewVolume { content: filesystem("xfs"), ..new("v", MIB) };
    let tight = NewVolume { limit_bytes: 100 * MIB, ..wanted.clone() };
    assert_eq!(pool.create(&tight).expect_err("too small").kind(), Kind::Size);
    let volume = pool.create(&wanted).expect("made");
    assert_eq!(volume.bytes, 300 * MIB);
    let (staged, published) = (rig.path("staged"), rig.path("published"));
    rig.up(&pool, &volume.id, &staged, &published).expect("up");
    pool.expand(&volume.id, 600 * MIB, 0).expect("larger");
    assert_eq!(pool.expand_filesystem(&volume.id).expect("while it is used"), 600 * MIB);
    assert!(space(&pool, &volume.id, &published).total_bytes > 400 * MIB);
    rig.down(&pool, &volume.id, &staged, &published).expect("down");
}

#[test]
fn how_a_filesystem_is_made_and_mounted() {
    let rig = Rig::new();
    let pool = rig.pool();
    let with = |name: &str, words: &str| {
        let format = words.split_whitespace().map(str::to_owned).collect();
        pool.create(&NewVolume { format, ..new(name, 16 * MIB) })
    };
    assert_eq!(with("bad", "-O ^has_journal").expect_err("not allowed").kind(), Kind::Invalid);
    let volume = with("v", "-N 4096").expect("made");
    with("v", "-N 4096").expect("the same");
    assert_eq!(with("v", "-N 8192").expect_err("differs").kind(), Kind::Exists);
    let (staged, published) = (rig.path("staged"), rig.path("published"));
    let stage = |options: &[&str]| -> Result<(), PoolError> {
        let options: Vec<_> = options.iter().map(|o| (*o).to_owned()).collect();
        pool.stage(&volume.id, &Stage { at: &staged, options: &options })
    };
    let strange = stage(&["noatime", "frobnicate"]).expect_err("no such option");
    assert!(strange.kind() == Kind::Invalid && strange.to_string().contains("frobnicate"), "{strange}");
    stage(&["noexec", "noatime", "commit=30"]).expect("staged");
    rig.publish(&pool, &volume.id, "published", false, false).expect("published");
    assert_eq!(space(&pool, &volume.id, &published).inodes, 4096);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let line = mounts.lines().find(|l| l.contains(&*published.to_string_lossy())).expect("mounted");
    for option in ["noexec", "noatime", "commit=30", "errors=remount-ro", "discard"] {
        assert!(line.contains(option), "{option} is missing: {line}");
    }
    rig.down(&pool, &volume.id, &staged, &published).expect("down");
}

#[test]
fn programs_that_are_missing_are_named() {
    let kernel = Arc::new(Faulty::default());
    kernel.bare.store(true, Ordering::SeqCst);
    let rig = Rig::with(kernel);
    let pool = rig.pool();
    for (kind, package) in [("xfs", "xfsprogs"), ("ext4", "e2fsprogs")] {
        let refused = pool.create(&NewVolume { content: filesystem(kind), ..new("v", 300 * MIB) }).expect_err("bare");
        assert_eq!(refused.kind(), Kind::State);
        assert!(refused.to_string().contains(package), "{refused}");
    }
    pool.create(&NewVolume { content: Content::Block, ..new("raw", MIB) }).expect("needs none");
}

fn debugfs(image: &Path, request: &str) {
    let ran = Command::new("/usr/sbin/debugfs").args(["-w", "-R", request]).arg(image).output().expect("debugfs runs");
    assert!(ran.status.success());
}

#[test]
fn what_can_be_repaired_is_and_what_cannot_is_told() {
    let rig = Rig::new();
    let pool = rig.pool();
    let volume = pool.create(&new("v", 16 * MIB)).expect("made");
    let (staged, published, image) = (rig.path("staged"), rig.path("published"), rig.path("pool/volumes/v/image"));
    rig.up(&pool, &volume.id, &staged, &published).expect("up");
    rig.down(&pool, &volume.id, &staged, &published).expect("down");
    debugfs(&image, "set_super_value free_blocks_count 1");
    debugfs(&image, "set_super_value state 2");
    rig.up(&pool, &volume.id, &staged, &published).expect("repaired");
    assert!(space(&pool, &volume.id, &published).free_bytes > 8 * MIB);
    rig.down(&pool, &volume.id, &staged, &published).expect("down");
    debugfs(&image, "clri <2>");
    debugfs(&image, "set_super_value state 2");
    let beyond = rig.up(&pool, &volume.id, &staged, &published).expect_err("no root");
    assert!(beyond.kind() == Kind::State && beyond.to_string().contains("fsck"), "{beyond}");
    pool.unstage(&volume.id, &staged).expect("unstaged");
    assert!(rig.devices().is_empty());
}

#[test]
fn a_volume_that_fares_badly_says_so() {
    let rig = Rig::new();
    let pool = rig.pool();
    let volume = pool.create(&new("v", 16 * MIB)).expect("made");
    let (staged, published, image) = (rig.path("staged"), rig.path("published"), rig.path("pool/volumes/v/image"));
    rig.up(&pool, &volume.id, &staged, &published).expect("up");
    assert_eq!(pool.health(&volume.id).expect("health"), Health::Good);
    for (how, good) in [("remount,ro", false), ("remount,rw", true)] {
        let ran = Command::new("mount").args(["-o", how]).arg(&staged).status().expect("mount runs");
        assert!(ran.success());
        match pool.health(&volume.id).expect("health") {
            Health::Bad(why) => assert!(!good && why.contains("takes no writes"), "{why}"),
            Health::Good => assert!(good, "it is read-only"),
        }
    }
    let device = RealSys.attached(&image, Access::Write).expect("devices").expect("attached");
    let name = device.file_name().expect("a name").to_string_lossy().into_owned();
    let error = Path::new("/sys/fs/ext4").join(name).join("trigger_fs_error");
    fs::write(error, "a test").expect("an error of the filesystem");
    let Health::Bad(why) = pool.health(&volume.id).expect("health") else { panic!("it met an error") };
    assert!(why.contains("1 error"), "{why}");
    let refused = fs::write(published.join("page"), "data").expect_err("nothing is written any more");
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    rig.down(&pool, &volume.id, &staged, &published).expect("down");
    rig.up(&pool, &volume.id, &staged, &published).expect("checked");
    assert_eq!(pool.health(&volume.id).expect("health"), Health::Good);
    fs::write(published.join("page"), "data").expect("written");
    rig.down(&pool, &volume.id, &staged, &published).expect("down");

    fs::OpenOptions::new().write(true).open(&image).and_then(|f| f.set_len(MIB)).expect("cut");
    let Health::Bad(why) = pool.health(&volume.id).expect("health") else { panic!("it is cut") };
    assert!(why.contains("1048576 bytes instead of 16777216"), "{why}");
    fs::remove_file(&image).expect("removed");
    let Health::Bad(why) = pool.health(&volume.id).expect("health") else { panic!("it is gone") };
    assert!(why.contains("cannot be read"), "{why}");
}
