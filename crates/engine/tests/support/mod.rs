//! The controllers on a real API server in this process, and objects to make there.
#![allow(clippy::unwrap_used, dead_code, reason = "a step that fails here fails the test; no test needs everything")]
use std::{sync::Arc, time::Duration};

use engine::{Engine, Settings};
use http::Request;
use kube::Client;
use serde_json::{Value, json};
use server::{ApiServer, Config, Identity};
use tokio::sync::oneshot;

pub struct Cluster {
    pub server: ApiServer,
    pub client: Client,
    pub engine: Arc<Engine>,
    pub drivers: host::Registry,
    pub stop: Option<oneshot::Sender<()>>,
    pub running: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

pub const LONG: Duration = Duration::from_secs(20);

impl Cluster {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            layout: base::Layout::new(dir.path()),
            listen_names: Vec::new(),
            store: store::Options::default(),
        };
        let server = ApiServer::open(config).unwrap();
        server.bootstrap().await.unwrap();
        let client = Client::new(server.service(Identity::component("system:test")), "default");
        let root_ca: Arc<str> = server.ca_certificate().into();
        let drivers = host::Registry::default();
        let settings = Settings { root_ca: Some(root_ca), drivers: drivers.clone() };
        let engine = Arc::new(Engine::new(client.clone(), settings));
        let (stop, stopped) = oneshot::channel::<()>();
        let runs = engine.clone();
        let running = tokio::spawn(async move { runs.run(async { drop(stopped.await) }).await });
        engine.ready().await;
        Self { server, client, engine, drivers, stop: Some(stop), running, _dir: dir }
    }

    pub async fn stop(self) {
        let engine = self.engine.clone();
        self.stop_after_failures().await;
        for (name, stats) in engine.stats() {
            println!("{name}: {stats:?}");
            assert_eq!(stats.failures, 0, "{name}: {stats:?}");
        }
    }

    /// Where failures were wanted.
    pub async fn stop_after_failures(mut self) {
        drop(self.stop.take());
        tokio::time::timeout(LONG, self.running).await.expect("stops").unwrap();
        self.server.close().await;
    }

    pub async fn send(&self, method: &str, path: &str, body: Value) -> Value {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", if method == "PATCH" { "application/merge-patch+json" } else { "application/json" })
            .body(if body.is_null() { Vec::new() } else { body.to_string().into_bytes() })
            .unwrap();
        match self.client.request_text(request).await {
            Ok(text) => serde_json::from_str(&text).unwrap(),
            Err(kube::Error::Api(status)) if status.code == 404 => Value::Null,
            Err(error) => panic!("{method} {path}: {error}"),
        }
    }

    pub async fn make(&self, path: &str, object: Value) -> Value {
        self.send("POST", path, object).await
    }

    pub async fn delete(&self, path: &str) {
        self.send("DELETE", path, Value::Null).await;
    }

    pub async fn wait(&self, path: &str, what: &str, until: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = tokio::time::timeout(LONG, async {
            loop {
                last = self.send("GET", path, Value::Null).await;
                if until(&last) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        if found.await.is_err() {
            panic!("{path}: not {what}: {last:#}; {:?}", self.engine.stats());
        }
        last
    }

    pub async fn event(&self, reason: &str, words: &str) -> Value {
        let is = |e: &Value| e["reason"] == reason && e["message"].as_str().is_some_and(|m| m.contains(words));
        let list =
            self.wait("/api/v1/events", reason, |l| l["items"].as_array().is_some_and(|a| a.iter().any(is))).await;
        list["items"].as_array().unwrap().iter().find(|e| is(e)).cloned().unwrap()
    }
}

pub const NS: &str = "/api/v1/namespaces/ns";
pub const CLAIMS: &str = "/api/v1/namespaces/ns/persistentvolumeclaims";
pub const PODS: &str = "/api/v1/namespaces/ns/pods";
pub const VOLUMES: &str = "/api/v1/persistentvolumes";

pub fn namespace() -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ns"}})
}
pub fn volume(name: &str, size: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "k",
                 "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/data"}},
    })
}
pub fn claim(name: &str, size: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"resources": {"requests": {"storage": size}}, "accessModes": ["ReadWriteOnce"],
                 "storageClassName": "k"},
    })
}
pub fn pod(name: &str, claim: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}],
        },
    })
}
pub fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
        "status": {"capacity": {"cpu": "4", "memory": "8Gi", "pods": "10"},
                   "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"},
                   "conditions": [{"type": "Ready", "status": "True"}]},
    })
}
pub fn phase(phase: &'static str) -> impl Fn(&Value) -> bool {
    move |o| o["status"]["phase"] == phase
}
