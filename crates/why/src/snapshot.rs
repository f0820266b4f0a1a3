//! VolumeSnapshots. Their kinds come with a CRD, so they are read as they are.
use controllers::rules::{claim_phase, volume_of};
use jiff::Timestamp;
use serde_json::Value;

use crate::{
    answer::Answer,
    facts::{Facts, name_of},
    provisioner::Health,
};

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(crate) fn explain(facts: &Facts, snapshot: &Value, now: Timestamp) -> Answer {
    let (namespace, name) = (text(&snapshot["metadata"]["namespace"]), text(&snapshot["metadata"]["name"]));
    let since = text(&snapshot["metadata"]["creationTimestamp"]).parse().ok();
    let label = format!("snapshot {namespace}/{name}");
    let status = &snapshot["status"];
    if status["readyToUse"] == true {
        return Answer::fine(format!("{label} is ready to use"));
    }
    if let Some(message) = status["error"]["message"].as_str() {
        let failed = text(&status["error"]["time"]).parse().ok().or(since);
        return Answer::retrying("snapshot-failed", format!("{label} is not ready: {message}"))
            .since(failed)
            .fix(format!("kubectl describe volumesnapshot {name} -n {namespace}"));
    }
    let answer = source(facts, snapshot, &label, namespace).or_else(|| class(facts, snapshot, &label));
    answer.unwrap_or_else(|| driver(facts, snapshot, &label, now)).since(since)
}

/// What is wrong with the claim that the snapshot is of.
fn source(facts: &Facts, snapshot: &Value, label: &str, namespace: &str) -> Option<Answer> {
    let claim_name = snapshot["spec"]["source"]["persistentVolumeClaimName"].as_str()?;
    let Some(claim) = facts.claim(namespace, claim_name) else {
        let state = format!("{label} is not ready: it is of claim {claim_name:?}, which does not exist");
        return Some(Answer::stuck("claim-not-found", state).fix("# make the snapshot again, of a claim that exists"));
    };
    if claim_phase(claim) != "Bound" {
        let state = format!("{label} is not ready: its claim {claim_name} is not Bound");
        return Some(
            Answer::waiting("claim-not-bound", state, format!("claim {claim_name} to be bound"))
                .fix(format!("holdfast why pvc/{claim_name} -n {namespace}")),
        );
    }
    let volume = facts.volume(volume_of(claim))?;
    volume.spec.as_ref().is_some_and(|s| s.csi.is_none()).then(|| {
        let volume = name_of(&volume.metadata);
        let state = format!("{label} is not ready: volume {volume} of claim {claim_name} is not of a CSI driver");
        Answer::stuck("not-a-csi-volume", state)
            .detail("only CSI drivers make snapshots")
            .fix("# copy the data to a claim of a class whose CSI driver makes snapshots")
    })
}

/// What is wrong with the snapshot's class.
fn class(facts: &Facts, snapshot: &Value, label: &str) -> Option<Answer> {
    let names: Vec<&str> = facts.snapshot_classes.iter().map(|c| text(&c["metadata"]["name"])).collect();
    let all = if names.is_empty() { "there are none".into() } else { format!("there are {}", names.join(", ")) };
    let wanted = text(&snapshot["spec"]["volumeSnapshotClassName"]);
    let is_default =
        |c: &Value| c["metadata"]["annotations"]["snapshot.storage.kubernetes.io/is-default-class"] == "true";
    if !wanted.is_empty() && !names.contains(&wanted) {
        let state = format!("{label} is not ready: VolumeSnapshotClass {wanted:?} does not exist");
        return Some(
            Answer::stuck("class-not-found", state)
                .detail(all)
                .fix("# make the snapshot again with a class that exists"),
        );
    }
    if wanted.is_empty() && !facts.snapshot_classes.iter().any(is_default) {
        let state = format!("{label} is not ready: it names no class, and no VolumeSnapshotClass is the default");
        return Some(
            Answer::stuck("no-default-class", state)
                .detail(all)
                .fix("# make the snapshot again with volumeSnapshotClassName"),
        );
    }
    None
}

/// Whether the controller and the driver do their part.
fn driver(facts: &Facts, snapshot: &Value, label: &str, now: Timestamp) -> Answer {
    let content = text(&snapshot["status"]["boundVolumeSnapshotContentName"]);
    if content.is_empty() {
        let state = format!("{label} is not ready: no VolumeSnapshotContent was made for it");
        return Answer::stuck("snapshot-controller-not-running", state)
            .detail("the snapshot controller makes it; it is installed apart from the CRDs, once for a cluster")
            .fix("kubectl get pods -A -l app.kubernetes.io/name=snapshot-controller");
    }
    let found = facts.snapshot_contents.iter().find(|c| text(&c["metadata"]["name"]) == content);
    let Some(found) = found else {
        let state = format!("{label} is not ready: its VolumeSnapshotContent {content:?} does not exist");
        return Answer::stuck("snapshot-content-lost", state).fix("# make the snapshot again");
    };
    let name = text(&found["spec"]["driver"]);
    if let Some(message) = found["status"]["error"]["message"].as_str() {
        return Answer::retrying("snapshot-failed", format!("{label} is not ready: driver {name}: {message}"))
            .fix(format!("kubectl describe volumesnapshotcontent {content}"));
    }
    let health = Health::of(facts, name, now);
    let state = format!("{label} is not ready: driver {name} has not finished it");
    let mut answer = if health.is_down() {
        Answer::stuck("provisioner-not-running", state).fix(format!("# start driver {name}"))
    } else {
        Answer::waiting("snapshot-in-progress", state, format!("driver {name}"))
    };
    answer.details.extend(health.said(name));
    answer
}
