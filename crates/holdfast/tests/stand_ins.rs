//! Manifests of clouds on this machine: `up --stand-in`, `disk`, and in-tree names all the way to a mounted file.
mod common;

use common::{Instance, ready, text, told, until};

fn apply(instance: &Instance, manifest: &str) {
    let applied = instance.kubectl_with(&["apply", "-f", "-"], manifest);
    assert!(applied.status.success(), "{}", text(&applied.stderr));
}

fn pod(name: &str, volume: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers: \
         [{{name: c, image: 'hfbox:1', command: [sh, -c, 'echo kept >> /data/file; trap exit TERM; sleep 1000 & wait'], volumeMounts: \
         [{{name: d, mountPath: /data}}]}}]\n  volumes: [{{name: d, {volume}}}]\n"
    )
}

fn disks(instance: &Instance) -> String {
    text(&instance.ours(&["disk", "list", "--data-dir", &instance.data_dir()]).stdout)
}

fn refused(instance: &Instance, args: &[&str], words: &str) {
    let out = instance.ours(args);
    assert!(!out.status.success() && text(&out.stderr).contains(words), "{args:?}: {}", text(&out.stderr));
}

#[test]
fn manifests_of_clouds_run_here() {
    let dir = tempfile::Builder::new().prefix("holdfast-test-").tempdir().expect("a directory");
    let data = dir.path().join("data").to_string_lossy().into_owned();
    let before = |args: &[&str]| {
        let program = env!("CARGO_BIN_EXE_holdfast");
        let out = std::process::Command::new(program).args(args).args(["--data-dir", &data]).output().expect("run");
        assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
        text(&out.stdout)
    };
    // With the daemon stopped, and below with it running.
    let made = before(&["disk", "create", "data-1", "--stand-in", "gce-pd", "--size", "11Gi"]);
    assert_eq!(made.trim(), "projects/holdfast/zones/europe-west1-b/disks/data-1");
    before(&["disk", "create", "vol-0abc", "--stand-in", "aws-ebs", "--zone", "us-east-1c"]);
    before(&["image", "import", &common::images().join("hfbox.tar").to_string_lossy()]);
    let mut instance = Instance::within(dir, &["--stand-in", "gce-pd,aws-ebs"]);
    let all = disks(&instance);
    assert!(all.contains("data-1") && all.contains("11Gi") && all.contains("us-east-1c"), "{all}");

    a_class_by_its_in_tree_name(&instance);
    disks_that_are_there(&instance);
    let described = instance.kubectl(&["describe", "csidriver", "pd.csi.storage.gke.io"]);
    assert!(described.contains("holdfast.dev/stand-in=gce-pd") && described.contains("stands in"), "{described}");
    instance.kubectl(&["delete", "pods", "--all", "--grace-period=1"]);
    without_the_stand_in(&mut instance);
}

/// Lab 3: the claim binds, a pod uses it, data persists, and deleting the claim deletes the disk.
fn a_class_by_its_in_tree_name(instance: &Instance) {
    let lab = common::root().join("examples/labs/3-dynamic.yaml");
    instance.kubectl(&["apply", "-f", &lab.to_string_lossy()]);
    let claim = "persistentVolumeClaim: {claimName: mongodb-pvc}";
    for name in ["first", "second"] {
        apply(instance, &pod(name, claim));
        ready(instance, name);
        if name == "first" {
            instance.kubectl(&["delete", "pod", name, "--grace-period=1"]);
        }
    }
    let kept = until("what both pods wrote", || {
        let file = instance.kubectl(&["exec", "second", "--", "cat", "/data/file"]);
        (file.lines().count() == 2).then_some(file)
    });
    assert_eq!(kept, "kept\nkept\n");
    let volume = instance.kubectl(&["get", "pv", "-o", "json"]);
    for words in
        ["\"pdName\": \"pvc-", "\"storage\": \"10Gi\"", "\"holdfast.dev/stand-in\": \"gce-pd\"", "europe-west1"]
    {
        assert!(volume.contains(words), "no {words} in {volume}");
    }
    assert!(disks(instance).contains("disks/pvc-"));
    instance.kubectl(&["delete", "pod", "second", "--grace-period=1"]);
    instance.kubectl(&["delete", "pvc", "mongodb-pvc"]);
    until("the disk is gone", || (!disks(instance).contains("disks/pvc-")).then_some(()));
}

/// Disks made by hand, named by a pod and by a volume, and one in another zone.
fn disks_that_are_there(instance: &Instance) {
    apply(instance, &pod("own", "gcePersistentDisk: {pdName: data-1, fsType: ext4}"));
    ready(instance, "own");
    let size = instance.kubectl(&["exec", "own", "--", "df", "-h", "/data"]);
    assert!(size.contains("10."), "a filesystem on 11Gi: {size}");
    let data = instance.data_dir();
    refused(instance, &["disk", "rm", "data-1", "--data-dir", &data], "in use");
    refused(instance, &["disk", "rm", "nothing", "--data-dir", &data], "disk list");
    refused(instance, &["disk", "create", "d", "--stand-in", "floppy"], "azure-disk");
    refused(instance, &["disk", "create", "No_Name", "--stand-in", "gce-pd", "--data-dir", &data], "disks/NAME");
    let out = instance.ours(&["disk", "rm", "vol-0abc", "--data-dir", &data]);
    assert!(out.status.success(), "{}", text(&out.stderr));

    apply(instance, &pod("none", "awsElasticBlockStore: {volumeID: vol-0none}"));
    told(instance, "none", "holdfast disk create --stand-in aws-ebs");
    let away = "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: away}\nprovisioner: \
                kubernetes.io/gce-pd\nparameters: {zone: us-east1-b}\n---\napiVersion: v1\nkind: \
                PersistentVolumeClaim\nmetadata: {name: away}\nspec: {storageClassName: away, accessModes: \
                [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n";
    apply(instance, away);
    told(instance, "away", "--stand-in gce-pd=us-east1-b");
    instance.kubectl(&["delete", "pvc", "away"]);
}

/// A claim waits then, and says for whom.
fn without_the_stand_in(instance: &mut Instance) {
    instance.restart_with(&["--stand-in", "aws-ebs"]);
    let lab = common::root().join("examples/labs/3-dynamic.yaml");
    instance.kubectl(&["apply", "-f", &lab.to_string_lossy()]);
    told(instance, "mongodb-pvc", "`holdfast up --stand-in gce-pd` stands in for it.");
    let drivers = instance.kubectl(&["get", "csidrivers", "-o", "name"]);
    assert!(drivers.contains("ebs.csi.aws.com") && !drivers.contains("gke"), "{drivers}");
}
