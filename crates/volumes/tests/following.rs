//! What changes under pods that run: parts of files volumes that follow their content, groups that see others' volumes.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, path::Path, sync::Arc};

use sys::{FakeSys, RealSys, Sys};
use testkit::in_mount_namespace;
use volumes::{FileEntry, GroupMap, Ownership, Pinned, PodVolumes, Ready, Resolved, Source};

fn files(content: &str, followed: bool) -> Resolved {
    let file = |path: &str| (path.into(), FileEntry { data: content.into(), mode: 0o644, uid: None });
    let source = Source::Files {
        files: [file("key"), file("dir/key")].into(),
        in_memory: true,
        mount_points: BTreeSet::new(),
        followed,
    };
    Resolved { source, read_only: true, mount_options: Vec::new() }
}

fn read(sys: &dyn Sys, path: &Path) -> String {
    String::from_utf8(sys.open(path).and_then(|at| sys.read_file(&at)).unwrap()).unwrap()
}

fn check(sys: &Arc<dyn Sys>, top: &Path) {
    let volumes = PodVolumes::new(top.join("pods"), sys.clone());
    let set_up =
        |content, followed| volumes.set_up("u", "v", &files(content, followed), &Ownership::default()).unwrap();
    let ready = set_up("old", true);
    let pin = |index, path| volumes.mount_path("u", "c", index, &ready, Some(path)).unwrap();
    let (file, dir) = (pin(0, "key"), pin(1, "dir"));
    set_up("new", true);
    let seen = || (read(sys.as_ref(), &file), read(sys.as_ref(), &dir.join("key")));
    assert_eq!(seen(), ("old".into(), "old".into()), "what was pinned is whole until it follows");
    let all = |ready: &Ready| {
        let mut pins = volumes.follow("u", ready).unwrap();
        pins.sort_by_key(|p| p.index);
        pins
    };
    let pinned = |index, path: &Path| Pinned { container: "c".into(), index, host_path: path.into() };
    assert_eq!(all(&ready), [pinned(0, &file), pinned(1, &dir)]);
    assert_eq!(seen(), ("new".into(), "new".into()));
    let versions = || {
        let data = sys.open(&ready.host_path).unwrap();
        let names = sys.list(&data).unwrap().into_iter().map(|e| e.name.to_string_lossy().into_owned());
        names.filter(|n| n.starts_with("..2") || n.starts_with("..1")).count()
    };
    assert_eq!(versions(), 2);
    set_up("new", false);
    assert_eq!((versions(), all(&ready).len()), (1, 2));
    // A path that is gone keeps what it had.
    let mut gone = files("newer", true);
    if let Source::Files { files, .. } = &mut gone.source {
        files.remove(Path::new("key"));
    }
    volumes.set_up("u", "v", &gone, &Ownership::default()).unwrap();
    assert_eq!(all(&ready), [pinned(1, &dir)]);
    assert_eq!(seen(), ("new".into(), "newer".into()));
    volumes.release_container("u", "c").unwrap();
    assert!(all(&ready).is_empty());
    volumes.tear_down("u").unwrap();
    assert!(volumes.pods().unwrap().is_empty());
}

#[test]
fn parts_of_volumes_follow_when_told() {
    let fake = FakeSys::default();
    fake.with_dir("/scratch");
    check(&(Arc::new(fake) as Arc<dyn Sys>), Path::new("/scratch"));
    let scratch = tempfile::tempdir().unwrap();
    in_mount_namespace(|| check(&(Arc::new(RealSys) as Arc<dyn Sys>), scratch.path()));
}

#[test]
fn another_group_is_shown_a_volume_that_was_given_whole() {
    let fake = Arc::new(FakeSys::default());
    fake.with_dir("/disk/deep");
    fake.with_file("/disk/deep/file", sys::FileKind::File);
    let volumes = PodVolumes::new("/pods".into(), fake.clone());
    let source = Source::Local { path: "/disk".into(), read_only: false, fs_type: None, mount_options: Vec::new() };
    let resolved = Resolved { source, read_only: false, mount_options: Vec::new() };
    let group_of = |path: &str| fake.stat(&fake.open(Path::new(path)).unwrap()).unwrap().gid;
    let set_up = |pod: &str, gid, on_root_mismatch| {
        let own = Ownership { fs_group: Some(gid), on_root_mismatch, mapped: true, ..Ownership::default() };
        volumes.set_up(pod, "v", &resolved, &own).unwrap().group_map
    };
    assert_eq!(set_up("a", 10, true), None);
    assert_eq!(group_of("/disk/deep/file"), 10);
    let shown = Some(GroupMap { from: 10, to: 20 });
    assert_eq!(set_up("b", 20, true), shown);
    assert_eq!(set_up("b", 20, true), shown, "by another process too");
    assert_eq!((group_of("/disk"), group_of("/disk/deep/file")), (10, 10));
    assert_eq!(set_up("c", 10, true), None);
    // A pod that wants each file looked at gets that.
    assert_eq!(set_up("d", 30, false), None);
    assert_eq!(group_of("/disk/deep/file"), 30);
    assert_eq!(set_up("e", 20, true), Some(GroupMap { from: 30, to: 20 }));
    // Nor does one that does not ask for this.
    let own = Ownership { fs_group: Some(20), on_root_mismatch: true, ..Ownership::default() };
    assert_eq!(volumes.set_up("g", "v", &resolved, &own).unwrap().group_map, None);
    assert_eq!(group_of("/disk/deep/file"), 20);
    // Somebody else's group at the top: what was noted does not count.
    fake.set_owner(&fake.open(Path::new("/disk")).unwrap(), None, Some(7)).unwrap();
    assert_eq!(set_up("f", 40, true), None);
    assert_eq!(group_of("/disk/deep/file"), 40);
}
