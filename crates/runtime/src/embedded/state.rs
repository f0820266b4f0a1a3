//! What is on disk about pods and containers, and what it means now.
use std::{fs, io, path::Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Inner;
use crate::{
    contract::{
        ContainerId, ContainerSpec, ContainerState, ContainerStatus, ExitReason, PodUid, SandboxSpec, SandboxStatus,
    },
    launch::{ProcessRef, State},
    records,
    wire::Exit,
};

/// `sandbox.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SandboxRecord {
    pub spec: SandboxSpec,
    pub created_at: Timestamp,
    pub boot: String,
    pub ips: Vec<std::net::IpAddr>,
    /// Everything of it exists.
    pub complete: bool,
    /// First process of the shared PID namespace.
    pub hold: Option<ProcessRef>,
}

/// `container.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    pub id: ContainerId,
    pub pod: PodUid,
    pub spec: ContainerSpec,
    /// Shown as `imageID`.
    pub image_id: String,
    /// Digest of the image's configuration.
    pub image_config: String,
    pub stop_signal: i32,
    pub created_at: Timestamp,
    pub boot: String,
    pub cgroup: String,
}

/// A container as it is on disk and in the kernel.
pub(super) struct Found {
    pub record: ContainerRecord,
    pub state: Option<State>,
    pub exit: Option<Exit>,
    /// Its shim runs.
    pub alive: bool,
}

impl Found {
    /// Reads a container's directory; `None` if there is no (complete) record.
    pub(super) fn read(dir: &Path, boot: &str) -> io::Result<Option<Self>> {
        let Some(record) = records::read::<ContainerRecord>(&dir.join(records::CONTAINER))? else { return Ok(None) };
        let mut exit = records::read(&dir.join(records::EXIT))?;
        let state = records::read::<State>(&dir.join(records::STATE))?;
        let mut alive = false;
        if exit.is_none() && record.boot == boot {
            alive = state.as_ref().is_some_and(|s| s.shim.is_alive());
            if !alive {
                // It may have written its last record between the two looks.
                exit = records::read(&dir.join(records::EXIT))?;
            }
        }
        // One that is being removed loses this record first: what is still there of the others says nothing of how it ended.
        if exit.is_none() && !alive && !dir.join(records::CONTAINER).try_exists()? {
            return Ok(None);
        }
        Ok(Some(Self { record, state, exit, alive }))
    }

    pub(super) fn container_state(&self) -> ContainerState {
        if let Some(exit) = &self.exit {
            let reason = match (&exit.start_error, exit.oom_killed, exit.code) {
                (Some(text), _, _) => ExitReason::StartError(text.clone()),
                (None, true, _) => ExitReason::OomKilled,
                (None, false, 0) => ExitReason::Completed,
                (None, false, _) => ExitReason::Error,
            };
            return ContainerState::Exited {
                started_at: exit.started_at.unwrap_or(exit.finished_at),
                finished_at: exit.finished_at,
                exit_code: exit.code,
                reason,
            };
        }
        match &self.state {
            Some(state) if self.alive => match state.started_at {
                Some(started_at) => ContainerState::Running { started_at, pid: state.init.pid.cast_unsigned() },
                None => ContainerState::Created,
            },
            _ => ContainerState::Unknown,
        }
    }

    pub(super) fn status(&self) -> ContainerStatus {
        let spec = &self.record.spec;
        let user = self
            .state
            .as_ref()
            .map_or((0, 0, Vec::new()), |s| (s.identity.uid, s.identity.gid, s.identity.groups.clone()));
        ContainerStatus {
            id: self.record.id.clone(),
            name: spec.name.clone(),
            attempt: spec.attempt,
            image: spec.image.clone(),
            image_id: self.record.image_id.clone(),
            created_at: self.record.created_at,
            state: self.container_state(),
            user,
        }
    }
}

/// Whether a name may be a directory of ours: no separators, no dots alone.
pub(super) fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Whether a name is a container's.
pub(super) fn is_container_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Names in a directory; none if it is missing.
pub(super) fn names(dir: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
        Ok(entries) => entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect(),
    }
}

impl Inner {
    /// Every container with a record. A container that is just being created is left out.
    pub(super) fn read_containers(&self) -> io::Result<Vec<Found>> {
        let mut all = Vec::new();
        for name in names(&self.containers_dir())?.into_iter().filter(|n| is_container_id(n)) {
            let id = ContainerId(name);
            if self.creating.lock().contains(&id) {
                continue;
            }
            all.extend(Found::read(&self.container_dir(&id), &self.boot)?);
        }
        all.sort_by(|a, b| (a.record.created_at, &a.record.id).cmp(&(b.record.created_at, &b.record.id)));
        Ok(all)
    }

    /// Every sandbox with a record, or one.
    pub(super) fn read_sandboxes(&self, only: Option<&PodUid>) -> io::Result<Vec<SandboxStatus>> {
        let uids = match only {
            Some(uid) => vec![uid.0.clone()],
            None => names(&self.pods_dir())?.into_iter().filter(|n| is_plain_name(n)).collect(),
        };
        let mut sandboxes = Vec::new();
        for uid in uids {
            let uid = PodUid(uid);
            if let Some(record) = records::read::<SandboxRecord>(&self.pod_dir(&uid).join(records::SANDBOX))? {
                sandboxes.push(SandboxStatus {
                    ready: record.complete && self.is_healthy(&uid, &record),
                    spec: record.spec,
                    ips: record.ips,
                    created_at: record.created_at,
                    containers: Vec::new(),
                });
            }
        }
        if sandboxes.is_empty() {
            return Ok(sandboxes);
        }
        for found in self.read_containers()? {
            if let Some(s) = sandboxes.iter_mut().find(|s| s.spec.uid == found.record.pod) {
                s.containers.push(found.status());
            }
        }
        Ok(sandboxes)
    }

    /// Whether what keeps the sandbox's namespaces alive is there.
    pub(super) fn is_healthy(&self, uid: &PodUid, record: &SandboxRecord) -> bool {
        let dir = self.pod_dir(uid);
        let pinned = |wanted: bool, name: &str| !wanted || network::is_netns(&dir.join(name));
        record.boot == self.boot
            && pinned(!record.spec.host_network, "net")
            && pinned(!record.spec.host_network, "uts")
            && pinned(!record.spec.host_ipc, "ipc")
            && record.hold.as_ref().is_none_or(ProcessRef::is_alive)
    }
}
