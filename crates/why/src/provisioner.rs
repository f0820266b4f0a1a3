//! Who makes the volumes of a class, and whether it is alive.
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ContainerStatus, PersistentVolumeClaim, Pod},
};

use crate::facts::{Facts, name_of, namespace_of};

/// A leader that has not said so for this long has stopped.
const LAPSED: SignedDuration = SignedDuration::from_mins(1);

/// What is known of a provisioner.
pub(crate) struct Health<'a> {
    /// Pods that run it.
    pub pods: Vec<&'a Pod>,
    /// One sentence for each pod that is not ready.
    pub ailing: Vec<String>,
    /// Who leads, and when that was last said.
    pub lease: Option<(String, Option<Timestamp>)>,
    /// Whether the leader has stopped saying so.
    pub lapsed: bool,
    /// Nodes on which a CSI driver of its name is registered.
    pub nodes: Vec<&'a str>,
    /// Whether there is a CSIDriver of its name.
    pub installed: bool,
}

/// The Lease by which copies of a provisioner choose their leader: named after it.
fn lease<'a>(facts: &'a Facts, provisioner: &str) -> Option<&'a Lease> {
    let plain = |text: &str| text.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    facts.leases.iter().find(|l| plain(name_of(&l.metadata)).starts_with(&plain(provisioner)))
}

/// The pods that run a provisioner: who holds its Lease; who is told its name; else, who runs an image named like it.
pub(crate) fn pods_of<'a>(facts: &'a Facts, provisioner: &str) -> Vec<&'a Pod> {
    let of = |test: &dyn Fn(&Pod) -> bool| facts.pods.iter().filter(|p| test(p)).collect::<Vec<_>>();
    let named = of(&|p| mentions(p, provisioner));
    // The plugin's part on each node is told the name too; what provisions is what counts here.
    let makers: Vec<&Pod> = named.iter().filter(|p| provisions(p, provisioner)).copied().collect();
    let holder = lease(facts, provisioner).and_then(|l| Some((l, l.spec.as_ref()?.holder_identity.as_deref()?)));
    let leads = |p: &Pod| {
        holder.is_some_and(|(lease, holder)| {
            p.metadata.namespace == lease.metadata.namespace && holder.starts_with(name_of(&p.metadata))
        })
    };
    [makers, named, of(&leads), of(&|p| image_is_like(p, provisioner))]
        .into_iter()
        .find(|l| !l.is_empty())
        .unwrap_or_default()
}

/// One pod that runs a provisioner.
pub(crate) fn maker<'a>(facts: &'a Facts, provisioner: &str) -> Option<&'a Pod> {
    pods_of(facts, provisioner).first().copied()
}

impl<'a> Health<'a> {
    /// Looks for the provisioner's pods, its leader's Lease and the nodes where its driver is registered.
    pub fn of(facts: &'a Facts, provisioner: &str, now: Timestamp) -> Self {
        let lease = lease(facts, provisioner);
        let leader = lease.and_then(|l| l.spec.as_ref());
        let renewed = leader.and_then(|s| s.renew_time.as_ref()).map(|t| t.0);
        let holder = leader.and_then(|s| s.holder_identity.clone()).unwrap_or_default();
        let pods = pods_of(facts, provisioner);
        let registered = facts.csi_nodes.iter().filter(|n| n.spec.drivers.iter().any(|d| d.name == provisioner));
        Self {
            ailing: pods.iter().filter_map(|p| ailment(p)).collect(),
            pods,
            lease: lease.map(|_| (holder, renewed)),
            lapsed: renewed.is_some_and(|t| now.duration_since(t) > LAPSED),
            nodes: registered.map(|n| name_of(&n.metadata)).collect(),
            installed: facts.drivers.iter().any(|d| name_of(&d.metadata) == provisioner),
        }
    }

    fn ready(&self) -> usize {
        self.pods.len() - self.ailing.len()
    }

    /// Whether anything shows that it runs.
    pub fn runs(&self) -> bool {
        self.ready() > 0 || (self.pods.is_empty() && self.lease.is_some() && !self.lapsed)
    }

    /// Whether it runs, or its driver is registered on a node, which may do the rest by itself.
    pub fn serves(&self) -> bool {
        !self.is_down() && (self.runs() || !self.nodes.is_empty())
    }

    /// Whether its pods are there and none is ready.
    pub fn is_down(&self) -> bool {
        !self.pods.is_empty() && self.ready() == 0
    }

    /// Pods by which it makes the volume of a claim, in its own namespaces: named after the volume to be, or as helpers.
    pub fn helpers(&self, facts: &'a Facts, claim: &PersistentVolumeClaim) -> impl Iterator<Item = &'a Pod> {
        let volume = format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or("?"));
        let homes: Vec<&str> = self.pods.iter().map(|p| namespace_of(&p.metadata)).collect();
        let helper = move |p: &&Pod| {
            let name = name_of(&p.metadata);
            let at_home = homes.is_empty() || homes.contains(&namespace_of(&p.metadata));
            name.contains(&volume) || (at_home && name.starts_with("helper-pod") && !name.contains("pvc-"))
        };
        facts.pods.iter().filter(helper)
    }

    /// Sentences about it.
    pub fn said(&self, provisioner: &str) -> Vec<String> {
        let mut said = vec![match (self.pods.len(), &self.lease) {
            (0, None) if !self.nodes.is_empty() => format!("{provisioner} runs in no pod here"),
            (0, None) => format!("no pod here is told the name {provisioner:?}, and no Lease is held in its name"),
            (0, Some((holder, _))) => format!("{holder:?} leads for {provisioner}"),
            (n, _) => format!("{} of {n} pod(s) of provisioner {provisioner} are ready", self.ready()),
        }];
        said.extend(self.ailing.iter().cloned());
        if let Some((holder, Some(renewed))) = self.lease.as_ref().filter(|_| self.lapsed) {
            said.push(format!("its leader {holder:?} last renewed its Lease at {renewed:.0}"));
        }
        match (self.installed, &self.nodes[..]) {
            (true, []) => said.push(format!("CSIDriver {provisioner} is installed, but registered on no node")),
            (_, []) => {}
            (_, nodes) => said.push(format!("the driver is registered on node(s) {}", nodes.join(", "))),
        }
        said
    }
}

/// Whether an image's name has every word of a provisioner's name; the last resort.
fn image_is_like(pod: &Pod, provisioner: &str) -> bool {
    const EVERYWHERE: &[&str] =
        &["com", "io", "org", "net", "dev", "sh", "k8s", "kubernetes", "storage", "csi", "example"];
    let words = |text: &str| -> Vec<String> {
        let all = text.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_lowercase);
        // Two letters are found by accident.
        all.filter(|w| w.len() > 2 && !EVERYWHERE.contains(&w.as_str())).collect()
    };
    let wanted = words(provisioner);
    let like = |image: &str| {
        // Neither registry nor tag says what the program is.
        let name = image.split_once('/').map_or(image, |(first, rest)| if first.contains('.') { rest } else { image });
        let has = words(name.split(['@', ':']).next().unwrap_or_default());
        wanted.iter().all(|w| has.contains(w))
    };
    !wanted.is_empty() && pod.spec.iter().flat_map(|s| &s.containers).filter_map(|c| c.image.as_deref()).any(like)
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

#[test]
fn images_are_like_a_provisioner_by_all_its_words() {
    let like = |image: &str, provisioner: &str| {
        let pod = serde_json::json!({"spec": {"containers": [{"name": "c", "image": image}]}});
        image_is_like(&serde_json::from_value(pod).expect("a pod"), provisioner)
    };
    assert!(like("registry.k8s.io/team/nfs-subdir-provisioner:v4", "example.com/nfs"));
    assert!(like("topolvm/topolvm@sha256:0", "topolvm.io"));
    assert!(!like("x", "example.com/x"));
    assert!(!like("nfs.example.com/web", "example.com/nfs"));
    assert!(!like("nginx", "csi.storage.k8s.io"));
}
