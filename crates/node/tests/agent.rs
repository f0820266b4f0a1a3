//! A whole node against an API in memory and a runtime without processes; volumes are real, in a temporary directory.
mod support {
    pub mod api;
    pub mod runtime;
    pub const POD: &str = "/api/v1/namespaces/ns/pods/p";
}

use std::{path::Path, sync::Arc, time::Duration};

use base::{Layout, SystemClock};
use node::{Config, Node};
use runtime::Runtime;
use serde_json::{Value, json};
use support::{POD, api::FakeApi, runtime::FakeRuntime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use volumes::PodVolumes;

struct World {
    api: FakeApi,
    runtime: Arc<FakeRuntime>,
    dir: tempfile::TempDir,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self { api: FakeApi::new(), runtime: FakeRuntime::new(), dir, running: None }
    }

    fn start(&mut self) {
        let layout = Layout::new(self.dir.path());
        let volumes = Arc::new(PodVolumes::new(layout.pods(), Arc::new(sys::RealSys)));
        let config = Config::new("n", layout, vec![[192, 0, 2, 1].into()]);
        let node = Node::new(config, self.api.client(), self.runtime.clone(), volumes, Arc::new(SystemClock));
        let stop = CancellationToken::new();
        let token = stop.clone();
        let task = tokio::spawn(async move { node.run(token).await.expect("runs") });
        self.running = Some((stop, task));
    }

    async fn stop(&mut self) {
        let (stop, task) = self.running.take().expect("started");
        stop.cancel();
        task.await.expect("ends");
    }

    fn pod(&self, spec: Value) {
        let mut all =
            json!({"nodeName": "n", "terminationGracePeriodSeconds": 1, "containers": [{"name": "a", "image": "i:1"}]});
        all.as_object_mut().expect("object").extend(spec.as_object().expect("object").clone());
        let meta = json!({"name": "p", "namespace": "ns", "uid": "pod-uid"});
        self.api.put(POD, json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": all}));
    }

    fn config_map(&self, value: &str) {
        let meta = json!({"name": "m", "namespace": "ns"});
        let path = "/api/v1/namespaces/ns/configmaps/m";
        self.api.put(path, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"k": value}}));
    }

    fn mark_deleted(&self) {
        let mut pod = self.api.get(POD).expect("there");
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        pod["metadata"]["deletionGracePeriodSeconds"] = 1.into();
        self.api.put(POD, pod);
    }

    async fn phase(&self, want: &str) -> Value {
        let good = |api: &FakeApi| api.get(POD).filter(|p| p["status"]["phase"] == want);
        self.api.until(want, good).await
    }

    async fn waiting(&self, reason: &str) -> Value {
        let find = |api: &FakeApi| {
            let state = api.get(POD)?["status"]["containerStatuses"][0]["state"]["waiting"].clone();
            (state["reason"] == reason).then_some(state)
        };
        self.api.until(reason, find).await
    }

    async fn event(&self, part: &str) -> String {
        self.api.until(part, |api| api.events().into_iter().find(|e| e.contains(part))).await
    }

    async fn gone(&self) {
        self.api.until("gone", |api| api.get(POD).is_none().then_some(())).await;
        let pods = self.dir.path().join("kubelet/pods/pod-uid");
        let logs = self.dir.path().join("logs/ns_p_pod-uid");
        let clean = |_: &FakeApi| (self.runtime.is_empty() && !pods.exists() && !logs.exists()).then_some(());
        self.api.until("nothing left", clean).await;
    }
}

#[tokio::test]
async fn a_pod_runs_and_is_deleted_in_order() {
    let mut w = World::new();
    w.start();
    w.pod(json!({"volumes": [{"name": "v", "emptyDir": {}}],
        "containers": [{"name": "a", "image": "i:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}));
    let pod = w.phase("Running").await;
    assert_eq!(pod["status"]["podIP"], "127.0.0.1");
    assert_eq!(pod["status"]["containerStatuses"][0]["ready"], true);
    let volume = w.runtime.mounted("a", "/v").expect("mounted");
    assert!(volume.is_dir());
    let hosts = std::fs::read_to_string(w.runtime.mounted("a", "/etc/hosts").expect("mounted")).expect("a file");
    assert!(hosts.contains("127.0.0.1\tp\n"), "{hosts}");
    w.mark_deleted();
    w.gone().await;
    assert!(!volume.exists());
    assert_eq!(w.runtime.calls(), ["sandbox", "create a#0", "start a", "stop a", "remove sandbox"]);
    w.event("Killing: Stopping container a").await;
    let events: Vec<_> =
        w.api.events().into_iter().filter(|e| !e.starts_with("Starting") && !e.starts_with("NodeReady")).collect();
    assert_eq!(
        events,
        [
            "Pulled: Container image \"i:1\" already present on machine and can be accessed by the pod",
            "Created: Container created",
            "Started: Container started",
            "Killing: Stopping container a"
        ]
    );
}

/// Something in its volumes waits for a server, say.
#[tokio::test]
async fn a_container_that_is_never_made_keeps_no_pod() {
    let mut w = World::new();
    w.runtime.never_makes("a");
    w.start();
    w.pod(json!({"volumes": [{"name": "v", "emptyDir": {}}]}));
    let runtime = w.runtime.clone();
    w.api.until("it is being made", |_| runtime.calls().contains(&"create a#0".to_owned()).then_some(())).await;
    w.mark_deleted();
    w.gone().await;
}

#[tokio::test]
async fn init_containers_restart_until_they_succeed() {
    let mut w = World::new();
    w.runtime.ends_with("i", &[1, 0]);
    w.runtime.ends_with("a", &[0]);
    w.start();
    w.pod(json!({"restartPolicy": "OnFailure", "initContainers": [{"name": "i", "image": "i:1"}]}));
    let pod = w.phase("Succeeded").await;
    assert_eq!(pod["status"]["initContainerStatuses"][0]["restartCount"], 1);
    // What an ended pod held is released; its object and its story stay.
    w.api.until("released", |_| w.runtime.is_empty().then_some(())).await;
    let calls = w.runtime.calls();
    assert_eq!(calls[..7], ["sandbox", "create i#0", "start i", "create i#1", "start i", "create a#0", "start a"]);
    assert_eq!(
        w.api.get(POD).expect("there")["status"]["containerStatuses"][0]["state"]["terminated"]["reason"],
        "Completed"
    );
}

#[tokio::test]
async fn containers_survive_the_node_and_are_adopted() {
    let mut w = World::new();
    w.start();
    w.pod(json!({"containers": [{"name": "a", "image": "i:1", "readinessProbe": {"exec": {"command": ["true"]}}}]}));
    let ready = |api: &FakeApi| api.get(POD).filter(|p| p["status"]["containerStatuses"][0]["ready"] == true);
    w.api.until("ready", ready).await;
    w.stop().await;
    let before = w.runtime.calls();
    assert!(!before.iter().any(|c| c.starts_with("stop") || c.starts_with("remove")), "{before:?}");
    w.start();
    // Ready at once, without an answer of the probe; and a later end is noticed.
    w.api.until("the node", |api| api.events().iter().filter(|e| e.starts_with("Starting")).nth(1).map(drop)).await;
    w.runtime.end("a", 1);
    let restarted = |api: &FakeApi| api.get(POD).filter(|p| p["status"]["containerStatuses"][0]["restartCount"] == 1);
    w.api.until("restarted", restarted).await;
    let created: Vec<_> = w.runtime.calls().into_iter().filter(|c| c.starts_with("create") || c == "sandbox").collect();
    assert_eq!(created, ["sandbox", "create a#0", "create a#1"]);
}

#[tokio::test]
async fn what_nobody_knows_is_removed_after_a_full_list() {
    let mut w = World::new();
    w.start();
    w.pod(json!({}));
    w.phase("Running").await;
    w.stop().await;
    w.api.remove(POD);
    let stray = w.dir.path().join("logs/ns_q_other");
    std::fs::create_dir_all(&stray).expect("made");
    w.start();
    w.gone().await;
    w.api.until("logs", |_| (!stray.exists()).then_some(())).await;
}

#[tokio::test]
async fn force_deletion_cleans_up_too() {
    let mut w = World::new();
    w.start();
    w.pod(json!({}));
    w.phase("Running").await;
    w.api.remove(POD);
    w.gone().await;
    assert_eq!(w.runtime.calls()[3..], ["stop a", "remove sandbox"]);
}

#[tokio::test]
async fn a_missing_config_map_holds_the_pod_and_changes_arrive() {
    let mut w = World::new();
    w.start();
    w.pod(json!({"volumes": [{"name": "v", "configMap": {"name": "m"}}],
        "containers": [{"name": "a", "image": "i:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}));
    let text = w.event("FailedMount").await;
    assert_eq!(text, "FailedMount: MountVolume.SetUp failed for volume \"v\" : configmap \"m\" not found");
    assert!(!w.runtime.calls().iter().any(|c| c.starts_with("create")));
    w.config_map("1");
    w.phase("Running").await;
    let file = w.runtime.mounted("a", "/v").expect("mounted").join("k");
    let holds = |want: &'static str| {
        let file = file.clone();
        move |_: &FakeApi| std::fs::read_to_string(&file).is_ok_and(|t| t == want).then_some(())
    };
    w.api.until("1", holds("1")).await;
    w.config_map("2");
    w.api.until("2", holds("2")).await;
}

/// Lets the node's timers see that much time go by.
async fn later(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn tokens_are_renewed_in_the_running_pod() {
    // What the pod asks for, and when the token is renewed: after 80 % of its life, or a day.
    for (life, renewed) in [(600, 480), (3607, 2885), (30 * 86_400, 86_400)] {
        let mut w = World::new();
        w.config_map("1");
        w.start();
        let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": life}});
        w.pod(json!({"volumes": [{"name": "v", "projected": {"sources": [token, {"configMap": {"name": "m"}}]}}],
            "containers": [{"name": "a", "image": "i:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}));
        w.phase("Running").await;
        let volume = w.runtime.mounted("a", "/v").expect("mounted");
        let holds = |name: &str, want: &str| {
            let (file, want) = (volume.join(name), want.to_owned());
            move |_: &FakeApi| std::fs::read_to_string(&file).is_ok_and(|t| t == want).then_some(())
        };
        assert!(holds("token", "t1")(&w.api).is_some());
        later(renewed - 10).await;
        // The volume is looked at as a whole; the token is not due yet.
        w.config_map("2");
        w.api.until("the other file of the volume", holds("k", "2")).await;
        assert!(holds("token", "t1")(&w.api).is_some() && w.api.tokens_asked() == 1, "renewed too early: {life} s");
        later(10).await;
        w.api.until("the next token", holds("token", "t2")).await;
        // One that cannot be renewed stays, and is tried again long before it ends.
        w.api.refuse_tokens(true);
        later(renewed).await;
        w.api.until("a refused request", |api| (api.tokens_asked() == 3).then_some(())).await;
        w.api.refuse_tokens(false);
        w.config_map("3");
        w.api.until("the other file of the volume", holds("k", "3")).await;
        assert!(holds("token", "t2")(&w.api).is_some());
        later(10).await;
        w.api.until("a token again", holds("token", "t4")).await;
        assert_eq!(w.phase("Running").await["status"]["containerStatuses"][0]["restartCount"], 0);
        w.stop().await;
    }
}

#[tokio::test]
async fn a_pod_that_waits_for_a_volume_ends_promptly() {
    let mut w = World::new();
    w.start();
    w.pod(json!({"volumes": [{"name": "v", "secret": {"secretName": "never"}}, {"name": "e", "emptyDir": {}}]}));
    w.event("FailedMount").await;
    w.mark_deleted();
    w.gone().await;
}

#[tokio::test]
async fn a_missing_key_is_a_config_error_until_it_is_there() {
    let mut w = World::new();
    w.start();
    let source = json!({"configMapKeyRef": {"name": "m", "key": "k"}});
    w.pod(json!({"containers": [{"name": "a", "image": "i:1", "env": [{"name": "A", "valueFrom": source}]}]}));
    let state = w.waiting("CreateContainerConfigError").await;
    assert_eq!(state["message"], "configmap \"m\" not found");
    w.event("Failed: Error: configmap \"m\" not found").await;
    w.config_map("v");
    w.phase("Running").await;
    assert!(w.runtime.spec("a").expect("made").env.contains(&("A".into(), "v".into())));
}

#[tokio::test]
async fn failures_of_the_runtime_are_told_and_overcome() {
    let mut w = World::new();
    w.runtime.fail_once("sandbox");
    w.runtime.fail_once("remove sandbox");
    w.start();
    w.pod(json!({}));
    w.event("FailedCreatePodSandBox: Failed to create pod sandbox: on purpose").await;
    w.phase("Running").await;
    w.mark_deleted();
    w.gone().await;
}

#[tokio::test]
async fn an_image_that_may_not_be_pulled() {
    let mut w = World::new();
    w.start();
    w.pod(json!({"containers": [{"name": "a", "image": "absent:1", "imagePullPolicy": "Never"}]}));
    let state = w.waiting("ErrImageNeverPull").await;
    assert_eq!(state["message"], "Container image \"absent:1\" is not present with pull policy of Never");
    w.mark_deleted();
    w.gone().await;
}

/// A private image that another pod's password brought to the node is not there for one without, under any policy.
#[tokio::test]
async fn an_image_on_the_node_is_for_those_who_could_pull_it() {
    for (policy, image, password, want) in [
        ("IfNotPresent", "private:1", None, "ErrImagePull"),
        ("IfNotPresent", "private:1", Some("wrong"), "ErrImagePull"),
        ("Never", "private:1", None, "ErrImageNeverPull"),
        ("Always", "private-unreachable:1", Some("wrong"), "ErrImagePull"),
        ("IfNotPresent", "private:1", Some("right"), ""),
        ("Never", "private:1", Some("right"), ""),
        ("IfNotPresent", "public:1", None, ""),
    ] {
        let mut w = World::new();
        w.start();
        let secrets = password.map(|password| {
            let config = json!({"auths": {"docker.io": {"username": "u", "password": password}}}).to_string();
            let data = json!({".dockerconfigjson": k8s_openapi::ByteString(config.into_bytes())});
            let meta = json!({"name": "s", "namespace": "ns"});
            let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data});
            w.api.put("/api/v1/namespaces/ns/secrets/s", secret);
            json!([{"name": "s"}])
        });
        w.pod(json!({"imagePullSecrets": secrets.unwrap_or_default(),
            "containers": [{"name": "a", "image": image, "imagePullPolicy": policy}]}));
        if want.is_empty() {
            w.phase("Running").await;
            assert!(!w.runtime.calls().iter().any(|c| c.starts_with("pull")), "{image} {policy}: asked for nothing");
        } else {
            w.waiting(want).await;
            assert!(!w.runtime.calls().iter().any(|c| c.starts_with("create")), "{image} {policy} {password:?}");
        }
        w.mark_deleted();
        w.gone().await;
        w.stop().await;
    }
}

#[tokio::test]
async fn hooks_run_around_a_life() {
    let mut w = World::new();
    w.start();
    let hook = |command: &str| json!({"exec": {"command": [command]}});
    w.pod(json!({"restartPolicy": "Never", "containers": [
        {"name": "a", "image": "i:1", "lifecycle": {"postStart": hook("true"), "preStop": hook("bye")}}]}));
    w.phase("Running").await;
    w.mark_deleted();
    w.gone().await;
    let calls = w.runtime.calls();
    assert_eq!(calls[2..6], ["start a", "exec true", "exec bye", "stop a"]);
}

#[tokio::test]
async fn a_failed_post_start_hook_kills() {
    let mut w = World::new();
    w.start();
    let hook = json!({"exec": {"command": ["false"]}});
    w.pod(json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i:1", "lifecycle": {"postStart": hook}}]}));
    w.event("FailedPostStartHook: PostStartHook failed").await;
    w.phase("Failed").await;
}

#[tokio::test]
async fn a_failed_liveness_probe_restarts() {
    let mut w = World::new();
    w.start();
    let probe = json!({"exec": {"command": ["false"]}, "failureThreshold": 1, "periodSeconds": 1});
    w.pod(json!({"containers": [{"name": "a", "image": "i:1", "livenessProbe": probe}]}));
    w.event("Unhealthy: Liveness probe failed").await;
    w.event("Killing: Container a failed liveness probe, will be restarted").await;
    let restarted = |api: &FakeApi| api.get(POD).filter(|p| p["status"]["containerStatuses"][0]["restartCount"] == 1);
    w.api.until("restarted", restarted).await;
}

#[tokio::test]
async fn the_node_registers_and_renews() {
    let mut w = World::new();
    w.start();
    let find = |path: &'static str| move |api: &FakeApi| api.get(path);
    let node = w.api.until("node", find("/api/v1/nodes/n")).await;
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "n");
    let ready = node["status"]["conditions"]
        .as_array()
        .expect("conditions")
        .iter()
        .find(|c| c["type"] == "Ready")
        .expect("Ready")
        .clone();
    assert_eq!(ready["status"], "True");
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n";
    let lease = w.api.until("lease", find(lease)).await;
    assert_eq!(lease["spec"]["holderIdentity"], "n");
    w.event("NodeReady: Node n status is now: NodeReady").await;
    assert!(Path::new(w.dir.path()).exists());
    let _: &dyn Runtime = w.runtime.as_ref();
}

const VOLUME: &str = "/api/v1/persistentvolumes/v";
const CLAIM: &str = "/api/v1/namespaces/ns/persistentvolumeclaims/c";

/// A volume whose claim `c` is gone, and the directory behind it with a file in it.
fn released(w: &World, spec: Value) -> tempfile::TempDir {
    let data = tempfile::tempdir().expect("a directory");
    std::fs::write(data.path().join("old"), "").expect("written");
    let mut all = json!({"persistentVolumeReclaimPolicy": "Recycle", "hostPath": {"path": data.path()},
        "claimRef": {"namespace": "ns", "name": "c", "uid": "claim-uid"}});
    all.as_object_mut().expect("object").extend(spec.as_object().expect("object").clone());
    let meta = json!({"name": "v", "uid": "v-uid", "annotations": {"pv.kubernetes.io/bound-by-controller": "yes"}});
    let kind = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": meta, "spec": all, "status": {"phase": "Released"}});
    w.api.put(VOLUME, kind);
    data
}

fn old(data: &tempfile::TempDir) -> bool {
    data.path().join("old").exists()
}

#[tokio::test]
async fn a_released_volume_is_emptied_or_deleted_as_its_policy_says_now() {
    let mut w = World::new();
    // Released while the node was away, or left half done by it.
    let data = released(&w, json!({}));
    w.start();
    w.event("VolumeRecycled: Volume recycled").await;
    let free = |api: &FakeApi| api.get(VOLUME).filter(|v| v["spec"]["claimRef"].is_null());
    let volume = w.api.until("free", free).await;
    assert_eq!(volume["metadata"]["annotations"], json!({}));
    assert!(!old(&data) && data.path().is_dir());

    let data = released(&w, json!({"persistentVolumeReclaimPolicy": "Delete"}));
    w.api.until("deleted", |api| api.get(VOLUME).is_none().then_some(())).await;
    assert!(!data.path().exists());
}

#[tokio::test]
async fn a_volume_that_may_not_be_reclaimed_is_left_alone() {
    let mut w = World::new();
    w.start();
    let elsewhere = json!({"required": {"nodeSelectorTerms": [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["m"]}]}]}});
    let claim = |uid: &str| {
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": {"volumeName": "v"},
        "metadata": {"name": "c", "namespace": "ns", "uid": uid}})
    };
    for (what, spec) in [
        ("kept", json!({"persistentVolumeReclaimPolicy": "Retain"})),
        ("on another node", json!({"nodeAffinity": elsewhere})),
        ("claimed after all", json!({"claimRef": {"namespace": "ns", "name": "c", "uid": "alive"}})),
        ("of a provisioner", json!({"hostPath": null, "csi": {"driver": "d", "volumeHandle": "h"}})),
    ] {
        w.api.put(CLAIM, claim("alive"));
        let spared = released(&w, spec);
        // One that comes later is done by the time we look.
        let other = "/api/v1/persistentvolumes/other";
        let mut second = w.api.get(VOLUME).expect("there");
        let data = tempfile::tempdir().expect("a directory");
        std::fs::write(data.path().join("old"), "").expect("written");
        second["metadata"] = json!({"name": "other", "uid": "other-uid"});
        second["spec"] = json!({"persistentVolumeReclaimPolicy": "Recycle", "hostPath": {"path": data.path()},
            "claimRef": {"namespace": "ns", "name": "c", "uid": "claim-uid"}});
        w.api.put(other, second);
        let done = |api: &FakeApi| api.get(other)?["spec"]["claimRef"]["uid"].is_null().then_some(());
        w.api.until("the other one is free", done).await;
        assert!(old(&spared) && !old(&data), "{what}");
        w.api.remove(other);
        w.api.remove(VOLUME);
    }
    // A pod still names the claim.
    w.api.remove(CLAIM);
    w.pod(json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}));
    let data = released(&w, json!({}));
    w.event("VolumeFailedRecycle: Volume is used by pods: ns/p").await;
    assert!(old(&data));
    w.api.remove(POD);
    w.event("VolumeRecycled: Volume recycled").await;
}

#[tokio::test]
async fn a_volume_that_cannot_be_emptied_says_why_and_is_tried_again() {
    let mut w = World::new();
    w.start();
    let file = w.dir.path().join("of-the-node");
    std::fs::write(&file, "").expect("written");
    let _data = released(&w, json!({"hostPath": {"path": file}}));
    let failed = |api: &FakeApi| api.get(VOLUME).filter(|v| v["status"]["phase"] == "Failed");
    let message = w.api.until("failed", failed).await["status"]["message"].to_string();
    assert!(message.contains("Recycle failed: ") && message.contains("overlaps this node's own data"), "{message}");
    w.event("VolumeFailedRecycle: Recycle failed: ").await;
    // Its policy is changed, and with the way free it goes on.
    let data = tempfile::tempdir().expect("a directory");
    let mut volume = w.api.get(VOLUME).expect("there");
    volume["spec"]["hostPath"]["path"] = json!(data.path());
    volume["spec"]["persistentVolumeReclaimPolicy"] = json!("Delete");
    w.api.put(VOLUME, volume);
    w.api.until("deleted", |api| api.get(VOLUME).is_none().then_some(())).await;
}

#[tokio::test]
async fn a_pod_takes_all_its_volumes_or_none() {
    let mut w = World::new();
    w.start();
    let bound = |claim: &str, volume: &str| {
        let path = w.dir.path().join("behind").join(volume);
        let modes = json!(["ReadWriteOncePod"]);
        let reference = json!({"namespace": "ns", "name": claim, "uid": claim});
        w.api.put(
            &format!("/api/v1/persistentvolumes/{volume}"),
            json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume, "uid": volume},
                "spec": {"accessModes": modes, "hostPath": {"path": path}, "claimRef": reference}, "status": {"phase": "Bound"}}),
        );
        w.api.put(
            &format!("/api/v1/namespaces/ns/persistentvolumeclaims/{claim}"),
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim, "namespace": "ns", "uid": claim},
                "spec": {"accessModes": modes, "volumeName": volume}, "status": {"phase": "Bound"}}),
        );
    };
    bound("c", "v");
    w.pod(json!({"volumes": [{"name": "one", "persistentVolumeClaim": {"claimName": "c"}},
        {"name": "two", "persistentVolumeClaim": {"claimName": "d"}}]}));
    w.event("persistentvolumeclaims \"d\" not found").await;
    let marks = w.dir.path().join("kubelet/pods/pod-uid/holds");
    assert!(!marks.exists(), "it holds one volume while it waits for the other");
    bound("d", "w");
    w.phase("Running").await;
    assert!(marks.join("v").is_file() && marks.join("w").is_file());
    // Released although the pod is still there: nobody empties what it has.
    let mut volume = w.api.get(VOLUME).expect("there");
    volume["spec"]["persistentVolumeReclaimPolicy"] = json!("Recycle");
    volume["status"]["phase"] = json!("Released");
    std::fs::write(w.dir.path().join("behind/v/kept"), "").expect("written");
    w.api.remove(CLAIM);
    w.api.put(VOLUME, volume);
    w.event("VolumeFailedRecycle: Volume is used by pods: ns/p").await;
    assert!(w.dir.path().join("behind/v/kept").exists());
}

fn put_node(w: &World, name: &str) -> String {
    let path = format!("/api/v1/nodes/{name}");
    w.api.put(&path, json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}));
    path
}

#[tokio::test]
async fn a_volume_for_one_node_is_had_by_one_node() {
    const OTHER: &str = "/api/v1/namespaces/ns/pods/q";
    let mut w = World::new();
    w.start();
    put_node(&w, "m");
    let data = tempfile::tempdir().expect("a directory");
    let modes = json!(["ReadWriteOnce"]);
    w.api.put(VOLUME, json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "v", "uid": "v-uid"},
        "spec": {"accessModes": modes, "hostPath": {"path": data.path()}, "claimRef": {"namespace": "ns", "name": "c", "uid": "c"}},
        "status": {"phase": "Bound"}}));
    w.api.put(
        CLAIM,
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "c", "namespace": "ns", "uid": "c"},
        "spec": {"accessModes": modes, "volumeName": "v"}, "status": {"phase": "Bound"}}),
    );
    let volumes = json!([{"name": "one", "persistentVolumeClaim": {"claimName": "c"}}]);
    let other = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "q", "namespace": "ns", "uid": "q"},
        "spec": {"nodeName": "m", "volumes": volumes, "containers": []}, "status": {"phase": "Running"}});
    w.api.put(OTHER, other);
    w.pod(json!({"volumes": volumes}));
    w.event("FailedAttachVolume: Multi-Attach error for volume \"v\" Volume is already used by pod(s) q").await;
    assert!(!w.dir.path().join("kubelet/pods/pod-uid/holds").exists());
    let holder = |api: &FakeApi, key: &str| api.get(VOLUME).expect("there")["metadata"]["annotations"][key].clone();
    assert_eq!(holder(&w.api, "holdfast.dev/held-by"), Value::Null);

    w.api.remove(OTHER);
    w.phase("Running").await;
    assert_eq!(holder(&w.api, "holdfast.dev/held-by"), "n");
    w.mark_deleted();
    w.gone().await;
    let free = |api: &FakeApi| (holder(api, "holdfast.dev/last-held-by") == "n").then_some(());
    w.api.until("the volume is let go", free).await;
    assert_eq!(holder(&w.api, "holdfast.dev/held-by"), Value::Null);
}

#[tokio::test]
async fn a_volume_out_of_reach_is_not_touched() {
    let mut w = World::new();
    w.start();
    let data = tempfile::tempdir().expect("a directory");
    let labelled = json!([{"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]);
    w.api.put(
        VOLUME,
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "v", "uid": "v-uid"},
        "spec": {"accessModes": ["ReadWriteMany"], "hostPath": {"path": data.path().join("made")},
            "nodeAffinity": {"required": {"nodeSelectorTerms": labelled}},
            "claimRef": {"namespace": "ns", "name": "c", "uid": "c"}}, "status": {"phase": "Bound"}}),
    );
    w.api.put(
        CLAIM,
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "c", "namespace": "ns", "uid": "c"},
        "spec": {"accessModes": ["ReadWriteMany"], "volumeName": "v"}, "status": {"phase": "Bound"}}),
    );
    w.pod(json!({"volumes": [{"name": "one", "persistentVolumeClaim": {"claimName": "c"}}]}));
    let why = "FailedMount: MountVolume.NodeAffinity check failed for volume \"v\" : no matching NodeSelectorTerms";
    w.event(why).await;
    assert!(!data.path().join("made").exists());
    let mut node = w.api.get("/api/v1/nodes/n").expect("registered");
    node["metadata"]["labels"]["disk"] = json!("yes");
    w.api.put("/api/v1/nodes/n", node);
    w.phase("Running").await;
}

#[tokio::test]
async fn one_of_several_nodes_reclaims() {
    let mut w = World::new();
    let node = put_node(&w, "m");
    put_node(&w, "n");
    let annotate = |key: &str| {
        let mut volume = w.api.get(VOLUME).expect("there");
        volume["metadata"]["annotations"][key] = json!("m");
        w.api.put(VOLUME, volume);
    };
    // The other node had it, or began.
    let mut spared = Vec::new();
    for key in ["holdfast.dev/last-held-by", "holdfast.dev/reclaimed-by"] {
        spared.push(released(&w, json!({})));
        annotate(key);
    }
    w.start();
    let path = "/api/v1/persistentvolumes/free";
    let mut second = w.api.get(VOLUME).expect("there");
    let data = tempfile::tempdir().expect("a directory");
    std::fs::write(data.path().join("old"), "").expect("written");
    second["metadata"] = json!({"name": "free", "uid": "free-uid"});
    second["spec"]["hostPath"]["path"] = json!(data.path());
    w.api.put(path, second);
    let done = |api: &FakeApi| api.get(path).filter(|v| v["spec"]["claimRef"]["uid"].is_null());
    let free = w.api.until("the free one is emptied", done).await;
    assert_eq!(free["metadata"]["annotations"], json!({}), "nothing of its past");
    assert!(spared.iter().all(old) && !old(&data));
    // Who took it will not come back.
    w.api.remove(&node);
    let volume = w.api.get(VOLUME).expect("there");
    w.api.put(VOLUME, volume);
    w.event("VolumeRecycled: Volume recycled").await;
    w.api.until("taken over", |_| (!old(&spared[1])).then_some(())).await;
    // This node took it, and was started again.
    w.stop().await;
    put_node(&w, "m");
    let data = released(&w, json!({}));
    let mut volume = w.api.get(VOLUME).expect("there");
    volume["metadata"]["annotations"]["holdfast.dev/reclaimed-by"] = json!("n");
    volume["metadata"]["annotations"]["holdfast.dev/last-held-by"] = json!("m");
    w.api.put(VOLUME, volume);
    w.start();
    w.api.until("it goes on", |_| (!old(&data)).then_some(())).await;
}
