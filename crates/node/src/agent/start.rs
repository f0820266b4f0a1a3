//! Starting one container: image, environment, mounts, create, start, `postStart`.
use std::{
    collections::BTreeMap,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base::chain;
use k8s_openapi::api::core::v1::{Pod, VolumeDevice};
use runtime::{ContainerId, ContainerSpec, ContainerState, Device, Mount, Propagation, RuntimeError, SandboxStatus};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use volumes::{Ready, VolumeError, follows_sub_paths};

use super::{Shared, follow, hooks, identity, image_volumes, images, objects::Known};
use crate::{
    core::facts::{Trouble, later},
    spec::{
        container::{self, Member, Parts, field_path, message_mount, message_path},
        env::{self, Found, Referred},
        expand::expand,
        security::pod_label,
    },
};

/// Until a container that could not be made is tried again, if nothing happens before.
const RETRY: Duration = Duration::from_secs(10);

/// How long making a container may go on when its pod must end.
const MAKING: Duration = Duration::from_secs(5);

/// What a start works with; a snapshot.
pub struct Start {
    pub shared: Arc<Shared>,
    pub pod: Arc<Pod>,
    pub member: Member,
    pub attempt: u32,
    pub sandbox: SandboxStatus,
    pub volumes: BTreeMap<String, Ready>,
    /// Woken when an object that the environment refers to changes.
    pub changed: Arc<Notify>,
    /// The pod must end.
    pub cancel: CancellationToken,
}

/// Objects of the environment; kept so that their changes are noticed.
#[derive(Default)]
pub struct Watching {
    _config_maps: Vec<Arc<super::objects::Watched<k8s_openapi::api::core::v1::ConfigMap>>>,
    _secrets: Vec<Arc<super::objects::Watched<k8s_openapi::api::core::v1::Secret>>>,
}

/// A failed start, and what would end it.
pub struct Failed {
    pub trouble: Trouble,
    /// Keep it to be woken by its objects' changes.
    pub watching: Watching,
}

impl Start {
    fn tell(&self, warning: bool, reason: &str, message: String) {
        let path = field_path(self.member.kind, &self.member.container.name);
        self.shared.events.pod(&self.pod, Some(path), warning, reason, message);
    }

    fn trouble(&self, reason: &str, message: String) -> Trouble {
        let retry_at = Some(later(self.shared.clock.now(), RETRY));
        Trouble { reason: reason.into(), message, retry_at, later: None }
    }

    fn refuse(&self, reason: &str, message: String, watching: Watching) -> Failed {
        self.tell(true, "Failed", format!("Error: {message}"));
        Failed { trouble: self.trouble(reason, message), watching }
    }

    /// Runs to the end. `None`: given up because the pod must end.
    pub async fn run(mut self) -> Option<Result<ContainerId, Failed>> {
        // Upstream pulls for volumes first, too.
        let images = async {
            let volumes = image_volumes::make(&self.shared, &self.pod, &self.member).await?;
            images::ensure(&self.shared, &self.pod, &self.member).await.map(|_| volumes)
        };
        let images = tokio::select! {
            images = images => images,
            () = self.cancel.cancelled() => return None,
        };
        match images {
            Ok(volumes) => self.volumes.extend(volumes),
            Err(trouble) => return Some(Err(Failed { trouble, watching: Watching::default() })),
        }
        let (env, watching) = tokio::select! {
            made = self.environment() => made,
            () = self.cancel.cancelled() => return None,
        };
        // What is being made is finished, and stopped then; but nobody waits for a server that keeps it from being made.
        let late = async {
            self.cancel.cancelled().await;
            tokio::time::sleep(MAKING).await;
        };
        tokio::select! {
            made = self.create_and_start(env, watching) => Some(made),
            () = late => None,
        }
    }

    async fn create_and_start(
        &self,
        env: Result<Vec<(String, String)>, String>,
        watching: Watching,
    ) -> Result<ContainerId, Failed> {
        const CONFIG: &str = "CreateContainerConfigError";
        let env = match env {
            Ok(env) => env,
            Err(why) => return Err(self.refuse(CONFIG, why, watching)),
        };
        let follows = follows_sub_paths(&self.pod);
        // What was found for its mounts stays in its place until they are made.
        let uid = &self.sandbox.spec.uid;
        let following = self.shared.following.of(&uid.0);
        let making = following.read().await;
        let spec = match self.spec(env).await {
            Ok(spec) => spec,
            Err(why) => return Err(self.refuse(CONFIG, why, watching)),
        };
        // What an interrupted earlier start left would be in the way.
        for old in &self.sandbox.containers {
            let same = old.name == spec.name && old.attempt == spec.attempt;
            if same
                && old.state == ContainerState::Created
                && let Err(error) = self.shared.runtime.remove(&old.id).await
            {
                return Err(self.refuse("CreateContainerError", chain(&error), watching));
            }
        }
        let id = match self.shared.runtime.create(uid, &spec).await {
            Ok(id) => id,
            Err(error) => {
                let (reason, text) = self.create_failure(&error);
                return Err(self.refuse(reason, text, watching));
            }
        };
        self.keep_pins_apart(&spec).await;
        self.tell(false, "Created", "Container created".into());
        if let Err(error) = self.shared.runtime.start(&id).await {
            let failed = self.refuse("RunContainerError", chain(&error), watching);
            // The container exists and has ended: its restart waits as that of any other.
            return Err(Failed { trouble: Trouble { retry_at: None, ..failed.trouble }, ..failed });
        }
        drop(making);
        self.tell(false, "Started", "Container started".into());
        // A volume may have changed since.
        if follows
            && let Err(why) = follow::show(&self.shared, &self.pod, self.volumes.values().cloned().collect()).await
        {
            self.tell(true, "FailedMount", follow::not_shown(&why));
        }
        self.post_start(&id).await?;
        Ok(id)
    }

    /// What the container mounts in parts of volumes reaches the volumes, and is to stay there when the pins go.
    async fn keep_pins_apart(&self, spec: &ContainerSpec) {
        let both_ways = spec.mounts.iter().filter(|mount| mount.propagation == Propagation::Bidirectional);
        let paths: Vec<PathBuf> = both_ways.map(|mount| mount.host_path.clone()).collect();
        if paths.is_empty() {
            return;
        }
        let volumes = self.shared.volumes.clone();
        let job = tokio::task::spawn_blocking(move || {
            for path in paths {
                if let Err(error) = volumes.keep_apart(&path) {
                    tracing::warn!(error = chain(&error), "mounts of a container may go from its volume when it goes");
                }
            }
        });
        if let Err(error) = job.await {
            tracing::error!(%error, "setting mounts of sub-paths apart broke off; this is a bug");
        }
    }

    fn create_failure(&self, error: &RuntimeError) -> (&'static str, String) {
        let suffix = format!("(pod: {:?}, container: {})", pod_label(&self.pod), self.member.container.name);
        match error {
            RuntimeError::RootRefused | RuntimeError::UserUnverifiable(_) => {
                ("CreateContainerConfigError", format!("{error} {suffix}"))
            }
            error => ("CreateContainerError", chain(error)),
        }
    }

    async fn post_start(&self, id: &ContainerId) -> Result<(), Failed> {
        let c = &self.member.container;
        let Some(hook) = c.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else { return Ok(()) };
        let host = host(&self.shared, &self.pod, &self.sandbox);
        let done = tokio::select! {
            done = hooks::run(&self.shared, &self.pod, c, id, &host, hook) => done,
            () = self.cancel.cancelled() => return Ok(()),
        };
        let Err(why) = done else { return Ok(()) };
        tracing::info!(container = c.name, why, "postStart hook failed");
        self.tell(true, "FailedPostStartHook", "PostStartHook failed".into());
        self.tell(false, "Killing", "FailedPostStartHook".into());
        let grace = Duration::from_secs(u64::try_from(crate::core::finish::own_grace(&self.pod)).unwrap_or(0));
        if let Err(error) = self.shared.runtime.stop(id, grace).await {
            tracing::warn!(error = chain(&error), id = id.0, "could not stop a container whose postStart hook failed");
        }
        let trouble = Trouble { retry_at: None, ..self.trouble("PostStartHookError", why) };
        Err(Failed { trouble, watching: Watching::default() })
    }

    /// The environment, or why it cannot be made.
    async fn environment(&self) -> (Result<Vec<(String, String)>, String>, Watching) {
        let c = &self.member.container;
        let namespace = identity(&self.pod).1;
        let pod_ips = if self.sandbox.spec.host_network {
            self.shared.host_ips()
        } else {
            self.sandbox.ips.iter().map(ToString::to_string).collect()
        };
        let mut found = Found {
            pod_ips,
            host_ips: self.shared.host_ips(),
            node: self.shared.capacity.size(),
            services: services(&self.shared),
            ..Found::default()
        };
        let mut watching = Watching::default();
        // The objects' own first answers wake this; later changes wake the worker.
        let answered = Arc::new(Notify::new());
        for referred in env::references(c) {
            match referred {
                Referred::ConfigMap(name) => {
                    let w = self.shared.objects.config_map(namespace, &name, &answered);
                    let known = wait(|| w.get(), &answered).await;
                    found.config_maps.insert(name.clone(), known.map(|o| (*o).clone()));
                    watching._config_maps.push(self.shared.objects.config_map(namespace, &name, &self.changed));
                }
                Referred::Secret(name) => {
                    let w = self.shared.objects.secret(namespace, &name, &answered);
                    let known = wait(|| w.get(), &answered).await;
                    found.secrets.insert(name.clone(), known.map(|o| (*o).clone()));
                    watching._secrets.push(self.shared.objects.secret(namespace, &name, &self.changed));
                }
            }
        }
        (env::make(&self.pod, c, &found).map_err(|e| e.to_string()), watching)
    }

    /// Everything that the runtime is told, with all files and mounts in place.
    async fn spec(&self, env: Vec<(String, String)>) -> Result<ContainerSpec, String> {
        let (shared, pod, member) = (self.shared.clone(), self.pod.clone(), self.member.clone());
        let (volumes, attempt) = (self.volumes.clone(), self.attempt);
        let vars: BTreeMap<String, String> = env.iter().cloned().collect();
        let job = tokio::task::spawn_blocking(move || mounts(&shared, &pod, &member, attempt, &volumes, &vars));
        let mounts = job.await.map_err(|e| e.to_string())??;
        let devices = devices(&self.member, &self.volumes)?;
        let target = self.member.target.as_ref();
        let pid_of = match target {
            None => None,
            Some(name) => {
                let newest = self.sandbox.containers.iter().filter(|c| c.name == *name).max_by_key(|c| c.attempt);
                Some(newest.ok_or_else(|| format!("unable to find target container {name}"))?.id.clone())
            }
        };
        let parts = Parts {
            layout: &self.shared.config.layout,
            attempt: self.attempt,
            env,
            mounts,
            devices,
            pid_of,
            node_memory_bytes: self.shared.capacity.memory_bytes,
        };
        container::container(&self.pod, &self.member, parts)
    }
}

async fn wait<K>(get: impl Fn() -> Known<K>, notify: &Notify) -> Option<Arc<K>> {
    loop {
        match get() {
            Known::Unknown => notify.notified().await,
            Known::Absent => return None,
            Known::There(object) => return Some(object),
        }
    }
}

/// The address that hooks and probes of the pod's containers go to.
pub fn host(shared: &Shared, pod: &Pod, sandbox: &SandboxStatus) -> String {
    if pod.spec.as_ref().is_some_and(|s| s.host_network == Some(true)) {
        return shared.host_ips().first().cloned().unwrap_or_else(|| "127.0.0.1".into());
    }
    sandbox.ips.first().map(ToString::to_string).unwrap_or_default()
}

/// How containers find the API server.
fn services(shared: &Shared) -> Vec<(String, String)> {
    let Some((host, port)) = &shared.config.api_address else { return Vec::new() };
    let pair = |name: &str, value: String| (format!("KUBERNETES_{name}"), value);
    let url = format!("tcp://{}", super::request::host_port(host, *port));
    vec![
        pair("SERVICE_HOST", host.clone()),
        pair("SERVICE_PORT", port.to_string()),
        pair("SERVICE_PORT_HTTPS", port.to_string()),
        pair("PORT", url.clone()),
        pair(&format!("PORT_{port}_TCP"), url),
        pair(&format!("PORT_{port}_TCP_PROTO"), "tcp".into()),
        pair(&format!("PORT_{port}_TCP_PORT"), port.to_string()),
        pair(&format!("PORT_{port}_TCP_ADDR"), host.clone()),
    ]
}

/// The container's block devices.
fn devices(member: &Member, ready: &BTreeMap<String, Ready>) -> Result<Vec<Device>, String> {
    let c = &member.container;
    let device = |wanted: &VolumeDevice| match ready.get(&wanted.name).filter(|volume| volume.device) {
        Some(volume) => Ok(container::volume_device(wanted, volume.host_path.clone(), volume.read_only)),
        None => Err(format!("cannot find volume {:?} to pass into container {:?}", wanted.name, c.name)),
    };
    c.volume_devices.iter().flatten().map(device).collect()
}

/// The container's mounts: its volumes, the pod's files, its termination message.
fn mounts(
    shared: &Shared,
    pod: &Pod,
    member: &Member,
    attempt: u32,
    ready: &BTreeMap<String, Ready>,
    vars: &BTreeMap<String, String>,
) -> Result<Vec<Mount>, String> {
    let c = &member.container;
    let uid = identity(pod).2;
    let mut list = Vec::new();
    for (index, mount) in c.volume_mounts.iter().flatten().enumerate() {
        let Some(volume) = ready.get(&mount.name) else {
            return Err(format!("cannot find volume {:?} to mount into container {:?}", mount.name, c.name));
        };
        let expression = mount.sub_path_expr.as_ref().filter(|e| !e.is_empty());
        let sub = match expression {
            Some(expression) => {
                let missing = |why| format!("{why}: subPathExpr of volumeMount {:?}", mount.name);
                Some(sub_path(expression, vars).map_err(missing)?)
            }
            None => mount.sub_path.clone().filter(|s| !s.is_empty()),
        };
        let path = match mount.mount_propagation.as_deref() {
            Some("Bidirectional") => shared.volumes.shared_mount_path(uid, &c.name, index, volume, sub.as_deref()),
            _ => shared.volumes.mount_path(uid, &c.name, index, volume, sub.as_deref()),
        };
        let path = path.map_err(|error| match (error, expression) {
            // What its variables hold may be secret.
            (VolumeError::SubPathText { absolute, .. }, Some(expression)) => {
                let shown = VolumeError::SubPathText { sub_path: expression.clone(), absolute };
                format!("{shown}: subPathExpr of volumeMount {:?}", mount.name)
            }
            (error @ VolumeError::SubPathText { .. }, None) => format!("{error}: volumeMount {:?}", mount.name),
            (error, _) => chain(&error),
        })?;
        list.push(container::volume_mount(mount, path, volume)?);
    }
    let taken: Vec<PathBuf> = list.iter().map(|m| m.container_path.clone()).collect();
    let dir = shared.config.layout.pods().join(uid);
    for (file, target) in
        [("etc-hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname")]
    {
        if !taken.iter().any(|p| p == Path::new(target)) {
            list.push(plain(dir.join(file), target));
        }
    }
    let message = message_path(&shared.config.layout, uid, &c.name, attempt);
    make_message_file(&message).map_err(|e| format!("create termination message file {}: {e}", message.display()))?;
    list.push(plain(message, message_mount(c)));
    Ok(list)
}

fn plain(host_path: PathBuf, container_path: &str) -> Mount {
    Mount {
        host_path,
        container_path: container_path.into(),
        read_only: false,
        recursive_read_only: false,
        group_map: None,
        propagation: Propagation::Private,
    }
}

/// Any user of the container may write it, as upstream's.
fn make_message_file(path: &Path) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut file = std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o666).open(path)?;
    file.flush()?;
    file.set_permissions(std::fs::Permissions::from_mode(0o666))
}

/// `subPathExpr`: every name must be known.
fn sub_path(expr: &str, vars: &BTreeMap<String, String>) -> Result<String, String> {
    let missing = std::cell::RefCell::new(Vec::new());
    let path = expand(expr, &|name| {
        let value = vars.get(name).cloned();
        if value.is_none() {
            missing.borrow_mut().push(name.to_owned());
        }
        value
    });
    let missing = missing.into_inner();
    if missing.is_empty() { Ok(path) } else { Err(format!("missing value for {:?}", missing.join(", "))) }
}
