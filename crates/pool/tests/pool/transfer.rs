//! Volumes as archives: out and in again, and nothing of what is broken.
use std::{
    fs,
    io::Write,
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    process::Command,
};

use pool::{Backend, Content, Id, Kind, NewVolume, Pool, PoolError};
use sys::{Disk, RealSys};

use crate::common::{Rig, new};

const MIB: u64 = 1 << 20;

fn exported(pool: &Pool, id: &Id) -> Vec<u8> {
    let (mut out, mut last) = (Vec::new(), (0, 0));
    pool.export(id, &mut out, &mut |done, total| {
        assert!(done >= last.0 && done <= total, "{done} of {total} after {last:?}");
        last = (done, total);
    })
    .expect("exported");
    assert_eq!(last.0, last.1, "all of it was told");
    out
}

fn import(pool: &Pool, name: &str, archive: &[u8]) -> Result<pool::Volume, PoolError> {
    pool.import(name, &mut &*archive, &mut |_, _| {})
}

fn left(rig: &Rig) -> usize {
    fs::read_dir(rig.path("pool/making")).expect("a directory").count()
}

#[test]
fn an_image_goes_out_and_comes_back_with_its_holes() {
    let rig = Rig::new();
    let pool = rig.pool();
    let raw = pool.create(&NewVolume { content: Content::Block, ..new("raw", 256 * MIB) }).expect("made");
    let image = rig.path("pool/volumes/raw/image");
    let file = fs::File::options().write(true).open(&image).expect("an image");
    for at in [0, 100 * MIB, 256 * MIB - 4096] {
        file.write_all_at(&[at as u8 | 1; 4096], at).expect("written");
    }
    let archive = exported(&pool, &raw.id);
    assert!((archive.len() as u64) < MIB, "{} bytes for three blocks", archive.len());
    let copy = import(&pool, "copy", &archive).expect("imported");
    assert_eq!((copy.bytes, &copy.content), (raw.bytes, &raw.content));
    let copied = rig.path("pool/volumes/copy/image");
    assert!(fs::read(&copied).expect("a copy") == fs::read(&image).expect("the original"));
    assert!(RealSys.image_size(&copied).expect("a copy").1 < MIB, "holes stay holes");
    assert_eq!(import(&pool, "copy", &archive).expect_err("is there").kind(), Kind::Exists);

    // Others read it too.
    let mut command = Command::new("tar");
    command.args(["-x", "-C"]).arg(rig.path("")).stdin(std::process::Stdio::piped());
    let mut tar = command.spawn().expect("tar runs");
    tar.stdin.take().expect("a pipe").write_all(&archive).expect("written");
    assert!(tar.wait().expect("ended").success());
    assert!(fs::read(rig.path("image")).expect("unpacked") == fs::read(&image).expect("the original"));
}

#[test]
fn a_volume_in_use_is_exported_as_it_is_at_one_instant() {
    let rig = Rig::new();
    let pool = rig.pool();
    let volume = pool.create(&new("v", 16 * MIB)).expect("made");
    let (staged, published) = (rig.path("staged"), rig.path("published"));
    rig.up(&pool, &volume.id, &staged, &published).expect("up");
    fs::write(published.join("page"), "data").expect("written");
    let archive = exported(&pool, &volume.id);
    fs::write(published.join("page"), "later").expect("not frozen");
    rig.down(&pool, &volume.id, &staged, &published).expect("down");
    assert_eq!(left(&rig), 0);
    let copy = import(&pool, "copy", &archive).expect("imported");
    rig.up(&pool, &copy.id, &staged, &published).expect("up");
    assert_eq!(fs::read_to_string(published.join("page")).expect("a copy"), "data");
    rig.down(&pool, &copy.id, &staged, &published).expect("down");
}

#[test]
fn files_of_a_directory_keep_what_they_are() {
    let rig = Rig::new();
    let pool = rig.pool();
    let volume = pool.create(&NewVolume { backend: Backend::Directory, ..new("v", 16 * MIB) }).expect("made");
    let data = rig.path("pool/volumes/v/data");
    fs::create_dir(data.join("sub")).expect("a directory");
    fs::write(data.join("sub/page"), "data").expect("written");
    fs::set_permissions(data.join("sub/page"), fs::Permissions::from_mode(0o640)).expect("a mode");
    std::os::unix::fs::chown(data.join("sub/page"), Some(1234), Some(5678)).expect("an owner");
    symlink("/etc", data.join("out")).expect("a link");
    drop(std::os::unix::net::UnixListener::bind(data.join("socket")).expect("a socket"));
    let archive = exported(&pool, &volume.id);
    import(&pool, "copy", &archive).expect("imported");
    let copy = rig.path("pool/volumes/copy/data");
    assert_eq!(fs::read_to_string(copy.join("sub/page")).expect("a copy"), "data");
    use std::os::unix::fs::MetadataExt;
    let found = fs::metadata(copy.join("sub/page")).expect("a copy");
    assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (0o640, 1234, 5678));
    assert_eq!(fs::read_link(copy.join("out")).expect("a link").to_str(), Some("/etc"));
    assert!(!copy.join("socket").exists());
}

#[test]
fn what_is_cut_off_or_damaged_leaves_nothing() {
    let rig = Rig::new();
    let pool = rig.pool();
    let image = pool.create(&new("i", 4 * MIB)).expect("made");
    let file = fs::File::options().write(true).open(rig.path("pool/volumes/i/image")).expect("an image");
    file.write_all_at(&[7; 8192], MIB).expect("written");
    let directory = pool.create(&NewVolume { backend: Backend::Directory, ..new("d", MIB) }).expect("made");
    fs::write(rig.path("pool/volumes/d/data/page"), [7; 3000]).expect("written");
    for id in [&image.id, &directory.id] {
        let archive = exported(&pool, id);
        // What follows the last member's header says nothing.
        let said = archive.len() - 1024 - 512;
        for cut in (0..said).step_by(256).chain([said - 1]) {
            let refused = import(&pool, "cut", &archive[..cut]).expect_err("cut off");
            assert!(matches!(refused.kind(), Kind::Invalid), "{cut} of {}: {refused}", archive.len());
            assert_eq!((left(&rig), pool.volumes().len()), (0, 2), "{cut}");
        }
    }
    // A map that leads out, numbers that are none.
    let archive = exported(&pool, &image.id);
    let map = archive.windows(10).position(|w| w == b"2\n1048576\n").expect("a map");
    for bad in [&b"2\n9048576\n"[..], b"2\n10485x6\n", b"9\n1048576\n", b"99999999999999999999\n"] {
        let mut archive = archive.clone();
        archive[map..map + bad.len()].copy_from_slice(bad);
        assert_eq!(import(&pool, "bad", &archive).expect_err("damaged").kind(), Kind::Invalid);
    }
    assert_eq!(left(&rig), 0);
    import(&pool, "whole", &archive).expect("the whole one");
}

#[test]
fn files_do_not_lead_out() {
    let rig = Rig::new();
    let pool = rig.pool();
    pool.create(&NewVolume { backend: Backend::Directory, ..new("d", MIB) }).expect("made");
    let record = fs::read(rig.path("pool/volumes/d/record.json")).expect("a record");
    let outside = rig.path("outside");
    fs::create_dir(&outside).expect("a directory");
    for evil in ["data/../../../../outside/page", "page", "data/link/page"] {
        let mut archive = tar::Builder::new(Vec::new());
        let mut add = |name: &str, kind, content: &[u8], link: Option<&str>| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            if let Some(link) = link {
                header.set_link_name(link).expect("a link");
            }
            // The builder itself would refuse such names.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            archive.append(&header, content).expect("added");
        };
        add("volume.json", tar::EntryType::Regular, &record, None);
        add("data/link", tar::EntryType::Symlink, b"", outside.to_str());
        add(evil, tar::EntryType::Regular, b"evil", None);
        add("end", tar::EntryType::Regular, b"", None);
        let refused = import(&pool, "evil", &archive.into_inner().expect("an archive")).expect_err("evil");
        assert_eq!(refused.kind(), Kind::Invalid, "{evil}: {refused}");
        assert_eq!((fs::read_dir(&outside).expect("a directory").count(), left(&rig)), (0, 0), "{evil}");
    }
}
