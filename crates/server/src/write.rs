//! Creating and changing objects: the rules between a decoded body and the store.
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use api::{Kind, Scope};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use store::{Expect, Record, StoreError};

use crate::{
    Inner, admission,
    facets::Facets,
    object::{self, Encoded},
    status::{ApiError, ApiResult, Subject},
};

/// How often a change is tried again on a newer state before the client hears of the conflict.
const ATTEMPTS: usize = 20;

/// Queues for objects that many change at once, so that each change is tried again once rather than all of them at each
/// other's change. Objects share queues by chance.
#[derive(Debug)]
pub struct Turns(Box<[tokio::sync::Mutex<()>]>);

/// A place at the head of a queue.
pub(crate) type Turn<'a> = tokio::sync::MutexGuard<'a, ()>;

impl Default for Turns {
    fn default() -> Self {
        Self((0..256).map(|_| tokio::sync::Mutex::default()).collect())
    }
}

impl Turns {
    fn queue(&self, key: &str) -> &tokio::sync::Mutex<()> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        // A remainder of the length fits.
        &self.0[(hasher.finish() % self.0.len() as u64) as usize]
    }

    /// Queues up if there is a queue.
    pub(crate) async fn begin(&self, key: &str) -> Option<Turn<'_>> {
        let queue = self.queue(key);
        match queue.try_lock() {
            Ok(_) => None,
            Err(_) => Some(queue.lock().await),
        }
    }

    /// Queues up after a conflict, unless that was done already.
    pub(crate) async fn wait<'a>(&'a self, turn: &mut Option<Turn<'a>>, key: &str) {
        if turn.is_none() {
            *turn = Some(self.queue(key).lock().await);
        }
    }
}

/// What a write left.
#[derive(Debug)]
pub enum Written {
    /// The stored state.
    Stored(Arc<Record<Facets>>),
    /// What a dry run would have stored.
    Shown(Bytes),
}

impl Written {
    /// The object's JSON as stored.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Written::Stored(record) => &record.value,
            Written::Shown(bytes) => bytes,
        }
    }
}

/// A write's result and the warnings that go with it.
pub type Outcome = (Written, Vec<String>);

/// Which part of an object a change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything but `status`.
    Main,
    Status,
    /// `spec.finalizers` of a namespace.
    Finalize,
    /// `spec.ephemeralContainers` of a pod.
    Ephemeral,
    /// A change that the server makes itself (binding): no strategy looks at it.
    Internal,
}

/// Where an object lives.
#[derive(Clone, Copy)]
pub struct At<'a> {
    pub kind: &'static Kind,
    /// Empty for cluster-scoped kinds.
    pub namespace: &'a str,
    pub name: &'a str,
}

impl<'a> At<'a> {
    /// For errors.
    pub fn subject(&self) -> Subject<'a> {
        Subject { group: self.kind.group, resource: self.kind.plural, name: self.name }
    }

    /// For the store.
    pub fn key(&self) -> String {
        object::key(self.kind, self.namespace, self.name)
    }

    /// For validation errors.
    pub fn invalid(&self, errors: &[api::FieldError]) -> ApiError {
        ApiError::invalid(self.kind.group, self.kind.kind, self.name, errors)
    }
}

pub(crate) fn store_error(error: StoreError) -> ApiError {
    match error {
        StoreError::Expired { asked, oldest } => {
            ApiError::expired(format!("too old resource version: {asked} ({oldest})"))
        }
        StoreError::Future { asked, current } => ApiError::too_large_resource_version(asked, current),
        other => {
            tracing::error!(error = base::chain(&other), "the store refused a request");
            ApiError::internal(base::chain(&other))
        }
    }
}

pub(crate) fn corrupt(key: &str, error: &serde_json::Error) -> ApiError {
    tracing::error!(key, %error, "a stored object cannot be read");
    ApiError::internal(format!("unable to decode {key}: {error}"))
}

impl Inner {
    /// The newest state of an object.
    pub(crate) fn find(&self, at: &At<'_>) -> ApiResult<Arc<Record<Facets>>> {
        self.store.get(&at.key()).ok_or_else(|| ApiError::not_found(at.subject()))
    }

    /// The newest state of an object, decoded.
    pub(crate) fn load(&self, at: &At<'_>) -> ApiResult<(Arc<Record<Facets>>, Value)> {
        let record = self.find(at)?;
        let value = object::decode(at.kind, &record.value).map_err(|e| corrupt(&record.key, &e))?;
        Ok((record, value))
    }

    /// Creates an object that fits its schema.
    pub(crate) async fn create(
        &self,
        kind: &'static Kind,
        namespace: &str,
        mut object: Value,
        dry_run: bool,
    ) -> ApiResult<Outcome> {
        match_namespace(kind, namespace, &mut object)?;
        if !object::meta(&object, "resourceVersion").is_empty() {
            return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let generated = object::meta(&object, "name").is_empty();
        let base = object::meta(&object, "generateName").to_owned();
        if generated && !base.is_empty() {
            object::set_meta(&mut object, "name", &object::generate_name(&base));
        }
        fill_new(kind, &mut object);
        kind.strategy.default(&mut object);
        admission::create(self, kind, namespace, &mut object).await?;
        kind.strategy.prepare_create(&mut object);
        // Admission may have added what has defaults, preparing may have dropped it.
        kind.strategy.default(&mut object);
        let mut warnings: Vec<String> = object::single_owners(&mut object).into_iter().collect();
        warnings.extend(kind.strategy.warnings(&object));
        let name = object::meta(&object, "name").to_owned();
        let mut errors = api::validate_metadata(kind, &object);
        errors.extend(kind.strategy.validate(&object));
        if !errors.is_empty() {
            return Err(At { kind, namespace, name: &name }.invalid(&errors));
        }
        let _held = admission::check(self, kind, namespace, &object).await?;
        api::schema::write_nulls(kind.schema, &mut object);
        let retry = generated && !base.is_empty();
        let mut left = if retry { 8 } else { 1 };
        loop {
            let name = object::meta(&object, "name").to_owned();
            let at = At { kind, namespace, name: &name };
            left -= 1;
            match self.store_new(&at, &object, dry_run).await {
                Err(e) if e.reason == "AlreadyExists" && left > 0 => {
                    object::set_meta(&mut object, "name", &object::generate_name(&base));
                }
                other => return Ok((other?, warnings)),
            }
        }
    }

    async fn store_new(&self, at: &At<'_>, object: &Value, dry_run: bool) -> ApiResult<Written> {
        let key = at.key();
        let exists = || ApiError::already_exists(at.subject());
        if dry_run {
            return match self.store.get(&key) {
                Some(_) => Err(exists()),
                None => Ok(Written::Shown(shown_bytes(at.kind, object))),
            };
        }
        let encoded = encode(at.kind, object)?;
        match self.store.put(&key, Expect::Absent, |revision| encoded.at(revision)).await {
            Ok(record) => Ok(Written::Stored(record)),
            Err(StoreError::Conflict { .. }) => Err(exists()),
            Err(other) => Err(store_error(other)),
        }
    }

    /// Changes an object: `change` makes the new state from the old one, again if another write came in between.
    pub(crate) async fn update(
        &self,
        at: &At<'_>,
        part: Part,
        dry_run: bool,
        change: &mut (dyn FnMut(&Value) -> ApiResult<Value> + Send),
    ) -> ApiResult<Outcome> {
        let mut turn = self.turns.begin(&at.key()).await;
        for _ in 0..ATTEMPTS {
            let (record, old) = self.load(at)?;
            let new = change(&old)?;
            let asked = object::meta(&new, "resourceVersion");
            if !asked.is_empty() && asked != object::meta(&old, "resourceVersion") {
                return Err(ApiError::modified(at.subject()));
            }
            let (new, warnings) = settle(at, part, new, &old)?;
            let held = match part {
                Part::Main => admission::update(self, at.kind, &new, &old).await?,
                _ => admission::Held::default(),
            };
            if new == old {
                return Ok((Written::Stored(record), warnings));
            }
            let removes = is_finished(at.kind, &new);
            if dry_run {
                return Ok((Written::Shown(shown_bytes(at.kind, &new)), warnings));
            }
            let encoded = encode(at.kind, &new)?;
            let expect = Expect::At(record.revision);
            let bytes = |revision| encoded.at(revision);
            let result = if removes {
                self.store.delete(&record.key, expect, bytes).await
            } else {
                self.store.put(&record.key, expect, bytes).await
            };
            // Before waiting for a turn: whoever has it may want the same.
            drop(held);
            match result {
                Ok(record) => return Ok((Written::Stored(record), warnings)),
                Err(StoreError::Conflict { .. }) => self.turns.wait(&mut turn, &at.key()).await,
                Err(other) => return Err(store_error(other)),
            }
        }
        Err(ApiError::modified(at.subject()))
    }
}

/// An object's JSON as a client of its kind sees it; for dry runs.
fn shown_bytes(kind: &Kind, object: &Value) -> Bytes {
    let mut stored = object.clone();
    if let Some(face) = kind.face_of {
        (face.write)(&mut stored);
    }
    serde_json::to_vec(&stored).unwrap_or_default().into()
}

/// Serializes an object of `kind` in its stored form.
pub(crate) fn encode(kind: &Kind, object: &Value) -> ApiResult<Encoded> {
    let encoded = match kind.face_of {
        None => Encoded::new(object),
        Some(face) => {
            let mut stored = object.clone();
            (face.write)(&mut stored);
            Encoded::new(&stored)
        }
    };
    // As much as a request may bring; upstream's store has the same bound in effect.
    if encoded.len() > crate::body::LIMIT {
        return Err(ApiError::too_large(crate::body::LIMIT));
    }
    Ok(encoded)
}

fn match_namespace(kind: &Kind, namespace: &str, object: &mut Value) -> ApiResult<()> {
    let given = object::meta(object, "namespace");
    match kind.scope {
        Scope::Namespace if given.is_empty() => object::set_meta(object, "namespace", namespace),
        Scope::Namespace if given != namespace => {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        Scope::Namespace => {}
        Scope::Cluster => object::set_meta(object, "namespace", ""),
    }
    Ok(())
}

/// Sets what only the server may set in a new object.
fn fill_new(kind: &Kind, object: &mut Value) {
    let counts = kind.strategy.generation_changes(object, object).is_some();
    let metadata = object::meta_mut(object);
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields", "generation"] {
        metadata.shift_remove(field);
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), object::time_text(Timestamp::now()).into());
    if counts {
        metadata.insert("generation".into(), 1.into());
    }
}

/// Applies the rules of an update: what the server keeps, what the kind keeps, what is refused.
fn settle(at: &At<'_>, part: Part, mut new: Value, old: &Value) -> ApiResult<(Value, Vec<String>)> {
    match_identity(at, &mut new, old)?;
    keep_system_fields(&mut new, old);
    let strategy = at.kind.strategy;
    let mut errors = Vec::new();
    let mut warnings: Vec<String> = object::single_owners(&mut new).into_iter().collect();
    match part {
        Part::Main => {
            strategy.default(&mut new);
            strategy.prepare_update(&mut new, old);
            errors.extend(api::validate_metadata_update(at.kind, &new, old));
            errors.extend(strategy.validate_update(&new, old));
            warnings.extend(strategy.update_warnings(&new));
        }
        Part::Status => {
            strategy.default(&mut new);
            strategy.prepare_status_update(&mut new, old);
            errors.extend(api::validate_metadata_update(at.kind, &new, old));
            errors.extend(strategy.validate_status_update(&new, old));
        }
        Part::Finalize => new = only(old, &new, "finalizers"),
        Part::Ephemeral => {
            new = only(old, &new, "ephemeralContainers");
            strategy.default(&mut new);
            errors.extend(api::pod::validate_ephemeral_change(&new, old));
        }
        Part::Internal => {}
    }
    if !errors.is_empty() {
        return Err(at.invalid(&errors));
    }
    api::schema::write_nulls(at.kind.schema, &mut new);
    if strategy.generation_changes(&new, old) == Some(true) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        object::meta_mut(&mut new).insert("generation".into(), generation.into());
    }
    Ok((new, warnings))
}

/// The old object with one field of `spec` taken from the new one.
fn only(old: &Value, new: &Value, field: &str) -> Value {
    let mut object = old.clone();
    match new.get("spec").and_then(|s| s.get(field)) {
        Some(value) => object["spec"][field] = value.clone(),
        None => {
            if let Some(spec) = object["spec"].as_object_mut() {
                spec.shift_remove(field);
            }
        }
    }
    object
}

fn match_identity(at: &At<'_>, new: &mut Value, old: &Value) -> ApiResult<()> {
    let name = object::meta(new, "name");
    if name.is_empty() {
        let message =
            format!("the name of the object ({} based on URL) was undeterminable: name must be provided", at.name);
        return Err(ApiError::bad_request(message));
    }
    if name != at.name {
        let message = format!("the name of the object ({name}) does not match the name on the URL ({})", at.name);
        return Err(ApiError::bad_request(message));
    }
    let namespace = object::meta(new, "namespace");
    if namespace.is_empty() || at.kind.scope == Scope::Cluster {
        object::set_meta(new, "namespace", at.namespace);
    } else if namespace != at.namespace {
        let message = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(ApiError::bad_request(message.to_owned()));
    }
    let (asked, found) = (object::meta(new, "uid"), object::meta(old, "uid"));
    if !asked.is_empty() && asked != found {
        let why = format!("Precondition failed: UID in precondition: {asked}, UID in object meta: {found}");
        return Err(ApiError::conflict(at.subject(), &why));
    }
    Ok(())
}

/// Fields of `metadata` that no update changes.
fn keep_system_fields(new: &mut Value, old: &Value) {
    let metadata = object::meta_mut(new);
    for field in ["uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        match old["metadata"].get(field) {
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.shift_remove(field),
        };
    }
    // A change for any version is one of the version it was made from.
    metadata.insert("resourceVersion".into(), object::meta(old, "resourceVersion").into());
    metadata.shift_remove("selfLink");
    metadata.shift_remove("managedFields");
    // An empty collection and an absent one are the same state.
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        let empty = match metadata.get(field) {
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Null) => true,
            _ => false,
        };
        if empty {
            metadata.shift_remove(field);
        }
    }
}

/// Whether nothing holds a deleted object any longer.
pub(crate) fn is_finished(kind: &Kind, object: &Value) -> bool {
    let grace = object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    object::is_deleting(object)
        && grace == 0
        && object::meta_list(object, "finalizers").is_empty()
        && !(kind.kind == "Namespace" && has_spec_finalizers(object))
}

/// Whether a namespace still has finalizers in its `spec`.
pub(crate) fn has_spec_finalizers(namespace: &Value) -> bool {
    namespace["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty())
}

/// Marks an object as being deleted from now on, with so many seconds of grace.
pub(crate) fn mark_deleted(object: &mut Value, now: Timestamp, grace_s: i64) {
    let at = now.checked_add(jiff::SignedDuration::from_secs(grace_s)).unwrap_or(now);
    let first = !object::is_deleting(object);
    let metadata = object::meta_mut(object);
    metadata.insert("deletionTimestamp".into(), object::time_text(at).into());
    metadata.insert("deletionGracePeriodSeconds".into(), json!(grace_s));
    if first
        && let Some(generation) = metadata.get("generation").and_then(Value::as_i64)
        && generation > 0
    {
        metadata.insert("generation".into(), (generation + 1).into());
    }
}
