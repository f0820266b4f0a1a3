//! What has to be read for an explanation: no more than it rests on, as clusters are large.
use std::collections::BTreeSet;

use controllers::rules::{
    NO_PROVISIONER, binds_late, claim_phase, claims_of, class_of, is_terminated, node_of, reserved_for, source_of,
    volume_of, volume_phase,
};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use crate::{
    Subject,
    facts::{Facts, deleting},
};

/// One list, or one object, to be read. Lists of namespaced kinds are those of the subject's namespace unless it says
/// `All`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    Claims,
    AllClaims,
    Volume(String),
    Volumes,
    Classes,
    Pods,
    AllPods,
    Nodes,
    Events,
    Drivers,
    CsiNodes,
    Attachments,
    AllLeases,
    Capacities,
    ConfigMaps,
    Secrets,
    Quotas,
    Snapshots,
}

/// What is needed, by what is known so far. Ask again with what was read until nothing new is needed.
pub fn needs(subject: &Subject, facts: &Facts) -> BTreeSet<Need> {
    let mut all = BTreeSet::new();
    match subject {
        Subject::Claim { namespace, name } => {
            all.extend([Need::Claims, Need::Events, Need::Pods]);
            match facts.claim(namespace, name) {
                Some(claim) => of_claim(facts, claim, &mut all),
                None => all.extend([Need::Quotas]),
            }
        }
        Subject::Volume(name) => of_volume(facts, name, &mut all),
        Subject::Class(name) => {
            all.extend([Need::Classes, Need::AllClaims]);
            if facts.class(name).is_some_and(|c| c.provisioner != NO_PROVISIONER) {
                provisioner(&mut all);
            }
        }
        Subject::Pod { namespace, name } => {
            all.extend([Need::Pods, Need::Events]);
            match facts.pod(namespace, name) {
                Some(pod) => of_pod(facts, pod, namespace, &mut all),
                None => all.extend([Need::Quotas]),
            }
        }
        Subject::Snapshot { .. } => {
            all.extend([Need::Snapshots, Need::Claims, Need::Volumes]);
            if !facts.snapshot_contents.is_empty() {
                provisioner(&mut all);
            }
        }
    }
    all
}

/// What tells whether a provisioner is alive.
fn provisioner(all: &mut BTreeSet<Need>) {
    all.extend([Need::AllPods, Need::AllLeases, Need::Drivers, Need::CsiNodes, Need::Capacities]);
}

fn of_claim(facts: &Facts, claim: &PersistentVolumeClaim, all: &mut BTreeSet<Need>) {
    if deleting(&claim.metadata).is_some() {
        return;
    }
    if matches!(claim_phase(claim), "Bound" | "Lost") {
        all.insert(Need::Volume(volume_of(claim).to_owned()));
        return;
    }
    all.extend([Need::Volumes, Need::Classes]);
    let class = facts.class(class_of(claim));
    if binds_late(class) {
        all.insert(Need::Nodes);
    }
    if class.is_some_and(|c| c.provisioner != NO_PROVISIONER) {
        provisioner(all);
        match source_of(claim) {
            Some(("VolumeSnapshot", _)) => drop(all.insert(Need::Snapshots)),
            Some(_) => drop(all.insert(Need::Claims)),
            None => {}
        }
    }
}

fn of_volume(facts: &Facts, name: &str, all: &mut BTreeSet<Need>) {
    all.insert(Need::Volume(name.to_owned()));
    let Some(volume) = facts.volume(name) else { return };
    if deleting(&volume.metadata).is_some() || reserved_for(volume).is_some() {
        all.insert(Need::Attachments);
    }
    if reserved_for(volume).is_some() {
        all.insert(Need::AllClaims);
    }
    if volume_phase(volume) != "Bound" {
        all.insert(Need::Events);
    }
}

fn of_pod(facts: &Facts, pod: &Pod, namespace: &str, all: &mut BTreeSet<Need>) {
    if is_terminated(pod) {
        return;
    }
    all.insert(Need::Nodes);
    let claims = claims_of(pod);
    if !claims.is_empty() {
        all.extend([Need::Claims, Need::Classes]);
    }
    let found = claims.iter().filter_map(|(_, name, _)| facts.claim(namespace, name));
    found.for_each(|claim| of_claim(facts, claim, all));
    let volumes = || pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    if node_of(pod).is_empty() {
        let limited = facts.latest("Pod", &pod.metadata, &["FailedScheduling"]);
        if limited.is_some_and(|t| t.message.contains("max volume count") || t.message.contains("storage")) {
            all.extend([Need::CsiNodes, Need::Attachments, Need::Capacities]);
        }
        return;
    }
    let projected = || volumes().filter_map(|v| v.projected.as_ref()).flat_map(|p| p.sources.iter().flatten());
    if volumes().any(|v| v.config_map.is_some()) || projected().any(|s| s.config_map.is_some()) {
        all.insert(Need::ConfigMaps);
    }
    if volumes().any(|v| v.secret.is_some()) || projected().any(|s| s.secret.is_some()) {
        all.insert(Need::Secrets);
    }
    // Only drivers attach, and their parts run anywhere.
    let by_driver = claims.iter().filter_map(|(_, name, _)| facts.volume(volume_of(facts.claim(namespace, name)?)));
    let attaching = facts.latest("Pod", &pod.metadata, &["FailedAttachVolume"]).is_some();
    if attaching || by_driver.into_iter().any(|v| in_tree::driver_of_volume(v).is_some()) {
        all.extend([Need::AllPods, Need::Attachments, Need::CsiNodes, Need::Drivers]);
    }
    // How busy the node is, where no volume says what is wrong.
    let vague = facts.latest("Pod", &pod.metadata, &["FailedMount"]);
    if vague.is_some_and(|t| t.message.contains("timed out waiting") || t.message.contains("context deadline")) {
        all.extend([Need::AllPods, Need::AllLeases]);
    }
}
