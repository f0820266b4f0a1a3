//! Who makes the volumes of a class, and whether it is alive.
use controllers::rules::driver_in_place_of;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::facts::{Facts, name_of, namespace_of};

/// In-tree provisioners that went without a trace, and the CSI driver for such storage, if there is one. Those that
/// Kubernetes still translates are known to the controllers.
const REMOVED: &[(&str, &str)] = &[
    ("kubernetes.io/rbd", "rbd.csi.ceph.com"),
    ("kubernetes.io/cephfs", "cephfs.csi.ceph.com"),
    ("kubernetes.io/flocker", ""),
    ("kubernetes.io/glusterfs", ""),
    ("kubernetes.io/quobyte", "csi.quobyte.com"),
    ("kubernetes.io/scaleio", "csi-vxflexos.dellemc.com"),
    ("kubernetes.io/storageos", ""),
];

/// The CSI driver in place of a removed in-tree provisioner; empty where there is none.
pub(crate) fn successor(provisioner: &str) -> Option<&'static str> {
    let gone = || REMOVED.iter().find(|(name, _)| *name == provisioner).map(|(_, driver)| *driver);
    driver_in_place_of(provisioner).or_else(gone)
}

/// What is known of a provisioner.
pub(crate) struct Health {
    /// Pods that run it.
    pub pods: usize,
    pub ready: usize,
    /// One sentence for each pod that is not ready.
    pub ailing: Vec<String>,
    /// Who leads, and when that was last said.
    pub lease: Option<(String, Option<Timestamp>)>,
    /// Whether the leader has stopped saying so.
    pub lapsed: bool,
}

impl Health {
    /// Looks for pods whose containers are told the provisioner's name, and for its leader's Lease.
    pub fn of(facts: &Facts, provisioner: &str, now: Timestamp) -> Self {
        let plain = |text: &str| text.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let lease = facts.leases.iter().find(|l| plain(name_of(&l.metadata)).starts_with(&plain(provisioner)));
        let leader = lease.and_then(|l| l.spec.as_ref());
        let renewed = leader.and_then(|s| s.renew_time.as_ref()).map(|t| t.0);
        let holder = leader.and_then(|s| s.holder_identity.clone()).unwrap_or_default();
        let named: Vec<&Pod> = facts.pods.iter().filter(|p| mentions(p, provisioner)).collect();
        // The plugin's part on each node is told the name too; what provisions is what counts here.
        let makers: Vec<&Pod> = named.iter().filter(|p| provisions(p, provisioner)).copied().collect();
        let pods = if makers.is_empty() { named } else { makers };
        let ailing = pods.iter().filter_map(|p| ailment(p)).collect::<Vec<_>>();
        Self {
            pods: pods.len(),
            ready: pods.len() - ailing.len(),
            ailing,
            lease: lease.map(|_| (holder, renewed)),
            lapsed: renewed.is_some_and(|t| now.duration_since(t) > SignedDuration::from_mins(1)),
        }
    }

    /// Whether anything shows that it runs.
    pub fn runs(&self) -> bool {
        self.ready > 0 || (self.pods == 0 && self.lease.is_some() && !self.lapsed)
    }

    /// Sentences about it.
    pub fn said(&self, provisioner: &str) -> Vec<String> {
        let mut said = vec![match (self.pods, &self.lease) {
            (0, None) => format!("no pod here is told the name {provisioner:?}, and no Lease is held in its name"),
            (0, Some((holder, _))) => format!("{holder:?} leads for {provisioner}"),
            (n, _) => format!("{} of {n} pod(s) of provisioner {provisioner} are ready", self.ready),
        }];
        said.extend(self.ailing.iter().cloned());
        if let Some((holder, Some(renewed))) = self.lease.as_ref().filter(|_| self.lapsed) {
            said.push(format!("its leader {holder:?} last renewed its Lease at {renewed:.0}"));
        }
        said
    }
}

fn texts(pod: &Pod) -> impl Iterator<Item = &str> {
    let spec = pod.spec.iter();
    spec.flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten())).flat_map(|c| {
        let words = c.args.iter().flatten().chain(c.command.iter().flatten()).map(String::as_str);
        words.chain(c.env.iter().flatten().filter_map(|e| e.value.as_deref()))
    })
}

/// Whether a pod's containers are told a name in arguments or environment, as a word of its own.
pub(crate) fn mentions(pod: &Pod, name: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let whole = |text: &str| {
        text.match_indices(name).any(|(at, _)| {
            let before = text[..at].chars().next_back();
            let after = text[at + name.len()..].chars().next();
            !before.is_some_and(inner) && !after.is_some_and(inner)
        })
    };
    texts(pod).any(whole)
}

fn provisions(pod: &Pod, provisioner: &str) -> bool {
    let containers = pod.spec.iter().flat_map(|s| &s.containers);
    let mut images = containers.filter_map(|c| c.image.as_deref());
    images.any(|i| i.contains("provisioner"))
        || texts(pod).any(|t| t.contains("provisioner") && t.contains(provisioner))
}

/// What is wrong with a pod, in a sentence; nothing for one that is ready.
pub(crate) fn ailment(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|s| s.conditions.as_ref());
    if conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True") {
        return None;
    }
    let (namespace, name) = (namespace_of(&pod.metadata), name_of(&pod.metadata));
    let statuses = status.and_then(|s| s.container_statuses.as_ref());
    let reason = statuses.into_iter().flatten().find_map(container_reason);
    let phase = status.and_then(|s| s.phase.as_deref()).unwrap_or("not yet seen by its node");
    Some(format!("pod {namespace}/{name} is {}", reason.unwrap_or_else(|| format!("{phase} and not ready"))))
}

fn container_reason(status: &ContainerStatus) -> Option<String> {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let state = status.state.as_ref()?;
    let last = status.last_state.as_ref().and_then(|s| s.terminated.as_ref()).or(state.terminated.as_ref());
    let ended = last.map(|t| {
        let message = t.message.as_deref().and_then(|m| m.lines().last()).map(|m| format!(": {m}")).unwrap_or_default();
        format!("container {} ended last with {} (exit code {}){message}", status.name, text(&t.reason), t.exit_code)
    });
    let waiting = state.waiting.as_ref().map(|w| {
        let message = w.message.as_ref().map(|m| format!(": {m}")).unwrap_or_default();
        format!("{}{message}", text(&w.reason))
    });
    match (waiting, ended) {
        (Some(waiting), Some(ended)) => Some(format!("{waiting}; {ended}")),
        (waiting, ended) => waiting.or(ended),
    }
}
