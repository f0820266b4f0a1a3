//! Disks of a fabric: found by their names, joined paths first, looked for anew; and one mounted for real.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use sys::{FakeSys, FileKind, Ran, RealSys};
use testkit::{LoopDevice, in_mount_namespace, plugin_suite::fc};
use volumes::{FcDisk, FcSource, Growth, Ownership, PodVolumes, Ready, Resolved, Source, VolumeError};

const MIB: u64 = 1 << 20;

fn set_up(volumes: &PodVolumes, pod: &str, source: &FcSource) -> Result<Ready, VolumeError> {
    let source = Source::Fc(Box::new(source.clone()));
    let resolved = Resolved { source, read_only: false, mount_options: Vec::new() };
    volumes.set_up(pod, "v", &resolved, &Ownership::default())
}

fn disk(fake: &FakeSys, name: &str) {
    fake.with_file(Path::new("/dev").join(name), FileKind::BlockDevice);
    fake.with_disk(Path::new("/dev").join(name), MIB, false);
}

fn raw(disk: FcDisk) -> FcSource {
    FcSource { disk, block: true, ..fc() }
}

#[test]
fn disks_are_found_by_their_names() {
    let fake = Arc::new(FakeSys::default());
    let volumes = PodVolumes::new("/pods".into(), fake.clone());
    let found = |source: &FcSource| {
        let ready = set_up(&volumes, "p", source).map(|ready| ready.host_path);
        volumes.tear_down("p").unwrap();
        ready
    };
    for name in ["sda", "sdb", "sdc", "sdd", "dm-7"] {
        disk(&fake, name);
    }
    let by_path = |name: &str, target: &str| fake.with_link(Path::new("/dev/disk/by-path").join(name), target);
    by_path("fc-0x1000-lun-3", "../../sda");
    by_path("pci-0000:41:00.1-fc-0x1000-lun-33", "../../sdb");
    by_path("pci-0000:41:00.0-fc-0x2000-lun-0", "../../sdc");
    by_path("pci-0000:41:00.0-fc-0x2000-lun-0-part1", "../../sdc1");
    by_path("ip-10.0.0.1:3260-iscsi-iqn.a:fc-0x3000-lun-0", "../../sdd");
    fake.with_link("/dev/disk/by-id/scsi-3600508b4 00", "../../sdd");
    fake.with_link("/dev/disk/by-id/scsi-ACME_0001", "../../sdd");

    let lun = |ports: &[&str], lun| raw(FcDisk::Lun { ports: ports.iter().map(|p| (*p).into()).collect(), lun });
    assert_eq!(found(&lun(&["1000"], 3)).unwrap(), Path::new("/dev/sda"));
    assert_eq!(found(&lun(&["9999", "2000"], 0)).unwrap(), Path::new("/dev/sdc"));
    let ids = |ids: &[&str]| raw(FcDisk::Ids(ids.iter().map(|p| (*p).into()).collect()));
    assert_eq!(found(&ids(&["none", "ACME_0001"])).unwrap(), Path::new("/dev/sdd"));
    let missing = found(&lun(&["1000"], 4)).unwrap_err().to_string();
    assert!(
        missing.contains("no fc disk found") && missing.contains("fc-0x1000-lun-4; check fc.targetWWNs"),
        "{missing}"
    );
    assert!(found(&lun(&["3000"], 0)).is_err(), "a disk of another kind");
    let missing = found(&ids(&["ACME"])).unwrap_err().to_string();
    assert!(missing.contains("/dev/disk/by-id has no scsi-ACME; check fc.wwids"), "{missing}");

    // One of several paths to a disk is joined with others.
    fake.with_dir("/sys/block/dm-7/slaves/sdc");
    assert_eq!(found(&lun(&["1000", "2000"], 0)).unwrap(), Path::new("/dev/dm-7"));
    fake.without("/dev/disk/by-id/scsi-ACME_0001");
    fake.with_link("/dev/disk/by-id/scsi-ACME_0001", "../../dm-7");
    assert_eq!(found(&ids(&["ACME_0001"])).unwrap(), Path::new("/dev/dm-7"));
}

#[test]
fn the_kernel_is_asked_to_look_again() {
    let fake = Arc::new(FakeSys::default());
    fake.with_content("/sys/class/scsi_host/host0/scan", b"");
    fake.with_content("/sys/class/scsi_host/host5/scan", b"");
    let volumes = PodVolumes::new("/pods".into(), fake.clone());
    assert!(set_up(&volumes, "p", &fc()).is_err());
    assert_eq!(fake.content("/sys/class/scsi_host/host0/scan"), b"- - -");
    let kernel = Arc::downgrade(&fake);
    fake.with_settings(move |path, _| {
        let fake = kernel.upgrade().unwrap();
        if path.ends_with("host5/scan") && !fake.has("/dev/sdf") {
            disk(&fake, "sdf");
            for file in ["delete", "rescan"] {
                fake.with_content(format!("/sys/block/sdf/device/{file}"), b"");
            }
            fake.with_link("/dev/disk/by-path/fc-0x50060e801049cfd1-lun-3", "../../sdf");
        }
    });
    let ready = set_up(&volumes, "p", &fc()).unwrap();
    assert_eq!(ready.host_path, Path::new("/pods/p/volumes/kubernetes.io~fc/v/data"));
    assert_eq!(fake.filesystem_on("/dev/sdf"), Some(("ext4".into(), MIB)));
    let grow = || volumes.expand("p", "v", &Source::Fc(Box::new(fc())), 2 * MIB);
    assert!(grow().unwrap_err().to_string().contains("which is less than"));
    fake.with_disk("/dev/sdf", 2 * MIB, false);
    assert_eq!(grow().unwrap(), Growth::Done);
    assert_eq!(fake.content("/sys/block/sdf/device/rescan"), b"1", "the size is asked for anew");
    volumes.tear_down("p").unwrap();
    assert_eq!(fake.content("/sys/block/sdf/device/delete"), b"1");
    assert!(fake.leftovers("/pods").is_empty());
}

/// Two paths to one disk, and another disk. Returns what programs were run, which end with this status.
fn with_paths(fake: &Arc<FakeSys>, status: i32) -> Arc<Mutex<Vec<String>>> {
    let programs = Arc::new(Mutex::new(Vec::new()));
    for (number, name) in ["sda", "sdb", "sdc"].into_iter().enumerate() {
        disk(fake, name);
        fake.with_link(format!("/dev/disk/by-path/fc-0x{}000-lun-0", number + 1), &format!("../../{name}"));
        fake.with_content(format!("/sys/block/{name}/device/delete"), b"");
        fake.with_content(format!("/sys/block/{name}/dev"), format!("8:{}\n", number * 16).as_bytes());
    }
    for path in ["sda", "sdb"] {
        fake.with_dir(Path::new("/sys/block/dm-7/slaves").join(path));
    }
    disk(fake, "dm-7");
    fake.with_content("/sys/block/dm-7/dev", b"253:7\n");
    fake.with_link("/dev/disk/by-id/scsi-36005", "../../sda");
    for program in ["multipath", "blockdev"] {
        fake.with_content(Path::new("/sbin").join(program), b"");
    }
    let log = programs.clone();
    fake.with_programs(move |program| {
        let arguments: Vec<_> = program.arguments.iter().map(|a| a.to_string_lossy()).collect();
        let name = program.path.file_name().unwrap().to_string_lossy();
        log.lock().unwrap().push(format!("{name} {}", arguments.join(" ")));
        Ok(Ran { status: Some(status), ..Ran::default() })
    });
    programs
}

fn is_removed(fake: &FakeSys, disk: &str) -> bool {
    fake.content(format!("/sys/block/{disk}/device/delete")) == b"1"
}

#[test]
fn a_disk_goes_from_the_machine_with_the_last_pod_that_has_it() {
    let fake = Arc::new(FakeSys::default());
    let programs = with_paths(&fake, 0);
    let volumes = PodVolumes::new("/pods".into(), fake.clone());
    let lun = |port: &str| FcSource { disk: FcDisk::Lun { ports: vec![port.into()], lun: 0 }, ..fc() };
    assert_eq!(set_up(&volumes, "raw", &raw(lun("1000").disk)).unwrap().host_path, Path::new("/dev/dm-7"));
    // The same disk by another of its names, and another disk.
    set_up(&volumes, "named", &FcSource { disk: FcDisk::Ids(vec!["36005".into()]), ..fc() }).unwrap();
    set_up(&volumes, "other", &lun("3000")).unwrap();
    volumes.tear_down("raw").unwrap();
    assert!(!is_removed(&fake, "sda") && programs.lock().unwrap().is_empty(), "{programs:?}");
    // By a process that has just started.
    let volumes = PodVolumes::new("/pods".into(), fake.clone());
    volumes.tear_down("named").unwrap();
    assert!(is_removed(&fake, "sda") && is_removed(&fake, "sdb") && !is_removed(&fake, "sdc"));
    let done = ["multipath -f /dev/dm-7", "blockdev --flushbufs /dev/sda", "blockdev --flushbufs /dev/sdb"];
    assert_eq!(*programs.lock().unwrap(), done);
    volumes.tear_down("other").unwrap();
    assert!(is_removed(&fake, "sdc") && fake.leftovers("/pods").is_empty());
}

#[test]
fn a_disk_that_somebody_else_has_stays() {
    type Use<'a> = (&'a str, &'a dyn Fn(&FakeSys));
    let has: [Use<'_>; 6] = [
        ("mounted", &|fake| {
            let mounts = b"29 1 8:32 / /data rw shared:1 - ext4 /dev/sdc rw\n";
            fake.with_content("/proc/self/mountinfo", mounts);
        }),
        ("a part is mounted", &|fake| {
            fake.with_content("/sys/block/sdc/sdc1/dev", b"8:33");
            fake.with_content("/proc/self/mountinfo", b"29 1 8:33 / /data rw shared:1 - ext4 /dev/sdc1 rw\n");
        }),
        ("by a filesystem with a number of its own", &|fake| {
            fake.with_content("/proc/self/mountinfo", b"29 1 0:44 / /data rw shared:1 - btrfs /dev/sdc rw\n");
        }),
        ("of a logical volume", &|fake| fake.with_dir("/sys/block/sdc/holders/dm-9")),
        ("memory", &|fake| fake.with_content("/proc/swaps", b"Filename Type\n/dev/sdc partition 1 0 -2\n")),
        ("nobody", &|fake| {
            fake.with_content("/proc/self/mountinfo", b"29 1 8:3 / /data rw shared:1 - ext4 /dev/sdc9 rw\n");
        }),
    ];
    for (what, prepare) in has {
        let fake = Arc::new(FakeSys::default());
        with_paths(&fake, 0);
        prepare(&fake);
        let volumes = PodVolumes::new("/pods".into(), fake.clone());
        set_up(&volumes, "p", &raw(FcDisk::Lun { ports: vec!["3000".into()], lun: 0 })).unwrap();
        volumes.tear_down("p").unwrap();
        assert_eq!(is_removed(&fake, "sdc"), what == "nobody", "{what}");
        assert!(fake.leftovers("/pods").is_empty());
    }
    // What multipathd does not give up keeps its paths.
    let fake = Arc::new(FakeSys::default());
    with_paths(&fake, 1);
    let volumes = PodVolumes::new("/pods".into(), fake.clone());
    set_up(&volumes, "p", &raw(FcDisk::Ids(vec!["36005".into()]))).unwrap();
    volumes.tear_down("p").unwrap();
    assert!(!is_removed(&fake, "sda") && !is_removed(&fake, "sdb"));
}

/// A name in `/dev/disk/by-path`; it goes with this.
struct Link(PathBuf);

impl Drop for Link {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        // Not those that others use.
        for dir in self.0.ancestors().skip(1).take(2) {
            let _ = fs::remove_dir(dir);
        }
    }
}

#[test]
fn a_device_of_the_real_kernel_is_formatted_and_mounted_by_such_a_name() {
    let scratch = tempfile::tempdir().unwrap();
    let device = LoopDevice::empty(scratch.path(), 16 * MIB);
    let port = format!("{:016x}", std::process::id());
    fs::create_dir_all("/dev/disk/by-path").unwrap();
    let link = Link(format!("/dev/disk/by-path/fc-0x{port}-lun-0").into());
    symlink(Path::new("../..").join(device.path().file_name().unwrap()), &link.0).unwrap();
    in_mount_namespace(|| {
        let volumes = PodVolumes::new(scratch.path().join("pods"), Arc::new(RealSys));
        let source = FcSource { disk: FcDisk::Lun { ports: vec![port.clone()], lun: 0 }, ..fc() };
        let first = set_up(&volumes, "one", &source).unwrap();
        fs::write(first.host_path.join("f"), b"kept").unwrap();
        let reads = set_up(&volumes, "two", &FcSource { read_only: true, ..source.clone() }).unwrap();
        assert_eq!(fs::read(reads.host_path.join("f")).unwrap(), b"kept");
        assert!(fs::write(reads.host_path.join("f"), b"no").is_err(), "a read-only mount took a write");
        let raw = set_up(&volumes, "raw", &FcSource { block: true, ..source.clone() }).unwrap();
        assert!(raw.device && raw.host_path == device.path(), "{raw:?}");
        for pod in ["one", "two", "raw"] {
            volumes.tear_down(pod).unwrap();
        }
        let again = set_up(&volumes, "one", &source).unwrap();
        assert_eq!(fs::read(again.host_path.join("f")).unwrap(), b"kept");
        volumes.tear_down("one").unwrap();
    });
}
