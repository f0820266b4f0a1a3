//! A runtime of its own for each test: private directory, network, cgroup; all gone at the end, whatever happens.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]
#![allow(dead_code, reason = "each test program uses its own part of this")]
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use network::Network;
use runtime::{
    ContainerId, ContainerSpec, ContainerState, Embedded, ImageInfo, ImageSource, Options, PodUid, Propagation,
    RegistryAuth, Resources, RunnableImage, Runtime, RuntimeError, SandboxSpec, Seccomp, User,
};

/// A static busybox: an installed one, or the one of the Debian package.
fn busybox() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("busybox");
            let given = std::env::var_os("BUSYBOX").map(PathBuf::from);
            let candidates = given.into_iter().chain([cache.clone(), "/bin/busybox".into(), "/usr/bin/busybox".into()]);
            if let Some(path) = candidates.into_iter().find(|p| is_static(p)) {
                return path;
            }
            let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let run = |program: &str, args: &[&str]| {
                let status = Command::new(program).args(args).current_dir(dir.path()).status().unwrap();
                assert!(status.success(), "{program} {args:?}");
            };
            run("apt-get", &["-q", "-o", "APT::Sandbox::User=root", "download", "busybox-static"]);
            let deb = fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.path()).next().unwrap();
            run("dpkg-deb", &["-x", deb.to_str().unwrap(), "x"]);
            let found = ["x/bin/busybox", "x/usr/bin/busybox"].map(|p| dir.path().join(p));
            let found = found.iter().find(|p| p.exists()).expect("no busybox in the package");
            // By rename: tests of other processes may look for it right now.
            fs::rename(found, &cache).unwrap();
            cache
        })
        .clone()
}

fn is_static(path: &Path) -> bool {
    fs::read(path).is_ok_and(|b| b.starts_with(b"\x7fELF") && !b.windows(9).take(4096).any(|w| w == b"ld-linux-"))
}

/// An image with busybox and the files that users expect.
fn make_root(dir: &Path) {
    for d in ["bin", "etc", "tmp", "root", "dev", "proc", "sys", "home/web"] {
        fs::create_dir_all(dir.join(d)).unwrap();
    }
    fs::copy(busybox(), dir.join("bin/busybox")).unwrap();
    for name in
        "sh cat ls id sleep echo env true false test stat touch mount mkdir rm ps kill tty stty head dd wc printf \
                 nc hostname grep readlink chmod seq yes trap pwd mknod df ip unshare"
            .split_whitespace()
    {
        symlink("busybox", dir.join("bin").join(name)).unwrap();
    }
    fs::write(dir.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/home/web:/bin/sh\n").unwrap();
    fs::write(dir.join("etc/group"), "root:x:0:\nweb:x:34:\nstaff:x:50:web\n").unwrap();
    fs::write(dir.join("etc/not-a-program"), "text").unwrap();
}

/// Two layers, so that overlays are more than one directory.
struct Images(RunnableImage);

#[async_trait]
impl ImageSource for Images {
    async fn runnable(&self, name: &str) -> Result<Option<RunnableImage>, RuntimeError> {
        let user = name.strip_prefix("box:").unwrap_or_default().to_owned();
        Ok(name.starts_with("box").then(|| RunnableImage { user, ..self.0.clone() }))
    }
    async fn info(&self, name: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        Err(RuntimeError::NoImage { image: name.to_owned() })
    }
    async fn may_use(&self, _: &str, _: &RegistryAuth) -> Result<bool, RuntimeError> {
        Ok(true)
    }
    async fn pull(&self, name: &str, _: &RegistryAuth) -> Result<ImageInfo, RuntimeError> {
        self.info(name).await.map(|_| unreachable!())
    }
    async fn list(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        Ok(Vec::new())
    }
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub runtime: Embedded,
    pub network: Arc<Network>,
    pub name: String,
}

pub const POD: &str = "0e9b1c1e-0000-4000-8000-000000000001";

impl World {
    pub async fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("hfrt").tempdir().unwrap();
        make_root(&dir.path().join("base"));
        fs::create_dir_all(dir.path().join("top/etc")).unwrap();
        fs::write(dir.path().join("top/etc/layer"), "top\n").unwrap();
        let name = dir.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_owned();
        let network = Arc::new(Network::open(dir.path().join("network"), network::Options::default()).unwrap());
        let runtime = open(dir.path(), &name, network.clone()).await;
        Self { dir, runtime, network, name }
    }

    /// A second runtime on the same directory, as after a restart of the daemon.
    pub async fn reopened(&self) -> Embedded {
        open(self.dir.path(), &self.name, self.network.clone()).await
    }

    pub async fn sandbox(&self) -> PodUid {
        let spec = sandbox();
        let status = self.runtime.run_sandbox(&spec).await.unwrap();
        assert!(status.ready);
        spec.uid
    }

    /// Makes and starts a container.
    pub async fn run(&self, spec: &ContainerSpec) -> ContainerId {
        let pod = PodUid(POD.to_owned());
        let id = self.runtime.create(&pod, spec).await.unwrap();
        self.runtime.start(&id).await.unwrap();
        id
    }

    pub fn spec(&self, script: &str) -> ContainerSpec {
        self.argv(&["sh", "-c", script])
    }

    pub fn argv(&self, command: &[&str]) -> ContainerSpec {
        ContainerSpec {
            name: "app".to_owned(),
            attempt: 0,
            image: "box".to_owned(),
            command: command.iter().map(|s| (*s).to_owned()).collect(),
            args: vec![],
            env: vec![],
            working_dir: None,
            mounts: vec![],
            devices: vec![],
            user: User::default(),
            resources: Resources::default(),
            privileged: false,
            read_only_root: false,
            no_new_privileges: false,
            cap_add: vec![],
            cap_drop: vec![],
            seccomp: Seccomp::Unconfined,
            tty: false,
            stdin: false,
            stdin_once: false,
            log_path: self.dir.path().join("logs/app/0.log"),
            pid_of: None,
            unmasked_proc: false,
        }
    }

    pub fn mount(&self, host: &str, container: &str, read_only: bool) -> runtime::Mount {
        runtime::Mount {
            host_path: self.dir.path().join(host),
            container_path: container.into(),
            read_only,
            recursive_read_only: false,
            group_map: None,
            propagation: Propagation::Private,
        }
    }

    pub async fn state(&self, id: &ContainerId) -> ContainerState {
        let pods = self.runtime.list().await.unwrap();
        let mut all = pods.into_iter().flat_map(|p| p.containers);
        all.find(|c| c.id == *id).expect("the container is listed").state
    }

    /// Waits for the end by events, as the node agent does.
    pub async fn exit(&self, id: &ContainerId) -> (i32, runtime::ExitReason) {
        let mut events = self.runtime.events();
        let wait = async {
            loop {
                match self.state(id).await {
                    ContainerState::Exited { exit_code, reason, .. } => return (exit_code, reason),
                    ContainerState::Unknown => panic!("unknown state"),
                    _ => drop(events.recv().await),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.expect("the container ends")
    }

    /// Texts of the log's entries.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.path().join("logs/app/0.log")).unwrap();
        text.lines().map(|l| l.splitn(4, ' ').nth(3).unwrap().to_owned() + "\n").collect()
    }

    /// Runs a script to its end and returns what it printed.
    pub async fn output(&self, spec: &ContainerSpec) -> String {
        let _ = fs::remove_dir_all(self.dir.path().join("logs"));
        let id = self.run(spec).await;
        let (code, reason) = self.exit(&id).await;
        let log = self.log();
        assert_eq!(code, 0, "{reason:?}: {log}");
        self.runtime.remove(&id).await.unwrap();
        log
    }

    /// Ends everything and checks that nothing is left.
    pub async fn finish(self) {
        self.runtime.remove_all().await.unwrap();
        assert_eq!(self.left(), Vec::<String>::new(), "left behind");
    }

    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        let place = self.dir.path().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|l| l.contains(place)).map(str::to_owned));
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let text = String::from_utf8_lossy(&line).replace('\0', " ");
            if text.starts_with("holdfast-shim") && text.contains(place) {
                left.push(format!("process {:?} {text}", process.file_name()));
            }
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let group = hierarchy.path().join(&self.name);
            left.extend(group.exists().then(|| group.display().to_string()));
        }
        for part in ["pods", "containers"] {
            let dir = self.dir.path().join("runtime").join(part);
            left.extend(fs::read_dir(dir).unwrap().flatten().map(|e| e.path().display().to_string()));
        }
        left
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A runtime of its own: this may run while a failed assertion unwinds the test's.
        let (runtime, network) = (self.runtime.clone(), self.network.clone());
        let clean = std::thread::spawn(move || {
            let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio.block_on(async {
                let _ = runtime.remove_all().await;
                let _ = network.remove_all().await;
            });
        });
        let _ = clean.join();
    }
}

async fn open(dir: &Path, name: &str, network: Arc<Network>) -> Embedded {
    let image = RunnableImage {
        id: "sha256:0123".to_owned(),
        repo_digests: vec!["box@sha256:4567".to_owned()],
        entrypoint: vec![],
        cmd: vec!["sh".to_owned()],
        env: vec!["PATH=/bin".to_owned(), "FROM_IMAGE=yes".to_owned()],
        layers: vec![dir.join("top"), dir.join("base")],
        ..RunnableImage::default()
    };
    let options = Options {
        dir: dir.join("runtime"),
        images: Arc::new(Images(image)),
        network,
        cgroup_root: name.to_owned(),
        self_exe: env!("CARGO_BIN_EXE_runtime-test-shim").into(),
    };
    Embedded::open(options).await.unwrap()
}

pub fn sandbox() -> SandboxSpec {
    SandboxSpec {
        uid: PodUid(POD.to_owned()),
        namespace: "default".to_owned(),
        name: "pod".to_owned(),
        hostname: "pod-host".to_owned(),
        host_network: false,
        host_pid: false,
        host_ipc: false,
        share_process_namespace: false,
        host_ports: vec![],
        sysctls: BTreeMap::new(),
        resources: Resources::default(),
    }
}

/// Waits until the container has printed `text`.
pub async fn await_log(world: &World, text: &str) {
    let until = Instant::now() + Duration::from_secs(20);
    while !world.log().contains(text) {
        assert!(Instant::now() < until, "{text:?} does not appear in {:?}", world.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
