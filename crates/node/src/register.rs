//! The node's own object: made at start, kept fresh by a lease and by its status.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base::chain;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{
            ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus,
        },
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};

use crate::{agent::Shared, core::history::seconds, machine};

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
        allocatable: Some(shared.capacity.list()),
        conditions: Some(conditions(shared.clock.now(), before)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: config.kubelet_port.into() }),
        }),
        node_info: Some(machine::system_info(config)),
        images: Some(images.collect()),
        ..NodeStatus::default()
    }
}

fn conditions(now: Timestamp, before: Option<&NodeStatus>) -> Vec<NodeCondition> {
    [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ]
    .map(|(kind, value, reason, message)| {
        let mut all = before.into_iter().flat_map(|s| s.conditions.iter().flatten());
        let same = all.find(|c| c.type_ == kind && c.status == value);
        NodeCondition {
            type_: kind.into(),
            status: value.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: Some(seconds(now)),
            last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(seconds(now))),
        }
    })
    .into()
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
