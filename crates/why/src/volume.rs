//! Volumes.
use controllers::rules::{reserved_for, volume_phase};
use k8s_openapi::api::core::v1::PersistentVolume;

use crate::{
    answer::Answer,
    facts::{Facts, deleting, name_of},
};

pub(crate) fn explain(facts: &Facts, volume: &PersistentVolume) -> Answer {
    if deleting(&volume.metadata).is_some() {
        return terminating(facts, volume);
    }
    let name = name_of(&volume.metadata);
    let claim = reserved_for(volume).map(|(namespace, name)| format!("{namespace}/{name}")).unwrap_or_default();
    let since = volume.status.as_ref().and_then(|s| s.last_phase_transition_time.as_ref()).map(|t| t.0);
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain");
    if let Some(ended) = volume.spec.as_ref().and_then(in_tree::ended_volume) {
        let state = format!("volume {name} is of type {}, and no pod can use it", ended.field);
        let answer = Answer::stuck("storage-ended", state).since(since).detail(ended.story);
        return answer.fix("# when its data is elsewhere or of no use").fix(format!("kubectl delete pv {name}"));
    }
    match volume_phase(volume) {
        "Bound" => Answer::fine(format!("volume {name} is Bound to claim {claim}")),
        "Available" if claim.is_empty() => Answer::fine(format!("volume {name} is Available: no claim has it yet")),
        "Available" => {
            let state =
                format!("volume {name} is Available and reserved for claim {claim}, which does not have it yet");
            Answer::waiting("reserved", state, format!("claim {claim}")).since(since)
        }
        "Released" if policy == "Retain" => {
            let state = format!("volume {name} is Released: claim {claim} is gone, and policy Retain keeps the data");
            Answer::stuck("volume-released", state)
                .since(since)
                .detail("it is given to no other claim, so that nobody gets another one's data by accident")
                .fix("# to give its data to the next claim that fits")
                .fix(format!("kubectl patch pv {name} --type=merge -p '{{\"spec\":{{\"claimRef\":null}}}}'"))
                .fix("# to be rid of it")
                .fix(format!("kubectl delete pv {name}"))
        }
        "Released" => {
            let told =
                facts.latest("PersistentVolume", &volume.metadata, &["VolumeFailedDelete", "VolumeFailedRecycle"]);
            let state =
                format!("volume {name} is Released: claim {claim} is gone, and policy {policy} is to be carried out");
            let message = volume.status.as_ref().and_then(|s| s.message.clone());
            match told {
                // Written by the controller where no node is there to do it.
                _ if message.is_some() => Answer::waiting("no-node", state, "a node that reaches the volume")
                    .since(since)
                    .detail(message.unwrap_or_default()),
                Some(told) => {
                    Answer::retrying("reclaim-failed", format!("{state}: {}", told.message)).since(told.first)
                }
                None => Answer::waiting("reclaiming", state, "its provisioner or the volume controller").since(since),
            }
        }
        "Failed" => failed(volume, policy).since(since),
        _ => Answer::waiting("new", format!("volume {name} is new"), "the volume controller to look at it"),
    }
}

fn failed(volume: &PersistentVolume, policy: &str) -> Answer {
    let name = name_of(&volume.metadata);
    let status = volume.status.as_ref();
    let why = status.and_then(|s| s.message.clone().or_else(|| s.reason.clone())).unwrap_or_default();
    Answer::stuck("reclaim-failed", format!("volume {name} is Failed: policy {policy} could not be carried out: {why}"))
        .fix("# save or delete the data by hand, then")
        .fix(format!("kubectl delete pv {name}"))
}

fn terminating(facts: &Facts, volume: &PersistentVolume) -> Answer {
    let (name, since) = (name_of(&volume.metadata), deleting(&volume.metadata));
    let claim = reserved_for(volume).filter(|(namespace, claim)| facts.claim(namespace, claim).is_some());
    let finalizers = volume.metadata.finalizers.clone().unwrap_or_default();
    if let Some((namespace, claim)) = claim.filter(|_| volume_phase(volume) == "Bound") {
        let state = format!("volume {name} is Terminating: claim {namespace}/{claim} is bound to it");
        return Answer::stuck("volume-in-use", state)
            .since(since)
            .detail("it goes when the claim is gone; until then its data stays")
            .fix(format!("kubectl delete pvc {claim} -n {namespace}"));
    }
    let attached = facts.attachments.iter().find(|a| a.spec.source.persistent_volume_name.as_deref() == Some(name));
    if let Some(attachment) = attached {
        let (attachment, node) = (name_of(&attachment.metadata), &attachment.spec.node_name);
        let state =
            format!("volume {name} is Terminating: it is attached to node {node} (VolumeAttachment {attachment})");
        return Answer::stuck("still-attached", state)
            .since(since)
            .detail(format!("the driver {} has to detach it", driver(volume)))
            .fix(format!("kubectl describe volumeattachment {attachment}"));
    }
    match finalizers.iter().find(|f| *f != "kubernetes.io/pv-protection") {
        Some(finalizer) => {
            let state = format!("volume {name} is Terminating: finalizer {finalizer:?} holds it");
            Answer::stuck("finalizer", state)
                .since(since)
                .detail("whoever put the finalizer there has to take it off; it does not, or no longer runs")
                .fix("# only if nothing takes it off any more")
                .fix(format!("kubectl patch pv {name} --type=merge -p '{{\"metadata\":{{\"finalizers\":null}}}}'"))
        }
        None => {
            let state = format!("volume {name} is Terminating, and nothing uses it");
            Answer::waiting("going", state, "the controllers to let it go").since(since)
        }
    }
}

fn driver(volume: &PersistentVolume) -> &str {
    in_tree::driver_of_volume(volume).unwrap_or("of the volume")
}
