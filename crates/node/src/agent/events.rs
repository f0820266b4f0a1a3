//! Events about pods and the node, with repeated ones counted instead of repeated.
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use base::Clock;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::api::{Api, Patch, PatchParams, PostParams};
use tokio::sync::mpsc;

use super::identity;

/// Events waiting to be written; more are dropped, as events are advice.
const QUEUE: usize = 1024;
/// Remembered events, for counting.
const REMEMBERED: usize = 4096;
/// Per pod: so many at once, then one in [`REFILL`]; upstream's spam filter.
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);

/// Events of one reason about one object, and about one volume of it, that differ in their message: so many are told apart
/// within [`SIMILAR`], the rest is one event with the newest message; upstream's numbers and words. Unlike upstream, volumes
/// are told apart however many a pod has.
const APART: usize = 10;
const SIMILAR: Duration = Duration::from_secs(600);
const COMBINED: &str = "(combined from similar events): ";

const COMPONENT: &str = "kubelet";
/// Who tells about volumes that are reclaimed: upstream does that in its controller.
const RECLAIMER: &str = "persistentvolume-controller";

/// One thing that happened.
#[derive(Debug, Clone)]
struct Note {
    about: ObjectReference,
    /// Who tells, as upstream names its parts.
    component: &'static str,
    warning: bool,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Where events are handed in. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Note>,
    clock: Arc<dyn Clock>,
}

impl Recorder {
    /// A recorder and the task that writes; the task ends when all recorders are gone.
    pub fn new(
        client: kube::Client,
        node_name: String,
        clock: Arc<dyn Clock>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, notes) = mpsc::channel(QUEUE);
        let writer =
            Writer { client, node_name, known: HashMap::new(), similar: Similar::default(), spending: HashMap::new() };
        (Self { queue, clock }, writer.run(notes))
    }

    /// About a pod; `field_path` names a container of it.
    pub fn pod(&self, pod: &Pod, field_path: Option<String>, warning: bool, reason: &str, message: String) {
        let (name, namespace, uid) = identity(pod);
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(name.into()),
            namespace: Some(namespace.into()),
            uid: Some(uid.into()),
            resource_version: pod.metadata.resource_version.clone(),
            field_path,
        };
        self.send(about, COMPONENT, warning, reason, message);
    }

    /// About the node.
    pub fn node(&self, node: &Node, warning: bool, reason: &str, message: String) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let about = ObjectReference {
            kind: Some("Node".into()),
            // Upstream uses the name here too, so `kubectl describe node` looks for it.
            uid: Some(name.clone()),
            name: Some(name),
            ..ObjectReference::default()
        };
        self.send(about, COMPONENT, warning, reason, message);
    }

    /// About a claim that a pod here uses.
    pub fn claim(&self, claim: &PersistentVolumeClaim, warning: bool, reason: &str, message: String) {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("PersistentVolumeClaim".into()),
            name: claim.metadata.name.clone(),
            namespace: claim.metadata.namespace.clone(),
            uid: claim.metadata.uid.clone(),
            resource_version: claim.metadata.resource_version.clone(),
            ..ObjectReference::default()
        };
        self.send(about, COMPONENT, warning, reason, message);
    }

    /// About a persistent volume that is being reclaimed.
    pub fn volume(&self, volume: &PersistentVolume, warning: bool, reason: &str, message: String) {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("PersistentVolume".into()),
            name: volume.metadata.name.clone(),
            uid: volume.metadata.uid.clone(),
            resource_version: volume.metadata.resource_version.clone(),
            ..ObjectReference::default()
        };
        self.send(about, RECLAIMER, warning, reason, message);
    }

    fn send(&self, about: ObjectReference, component: &'static str, warning: bool, reason: &str, message: String) {
        let note = Note { about, component, warning, reason: reason.into(), message, at: self.clock.now() };
        if self.queue.try_send(note).is_err() {
            tracing::warn!(reason, "too many events wait to be written; dropped one");
        }
    }
}

/// What was written for equal notes before.
struct Known {
    name: String,
    count: i32,
    last: Timestamp,
}

/// Messages of notes that are alike otherwise, and when the last of them came.
#[derive(Default)]
struct Similar(HashMap<String, (BTreeSet<String>, Timestamp)>);

impl Similar {
    /// What a note of this group is counted as, and the message of its event.
    fn sort(&mut self, group: &str, message: &str, at: Timestamp) -> (String, String) {
        if self.0.len() > REMEMBERED {
            self.0.clear();
        }
        let (messages, last) = self.0.entry(group.to_owned()).or_insert_with(|| (BTreeSet::new(), at));
        if at.duration_since(*last).as_secs_f64() > SIMILAR.as_secs_f64() {
            messages.clear();
        }
        *last = at;
        messages.insert(message.to_owned());
        if messages.len() < APART {
            return (format!("{group}\0{message}"), message.to_owned());
        }
        messages.pop_first();
        (format!("{group}\0"), format!("{COMBINED}{message}"))
    }
}

struct Writer {
    client: kube::Client,
    node_name: String,
    known: HashMap<String, Known>,
    similar: Similar,
    /// Tokens left per object, and when that was computed.
    spending: HashMap<String, (f64, Timestamp)>,
}

impl Writer {
    async fn run(mut self, mut notes: mpsc::Receiver<Note>) {
        while let Some(note) = notes.recv().await {
            if !self.may(&note) {
                continue;
            }
            if let Err(error) = self.write(&note).await {
                tracing::debug!(%error, reason = note.reason, "could not write an event");
            }
        }
    }

    fn may(&mut self, note: &Note) -> bool {
        let key = note.about.uid.clone().unwrap_or_default();
        if self.spending.len() > REMEMBERED {
            self.spending.clear();
        }
        let (tokens, since) = self.spending.entry(key).or_insert((BURST, note.at));
        let passed = note.at.duration_since(*since).as_secs_f64().max(0.0);
        *tokens = (*tokens + passed / REFILL.as_secs_f64()).min(BURST);
        *since = note.at;
        let may = *tokens >= 1.0;
        if may {
            *tokens -= 1.0;
        }
        may
    }

    async fn write(&mut self, note: &Note) -> Result<(), kube::Error> {
        let text = |v: &Option<String>| v.clone().unwrap_or_default();
        let namespace = note.about.namespace.clone().unwrap_or_else(|| "default".into());
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let about = [text(&note.about.uid), text(&note.about.field_path)].join("\0");
        // What the message is about, it names first.
        let named = note.message.split('"').nth(1).unwrap_or_default();
        let group = [&about, &note.reason, named].join("\0");
        let (key, message) = self.similar.sort(&group, &note.message, note.at);
        if let Some(known) = self.known.get_mut(&key) {
            let count = known.count + 1;
            let patch = serde_json::json!({"count": count, "lastTimestamp": Time(note.at), "message": message});
            match events.patch(&known.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => {
                    (known.count, known.last) = (count, note.at);
                    return Ok(());
                }
                // It has expired or was deleted: write a new one.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let name = api::names::event_name(&text(&note.about.name), note.at.as_nanosecond());
        events.create(&PostParams::default(), &self.event(note, message, &name, &namespace)).await?;
        if self.known.len() >= REMEMBERED {
            let oldest = self.known.iter().min_by_key(|(_, k)| k.last).map(|(key, _)| key.clone());
            oldest.map(|key| self.known.remove(&key));
        }
        self.known.insert(key, Known { name, count: 1, last: note.at });
        Ok(())
    }

    fn event(&self, note: &Note, message: String, name: &str, namespace: &str) -> Event {
        Event {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some(namespace.into()),
                ..ObjectMeta::default()
            },
            involved_object: note.about.clone(),
            type_: Some(if note.warning { "Warning" } else { "Normal" }.into()),
            reason: Some(note.reason.clone()),
            message: Some(message),
            count: Some(1),
            first_timestamp: Some(Time(note.at)),
            last_timestamp: Some(Time(note.at)),
            source: Some(EventSource { component: Some(note.component.into()), host: Some(self.node_name.clone()) }),
            reporting_component: Some(note.component.into()),
            reporting_instance: Some(self.node_name.clone()),
            ..Event::default()
        }
    }
}

#[test]
fn many_messages_of_one_reason_become_one_event() {
    let mut similar = Similar::default();
    let mut at = Timestamp::UNIX_EPOCH;
    let mut seen = BTreeSet::new();
    for n in 0..100 {
        at += jiff::SignedDuration::from_secs(10);
        let (key, message) = similar.sort("pod\0FailedMount", &format!("try {n}"), at);
        let combined = n + 1 >= APART;
        assert_eq!(message, if combined { format!("{COMBINED}try {n}") } else { format!("try {n}") });
        seen.insert(key);
    }
    assert_eq!(seen.len(), APART);
    // Others, and what comes much later, are told as they are.
    assert_eq!(similar.sort("pod\0Failed", "try 100", at).1, "try 100");
    at += jiff::SignedDuration::from_secs(601);
    assert_eq!(similar.sort("pod\0FailedMount", "try 100", at).1, "try 100");
}
