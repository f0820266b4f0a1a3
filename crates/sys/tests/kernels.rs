//! The same promises, kept by the fake kernel and by the real one.
#![allow(clippy::unwrap_used)]

use std::{
    ffi::{OsStr, OsString},
    io::ErrorKind,
    os::unix::ffi::OsStringExt,
    path::Path,
};

use sys::{Bind, FakeSys, FileKind, Handle, Propagation, Reach, ReadOnly, RealSys, Sys, Tmpfs, Unmount, tree};
use testkit::in_mount_namespace;

const BUSY: i32 = 16;
const CROSSES: i32 = 18;

fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

/// Runs a check on both kernels, in an empty directory.
fn on_both(check: fn(&dyn Sys, &Path)) {
    let fake = FakeSys::default();
    fake.with_dir("/scratch");
    check(&fake, Path::new("/scratch"));
    let scratch = tempfile::tempdir().unwrap();
    in_mount_namespace(|| check(&RealSys, scratch.path()));
}

fn dir(sys: &dyn Sys, path: &Path) -> Handle {
    let (above, last) = (path.parent().unwrap(), path.file_name().unwrap());
    let above = sys.open(above).unwrap_or_else(|_| dir(sys, path.parent().unwrap()));
    let _ = sys.make_dir(&above, last, 0o755);
    sys.open(path).unwrap()
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

#[test]
fn look_ups_stay_inside() {
    on_both(|sys, top| {
        let volume = dir(sys, &top.join("vol"));
        let real = dir(sys, &top.join("vol/real"));
        let outside = dir(sys, &top.join("outside"));
        sys.write_new(&real, name("f"), b"in", 0o600).unwrap();
        sys.write_new(&outside, name("f"), b"out", 0o600).unwrap();
        for (link, target) in [
            ("in", "real".into()),
            ("round", "real/../real/../in".into()),
            ("up", "../outside".into()),
            ("abs", top.join("outside")),
            ("loop", "loop".into()),
        ] {
            sys.make_link(&volume, name(link), &target).unwrap();
        }
        let id =
            |reach, path: &str| sys.open_at(&volume, Path::new(path), reach).and_then(|h| sys.stat(&h)).map(|s| s.id());
        let inside = sys.stat(&sys.open_at(&real, Path::new("f"), Reach::Child).unwrap()).unwrap().id();
        for path in ["real/f", "in/f", "round/f", "real/../in/f"] {
            assert_eq!(id(Reach::Beneath, path).unwrap(), inside, "{path}");
        }
        for path in ["up/f", "abs/f", "..", "real/../../outside/f"] {
            assert_eq!(errno(id(Reach::Beneath, path)), Some(CROSSES), "{path}");
        }
        assert!(id(Reach::Beneath, "loop").is_err());
        assert_eq!(id(Reach::Beneath, "none").unwrap_err().kind(), ErrorKind::NotFound);
        for reach in [Reach::Child, Reach::Plain] {
            assert!(id(reach, "in/f").is_err(), "{reach:?} followed a link");
            let link = sys.open_at(&volume, Path::new("in"), reach).unwrap();
            assert_eq!(sys.stat(&link).unwrap().kind, FileKind::Link);
        }
        // As in a container, whose root is the volume.
        assert_eq!(id(Reach::InRoot, "../../real/f").unwrap(), inside);
        assert_eq!(id(Reach::InRoot, "up/f").unwrap_err().kind(), ErrorKind::NotFound);
        let parent = sys.open_at(&real, Path::new(""), Reach::Parent).unwrap();
        assert_eq!(sys.stat(&parent).unwrap().id(), sys.stat(&volume).unwrap().id());
    });
}

#[test]
fn mounts_hide_show_and_go() {
    on_both(|sys, top| {
        let base = sys.open(top).unwrap();
        let point = dir(sys, &top.join("t"));
        sys.write_new(&point, name("hidden"), b"", 0o600).unwrap();
        sys.mount_tmpfs(&point, &Tmpfs { size_bytes: Some(1 << 20), mode: 0o1777 }).unwrap();
        let inside = sys.open(&top.join("t")).unwrap();
        let stat = sys.stat(&inside).unwrap();
        assert!(stat.mount_root && stat.mode == 0o1777 && sys.list(&inside).unwrap().is_empty());
        assert!(!sys.stat(&point).unwrap().mount_root, "a handle means what it was opened on");
        sys.write_new(&inside, name("f"), b"x", 0o640).unwrap();
        assert_eq!(errno(sys.open_at(&base, Path::new("t"), Reach::Child)), Some(CROSSES));

        let target = dir(sys, &top.join("b"));
        let bind = Bind { read_only: ReadOnly::Top, propagation: Propagation::Slave, ..Bind::default() };
        sys.bind(&inside, &target, &bind).unwrap();
        let bound = sys.open(&top.join("b")).unwrap();
        assert_eq!(sys.read_file(&sys.open(&top.join("b/f")).unwrap()).unwrap(), b"x");
        assert_eq!(sys.write_new(&bound, name("g"), b"", 0o600).unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
        // A file over a file, and the same file twice.
        sys.write_new(&base, name("file"), b"", 0o600).unwrap();
        let (source, file) = (sys.open(&top.join("t/f")).unwrap(), sys.open(&top.join("file")).unwrap());
        sys.bind(&source, &file, &Bind::default()).unwrap();
        sys.bind(&source, &sys.open(&top.join("file")).unwrap(), &Bind::default()).unwrap();
        assert!(sys.bind(&source, &target, &Bind::default()).is_err(), "a file over a directory");

        drop((inside, bound, source, file));
        let points = sys.mounts_below(&base).unwrap();
        let times = |p: &str| points.iter().filter(|x| *x == Path::new(p)).count();
        assert_eq!((points.len(), times("t"), times("b"), times("file")), (4, 1, 1, 2), "{points:?}");
        for what in ["t", "b", "file"] {
            assert_eq!(errno(tree::remove(sys, &base, name(what))), Some(BUSY), "{what} removed under a mount");
        }
        for (what, how) in [("file", Unmount::Strict), ("b", Unmount::FromServer), ("t", Unmount::Forced)] {
            tree::unmount_all(sys, &base, name(what), &|_| how).unwrap();
        }
        assert!(sys.mounts_below(&base).unwrap().is_empty());
        assert_eq!(sys.list(&sys.open(&top.join("t")).unwrap()).unwrap()[0].name, "hidden");
        for how in [Unmount::Strict, Unmount::FromServer] {
            assert!(sys.unmount(&base, name("t"), how).is_err(), "unmounted what is no mount");
        }
    });
}

/// What is mounted inside goes, in any depth; the mount itself stays, and what it was made from keeps its own.
#[test]
fn what_is_mounted_inside_goes_alone() {
    on_both(|sys, top| {
        let base = sys.open(top).unwrap();
        let tmpfs = Tmpfs { size_bytes: Some(1 << 20), mode: 0o755 };
        dir(sys, &top.join("from/in"));
        sys.mount_tmpfs(&sys.open(&top.join("from/in")).unwrap(), &tmpfs).unwrap();
        let whole = Bind { recursive: true, ..Bind::default() };
        sys.bind(&sys.open(&top.join("from")).unwrap(), &dir(sys, &top.join("to")), &whole).unwrap();
        // Over what came along, in it, and under a name that only begins like it.
        sys.mount_tmpfs(&sys.open(&top.join("to/in")).unwrap(), &tmpfs).unwrap();
        sys.mount_tmpfs(&dir(sys, &top.join("to/in/deep")), &tmpfs).unwrap();
        sys.mount_tmpfs(&dir(sys, &top.join("to-other")), &tmpfs).unwrap();
        tree::unmount_inside(sys, &base, name("to")).unwrap();
        let mut points = sys.mounts_below(&base).unwrap();
        points.sort();
        assert_eq!(points, [Path::new("from/in"), Path::new("to"), Path::new("to-other")]);
        tree::unmount_inside(sys, &base, name("none")).unwrap();
        for what in ["to", "to-other", "from"] {
            tree::unmount_all(sys, &base, name(what), &|_| Unmount::Strict).unwrap();
        }
    });
}

#[test]
fn recursive_binds_bring_what_is_below_and_their_rights() {
    on_both(|sys, top| {
        dir(sys, &top.join("src/m"));
        let tmpfs = Tmpfs { size_bytes: Some(1 << 20), mode: 0o755 };
        sys.mount_tmpfs(&sys.open(&top.join("src/m")).unwrap(), &tmpfs).unwrap();
        let write = |path: &str, n: &str| {
            let at = sys.open(&top.join(path)).unwrap();
            sys.write_new(&at, name(n), b"", 0o600).map_err(|e| e.kind())
        };
        let refused = Err(ErrorKind::ReadOnlyFilesystem);
        for (to, recursive, read_only, top_says, below_says) in [
            ("plain", false, ReadOnly::No, Ok(()), Ok(())),
            ("top", true, ReadOnly::Top, refused, Ok(())),
            ("all", true, ReadOnly::Recursive, refused, refused),
        ] {
            let bind = Bind { recursive, read_only, propagation: Propagation::Private, ..Bind::default() };
            sys.bind(&sys.open(&top.join("src")).unwrap(), &dir(sys, &top.join(to)), &bind).unwrap();
            assert_eq!(write(to, to), top_says, "{to}");
            assert_eq!(write(&format!("{to}/m"), to), below_says, "{to}/m");
        }
        // A plain bind shows the directory under the mount.
        let below = |path: &str| sys.list(&sys.open(&top.join(path)).unwrap()).unwrap().len();
        assert_eq!((below("plain/m"), below("src/m"), below("all/m")), (1, 1, 1));
        let base = sys.open(top).unwrap();
        for what in ["plain", "top", "all", "src"] {
            tree::unmount_all(sys, &base, name(what), &|_| Unmount::Strict).unwrap();
        }
        assert!(sys.mounts_below(&base).unwrap().is_empty());
    });
}

#[test]
fn removal_takes_anything_and_follows_nothing() {
    on_both(|sys, top| {
        let base = sys.open(top).unwrap();
        let outside = dir(sys, &top.join("outside"));
        sys.write_new(&outside, name("f"), b"keep", 0o600).unwrap();
        let mut at = dir(sys, &top.join("pod"));
        sys.make_link(&at, name("link"), &top.join("outside")).unwrap();
        sys.make_link(&at, name("loop"), Path::new(".")).unwrap();
        for odd in ["-rf", "*", " lead", "new\nline", &"x".repeat(250)] {
            sys.write_new(&at, name(odd), b"", 0).unwrap();
        }
        sys.write_new(&at, &OsString::from_vec(b"bad\xffutf".to_vec()), b"", 0o600).unwrap();
        sys.make_dir(&at, name("many"), 0o755).unwrap();
        let many = sys.open_at(&at, Path::new("many"), Reach::Child).unwrap();
        for n in 0..2000 {
            sys.write_new(&many, name(&n.to_string()), b"", 0o600).unwrap();
        }
        // Far deeper than a path may be long, or than directories may be held open.
        for _ in 0..1500 {
            sys.make_dir(&at, name("abcdefghijkl"), 0o700).unwrap();
            at = sys.open_at(&at, Path::new("abcdefghijkl"), Reach::Child).unwrap();
        }
        sys.write_new(&at, name("bottom"), &[1; 5000], 0o600).unwrap();
        sys.set_mode(&at, 0).unwrap();
        drop((at, many));

        let pod = sys.open(&top.join("pod")).unwrap();
        assert!(tree::usage(sys, &pod).unwrap().bytes >= 8192);
        tree::give_to_group(sys, &pod, 77, false, &Default::default()).unwrap();
        let stat = |p: &str| sys.stat(&sys.open(&top.join(p)).unwrap()).unwrap();
        assert_eq!((stat("pod").gid, stat("pod").mode & 0o2770), (77, 0o2770));
        assert_eq!((stat("pod/many/7").gid, stat("pod/many/7").mode), (77, 0o660));
        assert_eq!(sys.stat_at(&pod, name("link")).unwrap().gid, 77);
        assert_eq!((stat("outside").gid, stat("outside/f").gid, stat("outside/f").mode), (0, 0, 0o600));

        tree::remove(sys, &base, name("pod")).unwrap();
        tree::remove(sys, &base, name("pod")).unwrap();
        assert_eq!(sys.read_file(&sys.open(&top.join("outside/f")).unwrap()).unwrap(), b"keep");
        assert_eq!(sys.list(&base).unwrap().len(), 1);
    });
}

#[test]
fn removal_refuses_while_something_is_mounted() {
    on_both(|sys, top| {
        let base = sys.open(top).unwrap();
        dir(sys, &top.join("pod/a/b"));
        sys.mount_tmpfs(&sys.open(&top.join("pod/a/b")).unwrap(), &Tmpfs { size_bytes: None, mode: 0o755 }).unwrap();
        sys.write_new(&sys.open(&top.join("pod/a/b")).unwrap(), name("f"), b"", 0o600).unwrap();
        sys.write_new(&sys.open(&top.join("pod")).unwrap(), name("0"), b"", 0o600).unwrap();
        assert_eq!(errno(tree::remove(sys, &base, name("pod"))), Some(BUSY));
        sys.open(&top.join("pod/0")).expect("nothing is removed while something is mounted");
        let pod = sys.open(&top.join("pod")).unwrap();
        tree::give_to_group(sys, &pod, 77, true, &Default::default()).unwrap();
        assert_eq!(sys.stat(&sys.open(&top.join("pod/a")).unwrap()).unwrap().gid, 77);
        assert_eq!(sys.stat(&sys.open(&top.join("pod/a/b/f")).unwrap()).unwrap().gid, 0, "changed behind a mount");
        tree::unmount_all(sys, &base, name("pod"), &|_| Unmount::Lazy).unwrap();
        tree::remove(sys, &base, name("pod")).unwrap();
    });
}

#[test]
fn files_are_made_once_with_their_mode_and_replaced_by_rename() {
    on_both(|sys, top| {
        let base = sys.open(top).unwrap();
        sys.write_new(&base, name("f"), b"1", 0o666).unwrap();
        assert_eq!(sys.stat_at(&base, name("f")).unwrap().mode, 0o666);
        sys.make_link(&base, name("l"), Path::new("elsewhere")).unwrap();
        for taken in ["f", "l"] {
            assert_eq!(sys.write_new(&base, name(taken), b"", 0o600).unwrap_err().kind(), ErrorKind::AlreadyExists);
        }
        sys.make_link(&base, name("next"), Path::new("new")).unwrap();
        sys.rename(&base, name("next"), name("l")).unwrap();
        assert_eq!(sys.read_link(&base, name("l")).unwrap(), Path::new("new"));
        assert!(sys.read_link(&base, name("f")).is_err());
        let link = sys.open_at(&base, Path::new("l"), Reach::Child).unwrap();
        sys.set_owner(&link, Some(5), Some(6)).unwrap();
        let stat = sys.stat_at(&base, name("l")).unwrap();
        assert_eq!((stat.uid, stat.gid, stat.kind), (5, 6, FileKind::Link));
        sys.make_dir(&base, name("d"), 0o700).unwrap();
        assert!(sys.remove_file(&base, name("d")).is_err() && sys.remove_dir(&base, name("f")).is_err());
    });
}
