//! What every volume plugin must do, on any kernel.
//!
//! A new plugin takes part by a line in [`samples`]; the suite fails while a plugin has none.
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::Arc,
};

use sys::{FakeSys, FileKind, Handle, Reach, Sys, When};
use volumes::{
    FileEntry, Growth, HostPathType, Medium, Ownership, PLUGINS, PodVolumes, Ready, Reclaiming, Resolved, Source,
    VolumeError, plugin_for,
};

const POD: &str = "3f0c7e5e-0f3e-4f5e-9f51-0d4c5a1f2b3c";
const GROUP: u32 = 4711;

/// One volume to try, and what it may later change to.
pub struct Sample {
    pub name: &'static str,
    pub source: Source,
    pub then: Option<Source>,
    /// A file or directory of the node that must stay as it is.
    pub keeps: Option<PathBuf>,
}

fn files(entries: &[(&str, &str)], in_memory: bool) -> Source {
    let entry = |data: &str| FileEntry { data: data.as_bytes().to_vec(), mode: 0o640, uid: None };
    let files = entries.iter().map(|(path, data)| (PathBuf::from(path), entry(data))).collect();
    Source::Files { files, in_memory, mount_points: BTreeSet::from(["inner/most".into()]) }
}

/// A `local` volume with nothing special about it.
pub fn local(path: PathBuf, read_only: bool) -> Source {
    Source::Local { path, read_only, fs_type: None, mount_options: Vec::new() }
}

const DEVICE: &str = "device";

/// Where there is a device, volumes on it.
fn device_samples(sys: &dyn Sys, host: &Path) -> Vec<Sample> {
    let device = sys.open(&host.join(DEVICE)).is_ok();
    let sample = Sample { name: "device", source: local(host.join(DEVICE), false), then: None, keeps: None };
    device.then_some(sample).into_iter().collect()
}

/// Gives a fake kernel an empty device for [`check_plugins`] to use.
pub fn add_device(fake: &FakeSys, host: &Path, bytes: u64) {
    fake.with_file(host.join(DEVICE), FileKind::BlockDevice);
    fake.with_disk(host.join(DEVICE), bytes, false);
}

/// Volumes of all plugins; their host paths lie below `host`, which [`prepare`] fills.
pub fn samples(host: &Path) -> Vec<Sample> {
    let plain = |name, source| Sample { name, source, then: None, keeps: None };
    let on_host = |name, source| Sample { name, source, then: None, keeps: Some(host.join("dir/kept")) };
    let host_path = |path: &str, kind| Source::HostPath { path: host.join(path), kind };
    vec![
        plain("disk", Source::EmptyDir { medium: Medium::Disk, limit_bytes: None }),
        plain("memory", Source::EmptyDir { medium: Medium::Memory, limit_bytes: Some(1 << 20) }),
        on_host("host-dir", host_path("dir", HostPathType::Directory)),
        on_host("host-made", host_path("made/here", HostPathType::DirectoryOrCreate)),
        on_host("local", local(host.join("dir"), false)),
        Sample {
            then: Some(files(&[("a", "2"), ("sub/c", "2"), ("d", "2")], false)),
            ..plain("config", files(&[("a", "1"), ("sub/b", "1"), ("gone", "1")], false))
        },
        Sample { then: Some(files(&[], true)), ..plain("secret", files(&[("a", "1"), ("b", "1")], true)) },
    ]
}

fn open_or_make(sys: &dyn Sys, path: &Path) -> Handle {
    let mut at = sys.open(Path::new("/")).expect("open the root");
    for part in path.iter().skip(1) {
        let _ = sys.make_dir(&at, part, 0o755);
        at = sys.open_at(&at, Path::new(part), Reach::Beneath).expect("open a directory just made");
    }
    at
}

/// Makes the files of the node that [`samples`] use.
pub fn prepare(sys: &dyn Sys, host: &Path) {
    let dir = open_or_make(sys, &host.join("dir"));
    sys.write_new(&dir, OsStr::new("kept"), b"precious", 0o600).expect("write a file of the node");
}

fn read(sys: &dyn Sys, path: &Path) -> Vec<u8> {
    let file = sys.open(path).unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
    sys.read_file(&file).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
}

fn mounts(sys: &dyn Sys, dir: &Path) -> Vec<PathBuf> {
    sys.open(dir).and_then(|d| sys.mounts_below(&d)).unwrap_or_default()
}

/// Everything in a directory but the writer's own names.
fn names(sys: &dyn Sys, dir: &Path) -> Vec<String> {
    let opened = sys.open(dir).expect("open a volume");
    let entries = sys.list(&opened).expect("list a volume");
    let names = entries.into_iter().map(|e| e.name.into_string().expect("UTF-8"));
    let mut names: Vec<String> = names.filter(|n| !n.starts_with("..")).collect();
    names.sort();
    names
}

/// What a finished set-up must show, whatever happened before.
fn check_ready(sys: &dyn Sys, source: &Source, ready: &Ready, name: &str) {
    let at = sys.open(&ready.host_path).unwrap_or_else(|e| panic!("{name}: open {}: {e}", ready.host_path.display()));
    let stat = sys.stat(&at).expect("stat a volume");
    let wanted_mounts = match source {
        Source::EmptyDir { medium, .. } => {
            assert_eq!((stat.kind, stat.mode & 0o777), (FileKind::Directory, 0o777), "{name}");
            assert_eq!(stat.gid, GROUP, "{name} is not the group's");
            assert_ne!(stat.mode & 0o2000, 0, "{name} does not hand its group down");
            usize::from(*medium == Medium::Memory)
        }
        Source::Files { files, in_memory, .. } => {
            for (path, entry) in files {
                assert_eq!(read(sys, &ready.host_path.join(path)), entry.data, "{name}: {}", path.display());
            }
            let tops: BTreeSet<String> = files
                .keys()
                .filter_map(|p| p.iter().next()?.to_str().map(String::from))
                .chain(["inner".into()])
                .collect();
            assert_eq!(names(sys, &ready.host_path), Vec::from_iter(tops), "{name}");
            let own = sys.list(&at).expect("list").into_iter().filter(|e| e.name.to_string_lossy().starts_with(".."));
            assert_eq!(own.count(), 2, "{name}: old versions are left");
            usize::from(*in_memory)
        }
        Source::HostPath { .. } => 0,
        Source::Local { path, .. } => {
            assert_eq!(stat.gid, GROUP, "{name} is not the group's");
            usize::from(ready.host_path != *path)
        }
    };
    let own = ready.host_path.parent().expect("a volume has a parent");
    let elsewhere = matches!(source, Source::Local { path, .. } if ready.host_path == *path);
    if !matches!(source, Source::HostPath { .. }) && !elsewhere {
        assert_eq!(mounts(sys, own).len(), wanted_mounts, "{name}: mounts");
    }
}

type Step<'a> = &'a dyn Fn() -> Result<(), VolumeError>;

/// The life of one volume: made, changed, mounted by sub-path, released, torn down. `run` decides how a step is tried.
fn life(sys: &Arc<dyn Sys>, pods: &Path, sample: &Sample, run: &dyn Fn(Step) -> Result<(), VolumeError>) {
    let name = sample.name;
    let volumes = || PodVolumes::new(pods.to_path_buf(), sys.clone());
    let own = Ownership { fs_group: Some(GROUP), on_root_mismatch: false, ..Ownership::default() };
    let ready = std::cell::RefCell::new(None);
    for source in [Some(&sample.source), sample.then.as_ref()].into_iter().flatten() {
        let resolved = Resolved { source: source.clone(), read_only: false, mount_options: Vec::new() };
        let set_up = || volumes().set_up(POD, "vol", &resolved, &own).map(|made| *ready.borrow_mut() = Some(made));
        run(&set_up).unwrap_or_else(|e| panic!("{name}: set up: {e:?}"));
        let made: Ready = ready.borrow().clone().expect("set up returned");
        check_ready(sys.as_ref(), source, &made, name);
    }
    let made: Ready = ready.borrow().clone().expect("set up returned");
    for (index, sub_path) in [(0, "deep/er"), (1, "deep"), (0, "deep/er")] {
        let path = std::cell::RefCell::new(PathBuf::new());
        let pin = || volumes().mount_path(POD, "c", index, &made, Some(sub_path)).map(|p| *path.borrow_mut() = p);
        run(&pin).unwrap_or_else(|e| panic!("{name}: pin: {e:?}"));
        let id = |path: &Path| sys.open(path).and_then(|h| sys.stat(&h)).expect("stat").id();
        assert_eq!(id(&path.borrow()), id(&made.host_path.join(sub_path)), "{name}: pin of something else");
    }
    run(&|| volumes().release_container(POD, "c")).unwrap_or_else(|e| panic!("{name}: release: {e:?}"));
    let left = mounts(sys.as_ref(), &pods.join(POD).join("volume-subpaths"));
    assert!(left.is_empty(), "{name}: pins are left: {left:?}");
    run(&|| volumes().tear_down(POD)).unwrap_or_else(|e| panic!("{name}: tear down: {e:?}"));
}

fn check_gone(sys: &dyn Sys, pods: &Path, sample: &Sample, context: &str) {
    let name = sample.name;
    assert!(mounts(sys, pods).is_empty(), "{name}, {context}: mounts are left: {:?}", mounts(sys, pods));
    if let Ok(dir) = sys.open(pods) {
        let left = sys.list(&dir).expect("list the pods directory");
        assert!(left.is_empty(), "{name}, {context}: {left:?} is left");
    }
    if let Some(kept) = &sample.keeps {
        assert_eq!(read(sys, kept), b"precious", "{name}, {context}: the node's file was touched");
    }
}

/// Runs every plugin on a kernel, below `scratch`, an empty directory.
pub fn check_plugins(sys: &Arc<dyn Sys>, scratch: &Path) {
    let (host, pods) = (scratch.join("host"), scratch.join("pods"));
    prepare(sys.as_ref(), &host);
    let mut samples = samples(&host);
    samples.extend(device_samples(sys.as_ref(), &host));
    for plugin in PLUGINS {
        assert!(samples.iter().any(|s| plugin.accepts(&s.source)), "add a sample for {}", plugin.name());
    }
    for sample in &samples {
        let takers = PLUGINS.iter().filter(|p| p.accepts(&sample.source)).count();
        assert_eq!(takers, 1, "{} is accepted by {takers} plugins", sample.name);
        life(sys, &pods, sample, &|step| {
            step()?;
            step()
        });
        check_gone(sys.as_ref(), &pods, sample, "without faults");
        let plugin = plugin_for(&sample.source).expect("accepted above");
        plugin.tear_down(&pods.join("never/was"), sys.as_ref()).expect("tearing down nothing is fine");
    }
}

fn prepared(host: &Path) -> Arc<FakeSys> {
    let fake = Arc::new(FakeSys::default());
    add_device(&fake, host, 1 << 20);
    prepare(fake.as_ref(), host);
    fake
}

/// Lets every call of every plugin's life fail once, before and after taking effect. The step is tried again; in a second
/// sweep the pod is torn down at once instead, as after a crash.
pub fn sweep_faults() {
    let (host, pods) = (Path::new("/scratch/host"), Path::new("/scratch/pods"));
    let devices = device_samples(prepared(host).as_ref(), host);
    for sample in samples(host).into_iter().chain(devices) {
        for when in [When::Before, When::After] {
            for nth in 0.. {
                let fake = prepared(host);
                let sys: Arc<dyn Sys> = fake.clone();
                fake.fail(nth, when);
                let fired =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| retried(&sys, &fake, pods, &sample)));
                match fired {
                    Ok(true) => check_gone(fake.as_ref(), pods, &sample, &format!("{when:?} call {nth}")),
                    Ok(false) => break,
                    Err(cause) => {
                        eprintln!("{}: {when:?} call {nth}", sample.name);
                        std::panic::resume_unwind(cause);
                    }
                }
                abandoned(&sample, pods, host, nth, when);
            }
        }
    }
}

/// One life in which a failed step is tried again. Returns whether the fault happened.
fn retried(sys: &Arc<dyn Sys>, fake: &Arc<FakeSys>, pods: &Path, sample: &Sample) -> bool {
    life(sys, pods, sample, &|step| {
        fake.resume();
        let result = step().or_else(|_| step());
        fake.pause();
        result
    });
    fake.fault_fired()
}

/// One life that ends at the fault: only the disk and the mount table are left to tear down from.
fn abandoned(sample: &Sample, pods: &Path, host: &Path, nth: usize, when: When) {
    let fake = prepared(host);
    let sys: Arc<dyn Sys> = fake.clone();
    fake.fail(nth, when);
    let volumes = PodVolumes::new(pods.to_path_buf(), sys.clone());
    let own = Ownership { fs_group: Some(GROUP), on_root_mismatch: false, ..Ownership::default() };
    let begin = || -> Result<(), VolumeError> {
        for source in [Some(&sample.source), sample.then.as_ref()].into_iter().flatten() {
            let resolved = Resolved { source: source.clone(), read_only: false, mount_options: Vec::new() };
            let ready = volumes.set_up(POD, "vol", &resolved, &own)?;
            volumes.mount_path(POD, "c", 0, &ready, Some("deep"))?;
        }
        Ok(())
    };
    let _ = begin();
    let restarted = PodVolumes::new(pods.to_path_buf(), sys);
    let swept = restarted.tear_down(POD).or_else(|_| restarted.tear_down(POD));
    swept.unwrap_or_else(|e| panic!("{}, {when:?} call {nth}: tear down after a crash: {e:?}", sample.name));
    fake.pause();
    check_gone(fake.as_ref(), pods, sample, &format!("crash {when:?} call {nth}"));
}

/// Lets every call of growing a volume, before and after it is set up, fail once; a second attempt finishes it.
pub fn sweep_growth() {
    let (host, small, large) = (Path::new("/scratch/host"), 1 << 20, 3 << 20);
    let resolved = Resolved { source: local(host.join(DEVICE), false), read_only: false, mount_options: Vec::new() };
    for when in [When::Before, When::After] {
        for nth in 0.. {
            let fake = prepared(host);
            let volumes = PodVolumes::new("/scratch/pods".into(), fake.clone());
            let set_up = || volumes.set_up(POD, "vol", &resolved, &Ownership::default()).map(drop);
            let expand = || volumes.expand(POD, "vol", &resolved.source, large);
            assert!(expand().is_err(), "the medium is too small");
            fake.with_disk(host.join(DEVICE), large, false);
            assert_eq!(expand().expect("asked too early"), Growth::NotSetUp);
            fake.with_disk(host.join(DEVICE), small, false);
            set_up().expect("set up");
            fake.with_disk(host.join(DEVICE), large, false);
            fake.fail(nth, when);
            let grown = expand().or_else(|_| expand());
            let fired = fake.fault_fired();
            fake.heal();
            assert_eq!(grown.unwrap_or_else(|e| panic!("{when:?} call {nth}: {e:?}")), Growth::Done);
            assert_eq!(fake.filesystem_on(host.join(DEVICE)), Some(("ext4".into(), large)), "{when:?} call {nth}");
            assert_eq!(expand().expect("again"), Growth::Done);
            volumes.tear_down(POD).expect("tear down");
            assert!(fake.mounts().is_empty(), "{when:?} call {nth}: {:?}", fake.mounts());
            if !fired {
                assert!(nth > 3, "hardly a call was made");
                break;
            }
        }
    }
}

/// A released volume with files, directories and links in it, and beside it what must stay.
fn released(sys: &dyn Sys, host: &Path) -> Source {
    let at = |path: &str| open_or_make(sys, &host.join(path));
    let file = |dir: &Handle, name: &str| sys.write_new(dir, OsStr::new(name), b"old", 0o600).expect("write a file");
    file(&at("beside"), "kept");
    file(&at("volume/deep/er"), "f");
    let top = at("volume");
    file(&top, ".hidden");
    for (name, target) in
        [("out", host.join("beside")), ("up", PathBuf::from("..")), ("gone", PathBuf::from("/nowhere"))]
    {
        sys.make_link(&top, OsStr::new(name), &target).expect("make a link");
    }
    Source::HostPath { path: host.join("volume"), kind: HostPathType::Unset }
}

fn check_reclaimed(sys: &dyn Sys, host: &Path, how: Reclaiming, context: &str) {
    assert_eq!(read(sys, &host.join("beside/kept")), b"old", "{how:?}, {context}: a neighbour was touched");
    match how {
        Reclaiming::Recycle => assert_eq!(names(sys, &host.join("volume")), [""; 0], "{how:?}, {context}"),
        Reclaiming::Delete => assert!(sys.open(&host.join("volume")).is_err(), "{how:?}, {context}: it is still there"),
    }
}

/// Every way to reclaim a volume, on a kernel, below `scratch`, an empty directory.
pub fn check_reclaiming(sys: &Arc<dyn Sys>, scratch: &Path) {
    let volumes = PodVolumes::new(scratch.join("pods"), sys.clone());
    for how in [Reclaiming::Recycle, Reclaiming::Delete] {
        let host = scratch.join(format!("{how:?}"));
        let source = released(sys.as_ref(), &host);
        for context in ["once", "again"] {
            volumes.reclaim(&source, how).unwrap_or_else(|e| panic!("{how:?} {context}: {e:?}"));
            check_reclaimed(sys.as_ref(), &host, how, context);
        }
    }
}

/// Lets every call of every way to reclaim fail once, before and after taking effect; a second attempt finishes it.
pub fn sweep_reclaiming() {
    let host = Path::new("/scratch/host");
    for how in [Reclaiming::Recycle, Reclaiming::Delete] {
        for when in [When::Before, When::After] {
            for nth in 0.. {
                let fake = Arc::new(FakeSys::default());
                let source = released(fake.as_ref(), host);
                let volumes = PodVolumes::new("/scratch/pods".into(), fake.clone());
                fake.fail(nth, when);
                fake.resume();
                let result = volumes.reclaim(&source, how).or_else(|_| volumes.reclaim(&source, how));
                fake.pause();
                result.unwrap_or_else(|e| panic!("{how:?}, {when:?} call {nth}: {e:?}"));
                check_reclaimed(fake.as_ref(), host, how, &format!("{when:?} call {nth}"));
                if !fake.fault_fired() {
                    assert!(nth > 5, "hardly a call was made");
                    break;
                }
            }
        }
    }
}
