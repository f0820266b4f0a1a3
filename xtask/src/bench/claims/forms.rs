//! Claims that name what they want: by label, by name, or through the node that their first pod gets.
use std::{path::Path, time::Instant};

use super::{CLAIMS, VOLUMES, claim, claim_with, create, ms, volume, volume_with, wait_for_namespace, watch};
use crate::bench::{Daemon, PATIENCE, Result, http::Client, plot::Series};

/// Claims of each form.
const CLAIMS_OF_EACH: usize = 1_000;
/// Volumes for each claim, of which one does.
const NODES: usize = 10;
const LATE: &str = r#"{"apiVersion":"storage.k8s.io/v1","kind":"StorageClass","metadata":{"name":"late"},"provisioner":"kubernetes.io/no-provisioner","volumeBindingMode":"WaitForFirstConsumer"}"#;

/// A form: how it is called, its volume, its claim, and its pod if one has to choose.
struct Form {
    name: &'static str,
    volume: fn(usize) -> String,
    claim: fn(usize) -> String,
    pod: Option<fn(usize) -> String>,
}

const FORMS: [Form; 4] = [
    Form { name: "any of a size", volume, claim, pod: None },
    Form { name: "with a selector, each its own label", volume: labelled, claim: selecting, pod: None },
    Form { name: "with a volume's name", volume, claim: naming, pod: None },
    Form {
        name: "WaitForFirstConsumer, local volumes on 10 nodes, one pod each",
        volume: local,
        claim: late,
        pod: Some(pod),
    },
];

pub(super) fn run(binary: &Path, most: usize) -> Result<Vec<Series>> {
    println!(
        "\n| claims | each | from the first claim to all Bound, per claim | daemon's CPU, per claim |\n|---|---|---|---|"
    );
    let count = CLAIMS_OF_EACH.min(most);
    for form in &FORMS {
        let daemon = Daemon::start(binary, &["--no-node"])?;
        let client = Client::new(&daemon.kubeconfig())?;
        wait_for_namespace(&client)?;
        let bound = watch(&client)?;
        if form.pod.is_some() {
            client.connect()?.request("POST", "/apis/storage.k8s.io/v1/storageclasses", LATE)?;
            create(&client, ("/api/v1/nodes", node), NODES)?;
        }
        create(&client, (VOLUMES, form.volume), count)?;
        let before = daemon.usage()?.cpu;
        let begun = Instant::now();
        create(&client, (CLAIMS, form.claim), count)?;
        if let Some(pod) = form.pod {
            create(&client, ("/api/v1/namespaces/default/pods", pod), count)?;
        }
        let mut seen = std::collections::HashSet::new();
        while seen.len() < count {
            let got = bound.recv_timeout(PATIENCE).map_err(|_| format!("{}: {} Bound", form.name, seen.len()))?;
            seen.insert(got.0);
        }
        let each = ms(begun.elapsed()) / count as f64;
        let cpu = ms(daemon.usage()?.cpu.saturating_sub(before)) / count as f64;
        println!("| {count} | {} | {each:.2} ms | {cpu:.2} ms |", form.name);
    }
    Ok(Vec::new())
}

fn labelled(i: usize) -> String {
    volume_with(i, "manual", "1Gi", &format!(r#"{{"for":"c-{i}"}}"#), "")
}

fn selecting(i: usize) -> String {
    claim_with(i, "manual", &format!(r#""selector":{{"matchLabels":{{"for":"c-{i}"}}}},"#))
}

fn naming(i: usize) -> String {
    claim_with(i, "manual", &format!(r#""volumeName":"v-{i}","#))
}

fn local(i: usize) -> String {
    let node = i % NODES;
    let affinity = format!(
        r#""nodeAffinity":{{"required":{{"nodeSelectorTerms":[{{"matchExpressions":[{{"key":"kubernetes.io/hostname","operator":"In","values":["n-{node}"]}}]}}]}}}},"#
    );
    volume_with(i, "late", "1Gi", "{}", &affinity)
}

fn late(i: usize) -> String {
    claim_with(i, "late", "")
}

fn node(i: usize) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"n-{i}","labels":{{"kubernetes.io/hostname":"n-{i}"}}}},"status":{{"allocatable":{{"cpu":"64","memory":"256Gi","pods":"500"}},"capacity":{{"cpu":"64","memory":"256Gi","pods":"500"}},"conditions":[{{"type":"Ready","status":"True"}}]}}}}"#
    )
}

fn pod(i: usize) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"p-{i}","namespace":"default"}},"spec":{{"containers":[{{"name":"c","image":"i"}}],"volumes":[{{"name":"v","persistentVolumeClaim":{{"claimName":"c-{i}"}}}}]}}}}"#
    )
}
