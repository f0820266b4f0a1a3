//! The daemon is killed while others write: what was acknowledged is there, what was not is there whole or not at all.
mod common;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use common::{Instance, PATIENCE};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;

const WRITERS: usize = 4;
/// Writes that are acknowledged before the daemon is killed.
const WRITES: usize = 80;

/// An object's value; `None` is no object.
type Value = Option<u32>;

/// What one object may look like.
#[derive(Debug, Default)]
struct Expected {
    acknowledged: Value,
    /// The write whose answer never came.
    open: Option<Value>,
}

#[derive(Default)]
struct Ledger {
    objects: Mutex<HashMap<String, Expected>>,
    acknowledged: AtomicUsize,
}

impl Ledger {
    fn begin(&self, name: &str, value: Value) {
        self.objects.lock().expect("lock").entry(name.to_owned()).or_default().open = Some(value);
    }
    fn acknowledge(&self, name: &str) {
        let mut objects = self.objects.lock().expect("lock");
        let object = objects.get_mut(name).expect("it was begun");
        object.acknowledged = object.open.take().expect("it was begun");
        self.acknowledged.fetch_add(1, Ordering::SeqCst);
    }
}

async fn connect(instance: &Instance) -> Api<ConfigMap> {
    let file = Kubeconfig::read_from(instance.kubeconfig()).expect("kubeconfig");
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("kubeconfig");
    Api::namespaced(Client::try_from(config).expect("client"), "default")
}

/// One field could be whole while the other is not.
fn body(name: &str, value: u32) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
           "data": {"one": value.to_string(), "padding": "x".repeat(2000), "two": value.to_string()}})
}

/// Creates, changes and deletes objects until the server is gone.
async fn write(api: Api<ConfigMap>, prefix: String, ledger: Arc<Ledger>) {
    for n in 0.. {
        let name = format!("{prefix}-{n}");
        ledger.begin(&name, Some(n));
        let object = serde_json::from_value(body(&name, n)).expect("a config map");
        if api.create(&PostParams::default(), &object).await.is_err() {
            return;
        }
        ledger.acknowledge(&name);
        ledger.begin(&name, Some(n + 1));
        if api.patch(&name, &PatchParams::default(), &Patch::Merge(body(&name, n + 1))).await.is_err() {
            return;
        }
        ledger.acknowledge(&name);
        if n % 3 == 0 {
            ledger.begin(&name, None);
            if api.delete(&name, &DeleteParams::default()).await.is_err() {
                return;
            }
            ledger.acknowledge(&name);
        }
    }
}

async fn stored(api: &Api<ConfigMap>) -> BTreeMap<String, u32> {
    let list = api.list(&ListParams::default()).await.expect("list");
    let ours = list.items.into_iter().filter(|c| c.metadata.name.as_deref() != Some("kube-root-ca.crt"));
    ours.map(|c| {
        let (name, data) = (c.metadata.name.expect("a name"), c.data.expect("data"));
        assert_eq!(data["one"], data["two"], "half of a write: {name}");
        assert_eq!(data["padding"].len(), 2000, "{name}");
        (name, data["one"].parse().expect("a number"))
    })
    .collect()
}

/// Compares, and takes what is there for acknowledged: it must not go away later.
fn check(ledger: &Ledger, stored: &BTreeMap<String, u32>) {
    let mut objects = ledger.objects.lock().expect("lock");
    for (name, expected) in objects.iter_mut() {
        let found = stored.get(name).copied();
        let open = expected.open.take();
        assert!(
            found == expected.acknowledged || Some(found) == open,
            "{name}: {found:?} instead of {expected:?} or {open:?}"
        );
        expected.acknowledged = found;
    }
    let unknown: Vec<_> = stored.keys().filter(|name| !objects.contains_key(*name)).collect();
    assert!(unknown.is_empty(), "nobody wrote {unknown:?}");
}

#[test]
fn acknowledged_writes_survive_kills() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let rounds = std::env::var("HOLDFAST_TEST_ROUNDS").map_or(3, |n| n.parse().expect("a number"));
    let mut instance = Instance::empty(&["--no-node"]);
    let tokio = tokio::runtime::Runtime::new().expect("runtime");
    let ledger = Arc::new(Ledger::default());
    for round in 0..rounds {
        let before = ledger.acknowledged.load(Ordering::SeqCst);
        let api = tokio.block_on(connect(&instance));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| tokio.spawn(write(api.clone(), format!("r{round}-w{writer}"), ledger.clone())))
            .collect();
        common::until("enough was written", || {
            (ledger.acknowledged.load(Ordering::SeqCst) >= before + WRITES).then_some(())
        });
        instance.end("KILL");
        for writer in writers {
            let ended = tokio.block_on(async { tokio::time::timeout(PATIENCE, writer).await });
            ended.expect("the writer notices that the server is gone").expect("no panic");
        }
        instance.up();
        let api = tokio.block_on(connect(&instance));
        check(&ledger, &tokio.block_on(stored(&api)));
    }
    instance.end("TERM");
}

#[test]
fn asked_to_stop_it_ends_well() {
    let mut instance = Instance::empty(&["--no-node"]);
    for signal in ["TERM", "INT"] {
        let status = instance.end(signal).expect("it ran");
        assert_eq!(status.code(), Some(0), "{signal}");
        instance.up();
    }
    instance.end("TERM");
}
