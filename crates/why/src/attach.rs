//! Volumes that have to be attached to a node: those that another node has, and nodes that can take no more.
use controllers::rules::{claims_of, node_of, volume_of};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    core::v1::{Node, Pod},
    storage::v1::VolumeAttachment,
};

use crate::{
    answer::{Answer, Verdict},
    facts::{Facts, Told, deleting, name_of, namespace_of},
    scheduling::ready,
};

/// How long after the deletion of its pods a volume is taken from a node that does not answer.
const FORCED: SignedDuration = SignedDuration::from_mins(6);

/// The volumes of a pod's claims.
fn volumes_of<'a>(facts: &'a Facts, pod: &Pod) -> Vec<&'a str> {
    let namespace = namespace_of(&pod.metadata);
    claims_of(pod).into_iter().filter_map(|(_, name, _)| Some(volume_of(facts.claim(namespace, &name)?))).collect()
}

fn is_of(attachment: &VolumeAttachment, volumes: &[&str]) -> bool {
    attachment.spec.source.persistent_volume_name.as_deref().is_some_and(|v| volumes.contains(&v))
}

/// What the driver says about attaching one of the pod's volumes to its node: it stays in the attachment's status.
pub(crate) fn error(facts: &Facts, pod: &Pod) -> Option<Told> {
    let volumes = volumes_of(facts, pod);
    let mine = facts.attachments.iter().filter(|a| a.spec.node_name == node_of(pod) && is_of(a, &volumes));
    mine.filter_map(|a| Some((a, a.status.as_ref()?))).filter(|(_, s)| !s.attached).find_map(|(attachment, status)| {
        let error = status.attach_error.as_ref()?;
        let volume = attachment.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
        let message = error.message.as_deref().unwrap_or_default();
        Some(Told {
            reason: "FailedAttachVolume".into(),
            message: format!("AttachVolume.Attach failed for volume \"{volume}\" : {message}"),
            first: error.time.as_ref().map(|t| t.0),
            last: None,
        })
    })
}

/// Whether a message is about how many volumes a node can have.
pub(crate) fn is_limit(told: &Told) -> bool {
    let message = told.message.to_lowercase();
    told.reason == "FailedAttachVolume"
        && ["max volume", "maximum number of", "attachmentlimit", "too many volumes", "exceed", "resourceexhausted"]
            .iter()
            .any(|w| message.contains(w))
}

/// How many volumes each node has attached, of how many at most.
pub(crate) fn limit(facts: &Facts, node: Option<&str>, mut answer: Answer) -> Answer {
    answer.details.push("the nodes can attach no more volumes".into());
    for csi in facts.csi_nodes.iter().filter(|n| node.is_none_or(|node| name_of(&n.metadata) == node)) {
        let name = name_of(&csi.metadata);
        for driver in &csi.spec.drivers {
            let Some(most) = driver.allocatable.as_ref().and_then(|a| a.count) else { continue };
            let here = |a: &&VolumeAttachment| a.spec.node_name == name && a.spec.attacher == driver.name;
            let used = facts.attachments.iter().filter(here).count();
            answer.details.push(format!("node {name}: {used} of at most {most} volumes of {} attached", driver.name));
        }
    }
    answer.fix("# add a node, or remove pods whose volumes are attached")
}

/// A volume that another node still has.
pub(crate) fn elsewhere(facts: &Facts, pod: &Pod, told: &Told, state: String) -> Answer {
    let volumes = volumes_of(facts, pod);
    let other = facts.attachments.iter().find(|a| a.spec.node_name != node_of(pod) && is_of(a, &volumes));
    let answer = Answer::retrying("multi-attach", state).since(told.first);
    let Some(other) = other else {
        return answer.detail("the volume can be attached to one node at a time, and another still has it");
    };
    let (attachment, there) = (name_of(&other.metadata), other.spec.node_name.as_str());
    let volume = other.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
    let uses = |p: &&Pod| node_of(p) == there && volumes_of(facts, p).contains(&volume);
    let users: Vec<&Pod> = facts.pods.iter().filter(uses).collect();
    let answer = answer.detail(format!("volume {volume} is attached to node {there} (VolumeAttachment {attachment})"));
    if !facts.node(there).is_some_and(ready) {
        return dead(facts.node(there), there, &users, answer);
    }
    if let Some(user) = users.first() {
        let (name, going) = (name_of(&user.metadata), deleting(&user.metadata).is_some());
        let how = if going { "which is Terminating" } else { "which runs" };
        let answer = answer.detail(format!("there it is used by pod {name}, {how}"));
        return answer.fix(format!("kubectl delete pod {name} -n {}", namespace_of(&user.metadata)));
    }
    stale(other, answer)
}

/// The other node does not answer.
fn dead(node: Option<&Node>, name: &str, users: &[&Pod], mut answer: Answer) -> Answer {
    answer.cause = "multi-attach-dead-node";
    let conditions = node.and_then(|n| n.status.as_ref()).and_then(|s| s.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|c| c.type_ == "Ready");
    let since = ready.and_then(|c| c.last_transition_time.as_ref()).map(|t| format!(" since {:.0}", t.0));
    answer.details.push(match node {
        None => format!("node {name} is gone"),
        Some(_) => format!("node {name} does not answer{}", since.unwrap_or_default()),
    });
    let deleted: Option<Vec<Timestamp>> = users.iter().map(|p| deleting(&p.metadata)).collect();
    let forced = deleted.filter(|d| !d.is_empty()).and_then(|d| d.into_iter().max()?.checked_add(FORCED).ok());
    answer.details.push(match forced {
        Some(at) => format!("the volume is taken from it by force at {at:.0}"),
        None => "the volume is taken from it 6 minutes after its pods are deleted".into(),
    });
    answer
        .fix("# only if that node is surely off")
        .fix(format!("kubectl taint node {name} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"))
}

/// Nothing uses it there, and nothing detaches it.
fn stale(attachment: &VolumeAttachment, mut answer: Answer) -> Answer {
    let (name, driver) = (name_of(&attachment.metadata), &attachment.spec.attacher);
    answer.cause = "stale-attachment";
    answer.verdict = Verdict::Stuck;
    answer
        .details
        .push(format!("no pod uses it there: the attachment is stale, and driver {driver} does not detach it"));
    let held = attachment.metadata.finalizers.iter().flatten().next();
    let Some(finalizer) = held.filter(|_| deleting(&attachment.metadata).is_some()) else {
        return answer.fix(format!("kubectl delete volumeattachment {name}"));
    };
    answer.details.push(format!("it is being deleted, and finalizer {finalizer:?} of the driver holds it"));
    answer.fix("# only if the volume is surely detached from that node").fix(format!(
        "kubectl patch volumeattachment {name} --type=merge -p '{{\"metadata\":{{\"finalizers\":null}}}}'"
    ))
}
