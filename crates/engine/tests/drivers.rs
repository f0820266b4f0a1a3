//! Provisioning, attaching, growing and deleting through a driver that fails, hangs, lies and dies. The driver is real gRPC on a
//! socket; the cluster is the real API server and engine.
#![allow(clippy::unwrap_used, reason = "a step that fails here fails the test")]
mod support;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use csi::*;
use serde_json::{Value, json};
use support::{Cluster, claim, namespace, node, phase, pod};
use tokio::sync::oneshot;
use tonic::service::RoutesBuilder;

const NAME: &str = "bad.example.com";
const CLAIMS: &str = "/api/v1/namespaces/ns/persistentvolumeclaims";
const VOLUMES: &str = "/api/v1/persistentvolumes";

/// What the driver does with the next calls of a name; then it behaves.
#[derive(Clone)]
enum Fault {
    /// Fails before it does anything.
    Refuse(Code),
    /// Does it, and says that it failed.
    Lose(Code),
    /// Never answers.
    Hang,
    /// Answers with another volume.
    Lie(Volume),
}

#[derive(Default)]
struct State {
    /// Size of each volume, and where it is attached.
    volumes: BTreeMap<String, (i64, Vec<String>)>,
    faults: BTreeMap<&'static str, Vec<Fault>>,
    calls: Vec<String>,
    secrets: Vec<BTreeMap<String, String>>,
}

#[derive(Clone, Default)]
struct Bad(Arc<Mutex<State>>);

impl Bad {
    fn plan(&self, call: &'static str, faults: impl IntoIterator<Item = Fault>) {
        self.0.lock().unwrap().faults.entry(call).or_default().extend(faults);
    }
    /// Resolves once all planned faults were met.
    async fn met(&self) {
        let left = || self.0.lock().unwrap().faults.values().any(|f| !f.is_empty());
        let waited = async {
            while left() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(support::LONG, waited).await.expect("the faults are met");
    }
    fn volumes(&self) -> Vec<String> {
        self.0.lock().unwrap().volumes.keys().cloned().collect()
    }
    fn calls(&self, name: &str) -> usize {
        self.0.lock().unwrap().calls.iter().filter(|c| *c == name).count()
    }
    /// Does `act` unless a fault comes before; what fault comes after.
    async fn call<T>(
        &self,
        name: &'static str,
        act: impl FnOnce(&mut State) -> T,
    ) -> Result<(T, Option<Volume>), Status> {
        let fault = {
            let mut state = self.0.lock().unwrap();
            state.calls.push(name.to_owned());
            let planned = state.faults.get_mut(name).filter(|f| !f.is_empty());
            planned.map(|f| f.remove(0))
        };
        let act = |bad: &Self| act(&mut bad.0.lock().unwrap());
        match fault {
            None => Ok((act(self), None)),
            Some(Fault::Refuse(code)) => Err(Status::new(code, "not today")),
            Some(Fault::Lose(code)) => {
                act(self);
                Err(Status::new(code, "who knows"))
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Lie(volume)) => Ok((act(self), Some(volume))),
        }
    }

    async fn serve(&self, socket: &Path) -> oneshot::Sender<()> {
        let mut routes = RoutesBuilder::default();
        let driver = Arc::new(self.clone());
        routes.add_service(IdentityServer(driver.clone()));
        routes.add_service(ControllerServer(driver));
        let listener = Listener::bind(socket).unwrap();
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(async move { listener.serve(routes, async { drop(stopped.await) }).await.unwrap() });
        stop
    }
}

#[async_trait::async_trait]
impl Identity for Bad {
    async fn get_plugin_info(&self, _: GetPluginInfoRequest) -> Result<GetPluginInfoResponse, Status> {
        Ok(GetPluginInfoResponse { name: NAME.into(), vendor_version: "1".into(), ..Default::default() })
    }
    async fn probe(&self, _: ProbeRequest) -> Result<ProbeResponse, Status> {
        Ok(ProbeResponse { ready: Some(true) })
    }
    async fn get_plugin_capabilities(
        &self,
        _: GetPluginCapabilitiesRequest,
    ) -> Result<GetPluginCapabilitiesResponse, Status> {
        let service = PluginService { r#type: PluginServiceType::ControllerService.into() };
        let capability = PluginCapability { r#type: Some(PluginCapabilityType::Service(service)) };
        Ok(GetPluginCapabilitiesResponse { capabilities: vec![capability] })
    }
}

#[async_trait::async_trait]
impl Controller for Bad {
    async fn controller_get_capabilities(
        &self,
        _: ControllerGetCapabilitiesRequest,
    ) -> Result<ControllerGetCapabilitiesResponse, Status> {
        use ControllerRpcType as Can;
        let all = [Can::CreateDeleteVolume, Can::PublishUnpublishVolume, Can::ExpandVolume, Can::ModifyVolume];
        let capability = |can: Can| ControllerServiceCapability {
            r#type: Some(ControllerCapability::Rpc(ControllerRpc { r#type: can.into() })),
        };
        Ok(ControllerGetCapabilitiesResponse { capabilities: all.into_iter().map(capability).collect() })
    }
    async fn create_volume(&self, r: CreateVolumeRequest) -> Result<CreateVolumeResponse, Status> {
        let bytes = r.capacity_range.unwrap_or_default().required_bytes;
        self.0.lock().unwrap().secrets.push(r.secrets.clone());
        let (made, lie) = self
            .call("CreateVolume", |s| {
                let size = s.volumes.entry(r.name.clone()).or_insert((bytes, Vec::new())).0;
                Volume { volume_id: r.name.clone(), capacity_bytes: size, ..Default::default() }
            })
            .await?;
        Ok(CreateVolumeResponse { volume: Some(lie.unwrap_or(made)) })
    }
    async fn delete_volume(&self, r: DeleteVolumeRequest) -> Result<DeleteVolumeResponse, Status> {
        self.call("DeleteVolume", |s| s.volumes.remove(&r.volume_id)).await?;
        Ok(DeleteVolumeResponse {})
    }
    async fn controller_publish_volume(
        &self,
        r: ControllerPublishVolumeRequest,
    ) -> Result<ControllerPublishVolumeResponse, Status> {
        self.call("Publish", |s| s.volumes.get_mut(&r.volume_id).unwrap().1.push(r.node_id)).await?;
        Ok(ControllerPublishVolumeResponse { publish_context: BTreeMap::from([("lun".into(), "7".into())]) })
    }
    async fn controller_unpublish_volume(
        &self,
        r: ControllerUnpublishVolumeRequest,
    ) -> Result<ControllerUnpublishVolumeResponse, Status> {
        self.call("Unpublish", |s| s.volumes.get_mut(&r.volume_id).unwrap().1.retain(|n| *n != r.node_id)).await?;
        Ok(ControllerUnpublishVolumeResponse {})
    }
    async fn controller_expand_volume(
        &self,
        r: ControllerExpandVolumeRequest,
    ) -> Result<ControllerExpandVolumeResponse, Status> {
        let capacity_bytes = r.capacity_range.unwrap_or_default().required_bytes;
        self.call("Expand", |s| s.volumes.get_mut(&r.volume_id).unwrap().0 = capacity_bytes).await?;
        Ok(ControllerExpandVolumeResponse { capacity_bytes, node_expansion_required: false })
    }
    async fn controller_modify_volume(
        &self,
        _: ControllerModifyVolumeRequest,
    ) -> Result<ControllerModifyVolumeResponse, Status> {
        self.call("Modify", |_| ()).await?;
        Ok(ControllerModifyVolumeResponse {})
    }
}

/// A cluster with the driver, its class, and a directory that is removed at the end.
struct Scene {
    cluster: Cluster,
    driver: Bad,
    socket: PathBuf,
    serving: oneshot::Sender<()>,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn new(class: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("csi.sock");
        let driver = Bad::default();
        let serving = driver.serve(&socket).await;
        let cluster = Cluster::start().await;
        cluster.drivers.add(&socket).await.unwrap();
        cluster.make("/api/v1/namespaces", namespace()).await;
        let mut object = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": "bad" },
            "provisioner": NAME, "allowVolumeExpansion": true,
        });
        object.as_object_mut().unwrap().extend(class.as_object().unwrap().clone());
        cluster.make("/apis/storage.k8s.io/v1/storageclasses", object).await;
        Self { cluster, driver, socket, serving, _dir: dir }
    }

    async fn claim(&self, name: &str) {
        let mut object = claim(name, "1Gi");
        object["spec"]["storageClassName"] = json!("bad");
        self.cluster.make(CLAIMS, object).await;
    }

    async fn bound(&self, name: &str) -> Value {
        self.cluster.wait(&format!("{CLAIMS}/{name}"), "the claim is bound", phase("Bound")).await
    }

    /// All volumes and what they were made of are gone.
    async fn cleared(self) {
        self.cluster.wait(VOLUMES, "no volumes", |list| list["items"].as_array().unwrap().is_empty()).await;
        assert_eq!(self.driver.volumes(), Vec::<String>::new());
        drop(self.serving);
        self.cluster.stop_after_failures().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_made_once_whatever_fails_and_deleted_with_its_claim() {
    let scene = Scene::new(json!({})).await;
    scene.driver.plan("CreateVolume", [Fault::Lose(Code::DeadlineExceeded), Fault::Refuse(Code::Internal)]);
    scene.driver.plan("DeleteVolume", [Fault::Refuse(Code::Internal), Fault::Lose(Code::Unavailable)]);
    scene.claim("c").await;
    let said =
        "failed to provision volume with StorageClass \"bad\": rpc error: code = DeadlineExceeded desc = who knows";
    scene.cluster.event("ProvisioningFailed", said).await;
    let claim = scene.bound("c").await;
    let volume = format!("pvc-{}", claim["metadata"]["uid"].as_str().unwrap());
    assert_eq!(scene.driver.volumes(), std::slice::from_ref(&volume));
    assert_eq!(claim["spec"]["volumeName"], json!(volume));
    assert_eq!(scene.driver.calls("CreateVolume"), 3);
    scene.cluster.delete(&format!("{CLAIMS}/c")).await;
    scene.cluster.event("VolumeFailedDelete", "rpc error: code = Internal desc = not today").await;
    scene.cleared().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_for_a_claim_that_is_gone_is_deleted() {
    let scene = Scene::new(json!({})).await;
    scene.driver.plan("CreateVolume", [Fault::Lose(Code::DeadlineExceeded)]);
    scene.claim("c").await;
    scene.cluster.event("ProvisioningFailed", "DeadlineExceeded").await;
    assert_eq!(scene.driver.volumes().len(), 1);
    scene.cluster.delete(&format!("{CLAIMS}/c")).await;
    let waited = async {
        while !scene.driver.volumes().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(support::LONG, waited).await.expect("the volume is deleted");
    scene.cleared().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_lies_or_hangs_is_not_believed_and_stops_nobody() {
    let scene = Scene::new(json!({})).await;
    let lie =
        |id: &str, capacity_bytes| Fault::Lie(Volume { volume_id: id.into(), capacity_bytes, ..Default::default() });
    scene.claim("first").await;
    let first = scene.bound("first").await;
    let taken = first["spec"]["volumeName"].as_str().unwrap();
    scene.driver.plan("CreateVolume", [lie(taken, 1 << 30)]);
    scene.claim("same").await;
    scene.cluster.event("ProvisioningFailed", &format!("but that is what {taken} is")).await;
    scene.driver.plan("CreateVolume", [lie("", 1 << 30)]);
    scene.claim("nameless").await;
    scene.cluster.event("ProvisioningFailed", "without saying which volume it made").await;
    scene.driver.plan("CreateVolume", [Fault::Hang]);
    scene.claim("hung").await;
    scene.driver.met().await;
    // Of no size: what was asked for counts.
    let before = scene.driver.volumes();
    scene.driver.plan("CreateVolume", [lie("of-no-size", 0)]);
    scene.claim("sizeless").await;
    let bound = scene.bound("sizeless").await;
    assert_eq!(bound["status"]["capacity"]["storage"], "1Gi");
    assert!(before.iter().all(|v| scene.driver.volumes().contains(v)), "nothing of others is deleted");
    drop(scene.serving);
    scene.cluster.stop_after_failures().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_small_a_volume_is_given_back() {
    let scene = Scene::new(json!({})).await;
    scene.claim("c").await;
    scene.bound("c").await;
    let mut object = claim("d", "2Gi");
    object["spec"]["storageClassName"] = json!("bad");
    let small = Volume { volume_id: "small".into(), capacity_bytes: 1 << 30, ..Default::default() };
    scene.driver.plan("CreateVolume", [Fault::Lie(small)]);
    scene.cluster.make(CLAIMS, object).await;
    scene.cluster.event("ProvisioningFailed", "less than requested capacity 2147483648").await;
    scene.bound("d").await;
    assert!(scene.driver.calls("DeleteVolume") >= 1);
    for name in ["c", "d"] {
        scene.cluster.delete(&format!("{CLAIMS}/{name}")).await;
    }
    scene.cleared().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_go_to_the_driver_and_a_missing_one_is_named() {
    let scene = Scene::new(json!({ "parameters": {
        "csi.storage.k8s.io/provisioner-secret-name": "of-${pvc.name}",
        "csi.storage.k8s.io/provisioner-secret-namespace": "ns",
    } }))
    .await;
    // The template knows no name of a claim for the provisioner's namespace, but for its name.
    scene.claim("c").await;
    let missing = "error getting secret of-c in namespace ns: secrets \"of-c\" not found";
    scene.cluster.event("ProvisioningFailed", missing).await;
    assert_eq!(scene.driver.calls("CreateVolume"), 0);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "of-c" }, "stringData": { "key": "swordfish" },
    });
    scene.cluster.make("/api/v1/namespaces/ns/secrets", secret).await;
    scene.bound("c").await;
    assert_eq!(scene.driver.0.lock().unwrap().secrets[0]["key"], "swordfish");
    let volumes = scene.cluster.send("GET", VOLUMES, Value::Null).await.to_string();
    assert!(!volumes.contains("swordfish"), "{volumes}");
    scene.cluster.delete(&format!("{CLAIMS}/c")).await;
    scene.cleared().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_attached_while_a_pod_has_it_and_grows() {
    let scene = Scene::new(json!({})).await;
    let cluster = &scene.cluster;
    cluster.make("/api/v1/nodes", node()).await;
    let csi_node = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": { "name": "n" },
        "spec": { "drivers": [{ "name": NAME, "nodeID": "id-of-n" }] },
    });
    cluster.make("/apis/storage.k8s.io/v1/csinodes", csi_node).await;
    scene.driver.plan("Publish", [Fault::Refuse(Code::Internal), Fault::Lose(Code::Unavailable)]);
    scene.driver.plan("Unpublish", [Fault::Lose(Code::Internal)]);
    scene.claim("c").await;
    let bound = scene.bound("c").await;
    let volume = bound["spec"]["volumeName"].as_str().unwrap().to_owned();
    cluster.make("/api/v1/namespaces/ns/pods", pod("p", "c")).await;
    let attached = |list: &Value| list["items"][0]["status"]["attached"] == json!(true);
    let list = cluster.wait("/apis/storage.k8s.io/v1/volumeattachments", "attached", attached).await;
    assert_eq!(list["items"][0]["status"]["attachmentMetadata"], json!({ "lun": "7" }));
    assert_eq!(list["items"][0]["spec"]["nodeName"], "n");
    let at = scene.driver.0.lock().unwrap().volumes[&volume].1.clone();
    assert!(at.iter().all(|n| n == "id-of-n") && !at.is_empty(), "{at:?}");

    scene.driver.plan("Expand", [Fault::Refuse(Code::Unavailable), Fault::Lose(Code::Internal)]);
    let larger = json!({ "spec": { "resources": { "requests": { "storage": "2Gi" } } } });
    cluster.send("PATCH", &format!("{CLAIMS}/c"), larger).await;
    cluster.event("VolumeResizeFailed", "rpc error: code = Unavailable desc = not today").await;
    let grown = |c: &Value| c["status"]["capacity"]["storage"] == "2Gi";
    let claim = cluster.wait(&format!("{CLAIMS}/c"), "grown", grown).await;
    assert_eq!(claim["status"]["allocatedResourceStatuses"], Value::Null, "{claim}");
    let object = cluster.send("GET", &format!("{VOLUMES}/{volume}"), Value::Null).await;
    assert_eq!(object["spec"]["capacity"]["storage"], "2Gi");

    let classes = "/apis/storage.k8s.io/v1/volumeattributesclasses";
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttributesClass", "metadata": { "name": "fast" },
        "driverName": NAME, "parameters": { "iops": "9" },
    });
    cluster.make(classes, class).await;
    scene.driver.plan("Modify", [Fault::Refuse(Code::Aborted)]);
    let faster = json!({ "spec": { "volumeAttributesClassName": "fast" } });
    cluster.send("PATCH", &format!("{CLAIMS}/c"), faster).await;
    let fast = |c: &Value| c["status"]["currentVolumeAttributesClassName"] == "fast";
    let claim = cluster.wait(&format!("{CLAIMS}/c"), "modified", fast).await;
    assert_eq!(claim["status"]["modifyVolumeStatus"], Value::Null, "{claim}");

    cluster.delete("/api/v1/namespaces/ns/pods/p?gracePeriodSeconds=0").await;
    let none = |list: &Value| list["items"].as_array().unwrap().is_empty();
    cluster.wait("/apis/storage.k8s.io/v1/volumeattachments", "detached", none).await;
    assert!(scene.driver.0.lock().unwrap().volumes[&volume].1.is_empty());
    cluster.delete(&format!("{CLAIMS}/c")).await;
    scene.cleared().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_dies_is_called_again_when_it_is_back() {
    let mut scene = Scene::new(json!({})).await;
    drop(scene.serving);
    let gone = async {
        while scene.socket.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(support::LONG, gone).await.unwrap();
    let mut object = claim("c", "1Gi");
    object["spec"]["storageClassName"] = json!("bad");
    scene.cluster.make(CLAIMS, object).await;
    scene.cluster.event("ProvisioningFailed", "rpc error: code = Unavailable").await;
    scene.serving = scene.driver.serve(&scene.socket).await;
    scene.bound("c").await;
    scene.cluster.delete(&format!("{CLAIMS}/c")).await;
    scene.cleared().await;
}
