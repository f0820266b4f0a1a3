//! `flocker` volumes in real pods, from a control service that is served as Flocker's is.
mod common;

use std::{fs, path::PathBuf, process::Command, sync::Arc};

use common::{Instance, apply, keeps_secrets, mounted_below, ready, sh, told, until};
use testkit::flocker::{FakeFlocker, FlockerService};

/// A directory in which Flocker's agent mounts datasets.
fn mounter(above: PathBuf) -> Box<testkit::flocker::Mounter> {
    Box::new(move |id, there| {
        let path = above.join(id);
        fs::create_dir_all(&path).expect("made");
        let mut command = match there {
            true => Command::new("mount"),
            false => Command::new("umount"),
        };
        if there {
            command.args(["-t", "tmpfs", "-o", "mode=0755", "dataset"]);
        }
        assert!(command.arg(&path).status().expect("mount").success());
        path
    })
}

fn pod(name: &str, volume: &str, mount: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
         securityContext: {{fsGroup: 2345}}\n  containers:\n  - {{name: c, image: \"hfbox:1\", command: [sleep, \"999\"], \
         volumeMounts: [{{name: d, mountPath: /d{mount}}}]}}\n  volumes: [{{name: d, {volume}}}]\n---\n"
    )
}

fn claimed(name: &str, id: &str) -> String {
    let spec = "accessModes: [ReadWriteOnce], storageClassName: \"\"";
    format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}}}\n\
         spec: {{{spec}, capacity: {{storage: 1Gi}}, persistentVolumeReclaimPolicy: Delete, flocker: {{datasetUUID: {id}}}}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\n\
         spec: {{{spec}, volumeName: {name}, resources: {{requests: {{storage: 1Gi}}}}}}\n---\n"
    )
}

/// The address that a node of this machine has.
fn address() -> String {
    let instance = Instance::empty(&[]);
    instance.kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=60s"]);
    instance.kubectl(&[
        "get",
        "nodes",
        "-o",
        "jsonpath={.items[0].status.addresses[?(@.type==\"InternalIP\")].address}",
    ])
}

#[test]
fn datasets_come_to_the_node_and_stay_when_pods_go() {
    let dir = tempfile::Builder::new().prefix("holdfast-flocker-").tempdir().expect("a directory");
    let fake = FakeFlocker::new(&address(), mounter(dir.path().join("flocker")));
    let id = fake.add("db");
    let moving = fake.add("moving");
    let mut service = FlockerService::start(fake.clone(), dir.path());
    let settings = service.settings.clone();
    let port = settings.port.to_string();
    let [ca, key, certificate] =
        [&settings.ca_file, &settings.key_file, &settings.certificate_file].map(|f| f.to_string_lossy().into_owned());
    let args =
        ["--flocker-host", "127.0.0.1", "--flocker-port", &port, "--flocker-ca-file", &ca, "--flocker-key-file", &key];
    service.down();
    let mut instance =
        Instance::start_with(&[&args[..], &["--flocker-cert-file", &certificate, "--log", "debug"]].concat());

    let claim = "persistentVolumeClaim: {claimName: db";
    apply(&instance, &(claimed("db", &id) + &pod("a", &format!("{claim}}}"), "")));
    told(&instance, "a", "Connection refused");
    service.up();
    ready(&instance, "a");
    sh(&instance, "a", "mkdir /d/deep; echo hi > /d/deep/f");
    assert_eq!(sh(&instance, "a", "stat -c %g /d").trim(), "2345");
    let objects = [
        pod("reads", &format!("{claim}, readOnly: true}}"), ", subPath: deep"),
        pod("by-name", "flocker: {datasetName: db}", ""),
        pod("missing", "flocker: {datasetName: none}", ""),
    ];
    apply(&instance, &objects.concat());
    ready(&instance, "reads");
    ready(&instance, "by-name");
    assert_eq!(sh(&instance, "reads", "cat /d/f"), "hi\n");
    let pem = fs::read_to_string(&key).expect("the key");
    keeps_secrets(&instance, &[pem.lines().nth(1).expect("a line of the key itself")], &[]);
    assert!(sh(&instance, "reads", "echo no > /d/f").contains("Read-only"));
    assert_eq!(sh(&instance, "by-name", "cat /d/deep/f"), "hi\n");
    told(&instance, "missing", "datasetName='none' can not be found using flocker: there is no such dataset");

    // Nothing moves: its pod can go.
    fake.stick(true);
    apply(&instance, &pod("waits", &format!("flocker: {{datasetUUID: {moving}}}"), ""));
    until("it was asked for", || {
        fake.asked().contains(&format!("POST /v1/configuration/datasets/{moving}")).then_some(())
    });
    instance.kubectl(&["delete", "pod", "waits", "missing", "--timeout=15s"]);
    fake.stick(false);

    instance.end("KILL");
    service.down();
    instance.up();
    ready(&instance, "a");
    assert_eq!(sh(&instance, "by-name", "cat /d/deep/f"), "hi\n");
    instance.kubectl(&["delete", "pods", "--all", "--timeout=30s"]);
    assert_eq!(mounted_below(instance.dir.path()), [""; 0]);
    let kept = fs::read_to_string(dir.path().join("flocker").join(&id).join("deep/f"));
    assert_eq!(kept.expect("it is still mounted"), "hi\n");
    // The claim's volume says that its data goes with it.
    service.up();
    instance.kubectl(&["delete", "pvc", "db", "--timeout=30s"]);
    until("the volume is gone", || instance.kubectl(&["get", "pv", "-o", "name"]).is_empty().then_some(()));
    assert!(fake.asked().contains(&format!("DELETE /v1/configuration/datasets/{id}")));
    drop(service);
    // A connection may be on its last words.
    until("the service has ended", || (Arc::strong_count(&fake) == 1).then_some(()));
}
