//! Everything that a decision about one pod may depend on.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use runtime::{ContainerId, SandboxStatus};

use super::probe::Health;
use crate::spec::container::{Kind, Member};

/// First wait between two starts of a container that keeps ending.
pub const CRASH_FIRST: Duration = Duration::from_secs(10);
/// Longest such wait.
pub const CRASH_CAP: Duration = Duration::from_secs(300);

/// One pod as seen at one moment.
pub struct Facts<'a> {
    pub pod: &'a Pod,
    /// All containers of `pod`, from [`crate::spec::container::members`].
    pub members: &'a [Member],
    /// The status last known: our own last write, or what the API had when the pod was first seen.
    pub status: &'a PodStatus,
    /// The status above has reached the API.
    pub saved: bool,
    pub sandbox: Option<&'a SandboxStatus>,
    /// Termination messages of ended containers.
    pub messages: &'a BTreeMap<ContainerId, String>,
    /// All volumes are set up.
    pub volumes_ready: bool,
    /// What keeps the others from it.
    pub volume_trouble: Option<&'a VolumeTrouble>,
    pub memory: &'a Memory,
    /// What is being done right now.
    pub busy: &'a BTreeSet<Op>,
    pub host_ips: &'a [String],
    pub now: Timestamp,
}

impl Facts<'_> {
    /// `Always`, `OnFailure` or `Never`.
    pub fn policy(&self) -> &str {
        self.pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always")
    }
    /// Containers of one kind in their order.
    pub fn of(&self, kind: Kind) -> impl DoubleEndedIterator<Item = &Member> {
        self.members.iter().filter(move |m| m.kind == kind)
    }
    /// Init containers and sidecars in their order.
    pub fn early(&self) -> impl DoubleEndedIterator<Item = &Member> {
        self.members.iter().filter(|m| matches!(m.kind, Kind::Init | Kind::Sidecar))
    }
    /// A usable sandbox.
    pub fn ready_sandbox(&self) -> Option<&SandboxStatus> {
        self.sandbox.filter(|s| s.ready)
    }
}

/// What keeps a pod's volumes from being set up: only those that fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeTrouble {
    /// That of the Event.
    pub reason: &'static str,
    pub message: String,
}

/// What the node remembers about a pod between two looks; lost with the process, and nothing is wrong then.
#[derive(Debug, Default, Clone)]
pub struct Memory {
    pub containers: BTreeMap<String, ContainerMemory>,
    /// Do not try to make the sandbox before this.
    pub sandbox_retry_at: Option<Timestamp>,
    /// Its object is gone.
    pub gone: bool,
    /// Set once the pod must end, whatever its containers do.
    pub end: Option<End>,
    /// All volumes are gone from this node.
    pub torn_down: bool,
    /// Do not try again to tear down, remove or delete before this.
    pub end_retry_at: Option<Timestamp>,
}

/// What is remembered about one container.
#[derive(Debug, Default, Clone)]
pub struct ContainerMemory {
    /// Why it could not be started.
    pub trouble: Option<Trouble>,
    pub crash: Option<Crash>,
    /// Of the newest incarnation.
    pub health: Option<(ContainerId, Health)>,
}

/// A failed start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Shown as the waiting reason.
    pub reason: String,
    pub message: String,
    pub retry_at: Option<Timestamp>,
    /// What is shown instead after a while, if the next try is still to come.
    pub later: Option<Later>,
}

/// The second face of a trouble: `ErrImagePull` becomes `ImagePullBackOff`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Later {
    pub from: Timestamp,
    pub reason: String,
    pub message: String,
}

/// Back-off of a container that keeps ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crash {
    pub delay: Duration,
    pub updated_at: Timestamp,
    /// The end that this restart answers.
    pub ended_at: Timestamp,
}

impl Crash {
    /// A run that ended so long after the last restart has earned a fresh start.
    fn expired(&self, ended_at: Timestamp) -> bool {
        ended_at.duration_since(self.updated_at) > (2 * CRASH_CAP).try_into().unwrap_or(jiff::SignedDuration::MAX)
    }

    /// When a container that ended at `ended_at` may start again; `None`: now.
    pub fn until(this: Option<&Self>, ended_at: Timestamp, now: Timestamp) -> Option<(Timestamp, Duration)> {
        let crash = this.filter(|c| !c.expired(ended_at))?;
        let until = ended_at.saturating_add(jiff::SignedDuration::try_from(crash.delay).ok()?).ok()?;
        (until > now).then_some((until, crash.delay))
    }

    /// The back-off after one more restart.
    /// Counting one end twice changes nothing.
    pub fn next(this: Option<&Self>, ended_at: Timestamp, now: Timestamp) -> Self {
        if let Some(same) = this.filter(|c| c.ended_at == ended_at) {
            return *same;
        }
        let delay = match this.filter(|c| !c.expired(ended_at)) {
            None => CRASH_FIRST,
            Some(c) => (2 * c.delay).min(CRASH_CAP),
        };
        Self { delay, updated_at: now, ended_at }
    }
}

/// Why a pod must end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Its object has a deletion timestamp.
    Deleted,
    /// Its object is gone.
    Vanished,
    /// `activeDeadlineSeconds` have passed, or the node threw it out: the status' reason and message.
    Failed { reason: String, message: String },
    /// Its containers ended and none will be started again.
    Finished,
}

/// The end of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub cause: Cause,
    pub since: Timestamp,
    /// Time that the containers have, from `since`.
    pub grace: Duration,
}

/// Something that is being done, at most once at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// Making or removing the sandbox.
    Sandbox,
    /// Bringing the work on volumes to an end.
    Volumes,
    Start(String),
    Stop(ContainerId),
    Remove(ContainerId),
    TearDown,
    Delete,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    RunSandbox,
    /// `changed`: it will be made anew.
    RemoveSandbox {
        changed: bool,
    },
    Start {
        name: String,
        attempt: u32,
        /// When the incarnation before this one ended.
        after: Option<Timestamp>,
    },
    Stop {
        id: ContainerId,
        name: String,
        grace: Duration,
        message: String,
    },
    /// Forget an ended container and its log.
    Remove {
        id: ContainerId,
        name: String,
        attempt: u32,
    },
    TearDown,
    /// Remove the pod's object.
    Delete,
}

impl Action {
    /// The key under which it is busy.
    pub fn op(&self) -> Op {
        match self {
            Self::RunSandbox | Self::RemoveSandbox { .. } => Op::Sandbox,
            Self::Start { name, .. } => Op::Start(name.clone()),
            Self::Stop { id, .. } => Op::Stop(id.clone()),
            Self::Remove { id, .. } => Op::Remove(id.clone()),
            Self::TearDown => Op::TearDown,
            Self::Delete => Op::Delete,
        }
    }
}

/// How far a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    #[default]
    Living,
    /// Containers are being stopped.
    Stopping,
    /// No container runs and none will.
    Stopped,
    /// Nothing of the pod is left on this node.
    Gone,
}

/// What to do now, and when to look again if nothing happens before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    pub actions: Vec<Action>,
    pub wake_at: Option<Timestamp>,
    pub stage: Stage,
    /// Containers in crash back-off, with its length.
    pub backing_off: BTreeMap<String, Duration>,
    pub end: Option<End>,
}

impl Decision {
    /// Looks again at `at` at the latest.
    pub fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }
}

/// `at + after`, as far as time reaches.
pub fn later(at: Timestamp, after: Duration) -> Timestamp {
    jiff::SignedDuration::try_from(after).ok().and_then(|d| at.saturating_add(d).ok()).unwrap_or(Timestamp::MAX)
}
