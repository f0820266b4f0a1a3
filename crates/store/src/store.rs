//! Writes queue up under one lock, a flusher thread makes a whole batch durable with one sync, then everybody sees it.
use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use base::Histogram;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
use tokio::sync::{oneshot, watch};

use crate::{
    Event, Expect, Page, Record, Revision, Stats, StoreError, Watch,
    disk::{Disk, NoDisk, RealDisk},
    log::{Entry, FrameKind, add_record, start_frame},
    recover::{Tail, recover},
    snapshot,
    state::State,
};

/// Bounds of what the store keeps besides the live objects.
#[derive(Debug, Clone)]
pub struct Options {
    /// Most changes kept in memory for watches and pages of older revisions.
    pub history_events: usize,
    /// Most bytes of such changes.
    pub history_bytes: usize,
    /// A log longer than this, and longer than the last snapshot, is replaced by a snapshot.
    pub log_bytes: u64,
    /// Zeros that are kept after the log's end, for the next batches to overwrite: their syncs are shorter. 0: none.
    pub room_bytes: u64,
    /// How long nothing must be written before such room is made.
    pub room_after: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            history_events: 20_000,
            history_bytes: 16 << 20,
            log_bytes: 16 << 20,
            room_bytes: 4 << 20,
            room_after: Duration::from_millis(20),
        }
    }
}

pub(crate) struct Shared<F> {
    pub(crate) state: RwLock<State<F>>,
    queue: Mutex<Queue<F>>,
    work: Condvar,
    /// Counts batches that were published or given up.
    settled: watch::Sender<u64>,
    derive: fn(&str, &[u8]) -> F,
    log_bytes: AtomicU64,
    syncs: Mutex<Histogram>,
}

/// Writes on their way to the disk. Lock order: `queue` before `state`.
struct Queue<F> {
    next: Revision,
    /// Newest state of every key in flight; `None` is deleted.
    pending: HashMap<Arc<str>, Option<Arc<Record<F>>>>,
    batch: Batch<F>,
    refuse: Option<StoreError>,
}

struct Batch<F> {
    frame: Vec<u8>,
    events: Vec<Event<F>>,
    waiters: Vec<oneshot::Sender<Result<(), StoreError>>>,
}

impl<F> Batch<F> {
    fn new() -> Self {
        let mut frame = Vec::new();
        start_frame(&mut frame);
        Self { frame, events: Vec::new(), waiters: Vec::new() }
    }
    fn finish(self, result: &Result<(), StoreError>) {
        for waiter in self.waiters {
            // The writer may have gone away; its write stands.
            let _ = waiter.send(result.clone());
        }
    }
}

/// What became of an attempt to write.
enum Attempt<F> {
    Queued(Arc<Record<F>>, oneshot::Receiver<Result<(), StoreError>>),
    /// A write in flight stands against it: look again when that one has settled.
    Wait(watch::Receiver<u64>),
}

/// Versioned objects in one directory. See the crate's documentation for what it guarantees.
pub struct Store<F> {
    shared: Arc<Shared<F>>,
    flusher: Mutex<Option<JoinHandle<()>>>,
    lock: Mutex<Option<File>>,
}

impl<F: Send + Sync + 'static> Store<F> {
    /// Opens or creates the store in `dir`. `derive` computes the facets of a record from its key and bytes, at every
    /// write (quickly: a lock is held) and at load.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it, [`StoreError::Corrupt`], [`StoreError::OtherVersion`],
    /// [`StoreError::Io`].
    pub fn open(dir: &Path, options: Options, derive: fn(&str, &[u8]) -> F) -> Result<Self, StoreError> {
        let disk = RealDisk::new(dir).map_err(StoreError::io(format!("create {}", dir.display())))?;
        let lock = disk
            .lock()
            .map_err(StoreError::io(format!("lock {}", dir.display())))?
            .map_err(|pid| StoreError::Locked { dir: dir.to_owned(), pid })?;
        let store = Self::open_on(Arc::new(disk), options, derive).map_err(|e| e.in_dir(dir))?;
        *store.lock.lock() = Some(lock);
        Ok(store)
    }

    /// A store without a disk.
    pub fn in_memory(derive: fn(&str, &[u8]) -> F) -> Self {
        let options = Options { log_bytes: u64::MAX, ..Options::default() };
        Self::open_on(Arc::new(NoDisk), options, derive).expect("no disk, no errors")
    }

    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        options: Options,
        derive: fn(&str, &[u8]) -> F,
    ) -> Result<Self, StoreError> {
        let mut state = State::new((options.history_events, options.history_bytes));
        let tail = recover(&*disk, &mut state, derive)?;
        let queue = Queue { next: state.revision + 1, pending: HashMap::new(), batch: Batch::new(), refuse: None };
        let shared = Arc::new(Shared {
            state: RwLock::new(state),
            queue: Mutex::new(queue),
            work: Condvar::new(),
            settled: watch::Sender::new(0),
            derive,
            log_bytes: AtomicU64::new(tail.len),
            syncs: Mutex::default(),
        });
        let flusher = Flusher {
            shared: shared.clone(),
            disk,
            tail,
            log_bytes: options.log_bytes,
            snapshot_bytes: Arc::default(),
            snapshot_runs: Arc::default(),
            snapshot: None,
            room: (options.room_bytes, options.room_after),
            full: false,
        };
        let thread = std::thread::Builder::new()
            .name("store-flusher".into())
            .spawn(move || flusher.run())
            .map_err(StoreError::io("start the flusher thread"))?;
        Ok(Self { shared, flusher: Mutex::new(Some(thread)), lock: Mutex::new(None) })
    }

    /// The newest durable revision.
    pub fn revision(&self) -> Revision {
        self.shared.state.read().revision
    }

    /// The oldest revision that a watch can start from and a page can be read at.
    pub fn oldest(&self) -> Revision {
        self.shared.state.read().oldest()
    }

    /// Why no more writes are taken, if so.
    ///
    /// # Errors
    /// [`StoreError::Failed`] after a failed sync, [`StoreError::Closed`] at the end.
    pub fn health(&self) -> Result<(), StoreError> {
        self.shared.queue.lock().refuse.clone().map_or(Ok(()), Err)
    }

    /// What the store holds and how its disk does.
    pub fn stats(&self) -> Stats {
        let state = self.shared.state.read();
        let (history_events, history_bytes) = state.history_size();
        Stats {
            revision: state.revision,
            oldest: state.oldest(),
            history_events,
            history_bytes,
            watches: state.cursors.len() as u64,
            log_bytes: self.shared.log_bytes.load(Ordering::Relaxed),
            syncs: self.shared.syncs.lock().clone(),
        }
    }

    /// Shows every live object, in order of keys. A lock is held meanwhile: `look` must be quick.
    pub fn for_each(&self, look: &mut dyn FnMut(&Record<F>)) {
        self.shared.state.read().objects().for_each(|record| look(record));
    }

    /// The newest durable state of one object.
    pub fn get(&self, key: &str) -> Option<Arc<Record<F>>> {
        self.shared.state.read().get(key).cloned()
    }

    /// Objects whose key starts with `prefix` and comes after `after`, in byte order of keys; those that `keep` refuses
    /// do not count.
    pub fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: Option<usize>,
        keep: &dyn Fn(&Record<F>) -> bool,
    ) -> Page<F> {
        self.shared.state.read().list(prefix, after, limit, keep)
    }

    /// As [`Store::list`], as of an older revision.
    ///
    /// # Errors
    /// [`StoreError::Expired`] when history no longer reaches back, [`StoreError::Future`] when it was not reached yet.
    pub fn list_at(
        &self,
        revision: Revision,
        prefix: &str,
        after: Option<&str>,
        limit: Option<usize>,
        keep: &dyn Fn(&Record<F>) -> bool,
    ) -> Result<Page<F>, StoreError> {
        self.shared.state.read().list_at(revision, prefix, after, limit, keep)
    }

    /// Writes an object. `encode` is given the revision that the write will have; it is called at most once, under a
    /// lock. Returns when the write is durable. Once begun, dropping the future does not take the write back.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when `expect` does not hold; nothing was written then, nor on any other error.
    pub async fn put(
        &self,
        key: &str,
        expect: Expect,
        encode: impl FnOnce(Revision) -> Bytes + Send,
    ) -> Result<Arc<Record<F>>, StoreError> {
        self.write(key, expect, false, encode).await
    }

    /// Removes an object. `encode_last` gives the state that watches get to see, at the deletion's revision.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub async fn delete(
        &self,
        key: &str,
        expect: Expect,
        encode_last: impl FnOnce(Revision) -> Bytes + Send,
    ) -> Result<Arc<Record<F>>, StoreError> {
        self.write(key, expect, true, encode_last).await
    }

    async fn write(
        &self,
        key: &str,
        expect: Expect,
        deleted: bool,
        encode: impl FnOnce(Revision) -> Bytes + Send,
    ) -> Result<Arc<Record<F>>, StoreError> {
        let mut encode = Some(encode);
        loop {
            match self.attempt(key, expect, deleted, &mut encode)? {
                Attempt::Queued(record, done) => {
                    done.await.unwrap_or(Err(StoreError::Closed))?;
                    return Ok(record);
                }
                // An error means that the store is gone, which the next attempt reports.
                Attempt::Wait(mut settled) => drop(settled.changed().await),
            }
        }
    }

    fn attempt(
        &self,
        key: &str,
        expect: Expect,
        deleted: bool,
        encode: &mut Option<impl FnOnce(Revision) -> Bytes>,
    ) -> Result<Attempt<F>, StoreError> {
        let mut queue = self.shared.queue.lock();
        if let Some(error) = &queue.refuse {
            return Err(error.clone());
        }
        let in_flight = queue.pending.get(key).cloned();
        let settled = in_flight.is_none();
        let previous = in_flight.unwrap_or_else(|| self.get(key));
        let found = previous.as_ref().map(|r| r.revision);
        let expected = match expect {
            Expect::Absent => None,
            Expect::At(revision) => Some(revision),
        };
        if found != expected || (deleted && found.is_none()) {
            // The winner must be visible before the loser hears of it, or its next read would find the old state.
            return if settled {
                Err(StoreError::Conflict { key: key.into(), found })
            } else {
                Ok(Attempt::Wait(self.shared.settled.subscribe()))
            };
        }
        let revision = queue.next;
        let value = encode.take().expect("an attempt that is queued is the last")(revision);
        let facets = (self.shared.derive)(key, &value);
        let key = previous.as_ref().map_or_else(|| key.into(), |r| r.key.clone());
        let record = Arc::new(Record { key, revision, value, facets });
        let entry = Entry { revision, deleted, key: &record.key, value: &record.value };
        add_record(&mut queue.batch.frame, entry);
        queue.batch.events.push(Event { revision, record: record.clone(), previous, deleted });
        let (sender, done) = oneshot::channel();
        queue.batch.waiters.push(sender);
        queue.pending.insert(record.key.clone(), (!deleted).then(|| record.clone()));
        queue.next += 1;
        self.shared.work.notify_one();
        Ok(Attempt::Queued(record, done))
    }

    /// Every change under `prefix` after revision `from`; 0 is from now on.
    ///
    /// # Errors
    /// [`StoreError::Expired`] before [`Store::oldest`], [`StoreError::Future`] after [`Store::revision`].
    pub fn watch(&self, prefix: &str, from: Revision) -> Result<Watch<F>, StoreError> {
        Watch::new(self.shared.clone(), prefix, from)
    }

    /// Finishes the writes in flight, refuses others, ends all watches and gives the directory free.
    pub async fn close(&self) {
        let thread = self.stop();
        // The thread cannot panic without its panic having been printed.
        let _ = tokio::task::spawn_blocking(move || thread.map(JoinHandle::join)).await;
        self.lock.lock().take();
    }
}

impl<F> Store<F> {
    fn stop(&self) -> Option<JoinHandle<()>> {
        self.shared.queue.lock().refuse.get_or_insert(StoreError::Closed);
        self.shared.work.notify_one();
        self.flusher.lock().take()
    }
}

impl<F> Drop for Store<F> {
    fn drop(&mut self) {
        if let Some(thread) = self.stop() {
            let _ = thread.join();
        }
    }
}

impl<F> fmt::Debug for Store<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("revision", &self.shared.state.read().revision).finish_non_exhaustive()
    }
}

/// The thread that owns the log.
struct Flusher<F> {
    shared: Arc<Shared<F>>,
    disk: Arc<dyn Disk>,
    tail: Tail,
    log_bytes: u64,
    /// Size of the last snapshot.
    snapshot_bytes: Arc<AtomicU64>,
    snapshot_runs: Arc<AtomicBool>,
    snapshot: Option<JoinHandle<()>>,
    /// How many bytes of room to make, and after how long.
    room: (u64, Duration),
    /// No room could be made in this log.
    full: bool,
}

impl<F: Send + Sync + 'static> Flusher<F> {
    fn run(mut self) {
        loop {
            let Some(mut batch) = self.next_batch() else { break };
            match self.write(&mut batch.frame) {
                Ok(()) => self.publish(batch),
                Err(error) => self.give_up(batch, error),
            }
            self.shared.settled.send_modify(|n| *n += 1);
            if self.tail.len > self.log_bytes.max(self.snapshot_bytes.load(Ordering::Relaxed)) {
                self.rotate();
            }
        }
        let mut state = self.shared.state.write();
        state.closed = true;
        state.cursors.iter().for_each(|c| c.notify.notify_one());
        drop(state);
        if let Some(snapshot) = self.snapshot.take() {
            let _ = snapshot.join();
        }
    }

    /// Waits for writes; `None` at the end.
    fn next_batch(&mut self) -> Option<Batch<F>> {
        let shared = self.shared.clone();
        let mut queue = shared.queue.lock();
        loop {
            let wants_room = !self.full && self.tail.file.room() < self.room.0 / 2;
            if wants_room && self.room.1.is_zero() {
                self.make_room();
            }
            if !queue.batch.events.is_empty() {
                return Some(std::mem::replace(&mut queue.batch, Batch::new()));
            }
            if queue.refuse.is_some() {
                return None;
            }
            if !wants_room {
                shared.work.wait(&mut queue);
            } else if shared.work.wait_for(&mut queue, self.room.1).timed_out() {
                MutexGuard::unlocked(&mut queue, || self.make_room());
            }
        }
    }

    /// Writes zeros where the next batches go, so that their syncs find blocks and length as they are (ADR 0015).
    fn make_room(&mut self) {
        if let Err(error) = self.tail.file.make_room(self.room.0) {
            tracing::debug!(%error, "no room was made in the log; syncs are slower");
            self.full = true;
        }
    }

    /// Appends and syncs. On an error that leaves the log as it was the store goes on; after a failed sync nobody knows
    /// what is on the disk, so it does not.
    fn write(&mut self, frame: &mut [u8]) -> Result<(), StoreError> {
        let begun = Instant::now();
        self.tail.format.finish_frame(frame, FrameKind::Batch);
        let failed = |e: io::Error| StoreError::Failed { source: Arc::new(e) };
        if let Err(error) = self.tail.file.append(frame) {
            tracing::error!(%error, "cannot append to the log");
            self.tail.file.cut(self.tail.len).map_err(failed)?;
            return Err(StoreError::Io { action: "append to the log".into(), source: Arc::new(error) });
        }
        self.tail.file.sync().map_err(failed)?;
        self.tail.len += frame.len() as u64;
        self.shared.log_bytes.store(self.tail.len, Ordering::Relaxed);
        self.shared.syncs.lock().observe(begun.elapsed());
        Ok(())
    }

    fn publish(&self, mut batch: Batch<F>) {
        let events = std::mem::take(&mut batch.events);
        let last = events.last().map(|e| e.revision);
        let keys: Vec<_> = events.iter().map(|e| e.record.key.clone()).collect();
        self.shared.state.write().publish(events);
        let mut queue = self.shared.queue.lock();
        if queue.batch.events.is_empty() {
            queue.pending.clear();
        } else {
            // Keys that were written again since stay until that write is durable.
            let newer: std::collections::HashSet<Arc<str>> =
                queue.batch.events.iter().map(|e| e.record.key.clone()).collect();
            keys.iter().filter(|key| !newer.contains(*key)).for_each(|key| drop(queue.pending.remove(key)));
        }
        drop(queue);
        tracing::trace!(revision = last, writes = keys.len(), "durable");
        batch.finish(&Ok(()));
    }

    /// Fails a batch and all that was queued on top of it, as if they had never been.
    fn give_up(&self, batch: Batch<F>, error: StoreError) {
        let mut queue = self.shared.queue.lock();
        let later = std::mem::replace(&mut queue.batch, Batch::new());
        queue.pending.clear();
        queue.next = self.shared.state.read().revision + 1;
        if matches!(error, StoreError::Failed { .. }) {
            tracing::error!(error = base::chain(&error), "no more writes until restart");
            queue.refuse = Some(error.clone());
        }
        drop(queue);
        let result = Err(error);
        batch.finish(&result);
        later.finish(&result);
    }

    /// Goes on in a new log, and has a thread write a snapshot of everything before it.
    fn rotate(&mut self) {
        if self.snapshot_runs.swap(true, Ordering::AcqRel) {
            return;
        }
        let (revision, objects) = {
            let state = self.shared.state.read();
            (state.revision, state.objects().cloned().collect::<Vec<_>>())
        };
        match Tail::create(&*self.disk, revision + 1) {
            Ok(tail) => {
                self.tail = tail;
                self.full = false;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot begin a new log; the old one grows on");
                self.snapshot_bytes.store(self.tail.len * 2, Ordering::Relaxed);
                self.snapshot_runs.store(false, Ordering::Release);
                return;
            }
        }
        let (disk, bytes, runs) = (self.disk.clone(), self.snapshot_bytes.clone(), self.snapshot_runs.clone());
        let job = move || {
            match snapshot::write(&*disk, revision, &objects) {
                Ok(size) => bytes.store(size, Ordering::Relaxed),
                Err(error) => tracing::warn!(%error, revision, "cannot write a snapshot; logs are kept"),
            }
            runs.store(false, Ordering::Release);
        };
        match std::thread::Builder::new().name("store-snapshot".into()).spawn(job) {
            Ok(thread) => self.snapshot = Some(thread),
            Err(error) => {
                tracing::warn!(%error, "cannot start the snapshot thread; logs are kept");
                self.snapshot_runs.store(false, Ordering::Release);
            }
        }
    }
}
