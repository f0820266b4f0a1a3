//! What every volume plugin must do, on any kernel.
//!
//! A new plugin takes part by a line in [`samples`]; the suite fails while a plugin has none.
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::Arc,
};

use git::Request;
use sys::{FakeSys, FileKind, Handle, Program, Ran, Reach, Sys, Tmpfs, Unmount, When};
use volumes::{
    CsiSource, FcDisk, FcSource, FileEntry, FlockerVolume, FsGroupPolicy, Growth, HostPathType, IscsiSource, Medium,
    Named, Ownership, PLUGINS, PodOf, PodVolumes, Ready, Reclaiming, Resolved, Settings, Source, VolumeError,
    plugin_for,
};

use crate::{DRIVER, FakeDriver, FakeTarget, TARGET, flex, flocker::FakeFlocker, gluster};

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
    Source::Files { files, in_memory, mount_points: BTreeSet::from(["inner/most".into()]), followed: false }
}

/// A `local` volume with nothing special about it.
pub fn local(path: PathBuf, read_only: bool) -> Source {
    Source::Local { path, read_only, fs_type: None, mount_options: Vec::new() }
}

const DEVICE: &str = "device";

/// Plugins whose volumes need somebody to serve them: they have their own suites, with their servers (`tests/nfs.rs`).
const NEED_SERVERS: [&str; 1] = ["kubernetes.io~nfs"];

/// A volume of the fake driver with nothing special about it.
pub fn driven(handle: &str) -> CsiSource {
    CsiSource {
        driver: DRIVER.into(),
        handle: handle.into(),
        name: format!("pv-{handle}"),
        ephemeral: false,
        block: false,
        read_only: false,
        fs_type: "tmpfs".into(),
        access_modes: vec!["ReadWriteOnce".into()],
        mount_options: Vec::new(),
        attributes: [("a".to_owned(), "1".to_owned())].into(),
        attaches: true,
        publish_context: [("port".to_owned(), "7".to_owned())].into(),
        stage_secret: None,
        publish_secret: None,
        expand_secret: None,
        pod: PodOf::default(),
        pod_info: false,
        tokens: Vec::new(),
        tokens_in_secrets: false,
        fs_group_policy: FsGroupPolicy::default(),
        republish: false,
    }
}

fn csi(source: CsiSource) -> Source {
    Source::Csi(Box::new(source))
}

/// Volumes of a kernel and a fake driver that mounts in it, below one directory.
struct Rig {
    sys: Arc<dyn Sys>,
    fake: Option<Arc<FakeSys>>,
    driver: Arc<FakeDriver>,
    pods: PathBuf,
    settings: Settings,
    flocker: Arc<FakeFlocker>,
}

impl Rig {
    fn new(sys: &Arc<dyn Sys>, fake: Option<&Arc<FakeSys>>, scratch: &Path) -> Self {
        let device = scratch.join("host").join(DEVICE);
        let driver = FakeDriver::new(sys.clone(), fake.cloned(), device);
        let addresses = vec![ADDRESS.to_owned()];
        let host = scratch.join("host");
        let settings = Settings {
            flex_dir: flex::dir(&host),
            glusterfs_client: Some(host.join(gluster::CLIENT)),
            addresses,
            ..Settings::default()
        };
        let flocker = FakeFlocker::new(ADDRESS, datasets(sys, fake, scratch));
        flocker.add("vol");
        Self { sys: sys.clone(), fake: fake.cloned(), driver, pods: scratch.join("kubelet/pods"), settings, flocker }
    }

    /// As a process has them that has just started.
    fn volumes(&self) -> PodVolumes {
        let volumes = PodVolumes::new(self.pods.clone(), self.sys.clone());
        let volumes = volumes.with_drivers(self.driver.clone()).with_flocker(self.flocker.clone());
        let host = self.pods.ancestors().nth(2).expect("below the scratch directory").join("host");
        volumes.with_settings(self.settings.clone()).with_program(host.join(CLONER))
    }

    /// Lets calls fail: those to the kernel, or those to the driver.
    fn fail(&self, of_driver: bool, nth: usize, when: When) {
        match (&self.fake, of_driver) {
            (Some(fake), false) => fake.fail(nth, when),
            _ => self.driver.fail(nth, when),
        }
    }

    fn fault_fired(&self) -> bool {
        self.driver.fault_fired() || self.fake.as_ref().is_some_and(|f| f.fault_fired())
    }

    fn pause(&self) {
        if let Some(fake) = &self.fake {
            fake.pause();
        }
    }

    fn resume(&self) {
        if let Some(fake) = &self.fake {
            fake.resume();
        }
    }
}

/// The address by which other systems know the machine.
const ADDRESS: &str = "192.0.2.7";

/// How Flocker's agent mounts datasets below `scratch`.
fn datasets(sys: &Arc<dyn Sys>, fake: Option<&Arc<FakeSys>>, scratch: &Path) -> Box<crate::flocker::Mounter> {
    let (sys, fake, above) = (sys.clone(), fake.cloned(), scratch.join("flocker"));
    Box::new(move |id, there| {
        if let Some(fake) = &fake {
            fake.pause();
        }
        let top = open_or_make(sys.as_ref(), &above);
        let path = above.join(id);
        match there {
            true => {
                let at = open_or_make(sys.as_ref(), &path);
                sys.mount_tmpfs(&at, &Tmpfs { size_bytes: None, mode: 0o755 }).expect("mounted");
            }
            false => sys.unmount(&top, OsStr::new(id), Unmount::Strict).expect("unmounted"),
        }
        if let Some(fake) = &fake {
            fake.resume();
        }
        path
    })
}

/// Where there is a device, volumes on it.
fn device_samples(sys: &dyn Sys, host: &Path) -> Vec<Sample> {
    let device = sys.open(&host.join(DEVICE)).is_ok();
    let sample = |name, source| Sample { name, source, then: None, keeps: None };
    let path = host.join(DEVICE);
    let all = vec![
        sample("device", local(path.clone(), false)),
        sample("raw device", Source::LocalDevice { path, read_only: false }),
        sample("driver's device", csi(CsiSource { block: true, ..driven("block") })),
        sample("iscsi", Source::Iscsi(Box::new(lun(1)))),
        sample("raw iscsi", Source::Iscsi(Box::new(IscsiSource { block: true, ..lun(1) }))),
        sample("fc", Source::Fc(Box::new(fc()))),
    ];
    if device { all } else { Vec::new() }
}

/// An iSCSI volume of [`FakeTarget`] with nothing special about it.
pub fn lun(lun: u32) -> IscsiSource {
    IscsiSource {
        name: format!("lun-{lun}"),
        portals: vec!["10.0.0.1:3260".into()],
        iqn: TARGET.into(),
        lun,
        interface: "default".into(),
        initiator: None,
        chap_discovery: false,
        chap_session: false,
        secret: None,
        fs_type: None,
        read_only: false,
        block: false,
        mount_options: Vec::new(),
    }
}

/// The disk of a fabric that [`add_device`] adds.
pub fn fc() -> FcSource {
    FcSource {
        name: "fabric".into(),
        disk: FcDisk::Lun { ports: vec!["50060e801049cfd1".into()], lun: 3 },
        fs_type: None,
        read_only: false,
        block: false,
        mount_options: Vec::new(),
    }
}

/// Plugins whose volumes a real kernel has only with somebody else's help.
const WITH_OTHERS: [&str; 2] = ["kubernetes.io~iscsi", "kubernetes.io~fc"];

/// Gives a fake kernel an empty device, disks of others, and programs, for [`check_plugins`] to use.
pub fn add_device(fake: &Arc<FakeSys>, host: &Path, bytes: u64) {
    FakeTarget::new(fake, false);
    flex::play(fake, host);
    fake.with_link("/dev/disk/by-path/pci-0000:41:00.0-fc-0x50060e801049cfd1-lun-3", "../../sdf");
    fake.with_file("/dev/sdf", FileKind::BlockDevice);
    fake.with_disk("/dev/sdf", bytes, false);
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
        plain("limited disk", Source::EmptyDir { medium: Medium::Disk, limit_bytes: Some(1 << 20) }),
        plain("memory", Source::EmptyDir { medium: Medium::Memory, limit_bytes: Some(1 << 20) }),
        plain("repository", git_repo()),
        on_host("host-dir", host_path("dir", HostPathType::Directory)),
        on_host("host-made", host_path("made/here", HostPathType::DirectoryOrCreate)),
        on_host("local", local(host.join("dir"), false)),
        Sample {
            then: Some(files(&[("a", "2"), ("sub/c", "2"), ("d", "2")], false)),
            ..plain("config", files(&[("a", "1"), ("sub/b", "1"), ("gone", "1")], false))
        },
        on_host("image", Source::Image { id: "sha256:1".into(), layers: vec![host.join("dir")] }),
        plain("driver's", csi(driven("files"))),
        on_host("driver's for a pod", {
            let attributes = [("own".to_owned(), "true".to_owned())].into();
            let fs_group_policy = FsGroupPolicy::Never;
            csi(CsiSource { ephemeral: true, attributes, fs_group_policy, attaches: false, ..driven("own") })
        }),
        plain("gluster's", Source::Glusterfs(Box::new(gluster::volume()))),
        plain("dataset", Source::Flocker(FlockerVolume { dataset: Named::Name("vol".into()), read_only: false })),
        plain("program's", Source::Flex(Box::new(flex::volume(flex::PLAIN)))),
        plain("program's for all", Source::Flex(Box::new(flex::volume(flex::SHARED)))),
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

/// In place of this program, where it is to clone a repository.
const CLONER: &str = "cloner";
const CLONED: &str = r#"{"Ok":{"commit":null,"entries":0}}"#;

/// What the program of that name says on a fake kernel.
pub(crate) fn cloned(program: &Program<'_>) -> Option<Ran> {
    let said = || Ran { status: Some(0), output: CLONED.into(), errors: Vec::new() };
    program.path.ends_with(CLONER).then(said)
}

fn git_repo() -> Source {
    let [repository, revision, directory] = ["git://server/repository", "", "."].map(String::from);
    Source::GitRepo(Box::new(Request { repository, revision, directory, most_bytes: None }))
}

/// Makes the files of the node that [`samples`] use.
pub fn prepare(sys: &dyn Sys, host: &Path) {
    let dir = open_or_make(sys, &host.join("dir"));
    sys.write_new(&dir, OsStr::new("kept"), b"precious", 0o600).expect("write a file of the node");
    drop(open_or_make(sys, &flex::attached(host)));
    drop(open_or_make(sys, &host.join(flex::DATA)));
    let above = open_or_make(sys, host);
    sys.write_new(&above, OsStr::new(gluster::CLIENT), gluster::script().as_bytes(), 0o755).expect("write a program");
    for (file, text) in flex::scripts(host) {
        let path = flex::dir(host).join(file);
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { continue };
        let above = open_or_make(sys, above);
        sys.write_new(&above, name, text.as_bytes(), 0o755).expect("write a program");
    }
    let cloner = format!("#!/bin/sh\necho '{CLONED}'\n");
    let host = open_or_make(sys, host);
    sys.write_new(&host, OsStr::new(CLONER), cloner.as_bytes(), 0o755).expect("write a program of the node");
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
            // A directory has its limit by a filesystem of its own, or by nobody where a fault said that there is none.
            usize::from(*medium == Medium::Memory || stat.mount_root)
        }
        Source::GitRepo(_) => {
            let seen = (stat.kind, stat.mode & 0o2777, stat.uid, stat.gid);
            assert_eq!(seen, (FileKind::Directory, 0o2777, 0, GROUP), "{name}");
            0
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
        Source::HostPath { .. } | Source::LocalDevice { .. } => 0,
        Source::Image { .. } => {
            assert!(names(sys, &ready.host_path).contains(&"kept".to_owned()), "{name}");
            assert!(ready.read_only, "{name}");
            1
        }
        // Other people's files stay theirs.
        Source::Glusterfs(_) => 1,
        Source::Flex(_) | Source::Flocker(_) => {
            assert_eq!(stat.gid, GROUP, "{name} is not the group's");
            1
        }
        Source::Nfs(_) => 1,
        Source::Iscsi(_) | Source::Fc(_) => {
            let block = matches!(source, Source::Iscsi(s) if s.block);
            assert_eq!(ready.device, block, "{name}");
            assert!(block || stat.gid == GROUP, "{name} is not the group's");
            usize::from(!block)
        }
        Source::Csi(source) => {
            if source.fs_group_policy != FsGroupPolicy::Never && !source.block {
                assert_eq!(stat.gid, GROUP, "{name} is not the group's");
            }
            assert_eq!(ready.device, source.block, "{name}");
            1
        }
        Source::Local { path, .. } => {
            assert_eq!(stat.gid, GROUP, "{name} is not the group's");
            usize::from(ready.host_path != *path)
        }
    };
    let own = ready.host_path.parent().expect("a volume has a parent");
    let elsewhere = matches!(source, Source::Local { path, .. } if ready.host_path == *path) || ready.device;
    if !matches!(source, Source::HostPath { .. } | Source::LocalDevice { .. }) && !elsewhere {
        assert_eq!(mounts(sys, own).len(), wanted_mounts, "{name}: mounts");
    }
}

type Step<'a> = &'a dyn Fn() -> Result<(), VolumeError>;

/// The life of one volume: made, changed, mounted by sub-path, released, torn down. `run` decides how a step is tried.
fn life(rig: &Rig, sample: &Sample, run: &dyn Fn(Step) -> Result<(), VolumeError>) {
    let (name, sys, pods) = (sample.name, &rig.sys, &rig.pods);
    let volumes = || rig.volumes();
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
    let sub_paths = [(0, "deep/er"), (1, "deep"), (0, "deep/er")];
    // What only shows files cannot make directories.
    let makes = !made.device && !matches!(sample.source, Source::Image { .. });
    for (index, sub_path) in sub_paths.into_iter().filter(|_| makes) {
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

fn check_gone(rig: &Rig, sample: &Sample, context: &str) {
    let (name, sys, pods) = (sample.name, rig.sys.as_ref(), rig.pods.as_path());
    let kept = rig.driver.leftovers();
    assert!(kept.is_empty(), "{name}, {context}: the driver still has {kept:?}");
    let plugins = pods.with_file_name("plugins");
    if let Some(fake) = &rig.fake {
        assert!(fake.attendants().is_empty() && fake.loops().is_empty(), "{name}, {context}: a LUN is still served");
    }
    assert!(mounts(sys, &plugins).is_empty(), "{name}, {context}: stages are left: {:?}", mounts(sys, &plugins));
    for place in [
        "csi/".to_owned() + DRIVER,
        "csi/volumeDevices/staging".into(),
        "csi/volumeDevices/publish".into(),
        "iscsi".into(),
    ] {
        let left = sys.open(&plugins.join("kubernetes.io").join(&place)).and_then(|dir| sys.list(&dir));
        assert!(left.as_ref().map_or(true, |l| l.is_empty()), "{name}, {context}: {left:?} is left at {place}");
    }
    assert!(mounts(sys, pods).is_empty(), "{name}, {context}: mounts are left: {:?}", mounts(sys, pods));
    if let Ok(dir) = sys.open(pods) {
        let left = sys.list(&dir).expect("list the pods directory");
        assert!(left.is_empty(), "{name}, {context}: {left:?} is left");
    }
    let attached = pods.ancestors().nth(2).map(|scratch| flex::attached(&scratch.join("host"))).expect("two above");
    assert_eq!(names(sys, &attached), [""; 0], "{name}, {context}: it is still attached");
    let attendants = rig.fake.as_ref().map(|fake| fake.attendants()).unwrap_or_default();
    assert!(attendants.is_empty(), "{name}, {context}: {attendants:?} live on");
    if let Some(kept) = &sample.keeps {
        assert_eq!(read(sys, kept), b"precious", "{name}, {context}: the node's file was touched");
    }
}

/// Runs every plugin on a kernel, below `scratch`, an empty directory.
pub fn check_plugins(sys: &Arc<dyn Sys>, scratch: &Path) {
    let host = scratch.join("host");
    let rig = Rig::new(sys, None, scratch);
    prepare(sys.as_ref(), &host);
    let mut samples = samples(&host);
    samples.extend(device_samples(sys.as_ref(), &host));
    let with_others = sys.open(&host.join(DEVICE)).is_ok();
    let has_sample = |name: &str| !NEED_SERVERS.contains(&name) && (with_others || !WITH_OTHERS.contains(&name));
    for plugin in PLUGINS.iter().filter(|p| has_sample(p.name())) {
        assert!(samples.iter().any(|s| plugin.accepts(&s.source)), "add a sample for {}", plugin.name());
    }
    for sample in &samples {
        let takers = PLUGINS.iter().filter(|p| p.accepts(&sample.source)).count();
        assert_eq!(takers, 1, "{} is accepted by {takers} plugins", sample.name);
        life(&rig, sample, &|step| {
            step()?;
            step()
        });
        check_gone(&rig, sample, "without faults");
        let plugin = plugin_for(&sample.source).expect("accepted above");
        plugin.tear_down(&rig.pods.join("never/was"), &rig.volumes().machine()).expect("tearing down nothing is fine");
    }
}

fn prepared(host: &Path) -> Arc<FakeSys> {
    let fake = Arc::new(FakeSys::default());
    add_device(&fake, host, 1 << 20);
    prepare(fake.as_ref(), host);
    fake
}

/// Lets every call of every plugin's life fail once, before and after taking effect: those to the kernel, then those to a
/// driver. The step is tried again; in a second sweep the pod is torn down at once instead, as after a crash.
pub fn sweep_faults() {
    let host = Path::new("/scratch/host");
    let devices = device_samples(prepared(host).as_ref(), host);
    for sample in samples(host).into_iter().chain(devices) {
        let driven = matches!(sample.source, Source::Csi(_));
        for of_driver in [false, true].into_iter().filter(|of_driver| driven || !of_driver) {
            for when in [When::Before, When::After] {
                let calls = (0..).take_while(|nth| survives(&sample, of_driver, *nth, when)).count();
                assert!(calls > 1, "{}: hardly a call was made", sample.name);
            }
        }
    }
}

/// One volume's lives with a fault at one call. False: there was no such call.
fn survives(sample: &Sample, of_driver: bool, nth: usize, when: When) -> bool {
    let host = Path::new("/scratch/host");
    let whose = if of_driver { "driver" } else { "kernel" };
    let context = format!("{when:?} call {nth} of the {whose}");
    let rig = rigged(host);
    rig.fail(of_driver, nth, when);
    let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| retried(&rig, sample)));
    match lived {
        Ok(true) => check_gone(&rig, sample, &context),
        Ok(false) => return false,
        Err(cause) => {
            eprintln!("{}: {context}", sample.name);
            std::panic::resume_unwind(cause);
        }
    }
    let rig = rigged(host);
    rig.fail(of_driver, nth, when);
    abandoned(&rig, sample, &context);
    true
}

fn rigged(host: &Path) -> Rig {
    let fake = prepared(host);
    let sys: Arc<dyn Sys> = fake.clone();
    Rig::new(&sys, Some(&fake), host.parent().expect("a parent"))
}

/// One life in which a failed step is tried again. Returns whether the fault happened.
fn retried(rig: &Rig, sample: &Sample) -> bool {
    life(rig, sample, &|step| {
        rig.resume();
        let result = step().or_else(|_| step());
        rig.pause();
        result
    });
    rig.fault_fired()
}

/// One life that ends at the fault: only the disk and the mount table are left to tear down from.
fn abandoned(rig: &Rig, sample: &Sample, context: &str) {
    let volumes = rig.volumes();
    let own = Ownership { fs_group: Some(GROUP), on_root_mismatch: false, ..Ownership::default() };
    let begin = || -> Result<(), VolumeError> {
        for source in [Some(&sample.source), sample.then.as_ref()].into_iter().flatten() {
            let resolved = Resolved { source: source.clone(), read_only: false, mount_options: Vec::new() };
            let ready = volumes.set_up(POD, "vol", &resolved, &own)?;
            if !ready.device {
                volumes.mount_path(POD, "c", 0, &ready, Some("deep"))?;
            }
        }
        Ok(())
    };
    let _ = begin();
    let restarted = rig.volumes();
    let swept = restarted.tear_down(POD).or_else(|_| restarted.tear_down(POD));
    swept.unwrap_or_else(|e| panic!("{}, {context}: tear down after a crash: {e:?}", sample.name));
    rig.pause();
    check_gone(rig, sample, &format!("crash, {context}"));
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
