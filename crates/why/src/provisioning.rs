//! Claims whose volume a provisioner has to make.
use controllers::rules::{SELECTED_NODE, claim_phase};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{core::v1::PersistentVolumeClaim, storage::v1::StorageClass};

use crate::{
    answer::Answer,
    claim::label,
    facts::{Facts, Told, name_of, namespace_of},
    provisioner::{Health, ailment, successor},
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

pub(crate) fn explain(facts: &Facts, claim: &PersistentVolumeClaim, class: &StorageClass, now: Timestamp) -> Answer {
    let mut provisioner = class.provisioner.as_str();
    let (label, class_name) = (label(claim), name_of(&class.metadata));
    if let Some(driver) = successor(provisioner) {
        let serves = |d: &k8s_openapi::api::storage::v1::CSIDriver| name_of(&d.metadata) == driver;
        if driver.is_empty() || !facts.drivers.iter().any(serves) {
            return removed(&label, class_name, provisioner, driver);
        }
        provisioner = driver;
    }
    let told = facts.latest("PersistentVolumeClaim", &claim.metadata, &["ProvisioningFailed"]);
    let selector = claim.spec.as_ref().and_then(|s| s.selector.as_ref());
    let selects = selector.is_some_and(|s| {
        s.match_labels.as_ref().is_some_and(|l| !l.is_empty())
            || s.match_expressions.as_ref().is_some_and(|e| !e.is_empty())
    });
    if selects {
        return selector_given(&label, claim, provisioner);
    }
    let health = Health::of(facts, provisioner, now);
    if let Some(told) = told {
        return failed(facts, claim, provisioner, &told, &health);
    }
    let on = claim.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED_NODE));
    let place = on.map(|n| format!(" on node {n}")).unwrap_or_default();
    debug_assert_ne!(claim_phase(claim), "Bound");
    let mut answer = if health.runs() {
        let state = format!("{label} is Pending: provisioner {provisioner} is to make its volume{place}");
        Answer::waiting("external-provisioner", state, format!("provisioner {provisioner}"))
    } else {
        let state =
            format!("{label} is Pending: nothing runs provisioner {provisioner}, which is to make its volume{place}");
        Answer::stuck("provisioner-not-running", state).fix(look(facts, provisioner))
    };
    answer.details.extend(health.said(provisioner));
    answer
}

fn look(facts: &Facts, provisioner: &str) -> String {
    let pod = facts.pods.iter().find(|p| crate::provisioner::mentions(p, provisioner) && ailment(p).is_some());
    match pod {
        Some(pod) => {
            format!(
                "kubectl logs -n {} {} --all-containers --previous",
                namespace_of(&pod.metadata),
                name_of(&pod.metadata)
            )
        }
        None => format!("# install what runs {provisioner}, or make the claim again with another class"),
    }
}

fn removed(label: &str, class: &str, provisioner: &str, driver: &str) -> Answer {
    let state = format!(
        "{label} is Pending: class {class} asks for provisioner {provisioner}, which Kubernetes no longer contains"
    );
    let answer = Answer::stuck("provisioner-removed", state);
    match driver {
        "" => answer
            .detail("nothing took its place")
            .fix("# make the claim again with a class of another provisioner")
            .fix("kubectl get storageclass"),
        driver => answer
            .detail(format!(
                "its work is done by the CSI driver {driver}, which is not installed here (no CSIDriver {driver})"
            ))
            .fix(format!("# install the CSI driver {driver}; claims of this class are then served")),
    }
}

fn selector_given(label: &str, claim: &PersistentVolumeClaim, provisioner: &str) -> Answer {
    let state = format!(
        "{label} is Pending: it has a selector, no volume that exists matches, and {provisioner} makes none for a selector"
    );
    Answer::stuck("selector-not-supported", state)
        .detail("a selector chooses among volumes that exist; a provisioner makes a new one to order")
        .fix("# make the claim again without spec.selector")
        .fix(format!("kubectl delete pvc {} -n {}", name_of(&claim.metadata), namespace_of(&claim.metadata)))
}

fn failed(facts: &Facts, claim: &PersistentVolumeClaim, provisioner: &str, told: &Told, health: &Health) -> Answer {
    let message = told.message.to_lowercase();
    let known = FAILURES.iter().find(|(words, ..)| words.iter().any(|w| message.contains(w)));
    let (cause, meaning) = known.map_or(("provisioning-failed", None), |(_, cause, meaning)| (*cause, Some(*meaning)));
    let label = label(claim);
    let state = format!("{label} is Pending: {provisioner} could not make its volume: {}", told.message);
    let last = told.last.and_then(|t| t.checked_add(LONGEST_PAUSE).ok());
    let mut answer = match cause {
        "selector-not-supported" | "access-mode-not-supported" => Answer::stuck(cause, state),
        _ => Answer::retrying(cause, state).retry_by(last),
    };
    answer = answer.since(told.first);
    answer.details.extend(meaning.map(str::to_owned));
    if cause == "helper-pod" {
        let helpers = facts.pods.iter().filter(|p| name_of(&p.metadata).starts_with("helper-pod"));
        answer.details.extend(helpers.filter_map(ailment));
    }
    answer.details.extend(health.said(provisioner));
    match cause {
        "access-mode-not-supported" => answer
            .fix("# make the claim again with accessModes: [ReadWriteOnce]")
            .fix(format!("kubectl delete pvc {} -n {}", name_of(&claim.metadata), namespace_of(&claim.metadata))),
        "quota" => answer.fix(format!("kubectl describe resourcequota -n {}", namespace_of(&claim.metadata))),
        _ => answer
            .fix(format!("# once the reason is gone, {provisioner} goes on by itself; its log has more"))
            .fix(format!("kubectl describe pvc {} -n {}", name_of(&claim.metadata), namespace_of(&claim.metadata))),
    }
}
