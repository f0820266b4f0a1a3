//! Pods that swap names while the node looks at them, on the real kernel.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use sys::{RealSys, Sys, Tmpfs};
use testkit::in_mount_namespace;
use volumes::{HostPathType, PodVolumes, Ready, Reclaiming, Source};

/// Where a race that never goes both ways is given up.
const MANY: usize = 1_000_000;

/// Runs `node` while another thread keeps exchanging two names.
fn while_exchanging(a: &Path, b: &Path, node: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).expect("exchange two names");
            }
        });
        // Also when the check panics, or the scope would wait forever.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(node));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|cause| std::panic::resume_unwind(cause));
    });
}

struct World {
    scratch: tempfile::TempDir,
    volumes: PodVolumes,
    ready: Ready,
}

/// A volume with a directory `d` and a link `l` to a directory outside.
fn world() -> World {
    let scratch = tempfile::tempdir().unwrap();
    let at = |path: &str| scratch.path().join(path);
    fs::create_dir_all(at("vol/d/x")).unwrap();
    fs::create_dir_all(at("outside/x")).unwrap();
    symlink(at("outside"), at("vol/abs")).unwrap();
    symlink("../outside", at("vol/l")).unwrap();
    let ready = Ready { volume: "v".into(), host_path: at("vol"), read_only: false, device: false, group_map: None };
    let volumes = PodVolumes::new(at("pods"), Arc::new(RealSys));
    World { volumes, ready, scratch }
}

#[test]
fn cve_2021_25741_a_sub_path_never_escapes_a_race() {
    in_mount_namespace(|| {
        let World { scratch, volumes, ready } = world();
        let outside = fs::metadata(scratch.path().join("outside/x")).unwrap().ino();
        let inside = fs::metadata(scratch.path().join("vol/d/x")).unwrap().ino();
        let vol = scratch.path().join("vol");
        let (mut found, mut refused) = (0, 0);
        while_exchanging(&vol.join("d"), &vol.join("l"), || {
            let mut tries = 0;
            // At least so often, and until the names were met in both orders.
            while tries < 10_000 || (tries < MANY && (found == 0 || refused == 0)) {
                tries += 1;
                match volumes.mount_path("pod", "c", 0, &ready, Some("d/x")) {
                    Ok(path) => {
                        let ino = fs::metadata(path).unwrap().ino();
                        assert_ne!(ino, outside, "the pin leads out of the volume");
                        assert_eq!(ino, inside);
                        found += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
        });
        assert!(found > 0 && refused > 0, "no race took place: {found} found, {refused} refused");
        volumes.tear_down("pod").unwrap();
    });
}

#[test]
fn cve_2021_25741_directories_are_made_inside_only_in_a_race() {
    in_mount_namespace(|| {
        let World { scratch, volumes, ready } = world();
        let vol = scratch.path().join("vol");
        let mut made = 0;
        while_exchanging(&vol.join("d"), &vol.join("l"), || {
            let mut n = 0;
            while n < 1_000 || (n < MANY && made < 20) {
                n += 1;
                made += usize::from(volumes.mount_path("pod", "c", 0, &ready, Some(&format!("d/{n}/deep"))).is_ok());
            }
        });
        let outside: Vec<_> =
            fs::read_dir(scratch.path().join("outside")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(outside, ["x"], "made outside the volume");
        assert!(made >= 20, "hardly any directory was made: {made}");
        volumes.tear_down("pod").unwrap();
    });
}

#[test]
fn cve_2017_1002101_sub_paths_by_what_they_name() {
    in_mount_namespace(|| {
        let World { scratch, volumes, ready } = world();
        let vol = scratch.path().join("vol");
        fs::write(vol.join("d/f"), "file").unwrap();
        symlink("d/f", vol.join("to-f")).unwrap();
        symlink("d", vol.join("to-d")).unwrap();
        symlink("../outside/key", vol.join("key")).unwrap();
        symlink("nowhere", vol.join("dangling")).unwrap();
        fs::write(scratch.path().join("outside/key"), "secret").unwrap();
        let say = |sub_path: &str, ready: &Ready| match volumes.mount_path("pod", "c", 3, ready, Some(sub_path)) {
            Ok(path) if path == ready.host_path => "volume".to_owned(),
            Ok(path) if path.is_dir() => "directory".to_owned(),
            Ok(path) => fs::read_to_string(path).unwrap(),
            Err(e) => format!("{e} [{}]", e.reason().unwrap_or_default()),
        };
        let failed = |action: &str, why: &str| {
            let head = format!("failed to {action} for volumeMount \"v\" of container \"c\"");
            format!("{head}: its subPath {why} [CreateContainerConfigError]")
        };
        let outside = &failed("prepare subPath", "leads out of the volume");
        let below_file = &failed("prepare subPath", "cannot be opened: Not a directory");
        let unmade = &failed("create subPath directory", "is a link that leads nowhere");
        let absent = failed("prepare subPath", "does not exist in the volume, and is not made there");
        for (sub_path, want) in [
            ("", "volume"),
            ("./", "volume"),
            ("d", "directory"),
            ("d//./x", "directory"),
            ("d/f", "file"),
            ("to-f", "file"),
            ("to-d/f", "file"),
            ("to-d/made/here", "directory"),
            ("new/er", "directory"),
            ("l", outside),
            ("l/x", outside),
            ("abs/x", outside),
            ("key", outside),
            ("l/new/sub", outside),
            ("dangling", unmade),
            ("d/f/below", below_file),
            ("/d", "error SubPath `/d` must not be an absolute path [CreateContainerConfigError]"),
            ("d/../..", "unable to provision SubPath `d/../..`: must not contain '..' [CreateContainerConfigError]"),
        ] {
            assert_eq!(say(sub_path, &ready), want, "{sub_path}");
        }
        assert!(vol.join("d/made/here").is_dir());
        assert_eq!(fs::read_dir(scratch.path().join("outside")).unwrap().count(), 2);
        let only_read = Ready { read_only: true, ..ready.clone() };
        assert_eq!(say("d/f", &only_read), "file");
        assert_eq!(say("d/absent", &only_read), absent);
        let pin = volumes.mount_path("pod", "c", 4, &only_read, Some("d")).unwrap();
        assert!(fs::write(pin.join("g"), "").is_err(), "the pin of a read-only volume can be written");

        // What was pinned stays, whatever the name leads to later.
        let pin = volumes.mount_path("pod", "c", 5, &ready, Some("d")).unwrap();
        fs::rename(vol.join("d"), vol.join("was-d")).unwrap();
        symlink("../outside", vol.join("d")).unwrap();
        assert_eq!(fs::read_to_string(pin.join("f")).unwrap(), "file");

        volumes.tear_down("pod").unwrap();
        assert_eq!(fs::read_to_string(vol.join("was-d/f")).unwrap(), "file");
        assert!(!scratch.path().join("pods/pod").exists());
        assert!(volumes.pods().unwrap().is_empty());
    });
}

#[test]
fn cve_2017_1002102_tear_down_needs_only_the_disk_and_spares_what_links_lead_to() {
    in_mount_namespace(|| {
        let World { scratch, volumes, .. } = world();
        let pod = scratch.path().join("pods/u1");
        let data = pod.join("volumes/kubernetes.io~empty-dir/v/data");
        fs::create_dir_all(&data).unwrap();
        fs::create_dir_all(pod.join("volumes/of-a-later-version/v")).unwrap();
        fs::create_dir_all(pod.join("containers/c")).unwrap();
        fs::write(pod.join("etc-hosts"), "").unwrap();
        fs::write(pod.join("containers/c/termination-log"), "").unwrap();
        symlink(scratch.path().join("outside"), data.join("link")).unwrap();
        symlink(scratch.path().join("outside"), pod.join("volumes/kubernetes.io~projected")).unwrap();
        // A mount that the pod made in its volume and that came through to the node, and one on top of it.
        fs::create_dir(data.join("m")).unwrap();
        for _ in 0..2 {
            let at = RealSys.open(&data.join("m")).unwrap();
            RealSys.mount_tmpfs(&at, &Tmpfs { size_bytes: None, mode: 0o755 }).unwrap();
        }
        assert_eq!(volumes.pods().unwrap(), ["u1"]);
        volumes.tear_down("u1").unwrap();
        volumes.tear_down("u1").unwrap();
        assert!(!pod.exists());
        assert!(scratch.path().join("outside/x").is_dir());
        assert!(!fs::read_to_string("/proc/thread-self/mountinfo").unwrap().contains("/pods/u1"));
    });
}

#[test]
fn cve_2022_21658_recycling_never_leaves_its_volume_in_a_race() {
    in_mount_namespace(|| {
        let World { scratch, volumes, .. } = world();
        let vol = scratch.path().join("vol");
        let source = Source::HostPath { path: vol.clone(), kind: HostPathType::Unset };
        // Someone outside keeps exchanging a directory of the volume for a link that leads out.
        fs::create_dir(scratch.path().join("swap")).unwrap();
        let (dir, link) = (scratch.path().join("swap/dir"), scratch.path().join("swap/link"));
        let (mut done, mut refused) = (0, 0);
        for round in 0..100 {
            fs::create_dir_all(dir.join("x/y")).unwrap();
            symlink(scratch.path().join("outside"), &link).unwrap();
            fs::rename(&dir, vol.join("d-now")).unwrap();
            fs::rename(&link, vol.join("l-now")).unwrap();
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    let exchange =
                        || renameat_with(CWD, vol.join("d-now"), CWD, vol.join("l-now"), RenameFlags::EXCHANGE);
                    // Ends by itself once one of the two is gone.
                    while !stop.load(Ordering::Relaxed) && exchange().is_ok() {
                        std::hint::spin_loop();
                    }
                });
                match volumes.reclaim(&source, Reclaiming::Recycle) {
                    Ok(()) => done += 1,
                    Err(_) => refused += 1,
                }
                stop.store(true, Ordering::Relaxed);
            });
            volumes.reclaim(&source, Reclaiming::Recycle).unwrap();
            assert_eq!(fs::read_dir(&vol).unwrap().count(), 0, "round {round}");
            assert!(scratch.path().join("outside/x").is_dir(), "round {round}: something outside is gone");
        }
        assert!(done > 0 && refused > 0, "no race took place: {done} done, {refused} refused");
    });
}

#[test]
fn what_cannot_be_reclaimed_is_left_whole_and_says_why() {
    in_mount_namespace(|| {
        let World { scratch, volumes, .. } = world();
        let at = |path: &str| scratch.path().join(path);
        fs::write(at("file"), "kept").unwrap();
        symlink("vol", at("link")).unwrap();
        fs::create_dir_all(at("mounted/m")).unwrap();
        fs::write(at("mounted/kept"), "").unwrap();
        let point = RealSys.open(&at("mounted/m")).unwrap();
        RealSys.mount_tmpfs(&point, &Tmpfs { size_bytes: None, mode: 0o755 }).unwrap();
        fs::write(at("mounted/m/kept"), "").unwrap();
        let say = |path: &Path, how| {
            let source = Source::HostPath { path: path.to_path_buf(), kind: HostPathType::Unset };
            volumes.reclaim(&source, how).map_err(|e| e.to_string())
        };
        let (recycle, delete) = (Reclaiming::Recycle, Reclaiming::Delete);
        for (path, how, why) in [
            (
                "link",
                recycle,
                "a symbolic link is on its path, and none is followed; name the directory that it leads to",
            ),
            (
                "link/d",
                recycle,
                "a symbolic link is on its path, and none is followed; name the directory that it leads to",
            ),
            (
                "link/d",
                delete,
                "a symbolic link is on its path, and none is followed; name the directory that it leads to",
            ),
            ("file", recycle, "it is not a directory, or became another file meanwhile"),
            ("mounted", recycle, "something is mounted in it; unmount that"),
            ("mounted", delete, "something is mounted in it; unmount that"),
            ("mounted/m", delete, "something is mounted in it; unmount that"),
        ] {
            let path = at(path);
            let wanted = format!("{} cannot be reclaimed: {why}", path.display());
            assert_eq!(say(&path, how), Err(wanted), "{how:?}");
        }
        for how in [recycle, delete] {
            assert!(say(Path::new("/"), how).is_err() && say(Path::new("//."), how).is_err());
            assert_eq!(say(&at("absent/below"), how), Ok(()));
        }
        assert!(vol_is_whole(scratch.path()) && at("mounted/kept").exists() && at("mounted/m/kept").exists());
        // The volume's own directory may be a mount, and a link is deleted itself.
        assert_eq!(say(&at("mounted/m"), recycle), Ok(()));
        assert!(!at("mounted/m/kept").exists() && at("mounted/kept").exists());
        assert_eq!(say(&at("link"), delete), Ok(()));
        assert!(vol_is_whole(scratch.path()) && !at("link").is_symlink());
    });
}

fn vol_is_whole(scratch: &Path) -> bool {
    scratch.join("vol/d/x").is_dir() && scratch.join("vol/l").is_symlink() && scratch.join("file").exists()
}
