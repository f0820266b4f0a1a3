//! Volumes that cannot be had: each is told of, by name and with its cause; a pod goes on when the cause is gone, and can be
//! deleted before. What needs a server to be wrong is beside the other tests of its type.
mod common;

use std::fs;

use common::{Instance, apply, mounted_below, ready, text, told, until};

fn pod(name: &str, mount: &str, volumes: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - {{name: c, image: \"hfbox:1\", command: [sleep, \"999\"], env: [{{name: FROM, valueFrom: {{secretKeyRef: {{name: s, key: path}}}}}}], \
         volumeMounts: [{{name: v, mountPath: /v{mount}}}]}}\n  volumes: [{volumes}]\n---\n"
    )
}

fn object(kind: &str, name: &str, data: &str) -> String {
    let field = if kind == "Secret" { "stringData" } else { "data" };
    format!("{{apiVersion: v1, kind: {kind}, metadata: {{name: {name}}}, {field}: {data}}}\n---\n")
}

#[test]
fn what_cannot_be_had_is_told_of_each_volume_and_goes() {
    let instance = Instance::start();
    let dir = tempfile::Builder::new().prefix("holdfast-bad-").tempdir().expect("a directory");
    let wanted = dir.path().join("wanted");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    let key = "secret: {secretName: s, items: [{key: none, path: x}]}";
    let collide =
        "projected: {sources: [{configMap: {name: m}}, {secret: {name: s, items: [{key: path, path: a/b}]}}]}";
    let bad = [
        ("configMap: {name: none}", "configmap \"none\" not found"),
        (key, "references non-existent secret key: none: secret \"s\" has no such key"),
        (collide, "path \"a/b\" cannot be a file: \"a\" is one too"),
        ("hostPath: {path: /none, type: Directory}", "hostPath type check failed: /none is not a directory"),
        (&format!("gitRepo: {{repository: 'git://{closed}/x'}}"), "gitRepo.repository: Connection refused"),
        ("flexVolume: {driver: example.com/none}", "no volume plugin matched: this node has no program"),
        ("csi: {driver: none.example.com}", "not supported by driver none.example.com (no CSIDriver object)"),
        ("emptyDir: {medium: none}", "unknown storage medium \"none\""),
        ("quobyte: {registry: 'r:1', volume: v}", "volume \"v8\" err=no volume plugin matched"),
        ("glusterfs: {endpoints: none, path: p}", "endpoints \"none\" not found in namespace \"default\""),
        ("fc: {wwids: [none]}", "no fc disk found"),
        ("rbd: {monitors: [none], image: i}", ""),
    ];
    let volumes: Vec<String> = bad.iter().enumerate().map(|(n, (v, _))| format!("{{name: v{n}, {v}}}")).collect();
    let host = format!("hostPath: {{path: {}, type: Directory}}", wanted.display());
    let waits = format!(
        "{{name: v, configMap: {{name: later}}}}, {{name: k, {key}}}, {{name: c, {collide}}}, {{name: h, {host}}}"
    );
    // The longest names that the API takes.
    let long = "p".repeat(253);
    let all = [
        object("Secret", "s", "{path: /s3cr3t}"),
        object("ConfigMap", "m", "{a: \"1\"}"),
        pod("many", "", &format!("{{name: v, emptyDir: {{}}}}, {}", volumes.join(", "))),
        pod("waits", "", &waits),
        pod(&long, "", "{name: v, configMap: {name: m}}"),
        pod("escapes", ", subPathExpr: $(FROM)", "{name: v, emptyDir: {}}"),
        pod("undefined", ", subPathExpr: $(NONE)", "{name: v, emptyDir: {}}"),
        pod("claims", "", "{name: v, persistentVolumeClaim: {claimName: none}}"),
    ];
    apply(&instance, &all.concat());
    for (n, (_, why)) in bad.iter().enumerate().filter(|(_, (_, why))| !why.is_empty()) {
        told(&instance, "many", &format!("volume \"v{n}\""));
        told(&instance, "many", why);
    }
    told(
        &instance,
        "escapes",
        "error SubPath `$(FROM)` must not be an absolute path: subPathExpr of volumeMount \"v\"",
    );
    told(&instance, "undefined", "missing value for \"NONE\": subPathExpr of volumeMount \"v\"");
    told(&instance, "claims", "Volume \"v\", claim \"none\": It does not exist.");
    told(&instance, &long, "Container started");
    ready(&instance, &long);
    for volume in ["v", "k", "c", "h"] {
        told(&instance, "waits", &format!("failed for volume \"{volume}\""));
    }
    let everything = instance.kubectl(&["get", "events,pods", "-o", "yaml"]);
    assert!(!everything.contains("s3cr3t"), "a secret is shown: {everything}");
    let why = instance.ours(&["why", "pod/many", "--kubeconfig", &instance.kubeconfig()]);
    assert!(text(&why.stdout).contains("kubectl create configmap none"), "{}", text(&why.stdout));

    fs::create_dir(&wanted).expect("made");
    let mended = [
        object("ConfigMap", "later", "{}"),
        object("Secret", "s", "{path: /s3cr3t, none: x}"),
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, data: {b: \"1\"}}\n---\n".into(),
    ];
    apply(&instance, &mended.concat());
    ready(&instance, "waits");
    instance.kubectl(&["delete", "pods", "--all", "--timeout=30s"]);
    assert_eq!(mounted_below(instance.dir.path()), [""; 0]);
    until("no directory of a pod is left", || {
        let left = fs::read_dir(instance.dir.path().join("data/kubelet/pods"));
        (left.map_or(0, Iterator::count) == 0).then_some(())
    });
}
