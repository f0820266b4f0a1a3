//! Volumes of an NFS server: mounted by whichever client there is, mended, and given back whatever happens in between.
#![allow(clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use sys::{FakeSys, Ran, Sys, When};
use volumes::{Cancel, NfsSource, Ownership, PodVolumes, Ready, Reclaiming, Resolved, Source, VolumeError};

const DATA: &str = "/kubelet/pods/a/volumes/kubernetes.io~nfs/v/data";

/// Mountd and NFS in one, as far as finding an export goes: it has the directory `/export`.
fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || while answer(stream.as_ref().unwrap()).is_some() {});
        }
    });
    addr
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_be_bytes()).collect()
}

fn answer(mut stream: &TcpStream) -> Option<()> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).ok()?;
    let mut call = vec![0; (u32::from_be_bytes(head) & 0x7fff_ffff) as usize];
    stream.read_exact(&mut call).ok()?;
    let word = |at: usize| u32::from_be_bytes(call[at * 4..][..4].try_into().unwrap());
    let result = match (word(3), word(5)) {
        (100_005, 1) if call.windows(7).any(|w| w == b"/export") => words(&[0, 4, 0xabcd, 1, 1]),
        (100_005, 1) => words(&[13]),
        (100_003, 0) => Vec::new(),
        (100_003, 19) => words(&[0, 0, 1 << 20, 1 << 20, 1, 1 << 20, 1 << 20, 1, 8192, 0, 1, 0, 1, 0]),
        other => panic!("nobody should call {other:?}"),
    };
    let mut reply = words(&[word(0), 1, 0, 0, 0, 0]);
    reply.extend(result);
    stream.write_all(&(0x8000_0000 | reply.len() as u32).to_be_bytes()).ok()?;
    stream.write_all(&reply).ok()
}

struct World {
    sys: Arc<FakeSys>,
    addr: SocketAddr,
}

impl World {
    /// A kernel that can mount `/export` as this kind only.
    fn new(kind: &str) -> Self {
        let sys = Arc::new(FakeSys::default());
        sys.with_export(kind, "127.0.0.1:/export");
        sys.with_programs(|program| {
            assert_eq!(program.name.unwrap(), "holdfast-nfs");
            assert!(!program.input.is_empty() && program.files.len() == 1);
            Ok(Ran::default())
        });
        Self { sys, addr: server() }
    }

    fn source(&self, path: &str, more: &str) -> NfsSource {
        let port = self.addr.port();
        NfsSource {
            server: self.addr.ip().to_string(),
            path: path.into(),
            read_only: false,
            mount_options: vec![format!("port={port},mountport={port}"), more.into()],
        }
    }

    /// As a process that has just started has them.
    fn volumes(&self) -> PodVolumes {
        PodVolumes::new("/kubelet/pods".into(), self.sys.clone())
    }

    fn set_up(&self, source: NfsSource) -> Result<Ready, VolumeError> {
        set_up(&self.volumes(), source, &Cancel::default())
    }

    fn is_clean(&self) -> bool {
        self.sys.mounts().is_empty() && self.sys.attendants().is_empty() && self.sys.tree("/kubelet/pods").is_empty()
    }
}

fn set_up(volumes: &PodVolumes, source: NfsSource, cancel: &Cancel) -> Result<Ready, VolumeError> {
    let source = Source::Nfs(Box::new(source));
    let resolved = Resolved { source, read_only: false, mount_options: Vec::new() };
    volumes.set_up_while("a", "v", &resolved, &Ownership::default(), cancel)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text += &format!(": {error}");
        next = error.source();
    }
    text
}

#[test]
fn a_kernel_with_a_client_mounts_by_itself() {
    for kind in ["nfs4", "nfs"] {
        let w = World::new(kind);
        let ready = w.set_up(w.source("/export", "")).unwrap();
        assert_eq!(ready.host_path, Path::new(DATA));
        assert_eq!(w.sys.mounts().len(), 1);
        assert!(w.sys.attendants().is_empty());
        w.set_up(w.source("/export", "")).unwrap();
        assert_eq!(w.sys.mounts().len(), 1, "mounted again");
        w.volumes().tear_down("a").unwrap();
        assert!(w.is_clean());
    }
}

#[test]
fn a_kernel_without_one_is_served_by_an_attendant() {
    let w = World::new("fuse");
    w.set_up(w.source("/export", "")).unwrap();
    assert_eq!((w.sys.mounts().len(), w.sys.attendants().len()), (1, 1));
    // Another process finds it as it is.
    w.set_up(w.source("/export", "")).unwrap();
    assert_eq!((w.sys.mounts().len(), w.sys.attendants().len()), (1, 1));
    // Whose attendant was killed is mounted again.
    w.sys.kill_attendants();
    w.set_up(w.source("/export", "")).unwrap();
    assert_eq!((w.sys.mounts().len(), w.sys.attendants().len()), (1, 1));
    w.volumes().tear_down("a").unwrap();
    assert!(w.is_clean());
}

#[test]
fn read_only_is_the_mounts() {
    let w = World::new("fuse");
    let ready = w.set_up(w.source("/export", "ro")).unwrap();
    assert!(ready.read_only && w.sys.mounts()[0].read_only);
    w.volumes().tear_down("a").unwrap();
    let ready = w.set_up(NfsSource { read_only: true, ..w.source("/export", "") }).unwrap();
    assert!(ready.read_only && w.sys.mounts()[0].read_only);
}

#[test]
fn what_is_wrong_is_named_and_leaves_nothing() {
    let w = World::new("fuse");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let table = [
        (w.source("/other", ""), "127.0.0.1:/other cannot be mounted: the server denies access"),
        (w.source("/export", "fast"), "mount option \"fast\" is not known"),
        (w.source("/export", "vers=4.1"), "\"vers=4.1\" needs the kernel's NFS client"),
        (w.source("/export", &format!("mountport={nobody}")), "its mount service at 127.0.0.1:"),
        (w.source("/export", &format!("port={nobody}")), "Connection refused"),
        (NfsSource { server: "no such".into(), ..w.source("/export", "") }, "its name cannot be resolved"),
    ];
    for (source, words) in table {
        let error = w.set_up(source).unwrap_err();
        assert!(chain(&error).contains(words), "{}", chain(&error));
        assert!(matches!(error, VolumeError::Nfs { .. }));
        w.volumes().tear_down("a").unwrap();
        assert!(w.is_clean());
    }
}

#[test]
fn a_server_that_is_silent_is_given_up_with_its_pod() {
    let w = World::new("fuse");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let (volumes, cancel) = (w.volumes(), Cancel::default());
    let source = w.source("/export", &format!("mountport={port}"));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| set_up(&volumes, source, &cancel));
        let (held, _) = silent.accept().unwrap();
        cancel.cancel();
        assert!(matches!(waiting.join().unwrap(), Err(VolumeError::Cancelled)));
        drop(held);
    });
    assert!(begun.elapsed() < Duration::from_secs(4), "it waited for an answer");
    volumes.tear_down("a").unwrap();
    assert!(w.is_clean());
}

#[test]
fn every_fault_is_survived_without_a_leak() {
    for kind in ["nfs4", "fuse"] {
        for when in [When::Before, When::After] {
            for nth in 0.. {
                let w = World::new(kind);
                w.sys.fail(nth, when);
                let twice = |act: &dyn Fn() -> Result<(), VolumeError>| act().or_else(|_| act());
                twice(&|| w.set_up(w.source("/export", "")).map(drop)).unwrap();
                assert_eq!(w.sys.mounts().len(), 1, "{kind}, {when:?} call {nth}");
                twice(&|| w.volumes().tear_down("a")).unwrap();
                let fired = w.sys.fault_fired();
                assert!(w.is_clean(), "{kind}, {when:?} call {nth}: {:?}", w.sys.tree("/kubelet/pods"));
                if !fired {
                    assert!(nth > 15, "hardly a call was made");
                    break;
                }
                // The process dies at the fault: only the disk and the mount table are left.
                w.sys.fail(nth, when);
                let _ = w.set_up(w.source("/export", ""));
                twice(&|| w.volumes().tear_down("a")).unwrap();
                w.sys.heal();
                assert!(w.is_clean(), "crash, {kind}, {when:?} call {nth}: {:?}", w.sys.tree("/kubelet/pods"));
            }
        }
    }
}

#[test]
fn recycling_empties_the_export_and_unmounts_it() {
    let w = World::new("nfs4");
    let ready = w.set_up(w.source("/export", "")).unwrap();
    let top = w.sys.open(&ready.host_path).unwrap();
    w.sys.make_dir(&top, "d".as_ref(), 0o755).unwrap();
    w.sys.write_new(&top, ".f".as_ref(), b"old", 0o600).unwrap();
    let source = Source::Nfs(Box::new(w.source("/export", "")));
    w.volumes().reclaim(&source, Reclaiming::Recycle).unwrap();
    assert!(w.sys.list(&top).unwrap().is_empty());
    drop(top);
    w.volumes().tear_down("a").unwrap();
    assert!(w.is_clean(), "{:?}", w.sys.mounts());
    assert!(w.volumes().reclaim(&source, Reclaiming::Delete).is_err());
}
