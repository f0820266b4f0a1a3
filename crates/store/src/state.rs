//! What readers see: the durable objects, recent history, and where each watch stands in it.
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    sync::{Arc, atomic::Ordering},
};

use crate::{Event, Page, Record, Revision, StoreError, watch::Cursor};

/// Bytes that an event costs besides its key and value (estimate).
const EVENT_OVERHEAD: usize = 256;

pub(crate) struct State<F> {
    pub(crate) revision: Revision,
    objects: BTreeMap<Arc<str>, Arc<Record<F>>>,
    /// One event per revision, without gaps: the first is that of `base + 1`, the last that of `revision`.
    history: VecDeque<Arc<Event<F>>>,
    base: Revision,
    history_bytes: usize,
    limits: (usize, usize),
    pub(crate) cursors: Vec<Arc<Cursor>>,
    pub(crate) closed: bool,
}

/// What a cursor found.
pub(crate) enum Found<F> {
    Event(Arc<Event<F>>),
    /// Nothing: the cursor will be notified.
    Parked,
}

impl<F> State<F> {
    /// An empty store whose history keeps at most `limits` (events, bytes).
    pub(crate) fn new(limits: (usize, usize)) -> Self {
        Self {
            revision: 1,
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            base: 1,
            history_bytes: 0,
            limits,
            cursors: Vec::new(),
            closed: false,
        }
    }

    /// Starts from the objects of a snapshot taken at `revision`.
    pub(crate) fn restore(&mut self, revision: Revision, objects: Vec<Arc<Record<F>>>) {
        self.objects = objects.into_iter().map(|r| (r.key.clone(), r)).collect();
        self.revision = revision;
        self.base = revision;
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Arc<Record<F>>> {
        self.objects.get(key)
    }

    pub(crate) fn objects(&self) -> impl Iterator<Item = &Arc<Record<F>>> {
        self.objects.values()
    }

    /// Events of history, and bytes.
    pub(crate) fn history_size(&self) -> (u64, u64) {
        (self.history.len() as u64, self.history_bytes as u64)
    }

    pub(crate) fn oldest(&self) -> Revision {
        self.base
    }

    /// Applies the next write.
    pub(crate) fn apply(&mut self, event: Event<F>) {
        assert_eq!(event.revision, self.revision + 1, "writes are applied in revision order");
        self.revision = event.revision;
        if event.deleted {
            self.objects.remove(&event.record.key);
        } else {
            self.objects.insert(event.record.key.clone(), event.record.clone());
        }
        self.history_bytes += cost(&event);
        self.history.push_back(Arc::new(event));
        while self.history.len() > self.limits.0 || self.history_bytes > self.limits.1 {
            let Some(old) = self.history.pop_front() else { break };
            self.history_bytes -= cost(&old);
            self.base = old.revision;
        }
    }

    /// Applies a batch and wakes the watches that it concerns; others move on without waking.
    pub(crate) fn publish(&mut self, events: Vec<Event<F>>) {
        let keys: Vec<_> = events.iter().map(|e| (e.revision, e.record.key.clone())).collect();
        events.into_iter().for_each(|e| self.apply(e));
        for cursor in &self.cursors {
            if !cursor.parked.load(Ordering::Relaxed) {
                continue;
            }
            if let Some((revision, _)) = keys.iter().find(|(_, key)| key.starts_with(&*cursor.prefix)) {
                cursor.next.store(*revision, Ordering::Relaxed);
                cursor.parked.store(false, Ordering::Relaxed);
                cursor.notify.notify_one();
            } else {
                cursor.next.store(self.revision + 1, Ordering::Relaxed);
            }
        }
    }

    /// The next event for a cursor. The caller holds at least a read lock, so that parking cannot miss a publication.
    pub(crate) fn advance(&self, cursor: &Cursor) -> Result<Found<F>, StoreError> {
        let next = cursor.next.load(Ordering::Relaxed);
        if next <= self.base {
            return Err(StoreError::Expired { asked: next - 1, oldest: self.base });
        }
        let start = usize::try_from(next - self.base - 1).unwrap_or(usize::MAX);
        for event in self.history.iter().skip(start) {
            if event.record.key.starts_with(&*cursor.prefix) {
                cursor.next.store(event.revision + 1, Ordering::Relaxed);
                return Ok(Found::Event(event.clone()));
            }
        }
        cursor.next.store(self.revision + 1, Ordering::Relaxed);
        cursor.parked.store(true, Ordering::Relaxed);
        Ok(Found::Parked)
    }

    /// Whether history can tell every change after `from`.
    pub(crate) fn check(&self, from: Revision) -> Result<(), StoreError> {
        if from > self.revision {
            Err(StoreError::Future { asked: from, current: self.revision })
        } else if from < self.base {
            Err(StoreError::Expired { asked: from, oldest: self.base })
        } else {
            Ok(())
        }
    }

    fn range<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> impl Iterator<Item = &'a Arc<Record<F>>> {
        let low = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.objects
            .range::<str, _>((low, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(_, record)| record)
    }

    pub(crate) fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: Option<usize>,
        keep: &dyn Fn(&Record<F>) -> bool,
    ) -> Page<F> {
        page(self.revision, self.range(prefix, after), limit, keep)
    }

    pub(crate) fn list_at(
        &self,
        revision: Revision,
        prefix: &str,
        after: Option<&str>,
        limit: Option<usize>,
        keep: &dyn Fn(&Record<F>) -> bool,
    ) -> Result<Page<F>, StoreError> {
        self.check(revision)?;
        // Keys written since, with what they held at `revision`: the earliest event's `previous` is entered last.
        let since = usize::try_from(revision - self.base).unwrap_or(usize::MAX);
        let mut changed: HashMap<&str, Option<&Arc<Record<F>>>> = HashMap::new();
        for event in self.history.iter().skip(since).rev() {
            let key = &*event.record.key;
            if key.starts_with(prefix) && after.is_none_or(|after| key > after) {
                changed.insert(key, event.previous.as_ref());
            }
        }
        let mut records: Vec<_> = self.range(prefix, after).filter(|r| !changed.contains_key(&*r.key)).collect();
        let restored = changed.values().flatten().count();
        records.extend(changed.values().flatten());
        if restored > 0 {
            records.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        }
        Ok(page(revision, records.into_iter(), limit, keep))
    }
}

fn cost<F>(event: &Event<F>) -> usize {
    event.record.key.len() + event.record.value.len() + EVENT_OVERHEAD
}

fn page<'a, F: 'a>(
    revision: Revision,
    from: impl Iterator<Item = &'a Arc<Record<F>>>,
    limit: Option<usize>,
    keep: &dyn Fn(&Record<F>) -> bool,
) -> Page<F> {
    let limit = limit.unwrap_or(usize::MAX);
    let mut page = Page { revision, records: Vec::new(), remaining: 0 };
    for record in from.filter(|r| keep(r)) {
        if page.records.len() < limit {
            page.records.push(record.clone());
        } else {
            page.remaining += 1;
        }
    }
    page
}
