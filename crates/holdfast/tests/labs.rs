//! The labs, driven by a real kubectl exactly as the notes type them.
mod common;

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use common::{Instance, kubectl, kubectls, root, text, until};

fn lab(name: &str) -> String {
    root().join("examples/labs").join(name).to_string_lossy().into_owned()
}

/// `kubectl port-forward`, ended when dropped.
struct Forward {
    child: Child,
    port: u16,
}

impl Forward {
    fn start(instance: &Instance, program: &Path, pod: &str, port: u16) -> Self {
        let mut command = instance.kubectl_command(program, &["port-forward", pod, &format!(":{port}")]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("run kubectl port-forward");
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        out.read_line(&mut line).expect("read the first line");
        let local = line.split("127.0.0.1:").nth(1).and_then(|r| r.split(' ').next()).and_then(|p| p.parse().ok());
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        Self { port: local.unwrap_or_else(|| panic!("port-forward said {line:?}")), child }
    }

    /// `GET /`; the body of a 200 answer.
    fn get(&self) -> Option<String> {
        let mut connection = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        connection.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        connection.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.contains(" 200 ").then(|| body.to_owned())
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn lab_0_three_containers_share_storage() {
    let instance = Instance::start();
    instance.kubectl(&["apply", "-f", &lab("0-three-containers.yaml")]);
    instance.kubectl(&["wait", "--for=condition=Ready", "pod/three-containers", "--timeout=60s"]);
    let forward = Forward::start(&instance, &kubectl(), "three-containers", 80);
    let page = until("a page is served", || forward.get().filter(|page| !page.trim().is_empty()));
    let written =
        instance.kubectl(&["exec", "three-containers", "-c", "content-agent", "--", "cat", "/var/htdocs/index.html"]);
    assert!(!page.is_empty() && !written.is_empty());
    until("log-rotator prints the access log", || {
        instance.kubectl(&["logs", "three-containers", "-c", "log-rotator"]).contains("GET / ").then_some(())
    });
}

#[test]
fn lab_1_fortune_changes_and_survives_its_generator() {
    let instance = Instance::start();
    instance.kubectl(&["apply", "-f", &lab("1-fortune.yaml")]);
    instance.kubectl(&["wait", "--for=condition=Ready", "pod/fortune", "--timeout=60s"]);
    // Every kubectl version has its own wire format for this.
    for program in kubectls() {
        let forward = Forward::start(&instance, &program, "fortune", 80);
        until(&format!("{} forwards a page", program.display()), || forward.get().filter(|p| !p.trim().is_empty()));
    }
    let forward = Forward::start(&instance, &kubectl(), "fortune", 80);
    let mut pages = BTreeSet::new();
    until("two different fortunes", || {
        pages.extend(forward.get().filter(|p| !p.trim().is_empty()));
        (pages.len() > 1).then_some(())
    });
    let jsonpath = "jsonpath={.status.containerStatuses[?(@.name=='html-generator')].containerID}";
    let id = instance.kubectl(&["get", "pod", "fortune", "-o", jsonpath]);
    let id = id.rsplit('/').next().expect("an id").to_owned();
    let mut killed = 0;
    for pid in std::fs::read_dir("/proc").expect("proc").flatten() {
        let cgroup = std::fs::read_to_string(pid.path().join("cgroup")).unwrap_or_default();
        if cgroup.contains(&id) {
            let pid = pid.file_name().to_string_lossy().into_owned();
            killed +=
                usize::from(std::process::Command::new("kill").args(["-9", &pid]).status().is_ok_and(|s| s.success()));
        }
    }
    assert!(killed > 0, "no process of container {id}");
    let restarts = "jsonpath={.status.containerStatuses[?(@.name=='html-generator')].restartCount}";
    until("the generator restarts", || {
        (instance.kubectl(&["get", "pod", "fortune", "-o", restarts]) != "0").then_some(())
    });
    assert!(forward.get().is_some_and(|page| !page.is_empty()), "the volume's content is gone");
}

#[test]
fn lab_2_a_claim_keeps_its_data() {
    let mut instance = Instance::start();
    let host_dir = instance.dir.path().join("mnt-data");
    let volume =
        std::fs::read_to_string(lab("2-pv.yaml")).expect("read").replace("/mnt/data", &host_dir.to_string_lossy());
    let applied = instance.kubectl_with(&["apply", "-f", "-"], &volume);
    assert_eq!(text(&applied.stdout), "persistentvolume/test-pv-volume created\n", "{}", text(&applied.stderr));
    until("Available", || instance.kubectl(&["get", "pv"]).contains("Available").then_some(()));
    instance.kubectl(&["apply", "-f", &lab("2-pvc.yaml")]);
    until("Bound with its claim", || {
        let line = instance.kubectl(&["get", "pv", "--no-headers"]);
        (line.contains("Bound") && line.contains("default/test-pv-claim")).then_some(())
    });
    instance.kubectl(&["apply", "-f", &lab("2-pod.yaml")]);
    instance.kubectl(&["wait", "--for=condition=Ready", "pod/test-pv-pod", "--timeout=60s"]);
    let write = instance.kubectl_with(
        &["exec", "-i", "test-pv-pod", "--", "/bin/bash"],
        "echo kept > /usr/share/nginx/html/index.html; curl -sS localhost\n",
    );
    assert_eq!(text(&write.stdout), "kept\n", "{}", text(&write.stderr));

    instance.kubectl(&["delete", "pod", "test-pv-pod"]);
    instance.kubectl(&["apply", "-f", &lab("2-pod.yaml")]);
    instance.kubectl(&["wait", "--for=condition=Ready", "pod/test-pv-pod", "--timeout=60s"]);
    let page = ["exec", "test-pv-pod", "--", "curl", "-sS", "localhost"];
    assert_eq!(instance.kubectl(&page), "kept\n");

    let id = ["get", "pod", "test-pv-pod", "-o", "jsonpath={.status.containerStatuses[0].containerID}"];
    let before = instance.kubectl(&id);
    for signal in ["TERM", "KILL"] {
        instance.end(signal);
        instance.up();
        assert_eq!(instance.kubectl(&page), "kept\n", "after {signal}");
        assert_eq!(instance.kubectl(&id), before, "the container was not adopted after {signal}");
        assert!(
            instance.kubectl(&["get", "pod", "test-pv-pod", "--no-headers"]).contains(" 0 "),
            "restarted after {signal}"
        );
    }

    instance.kubectl(&["delete", "pod", "test-pv-pod"]);
    instance.kubectl(&["delete", "pvc", "test-pv-claim"]);
    until("Released", || instance.kubectl(&["get", "pv", "--no-headers"]).contains("Released").then_some(()));
    assert_eq!(std::fs::read_to_string(host_dir.join("index.html")).expect("the data"), "kept\n");
}
