//! Snapshots with stock kubectl: made of a claim in use, restored, cloned, imported, and deleted in any order.
mod common;

use common::{Instance, text, told, until};

fn apply(instance: &Instance, objects: &[String]) {
    let out = instance.kubectl_with(&["apply", "-f", "-"], &objects.join("---\n"));
    assert!(out.status.success(), "{}", text(&out.stderr));
}

/// A claim of the default class, with more of its spec.
fn claim(name: &str, size: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\n\
         spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: {size}}}}}{more}}}\n"
    )
}

fn restored(name: &str, size: &str, snapshot: &str) -> String {
    let source = format!("{{apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: {snapshot}}}");
    claim(name, size, &format!(", dataSource: {source}"))
}

/// A pod with each of the claims at a path of the claim's name.
fn pod(name: &str, claims: &[&str], script: &str) -> String {
    let all = |one: fn(&str) -> String| claims.iter().map(|c| one(c)).collect::<Vec<_>>().join(", ");
    let mounts = all(|c| format!("{{name: {c}, mountPath: /{c}}}"));
    let volumes = all(|c| format!("{{name: {c}, persistentVolumeClaim: {{claimName: {c}}}}}"));
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         containers:\n  - {{name: c, image: \"hfbox:1\", command: [sh, -c, '{script}; sleep 999'], \
         volumeMounts: [{mounts}]}}\n  volumes: [{volumes}]\n"
    )
}

fn snapshot(name: &str, source: &str) -> String {
    format!(
        "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {{name: {name}}}\n\
         spec: {{source: {{{source}}}}}\n"
    )
}

fn ready(instance: &Instance, object: &str, condition: &str) {
    instance.kubectl(&["wait", object, &format!("--for={condition}"), "--timeout=60s"]);
}

const READY_TO_USE: &str = "jsonpath={.status.readyToUse}=true";
const READY: &str = "condition=Ready";

/// A volume with `before` in a file, a snapshot of it, then `after` in the file.
fn stage() -> Instance {
    let instance = Instance::start();
    apply(&instance, &[claim("data", "64Mi", ""), pod("writer", &["data"], "echo before > /data/file; sync")]);
    ready(&instance, "pod/writer", READY);
    let write = |text: &str| {
        until("the file is written", || {
            let script = format!("grep -q before /data/file && echo {text} > /data/file && sync");
            let out = instance.kubectl_with(&["exec", "writer", "--", "sh", "-c", &script], "");
            out.status.success().then_some(())
        });
    };
    write("before");
    apply(&instance, &[snapshot("s", "persistentVolumeClaimName: data")]);
    ready(&instance, "vs/s", READY_TO_USE);
    write("after");
    instance
}

fn handle(instance: &Instance) -> String {
    let content = instance.kubectl(&["get", "vs", "s", "-o", "jsonpath={.status.boundVolumeSnapshotContentName}"]);
    instance.kubectl(&["get", "vsc", &content, "-o", "jsonpath={.status.snapshotHandle}"])
}

#[test]
fn a_snapshot_comes_back_as_a_volume() {
    let instance = stage();
    let table = instance.kubectl(&["get", "volumesnapshots"]);
    let header: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    let columns = [
        "NAME",
        "READYTOUSE",
        "SOURCEPVC",
        "SOURCESNAPSHOTCONTENT",
        "RESTORESIZE",
        "SNAPSHOTCLASS",
        "SNAPSHOTCONTENT",
        "CREATIONTIME",
        "AGE",
    ];
    assert_eq!(header, columns);
    assert!(table.contains("64Mi") && table.contains("local"), "{table}");
    assert!(instance.kubectl(&["explain", "vs.spec.source"]).contains("persistentVolumeClaimName"));

    let clone = claim("clone", "64Mi", ", dataSourceRef: {kind: PersistentVolumeClaim, name: data}");
    let script = "cat /back/file /clone/file; df -k /back";
    apply(&instance, &[restored("back", "128Mi", "s"), clone, pod("reader", &["back", "clone"], script)]);
    ready(&instance, "pod/reader", READY);
    let log =
        until("the reader is done", || Some(instance.kubectl(&["logs", "reader"])).filter(|l| l.contains("/back")));
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..2], ["before", "after"], "the moment of the snapshot, and of the clone");
    let blocks: u64 = lines[3].split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a size");
    assert!(blocks > 64 << 10, "grown to what the claim asks for: {log}");

    // A claim that can not have it keeps it, and says so.
    apply(&instance, &[restored("small", "1Mi", "s"), pod("waits", &["small"], "true")]);
    told(&instance, "small", "requested volume size 1048576 is less than the size 67108864 for the source snapshot s");
    instance.kubectl(&["delete", "vs", "s", "--wait=false"]);
    told(&instance, "s", "Snapshot is being used to restore a PVC");
    instance.kubectl(&["delete", "pod", "waits", "--now"]);
    instance.kubectl(&["delete", "pvc", "small", "--timeout=60s"]);
    instance.kubectl(&["wait", "vs/s", "--for=delete", "--timeout=60s"]);
    until("its content goes along", || instance.kubectl(&["get", "vsc", "-o", "name"]).is_empty().then_some(()));
    assert_eq!(
        instance.kubectl(&["exec", "reader", "--", "cat", "/back/file"]),
        "before\n",
        "what was made of it stays"
    );
}

#[test]
fn a_snapshot_that_exists_is_imported() {
    let instance = stage();
    let content = |name: &str, handle: &str| {
        format!(
            "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotContent\nmetadata: {{name: {name}}}\n\
             spec: {{source: {{snapshotHandle: {handle}}}, driver: local.csi.holdfast, deletionPolicy: Retain, \
             volumeSnapshotRef: {{name: {name}, namespace: default}}}}\n"
        )
    };
    let handle = handle(&instance);
    let named = |name: &str| snapshot(name, &format!("volumeSnapshotContentName: {name}"));
    let all = [content("import", &handle), named("import"), content("none", "none"), named("none")];
    apply(&instance, &all);
    ready(&instance, "vs/import", READY_TO_USE);
    told(&instance, "none", "can not find snapshot for snapshotID none");
    apply(&instance, &[restored("back", "64Mi", "import"), pod("reader", &["back"], "cat /back/file")]);
    ready(&instance, "pod/reader", READY);
    until("it is read", || (instance.kubectl(&["logs", "reader"]) == "before\n").then_some(()));

    let why = instance.ours(&["why", "vs/none", "--kubeconfig", &instance.kubeconfig()]);
    assert!(text(&why.stdout).contains("can not find snapshot"), "{}{}", text(&why.stdout), text(&why.stderr));
    let change = r#"{"spec":{"source":{"snapshotHandle":"other"}}}"#;
    let out = instance.kubectl_with(&["patch", "vsc", "import", "--type=merge", "-p", change], "");
    assert!(text(&out.stderr).contains("snapshotHandle is immutable"), "{}", text(&out.stderr));
    // What is to be retained outlives its snapshot; the first one's content does not.
    instance.kubectl(&["delete", "vs", "import", "none", "--timeout=60s"]);
    assert_eq!(instance.kubectl(&["get", "vsc", "import", "none", "-o", "name"]).lines().count(), 2);
    instance.kubectl(&["delete", "vsc", "import", "none", "--timeout=60s"]);
    instance.kubectl(&["delete", "vs", "s", "--timeout=60s"]);
}
