//! Lives of pods that do not go as planned: probes, hooks, forced ends, broken references, claims that others have, lost
//! shims. One daemon for all.
mod common;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use common::{Instance, apply, kubectl, ready, text, told, until};

/// A pod named `$1` with one container `c`: JSON or YAML flow text for the container, and for the rest of the pod's spec.
fn pod(name: &str, container: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{spec}\n  \
         containers:\n  - {{name: c, image: \"hfbox:1\", {container}}}\n---\n"
    )
}

fn field(instance: &Instance, name: &str, path: &str) -> String {
    instance.kubectl(&["get", "pod", name, "-o", &format!("jsonpath={{{path}}}")])
}

/// Processes with `words` among their arguments.
fn processes(words: &str) -> Vec<String> {
    let all = std::fs::read_dir("/proc").expect("proc").flatten();
    let named = all.filter(|p| {
        let line = std::fs::read(p.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(words)
    });
    named.map(|p| p.file_name().to_string_lossy().into_owned()).collect()
}

fn readiness_comes_and_goes(instance: &Instance) {
    let probe = "readinessProbe: {exec: {command: [cat, /ok]}, periodSeconds: 1, failureThreshold: 1}";
    apply(instance, &pod("unready", &format!("command: [sh, -c, \"touch /ok; exec sleep 999\"], {probe}"), ""));
    ready(instance, "unready");
    instance.kubectl(&["exec", "unready", "--", "rm", "/ok"]);
    instance.kubectl(&["wait", "--for=condition=Ready=false", "pod/unready", "--timeout=60s"]);
    let condition = field(instance, "unready", ".status.conditions[?(@.type==\"Ready\")]['reason','message']");
    assert_eq!(condition, "ContainersNotReady containers with unready status: [c]");
    assert!(instance.kubectl(&["get", "pod", "unready", "--no-headers"]).contains("0/1 "));
    told(instance, "unready", "Readiness probe failed: cat: can't open '/ok': No such file or directory");
    instance.kubectl(&["exec", "unready", "--", "touch", "/ok"]);
    ready(instance, "unready");
    assert_eq!(field(instance, "unready", ".status.containerStatuses[0].restartCount"), "0");
}

fn failed_liveness_restarts(instance: &Instance) {
    let http = "livenessProbe: {httpGet: {path: /no, port: 80}, periodSeconds: 1, failureThreshold: 1, initialDelaySeconds: 1}";
    let tcp = "readinessProbe: {tcpSocket: {port: 81}, periodSeconds: 1}";
    apply(instance, &pod("sick", &format!("command: [httpd, -f, -p, \"80\", -h, /], {http}, {tcp}"), ""));
    told(instance, "sick", "Liveness probe failed: HTTP probe failed with statuscode: 404");
    told(instance, "sick", "Container c failed liveness probe, will be restarted");
    let ip = field(instance, "sick", ".status.podIP");
    told(instance, "sick", &format!("Readiness probe failed: dial tcp {ip}:81: connect: connection refused"));
    until("a restart is counted", || {
        (field(instance, "sick", ".status.containerStatuses[0].restartCount") != "0").then_some(())
    });
}

fn forced_deletion_kills_at_once(instance: &Instance) {
    let marker = format!("stubborn-{}", instance.pid());
    let command = format!("command: [sh, -c, \"trap '' TERM; while sleep 1; do : {marker}; done\"]");
    apply(instance, &pod("stubborn", &command, "").replace("Seconds: 1\n", "Seconds: 900\n"));
    ready(instance, "stubborn");
    assert!(!processes(&marker).is_empty());
    // First gently, which it ignores.
    instance.kubectl(&["delete", "pod", "stubborn", "--wait=false"]);
    instance.kubectl(&["delete", "pod", "stubborn", "--grace-period=0", "--force"]);
    until("the container is killed long before its grace is over", || processes(&marker).is_empty().then_some(()));
}

/// `preStop` before TERM; main containers before sidecars; sidecars in reverse order.
fn ends_in_order(instance: &Instance) {
    let dir = instance.dir.path().join("order");
    let volume = format!("  volumes: [{{name: h, hostPath: {{path: {}, type: DirectoryOrCreate}}}}]", dir.display());
    let mount = "volumeMounts: [{name: h, mountPath: /h}]";
    let on_term = |word: &str| {
        format!(
            "command: [sh, -c, \"trap 'echo {word} >> /h/log; exit 0' TERM; while :; do sleep 0.1; done\"], {mount}"
        )
    };
    let sidecar =
        |name: &str| format!("  - {{name: {name}, restartPolicy: Always, image: \"hfbox:1\", {}}}\n", on_term(name));
    let spec = format!("{volume}\n  initContainers:\n{}{}", sidecar("first"), sidecar("second"));
    let hook = "lifecycle: {preStop: {exec: {command: [sh, -c, \"sleep 0.3; echo hook >> /h/log\"]}}}";
    apply(
        instance,
        &pod("order", &format!("{}, {hook}", on_term("main")), &spec).replace("Seconds: 1\n", "Seconds: 60\n"),
    );
    ready(instance, "order");
    instance.kubectl(&["delete", "pod", "order"]);
    let log = std::fs::read_to_string(dir.join("log")).expect("the log");
    assert_eq!(log.split_whitespace().collect::<Vec<_>>(), ["hook", "main", "second", "first"]);
}

fn a_name_is_used_again_at_once(instance: &Instance) {
    let spec = "  volumes: [{name: e, emptyDir: {}}]";
    let command = "command: [sh, -c, \"test ! -e /e/x || echo STALE; touch /e/x; exec sleep 999\"], \
                   volumeMounts: [{name: e, mountPath: /e}]";
    for _ in 0..6 {
        apply(instance, &pod("again", command, spec));
        instance.kubectl(&["delete", "pod", "again", "--grace-period=0", "--force"]);
    }
    apply(instance, &pod("again", command, spec));
    ready(instance, "again");
    assert_eq!(instance.kubectl(&["logs", "again"]), "");
}

fn host_ports_are_shared_by_nobody(instance: &Instance) {
    let taken = TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let web = |name: &str, port: u16| {
        let ports = format!("ports: [{{containerPort: 80, hostPort: {port}}}]");
        pod(name, &format!("command: [sh, -c, \"echo {name} > /index.html; exec httpd -f -p 80 -h /\"], {ports}"), "")
    };
    apply(instance, &web("port-one", port));
    told(instance, "port-one", &format!("host port {port}/TCP is in use by another program on this host"));
    drop(taken);
    ready(instance, "port-one");
    let page = until("the page comes from the host's own address", || {
        let mut connection = TcpStream::connect(("127.0.0.1", port)).ok()?;
        connection.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        connection.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).ok()?;
        Some(answer)
    });
    assert!(page.ends_with("port-one\n"), "{page}");
    apply(instance, &web("port-two", port));
    told(
        instance,
        "port-two",
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.",
    );
}

fn what_is_missing_is_named(instance: &Instance) {
    apply(instance, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {a: b}\n");
    let env = "command: [sleep, \"999\"], env: [{name: A, valueFrom: {configMapKeyRef: {name: settings, key: later}}}]";
    let claim = "  nodeName: NODE\n  volumes: [{name: d, persistentVolumeClaim: {claimName: none}}]";
    let node = instance.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let wrong = instance.dir.path().join("wrong");
    let file = format!("  volumes: [{{name: f, hostPath: {{path: {}, type: File}}}}]", wrong.display());
    apply(instance, &pod("no-key", env, ""));
    apply(instance, &pod("no-claim", "command: [sleep, \"999\"]", &claim.replace("NODE", &node)));
    apply(instance, &pod("no-file", "command: [sleep, \"999\"]", &file));
    until("a waiting reason", || {
        let waiting = field(instance, "no-key", ".status.containerStatuses[0].state.waiting['reason','message']");
        (waiting == "CreateContainerConfigError couldn't find key later in ConfigMap default/settings").then_some(())
    });
    told(
        instance,
        "no-claim",
        "unattached volumes=[], failed to process volumes=[d]: error processing PVC default/none: failed to fetch PVC from \
         API server: persistentvolumeclaims \"none\" not found",
    );
    let text = format!(
        "MountVolume.SetUp failed for volume \"f\" : hostPath type check failed: {} is not a file",
        wrong.display()
    );
    told(instance, "no-file", &text);
    instance.kubectl(&["patch", "configmap", "settings", "-p", r#"{"data":{"later":"now"}}"#]);
    ready(instance, "no-key");
    std::fs::write(wrong, "").expect("write");
    ready(instance, "no-file");
}

/// A sub-path follows links inside the volume and none out of it; `fsGroup` lets a user write, but not on the host's files.
fn volumes_keep_their_borders(instance: &Instance) {
    let dir = instance.dir.path().join("borders");
    std::fs::create_dir_all(dir.join("real")).expect("make a directory");
    std::fs::write(dir.join("real/file"), "inside\n").expect("write");
    std::os::unix::fs::symlink("real", dir.join("inside")).expect("link");
    std::os::unix::fs::symlink("/etc", dir.join("outside")).expect("link");
    let volumes = format!(
        "  securityContext: {{runAsUser: 1000, fsGroup: 2000}}\n  volumes: [{{name: h, hostPath: {{path: {}}}}}, {{name: e, \
         emptyDir: {{}}}}]",
        dir.display()
    );
    let mounts = |sub: &str| {
        format!(
            "command: [sleep, \"999\"], volumeMounts: [{{name: h, mountPath: /h, subPath: {sub}}}, {{name: e, mountPath: /e}}]"
        )
    };
    apply(instance, &(pod("inside", &mounts("inside"), &volumes) + &pod("outside", &mounts("outside"), &volumes)));
    ready(instance, "inside");
    let seen =
        instance.kubectl(&["exec", "inside", "--", "sh", "-c", "cat /h/file; touch /e/x; stat -c %u:%g /e/x /h"]);
    assert_eq!(seen, "inside\n1000:2000\n0:0\n");
    told(instance, "outside", "Error: failed to prepare subPath for volumeMount \"h\" of container \"c\"");
}

/// Clients' sessions end with the daemon and say so; containers do not.
fn sessions_end_with_the_daemon(instance: &mut Instance) {
    apply(
        instance,
        &pod("stays", "command: [sh, -c, \"while :; do echo tick; sleep 0.1; done\"]", "")
            .replace("hfbox:1\", ", "hfbox:1\", stdin: true, "),
    );
    ready(instance, "stays");
    let id = field(instance, "stays", ".status.containerStatuses[0].containerID");
    let open = [
        &["exec", "stays", "--", "sh", "-c", "echo on; sleep 900"][..],
        &["logs", "-f", "stays"],
        &["attach", "stays"],
    ];
    let mut sessions = Vec::new();
    for args in open {
        let mut command = instance.kubectl_command(&kubectl(), args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run kubectl");
        let mut first = [0];
        child.stdout.as_mut().expect("piped").read_exact(&mut first).expect("the session has begun");
        sessions.push((args, child));
    }
    instance.end("TERM");
    for (args, child) in sessions {
        let out = child.wait_with_output().expect("wait for kubectl");
        let said = text(&out.stderr);
        match args[0] {
            "logs" => assert!(out.status.success(), "{args:?}: {said}"),
            _ => assert!(said.contains("the node's agent is shutting down"), "{args:?}: {said}"),
        }
    }
    instance.up();
    assert_eq!(field(instance, "stays", ".status.containerStatuses[0].containerID"), id);
}

/// As after a power cut: nothing of a pod runs any more when the daemon comes back.
fn pods_come_back_with_their_data(instance: &mut Instance) {
    let spec = "  volumes: [{name: e, emptyDir: {}}]";
    let command =
        "command: [sh, -c, \"echo life >> /e/lives; exec sleep 999\"], volumeMounts: [{name: e, mountPath: /e}]";
    apply(instance, &pod("lives", command, spec));
    ready(instance, "lives");
    let id = field(instance, "lives", ".status.containerStatuses[0].containerID");
    instance.end("TERM");
    let shims = processes(&format!("container {}", instance.data_dir()));
    assert!(!shims.is_empty(), "no shim found");
    assert!(Command::new("kill").arg("-9").args(&shims).status().expect("run kill").success());
    instance.up();
    until("another container is ready", || {
        let now = field(instance, "lives", ".status.containerStatuses[?(@.ready==true)].containerID");
        (!now.is_empty() && now != id).then_some(())
    });
    assert_eq!(instance.kubectl(&["exec", "lives", "--", "cat", "/e/lives"]), "life\nlife\n");
    assert_eq!(field(instance, "lives", ".status.containerStatuses[0].restartCount"), "1");
}

/// A volume on `dir` and a claim that gets it, both named `name`.
fn claim(name: &str, mode: &str, dir: &Path) -> String {
    let spec = format!("accessModes: [{mode}], storageClassName: {name}");
    let source = format!("persistentVolumeReclaimPolicy: Recycle, hostPath: {{path: {dir:?}}}");
    format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}}}\n\
         spec: {{{spec}, capacity: {{storage: 1Mi}}, {source}}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\n\
         spec: {{{spec}, resources: {{requests: {{storage: 1Mi}}}}}}\n---\n"
    )
}

/// Two pods want a claim that one of them may have; then the claim goes, and its volume is emptied.
fn claims_for_one_pod_change_hands(instance: &Instance) {
    let node = instance.kubectl(&["get", "node", "-o", "jsonpath={.items[0].metadata.name}"]);
    let data = tempfile::tempdir().expect("temporary directory");
    let table = [
        (
            "one-pod",
            "ReadWriteOncePod",
            "volume uses the ReadWriteOncePod access mode and is already in use by another pod: default/one-pod-a",
        ),
        ("one-node", "ReadWriteOnce", "claim default/one-node is ReadWriteOnce and in use by pod default/one-node-a;"),
    ];
    let wants = |name: &str, pod_name: &str| {
        let command = "command: [sh, -c, \"date >> /d/f; exec sleep 999\"], volumeMounts: [{name: d, mountPath: /d}]";
        // Past the scheduler, which would hold the second pod itself.
        let volume =
            format!("  nodeName: {node}\n  volumes: [{{name: d, persistentVolumeClaim: {{claimName: {name}}}}}]");
        apply(instance, &pod(pod_name, command, &volume));
    };
    for (name, mode, why) in table {
        let dir = data.path().join(name);
        apply(instance, &claim(name, mode, &dir));
        let (first, second) = (format!("{name}-a"), format!("{name}-b"));
        wants(name, &first);
        ready(instance, &first);
        wants(name, &second);
        told(instance, &second, why);
        assert_eq!(field(instance, &second, ".status.phase"), "Pending");
        instance.kubectl(&["delete", "pod", &first]);
        ready(instance, &second);
        assert_eq!(std::fs::read_to_string(dir.join("f")).expect("the pods' file").lines().count(), 2, "{name}");
        instance.kubectl(&["delete", "pod", &second]);
        instance.kubectl(&["delete", "pvc", name]);
        instance.kubectl(&["wait", "--for=jsonpath={.status.phase}=Available", &format!("pv/{name}"), "--timeout=60s"]);
        assert_eq!(std::fs::read_dir(&dir).expect("the volume").count(), 0, "{name}");
        told(instance, name, "Volume recycled");
    }
}

type Check = fn(&Instance);

#[test]
fn pods_in_trouble() {
    let mut instance = Instance::start_with(&["--rwo-scope=pod"]);
    let checks: [(&str, Check); 9] = [
        ("readiness", readiness_comes_and_goes),
        ("liveness", failed_liveness_restarts),
        ("force", forced_deletion_kills_at_once),
        ("order", ends_in_order),
        ("again", a_name_is_used_again_at_once),
        ("ports", host_ports_are_shared_by_nobody),
        ("missing", what_is_missing_is_named),
        ("borders", volumes_keep_their_borders),
        ("one pod", claims_for_one_pod_change_hands),
    ];
    let shared = &instance;
    let failed: Vec<&str> = std::thread::scope(|scope| {
        let running: Vec<_> = checks.iter().map(|(name, check)| (*name, scope.spawn(move || check(shared)))).collect();
        running.into_iter().filter_map(|(name, check)| check.join().is_err().then_some(name)).collect()
    });
    assert!(failed.is_empty(), "see above: {failed:?}");
    sessions_end_with_the_daemon(&mut instance);
    pods_come_back_with_their_data(&mut instance);
}
