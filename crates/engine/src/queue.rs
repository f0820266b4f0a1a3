//! Who is due: one task per controller and key, as long as there is something to do.
use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base::{Backoff, Clock, SystemClock};
use controllers::{Action, CONTROLLERS, Call, Change, Context, Decision, Entry, Failure, Key, Note, World};
use futures::FutureExt;
use kube::Client;
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::Instant,
};

use crate::{
    EngineError, Settings, act,
    notes::Said,
    wire::{self},
};

/// Actions under way at once.
const AT_ONCE: usize = 64;
/// Notes waiting to be recorded; more are dropped.
const NOTES: usize = 4096;
/// Steps of one key in a row before it has to wait like one that fails.
const STEPS: u32 = 100;
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_CAP: Duration = Duration::from_secs(30);
/// As above, after a decision on an old state: the new one is about to come.
const STALE_FIRST: Duration = Duration::from_millis(1);
const STALE_CAP: Duration = Duration::from_secs(1);
/// How long an echo may take before the key is decided again without it.
const ECHO_FIRST: Duration = Duration::from_millis(50);
const ECHO_CAP: Duration = Duration::from_secs(5);
/// How long a call of a driver that failed waits; upstream's provisioner begins with a second.
const CALL_FIRST: Duration = Duration::from_millis(500);
const CALL_CAP: Duration = Duration::from_secs(300);
/// Everything is decided again after this, in case a change went unnoticed.
const RESYNC: Duration = Duration::from_secs(600);

/// Once everything was decided, objects that nobody looks at are folded, so many at a time.
const FOLD_AFTER: Duration = Duration::from_secs(5);
const FOLD: usize = 100;

/// Counts of one controller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub decisions: u64,
    pub actions: u64,
    pub conflicts: u64,
    pub failures: u64,
}

#[derive(Default)]
struct Counters {
    decisions: AtomicU64,
    actions: AtomicU64,
    conflicts: AtomicU64,
    failures: AtomicU64,
}

pub(crate) type Job = (usize, Key);

/// What all tasks share.
pub(crate) struct Core {
    pub(crate) client: Client,
    pub(crate) world: RwLock<World>,
    /// How many kinds were listed.
    pub(crate) synced: watch::Sender<usize>,
    /// Newest version seen of each kind.
    seen: Mutex<HashMap<&'static str, u64>>,
    pub(crate) settings: Settings,
    /// Keys with a task; the value wakes it. `None` before everything was listed.
    due: Mutex<Option<HashMap<Job, Arc<Notify>>>>,
    /// Held, by controller, while a decision that takes something shared is made and performed.
    taking: Vec<tokio::sync::Mutex<()>>,
    permits: Semaphore,
    counters: Vec<Counters>,
    told: Mutex<Said>,
    pub(crate) notes: mpsc::Sender<(usize, Note)>,
    pub(crate) notes_out: Mutex<Option<mpsc::Receiver<(usize, Note)>>>,
    pub(crate) stopping: watch::Sender<bool>,
    /// Calls of drivers that failed when they were made last.
    pub(crate) failed: Mutex<HashMap<Job, Failed>>,
    /// By driver: who may call it.
    pub(crate) callers: Mutex<HashMap<String, Arc<Semaphore>>>,
    idle: Notify,
}

impl Core {
    pub(crate) fn new(client: Client, settings: Settings) -> Self {
        let (notes, notes_out) = mpsc::channel(NOTES);
        Self {
            client,
            world: RwLock::default(),
            synced: watch::Sender::new(0),
            seen: Mutex::default(),
            settings,
            due: Mutex::new(None),
            taking: CONTROLLERS.iter().map(|_| tokio::sync::Mutex::new(())).collect(),
            permits: Semaphore::new(AT_ONCE),
            counters: CONTROLLERS.iter().map(|_| Counters::default()).collect(),
            told: Mutex::default(),
            notes,
            notes_out: Mutex::new(Some(notes_out)),
            stopping: watch::Sender::new(false),
            failed: Mutex::default(),
            callers: Mutex::default(),
            idle: Notify::new(),
        }
    }

    pub(crate) fn stats(&self) -> Vec<Stats> {
        let of = |c: &AtomicU64| c.load(Ordering::Relaxed);
        let row = |c: &Counters| Stats {
            decisions: of(&c.decisions),
            actions: of(&c.actions),
            conflicts: of(&c.conflicts),
            failures: of(&c.failures),
        };
        self.counters.iter().map(row).collect()
    }

    /// Remembers that everything up to a version of a kind was seen.
    pub(crate) fn seen(&self, kind: &'static str, revision: &str) {
        let mut seen = self.seen.lock();
        let last = seen.entry(kind).or_default();
        *last = (*last).max(number(revision));
    }

    /// Whether an object's text is the state that is known already, most often from the answer to an action. If so, that
    /// it was seen is remembered, also in `from`.
    pub(crate) fn knows(&self, kind: &'static str, text: &str, from: &mut String) -> bool {
        let Ok(head) = serde_json::from_str::<wire::Head<'_>>(text) else { return false };
        if !self.world.read().entry(&head.key(kind)).is_some_and(|known| head.is(&known.meta)) {
            return false;
        }
        head.resource_version().clone_into(from);
        self.seen(kind, from);
        true
    }

    /// Takes in what a list (without `revision`) or a watch told.
    pub(crate) fn observe(self: &Arc<Self>, key: Key, entry: Option<Entry>, revision: Option<&str>) {
        let mut world = self.world.write();
        if let Some(revision) = revision {
            self.seen(key.kind, revision);
            // An answer may have told of the next object of that name already.
            let newer = |e: &Entry| number(&e.meta.resource_version) > number(revision);
            if entry.is_none() && world.entry(&key).is_some_and(newer) {
                return;
            }
        }
        self.apply(&mut world, key, entry);
    }

    /// Takes in what an action's answer told, unless the watch is past it. A deletion seen by the watch is so never
    /// undone by an answer that comes late.
    pub(crate) fn learn(self: &Arc<Self>, entry: Entry) {
        let mut world = self.world.write();
        let kind = entry.meta.key.kind;
        if number(&entry.meta.resource_version) > self.seen.lock().get(kind).copied().unwrap_or_default() {
            self.apply(&mut world, entry.meta.key.clone(), Some(entry));
        }
    }

    /// Changes what is known of an object until the server tells more.
    pub(crate) fn assume(self: &Arc<Self>, key: &Key, change: impl FnOnce(&Entry) -> Option<Entry>) {
        let mut world = self.world.write();
        if let Some(entry) = world.entry(key).and_then(change) {
            self.apply(&mut world, key.clone(), Some(entry));
        }
    }

    fn apply(self: &Arc<Self>, world: &mut World, key: Key, entry: Option<Entry>) {
        if let (Some(new), Some(old)) = (&entry, world.entry(&key)) {
            let stale = number(&new.meta.resource_version) < number(&old.meta.resource_version);
            if stale && new.meta.uid == old.meta.uid {
                return;
            }
        }
        let change = world.apply(key, entry, SystemClock.now());
        self.wake(world, &change);
    }

    fn wake(self: &Arc<Self>, world: &World, change: &Change) {
        let mut due = self.due.lock();
        let Some(due) = due.as_mut() else { return };
        for (i, controller) in CONTROLLERS.iter().enumerate() {
            let wakes = || {
                (controller.wakes)(world, change, &mut |key| {
                    let own = key == change.key;
                    let job = (i, key);
                    if !own || due.contains_key(&job) {
                        return self.enqueue(due, job, None);
                    }
                    // Most changes ask for nothing of most controllers: a task for each would cost more than the answer.
                    let decision = self.decide(&job, world);
                    if decision == Decision::default() {
                        self.tell(&job, Vec::new());
                    } else {
                        self.enqueue(due, job, Some(decision));
                    }
                });
            };
            if catch_unwind(AssertUnwindSafe(wakes)).is_err() {
                tracing::error!(controller = controller.name, about = %change.key, "a fault in holdfast: who waits for this was not told");
            }
        }
    }

    /// Begins the job's task, with a decision if one was made, or wakes it.
    fn enqueue(self: &Arc<Self>, due: &mut HashMap<Job, Arc<Notify>>, job: Job, decided: Option<Decision>) {
        if *self.stopping.borrow() {
            return;
        }
        if let Some(notify) = due.get(&job) {
            notify.notify_one();
            return;
        }
        let notify = Arc::new(Notify::new());
        due.insert(job.clone(), notify.clone());
        tokio::spawn(work(self.clone(), job, notify, decided));
    }

    fn decide(&self, (controller, key): &Job, world: &World) -> Decision {
        let context = self.context();
        self.counters[*controller].decisions.fetch_add(1, Ordering::Relaxed);
        let controller = &CONTROLLERS[*controller];
        // One object that nobody foresaw must not take the others' watch with it.
        catch_unwind(AssertUnwindSafe(|| (controller.decide)(key, world, &context))).unwrap_or_else(|_| {
            tracing::error!(controller = controller.name, %key, "a fault in holdfast: this object is left as it is until it changes");
            Decision::settled()
        })
    }

    /// What decisions may know besides the world.
    pub(crate) fn context(&self) -> Context {
        Context { now: SystemClock.now(), root_ca: self.settings.root_ca.clone() }
    }

    /// Whether everything was listed, so that decisions are made.
    pub(crate) fn is_deciding(&self) -> bool {
        self.due.lock().is_some()
    }

    /// Decides everything.
    pub(crate) fn wake_all(self: &Arc<Self>) {
        let world = self.world.read();
        for entry in wire::watched().flat_map(|k| world.entries(k.kind)) {
            self.wake(&world, &Change { key: entry.meta.key.clone(), old: None, new: Some(entry.clone()) });
        }
    }

    /// Begins no more steps and waits for those under way.
    pub(crate) async fn stop(&self) {
        self.stopping.send_replace(true);
        loop {
            let idle = self.idle.notified();
            if self.due.lock().as_ref().is_none_or(HashMap::is_empty) {
                return;
            }
            idle.await;
        }
    }

    /// Lets others choose a volume again, and tells of it where it is still there for the taking.
    fn release(self: &Arc<Self>, volume: &Key) {
        let mut world = self.world.write();
        if let Some(change) = world.release(volume) {
            self.wake(&world, &change);
        }
    }

    /// How long a call has yet to wait because it failed a moment ago.
    fn too_early(&self, job: &Job, call: &Call) -> Option<Duration> {
        let failed = self.failed.lock();
        let last = failed.get(job).filter(|f| call.repeats(&f.call))?;
        last.again.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// Remembers a call that failed; after how long it may be made again.
    fn note_failure(&self, job: &Job, call: Call) -> Duration {
        let mut failed = self.failed.lock();
        let mut backoff = match failed.remove(job) {
            Some(last) if call.repeats(&last.call) => last.backoff,
            _ => Backoff::new(CALL_FIRST, CALL_CAP),
        };
        let delay = backoff.delay();
        failed.insert(job.clone(), Failed { call, again: Instant::now() + delay, backoff });
        delay
    }

    fn tell(&self, job: &Job, notes: Vec<Note>) {
        let news = self.told.lock().replace(job, notes, Instant::now());
        self.record(job, news);
    }

    /// Tells what is new, and goes on remembering what was told before.
    pub(crate) fn tell_also(&self, job: &Job, notes: Vec<Note>) {
        let news = self.told.lock().add(job, notes, Instant::now());
        self.record(job, news);
    }

    fn record(&self, job: &Job, notes: impl IntoIterator<Item = Note>) {
        for note in notes {
            tracing::debug!(controller = CONTROLLERS[job.0].name, about = %note.about, reason = note.reason, "{}", note.message);
            if self.notes.try_send((job.0, note)).is_err() {
                tracing::debug!("too many Events at once; one is dropped");
            }
        }
    }
}

/// Versions are numbers that grow, across all objects of a kind.
fn number(revision: &str) -> u64 {
    revision.parse().unwrap_or_default()
}

/// Waits until every kind was listed, then keeps everything decided.
pub(crate) async fn start(core: Arc<Core>) {
    let kinds = wire::watched().count();
    // The sender lives in `core`.
    let _ = core.synced.subscribe().wait_for(|n| *n >= kinds).await;
    *core.due.lock() = Some(HashMap::new());
    loop {
        core.wake_all();
        tokio::time::sleep(FOLD_AFTER).await;
        while core.world.write().fold(FOLD) {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(RESYNC).await;
    }
}

/// What a step came to.
pub(crate) enum Outcome {
    /// The world has the result: decide again.
    Done,
    /// It was done, but the world does not show it yet.
    Unseen,
    /// The decision was made on an old state.
    Stale,
    /// A driver was called, and nothing has to be written.
    Heard,
    /// A driver said no; what that leads to was done.
    Refused {
        call: Box<Call>,
        failure: Failure,
    },
    /// The same call failed a moment ago.
    TooEarly(Duration),
    Failed(crate::EngineError),
}

/// A call that failed, and when it may be made again.
pub(crate) struct Failed {
    call: Call,
    again: Instant,
    backoff: Backoff,
}

/// How long a key waits before its next step, by what the last one came to.
struct Waits {
    retry: Backoff,
    stale: Backoff,
    echo: Backoff,
}

impl Waits {
    const fn new() -> Self {
        Self {
            retry: Backoff::new(RETRY_FIRST, RETRY_CAP),
            stale: Backoff::new(STALE_FIRST, STALE_CAP),
            echo: Backoff::new(ECHO_FIRST, ECHO_CAP),
        }
    }
}

/// Decides and acts on one key until there is nothing left to do.
async fn work(core: Arc<Core>, job: Job, notify: Arc<Notify>, mut decided: Option<Decision>) {
    let mut stop = core.stopping.subscribe();
    let mut waits = Waits::new();
    let mut steps = 0;
    while !*stop.borrow() {
        let tried = AssertUnwindSafe(step(&core, &job, decided.take())).catch_unwind().await;
        let (outcome, again) = tried.unwrap_or_else(|_| (Some(Outcome::Failed(EngineError::Fault)), None));
        let (delay, wakeable) = match outcome {
            None => {
                if settle(&core, &job, &notify, again) {
                    return;
                }
                waits = Waits::new();
                steps = 0;
                (again.unwrap_or_default(), true)
            }
            Some(Outcome::Done) if steps < STEPS => {
                steps += 1;
                waits = Waits::new();
                continue;
            }
            Some(Outcome::Done) => {
                tracing::warn!(controller = CONTROLLERS[job.0].name, key = %job.1, "does not come to rest; slowing down");
                (waits.retry.delay(), false)
            }
            Some(Outcome::Heard) if again.is_none() => continue,
            Some(Outcome::Heard) => (again.unwrap_or_default(), true),
            Some(Outcome::TooEarly(left)) => (left, true),
            Some(Outcome::Refused { call, failure }) => {
                let (controller, name, driver) = (CONTROLLERS[job.0].name, call.request.name(), call.driver.clone());
                let delay = core.note_failure(&job, *call);
                tracing::info!(controller, key = %job.1, driver, call = name, %failure, ?delay, "trying again");
                (delay, true)
            }
            Some(Outcome::Unseen) => (waits.echo.delay(), true),
            Some(Outcome::Stale) => (waits.stale.delay(), true),
            Some(Outcome::Failed(error)) => {
                let delay = waits.retry.delay();
                let (controller, error) = (CONTROLLERS[job.0].name, base::chain(&error));
                tracing::warn!(controller, key = %job.1, error, ?delay, "trying again");
                (delay, false)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = notify.notified(), if wakeable => {}
            _ = stop.changed() => {}
        }
    }
    core.due.lock().as_mut().map(|due| due.remove(&job));
    core.idle.notify_waiters();
}

/// Ends the key's task unless it was woken meanwhile or has to look again; whether it ended.
fn settle(core: &Core, job: &Job, notify: &Notify, again: Option<Duration>) -> bool {
    if again.is_some() {
        return false;
    }
    let mut due = core.due.lock();
    // Wakes come under this lock, so that none is lost between the look and the removal.
    let woken = notify.notified().now_or_never().is_some();
    if woken {
        notify.notify_one();
        return false;
    }
    due.as_mut().map(|due| due.remove(job));
    core.idle.notify_waiters();
    true
}

/// A volume that nobody else chooses, until this is dropped.
struct Held<'a>(&'a Arc<Core>, Key);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.release(&self.1);
    }
}

/// One decision, unless it was made, and its action.
async fn step(core: &Arc<Core>, job: &Job, decided: Option<Decision>) -> (Option<Outcome>, Option<Duration>) {
    let counters = &core.counters[job.0];
    let count = |c: &AtomicU64| c.fetch_add(1, Ordering::Relaxed);
    let decide = || core.decide(job, &core.world.read());
    let mut decision = decided.unwrap_or_else(decide);
    let (mut permit, mut turn, mut held) = (None, None, None);
    if decision.takes {
        // First, so that no more is held than is acted on. The semaphore is never closed.
        permit = core.permits.acquire().await.ok();
        turn = Some(core.taking[job.0].lock().await);
        decision = decide();
        held = decision.holds().cloned().map(|volume| {
            // Nobody chooses it from here on: the next may choose while this is written.
            core.world.write().hold(volume.clone());
            turn = None;
            Held(core, volume)
        });
    }
    if !decision.wake.is_empty()
        && let Some(due) = core.due.lock().as_mut()
    {
        decision.wake.drain(..).for_each(|key| core.enqueue(due, (job.0, key), None));
    }
    let Some(action) = decision.action else {
        core.tell(job, decision.notes);
        if core.world.read().entry(&job.1).is_none() {
            core.failed.lock().remove(job);
        }
        return (None, decision.again);
    };
    if let Action::Call(call) = &action
        && let Some(left) = core.too_early(job, call)
    {
        return (Some(Outcome::TooEarly(left)), None);
    }
    tracing::debug!(controller = CONTROLLERS[job.0].name, key = %job.1, ?action, "act");
    if let Action::Call(call) = action {
        count(&counters.actions);
        core.tell_also(job, decision.notes);
        let (outcome, again) = Box::pin(core.drive(job, *call)).await;
        return (Some(outcome), again);
    }
    if permit.is_none() {
        permit = core.permits.acquire().await.ok();
    }
    // Apart from the task, which most often has nothing to perform and is small so.
    let outcome = Box::pin(act::perform(core, action)).await;
    drop(permit);
    drop(held);
    drop(turn);
    match &outcome {
        Outcome::Done | Outcome::Unseen => {
            count(&counters.actions);
            if !decision.notes.is_empty() {
                core.tell(job, decision.notes);
            }
        }
        Outcome::Stale | Outcome::Heard | Outcome::TooEarly(_) => drop(count(&counters.conflicts)),
        Outcome::Refused { .. } => drop(count(&counters.failures)),
        Outcome::Failed(error) => {
            count(&counters.failures);
            if let (Some(note), Some(reason)) = (decision.refused, error.refusal()) {
                let message = format!("{}: {reason}", note.message);
                core.tell(job, vec![Note { message, ..note }]);
            }
        }
    }
    (Some(outcome), None)
}
