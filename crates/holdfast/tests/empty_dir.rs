//! Scratch space with limits: the kernel holds them, through restarts of containers and of the daemon, and nothing is left.
mod common;

use std::{fs, path::PathBuf};

use common::{Instance, text, told, until};

/// A pod with one container `c`, and flow text for its mounts, its volumes, and the rest of its spec.
fn pod(name: &str, command: &str, mounts: &str, volumes: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{spec}\n  \
         containers:\n  - {{name: c, image: \"hfbox:1\", command: [sh, -c, \"{command}\"], volumeMounts: [{mounts}]}}\n  \
         volumes: [{volumes}]\n---\n"
    )
}

fn apply(instance: &Instance, objects: &str) {
    let out = instance.kubectl_with(&["apply", "-f", "-"], objects);
    assert!(out.status.success(), "{}", text(&out.stderr));
}

fn ready(instance: &Instance, name: &str) {
    instance.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
}

/// Runs a command in a pod: what it said, and whether it succeeded.
fn sh(instance: &Instance, name: &str, command: &str) -> (String, bool) {
    let out = instance.kubectl_with(&["exec", name, "--", "sh", "-c", command], "");
    (text(&out.stdout) + &text(&out.stderr), out.status.success())
}

fn does(instance: &Instance, name: &str, command: &str) -> String {
    let (said, good) = sh(instance, name, command);
    assert!(good, "{command}: {said}");
    said
}

/// Loop devices with files of this instance.
fn devices(instance: &Instance) -> Vec<PathBuf> {
    let of = |device: &PathBuf| fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
    let all = fs::read_dir("/sys/block").expect("read /sys/block").flatten().map(|e| e.path());
    all.filter(|device| of(device).starts_with(&instance.data_dir())).collect()
}

#[test]
fn the_kernel_holds_limits_of_scratch_space() {
    let mut instance = Instance::start();
    let mounts = "{name: d, mountPath: /d}, {name: d, mountPath: /sub, subPath: a/b}, {name: s, mountPath: /s}";
    let volumes = "{name: d, emptyDir: {sizeLimit: 20Mi}}, {name: s, emptyDir: {sizeLimit: 1Mi}}";
    let user = "  securityContext: {runAsUser: 1000, fsGroup: 2000}";
    apply(&instance, &pod("scratch", "trap 'exit 3' TERM; sleep 999 & wait", mounts, volumes, user));
    // Too little for a filesystem: the node's look at the usage is what holds it.
    let tiny = "{name: t, emptyDir: {sizeLimit: 8Ki}}";
    apply(
        &instance,
        &pod(
            "tiny",
            "sleep 1; dd if=/dev/zero of=/t/x bs=1k count=60; sleep 999",
            "{name: t, mountPath: /t}",
            tiny,
            "",
        ),
    );
    ready(&instance, "scratch");
    assert_eq!(devices(&instance).len(), 3);

    let df = |path: &str| does(&instance, "scratch", &format!("df -k {path} | tail -1 | awk '{{print $2, $4}}'"));
    assert_eq!((df("/d").trim(), df("/s").trim()), ("20480 20468", "1024 1020"), "directories count");
    assert_eq!(does(&instance, "scratch", "ls -A /s; ls -dn /d | awk '{print $4}'").trim(), "2000");
    let (said, good) = sh(&instance, "scratch", "dd if=/dev/zero of=/sub/big bs=64k count=400");
    assert!(!good && said.contains("No space left on device"), "{said}");
    does(&instance, "scratch", "rm /d/a/b/big; dd if=/dev/zero of=/d/big bs=64k count=300; echo kept > /sub/f");

    assert_eq!(instance.end("KILL").and_then(|status| status.code()), None);
    instance.up();
    let (said, good) = sh(&instance, "scratch", "dd if=/dev/zero of=/d/more bs=64k count=40");
    assert!(!good && said.contains("No space left on device"), "{said}");
    sh(&instance, "scratch", "kill 1");
    until("the container is restarted", || {
        let restarts =
            instance.kubectl(&["get", "pod", "scratch", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"]);
        (restarts == "1").then_some(())
    });
    ready(&instance, "scratch");
    assert_eq!(does(&instance, "scratch", "cat /sub/f; df -k /d | tail -1 | awk '{print $2}'"), "kept\n20480\n");

    told(&instance, "tiny", "Usage of EmptyDir volume \"t\" exceeds the limit \"8Ki\". ");
    let why = instance.kubectl(&["get", "pod", "tiny", "-o", "jsonpath={.status.phase} {.status.reason}"]);
    assert_eq!(why, "Failed Evicted");
    instance.kubectl(&["delete", "pod", "scratch", "tiny"]);
    until("all is gone", || devices(&instance).is_empty().then_some(()));
    until("the pods' directories are gone", || {
        fs::read_dir(instance.dir.path().join("data/kubelet/pods"))
            .map_or(Some(()), |mut d| d.next().is_none().then_some(()))
    });
}
