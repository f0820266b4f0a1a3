//! Deleting: preconditions, grace, finalizers.
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use store::{Expect, StoreError};

use crate::{
    Inner,
    facets::Selection,
    object,
    options::{DeleteOptions, Propagation},
    read::Found,
    status::{ApiError, ApiResult, Subject},
    write::{At, Written, encode, has_spec_finalizers, is_finished, mark_deleted, store_error},
};

const ATTEMPTS: usize = 20;
/// How many objects of a collection are deleted at the same time.
const AT_ONCE: usize = 64;
/// Namespaces without which the system makes no sense.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What a deletion left.
#[derive(Debug)]
pub struct Deleted {
    /// The last state.
    pub object: Written,
    /// Whether the object is gone, rather than marked.
    pub gone: bool,
}

/// What a deletion does to an object.
enum Step {
    /// Nothing: it is being deleted already, at least as fast.
    Nothing,
    /// Store this state, which is marked as being deleted.
    Mark(Value),
    /// Remove it; this is what watches see.
    Remove(Value),
}

impl Inner {
    /// Deletes one object, or begins to.
    pub(crate) async fn delete(&self, at: &At<'_>, options: &DeleteOptions) -> ApiResult<Deleted> {
        if at.kind.kind == "Namespace" && at.kind.group.is_empty() && IMMORTAL.contains(&at.name) {
            return Err(ApiError::forbidden(at.subject(), "this namespace may not be deleted"));
        }
        let mut turn = self.turns.begin(&at.key()).await;
        for _ in 0..ATTEMPTS {
            let (record, old) = self.load(at)?;
            check(at, options, &old)?;
            let (object, gone) = match decide(at, options, &old, Timestamp::now()) {
                Step::Nothing => return Ok(Deleted { object: Written::Stored(record), gone: false }),
                Step::Mark(object) => (object, false),
                Step::Remove(object) => (object, true),
            };
            if options.dry_run {
                return Ok(Deleted { object: Written::Stored(record), gone });
            }
            let encoded = encode(at.kind, &object)?;
            let expect = Expect::At(record.revision);
            let result = if gone {
                self.store.delete(&record.key, expect, |revision| encoded.at(revision)).await
            } else {
                self.store.put(&record.key, expect, |revision| encoded.at(revision)).await
            };
            match result {
                Ok(record) => return Ok(Deleted { object: Written::Stored(record), gone }),
                // Changed or deleted in between: look again.
                Err(StoreError::Conflict { .. }) => self.turns.wait(&mut turn, &at.key()).await,
                Err(other) => return Err(store_error(other)),
            }
        }
        Err(ApiError::modified(at.subject()))
    }

    /// Deletes what a selection finds; returns the last states.
    pub(crate) async fn delete_collection(
        &self,
        found: Found,
        at: At<'_>,
        selection: &Selection,
        options: &DeleteOptions,
    ) -> ApiResult<Vec<Written>> {
        let mut deleted = Vec::new();
        let selected: Vec<_> = found.records.into_iter().filter(|r| selection.matches(&r.facets)).collect();
        // Several at once: one sync of the disk makes them all durable.
        for some in selected.chunks(AT_ONCE) {
            let mut deletions = Vec::new();
            for record in some {
                let at = At { namespace: &record.facets.namespace, name: &record.facets.name, ..at };
                deletions.push(self.delete_found(at, options));
            }
            for result in futures::future::join_all(deletions).await {
                deleted.extend(result?);
            }
        }
        Ok(deleted)
    }

    /// Deletes an object of a listing; `None` if it is gone already.
    async fn delete_found(&self, at: At<'_>, options: &DeleteOptions) -> ApiResult<Option<Written>> {
        match self.delete(&at, options).await {
            Ok(done) => Ok(Some(done.object)),
            Err(e) if e.code == 404 => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn check(at: &At<'_>, options: &DeleteOptions, old: &Value) -> ApiResult<()> {
    // By its kind: upstream does so here and nowhere else.
    let subject = Subject { resource: at.kind.kind, ..at.subject() };
    let (uid, revision) = (object::meta(old, "uid"), object::meta(old, "resourceVersion"));
    if let Some(asked) = options.uid.as_deref().filter(|asked| *asked != uid) {
        let why = format!(
            "the UID in the precondition ({asked}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict(subject, &why));
    }
    if let Some(asked) = options.resource_version.as_deref().filter(|asked| *asked != revision) {
        let why = format!(
            "the ResourceVersion in the precondition ({asked}) does not match the ResourceVersion in record ({revision}). The object might have been modified"
        );
        return Err(ApiError::conflict(subject, &why));
    }
    Ok(())
}

/// Decides what a deletion does.
fn decide(at: &At<'_>, options: &DeleteOptions, old: &Value, now: Timestamp) -> Step {
    let mut object = old.clone();
    set_finalizers(&mut object, options.propagation);
    let namespace = at.kind.kind == "Namespace" && at.kind.group.is_empty();
    if namespace && !object::is_deleting(old) {
        object["status"]["phase"] = "Terminating".into();
    }
    let grace_s = match grace(at, options, old, now) {
        Grace::Pending => return Step::Nothing,
        Grace::Now => 0,
        Grace::Seconds(s) => s,
    };
    if grace_s > 0 {
        shorten_or_mark(&mut object, old, now, grace_s);
        return Step::Mark(object);
    }
    let held = !object::meta_list(&object, "finalizers").is_empty() || (namespace && has_spec_finalizers(&object));
    if !object::is_deleting(old) {
        mark_deleted(&mut object, now, 0);
    } else {
        object::meta_mut(&mut object).insert("deletionGracePeriodSeconds".into(), 0.into());
    }
    match held {
        true if object == *old => Step::Nothing,
        true => Step::Mark(object),
        false => {
            debug_assert!(is_finished(at.kind, &object));
            Step::Remove(object)
        }
    }
}

enum Grace {
    /// A deletion is under way and stays as it is.
    Pending,
    /// No (further) grace.
    Now,
    Seconds(i64),
}

fn grace(at: &At<'_>, options: &DeleteOptions, old: &Value, now: Timestamp) -> Grace {
    if !object::is_deleting(old) {
        return match at.kind.strategy.deletion_grace(old, options.grace_s) {
            s if s > 0 => Grace::Seconds(s),
            _ => Grace::Now,
        };
    }
    let current = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    match options.grace_s {
        _ if current == 0 => Grace::Now,
        None => Grace::Pending,
        Some(0) => Grace::Now,
        Some(asked) if asked >= current => Grace::Pending,
        Some(asked) => {
            let end = shifted(old, asked - current);
            // Its whole time has passed already: as short as a graceful deletion can be.
            Grace::Seconds(if end.is_none_or(|end| end < now) { 1 } else { asked })
        }
    }
}

/// The time of deletion, moved by some seconds.
fn shifted(object: &Value, by_s: i64) -> Option<Timestamp> {
    let at: Timestamp = object::meta(object, "deletionTimestamp").parse().ok()?;
    at.checked_add(SignedDuration::from_secs(by_s)).ok()
}

fn shorten_or_mark(object: &mut Value, old: &Value, now: Timestamp, grace_s: i64) {
    if !object::is_deleting(old) {
        return mark_deleted(object, now, grace_s);
    }
    let current = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    let end = shifted(old, grace_s - current).unwrap_or(now).max(now);
    let metadata = object::meta_mut(object);
    metadata.insert("deletionTimestamp".into(), object::time_text(end).into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace_s.into());
}

/// Sets the finalizers that tell the garbage collector what to do with dependents.
fn set_finalizers(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else { return };
    let mut list: Vec<String> = object::meta_list(object, "finalizers").into_iter().map(str::to_owned).collect();
    list.retain(|f| f != ORPHAN && f != FOREGROUND);
    match propagation {
        Propagation::Orphan => list.push(ORPHAN.into()),
        Propagation::Foreground => list.push(FOREGROUND.into()),
        Propagation::Background => {}
    }
    let metadata = object::meta_mut(object);
    if list.is_empty() {
        metadata.shift_remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), list.into());
    }
}
