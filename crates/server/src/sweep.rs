//! What the server does from time to time: events are forgotten an hour after they were last seen, and namespaces
//! that always exist are made again.
use std::{sync::Weak, time::Duration};

use jiff::Timestamp;
use store::{Expect, Record};

use crate::{Inner, facets::Facets, object};

/// Seconds that an event is kept.
const KEEP_S: i64 = 3600;
const EVERY: Duration = Duration::from_secs(60);

/// Sweeps until the server is gone.
pub(crate) async fn run(inner: Weak<Inner>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        if inner.shutdown.is_cancelled() {
            return;
        }
        once(&inner, Timestamp::now()).await;
        if let Err(error) = inner.make_namespaces().await {
            tracing::warn!(%error, "a system namespace is missing and cannot be made; trying again in a minute");
        }
    }
}

/// Removes the events that were last seen too long before `now`.
pub(crate) async fn once(inner: &Inner, now: Timestamp) {
    let oldest = now.as_second() - KEEP_S;
    let old = |record: &Record<Facets>| record.facets.last_seen_s < oldest;
    for record in inner.store.list("/core/events/", None, None, &old).records {
        let last = |revision| object::with_revision(&record.value, revision);
        // One that was seen again in the meantime stays.
        if let Err(error) = inner.store.delete(&record.key, Expect::At(record.revision), last).await {
            tracing::debug!(key = &*record.key, %error, "event not removed");
        }
    }
}
