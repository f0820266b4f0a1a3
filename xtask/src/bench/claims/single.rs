//! One claim at a time, beside many free volumes.
use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{CLAIMS, Percentiles, VOLUMES, claim, create, ms, sized_volume, volume, wait_for_namespace, watch};
use crate::bench::{Daemon, PATIENCE, Result, http::Client, plot::Series};

/// Volumes that are there besides the one that a single claim gets.
const OTHERS: [usize; 4] = [100, 1_000, 10_000, 50_000];
/// Claims made one at a time.
const SINGLE: usize = 200;

pub(super) fn run(binary: &Path, most: usize) -> Result<Vec<Series>> {
    println!("\n| other free volumes | POST to Bound p50 | p99 | most | claims |\n|---|---|---|---|---|");
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    for others in OTHERS.into_iter().filter(|others| *others <= most) {
        let (times, most) = single(binary, others)?;
        println!("| {others} | {:.2} ms | {:.2} ms | {:.2} ms | {SINGLE} |", ms(times.p50), ms(times.p99), ms(most));
        p50.push((others as f64, ms(times.p50)));
        p99.push((others as f64, ms(times.p99)));
    }
    Ok(vec![
        Series { name: "one at a time: POST to Bound, p50".into(), points: p50 },
        Series { name: "one at a time: POST to Bound, p99".into(), points: p99 },
    ])
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
