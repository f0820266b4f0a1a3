//! What each plugin promises, on both kernels.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::Arc,
};

use sys::{FakeSys, FileKind, RealSys, Sys, Unmount};
use testkit::{in_mount_namespace, plugin_suite::local};
use volumes::{
    FileEntry, Hold, HostPathType, Medium, Next, Ownership, PodVolumes, Ready, Resolved, Source, VolumeError,
};

struct World<'a> {
    sys: &'a Arc<dyn Sys>,
    top: &'a Path,
}

impl World<'_> {
    fn volumes(&self) -> PodVolumes {
        PodVolumes::new(self.top.join("pods"), self.sys.clone())
    }

    fn set_up(&self, source: &Source, own: Ownership) -> Result<Ready, VolumeError> {
        let resolved = Resolved { source: source.clone(), read_only: false, mount_options: Vec::new() };
        self.volumes().set_up("u", "v", &resolved, &own)
    }

    fn stat(&self, path: impl AsRef<Path>) -> sys::Stat {
        self.sys.open(path.as_ref()).and_then(|h| self.sys.stat(&h)).unwrap()
    }

    fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.sys.open(path.as_ref()).is_ok()
    }

    fn make_dir(&self, path: &str) -> PathBuf {
        let above = self.sys.open(self.top).unwrap();
        self.sys.make_dir(&above, OsStr::new(path), 0o755).unwrap();
        self.sys.set_mode(&self.sys.open(&self.top.join(path)).unwrap(), 0o755).unwrap();
        self.top.join(path)
    }

    fn make_file(&self, path: impl AsRef<Path>, data: &str) {
        let path = path.as_ref();
        let above = self.sys.open(path.parent().unwrap()).unwrap();
        self.sys.write_new(&above, path.file_name().unwrap(), data.as_bytes(), 0o600).unwrap();
    }
}

fn on_both(check: fn(&World)) {
    let fake = FakeSys::default();
    fake.with_dir("/scratch");
    check(&World { sys: &(Arc::new(fake) as Arc<dyn Sys>), top: Path::new("/scratch") });
    let scratch = tempfile::tempdir().unwrap();
    in_mount_namespace(|| check(&World { sys: &(Arc::new(RealSys) as Arc<dyn Sys>), top: scratch.path() }));
}

fn group(gid: u32) -> Ownership {
    Ownership { fs_group: Some(gid), on_root_mismatch: false, ..Ownership::default() }
}

#[test]
fn host_path_types() {
    use HostPathType::{BlockDevice, CharDevice, Directory, DirectoryOrCreate, File, FileOrCreate, Socket, Unset};
    on_both(|w| {
        let dir = w.make_dir("dir");
        w.make_file(dir.join("file"), "x");
        let check = |path: &str, kind, want: Result<FileKind, &str>| {
            let path = dir.join(path);
            let got = w.set_up(&Source::HostPath { path: path.clone(), kind }, group(7));
            match (got, want) {
                (Ok(ready), Ok(found)) => {
                    assert_eq!((&ready.host_path, w.stat(&path).kind), (&path, found), "{kind:?}");
                    assert_ne!(w.stat(&path).gid, 7, "the group of a node's file was changed");
                }
                (Err(e), Err(expected)) => {
                    let want = format!("hostPath type check failed: {} is not {expected}", path.display());
                    assert_eq!(e.to_string(), want);
                    assert!(matches!(e.next(), Next::Retry { .. }) && e.reason() == Some("FailedMount"));
                }
                (got, want) => panic!("{kind:?} {}: {got:?}, not {want:?}", path.display()),
            }
        };
        check("file", Unset, Ok(FileKind::File));
        check("../dir", Unset, Ok(FileKind::Directory));
        check("made", Unset, Ok(FileKind::Directory));
        check("late", Directory, Err("a directory"));
        assert!(!w.exists(dir.join("late")));
        check("made", Directory, Ok(FileKind::Directory));
        check("file", Directory, Err("a directory"));
        check("file", DirectoryOrCreate, Err("a directory"));
        check("new/deep", DirectoryOrCreate, Ok(FileKind::Directory));
        assert_eq!(w.stat(dir.join("new/deep")).mode, 0o755);
        check("file", File, Ok(FileKind::File));
        check("made", File, Err("a file"));
        check("late", File, Err("a file"));
        check("made", FileOrCreate, Err("a file"));
        check("touched", FileOrCreate, Ok(FileKind::File));
        assert_eq!((w.stat(dir.join("touched")).mode, w.stat(dir.join("touched")).size_bytes), (0o644, 0));
        check("file", FileOrCreate, Ok(FileKind::File));
        check("file", Socket, Err("a socket file"));
        check("file", CharDevice, Err("a character device"));
        check("late", BlockDevice, Err("a block device"));
        let orphan = dir.join("no/f");
        let e = w.set_up(&Source::HostPath { path: orphan.clone(), kind: FileOrCreate }, group(7)).unwrap_err();
        assert_eq!(e.to_string(), format!("create {} failed", orphan.display()));
        assert!(!w.exists(dir.join("no")), "a parent was made");
    });
}

#[test]
fn host_path_special_files() {
    let fake = FakeSys::default();
    let cases = [
        ("/dev/s", FileKind::Socket, HostPathType::Socket),
        ("/dev/c", FileKind::CharDevice, HostPathType::CharDevice),
        ("/dev/b", FileKind::BlockDevice, HostPathType::BlockDevice),
    ];
    for (path, kind, _) in cases {
        fake.with_file(path, kind);
    }
    let w = World { sys: &(Arc::new(fake) as Arc<dyn Sys>), top: Path::new("/scratch") };
    for (path, _, kind) in cases {
        w.set_up(&Source::HostPath { path: path.into(), kind }, group(7)).unwrap();
        let other = Source::HostPath { path: path.into(), kind: HostPathType::File };
        assert!(w.set_up(&other, group(7)).is_err(), "{path} passes as a file");
    }
    in_mount_namespace(|| {
        let scratch = tempfile::tempdir().unwrap();
        let w = World { sys: &(Arc::new(RealSys) as Arc<dyn Sys>), top: scratch.path() };
        let socket = scratch.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, kind) in [(socket, HostPathType::Socket), ("/dev/null".into(), HostPathType::CharDevice)] {
            w.set_up(&Source::HostPath { path, kind }, group(7)).unwrap();
        }
    });
}

#[test]
fn empty_dir_is_the_pod_s_once_it_has_it() {
    on_both(|w| {
        for medium in [Medium::Disk, Medium::Memory] {
            let source = Source::EmptyDir { medium, limit_bytes: Some(1 << 20) };
            let data = w.set_up(&source, group(7)).unwrap().host_path;
            let at = w.sys.open(&data).unwrap();
            w.make_file(data.join("f"), "x");
            assert_eq!(w.stat(data.join("f")).gid, 7, "{medium:?} does not hand its group down");
            w.sys.set_owner(&w.sys.open(&data.join("f")).unwrap(), None, Some(9)).unwrap();
            w.sys.set_mode(&at, 0o700).unwrap();
            w.sys.set_owner(&at, Some(1), Some(8)).unwrap();
            drop(at);
            w.set_up(&source, group(7)).unwrap();
            let stat = w.stat(&data);
            assert_eq!((stat.mode, stat.uid, stat.gid), (0o700, 1, 8), "{medium:?}: the pod's own change was undone");
            assert_eq!(w.stat(data.join("f")).gid, 9);
            let ready = w.set_up(&source, group(7)).unwrap();
            assert!(w.volumes().usage_bytes(&ready).unwrap() >= 4096);
            w.volumes().tear_down("u").unwrap();
            assert!(!w.exists(w.top.join("pods/u")));
        }
    });
}

#[test]
fn memory_is_mounted_again_after_a_reboot() {
    on_both(|w| {
        let source = Source::EmptyDir { medium: Medium::Memory, limit_bytes: Some(1 << 20) };
        let data = w.set_up(&source, group(7)).unwrap().host_path;
        w.make_file(data.join("f"), "x");
        let above = w.sys.open(data.parent().unwrap()).unwrap();
        w.sys.unmount(&above, data.file_name().unwrap(), Unmount::Strict).unwrap();
        w.set_up(&source, group(7)).unwrap();
        let stat = w.stat(&data);
        assert!(stat.mount_root && stat.gid == 7 && !w.exists(data.join("f")));
        w.volumes().tear_down("u").unwrap();
    });
}

#[test]
fn memory_has_exactly_its_limit() {
    let scratch = tempfile::tempdir().unwrap();
    in_mount_namespace(|| {
        let w = World { sys: &(Arc::new(RealSys) as Arc<dyn Sys>), top: scratch.path() };
        let source = Source::EmptyDir { medium: Medium::Memory, limit_bytes: Some(8 << 20) };
        let data = w.set_up(&source, Ownership::default()).unwrap().host_path;
        let room = rustix::fs::statvfs(&data).unwrap();
        assert_eq!(room.f_blocks * room.f_frsize, 8 << 20);
        assert_eq!(w.stat(&data).mode, 0o1777);
        let full = std::fs::write(data.join("big"), vec![1; 9 << 20]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        w.volumes().tear_down("u").unwrap();
    });
}

/// Loop devices with files below a directory.
fn loops_below(dir: &Path) -> usize {
    let files = std::fs::read_dir("/sys/block").unwrap().flatten();
    let of = |name: PathBuf| std::fs::read_to_string(name.join("loop/backing_file")).unwrap_or_default();
    files.filter(|e| of(e.path()).starts_with(dir.to_str().unwrap())).count()
}

fn limited(bytes: u64) -> Source {
    Source::EmptyDir { medium: Medium::Disk, limit_bytes: Some(bytes) }
}

#[test]
fn a_disk_has_exactly_its_limit() {
    let scratch = tempfile::tempdir().unwrap();
    in_mount_namespace(|| {
        let w = World { sys: &(Arc::new(RealSys) as Arc<dyn Sys>), top: scratch.path() };
        for mib in [1, 3, 50, 128, 500, 2048, 20_480] {
            let data = w.set_up(&limited(mib << 20), Ownership::default()).unwrap().host_path;
            let room = rustix::fs::statvfs(&data).unwrap();
            let (size, free) = (room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize);
            // The volume's own directory is part of what it holds.
            assert_eq!((size, free), (mib << 20, (mib << 20) - 4096), "{mib} MiB");
            assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0, "an empty volume is not");
            assert_eq!(w.stat(&data).mode, 0o777);
            if mib == 3 {
                std::fs::write(data.join("most"), vec![1; 2 << 20]).unwrap();
                let full = std::fs::write(data.join("more"), vec![1; 1 << 20]).unwrap_err();
                assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
                std::fs::remove_file(data.join("most")).unwrap();
                std::fs::write(data.join("more"), vec![1; 4096]).unwrap();
            }
            w.volumes().tear_down("u").unwrap();
            assert_eq!(loops_below(scratch.path()), 0, "{mib} MiB leave a device");
            assert!(!w.exists(w.top.join("pods/u")));
        }
        // Too little for a filesystem of its own: those who watch the usage see it.
        let ready = w.set_up(&limited(1000), Ownership::default()).unwrap();
        std::fs::write(ready.host_path.join("f"), [1; 3000]).unwrap();
        assert!(w.volumes().usage_bytes(&ready).unwrap() > 1000);
        w.volumes().tear_down("u").unwrap();
    });
}

#[test]
fn a_limited_disk_is_what_it_was_after_a_reboot() {
    on_both(|w| {
        let data = w.set_up(&limited(1 << 20), group(7)).unwrap().host_path;
        w.make_file(data.join("f"), "x");
        w.sys.set_mode(&w.sys.open(&data).unwrap(), 0o700).unwrap();
        let above = w.sys.open(data.parent().unwrap()).unwrap();
        w.sys.unmount(&above, data.file_name().unwrap(), Unmount::Strict).unwrap();
        w.set_up(&limited(1 << 20), group(7)).unwrap();
        assert!(w.stat(&data).mount_root && w.exists(data.join("f")));
        assert_eq!(w.stat(&data).mode, 0o700);
        w.volumes().tear_down("u").unwrap();
    });
}

#[test]
fn volumes_are_measured_by_what_they_are() {
    let scratch = tempfile::tempdir().unwrap();
    in_mount_namespace(|| {
        let w = World { sys: &(Arc::new(RealSys) as Arc<dyn Sys>), top: scratch.path() };
        let disk = rustix::fs::statvfs(scratch.path()).unwrap();
        let disk = disk.f_blocks * disk.f_frsize;
        let host = Source::HostPath { path: w.make_dir("host"), kind: HostPathType::Directory };
        let plain = Source::EmptyDir { medium: Medium::Disk, limit_bytes: None };
        let memory = Source::EmptyDir { medium: Medium::Memory, limit_bytes: Some(8 << 20) };
        // Its capacity, and whether one file more is one more and no more.
        for (source, total, counted) in
            [(plain, disk, true), (memory, 8 << 20, true), (limited(4 << 20), 4 << 20, true), (host, disk, false)]
        {
            let ready = w.set_up(&source, group(7)).unwrap();
            let before = w.volumes().measure(&ready).unwrap();
            std::fs::write(ready.host_path.join("f"), vec![1; 100 << 10]).unwrap();
            let after = w.volumes().measure(&ready).unwrap();
            assert_eq!(after.total_bytes, total, "{source:?}");
            if counted {
                let grown = (after.used_bytes - before.used_bytes, after.used_inodes - before.used_inodes);
                assert_eq!(grown, (100 << 10, 1), "{source:?}");
            }
            w.volumes().tear_down("u").unwrap();
        }
    });
}

#[test]
fn huge_pages_are_of_the_size_and_number_that_was_asked_for() {
    let scratch = tempfile::tempdir().unwrap();
    in_mount_namespace(|| {
        let w = World { sys: &(Arc::new(RealSys) as Arc<dyn Sys>), top: scratch.path() };
        let medium = Medium::HugePages { page_bytes: 2 << 20 };
        let source = Source::EmptyDir { medium, limit_bytes: Some(6 << 20) };
        for _ in 0..2 {
            let data = w.set_up(&source, group(7)).unwrap().host_path;
            let room = rustix::fs::statvfs(&data).unwrap();
            assert_eq!((room.f_frsize, room.f_blocks), (2 << 20, 3));
            assert_eq!((w.stat(&data).mode & 0o777, w.stat(&data).gid), (0o777, 7));
        }
        w.volumes().tear_down("u").unwrap();
        let none = Source::EmptyDir { medium: Medium::HugePages { page_bytes: 12_345 }, limit_bytes: None };
        let error = w.set_up(&none, group(7)).unwrap_err();
        assert!(error.to_string().contains("mount"), "{error}");
        w.volumes().tear_down("u").unwrap();
    });
}

#[test]
fn quotas_are_preferred_and_lifted() {
    let fake = Arc::new(FakeSys::default());
    fake.with_dir("/scratch");
    fake.with_quotas();
    let w = World { sys: &(fake.clone() as Arc<dyn Sys>), top: Path::new("/scratch") };
    let data = w.set_up(&limited(5 << 20), Ownership::default()).unwrap().host_path;
    assert_eq!((fake.quota_of(&data), fake.mounts().len()), (Some(5 << 20), 0));
    w.volumes().tear_down("u").unwrap();
    assert_eq!(fake.quotas(), 0);
}

#[test]
fn a_limit_beyond_the_disk_is_a_plain_directory() {
    on_both(|w| {
        let data = w.set_up(&limited(1 << 50), group(7)).unwrap().host_path;
        assert!(!w.stat(&data).mount_root && !w.exists(data.with_file_name("image")));
        w.volumes().tear_down("u").unwrap();
    });
}

#[test]
fn local_volumes_are_directories_and_given_to_the_group_once() {
    on_both(|w| {
        let path = w.top.join("late");
        let source = |path: &Path, read_only| local(path.into(), read_only);
        let missing = w.set_up(&source(&path, false), group(7)).unwrap_err();
        assert!(missing.to_string().contains(path.to_str().unwrap()), "{missing}");
        assert!(matches!(missing.next(), Next::Retry { .. }));
        w.make_dir("late");
        w.make_file(path.join("f"), "kept");
        assert!(w.set_up(&source(&path.join("f"), false), group(7)).is_err(), "a file passes as a directory");

        let ready = w.set_up(&source(&path, true), group(7)).unwrap();
        assert!(ready.read_only && w.stat(path.join("f")).gid != 7, "a volume that is only read was changed");
        w.volumes().tear_down("u").unwrap();

        let ready = w.set_up(&source(&path, false), group(7)).unwrap();
        assert_eq!((ready.host_path, ready.read_only), (path.clone(), false));
        let modes = |p: &Path| (w.stat(p).gid, w.stat(p).mode);
        assert_eq!((modes(&path), modes(&path.join("f"))), ((7, 0o2775), (7, 0o660)));
        w.make_file(path.join("g"), "new");
        let gid = w.stat(path.join("g")).gid;
        let file = w.sys.open(&path.join("g")).unwrap();
        w.sys.set_owner(&file, None, Some(9)).unwrap();
        assert_eq!(gid, 7, "new files belong to the volume's group");
        w.set_up(&source(&path, false), group(7)).unwrap();
        assert_eq!(w.stat(path.join("g")).gid, 9, "a running pod's files were changed");
        w.volumes().tear_down("u").unwrap();

        // Another pod: only on a mismatch of the top directory, or always.
        let careful = Ownership { fs_group: Some(7), on_root_mismatch: true, ..Ownership::default() };
        w.set_up(&source(&path, false), careful).unwrap();
        assert_eq!(w.stat(path.join("g")).gid, 9);
        w.volumes().tear_down("u").unwrap();
        w.set_up(&source(&path, false), group(7)).unwrap();
        assert_eq!(w.stat(path.join("g")).gid, 7);
        w.volumes().tear_down("u").unwrap();
        assert!(w.exists(path.join("f")), "the volume's data is gone");
    });
}

#[test]
fn files_get_their_modes_and_owners() {
    on_both(|w| {
        let entry = |mode, uid| FileEntry { data: b"x".to_vec(), mode, uid };
        let files = BTreeMap::from([
            ("own".into(), entry(0o400, None)),
            ("token".into(), entry(0o600, Some(33))),
            ("sub/all".into(), entry(0o666, None)),
        ]);
        let source = Source::Files { files, in_memory: true, mount_points: ["in/side".into()].into(), followed: false };
        for (own, want) in [
            (Ownership::default(), [(0, 0, 0o400), (33, 0, 0o600), (0, 0, 0o666)]),
            (group(7), [(0, 7, 0o440), (33, 7, 0o640), (0, 7, 0o666)]),
        ] {
            let ready = w.set_up(&source, own.clone()).unwrap();
            assert!(ready.read_only);
            let data = ready.host_path;
            let got = ["own", "token", "sub/all"].map(|p| w.stat(data.join(p))).map(|s| (s.uid, s.gid, s.mode));
            assert_eq!(got, want, "{own:?}");
            for dir in ["in/side", "..data", "sub"] {
                let found = w.stat(data.join(dir));
                assert!(found.is_dir() && found.mode & 0o755 == 0o755, "{dir} is {:o}", found.mode);
            }
            assert_eq!(w.stat(&data).gid, own.fs_group.unwrap_or(0));
            w.volumes().tear_down("u").unwrap();
        }
    });
}

/// A directory with options is shown by a mount of its own, which goes with the pod and leaves the directory as it is.
#[test]
fn mount_options_of_a_directory_hold() {
    on_both(|w| {
        let path = w.make_dir("d");
        w.make_file(path.join("f"), "kept");
        let mount_options = vec!["ro".to_owned(), "noexec".to_owned(), "noatime".to_owned()];
        let source = Source::Local { path: path.clone(), read_only: false, fs_type: None, mount_options };
        let ready = w.set_up(&source, group(7)).unwrap();
        assert_eq!(w.set_up(&source, group(7)).unwrap(), ready);
        let shown = w.sys.open(&ready.host_path).unwrap();
        let refused = w.sys.write_new(&shown, OsStr::new("g"), b"", 0o600).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!((w.stat(path.join("f")).gid, w.stat(ready.host_path.join("f")).gid), (7, 7));
        drop(shown);
        w.volumes().tear_down("u").unwrap();
        assert!(w.exists(path.join("f")) && !w.exists(w.top.join("pods/u")));
        w.make_file(path.join("g"), "the directory itself takes writes");
    });
}

#[test]
fn set_up_refuses_what_it_cannot_give() {
    on_both(|w| {
        let path = w.make_dir("d");
        let resolved = |options: &[&str]| {
            let mount_options: Vec<String> = options.iter().map(ToString::to_string).collect();
            let own = mount_options.clone();
            let source = Source::Local { path: path.clone(), read_only: false, fs_type: None, mount_options: own };
            Resolved { source, read_only: true, mount_options }
        };
        let e = w.volumes().set_up("u", "v", &resolved(&["noexec", "commit=5"]), &Ownership::default());
        let e = e.unwrap_err();
        assert!(e.to_string().contains("mount option \"commit=5\""), "{e}");
        assert_eq!(e.reason(), Some("UnsupportedMountOption"));
        assert!(w.volumes().set_up("u", "v", &resolved(&[]), &Ownership::default()).unwrap().read_only);
        for bad in ["", ".", "..", "a/b", "/", "a/"] {
            assert!(w.volumes().set_up(bad, "v", &resolved(&[]), &Ownership::default()).is_err(), "pod {bad:?}");
            assert!(w.volumes().set_up("u", bad, &resolved(&[]), &Ownership::default()).is_err(), "volume {bad:?}");
            assert!(w.volumes().tear_down(bad).is_err(), "tear down {bad:?}");
        }
        assert!(w.exists(w.top.join("d")));
    });
}

#[test]
fn made_sub_paths_are_as_open_as_their_volume() {
    on_both(|w| {
        let source = Source::EmptyDir { medium: Medium::Memory, limit_bytes: None };
        let ready = w.set_up(&source, group(7)).unwrap();
        let volume = w.stat(&ready.host_path);
        let pin = w.volumes().mount_path("u", "c", 0, &ready, Some("a/b")).unwrap();
        for path in [pin, ready.host_path.join("a"), ready.host_path.join("a/b")] {
            let made = w.stat(&path);
            assert_eq!((made.mode, made.gid), (volume.mode, 7), "{}", path.display());
        }
        w.volumes().tear_down("u").unwrap();
    });
}

#[test]
fn a_pin_in_use_does_not_hold_the_pod() {
    let scratch = tempfile::tempdir().unwrap();
    in_mount_namespace(|| {
        let w = World { sys: &(Arc::new(RealSys) as Arc<dyn Sys>), top: scratch.path() };
        let ready = w.set_up(&local(w.make_dir("d"), false), group(7)).unwrap();
        let pin = w.volumes().mount_path("u", "c", 0, &ready, Some("s")).unwrap();
        let _in_use = std::fs::File::create(pin.join("f")).unwrap();
        w.volumes().tear_down("u").unwrap();
        assert!(w.exists(w.top.join("d/s/f")));
        // A memory volume in use does: its data would live on, unseen.
        let memory = Source::EmptyDir { medium: Medium::Memory, limit_bytes: None };
        let data = w.set_up(&memory, group(7)).unwrap().host_path;
        let in_use = std::fs::File::create(data.join("f")).unwrap();
        let e = w.volumes().tear_down("u").unwrap_err();
        assert_eq!(e.to_string(), format!("unmount {} failed; a process still holds it open", data.display()));
        assert!(w.exists(data.join("f")));
        drop(in_use);
        w.volumes().tear_down("u").unwrap();
    });
}

#[test]
fn volumes_and_pods_do_not_wait_for_each_other() {
    let scratch = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let pods = scratch.path().join(round.to_string()).join("pods");
        let volumes = PodVolumes::new(pods, Arc::new(RealSys));
        let start = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for (pod, volume) in [("a", "v"), ("a", "w"), ("b", "v"), ("b", "w")] {
                let (volumes, start) = (&volumes, &start);
                scope.spawn(move || {
                    let source = Source::EmptyDir { medium: Medium::Disk, limit_bytes: None };
                    let resolved = Resolved { source, read_only: false, mount_options: Vec::new() };
                    start.wait();
                    volumes.set_up(pod, volume, &resolved, &Ownership::default()).unwrap();
                });
            }
        });
        let mut found = volumes.pods().unwrap();
        found.sort();
        assert_eq!(found, ["a", "b"]);
    }
}

#[test]
fn who_has_a_volume_is_known_until_the_pod_is_torn_down() {
    on_both(|world| {
        let volumes = world.volumes();
        assert_eq!(volumes.holds().unwrap(), []);
        let hold = |uid: &str, volume: &str| Hold {
            pod_uid: uid.into(),
            pod: format!("ns/pod-of-{uid}"),
            volume: volume.into(),
        };
        let mut all = [hold("u", "pv.1"), hold("u", "pv.2"), hold("w", "pv.1")];
        for hold in all.iter().chain(&all) {
            volumes.hold(hold).unwrap();
        }
        let seen = || {
            // Another process, which has only the disk.
            let mut seen = world.volumes().holds().unwrap();
            seen.sort_by_key(|h| (h.pod_uid.clone(), h.volume.clone()));
            seen
        };
        all.sort_by_key(|h| (h.pod_uid.clone(), h.volume.clone()));
        assert_eq!(seen(), all);
        volumes.tear_down("u").unwrap();
        assert_eq!(seen(), [hold("w", "pv.1")]);
        assert!(volumes.hold(&hold("u", "../pv")).is_err() && volumes.hold(&hold("..", "pv")).is_err());
    });
}
