//! Pods that no node was found for, and claims that wait for one.
use controllers::rules::{
    Reason, Seen as _, binds_late, claim_phase, claims_of, clash, class_of, in_zone, is_terminated, node_of, reaches,
    volume_of,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};

use crate::{
    answer::{Answer, Verdict},
    attach, candidates, capacity, claim,
    facts::{Facts, Told, created, deleting, kept, name_of, namespace_of, near},
};

/// A scheduler that works has said something by then.
const SCHEDULING: SignedDuration = SignedDuration::from_secs(30);

/// Why a claim of a late-binding class has no volume yet.
pub(crate) fn first_consumer(
    facts: &Facts,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    why: &Reason,
    now: Timestamp,
) -> Answer {
    let (label, name, state) = (claim::label(claim), name_of(&claim.metadata), claim::state(claim, why));
    let users = facts.users(claim);
    let Some(user) = users.first() else {
        return Answer::waiting(why.cause, state, "a pod that uses it")
            .fix(format!("# create a pod with a volume of persistentVolumeClaim.claimName: {name}"));
    };
    if let Some(user) = users.iter().find(|p| !node_of(p).is_empty()) {
        return bypassed(facts, claim, class, why, user);
    }
    match unscheduled(facts, user, false, now) {
        Some(mut answer) => {
            answer.state =
                format!("{label} is Pending: it waits for pod {}: {}", name_of(&user.metadata), answer.state);
            answer
        }
        None => {
            let what = format!("the scheduler to choose a node for pod {}", name_of(&user.metadata));
            Answer::waiting(why.cause, state, what)
        }
    }
}

/// A pod that has a node although a claim of it has no volume.
fn bypassed(facts: &Facts, claim: &PersistentVolumeClaim, class: &StorageClass, why: &Reason, user: &Pod) -> Answer {
    let (pod, node, class) = (name_of(&user.metadata), node_of(user), name_of(&class.metadata));
    let scheduled =
        || facts.events_about("Pod", &user.metadata).iter().any(|e| e.reason.as_deref() == Some("Scheduled"));
    let choice = format!("class {class} leaves the choice of the volume to the scheduler");
    if let Some(scheduler) = custom_scheduler(user).filter(|_| scheduled()) {
        let label = claim::label(claim);
        let state =
            format!("{label} is Pending: scheduler {scheduler} put pod {pod} on node {node} without choosing a volume");
        return Answer::stuck("custom-scheduler", state)
            .detail(format!("{choice}, together with the node"))
            .fix("# run the pod with the default scheduler, or use a class with volumeBindingMode: Immediate")
            .fix(format!("kubectl delete pod {pod} -n {}", namespace_of(&user.metadata)));
    }
    Answer::stuck("scheduler-bypassed", claim::state(claim, why))
        .detail(format!("{choice}, which never saw the pod"))
        .fix(format!("# make the pod again with nodeSelector: {{kubernetes.io/hostname: {node}}} in place of nodeName"))
        .fix(format!("kubectl delete pod {pod} -n {}", namespace_of(&user.metadata)))
}

fn custom_scheduler(pod: &Pod) -> Option<&str> {
    let name = pod.spec.as_ref()?.scheduler_name.as_deref()?;
    (name != "default-scheduler").then_some(name)
}

/// Why a pod has no node, as far as its volumes or its scheduler are to blame. With `follow`, its claims are asked too.
pub(crate) fn unscheduled(facts: &Facts, pod: &Pod, follow: bool, now: Timestamp) -> Option<Answer> {
    let gates: Vec<_> = pod.spec.iter().flat_map(|s| s.scheduling_gates.iter().flatten()).map(|g| &*g.name).collect();
    if !gates.is_empty() {
        let state = format!("{} is Pending: scheduling gate {} holds it back", label(pod), gates.join(", "));
        return Some(Answer::stuck("scheduling-gate", state).fix("# whoever put the gate there has to take it away"));
    }
    let by_claims = if follow { of_claims(facts, pod, now) } else { None };
    by_claims.or_else(|| out_of_reach(facts, pod)).or_else(|| {
        // The condition stays when the Event has expired.
        let told = facts.latest("Pod", &pod.metadata, &["FailedScheduling"]).or_else(|| kept(pod, "PodScheduled"));
        match told {
            Some(told) => Some(said(facts, pod, &told)),
            None => silent(facts, pod, now),
        }
    })
}

/// A scheduler that has said nothing.
fn silent(facts: &Facts, pod: &Pod, now: Timestamp) -> Option<Answer> {
    let (label, age) = (label(pod), created(&pod.metadata).map(|t| now.duration_since(t)));
    if facts.nodes.is_empty() && facts.unread.is_empty() {
        return Some(Answer::stuck("no-nodes", format!("{label} is Pending: there is no node")).fix("# add a node"));
    }
    if age.is_none_or(|a| a <= SCHEDULING) || !facts.events_about("Pod", &pod.metadata).is_empty() {
        return None;
    }
    let scheduler = custom_scheduler(pod).unwrap_or("default-scheduler");
    let state = format!("{label} is Pending: scheduler {scheduler:?} has not said anything about it");
    let fix = match custom_scheduler(pod) {
        Some(_) => "# make the pod again without spec.schedulerName, or start that scheduler",
        None => "kubectl get pods -n kube-system -l component=kube-scheduler",
    };
    Some(Answer::stuck("scheduler-not-running", state).detail("no scheduler of that name seems to run").fix(fix))
}

/// What the scheduler said, as far as it is about volumes.
fn said(facts: &Facts, pod: &Pod, told: &Told) -> Answer {
    let message = &told.message;
    let has = |words: &[&str]| words.iter().any(|w| message.contains(w));
    let about = |cause| Answer::retrying(cause, format!("{} is Pending: {message}", label(pod))).since(told.first);
    match () {
        _ if has(&["ReadWriteOncePod"]) => exclusive(facts, pod).unwrap_or_else(|| about("claim-exclusive")),
        _ if has(&["non-existent pv"]) => lost(facts, pod, about("volume-lost")),
        _ if has(&["exceed max volume count"]) => attach::limit(facts, None, about("attach-limit")),
        _ if has(&["did not have enough free storage", "/capacity"]) => {
            let mut answer =
                about("capacity").detail("the storage driver says that its nodes have too little room for the claim");
            let claims = claims_of(pod).into_iter();
            let claims = claims.filter_map(|(_, name, _)| facts.claim(namespace_of(&pod.metadata), &name));
            answer.details.extend(claims.flat_map(|c| capacity::said(facts, c)));
            answer.fix("kubectl get csistoragecapacities -A").fix("# free storage there, or request less")
        }
        _ if has(&["volume node affinity conflict", "didn't match PersistentVolume's node affinity"]) => {
            about("volume-out-of-reach")
        }
        _ if has(&["had no available disk"]) => disk_taken(facts, pod, about("disk-taken")),
        _ if has(&["didn't find available persistent volumes to bind"]) => {
            no_volume_there(facts, pod, about("no-fitting-volume"))
        }
        _ => pinned(facts, pod, about("not-about-volumes")),
    }
}

/// A disk that the pod names itself, and that another one has.
fn disk_taken(facts: &Facts, pod: &Pod, answer: Answer) -> Answer {
    let volumes = |pod: &Pod| pod.spec.iter().flat_map(|s| s.volumes.clone().unwrap_or_default()).collect::<Vec<_>>();
    let mine = volumes(pod);
    let others = facts.pods.iter().filter(|p| p.metadata.uid != pod.metadata.uid && !node_of(p).is_empty());
    let taken = others.filter(|p| !is_terminated(p)).find_map(|other| {
        let theirs = volumes(other);
        let volume = mine.iter().find(|m| theirs.iter().any(|t| clash(m, t)))?;
        Some((volume.name.clone(), other))
    });
    let answer = match taken {
        Some((volume, other)) => {
            let (name, namespace) = (name_of(&other.metadata), namespace_of(&other.metadata));
            answer
                .detail(format!("volume {volume:?} is a disk that pod {namespace}/{name} has"))
                .fix(format!("kubectl delete pod {name} -n {namespace}"))
        }
        None => answer.detail("another pod has the disk of a volume of this one"),
    };
    answer.fix("# or let both pods only read it (readOnly: true); disks of one iSCSI target count as one")
}

/// A claim that says it is bound to a volume that is not there.
fn lost(facts: &Facts, pod: &Pod, mut answer: Answer) -> Answer {
    let namespace = namespace_of(&pod.metadata);
    let gone = claims_of(pod).into_iter().find_map(|(volume, name, _)| {
        let named = volume_of(facts.claim(namespace, &name)?).to_owned();
        (!named.is_empty() && facts.volume(&named).is_none()).then_some((volume, name, named))
    });
    let Some((volume, claim, named)) = gone else { return answer };
    answer.verdict = Verdict::Stuck;
    answer
        .detail(format!(
            "volume {volume:?} is claim {claim}, bound to PersistentVolume {named:?}, which does not exist"
        ))
        .fix(format!(
            "# restore PersistentVolume {named:?}, or make the claim again; the data has to come from a backup"
        ))
        .fix(format!("kubectl delete pvc {claim} -n {namespace}"))
}

/// No node has a volume for the claims that wait for this pod: what speaks against the nearest one.
fn no_volume_there(facts: &Facts, pod: &Pod, answer: Answer) -> Answer {
    let namespace = namespace_of(&pod.metadata);
    let unbound = claims_of(pod).into_iter().filter_map(|(_, name, _)| facts.claim(namespace, &name));
    let Some(claim) = unbound.into_iter().find(|c| volume_of(c).is_empty()) else { return answer };
    let weighed = candidates::weigh(facts, claim);
    let mut answer = answer;
    if let Some(fits) = weighed.first().filter(|w| w.against.is_empty()) {
        let (name, wanted) = (name_of(&fits.volume.metadata), affinity(fits.volume));
        answer
            .details
            .push(format!("volume {name} would do for {}, but not on a node that takes the pod", claim::label(claim)));
        if !wanted.is_empty() {
            answer.details.push(format!("volume {name} wants {wanted}"));
        }
    } else if let Some(nearest) = weighed.first() {
        answer.verdict = Verdict::Stuck;
        answer.fix = candidates::mend(claim, nearest);
    }
    answer.candidates = candidates::table(&weighed);
    answer
}

pub(crate) fn label(pod: &Pod) -> String {
    format!("pod {}/{}", namespace_of(&pod.metadata), name_of(&pod.metadata))
}

/// The first of the pod's claims that keeps it from running.
pub(crate) fn of_claims(facts: &Facts, pod: &Pod, now: Timestamp) -> Option<Answer> {
    let (label, namespace) = (label(pod), namespace_of(&pod.metadata));
    claims_of(pod).into_iter().find_map(|(volume, name, ephemeral)| {
        let Some(claim) = facts.claim(namespace, &name) else {
            let state = format!("{label} is Pending: volume {volume:?} is claim {name:?}, which does not exist");
            if ephemeral {
                return Some(Answer::waiting("ephemeral-claim", state, "the controller that makes it"));
            }
            let names = facts.claims.iter().filter(|c| namespace_of(&c.metadata) == namespace);
            let near = near(&name, names.map(|c| name_of(&c.metadata)));
            let answer = Answer::stuck("claim-not-found", state).since(created(&pod.metadata));
            let answer = answer.fix(format!("# create claim {name:?} in namespace {namespace}"));
            return Some(match near.is_empty() {
                true => answer,
                false => answer.detail(format!("claims of a similar name: {}", near.join(", "))),
            });
        };
        if claim_phase(claim) == "Bound" && deleting(&claim.metadata).is_none() {
            return None;
        }
        // A claim that waits for this very pod is not what holds the pod up.
        let late = binds_late(facts.class(class_of(claim))) && volume_of(claim).is_empty();
        if late && deleting(&claim.metadata).is_none() && node_of(pod).is_empty() {
            let why = claim::explain(facts, claim, now);
            return (why.verdict != Verdict::Waiting && why.cause != "not-about-volumes")
                .then(|| on(&label, volume, why));
        }
        let mut why = claim::explain(facts, claim, now);
        if deleting(&claim.metadata).is_some() && node_of(pod).is_empty() {
            why = Answer::stuck("claim-deleting", why.state)
                .since(why.since)
                .detail("no pod is started with a claim that is being deleted")
                .fix("# once it is gone, create the claim again");
        }
        Some(on(&label, volume, why))
    })
}

fn on(label: &str, volume: &str, mut why: Answer) -> Answer {
    why.state = format!("{label} is Pending: volume {volume:?}: {}", why.state);
    why
}

fn bound_volumes<'a>(facts: &'a Facts, pod: &Pod) -> Vec<(String, &'a PersistentVolume)> {
    let namespace = namespace_of(&pod.metadata);
    let claims = claims_of(pod).into_iter();
    claims
        .filter_map(|(volume, name, _)| {
            Some((volume.to_owned(), facts.volume(volume_of(facts.claim(namespace, &name)?))?))
        })
        .collect()
}

/// A bound volume that no node reaches, or only one that takes no pods.
fn out_of_reach(facts: &Facts, pod: &Pod) -> Option<Answer> {
    if facts.nodes.is_empty() {
        return None;
    }
    let label = label(pod);
    bound_volumes(facts, pod).into_iter().find_map(|(volume, pv)| {
        let near: Vec<_> = facts.nodes.iter().filter(|n| reaches(pv, n) && in_zone(pv, n)).collect();
        let pv_name = name_of(&pv.metadata);
        if near.is_empty() {
            let wanted = affinity(pv);
            let state = format!("{label} is Pending: volume {volume:?} (PersistentVolume {pv_name}) can be reached from no node: it wants {wanted}");
            let names: Vec<_> = facts.nodes.iter().map(|n| name_of(&n.metadata)).collect();
            return Some(Answer::stuck("volume-out-of-reach", state).since(created(&pod.metadata))
                .detail(format!("there are the nodes {}", names.join(", ")))
                .fix("# bring that node back, or label a node that has the storage as the volume wants it; else restore the data to a new volume"));
        }
        let shut = |n: &&k8s_openapi::api::core::v1::Node| n.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) || !ready(n);
        if !near.iter().all(shut) {
            return None;
        }
        let names: Vec<_> = near.iter().map(|n| name_of(&n.metadata)).collect();
        let cordoned = near.iter().any(|n| ready(n));
        let how = if cordoned { "cordoned" } else { "not ready" };
        let state = format!("{label} is Pending: volume {volume:?} (PersistentVolume {pv_name}) is only on node {}, which is {how}", names.join(", "));
        let answer = Answer::stuck("volume-node-unavailable", state).since(created(&pod.metadata));
        Some(match cordoned {
            true => answer.fix(format!("kubectl uncordon {}", names.join(" "))),
            false => answer.fix(format!("kubectl describe node {}", names.join(" "))),
        })
    })
}

pub(crate) fn ready(node: &k8s_openapi::api::core::v1::Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn affinity(volume: &PersistentVolume) -> String {
    let terms = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()).and_then(|a| a.required.as_ref());
    let terms = terms.iter().flat_map(|s| &s.node_selector_terms).map(|term| {
        let all = term.match_expressions.iter().flatten().chain(term.match_fields.iter().flatten());
        all.map(|r| format!("{} {} {}", r.key, r.operator, r.values.as_deref().unwrap_or_default().join(",")))
            .collect::<Vec<_>>()
            .join(" and ")
    });
    let terms = terms.collect::<Vec<_>>().join(" or ");
    let zones = volume.metadata.labels.iter().flatten();
    let zones = zones.filter(|(key, _)| key.ends_with("kubernetes.io/zone") || key.ends_with("kubernetes.io/region"));
    let zones = zones.map(|(key, value)| format!("{key} In {}", value.replace("__", ",")));
    (!terms.is_empty()).then_some(terms).into_iter().chain(zones).collect::<Vec<_>>().join(" and ")
}

fn exclusive(facts: &Facts, pod: &Pod) -> Option<Answer> {
    let namespace = namespace_of(&pod.metadata);
    let (volume, claim, other) = claims_of(pod).into_iter().find_map(|(volume, name, _)| {
        let claim = facts.claim(namespace, &name)?;
        let modes = claim.spec.as_ref()?.access_modes.as_ref()?;
        let other =
            facts.users(claim).into_iter().find(|p| p.metadata.uid != pod.metadata.uid && !node_of(p).is_empty());
        modes.iter().any(|m| m == "ReadWriteOncePod").then_some((volume, name, other?))
    })?;
    let other_name = name_of(&other.metadata);
    let state = format!(
        "{} is Pending: volume {volume:?} is claim {claim} for one pod alone (ReadWriteOncePod), and pod {other_name} has it",
        label(pod)
    );
    Some(match deleting(&other.metadata) {
        Some(since) => {
            Answer::waiting("claim-exclusive", state, format!("pod {other_name}, which is being deleted, to end"))
                .since(Some(since))
        }
        None => Answer::stuck("claim-exclusive", state).fix(format!("kubectl delete pod {other_name} -n {namespace}")),
    })
}

/// Where a pod finds no room: whether its volumes leave it only one node.
fn pinned(facts: &Facts, pod: &Pod, answer: Answer) -> Answer {
    let pin = bound_volumes(facts, pod).into_iter().find_map(|(volume, pv)| {
        let near: Vec<_> = facts.nodes.iter().filter(|n| reaches(pv, n) && in_zone(pv, n)).collect();
        let [only] = near[..] else { return None };
        (facts.nodes.len() > 1).then(|| (volume, name_of(&only.metadata)))
    });
    match pin {
        Some((volume, node)) => {
            let mut answer =
                answer.detail(format!("volume {volume:?} is on node {node} only, so the pod can run nowhere else"));
            answer.cause = "volume-node-full";
            answer
                .fix(format!("kubectl describe node {node}"))
                .fix("# make room there: remove pods, or lower the pod's requests")
        }
        None => answer.detail("its volumes are not the reason"),
    }
}
