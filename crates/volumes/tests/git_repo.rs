//! What the `gitRepo` plugin does around the process that clones, on the fake kernel.
#![allow(clippy::unwrap_used)]

use std::{
    ffi::OsStr,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use git::Request;
use sys::{FakeSys, FileKind, Program, Ran, Sys, confine::NOBODY};
use volumes::{Cancel, Next, Ownership, PodVolumes, Ready, Resolved, Settings, Source, VolumeError};

const DIR: &str = "/kubelet/pods/u/volumes/kubernetes.io~git-repo/v";
const CLONED: &str = r#"{"Ok":{"commit":"c0ffee","entries":2}}"#;

struct World {
    sys: Arc<FakeSys>,
    runs: Arc<AtomicUsize>,
    settings: Settings,
}

impl World {
    /// `answer`: how a clone ends; its half is left behind in any case.
    fn new(answer: impl Fn(usize) -> io::Result<&'static str> + Send + Sync + 'static) -> Self {
        let (sys, runs) = (Arc::new(FakeSys::default()), Arc::new(AtomicUsize::new(0)));
        let (kernel, count) = (Arc::downgrade(&sys), runs.clone());
        sys.with_programs(move |program: &Program<'_>| {
            let told = String::from_utf8_lossy(program.input).into_owned();
            assert!(told.contains("s3cret") && program.arguments.len() == 1, "{told}");
            assert!(!format!("{:?}{:?}", program.arguments, program.environment).contains("s3cret"));
            let kernel = kernel.upgrade().unwrap();
            let clone = kernel.open(&Path::new(DIR).join("clone")).unwrap();
            assert_eq!(kernel.stat(&clone).unwrap().uid, NOBODY);
            assert!(kernel.list(&clone).unwrap().is_empty(), "it is begun anew");
            kernel.write_new(&clone, OsStr::new("README"), b"text", 0o666).unwrap();
            kernel.write_new(&clone, OsStr::new("run"), b"text", 0o6777).unwrap();
            kernel.make_link(&clone, OsStr::new("link"), Path::new("/etc")).unwrap();
            for file in ["README", "run", "link"] {
                let at = kernel.open_at(&clone, Path::new(file), sys::Reach::Child).unwrap();
                kernel.set_owner(&at, Some(NOBODY), Some(NOBODY)).unwrap();
            }
            let output = answer(count.fetch_add(1, Ordering::Relaxed))?;
            Ok(Ran { status: Some(0), output: output.into(), errors: b"s3cret".into() })
        });
        Self { sys, runs, settings: Settings::default() }
    }

    fn set_up_while(&self, repository: &str, cancel: &Cancel) -> Result<Ready, VolumeError> {
        let [repository, revision, directory] = [repository, "", "."].map(String::from);
        let source = Source::GitRepo(Box::new(Request { repository, revision, directory, most_bytes: None }));
        let resolved = Resolved { source, read_only: false, mount_options: Vec::new() };
        let own = Ownership { fs_group: Some(7), ..Ownership::default() };
        let volumes = PodVolumes::new("/kubelet/pods".into(), self.sys.clone()).with_settings(self.settings.clone());
        volumes.set_up_while("u", "v", &resolved, &own, cancel)
    }

    fn set_up(&self) -> Result<Ready, VolumeError> {
        self.set_up_while("https://me:s3cret@server/x", &Cancel::default())
    }

    fn left(&self) -> Vec<String> {
        let entries = self.sys.open(Path::new(DIR)).and_then(|dir| self.sys.list(&dir)).unwrap_or_default();
        entries.into_iter().map(|e| e.name.into_string().unwrap()).collect()
    }
}

#[test]
fn a_clone_becomes_roots_and_the_groups_and_is_made_once() {
    let world = World::new(|_| Ok(CLONED));
    let ready = world.set_up().unwrap();
    assert_eq!(ready.host_path, Path::new(DIR).join("data"));
    for (file, owner, mode) in [("", 0, 0o2777), ("README", 0, 0o664), ("run", 0, 0o775)] {
        let stat = world.sys.open(&ready.host_path.join(file)).and_then(|at| world.sys.stat(&at)).unwrap();
        assert_eq!((stat.uid, stat.gid, stat.mode), (owner, 7, mode), "{file}");
    }
    let data = world.sys.open(&ready.host_path).unwrap();
    let link = world.sys.stat_at(&data, OsStr::new("link")).unwrap();
    assert_eq!((link.kind, link.uid), (FileKind::Link, 0));
    // What the pod does to it stays, also for a process that was started later.
    world.sys.remove_file(&data, OsStr::new("README")).unwrap();
    world.set_up().unwrap();
    assert_eq!(world.runs.load(Ordering::Relaxed), 1);
    assert!(world.sys.open(&ready.host_path.join("README")).is_err());
}

#[test]
fn what_fails_leaves_nothing_tells_no_secret_and_is_begun_anew() {
    let failed = r#"{"Err":{"field":"revision","why":"not there"}}"#;
    let world = World::new(move |nth| match nth {
        0 => Ok(failed),
        1 => Ok(""),
        2 => Err(io::ErrorKind::TimedOut.into()),
        3 => Err(io::ErrorKind::Interrupted.into()),
        _ => Ok(CLONED),
    });
    for words in [
        "clone of https://server/x failed: gitRepo.revision: not there",
        "clone of https://server/x failed: gitRepo.repository: the process that clones ended with status 0",
        "clone of https://server/x failed: the process that clones failed: timed out",
        "the pod is ending",
    ] {
        let error = world.set_up().unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(matches!(error.next(), Next::Retry { .. }) && !format!("{error:?}").contains("s3cret"), "{error:?}");
        assert_eq!(world.left(), [""; 0], "{words}");
    }
    world.set_up().unwrap();
}

#[test]
fn cve_2025_1767_what_may_not_be_cloned_is_refused_before_anything_is_made() {
    let mut world = World::new(|_| panic!("nothing is started"));
    world.settings.git_dirs = vec!["/srv/git".into()];
    for repository in
        ["/etc", "/srv/git/../x", "file:///kubelet/pods/u", "./x", "ext::sh -c id", "ssh://-x/y", "--upload-pack=x"]
    {
        let error = world.set_up_while(repository, &Cancel::default()).unwrap_err();
        assert!(error.to_string().starts_with("gitRepo.repository: "), "{error}");
        assert_eq!((error.next(), world.left()), (Next::GiveUp, Vec::new()), "{repository}");
    }
}

#[test]
fn a_pod_that_ends_waits_for_no_clone() {
    let world = World::new(|_| panic!("nothing is started"));
    let cancel = Cancel::default();
    cancel.cancel();
    let error = world.set_up_while("https://me:s3cret@server/x", &cancel).unwrap_err();
    assert!(matches!(error, VolumeError::Cancelled), "{error:?}");
    assert_eq!(world.left(), [""; 0]);
}
