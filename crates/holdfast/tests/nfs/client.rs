//! The embedded client against a real server: what programs see of an export, without a cluster around it.
use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustix::fs::{CWD, FileType, Mode, mknodat, statvfs};
use volumes::{NfsSource, Ownership, PodVolumes, Ready, Resolved, Settings, Source};

use crate::{
    common::until,
    server::{Server, attendants, mounts},
};

/// A mounted export. Dropping it unmounts.
struct Mounted {
    pods: tempfile::TempDir,
    volumes: PodVolumes,
    ready: Ready,
    at: PathBuf,
}

impl Mounted {
    fn new(server: &Server, options: &str) -> Self {
        Self::with(server, options, Settings::default())
    }

    fn with(server: &Server, options: &str, settings: Settings) -> Self {
        let pods = tempfile::Builder::new().prefix("holdfast-mounts-").tempdir().expect("temporary directory");
        let volumes = PodVolumes::new(pods.path().join("pods"), Arc::new(sys::RealSys))
            .with_program(env!("CARGO_BIN_EXE_holdfast").into())
            .with_settings(settings);
        let source = Source::Nfs(Box::new(NfsSource {
            server: server.addr.to_string(),
            path: server.path(),
            read_only: false,
            mount_options: vec![options.to_owned()],
        }));
        let resolved = Resolved { source, read_only: false, mount_options: Vec::new() };
        let ready = volumes.set_up("p", "v", &resolved, &Ownership::default());
        let ready = ready.unwrap_or_else(|e| panic!("{e}: {e:?}"));
        let at = ready.host_path.clone();
        Self { pods, volumes, ready, at }
    }

    fn join(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let gone = self.volumes.tear_down("p");
        if gone.is_err() {
            // What is removed next must not be what is mounted there.
            let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        }
        if !std::thread::panicking() {
            gone.expect("unmount");
            assert!(mounts(self.pods.path()).is_empty());
            until("the attendant ends", || attendants(self.pods.path()).is_empty().then_some(()));
        }
    }
}

/// Bytes that differ everywhere.
fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn programs_find_what_they_find_on_a_disk() {
    let server = Server::up();
    let m = Mounted::new(&server, "");
    let there = server.export();
    // Files.
    fs::write(m.join("f"), b"one").expect("write");
    assert_eq!(fs::read(there.join("f")).expect("read on the server"), b"one");
    let taken = OpenOptions::new().write(true).create_new(true).open(m.join("f"));
    assert_eq!(taken.expect_err("it is there").kind(), ErrorKind::AlreadyExists);
    let made = OpenOptions::new().write(true).create_new(true).mode(0o640).open(m.join("new")).expect("make");
    assert_eq!(made.metadata().expect("stat").mode() & 0o7777, 0o640);
    made.set_len(5000).expect("extend");
    assert_eq!(fs::metadata(there.join("new")).expect("stat").len(), 5000);
    made.set_len(7).expect("cut");
    assert_eq!(fs::metadata(m.join("new")).expect("stat").len(), 7);
    drop(made);
    OpenOptions::new().append(true).open(m.join("f")).expect("open").write_all(b" two").expect("append");
    assert_eq!(fs::read(m.join("f")).expect("read"), b"one two");
    // Attributes.
    fs::set_permissions(m.join("f"), fs::Permissions::from_mode(0o604)).expect("chmod");
    std::os::unix::fs::chown(m.join("f"), Some(12), Some(34)).expect("chown");
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    OpenOptions::new().write(true).open(m.join("f")).expect("open").set_modified(then).expect("utimes");
    let stat = fs::metadata(there.join("f")).expect("stat");
    assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid(), stat.mtime()), (0o604, 12, 34, 1_000_000));
    assert_eq!(fs::metadata(m.join("f")).expect("stat").ino(), stat.ino());
    // Names.
    fs::create_dir(m.join("d")).expect("mkdir");
    fs::rename(m.join("f"), m.join("d/g")).expect("rename");
    fs::hard_link(m.join("d/g"), m.join("h")).expect("link");
    assert_eq!(fs::metadata(m.join("h")).expect("stat").nlink(), 2);
    symlink("d/g", m.join("s")).expect("symlink");
    assert_eq!(fs::read_link(m.join("s")).expect("readlink"), Path::new("d/g"));
    assert_eq!(fs::read(m.join("s")).expect("through the link"), b"one two");
    assert_eq!(fs::remove_dir(m.join("d")).expect_err("full").kind(), ErrorKind::DirectoryNotEmpty);
    mknodat(CWD, m.join("pipe"), FileType::Fifo, Mode::RWXU, 0).expect("mkfifo");
    assert!(fs::symlink_metadata(there.join("pipe")).expect("stat").file_type().is_fifo());
    for name in ["d/g", "h", "s", "pipe", "new"] {
        fs::remove_file(m.join(name)).expect(name);
    }
    fs::remove_dir(m.join("d")).expect("rmdir");
    assert_eq!(fs::read_dir(&there).expect("list").count(), 0);
    // Room.
    let room = |p: &Path| statvfs(p).map(|s| s.f_blocks * s.f_frsize).expect("statfs");
    assert_eq!(room(&m.at), room(&there));
}

#[test]
fn many_names_and_large_files_arrive_whole() {
    let server = Server::up();
    let m = Mounted::new(&server, "");
    for n in 0..3000 {
        File::create(server.export().join(format!("a-rather-long-name-{n:05}"))).expect("make");
    }
    let mut names: Vec<String> = fs::read_dir(&m.at)
        .expect("list")
        .map(|e| e.expect("entry").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3000);
    // Odd sizes at odd places, so that pieces never fit.
    let data = pattern((5 << 20) + 4321, 7);
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(m.join("big")).expect("open");
    for (n, piece) in data.chunks(1_234_567).enumerate() {
        file.write_all_at(piece, (n * 1_234_567) as u64).expect("write");
    }
    file.sync_all().expect("fsync");
    assert!(fs::read(server.export().join("big")).expect("read on the server") == data);
    // What another client changes is seen by who opens the file then.
    drop(file);
    let other = pattern(data.len(), 9);
    fs::write(server.export().join("big"), &other).expect("write on the server");
    assert!(fs::read(m.join("big")).expect("read") == other);
    let mut file = File::open(m.join("big")).expect("open");
    file.seek(SeekFrom::Start(3_000_001)).expect("seek");
    let mut some = vec![0; 70_000];
    file.read_exact(&mut some).expect("read");
    assert!(some == other[3_000_001..3_070_001]);
}

#[test]
fn a_file_that_is_open_outlives_its_name() {
    let server = Server::up();
    let m = Mounted::new(&server, "");
    fs::write(m.join("f"), b"kept").expect("write");
    let mut open = File::open(m.join("f")).expect("open");
    fs::remove_file(m.join("f")).expect("remove");
    assert!(!m.join("f").exists());
    let mut text = String::new();
    open.read_to_string(&mut text).expect("read what was removed");
    assert_eq!(text, "kept");
    fs::write(m.join("g"), b"old").expect("write");
    let mut old = File::open(m.join("g")).expect("open");
    fs::write(m.join("n"), b"new").expect("write");
    fs::rename(m.join("n"), m.join("g")).expect("rename over it");
    text.clear();
    old.read_to_string(&mut text).expect("read what was replaced");
    assert_eq!((text.as_str(), fs::read(m.join("g")).expect("read")), ("old", b"new".to_vec()));
    drop((open, old));
    until("hidden names go with the last close", || {
        let names: Vec<_> =
            fs::read_dir(server.export()).expect("list").map(|e| e.expect("entry").file_name()).collect();
        (names == ["g"]).then_some(())
    });
}

#[test]
fn the_server_decides_by_user_and_groups() {
    let server = Server::up();
    let m = Mounted::new(&server, "");
    let file = server.export().join("f");
    fs::write(&file, b"x").expect("write");
    std::os::unix::fs::chown(&file, Some(1001), Some(2002)).expect("chown");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("chmod");
    let top = File::open(&m.at).expect("open");
    // Nobody but root may walk to the volume; in it, everybody is who he is.
    let reads = |uid: u32, groups: &str| {
        let shell = format!("cd /proc/self/fd/0 && exec setpriv --reuid={uid} --regid=3003 --groups={groups} cat f");
        let mut command = Command::new("sh");
        command.args(["-c", &shell]).stdin(top.try_clone().expect("dup")).stderr(Stdio::null());
        command.output().expect("run cat").status.success()
    };
    assert!(reads(1001, "3003"), "its owner");
    assert!(reads(1002, "2002"), "a member of its group");
    assert!(!reads(1002, "3003"), "a stranger");
    drop(top);
}

#[test]
fn nothing_that_was_synced_is_lost_with_the_server() {
    let mut server = Server::up();
    let m = Mounted::new(&server, "");
    let data = pattern(6 << 20, 3);
    let (first, second) = data.split_at(3 << 20);
    // In another process: starting a program from this one would sync its open files.
    let target = format!("of={}", m.join("f").display());
    let mut writer = Command::new("dd");
    writer.args([&target, "bs=64k", "iflag=fullblock", "conv=fsync"]).stdin(Stdio::piped()).stderr(Stdio::null());
    let mut writer = writer.spawn().expect("run dd");
    let mut input = writer.stdin.take().expect("piped");
    input.write_all(first).expect("feed dd");
    let there = server.export().join("f");
    until("the first half is on the server", || (fs::metadata(&there).ok()?.len() == first.len() as u64).then_some(()));
    server.kill();
    // As a crash of its machine would: what was not put on its disk is gone.
    File::create(&there).expect("cut it on the server");
    // This server's verifier, by which clients learn of a new life, is the second in which it starts.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    server.start();
    input.write_all(second).expect("feed dd");
    drop(input);
    assert!(writer.wait().expect("wait for dd").success(), "fsync fails");
    assert!(fs::read(&there).expect("read on the server") == data);
}

#[test]
fn who_is_killed_does_not_wait_for_the_server() {
    let server = Server::up();
    let m = Mounted::new(&server, "");
    fs::write(m.join("f"), b"x").expect("write");
    let open = OpenOptions::new().append(true).open(m.join("f")).expect("open");
    server.hang(true);
    let mut reader = {
        let mut dd = Command::new("dd");
        dd.args(["if=/dev/zero", "bs=1M", "count=1"]).stdout(open).stderr(Stdio::null());
        dd.spawn().expect("run dd")
    };
    let stuck = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", reader.id())).expect("stat");
        stat.contains("(dd) S ") || stat.contains("(dd) D ")
    };
    until("it waits for the server", || stuck().then_some(()));
    reader.kill().expect("kill");
    reader.wait().expect("it ends");
    // Nor does unmounting.
    drop(m);
    server.hang(false);
}

#[test]
fn who_asks_how_full_it_is_does_not_keep_it_mounted() {
    let server = Server::up();
    let settings = Settings { last_writes: Duration::from_secs(1), ..Settings::default() };
    let m = Mounted::with(&server, "", settings);
    assert!(m.volumes.measure(&m.ready).expect("it answers").total_bytes > 0);
    server.hang(true);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| m.volumes.measure(&m.ready));
        until("it waits for the server", || {
            let threads = fs::read_dir("/proc/self/task").expect("list").flatten();
            let mut waits = threads.filter_map(|t| fs::read_to_string(t.path().join("wchan")).ok());
            waits.any(|at| at.contains("request_wait_answer")).then_some(())
        });
        m.volumes.tear_down("p").expect("unmount");
        asked.join().expect("no panic").expect_err("nobody has answered");
    });
    server.hang(false);
}

#[test]
fn a_soft_mount_tells_an_error() {
    let mut server = Server::up();
    let m = Mounted::new(&server, "soft,timeo=5,retrans=1");
    fs::write(m.join("f"), b"x").expect("write");
    server.kill();
    assert_eq!(fs::write(m.join("g"), b"x").expect_err("nobody answers").raw_os_error(), Some(5));
    server.start();
    fs::write(m.join("g"), b"x").expect("the server is back");
}
