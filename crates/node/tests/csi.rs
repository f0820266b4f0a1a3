//! CSI drivers on a node: registered, told of, called for volumes, and gone again. API and runtime are in memory, the driver
//! answers on a real socket.
#[allow(dead_code, reason = "each test binary uses a part")]
mod support {
    pub mod api;
    pub mod runtime;
    pub const POD: &str = "/api/v1/namespaces/ns/pods/p";
}

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base::{Layout, SystemClock};
use csi::{
    registration::{CSI_PLUGIN, InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse},
    *,
};
use node::{Config, CsiDrivers, Node as Agent};
use serde_json::{Value, json};
use support::{POD, api::FakeApi, runtime::FakeRuntime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;
use volumes::{PodVolumes, attachment_name};

const NAME: &str = "d.example.com";
const CSI_NODE: &str = "/apis/storage.k8s.io/v1/csinodes/n";

/// A driver and its registrar; remembers what it was asked and told.
#[derive(Default)]
struct Fake {
    versions: Vec<String>,
    endpoint: String,
    looked: AtomicUsize,
    asked: Mutex<Vec<String>>,
    published: Mutex<Option<NodePublishVolumeRequest>>,
    staged: Mutex<Option<NodeStageVolumeRequest>>,
    told: Mutex<Vec<RegistrationStatus>>,
}

impl Fake {
    fn note(&self, what: &str) {
        self.asked.lock().expect("not poisoned").push(what.to_owned());
    }
}

#[async_trait::async_trait]
impl Identity for Fake {
    async fn get_plugin_info(&self, _: GetPluginInfoRequest) -> Result<GetPluginInfoResponse, Status> {
        Ok(GetPluginInfoResponse { name: NAME.into(), vendor_version: "1".into(), ..Default::default() })
    }
    async fn get_plugin_capabilities(
        &self,
        _: GetPluginCapabilitiesRequest,
    ) -> Result<GetPluginCapabilitiesResponse, Status> {
        Ok(GetPluginCapabilitiesResponse::default())
    }
    async fn probe(&self, _: ProbeRequest) -> Result<ProbeResponse, Status> {
        Ok(ProbeResponse::default())
    }
}

#[async_trait::async_trait]
impl Node for Fake {
    async fn node_get_capabilities(
        &self,
        _: NodeGetCapabilitiesRequest,
    ) -> Result<NodeGetCapabilitiesResponse, Status> {
        let rpc = NodeRpc { r#type: NodeRpcType::StageUnstageVolume.into() };
        let stages = NodeServiceCapability { r#type: Some(NodeCapability::Rpc(rpc)) };
        Ok(NodeGetCapabilitiesResponse { capabilities: vec![stages] })
    }
    async fn node_get_info(&self, _: NodeGetInfoRequest) -> Result<NodeGetInfoResponse, Status> {
        let segments = BTreeMap::from([("d.example.com/rack".to_owned(), "r1".to_owned())]);
        let accessible_topology = Some(Topology { segments });
        let max_volumes_per_node = if self.looked.fetch_add(1, Ordering::Relaxed) == 0 { 7 } else { 8 };
        Ok(NodeGetInfoResponse { node_id: "id-of-n".into(), max_volumes_per_node, accessible_topology })
    }
    async fn node_stage_volume(&self, r: NodeStageVolumeRequest) -> Result<NodeStageVolumeResponse, Status> {
        self.note("stage");
        *self.staged.lock().expect("not poisoned") = Some(r);
        Ok(NodeStageVolumeResponse {})
    }
    async fn node_unstage_volume(&self, _: NodeUnstageVolumeRequest) -> Result<NodeUnstageVolumeResponse, Status> {
        self.note("unstage");
        Ok(NodeUnstageVolumeResponse {})
    }
    async fn node_publish_volume(&self, r: NodePublishVolumeRequest) -> Result<NodePublishVolumeResponse, Status> {
        self.note("publish");
        std::fs::create_dir_all(&r.target_path).expect("made");
        *self.published.lock().expect("not poisoned") = Some(r);
        Ok(NodePublishVolumeResponse {})
    }
    async fn node_unpublish_volume(
        &self,
        r: NodeUnpublishVolumeRequest,
    ) -> Result<NodeUnpublishVolumeResponse, Status> {
        self.note("unpublish");
        std::fs::remove_dir(&r.target_path).expect("removed");
        Ok(NodeUnpublishVolumeResponse {})
    }
}

#[async_trait::async_trait]
impl Registration for Fake {
    async fn get_info(&self, _: InfoRequest) -> Result<PluginInfo, Status> {
        let supported_versions = self.versions.clone();
        Ok(PluginInfo {
            r#type: CSI_PLUGIN.into(),
            name: NAME.into(),
            endpoint: self.endpoint.clone(),
            supported_versions,
        })
    }
    async fn notify_registration_status(&self, s: RegistrationStatus) -> Result<RegistrationStatusResponse, Status> {
        self.told.lock().expect("not poisoned").push(s);
        Ok(RegistrationStatusResponse {})
    }
}

/// Serves until cancelled; the socket's file goes with it.
fn serve(path: &Path, routes: RoutesBuilder) -> CancellationToken {
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
    let listener = Listener::bind(path).expect("a socket");
    let serving = tokio::spawn(listener.serve(routes, std::future::pending()));
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        token.cancelled().await;
        // Connections of the node stay open for ever: they are cut.
        serving.abort();
    });
    stop
}

struct World {
    api: FakeApi,
    dir: tempfile::TempDir,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl World {
    fn start() -> Self {
        let (api, dir) = (FakeApi::new(), tempfile::tempdir().expect("a directory"));
        let (stop, running) = Self::run(&api, dir.path());
        Self { api, dir, stop, running }
    }

    fn run(api: &FakeApi, dir: &Path) -> (CancellationToken, JoinHandle<()>) {
        let layout = Layout::new(dir);
        let mut config = Config::new("n", layout.clone(), vec![[192, 0, 2, 1].into()]);
        config.publish_every = Duration::from_millis(100);
        let calls = CsiDrivers::new(config.drivers.clone(), api.client());
        let volumes = PodVolumes::new(layout.pods(), Arc::new(sys::RealSys)).with_drivers(Arc::new(calls));
        let node = Agent::new(config, api.client(), FakeRuntime::new(), Arc::new(volumes), Arc::new(SystemClock));
        let stop = CancellationToken::new();
        let ended = stop.clone();
        (stop, tokio::spawn(async move { node.run(ended).await.expect("runs") }))
    }

    /// Ends the node, lets something happen, and starts it again.
    async fn restart(&mut self, meanwhile: impl FnOnce(&Self)) {
        self.stop.cancel();
        (&mut self.running).await.expect("ended");
        meanwhile(self);
        (self.stop, self.running) = Self::run(&self.api, self.dir.path());
    }

    fn kubelet(&self) -> PathBuf {
        self.dir.path().join("kubelet")
    }

    fn put(&self, path: &str, object: Value) {
        self.api.put(path, object);
    }

    fn pod(&self, volumes: Value) {
        let mount = json!([{"name": "v", "mountPath": "/v"}]);
        let spec = json!({"nodeName": "n", "serviceAccountName": "sa", "terminationGracePeriodSeconds": 1, "volumes": volumes,
            "containers": [{"name": "a", "image": "i:1", "volumeMounts": mount}]});
        let meta = json!({"name": "p", "namespace": "ns", "uid": "pod-uid"});
        self.put(POD, json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}));
    }

    async fn phase(&self, want: &str) {
        self.api.until(want, |api| api.get(POD).filter(|p| p["status"]["phase"] == want)).await;
    }

    async fn delete_pod(&self) {
        let mut pod = self.api.get(POD).expect("there");
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        pod["metadata"]["deletionGracePeriodSeconds"] = 1.into();
        self.put(POD, pod);
        self.api.until("gone", |api| api.get(POD).is_none().then_some(())).await;
    }

    async fn end(self) {
        self.stop.cancel();
        self.running.await.expect("ended");
    }
}

fn driver(fake: &Arc<Fake>) -> RoutesBuilder {
    let mut routes = RoutesBuilder::default();
    routes.add_service(IdentityServer(fake.clone()));
    routes.add_service(NodeServer(fake.clone()));
    routes
}

#[tokio::test]
async fn a_registrar_is_heard_and_answered() {
    let w = World::start();
    let endpoint = w.dir.path().join("elsewhere/d.sock");
    let fake = Arc::new(Fake {
        versions: vec!["1.0.0".into()],
        endpoint: endpoint.to_string_lossy().into_owned(),
        ..Fake::default()
    });
    let serving = serve(&endpoint, driver(&fake));
    let object = json!({"metadata": {"name": NAME}, "spec": {"nodeAllocatableUpdatePeriodSeconds": 1}});
    w.put(&format!("/apis/storage.k8s.io/v1/csidrivers/{NAME}"), object);
    let registrar = |fake: &Arc<Fake>, name: &str| {
        let mut routes = RoutesBuilder::default();
        routes.add_service(RegistrationServer(fake.clone()));
        serve(&w.kubelet().join("plugins_registry").join(name), routes)
    };
    let old = Arc::new(Fake { versions: vec!["2.0.0".into()], ..Fake::default() });
    let refused = registrar(&old, "old-reg.sock");
    let registered = registrar(&fake, "d.example.com-reg.sock");
    let drivers = |api: &FakeApi| api.get(CSI_NODE).map(|o| o["spec"]["drivers"].clone());
    let wanted = json!([{"name": NAME, "nodeID": "id-of-n", "topologyKeys": ["d.example.com/rack"], "allocatable": {"count": 7}}]);
    w.api.until("the driver in the CSINode", |api| (drivers(api)? == wanted).then_some(())).await;
    let node = w.api.get("/api/v1/nodes/n").expect("there");
    assert_eq!(node["metadata"]["labels"]["d.example.com/rack"], "r1");
    assert_eq!(node["metadata"]["annotations"]["csi.volume.kubernetes.io/nodeid"], r#"{"d.example.com":"id-of-n"}"#);
    let told = |fake: &Fake| fake.told.lock().expect("not poisoned").first().cloned();
    let yes = RegistrationStatus { plugin_registered: true, error: String::new() };
    w.api.until("the registrar is told", |_| (told(&fake)? == yes).then_some(())).await;
    let no = w.api.until("the old one is told", |_| told(&old)).await;
    assert!(!no.plugin_registered && no.error.contains("None of the versions specified [\"2.0.0\"]"), "{no:?}");
    let more = |api: &FakeApi| (drivers(api)?[0]["allocatable"]["count"] == 8).then_some(());
    w.api.until("it takes another number of volumes", more).await;
    registered.cancel();
    w.api.until("the driver is gone", |api| (drivers(api)? == json!([])).then_some(())).await;
    let node = w.api.get("/api/v1/nodes/n").expect("there");
    assert!(node["metadata"]["annotations"]["csi.volume.kubernetes.io/nodeid"].is_null(), "{node}");
    refused.cancel();
    serving.cancel();
    w.end().await;
}

#[tokio::test]
async fn a_volume_is_attached_told_of_staged_and_published_and_all_of_it_back() {
    let w = World::start();
    let fake = Arc::new(Fake::default());
    let serving = serve(&w.kubelet().join("plugins/d/csi.sock"), driver(&fake));
    w.api.until("registered", |api| api.get(CSI_NODE)?["spec"]["drivers"].get(0).map(drop)).await;
    let secret = json!({"metadata": {"name": "s", "namespace": "other"}, "data": {"password": "aHVzaA=="}});
    w.put("/api/v1/namespaces/other/secrets/s", secret);
    let csi = json!({"driver": NAME, "volumeHandle": "h", "fsType": "ext4", "volumeAttributes": {"a": "1"},
        "nodeStageSecretRef": {"name": "s", "namespace": "other"}});
    let spec = json!({"csi": csi, "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
        "claimRef": {"uid": "c-uid", "name": "c", "namespace": "ns"}, "mountOptions": ["noatime"]});
    w.put("/api/v1/persistentvolumes/pv", json!({"metadata": {"name": "pv", "uid": "v-uid"}, "spec": spec}));
    let claim = json!({"metadata": {"name": "c", "namespace": "ns", "uid": "c-uid"},
        "spec": {"volumeName": "pv", "accessModes": ["ReadWriteOnce"]}, "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}});
    w.put("/api/v1/namespaces/ns/persistentvolumeclaims/c", claim);
    w.pod(json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]));
    // Nobody has said that the driver needs no attaching.
    let waits = "waiting for external-attacher of d.example.com CSI driver to attach volume h";
    w.api.until(waits, |api| api.get(POD).filter(|p| p["status"].to_string().contains(waits))).await;
    let name = attachment_name("h", NAME, "n");
    let status = json!({"attached": true, "attachmentMetadata": {"port": "7"}});
    let attachment = json!({"metadata": {"name": name}, "status": status,
        "spec": {"attacher": NAME, "nodeName": "n", "source": {"persistentVolumeName": "pv"}}});
    w.put(&format!("/apis/storage.k8s.io/v1/volumeattachments/{name}"), attachment);
    w.phase("Running").await;
    assert!(!w.api.events().iter().any(|e| e.contains("attach")), "{:?}", w.api.events());
    let in_use = |api: &FakeApi| api.get("/api/v1/nodes/n").map(|n| n["status"]["volumesInUse"].clone());
    assert_eq!(in_use(&w.api), Some(json!(["kubernetes.io/csi/d.example.com^h"])));

    let staged = fake.staged.lock().expect("not poisoned").clone().expect("staged");
    assert_eq!(staged.secrets, BTreeMap::from([("password".to_owned(), "hush".to_owned())]));
    assert_eq!(staged.publish_context, BTreeMap::from([("port".to_owned(), "7".to_owned())]));
    let hash = "aaa9402664f1a41f40ebbc52c9993eb66aeb366602958fdfaa283b71e64db123";
    let stage = w.kubelet().join("plugins/kubernetes.io/csi").join(NAME).join(hash).join("globalmount");
    assert_eq!(Path::new(&staged.staging_target_path), stage);
    let published = fake.published.lock().expect("not poisoned").clone().expect("published");
    let target = w.kubelet().join("pods/pod-uid/volumes/kubernetes.io~csi/pv/mount");
    assert_eq!(Path::new(&published.target_path), target);
    assert_eq!((published.readonly, published.secrets.len()), (false, 0));
    let capability = published.volume_capability.expect("a capability");
    let mount_flags = vec!["noatime".to_owned()];
    let mount = MountVolume { fs_type: "ext4".into(), mount_flags, volume_mount_group: String::new() };
    assert_eq!(capability.access_type, Some(AccessType::Mount(mount)));
    assert_eq!(capability.access_mode.map(|m| m.mode()), Some(Mode::SingleNodeWriter));
    let kept = std::fs::read_to_string(target.with_file_name("vol_data.json")).expect("a record");
    assert!(kept.contains("\"volumeHandle\":\"h\"") && !kept.contains("hush"), "{kept}");

    w.delete_pod().await;
    assert_eq!(*fake.asked.lock().expect("not poisoned"), ["stage", "publish", "unpublish", "unstage"]);
    assert!(!stage.parent().expect("a parent").exists());
    w.api.until("not in use", |api| in_use(api)?.is_null().then_some(())).await;
    serving.cancel();
    w.end().await;
}

#[tokio::test]
async fn a_pods_own_volume_is_published_with_the_pods_facts_and_tokens() {
    let w = World::start();
    let fake = Arc::new(Fake::default());
    let serving = serve(&w.kubelet().join("plugins/d/csi.sock"), driver(&fake));
    let spec = json!({"attachRequired": false, "podInfoOnMount": true, "volumeLifecycleModes": ["Ephemeral"],
        "tokenRequests": [{"audience": "vault"}], "serviceAccountTokenInSecrets": true});
    w.put(&format!("/apis/storage.k8s.io/v1/csidrivers/{NAME}"), json!({"metadata": {"name": NAME}, "spec": spec}));
    w.pod(json!([{"name": "v", "csi": {"driver": NAME, "readOnly": true, "volumeAttributes": {"a": "1"}}}]));
    w.phase("Running").await;
    let published = fake.published.lock().expect("not poisoned").clone().expect("published");
    let context: Vec<_> = published.volume_context.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(
        context,
        [
            "a=1",
            "csi.storage.k8s.io/ephemeral=true",
            "csi.storage.k8s.io/pod.name=p",
            "csi.storage.k8s.io/pod.namespace=ns",
            "csi.storage.k8s.io/pod.uid=pod-uid",
            "csi.storage.k8s.io/serviceAccount.name=sa",
        ]
    );
    let tokens = &published.secrets["csi.storage.k8s.io/serviceAccount.tokens"];
    let tokens: Value = serde_json::from_str(tokens).expect("JSON");
    assert_eq!(tokens["vault"]["token"], "t1");
    assert!(tokens["vault"]["expirationTimestamp"].is_string(), "{tokens}");
    assert!(published.readonly && published.staging_target_path.is_empty());
    assert!(published.volume_id.starts_with("csi-") && published.volume_id.len() == 68, "{}", published.volume_id);
    w.delete_pod().await;
    assert_eq!(*fake.asked.lock().expect("not poisoned"), ["publish", "unpublish"]);
    serving.cancel();
    w.end().await;
}

#[tokio::test]
async fn what_a_pod_left_goes_when_its_driver_comes() {
    let mut w = World::start();
    let fake = Arc::new(Fake::default());
    let socket = w.kubelet().join("plugins/d/csi.sock");
    let serving = serve(&socket, driver(&fake));
    let spec = json!({"attachRequired": false, "volumeLifecycleModes": ["Ephemeral"]});
    w.put(&format!("/apis/storage.k8s.io/v1/csidrivers/{NAME}"), json!({"metadata": {"name": NAME}, "spec": spec}));
    w.pod(json!([{"name": "v", "csi": {"driver": NAME}}]));
    w.phase("Running").await;
    // The pod is deleted by force while neither node nor driver is there.
    serving.cancel();
    w.restart(|w| w.api.remove(POD)).await;
    let left = w.kubelet().join("pods/pod-uid/volumes/kubernetes.io~csi/v");
    w.api.until("the node is back", |api| api.get(CSI_NODE).filter(|o| o["spec"]["drivers"].get(0).is_some())).await;
    assert!(left.exists(), "it was removed without its driver");
    let serving = serve(&socket, driver(&fake));
    w.api.until("nothing left", |_| (!left.exists()).then_some(())).await;
    assert_eq!(*fake.asked.lock().expect("not poisoned"), ["publish", "unpublish"]);
    serving.cancel();
    w.end().await;
}

#[tokio::test]
async fn a_volume_is_published_again_and_again_where_its_driver_wants_that() {
    let w = World::start();
    let fake = Arc::new(Fake::default());
    let serving = serve(&w.kubelet().join("plugins/d/csi.sock"), driver(&fake));
    let spec = json!({"attachRequired": false, "volumeLifecycleModes": ["Ephemeral"], "requiresRepublish": true});
    w.put(&format!("/apis/storage.k8s.io/v1/csidrivers/{NAME}"), json!({"metadata": {"name": NAME}, "spec": spec}));
    w.pod(json!([{"name": "v", "csi": {"driver": NAME}}]));
    w.phase("Running").await;
    let asked = || fake.asked.lock().expect("not poisoned").clone();
    w.api.until("three publications", |_| (asked().len() >= 3).then_some(())).await;
    assert!(asked().iter().all(|call| call == "publish"), "{:?}", asked());
    w.delete_pod().await;
    assert_eq!(asked().iter().filter(|call| *call == "unpublish").count(), 1);
    assert_eq!(asked().last().map(String::as_str), Some("unpublish"));
    serving.cancel();
    w.end().await;
}
