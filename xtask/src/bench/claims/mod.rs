//! Binding of claims to volumes made by hand, by their number; and emptying volumes.
//!
//! Prints tables for `docs/benchmarks.md` and draws `docs/claims.svg`. Times are read on a client's watch, over TLS.
mod bulk;
mod forms;
mod recycle;
mod single;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{
    PATIENCE, Result,
    http::Client,
    plot::{self, Series},
    root,
};

/// Connections that create.
const CONNECTIONS: usize = 8;

const VOLUMES: &str = "/api/v1/persistentvolumes";
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";

/// One part of the bench: its name, and what it does for up to so many objects.
type Section = (&'static str, fn(&Path, usize) -> Result<Vec<Series>>);

const SECTIONS: [Section; 4] =
    [("bulk", bulk::run), ("single", single::run), ("forms", forms::run), ("recycle", recycle::run)];

/// `words`: sections to run (all without one), and the most objects of each kind.
pub(super) fn run(words: &[String]) -> Result<()> {
    let (mut binary, mut names, mut most) = (None, Vec::new(), usize::MAX);
    for word in words {
        match word.parse() {
            Ok(number) => most = number,
            Err(_) if SECTIONS.iter().any(|(name, _)| name == word) => names.push(word.as_str()),
            Err(_) => binary = Some(PathBuf::from(word)),
        }
    }
    let binary = super::binary(binary)?;
    let mut series = Vec::new();
    for (name, section) in SECTIONS {
        if names.is_empty() || names.contains(&name) {
            series.extend(section(&binary, most)?);
        }
    }
    if !names.is_empty() || most < usize::MAX {
        return Ok(());
    }
    let drawn = plot::draw("Time per claim, ms, by the number of volumes", "volumes", &series);
    let path = root()?.join("docs/claims.svg");
    fs::write(&path, drawn)?;
    eprintln!("drew {}", path.display());
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

struct Percentiles {
    p50: Duration,
    p99: Duration,
}

impl Percentiles {
    fn of(times: &mut [Duration]) -> Result<Self> {
        times.sort_unstable();
        let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied();
        Ok(Self { p50: at(50).ok_or("nothing was timed")?, p99: at(99).ok_or("nothing was timed")? })
    }
}

/// Creates many objects on several connections; when each POST was begun.
fn create(client: &Client, (path, body): (&str, fn(usize) -> String), count: usize) -> Result<Vec<Instant>> {
    let mut begun = vec![Instant::now(); count];
    let share = count.div_ceil(CONNECTIONS).max(1);
    let work = |(part, times): (usize, &mut [Instant])| -> Result<()> {
        let mut connection = client.connect()?;
        for (i, time) in times.iter_mut().enumerate() {
            let body = body(part * share + i);
            *time = Instant::now();
            connection.request("POST", path, &body)?;
        }
        Ok(())
    };
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = begun.chunks_mut(share).enumerate().map(|part| scope.spawn(move || work(part))).collect();
        threads.into_iter().try_for_each(|t| t.join().map_err(|_| "a thread panicked")?)
    })?;
    Ok(begun)
}

/// Numbers of the claims that are Bound, and when that was seen.
fn watch(client: &Client) -> Result<mpsc::Receiver<(usize, Instant)>> {
    watch_phase(client, CLAIMS, "\"phase\":\"Bound\"", "\"name\":\"c-")
}

/// Numbers of the objects that come to a phase, and when that was seen; `name` is how their names begin.
fn watch_phase(
    client: &Client,
    path: &str,
    phase: &'static str,
    name: &'static str,
) -> Result<mpsc::Receiver<(usize, Instant)>> {
    let lines = client.stream(&format!("{path}?watch=true&timeoutSeconds=3600"))?;
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        for line in lines.map_while(std::result::Result::ok) {
            let at = Instant::now();
            // Reading all of the JSON would take time from what is measured.
            if line.contains(phase)
                && let Some(number) = line.split(name).nth(1)
                && let Some(number) = number.split('"').next().and_then(|n| n.parse().ok())
                && send.send((number, at)).is_err()
            {
                return;
            }
        }
    });
    Ok(receive)
}

fn wait_for_namespace(client: &Client) -> Result<()> {
    let begun = Instant::now();
    let mut connection = client.connect()?;
    while connection.request("GET", "/api/v1/namespaces/default", "").is_err() {
        if begun.elapsed() > PATIENCE {
            return Err("the default namespace does not come".into());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn volume(i: usize) -> String {
    sized_volume(i, "1Gi")
}

fn sized_volume(i: usize, size: &str) -> String {
    volume_with(i, "manual", size, "{}", "")
}

/// `labels` is an object, `more` a part of the spec that ends in a comma.
fn volume_with(i: usize, class: &str, size: &str, labels: &str, more: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"PersistentVolume","metadata":{{"name":"v-{i}","labels":{labels}}},"spec":{{{more}"storageClassName":"{class}","capacity":{{"storage":"{size}"}},"accessModes":["ReadWriteOnce"],"persistentVolumeReclaimPolicy":"Retain","hostPath":{{"path":"/tmp/v-{i}"}}}}}}"#
    )
}

fn claim(i: usize) -> String {
    claim_with(i, "manual", "")
}

/// `more` as with volumes.
fn claim_with(i: usize, class: &str, more: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{{"name":"c-{i}","namespace":"default"}},"spec":{{{more}"storageClassName":"{class}","accessModes":["ReadWriteOnce"],"resources":{{"requests":{{"storage":"1Gi"}}}}}}}}"#
    )
}
