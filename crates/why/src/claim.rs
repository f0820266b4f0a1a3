//! Claims.
use controllers::{
    protection,
    rules::{self, Difference, Reason, Seen as _, Weighed, claim_phase, class_of, is_default, node_of, volume_of},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use crate::{
    answer::Answer,
    candidates,
    facts::{Facts, claim_meta, created, deleting, name_of, namespace_of, near},
    provisioning, scheduling,
};

/// A binder that works takes a fraction of a second, with all its retries less than this.
const BINDING: SignedDuration = SignedDuration::from_secs(60);

pub(crate) fn label(claim: &PersistentVolumeClaim) -> String {
    format!("claim {}/{}", namespace_of(&claim.metadata), name_of(&claim.metadata))
}

pub(crate) fn explain(facts: &Facts, claim: &PersistentVolumeClaim, now: Timestamp) -> Answer {
    if deleting(&claim.metadata).is_some() {
        return terminating(facts, claim);
    }
    match claim_phase(claim) {
        "Bound" => bound(facts, claim),
        "Lost" => {
            let (label, volume) = (label(claim), volume_of(claim));
            Answer::stuck("volume-lost", format!("{label} is Lost: its volume {volume:?} is gone, with it the claim"))
                .detail("a claim never leaves Lost, not even if a volume of that name is made again")
                .fix(format!("kubectl delete pvc {} -n {}", name_of(&claim.metadata), namespace_of(&claim.metadata)))
                .fix("# then create the claim again; the data has to come from a backup")
        }
        _ => {
            let answer = pending(facts, claim, now);
            let since = answer.since.or_else(|| created(&claim.metadata));
            answer.since(since)
        }
    }
}

fn terminating(facts: &Facts, claim: &PersistentVolumeClaim) -> Answer {
    let since = deleting(&claim.metadata);
    let (label, name, namespace) = (label(claim), name_of(&claim.metadata), namespace_of(&claim.metadata));
    let meta = claim_meta(claim);
    let uid = |p: &Pod| p.metadata.uid.clone().unwrap_or_default();
    let holders: Vec<&Pod> = facts
        .pods
        .iter()
        .filter(|p| namespace_of(&p.metadata) == namespace && protection::uses(p, &uid(p), &meta))
        .collect();
    let others: Vec<_> = meta.finalizers.iter().filter(|f| *f != "kubernetes.io/pvc-protection").collect();
    if !holders.is_empty() {
        let names: Vec<_> = holders.iter().map(|p| name_of(&p.metadata)).collect();
        let state = format!("{label} is Terminating: pod(s) {} use it", names.join(", "));
        if holders.iter().all(|p| deleting(&p.metadata).is_some()) {
            return Answer::waiting("claim-in-use", state, "these pods, which are being deleted, to end").since(since);
        }
        let answer = Answer::stuck("claim-in-use", state).since(since);
        return answer
            .detail("a claim goes when the last pod that uses it is gone; until then its data stays")
            .fix(format!("kubectl delete pod {} -n {namespace}", names.join(" ")));
    }
    if let Some(finalizer) = others.first() {
        let state = format!("{label} is Terminating: finalizer {finalizer:?} holds it");
        return Answer::stuck("finalizer", state)
            .since(since)
            .detail("whoever put the finalizer there has to take it off; it does not, or no longer runs")
            .fix("# only if nothing takes it off any more")
            .fix(format!(
                "kubectl patch pvc {name} -n {namespace} --type=merge -p '{{\"metadata\":{{\"finalizers\":null}}}}'"
            ));
    }
    Answer::waiting("going", format!("{label} is Terminating, and nothing uses it"), "the controllers to let it go")
        .since(since)
}

fn bound(facts: &Facts, claim: &PersistentVolumeClaim) -> Answer {
    let (label, volume) = (label(claim), volume_of(claim));
    if let Some(answer) = expanding(facts, claim).or_else(|| external(facts, claim)) {
        return answer;
    }
    if facts.volume(volume).is_none() && !facts.unread.iter().any(|u| u.starts_with("volumes")) {
        let state = format!("{label} is Bound to volume {volume:?}, which does not exist");
        return Answer::stuck("volume-lost", state).fix("# restore the volume from a backup, or make the claim again");
    }
    let users: Vec<_> = facts.users(claim).iter().map(|p| name_of(&p.metadata).to_owned()).collect();
    let used = if users.is_empty() { "no pod uses it now".into() } else { format!("used by {}", users.join(", ")) };
    Answer::fine(format!("{label} is Bound to volume {volume}")).detail(used)
}

/// A claim that asks for more than its volume has, where no node can give it.
fn external(facts: &Facts, claim: &PersistentVolumeClaim) -> Option<Answer> {
    let volume = facts.volume(volume_of(claim))?;
    if api::growth::step(claim, volume) != api::growth::Step::External {
        return None;
    }
    let wanted = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")?.0.clone();
    let has = claim.status.as_ref()?.capacity.as_ref()?.get("storage")?.0.clone();
    let (label, name) = (label(claim), name_of(&volume.metadata));
    let state = format!("{label} is Bound with {has} and asks for {wanted}, which its volume {name} has not got");
    let driver = in_tree::driver_of_volume(volume);
    let answer = match driver {
        Some(driver) => Answer::waiting("external-expansion", state, format!("the resizer of driver {driver}")),
        None => Answer::waiting("external-expansion", state, "an administrator to enlarge the volume"),
    };
    let told = facts.latest("PersistentVolumeClaim", &claim.metadata, &["ExternalExpanding"]);
    let answer = answer.since(told.and_then(|t| t.first));
    if api::growth::grower(volume) != api::growth::Grower::Node {
        return Some(answer);
    }
    let patch = format!("{{\"spec\":{{\"capacity\":{{\"storage\":\"{wanted}\"}}}}}}");
    Some(answer.fix("# enlarge the device, then").fix(format!("kubectl patch pv {name} --type=merge -p '{patch}'")))
}

fn expanding(facts: &Facts, claim: &PersistentVolumeClaim) -> Option<Answer> {
    let (label, name, namespace) = (label(claim), name_of(&claim.metadata), namespace_of(&claim.metadata));
    let conditions = claim.status.as_ref()?.conditions.as_ref()?;
    let has = |kind: &str| conditions.iter().find(|c| c.type_ == kind && c.status == "True");
    let since =
        |c: &k8s_openapi::api::core::v1::PersistentVolumeClaimCondition| c.last_transition_time.as_ref().map(|t| t.0);
    let failed =
        facts.latest("PersistentVolumeClaim", &claim.metadata, &["VolumeResizeFailed", "FileSystemResizeFailed"]);
    let error = has("ControllerResizeError").or_else(|| has("NodeResizeError"));
    if let Some(condition) = error {
        let message = condition.message.clone().unwrap_or_default();
        let state = format!("{label} cannot be expanded: {message}");
        return Some(Answer::retrying("expansion-failed", state).since(since(condition)));
    }
    if let Some(told) = failed {
        let state = format!("{label} cannot be expanded: {}", told.message);
        return Some(Answer::retrying("expansion-failed", state).since(told.first));
    }
    let waits = has("FileSystemResizePending")?;
    let state = format!("{label} is Bound; its volume has grown, its file system grows where a pod mounts it");
    if facts.users(claim).iter().any(|p| !node_of(p).is_empty()) {
        return Some(
            Answer::waiting("file-system-resize", state, "the node to grow the file system").since(since(waits)),
        );
    }
    let answer = Answer::waiting("file-system-resize", state, "a pod that mounts the claim").since(since(waits));
    Some(answer.fix(format!("# start a pod that uses claim {name} in namespace {namespace}")))
}

fn pending(facts: &Facts, claim: &PersistentVolumeClaim, now: Timestamp) -> Answer {
    let weighed = candidates::weigh(facts, claim);
    let Some(why) = rules::reason(claim, &weighed, facts) else {
        let volume = match volume_of(claim) {
            "" => weighed.first().map(|w| name_of(&w.volume.metadata)).unwrap_or_default(),
            named => named,
        };
        return unbound(claim, volume, now);
    };
    let class = facts.class(class_of(claim));
    let mut answer = match (why.cause, class) {
        ("named-volume-missing", _) => return named_missing(facts, claim, &why),
        ("named-volume-differs", _) => return named_differs(facts, claim, &why),
        ("wait-for-first-consumer" | "wait-for-pod-scheduled" | "scheduler-bypassed", Some(class)) => {
            scheduling::first_consumer(facts, claim, class, &why, now)
        }
        (
            "external-provisioner"
            | "provisioner-removed"
            | "selector-not-supported"
            | "snapshot-not-found"
            | "snapshot-not-ready"
            | "snapshot-too-large"
            | "source-claim-not-found"
            | "source-claim-not-bound"
            | "source-claim-too-large",
            Some(class),
        ) => provisioning::explain(facts, claim, class, &why, now),
        ("class-not-found", _) => class_missing(facts, claim, &why),
        ("default-class", _) => default_class(facts, claim, &why, now),
        ("no-default-class", _) => no_class(facts, claim, &why, &weighed),
        _ => no_volume(claim, &why, &weighed),
    };
    answer.candidates = candidates::table(&weighed);
    answer
}

/// The sentence about a claim and its reason.
pub(crate) fn state(claim: &PersistentVolumeClaim, why: &Reason) -> String {
    format!("{} is Pending: {}", label(claim), why.message)
}

fn unbound(claim: &PersistentVolumeClaim, volume: &str, now: Timestamp) -> Answer {
    let state = format!("{} is Pending although volume {volume} fits", label(claim));
    match created(&claim.metadata) {
        Some(then) if now.duration_since(then) > BINDING => Answer::stuck("binder-not-running", state)
            .detail("whatever binds claims (kube-controller-manager) seems not to run, or lags behind")
            .fix("kubectl get pods -n kube-system -l component=kube-controller-manager"),
        _ => Answer::waiting("binding", state, "the controller that binds them"),
    }
}

/// A claim that names its volume takes no other.
fn named_missing(facts: &Facts, claim: &PersistentVolumeClaim, why: &Reason) -> Answer {
    let wanted = volume_of(claim);
    let answer = Answer::stuck(why.cause, state(claim, why))
        .fix(format!("# create PersistentVolume {wanted:?}, or make the claim again without volumeName"))
        .fix(delete(claim));
    let near = near(wanted, facts.volumes.iter().map(|v| name_of(&v.metadata)));
    if near.is_empty() { answer } else { answer.detail(format!("volumes of a similar name: {}", near.join(", "))) }
}

fn named_differs(facts: &Facts, claim: &PersistentVolumeClaim, why: &Reason) -> Answer {
    let mut answer = Answer::stuck(why.cause, state(claim, why));
    if let Some(volume) = facts.volume(volume_of(claim)) {
        let weighed = rules::against_named(claim, volume);
        answer.fix = candidates::mend(claim, &weighed);
        answer.candidates = candidates::table(&[weighed]);
    }
    answer
}

/// The command that removes a claim, so that it can be made again.
pub(crate) fn delete(claim: &PersistentVolumeClaim) -> String {
    format!("kubectl delete pvc {} -n {}", name_of(&claim.metadata), namespace_of(&claim.metadata))
}

fn class_missing(facts: &Facts, claim: &PersistentVolumeClaim, why: &Reason) -> Answer {
    let wanted = class_of(claim);
    let near = near(wanted, facts.classes.iter().map(|c| name_of(&c.metadata)));
    let answer = Answer::stuck(why.cause, state(claim, why)).detail(classes(facts));
    let answer = match near.first() {
        Some(first) => answer
            .detail(format!("did you mean {}?", near.join(" or ")))
            .fix(format!("# make the claim again with storageClassName: {first}")),
        None => answer.fix(format!("# create StorageClass {wanted:?}, or make the claim again with one that exists")),
    };
    answer.fix(delete(claim))
}

fn classes(facts: &Facts) -> String {
    let marked = |c: &k8s_openapi::api::storage::v1::StorageClass| {
        format!("{}{}", name_of(&c.metadata), if is_default(c) { " (default)" } else { "" })
    };
    let all: Vec<_> = facts.classes.iter().map(marked).collect();
    if all.is_empty() { "there are no classes".into() } else { format!("there are the classes {}", all.join(", ")) }
}

fn default_class(facts: &Facts, claim: &PersistentVolumeClaim, why: &Reason, now: Timestamp) -> Answer {
    let default = facts.classes.iter().find(|c| is_default(c)).map(|c| name_of(&c.metadata)).unwrap_or_default();
    let state = state(claim, why);
    match created(&claim.metadata) {
        Some(then) if now.duration_since(then) > BINDING => Answer::stuck("default-class-not-assigned", state)
            .detail(format!("{default} is the default now, but nothing assigned it"))
            .fix(format!(
                "kubectl patch pvc {} -n {} --type=merge -p '{{\"spec\":{{\"storageClassName\":\"{default}\"}}}}'",
                name_of(&claim.metadata),
                namespace_of(&claim.metadata)
            )),
        _ => Answer::waiting(why.cause, state, format!("class {default} to be assigned to it")),
    }
}

fn no_class(facts: &Facts, claim: &PersistentVolumeClaim, why: &Reason, weighed: &[Weighed<'_>]) -> Answer {
    let answer = Answer::stuck(why.cause, state(claim, why)).detail(classes(facts));
    let mut answer = match facts.classes.first() {
        Some(class) => answer.fix("# mark a class as the default; the claim then gets it").fix(format!(
            "kubectl annotate storageclass {} storageclass.kubernetes.io/is-default-class=true",
            name_of(&class.metadata)
        )),
        None => answer.fix("# create a StorageClass, or a volume that fits"),
    };
    if let Some(nearest) = weighed.first().filter(|w| near_enough(w)) {
        answer.fix.push(format!("# or make volume {} fit", name_of(&nearest.volume.metadata)));
        answer.fix.extend(candidates::mend(claim, nearest));
    }
    answer
}

fn near_enough(weighed: &Weighed<'_>) -> bool {
    !weighed.against.iter().any(|d| matches!(d, Difference::Deleting | Difference::Phase(_)))
}

fn no_volume(claim: &PersistentVolumeClaim, why: &Reason, weighed: &[Weighed<'_>]) -> Answer {
    let mut answer = Answer::stuck(why.cause, state(claim, why));
    let Some(nearest) = weighed.first() else {
        return answer.fix("# create a PersistentVolume that fits (kubectl apply -f volume.yaml)");
    };
    if why.cause == "volume-released" {
        answer =
            answer.detail("a Released volume is given to nobody, so that nobody gets another one's data by accident");
    }
    answer.fix = candidates::mend(claim, nearest);
    answer
}
