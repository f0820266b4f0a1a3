//! What is known about a container's incarnations: from the runtime, and where that has forgotten, from the pod's status.
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ContainerState as ApiState, ContainerStateTerminated, ContainerStatus as ApiStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use runtime::{ContainerId, ContainerState, ContainerStatus, ExitReason};

use super::facts::Facts;
use crate::spec::container::Kind;

/// Prefix of container ids in the API.
pub const SCHEME: &str = "holdfast://";

/// How an incarnation is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    Created,
    Running { started_at: Timestamp },
    Exited(Box<Exit>),
}

/// How an incarnation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub code: i32,
    pub reason: String,
    pub message: Option<String>,
}

/// One run of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incarnation {
    /// Without scheme; empty if it never had one.
    pub id: String,
    pub attempt: u32,
    pub image: String,
    pub image_id: String,
    pub life: Life,
    /// The runtime still knows it (so it belongs to the present sandbox).
    pub present: bool,
    pub user: Option<(u32, u32, Vec<u32>)>,
}

impl Incarnation {
    /// Exit code, if it ended.
    pub fn code(&self) -> Option<i32> {
        self.exit().map(|e| e.code)
    }
    /// Its end, if it ended.
    pub fn exit(&self) -> Option<&Exit> {
        match &self.life {
            Life::Exited(exit) => Some(exit),
            _ => None,
        }
    }
    /// The runtime says that its program runs.
    pub fn running(&self) -> bool {
        matches!(self.life, Life::Running { .. })
    }
}

/// The newest incarnation and the one before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    pub current: Option<Incarnation>,
    pub previous: Option<Incarnation>,
}

/// The container's incarnations that the runtime has, newest first.
pub fn present<'a>(f: &'a Facts<'_>, name: &str) -> Vec<&'a ContainerStatus> {
    let mut all: Vec<_> = f.sandbox.iter().flat_map(|s| &s.containers).filter(|c| c.name == name).collect();
    all.sort_by_key(|c| std::cmp::Reverse((c.attempt, c.created_at)));
    all
}

/// What the pod's status says about a container.
pub fn prior<'a>(f: &'a Facts<'_>, kind: Kind, name: &str) -> Option<&'a ApiStatus> {
    let list = match kind {
        Kind::Init | Kind::Sidecar => &f.status.init_container_statuses,
        Kind::Main => &f.status.container_statuses,
        Kind::Ephemeral => &f.status.ephemeral_container_statuses,
    };
    list.iter().flatten().find(|c| c.name == name)
}

/// All that is known about a container.
pub fn history(f: &Facts<'_>, kind: Kind, name: &str) -> History {
    let mut seen = present(f, name).into_iter().map(|c| from_runtime(f, c));
    let prior = prior(f, kind, name);
    match seen.next() {
        Some(current) => {
            let previous = seen.next().or_else(|| {
                let old = prior?;
                // An end without an id was made up by us, for a container that never ran.
                let own = from_api(old, old.state.as_ref(), false).filter(|i| i.id != current.id && !i.id.is_empty());
                own.or_else(|| from_api(old, old.last_state.as_ref(), true).filter(|i| i.id != current.id))
            });
            History { current: Some(current), previous }
        }
        None => {
            let Some(old) = prior else { return History::default() };
            let last = from_api(old, old.last_state.as_ref(), true);
            match from_api(old, old.state.as_ref(), false) {
                Some(current) => History { current: Some(current), previous: last },
                None => History { current: last, previous: None },
            }
        }
    }
}

fn from_runtime(f: &Facts<'_>, c: &ContainerStatus) -> Incarnation {
    let message = f.messages.get(&c.id).cloned().filter(|m| !m.is_empty());
    let life = match &c.state {
        ContainerState::Created => Life::Created,
        ContainerState::Running { started_at, .. } => Life::Running { started_at: *started_at },
        ContainerState::Exited { started_at, finished_at, exit_code, reason } => Life::Exited(Box::new(Exit {
            started_at: Some(*started_at),
            finished_at: Some(*finished_at),
            code: *exit_code,
            reason: match reason {
                ExitReason::Completed => "Completed",
                ExitReason::Error => "Error",
                ExitReason::OomKilled => "OOMKilled",
                ExitReason::StartError(_) => "StartError",
            }
            .into(),
            message: match reason {
                ExitReason::StartError(why) => Some(why.clone()),
                _ => message,
            },
        })),
        ContainerState::Unknown => lost(),
    };
    Incarnation {
        id: c.id.0.clone(),
        attempt: c.attempt,
        image: c.image.clone(),
        image_id: c.image_id.clone(),
        life,
        present: true,
        user: Some(c.user.clone()),
    }
}

/// A container that ran and of which nothing is left.
fn lost() -> Life {
    Life::Exited(Box::new(Exit {
        started_at: None,
        finished_at: None,
        code: 137,
        reason: "ContainerStatusUnknown".into(),
        message: Some("The container could not be located when the pod was terminated".into()),
    }))
}

fn from_api(status: &ApiStatus, state: Option<&ApiState>, last: bool) -> Option<Incarnation> {
    let state = state?;
    let (life, id) = if let Some(t) = &state.terminated {
        let exit = Exit {
            started_at: t.started_at.as_ref().map(|t| t.0),
            finished_at: t.finished_at.as_ref().map(|t| t.0),
            code: t.exit_code,
            reason: t.reason.clone().unwrap_or_default(),
            message: t.message.clone(),
        };
        (Life::Exited(Box::new(exit)), t.container_id.clone())
    } else if state.running.is_some() {
        (lost(), status.container_id.clone())
    } else {
        return None;
    };
    let id = id.unwrap_or_default();
    // A container that waits for its restart already counts under the number of the run that ended.
    let waiting = status.state.as_ref().is_none_or(|s| s.waiting.is_some());
    let attempt = u32::try_from(status.restart_count).unwrap_or(0).saturating_sub(u32::from(last && !waiting));
    Some(Incarnation {
        id: id.strip_prefix(SCHEME).unwrap_or(&id).into(),
        attempt,
        image: status.image.clone(),
        image_id: status.image_id.clone(),
        life,
        present: false,
        user: None,
    })
}

/// An incarnation's end as the API shows it.
pub fn terminated(i: &Incarnation) -> Option<ContainerStateTerminated> {
    let exit = i.exit()?;
    Some(ContainerStateTerminated {
        container_id: (!i.id.is_empty()).then(|| format!("{SCHEME}{}", i.id)),
        exit_code: exit.code,
        started_at: exit.started_at.map(seconds),
        finished_at: exit.finished_at.map(seconds),
        reason: Some(exit.reason.clone()),
        message: exit.message.clone(),
        signal: None,
    })
}

/// The API's times have whole seconds.
pub fn seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// An id as the runtime has it.
pub fn container_id(i: &Incarnation) -> ContainerId {
    ContainerId(i.id.clone())
}
