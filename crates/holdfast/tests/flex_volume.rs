//! `flexVolume` with drivers that are shell scripts, in real pods.
mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use common::{Instance, apply, keeps_secrets, mounted_below, ready, sh, text, told, until};

/// Directories and a log for drivers, which go with it.
struct Vendor {
    dir: tempfile::TempDir,
}

impl Vendor {
    fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("holdfast-flex-").tempdir().expect("a directory") }
    }

    fn plugins(&self) -> PathBuf {
        self.dir.path().join("plugins")
    }

    /// Puts a driver in place, as vendors are told to: complete, by one rename.
    fn install(&self, name: &str, script: &str) {
        let (vendor, driver) = name.split_once('/').expect("vendor/driver");
        let dir = self.plugins().join(format!("{vendor}~{driver}"));
        fs::create_dir_all(&dir).expect("made");
        let part = self.dir.path().join("part");
        let log = self.dir.path().join("log");
        let script = script.replace("STATE", &self.dir.path().to_string_lossy());
        let head = format!("#!/bin/sh\necho \"{driver} $*\" >> {}\nok='{{\"status\":\"Success\"}}'\n", log.display());
        fs::write(&part, head + &script).expect("written");
        fs::set_permissions(&part, fs::Permissions::from_mode(0o755)).expect("set");
        fs::rename(&part, dir.join(driver)).expect("in place");
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

/// A driver like that of LVM: attaching makes a volume, which is mounted once for all pods.
const DISKS: &str = r#"
case $1 in
init) echo '{"status":"Success","capabilities":{"attach":true,"fsGroup":true}}' ;;
getvolumename) echo '{"status":"Not supported"}'; exit 1 ;;
attach) touch STATE/attached; echo '{"status":"Success","device":"STATE/disk"}' ;;
waitforattach) [ -e STATE/attached ] && echo '{"status":"Success","device":"'"$2"'"}' ;;
isattached) [ -e STATE/attached ] && echo '{"status":"Success","attached":true}' || echo '{"status":"Success","attached":false}' ;;
mountdevice) mount -t tmpfs -o mode=0755 flexdisk "$2" && echo $ok ;;
unmountdevice) umount "$2" && echo $ok ;;
detach) rm -f STATE/attached; echo $ok ;;
expandvolume) echo "$4 $5" > STATE/size; echo $ok ;;
expandfs) echo $ok ;;
*) echo '{"status":"Not supported"}'; exit 1 ;;
esac
"#;

/// A driver that mounts for each pod, with a share and a Secret.
const SHARES: &str = r#"
case $1 in
init) echo '{"status":"Success","capabilities":{"attach":false}}' ;;
mount)
    case $3 in *'"share":"wrong"'*) echo '{"status":"Failure","message":"no share of that name"}'; exit 1 ;; esac
    case $3 in *'"share":"slow"'*) echo $$ > STATE/slow; sleep 300 ;; esac
    case $3 in *'"kubernetes.io/readwrite":"ro"'*) mode=ro ;; *) mode=rw ;; esac
    mkdir -p STATE/share && mount --bind STATE/share "$2" && mount -o remount,bind,$mode "$2" && echo $ok ;;
unmount) umount "$2"; echo $ok ;;
*) echo '{"status":"Not supported"}'; exit 1 ;;
esac
"#;

fn pod(name: &str, volume: &str, mount: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
         securityContext: {{fsGroup: 2345}}\n  containers:\n  - {{name: c, image: \"hfbox:1\", command: [sleep, \"999\"], \
         volumeMounts: [{{name: d, mountPath: /d{mount}}}]}}\n  volumes: [{{name: d, {volume}}}]\n---\n"
    )
}

fn claimed(name: &str, driver: &str) -> String {
    let spec = "accessModes: [ReadWriteMany], storageClassName: flex";
    format!(
        "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: flex}}\n\
         provisioner: kubernetes.io/no-provisioner\nallowVolumeExpansion: true\n---\n\
         apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}}}\n\
         spec: {{{spec}, capacity: {{storage: 1Gi}}, flexVolume: {{driver: {driver}, options: {{size: 1G}}}}}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\n\
         spec: {{{spec}, volumeName: {name}, resources: {{requests: {{storage: 1Gi}}}}}}\n---\n"
    )
}

fn start(vendor: &Vendor, more: &[&str]) -> Instance {
    let dir = vendor.plugins();
    let dir = dir.to_string_lossy();
    let mut args = vec!["--volume-plugin-dir", &dir];
    args.extend(more);
    Instance::start_with(&args)
}

#[test]
fn a_driver_that_attaches_serves_pods_through_a_kill_and_grows() {
    let vendor = Vendor::new();
    let mut instance = start(&vendor, &[]);
    let claim = "persistentVolumeClaim: {claimName: disk}";
    apply(&instance, &(claimed("disk", "example.com/disks") + &pod("a", claim, "")));
    told(&instance, "a", "no volume plugin matched: this node has no program");
    // Installed while the daemon runs.
    vendor.install("example.com/disks", DISKS);
    ready(&instance, "a");
    apply(&instance, &pod("b", claim, ", subPath: deep/er"));
    ready(&instance, "b");
    sh(&instance, "a", "echo hi > /d/deep/er/f");
    assert_eq!(sh(&instance, "b", "cat /d/f"), "hi\n");
    assert_eq!(sh(&instance, "a", "stat -c %g /d").trim(), "2345");
    assert_eq!(vendor.log().matches("disks attach ").count(), 1, "{}", vendor.log());

    instance.end("KILL");
    instance.up();
    ready(&instance, "a");
    assert_eq!(sh(&instance, "b", "cat /d/f"), "hi\n");
    let patch = r#"{"spec":{"capacity":{"storage":"2Gi"}}}"#;
    instance.kubectl(&["patch", "pv", "disk", "--type=merge", "-p", patch]);
    let patch = r#"{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}"#;
    instance.kubectl(&["patch", "pvc", "disk", "-p", patch]);
    until("the claim has grown", || {
        let has = instance.kubectl(&["get", "pvc", "disk", "-o", "jsonpath={.status.capacity.storage}"]);
        (has == "2Gi").then_some(())
    });
    let size = fs::read_to_string(vendor.dir.path().join("size")).expect("the driver was asked");
    assert_eq!(size.trim(), "2147483648 1073741824");

    instance.kubectl(&["delete", "pod", "a", "--timeout=30s"]);
    assert_eq!(sh(&instance, "b", "cat /d/f"), "hi\n");
    assert!(!vendor.log().contains("disks detach"));
    instance.kubectl(&["delete", "pod", "b", "--timeout=30s"]);
    assert!(vendor.log().trim_end().ends_with(&format!("disks detach disk {}", node(&instance))), "{}", vendor.log());
    assert!(!vendor.dir.path().join("attached").exists());
    assert_eq!(mounted_below(instance.dir.path()), [""; 0]);
}

fn node(instance: &Instance) -> String {
    instance.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])
}

#[test]
fn a_driver_that_mounts_for_each_pod_is_told_what_it_needs_and_ends_with_its_pod() {
    let vendor = Vendor::new();
    vendor.install("example.com/shares", SHARES);
    let mut instance = start(&vendor, &[]);
    let flex = |more: &str| format!("flexVolume: {{driver: example.com/shares, {more}}}");
    let objects = [
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ntype: example.com/shares\nstringData: {key: hush-canary-1}\n---\n"
            .into(),
        pod("plain", &flex("options: {share: one}"), ""),
        pod("reads", &flex("options: {share: one}, readOnly: true"), ""),
        pod("wrong", &flex("options: {share: wrong}"), ""),
        pod("slow", &flex("options: {share: slow}"), ""),
        pod("secret", &flex("options: {share: one}, secretRef: {name: s}"), ""),
        pod("unnamed", "flexVolume: {driver: ../../../bin/sh}", ""),
    ];
    apply(&instance, &objects.concat());
    ready(&instance, "plain");
    ready(&instance, "reads");
    sh(&instance, "plain", "echo hi > /d/f");
    assert_eq!(sh(&instance, "reads", "cat /d/f"), "hi\n");
    assert!(sh(&instance, "reads", "echo no > /d/f").contains("Read-only"));
    told(&instance, "wrong", "mount command failed, status: Failure, reason: no share of that name");
    told(&instance, "unnamed", "is not a name that a driver can have");
    told(&instance, "secret", "--flex-volume-secrets");
    assert!(!vendor.log().contains("kubernetes.io/secret"), "{}", vendor.log());
    let slow = vendor.dir.path().join("slow");
    let pid = until("the slow driver runs", || fs::read_to_string(&slow).ok().filter(|pid| pid.ends_with('\n')));
    instance.kubectl(&["delete", "pod", "slow", "wrong", "unnamed", "--timeout=15s"]);
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "the driver outlived its pod");

    let plugins = vendor.plugins();
    instance.restart_with(&[
        "--volume-plugin-dir",
        &plugins.to_string_lossy(),
        "--flex-volume-secrets",
        "--log",
        "debug",
    ]);
    ready(&instance, "secret");
    let log = vendor.log();
    assert!(log.contains(r#""kubernetes.io/secret/key":"aHVzaC1jYW5hcnktMQ==""#), "{log}");
    assert!(
        log.contains(r#""kubernetes.io/pod.name":"secret""#)
            && log.contains(r#""kubernetes.io/mounterArgs.FsGroup":"2345""#)
    );
    keeps_secrets(&instance, &["hush-canary-1", "aHVzaC1jYW5hcnktMQ"], &[]);
    instance.kubectl(&["delete", "pods", "--all", "--timeout=30s"]);
    assert_eq!(mounted_below(instance.dir.path()), [""; 0]);
    let left = Command::new("find").arg(vendor.dir.path().join("share")).output().expect("find");
    assert!(text(&left.stdout).contains("share/f"), "what the volume holds stays: {}", text(&left.stdout));
}
