//! `iscsi` volumes against a real target, by whatever initiator this machine has.
mod common;

use std::{
    fs,
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use common::{Instance, apply, keeps_secrets, root, sh, told, until};

const IQN: &str = "iqn.2026-11.test.holdfast:disks";
const USER: &str = "who-may-read-it";
const SECRET: &str = "twelve-letters-or-more";

/// A target with two LUNs of 64 MiB on a port of its own. Dropping it ends it.
struct Target {
    dir: tempfile::TempDir,
    port: u16,
    /// Of the socket by which it is told what to do.
    control: String,
    child: Option<Child>,
}

impl Target {
    fn start() -> Self {
        // Of the numbers that ports have, its control takes the lower half.
        let port = free_port();
        let dir = tempfile::Builder::new().prefix("holdfast-test-").tempdir().expect("a directory");
        let mut target = Self { dir, port, control: (port / 2).to_string(), child: None };
        target.up();
        target
    }

    fn up(&mut self) {
        let log = fs::File::create(self.dir.path().join("log")).expect("a log");
        let child = Command::new("tgtd")
            .args(["-f", "-C", &self.control, "--iscsi", &format!("portal=127.0.0.1:{}", self.port)])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start tgtd, of Debian's package tgt");
        self.child = Some(child);
        until("the target listens", || {
            let ended = self.child.as_mut().and_then(|c| c.try_wait().expect("look at tgtd"));
            assert!(ended.is_none(), "tgtd ended: {:?}", fs::read_to_string(self.dir.path().join("log")));
            self.try_tell(&["--op", "show", "--mode", "target"]).then_some(())
        });
        self.tell(&["--op", "new", "--mode", "account", "--user", USER, "--password", SECRET]);
        self.tell(&["--op", "new", "--mode", "target", "--tid", "1", "-T", IQN]);
        self.tell(&["--op", "bind", "--mode", "account", "--tid", "1", "--user", USER]);
        for lun in ["1", "2"] {
            let disk = self.dir.path().join(format!("disk-{lun}"));
            if !disk.exists() {
                fs::File::create(&disk).and_then(|f| f.set_len(64 << 20)).expect("a disk");
            }
            let disk = disk.to_string_lossy().into_owned();
            self.tell(&["--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", lun, "-b", &disk]);
        }
        self.tell(&["--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL"]);
    }

    fn try_tell(&self, arguments: &[&str]) -> bool {
        let told = Command::new("tgtadm").args(["-C", &self.control, "--lld", "iscsi"]).args(arguments).output();
        told.expect("run tgtadm").status.success()
    }

    #[track_caller]
    fn tell(&self, arguments: &[&str]) {
        assert!(
            self.try_tell(arguments),
            "tgtadm {arguments:?}: {:?}",
            fs::read_to_string(self.dir.path().join("log"))
        );
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// A pod's own volume, or what a persistent volume has.
    fn volume(&self, lun: u32, more: &str) -> String {
        format!(
            "iscsi: {{targetPortal: '127.0.0.1:{}', iqn: '{IQN}', lun: {lun}, chapAuthSession: true, secretRef: {{name: chap}}{more}}}",
            self.port
        )
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.kill();
        for file in [format!("socket.{}", self.control), format!("socket.{}.lock", self.control)] {
            let _ = fs::remove_file(Path::new("/var/run/tgtd").join(file));
        }
    }
}

/// Another portal of a target: it passes everything on.
struct Portal {
    port: u16,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    closed: Arc<AtomicBool>,
}

impl Portal {
    fn before(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let portal = Self { port, streams: Arc::default(), closed: Arc::default() };
        let (streams, closed) = (portal.streams.clone(), portal.closed.clone());
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if closed.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(far) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let copy = |stream: &TcpStream| stream.try_clone().expect("a copy");
                    let (mut from, mut to) = (copy(from), copy(to));
                    streams.lock().expect("streams").push(copy(&from));
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        portal
    }

    /// How many connections it has had.
    fn used(&self) -> usize {
        self.streams.lock().expect("streams").len() / 2
    }

    /// Answers nobody any more.
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        until("the portal is closed", || TcpStream::connect(("127.0.0.1", self.port)).err());
        for stream in self.streams.lock().expect("streams").iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port()
}

fn chap(name: &str, user: &str, password: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Secret
metadata: {{name: {name}}}
type: kubernetes.io/iscsi-chap
stringData: {{node.session.auth.username: {user}, node.session.auth.password: {password}}}
"
    )
}

/// A bound pair.
fn pair(name: &str, mode: &str, volume: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec:
  capacity: {{storage: 64Mi}}
  accessModes: [ReadWriteOnce]
  volumeMode: {mode}
  storageClassName: ''
  claimRef: {{namespace: default, name: {name}}}
  {volume}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec:
  accessModes: [ReadWriteOnce]
  volumeMode: {mode}
  storageClassName: ''
  volumeName: {name}
  resources: {{requests: {{storage: 64Mi}}}}
"
    )
}

fn pod(name: &str, uses: &str, volume: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {{fsGroup: 4711, supplementalGroups: [4712]}}
  containers:
  - name: c
    image: nginx:alpine
    {uses}
  volumes: [{{name: v, {volume}}}]
"
    )
}

fn claim(name: &str) -> String {
    format!("persistentVolumeClaim: {{claimName: {name}}}")
}

const MOUNTED: &str = "volumeMounts: [{name: v, mountPath: /v}]";
const INSIDE: &str = "env: [{name: WHO, value: me}]
    volumeMounts:
    - {name: v, mountPath: /v, subPath: sub/dir}
    - {name: v, mountPath: /mine, subPathExpr: of-$(WHO)}
    - {name: v, mountPath: /follows, mountPropagation: HostToContainer}
    - {name: v, mountPath: /seen, readOnly: true, recursiveReadOnly: Enabled}";
const DEVICE: &str = "volumeDevices: [{name: v, devicePath: /dev/data}]";

fn ready(instance: &Instance, pods: &[&str]) {
    for pod in pods {
        instance.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]);
    }
}

fn delete(instance: &Instance, pods: &[&str]) {
    let args = [&["delete", "pod", "--timeout=30s"], pods].concat();
    instance.kubectl(&args);
}

/// Mounts, loop devices and processes that the node has for LUNs.
fn traces(instance: &Instance) -> Vec<String> {
    let data = instance.data_dir();
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let mut found: Vec<String> =
        table.lines().filter(|l| l.contains(&data) && l.contains("iscsi")).map(String::from).collect();
    for entry in fs::read_dir("/sys/block").expect("devices").flatten() {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if file.starts_with(&data) && file.contains("iscsi") {
            found.push(file);
        }
    }
    found.extend(servers(&data).into_iter().map(|pid| format!("process {pid}")));
    found
}

/// Processes that work in a LUN's directory.
fn servers(data: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc").expect("processes").flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        cwd.to_string_lossy().starts_with(&format!("{data}/kubelet/plugins/kubernetes.io/iscsi"))
    })
    .collect()
}

#[test]
fn luns_live_with_their_pods() {
    // It goes last: what is not unmounted yet waits for it.
    let mut target = Target::start();
    let mut instance = Instance::start_with(&["--log", "debug"]);
    let all = [
        chap("chap", USER, SECRET),
        pair("files", "Filesystem", &(target.volume(1, ", fsType: ext4") + "\n  mountOptions: [noatime, commit=7]")),
        pair("block", "Block", &target.volume(2, "")),
        pod("one", MOUNTED, &claim("files")),
        pod("two", INSIDE, &claim("files")),
        pod("raw", DEVICE, &claim("block")),
        pod("own", MOUNTED, &target.volume(1, "")),
    ];
    apply(&instance, &all.concat());
    ready(&instance, &["one", "two", "raw", "own"]);
    sh(&instance, "one", "echo kept >/v/f; sync");
    assert_eq!(sh(&instance, "own", "cat /v/f; stat -c %g /v"), "kept\n4711\n", "one disk, one filesystem");
    sh(&instance, "two", "echo below >/v/f");
    sh(&instance, "two", "echo mine >/mine/f");
    assert_eq!(sh(&instance, "one", "cat /v/sub/dir/f /v/of-me/f"), "below\nmine\n");
    let seen = sh(&instance, "two", "cat /follows/f; touch /seen/new || echo refused; grep ^Groups /proc/self/status");
    assert!(seen.starts_with("kept\n") && seen.contains("refused") && seen.contains("4711 4712"), "{seen}");
    let mounted = sh(&instance, "one", "grep ' /v ' /proc/mounts");
    assert!(mounted.contains("noatime") && mounted.contains("commit=7"), "{mounted}");
    // A container that ends comes back to its volume.
    sh(&instance, "one", "kill 1");
    until("the container is there again", || {
        let state = "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}";
        (instance.kubectl(&["get", "pod/one", "-o", state]) == "1 true").then_some(())
    });
    assert_eq!(sh(&instance, "one", "cat /v/f"), "kept\n");
    sh(&instance, "raw", "printf device | dd of=/dev/data conv=notrunc,fsync 2>/dev/null");
    assert_eq!(sh(&instance, "raw", "blockdev --getsize64 /dev/data").trim(), (64 << 20).to_string());

    // Nobody on the machine can read the secret off a process.
    let data = instance.data_dir();
    for pid in servers(&data) {
        for file in ["cmdline", "environ"] {
            let told = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let told = String::from_utf8_lossy(&told).into_owned();
            assert!(!told.contains(SECRET) && !told.contains(USER), "{told}");
        }
    }
    keeps_secrets(&instance, &[SECRET], &[]);

    // Volumes outlive the daemon, and their target.
    instance.end("KILL");
    instance.up();
    sh(&instance, "one", "echo again >>/v/f");
    target.kill();
    let mut writing = Command::new(common::kubectl());
    writing.args(["--kubeconfig", &instance.kubeconfig(), "exec", "one", "--", "sh", "-c"]);
    let mut writing =
        writing.arg("echo late >>/v/f; sync /v/f; cat /v/f").stdout(Stdio::piped()).spawn().expect("exec");
    target.up();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut writing.stdout.take().expect("piped"), &mut said).expect("read");
    assert!(writing.wait().expect("wait").success());
    assert_eq!(said, "kept\nagain\nlate\n");

    delete(&instance, &["one", "two", "raw", "own"]);
    assert_eq!(traces(&instance), [""; 0]);
    let reader = target.volume(1, ", readOnly: true");
    let read_only =
        [pod("reads", MOUNTED, &reader), pod("reads-too", MOUNTED, &reader), pod("raw-reads", DEVICE, &claim("block"))];
    apply(&instance, &read_only.concat());
    ready(&instance, &["reads", "reads-too", "raw-reads"]);
    assert_eq!(sh(&instance, "reads-too", "head -n 1 /v/f"), "kept\n");
    assert_eq!(
        sh(&instance, "reads", "cat /v/f; touch /v/new 2>/dev/null || echo refused"),
        "kept\nagain\nlate\nrefused\n"
    );
    assert_eq!(sh(&instance, "raw-reads", "head -c 6 /dev/data"), "device");
    // Its end is the end of a daemon that comes back without having seen it begin.
    instance.end("KILL");
    instance.up();
    delete(&instance, &["reads", "reads-too", "raw-reads"]);
    assert_eq!(traces(&instance), [""; 0]);
}

#[test]
fn what_is_wrong_is_said_and_goes_when_it_is_mended() {
    let target = Target::start();
    let instance = Instance::start();
    let closed = free_port();
    apply(&instance, &[chap("chap", USER, SECRET), pod("first", MOUNTED, &target.volume(1, ""))].concat());
    ready(&instance, &["first"]);
    sh(&instance, "first", "echo kept >/v/f");
    delete(&instance, &["first"]);
    // As upstream's, the scheduler lets several pods have disks of one target only if all just read.
    let right = target.volume(1, ", readOnly: true");
    let with = |from: &str, to: &str| {
        assert!(right.contains(from), "{from}");
        right.replace(from, to)
    };
    let port = format!(":{}'", target.port);
    let all = [
        chap("wrong", USER, "some-other-secret"),
        "---\n{apiVersion: v1, kind: Secret, metadata: {name: half}, stringData: {node.session.auth.username: u}}"
            .into(),
        pod("portal", MOUNTED, &with(&port, &format!(":{closed}'"))),
        pod("text", MOUNTED, &with(&port, ":a b'")),
        pod("iqn", MOUNTED, &with(":disks", ":none")),
        pod("lun", MOUNTED, &with("lun: 1", "lun: 9")),
        pod("login", MOUNTED, &with("name: chap", "name: wrong")),
        pod("open", MOUNTED, &with("chapAuthSession: true, ", "")),
        pod("absent", MOUNTED, &with("name: chap", "name: later")),
        pod("half", MOUNTED, &with("name: chap", "name: half")),
    ];
    apply(&instance, &all.concat());
    let iqn = format!("target {IQN:?}");
    told(
        &instance,
        "portal",
        &format!("portal 127.0.0.1:{closed} (iscsi.targetPortal, iscsi.portals) cannot be reached: Connection refused"),
    );
    told(&instance, "text", "iscsi.targetPortal \"127.0.0.1:a b\" cannot be used");
    told(&instance, "iqn", "has no target \"iqn.2026-11.test.holdfast:none\" for this node (iscsi.iqn)");
    told(&instance, "lun", "has no LUN 9 for this node (iscsi.lun)");
    told(
        &instance,
        "login",
        &format!("{iqn} at 127.0.0.1:{} refuses user or password of secret default/wrong", target.port),
    );
    told(&instance, "open", "wants CHAP (iscsi.chapAuthSession, iscsi.secretRef)");
    told(&instance, "absent", "couldn't get secret default/later error: secrets \"later\" not found");
    told(
        &instance,
        "half",
        "secret default/half has no key node.session.auth.password, which iscsi.chapAuthSession needs",
    );
    delete(&instance, &["portal", "text", "iqn", "open", "half"]);

    apply(&instance, &[chap("wrong", USER, SECRET), chap("later", USER, SECRET)].concat());
    let disk = target.dir.path().join("disk-1").to_string_lossy().into_owned();
    target.tell(&["--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "9", "-b", &disk]);
    ready(&instance, &["login", "absent", "lun"]);
    for pod in ["login", "absent", "lun"] {
        assert_eq!(sh(&instance, pod, "cat /v/f"), "kept\n");
    }
    delete(&instance, &["login", "absent", "lun"]);
    assert_eq!(traces(&instance), [""; 0]);
}

#[test]
fn a_claim_outlives_its_portal_grows_and_ends_without_its_target() {
    let mut target = Target::start();
    // One that grows in use for whoever may not use more than its share of the machine.
    target.kill();
    let disk = target.dir.path().join("disk-1");
    let image = root().join("crates/volumes/tests/data/xfs-32m.img.gz");
    let out = Command::new("gzip").arg("-dc").arg(image).output().expect("run gzip");
    fs::write(&disk, out.stdout).expect("write a disk");
    target.up();
    let instance = Instance::start();
    let front = Portal::before(target.port);
    let volume = target.volume(1, &format!(", portals: ['127.0.0.1:{}']", target.port));
    let volume = volume.replacen(&target.port.to_string(), &front.port.to_string(), 1);
    let class = "
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: grows}
provisioner: kubernetes.io/no-provisioner
allowVolumeExpansion: true
";
    let pair = pair("grown", "Filesystem", &volume).replace("''", "grows").replace("64Mi", "32Mi");
    let all = [chap("chap", USER, SECRET), class.into(), pair, pod("one", MOUNTED, &claim("grown"))];
    apply(&instance, &all.concat());
    ready(&instance, &["one"]);
    assert!(front.used() > 0, "the first portal is the first");
    sh(&instance, "one", "echo kept >/v/f; sync /v/f");
    front.close();
    sh(&instance, "one", "echo elsewhere >>/v/f; sync /v/f");

    // Enlarged at the target, and then asked for.
    target.kill();
    fs::File::options().write(true).open(&disk).and_then(|f| f.set_len(64 << 20)).expect("enlarge a disk");
    target.up();
    for (object, field) in [("pv/grown", "capacity"), ("pvc/grown", "resources\":{\"requests")] {
        let close = if field == "capacity" { "}}}" } else { "}}}}" };
        let patch = format!("{{\"spec\":{{\"{field}\":{{\"storage\":\"64Mi\"{close}");
        instance.kubectl(&["patch", object, "-p", &patch]);
    }
    until("the claim has grown", || {
        let has = instance.kubectl(&["get", "pvc/grown", "-o", "jsonpath={.status.capacity.storage}"]);
        (has == "64Mi").then_some(())
    });
    let room = sh(&instance, "one", "df -m /v | tail -n 1 | awk '{print $2}'");
    assert!(room.trim().parse::<u64>().expect("a size") > 50, "{room}");

    // It goes while somebody waits for it to take what was written, and while somebody else has a copy of all mounts.
    let mut copy = Command::new("unshare").args(["--mount", "sleep", "99"]).spawn().expect("run unshare");
    let has_copy = || Path::new(&format!("/proc/{}/ns/mnt", copy.id())).read_link().ok();
    until("a copy", || (has_copy() != fs::read_link("/proc/self/ns/mnt").ok()).then_some(()));
    target.kill();
    sh(&instance, "one", "(dd if=/dev/zero of=/v/lost bs=1M count=4 conv=fsync 2>/dev/null) >/dev/null 2>&1 &");
    delete(&instance, &["one"]);
    copy.kill().and_then(|()| copy.wait()).expect("end the copy");
    until("nothing is left", || traces(&instance).is_empty().then_some(()));
    apply(&instance, &pod("two", MOUNTED, &claim("grown")));
    let said = format!("portal 127.0.0.1:{} (iscsi.targetPortal, iscsi.portals) cannot be reached", target.port);
    told(&instance, "two", &said);
    target.up();
    ready(&instance, &["two"]);
    assert_eq!(sh(&instance, "two", "cat /v/f"), "kept\nelsewhere\n");
    delete(&instance, &["two"]);
    assert_eq!(traces(&instance), [""; 0]);
}
