//! Scratch space with limits: the kernel holds them, through restarts of containers and of the daemon, and nothing is left.
mod common;

use std::{fs, path::PathBuf};

use common::{Instance, apply, ready, text, told, until};

/// A pod with one container `c`, and flow text for its mounts, its volumes, and the rest of its spec.
fn pod(name: &str, command: &str, mounts: &str, volumes: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{spec}\n  \
         containers:\n  - {{name: c, image: \"hfbox:1\", command: [sh, -c, \"{command}\"], volumeMounts: [{mounts}]}}\n  \
         volumes: [{volumes}]\n---\n"
    )
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

/// Pods that fill the node's disk by files that it gave them, and what a container may write beside its volumes.
fn cve_2020_8557_files_of_a_pod_count(instance: &Instance) {
    let limited = |name: &str, file: &str| {
        let fill = format!("sleep 1; dd if=/dev/zero of={file} bs=1M count=6; sleep 999");
        let limits = "resources: {limits: {ephemeral-storage: 3Mi}}, volumeMounts";
        pod(name, &fill, "", "", "").replace("volumeMounts", limits)
    };
    let files = [
        ("hosts", "/etc/hosts"),
        ("resolv", "/etc/resolv.conf"),
        ("message", "/dev/termination-log"),
        ("root", "/big"),
    ];
    apply(instance, &files.map(|(name, file)| limited(name, file)).concat());
    for (name, _) in files {
        told(instance, name, "Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. ");
        until("the pod is thrown out", || {
            let why = instance.kubectl(&["get", "pod", name, "-o", "jsonpath={.status.phase} {.status.reason}"]);
            (why == "Failed Evicted").then_some(())
        });
    }
    instance.kubectl(&["delete", "pod", "hosts", "resolv", "message", "root"]);
}

/// What the node says of the volumes of a pod, once it does.
fn figures(instance: &Instance, pod: &str) -> serde_json::Value {
    until("the node's figures", || {
        let node = instance.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
        let summary = instance.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/stats/summary")]);
        let summary: serde_json::Value = serde_json::from_str(&summary).expect("JSON");
        let pods = summary["pods"].as_array().expect("pods");
        let one = pods.iter().find(|p| p["podRef"]["name"] == pod)?;
        (one["volume"].is_array() && one["ephemeral-storage"].is_object()).then(|| one.clone())
    })
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

    let seen = figures(&instance, "scratch");
    let of = |name: &str| seen["volume"].as_array().expect("volumes").iter().find(|v| v["name"] == name).cloned();
    let d = of("d").expect("figures of d");
    assert_eq!(d["capacityBytes"], 20 << 20, "{d}");
    assert!(seen["ephemeral-storage"]["usedBytes"].as_u64() > Some(4096), "{seen}");
    assert!(seen["containers"][0]["rootfs"]["usedBytes"].is_u64(), "{seen}");

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
    cve_2020_8557_files_of_a_pod_count(&instance);
    instance.kubectl(&["delete", "pod", "scratch", "tiny"]);
    until("all is gone", || devices(&instance).is_empty().then_some(()));
    until("the pods' directories are gone", || {
        fs::read_dir(instance.dir.path().join("data/kubelet/pods"))
            .map_or(Some(()), |mut d| d.next().is_none().then_some(()))
    });
}
