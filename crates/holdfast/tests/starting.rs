//! Starts that cannot work say why in one sentence and leave nothing behind; those that can, do.
mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use common::{Instance, kubectl, text};

const PROGRAM: &str = env!("CARGO_BIN_EXE_holdfast");

fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("holdfast-test-").tempdir().expect("temporary directory")
}

/// Runs a command that is to end by itself, and ends it if it does not.
fn ends(command: &[&str], dir: &Path) -> Output {
    Command::new("timeout")
        .args(["--signal=TERM", "20"])
        .args(command)
        .current_dir(dir)
        .env_remove("HOLDFAST_LOG")
        .stdin(Stdio::null())
        .output()
        .expect("run timeout")
}

/// A start that must fail with status 1 and one sentence that holds `parts`.
#[track_caller]
fn refused(command: &[&str], dir: &Path, parts: &[&str]) {
    let output = ends(command, dir);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{command:?}: {}{said}", text(&output.stdout));
    assert_eq!(output.stdout, b"", "{command:?}");
    let last = said.lines().last().unwrap_or_default();
    for part in ["holdfast: "].iter().chain(parts) {
        assert!(last.contains(part), "{command:?}: {part:?} is not in: {said}");
    }
    assert!(!said.contains('\x1b'), "colours without a terminal: {said:?}");
}

fn bridges() -> Vec<String> {
    let names = fs::read_dir("/sys/class/net").expect("interfaces").flatten();
    names.map(|e| e.file_name().to_string_lossy().into_owned()).filter(|n| n.starts_with("hf-")).collect()
}

#[test]
fn refused_starts() {
    let dir = scratch();
    let dir = dir.path();
    fs::write(dir.join("file"), "").expect("write");
    let busy = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = busy.local_addr().expect("address").to_string();
    let up = |more: &[&'static str]| -> Vec<&str> {
        [&[PROGRAM, "up", "--listen", "127.0.0.1:0", "--data-dir", "d"], more].concat()
    };
    refused(&[PROGRAM, "up", "--data-dir", "d", "--listen", &port], dir, &["listen on", &port, "--listen"]);
    refused(&[PROGRAM, "up", "--data-dir", "file"], dir, &["file is a file", "--data-dir"]);
    refused(&[PROGRAM, "up", "--data-dir", "file/x"], dir, &["make the data directory file/x", "--data-dir"]);
    refused(&up(&["--node-name", "A b"]), dir, &["--node-name", "\"A b\"", "lowercase RFC 1123 subdomain"]);
    refused(&up(&["--pod-cidr", "10.0.0.0"]), dir, &["--pod-cidr", "\"10.0.0.0\"", "10.88.0.0/24"]);
    refused(&up(&["--pod-cidr", "127.0.0.0/24"]), dir, &["127.0.0.0/24 overlaps 127.0.0."]);
    refused(&up(&["--registry-mirror", "x"]), dir, &["--registry-mirror", "HOST=MIRROR"]);
    refused(&up(&["--kubeconfig", "no/where"]), dir, &["no/where", "--kubeconfig"]);
    for (arguments, part) in
        [(&["--listen", "here"], "--listen"), (&["--log", "a=b=c"], "--log"), (&["--frobnicate", "x"], "--frobnicate")]
    {
        let output = ends(&[&[PROGRAM, "up", "--data-dir", "d"], &arguments[..]].concat(), dir);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(part), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn missing_rights_are_named() {
    let dir = scratch();
    let mut command = vec!["setpriv", "--reuid=65534", "--clear-groups", PROGRAM, "up", "--data-dir", "d"];
    refused(&command, dir.path(), &["needs root", "sudo", "--no-node"]);
    for missing in ["sys_admin", "net_admin", "mknod", "setgid"] {
        let bounding = format!("--bounding-set=-{missing}");
        command = vec!["setpriv", &bounding, PROGRAM, "up", "--listen", "127.0.0.1:0", "--data-dir", "d"];
        refused(&command, dir.path(), &[&format!("CAP_{}", missing.to_uppercase()), "--no-node"]);
    }
    assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 0, "nothing was made");
}

/// A file system of its own, which ends with the test.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(at: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&at).expect("mount point");
        let mount = Self(at);
        mount.run("mount", &["-t", "tmpfs", "-o", options, "tmpfs"]);
        mount
    }
    fn run(&self, program: &str, args: &[&str]) {
        let done = Command::new(program).args(args).arg(&self.0).status().expect("run mount");
        assert!(done.success(), "{program} {args:?} {}", self.0.display());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn places_that_cannot_hold_data() {
    let dir = scratch();
    let before = bridges();
    let (_read_only, _small) =
        (Mount::tmpfs(dir.path().join("ro"), "ro"), Mount::tmpfs(dir.path().join("small"), "size=20k"));
    for (name, why) in [("ro", "Read-only file system"), ("small", "No space left on device")] {
        let command = [PROGRAM, "up", "--listen", "127.0.0.1:0", "--data-dir", name];
        let place = dir.path().join(name).display().to_string();
        refused(&command, dir.path(), &[&place, why, "permissions and free space"]);
    }
    // As inside a container whose own root is an overlay.
    let overlay = "mkdir l u w m && mount -t overlay overlay -o lowerdir=l,upperdir=u,workdir=w m && \
                   exec \"$0\" up --listen 127.0.0.1:0 --data-dir m/d";
    let command = ["unshare", "--mount", "sh", "-c", overlay, PROGRAM];
    refused(&command, dir.path(), &["overlay", "/m/d", "choose a data directory on ext4"]);
    let cgroups = "for m in /sys/fs/cgroup /sys/fs/cgroup/*/; do mount -o remount,bind,ro $m || :; done 2>/dev/null; \
                   exec \"$0\" up --listen 127.0.0.1:0 --data-dir d";
    let command = ["unshare", "--mount", "sh", "-c", cgroups, PROGRAM];
    refused(&command, dir.path(), &["/sys/fs/cgroup must be writable", "privileged"]);
    let left: Vec<_> = bridges().into_iter().filter(|b| !before.contains(b)).collect();
    let ours = |b: &&String| {
        fs::read_to_string(format!("/sys/class/net/{b}/ifalias"))
            .is_ok_and(|a| a.contains(&*dir.path().to_string_lossy()))
    };
    assert_eq!(left.iter().filter(ours).collect::<Vec<_>>(), [&""; 0], "bridges left behind");
}

/// Replaces a file by what `change` makes of it, calls `then`, and puts it back.
fn damaged(path: &Path, change: impl FnOnce(&mut Vec<u8>), then: impl FnOnce()) {
    let good = fs::read(path).expect("read");
    let mut bad = good.clone();
    change(&mut bad);
    fs::write(path, bad).expect("write");
    then();
    fs::write(path, good).expect("write");
}

#[test]
fn damage_is_named_and_torn_ends_are_cut() {
    let mut instance = Instance::empty(&["--no-node"]);
    for i in 0..3 {
        instance.kubectl(&["create", "configmap", &format!("c{i}"), "--from-literal=a=b"]);
    }
    let store = instance.dir.path().join("data/store");
    let data = instance.data_dir();
    let up = [PROGRAM, "up", "--no-node", "--listen", "127.0.0.1:0", "--data-dir", &data];
    let pid = instance.pid().to_string();
    refused(&up, &store, &[&data, "in use by process", &pid, "--data-dir"]);
    instance.end("TERM");
    let mut log = fs::read_dir(&store).expect("list").map(|e| e.expect("entry").path());
    let log = log.find(|p| p.to_string_lossy().contains("/log-")).expect("a log");
    let name = log.to_string_lossy().into_owned();
    let way_out = "restore the data directory from a copy";
    damaged(&log, |b| b[3000] ^= 1, || refused(&up, &store, &[&name, "corrupt at byte", way_out]));
    damaged(&log, Vec::clear, || refused(&up, &store, &[&name, "empty", way_out]));
    damaged(&log, |b| b[7] = b'2', || refused(&up, &store, &[&name, "another version of this program"]));
    let pki = instance.dir.path().join("data/pki");
    for file in ["ca.crt", "ca.key", "serving.key"] {
        damaged(&pki.join(file), Vec::clear, || {
            refused(&up, &store, &[&format!("/pki/{file}"), "remove the pki directory"]);
        });
    }
    fs::write(pki.join("serving.crt"), "junk").expect("write");
    fs::OpenOptions::new()
        .append(true)
        .open(&log)
        .expect("open")
        .set_len(fs::metadata(&log).expect("size").len() - 5)
        .expect("cut");
    instance.up();
    let left = instance.kubectl(&["get", "configmaps", "-o", "name"]);
    assert!(left.contains("/c0") && left.contains("/c1"), "{left}");
}

/// A disk that fills up: writes are refused with the reason, reads go on, and all is well when there is space again.
#[test]
fn a_full_disk() {
    let place = scratch();
    let mount = Mount::tmpfs(place.path().join("data"), "size=1m");
    let mut instance = Instance::within(place, &["--no-node"]);
    instance.kubectl(&["create", "configmap", "before", "--from-literal=a=b"]);
    let filler = mount.0.join("filler");
    let _ = fs::write(&filler, vec![0; 2 << 20]);
    let large = format!("--from-literal=a={}", "x".repeat(100_000));
    let refused = |instance: &Instance| {
        let args = ["create", "configmap", "during", &large];
        let output = instance.kubectl_command(&kubectl(), &args).output().expect("run kubectl");
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains("free space") && said.contains("No space left"), "{said}");
        assert!(instance.kubectl(&["get", "configmaps", "-o", "name"]).contains("configmap/before"));
    };
    refused(&instance);
    refused(&instance);
    fs::remove_file(&filler).expect("remove");
    instance.kubectl(&["create", "configmap", "after", &large]);
    instance.end("KILL");
    instance.up();
    let left = instance.kubectl(&["get", "configmaps", "-o", "name"]);
    assert!(left.contains("/before") && left.contains("/after") && !left.contains("/during"), "{left}");
    instance.end("TERM");
    // Before the directory that it is mounted in goes.
    drop(mount);
}

#[test]
fn the_driver_alone() {
    let dir = scratch();
    let dir = dir.path();
    let csi = |more: &[&'static str]| -> Vec<&str> { [&[PROGRAM, "csi", "--pool", "deep/pool"], more].concat() };
    let socket = dir.join("run/csi.sock");
    let endpoint = format!("--endpoint=unix://{}", socket.display());
    refused(&csi(&["--endpoint", "csi.sock"]), dir, &["--endpoint", "\"csi.sock\"", "unix:///run/"]);
    refused(&[&csi(&["--node-name", "A b"])[..], &[&endpoint]].concat(), dir, &["--node-name"]);
    let mut child = Command::new("timeout")
        .args(["--signal=KILL", "60"])
        .args(csi(&["--node-name", "n1"]))
        .arg(&endpoint)
        .current_dir(dir)
        .stdout(Stdio::piped())
        .spawn()
        .expect("run the driver");
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().expect("piped")), &mut line)
        .expect("a line");
    assert_eq!(line, format!("local.csi.holdfast serves node n1 on {}\n", socket.display()));
    refused(&[&csi(&[])[..], &[&endpoint]].concat(), dir, &["another driver is listening on", "--endpoint"]);
    let elsewhere = format!("--endpoint={}", dir.join("other.sock").display());
    refused(&[&csi(&[])[..], &[&elsewhere]].concat(), dir, &["pool", "is in use by another process"]);
    assert!(!dir.join("other.sock").exists(), "a start that failed leaves no socket");
    // `timeout` passes the signal on.
    let pid = i32::try_from(child.id()).expect("a pid");
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).expect("a pid"), rustix::process::Signal::TERM)
        .expect("end the driver");
    assert!(child.wait().expect("ended").success());
    assert!(!socket.exists() && dir.join("deep/pool/volumes").is_dir());
}
