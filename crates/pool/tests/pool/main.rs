//! Volumes on the real kernel: images, loop devices, filesystems. Needs root.
mod backends;
mod common;
mod cycles;
mod faults;
mod filesystems;
mod transfer;

use common::{Rig, filesystem, fill, new};
use pool::{Backend, Content, Health, Id, Kind, NewSnapshot, NewVolume, Origin, PoolError, Usage};
use std::{fs, io::Write};
use sys::{Disk, RealSys};

const MIB: u64 = 1 << 20;

fn id(text: &str) -> Id {
    Id::parse(text).expect("an id")
}

#[test]
fn a_name_has_one_volume() {
    let rig = Rig::new();
    let pool = rig.pool();
    let made = pool.create(&new("pvc-1", 5 * MIB - 1)).expect("made");
    assert_eq!((made.id.as_str(), made.bytes), ("pvc-1", 5 * MIB));
    assert_eq!(pool.create(&new("pvc-1", 5 * MIB)).expect("the same"), made);
    let larger = pool.create(&new("pvc-1", 6 * MIB)).expect_err("differs");
    assert_eq!(larger.kind(), Kind::Exists, "{larger}");
    let block = NewVolume { content: Content::Block, ..new("pvc-1", MIB) };
    assert_eq!(pool.create(&block).expect_err("differs").kind(), Kind::Exists);
    let both = NewVolume { limit_bytes: MIB, ..new("pvc-2", 2 * MIB) };
    assert_eq!(pool.create(&both).expect_err("impossible").kind(), Kind::Invalid);

    drop(pool);
    let pool = rig.pool();
    assert_eq!(pool.volumes(), std::slice::from_ref(&made), "it is found again");
    pool.delete(&made.id).expect("deleted");
    pool.delete(&made.id).expect("deleted already");
    assert!(pool.volumes().is_empty());
    assert_eq!(pool.create(&new("pvc-1", 6 * MIB)).expect("the name is free").bytes, 6 * MIB);
}

#[test]
fn one_process_has_a_pool() {
    let rig = Rig::new();
    let _pool = rig.pool();
    let second = rig.try_pool().err().expect("locked");
    assert!(matches!(second, PoolError::Locked(_)), "{second}");
}

#[test]
fn a_volume_cannot_outgrow_its_size_and_keeps_its_data() {
    let rig = Rig::new();
    let pool = rig.pool();
    let volume = pool.create(&new("v", 20 * MIB)).expect("made");
    let (staged, published) = (rig.path("staged"), rig.path("published"));
    rig.up(&pool, &volume.id, &staged, &published).expect("up");
    rig.up(&pool, &volume.id, &staged, &published).expect("repeated");
    let Usage::Filesystem(space) = pool.usage(&volume.id, &published).expect("usage") else { panic!("a filesystem") };
    assert!(space.total_bytes <= 20 * MIB && space.total_bytes > 14 * MIB, "{space:?}");
    let fitted = fill(&published);
    assert!(fitted <= 20 * MIB && fitted > 13 * MIB, "{fitted}");
    let image = rig.path("pool/volumes/v/image");
    let taken = || RealSys.image_size(&image).expect("an image").1;
    assert!(taken() > 12 * MIB, "{}", taken());
    fs::remove_file(published.join("fill")).expect("removed");
    rustix::fs::syncfs(fs::File::open(&published).expect("a directory")).expect("synced");
    // The filesystem gives it back some time after it is synced.
    let given = (0..300).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        taken() < 8 * MIB
    });
    assert!(given, "what is deleted goes back to the machine, and {} bytes did not", taken());
    fs::write(published.join("page"), "data").expect("written");
    assert_eq!(pool.health(&volume.id).expect("health"), Health::Good);

    let in_use = pool.delete(&volume.id).expect_err("in use");
    assert_eq!(in_use.kind(), Kind::State, "{in_use}");
    rig.down(&pool, &volume.id, &staged, &published).expect("down");
    rig.down(&pool, &volume.id, &staged, &published).expect("repeated");
    assert!(!published.exists() && rig.devices().is_empty(), "nothing is left");

    pool.delete(&volume.id).expect("deleted");
    assert_eq!(pool.trashed().expect("trash").len(), 1);
    pool.undelete(&volume.id).expect("back");
    drop(pool);
    let pool = rig.pool();
    rig.up(&pool, &volume.id, &staged, &published).expect("up again");
    assert_eq!(fs::read_to_string(published.join("page")).expect("still there"), "data");
    rig.down(&pool, &volume.id, &staged, &published).expect("down");
    pool.delete(&volume.id).expect("deleted");
    pool.empty_trash(u64::MAX).expect("emptied");
    assert!(pool.trashed().expect("trash").is_empty());
    assert_eq!(pool.undelete(&volume.id).expect_err("gone").kind(), Kind::NotFound);
}

#[test]
fn snapshots_and_clones_of_a_volume_in_use() {
    let rig = Rig::new();
    let pool = rig.pool();
    let volume = pool.create(&new("v", 16 * MIB)).expect("made");
    let (staged, published) = (rig.path("staged"), rig.path("published"));
    rig.up(&pool, &volume.id, &staged, &published).expect("up");
    fs::write(published.join("page"), "before").expect("written");
    let wanted = NewSnapshot { name: "s".into(), volume: volume.id.clone() };
    let snapshot = pool.take_snapshot(&wanted).expect("taken");
    assert_eq!(pool.take_snapshot(&wanted).expect("the same"), snapshot);
    fs::write(published.join("page"), "after").expect("writes go on");
    let clone = NewVolume { origin: Some(Origin::Volume(volume.id.clone())), ..new("clone", 0) };
    let clone = pool.create(&clone).expect("cloned");
    rig.down(&pool, &volume.id, &staged, &published).expect("down");
    pool.delete(&volume.id).expect("deleted; the snapshot stays");

    let origin = Some(Origin::Snapshot(snapshot.id.clone()));
    let small = NewVolume { origin: origin.clone(), ..new("small", 4 * MIB) };
    assert_eq!(pool.create(&small).expect_err("too small").kind(), Kind::Size);
    let raw = NewVolume { origin: origin.clone(), content: Content::Block, ..new("raw", 16 * MIB) };
    assert_eq!(pool.create(&raw).expect_err("another kind").kind(), Kind::Invalid);
    let restored = pool.create(&NewVolume { origin, ..new("restored", 32 * MIB) }).expect("restored");
    for (volume, content, bytes) in [(&restored, "before", 32 * MIB), (&clone, "after", 16 * MIB)] {
        rig.up(&pool, &volume.id, &staged, &published).expect("up");
        assert_eq!(fs::read_to_string(published.join("page")).expect("a copy"), content);
        let Usage::Filesystem(space) = pool.usage(&volume.id, &published).expect("usage") else {
            panic!("a filesystem")
        };
        assert!(space.total_bytes > bytes / 2, "{} has {space:?}", volume.id);
        rig.down(&pool, &volume.id, &staged, &published).expect("down");
    }
    pool.delete_snapshot(&snapshot.id).expect("removed");
    pool.delete_snapshot(&snapshot.id).expect("removed already");
    assert!(pool.snapshots().is_empty());
    let gone = NewVolume { origin: Some(Origin::Snapshot(snapshot.id)), ..new("late", 0) };
    assert_eq!(pool.create(&gone).expect_err("gone").kind(), Kind::NotFound);
}

#[test]
fn growing() {
    let rig = Rig::new();
    let pool = rig.pool();
    let volume = pool.create(&new("v", 8 * MIB)).expect("made");
    let (staged, published) = (rig.path("staged"), rig.path("published"));
    rig.up(&pool, &volume.id, &staged, &published).expect("up");
    fs::write(published.join("page"), "data").expect("written");
    assert_eq!(pool.expand(&volume.id, 4 * MIB, 0).expect("has more"), 8 * MIB);
    assert_eq!(pool.expand(&volume.id, 0, 4 * MIB).expect_err("never shrinks").kind(), Kind::Size);
    assert_eq!(pool.expand(&volume.id, 32 * MIB, 0).expect("grown"), 32 * MIB);
    // ext4 in use grows only for processes with CAP_SYS_RESOURCE; for others when it is staged next.
    match pool.expand_filesystem(&volume.id) {
        Ok(bytes) => assert_eq!(bytes, 32 * MIB),
        Err(e) => assert_eq!(e.kind(), Kind::State, "{e}"),
    }
    rig.down(&pool, &volume.id, &staged, &published).expect("down");
    rig.up(&pool, &volume.id, &staged, &published).expect("up again");
    let Usage::Filesystem(space) = pool.usage(&volume.id, &published).expect("usage") else { panic!("a filesystem") };
    assert!(space.total_bytes > 24 * MIB, "{space:?}");
    assert_eq!(fs::read_to_string(published.join("page")).expect("still there"), "data");
    rig.down(&pool, &volume.id, &staged, &published).expect("down");
}

#[test]
fn raw_devices_and_directories() {
    let rig = Rig::new();
    let pool = rig.pool();
    let (staged, published) = (rig.path("staged"), rig.path("published"));
    let block = pool.create(&NewVolume { content: Content::Block, ..new("raw", 4 * MIB) }).expect("made");
    rig.up(&pool, &block.id, &staged, &published).expect("up");
    assert_eq!(pool.usage(&block.id, &published).expect("usage"), Usage::Block(4 * MIB));
    let mut device = fs::OpenOptions::new().read(true).write(true).open(&published).expect("a device");
    device.write_all(&vec![3; 1 << 20]).and_then(|()| device.sync_all()).expect("written");
    drop(device);
    // Those who only read have a device of their own, which refuses to be written.
    let other = rig.path("other");
    rig.publish(&pool, &block.id, "other", true, false).expect("published");
    assert_eq!(fs::read(&other).expect("read")[..1 << 20], vec![3; 1 << 20]);
    let written = fs::OpenOptions::new().write(true).open(&other).and_then(|mut device| device.write_all(&[0; 4096]));
    assert!(written.is_err(), "written through a read-only publication");
    fs::OpenOptions::new().write(true).open(&published).expect("others still may");
    assert_eq!(pool.expand(&block.id, 8 * MIB, 0).expect("grown while it is used"), 8 * MIB);
    for device in [&published, &other] {
        use std::io::Seek;
        let mut device = fs::File::open(device).expect("a device");
        assert_eq!(device.seek(std::io::SeekFrom::End(0)).expect("its size"), 8 * MIB);
    }
    assert_eq!(pool.delete(&block.id).expect_err("in use").kind(), Kind::State);
    pool.unpublish(&block.id, &other).expect("unpublished");
    rig.down(&pool, &block.id, &staged, &published).expect("down");
    assert!(rig.devices().is_empty());

    let directory = pool.create(&NewVolume { backend: Backend::Directory, ..new("dir", MIB) }).expect("made");
    rig.up(&pool, &directory.id, &staged, &published).expect("up");
    fs::write(published.join("page"), "data").expect("written");
    rig.down(&pool, &directory.id, &staged, &published).expect("down");
    let refused = pool.take_snapshot(&NewSnapshot { name: "s".into(), volume: directory.id }).expect_err("a directory");
    assert_eq!(refused.kind(), Kind::Invalid);
    let nonsense = NewVolume { backend: Backend::Directory, content: Content::Block, ..new("no", MIB) };
    assert_eq!(pool.create(&nonsense).expect_err("nonsense").kind(), Kind::Invalid);
}

#[test]
fn room_is_not_promised_twice() {
    let rig = Rig::on_its_own_filesystem(300 * MIB);
    let pool = rig.pool();
    let room = pool.room().expect("room");
    assert!((100 * MIB..300 * MIB).contains(&room), "{room}");
    let half = pool.create(&new("half", room / 2)).expect("fits");
    let left = pool.room().expect("room");
    assert!(left.abs_diff(room - half.bytes) < 2 * MIB, "{left} of {room}");
    let second = pool.create(&new("second", room)).expect_err("does not fit");
    assert_eq!(second.kind(), Kind::NoRoom);
    assert!(second.to_string().contains("overcommit"), "{second}");
    pool.create(&NewVolume { shares_room: true, ..new("shared", room) }).expect("takes nothing yet");
    assert!(pool.room().expect("room").abs_diff(left) < 2 * MIB);
    assert_eq!(pool.expand(&half.id, room, 0).expect_err("does not fit").kind(), Kind::NoRoom);

    // What is in the trash gives way.
    let (staged, published) = (rig.path("staged"), rig.path("published"));
    rig.up(&pool, &half.id, &staged, &published).expect("up");
    fill(&published);
    rig.down(&pool, &half.id, &staged, &published).expect("down");
    pool.delete(&half.id).expect("deleted");
    assert_eq!(pool.trashed().expect("trash").len(), 1);
    pool.create(&new("third", room - 4 * MIB)).expect("fits again");
    assert!(pool.trashed().expect("trash").is_empty(), "its room was needed");
}

#[test]
fn damage_is_named() {
    let rig = Rig::new();
    rig.pool().create(&new("v", MIB)).expect("made");
    let record = rig.path("pool/volumes/v/record.json");
    fs::write(&record, "{").expect("damaged");
    let error = rig.try_pool().err().expect("damaged");
    assert!(error.to_string().contains("volumes/v/record.json is damaged"), "{error}");
    fs::create_dir(rig.path("pool/making/half")).expect("a half-made volume");
    fs::remove_dir_all(rig.path("pool/volumes/v")).expect("moved away");
    let pool = rig.pool();
    assert!(!rig.path("pool/making/half").exists() && pool.volumes().is_empty());
    assert_eq!(pool.volume(&id("v")), None);
    assert_eq!(filesystem("ext4"), Content::Filesystem("ext4".into()));
}

#[test]
fn who_may_have_a_volume() {
    let rig = Rig::new();
    let pool = rig.pool();
    let volume = pool.create(&new("v", 8 * MIB)).expect("made").id;
    let (staged, published) = (rig.path("staged"), rig.path("published"));
    let early = rig.publish(&pool, &volume, "published", false, false).expect_err("not staged");
    assert_eq!(early.kind(), Kind::State);
    rig.up(&pool, &volume, &staged, &published).expect("up");
    // Several pods of one machine, some of which only read.
    rig.publish(&pool, &volume, "other", true, false).expect("shared");
    fs::write(published.join("page"), "data").expect("written");
    assert_eq!(fs::read_to_string(rig.path("other/page")).expect("read"), "data");
    let refused = fs::write(rig.path("other/page"), "x").expect_err("read-only");
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    // The same path in another way, and alone beside others.
    assert_eq!(rig.publish(&pool, &volume, "other", false, false).expect_err("differs").kind(), Kind::Exists);
    rig.publish(&pool, &volume, "other", true, false).expect("repeated");
    pool.unpublish(&volume, &rig.path("other")).expect("unpublished");
    assert_eq!(rig.publish(&pool, &volume, "other", false, true).expect_err("shared").kind(), Kind::State);
    pool.unpublish(&volume, &published).expect("unpublished");
    rig.publish(&pool, &volume, "other", false, true).expect("alone");
    let beside = rig.publish(&pool, &volume, "published", true, false).expect_err("somebody has it alone");
    assert!(beside.kind() == Kind::State && beside.to_string().contains("for one pod alone"), "{beside}");
    pool.unpublish(&volume, &rig.path("other")).expect("unpublished");
    pool.unstage(&volume, &staged).expect("unstaged");
}
