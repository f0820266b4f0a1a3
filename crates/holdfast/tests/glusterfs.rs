//! `glusterfs` volumes in real pods, from a real glusterd in a network namespace of its own.
mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use common::{Instance, apply, mounted_below, ready, sh, text, told, until};

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("run {program}: {e}"))
}

#[track_caller]
fn must(program: &str, args: &[&str]) -> String {
    let out = run(program, args);
    assert!(out.status.success(), "{program} {args:?}: {}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

/// A server at an address of its own. All that it has goes with it.
struct Server {
    dir: tempfile::TempDir,
    /// Names the network namespace and this side of the way to it.
    name: String,
    address: String,
    /// Of this side.
    host: String,
    process: Option<Child>,
}

impl Server {
    fn start() -> Self {
        assert!(Path::new("/usr/sbin/glusterd").exists(), "install glusterfs-server (ci/deps.sh does)");
        let dir = tempfile::Builder::new().prefix("holdfast-gluster-").tempdir().expect("a directory");
        let id = std::process::id();
        // The network for benchmarks (RFC 2544): nobody has it.
        let net = format!("198.18.{}.{}", id / 64 % 256, id % 64 * 4);
        let host = |last: u32| {
            let (above, own) = net.rsplit_once('.').expect("four parts");
            format!("{above}.{}", own.parse::<u32>().expect("a number") + last)
        };
        let (name, address) = (format!("hfgl{id}"), host(2));
        let (here, there) = (format!("{name}a"), format!("{name}b"));
        must("ip", &["netns", "add", &name]);
        let mut server = Self { dir, name, address, host: host(1), process: None };
        must("ip", &["link", "add", &here, "type", "veth", "peer", "name", &there, "netns", &server.name]);
        must("ip", &["addr", "add", &format!("{}/30", server.host), "dev", &here]);
        must("ip", &["link", "set", &here, "up"]);
        let inside = ["-n", &server.name];
        must("ip", &[&inside[..], &["addr", "add", &format!("{}/30", server.address), "dev", &there]].concat());
        must("ip", &[&inside[..], &["link", "set", &there, "up"]].concat());
        must("ip", &[&inside[..], &["link", "set", "lo", "up"]].concat());
        server.up();
        let brick = server.dir.path().join("brick");
        fs::create_dir_all(brick.join("deep")).expect("made");
        fs::write(brick.join("deep/f"), "hi\n").expect("written");
        let at = format!("{}:{}", server.address, brick.display());
        server.gluster(&["volume", "create", "vol", &at, "force"]);
        server.gluster(&["volume", "start", "vol"]);
        server
    }

    /// Starts the daemon, with its directories in the test's.
    fn up(&mut self) {
        let state = self.dir.path().join("state");
        fs::create_dir_all(state.join("run/gluster/bricks")).expect("made");
        fs::write(state.join("run").join(&self.name), "").expect("written");
        fs::create_dir_all(state.join("lib/groups")).expect("made");
        fs::create_dir_all(state.join("log")).expect("made");
        let state = state.display();
        let script = format!(
            "mount --make-rprivate / && mkdir -p /var/lib/glusterd /var/log/glusterfs &&\n\
             mount --bind {state}/lib /var/lib/glusterd && mount --bind {state}/log /var/log/glusterfs &&\n\
             mount --bind {state}/run /run && exec glusterd --no-daemon"
        );
        let child = Command::new("ip")
            .args(["netns", "exec", &self.name, "unshare", "--mount", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.process = Some(child.expect("start glusterd"));
        until("glusterd answers", || self.try_gluster(&["volume", "list"]).status.success().then_some(()));
    }

    fn pid(&self) -> String {
        self.process.as_ref().expect("it runs").id().to_string()
    }

    fn try_gluster(&self, args: &[&str]) -> Output {
        // Only where the daemon's own socket is: another one may run on this machine.
        let script = format!("test -e /run/{} && exec gluster --mode=script \"$@\"", self.name);
        run("nsenter", &[&["-t", &self.pid(), "-m", "-n", "sh", "-c", &script, "sh"], args].concat())
    }

    #[track_caller]
    fn gluster(&self, args: &[&str]) {
        let out = self.try_gluster(args);
        assert!(out.status.success(), "{args:?}: {}{}", text(&out.stdout), text(&out.stderr));
    }

    /// The processes of its network namespace, with their programs.
    fn processes(&self) -> Vec<(String, String)> {
        let all = text(&run("ip", &["netns", "pids", &self.name]).stdout);
        let program = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        all.split_whitespace().map(|pid| (pid.to_owned(), program(pid))).collect()
    }

    /// Ends what serves the volume. The daemon takes seconds to come back, and stays.
    fn lose_brick(&self) {
        for (pid, program) in self.processes() {
            if program.starts_with("glusterfsd") {
                run("kill", &["-KILL", &pid]);
            }
        }
    }

    fn bring_brick(&self) {
        // As long as the daemon has not noticed that it is gone, it does nothing.
        until("the volume is served again", || {
            self.gluster(&["volume", "start", "vol", "force"]);
            self.processes().iter().any(|(_, program)| program.starts_with("glusterfsd")).then_some(())
        });
    }

    fn down(&mut self) {
        for (pid, _) in self.processes() {
            run("kill", &["-KILL", &pid]);
        }
        if let Some(mut child) = self.process.take() {
            drop(child.wait());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.down();
        until("all of the server ends", || {
            text(&run("ip", &["netns", "pids", &self.name]).stdout).trim().is_empty().then_some(())
        });
        run("ip", &["link", "del", &format!("{}a", self.name)]);
        run("ip", &["netns", "del", &self.name]);
    }
}

fn pod(name: &str, volume: &str, mount: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - {{name: c, image: \"hfbox:1\", command: [sleep, \"999\"], volumeMounts: [{{name: d, mountPath: /d{mount}}}]}}\n  \
         volumes: [{{name: d, {volume}}}]\n---\n"
    )
}

fn endpoints(name: &str, namespace: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Endpoints\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         subsets: [{{addresses: [{{ip: {address}}}], ports: [{{port: 1}}]}}]\n---\n"
    )
}

/// The clients whose volume is below a directory.
fn clients(below: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir("/proc").expect("read").filter_map(|entry| Some(entry.ok()?.path()));
    let words = format!("{}/", below.display());
    let ours = |path: &PathBuf| {
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        // Not those that look for a volume that does not exist.
        line.contains("glusterfs\0--no-daemon") && line.contains("--volfile-id=vol\0") && line.contains(&words)
    };
    all.filter(ours).collect()
}

#[test]
fn pods_share_a_volume_of_a_server() {
    // Both take their time.
    let (server, mut instance) = std::thread::scope(|scope| {
        let server = scope.spawn(Server::start);
        let instance = Instance::start();
        (server.join().expect("the server starts"), instance)
    });
    let own = "glusterfs: {endpoints: servers, path: vol}";
    let spec = "accessModes: [ReadWriteMany], storageClassName: \"\"";
    let claimed = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: storage}}\n---\n\
         apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: vol}}\nspec: {{{spec}, capacity: {{storage: 1Gi}}, \
         mountOptions: [log-level=WARNING, noexec], glusterfs: {{endpoints: of, endpointsNamespace: storage, path: vol/deep}}}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: vol}}\n\
         spec: {{{spec}, volumeName: vol, resources: {{requests: {{storage: 1Gi}}}}}}\n---\n{}",
        endpoints("of", "storage", &server.address)
    );
    apply(&instance, &(pod("a", own, "") + &claimed));
    told(&instance, "a", "endpoints \"servers\" not found");
    apply(&instance, &endpoints("servers", "default", &server.address));
    ready(&instance, "a");
    let objects = [
        pod("b", own, ", subPath: deep"),
        pod("reads", "glusterfs: {endpoints: servers, path: vol, readOnly: true}", ""),
        pod("claimed", "persistentVolumeClaim: {claimName: vol}", ""),
        pod("wrong", "glusterfs: {endpoints: servers, path: nothing}", ""),
    ];
    apply(&instance, &objects.concat());
    for name in ["b", "reads", "claimed"] {
        ready(&instance, name);
    }
    told(&instance, "wrong", "glusterfs log to help diagnose this issue: ");
    told(&instance, "wrong", "failed to fetch volume file (key:nothing)");
    sh(&instance, "a", "echo shared > /d/deep/g");
    assert_eq!(sh(&instance, "b", "cat /d/f /d/g"), "hi\nshared\n");
    assert_eq!(sh(&instance, "claimed", "cat /d/g"), "shared\n", "a directory of the volume");
    assert!(sh(&instance, "reads", "cat /d/deep/g; echo no > /d/x").contains("shared\nsh: "));
    assert!(!server.dir.path().join("brick/x").exists());

    // The clients outlive the daemon.
    let before = clients(instance.dir.path());
    assert_eq!(before.len(), 4);
    let volumes = instance.dir.path().to_path_buf();
    instance.end("KILL");
    instance.up();
    ready(&instance, "a");
    assert_eq!(sh(&instance, "b", "cat /d/g"), "shared\n");
    assert_eq!(clients(instance.dir.path()), before);

    // Clients that are killed are replaced, and containers that run go on: with all of the volume, or a part of it.
    for client in clients(&volumes) {
        must("kill", &["-KILL", &client.file_name().expect("a process").to_string_lossy()]);
    }
    for name in ["a", "b", "reads", "claimed"] {
        told(&instance, name, "The process that served volume \"d\" had ended.");
    }
    assert_eq!(sh(&instance, "b", "echo again > /d/g; cat /d/g"), "again\n");
    assert_eq!(sh(&instance, "a", "cat /d/deep/g; grep -c ' /d ' /proc/mounts"), "again\n1\n");
    assert!(sh(&instance, "reads", "cat /d/deep/g; echo no > /d/x").contains("again\nsh: "));

    // Where nobody listens, or nobody has the volume, a pod waits, and can go; it comes as soon as that has changed.
    server.lose_brick();
    let elsewhere = "glusterfs: {endpoints: elsewhere, path: vol}";
    // This side of the way has no server.
    apply(&instance, &endpoints("elsewhere", "default", &server.host));
    apply(&instance, &(pod("late", own, "") + &pod("never", own, "") + &pod("strays", elsewhere, "")));
    told(&instance, "late", "mount failed: ");
    told(&instance, "strays", &format!("(volume \"vol\", servers {} of endpoints default/elsewhere)", server.host));
    instance.kubectl(&["delete", "pod", "never", "wrong", "--timeout=15s"]);
    server.bring_brick();
    apply(&instance, &endpoints("elsewhere", "default", &server.address));
    for name in ["late", "strays"] {
        ready(&instance, name);
        assert_eq!(sh(&instance, name, "cat /d/deep/g"), "again\n");
    }
    figures_are_told(&instance);
    instance.kubectl(&["delete", "pods", "--all", "--timeout=30s"]);
    assert_eq!(mounted_below(instance.dir.path()), [""; 0]);
    assert!(clients(instance.dir.path()).is_empty());
    assert_eq!(fs::read_to_string(server.dir.path().join("brick/deep/g")).expect("kept"), "again\n");
}

/// How full volumes are, by the node's summary and by its metrics.
fn figures_are_told(instance: &Instance) {
    let node = instance.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let ask = |what: &str| instance.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/{what}")]);
    let line = "kubelet_volume_stats_used_bytes{namespace=\"default\",persistentvolumeclaim=\"vol\"} ";
    until("the metrics have the claim", || ask("metrics").contains(line).then_some(()));
    let summary: serde_json::Value = serde_json::from_str(&ask("stats/summary")).expect("JSON");
    let pods = summary["pods"].as_array().expect("pods");
    let own = pods.iter().find(|p| p["podRef"]["name"] == "a").expect("the pod");
    let volume = own["volume"].as_array().expect("volumes").iter().find(|v| v["name"] == "d").expect("the volume");
    assert!(volume["capacityBytes"].as_u64().expect("a number") > 0);
}
