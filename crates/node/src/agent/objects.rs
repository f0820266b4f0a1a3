//! The ConfigMaps, Secrets, claims, volumes, drivers and attachments that pods on this node refer to, each watched while somebody needs it.
use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    sync::{Arc, Weak},
};

use futures::StreamExt;
use k8s_openapi::api::{
    certificates::v1beta1::ClusterTrustBundle,
    core::v1::{ConfigMap, Endpoints, PersistentVolume, PersistentVolumeClaim, Secret},
    storage::v1::{CSIDriver, VolumeAttachment},
};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::{sync::Notify, task::AbortHandle};

/// What is known about an object.
#[derive(Debug)]
pub enum Known<K> {
    /// Not answered yet.
    Unknown,
    Absent,
    There(Arc<K>),
}

impl<K> Clone for Known<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Unknown => Self::Unknown,
            Self::Absent => Self::Absent,
            Self::There(o) => Self::There(o.clone()),
        }
    }
}

/// Bundles of trusted certificates by name.
pub type TrustBundles = BTreeMap<String, ClusterTrustBundle>;

/// One object under watch. The watch ends with the last holder.
pub struct Watched<K> {
    state: Arc<State<K>>,
    task: AbortHandle,
}

struct State<K> {
    known: Mutex<Known<K>>,
    wake: Mutex<Vec<Weak<Notify>>>,
}

impl<K> State<K> {
    fn set(&self, known: Known<K>) {
        *self.known.lock() = known;
        self.wake.lock().retain(|w| w.upgrade().inspect(|n| n.notify_one()).is_some());
    }
}

impl<K> Drop for Watched<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<K> Watched<K> {
    /// What is known now.
    pub fn get(&self) -> Known<K> {
        self.state.known.lock().clone()
    }

    /// Wakes `notify` at each change, as long as it lives.
    fn wake(&self, notify: &Arc<Notify>) {
        let mut list = self.state.wake.lock();
        if !list.iter().any(|w| w.ptr_eq(&Arc::downgrade(notify))) {
            list.push(Arc::downgrade(notify));
        }
    }
}

type Table<K> = Mutex<HashMap<(String, String), Weak<Watched<K>>>>;

/// All watched objects.
pub struct Objects {
    client: kube::Client,
    config_maps: Table<ConfigMap>,
    secrets: Table<Secret>,
    endpoints: Table<Endpoints>,
    claims: Table<PersistentVolumeClaim>,
    volumes: Table<PersistentVolume>,
    drivers: Table<CSIDriver>,
    attachments: Table<VolumeAttachment>,
    /// One watch for all of them: who wants some chooses by their labels.
    trust_bundles: Mutex<Weak<Watched<TrustBundles>>>,
}

impl Objects {
    /// Nothing watched yet.
    pub fn new(client: kube::Client) -> Self {
        Self {
            client,
            config_maps: Mutex::default(),
            secrets: Mutex::default(),
            endpoints: Mutex::default(),
            claims: Mutex::default(),
            volumes: Mutex::default(),
            drivers: Mutex::default(),
            attachments: Mutex::default(),
            trust_bundles: Mutex::default(),
        }
    }

    /// A ConfigMap; `notify` is woken when it changes.
    pub fn config_map(&self, namespace: &str, name: &str, notify: &Arc<Notify>) -> Arc<Watched<ConfigMap>> {
        let api = || Api::namespaced(self.client.clone(), namespace);
        watch(&self.config_maps, namespace, name, notify, api)
    }

    /// A Secret; `notify` is woken when it changes.
    pub fn secret(&self, namespace: &str, name: &str, notify: &Arc<Notify>) -> Arc<Watched<Secret>> {
        let api = || Api::namespaced(self.client.clone(), namespace);
        watch(&self.secrets, namespace, name, notify, api)
    }

    /// An Endpoints object; `notify` is woken when it changes.
    pub fn endpoints(&self, namespace: &str, name: &str, notify: &Arc<Notify>) -> Arc<Watched<Endpoints>> {
        let api = || Api::namespaced(self.client.clone(), namespace);
        watch(&self.endpoints, namespace, name, notify, api)
    }

    /// A claim; `notify` is woken when it changes.
    pub fn claim(&self, namespace: &str, name: &str, notify: &Arc<Notify>) -> Arc<Watched<PersistentVolumeClaim>> {
        let api = || Api::namespaced(self.client.clone(), namespace);
        watch(&self.claims, namespace, name, notify, api)
    }

    /// What is said of a CSI driver; `notify` is woken when it changes.
    pub fn driver(&self, name: &str, notify: &Arc<Notify>) -> Arc<Watched<CSIDriver>> {
        watch(&self.drivers, "", name, notify, || Api::all(self.client.clone()))
    }

    /// The attachment of a volume; `notify` is woken when it changes.
    pub fn attachment(&self, name: &str, notify: &Arc<Notify>) -> Arc<Watched<VolumeAttachment>> {
        watch(&self.attachments, "", name, notify, || Api::all(self.client.clone()))
    }

    /// All bundles of trusted certificates; `notify` is woken when one changes.
    pub fn trust_bundles(&self, notify: &Arc<Notify>) -> Arc<Watched<TrustBundles>> {
        let mut known = self.trust_bundles.lock();
        let watched = known.upgrade().unwrap_or_else(|| {
            let made = start(|state| follow_all(Api::all(self.client.clone()), state));
            *known = Arc::downgrade(&made);
            made
        });
        watched.wake(notify);
        watched
    }

    /// A persistent volume; `notify` is woken when it changes.
    pub fn volume(&self, name: &str, notify: &Arc<Notify>) -> Arc<Watched<PersistentVolume>> {
        watch(&self.volumes, "", name, notify, || Api::all(self.client.clone()))
    }
}

fn watch<K>(
    table: &Table<K>,
    namespace: &str,
    name: &str,
    notify: &Arc<Notify>,
    api: impl FnOnce() -> Api<K>,
) -> Arc<Watched<K>>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let mut table = table.lock();
    table.retain(|_, w| w.strong_count() > 0);
    let key = (namespace.to_owned(), name.to_owned());
    let there = table.get(&key).and_then(Weak::upgrade);
    let watched = there.unwrap_or_else(|| {
        let made = start(|state| follow(api(), name.to_owned(), state));
        table.insert(key, Arc::downgrade(&made));
        made
    });
    watched.wake(notify);
    watched
}

fn start<K, F>(follow: impl FnOnce(Arc<State<K>>) -> F) -> Arc<Watched<K>>
where
    F: Future<Output = ()> + Send + 'static,
{
    let state = Arc::new(State { known: Mutex::new(Known::Unknown), wake: Mutex::default() });
    let task = tokio::spawn(follow(state.clone())).abort_handle();
    Arc::new(Watched { state, task })
}

async fn follow_all(api: Api<ClusterTrustBundle>, state: Arc<State<TrustBundles>>) {
    let mut stream = watcher(api, watcher::Config::default()).default_backoff().boxed();
    let (mut all, mut listing) = (TrustBundles::new(), false);
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => {
                (all, listing) = (TrustBundles::new(), true);
            }
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                all.insert(object.name_any(), object);
            }
            Ok(watcher::Event::Delete(object)) => drop(all.remove(&object.name_any())),
            Ok(watcher::Event::InitDone) => listing = false,
            Err(error) => {
                tracing::debug!(%error, "watching the bundles of trusted certificates");
                continue;
            }
        }
        if !listing {
            state.set(Known::There(Arc::new(all.clone())));
        }
    }
}

async fn follow<K>(api: Api<K>, name: String, state: Arc<State<K>>)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut stream = watcher(api, config).default_backoff().boxed();
    let mut listed = Known::Absent;
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => listed = Known::Absent,
            Ok(watcher::Event::InitApply(object)) => listed = Known::There(Arc::new(object)),
            Ok(watcher::Event::InitDone) => state.set(listed.clone()),
            Ok(watcher::Event::Apply(object)) => state.set(Known::There(Arc::new(object))),
            Ok(watcher::Event::Delete(_)) => state.set(Known::Absent),
            Err(error) => tracing::debug!(%error, name, "watching an object that a pod refers to"),
        }
    }
}
