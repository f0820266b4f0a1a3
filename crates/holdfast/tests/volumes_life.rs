//! What becomes of volumes after they are bound: they grow, one node at a time has them, and somebody reclaims them.
mod common;

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use common::{Instance, apply, ready, root, text, told, until};

/// A volume and a claim that gets it, both named `name`.
fn claim(name: &str, size: &str, volume: &str) -> String {
    let spec = format!("accessModes: [ReadWriteOnce], storageClassName: {name}");
    format!(
        "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {name}}}\n\
         provisioner: kubernetes.io/no-provisioner\nallowVolumeExpansion: true\n---\n\
         apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}}}\n\
         spec: {{{spec}, capacity: {{storage: {size}}}, {volume}}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\n\
         spec: {{{spec}, resources: {{requests: {{storage: {size}}}}}}}\n---\n"
    )
}

fn pod(name: &str, claim: &str, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
         nodeName: {node}\n  containers:\n  - {{name: c, image: \"hfbox:1\", command: [sleep, \"999\"], \
         volumeMounts: [{{name: d, mountPath: /d}}]}}\n  volumes: [{{name: d, persistentVolumeClaim: {{claimName: {claim}}}}}]\n---\n"
    )
}

fn field(instance: &Instance, object: &str, path: &str) -> String {
    instance.kubectl(&["get", object, "-o", &format!("jsonpath={{{path}}}")])
}

fn ask(instance: &Instance, claim: &str, size: &str) -> Result<(), String> {
    let patch = format!(r#"{{"spec":{{"resources":{{"requests":{{"storage":"{size}"}}}}}}}}"#);
    let out = instance.kubectl_with(&["patch", "pvc", claim, "-p", &patch], "");
    if out.status.success() { Ok(()) } else { Err(text(&out.stderr)) }
}

/// A loop device with an XFS of 32 MiB.
struct Disk {
    file: PathBuf,
    device: String,
}

fn run(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().expect("run a program of the host");
    assert!(out.status.success(), "{command:?}: {}", text(&out.stderr));
    text(&out.stdout).trim().to_owned()
}

impl Disk {
    fn new(file: PathBuf) -> Self {
        let image = root().join("crates/volumes/tests/data/xfs-32m.img.gz");
        let out = Command::new("gzip").arg("-dc").arg(image).output().expect("run gzip");
        std::fs::write(&file, out.stdout).expect("write a disk");
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&file));
        Self { file, device }
    }

    fn resize(&self, mib: u64) {
        let file = std::fs::OpenOptions::new().write(true).open(&self.file).expect("open a disk");
        file.set_len(mib << 20).expect("resize a disk");
        run(Command::new("losetup").args(["--set-capacity", &self.device]));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

fn claims_grow_in_use_and_before_they_are_mounted(instance: &Instance, node: &str) {
    let disk = Disk::new(instance.dir.path().join("disk"));
    let affinity = format!(
        "nodeAffinity: {{required: {{nodeSelectorTerms: [{{matchFields: [{{key: metadata.name, operator: In, values: [{node}]}}]}}]}}}}"
    );
    apply(instance, &claim("grown", "32Mi", &format!("local: {{path: {}}}, {affinity}", disk.device)));
    apply(instance, &pod("grower", "grown", node));
    ready(instance, "grower");
    let volume_says = |size: &str| {
        let patch = format!(r#"{{"spec":{{"capacity":{{"storage":"{size}"}}}}}}"#);
        instance.kubectl(&["patch", "pv", "grown", "-p", &patch]);
    };
    let state = || field(instance, "pvc/grown", ".status.allocatedResourceStatuses.storage");
    let has =
        |size: &str| until(size, || (field(instance, "pvc/grown", ".status.capacity.storage") == size).then_some(()));
    let room = || {
        let df = instance.kubectl(&["exec", "grower", "--", "df", "-m", "/d"]);
        let line = df.lines().last().expect("a line").to_owned();
        line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).expect("a size")
    };

    ask(instance, "grown", "64Mi").expect("the class allows it");
    told(instance, "grown", "waiting for an external controller to expand this PVC");
    let why = text(&instance.ours(&["why", "pvc/grown", "--kubeconfig", &instance.kubeconfig()]).stdout);
    assert!(why.contains("asks for 64Mi") && why.contains("kubectl patch pv grown"), "{why}");
    // The object promises more than the device has.
    volume_says("64Mi");
    told(instance, "grower", "the device has 33554432 bytes, which is less than the 67108864 that are asked for");
    until("a condition", || instance.kubectl(&["describe", "pvc", "grown"]).contains("NodeResizeError").then_some(()));
    assert_eq!(state(), "NodeResizeInProgress");
    let refused = ask(instance, "grown", "32Mi").expect_err("what a claim has is not taken away");
    assert!(refused.contains("spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"));
    // Less is enough.
    disk.resize(48);
    ask(instance, "grown", "48Mi").expect("more than it has");
    has("48Mi");
    assert!((40..48).contains(&room()), "{}", room());
    assert_eq!(field(instance, "pvc/grown", ".status.allocatedResources.storage"), "48Mi");
    assert_eq!(field(instance, "pvc/grown", ".status.conditions") + &state(), "");
    told(instance, "grown", &format!("MountVolume.NodeExpandVolume succeeded for volume \"grown\" {node}"));

    instance.kubectl(&["delete", "pod", "grower"]);
    disk.resize(64);
    ask(instance, "grown", "64Mi").expect("more than it has");
    until("the next pod is waited for", || (state() == "NodeResizePending").then_some(()));
    apply(instance, &pod("grower", "grown", node));
    ready(instance, "grower");
    has("64Mi");
    assert!(room() > 56, "{}", room());
    instance.kubectl(&["delete", "pod", "grower"]);
}

fn one_node_at_a_time_has_a_volume(instance: &Instance, node: &str) {
    let dir = instance.dir.path().join("shared");
    apply(instance, &claim("roams", "1Mi", &format!("hostPath: {{path: {dir:?}}}")));
    // A machine that nobody runs.
    apply(instance, "apiVersion: v1\nkind: Node\nmetadata: {name: other}\nspec: {unschedulable: true}\n");
    let run_there = || {
        apply(instance, &pod("there", "roams", "other"));
        let runs = r#"{"status":{"phase":"Running"}}"#;
        instance.kubectl(&["patch", "pod", "there", "--subresource=status", "-p", runs]);
    };
    run_there();
    apply(instance, &pod("here", "roams", node));
    told(instance, "here", "Multi-Attach error for volume \"roams\" Volume is already used by pod(s) there");
    assert_eq!(field(instance, "pod/here", ".status.phase"), "Pending");
    instance.kubectl(&["delete", "pod", "there", "--force"]);
    ready(instance, "here");
    assert_eq!(field(instance, "pv/roams", r".metadata.annotations.holdfast\.dev/held-by"), node);
    instance.kubectl(&["delete", "pod", "here"]);
    let let_go = r".metadata.annotations.holdfast\.dev/last-held-by";
    until("the volume is let go", || (field(instance, "pv/roams", let_go) == node).then_some(()));

    // Who deletes a node says that its machine is off.
    run_there();
    apply(instance, &pod("here", "roams", node));
    told(instance, "here", "Volume is already used by pod(s) there");
    instance.kubectl(&["delete", "node", "other"]);
    ready(instance, "here");
    instance.kubectl(&["delete", "pod", "here", "there", "--force"]);
}

/// The object of what an in-tree plugin made outlives it, and is deleted with it, whatever is deleted first.
fn in_tree_volumes_end_with_their_data(instance: &Instance) {
    let dir = tempfile::Builder::new().prefix("hf-in-tree-").tempdir_in("/tmp").expect("a directory");
    let path = dir.path().join("v");
    std::fs::create_dir(&path).expect("a directory");
    std::fs::write(path.join("f"), "data").expect("a file");
    let source = format!("persistentVolumeReclaimPolicy: Retain, hostPath: {{path: {path:?}}}");
    apply(instance, &claim("made", "1Mi", &source));
    instance.kubectl(&["wait", "--for=jsonpath={.status.phase}=Bound", "pvc/made", "--timeout=60s"]);
    instance.kubectl(&["annotate", "pv", "made", "pv.kubernetes.io/provisioned-by=kubernetes.io/host-path"]);
    // The policy counts that the volume has when the claim goes.
    instance.kubectl(&["patch", "pv", "made", "-p", r#"{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}"#]);
    until("the finalizer", || {
        field(instance, "pv/made", ".metadata.finalizers").contains("kubernetes.io/pv-controller").then_some(())
    });
    instance.kubectl(&["delete", "pv", "made", "--wait=false"]);
    assert!(path.join("f").exists());
    instance.kubectl(&["delete", "pvc", "made"]);
    instance.kubectl(&["wait", "--for=delete", "pv/made", "--timeout=60s"]);
    assert!(!path.exists());
}

#[test]
fn volumes_of_pods() {
    let instance = Instance::start();
    let node = instance.kubectl(&["get", "node", "-o", "jsonpath={.items[0].metadata.name}"]);
    let (shared, node) = (&instance, node.as_str());
    std::thread::scope(|scope| {
        scope.spawn(move || claims_grow_in_use_and_before_they_are_mounted(shared, node));
        scope.spawn(move || one_node_at_a_time_has_a_volume(shared, node));
        scope.spawn(move || in_tree_volumes_end_with_their_data(shared));
    });
}

#[test]
fn without_a_node_released_volumes_say_what_they_wait_for() {
    let instance = Instance::empty(&["--no-node"]);
    apply(&instance, &claim("left", "1Mi", "persistentVolumeReclaimPolicy: Recycle, hostPath: {path: /tmp/left}"));
    instance.kubectl(&["wait", "--for=jsonpath={.status.phase}=Bound", "pvc/left", "--timeout=60s"]);
    instance.kubectl(&["delete", "pvc", "left"]);
    let why = "the volume stays Released until a node that reaches it empties it, and there is no such node";
    told(&instance, "left", why);
    assert_eq!(field(&instance, "pv/left", ".status['phase','message']"), format!("Released {why}"));
    let out = instance.ours(&["why", "pv/left", "--kubeconfig", &instance.kubeconfig()]);
    assert!(text(&out.stdout).contains(why), "{}", text(&out.stdout));
}
