//! Programs and attendants, on the real kernel.
use std::{
    ffi::{OsStr, OsString},
    io::ErrorKind,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sys::{Bounds, Program, Ran, RealSys, Sys};

const BOUNDS: Bounds = Bounds { time: Duration::from_secs(20), output_bytes: 1 << 16 };

fn shell(script: &str) -> [OsString; 2] {
    ["-c".into(), script.into()]
}

fn run(script: &str, bounds: &Bounds, cancelled: &dyn Fn() -> bool) -> std::io::Result<Ran> {
    let arguments = shell(script);
    let program = Program { input: b"a secret", ..Program::new(Path::new("/bin/sh"), &arguments) };
    RealSys.run(&program, bounds, cancelled)
}

#[test]
fn a_program_has_what_it_is_given_and_nothing_else() {
    let ran = run("cat; env | grep -v PWD= | grep -v _= >&2; exit 7", &BOUNDS, &|| false).unwrap();
    assert_eq!(ran.status, Some(7));
    assert_eq!(String::from_utf8_lossy(&ran.output), "a secret");
    assert_eq!(String::from_utf8_lossy(&ran.errors), "");
    let killed = run("kill -9 $$", &BOUNDS, &|| false).unwrap();
    assert_eq!(killed.status, None);
    // More than a pipe holds, and more than is kept.
    let loud = run("head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2", &BOUNDS, &|| false).unwrap();
    assert_eq!((loud.output.len(), loud.errors.len()), (BOUNDS.output_bytes, BOUNDS.output_bytes));
    let missing = RealSys.run(&Program::new(Path::new("/nowhere/x"), &[]), &BOUNDS, &|| false).unwrap_err();
    assert!(missing.kind() == ErrorKind::NotFound && missing.to_string().contains("/nowhere/x"), "{missing}");
}

#[test]
fn a_program_is_confined() {
    let arguments =
        shell("id -u; id -g; id -G; head -c 5000 /dev/zero >&3 || echo refused; grep NoNewPrivs /proc/self/status");
    let file = tempfile::tempfile().unwrap();
    let target = std::os::fd::AsRawFd::as_raw_fd(&file);
    let arguments = arguments.map(|a| a.to_string_lossy().replace(">&3", &format!(">&{target}")).into());
    let files = [std::os::fd::AsFd::as_fd(&file)];
    let program = Program {
        user: Some((65534, 65533)),
        file_bytes: Some(4096),
        files: &files,
        ..Program::new(Path::new("/bin/sh"), &arguments)
    };
    // dash has redirections of one digit only.
    let ran =
        if target < 10 { RealSys.run(&program, &BOUNDS, &|| false).unwrap() } else { panic!("descriptor {target}") };
    let said = String::from_utf8_lossy(&ran.output);
    assert!(said.starts_with("65534\n65533\n65533\n"), "{said}");
    assert!(said.contains("refused") && said.contains("NoNewPrivs:\t1"), "{said}");
}

#[test]
fn a_program_ends_with_its_time_or_when_nobody_wants_it() {
    let alive = |mark: &str| {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|p| std::fs::read(p.path().join("cmdline")).ok())
            .any(|line| String::from_utf8_lossy(&line).contains(mark))
    };
    let mark = format!("61{}", std::process::id());
    let short = Bounds { time: Duration::from_millis(100), ..BOUNDS };
    let late = run(&format!("sleep {mark} & sleep {mark}"), &short, &|| false).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut);
    let looks = AtomicUsize::new(0);
    let unwanted = run(&format!("sleep {mark}"), &BOUNDS, &|| looks.fetch_add(1, Ordering::Relaxed) > 2).unwrap_err();
    assert_eq!(unwanted.kind(), ErrorKind::Interrupted);
    // What it started in its group goes with it, once the kernel gets to it.
    let until = Instant::now() + Duration::from_secs(10);
    while alive(&mark) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!alive(&mark));
    // A child that keeps the outputs open does not keep the answer back.
    let ran = run("sleep 620 & echo $!", &BOUNDS, &|| false).unwrap();
    let child = String::from_utf8(ran.output).unwrap();
    assert_eq!(run(&format!("kill {child}"), &BOUNDS, &|| false).unwrap().status, Some(0));
}

#[test]
fn an_attendant_is_found_by_its_record_and_ends_when_asked() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = RealSys.open(scratch.path()).unwrap();
    let name = OsStr::new("server");
    assert_eq!(RealSys.attendant(&dir, name).unwrap(), None);
    assert!(RealSys.attendant_end(&dir, name).unwrap().is_none());
    RealSys.end(&dir, name).unwrap();
    let start = |script: &str| {
        let arguments = shell(script);
        RealSys.start(&Program::new(Path::new("/bin/sh"), &arguments), &dir, name).unwrap();
    };
    start("echo hello; exec sleep 600");
    let pid = RealSys.attendant(&dir, name).unwrap().expect("it lives");
    // It is the process of that number, and there is only ever one.
    start("exec sleep 601");
    assert_eq!(RealSys.attendant(&dir, name).unwrap(), Some(pid));
    // Its session is its own.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session: u32 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().parse().unwrap();
    assert_eq!(session, pid);
    let end = RealSys.attendant_end(&dir, name).unwrap().expect("it lives");
    let has_ended = |milliseconds: i64| {
        let wait = Timespec { tv_sec: 0, tv_nsec: milliseconds * 1_000_000 };
        poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&wait)).unwrap() == 1
    };
    assert!(!has_ended(0));
    RealSys.end(&dir, name).unwrap();
    assert!(has_ended(900));
    assert_eq!(RealSys.attendant(&dir, name).unwrap(), None);
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    // One that dies by itself is known to be gone, and another can take its place; one that does not listen is killed.
    start("exit 3");
    let until = Instant::now() + Duration::from_secs(10);
    while RealSys.attendant(&dir, name).unwrap().is_some() {
        assert!(Instant::now() < until, "its end was not noticed");
        std::thread::sleep(Duration::from_millis(5));
    }
    start("trap '' TERM; echo deaf; while :; do sleep 0.1; done");
    assert!(RealSys.attendant(&dir, name).unwrap().is_some());
    let log = scratch.path().join("server.log");
    while std::fs::read_to_string(&log).unwrap() != "deaf\n" {
        assert!(Instant::now() < until, "it says nothing");
        std::thread::sleep(Duration::from_millis(5));
    }
    RealSys.end(&dir, name).unwrap();
    assert_eq!(RealSys.attendant(&dir, name).unwrap(), None);
    let missing = RealSys.start(&Program::new(Path::new("/nowhere/x"), &[]), &dir, name).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert_eq!(RealSys.attendant(&dir, name).unwrap(), None);
}
