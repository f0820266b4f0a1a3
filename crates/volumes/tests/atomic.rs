//! Files that change together, cut off at any point and read at any moment.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use proptest::prelude::*;
use sys::{FakeSys, RealSys, Sys, When};
use testkit::in_mount_namespace;
use volumes::{FileEntry, Ownership, PodVolumes, Resolved, Source};

type Content = BTreeMap<PathBuf, Vec<u8>>;

fn resolved(content: &Content, in_memory: bool) -> Resolved {
    let entry = |data: &Vec<u8>| FileEntry { data: data.clone(), mode: 0o644, uid: None };
    let files = content.iter().map(|(path, data)| (path.clone(), entry(data))).collect();
    let source = Source::Files { files, in_memory, mount_points: BTreeSet::new(), followed: false };
    Resolved { source, read_only: true, mount_options: Vec::new() }
}

/// What a reader finds who goes through `..data` once.
fn seen(fake: &FakeSys, data: &Path) -> Option<Content> {
    let top = data.join("..data");
    fake.open(&top).ok()?;
    let mut content = Content::new();
    for path in fake.tree(&top) {
        if let Ok(bytes) = fake.open(&path).and_then(|f| fake.read_file(&f)) {
            content.insert(path.strip_prefix(&top).unwrap().to_path_buf(), bytes);
        }
    }
    Some(content)
}

/// What a reader finds under the plain names, all of them.
fn by_names(fake: &FakeSys, data: &Path) -> Content {
    let names = fake.tree(data).into_iter().filter(|p| {
        let below = p.strip_prefix(data).unwrap();
        below.components().count() == 1 && !below.to_str().unwrap().starts_with("..")
    });
    let mut content = Content::new();
    for name in names {
        let here = fake.open(&name).unwrap_or_else(|e| panic!("{} leads nowhere: {e}", name.display()));
        let mut files = vec![name.clone()];
        if fake.stat(&here).unwrap().is_dir() {
            files = fake.tree(&name);
        }
        for file in files {
            if let Ok(bytes) = fake.open(&file).and_then(|f| fake.read_file(&f)) {
                content.insert(file.strip_prefix(data).unwrap().to_path_buf(), bytes);
            }
        }
    }
    content
}

fn contents() -> impl Strategy<Value = Content> {
    // A name is either a file or a directory in both versions, as keys and items of one object are.
    let path = prop::sample::select(vec!["a", "b", "c", "sub/a", "sub/b", "deep/er/a"]).prop_map(PathBuf::from);
    let bytes = prop::collection::vec(prop::sample::select(vec![b'x', b'y', 0]), 0..3);
    prop::collection::btree_map(path, bytes, 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_update_cut_off_anywhere_shows_one_version_and_is_finished_by_the_next(
        versions in prop::collection::vec(contents(), 2..4),
        nth in 0usize..60,
        after: bool,
        in_memory: bool,
    ) {
        let fake = Arc::new(FakeSys::default());
        let sys: Arc<dyn Sys> = fake.clone();
        let volumes = PodVolumes::new("/pods".into(), sys);
        let own = Ownership { fs_group: Some(7), on_root_mismatch: false, ..Ownership::default() };
        let set_up = |content: &Content| volumes.set_up("u", "v", &resolved(content, in_memory), &own);
        let data = set_up(&versions[0]).unwrap().host_path;
        for pair in versions.windows(2) {
            fake.fail(nth, if after { When::After } else { When::Before });
            let first = set_up(&pair[1]);
            fake.heal();
            fake.pause();
            let now = seen(&fake, &data).unwrap();
            prop_assert!(now == pair[0] || now == pair[1], "mixed: {:?}", now);
            if first.is_ok() {
                prop_assert_eq!(&now, &pair[1]);
            }
            fake.resume();
            set_up(&pair[1]).unwrap();
            fake.pause();
            prop_assert_eq!(&seen(&fake, &data).unwrap(), &pair[1]);
            prop_assert_eq!(&by_names(&fake, &data), &pair[1]);
            let own_names = fake.tree(&data).into_iter().filter(|p| {
                p.parent() == Some(data.as_path()) && p.file_name().unwrap().to_str().unwrap().starts_with("..")
            });
            prop_assert_eq!(own_names.count(), 2, "old versions are left");
            fake.resume();
        }
        volumes.tear_down("u").unwrap();
        prop_assert!(fake.leftovers("/pods").is_empty());
    }
}

#[test]
fn nothing_is_written_when_nothing_changed() {
    let fake = Arc::new(FakeSys::default());
    let sys: Arc<dyn Sys> = fake.clone();
    let volumes = PodVolumes::new("/pods".into(), sys);
    let content: Content = BTreeMap::from([("a".into(), b"1".to_vec()), ("s/b".into(), b"2".to_vec())]);
    let set_up = |c: &Content| volumes.set_up("u", "v", &resolved(c, true), &Ownership::default()).unwrap().host_path;
    let data = set_up(&content);
    let before = fake.tree(&data);
    assert_eq!(set_up(&content), data);
    assert_eq!(fake.tree(&data), before, "a new version for the same content");
    let fewer: Content = content.iter().take(1).map(|(p, d)| (p.clone(), d.clone())).collect();
    set_up(&fewer);
    assert_eq!(by_names(&fake, &data), fewer);
}

#[test]
fn a_reader_never_meets_two_versions() {
    let scratch = tempfile::tempdir().unwrap();
    in_mount_namespace(|| {
        let volumes = PodVolumes::new(scratch.path().join("pods"), Arc::new(RealSys));
        let version = |n: usize| -> Content {
            ["a", "b", "c/d"].into_iter().map(|p| (p.into(), n.to_string().into_bytes())).collect()
        };
        let set_up = |n| volumes.set_up("u", "v", &resolved(&version(n), true), &Ownership::default()).unwrap();
        let data = set_up(0).host_path;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut rounds = 0;
                while !done.load(Ordering::Relaxed) || rounds == 0 {
                    // As a careful program does: the directory is looked up once, then the files in it.
                    let dir = data.join(fs::read_link(data.join("..data")).expect("there is always a version"));
                    let read = |name: &str| -> io::Result<String> { fs::read_to_string(dir.join(name)) };
                    if let (Ok(a), Ok(b), Ok(c)) = (read("a"), read("b"), read("c/d")) {
                        assert!(a == b && b == c, "two versions: {a} {b} {c}");
                        rounds += 1;
                    }
                    // And as a careless one does: each name must always lead to some version.
                    let _: usize = fs::read_to_string(data.join("a")).map_or(0, |n| n.parse().unwrap());
                }
            });
            for n in 1..300 {
                set_up(n);
            }
            done.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
        let entries: Vec<_> = fs::read_dir(&data).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(entries.len(), 5, "{entries:?}");
        volumes.tear_down("u").unwrap();
    });
}
