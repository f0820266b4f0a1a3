//! Volumes of a CSI driver in pods: a driver that the daemon does not bring along, found by its socket.
mod common;

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use common::{Instance, keeps_secrets, text, told, until};
use csi::{
    AccessMode, AccessType, BlockVolume, ControllerClient, CreateVolumeRequest, Driver, Listener, Mode, MountVolume,
    Volume, VolumeCapability,
};
use driver::stand_in::{Face, StandIn};
use pool::Pool;
use sys::RealSys;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const NAME: &str = "pd.csi.storage.gke.io";
const PLACE: &str = "topology.gke.io/zone";

/// A driver that is served by the test.
struct Served {
    runtime: tokio::runtime::Runtime,
    stop: CancellationToken,
    serving: Option<JoinHandle<()>>,
    socket: PathBuf,
    pool: Arc<Pool>,
}

impl Served {
    fn start(instance: &Instance) -> Self {
        let dir = instance.dir.path().join("data/kubelet/plugins/cloud");
        fs::create_dir_all(&dir).expect("made");
        let pool = Arc::new(Pool::open(&instance.dir.path().join("pool"), Arc::new(RealSys)).expect("a pool"));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let mut served =
            Self { runtime, stop: CancellationToken::new(), serving: None, socket: dir.join("csi.sock"), pool };
        served.restart();
        served
    }

    fn end(&mut self) {
        self.stop.cancel();
        let serving = self.serving.take().expect("it serves");
        serving.abort();
        // It was cut off.
        let _ = self.runtime.block_on(serving);
        let _ = fs::remove_file(&self.socket);
    }

    fn restart(&mut self) {
        let _inside = self.runtime.enter();
        let listener = Listener::bind(&self.socket).expect("a socket");
        let face = Face::of("gce-pd").expect("a cloud");
        let routes = StandIn::new(face, face.default_zone, self.pool.clone(), "here").routes();
        self.stop = CancellationToken::new();
        let stop = self.stop.clone().cancelled_owned();
        self.serving = Some(self.runtime.spawn(async move { listener.serve(routes, stop).await.expect("served") }));
    }

    /// Makes a volume as a provisioner does.
    fn make(&self, name: &str, access_type: AccessType) -> Volume {
        let request = CreateVolumeRequest {
            name: name.into(),
            volume_capabilities: vec![VolumeCapability {
                access_type: Some(access_type),
                access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
            }],
            ..CreateVolumeRequest::default()
        };
        let made = self.runtime.block_on(async {
            let driver = Driver::at(&self.socket, Duration::from_secs(30));
            ControllerClient::new(&driver).create_volume(request).await
        });
        made.expect("made").volume.expect("a volume")
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
  csi:
    driver: {NAME}
    volumeHandle: {handle}
    fsType: ext4
    nodeStageSecretRef: {{namespace: default, name: stage}}
    nodePublishSecretRef: {{namespace: default, name: publish}}
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
    let mut instance = Instance::start_with(&["--log", "debug"]);
    let mut driver = Served::start(&instance);
    apply(
        &instance,
        &format!(
            "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {{name: {NAME}}}\n\
             spec: {{attachRequired: false, tokenRequests: [{{audience: vault}}], requiresRepublish: true}}"
        ),
    );
    let secret = |name: &str| {
        format!("{{apiVersion: v1, kind: Secret, metadata: {{name: {name}}}, stringData: {{key: {name}-canary}}}}")
    };
    apply(&instance, &(secret("stage") + "\n---\n" + &secret("publish")));
    until("the driver is told of", || {
        let said = instance.kubectl(&["get", "csinodes", "-o", "jsonpath={.items[*].spec.drivers}"]);
        (said.contains(NAME) && said.contains(PLACE)).then_some(())
    });
    let node = instance.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata}"]);
    assert!(node.contains(&format!("{PLACE:?}:\"")), "{node}");
    assert!(node.contains(r#""csi.volume.kubernetes.io/nodeid":"{\"local.csi.holdfast\":"#), "{node}");

    let files =
        driver.make("files", AccessType::Mount(MountVolume { fs_type: "ext4".into(), ..MountVolume::default() }));
    let block = driver.make("block", AccessType::Block(BlockVolume {}));
    let all = [
        pair("files", &files.volume_id, "Filesystem"),
        pair("block", &block.volume_id, "Block"),
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
    let size = sh(&instance, "raw", "blockdev --getsize64 /dev/data");
    assert_eq!(size.trim(), block.capacity_bytes.to_string());

    // Secrets of both calls, and tokens, all of which begin alike.
    let token = instance.kubectl(&["create", "token", "default"]);
    keeps_secrets(&instance, &["stage-canary", "publish-canary", &token[..24]], &[]);

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
    told(
        &instance,
        "two",
        "failed to get CSI client: driver name pd.csi.storage.gke.io not found in the list of registered CSI drivers",
    );
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
