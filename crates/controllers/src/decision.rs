//! What a decision is made about and what comes out of it.
use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use crate::call::Call;

/// Names one object: its kind as in the table of kinds, its namespace (empty for cluster scope) and its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub kind: &'static str,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl Key {
    pub fn new(kind: &'static str, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// The part of an object that all kinds share.
#[derive(Debug, Clone)]
pub struct Meta {
    pub key: Key,
    pub uid: String,
    /// As the API server wrote it.
    pub resource_version: String,
    pub deleting: Option<Timestamp>,
    pub finalizers: Vec<String>,
    pub owners: Vec<OwnerReference>,
}

impl Meta {
    /// Takes what is of use here out of an object's metadata.
    pub fn new(kind: &'static str, meta: &ObjectMeta) -> Self {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        Self {
            key: Key::new(
                kind,
                meta.namespace.as_deref().unwrap_or_default(),
                meta.name.as_deref().unwrap_or_default(),
            ),
            uid: text(&meta.uid),
            resource_version: text(&meta.resource_version),
            deleting: meta.deletion_timestamp.as_ref().map(|t| t.0),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            owners: meta.owner_references.clone().unwrap_or_default(),
        }
    }

    pub(crate) fn has_finalizer(&self, name: &str) -> bool {
        self.finalizers.iter().any(|f| f == name)
    }

    /// This incarnation, in this state.
    pub fn target(&self) -> Target {
        Target { key: self.key.clone(), uid: self.uid.clone(), resource_version: Some(self.resource_version.clone()) }
    }
}

/// One incarnation of an object, and the state of it that the decision was made on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub key: Key,
    pub uid: String,
    /// `None` where any state of this incarnation will do.
    pub resource_version: Option<String>,
}

/// The next write, all of it conditional.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Makes an object; if there is one of that name already, nothing is done.
    Create { key: Key, object: Value },
    /// A JSON merge patch, of the object or of a subresource.
    Patch { target: Target, subresource: Option<&'static str>, patch: Value },
    /// Deletes; `grace` in seconds and `propagation` as in `DeleteOptions`.
    Delete { target: Target, grace: Option<i64>, propagation: Option<&'static str> },
    /// Binds a pod to a node.
    Bind { pod: Target, node: String },
    /// Deletes all objects of the kinds in a namespace.
    Empty { namespace: String, kinds: Vec<&'static str> },
    /// Takes the last finalizer off a namespace, once a look at the server shows that nothing is left in it.
    Finalize { namespace: Target, finalizers: Vec<String> },
    /// Asks a storage driver; the row's `heard` says what follows.
    Call(Box<Call>),
    /// `then`, if a look at the server, past all caches, shows that `unless` does not hold.
    Checked { unless: Unless, then: Box<Action> },
}

/// What forbids an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unless {
    /// One of these incarnations exists.
    Exists(Vec<(Key, String)>),
    /// One of these incarnations is gone or being deleted.
    Going(Vec<(Key, String)>),
    /// A pod other than the one of this UID runs with one of the claims.
    Had { namespace: String, claims: Vec<String>, but: String },
    /// A pod uses the claim (see [`crate::protection::uses`]).
    Used { namespace: String, claim: String, claim_uid: String },
}

impl Action {
    /// A call of a driver.
    pub(crate) fn call(call: Call) -> Self {
        Self::Call(Box::new(call))
    }
    /// A merge patch of the object itself.
    pub(crate) fn patch(meta: &Meta, patch: Value) -> Self {
        Self::Patch { target: meta.target(), subresource: None, patch }
    }
    /// A merge patch of `status`.
    pub(crate) fn status(meta: &Meta, status: Value) -> Self {
        Self::Patch { target: meta.target(), subresource: Some("status"), patch: json!({ "status": status }) }
    }
    /// Puts one finalizer on.
    pub(crate) fn add_finalizer(meta: &Meta, name: &str) -> Self {
        let all: Vec<_> = meta.finalizers.iter().map(String::as_str).chain([name]).collect();
        Self::patch(meta, json!({ "metadata": { "finalizers": all } }))
    }
    /// Takes one finalizer off.
    pub(crate) fn drop_finalizer(meta: &Meta, name: &str) -> Self {
        let left: Vec<_> = meta.finalizers.iter().filter(|f| *f != name).collect();
        Self::patch(meta, json!({ "metadata": { "finalizers": left } }))
    }
}

/// What is told about an object, as an Event. The engine tells it again only when it changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Note {
    pub about: Key,
    pub uid: String,
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Note {
    pub(crate) fn normal(about: &Meta, reason: &'static str, message: impl Into<String>) -> Self {
        Self { about: about.key.clone(), uid: about.uid.clone(), warning: false, reason, message: message.into() }
    }
    pub(crate) fn warning(about: &Meta, reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: true, ..Self::normal(about, reason, message) }
    }
}

/// What to do now: at most one write, or call of a driver, whose result brings the next decision.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decision {
    pub action: Option<Action>,
    /// Told once the action, if there is one, succeeded.
    pub notes: Vec<Note>,
    /// Told where the server refuses the action, with its reason at the end.
    pub refused: Option<Note>,
    /// Decide again after this time even if nothing changes.
    pub again: Option<Duration>,
    /// The action uses up what decisions about other keys count on too (a free volume, room on a node): of these, one
    /// at a time may be decided and performed.
    pub takes: bool,
    /// Keys of the same controller to decide now.
    pub wake: Vec<Key>,
}

impl Decision {
    /// Nothing to do until something changes.
    pub fn settled() -> Self {
        Self::default()
    }
    pub(crate) fn act(action: Action) -> Self {
        Self { action: Some(action), ..Self::default() }
    }
    pub(crate) fn wait(note: Note) -> Self {
        Self { notes: vec![note], ..Self::default() }
    }
    pub(crate) fn again(after: Duration) -> Self {
        Self { again: Some(after), ..Self::default() }
    }
    /// An action that uses up what is shared with other keys.
    pub(crate) fn take(action: Action) -> Self {
        Self { action: Some(action), takes: true, ..Self::default() }
    }
    /// The volume that the action reserves, if that is how it takes: others may decide as soon as it is held.
    pub fn holds(&self) -> Option<&Key> {
        match &self.action {
            Some(Action::Patch { target, subresource: None, .. })
                if self.takes && target.key.kind == "PersistentVolume" =>
            {
                Some(&target.key)
            }
            _ => None,
        }
    }
    #[must_use]
    pub(crate) fn with(mut self, note: Note) -> Self {
        self.notes.push(note);
        self
    }
}

impl From<Option<Action>> for Decision {
    fn from(action: Option<Action>) -> Self {
        Self { action, ..Self::default() }
    }
}

/// What a decision may know besides the world.
#[derive(Debug, Clone)]
pub struct Context {
    pub now: Timestamp,
    /// PEM of the certificates that pods trust the API server by; without one no `kube-root-ca.crt` is made.
    pub root_ca: Option<Arc<str>>,
}

/// Whether an annotation is there, whatever its value.
pub(crate) fn annotated(meta: &ObjectMeta, name: &str) -> bool {
    annotation(meta, name).is_some()
}
pub(crate) fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    annotations(meta).get(name).map(String::as_str)
}
fn annotations(meta: &ObjectMeta) -> &BTreeMap<String, String> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    meta.annotations.as_ref().unwrap_or(&NONE)
}
