//! Two daemons on one machine share nothing: what ends one leaves the other as it was.
mod common;

use std::{fs, path::Path, process::Command};

use common::{Instance, text, until};

/// Keeps a page that it wrote itself, in every kind of place that an instance has of its own.
const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: same}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: nginx:alpine
    volumeMounts: [{name: v, mountPath: /v}]
  volumes: [{name: v, emptyDir: {}}]
";

/// What an instance calls its own on this machine.
#[derive(Debug, PartialEq)]
struct Own {
    bridge: String,
    address: String,
}

impl Own {
    fn of(instance: &Instance) -> Self {
        let records = fs::read(instance.dir.path().join("data/network/network.json")).expect("network records");
        let records: serde_json::Value = serde_json::from_slice(&records).expect("JSON");
        let address = instance.kubectl(&["get", "pod", "same", "-o", "jsonpath={.status.podIP}"]);
        Self { bridge: records["bridge"].as_str().expect("bridge").to_owned(), address }
    }
    fn cgroups(&self) -> Vec<String> {
        let found = fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten().map(|e| e.path());
        let mut roots: Vec<_> = found.chain([Path::new("/sys/fs/cgroup").to_owned()]).collect();
        roots.retain(|root| root.join(format!("holdfast-{}", self.bridge)).is_dir());
        roots.into_iter().map(|r| r.display().to_string()).collect()
    }
    fn has_bridge(&self) -> bool {
        Path::new("/sys/class/net").join(&self.bridge).exists()
    }
}

fn run_pod(instance: &Instance) {
    let applied = instance.kubectl_with(&["apply", "-f", "-"], POD);
    assert!(applied.status.success(), "{}", text(&applied.stderr));
    instance.kubectl(&["wait", "--for=condition=Ready", "pod/same", "--timeout=60s"]);
}

/// The container's ID, which no other run of it has, and what it keeps in its volume.
fn identity(instance: &Instance) -> String {
    let id = instance.kubectl(&["get", "pod", "same", "-o", "jsonpath={.status.containerStatuses[0].containerID}"]);
    id + &instance.kubectl(&["exec", "same", "--", "cat", "/v/mine"])
}

#[test]
fn side_by_side() {
    let mut first = Instance::start();
    let mut second = Instance::start();
    for (instance, page) in [(&first, "first"), (&second, "second")] {
        run_pod(instance);
        instance.kubectl(&["exec", "same", "--", "sh", "-c", &format!("echo {page} >/v/mine")]);
        instance.kubectl(&["create", "configmap", page]);
    }
    let owns = [Own::of(&first), Own::of(&second)];
    assert_ne!(owns[0].bridge, owns[1].bridge);
    let subnet = |own: &Own| own.address.rsplit_once('.').expect("an IPv4 address").0.to_owned();
    assert_ne!(subnet(&owns[0]), subnet(&owns[1]));
    assert!(owns.iter().all(|own| !own.cgroups().is_empty()));
    let seen = second.kubectl(&["get", "configmaps", "-o", "name"]);
    assert!(seen.contains("/second") && !seen.contains("/first"), "{seen}");
    let before = identity(&second);
    assert!(before.ends_with("second\n"), "{before}");

    // One ends, with its containers left running: the other does not notice, nor does it clean up after it.
    first.end("KILL");
    assert_eq!(identity(&second), before);
    second.end("KILL");
    second.up();
    first.up();
    assert_eq!(identity(&second), before);
    assert!(identity(&first).ends_with("first\n"));

    // One ends for good.
    first.kubectl(&["delete", "pod", "same", "--grace-period=1"]);
    first.end("TERM");
    assert!(!owns[0].has_bridge() && owns[0].cgroups().is_empty(), "left behind: {:?}", owns[0]);
    assert_eq!(identity(&second), before);
    second.kubectl(&["delete", "pod", "same", "--grace-period=1"]);
    second.end("TERM");
    assert!(!owns[1].has_bridge() && owns[1].cgroups().is_empty(), "left behind: {:?}", owns[1]);
}

/// A copy of a data directory is another instance; a moved one stays the same, also when its old place is used again.
#[test]
fn copies_and_moved_directories() {
    let mut original = Instance::start();
    run_pod(&original);
    original.kubectl(&["exec", "same", "--", "sh", "-c", "echo original >/v/mine"]);
    let before = identity(&original);
    original.end("TERM");

    let copy = tempfile::Builder::new().prefix("holdfast-test-").tempdir().expect("temporary directory");
    // Namespaces that are mounted there cannot be copied, which cp complains about.
    let _ = Command::new("cp").args(["-a", &original.data_dir()]).arg(copy.path()).output().expect("run cp");
    let copy = Instance::within(copy, &[]);
    until("the copy runs its own container", || {
        let id = copy.kubectl(&["get", "pod", "same", "-o", "jsonpath={.status.containerStatuses[0].containerID}"]);
        let ready = copy.kubectl(&["get", "pod", "same", "-o", "jsonpath={.status.containerStatuses[0].ready}"]);
        (ready == "true" && !before.starts_with(&id)).then_some(())
    });
    drop(copy);
    original.up();
    assert_eq!(identity(&original), before);

    original.end("TERM");
    let mut moved = tempfile::Builder::new().prefix("holdfast-test-").tempdir().expect("temporary directory");
    fs::rename(original.data_dir(), moved.path().join("data")).expect("move the data directory");
    std::mem::swap(&mut original.dir, &mut moved);
    original.up();
    assert_eq!(identity(&original), before);
    let newcomer = Instance::within(moved, &[]);
    assert_eq!(identity(&original), before);
    original.kubectl(&["exec", "same", "--", "kill", "1"]);
    let jsonpath = "jsonpath={.status.containerStatuses[0].lastState.terminated.exitCode}";
    until("the exit code is known", || {
        (original.kubectl(&["get", "pod", "same", "-o", jsonpath]) == "0").then_some(())
    });
    drop(newcomer);
    assert_eq!(original.kubectl(&["exec", "same", "--", "cat", "/v/mine"]), "original\n");
}

/// Somebody kills the daemon and removes its data: the next start at that place ends what was left running.
#[test]
fn a_removed_data_directory() {
    let mut instance = Instance::start();
    run_pod(&instance);
    let own = Own::of(&instance);
    let uid = instance.kubectl(&["get", "pod", "same", "-o", "jsonpath={.metadata.uid}"]);
    let groups: Vec<_> = own.cgroups().iter().map(|r| format!("{r}/holdfast-{}/pod{uid}", own.bridge)).collect();
    assert!(groups.iter().all(|g| Path::new(g).is_dir()), "{groups:?}");
    instance.end("KILL");
    // Mount points of the pod stay; that is how the next start knows of it.
    let _ = Command::new("rm").args(["-rf", &instance.data_dir()]).output().expect("run rm");
    instance.up();
    assert_eq!(instance.kubectl(&["get", "pods", "-o", "name"]), "");
    until("the old pod's processes are gone", || groups.iter().all(|g| !Path::new(g).exists()).then_some(()));
    instance.end("TERM");
    assert!(!own.has_bridge() && own.cgroups().is_empty(), "left behind: {own:?}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(&instance.data_dir()), "mounts left behind");
}
