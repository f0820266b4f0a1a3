//! One pod on this node, from its appearance to its last trace.
//!
//! A loop: look at the runtime, decide, write the status, do what was decided, wait until something happens. It sleeps on
//! news from the API, the runtime, the probes, the volumes, finished operations and the decision's own deadline; it never
//! polls. Dropping it leaves containers as they are.
use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::Arc,
    time::Duration,
};

use base::{Backoff, chain};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use runtime::{ContainerId, ContainerState, PodUid, SandboxStatus};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Shared, identity, pod_files, pod_volumes,
    prober::{self, Probers, Verdict},
    start, status_writer, work, writable,
};
use crate::{
    core::{
        decide::decide,
        facts::{Action, Cause, Decision, End, Facts, Memory, Op, Stage},
        history::SCHEME,
        probe::Health,
        status,
    },
    logs::message,
    spec::container::{self, Kind, Member, members},
};

/// News for a worker.
#[derive(Debug)]
pub enum Mail {
    /// The object, as the API has it now.
    Pod(Arc<Pod>),
    /// The object is gone.
    Gone,
    /// Something changed in the runtime.
    Runtime,
    /// The node throws the pod out.
    Evict { reason: String, message: String },
}

/// What others may know about a pod on this node.
#[derive(Debug, Clone)]
pub struct View {
    pub pod: Arc<Pod>,
    pub status: PodStatus,
    pub sandbox: Option<Arc<SandboxStatus>>,
    pub volumes: BTreeMap<String, volumes::Ready>,
    /// What those of CSI drivers are made of.
    pub driven: BTreeMap<String, Arc<volumes::Source>>,
}

/// How an operation ended.
pub(super) enum Outcome {
    Sandbox(Result<(), String>),
    Started(String, Option<Result<ContainerId, start::Failed>>),
    Stopped,
    Removed,
    TornDown(Result<(), String>),
    Deleted(Result<(), String>),
    Written(status_writer::Written, Box<PodStatus>),
}

/// A pod's worker.
pub struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) pod: Arc<Pod>,
    pub(super) members: Vec<Member>,
    mail: mpsc::UnboundedReceiver<Mail>,
    view: watch::Sender<View>,
    pods: watch::Sender<Arc<Pod>>,
    pub(super) memory: Memory,
    /// Our idea of the status, and what was last written.
    status: PodStatus,
    pub(super) written: PodStatus,
    pub(super) writing: bool,
    pub(super) write_retry: Option<tokio::time::Instant>,
    pub(super) write_backoff: Backoff,
    pub(super) sandbox: Option<SandboxStatus>,
    stale: bool,
    messages: BTreeMap<ContainerId, String>,
    pub(super) volumes: watch::Receiver<pod_volumes::View>,
    keeper: Option<(CancellationToken, AbortOnDropHandle<()>)>,
    pub(super) told_waits: BTreeMap<String, String>,
    pub(super) busy: BTreeMap<Op, usize>,
    pub(super) jobs: JoinSet<(Option<Op>, Outcome)>,
    probers: BTreeMap<ContainerId, Probers>,
    verdicts: (mpsc::UnboundedSender<Verdict>, mpsc::UnboundedReceiver<Verdict>),
    pub(super) changed: Arc<Notify>,
    pub(super) ending: CancellationToken,
    pub(super) sandbox_backoff: Backoff,
    pub(super) end_backoff: Backoff,
    pub(super) watching: BTreeMap<String, start::Watching>,
    adopted: bool,
}

impl Worker {
    /// A worker, and what others may see of it.
    pub fn new(
        shared: Arc<Shared>,
        pod: Arc<Pod>,
        mail: mpsc::UnboundedReceiver<Mail>,
    ) -> (Self, watch::Receiver<View>) {
        let status = pod.status.clone().unwrap_or_default();
        let (volumes, driven) = (BTreeMap::new(), BTreeMap::new());
        let view = View { pod: pod.clone(), status: status.clone(), sandbox: None, volumes, driven };
        let (view, seen) = watch::channel(view);
        let slow = || Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        let worker = Self {
            members: members(&pod),
            pods: watch::channel(pod.clone()).0,
            pod,
            shared,
            mail,
            view,
            memory: Memory::default(),
            written: status.clone(),
            status,
            writing: false,
            write_retry: None,
            write_backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(10)),
            sandbox: None,
            stale: true,
            messages: BTreeMap::new(),
            volumes: watch::channel(pod_volumes::View::default()).1,
            keeper: None,
            told_waits: BTreeMap::new(),
            busy: BTreeMap::new(),
            jobs: JoinSet::new(),
            probers: BTreeMap::new(),
            verdicts: mpsc::unbounded_channel(),
            changed: Arc::new(Notify::new()),
            ending: CancellationToken::new(),
            sandbox_backoff: slow(),
            end_backoff: slow(),
            watching: BTreeMap::new(),
            adopted: false,
        };
        (worker, seen)
    }

    /// Runs until nothing of the pod is left.
    #[tracing::instrument(name = "pod", skip_all, fields(namespace = identity(&self.pod).1, name = identity(&self.pod).0))]
    pub async fn run(mut self) {
        loop {
            self.look().await;
            let decision = self.decide_and_tell();
            self.write_status();
            if decision.stage == Stage::Gone {
                break;
            }
            let now = self.shared.clock.now();
            let wake = decision.wake_at;
            for action in decision.actions {
                self.perform(action, now);
            }
            if !self.wait(wake).await {
                return;
            }
        }
        self.forget().await;
    }

    fn uid(&self) -> PodUid {
        PodUid(identity(&self.pod).2.to_owned())
    }

    /// Brings the observation up to date.
    async fn look(&mut self) {
        if std::mem::take(&mut self.stale) {
            match self.shared.runtime.status(&self.uid()).await {
                Ok(seen) => self.sandbox = seen,
                Err(error) => {
                    tracing::warn!(error = chain(&error), "could not ask the runtime about a pod");
                    self.stale = true;
                }
            }
        }
        if !std::mem::replace(&mut self.adopted, true) {
            self.adopt();
        }
        self.hide_unfinished_hooks();
        self.read_messages().await;
        self.mind_probes();
        self.mind_volumes();
    }

    /// Finishes what an earlier process may have left undone for a sandbox that exists.
    fn adopt(&mut self) {
        if let Some(sandbox) = self.sandbox.as_ref().filter(|s| s.ready)
            && let Err((path, error)) = pod_files::write(&self.shared, &self.pod, sandbox, true)
        {
            tracing::warn!(path, %error, "could not write a file of a pod");
        }
    }

    /// A container counts as running once its `postStart` hook has run, as upstream's.
    fn hide_unfinished_hooks(&mut self) {
        if self.must_end() {
            return;
        }
        let hooked = |name: &str| {
            let hook = |m: &&Member| m.container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some());
            self.members.iter().filter(hook).any(|m| m.container.name == name)
        };
        let Some(sandbox) = &mut self.sandbox else { return };
        for c in &mut sandbox.containers {
            let running = matches!(c.state, ContainerState::Running { .. });
            if running && self.busy.contains_key(&Op::Start(c.name.clone())) && hooked(&c.name) {
                c.state = ContainerState::Created;
                self.stale = true;
            }
        }
    }

    pub(super) fn must_end(&self) -> bool {
        self.memory.gone || self.memory.end.is_some() || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Reads termination messages of containers that ended since the last look.
    async fn read_messages(&mut self) {
        let Some(sandbox) = &self.sandbox else { return };
        for c in &sandbox.containers {
            let ContainerState::Exited { exit_code, .. } = &c.state else { continue };
            if self.messages.contains_key(&c.id) {
                continue;
            }
            let Some(member) = self.members.iter().find(|m| m.container.name == c.name) else { continue };
            if *exit_code != 0 {
                writable::tell(&self.shared, &self.pod, member, &c.user, &self.volumes.borrow().ready);
            }
            let layout = self.shared.config.layout.clone();
            let file = container::message_path(&layout, identity(&self.pod).2, &c.name, c.attempt);
            let fallback = member.container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
            let log =
                (fallback && *exit_code != 0).then(|| container::log_path(&layout, &self.pod, &c.name, c.attempt));
            let read = tokio::task::spawn_blocking(move || message::read(&file, log.as_deref())).await;
            self.messages.insert(c.id.clone(), read.unwrap_or_default());
        }
    }

    /// Every running container has its probes; nothing else has.
    fn mind_probes(&mut self) {
        let stopping = |id: &ContainerId| self.busy.contains_key(&Op::Stop(id.clone()));
        let Some(sandbox) = self.sandbox.clone() else {
            self.probers.clear();
            return;
        };
        let mut running = BTreeSet::new();
        for c in &sandbox.containers {
            let ContainerState::Running { started_at, .. } = c.state else { continue };
            let Some(member) = self.members.iter().find(|m| m.container.name == c.name) else { continue };
            if stopping(&c.id) || self.must_end() {
                continue;
            }
            running.insert(c.id.clone());
            if self.probers.contains_key(&c.id) || member.kind == Kind::Init || member.kind == Kind::Ephemeral {
                continue;
            }
            let health = self.first_health(member, &c.id);
            let target = prober::Target {
                pod: self.pod.clone(),
                member: member.clone(),
                id: c.id.clone(),
                host: start::host(&self.shared, &self.pod, &sandbox),
                started_at,
            };
            let probers = prober::spawn(&self.shared, target, health, self.verdicts.0.clone());
            self.probers.insert(c.id.clone(), probers);
            self.memory.containers.entry(c.name.clone()).or_default().health = Some((c.id.clone(), health));
        }
        self.probers.retain(|id, _| running.contains(id));
    }

    /// Health before the first answer. A container that was ready before this process started stays so.
    fn first_health(&self, member: &Member, id: &ContainerId) -> Health {
        let mut health = Health::new(&member.container);
        let s = &self.status;
        let all = s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten());
        let own = format!("{SCHEME}{}", id.0);
        for known in all.filter(|k| k.name == member.container.name && k.container_id.as_ref() == Some(&own)) {
            health.started |= known.started == Some(true);
            health.ready |= known.ready;
        }
        health
    }

    /// Volumes are kept from the first look until the pod must end.
    fn mind_volumes(&mut self) {
        let over = self.must_end() || matches!(self.status.phase.as_deref(), Some(status::FAILED | status::SUCCEEDED));
        if over {
            if let Some((cancel, task)) = self.keeper.take() {
                cancel.cancel();
                *self.busy.entry(Op::Volumes).or_default() += 1;
                self.jobs.spawn(async move {
                    // It ends by itself, and its failure would have been logged there.
                    let _ = task.await;
                    (Some(Op::Volumes), Outcome::Stopped)
                });
            }
        } else if self.keeper.is_none() {
            let (view, seen) = watch::channel(pod_volumes::View::default());
            self.volumes = seen;
            let cancel = CancellationToken::new();
            let task = pod_volumes::keep(self.shared.clone(), self.pods.subscribe(), view, cancel.clone());
            self.keeper = Some((cancel, AbortOnDropHandle::new(tokio::spawn(task))));
        }
    }

    /// Decides, and works the status out.
    fn decide_and_tell(&mut self) -> Decision {
        let (volumes_ready, volume_trouble) = {
            let volumes = self.volumes.borrow_and_update();
            (volumes.all, volumes.trouble.clone())
        };
        let busy: BTreeSet<Op> = self.busy.keys().cloned().collect();
        let host_ips = self.shared.host_ips();
        let mut facts = Facts {
            pod: &self.pod,
            members: &self.members,
            status: &self.status,
            saved: false,
            sandbox: self.sandbox.as_ref(),
            messages: &self.messages,
            volumes_ready,
            volume_trouble: volume_trouble.as_ref(),
            memory: &self.memory,
            busy: &busy,
            host_ips: &host_ips,
            now: self.shared.clock.now(),
        };
        // Whether the status is saved can only be said once it is known; deciding twice is cheap.
        let first = decide(&facts);
        let status = status::make(&facts, &first);
        facts.saved = status == self.written && !self.writing;
        let decision = if facts.saved { decide(&facts) } else { first };
        if let Some(end) = &decision.end {
            self.ending.cancel();
            if self.memory.end.as_ref().is_none_or(|before| before.grace != end.grace) {
                self.tell_volumes(end.grace);
            }
        }
        self.memory.end = decision.end.clone();
        self.status = status;
        self.tell_waits(&decision);
        let sandbox = self.sandbox.clone().map(Arc::new);
        let (volumes, driven) = {
            let seen = self.volumes.borrow();
            (seen.ready.clone(), seen.driven.clone())
        };
        let (pod, status) = (self.pod.clone(), self.status.clone());
        self.view.send_replace(View { pod, status, sandbox, volumes, driven });
        decision
    }

    /// What waits for somebody on behalf of the pod need not wait longer than the pod.
    fn tell_volumes(&self, grace: Duration) {
        let (volumes, uid) = (self.shared.volumes.clone(), identity(&self.pod).2.to_owned());
        drop(tokio::task::spawn_blocking(move || {
            if let Err(error) = volumes.ending(&uid, grace) {
                tracing::debug!(error = chain(&error), uid, "could not tell volumes that their pod ends");
            }
        }));
    }

    /// Writes the status if it changed; one write at a time.
    fn write_status(&mut self) {
        let vanished = self.memory.end.as_ref().is_some_and(|e| e.cause == Cause::Vanished);
        let early = self.write_retry.is_some_and(|at| at > tokio::time::Instant::now());
        if self.writing || vanished || early || self.status == self.written {
            return;
        }
        self.writing = true;
        let (shared, pod) = (self.shared.clone(), self.pod.clone());
        let (before, status) = (self.written.clone(), self.status.clone());
        self.jobs.spawn(async move {
            let done = status_writer::write(&shared, &pod, &before, &status).await;
            (None, Outcome::Written(done, Box::new(status)))
        });
    }

    fn perform(&mut self, action: Action, now: Timestamp) {
        tracing::debug!(?action, "next");
        let op = action.op();
        let job = work::job(self, action, now);
        *self.busy.entry(op.clone()).or_default() += 1;
        self.jobs.spawn(async move { (Some(op), job.await) });
    }

    /// Sleeps until something happened; false if the node is shutting down.
    async fn wait(&mut self, wake: Option<Timestamp>) -> bool {
        let now = self.shared.clock.now();
        let timer = wake.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO));
        let mut until = timer.map(|t| tokio::time::Instant::now() + t);
        if self.status != self.written && !self.writing {
            until = [until, self.write_retry].into_iter().flatten().min();
        }
        if self.stale && self.busy.is_empty() {
            // The runtime could not be asked.
            let soon = tokio::time::Instant::now() + Duration::from_secs(1);
            until = Some(until.map_or(soon, |u| u.min(soon)));
        }
        let sleep = async {
            match until {
                Some(at) => tokio::time::sleep_until(at).await,
                None => pending().await,
            }
        };
        let changed = self.changed.clone();
        tokio::select! {
            mail = self.mail.recv() => match mail {
                Some(mail) => self.take(mail),
                None => return false,
            },
            Some(done) = self.jobs.join_next() => self.finish_job(done),
            Some(verdict) = self.verdicts.1.recv() => self.hear(&verdict),
            Ok(()) = self.volumes.changed() => {}
            () = changed.notified() => self.retry_troubles(),
            () = sleep => {}
        }
        // Whatever else is already there belongs to the same look.
        while let Ok(mail) = self.mail.try_recv() {
            self.take(mail);
        }
        while let Ok(verdict) = self.verdicts.1.try_recv() {
            self.hear(&verdict);
        }
        while let Some(done) = self.jobs.try_join_next() {
            self.finish_job(done);
        }
        true
    }

    fn take(&mut self, mail: Mail) {
        match mail {
            Mail::Pod(pod) => {
                if self.pod.spec != pod.spec {
                    self.retry_troubles();
                }
                self.keep_foreign_conditions(&pod);
                self.members = members(&pod);
                self.pod = pod.clone();
                self.pods.send_replace(pod);
            }
            Mail::Gone => {
                self.memory.gone = true;
                self.memory.end_retry_at = None;
            }
            Mail::Runtime => self.stale = true,
            Mail::Evict { reason, message } => {
                if self.memory.end.is_none() {
                    let cause = Cause::Failed { reason, message };
                    self.memory.end = Some(End { cause, since: self.shared.clock.now(), grace: Duration::ZERO });
                    self.tell_volumes(Duration::ZERO);
                }
            }
        }
    }

    /// Conditions of the scheduler, of readiness gates and the like are theirs to change.
    fn keep_foreign_conditions(&mut self, pod: &Pod) {
        let own = |t: &str| ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"].contains(&t);
        let theirs = pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).filter(|c| !own(&c.type_));
        let theirs: Vec<_> = theirs.cloned().collect();
        for status in [&mut self.status, &mut self.written] {
            let mut list = status.conditions.take().unwrap_or_default();
            list.retain(|c| own(&c.type_) || theirs.iter().any(|t| t.type_ == c.type_));
            for t in &theirs {
                match list.iter_mut().find(|c| c.type_ == t.type_) {
                    Some(c) => *c = t.clone(),
                    None => list.push(t.clone()),
                }
            }
            status.conditions = (!list.is_empty()).then_some(list);
        }
    }

    fn retry_troubles(&mut self) {
        for m in self.memory.containers.values_mut() {
            // Pulls keep their back-off; everything else may have been cured.
            if let Some(t) = m.trouble.as_mut().filter(|t| t.later.is_none()) {
                t.retry_at = None;
            }
        }
    }

    fn hear(&mut self, v: &Verdict) {
        let Some(m) = self.memory.containers.get_mut(&v.container) else { return };
        let Some((id, health)) = &mut m.health else { return };
        if *id != v.id {
            return;
        }
        health.set(v.kind, v.good);
        if health.started
            && let Some(p) = self.probers.get(&v.id)
        {
            p.started();
        }
    }

    fn finish_job(&mut self, done: Result<(Option<Op>, Outcome), tokio::task::JoinError>) {
        let (op, outcome) = match done {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(%error, "an operation on a pod broke off; this is a bug");
                self.busy.clear();
                self.writing = false;
                return;
            }
        };
        if let Some(op) = op {
            match self.busy.get_mut(&op) {
                Some(n) if *n > 1 => *n -= 1,
                _ => drop(self.busy.remove(&op)),
            }
            self.stale = true;
        }
        self.learn(outcome);
    }

    /// The last traces: logs and remembered failures.
    async fn forget(self) {
        let (name, namespace, uid) = identity(&self.pod);
        self.shared.images.forget(uid);
        let dir = container::log_dir(&self.shared.config.layout, namespace, name, uid);
        match tokio::fs::remove_dir_all(&dir).await {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(error = %e, dir = %dir.display(), "could not remove a pod's logs");
            }
            _ => {}
        }
    }
}
