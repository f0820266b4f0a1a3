//! Pairs of volumes and claims, all at once.
use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, Instant},
};

use super::{CLAIMS, Percentiles, VOLUMES, claim, create, ms, volume, wait_for_namespace, watch};
use crate::bench::{Daemon, PATIENCE, Result, Usage, http::Client, plot::Series};

/// Pairs made at once.
const PAIRS: [usize; 4] = [100, 1_000, 10_000, 50_000];

pub(super) fn run(binary: &Path, most: usize) -> Result<Vec<Series>> {
    let mut series = Vec::new();
    println!(
        "| pairs | made first | all Bound after the last create | from the first of the second kind, per pair | \
         POST to Bound p50 | p99 | daemon's CPU, per pair | RSS after: own | of files |\n\
         |---|---|---|---|---|---|---|---|---|"
    );
    for (name, volumes_first) in [("volumes", true), ("claims", false)] {
        let mut points = Vec::new();
        for pairs in PAIRS.into_iter().filter(|pairs| *pairs <= most) {
            let bulk = bulk(binary, pairs, volumes_first)?;
            let each = ms(bulk.whole) / pairs as f64;
            println!(
                "| {pairs} | {name} | {:.2} s | {each:.2} ms | {:.1} ms | {:.1} ms | {:.2} ms | {} MiB | {} MiB |",
                bulk.after.as_secs_f64(),
                ms(bulk.bound.p50),
                ms(bulk.bound.p99),
                ms(bulk.usage.cpu) / pairs as f64,
                bulk.usage.own_kib / 1024,
                bulk.usage.file_kib / 1024
            );
            points.push((pairs as f64, each));
        }
        series.push(Series { name: format!("all at once, {name} first: time per pair"), points });
    }
    Ok(series)
}

struct Bulk {
    /// From the last create's answer to the last claim Bound.
    after: Duration,
    /// From the first claim's or volume's POST, whichever kind came last, to the last claim Bound.
    whole: Duration,
    bound: Percentiles,
    usage: Usage,
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
        usage: daemon.usage()?,
    })
}
