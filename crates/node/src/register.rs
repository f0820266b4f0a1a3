//! The node's own object: made at start, kept fresh by a lease and by its status.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base::chain;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{
            ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
            NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus,
        },
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};

use crate::{
    agent::Shared,
    core::history::seconds,
    machine::{self, Pressure},
};

const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_SECONDS: i32 = 40;
const LEASE_EVERY: Duration = Duration::from_secs(10);
/// The status is looked at this often, and written if it changed or was not for [`REPORT_EVERY`].
const LOOK_EVERY: Duration = Duration::from_secs(10);
const REPORT_EVERY: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_millis(500);
const MAX_IMAGES: usize = 50;

fn labels(shared: &Shared) -> BTreeMap<String, String> {
    let name = shared.config.node_name.as_str();
    let arch = machine::architecture();
    let mut all: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    all.extend(shared.config.labels.clone());
    all
}

/// Makes the node's object, or takes the existing one over; tries until it succeeds. The node is Ready when this returns.
pub async fn register(shared: &Shared) -> Node {
    loop {
        match try_register(shared).await {
            Ok(node) => return node,
            Err(error) => tracing::warn!(error = chain(&error), "could not register the node; it is tried again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn try_register(shared: &Shared) -> Result<Node, kube::Error> {
    let nodes: Api<Node> = Api::all(shared.client.clone());
    let name = &shared.config.node_name;
    let metadata = ObjectMeta { name: Some(name.clone()), labels: Some(labels(shared)), ..ObjectMeta::default() };
    let wanted = Node { metadata, spec: Some(NodeSpec::default()), status: Some(status(shared, None).await) };
    let mut made = false;
    match nodes.create(&PostParams::default(), &wanted).await {
        Ok(_) => made = true,
        Err(kube::Error::Api(s)) if s.code == 409 => {
            let patch = serde_json::json!({"metadata": {"labels": labels(shared)}});
            nodes.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        }
        Err(error) => return Err(error),
    }
    let there = nodes.get(name).await?;
    let was_ready = !made && ready(there.status.as_ref());
    let node = write_status(shared, there.status.as_ref()).await?;
    shared.events.node(&node, false, "Starting", "Starting kubelet.".into());
    if !was_ready {
        shared.events.node(&node, false, "NodeReady", format!("Node {name} status is now: NodeReady"));
    }
    Ok(node)
}

fn ready(status: Option<&NodeStatus>) -> bool {
    let all = status.into_iter().flat_map(|s| s.conditions.iter().flatten());
    all.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

async fn write_status(shared: &Shared, before: Option<&NodeStatus>) -> Result<Node, kube::Error> {
    let nodes: Api<Node> = Api::all(shared.client.clone());
    let patch = serde_json::json!({"status": status(shared, before).await});
    nodes.patch_status(&shared.config.node_name, &PatchParams::default(), &Patch::Strategic(&patch)).await
}

async fn status(shared: &Shared, before: Option<&NodeStatus>) -> NodeStatus {
    let config = &shared.config;
    let mut addresses: Vec<NodeAddress> =
        config.addresses.iter().map(|ip| NodeAddress { type_: "InternalIP".into(), address: ip.to_string() }).collect();
    addresses.push(NodeAddress { type_: "Hostname".into(), address: config.node_name.clone() });
    let mut images = shared.runtime.images().await.unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), "could not list images");
        Vec::new()
    });
    images.sort_by_key(|i| std::cmp::Reverse(i.size_bytes));
    let images = images.into_iter().take(MAX_IMAGES).map(|i| ContainerImage {
        names: Some(i.repo_digests.into_iter().chain(i.repo_tags).take(5).collect()),
        size_bytes: i64::try_from(i.size_bytes).ok(),
    });
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(shared.capacity.list()),
        allocatable: Some(shared.capacity.allocatable()),
        conditions: Some(conditions(shared.clock.now(), before, Pressure::look(config.layout.root()))),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: config.kubelet_port.into() }),
        }),
        node_info: Some(machine::system_info(config)),
        images: Some(images.collect()),
        runtime_handlers: Some(vec![NodeRuntimeHandler {
            name: Some(String::new()),
            features: Some(NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(true),
                user_namespaces: Some(false),
            }),
        }]),
        features: Some(NodeFeatures { supplemental_groups_policy: Some(true) }),
        volumes_in_use: Some(shared.csi.in_use.list()).filter(|list| !list.is_empty()),
        ..NodeStatus::default()
    }
}

/// A kind of shortage: the condition, then reason and message without and with it.
type Shortage = (&'static str, [(&'static str, &'static str); 2]);

const MEMORY: Shortage = (
    "MemoryPressure",
    [
        ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
    ],
);
const DISK: Shortage = (
    "DiskPressure",
    [
        ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("KubeletHasDiskPressure", "kubelet has disk pressure"),
    ],
);
const PIDS: Shortage = (
    "PIDPressure",
    [
        ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
    ],
);

fn conditions(now: Timestamp, before: Option<&NodeStatus>, pressure: Pressure) -> Vec<NodeCondition> {
    let shortages = [(MEMORY, pressure.memory), (DISK, pressure.disk), (PIDS, pressure.pids)];
    let ready = ("Ready", true, ("KubeletReady", "kubelet is posting ready status"));
    let all =
        shortages.map(|((kind, words), short)| (kind, short, words[usize::from(short)])).into_iter().chain([ready]);
    all.map(|(kind, holds, (reason, message))| {
        let value = if holds { "True" } else { "False" };
        let mut known = before.into_iter().flat_map(|s| s.conditions.iter().flatten());
        let same = known.find(|c| c.type_ == kind && c.status == value);
        NodeCondition {
            type_: kind.into(),
            status: value.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: Some(seconds(now)),
            last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(seconds(now))),
        }
    })
    .collect()
}

/// Tells about shortages that began or ended, as upstream: `Node a status is now: NodeHasDiskPressure`.
fn tell_changes(shared: &Shared, node: &Node, before: &NodeStatus) {
    let find = |s: &NodeStatus, kind: &str| s.conditions.iter().flatten().find(|c| c.type_ == kind).cloned();
    for (kind, _) in [MEMORY, DISK, PIDS] {
        let now = node.status.as_ref().and_then(|s| find(s, kind));
        let Some((now, old)) = now.zip(find(before, kind)).filter(|(now, old)| now.status != old.status) else {
            continue;
        };
        tracing::info!(condition = kind, from = old.status, to = now.status, "the node's state changed");
        let reason = now.reason.unwrap_or_default().replacen("Kubelet", "Node", 1);
        let text = format!("Node {} status is now: {reason}", shared.config.node_name);
        shared.events.node(node, false, &reason, text);
    }
}

/// Keeps the status fresh; ends when dropped.
pub async fn report(shared: Arc<Shared>, node: Node) {
    let mut last = node.status.unwrap_or_default();
    let mut written = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = status(&shared, Some(&last)).await;
        if same(&now, &last) && written.elapsed() < REPORT_EVERY {
            continue;
        }
        match write_status(&shared, Some(&last)).await {
            Ok(node) => {
                tell_changes(&shared, &node, &last);
                last = node.status.unwrap_or_default();
                written = tokio::time::Instant::now();
            }
            Err(kube::Error::Api(s)) if s.code == 404 => {
                // Somebody deleted the node; it is still here.
                last = register(&shared).await.status.unwrap_or_default();
            }
            Err(error) => tracing::warn!(error = chain(&error), "could not write the node's status"),
        }
    }
}

/// Equal but for the heartbeat; what others write is not looked at.
fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let verdicts = |s: &NodeStatus| {
        let all = s.conditions.iter().flatten();
        all.map(|c| (c.type_.clone(), c.status.clone())).collect::<std::collections::BTreeSet<_>>()
    };
    (&a.addresses, &a.capacity, &a.images, &a.node_info) == (&b.addresses, &b.capacity, &b.images, &b.node_info)
        && verdicts(a).is_subset(&verdicts(b))
}

/// Renews the lease; ends when dropped.
pub async fn renew_lease(shared: Arc<Shared>, node: Node) {
    let leases: Api<Lease> = Api::namespaced(shared.client.clone(), LEASE_NAMESPACE);
    let name = shared.config.node_name.clone();
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.clone(),
        uid: node.metadata.uid.unwrap_or_default(),
        ..OwnerReference::default()
    };
    loop {
        let spec = LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(MicroTime(shared.clock.now())),
            ..LeaseSpec::default()
        };
        let patch = serde_json::json!({"spec": spec});
        let renewed = leases.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop);
        let done = match renewed {
            Err(kube::Error::Api(s)) if s.code == 404 => {
                let metadata = ObjectMeta {
                    name: Some(name.clone()),
                    namespace: Some(LEASE_NAMESPACE.into()),
                    owner_references: Some(vec![owner.clone()]),
                    ..ObjectMeta::default()
                };
                leases.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await.map(drop)
            }
            other => other,
        };
        match done {
            Ok(()) => tokio::time::sleep(LEASE_EVERY).await,
            Err(error) => {
                tracing::warn!(error = chain(&error), "could not renew the node's lease; it is tried again");
                tokio::time::sleep(LEASE_EVERY / 5).await;
            }
        }
    }
}

#[test]
fn conditions_tell_of_shortages() {
    let at = |s: &str| s.parse::<Timestamp>().expect("a time");
    let words = |list: &[NodeCondition]| {
        let one = |c: &NodeCondition| {
            let since = c.last_transition_time.as_ref().expect("a time").0;
            format!("{}={} {} {since}", c.type_, c.status, c.reason.clone().unwrap_or_default())
        };
        list.iter().map(one).collect::<Vec<_>>()
    };
    let fine = conditions(at("2026-01-01T00:00:00Z"), None, Pressure::default());
    let before = NodeStatus { conditions: Some(fine), ..NodeStatus::default() };
    let full = Pressure { disk: true, ..Pressure::default() };
    assert_eq!(
        words(&conditions(at("2026-01-01T00:01:00Z"), Some(&before), full)),
        [
            "MemoryPressure=False KubeletHasSufficientMemory 2026-01-01T00:00:00Z",
            "DiskPressure=True KubeletHasDiskPressure 2026-01-01T00:01:00Z",
            "PIDPressure=False KubeletHasSufficientPID 2026-01-01T00:00:00Z",
            "Ready=True KubeletReady 2026-01-01T00:00:00Z",
        ]
    );
}
