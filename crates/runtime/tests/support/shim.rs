//! The least program whose copy of itself can serve as a shim, and (`daemon DIR`) a daemon to be killed.
use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, sync::Arc};

use async_trait::async_trait;
use runtime::{
    ContainerSpec, Embedded, ImageInfo, ImageSource, Options, PodUid, RegistryAuth, Resources, RunnableImage, Runtime,
    RuntimeError, SandboxSpec, Seccomp, User,
};

fn main() -> ExitCode {
    if let Some(code) = runtime::maybe_run_shim() {
        return code;
    }
    let args: Vec<_> = std::env::args().collect();
    let [_, mode, dir] = &args[..] else {
        eprintln!("this program is only run by the runtime's tests");
        return ExitCode::FAILURE;
    };
    assert_eq!(mode, "daemon");
    let tokio = tokio::runtime::Runtime::new().expect("an async runtime");
    tokio.block_on(daemon(dir.into()));
    ExitCode::SUCCESS
}

/// One image, unpacked in `base`.
struct OneImage(PathBuf);

#[async_trait]
impl ImageSource for OneImage {
    async fn runnable(&self, _: &str) -> Result<Option<RunnableImage>, RuntimeError> {
        let env = vec!["PATH=/bin".to_owned()];
        Ok(Some(RunnableImage { env, layers: vec![self.0.join("base")], ..RunnableImage::default() }))
    }
    async fn info(&self, _: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        Ok(None)
    }
    async fn may_use(&self, _: &str, _: &RegistryAuth) -> Result<bool, RuntimeError> {
        Ok(true)
    }
    async fn pull(&self, name: &str, _: &RegistryAuth) -> Result<ImageInfo, RuntimeError> {
        Err(RuntimeError::NoImage { image: name.to_owned() })
    }
    async fn list(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        Ok(Vec::new())
    }
}

/// Runs containers one after another for ever, until killed. Says so after the first.
async fn daemon(dir: PathBuf) {
    let name = dir.file_name().and_then(|n| n.to_str()).expect("a directory with a name").to_owned();
    let network = network::Network::open(dir.join("network"), network::Options::default()).expect("a network");
    let options = Options {
        dir: dir.join("runtime"),
        images: Arc::new(OneImage(dir.clone())),
        network: Arc::new(network),
        cgroup_root: name,
        self_exe: std::env::current_exe().expect("a path of its own"),
    };
    let runtime = Embedded::open(options).await.expect("a runtime");
    for round in 0.. {
        let uid = PodUid(format!("pod-{round}"));
        runtime.run_sandbox(&sandbox(&uid)).await.expect("a sandbox");
        let id = runtime.create(&uid, &container(&dir, round)).await.expect("a container");
        runtime.start(&id).await.expect("a running container");
        if round == 0 {
            println!("{}", id.0);
        } else {
            runtime.remove_sandbox(&uid).await.expect("removal");
        }
    }
}

fn sandbox(uid: &PodUid) -> SandboxSpec {
    SandboxSpec {
        uid: uid.clone(),
        namespace: "default".to_owned(),
        name: uid.0.clone(),
        hostname: uid.0.clone(),
        host_network: false,
        host_pid: false,
        host_ipc: false,
        share_process_namespace: true,
        host_ports: vec![],
        sysctls: BTreeMap::new(),
        resources: Resources::default(),
    }
}

fn container(dir: &std::path::Path, round: u32) -> ContainerSpec {
    ContainerSpec {
        name: "app".to_owned(),
        attempt: 0,
        image: "image".to_owned(),
        command: ["sh", "-c", "while :; do echo tick; sleep 0.05; done"].map(str::to_owned).to_vec(),
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
        seccomp: Seccomp::RuntimeDefault,
        tty: false,
        stdin: false,
        stdin_once: false,
        log_path: dir.join(format!("logs/{round}.log")),
        pid_of: None,
        unmasked_proc: false,
    }
}
