//! A namespace's ResourceQuotas: nothing is made or grown beyond what they leave.
//!
//! Usage is counted from the objects themselves, one request of a namespace at a time until its object is stored: two
//! requests can never share what is left, and there is no count to go wrong. Namespaces without quotas never wait.
use std::{collections::HashMap, sync::Arc};

use api::{
    Kind, Quantity,
    pod::Amounts,
    quota::{self, Counted},
};
use k8s_openapi::api::core::v1::{PodSpec, ResourceQuota, ResourceQuotaSpec};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;

use crate::{
    Inner, object,
    status::{ApiError, ApiResult, Subject},
};

/// What the objects of a namespace count for, by key, and at which revision each was read.
type Ledger = HashMap<Arc<str>, (u64, Counted)>;

/// By namespace. One stays, empty or not, until the server ends: namespaces with quotas are few.
#[derive(Debug, Default)]
pub(crate) struct Ledgers(Mutex<HashMap<String, Arc<tokio::sync::Mutex<Ledger>>>>);

/// What was let in counts from here on; to be kept until it is stored.
#[derive(Debug, Default)]
pub(crate) struct Held {
    _ledger: Option<OwnedMutexGuard<Ledger>>,
}

struct Quota {
    name: String,
    spec: ResourceQuotaSpec,
    hard: Amounts,
}

/// Lets an object in that is to be stored, in place of `old` if there is one.
///
/// # Errors
/// `Forbidden`, with upstream's sentence, where a quota is exceeded or the object does not say what a quota bounds.
pub(crate) async fn admit(
    inner: &Inner,
    kind: &'static Kind,
    namespace: &str,
    new: &Value,
    old: Option<&Value>,
) -> ApiResult<Held> {
    let quotas = quotas(inner, namespace);
    if quotas.is_empty() {
        return Ok(Held::default());
    }
    let counted = Counted::of(kind, new);
    let before = old.map(|old| Counted::of(kind, old));
    // One that comes into a quota's scope by the change is new to that quota.
    let more = |q: &Quota| match &before {
        Some(before) if before.is_in(&q.spec) => quota::growth(&counted.amounts, &before.amounts),
        // What takes nothing is let in even where too much is taken already.
        _ => counted.amounts.iter().filter(|(_, q)| !q.is_zero()).map(|(name, q)| (name.clone(), *q)).collect(),
    };
    let subject = Subject { group: kind.group, resource: kind.plural, name: object::meta(new, "name") };
    if old.is_none() && (kind.group, kind.plural) == ("", "pods") {
        let spec: PodSpec = serde_json::from_value(new["spec"].clone()).unwrap_or_default();
        for quota in quotas.iter().filter(|q| counted.is_in(&q.spec)) {
            if let Some(why) = quota::unsaid(&quota.hard, &spec) {
                return Err(ApiError::forbidden(subject, &format!("failed quota: {}: {why}", quota.name)));
            }
        }
    }
    let quotas: Vec<(&Quota, Amounts)> = quotas
        .iter()
        .filter(|q| counted.is_in(&q.spec))
        .map(|q| (q, more(q)))
        .filter(|(q, more)| q.hard.keys().any(|name| more.contains_key(name)))
        .collect();
    if quotas.is_empty() {
        return Ok(Held::default());
    }
    let ledger = inner.ledgers.0.lock().entry(namespace.to_owned()).or_default().clone();
    let mut ledger = ledger.lock_owned().await;
    refresh(&mut ledger, inner, kind, namespace);
    for (quota, more) in quotas {
        let used = used(&ledger, kind, namespace, &quota.spec, &more);
        if let Some(why) = quota::exceeded(&quota.name, &quota.hard, &used, &more) {
            return Err(ApiError::forbidden(subject, &why));
        }
    }
    Ok(Held { _ledger: Some(ledger) })
}

/// By name, as they are answered for.
fn quotas(inner: &Inner, namespace: &str) -> Vec<Quota> {
    let page = inner.store.list(&format!("/core/resourcequotas/{namespace}/"), None, None, &|_| true);
    let read = page.records.iter().filter_map(|r| serde_json::from_slice::<ResourceQuota>(&r.value).ok());
    read.filter_map(|q| {
        let spec = q.spec?;
        Some(Quota { name: q.metadata.name?, hard: quota::hard(&spec), spec })
    })
    .collect()
}

/// Counts what has changed since the last time, and forgets what is gone.
fn refresh(ledger: &mut Ledger, inner: &Inner, kind: &Kind, namespace: &str) {
    let prefix = object::prefix(kind, namespace);
    let page = inner.store.list(&prefix, None, None, &|_| true);
    let mut old = std::mem::take(ledger);
    for record in &page.records {
        let known = old.remove(&record.key).filter(|(revision, _)| *revision == record.revision);
        let entry = known.or_else(|| {
            let object = serde_json::from_slice(&record.value).ok()?;
            Some((record.revision, Counted::of(kind, &object)))
        });
        ledger.extend(entry.map(|entry| (record.key.clone(), entry)));
    }
    ledger.extend(old.into_iter().filter(|(key, _)| !key.starts_with(&prefix)));
}

/// What a quota's objects of a kind take of the resources named in `of`.
fn used(ledger: &Ledger, kind: &Kind, namespace: &str, spec: &ResourceQuotaSpec, of: &Amounts) -> Amounts {
    let prefix = object::prefix(kind, namespace);
    let mut used: Amounts = of.keys().map(|name| (name.clone(), Quantity::ZERO)).collect();
    let counted = ledger.iter().filter(|(key, _)| key.starts_with(&prefix)).map(|(_, (_, counted))| counted);
    for counted in counted.filter(|c| c.is_in(spec)) {
        for (name, amount) in &counted.amounts {
            if let Some(sum) = used.get_mut(name) {
                *sum = *sum + *amount;
            }
        }
    }
    used
}
