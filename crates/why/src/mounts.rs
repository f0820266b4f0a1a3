//! Pods on a node whose volumes are not mounted yet: only the volume that fails.
use std::collections::BTreeMap;

use controllers::rules::{claims_of, node_of, volume_of};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{KeyToPath, Pod, Volume};

use crate::{
    answer::{Answer, Verdict},
    attach,
    facts::{Facts, Told, created, deleting, kept, name_of, namespace_of, near},
    provisioner::{ailment, mentions},
    scheduling::{label, of_claims, ready},
};

/// A node that is alive says so every 10 s.
const HEARTBEAT: SignedDuration = SignedDuration::from_secs(60);
/// Reason of the Event about, and of the condition of, a pod whose volume is being given to its group.
const IN_PROGRESS: &str = "VolumePermissionChangeInProgress";
/// The longest that a node waits between two attempts at a volume.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_secs(122);

pub(crate) fn explain(facts: &Facts, pod: &Pod, now: Timestamp) -> Answer {
    let answer = missing(facts, pod)
        .or_else(|| ended(facts, pod))
        .or_else(|| of_claims(facts, pod, now))
        .or_else(|| told(facts, pod, now));
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

/// A volume of a plugin that Kubernetes no longer has: nothing that anybody does on a node will mount it.
fn ended(facts: &Facts, pod: &Pod) -> Option<Answer> {
    let namespace = namespace_of(&pod.metadata);
    let behind = |claim: &str| facts.volume(volume_of(facts.claim(namespace, claim)?))?.spec.as_ref();
    let claims = claims_of(pod);
    let mut volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let (volume, ended) = volumes.find_map(|volume| {
        let claim = claims.iter().find(|(name, ..)| *name == volume.name);
        let of_claim = || in_tree::ended_volume(behind(&claim?.1)?);
        in_tree::ended_inline(volume).or_else(of_claim).map(|ended| (volume, ended))
    })?;
    let state = format!("{} waits for its volumes: volume {:?} is of type {}", label(pod), volume.name, ended.field);
    let answer = Answer::stuck("storage-ended", state).detail(ended.story);
    Some(answer.fix(match ended.driver {
        "" => "# restore the data into a volume of a class that is here: kubectl get storageclass".to_owned(),
        driver => format!("# install the CSI driver {driver}, and let the pod use a claim on a volume of it"),
    }))
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
        &["There is no CSIDriver", "(no CSIDriver object)", "is not installed here"],
        "driver-not-installed",
        "there is no CSI driver of that name",
        "# install the driver (those that are here: kubectl get csidrivers), or correct its name in the volume",
    ),
    (
        &["cannot be given to the CSI driver"],
        "not-translated",
        "the volume is given to the CSI driver that replaced its plugin, and lacks something that this one needs",
        "# what the message asks for, in a new volume",
    ),
    (
        &["not found in the list of registered CSI drivers"],
        "driver-not-registered",
        "the driver's plugin on that node is not running, or its kubelet directory is another one",
        "kubectl get pods -A -o wide --field-selector spec.nodeName=",
    ),
    (
        &[": nfs "],
        "nfs-server",
        "the server that the volume names does not answer, does not export the path to this node, or speaks another version",
        "# what the message asks for: start the server, export the path to the node, or correct server, path or mountOptions",
    ),
    (
        &["in Flocker:", "using flocker:"],
        "flocker",
        "the node asks Flocker's control service, by the address and the certificates that `holdfast up` was started with",
        "# see the message, and --flocker-host, --flocker-ca-file, --flocker-key-file and --flocker-cert-file",
    ),
    (
        &[" : clone of "],
        "git-clone",
        "the repository is cloned when the pod starts, and was not",
        "# let the server have what the message names, or correct gitRepo in a new pod",
    ),
    (
        &["endpoints \""],
        "endpoints-missing",
        "the addresses of the servers are taken from an Endpoints object",
        "# make the Endpoints object, with the addresses of the servers",
    ),
    (
        &["couldn't get secret", " has no key "],
        "secret-missing",
        "the volume wants a Secret, or a key of it, that is not there",
        "# make the Secret that the message names, with that key",
    ),
    (
        &["matched zero ClusterTrustBundles", "getting ClusterTrustBundle"],
        "trust-bundle-missing",
        "the volume wants trusted certificates that are not there",
        "kubectl get clustertrustbundles",
    ),
    (
        &["no fc disk found", "has no LUN", "has no target"],
        "disk-missing",
        "the storage shows this node no such disk",
        "# let the storage show the disk to this node, or correct the volume",
    ),
    (
        &["has volumeMode "],
        "volume-mode",
        "a volume of mode Block goes with volumeDevices, one of mode Filesystem with volumeMounts",
        "# make the pod again with the one that fits the claim",
    ),
    (
        &["Mount options are not supported"],
        "mount-options",
        "volumes of this type take no mount options",
        "# remove spec.mountOptions from the PersistentVolume",
    ),
    (
        &["is one too, of the same volume"],
        "paths-collide",
        "two files of the volume want one path",
        "# change a path or a key: the ConfigMap's or Secret's, or in a new pod",
    ),
    (
        &["wrong fs type", "bad superblock", "bad option", "unknown filesystem", "mount.nfs", "mount.cifs"],
        "mount-helper",
        "the program that mounts this file system is missing on the node, or the volume is not formatted as said",
        "# install the mount helper on the node (nfs-common, cifs-utils), or correct fsType",
    ),
    (
        &["already used by pod", "already in use by pod", "already in use by another pod", " in use by pod "],
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
        &["this node has no program", "this node has no GlusterFS client"],
        "mount-helper",
        "the program that mounts this volume is missing on the node",
        "# install it on the node; the pod goes on by itself",
    ),
    (
        &["Transport endpoint is not connected", "no server answered", "cannot be asked", "Connection refused"],
        "storage-unreachable",
        "the servers of the storage do not answer this node",
        "# see that they run, and that this node reaches the addresses that the volume, or its Endpoints object, names",
    ),
    (
        &["no such file or directory", "does not exist", "No such file"],
        "path-missing",
        "the path does not exist on the node",
        "# make the path on the node, or correct it in the volume",
    ),
    (
        &["is not usable: ", ": Not a directory", ": File name too long"],
        "path-unusable",
        "what is at the path on the node is not what the volume needs",
        "# make the path on the node what it has to be, or correct it in the volume",
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

/// Words of messages about what is wrong in the pod itself, which cannot be changed.
const IN_POD: &[&str] = &[
    "unknown storage medium",
    "hugePages storage requested",
    "container requests multiple huge page sizes",
    "is not a name that a driver can have",
    "invalid path: ",
    " : container ",
];

/// Reason of the Event about a volume that takes long.
const SLOW: &str = "SlowMount";
const REASONS: &[&str] =
    &["FailedAttachVolume", "FailedMount", "FailedMapVolume", "FailedMountVolume", IN_PROGRESS, SLOW];

/// What the node last said about the pod's volumes.
fn told(facts: &Facts, pod: &Pod, now: Timestamp) -> Option<Answer> {
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
    // The conditions and the attachment stay when the Events have expired, and are newer where they change often.
    let condition = kept(pod, "PodReadyToStartContainers");
    let attaching = || attach::error(facts, pod);
    let newer = condition.as_ref().filter(|c| c.reason == IN_PROGRESS);
    let events = || about.iter().find(|t| !vague(t));
    let attached = if newer.is_none() && events().is_none() && condition.is_none() { attaching() } else { None };
    let said = newer.or_else(events).or(condition.as_ref()).or(attached.as_ref()).or(about.first())?;
    let next = said.last.and_then(|t| t.checked_add(LONGEST_PAUSE).ok());
    let state = |text: &str| match failing(facts, pod, said) {
        Some(volume) => format!("{} waits for its volumes: volume {volume:?}: {text}", label(pod)),
        None => format!("{} waits for its volumes: {text}", label(pod)),
    };
    let answer = match () {
        _ if said.message.contains("Multi-Attach") => {
            return Some(attach::elsewhere(facts, pod, said, state(&said.message)));
        }
        _ if said.reason == IN_PROGRESS => {
            let answer =
                Answer::waiting("ownership-change", state(&said.message), "the node to change the owner of every file");
            let answer = answer.fix("# next time: securityContext.fsGroupChangePolicy: OnRootMismatch");
            return Some(answer.since(said.first));
        }
        _ if said.reason == SLOW => Answer::retrying("mount-slow", state(&said.message))
            .detail("it is given up after a while, told about, and tried again")
            .fix("# see that the volume's server, or its driver on the node, answers"),
        _ if attach::is_limit(said) => {
            attach::limit(facts, Some(node_of(pod)), Answer::retrying("attach-limit", state(&said.message)))
        }
        _ if vague(&said) => slow(facts, pod, Answer::retrying("mount-timeout", state(&said.message)), now),
        _ if IN_POD.iter().any(|w| said.message.contains(w)) => {
            let answer = Answer::stuck("pod-invalid", state(&said.message));
            return Some(answer.since(said.first).fix("# correct what the message names, in a new pod"));
        }
        _ => {
            let known = FAILURES.iter().find(|(words, ..)| words.iter().any(|w| said.message.contains(w)));
            match known {
                Some((_, "driver-not-registered", meaning, fix)) => {
                    let answer = Answer::retrying("driver-not-registered", state(&said.message)).detail(*meaning);
                    driver(facts, pod, said, answer).fix(format!("{fix}{}", node_of(pod)))
                }
                Some((_, "used-by-other-pod", meaning, fix)) => {
                    let answer = Answer::retrying("used-by-other-pod", state(&said.message)).detail(*meaning);
                    users(facts, pod, said, answer, now).fix(*fix)
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
    told.message.split("volume \"").skip(1).find_map(|rest| named(facts, pod, rest.split_once('"')?.0))
}

fn named(facts: &Facts, pod: &Pod, quoted: &str) -> Option<String> {
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

/// No volume has said what is wrong: how busy the node is.
fn slow(facts: &Facts, pod: &Pod, answer: Answer, now: Timestamp) -> Answer {
    let node = node_of(pod);
    let always = pod
        .spec
        .as_ref()
        .and_then(|s| s.security_context.as_ref())
        .is_some_and(|c| c.fs_group.is_some() && c.fs_group_change_policy.as_deref() != Some("OnRootMismatch"));
    let mut answer = answer.detail("no volume has said what is wrong: the node is slow, or waits for an attachment");
    let waiting = |p: &&Pod| node_of(p) == node && is_waiting(p);
    let all: Vec<&Pod> = facts.pods.iter().filter(waiting).collect();
    let volumes: usize = all.iter().filter_map(|p| p.spec.as_ref()).map(|s| s.volumes.iter().flatten().count()).sum();
    answer.details.push(format!("{} pod(s) with {volumes} volume(s) wait on node {node}", all.len()));
    match facts.node(node) {
        None => answer.details.push(format!("there is no node {node}")),
        Some(n) if !ready(n) => answer.details.push(format!("node {node} is not ready")),
        Some(_) => {}
    }
    let beat =
        facts.leases.iter().find(|l| namespace_of(&l.metadata) == "kube-node-lease" && name_of(&l.metadata) == node);
    let renewed = beat.and_then(|l| l.spec.as_ref()?.renew_time.as_ref()).map(|t| t.0);
    if let Some(renewed) = renewed.filter(|t| now.duration_since(*t) > HEARTBEAT) {
        answer.details.push(format!("node {node} last gave a sign of life at {renewed:.0}"));
    }
    if always {
        answer.cause = "ownership-change";
        return answer
            .detail("the pod has an fsGroup: the node changes the owner of every file first, which takes long with many files")
            .fix("# set securityContext.fsGroupChangePolicy: OnRootMismatch");
    }
    answer.fix(format!("kubectl describe node {node}"))
}

/// Whether none of a pod's containers has been started.
fn is_waiting(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let started = |s: &k8s_openapi::api::core::v1::ContainerStatus| {
        s.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some()) || s.restart_count > 0
    };
    !controllers::rules::is_terminated(pod) && !statuses.into_iter().any(started)
}

/// The pods that a message says have the volume, and what becomes of them.
fn users(facts: &Facts, pod: &Pod, told: &Told, mut answer: Answer, now: Timestamp) -> Answer {
    let words = told.message.split(|c: char| !(c.is_ascii_alphanumeric() || "-./".contains(c)));
    let namespace = namespace_of(&pod.metadata);
    let mut others = words.filter_map(|word| {
        let (namespace, name) = word.split_once('/').unwrap_or((namespace, word));
        facts.pod(namespace, name.trim_matches('.')).filter(|p| p.metadata.uid != pod.metadata.uid)
    });
    let Some(other) = others.next() else { return answer };
    let (name, namespace) = (name_of(&other.metadata), namespace_of(&other.metadata));
    match deleting(&other.metadata) {
        Some(since) => {
            let why = crate::pod::terminating(facts, other, since, now);
            answer.verdict = if why.is_normal() { Verdict::Waiting } else { why.verdict };
            answer.waiting_for = Some(format!("pod {name}, which is being deleted, to end"));
            answer.details.push(why.state);
            answer.fix = why.fix;
            answer
        }
        None => answer
            .detail(format!("pod {namespace}/{name} runs"))
            .fix(format!("kubectl delete pod {name} -n {namespace}")),
    }
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
