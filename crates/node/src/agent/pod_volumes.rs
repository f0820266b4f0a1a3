//! Keeps one pod's volumes ready and current: looks up what they name, sets them up, and again whenever that changes.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use base::{Backoff, chain};
use futures::future::join_all;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, Endpoints, PersistentVolume, PersistentVolumeClaim, Pod, Secret, ServiceAccount, Volume},
    storage::v1::{CSIDriver, VolumeAttachment},
};
use kube::api::PostParams;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use volumes::{Cancel, Hold, Inputs, Need, Next, Ready, Resolved, Source, VolumeError, needs, resolve};

mod look_up;
mod progress;
mod served;

use super::{
    Shared,
    attach::{Refusal, attach},
    csi::in_use,
    follow::{follow, not_shown},
    growth::{Growths, Pair},
    holders::{Wish, alone},
    identity, image_volumes,
    objects::{TrustBundles, Watched},
    volume_failure::{Failure, Step, failure, summary, trouble},
};
use crate::{core::facts::VolumeTrouble, spec::security::ownership};

const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_CAP: Duration = Duration::from_secs(10);
/// Between looks at whether another node has let go of a volume.
const ATTACH_FIRST: Duration = Duration::from_millis(100);
const ATTACH_CAP: Duration = Duration::from_secs(2);
/// A volume that is not attached after this is told about: upstream's two minutes.
const ATTACH_TIME: Duration = Duration::from_secs(120);
/// What still keeps a volume is told again after this, so that its Event is not forgotten: a server keeps one for an hour.
const REMIND: Duration = Duration::from_secs(25 * 60);
/// Upstream renews tokens after 80 % of their life, or after a day.
const TOKEN_LIFE_PERCENT: u32 = 80;
const TOKEN_MOST: Duration = Duration::from_secs(24 * 3600);

/// The pod's volumes as they are now.
#[derive(Debug, Clone, Default)]
pub struct View {
    pub ready: BTreeMap<String, Ready>,
    /// What those of CSI drivers are made of.
    pub driven: BTreeMap<String, Arc<Source>>,
    /// Every volume of the pod is in `ready`.
    pub all: bool,
    /// What keeps the others from being there.
    pub trouble: Option<VolumeTrouble>,
}

struct Token {
    value: String,
    renew_at: Instant,
}

#[derive(Default)]
struct Held {
    config_maps: BTreeMap<String, Arc<Watched<ConfigMap>>>,
    secrets: BTreeMap<String, Arc<Watched<Secret>>>,
    endpoints: BTreeMap<(String, String), Arc<Watched<Endpoints>>>,
    claims: BTreeMap<String, Arc<Watched<PersistentVolumeClaim>>>,
    volumes: BTreeMap<String, Arc<Watched<PersistentVolume>>>,
    drivers: BTreeMap<String, Arc<Watched<CSIDriver>>>,
    attachments: BTreeMap<String, Arc<Watched<VolumeAttachment>>>,
    trust_bundles: Option<Arc<Watched<TrustBundles>>>,
}

struct Keeper {
    shared: Arc<Shared>,
    pods: watch::Receiver<Arc<Pod>>,
    view: watch::Sender<View>,
    changed: Arc<Notify>,
    held: Held,
    tokens: BTreeMap<Need, Token>,
    done: BTreeMap<String, Resolved>,
    /// The failure last told about, per volume, and when.
    told: BTreeMap<String, (String, Instant)>,
    backoff: Backoff,
    retry_at: Option<Instant>,
    growths: Growths,
    /// When volumes whose drivers want that are published again.
    publish_at: BTreeMap<String, Instant>,
    /// Such publications, beside everything else: their driver may not answer.
    publishing: JoinSet<(String, Result<Ready, VolumeError>)>,
    publishing_now: BTreeSet<String>,
    /// Since when volumes are waited for that are not attached.
    unattached: BTreeMap<String, Instant>,
    /// When to look again whether other nodes have let go of volumes.
    attach_at: Option<Instant>,
    attach_backoff: Backoff,
    /// What is being set up is not wanted any more.
    given_up: Cancel,
    /// Volumes with new content that containers may not see yet by their sub-paths.
    unfollowed: BTreeMap<String, (Resolved, Ready)>,
    attendants: served::Attendants,
}

/// Gives up when it goes.
struct GivenUp(Cancel);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Runs until cancelled; what is being set up is finished, or given up, first, so that a tear-down may follow.
pub async fn keep(
    shared: Arc<Shared>,
    pods: watch::Receiver<Arc<Pod>>,
    view: watch::Sender<View>,
    cancel: CancellationToken,
) {
    let mut keeper = Keeper {
        shared,
        pods,
        view,
        changed: Arc::new(Notify::new()),
        held: Held::default(),
        tokens: BTreeMap::new(),
        done: BTreeMap::new(),
        told: BTreeMap::new(),
        backoff: Backoff::new(RETRY_FIRST, RETRY_CAP),
        retry_at: None,
        growths: Growths::default(),
        publish_at: BTreeMap::new(),
        publishing: JoinSet::new(),
        publishing_now: BTreeSet::new(),
        unfollowed: BTreeMap::new(),
        attendants: served::Attendants::default(),
        unattached: BTreeMap::new(),
        attach_at: None,
        attach_backoff: Backoff::new(ATTACH_FIRST, ATTACH_CAP),
        given_up: Cancel::default(),
    };
    let mut drivers = keeper.shared.config.drivers.watch();
    // Also where this future is dropped: nobody waits for what it began.
    let given_up = GivenUp(keeper.given_up.clone());
    let cancelled = cancel.clone();
    let _watch = AbortOnDropHandle::new(tokio::spawn(async move {
        cancelled.cancelled().await;
        drop(given_up);
    }));
    loop {
        let pod = keeper.pods.borrow_and_update().clone();
        // Those that come after this look wake the next.
        drivers.mark_unchanged();
        keeper.round(&pod).await;
        tokio::select! {
            // A server that does not answer keeps nobody from going.
            () = cancel.cancelled() => break,
            () = keeper.show_served(&pod) => {}
        }
        if cancel.is_cancelled() {
            break;
        }
        let token = keeper.tokens.values().map(|t| t.renew_at).min();
        let own = [keeper.retry_at, keeper.attach_at, keeper.growths.wake(), token];
        let published = keeper.publish_at.values().copied();
        let remind = keeper.told.values().map(|(_, at)| *at + REMIND);
        let overdue = keeper.unattached.values().map(|since| *since + ATTACH_TIME);
        let wake = own.into_iter().flatten().chain(published).chain(overdue.filter(|at| *at > Instant::now()));
        let wake = wake.chain(remind.filter(|at| *at > Instant::now())).min();
        let timer = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => break,
            Some(done) = keeper.publishing.join_next() => keeper.published(&pod, done),
            Some(volume) = keeper.attendants.ended() => keeper.lose(&volume),
            () = keeper.changed.notified() => {}
            Ok(()) = drivers.changed(), if keeper.retry_at.is_some() => {}
            changed = keeper.pods.changed() => if changed.is_err() { break },
            () = timer => {}
        }
    }
    while keeper.publishing.join_next().await.is_some() {}
}

impl Keeper {
    async fn round(&mut self, pod: &Arc<Pod>) {
        self.retry_at = None;
        let all = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        let list: Vec<Volume> = all.filter(|v| !image_volumes::is_one(v)).cloned().collect();
        let wanted: BTreeMap<String, Vec<Need>> = list.iter().map(|v| (v.name.clone(), needs(pod, v))).collect();
        let all: BTreeSet<&Need> = wanted.values().flatten().collect();
        let mut inputs = Inputs {
            node: self.shared.capacity.size(),
            node_name: self.shared.config.node_name.clone(),
            ..Inputs::default()
        };
        let unknown = self.look_up(pod, &all, &mut inputs);
        let failed_tokens = self.fetch_tokens(pod, &all, &mut inputs).await;
        let due = self.due();
        let mut todo = Vec::new();
        let mut failures = Vec::new();
        for volume in &list {
            let needs = &wanted[&volume.name];
            // A look-up that has not been answered yet will wake us.
            if needs.iter().any(|n| unknown.contains(n)) {
                continue;
            }
            if let Some(error) = needs.iter().find_map(|n| failed_tokens.get(n)) {
                let (volume, why) = (volume.name.clone(), error.clone());
                let next = Next::Retry { after: RETRY_FIRST };
                failures.push(Failure::new(&volume, why, next, Step::SetUp));
                continue;
            }
            match resolve(pod, volume, &inputs) {
                Ok(resolved) if self.is_driven(&volume.name) => {
                    if due.contains(&volume.name) {
                        self.publish_again(pod, &volume.name, resolved);
                    }
                }
                Ok(resolved) if self.done.get(&volume.name) == Some(&resolved) => {}
                Ok(resolved) => todo.push((volume.name.clone(), resolved)),
                Err(VolumeError::NotRead { .. }) => {}
                // It is there; that somebody takes it away from under the pod is not for this node to mend.
                Err(VolumeError::Attach { .. }) if self.done.contains_key(&volume.name) => {}
                Err(error) => failures.push(failure(&volume.name, &error)),
            }
        }
        self.wait_for_attachments(&mut failures);
        let (todo, elsewhere) = self.attach(pod, &list, &inputs, todo).await;
        failures.extend(elsewhere);
        let (todo, refused) = self.take(pod, &list, &inputs, todo);
        failures.extend(refused);
        // Some can only be grown before they are mounted.
        let about_to: Vec<_> = todo.iter().map(|(name, resolved, _)| (name.clone(), resolved.clone())).collect();
        self.grow(pod, &list, &inputs, about_to).await;
        let (todo, untold) = self.tell_in_use(pod, todo).await;
        failures.extend(untold);
        // What waits for objects need not wait for servers, too.
        let waiting = |f: &&Failure| f.step != Step::Process && !f.quiet && f.next == Next::WaitForObject;
        for failure in failures.iter().filter(waiting) {
            self.tell(pod, failure.volume.clone(), failure.reason, failure.said(), false);
        }
        let (made, failed) = self.set_up(pod, todo).await;
        failures.extend(failed);
        let new = made.iter().map(|(name, resolved, _)| (name.clone(), resolved.clone()));
        let mounted = self.done.clone().into_iter().chain(new).collect();
        self.grow(pod, &list, &inputs, mounted).await;
        for (name, resolved, ready) in made {
            let driven = matches!(resolved.source, Source::Csi(_)).then(|| Arc::new(resolved.source.clone()));
            if matches!(&resolved.source, Source::Csi(source) if source.republish) {
                self.publish_at.insert(name.clone(), Instant::now() + self.shared.config.publish_every);
            }
            if matches!(resolved.source, Source::Files { followed: true, .. }) {
                self.unfollowed.insert(name.clone(), (resolved.clone(), ready.clone()));
            }
            self.attend(pod, &name, &resolved, &ready);
            self.done.insert(name.clone(), resolved);
            self.view.send_modify(|v| {
                v.driven.extend(driven.map(|source| (name.clone(), source)));
                v.ready.insert(name, ready);
            });
        }
        self.conclude(pod, &list, failures);
        self.follow(pod).await;
    }

    /// Lets sub-paths follow the volumes that were set up anew.
    async fn follow(&mut self, pod: &Arc<Pod>) {
        if self.unfollowed.is_empty() {
            return;
        }
        match follow(&self.shared, pod, self.unfollowed.values().cloned().collect()).await {
            Ok(()) => self.unfollowed.clear(),
            Err(why) => {
                self.tell(pod, String::new(), "FailedMount", not_shown(&why), false);
                self.retry_at.get_or_insert(Instant::now() + RETRY_CAP);
            }
        }
    }

    /// Whether a volume of a driver is there: what its objects say by now is of no use to it.
    fn is_driven(&self, volume: &str) -> bool {
        self.done.get(volume).is_some_and(|done| matches!(done.source, Source::Csi(_)))
    }

    /// The volumes that are to be published again now. Each has its next time, whatever comes of this one.
    fn due(&mut self) -> BTreeSet<String> {
        let now = Instant::now();
        let next = now + self.shared.config.publish_every;
        let mut due = BTreeSet::new();
        for (volume, at) in self.publish_at.iter_mut().filter(|(_, at)| **at <= now) {
            *at = next;
            due.insert(volume.clone());
        }
        due
    }

    /// Publishes a volume again, unless that is still going on.
    fn publish_again(&mut self, pod: &Pod, name: &str, resolved: Resolved) {
        if !self.publishing_now.insert(name.to_owned()) {
            return;
        }
        let (volumes, uid, own, name) =
            (self.shared.volumes.clone(), identity(pod).2.to_owned(), ownership(pod), name.to_owned());
        self.publishing.spawn_blocking(move || {
            let done = volumes.set_up(&uid, &name, &resolved, &own);
            (name, done)
        });
    }

    fn published(&mut self, pod: &Pod, done: Result<(String, Result<Ready, VolumeError>), tokio::task::JoinError>) {
        let (name, done) = match done {
            Ok(done) => done,
            Err(error) => return tracing::error!(%error, "publishing a volume again broke off; this is a bug"),
        };
        if let Err(error) = done {
            let failure = failure(&name, &error);
            self.shared.events.pod(pod, None, true, failure.reason, failure.said());
        }
        self.publishing_now.remove(&name);
    }

    /// Lets volumes that are not attached have their time before anybody is told.
    fn wait_for_attachments(&mut self, failures: &mut [Failure]) {
        let now = Instant::now();
        let waits = |volume: &String| failures.iter().any(|f| f.step == Step::Wait && f.volume == *volume);
        self.unattached.retain(|volume, _| waits(volume));
        for failure in failures.iter_mut().filter(|f| f.step == Step::Wait) {
            let since = *self.unattached.entry(failure.volume.clone()).or_insert(now);
            failure.quiet = now < since + ATTACH_TIME;
            if failure.quiet
                && let Some(rest) = failure.why.strip_prefix("timed out ")
            {
                failure.why = rest.to_owned();
            }
        }
    }

    /// Tells who detaches volumes that these are in use; gives back those of which that could be told.
    async fn tell_in_use(&self, pod: &Pod, todo: Vec<Todo>) -> (Vec<Todo>, Vec<Failure>) {
        let uid = identity(pod).2;
        let (mut told, mut failures) = (Vec::new(), Vec::new());
        for (volume, resolved, hold) in todo {
            if let Source::Csi(source) = &resolved.source
                && source.attaches
                && let Err(error) =
                    in_use::take(&self.shared, in_use::unique_name(&source.driver, &source.handle), uid).await
            {
                let why = format!("Volume not marked as in-use: {}", chain(&error));
                failures.push(Failure::new(&volume, why, Next::Retry { after: RETRY_FIRST }, Step::SetUp));
                continue;
            }
            told.push((volume, resolved, hold));
        }
        (told, failures)
    }

    /// Lets volumes have what their claims were promised.
    async fn grow(&mut self, pod: &Pod, list: &[Volume], inputs: &Inputs, volumes: Vec<(String, Resolved)>) {
        for (name, resolved) in volumes {
            let pair = list.iter().find(|v| v.name == name).and_then(|volume| pair_of(pod, volume, inputs));
            if let Some((claim, volume)) = pair {
                let pair = Pair { claim: claim.clone(), volume: volume.clone() };
                let in_use = self.done.contains_key(&name);
                self.growths.see(&self.shared, pod, &name, (&resolved, in_use), &pair).await;
            }
        }
    }

    /// Fetches missing and ageing tokens; gives back what could not be had. An old token stays in use till it is replaced.
    async fn fetch_tokens(&mut self, pod: &Pod, all: &BTreeSet<&Need>, inputs: &mut Inputs) -> BTreeMap<Need, String> {
        let mut failed = BTreeMap::new();
        self.tokens.retain(|need, _| all.contains(need));
        for need in all {
            let Need::Token { audience, expiration_seconds } = need else { continue };
            if self.tokens.get(need).is_none_or(|t| t.renew_at <= Instant::now()) {
                match request_token(&self.shared, pod, audience.as_deref(), *expiration_seconds).await {
                    Ok(token) => {
                        self.tokens.insert((*need).clone(), token);
                    }
                    Err(error) => match self.tokens.get_mut(need) {
                        Some(old) => old.renew_at = Instant::now() + RETRY_CAP,
                        None => {
                            let account = account(pod);
                            let namespace = identity(pod).1;
                            let why = format!("failed to fetch token: serviceaccount {namespace}/{account}: {error}");
                            failed.insert((*need).clone(), why);
                        }
                    },
                }
            }
            if let Some(token) = self.tokens.get(need) {
                inputs.tokens.insert((*need).clone(), token.value.clone());
            }
        }
        failed
    }

    /// Gets the persistent volumes among `todo` for this node; gives back what may be set up, and what other nodes have.
    /// By their names, and no further than the first that has to wait: pods do not wait for each other in a circle.
    async fn attach(
        &mut self,
        pod: &Pod,
        list: &[Volume],
        inputs: &Inputs,
        todo: Vec<(String, Resolved)>,
    ) -> (Vec<(String, Resolved)>, Vec<Failure>) {
        let pair = |name: &str| {
            let volume = list.iter().find(|v| v.name == name)?;
            let bound = pair_of(pod, volume, inputs)?.1;
            Some((bound.metadata.name.clone()?, claim_of(pod, volume)?, bound))
        };
        let (mut with, mut free): (Vec<_>, Vec<_>) = todo.into_iter().partition(|(name, _)| pair(name).is_some());
        with.sort_by_key(|(name, _)| pair(name).map(|(volume, ..)| volume));
        let mut refused = Vec::new();
        self.attach_at = None;
        for (volume, resolved) in with {
            let Some((_, claim, bound)) = pair(&volume).filter(|_| self.attach_at.is_none()) else { continue };
            match attach(&self.shared, pod, &claim, bound).await {
                Ok(None) => {
                    free.push((volume, resolved));
                    continue;
                }
                Ok(Some(Refusal { reason, message: why })) => {
                    let next = Next::WaitForObject;
                    refused.push(Failure { reason, ..Failure::new(&volume, why, next, Step::Attach) });
                }
                Err(error) => tracing::debug!(error = chain(&error), volume, "could not look who has a volume"),
            }
            self.attach_at = Some(Instant::now() + self.attach_backoff.delay());
        }
        if self.attach_at.is_none() {
            self.attach_backoff.reset();
        }
        (free, refused)
    }

    /// Takes the persistent volumes among `todo`, as their access modes allow; gives back what may be set up, each with
    /// its mark, and what has to wait for another pod.
    fn take(
        &self,
        pod: &Pod,
        list: &[Volume],
        inputs: &Inputs,
        todo: Vec<(String, Resolved)>,
    ) -> (Vec<Todo>, Vec<Failure>) {
        let (name, namespace, uid) = identity(pod);
        let is_known = |v: &Volume| self.done.contains_key(&v.name) || todo.iter().any(|(name, _)| *name == v.name);
        // Two pods that each had one of two volumes, because the other one was bound later, would wait for ever.
        let incomplete = list.iter().any(|v| claim_of(pod, v).is_some() && !is_known(v));
        let may_take = |wish: &Wish| wish.alone.is_none() || !incomplete;
        let wish = |volume: &str| {
            let volume = list.iter().find(|v| v.name == volume)?;
            let claim = claim_of(pod, volume)?;
            let (object, bound) = pair_of(pod, volume, inputs)?;
            let alone = alone(object, bound, self.shared.config.rwo_scope);
            let bound = bound.metadata.name.clone()?;
            let hold = Hold { pod_uid: uid.to_owned(), pod: format!("{namespace}/{name}"), volume: bound };
            Some((format!("{namespace}/{claim}"), Wish { hold, alone }))
        };
        let todo: Vec<_> = todo.into_iter().map(|(volume, resolved)| (wish(&volume), volume, resolved)).collect();
        let wishes: Vec<Wish> =
            todo.iter().filter_map(|(wish, ..)| Some(wish.as_ref()?.1.clone())).filter(may_take).collect();
        let rivals = self.shared.holders.take(&wishes, &self.changed).err().unwrap_or_default();
        let (mut ready, mut refused) = (Vec::new(), Vec::new());
        for (wish, volume, resolved) in todo {
            match wish {
                None => ready.push((volume, resolved, None)),
                Some((_, wish)) if !may_take(&wish) => {}
                Some((_, wish)) if rivals.is_empty() => ready.push((volume, resolved, Some(wish.hold))),
                Some((claim, Wish { hold, alone })) => {
                    if let (Some(alone), Some(holder)) = (alone, rivals.get(&hold.volume)) {
                        let (why, next) = (alone.refusal(&claim, holder), Next::WaitForObject);
                        refused.push(Failure::new(&volume, why, next, Step::SetUp));
                    }
                }
            }
        }
        (ready, refused)
    }

    /// Sets volumes up, all at once.
    async fn set_up(&self, pod: &Pod, todo: Vec<Todo>) -> (Vec<(String, Resolved, Ready)>, Vec<Failure>) {
        let uid = identity(pod).2.to_owned();
        let mut given = Vec::new();
        let jobs = todo.into_iter().map(|(name, resolved, hold)| {
            let (volumes, uid, own) = (self.shared.volumes.clone(), uid.clone(), ownership(pod));
            let given_up = self.given_up.clone();
            given.push((name.clone(), Arc::downgrade(&own.given)));
            async move {
                let job = tokio::task::spawn_blocking(move || {
                    let held = hold.map_or(Ok(()), |hold| volumes.hold(&hold));
                    let result = held.and_then(|()| volumes.set_up_while(&uid, &name, &resolved, &own, &given_up));
                    (name, resolved, result)
                });
                job.await
            }
        });
        let jobs = join_all(jobs);
        let (mut made, mut failures) = (Vec::new(), Vec::new());
        for done in self.while_telling(pod, &given, jobs).await {
            match done {
                Ok((name, resolved, Ok(ready))) => made.push((name, resolved, ready)),
                Ok((name, _, Err(error))) => failures.push(failure(&name, &error)),
                Err(error) => {
                    tracing::error!(%error, "setting up a volume broke off; this is a bug in the volume's code")
                }
            }
        }
        (made, failures)
    }

    /// Tells about failures, plans the retry, publishes.
    fn conclude(&mut self, pod: &Pod, list: &[Volume], failures: Vec<Failure>) {
        let retry = failures.iter().any(|f| matches!(f.next, Next::Retry { .. }));
        let (unprocessed, failures): (Vec<_>, Vec<_>) = failures.into_iter().partition(|f| f.step == Step::Process);
        let failed: BTreeSet<_> = failures.iter().map(|f| f.volume.clone()).collect();
        let waiting = !unprocessed.is_empty();
        let trouble = trouble(&failures, &unprocessed);
        self.told.retain(|name, _| if name.is_empty() { waiting } else { failed.contains(name) });
        for failure in failures {
            let message = failure.said();
            let Failure { volume, reason, next, quiet, .. } = failure;
            if quiet {
                continue;
            }
            let again = matches!(next, Next::Retry { .. });
            self.tell(pod, volume, reason, message, again);
        }
        if !unprocessed.is_empty() {
            let message = summary(list, &self.done, &unprocessed);
            self.tell(pod, String::new(), "FailedMount", message, false);
        }
        if retry {
            self.retry_at = Some(Instant::now() + self.backoff.delay());
        } else {
            self.backoff.reset();
        }
        let all = list.iter().all(|v| self.done.contains_key(&v.name));
        self.view.send_if_modified(|v| {
            let changed = (v.all, &v.trouble) != (all, &trouble);
            (v.all, v.trouble) = (all, trouble);
            changed
        });
    }

    /// Tells about one volume, or with an empty name about those that could not be looked at: what is new, was told long
    /// ago, or `again`.
    fn tell(&mut self, pod: &Pod, volume: String, reason: &str, message: String, again: bool) {
        let now = Instant::now();
        let known = self.told.get(&volume).is_some_and(|(old, at)| *old == message && now < *at + REMIND);
        if again || !known {
            self.shared.events.pod(pod, None, true, reason, message.clone());
            self.told.insert(volume, (message, now));
        }
    }
}

/// The name of the claim that a pod's volume is.
fn claim_of(pod: &Pod, volume: &Volume) -> Option<String> {
    needs(pod, volume).into_iter().find_map(|need| match need {
        Need::Claim(name) => Some(name),
        _ => None,
    })
}

/// The claim that a pod's volume is, and the volume that it names.
fn pair_of<'a>(
    pod: &Pod,
    volume: &Volume,
    inputs: &'a Inputs,
) -> Option<(&'a PersistentVolumeClaim, &'a PersistentVolume)> {
    let claim = inputs.claims.get(&claim_of(pod, volume)?)?.as_ref()?;
    let bound = claim.spec.as_ref()?.volume_name.as_ref()?;
    Some((claim, inputs.volumes.get(bound)?.as_ref()?))
}

/// A volume to be set up: its name, what it is made of, and the mark that the pod has it.
type Todo = (String, Resolved, Option<Hold>);

fn account(pod: &Pod) -> String {
    let named = pod.spec.as_ref().and_then(|s| s.service_account_name.clone());
    named.filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into())
}

async fn request_token(
    shared: &Shared,
    pod: &Pod,
    audience: Option<&str>,
    expiration_seconds: i64,
) -> Result<Token, String> {
    let (name, namespace, uid) = identity(pod);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(audience.map(str::to_owned).into_iter().collect()),
            expiration_seconds: Some(expiration_seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(name.into()),
                uid: Some(uid.into()),
            }),
        }),
        ..TokenRequest::default()
    };
    let api = shared.api::<ServiceAccount>(namespace);
    let answer: TokenRequest = api
        .create_subresource("token", &account(pod), &PostParams::default(), &request)
        .await
        .map_err(|e| chain(&e))?;
    let status = answer.status.unwrap_or_default();
    let (Some(value), Some(expires)) = (status.token, status.expiration_timestamp) else {
        return Err("the API answered without a token".into());
    };
    let life = expires.0.duration_since(shared.clock.now());
    let life = Duration::try_from(life).unwrap_or(Duration::ZERO);
    let renew = (life * TOKEN_LIFE_PERCENT / 100).clamp(RETRY_CAP, TOKEN_MOST);
    Ok(Token { value, renew_at: Instant::now() + renew })
}
