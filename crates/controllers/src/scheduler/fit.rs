//! Whether a pod fits a node, its volumes aside, and how well.
use std::borrow::Cow;

use api::{
    pod::{Amounts, is_sidecar, requests},
    quantity::Quantity,
};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, Taint, Toleration};

use super::Obstacle;
use crate::{
    amount::amount,
    claim::is_terminated,
    select::{node_matches, term_matches},
    world::{Load, World},
};

static NO_LOAD: Load = Load { pods: 0, requests: Amounts::new() };

fn of(amounts: &Amounts, name: &str) -> Quantity {
    amounts.get(name).copied().unwrap_or(Quantity::ZERO)
}

/// The status of a node's Ready condition.
pub(crate) fn ready(node: &Node) -> Option<&str> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.status.as_str())
}

/// The first filter's objections, in upstream's order of filters; none when the node will do.
pub(crate) fn obstacles(world: &World, pod: &Pod, node: &Node) -> Vec<Obstacle> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let cordon = taint("node.kubernetes.io/unschedulable");
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) && !tolerated(&cordon, tolerations) {
        return vec![Obstacle::fixed("node(s) were unschedulable")];
    }
    if repelling(node).iter().any(|t| !tolerated(t, tolerations)) {
        return vec![Obstacle::fixed("node(s) had untolerated taint(s)")];
    }
    if !wants_node(spec, node) {
        return vec![Obstacle::fixed("node(s) didn't match Pod's node affinity/selector")];
    }
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let others = || world.pods_on(name).map(|(_, p)| p).filter(|p| !is_terminated(p)).filter_map(|p| p.spec.as_ref());
    if ports(spec).any(|port| others().flat_map(ports).any(|o| clash(&port, &o))) {
        return vec![Obstacle::by_pods("node(s) didn't have free ports for the requested pod ports")];
    }
    too_little(spec, node, world.load(name).unwrap_or(&NO_LOAD))
}

fn taint(key: &str) -> Taint {
    Taint { key: key.into(), effect: "NoSchedule".into(), ..Taint::default() }
}

/// Taints that keep pods away. A node that is not ready counts as tainted even before somebody taints it.
fn repelling(node: &Node) -> Vec<Cow<'_, Taint>> {
    let spec = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let keeps_away = |t: &&Taint| {
        matches!(t.effect.as_str(), "NoSchedule" | "NoExecute") && t.key != "node.kubernetes.io/unschedulable"
    };
    let mut taints: Vec<_> = spec.iter().filter(keeps_away).map(Cow::Borrowed).collect();
    match ready(node) {
        Some("True") => {}
        Some("Unknown") => taints.push(Cow::Owned(taint("node.kubernetes.io/unreachable"))),
        _ => taints.push(Cow::Owned(taint("node.kubernetes.io/not-ready"))),
    }
    taints
}

fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|t| {
        let key = t.key.as_deref().unwrap_or_default();
        let effect = t.effect.as_deref().unwrap_or_default();
        let value = match t.operator.as_deref() {
            Some("Exists") => true,
            _ => {
                !key.is_empty() && t.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
            }
        };
        (effect.is_empty() || effect == taint.effect) && (key.is_empty() || key == taint.key) && value
    })
}

fn wants_node(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let selected = spec.node_selector.iter().flatten().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|s| node_matches(s, node))
}

/// Protocol, address and port of each port that a pod takes on its node.
fn ports(spec: &PodSpec) -> impl Iterator<Item = (String, String, i32)> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c));
    let host = spec.host_network == Some(true);
    spec.containers.iter().chain(sidecars).flat_map(move |c| {
        c.ports.iter().flatten().filter_map(move |p| {
            let port = p.host_port.filter(|p| *p > 0).or_else(|| host.then_some(p.container_port))?;
            let address = p.host_ip.clone().filter(|a| !a.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
            Some((p.protocol.clone().unwrap_or_else(|| "TCP".into()), address, port))
        })
    })
}

fn clash(a: &(String, String, i32), b: &(String, String, i32)) -> bool {
    a.0 == b.0 && a.2 == b.2 && (a.1 == b.1 || a.1 == "0.0.0.0" || b.1 == "0.0.0.0")
}

fn allocatable(node: &Node) -> Amounts {
    let status = node.status.as_ref();
    let amounts = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
    amounts.into_iter().flatten().map(|(name, q)| (name.clone(), amount(q))).collect()
}

fn too_little(spec: &PodSpec, node: &Node, load: &Load) -> Vec<Obstacle> {
    let offered = allocatable(node);
    let mut found = Vec::new();
    let pods = Quantity::whole(i64::try_from(load.pods + 1).unwrap_or(i64::MAX));
    if offered.get("pods").is_some_and(|most| pods > *most) {
        found.push(Obstacle::by_pods("Too many pods"));
    }
    for (name, wanted) in requests(spec).into_iter().filter(|(_, wanted)| !wanted.is_zero()) {
        let all = of(&offered, &name);
        if wanted + of(&load.requests, &name) > all {
            found.push(Obstacle { reason: format!("Insufficient {name}"), removable: wanted <= all });
        }
    }
    found
}

/// Higher is better: free room, then preferences of the pod and of the node.
pub(crate) fn score(world: &World, pod: &Pod, node: &Node) -> i64 {
    let Some(spec) = &pod.spec else { return 0 };
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let load = world.load(name).unwrap_or(&NO_LOAD);
    let (offered, wanted) = (allocatable(node), requests(spec));
    let free = ["cpu", "memory"].iter().map(|resource| {
        let all = i128::from(of(&offered, resource).milli_value());
        let left = of(&offered, resource) - of(&load.requests, resource) - of(&wanted, resource);
        if all == 0 { 0 } else { i64::try_from(i128::from(left.milli_value()) * 100 / all).unwrap_or_default() }
    });
    // Pods that ask for nothing are spread by number.
    let room = free.sum::<i64>() / 2 - i64::try_from(load.pods).unwrap_or_default().min(50) / 5;
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let unwelcome = taints.iter().filter(|t| t.effect == "PreferNoSchedule" && !tolerated(t, tolerations)).count();
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let preferred = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let liked: i64 = preferred
        .into_iter()
        .flatten()
        .filter(|p| term_matches(&p.preference, node))
        .map(|p| i64::from(p.weight))
        .sum();
    room + liked * 2 - i64::try_from(unwelcome).unwrap_or_default() * 300
}
