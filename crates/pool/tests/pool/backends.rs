//! Backends whose limit is a quota.
use std::{fs, os::unix::fs::PermissionsExt, sync::Arc};

use pool::{Backend, Content, Health, Kind, Limit, NewSnapshot, NewVolume, Origin, Pool, Usage};

use sys::{Disk, RealSys};

use crate::{
    common::{Rig, fill, new},
    faults::Faulty,
};

const MIB: u64 = 1 << 20;

#[test]
fn subvolumes() {
    let Some(rig) = Rig::on_btrfs(512 * MIB) else { return };
    let pool = rig.pool();
    let wanted = |name: &str, bytes| NewVolume { backend: Backend::Subvolume, ..new(name, bytes) };
    let raw = NewVolume { content: Content::Block, ..wanted("raw", MIB) };
    assert_eq!(pool.create(&raw).expect_err("no device").kind(), Kind::Invalid);
    let volume = pool.create(&wanted("v", 16 * MIB)).expect("made");
    assert_eq!(volume.limit, Limit::Quota);
    let (staged, published) = (rig.path("staged"), rig.path("published"));
    rig.up(&pool, &volume.id, &staged, &published).expect("up");
    let fitted = fill(&published);
    assert!(fitted <= 16 * MIB && fitted > 12 * MIB, "{fitted}");
    let Usage::Filesystem(space) = pool.usage(&volume.id, &published).expect("usage") else { panic!("files") };
    assert!(space.total_bytes == 16 * MIB && space.used_bytes > 8 * MIB && space.free_bytes < 8 * MIB, "{space:?}");
    pool.expand(&volume.id, 32 * MIB, 0).expect("grown");
    assert!(fill(&published) > 20 * MIB, "the limit did not move");
    fs::remove_file(published.join("fill")).expect("removed");
    fs::write(published.join("page"), "before").expect("written");
    // Anybody may make one in a directory of his.
    RealSys.make_subvolume(&published.join("nested")).expect("a subvolume in it");
    fs::write(published.join("nested/page"), "x").expect("written");

    let snapshot = NewSnapshot { name: "s".into(), volume: volume.id.clone() };
    let snapshot = pool.take_snapshot(&snapshot).expect("taken");
    fs::write(published.join("page"), "after").expect("written");
    let copy = |name: &str, origin| NewVolume { origin: Some(origin), ..wanted(name, 0) };
    let image = NewVolume { backend: Backend::Image, ..copy("image", Origin::Snapshot(snapshot.id.clone())) };
    assert_eq!(pool.create(&image).expect_err("another backend").kind(), Kind::Invalid);
    let clone = pool.create(&copy("clone", Origin::Volume(volume.id.clone()))).expect("cloned");
    rig.down(&pool, &volume.id, &staged, &published).expect("down");
    pool.delete(&volume.id).expect("deleted");
    drop(pool);
    let pool = rig.pool();
    let restored = pool.create(&copy("restored", Origin::Snapshot(snapshot.id.clone()))).expect("restored");
    for (volume, content) in [(&restored, "before"), (&clone, "after")] {
        rig.up(&pool, &volume.id, &staged, &published).expect("up");
        assert_eq!(fs::read_to_string(published.join("page")).expect("a copy"), content);
        assert!(fill(&published) <= 32 * MIB, "a copy has a limit of its own");
        assert_eq!(pool.health(&volume.id).expect("health"), Health::Good);
        rig.down(&pool, &volume.id, &staged, &published).expect("down");
        pool.delete(&volume.id).expect("deleted");
    }
    pool.undelete(&volume.id).expect("back");
    assert_eq!(fs::read_to_string(rig.path("pool/volumes/v/data/page")).expect("kept"), "after");
    pool.delete(&volume.id).expect("deleted");
    pool.delete_snapshot(&snapshot.id).expect("removed");
    pool.empty_trash(u64::MAX).expect("emptied");
    for part in ["volumes", "snapshots", "trash", "making"] {
        assert_eq!(fs::read_dir(rig.path("pool").join(part)).expect("a directory").count(), 0, "{part}");
    }
}

#[test]
fn subvolumes_need_btrfs() {
    let rig = Rig::new();
    let refused = rig.pool().create(&NewVolume { backend: Backend::Subvolume, ..new("v", MIB) }).expect_err("no btrfs");
    assert!(refused.kind() == Kind::State && refused.to_string().contains("not on btrfs"), "{refused}");
    assert_eq!(fs::read_dir(rig.path("pool/making")).expect("a directory").count(), 0);
}

#[test]
fn directories_have_a_limit_where_the_kernel_has_quotas() {
    let kernel = Arc::new(Faulty::default());
    *kernel.quotas.lock() = Some(Default::default());
    let rig = Rig::with(kernel.clone());
    let pool = rig.pool();
    let directory = |name: &str| NewVolume { backend: Backend::Directory, limit_required: true, ..new(name, 8 * MIB) };
    let (first, second) = (pool.create(&directory("a")).expect("made"), pool.create(&directory("b")).expect("made"));
    assert!(first.limit == Limit::Quota && first.project != 0 && first.project != second.project);
    // Quotas are of a filesystem, which pools may share.
    let elsewhere = Pool::open(&rig.path("elsewhere"), kernel.clone()).expect("another pool");
    let theirs = elsewhere.create(&directory("a")).expect("made");
    assert!(![first.project, second.project].contains(&theirs.project));
    pool.delete(&first.id).expect("deleted");
    let third = pool.create(&directory("c")).expect("made");
    assert_ne!(third.project, first.project, "the deleted one may come back");
    pool.expand(&second.id, 16 * MIB, 0).expect("grown");
    assert_eq!(kernel.quotas.lock().as_ref().expect("quotas")[&second.project], 16 * MIB);
    let (staged, published) = (rig.path("staged"), rig.path("published"));
    rig.up(&pool, &second.id, &staged, &published).expect("up");
    let Usage::Filesystem(space) = pool.usage(&second.id, &published).expect("usage") else { panic!("files") };
    assert_eq!((space.total_bytes, space.used_bytes, space.free_bytes), (16 * MIB, 8 * MIB, 8 * MIB));
    rig.down(&pool, &second.id, &staged, &published).expect("down");
}

#[test]
fn directories_without_a_limit_say_so() {
    let rig = Rig::new();
    let pool = rig.pool();
    let directory = NewVolume { backend: Backend::Directory, ..new("a", 8 * MIB) };
    let refused = pool.create(&NewVolume { limit_required: true, ..directory.clone() }).expect_err("no quotas");
    assert!(refused.kind() == Kind::State && refused.to_string().contains("prjquota"), "{refused}");
    let made = pool.create(&directory).expect("made");
    assert_eq!((made.limit, made.project), (Limit::None, 0));
    let top = fs::metadata(rig.path("pool/volumes/a/data")).expect("its directory");
    assert_eq!(top.permissions().mode() & 0o7777, 0o755, "as open as other new volumes");
    let again = pool.create(&NewVolume { limit_required: true, ..directory }).expect_err("has none");
    assert_eq!(again.kind(), Kind::Exists);
    let record = fs::read_to_string(rig.path("pool/volumes/a/record.json")).expect("a record");
    assert!(record.contains("\"limit\": \"none\""), "{record}");
}
