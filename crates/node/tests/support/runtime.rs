//! A runtime without processes: it remembers what it was told, and containers end when the test says.
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use runtime::*;
use tokio::sync::broadcast;

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<String, SandboxStatus>,
    specs: BTreeMap<ContainerId, ContainerSpec>,
    calls: Vec<String>,
    /// Exit codes that the next runs of a container end with at once.
    ends: BTreeMap<String, Vec<i32>>,
    /// Calls that fail, once each.
    faults: Vec<String>,
    /// Containers that are never made.
    stuck: Vec<String>,
}

pub struct FakeRuntime {
    state: Mutex<State>,
    news: broadcast::Sender<RuntimeEvent>,
}

impl FakeRuntime {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), news: broadcast::channel(64).0 })
    }
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }
    pub fn fail_once(&self, call: &str) {
        self.state().faults.push(call.into());
    }
    pub fn never_makes(&self, container: &str) {
        self.state().stuck.push(container.into());
    }
    pub fn ends_with(&self, container: &str, codes: &[i32]) {
        self.state().ends.insert(container.into(), codes.to_vec());
    }
    pub fn is_empty(&self) -> bool {
        self.state().sandboxes.is_empty()
    }
    pub fn spec(&self, container: &str) -> Option<ContainerSpec> {
        self.state().specs.values().find(|s| s.name == container).cloned()
    }
    /// The host path of a mount.
    pub fn mounted(&self, container: &str, path: &str) -> Option<PathBuf> {
        let spec = self.spec(container)?;
        spec.mounts.into_iter().find(|m| m.container_path.to_str() == Some(path)).map(|m| m.host_path)
    }
    /// Ends a running container.
    pub fn end(&self, name: &str, code: i32) {
        self.change(|c| c.name == name, |c| c.state = exited(code));
    }
    fn note(&self, call: String) -> Result<(), RuntimeError> {
        let mut state = self.state();
        state.calls.push(call.clone());
        match state.faults.iter().position(|f| *f == call) {
            Some(i) => {
                state.faults.remove(i);
                Err(RuntimeError::Other("on purpose".into()))
            }
            None => Ok(()),
        }
    }
    fn change(&self, which: impl Fn(&ContainerStatus) -> bool, what: impl Fn(&mut ContainerStatus)) {
        let mut state = self.state();
        for sandbox in state.sandboxes.values_mut() {
            for c in sandbox.containers.iter_mut().filter(|c| which(c)) {
                what(c);
                // Nobody may be listening yet.
                let _ = self.news.send(RuntimeEvent { pod: sandbox.spec.uid.clone(), container: Some(c.id.clone()) });
            }
        }
    }
    fn name(&self, id: &ContainerId) -> Result<String, RuntimeError> {
        let state = self.state();
        let mut all = state.sandboxes.values().flat_map(|s| &s.containers);
        all.find(|c| c.id == *id).map(|c| c.name.clone()).ok_or_else(|| RuntimeError::NoContainer(id.0.clone()))
    }
}

fn exited(exit_code: i32) -> ContainerState {
    let reason = if exit_code == 0 { ExitReason::Completed } else { ExitReason::Error };
    ContainerState::Exited { started_at: Timestamp::now(), finished_at: Timestamp::now(), exit_code, reason }
}

fn info(name: &str) -> ImageInfo {
    ImageInfo {
        imported: false,
        everybodys: !name.starts_with("private"),
        id: "sha256:0".into(),
        repo_digests: Vec::new(),
        repo_tags: vec![name.into()],
        size_bytes: 1,
        user: None,
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn run_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxStatus, RuntimeError> {
        self.note("sandbox".into())?;
        let status = SandboxStatus {
            spec: spec.clone(),
            ips: vec![[127, 0, 0, 1].into()],
            created_at: Timestamp::now(),
            ready: true,
            containers: Vec::new(),
        };
        self.state().sandboxes.insert(spec.uid.0.clone(), status.clone());
        Ok(status)
    }
    async fn remove_sandbox(&self, uid: &PodUid) -> Result<(), RuntimeError> {
        self.note("remove sandbox".into())?;
        self.state().sandboxes.remove(&uid.0);
        Ok(())
    }
    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.state().sandboxes.values().cloned().collect())
    }
    async fn status(&self, uid: &PodUid) -> Result<Option<SandboxStatus>, RuntimeError> {
        Ok(self.state().sandboxes.get(&uid.0).cloned())
    }
    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.news.subscribe()
    }
    async fn image(&self, name: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        Ok((name != "absent:1").then(|| info(name)))
    }
    async fn image_layers(&self, name: &str) -> Result<Option<ImageLayers>, RuntimeError> {
        Ok((name != "absent:1").then(|| ImageLayers { id: info(name).id, layers: vec!["/".into()] }))
    }
    /// Images called `private...` are here, and for whoever has the password `right`.
    async fn may_use(&self, _: &str, auth: &RegistryAuth) -> Result<bool, RuntimeError> {
        Ok(auth.entries.iter().any(|(_, _, password)| password == "right"))
    }
    async fn pull(&self, name: &str, auth: &RegistryAuth) -> Result<ImageInfo, RuntimeError> {
        self.note(format!("pull {name}"))?;
        if name.starts_with("private") && !self.may_use(name, auth).await? {
            let (unreachable, source) = (name.contains("unreachable"), "authorization failed".into());
            return Err(RuntimeError::Pull { image: name.into(), unreachable, source });
        }
        Ok(info(name))
    }
    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        Ok(Vec::new())
    }
    async fn create(&self, pod: &PodUid, spec: &ContainerSpec) -> Result<ContainerId, RuntimeError> {
        self.note(format!("create {}#{}", spec.name, spec.attempt))?;
        if self.state().stuck.contains(&spec.name) {
            std::future::pending::<()>().await;
        }
        let id = ContainerId(format!("{}-{}", spec.name, spec.attempt));
        let mut state = self.state();
        state.specs.insert(id.clone(), spec.clone());
        let sandbox = state.sandboxes.get_mut(&pod.0).ok_or_else(|| RuntimeError::NoSandbox(pod.0.clone()))?;
        sandbox.containers.push(ContainerStatus {
            id: id.clone(),
            name: spec.name.clone(),
            attempt: spec.attempt,
            image: spec.image.clone(),
            image_id: "sha256:0".into(),
            created_at: Timestamp::now(),
            state: ContainerState::Created,
            user: (0, 0, Vec::new()),
        });
        Ok(id)
    }
    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let name = self.name(id)?;
        self.note(format!("start {name}"))?;
        let end = self.state().ends.get_mut(&name).filter(|e| !e.is_empty()).map(|e| e.remove(0));
        let running = ContainerState::Running { started_at: Timestamp::now(), pid: 1 };
        let next = end.map_or(running, exited);
        self.change(|c| c.id == *id, |c| c.state = next.clone());
        Ok(())
    }
    async fn stop(&self, id: &ContainerId, _: Duration) -> Result<(), RuntimeError> {
        let name = self.name(id)?;
        self.note(format!("stop {name}"))?;
        self.change(|c| c.id == *id, |c| c.state = exited(143));
        Ok(())
    }
    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.note(format!("remove {}", id.0))?;
        for sandbox in self.state().sandboxes.values_mut() {
            sandbox.containers.retain(|c| c.id != *id);
        }
        Ok(())
    }
    async fn remount(&self, id: &ContainerId, _: &[runtime::Mount]) -> Result<(), RuntimeError> {
        self.note(format!("remount {}", id.0))
    }
    async fn exec(&self, id: &ContainerId, _: &ExecSpec) -> Result<Session, RuntimeError> {
        Err(RuntimeError::NotRunning(id.0.clone()))
    }
    async fn exec_sync(&self, _: &ContainerId, command: &[String], _: Duration) -> Result<ExecOutput, RuntimeError> {
        self.note(format!("exec {}", command.join(" ")))?;
        Ok(ExecOutput { exit_code: i32::from(command[0] == "false"), output: Vec::new() })
    }
    async fn attach(&self, id: &ContainerId, _: bool) -> Result<Session, RuntimeError> {
        Err(RuntimeError::NotRunning(id.0.clone()))
    }
    async fn dial(&self, uid: &PodUid, _: u16) -> Result<tokio::net::TcpStream, RuntimeError> {
        Err(RuntimeError::NoSandbox(uid.0.clone()))
    }
    async fn reopen_log(&self, _: &ContainerId) -> Result<(), RuntimeError> {
        Ok(())
    }
    async fn usage(&self, _: &ContainerId) -> Result<Usage, RuntimeError> {
        Ok(Usage::default())
    }
}
