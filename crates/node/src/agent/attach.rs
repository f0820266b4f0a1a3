//! One node at a time for volumes that only one node may have: where there are several nodes, who has it is written on the
//! volume object, by a write that only one node can win.
//!
//! The write says the same as upstream's attachment, for volumes of all kinds. A node whose object was deleted, or that is
//! marked as out of service, has nothing any more: who does that says that the machine is off. (Upstream waits six minutes
//! longer for the former.) Otherwise a node keeps its volumes as long as the API has pods that use them there.
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use base::chain;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use parking_lot::Mutex;
use serde_json::json;

use super::{
    Shared,
    csi::in_use,
    identity, pinned,
    reclaim::{is_over, names_claim},
};

/// The node that has a volume which one node may have.
const HELD_BY: &str = "holdfast.dev/held-by";
/// The node that had it before: what is behind the volume may be there.
pub const LAST_HELD_BY: &str = "holdfast.dev/last-held-by";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Tries to write a release down, against other writers.
const RELEASE_TRIES: usize = 5;

/// The volumes that this node wants or has for its pods.
#[derive(Default)]
pub struct Attachments {
    /// Volume to UIDs of pods.
    users: Mutex<BTreeMap<String, BTreeSet<String>>>,
    /// One at a time: a volume is not given up for the last pod while the next one asks for it.
    changing: tokio::sync::Mutex<()>,
}

impl Attachments {
    /// Takes in what an earlier process has marked on disk.
    pub fn adopt(&self, volume: &str, pod_uid: &str) {
        self.users.lock().entry(volume.to_owned()).or_default().insert(pod_uid.to_owned());
    }
}

/// Whether one node at a time may have a volume; upstream's rule.
fn is_for_one_node(volume: &PersistentVolume) -> bool {
    let modes = volume.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
    !modes.is_empty() && !modes.iter().any(|m| m == "ReadWriteMany" || m == "ReadOnlyMany")
}

/// Why a pod has to wait for a volume: event reason and sentence, upstream's.
pub struct Refusal {
    pub reason: &'static str,
    pub message: String,
}

/// Gets a volume for this node, so that a pod may use it here. `Some`: why it has to wait; nothing announces when it need
/// not any more.
pub async fn attach(
    shared: &Shared,
    pod: &Pod,
    claim: &str,
    volume: &PersistentVolume,
) -> Result<Option<Refusal>, kube::Error> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let (_, _, uid) = identity(pod);
    let has = || shared.attachments.users.lock().get(name).is_some_and(|pods| pods.contains(uid));
    // Once a pod has it, nothing takes it away.
    if has() {
        return Ok(None);
    }
    if !is_within_reach(shared, volume).await? {
        let why = "no matching NodeSelectorTerms";
        let message = format!("MountVolume.NodeAffinity check failed for volume {name:?} : {why}");
        return Ok(Some(Refusal { reason: "FailedMount", message }));
    }
    if !is_for_one_node(volume) {
        return Ok(None);
    }
    let _one = shared.attachments.changing.lock().await;
    let refused = attach_first(shared, pod, claim, name).await?;
    if refused.is_none() {
        shared.attachments.adopt(name, uid);
    }
    Ok(refused.map(|message| Refusal { reason: "FailedAttachVolume", message }))
}

/// Whether this node, with the labels that its object has now, reaches a volume. A pod may have come past the scheduler.
async fn is_within_reach(shared: &Shared, volume: &PersistentVolume) -> Result<bool, kube::Error> {
    if volume.spec.as_ref().is_none_or(|s| s.node_affinity.is_none()) {
        return Ok(true);
    }
    let nodes: Api<Node> = Api::all(shared.client.clone());
    // Without the object nothing is known of the labels; it is made again at once.
    let node = nodes.get_opt(&shared.config.node_name).await?;
    // A cloud's disk is where its driver says, which is what the node says of itself.
    let by_driver = in_tree::volume_to_csi(volume).unwrap_or(Cow::Borrowed(volume));
    Ok(node.is_some_and(|node| api::select::reaches(&by_driver, &node)))
}

async fn attach_first(shared: &Shared, pod: &Pod, claim: &str, name: &str) -> Result<Option<String>, kube::Error> {
    let us = shared.config.node_name.as_str();
    let others = other_nodes(shared, |_| true).await?;
    if others.is_empty() {
        return Ok(None);
    }
    let volumes: Api<PersistentVolume> = Api::all(shared.client.clone());
    let Some(volume) = volumes.get_opt(name).await? else { return Ok(None) };
    let owner = volume.metadata.annotations.as_ref().and_then(|a| a.get(HELD_BY)).cloned();
    if owner.as_deref() == Some(us) {
        return Ok(None);
    }
    let owner = owner.filter(|node| others.contains(node));
    let look = async || -> Result<Vec<String>, kube::Error> {
        let pods = shared.api::<Pod>(identity(pod).1).list(&ListParams::default()).await?;
        Ok(rivals(&pods.items, pod, claim, &others, owner.is_some()))
    };
    let found = look().await?;
    if !found.is_empty() {
        return Ok(Some(refusal(name, &found)));
    }
    let mine = pinned(&volume.metadata, json!({ "metadata": { "annotations": { HELD_BY: us } } }));
    let written = volumes.patch(name, &PatchParams::default(), &Patch::Merge(&mine)).await?;
    // A pod may have come to the node that had it before the write; that node does not look again.
    let found = if owner.is_some() { look().await? } else { Vec::new() };
    if found.is_empty() {
        return Ok(None);
    }
    let back = pinned(&written.metadata, json!({ "metadata": { "annotations": { HELD_BY: owner } } }));
    volumes.patch(name, &PatchParams::default(), &Patch::Merge(&back)).await?;
    Ok(Some(refusal(name, &found)))
}

/// The nodes besides this one that may have something, of those that `counts` lets pass.
pub async fn other_nodes(shared: &Shared, counts: impl Fn(&Node) -> bool) -> Result<BTreeSet<String>, kube::Error> {
    let nodes: Api<Node> = Api::all(shared.client.clone());
    let in_service = |node: &Node| {
        let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
        !taints.iter().any(|t| t.key == OUT_OF_SERVICE)
    };
    let all = nodes.list(&ListParams::default()).await?.items.into_iter();
    let names = all.filter(in_service).filter(counts).filter_map(|node| node.metadata.name);
    Ok(names.filter(|name| *name != shared.config.node_name).collect())
}

/// Names of pods on these nodes that use the claim and go before `pod`: all, if one of the nodes has the volume; else those
/// that run, or were made earlier, so that two nodes never wait for each other.
fn rivals(pods: &[Pod], pod: &Pod, claim: &str, nodes: &BTreeSet<String>, held: bool) -> Vec<String> {
    let age = |p: &Pod| (p.metadata.creation_timestamp.clone(), p.metadata.uid.clone());
    let runs = |p: &Pod| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
    let there = |p: &Pod| p.spec.as_ref().and_then(|s| s.node_name.as_ref()).is_some_and(|n| nodes.contains(n));
    let mut names: Vec<String> = pods
        .iter()
        .filter(|other| other.metadata.uid != pod.metadata.uid && there(other))
        .filter(|other| names_claim(other, claim) && !is_over(other))
        .filter(|other| held || runs(other) || age(other) < age(pod))
        .filter_map(|other| other.metadata.name.clone())
        .collect();
    names.sort_unstable();
    names
}

/// Upstream's sentence. (Pods of other namespaces, which it only counts, cannot use the claim.)
fn refusal(volume: &str, pods: &[String]) -> String {
    format!("Multi-Attach error for volume {volume:?} Volume is already used by pod(s) {}", pods.join(", "))
}

/// Takes everything from a pod of which nothing is left; the volumes that no pod here has then, other nodes may have.
pub fn release(shared: &Arc<Shared>, pod_uid: &str) {
    shared.holders.release(pod_uid);
    in_use::release(shared, pod_uid);
    let mut freed = Vec::new();
    shared.attachments.users.lock().retain(|volume, pods| {
        if pods.remove(pod_uid) && pods.is_empty() {
            freed.push(volume.clone());
        }
        !pods.is_empty()
    });
    if freed.is_empty() {
        return;
    }
    let shared = shared.clone();
    tokio::spawn(async move {
        for volume in freed {
            let_go(&shared, &volume).await;
        }
    });
}

/// Writes down that this node has a volume no more. If that fails, another node takes it when it sees no pod here.
async fn let_go(shared: &Shared, name: &str) {
    let volumes: Api<PersistentVolume> = Api::all(shared.client.clone());
    for _ in 0..RELEASE_TRIES {
        let _one = shared.attachments.changing.lock().await;
        if shared.attachments.users.lock().contains_key(name) {
            return;
        }
        let volume = match volumes.get_opt(name).await {
            Ok(Some(volume)) => volume,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(error = chain(&error), name, "could not look who has a volume; it is tried again");
                continue;
            }
        };
        let us = shared.config.node_name.as_str();
        if volume.metadata.annotations.as_ref().and_then(|a| a.get(HELD_BY)).map(String::as_str) != Some(us) {
            return;
        }
        let free = json!({ "metadata": { "annotations": { HELD_BY: null, LAST_HELD_BY: us } } });
        match volumes.patch(name, &PatchParams::default(), &Patch::Merge(&pinned(&volume.metadata, free))).await {
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(error = chain(&error), name, "could not let a volume go; it is tried again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value};

    use super::*;

    fn pod(name: &str, node: &str, made: u32, phase: &str) -> Pod {
        let volumes = json!([{ "name": "v", "persistentVolumeClaim": { "claimName": "c" } }]);
        let meta = json!({ "name": name, "uid": name, "creationTimestamp": format!("2030-01-01T00:00:0{made}Z") });
        let spec = json!({ "nodeName": node, "volumes": volumes, "containers": [] });
        from_value(json!({ "metadata": meta, "spec": spec, "status": { "phase": phase } })).unwrap()
    }

    #[test]
    fn one_of_two_pods_goes_first_whoever_looks() {
        let nodes: BTreeSet<String> = ["n", "m"].map(String::from).into();
        let (early, late) = (pod("early", "n", 1, "Pending"), pod("late", "m", 2, "Pending"));
        let all = vec![
            early.clone(),
            late.clone(),
            pod("gone", "nowhere", 0, "Running"),
            pod("unscheduled", "", 0, "Pending"),
            pod("over", "n", 0, "Succeeded"),
        ];
        let seen = |pod: &Pod, held| rivals(&all, pod, "c", &nodes, held);
        assert_eq!(seen(&late, false), ["early"]);
        assert_eq!(seen(&early, false), [""; 0]);
        assert_eq!(seen(&early, true), ["late"], "its node has the volume");
        assert_eq!(rivals(&all, &late, "other", &nodes, true), [""; 0]);
        let running = [pod("late", "m", 2, "Running")];
        assert_eq!(rivals(&running, &early, "c", &nodes, false), ["late"]);
        assert_eq!(
            refusal("pv", &["a".into(), "b".into()]),
            "Multi-Attach error for volume \"pv\" Volume is already used by pod(s) a, b"
        );
    }

    #[test]
    fn modes_for_several_nodes_need_no_word() {
        let of = |modes: Value| is_for_one_node(&from_value(json!({ "spec": { "accessModes": modes } })).unwrap());
        assert!(of(json!(["ReadWriteOnce"])) && of(json!(["ReadWriteOncePod"])));
        assert!(!of(json!(["ReadWriteOnce", "ReadOnlyMany"])) && !of(json!(["ReadWriteMany"])) && !of(json!([])));
    }
}
