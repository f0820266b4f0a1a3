//! `holdfast why` against the real program: each cause is set up for real, and the answer has to name it.
mod common;

use common::{Instance, text, until};
use serde_json::Value;

/// What `why` says with `-o json`, once it names the cause; checks the exit status too.
#[track_caller]
fn says(instance: &Instance, object: &str, cause: &str, code: i32) -> Value {
    let kubeconfig = instance.kubeconfig();
    until(&format!("why {object} says {cause}"), || {
        let out = instance.ours(&["why", object, "-o", "json", "--kubeconfig", &kubeconfig]);
        let answer: Value = serde_json::from_slice(&out.stdout).ok()?;
        (answer["cause"] == cause).then(|| {
            assert_eq!(out.status.code(), Some(code), "{answer:#}");
            answer
        })
    })
}

#[track_caller]
fn apply(instance: &Instance, yaml: &str) {
    let out = instance.kubectl_with(&["apply", "-f", "-"], yaml);
    assert!(out.status.success(), "{}", text(&out.stderr));
}

fn claim(name: &str, more: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: {name}}}, spec: {{accessModes: \
         [ReadWriteOnce], resources: {{requests: {{storage: 5Gi}}}}, {more}}}}}\n"
    )
}

fn volume(name: &str, size: &str, more: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: PersistentVolume, metadata: {{name: {name}, labels: {{tier: gold}}}}, spec: \
         {{accessModes: [ReadWriteOnce], capacity: {{storage: {size}}}, hostPath: {{path: /srv/{name}}}, {more}}}}}\n"
    )
}

fn class(name: &str, provisioner: &str, mode: &str) -> String {
    format!(
        "---\n{{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {{name: {name}}}, provisioner: \
         {provisioner}, volumeBindingMode: {mode}}}\n"
    )
}

fn pod(name: &str, volume: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [{{name: main, image: \
         none.invalid/none}}], volumes: [{{name: v, {volume}}}]}}}}\n"
    )
}

#[test]
fn claims_and_classes() {
    let instance = Instance::empty(&["--no-node"]);
    let objects = [
        class("late", "kubernetes.io/no-provisioner", "WaitForFirstConsumer"),
        class("old", "kubernetes.io/gce-pd", "Immediate"),
        claim("waits", "storageClassName: late"),
        claim("typo", "storageClassName: lat"),
        claim("removed", "storageClassName: old"),
        claim("named", "storageClassName: '', volumeName: nowhere"),
        claim("picky", "storageClassName: '', selector: {matchLabels: {tier: gold}}"),
        volume("small", "1Gi", "storageClassName: ''"),
        volume("block", "9Gi", "volumeMode: Block"),
    ];
    apply(&instance, &objects.concat());
    says(&instance, "pvc/waits", "wait-for-first-consumer", 0);
    let typo = says(&instance, "pvc/typo", "class-not-found", 3);
    assert!(typo["details"].to_string().contains("did you mean late?"), "{typo:#}");
    says(&instance, "pvc/removed", "provisioner-removed", 3);
    says(&instance, "sc/old", "provisioner-removed", 3);
    says(&instance, "pvc/named", "named-volume-missing", 3);
    let picky = says(&instance, "pvc/picky", "no-fitting-volume", 3);
    assert_eq!(picky["candidates"][0]["volume"], "small");
    assert_eq!(picky["candidates"][0]["refused"][0], "it has 1Gi, the claim requests 5Gi");
    assert_eq!(picky["candidates"][1]["refused"][0], "its volumeMode is Block, the claim's Filesystem");

    // What it says mends it, does.
    let command = picky["fix"].as_array().expect("commands").last().expect("one").as_str().expect("text").to_owned();
    let patch = command.split('\'').nth(1).expect("a patch in quotes");
    instance.kubectl(&["patch", "pv", "small", "--type=merge", "-p", patch]);
    says(&instance, "pvc/picky", "none", 0);

    // A claim of the same name does not get what its forerunner left.
    instance.kubectl(&["delete", "pvc", "picky"]);
    apply(&instance, &claim("picky", "storageClassName: '', selector: {matchLabels: {tier: gold}}"));
    let released = says(&instance, "pvc/picky", "volume-released", 3);
    says(&instance, "pv/small", "volume-released", 3);
    let fix = released["fix"].to_string();
    assert!(fix.contains("uid"), "{fix}");
    let missing = instance.ours(&["why", "pvc/none", "--kubeconfig", &instance.kubeconfig()]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("persistentvolumeclaims \"none\" not found"), "{}", text(&missing.stderr));
}

#[test]
fn pods_on_a_node() {
    let instance = Instance::empty(&[]);
    let objects = [
        "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {app.conf: x}}\n".to_owned(),
        pod("key", "configMap: {name: settings, items: [{key: app.cnf, path: p}]}"),
        pod("path", "hostPath: {path: /etc/hostname, type: Directory}"),
        volume("mine", "5Gi", "storageClassName: ''"),
        claim("held", "storageClassName: ''"),
        pod("holder", "persistentVolumeClaim: {claimName: held}"),
    ];
    apply(&instance, &objects.concat());
    let key = says(&instance, "pod/key", "config-key-missing", 3);
    assert!(key["state"].to_string().contains("which has only app.conf"), "{key:#}");
    let path = says(&instance, "pod/path", "host-path-type", 3);
    assert!(path["state"].to_string().contains("/etc/hostname is not a directory"), "{path:#}");
    until("the holder is on the node", || {
        let node = instance.kubectl(&["get", "pod", "holder", "-o", "jsonpath={.spec.nodeName}"]);
        (!node.is_empty()).then_some(())
    });
    instance.kubectl(&["delete", "pvc", "held", "--wait=false"]);
    let held = says(&instance, "pvc/held", "claim-in-use", 3);
    assert_eq!(held["fix"][0], "kubectl delete pod holder -n default");
}
