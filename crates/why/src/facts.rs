//! What was observed, and how it is asked.
use api::snapshot::{VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent};
use controllers::{
    Meta,
    rules::{Seen, claims_of, class_of_volume, is_terminated},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{ConfigMap, Event, Node, PersistentVolume, PersistentVolumeClaim, Pod, ResourceQuota},
        storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time},
};

/// Everything an explanation may rest on. What is not known is empty and named in `unread`.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Of the namespace asked about, or of all.
    pub claims: Vec<PersistentVolumeClaim>,
    pub volumes: Vec<PersistentVolume>,
    pub classes: Vec<StorageClass>,
    /// Of all namespaces, for provisioners and drivers run anywhere.
    pub pods: Vec<Pod>,
    pub nodes: Vec<Node>,
    pub events: Vec<Event>,
    pub drivers: Vec<CSIDriver>,
    pub csi_nodes: Vec<CSINode>,
    pub attachments: Vec<VolumeAttachment>,
    pub leases: Vec<Lease>,
    pub capacities: Vec<CSIStorageCapacity>,
    pub quotas: Vec<ResourceQuota>,
    /// VolumeSnapshots of the namespace; elsewhere their kind may not be known.
    pub snapshots: Vec<VolumeSnapshot>,
    pub snapshot_contents: Vec<VolumeSnapshotContent>,
    pub snapshot_classes: Vec<VolumeSnapshotClass>,
    /// ConfigMaps of the namespace; `None` where they could not be read.
    pub config_maps: Option<Vec<ConfigMap>>,
    /// Names and keys of the namespace's Secrets, never their values; `None` where they could not be read.
    pub secrets: Option<Vec<(String, Vec<String>)>>,
    /// Last lines of containers that ended badly, by container.
    pub logs: Vec<(String, String)>,
    /// What could not be read, and why.
    pub unread: Vec<String>,
}

impl Facts {
    pub(crate) fn claim(&self, namespace: &str, name: &str) -> Option<&PersistentVolumeClaim> {
        self.claims.iter().find(|c| is(&c.metadata, namespace, name))
    }
    pub(crate) fn volume(&self, name: &str) -> Option<&PersistentVolume> {
        self.volumes.iter().find(|v| v.metadata.name.as_deref() == Some(name))
    }
    pub(crate) fn class(&self, name: &str) -> Option<&StorageClass> {
        self.classes.iter().find(|c| c.metadata.name.as_deref() == Some(name))
    }
    pub(crate) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|n| n.metadata.name.as_deref() == Some(name))
    }
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.pods.iter().find(|p| is(&p.metadata, namespace, name))
    }
    pub(crate) fn snapshot(&self, namespace: &str, name: &str) -> Option<&VolumeSnapshot> {
        self.snapshots.iter().find(|s| is(&s.metadata, namespace, name))
    }

    /// Events about this incarnation of an object, the latest first.
    pub(crate) fn events_about<'a>(&'a self, kind: &'a str, meta: &ObjectMeta) -> Vec<&'a Event> {
        let ours = |e: &&Event| {
            let about = &e.involved_object;
            about.kind.as_deref() == Some(kind)
                && about.name == meta.name
                && (about.uid.is_none() || meta.uid.is_none() || about.uid == meta.uid)
        };
        let mut found: Vec<&Event> = self.events.iter().filter(ours).collect();
        found.sort_by_key(|e| std::cmp::Reverse(seen(e)));
        found
    }
    /// The latest event of one of the reasons.
    pub(crate) fn latest(&self, kind: &str, meta: &ObjectMeta, reasons: &[&str]) -> Option<Told> {
        let all = self.events_about(kind, meta);
        all.iter().find(|e| reasons.contains(&e.reason.as_deref().unwrap_or_default())).map(|e| Told::of(e))
    }
}

impl Seen for Facts {
    fn class(&self, name: &str) -> Option<&StorageClass> {
        self.class(name)
    }
    fn classes(&self) -> Box<dyn Iterator<Item = &StorageClass> + '_> {
        Box::new(self.classes.iter())
    }
    fn volume(&self, name: &str) -> Option<&PersistentVolume> {
        self.volume(name)
    }
    fn count_volumes(&self) -> usize {
        self.volumes.len()
    }
    fn has_volume_of(&self, class: &str) -> bool {
        self.volumes.iter().any(|v| class_of_volume(v) == class)
    }
    fn has_driver(&self, name: &str) -> bool {
        self.drivers.iter().any(|d| name_of(&d.metadata) == name)
    }
    fn sees_snapshots(&self) -> bool {
        !self.unread.iter().any(|what| what.starts_with("snapshots"))
    }
    fn snapshot(&self, namespace: &str, name: &str) -> Option<&VolumeSnapshot> {
        self.snapshot(namespace, name)
    }
    fn claim(&self, namespace: &str, name: &str) -> Option<&PersistentVolumeClaim> {
        self.claim(namespace, name)
    }
    fn users(&self, claim: &PersistentVolumeClaim) -> Vec<&Pod> {
        let name = name_of(&claim.metadata);
        let same_place = |p: &&Pod| p.metadata.namespace == claim.metadata.namespace;
        let names = |p: &&Pod| claims_of(p).iter().any(|(_, c, _)| c == name);
        self.pods.iter().filter(same_place).filter(names).filter(|p| !is_terminated(p)).collect()
    }
}

/// A condition of a pod that is False, as an Event would say it: it is there when the Event has expired.
pub(crate) fn kept(pod: &Pod, kind: &str) -> Option<Told> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|c| c.type_ == kind && c.status == "False")?;
    let message = found.message.clone().filter(|m| !m.is_empty())?;
    let since = found.last_transition_time.as_ref().map(|t| t.0);
    Some(Told { reason: found.reason.clone().unwrap_or_default(), message, first: since, last: None })
}

/// What an Event says.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub reason: String,
    pub message: String,
    pub first: Option<Timestamp>,
    pub last: Option<Timestamp>,
}

impl Told {
    pub fn of(event: &Event) -> Self {
        let first = event.first_timestamp.as_ref().map(|t| t.0).or_else(|| seen(event));
        let message = event.message.as_deref().unwrap_or_default();
        // Some components end their messages with a line feed; some send pages.
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
        Self { reason: event.reason.clone().unwrap_or_default(), message, first, last: seen(event) }
    }
}

fn seen(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|s| s.last_observed_time.as_ref());
    let time = |t: &Time| t.0;
    let micro = |t: &MicroTime| t.0;
    [series.map(micro), event.last_timestamp.as_ref().map(time), event.event_time.as_ref().map(micro)]
        .into_iter()
        .flatten()
        .max()
}

fn is(meta: &ObjectMeta, namespace: &str, name: &str) -> bool {
    meta.name.as_deref() == Some(name) && meta.namespace.as_deref().unwrap_or_default() == namespace
}

pub(crate) fn name_of(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}
pub(crate) fn namespace_of(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}
pub(crate) fn created(meta: &ObjectMeta) -> Option<Timestamp> {
    meta.creation_timestamp.as_ref().map(|t| t.0)
}
pub(crate) fn deleting(meta: &ObjectMeta) -> Option<Timestamp> {
    meta.deletion_timestamp.as_ref().map(|t| t.0)
}
/// As the controllers read it.
pub(crate) fn claim_meta(claim: &PersistentVolumeClaim) -> Meta {
    Meta::new("PersistentVolumeClaim", &claim.metadata)
}

/// Of `names` the ones that a person may have meant, the nearest first.
pub(crate) fn near<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let most = (wanted.chars().count() / 3).max(2);
    let mut found: Vec<(usize, &str)> = names
        .map(|n| (distance(&wanted.to_lowercase(), &n.to_lowercase()), n))
        .filter(|(d, n)| *d <= most || (wanted.len() > 2 && (n.contains(wanted) || wanted.contains(n))))
        .collect();
    found.sort();
    found.into_iter().map(|(_, n)| n).take(3).collect()
}

/// Edits between two texts.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let kept = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = kept.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[test]
fn near_names() {
    for (wanted, names, expected) in [
        ("fsat", vec!["fast", "slow"], vec!["fast"]),
        ("standart", vec!["standard", "standard-rwo", "gold"], vec!["standard"]),
        ("ssd", vec!["gce-ssd", "hdd"], vec!["hdd", "gce-ssd"]),
        ("gold", vec!["bronze"], vec![]),
    ] {
        assert_eq!(near(wanted, names.into_iter()), expected, "{wanted}");
    }
}
