//! Emptying a small volume whose claim is deleted, until it is free for the next one. Needs root, for it runs a node.
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use super::{CLAIMS, Percentiles, VOLUMES, claim, ms, wait_for_namespace, watch_phase};
use crate::bench::{Daemon, PATIENCE, Result, http::Client, plot::Series};

const TIMES: usize = 100;
/// Files in the volume each time.
const FILES: usize = 10;

pub(super) fn run(binary: &Path, _: usize) -> Result<Vec<Series>> {
    let (times, most) = recycle(binary)?;
    println!("\n| DELETE of the claim to volume Available, p50 | p99 | most | times |\n|---|---|---|---|");
    println!("| {:.1} ms | {:.1} ms | {:.1} ms | {TIMES} |", ms(times.p50), ms(times.p99), ms(most));
    Ok(Vec::new())
}

fn recycle(binary: &Path) -> Result<(Percentiles, Duration)> {
    let daemon = Daemon::start(binary, &[])?;
    let client = Client::new(&daemon.kubeconfig())?;
    wait_for_namespace(&client)?;
    let root = daemon.beside("volume")?;
    let mut connection = client.connect()?;
    let free = watch_phase(&client, VOLUMES, "\"phase\":\"Available\"", "\"name\":\"v-")?;
    let bound = super::watch(&client)?;
    let path = root.path.display();
    connection.request("POST", VOLUMES, &format!(
        r#"{{"apiVersion":"v1","kind":"PersistentVolume","metadata":{{"name":"v-0"}},"spec":{{"storageClassName":"manual","capacity":{{"storage":"1Gi"}},"accessModes":["ReadWriteOnce"],"persistentVolumeReclaimPolicy":"Recycle","hostPath":{{"path":"{path}"}}}}}}"#
    ))?;
    free.recv_timeout(PATIENCE)?;
    let mut times = Vec::new();
    for i in 0..TIMES {
        for file in 0..FILES {
            fs::write(root.path.join(format!("file-{file}")), "some text")?;
        }
        connection.request("POST", CLAIMS, &claim(i))?;
        while bound.recv_timeout(PATIENCE)?.0 != i {}
        // What was told of the volume until here is not about its being freed.
        while free.try_recv().is_ok() {}
        let begun = Instant::now();
        connection.request("DELETE", &format!("{CLAIMS}/c-{i}"), "")?;
        free.recv_timeout(PATIENCE)?;
        times.push(begun.elapsed());
        if fs::read_dir(&root.path)?.next().is_some() {
            return Err(format!("{path} is free and not empty").into());
        }
    }
    let percentiles = Percentiles::of(&mut times)?;
    Ok((percentiles, times.last().copied().unwrap_or_default()))
}
