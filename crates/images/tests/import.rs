//! Imports of every kind of file, and what must be refused. Needs root (device nodes, owners, `trusted` attributes).
mod common;

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use common::{
    Entry, device, dir, file, gzip, hard_link, image, layer, left_in, oci_parts, sha, symlink, write_dir, write_tar,
};
use images::{GcPolicy, Image, ImageError, Images, RegistryConfig};
use serde_json::json;

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("dir") }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn store(&self) -> PathBuf {
        self.path("images")
    }
    fn open(&self) -> Images {
        Images::open(self.store(), RegistryConfig::default()).expect("open store")
    }
    /// Imports one plain layer as a root file system.
    async fn try_layer(&self, entries: &[Entry]) -> Result<(Images, Image, PathBuf), ImageError> {
        let images = self.open();
        let path = self.path("rootfs.tar");
        fs::write(&path, layer(entries)).expect("write");
        let mut imported = images.import(&path, Some("test"), &()).await?;
        let image = imported.remove(0);
        let tree = images.rootfs(&image).lower.remove(0);
        Ok((images, image, tree))
    }
}

fn named() -> serde_json::Value {
    json!({"io.containerd.image.name": "docker.io/library/app:1", "org.opencontainers.image.ref.name": "1"})
}

fn two_layers() -> Vec<Vec<u8>> {
    vec![layer(&[dir("bin", 0o755), file("bin/app", "one")]), layer(&[file("etc/conf", "two"), file(".wh.bin", "")])]
}

fn check(images: &Images, image: &Image, name: &str) {
    assert_eq!(image.names, [name]);
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.size, 6);
    assert_eq!(image.config.entrypoint, ["/bin/app"]);
    assert_eq!(image.config.user.as_deref(), Some("www"));
    let lower = images.rootfs(image).lower;
    assert_eq!(fs::read_to_string(lower[0].join("etc/conf")).expect("top layer first"), "two");
    assert_eq!(fs::read_to_string(lower[1].join("bin/app")).expect("bottom layer last"), "one");
    assert_eq!(images.find(name).expect("find").as_ref(), Some(image));
}

#[tokio::test]
async fn oci_layout_and_archive() {
    let world = World::new();
    let made = image(&two_layers(), gzip);
    let parts = oci_parts(&made, &named());
    write_dir(&world.path("layout"), &parts);
    let plain = write_tar(&world.path("plain.tar"), &parts);
    let packed = world.path("packed.tar.gz");
    fs::write(&packed, gzip(&fs::read(&plain).expect("read"))).expect("write");
    for from in [world.path("layout"), plain, packed] {
        let images = world.open();
        let imported = images.import(&from, None, &()).await.expect("import");
        check(&images, &imported[0], "docker.io/library/app:1");
        assert_eq!(imported[0].id, sha(&made.config));
        assert_eq!(imported[0].repo_digests, [format!("docker.io/library/app@{}", sha(&made.manifest))]);
        let renamed = images.import(&from, Some("other:2"), &()).await.expect("import under a name");
        assert!(renamed[0].names.contains(&"docker.io/library/other:2".to_owned()));
        fs::remove_dir_all(world.store()).expect("remove");
    }
}

#[tokio::test]
async fn zstd_layers_and_zstd_archives() {
    let world = World::new();
    let pack = |b: &[u8]| zstd::encode_all(b, 1).expect("zstd");
    let parts = oci_parts(&image(&two_layers(), pack), &named());
    let plain = write_tar(&world.path("plain.tar"), &parts);
    let packed = world.path("packed");
    fs::write(&packed, pack(&fs::read(&plain).expect("read"))).expect("write");
    let images = world.open();
    check(&images, &images.import(&packed, None, &()).await.expect("import")[0], "docker.io/library/app:1");
}

#[tokio::test]
async fn docker_archive() {
    let world = World::new();
    let layers = two_layers();
    let made = image(&layers, <[u8]>::to_vec);
    let manifest = json!([{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["a/layer.tar", "b/layer.tar"]}]);
    let parts = [
        ("manifest.json".to_owned(), manifest.to_string().into_bytes()),
        ("c.json".to_owned(), made.config.clone()),
        ("a/layer.tar".to_owned(), layers[0].clone()),
        ("b/layer.tar".to_owned(), layers[1].clone()),
    ];
    let path = write_tar(&world.path("docker.tar"), &parts);
    let images = world.open();
    let imported = images.import(&path, None, &()).await.expect("import");
    check(&images, &imported[0], "docker.io/library/app:1");
    assert_eq!(imported[0].repo_digests, Vec::<String>::new());
    assert_eq!(imported[0].image_ref(), sha(&made.config));
}

#[tokio::test]
async fn root_file_system_needs_a_name() {
    let world = World::new();
    let images = world.open();
    let path = world.path("rootfs.tar.gz");
    fs::write(&path, gzip(&layer(&[file("./bin/sh", "x")]))).expect("write");
    let refused = images.import(&path, None, &()).await.expect_err("no name");
    assert!(refused.to_string().contains("--name"), "{refused}");
    let imported = images.import(&path, Some("base:1"), &()).await.expect("import");
    assert_eq!(imported[0].config.cmd, ["/bin/sh"]);
    let again = images.import(&path, Some("base:1"), &()).await.expect("again");
    assert_eq!(again[0].id, imported[0].id);
}

#[tokio::test]
async fn wrong_files_are_refused_and_leave_nothing() {
    let world = World::new();
    let images = world.open();
    let made = image(&two_layers(), gzip);
    let mut damaged = oci_parts(&made, &named());
    let blob = damaged.iter_mut().find(|(n, _)| n.ends_with(&made.blobs[1].0[7..])).expect("second layer");
    blob.1 = gzip(&layer(&[file("evil", "x")]));
    let mut missing = oci_parts(&made, &named());
    missing.retain(|(n, _)| !n.ends_with(&made.blobs[0].0[7..]));
    let tar = |name: &str, parts: &[(String, Vec<u8>)]| write_tar(&world.path(name), parts);
    fs::write(world.path("text"), "not an archive at all, just some words ".repeat(40)).expect("write");
    fs::write(world.path("rubbish"), b"\n\x1b[31m\xff\xfe".repeat(1000)).expect("write");
    fs::create_dir(world.path("empty")).expect("dir");
    let cut = fs::read(tar("whole.tar", &oci_parts(&made, &named()))).expect("read");
    fs::write(world.path("cut.tar"), &cut[..cut.len() / 2]).expect("write");
    let cases = [
        (tar("damaged.tar", &damaged), "does not match its digest"),
        (tar("missing.tar", &missing), "is missing in it"),
        (tar("unnamed.tar", &oci_parts(&made, &json!({}))), "does not say its image's name"),
        (world.path("text"), "not an OCI layout"),
        (world.path("rubbish"), "not an OCI layout"),
        (world.path("empty"), "not an OCI layout"),
        (world.path("absent"), "open image file"),
        (world.path("cut.tar"), "cannot import"),
    ];
    for (path, expect) in cases {
        let refused = images.import(&path, None, &()).await.expect_err(expect);
        let text = base::chain(&refused);
        assert!(text.contains(expect), "{}: {text}", path.display());
        assert!(!text.contains(char::is_control), "{}: {text:?}", path.display());
        assert_eq!(images.list().expect("list"), []);
        // Good layers that came before the bad part stay until collected, so that a second try is quick.
        images.gc(&HashSet::new(), &GcPolicy::default()).expect("gc");
    }
    assert_eq!(left_in(&world.store()), Vec::<String>::new());
}

#[tokio::test]
async fn inodes_are_as_the_layer_says() {
    let world = World::new();
    let entries = [
        dir("./", 0o750),
        dir("tmp", 0o1777),
        Entry { owner: (1000, 50), mode: 0o4755, ..file("tmp/suid", "s") },
        hard_link("tmp/same", "tmp/suid"),
        symlink("tmp/link", "/etc/passwd"),
        Entry { mode: 0o660, owner: (7, 8), ..device("null", 1, 3) },
        Entry { extended: vec![("SCHILY.xattr.user.note".into(), b"hi\0".to_vec())], ..file("noted", "n") },
        Entry {
            extended: vec![("SCHILY.xattr.trusted.overlay.redirect".into(), b"/etc".to_vec())],
            ..dir("redirected", 0o755)
        },
        file("deep/er/file", "made parents"),
    ];
    let (_, image, tree) = world.try_layer(&entries).await.expect("import");
    let at = |name: &str| fs::symlink_metadata(tree.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(at("").permissions().mode() & 0o7777, 0o750);
    assert_eq!(at("tmp").permissions().mode() & 0o7777, 0o1777);
    assert_eq!(at("tmp").mtime(), 1_700_000_000, "not the time of the files made in it");
    let suid = at("tmp/suid");
    assert_eq!((suid.mode() & 0o7777, suid.uid(), suid.gid(), suid.mtime()), (0o4755, 1000, 50, 1_700_000_000));
    assert_eq!(suid.ino(), at("tmp/same").ino());
    assert_eq!(fs::read_link(tree.join("tmp/link")).expect("link"), Path::new("/etc/passwd"));
    let null = at("null");
    assert!(null.file_type().is_char_device());
    assert_eq!((null.rdev(), null.mode() & 0o7777, null.uid()), (rustix::fs::makedev(1, 3), 0o660, 7));
    assert_eq!(attribute(&tree.join("noted"), "user.note").as_deref(), Some(&b"hi\0"[..]));
    assert_eq!(attribute(&tree.join("redirected"), "trusted.overlay.redirect"), None);
    assert_eq!(at("deep/er").permissions().mode() & 0o7777, 0o755);
    assert_eq!(image.size, 14);
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut buffer = [0; 64];
    let length = rustix::fs::lgetxattr(path, name, &mut buffer).ok()?;
    Some(buffer[..length].to_vec())
}

#[tokio::test]
async fn whiteouts_are_ready_for_overlayfs() {
    let world = World::new();
    let entries = [
        dir("a", 0o755),
        file("a/.wh.gone", ""),
        file("a/.wh..wh..opq", ""),
        file("a/kept", "k"),
        dir("b", 0o755),
        file("b/new", "n"),
        file(".wh.b", ""),
        file("a/.wh..wh.plnk", ""),
        file(".wh.c", ""),
        file("c/inside", "i"),
    ];
    // A file below a whiteout of the same layer: the whiteout gives way to a directory.
    let refused = world.try_layer(&entries).await.map(|_| ()).expect_err("c is hidden and has content");
    assert!(matches!(refused, ImageError::Entry { .. }), "{refused}");
    let mut entries = Vec::from(entries);
    entries.insert(9, dir("c", 0o755));
    let (_, _, tree) = world.try_layer(&entries).await.expect("import");
    let gone = fs::symlink_metadata(tree.join("a/gone")).expect("whiteout");
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let opaque = |name: &str| attribute(&tree.join(name), "trusted.overlay.opaque").as_deref() == Some(b"y");
    assert!(opaque("a") && opaque("b") && opaque("c"));
    assert!(tree.join("a/kept").exists() && tree.join("b/new").exists());
    assert!(!tree.join("a/.wh..wh.plnk").exists() && !tree.join("a/.wh.gone").exists());
}

#[tokio::test]
async fn later_entries_replace_earlier_ones() {
    let world = World::new();
    let entries = [
        file("x", "old"),
        file("x", "new"),
        dir("d", 0o755),
        file("d/in", "1"),
        symlink("d", "elsewhere"),
        file("e", "file"),
        dir("e", 0o700),
        file("e/in", "2"),
        hard_link("x", "x"),
    ];
    let (_, _, tree) = world.try_layer(&entries).await.expect("import");
    assert_eq!(fs::read_to_string(tree.join("x")).expect("x"), "new");
    assert!(fs::symlink_metadata(tree.join("d")).expect("d").is_symlink());
    assert_eq!(fs::read_to_string(tree.join("e/in")).expect("e/in"), "2");
}

#[tokio::test]
async fn cve_2018_15664_nothing_escapes() {
    let outside = tempfile::tempdir().expect("dir");
    let out = outside.path().to_str().expect("text").to_owned();
    fs::write(outside.path().join("secret"), "s").expect("write");
    let up = "../".repeat(20);
    let below = format!("{up}{}", out.trim_start_matches('/'));
    let cases: Vec<(&str, Vec<Entry>)> = vec![
        ("dots", vec![file("../evil", "x")]),
        ("dots inside", vec![file("a/../../evil", "x")]),
        ("absolute link", vec![symlink("a", &out), file("a/evil", "x")]),
        ("relative link", vec![symlink("a", &below), file("a/evil", "x")]),
        ("link to link", vec![symlink("a", &out), symlink("b", "a"), file("b/evil", "x")]),
        ("write through a link", vec![symlink("evil", &format!("{out}/secret")), file("evil", "x")]),
        ("hard link to the host", vec![hard_link("evil", &format!("{out}/secret"))]),
        ("hard link up", vec![hard_link("evil", &format!("{below}/secret"))]),
        ("hard link through a link", vec![symlink("a", &out), hard_link("evil", "a/secret")]),
        ("whiteout through a link", vec![symlink("a", &out), file("a/.wh.secret", "")]),
        ("opaque through a link", vec![symlink("a", &out), file("a/.wh..wh..opq", "")]),
        ("whiteout of the parent", vec![file("a/.wh...", "")]),
        ("directory mode through a link", vec![symlink("a", &out), dir("a", 0o777)]),
        ("through proc", vec![symlink("a", "/proc/self/root"), file("a/tmp/evil", "x")]),
    ];
    for (what, entries) in cases {
        let world = World::new();
        let before = snapshot(outside.path());
        let result = world.try_layer(&entries).await;
        assert_eq!(snapshot(outside.path()), before, "{what} reached outside");
        if let Ok((_, _, tree)) = result {
            let evil = tree.join("evil");
            let inside = fs::symlink_metadata(&evil).map_or(0, |m| m.ino());
            assert_ne!(inside, fs::metadata(outside.path().join("secret")).expect("secret").ino(), "{what}");
        } else {
            assert_eq!(left_in(&world.store()), Vec::<String>::new(), "{what}");
        }
    }
}

fn snapshot(dir: &Path) -> Vec<(PathBuf, u32, u64, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .expect("read")
        .flatten()
        .map(|e| {
            let m = e.metadata().expect("metadata");
            (e.path(), m.mode(), m.nlink(), fs::read(e.path()).unwrap_or_default())
        })
        .collect();
    all.push((dir.into(), fs::metadata(dir).expect("dir").mode(), 0, vec![]));
    all.sort();
    all
}

#[tokio::test]
async fn names_ids_and_removal() {
    let world = World::new();
    let images = world.open();
    let made = image(&two_layers(), gzip);
    let path = write_tar(&world.path("a.tar"), &oci_parts(&made, &named()));
    let image = images.import(&path, None, &()).await.expect("import").remove(0);
    let hex = &image.id["sha256:".len()..];
    let digest = format!("app@{}", sha(&made.manifest));
    for name in ["app:1", "docker.io/library/app:1", &image.id, hex, &hex[..12], &digest, &sha(&made.manifest)] {
        assert_eq!(images.find(name).expect(name).as_ref(), Some(&image), "{name}");
    }
    for name in ["app", "app:2", &hex[..11], "quay.io/library/app:1", "sha256:abc"] {
        assert_eq!(images.find(name).expect(name), None, "{name}");
    }
    assert!(matches!(images.find("App"), Err(ImageError::Name { .. })));
    // Another process: its own view of the same files.
    let other = world.open();
    assert!(other.remove("app:1").expect("remove"));
    assert!(!other.remove("app:1").expect("gone"));
    assert_eq!(images.find("app:1").expect("read again"), None);
    assert_eq!(images.list().expect("list"), []);
    let in_use = HashSet::from([image.id.clone()]);
    let report = images.gc(&in_use, &GcPolicy::default()).expect("gc");
    assert_eq!(report.removed_layers, 0, "a container still runs from it");
    let report = images.gc(&HashSet::new(), &GcPolicy::default()).expect("gc");
    assert_eq!((report.removed_images.len(), report.removed_layers, report.freed_bytes), (1, 2, 6));
    assert_eq!(left_in(&world.store()), Vec::<String>::new());
}

#[tokio::test]
async fn a_name_moves_to_the_newer_image() {
    let world = World::new();
    let images = world.open();
    for content in ["old", "new"] {
        let made = image(&[layer(&[file("f", content)])], gzip);
        let path = write_tar(&world.path("a.tar"), &oci_parts(&made, &named()));
        images.import(&path, None, &()).await.expect("import");
    }
    let found = images.find("app:1").expect("find").expect("present");
    let tree = images.rootfs(&found).lower.remove(0);
    assert_eq!(fs::read_to_string(tree.join("f")).expect("read"), "new");
    assert_eq!(images.list().expect("list").len(), 2, "the older one can still be found by digest");
}

#[tokio::test]
async fn leftovers_of_a_crash_are_removed_and_half_layers_do_not_count() {
    let world = World::new();
    let images = world.open();
    let made = image(&two_layers(), gzip);
    let path = write_tar(&world.path("a.tar"), &oci_parts(&made, &named()));
    // As if killed while unpacking, and again after the first layer was in place but before the record.
    fs::create_dir_all(world.store().join("tmp/layer-x/fs/etc")).expect("leftover");
    fs::write(world.store().join("tmp/index-y"), "{").expect("leftover");
    images.import(&path, None, &()).await.expect("import");
    fs::remove_file(world.store().join("index.json")).expect("no record");
    drop(images);
    let images = world.open();
    assert_eq!(images.find("app:1").expect("find"), None);
    assert_eq!(left_in(&world.store()).len(), 2, "two layers, no leftovers");
    let report = images.gc(&HashSet::new(), &GcPolicy::default()).expect("gc");
    assert_eq!(report.removed_layers, 2);
    images.import(&path, None, &()).await.expect("import again");
    fs::write(world.store().join("index.json"), "{half").expect("damage");
    assert!(matches!(images.list(), Err(ImageError::Damaged { .. })));
}

#[tokio::test]
async fn many_imports_at_once_from_two_processes() {
    let world = World::new();
    let shared = layer(&[file("shared", "s")]);
    let mut tasks = vec![];
    for n in 0..6 {
        let made = image(&[shared.clone(), layer(&[file("own", &n.to_string())])], gzip);
        let note = json!({"io.containerd.image.name": format!("docker.io/library/app:{n}")});
        let path = write_tar(&world.path(&format!("{n}.tar")), &oci_parts(&made, &note));
        let images = world.open();
        tasks.push(tokio::spawn(async move { images.import(&path, None, &()).await.map(drop) }));
    }
    for task in tasks {
        task.await.expect("join").expect("import");
    }
    let images = world.open();
    assert_eq!(images.list().expect("list").len(), 6);
    assert_eq!(left_in(&world.store()).len(), 7);
}

#[tokio::test]
async fn overlayfs_takes_the_layers() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    let world = World::new();
    let images = world.open();
    let made = image(&two_layers(), gzip);
    let path = write_tar(&world.path("a.tar"), &oci_parts(&made, &named()));
    let image = images.import(&path, None, &()).await.expect("import").remove(0);
    let lower: Vec<String> = images.rootfs(&image).lower.iter().map(|p| p.display().to_string()).collect();
    let merged = world.path("merged");
    fs::create_dir(&merged).expect("dir");
    let options = std::ffi::CString::new(format!("lowerdir={}", lower.join(":"))).expect("options");
    mount("overlay", &merged, "overlay", MountFlags::RDONLY, Some(options.as_c_str())).expect("mount overlay");
    let names: Vec<_> = fs::read_dir(&merged).expect("read").flatten().map(|e| e.file_name()).collect();
    unmount(&merged, UnmountFlags::DETACH).expect("unmount");
    assert_eq!(names, ["etc"], "bin is hidden by the upper layer's whiteout");
}

const CRASH_DIR: &str = "HOLDFAST_TEST_CRASH_DIR";

/// Not a test of its own: the process that `killed_at_any_moment_...` kills.
#[tokio::test]
async fn imports_until_killed() {
    let Ok(dir) = std::env::var(CRASH_DIR) else { return };
    let dir = Path::new(&dir);
    // Never outlives the test that should kill it.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).expect("prctl");
    loop {
        let images = Images::open(dir.join("images"), RegistryConfig::default()).expect("open");
        for name in ["a.tar", "b.tar"] {
            images.import(&dir.join(name), None, &()).await.expect("import");
        }
        for name in ["app:a", "app:b"] {
            images.remove(name).expect("remove");
        }
        images.gc(&HashSet::new(), &GcPolicy::default()).expect("gc");
    }
}

#[tokio::test]
async fn killed_at_any_moment_an_image_is_whole_or_absent() {
    let world = World::new();
    let files: Vec<Entry> = (0..50).map(|n| file(&format!("f{n}"), "content")).collect();
    for tag in ["a", "b"] {
        let made = image(&[layer(&files), layer(&[file("own", tag)])], gzip);
        let note = json!({"io.containerd.image.name": format!("docker.io/library/app:{tag}")});
        write_tar(&world.path(&format!("{tag}.tar")), &oci_parts(&made, &note));
    }
    for round in 0..25_u64 {
        let mut child = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["imports_until_killed", "--exact", "--nocapture"])
            .env(CRASH_DIR, world.dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("start");
        // Any moment will do; they differ from round to round.
        std::thread::sleep(Duration::from_millis(5 + round * 7 % 60));
        child.kill().expect("kill");
        child.wait().expect("wait");
        let images = world.open();
        for image in images.list().expect("a readable list") {
            let lower = images.rootfs(&image).lower;
            assert_eq!(lower.len(), 2);
            assert!(lower[0].join("own").exists(), "{image:?}");
            assert_eq!(fs::read_dir(&lower[1]).expect("layer").count(), 50, "{image:?}");
        }
        assert_eq!(fs::read_dir(world.store().join("tmp")).expect("read").count(), 0, "leftovers are removed");
    }
    let images = world.open();
    for name in ["a.tar", "b.tar"] {
        images.import(&world.path(name), None, &()).await.expect("import after all that");
    }
}
