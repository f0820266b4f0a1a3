//! `/metrics`: what an operator of this server wants to count, in Prometheus' text format.
//!
//! Names are upstream's where the meaning is.
use std::{
    collections::{BTreeMap, HashMap},
    fmt::{Display, Write},
    fs,
    time::Duration,
};

use api::Kind;
use base::Histogram;
use parking_lot::Mutex;

use crate::{ApiServer, Inner, object, path::Verb};

/// What a request was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct About {
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    verb: &'static str,
}

impl Display for About {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { group, version, resource, subresource, verb } = self;
        write!(
            f,
            "group=\"{group}\",version=\"{version}\",resource=\"{resource}\",subresource=\"{subresource}\",verb=\"{verb}\""
        )
    }
}

#[derive(Default)]
struct Requests {
    by_code: BTreeMap<u16, u64>,
    took: Histogram,
}

/// Counts of this server. Bounded: one row per kind, subresource and verb.
#[derive(Default)]
pub struct Metrics {
    requests: Mutex<HashMap<About, Requests>>,
    watches: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

impl Metrics {
    /// Counts a request about a resource. Watches and streams count, but their time says nothing.
    pub fn request(&self, kind: &'static Kind, subresource: &str, verb: Verb, code: u16, took: Duration) {
        // Names of clients' invention do not become rows.
        let subresource = kind.subresources.iter().find(|s| s.name == subresource).map_or("", |s| s.name);
        let about =
            About { group: kind.group, version: kind.version, resource: kind.plural, subresource, verb: name(verb) };
        let mut requests = self.requests.lock();
        let row = requests.entry(about).or_default();
        *row.by_code.entry(code).or_default() += 1;
        if !matches!(verb, Verb::Watch | Verb::Connect) && subresource != "log" {
            row.took.observe(took);
        }
    }
}

/// As upstream's metrics name a verb.
fn name(verb: Verb) -> &'static str {
    match verb {
        Verb::Get => "GET",
        Verb::List => "LIST",
        Verb::Watch => "WATCH",
        Verb::Create => "POST",
        Verb::Update => "PUT",
        Verb::Patch => "PATCH",
        Verb::Delete => "DELETE",
        Verb::DeleteCollection => "DELETECOLLECTION",
        Verb::Connect => "CONNECT",
    }
}

/// A watch that runs, for as long as this is held.
pub struct Watching {
    server: ApiServer,
    kind: (&'static str, &'static str),
}

impl Watching {
    /// Counts a watch of a kind.
    pub fn begin(server: ApiServer, kind: &'static Kind) -> Self {
        let kind = (kind.group, kind.plural);
        *server.inner().metrics.watches.lock().entry(kind).or_default() += 1;
        Self { server, kind }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(count) = self.server.inner().metrics.watches.lock().get_mut(&self.kind) {
            *count -= 1;
        }
    }
}

/// The page.
pub fn page(inner: &Inner) -> String {
    let mut page = Page::default();
    requests(inner, &mut page);
    page.family("apiserver_longrunning_requests", "gauge", "Watches that run now.");
    for ((group, resource), count) in &*inner.metrics.watches.lock() {
        page.row("", &format!("verb=\"WATCH\",group=\"{group}\",resource=\"{resource}\""), count);
    }
    store(inner, &mut page);
    process(&mut page);
    page.text
}

fn requests(inner: &Inner, page: &mut Page) {
    let requests = inner.metrics.requests.lock();
    let mut rows: Vec<_> = requests.iter().collect();
    rows.sort_by_key(|(about, _)| **about);
    page.family(
        "apiserver_request_total",
        "counter",
        "Requests about resources, by what they asked for and HTTP code.",
    );
    for (about, row) in &rows {
        for (code, count) in &row.by_code {
            page.row("", &format!("{about},code=\"{code}\""), count);
        }
    }
    page.family(
        "apiserver_request_duration_seconds",
        "histogram",
        "Time from a request to the head of its answer; watches and streams left out.",
    );
    for (about, row) in rows.iter().filter(|(_, row)| row.took.count() > 0) {
        page.histogram(&about.to_string(), &row.took);
    }
}

fn store(inner: &Inner, page: &mut Page) {
    let mut objects: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    inner.store.for_each(&mut |record| {
        let Some((group, plural)) = object::key_kind(&record.key) else { return };
        let resource = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        let (count, bytes) = objects.entry(resource).or_default();
        *count += 1;
        *bytes += record.value.len() as u64;
    });
    page.family("apiserver_storage_objects", "gauge", "Objects in the store.");
    for (resource, (count, _)) in &objects {
        page.row("", &format!("resource=\"{resource}\""), count);
    }
    page.family("holdfast_store_object_bytes", "gauge", "Bytes of the objects in the store.");
    for (resource, (_, bytes)) in &objects {
        page.row("", &format!("resource=\"{resource}\""), bytes);
    }
    let stats = inner.store.stats();
    for (name, kind, help, value) in [
        ("holdfast_store_revision", "counter", "The newest durable resourceVersion.", stats.revision),
        (
            "holdfast_store_oldest_revision",
            "counter",
            "The oldest resourceVersion a watch can start from.",
            stats.oldest,
        ),
        ("holdfast_store_history_events", "gauge", "Changes kept for watches.", stats.history_events),
        ("holdfast_store_history_bytes", "gauge", "Bytes of changes kept for watches.", stats.history_bytes),
        ("holdfast_store_log_bytes", "gauge", "Length of the log that is written to.", stats.log_bytes),
        ("holdfast_store_watches", "gauge", "Watches on the store, those of this process included.", stats.watches),
    ] {
        page.family(name, kind, help);
        page.row("", "", value);
    }
    page.family("holdfast_store_sync_duration_seconds", "histogram", "Time to write a batch to the log and sync it.");
    page.histogram("", &stats.syncs);
}

/// Figures of this process, as the kernel tells them; those that cannot be read are left out.
fn process(page: &mut Page) {
    const PAGE_BYTES: u64 = 4096;
    /// Clock ticks of `/proc` in a second: the same on every Linux.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in brackets may hold anything.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let number = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok());
    if let (Some(user), Some(system)) = (number(11), number(12)) {
        page.family("process_cpu_seconds_total", "counter", "CPU time of this process.");
        page.row("", "", (user + system) as f64 / TICKS);
    }
    if let Some(pages) = number(21) {
        page.family("process_resident_memory_bytes", "gauge", "Resident memory of this process.");
        page.row("", "", pages * PAGE_BYTES);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        page.family("process_open_fds", "gauge", "Open file descriptors.");
        page.row("", "", open.count());
    }
}

/// A page being written.
#[derive(Default)]
struct Page {
    text: String,
    family: &'static str,
}

impl Page {
    /// Begins a family of rows.
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.family = name;
        // Writing to a String cannot fail.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn row(&mut self, suffix: &str, labels: &str, value: impl Display) {
        let name = self.family;
        let _ = match labels {
            "" => writeln!(self.text, "{name}{suffix} {value}"),
            labels => writeln!(self.text, "{name}{suffix}{{{labels}}} {value}"),
        };
    }

    fn histogram(&mut self, labels: &str, histogram: &Histogram) {
        let comma = if labels.is_empty() { "" } else { "," };
        for (bound, count) in histogram.cumulative() {
            self.row("_bucket", &format!("{labels}{comma}le=\"{bound}\""), count);
        }
        self.row("_bucket", &format!("{labels}{comma}le=\"+Inf\""), histogram.count());
        self.row("_sum", labels, histogram.sum_s());
        self.row("_count", labels, histogram.count());
    }
}
