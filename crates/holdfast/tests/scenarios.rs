//! The black-box scenarios of `tests/scenarios` (green on Kubernetes 1.36.2), by area, each area on an instance of its own.
mod common;

use std::process::Command;

use common::{Instance, kubectl, root};

/// Runs an area with the runner of the scenarios; its lines are the test's output.
#[track_caller]
fn run(only: &[&str], skip: &[&str], jobs: u32) {
    let instance = Instance::start();
    let mut command = Command::new("python3");
    command.arg(root().join("tests/scenarios/run.py")).args(["--kubeconfig", &instance.kubeconfig()]);
    command.args(["--jobs", &jobs.to_string()]);
    for area in only {
        command.args(["--only", area]);
    }
    for name in skip {
        command.args(["--skip", name]);
    }
    let status = command.env("KUBECTL", kubectl()).env("PYTHONDONTWRITEBYTECODE", "1").status().expect("run python3");
    assert!(status.success(), "scenarios of {only:?} failed; see above");
}

/// Server-side apply is not served yet: the scenarios about it are named here, not forgotten.
const SERVER_SIDE_APPLY: &[&str] = &["patch/apply-", "patch/forced-apply-", "patch/field-owned-by-two-"];

#[test]
fn api_watch_table_and_patch() {
    run(&["api/", "watch/", "table/", "patch/"], SERVER_SIDE_APPLY, 6);
}

/// No StatefulSet controller yet.
const WORKLOADS: &[&str] = &["lifecycle/stateful-set-"];

#[test]
fn claims_classes_and_their_life() {
    run(&["bind/", "class/", "lifecycle/", "validation/", "serial/"], WORKLOADS, 6);
}

#[test]
fn node() {
    run(&["node/"], &[], 4);
}
