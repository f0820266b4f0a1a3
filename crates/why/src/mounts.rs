//! Pods on a node whose volumes are not mounted yet: only the volume that fails.
use std::collections::BTreeMap;

use controllers::rules::{claims_of, node_of, volume_of};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{KeyToPath, Pod, Volume};

use crate::{
    answer::Answer,
    facts::{Facts, Told, created, deleting, name_of, namespace_of, near},
    provisioner::{ailment, mentions},
    scheduling::{label, of_claims, ready},
};

/// The longest that a node waits between two attempts at a volume.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_secs(122);

pub(crate) fn explain(facts: &Facts, pod: &Pod, now: Timestamp) -> Answer {
    let answer = missing(facts, pod).or_else(|| of_claims(facts, pod, now)).or_else(|| told(facts, pod));
    let since = created(&pod.metadata);
    let answer = answer.unwrap_or_else(|| {
        let state = format!("{} is being started on node {}", label(pod), node_of(pod));
        Answer::waiting("starting", state, format!("node {}", node_of(pod)))
    });
    let since = answer.since.or(since);
    answer.since(since)
}

/// What a volume takes from ConfigMaps and Secrets: whether it is a Secret, its name, the keys, whether it may be missing.
fn references(volume: &Volume) -> Vec<(bool, String, Vec<String>, bool)> {
    let keys = |items: &Option<Vec<KeyToPath>>| items.iter().flatten().map(|i| i.key.clone()).collect::<Vec<_>>();
    let mut found = Vec::new();
    if let Some(map) = &volume.config_map {
        found.push((false, map.name.clone(), keys(&map.items), map.optional == Some(true)));
    }
    if let Some(secret) = &volume.secret {
        found.push((
            true,
            secret.secret_name.clone().unwrap_or_default(),
            keys(&secret.items),
            secret.optional == Some(true),
        ));
    }
    for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
        if let Some(map) = &source.config_map {
            found.push((false, map.name.clone(), keys(&map.items), map.optional == Some(true)));
        }
        if let Some(secret) = &source.secret {
            found.push((true, secret.name.clone(), keys(&secret.items), secret.optional == Some(true)));
        }
    }
    found
}

/// Names and keys of ConfigMaps or Secrets; `None` where they could not be read.
fn known(facts: &Facts, secret: bool, namespace: &str) -> Option<BTreeMap<String, Vec<String>>> {
    if secret {
        return Some(facts.secrets.as_ref()?.iter().cloned().collect());
    }
    let maps = facts.config_maps.as_ref()?.iter().filter(|m| namespace_of(&m.metadata) == namespace);
    let keys = |m: &k8s_openapi::api::core::v1::ConfigMap| {
        m.data
            .iter()
            .flatten()
            .map(|(k, _)| k.clone())
            .chain(m.binary_data.iter().flatten().map(|(k, _)| k.clone()))
            .collect()
    };
    Some(maps.map(|m| (name_of(&m.metadata).to_owned(), keys(m))).collect())
}

/// A ConfigMap, Secret or key that a volume wants and that is not there.
fn missing(facts: &Facts, pod: &Pod) -> Option<Answer> {
    let namespace = namespace_of(&pod.metadata);
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let wanted = volumes.flat_map(|v| references(v).into_iter().map(move |r| (v, r)));
    wanted.filter(|(_, (.., optional))| !optional).find_map(|(volume, (secret, name, keys, _))| {
        let (kind, short) = if secret { ("Secret", "secret generic") } else { ("ConfigMap", "configmap") };
        let all = known(facts, secret, namespace)?;
        let start = format!("{} waits for its volumes: volume {:?} wants", label(pod), volume.name);
        let similar = |answer: Answer, near: Vec<&str>| match near.is_empty() {
            true => answer,
            false => answer.detail(format!("of a similar name: {}", near.join(", "))),
        };
        let Some(has) = all.get(&name) else {
            let answer = Answer::stuck(
                "config-missing",
                format!("{start} {kind} {name:?}, which does not exist in namespace {namespace}"),
            );
            let answer = similar(answer, near(&name, all.keys().map(String::as_str)));
            let from = keys.iter().map(|k| format!(" --from-literal={k}=VALUE")).collect::<String>();
            let from = if from.is_empty() { " --from-file=DIR".into() } else { from };
            return Some(answer.fix(format!("kubectl create {short} {name} -n {namespace}{from}")));
        };
        let key = keys.iter().find(|k| !has.contains(k))?;
        let answer = Answer::stuck(
            "config-key-missing",
            format!("{start} key {key:?} of {kind} {name}, which has only {}", has.join(", ")),
        );
        let answer = similar(answer, near(key, has.iter().map(String::as_str)));
        let (kind, field) = if secret { ("secret", "stringData") } else { ("configmap", "data") };
        Some(answer.fix(format!(
            "kubectl patch {kind} {name} -n {namespace} --type=merge -p '{{\"{field}\":{{\"{key}\":\"VALUE\"}}}}'"
        )))
    })
}

/// Words of a node's message, the cause, its meaning, what mends it; the most telling first.
const FAILURES: &[(&[&str], &str, &str, &str)] = &[
    (
        &["hostPath type check failed"],
        "host-path-type",
        "the path was looked up on the node itself, which is not the machine of kubectl where the node is a container or VM",
        "# make the path on the node, or correct path and type of the volume",
    ),
    (
        &["not found in the list of registered CSI drivers"],
        "driver-not-registered",
        "the driver's plugin on that node is not running, or its kubelet directory is another one",
        "kubectl get pods -A -o wide --field-selector spec.nodeName=",
    ),
    (
        &["wrong fs type", "bad superblock", "bad option", "unknown filesystem", "mount.nfs", "mount.cifs"],
        "mount-helper",
        "the program that mounts this file system is missing on the node, or the volume is not formatted as said",
        "# install the mount helper on the node (nfs-common, cifs-utils), or correct fsType",
    ),
    (
        &["already used by pod", "already in use by pod"],
        "used-by-other-pod",
        "another pod still has the volume",
        "kubectl get pods -A -o wide",
    ),
    (
        &["SELinux", "selinux"],
        "selinux-conflict",
        "two pods mount the volume with different SELinux labels",
        "# give the pods the same seLinuxOptions, or set seLinuxChangePolicy: Recursive",
    ),
    (
        &["no such file or directory", "does not exist", "No such file"],
        "path-missing",
        "the path does not exist on the node",
        "# make the path on the node, or correct it in the volume",
    ),
    (
        &["failed to sync", "object not registered", "not registered"],
        "node-cache",
        "the node has not yet read the object; that passes by itself unless the node cannot reach the API server",
        "kubectl get events --field-selector reason=FailedMount -A",
    ),
    (
        &["access denied", "permission denied", "Permission denied", "AccessDenied", "forbidden"],
        "mount-permission",
        "the storage refuses this node or these credentials",
        "# allow the node in the storage system (export list, credentials in the Secret)",
    ),
];

const REASONS: &[&str] =
    &["FailedAttachVolume", "FailedMount", "FailedMapVolume", "FailedMountVolume", "VolumePermissionChangeInProgress"];

/// What the node last said about the pod's volumes.
fn told(facts: &Facts, pod: &Pod) -> Option<Answer> {
    let events = facts.events_about("Pod", &pod.metadata);
    let about: Vec<Told> = events
        .iter()
        .filter(|e| REASONS.contains(&e.reason.as_deref().unwrap_or_default()))
        .map(|e| Told::of(e))
        .collect();
    // The summary names every volume that is not mounted; what came before it names the one that fails.
    let vague = |t: &&Told| {
        t.message.contains("timed out waiting for the condition")
            || t.message.contains("context deadline exceeded") && t.message.contains("unmounted volumes=")
    };
    let said = about.iter().find(|t| !vague(t)).or(about.first())?;
    let next = said.last.and_then(|t| t.checked_add(LONGEST_PAUSE).ok());
    let state = |text: &str| match failing(facts, pod, said) {
        Some(volume) => format!("{} waits for its volumes: volume {volume:?}: {text}", label(pod)),
        None => format!("{} waits for its volumes: {text}", label(pod)),
    };
    let answer = match () {
        _ if said.message.contains("Multi-Attach") => {
            return Some(multi_attach(facts, pod, said, state(&said.message)));
        }
        _ if said.reason == "VolumePermissionChangeInProgress" => {
            Answer::waiting("ownership-change", state(&said.message), "the node to change the owner of every file")
                .fix("# next time: securityContext.fsGroupChangePolicy: OnRootMismatch")
        }
        _ if vague(&said) => slow(pod, Answer::retrying("mount-timeout", state(&said.message))),
        _ => {
            let known = FAILURES.iter().find(|(words, ..)| words.iter().any(|w| said.message.contains(w)));
            match known {
                Some((_, "driver-not-registered", meaning, fix)) => {
                    let answer = Answer::retrying("driver-not-registered", state(&said.message)).detail(*meaning);
                    driver(facts, pod, said, answer).fix(format!("{fix}{}", node_of(pod)))
                }
                Some((_, cause, meaning, fix)) => {
                    Answer::retrying(cause, state(&said.message)).detail(*meaning).fix(*fix)
                }
                None => Answer::retrying("mount-failed", state(&said.message)).fix(format!(
                    "kubectl describe pod {} -n {}",
                    name_of(&pod.metadata),
                    namespace_of(&pod.metadata)
                )),
            }
        }
    };
    Some(answer.since(said.first).retry_by(next))
}

/// The pod's volume that a message is about, by its own name or by that of its PersistentVolume.
fn failing(facts: &Facts, pod: &Pod, told: &Told) -> Option<String> {
    let quoted = told.message.split_once("volume \"")?.1.split_once('"')?.0;
    let own = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).find(|v| v.name == quoted);
    let behind = || {
        let namespace = namespace_of(&pod.metadata);
        let claims = claims_of(pod).into_iter();
        claims
            .filter_map(|(volume, name, _)| Some((volume, facts.claim(namespace, &name)?)))
            .find(|(_, c)| volume_of(c) == quoted)
    };
    own.map(|v| v.name.clone()).or_else(|| behind().map(|(volume, _)| volume.to_owned()))
}

fn slow(pod: &Pod, answer: Answer) -> Answer {
    let always = pod
        .spec
        .as_ref()
        .and_then(|s| s.security_context.as_ref())
        .is_some_and(|c| c.fs_group.is_some() && c.fs_group_change_policy.as_deref() != Some("OnRootMismatch"));
    let mut answer = answer.detail("no volume has said what is wrong: the node is slow, or waits for an attachment");
    if always {
        answer.cause = "ownership-change";
        return answer
            .detail("the pod has an fsGroup: the node changes the owner of every file first, which takes long with many files")
            .fix("# set securityContext.fsGroupChangePolicy: OnRootMismatch");
    }
    answer.fix(format!("kubectl describe node {}", node_of(pod)))
}

fn driver(facts: &Facts, pod: &Pod, told: &Told, mut answer: Answer) -> Answer {
    let Some(name) =
        told.message.split_once("driver name ").map(|(_, rest)| rest.split_whitespace().next().unwrap_or_default())
    else {
        return answer;
    };
    let node = node_of(pod);
    let registered = facts.csi_nodes.iter().find(|n| name_of(&n.metadata) == node);
    let drivers: Vec<_> = registered.iter().flat_map(|n| &n.spec.drivers).map(|d| d.name.as_str()).collect();
    if !facts.drivers.iter().any(|d| name_of(&d.metadata) == name) {
        answer.details.push(format!("there is no CSIDriver {name}: it is not installed, or its name is another"));
    }
    let all = if drivers.is_empty() { "none".into() } else { drivers.join(", ") };
    answer.details.push(format!("drivers registered on node {node}: {all}"));
    let plugins: Vec<&Pod> = facts.pods.iter().filter(|p| node_of(p) == node && mentions(p, name)).collect();
    if plugins.is_empty() {
        answer.details.push(format!("no pod on node {node} is told that name"));
    }
    answer.details.extend(plugins.into_iter().filter_map(ailment));
    answer
}

fn multi_attach(facts: &Facts, pod: &Pod, told: &Told, state: String) -> Answer {
    let namespace = namespace_of(&pod.metadata);
    let volumes: Vec<_> =
        claims_of(pod).into_iter().filter_map(|(_, name, _)| Some(volume_of(facts.claim(namespace, &name)?))).collect();
    let other = facts.attachments.iter().find(|a| {
        a.spec.node_name != node_of(pod)
            && volumes.iter().any(|v| a.spec.source.persistent_volume_name.as_deref() == Some(v))
    });
    let answer = Answer::retrying("multi-attach", state).since(told.first);
    let Some(other) = other else {
        return answer.detail("the volume can be attached to one node at a time, and another still has it");
    };
    let (attachment, there) = (name_of(&other.metadata), other.spec.node_name.as_str());
    let volume = other.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
    let uses = |p: &&Pod| {
        node_of(p) == there
            && claims_of(p)
                .iter()
                .any(|(_, c, _)| facts.claim(namespace_of(&p.metadata), c).is_some_and(|c| volume_of(c) == volume))
    };
    let answer = answer.detail(format!("volume {volume} is attached to node {there} (VolumeAttachment {attachment})"));
    if !facts.node(there).is_some_and(ready) {
        let mut answer = answer.detail(format!(
            "node {there} is gone or does not answer; the volume is taken from it 6 minutes after its pods are deleted"
        ));
        answer.cause = "multi-attach-dead-node";
        return answer
            .fix("# only if that node is surely off")
            .fix(format!("kubectl taint node {there} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"));
    }
    if let Some(user) = facts.pods.iter().find(uses) {
        let (name, going) = (name_of(&user.metadata), deleting(&user.metadata).is_some());
        let how = if going { "which is Terminating" } else { "which runs" };
        let answer = answer.detail(format!("there it is used by pod {name}, {how}"));
        return answer.fix(format!("kubectl delete pod {name} -n {}", namespace_of(&user.metadata)));
    }
    let mut answer = answer.detail(format!(
        "no pod uses it there: the attachment is stale, and driver {} does not detach it",
        other.spec.attacher
    ));
    answer.cause = "stale-attachment";
    answer.verdict = crate::answer::Verdict::Stuck;
    answer.fix(format!("kubectl delete volumeattachment {attachment}"))
}
