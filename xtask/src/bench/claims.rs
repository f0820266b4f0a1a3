//! Binding of claims to volumes made by hand, by their number: all at once, and one at a time among many volumes.
//!
//! Prints tables for `docs/benchmarks.md` and draws `docs/claims.svg`. Times are read on a client's watch, over TLS.
use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{
    Daemon, PATIENCE, Result,
    http::Client,
    plot::{self, Series},
    root,
};

/// Pairs made at once.
const BULK: [usize; 3] = [100, 1_000, 10_000];
/// Volumes that are there besides the one that a single claim gets.
const OTHERS: [usize; 4] = [100, 1_000, 10_000, 50_000];
/// Claims made one at a time.
const SINGLE: usize = 200;
/// Connections that create.
const CONNECTIONS: usize = 8;

const VOLUMES: &str = "/api/v1/persistentvolumes";
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";

pub(super) fn run(binary: &Path) -> Result<()> {
    let mut series = Vec::new();
    println!(
        "| pairs, made first | all Bound after the last create | from the first claim, per claim | \
         POST to Bound p50 | p99 | RSS after |\n|---|---|---|---|---|---|"
    );
    for (name, volumes_first) in [("volumes first", true), ("claims first", false)] {
        let mut points = Vec::new();
        for pairs in BULK {
            let bulk = bulk(binary, pairs, volumes_first)?;
            let each = ms(bulk.whole) / pairs as f64;
            println!(
                "| {pairs}, {name} | {:.2} s | {each:.2} ms | {:.1} ms | {:.1} ms | {} MiB |",
                bulk.after.as_secs_f64(),
                ms(bulk.bound.p50),
                ms(bulk.bound.p99),
                bulk.rss_kib / 1024
            );
            points.push((pairs as f64, each));
        }
        series.push(Series { name: format!("all at once, {name}: time per claim"), points });
    }
    println!("\n| other free volumes | POST to Bound p50 | p99 | most | claims |\n|---|---|---|---|---|");
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    for others in OTHERS {
        let (times, most) = single(binary, others)?;
        println!("| {others} | {:.2} ms | {:.2} ms | {:.2} ms | {SINGLE} |", ms(times.p50), ms(times.p99), ms(most));
        p50.push((others as f64, ms(times.p50)));
        p99.push((others as f64, ms(times.p99)));
    }
    series.push(Series { name: "one at a time: POST to Bound, p50".into(), points: p50 });
    series.push(Series { name: "one at a time: POST to Bound, p99".into(), points: p99 });
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

struct Bulk {
    /// From the last create's answer to the last claim Bound.
    after: Duration,
    /// From the first claim's or volume's POST, whichever kind came last, to the last claim Bound.
    whole: Duration,
    bound: Percentiles,
    rss_kib: u64,
}

fn bulk(binary: &Path, pairs: usize, volumes_first: bool) -> Result<Bulk> {
    let daemon = Daemon::start(binary, &["--no-node"])?;
    let client = Client::new(&daemon.kubeconfig())?;
    wait_for_namespace(&client)?;
    let bound = watch(&client)?;
    let (first, second) = match volumes_first {
        true => ((VOLUMES, volume as fn(usize) -> String), (CLAIMS, claim as fn(usize) -> String)),
        false => ((CLAIMS, claim as fn(usize) -> String), (VOLUMES, volume as fn(usize) -> String)),
    };
    let mut posts = create(&client, first, pairs)?;
    let begun = Instant::now();
    let seconds = create(&client, second, pairs)?;
    let last_answer = Instant::now();
    if volumes_first {
        posts = seconds;
    }
    let mut seen = HashMap::new();
    while seen.len() < pairs {
        let (name, at) = bound.recv_timeout(PATIENCE).map_err(|_| format!("{} of {pairs} claims Bound", seen.len()))?;
        seen.entry(name).or_insert(at);
    }
    let last = seen.values().max().copied().ok_or("no claims")?;
    let mut times: Vec<_> =
        seen.iter().filter_map(|(i, at)| Some(at.saturating_duration_since(*posts.get(*i)?))).collect();
    Ok(Bulk {
        after: last.saturating_duration_since(last_answer),
        whole: last.saturating_duration_since(begun),
        bound: Percentiles::of(&mut times)?,
        rss_kib: daemon.rss_kib()?,
    })
}

fn single(binary: &Path, others: usize) -> Result<(Percentiles, Duration)> {
    let daemon = Daemon::start(binary, &["--no-node"])?;
    let client = Client::new(&daemon.kubeconfig())?;
    wait_for_namespace(&client)?;
    create(&client, (VOLUMES, volume), SINGLE)?;
    // Larger, so that none of them is taken.
    create(&client, (VOLUMES, |i| sized_volume(SINGLE + i, "5Gi")), others)?;
    let mut connection = client.connect()?;
    for i in (0..SINGLE + others).rev() {
        if i < SINGLE || i + 1 == SINGLE + others {
            while !connection.request("GET", &format!("{VOLUMES}/v-{i}"), "")?.contains("\"phase\":\"Available\"") {
                thread::sleep(Duration::from_millis(2));
            }
        }
    }
    let bound = watch(&client)?;
    let mut times = Vec::new();
    for i in 0..SINGLE {
        let body = claim(i);
        let begun = Instant::now();
        connection.request("POST", CLAIMS, &body)?;
        while bound.recv_timeout(PATIENCE)?.0 != i {}
        times.push(begun.elapsed());
    }
    let percentiles = Percentiles::of(&mut times)?;
    Ok((percentiles, times.last().copied().unwrap_or_default()))
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
    let lines = client.stream("/api/v1/namespaces/default/persistentvolumeclaims?watch=true&timeoutSeconds=3600")?;
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        for line in lines.map_while(std::result::Result::ok) {
            let at = Instant::now();
            // Reading all of the JSON would take time from what is measured.
            if line.contains("\"phase\":\"Bound\"")
                && let Some(name) = line.split("\"name\":\"c-").nth(1)
                && let Some(number) = name.split('"').next().and_then(|n| n.parse().ok())
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
    format!(
        r#"{{"apiVersion":"v1","kind":"PersistentVolume","metadata":{{"name":"v-{i}"}},"spec":{{"storageClassName":"manual","capacity":{{"storage":"{size}"}},"accessModes":["ReadWriteOnce"],"persistentVolumeReclaimPolicy":"Retain","hostPath":{{"path":"/tmp/v-{i}"}}}}}}"#
    )
}

fn claim(i: usize) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{{"name":"c-{i}","namespace":"default"}},"spec":{{"storageClassName":"manual","accessModes":["ReadWriteOnce"],"resources":{{"requests":{{"storage":"1Gi"}}}}}}}}"#
    )
}
