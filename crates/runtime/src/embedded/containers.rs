//! The life of a container as the daemon drives it; the shim does the work.
use std::{
    fs::{self, File},
    io::{self, Read},
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    Inner,
    client::{self, ShimConnection},
    io_error,
    plan::{self, Places},
    state::{ContainerRecord, Found, SandboxRecord},
};
use crate::{
    contract::{ContainerId, ContainerSpec, ContainerState, PodUid, RuntimeError},
    launch::{PidNamespace, ProcessRef, UPPER, WORK},
    records,
    shim::Mode,
    wire::{self, Failure, Reply, Request},
};

/// How long a killed container may take to end before that is an error.
const KILL_WAIT: Duration = Duration::from_secs(30);
/// How long a shim may take to leave after its container's end.
const SHIM_WAIT: Duration = Duration::from_secs(15);

impl Inner {
    /// Makes the container and its shim. The caller holds the pod's lock for reading.
    pub(super) async fn create_container(
        self: &Arc<Self>,
        uid: &PodUid,
        spec: &ContainerSpec,
    ) -> Result<ContainerId, RuntimeError> {
        let sandbox = self.sandbox_record(uid)?;
        if let Some(existing) = self.same_container(uid, spec).await? {
            return Ok(existing);
        }
        let no_image = || RuntimeError::NoImage { image: spec.image.clone() };
        let image = self.images.runnable(&spec.image).await?.ok_or_else(no_image)?;
        // Also checked by the shim; here it costs nothing and leaves nothing.
        crate::identity::check_not_root(&spec.user, &image.user).map_err(|f| failure(&spec.name, f))?;
        let id = new_id().map_err(io_error("choose a container ID"))?;
        let dir = self.container_dir(&id);
        let cgroup = format!("{}/{}", self.pod_group(uid), id.0);
        let pid = self.pid_namespace(&sandbox, spec)?;
        let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let pod = self.pod_dir(uid);
        let places = Places { container: &dir, pod: &pod, cgroup: cgroup.clone(), pid, host_name };
        let launch = plan::plan(&sandbox.spec, spec, &image, places)?;
        let record = ContainerRecord {
            id: id.clone(),
            pod: uid.clone(),
            spec: spec.clone(),
            image_id: image.repo_digests.first().unwrap_or(&image.id).clone(),
            image_config: image.id.clone(),
            stop_signal: plan::stop_signal(&image),
            created_at: Timestamp::now(),
            boot: self.boot.clone(),
            cgroup,
        };
        let _creating = Creating::begin(self, &id);
        let made = self.make_container(&dir, &record, &launch).await;
        match made {
            Ok(connection) => {
                self.watch(&record, connection);
                Ok(id)
            }
            Err(error) => {
                if let Err(e) = self.erase(&dir, &record.cgroup).await {
                    tracing::warn!(container = id.0, error = %base::chain(&e), "a container that failed to be made is left behind");
                }
                Err(error)
            }
        }
    }

    fn sandbox_record(&self, uid: &PodUid) -> Result<SandboxRecord, RuntimeError> {
        let record: Option<SandboxRecord> =
            records::read(&self.pod_dir(uid).join(records::SANDBOX)).map_err(io_error("read the pod's record"))?;
        record.filter(|r| r.complete && self.is_healthy(uid, r)).ok_or_else(|| RuntimeError::NoSandbox(uid.0.clone()))
    }

    /// A container that an earlier, identical call has made.
    async fn same_container(&self, uid: &PodUid, spec: &ContainerSpec) -> Result<Option<ContainerId>, RuntimeError> {
        let all = self.read_containers().map_err(io_error("list containers"))?;
        let same = all.into_iter().filter(|c| {
            let r = &c.record;
            r.pod == *uid && r.spec.name == spec.name && r.spec.attempt == spec.attempt
        });
        for found in same {
            if matches!(found.container_state(), ContainerState::Created | ContainerState::Running { .. }) {
                return Ok(Some(found.record.id));
            }
        }
        Ok(None)
    }

    fn pid_namespace(&self, sandbox: &SandboxRecord, spec: &ContainerSpec) -> Result<PidNamespace, RuntimeError> {
        let of = |p: &ProcessRef| PidNamespace::Join(format!("/proc/{}/ns/pid", p.pid).into());
        if sandbox.spec.host_pid {
            return Ok(PidNamespace::Host);
        }
        if let Some(hold) = &sandbox.hold {
            return Ok(of(hold));
        }
        match &spec.pid_of {
            Some(id) => Ok(of(&self.running(id)?.1.init)),
            None => Ok(PidNamespace::New),
        }
    }

    async fn make_container(
        &self,
        dir: &Path,
        record: &ContainerRecord,
        launch: &crate::launch::Launch,
    ) -> Result<ShimConnection, RuntimeError> {
        let name = &record.spec.name;
        let failed = |e| io_error(format!("create container {name}"))(e);
        let mut builder = fs::DirBuilder::new();
        // The writable layer's files belong to the container's users; nobody else on the host may look in.
        builder.recursive(true).mode(0o700).create(dir).map_err(failed)?;
        records::write(&dir.join(records::CONTAINER), record, false).map_err(failed)?;
        records::write(&dir.join(records::LAUNCH), launch, false).map_err(failed)?;
        builder.mode(0o755);
        for part in [UPPER, WORK] {
            builder.create(dir.join(part)).map_err(failed)?;
        }
        let errors = File::create(dir.join(records::SHIM_LOG)).map_err(failed)?;
        let (socket, mut child) = client::spawn(&self.exe, Mode::Container, Some(dir), Some(errors)).map_err(failed)?;
        wire::send(&socket, &(), &[self.bare.as_fd()]).map_err(failed)?;
        let mut connection = ShimConnection::over(socket).map_err(failed)?;
        let reply = connection.reply().await.map_err(failed)?;
        // What was started only forked the shim and has ended.
        let _ = child.wait().await;
        match reply {
            Some(Reply::Created) => Ok(connection),
            Some(Reply::CreateFailed(why)) => Err(failure(name, why)),
            Some(other) => Err(RuntimeError::Other(format!("create container {name}: unexpected answer {other:?}"))),
            None => {
                let text = fs::read_to_string(dir.join(records::SHIM_LOG)).unwrap_or_default();
                Err(RuntimeError::Other(format!("create container {name}: the shim died: {}", text.trim())))
            }
        }
    }

    /// Runs the program.
    pub(super) async fn start_container(self: &Arc<Self>, id: &ContainerId) -> Result<(), RuntimeError> {
        let found = self.find(id)?;
        self.ensure_watched(&found.record).await?;
        let start_failed = |why: String| RuntimeError::Start { container: found.record.spec.name.clone(), why };
        let reply = match ShimConnection::connect(&self.container_dir(id)).await.map_err(io_error("reach the shim"))? {
            Some(mut shim) => shim.ask(&Request::Start).await.map_err(io_error("ask the shim"))?,
            None => None,
        };
        let result = match reply {
            Some(Reply::Done) => Ok(()),
            Some(Reply::StartFailed(text)) => Err(start_failed(text)),
            _ => match self.find(id)?.exit {
                Some(exit) if exit.start_error.is_some() => Err(start_failed(exit.start_error.unwrap_or_default())),
                Some(exit) if exit.started_at.is_some() => Ok(()),
                _ => Err(RuntimeError::NotRunning(id.0.clone())),
            },
        };
        self.announce(&found.record.pod, id);
        result
    }

    /// Asks the program to end and kills it after `grace`.
    pub(super) async fn stop_container(
        self: &Arc<Self>,
        id: &ContainerId,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        let found = self.find(id)?;
        if found.exit.is_some() || !found.alive {
            return Ok(());
        }
        self.ensure_watched(&found.record).await?;
        if !grace.is_zero() && found.state.as_ref().is_some_and(|s| s.started_at.is_some()) {
            self.ask(id, &Request::Signal(found.record.stop_signal)).await?;
            if self.await_end(id, grace).await? {
                return Ok(());
            }
        }
        self.ask(id, &Request::Kill).await?;
        if self.await_end(id, KILL_WAIT).await? {
            return Ok(());
        }
        Err(RuntimeError::Other(format!(
            "container {} does not end although killed; see its processes' state in ps",
            id.0
        )))
    }

    /// Asks the shim; fine if it is gone.
    async fn ask(&self, id: &ContainerId, request: &Request) -> Result<Option<Reply>, RuntimeError> {
        match ShimConnection::connect(&self.container_dir(id)).await.map_err(io_error("reach the shim"))? {
            Some(mut shim) => shim.ask(request).await.map_err(io_error("ask the shim")),
            None => Ok(None),
        }
    }

    /// Follows a container that is not followed yet: one that an earlier daemon's shim was still making at the time of
    /// adoption.
    async fn ensure_watched(self: &Arc<Self>, record: &ContainerRecord) -> Result<(), RuntimeError> {
        if !self.watched.lock().contains_key(&record.id) {
            let shim = ShimConnection::connect(&self.container_dir(&record.id)).await;
            if let Some(connection) = shim.map_err(io_error("reach the shim"))? {
                self.watch(record, connection);
            }
        }
        Ok(())
    }

    /// Waits for the container's end; false if it takes longer than `limit`.
    async fn await_end(&self, id: &ContainerId, limit: Duration) -> Result<bool, RuntimeError> {
        let watcher = self.watched.lock().get(id).cloned();
        match watcher {
            Some(mut ended) => Ok(tokio::time::timeout(limit, ended.wait_for(|e| *e)).await.is_ok()),
            None => Ok(self.find(id).map_or(true, |f| !f.alive)),
        }
    }

    /// Removes a container in whatever state it is.
    pub(super) async fn remove_container(self: &Arc<Self>, id: &ContainerId) -> Result<(), RuntimeError> {
        let dir = self.container_dir(id);
        let Some(found) = Found::read(&dir, &self.boot).map_err(io_error("read the container's record"))? else {
            return self.erase(&dir, "").await;
        };
        self.stop_container(id, Duration::ZERO).await?;
        if let Some(state) = found.state.filter(|_| found.record.boot == self.boot) {
            // The shim still writes into the directory until it leaves.
            let until = Instant::now() + SHIM_WAIT;
            let mut pause = Duration::from_millis(1);
            while state.shim.is_alive() && Instant::now() < until {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            if state.shim.is_alive() {
                tracing::warn!(container = id.0, "the shim does not leave; killing it");
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(state.shim.pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
        let ours = found.record.boot == self.boot;
        self.erase(&dir, if ours { &found.record.cgroup } else { "" }).await?;
        self.watched.lock().remove(id);
        self.announce(&found.record.pod, id);
        Ok(())
    }

    /// Removes a container's cgroup and directory.
    async fn erase(&self, dir: &Path, group: &str) -> Result<(), RuntimeError> {
        let (cgroups, dir, group) = (self.cgroups.clone(), dir.to_owned(), group.to_owned());
        let action = format!("remove container directory {}", dir.display());
        let work = tokio::task::spawn_blocking(move || {
            if !group.is_empty() {
                cgroups.remove(&group)?;
            }
            // First: who looks meanwhile must not find a container without an end.
            let gone = |done: io::Result<()>| {
                done.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
            };
            gone(fs::remove_file(dir.join(records::CONTAINER)))?;
            gone(fs::remove_dir_all(&dir))
        });
        work.await.map_err(|e| RuntimeError::Other(e.to_string()))?.map_err(io_error(action))
    }

    /// The container's records.
    pub(super) fn find(&self, id: &ContainerId) -> Result<Found, RuntimeError> {
        let unknown = || RuntimeError::NoContainer(id.0.clone());
        if !super::state::is_container_id(&id.0) {
            return Err(unknown());
        }
        Found::read(&self.container_dir(id), &self.boot)
            .map_err(io_error("read the container's record"))?
            .ok_or_else(unknown)
    }

    /// The container's records, if its program runs.
    pub(super) fn running(&self, id: &ContainerId) -> Result<(Found, crate::launch::State), RuntimeError> {
        let found = self.find(id)?;
        match (found.container_state(), found.state.clone()) {
            (ContainerState::Running { .. }, Some(state)) => Ok((found, state)),
            _ => Err(RuntimeError::NotRunning(id.0.clone())),
        }
    }

    pub(super) async fn reopen(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.find(id)?;
        match self.ask(id, &Request::ReopenLog).await? {
            Some(Reply::CreateFailed(why)) => Err(failure(&id.0, why)),
            Some(_) => Ok(()),
            None => Err(RuntimeError::NotRunning(id.0.clone())),
        }
    }

    /// Follows a container until its shim leaves.
    pub(super) fn watch(self: &Arc<Self>, record: &ContainerRecord, mut connection: ShimConnection) {
        let (ended, receiver) = tokio::sync::watch::channel(false);
        self.watched.lock().insert(record.id.clone(), receiver);
        let (inner, record) = (self.clone(), record.clone());
        tokio::spawn(async move {
            let asked = connection.ask(&Request::Watch).await;
            if matches!(asked, Ok(Some(_))) {
                while let Ok(Some((kind, _))) = connection.next().await {
                    if kind == crate::wire::frame::EXIT {
                        break;
                    }
                }
            }
            drop(connection);
            inner.note_end(&record).await;
            let _ = ended.send(true);
            inner.announce(&record.pod, &record.id);
        });
    }

    /// A shim that died without leaving a record leaves a container without a keeper: end it.
    async fn note_end(&self, record: &ContainerRecord) {
        let dir = self.container_dir(&record.id);
        if dir.join(records::EXIT).exists() || !dir.exists() {
            return;
        }
        tracing::error!(
            container = record.id.0,
            name = record.spec.name,
            "a container's shim died; its exit code is lost"
        );
        let (cgroups, group) = (self.cgroups.clone(), record.cgroup.clone());
        let removed = tokio::task::spawn_blocking(move || cgroups.remove(&group)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(container = record.id.0, %error, "processes of a container without shim may be left");
        }
    }
}

/// Marks a container as being made, so that nobody takes it for a wreck.
struct Creating<'a> {
    inner: &'a Inner,
    id: ContainerId,
}

impl<'a> Creating<'a> {
    fn begin(inner: &'a Inner, id: &ContainerId) -> Self {
        inner.creating.lock().insert(id.clone());
        Self { inner, id: id.clone() }
    }
}

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        self.inner.creating.lock().remove(&self.id);
    }
}

fn new_id() -> io::Result<ContainerId> {
    let mut random = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(ContainerId(random.iter().map(|b| format!("{b:02x}")).collect()))
}

fn failure(container: &str, failure: Failure) -> RuntimeError {
    match failure {
        Failure::RootRefused => RuntimeError::RootRefused,
        Failure::UserUnverifiable(user) => RuntimeError::UserUnverifiable(user),
        Failure::Other(text) => RuntimeError::Other(format!("create container {container}: {text}")),
    }
}
