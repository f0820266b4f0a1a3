//! Volumes of a CSI driver in pods: the driver of this program, in a process of its own, found by its socket.
mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use common::{Instance, text, told, until};
use csi::{
    AccessMode, AccessType, BlockVolume, CapacityRange, ControllerClient, CreateVolumeRequest, Driver, Mode,
    MountVolume, VolumeCapability,
};

const NAME: &str = "local.csi.holdfast";
const SIZE: i64 = 32 << 20;

/// The driver as a process, with a pool of its own.
struct Process {
    child: Child,
    socket: PathBuf,
    pool: PathBuf,
}

impl Process {
    fn start(instance: &Instance) -> Self {
        let dir = instance.dir.path().join("data/kubelet/plugins/local");
        fs::create_dir_all(&dir).expect("made");
        let (socket, pool) = (dir.join("csi.sock"), instance.dir.path().join("pool"));
        let child = Self::spawn(&socket, &pool);
        Self { child, socket, pool }
    }

    fn spawn(socket: &Path, pool: &Path) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command.arg("csi").arg("--endpoint").arg(socket).arg("--pool").arg(pool).args(["--node-name", "here"]);
        command.stdout(Stdio::null()).spawn().expect("start the driver")
    }

    fn end(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    fn restart(&mut self) {
        self.child = Self::spawn(&self.socket, &self.pool);
    }

    /// Makes a volume as a provisioner does, and gives its handle.
    fn make(&self, name: &str, access_type: AccessType) -> String {
        let request = CreateVolumeRequest {
            name: name.into(),
            capacity_range: Some(CapacityRange { required_bytes: SIZE, limit_bytes: 0 }),
            volume_capabilities: vec![VolumeCapability {
                access_type: Some(access_type),
                access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
            }],
            ..CreateVolumeRequest::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let made = runtime.block_on(async {
            let driver = Driver::at(&self.socket, Duration::from_secs(30));
            ControllerClient::new(&driver).create_volume(request).await
        });
        made.expect("made").volume.expect("a volume").volume_id
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have been ended by the test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn apply(instance: &Instance, manifest: &str) {
    let applied = instance.kubectl_with(&["apply", "-f", "-"], manifest);
    assert!(applied.status.success(), "{}", text(&applied.stderr));
}

/// A bound pair for a volume that exists.
fn pair(name: &str, handle: &str, mode: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec:
  capacity: {{storage: 32Mi}}
  accessModes: [ReadWriteOnce]
  volumeMode: {mode}
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ''
  claimRef: {{namespace: default, name: {name}}}
  csi: {{driver: {NAME}, volumeHandle: {handle}, fsType: ext4}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec:
  accessModes: [ReadWriteOnce]
  volumeMode: {mode}
  storageClassName: ''
  volumeName: {name}
  resources: {{requests: {{storage: 32Mi}}}}
"
    )
}

fn pod(name: &str, claim: &str, uses: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {{fsGroup: 4711}}
  containers:
  - name: c
    image: nginx:alpine
    {uses}
  volumes: [{{name: v, persistentVolumeClaim: {{claimName: {claim}}}}}]
"
    )
}

const MOUNTED: &str = "volumeMounts: [{name: v, mountPath: /v}]";
const DEVICE: &str = "volumeDevices: [{name: v, devicePath: /dev/data}]";

fn ready(instance: &Instance, pods: &[&str]) {
    for pod in pods {
        instance.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]);
    }
}

fn sh(instance: &Instance, pod: &str, script: &str) -> String {
    instance.kubectl(&["exec", pod, "--", "sh", "-c", script])
}

/// Mounts that the node or the driver keeps for volumes.
fn mounts(instance: &Instance) -> Vec<String> {
    let kubelet = instance.dir.path().join("data/kubelet");
    let kubelet = kubelet.to_string_lossy();
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .filter(|p| p.starts_with(&*kubelet) && (p.contains("csi") || p.contains("plugins")))
        .map(String::from)
        .collect()
}

#[test]
fn volumes_of_a_driver_live_with_their_pods() {
    let mut instance = Instance::start();
    let mut driver = Process::start(&instance);
    apply(
        &instance,
        &format!(
            "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {{name: {NAME}}}\nspec: {{attachRequired: false}}"
        ),
    );
    until("the driver is told of", || {
        let said = instance.kubectl(&["get", "csinodes", "-o", "jsonpath={.items[*].spec.drivers}"]);
        (said.contains(NAME) && said.contains("topology.local.csi.holdfast/node")).then_some(())
    });
    let labels = instance.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata}"]);
    assert!(labels.contains("\"topology.local.csi.holdfast/node\":\"here\""), "{labels}");
    assert!(labels.contains(r#""csi.volume.kubernetes.io/nodeid":"{\"local.csi.holdfast\":\"here\"}""#), "{labels}");

    let files =
        driver.make("files", AccessType::Mount(MountVolume { fs_type: "ext4".into(), ..MountVolume::default() }));
    let block = driver.make("block", AccessType::Block(BlockVolume {}));
    let all = [
        pair("files", &files, "Filesystem"),
        pair("block", &block, "Block"),
        pod("one", "files", MOUNTED),
        pod("two", "files", MOUNTED),
        pod("raw", "block", DEVICE),
        pod("wrong", "block", MOUNTED),
    ];
    apply(&instance, &all.concat());
    ready(&instance, &["one", "two", "raw"]);
    told(&instance, "wrong", "volume v has volumeMode Block, but is specified in volumeMounts");
    sh(&instance, "one", "echo kept >/v/f; sync");
    assert_eq!(sh(&instance, "two", "cat /v/f; stat -c %g /v"), "kept\n4711\n");
    sh(&instance, "raw", "printf device | dd of=/dev/data conv=notrunc 2>/dev/null; sync");
    assert_eq!(
        sh(&instance, "raw", "test -b /dev/data && head -c 6 /dev/data; cat /proc/partitions >/dev/null"),
        "device"
    );
    let size = sh(&instance, "raw", "wc -c </dev/data");
    assert_eq!(size.trim(), SIZE.to_string());

    // A restart finds what is there; the volume stays staged for the pod that is left.
    instance.end("KILL");
    instance.up();
    ready(&instance, &["one", "two", "raw"]);
    instance.kubectl(&["delete", "pod", "one", "wrong", "--timeout=60s"]);
    assert_eq!(sh(&instance, "two", "cat /v/f"), "kept\n");
    instance.kubectl(&["delete", "pod", "raw", "--timeout=60s"]);

    // Without its driver a volume cannot be taken away: its pod says so, and goes when the driver is back.
    driver.end();
    instance.kubectl(&["delete", "pod", "two", "--wait=false"]);
    told(&instance, "two", "UnmountVolume.TearDown failed for volume \"files\" : rpc error: code = Unavailable");
    driver.restart();
    instance.kubectl(&["wait", "--for=delete", "pod/two", "--timeout=60s"]);
    assert_eq!(mounts(&instance), [""; 0]);
    let plugins = instance.dir.path().join("data/kubelet/plugins/kubernetes.io/csi");
    assert!(fs::read_dir(plugins.join(NAME)).map_or(true, |mut left| left.next().is_none()), "a stage is left");

    // What was written is there for the next pod.
    apply(&instance, &[pod("three", "files", MOUNTED), pod("again", "block", DEVICE)].concat());
    ready(&instance, &["three", "again"]);
    assert_eq!(sh(&instance, "three", "cat /v/f"), "kept\n");
    assert_eq!(sh(&instance, "again", "head -c 6 /dev/data"), "device");
    instance.kubectl(&["delete", "pod", "three", "again", "--timeout=60s"]);
}
