//! Opening: the newest snapshot, then every log after it.
use std::sync::Arc;

use bytes::Bytes;

use crate::{
    Event, Record, Revision, StoreError,
    disk::{Disk, DiskFile},
    log::{self, Entry, FILE_HEADER, Format, FrameKind},
    state::State,
};

pub(crate) fn snapshot_name(revision: Revision) -> String {
    format!("snapshot-{revision:020}")
}

/// `first` is the revision of the first write that goes into the log.
pub(crate) fn log_name(first: Revision) -> String {
    format!("log-{first:020}")
}

const TEMPORARY_LOG: &str = "log.tmp";

fn numbered(names: &[String], prefix: &str) -> Vec<(Revision, String)> {
    let number = |name: &String| Some((name.strip_prefix(prefix)?.parse().ok()?, name.clone()));
    let mut found: Vec<_> = names.iter().filter_map(number).collect();
    found.sort_unstable();
    found
}

/// Files that a snapshot at `revision` makes useless: older snapshots, and logs that end at or before it.
pub(crate) fn superseded(names: &[String], revision: Revision) -> Vec<String> {
    let logs = numbered(names, "log-");
    let ended = logs.windows(2).filter(|pair| pair[1].0 <= revision + 1).map(|pair| pair[0].1.clone());
    let snapshots = numbered(names, "snapshot-").into_iter().filter(|(r, _)| *r < revision).map(|(_, name)| name);
    snapshots.chain(ended).collect()
}

/// The log that writes are appended to.
pub(crate) struct Tail {
    pub(crate) file: Box<dyn DiskFile>,
    pub(crate) format: Format,
    pub(crate) len: u64,
}

impl Tail {
    /// An empty, durable log whose first write will be `first`.
    pub(crate) fn create(disk: &dyn Disk, first: Revision) -> std::io::Result<Self> {
        let format = Format::new();
        let mut file = disk.create(TEMPORARY_LOG)?;
        file.append(&format.header())?;
        file.sync()?;
        // Under its name only when it is whole: a log without its header has lost what it held.
        disk.rename(TEMPORARY_LOG, &log_name(first))?;
        disk.sync_names()?;
        Ok(Self { file, format, len: FILE_HEADER as u64 })
    }
}

/// Fills `state` from the disk and returns the log to go on with.
pub(crate) fn recover<F>(
    disk: &dyn Disk,
    state: &mut State<F>,
    derive: fn(&str, &[u8]) -> F,
) -> Result<Tail, StoreError> {
    let names = disk.names().map_err(StoreError::io("list files"))?;
    if let Some((revision, name)) = numbered(&names, "snapshot-").pop() {
        read_snapshot(disk, state, derive, (revision, &name))?;
    }
    let stale = superseded(&names, state.revision);
    let logs: Vec<_> = numbered(&names, "log-").into_iter().filter(|(_, name)| !stale.contains(name)).collect();
    let mut tail = None;
    for (i, (first, name)) in logs.iter().enumerate() {
        if *first > state.revision + 1 {
            let what = "writes between the file before and this one are missing";
            return Err(StoreError::Corrupt { file: name.clone(), offset: 0, what });
        }
        let last = i + 1 == logs.len();
        tail = read_log(disk, state, derive, (name, last))?;
    }
    for name in &stale {
        disk.remove(name).map_err(StoreError::io(format!("remove {name}")))?;
    }
    match tail {
        Some(tail) => Ok(tail),
        None => Tail::create(disk, state.revision + 1).map_err(StoreError::io("create a log")),
    }
}

fn record<F>(derive: fn(&str, &[u8]) -> F, entry: Entry<'_>) -> Arc<Record<F>> {
    Arc::new(Record {
        key: entry.key.into(),
        revision: entry.revision,
        value: Bytes::copy_from_slice(entry.value),
        facets: derive(entry.key, entry.value),
    })
}

fn read_snapshot<F>(
    disk: &dyn Disk,
    state: &mut State<F>,
    derive: fn(&str, &[u8]) -> F,
    (revision, name): (Revision, &str),
) -> Result<(), StoreError> {
    let file = disk.read(name).map_err(StoreError::io(format!("read {name}")))?;
    let mut objects = Vec::new();
    let mut ended = false;
    let end = log::read(name, &file, &mut |kind, entry| match kind {
        FrameKind::Objects => {
            objects.push(record(derive, entry));
            Ok(())
        }
        FrameKind::End if entry.revision == revision => {
            ended = true;
            Ok(())
        }
        _ => Err("not part of this snapshot"),
    })?;
    // A snapshot gets its name only when all of it is durable: here a torn end is damage.
    if !ended || end.len < file.len() as u64 {
        return Err(StoreError::Corrupt { file: name.into(), offset: end.len, what: "the snapshot is not whole" });
    }
    state.restore(revision, objects);
    Ok(())
}

fn read_log<F>(
    disk: &dyn Disk,
    state: &mut State<F>,
    derive: fn(&str, &[u8]) -> F,
    (name, last): (&str, bool),
) -> Result<Option<Tail>, StoreError> {
    let bytes = disk.read(name).map_err(StoreError::io(format!("read {name}")))?;
    let end = log::read(name, &bytes, &mut |kind, entry| {
        if kind != FrameKind::Batch {
            return Err("not part of a log");
        }
        if entry.revision <= state.revision {
            return Ok(());
        }
        if entry.revision != state.revision + 1 {
            return Err("a write is missing before this one");
        }
        let previous = state.get(entry.key).cloned();
        let record = record(derive, entry);
        state.apply(Event { revision: entry.revision, record, previous, deleted: entry.deleted });
        Ok(())
    })?;
    if !last {
        return match end.torn {
            0 => Ok(None),
            _ => Err(StoreError::Corrupt { file: name.into(), offset: end.len, what: "damaged, with a log after it" }),
        };
    }
    let format = Format::of(&bytes).expect("a file that was read has a header");
    let mut file = disk.open(name).map_err(StoreError::io(format!("open {name}")))?;
    if end.torn > 0 {
        tracing::warn!(file = name, bytes = end.torn, "cut the unacknowledged end of the log");
    }
    if end.len < bytes.len() as u64 {
        file.cut(end.len).and_then(|()| file.sync()).map_err(StoreError::io(format!("cut {name}")))?;
    }
    Ok(Some(Tail { file, format, len: end.len }))
}
