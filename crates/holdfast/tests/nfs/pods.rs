//! The same from a pod's side: manifests in, files and events out.
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::Path,
    process::Command,
    time::Instant,
};

use rustix::{
    fs::statvfs,
    process::{Pid, Signal, kill_process},
};

use crate::{
    common::{Instance, text, told, until},
    server::{Server, attendants, mounts},
};

fn apply(instance: &Instance, objects: &str) {
    let out = instance.kubectl_with(&["apply", "-f", "-"], objects);
    assert!(out.status.success(), "{}", text(&out.stderr));
}

/// A pod with one volume at `/d`. `mount` is more of its volume mount, `spec` more of the pod.
fn pod(name: &str, volume: &str, (mount, spec): (&str, &str), script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{spec}  \
         containers:\n  - {{name: c, image: \"hfbox:1\", command: [sh, -c, '{script}'], \
         volumeMounts: [{{name: d, mountPath: /d{mount}}}]}}\n  volumes: [{{name: d, {volume}}}]\n---\n"
    )
}

fn nfs(server: &Server, more: &str) -> String {
    format!("nfs: {{server: {}, path: {}{more}}}", server.addr, server.path())
}

/// A volume and a claim that gets it, both named `name`.
fn claimed(name: &str, server: &Server, more: &str) -> String {
    let spec = format!("accessModes: [ReadWriteMany], storageClassName: {name}");
    format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}}}\n\
         spec: {{{spec}, capacity: {{storage: 1Gi}}, {}{more}}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\n\
         spec: {{{spec}, resources: {{requests: {{storage: 1Gi}}}}}}\n---\n",
        nfs(server, "")
    )
}

fn ready(instance: &Instance, names: &[&str]) {
    for name in names {
        instance.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
    }
}

fn in_pod(instance: &Instance, name: &str, script: &str) -> Result<String, String> {
    let out = instance.kubectl_with(&["exec", name, "--", "sh", "-c", script], "");
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

fn is_clean(instance: &Instance) {
    let pods = instance.dir.path().join("data");
    until("nothing is mounted any more", || {
        let left = mounts(&pods).into_iter().filter(|m| m.contains("kubernetes.io~nfs")).count();
        (left == 0).then_some(())
    });
    until("no attendant is left", || attendants(&pods).is_empty().then_some(()));
}

const SLEEP: &str = "sleep 999";

#[test]
fn pods_share_an_export_and_outlive_the_daemon_and_the_server() {
    let mut server = Server::up();
    let mut instance = Instance::start();
    let group = "  securityContext: {fsGroup: 4711}\n";
    let write = "i=0; while true; do i=$((i+1)); echo $i >> /d/log; sleep 0.05; done";
    let mut objects = claimed("many", &server, ", mountOptions: [nolock, noexec, \"actimeo=0\"]");
    objects += &pod("writer", &nfs(&server, ""), ("", group), write);
    objects += &pod("reader", &nfs(&server, ", readOnly: true"), ("", ""), SLEEP);
    let claim = "persistentVolumeClaim: {claimName: many}";
    objects += &pod("claimer", claim, ("", ""), SLEEP);
    objects += &pod("inner", claim, (", subPath: deep/er", ""), SLEEP);
    apply(&instance, &objects);
    ready(&instance, &["writer", "reader", "claimer", "inner"]);
    until("one reads what another writes", || in_pod(&instance, "reader", "grep 3 /d/log").ok());
    let refused = in_pod(&instance, "reader", "echo x > /d/x").expect_err("it is read-only");
    assert!(refused.contains("Read-only file system"), "{refused}");
    in_pod(&instance, "claimer", "echo shared > /d/deep/er/f").expect("the subPath is made on the server");
    assert_eq!(in_pod(&instance, "inner", "cat /d/f"), Ok("shared\n".into()));
    // As upstream, the pod's group is not given to what is the server's.
    assert_ne!(fs::metadata(server.export()).expect("stat").gid(), 4711);
    // Mount options are the mount's.
    in_pod(&instance, "claimer", "printf \"#!/bin/sh\\n\" > /d/run; chmod 755 /d/run").expect("write a script");
    let refused = in_pod(&instance, "claimer", "/d/run").expect_err("it is mounted noexec");
    assert!(refused.to_lowercase().contains("permission denied"), "{refused}");
    // Without the daemon, pods go on; with it again, it finds them.
    let lines = || fs::read_to_string(server.export().join("log")).expect("read on the server").lines().count();
    let before = lines();
    instance.end("KILL");
    until("it goes on writing without the daemon", || (lines() > before + 3).then_some(()));
    instance.up();
    in_pod(&instance, "writer", "echo from-outside >> /d/other").expect("the volume works");
    // The server dies while it is written to.
    server.kill();
    server.start();
    let before = fs::read_to_string(server.export().join("log")).expect("read on the server").lines().count();
    until("it goes on writing", || {
        let log = fs::read_to_string(server.export().join("log")).expect("read on the server");
        (log.lines().count() > before + 3).then_some(())
    });
    let log = fs::read_to_string(server.export().join("log")).expect("read on the server");
    let numbers: Vec<usize> = log.lines().map(|l| l.parse().expect("a number")).collect();
    assert_eq!(numbers, Vec::from_iter(1..=numbers.len()), "a line is lost, or there twice");
    figures_are_told(&instance, &server);
    // Attendants that are killed are found out, also by a daemon that starts later; containers that run go on.
    let data = instance.dir.path().join("data");
    let kill = || {
        let all = attendants(&data);
        for pid in &all {
            kill_process(Pid::from_raw(pid.cast_signed()).expect("a process"), Signal::KILL).expect("kill it");
        }
        all
    };
    assert_eq!(kill().len(), 4);
    told(&instance, "writer", "The process that served volume \"d\" had ended.");
    goes_on(&instance, &server);
    instance.end("KILL");
    kill();
    instance.up();
    goes_on(&instance, &server);
    let restarts = "jsonpath={.items[*].status.containerStatuses[0].restartCount}";
    assert_eq!(instance.kubectl(&["get", "pods", "-o", restarts]), "0 0 0 0");
    kill();
    instance.kubectl(&["delete", "pod", "--all", "--timeout=30s"]);
    is_clean(&instance);
    let kept = fs::read_to_string(server.export().join("deep/er/f")).expect("it is the server's");
    assert!(kept.starts_with("mark "), "{kept}");
}

/// All four see the volume as they did before.
fn goes_on(instance: &Instance, server: &Server) {
    let lines = || fs::read_to_string(server.export().join("log")).expect("read on the server").lines().count();
    let before = lines();
    until("it is written to again", || (lines() > before + 3).then_some(()));
    let mark = format!("mark {before}");
    until("a part of it is seen again", || in_pod(instance, "inner", &format!("echo {mark} > /d/f")).ok());
    until("all of it is seen again", || {
        (in_pod(instance, "claimer", "cat /d/deep/er/f") == Ok(format!("{mark}\n"))).then_some(())
    });
    let read = || in_pod(instance, "reader", "cat /d/deep/er/f; ! echo x > /d/x");
    until("it is read again, and only that", || (read() == Ok(format!("{mark}\n"))).then_some(()));
    assert!(in_pod(instance, "inner", "ls /d").is_ok_and(|names| names == "f\n"), "a part of it");
    // What came in the place of what was lost is all that there is.
    let seen = in_pod(instance, "inner", "grep -c \" /d \" /proc/mounts");
    assert_eq!(seen, Ok("1\n".into()));
}

/// What the containers of one pod may ask of an export, each of another.
#[test]
fn an_export_is_mounted_as_containers_ask() {
    let server = Server::up();
    let instance = Instance::start();
    let file = server.export().join("grouped");
    fs::write(&file, "grouped\n").expect("write");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("chmod");
    chown(&file, Some(1), Some(2002)).expect("chown");
    let container = |name: &str, mount: &str| {
        format!(
            "  - {{name: {name}, image: \"hfbox:1\", command: [sh, -c, \"until test -e /tmp/end; do sleep 0.1; done\"], \
             env: [{{name: WHO, value: me}}], volumeMounts: [{{name: d, mountPath: /d, {mount}}}]}}\n"
        )
    };
    let containers = [
        container("part", "subPathExpr: \"of/$(WHO)\""),
        container("reads", "readOnly: true, recursiveReadOnly: Enabled"),
        container("follows", "mountPropagation: HostToContainer"),
    ];
    let group = "  securityContext: {runAsUser: 1001, runAsGroup: 1001, supplementalGroups: [2002], fsGroup: 2003}\n";
    apply(
        &instance,
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: asks}}\nspec:\n  terminationGracePeriodSeconds: 1\n{group}  \
             containers:\n{}  volumes: [{{name: d, {}}}]\n",
            containers.concat(),
            nfs(&server, "")
        ),
    );
    ready(&instance, &["asks"]);
    let run = |container: &str, script: &str| {
        let out = instance.kubectl_with(&["exec", "asks", "-c", container, "--", "sh", "-c", script], "");
        text(&out.stdout) + &text(&out.stderr)
    };
    // Groups beside the user's own are shown to the server; the pod's group is one of them, and changes nothing there.
    assert_eq!(run("follows", "cat /d/grouped; stat -c %u:%g /d/grouped"), "grouped\n1:2002\n");
    assert!(server.export().join("of/me").is_dir(), "subPathExpr");
    assert_eq!(run("part", "ls /d"), "");
    assert!(run("reads", "touch /d/x").contains("Read-only file system"));
    let told =
        "jsonpath={.status.containerStatuses[?(@.name==\"reads\")].volumeMounts[?(@.name==\"d\")].recursiveReadOnly}";
    assert_eq!(instance.kubectl(&["get", "pod", "asks", "-o", told]), "Enabled");
    // A container that starts again has the volume again, and sees what the host mounts in it from then on.
    let data = mounts(&instance.dir.path().join("data")).into_iter().find(|m| m.ends_with("kubernetes.io~nfs/d/data"));
    let data = data.expect("it is mounted");
    let host = |words: &[&str]| assert!(Command::new(words[0]).args(&words[1..]).status().expect("run").success());
    host(&["mount", "--make-shared", &data]);
    run("follows", "touch /tmp/end");
    let count = "jsonpath={.status.containerStatuses[?(@.name==\"follows\")].restartCount}";
    until("it starts again", || (instance.kubectl(&["get", "pod", "asks", "-o", count]) == "1").then_some(()));
    ready(&instance, &["asks"]);
    let inner = format!("{data}/of");
    host(&["mount", "-t", "tmpfs", "-o", "mode=777", "holdfast-test", &inner]);
    fs::write(Path::new(&inner).join("f"), "of the host\n").expect("write");
    let seen = [run("follows", "cat /d/of/f"), run("part", "ls /d")];
    host(&["umount", &inner]);
    assert_eq!(seen, ["of the host\n", ""]);
    instance.kubectl(&["delete", "pod", "asks", "--timeout=30s"]);
    is_clean(&instance);
}

/// How full volumes are, by the node's summary and by its metrics.
fn figures_are_told(instance: &Instance, server: &Server) {
    let node = instance.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let ask = |what: &str| instance.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/{what}")]);
    let room = statvfs(server.export()).expect("statfs");
    let capacity = room.f_blocks * room.f_frsize;
    until("the summary has the volume", || {
        let summary: serde_json::Value = serde_json::from_str(&ask("stats/summary")).expect("JSON");
        let of = |pod: &str| {
            let pods = summary["pods"].as_array()?;
            let volumes = pods.iter().find(|p| p["podRef"]["name"] == pod)?["volume"].as_array()?;
            volumes.iter().find(|v| v["name"] == "d").cloned()
        };
        let (own, claimed) = (of("writer")?, of("claimer")?);
        assert_eq!(own["capacityBytes"], capacity);
        assert_eq!(claimed["pvcRef"]["name"], "many");
        let taken = own["usedBytes"].as_u64()? + own["availableBytes"].as_u64()?;
        (taken > 0 && taken <= capacity).then_some(())
    });
    let line = "kubelet_volume_stats_capacity_bytes{namespace=\"default\",persistentvolumeclaim=\"many\"}";
    assert!(ask("metrics").contains(&format!("{line} {capacity}")));
}

#[test]
fn pods_wait_for_a_server_and_are_told_why() {
    let mut server = Server::down();
    let instance = Instance::start();
    apply(&instance, &pod("early", &nfs(&server, ""), ("", ""), SLEEP));
    let export = format!("nfs {}:{} cannot be mounted: its portmapper", server.addr, server.path());
    told(&instance, "early", "MountVolume.SetUp failed for volume \"d\"");
    told(&instance, "early", &export);
    // Nobody waits for one that is deleted.
    apply(&instance, &pod("wrong", "nfs: {server: no-such-name.invalid, path: /x}", ("", ""), SLEEP));
    told(&instance, "wrong", "its name cannot be resolved; correct the volume's nfs.server");
    let begun = Instant::now();
    instance.kubectl(&["delete", "pod", "wrong", "--timeout=20s"]);
    assert!(begun.elapsed().as_secs() < 10, "its deletion waited");
    server.start();
    ready(&instance, &["early"]);
    // What the server has against it.
    let elsewhere = format!("nfs: {{server: {}, path: /not/exported}}", server.addr);
    apply(&instance, &pod("wrong", &elsewhere, ("", ""), SLEEP));
    told(&instance, "wrong", "nfs.path");
    let old = claimed("old", &server, ", mountOptions: [\"vers=4.1\"]");
    apply(&instance, &(old + &pod("four", "persistentVolumeClaim: {claimName: old}", ("", ""), SLEEP)));
    if !has_kernel_client() {
        told(&instance, "four", "mount option \"vers=4.1\" needs the kernel's NFS client");
    }
    // A released volume with this policy is emptied.
    apply(&instance, &claimed("again", &server, ", persistentVolumeReclaimPolicy: Recycle"));
    instance.kubectl(&["wait", "--for=jsonpath={.status.phase}=Bound", "pvc/again", "--timeout=30s"]);
    fs::create_dir_all(server.export().join("some/where")).expect("make a directory");
    fs::write(server.export().join("some/where/f"), "old").expect("write");
    instance.kubectl(&["delete", "pvc", "again", "--timeout=20s"]);
    instance.kubectl(&["wait", "--for=jsonpath={.status.phase}=Available", "pv/again", "--timeout=30s"]);
    assert_eq!(fs::read_dir(server.export()).expect("list").count(), 0);
    // A server that answers nothing keeps no pod from going.
    in_pod(&instance, "early", "echo x > /d/f").expect("write");
    server.hang(true);
    let node = instance.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let summary = format!("/api/v1/nodes/{node}/proxy/stats/summary");
    instance.kubectl(&["get", "--raw", &summary, "--request-timeout=10s"]);
    instance.kubectl(&["delete", "pod", "--all", "--timeout=30s"]);
    is_clean(&instance);
    server.hang(false);
}

/// Whether this machine's kernel mounts NFS by itself.
fn has_kernel_client() -> bool {
    fs::read_to_string("/proc/filesystems")
        .expect("read")
        .lines()
        .any(|l| l.trim_start_matches("nodev").trim() == "nfs4")
}
