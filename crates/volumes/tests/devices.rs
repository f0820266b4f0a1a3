//! `local` volumes on block devices of the real kernel: formatted, mounted, grown.
#![allow(clippy::unwrap_used)]

use std::{io::Read, path::Path, process::Command, sync::Arc};

use flate2::read::GzDecoder;
use sys::{FakeSys, FileKind, RealSys, Sys};
use testkit::{LoopDevice, in_mount_namespace, plugin_suite::local};
use volumes::{Growth, Ownership, PodVolumes, Ready, Resolved, Source, VolumeError};

const MIB: u64 = 1 << 20;

fn set_up(volumes: &PodVolumes, pod: &str, source: &Source) -> Result<Ready, VolumeError> {
    let resolved = Resolved { source: source.clone(), read_only: false, mount_options: Vec::new() };
    volumes.set_up(pod, "v", &resolved, &Ownership::default())
}

fn room(ready: &Ready) -> u64 {
    let stat = rustix::fs::statvfs(&ready.host_path).unwrap();
    stat.f_blocks * stat.f_frsize
}

/// An empty XFS of 32 MiB, as nobody needs to have the program that makes one.
fn xfs(dir: &Path) -> LoopDevice {
    let mut image = Vec::new();
    GzDecoder::new(&include_bytes!("data/xfs-32m.img.gz")[..]).read_to_end(&mut image).unwrap();
    let device = LoopDevice::empty(dir, image.len() as u64);
    std::fs::write(device.path(), &image).unwrap();
    device
}

#[test]
fn an_xfs_grows_while_pods_use_it() {
    let scratch = tempfile::tempdir().unwrap();
    let device = xfs(scratch.path());
    in_mount_namespace(|| {
        let volumes = PodVolumes::new(scratch.path().join("pods"), Arc::new(RealSys));
        let source = local(device.path().into(), false);
        let read_only = local(device.path().into(), true);
        let expand = |bytes| volumes.expand("one", "v", &source, bytes);
        let one = set_up(&volumes, "one", &source).unwrap();
        let two = set_up(&volumes, "two", &read_only).unwrap();
        std::fs::write(one.host_path.join("f"), b"kept").unwrap();
        assert!(std::fs::write(two.host_path.join("f"), b"no").is_err(), "a read-only mount took a write");
        let before = room(&one);
        assert!(before < 32 * MIB);

        let refused = expand(64 * MIB).unwrap_err().to_string();
        assert!(refused.contains("the device has 33554432 bytes, which is less than the 67108864"), "{refused}");
        device.resize(64 * MIB);
        assert_eq!(expand(64 * MIB).unwrap(), Growth::Done);
        assert!(room(&one) > before + 30 * MIB, "{before} {}", room(&one));
        assert_eq!(room(&two), room(&one), "one filesystem");
        assert_eq!(std::fs::read(two.host_path.join("f")).unwrap(), b"kept");
        assert_eq!(expand(64 * MIB).unwrap(), Growth::Done, "nothing left to do");

        volumes.tear_down("one").unwrap();
        assert_eq!(std::fs::read(two.host_path.join("f")).unwrap(), b"kept", "the other pod's mount");
        volumes.tear_down("two").unwrap();
        assert_eq!(std::fs::read_dir(scratch.path().join("pods")).unwrap().count(), 0);
    });
}

#[test]
fn an_empty_device_is_formatted_once_and_grown() {
    if Command::new("/usr/sbin/mkfs.ext4").arg("-V").output().is_err() {
        eprintln!("skipped: no mkfs.ext4");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let device = LoopDevice::empty(scratch.path(), 16 * MIB);
    in_mount_namespace(|| {
        let volumes = PodVolumes::new(scratch.path().join("pods"), Arc::new(RealSys));
        let source = local(device.path().into(), false);
        let expand = |bytes| volumes.expand("p", "v", &source, bytes);
        let refused = set_up(&volumes, "r", &local(device.path().into(), true)).unwrap_err().to_string();
        assert!(refused.contains("unformatted disk"), "{refused}");
        let first = set_up(&volumes, "p", &source).unwrap();
        std::fs::write(first.host_path.join("f"), b"kept").unwrap();
        set_up(&volumes, "p", &source).unwrap();
        device.resize(48 * MIB);
        // Not every root may grow an ext4 that is in use; then it has to wait for the next start of a pod.
        let grown = match expand(48 * MIB) {
            Ok(grown) => grown,
            Err(refused) => {
                assert!(refused.to_string().contains("CAP_SYS_RESOURCE"), "{refused}");
                volumes.tear_down("p").unwrap();
                let grown = expand(48 * MIB).unwrap();
                set_up(&volumes, "p", &source).unwrap();
                grown
            }
        };
        assert_eq!(grown, Growth::Done);
        assert!(room(&first) > 36 * MIB, "{}", room(&first));
        assert_eq!(std::fs::read(first.host_path.join("f")).unwrap(), b"kept");
        volumes.tear_down("p").unwrap();
    });
}

#[test]
fn what_is_on_a_device_is_never_overwritten() {
    let fake = Arc::new(FakeSys::default());
    fake.with_file("/dev/d", FileKind::BlockDevice);
    fake.with_disk("/dev/d", MIB, true);
    let volumes = PodVolumes::new("/pods".into(), fake.clone());
    let with = |fs_type: Option<&str>| Source::Local {
        path: if fake.open(Path::new("/dev/e")).is_ok() { "/dev/e".into() } else { "/dev/d".into() },
        read_only: false,
        fs_type: fs_type.map(str::to_owned),
        mount_options: Vec::new(),
    };
    let refused = |fs_type: Option<&str>| set_up(&volumes, "p", &with(fs_type)).unwrap_err().to_string();
    assert!(refused(None).contains("it holds data"), "{}", refused(None));
    // Cut off while formatting; the next pod knows nothing of that.
    let mark = Path::new("/pods/p/volumes/kubernetes.io~local-volume/v/formatting");
    fake.with_file(mark, FileKind::File);
    set_up(&volumes, "p", &with(Some("xfs"))).unwrap();
    assert_eq!(fake.filesystem_on("/dev/d"), Some(("xfs".into(), MIB)));
    assert!(fake.open(mark).is_err(), "the mark is left");
    volumes.tear_down("p").unwrap();

    fake.with_file("/dev/e", FileKind::BlockDevice);
    fake.with_disk("/dev/e", MIB, false);
    assert!(refused(Some("ntfs; reboot")).contains("fsType \"ntfs; reboot\" is none of"));
    set_up(&volumes, "p", &with(Some("xfs"))).unwrap();
    assert_eq!(fake.filesystem_on("/dev/e"), Some(("xfs".into(), MIB)));
    volumes.tear_down("p").unwrap();
    let wrong = refused(Some("ext4"));
    assert!(wrong.contains("failed to mount the volume as \"ext4\", it already contains xfs"), "{wrong}");
    assert_eq!(fake.filesystem_on("/dev/e").unwrap().0, "xfs");
    volumes.tear_down("p").unwrap();
    set_up(&volumes, "p", &with(None)).unwrap();
    volumes.tear_down("p").unwrap();
}
