//! `holdfast volume`: what it lists is what is there, and what it brings back has its data.
mod common;

use std::{
    fs::{self, File},
    io::Write,
    process::{Command, Output, Stdio},
};

use common::{Instance, text, until};

/// A claim of the default class, and a pod that has it at `/v`.
fn claim(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\n\
         spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 64Mi}}}}}}\n---\n"
    )
}

fn pod(name: &str, claim: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         containers:\n  - {{name: c, image: \"hfbox:1\", command: [sleep, \"999\"], volumeMounts: [{{name: v, mountPath: /v}}]}}\n  \
         volumes: [{{name: v, persistentVolumeClaim: {{claimName: {claim}}}}}]\n---\n"
    )
}

fn apply(instance: &Instance, objects: &[String]) {
    let out = instance.kubectl_with(&["apply", "-f", "-"], &objects.concat());
    assert!(out.status.success(), "{}", text(&out.stderr));
}

fn sh(instance: &Instance, pod: &str, script: &str) -> String {
    instance.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]);
    instance.kubectl(&["exec", pod, "--", "sh", "-c", script])
}

fn command(instance: &Instance, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command.arg("volume").args(args).args(["--data-dir", &instance.data_dir()]).env_remove("KUBECONFIG");
    command
}

fn volume(instance: &Instance, args: &[&str]) -> Output {
    command(instance, args).stdin(Stdio::null()).output().expect("run holdfast")
}

/// What a command prints that has to succeed.
#[track_caller]
fn says(instance: &Instance, args: &[&str]) -> String {
    let out = volume(instance, args);
    assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
    text(&out.stdout).trim().to_owned()
}

/// The error of a command that has to fail so.
#[track_caller]
fn fails(instance: &Instance, code: i32, args: &[&str]) -> String {
    let out = volume(instance, args);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stderr)
}

#[track_caller]
fn json(instance: &Instance, args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&says(instance, args)).expect("JSON")
}

/// The listed row of a claim.
fn row(instance: &Instance, claim: &str) -> Option<serde_json::Value> {
    let all = json(instance, &["list", "--deleted", "-o", "json"]);
    all.as_array().expect("rows").iter().find(|row| row["claim"] == claim).cloned()
}

fn what_is_listed_is_there(instance: &Instance) {
    let node = instance.kubectl(&["get", "node", "-o", "jsonpath={.items[0].metadata.name}"]);
    apply(instance, &[claim("data"), claim("waits"), pod("writer", "data")]);
    let write =
        "echo before >/v/file; dd if=/dev/zero of=/v/zeros bs=1M count=8 2>/dev/null; sync; df -k /v | tail -n 1";
    let df = sh(instance, "writer", write);
    let df: Vec<u64> = df.split_whitespace().filter_map(|n| n.parse().ok()).collect();

    let found = row(instance, "data").expect("it is listed");
    let fields = ["namespace", "size", "backend", "state", "driver"].map(|f| found[f].as_str().unwrap_or_default());
    assert_eq!(fields, ["default", "64Mi", "image", "Bound", "local.csi.holdfast"]);
    assert_eq!((&found["nodes"][0], &found["snapshots"]), (&node.into(), &0.into()));
    let used = found["usedBytes"].as_u64().expect("a number");
    assert!((8 << 20..64 << 20).contains(&used), "{used}");
    assert_eq!(row(instance, "waits").expect("listed too")["state"], "Pending");

    let usage = json(instance, &["usage", "-o", "json"]);
    let bytes = &usage["claims"][0]["bytes"];
    assert_eq!((bytes["total"].as_u64(), bytes["used"].as_u64()), (Some(df[0] << 10), Some(df[1] << 10)), "{usage}");
    assert!(usage["claims"][0]["inodes"]["used"].as_u64().expect("a number") > 10);
    assert_eq!((&usage["namespaces"][0]["claims"], &usage["namespaces"][0]["usedBytes"]), (&1.into(), &bytes["used"]));
    assert_eq!(json(instance, &["list", "-o", "json", "-n", "other"]).as_array().map(Vec::len), Some(0));
}

fn a_snapshot_is_restored(instance: &Instance) {
    let name = says(instance, &["snapshot", "data"]);
    assert!(name.starts_with("data-2"), "{name}");
    assert_eq!(instance.kubectl(&["get", "vs", &name, "-o", "jsonpath={.status.readyToUse}"]), "true");
    assert_eq!(row(instance, "data").expect("listed")["snapshots"], 1);
    sh(instance, "writer", "echo after >/v/file; sync");
    let restored = volume(instance, &["restore", &format!("default/{name}"), "again"]);
    assert_eq!(text(&restored.stdout).trim(), "again", "{}", text(&restored.stderr));
    assert!(text(&restored.stderr).contains("when the first pod uses it"), "{}", text(&restored.stderr));
    apply(instance, &[pod("reader", "again")]);
    assert_eq!(sh(instance, "reader", "cat /v/file"), "before\n");
    assert!(fails(instance, 1, &["snapshot", "waits"]).contains("claim default/waits has no volume yet"));
    assert!(fails(instance, 1, &["restore", "none", "x"]).contains("there is no VolumeSnapshot default/none"));
}

/// An archive of the volume while it is in use, and what comes of a part of it.
fn archives_make_volumes(instance: &Instance) {
    let file = instance.dir.path().join("data.tar");
    let path = file.to_string_lossy().into_owned();
    assert_eq!(says(instance, &["export", "data", "-f", &path]), "");
    let archive = fs::read(&file).expect("an archive");
    assert!(!instance.dir.path().join("data.tar.part").exists());

    // Cut off, in three ways: the archive itself, its reader, its writer.
    fs::write(&file, &archive[..archive.len() / 2]).expect("half of it");
    assert!(fails(instance, 1, &["import", &path, "--name", "copy"]).contains("was cut off"));
    let mut importing = command(instance, &["import", "-", "--name", "copy"]);
    let mut importing = importing.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("run holdfast");
    let mut input = importing.stdin.take().expect("piped");
    input.write_all(&archive[..archive.len() / 2]).expect("half of it");
    importing.kill().expect("killed");
    importing.wait().expect("it ended");
    let full = File::options().write(true).open("/dev/full").expect("a full disk");
    let refused = command(instance, &["export", "data"]).stdout(full).output().expect("run holdfast");
    let why = text(&refused.stderr);
    assert!(!refused.status.success() && why.contains("write to standard output: No space left"), "{why}");

    fs::write(&file, &archive).expect("all of it");
    // The one that was killed may just be going.
    let copied = until("nothing of it is left", || {
        let out = volume(instance, &["import", &path, "--name", "copy", "--claim", "copied"]);
        let why = text(&out.stderr);
        assert!(out.status.success() || why.contains("busy"), "{why}");
        out.status.success().then_some(text(&out.stdout))
    });
    assert_eq!(copied.trim(), "copy");
    apply(instance, &[pod("copier", "copied")]);
    assert_eq!(sh(instance, "copier", "cat /v/file; stat -c %s /v/zeros"), "after\n8388608\n");
    assert!(fails(instance, 1, &["import", &path, "--name", "copy"]).contains("there is a volume \"copy\" already"));
    assert!(fails(instance, 2, &["import", &path, "--name", "Copy"]).contains("lower-case"));
    assert!(fails(instance, 1, &["export", "none"]).contains("there is no claim and no PersistentVolume \"none\""));
    assert!(fails(instance, 1, &["export", "waits"]).contains("claim default/waits has no volume yet"));
}

fn deleted_volumes_come_back(instance: &Instance) {
    instance.kubectl(&["delete", "pod", "writer"]);
    instance.kubectl(&["delete", "pvc", "data"]);
    until("it is deleted", || (row(instance, "data")?["state"] == "Deleted").then_some(()));
    let all = json(instance, &["list", "-o", "json"]);
    assert!(all.as_array().expect("rows").iter().all(|row| row["claim"] != "data"), "{all}");
    let table = says(instance, &["list", "--deleted"]);
    assert!(table.lines().any(|l| l.starts_with("default") && l.contains("data") && l.contains("Deleted")), "{table}");

    let back = says(instance, &["undelete", "default/data"]);
    assert_eq!(says(instance, &["undelete", &back]), back, "it is back already");
    let path =
        "jsonpath={.status.phase} {.spec.persistentVolumeReclaimPolicy} {.spec.claimRef.name} {.spec.claimRef.uid}";
    until("it is available", || {
        (instance.kubectl(&["get", "pv", &back, "-o", path]) == "Available Retain data ").then_some(())
    });
    // Nobody else has it, though it would fit.
    apply(instance, &[claim("data"), pod("writer", "data"), pod("other", "waits")]);
    assert_eq!(sh(instance, "writer", "cat /v/file"), "after\n");
    assert_eq!(sh(instance, "other", "ls /v | grep -c file || true"), "0\n");
    assert_eq!(row(instance, "data").expect("listed")["volume"], back);
    assert!(fails(instance, 1, &["undelete", "none"]).contains("there is no deleted volume of \"none\""));
}

#[test]
fn volumes_by_command() {
    let instance = Instance::start();
    what_is_listed_is_there(&instance);
    a_snapshot_is_restored(&instance);
    archives_make_volumes(&instance);
    deleted_volumes_come_back(&instance);
}

#[test]
fn without_a_driver_the_way_out_is_named() {
    let instance = Instance::empty(&["--no-node"]);
    let out = volume(&instance, &["list"]);
    assert!(
        out.status.success() && text(&out.stderr).contains("What drivers know is left out"),
        "{}",
        text(&out.stderr)
    );
    let why = fails(&instance, 1, &["undelete", "x"]);
    assert!(why.contains("run this as root on the machine of the volumes"), "{why}");
    let why = fails(&instance, 1, &["list", "--endpoint", "here.sock"]);
    assert!(why.contains("is no absolute path of a socket"), "{why}");
}
