//! Claims whose volume a provisioner has to make.
use controllers::rules::{Reason, source_of, successor};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{core::v1::PersistentVolumeClaim, storage::v1::StorageClass};

use crate::{
    answer::Answer,
    capacity, claim,
    facts::{Facts, Told, name_of, namespace_of},
    provisioner::{Health, ailment, maker, pods_of},
};

/// The longest that provisioners wait between two attempts.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_mins(5);

/// What messages of provisioners have in common, the most telling first: any of the words, the cause, what it means.
const FAILURES: &[(&[&str], &str, &str)] = &[
    (&["selector"], "selector-not-supported", "provisioners make volumes to order and support no selector"),
    (
        &["access mode", "accessmode", "multi_node", "only support readwriteonce"],
        "access-mode-not-supported",
        "the provisioner cannot make volumes of that access mode",
    ),
    (
        &["exceeded quota", "quotaexceeded", "quota exceeded", "limitexceeded", "quota '"],
        "quota",
        "a quota of the storage system or of the namespace is used up",
    ),
    (
        &[
            "accessdenied",
            "access denied",
            "unauthorized",
            "unauthenticated",
            "permissiondenied",
            "forbidden",
            "not authorized",
        ],
        "permission",
        "the provisioner lacks a permission or its credentials are wrong",
    ),
    (
        &["resourceexhausted", "not enough", "no space", "insufficient", "outofrange", "out of capacity"],
        "capacity",
        "the storage system has too little room",
    ),
    (
        &["create process timeout", "helper pod", "helper-pod"],
        "helper-pod",
        "the pod that makes the directory does not run",
    ),
    (&["not found"], "class-parameters", "the class or something that its parameters name is missing"),
];

pub(crate) fn explain(
    facts: &Facts,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    why: &Reason,
    now: Timestamp,
) -> Answer {
    let state = claim::state(claim, why);
    let named = class.provisioner.as_str();
    // The class may still go by the in-tree name of what a driver does now.
    let provisioner = successor(named).filter(|d| !d.is_empty()).unwrap_or(named);
    match why.cause {
        "provisioner-removed" => return removed(state, named),
        "selector-not-supported" => return selector_given(state, claim),
        cause if cause.starts_with("snapshot-") || cause.starts_with("source-claim-") => {
            return source(state, claim, why.cause);
        }
        _ => {}
    }
    let health = Health::of(facts, provisioner, now);
    if let Some(told) = facts.latest("PersistentVolumeClaim", &claim.metadata, &["ProvisioningFailed"]) {
        return failed(facts, claim, provisioner, &told, &health, now);
    }
    let mut answer = if health.serves() {
        Answer::waiting("external-provisioner", state, format!("provisioner {provisioner}"))
    } else {
        Answer::stuck("provisioner-not-running", format!("{state}, and nothing runs that provisioner"))
            .fix(look(facts, provisioner))
            .or_stand_in(if health.pods.is_empty() { provisioner } else { "" })
    };
    answer.details.extend(health.said(provisioner));
    answer.details.extend(capacity::said(facts, claim));
    answer
}

/// Where to look at a provisioner that does not run.
pub(crate) fn look(facts: &Facts, provisioner: &str) -> String {
    let ails = |pod: &&&k8s_openapi::api::core::v1::Pod| ailment(pod).is_some();
    match pods_of(facts, provisioner).iter().find(ails) {
        Some(pod) => {
            let (name, namespace) = (name_of(&pod.metadata), namespace_of(&pod.metadata));
            format!("kubectl logs -n {namespace} {name} --all-containers --previous")
        }
        None => format!("# install what runs {provisioner}, or make the claim again with another class"),
    }
}

fn removed(state: String, provisioner: &str) -> Answer {
    let mut answer = Answer::stuck("provisioner-removed", state);
    answer.details.extend(in_tree::ended_provisioner(provisioner).map(|ended| ended.story.to_owned()));
    match successor(provisioner).unwrap_or_default() {
        "" => answer
            .detail("nothing took its place")
            .fix("# make the claim again with a class of another provisioner")
            .fix("kubectl get storageclass"),
        driver => answer
            .detail(format!(
                "its work is done by the CSI driver {driver}, which is not installed here (no CSIDriver {driver})"
            ))
            .fix(format!("# install the CSI driver {driver}; claims of this class are then served"))
            .or_stand_in(driver),
    }
}

/// A claim whose source does not do, or not yet.
fn source(state: String, claim: &PersistentVolumeClaim, cause: &'static str) -> Answer {
    let (kind, name) = source_of(claim).unwrap_or_default();
    let (short, what) = if kind == "VolumeSnapshot" { ("vs", "snapshot") } else { ("pvc", "claim") };
    match cause {
        "snapshot-not-ready" | "source-claim-not-bound" => {
            let fix = format!("holdfast why {short}/{name} -n {}", namespace_of(&claim.metadata));
            Answer::waiting(cause, state, format!("{what} {name}")).fix(fix)
        }
        "snapshot-not-found" | "source-claim-not-found" => Answer::stuck(cause, state)
            .detail(format!("as soon as there is a {what} {name}, it goes on by itself"))
            .fix(format!("# make {what} {name}, or the claim again with another dataSource"))
            .fix(claim::delete(claim)),
        _ => Answer::stuck(cause, state)
            .detail("a volume is never smaller than what it is made from")
            .fix("# make the claim again with a larger request")
            .fix(claim::delete(claim)),
    }
}

fn selector_given(state: String, claim: &PersistentVolumeClaim) -> Answer {
    Answer::stuck("selector-not-supported", state)
        .detail("a selector chooses among volumes that exist; a provisioner makes a new one to order")
        .fix("# make the claim again without spec.selector")
        .fix(claim::delete(claim))
}

fn failed(
    facts: &Facts,
    claim: &PersistentVolumeClaim,
    provisioner: &str,
    told: &Told,
    health: &Health,
    now: Timestamp,
) -> Answer {
    let message = told.message.to_lowercase();
    let known = FAILURES.iter().find(|(words, ..)| words.iter().any(|w| message.contains(w)));
    let (cause, meaning) = known.map_or(("provisioning-failed", None), |(_, cause, meaning)| (*cause, Some(*meaning)));
    let state =
        format!("{} is Pending: {provisioner} could not make its volume: {}", claim::label(claim), told.message);
    let mut answer = match cause {
        "selector-not-supported" | "access-mode-not-supported" => Answer::stuck(cause, state),
        _ if health.is_down() => Answer::stuck("provisioner-not-running", state)
            .detail(format!("since then no pod of provisioner {provisioner} is ready"))
            .fix(look(facts, provisioner)),
        _ if told.last.is_some_and(|t| now.duration_since(t) > 2 * LONGEST_PAUSE) => {
            given_up(facts, provisioner, state)
        }
        _ => {
            let next = told.last.and_then(|t| t.checked_add(LONGEST_PAUSE).ok());
            Answer::retrying(cause, state).retry_by(next)
        }
    };
    answer = answer.since(told.first);
    answer.details.extend(meaning.map(str::to_owned));
    if cause == "helper-pod" {
        answer.details.extend(health.helpers(facts, claim).filter_map(ailment));
    }
    if cause == "capacity" {
        answer.details.extend(capacity::said(facts, claim));
    }
    answer.details.extend(health.said(provisioner));
    if !answer.fix.is_empty() {
        return answer;
    }
    let namespace = namespace_of(&claim.metadata);
    match cause {
        "access-mode-not-supported" => {
            answer.fix("# make the claim again with accessModes: [ReadWriteOnce]").fix(claim::delete(claim))
        }
        "selector-not-supported" => {
            answer.fix("# make the claim again without spec.selector").fix(claim::delete(claim))
        }
        "quota" => answer.fix(format!("kubectl describe resourcequota -n {namespace}")),
        "helper-pod" => match health.helpers(facts, claim).next() {
            Some(pod) => answer.fix(format!(
                "kubectl describe pod {} -n {}",
                name_of(&pod.metadata),
                namespace_of(&pod.metadata)
            )),
            None => answer.fix(format!("kubectl describe pvc {} -n {namespace}", name_of(&claim.metadata))),
        },
        _ => answer
            .fix(format!("# once the reason is gone, {provisioner} goes on by itself; its log has more"))
            .fix(format!("kubectl describe pvc {} -n {namespace}", name_of(&claim.metadata))),
    }
}

/// It failed long ago, and nothing was said since: provisioners that give up after some attempts do so.
fn given_up(facts: &Facts, provisioner: &str, state: String) -> Answer {
    let answer = Answer::stuck("provisioning-not-retried", state)
        .detail("it was not tried again since, although provisioners wait 5 minutes at most: it was given up");
    match maker(facts, provisioner) {
        Some(pod) => answer.fix("# a provisioner that starts anew looks at every claim again").fix(format!(
            "kubectl delete pod {} -n {}",
            name_of(&pod.metadata),
            namespace_of(&pod.metadata)
        )),
        None => answer.fix(format!("# start provisioner {provisioner} anew, or make the claim again")),
    }
}
