//! Classes.
use controllers::rules::{NO_PROVISIONER, binds_late, claim_phase, class_of, is_default, successor};
use jiff::Timestamp;
use k8s_openapi::api::storage::v1::StorageClass;

use crate::{
    answer::Answer,
    facts::{Facts, name_of},
    provisioner::Health,
    provisioning,
};

pub(crate) fn explain(facts: &Facts, class: &StorageClass, now: Timestamp) -> Answer {
    let (name, provisioner) = (name_of(&class.metadata), class.provisioner.as_str());
    let mut answer = provisioner_of(facts, name, provisioner, now);
    let mode = if binds_late(Some(class)) {
        "claims are bound once a pod uses them (WaitForFirstConsumer)"
    } else {
        "claims are bound at once (Immediate)"
    };
    answer.details.push(mode.into());
    let policy = class.reclaim_policy.as_deref().unwrap_or("Delete");
    answer.details.push(format!("volumes are treated with {policy} when their claim goes"));
    let pending =
        facts.claims.iter().filter(|c| class_of(c) == name && matches!(claim_phase(c), "Pending" | "")).count();
    if pending > 0 {
        answer.details.push(format!("{pending} claim(s) of it are Pending"));
    }
    let defaults: Vec<_> = facts.classes.iter().filter(|c| is_default(c)).map(|c| name_of(&c.metadata)).collect();
    if is_default(class) {
        answer.details.push(match defaults.len() {
            1 => "it is the default class".into(),
            _ => format!("the classes {} are all marked as default; the newest is used", defaults.join(", ")),
        });
    }
    answer
}

fn provisioner_of(facts: &Facts, name: &str, provisioner: &str, now: Timestamp) -> Answer {
    if provisioner == NO_PROVISIONER {
        return Answer::fine(format!("class {name} has no provisioner: people make its volumes"));
    }
    let mut served = provisioner;
    if let Some(driver) = successor(provisioner) {
        if driver.is_empty() || !facts.drivers.iter().any(|d| name_of(&d.metadata) == driver) {
            let state = format!("class {name} asks for provisioner {provisioner}, which Kubernetes no longer contains");
            let answer = Answer::stuck("provisioner-removed", state);
            return match driver {
                "" => answer.fix(format!("kubectl delete storageclass {name}")),
                driver => answer
                    .detail(format!("its work is done by the CSI driver {driver}, which is not installed here"))
                    .fix(format!("# install the CSI driver {driver}"))
                    .or_stand_in(driver),
            };
        }
        served = driver;
    }
    let health = Health::of(facts, served, now);
    let mut answer = if health.serves() {
        Answer::fine(format!("class {name} works: provisioner {served} runs"))
    } else if health.is_down() {
        Answer::stuck(
            "provisioner-not-running",
            format!("class {name} makes no volumes: provisioner {served} is not ready"),
        )
        .fix(provisioning::look(facts, served))
    } else {
        Answer::stuck(
            "provisioner-not-running",
            format!("class {name} makes no volumes: nothing runs provisioner {served}"),
        )
        .fix(format!("# install what runs {served}"))
    };
    answer.details.extend(health.said(served));
    answer
}
