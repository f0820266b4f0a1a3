//! A control service of Flocker: its datasets and nodes, moving them by and by as its agents do; and the same served as its
//! REST API is, over TLS with certificates on both sides.
use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use flocker::{Control, Dataset, DatasetState, Error, NewDataset, NodeState};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::{RootCertStore, ServerConfig, pki_types::PrivateKeyDer, server::WebPkiClientVerifier};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

/// Mounts a dataset of that UUID somewhere on this machine, or takes it away (`false`); says where.
pub type Mounter = dyn Fn(&str, bool) -> PathBuf + Send + Sync;

#[derive(Default)]
struct State {
    datasets: Vec<Dataset>,
    sizes: BTreeMap<String, u64>,
    states: BTreeMap<String, DatasetState>,
    nodes: Vec<NodeState>,
    /// Nothing moves.
    stuck: bool,
    asked: Vec<String>,
    made: usize,
}

/// The service's mind, and its agents' work.
pub struct FakeFlocker {
    state: Mutex<State>,
    here: String,
    mount: Box<Mounter>,
}

/// UUID of the node that this machine is.
pub const HERE: &str = "f7a1f1a2-0000-4000-8000-000000000001";
/// UUID of another.
pub const THERE: &str = "f7a1f1a2-0000-4000-8000-000000000002";

impl FakeFlocker {
    /// A service that knows this machine by an address.
    pub fn new(address: &str, mount: Box<Mounter>) -> Arc<Self> {
        let node = |uuid: &str, host: &str| NodeState { uuid: uuid.into(), host: host.into() };
        let nodes = vec![node(HERE, address), node(THERE, "203.0.113.9")];
        let state = Mutex::new(State { nodes, ..State::default() });
        Arc::new(Self { state, here: HERE.into(), mount })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a dataset on the other node. Returns its UUID.
    pub fn add(&self, name: &str) -> String {
        self.insert(name, THERE, 1 << 30)
    }

    /// From now on nothing moves, or it does again.
    pub fn stick(&self, stuck: bool) {
        self.state().stuck = stuck;
    }

    /// What it was asked so far: method and path, a line each.
    pub fn asked(&self) -> Vec<String> {
        self.state().asked.clone()
    }

    fn insert(&self, name: &str, primary: &str, bytes: u64) -> String {
        let mut state = self.state();
        state.made += 1;
        let dataset_id = format!("d5a2f1a2-0000-4000-8000-{:012}", state.made);
        let metadata = [("name".to_owned(), name.to_owned())].into();
        let primary = Some(primary.to_owned());
        state.datasets.push(Dataset { dataset_id: dataset_id.clone(), primary, metadata, deleted: false });
        state.sizes.insert(dataset_id.clone(), bytes);
        dataset_id
    }

    /// One step of the agents: a dataset leaves where it is, or comes to where it is to be.
    fn converge(&self) {
        let mut state = self.state();
        if state.stuck {
            return;
        }
        for dataset in state.datasets.clone() {
            let id = dataset.dataset_id.clone();
            let now = state.states.get(&id).cloned();
            let wanted = dataset.primary.filter(|_| !dataset.deleted);
            let next = match now.and_then(|s| s.primary) {
                at if at == wanted => continue,
                None => wanted,
                Some(at) => {
                    if at == self.here {
                        (self.mount)(&id, false);
                    }
                    None
                }
            };
            let path = next.as_ref().map(|node| match *node == self.here {
                true => (self.mount)(&id, true).to_string_lossy().into_owned(),
                false => format!("/flocker/{id}"),
            });
            state.states.insert(id.clone(), DatasetState { dataset_id: id, primary: next, path });
        }
    }

    /// One request as the API answers it.
    fn answer(&self, method: &Method, path: &str, body: &Value) -> (StatusCode, Value) {
        self.state().asked.push(format!("{method} {path}"));
        let encode = |d: &Dataset, size: Option<&u64>| {
            json!({"dataset_id": d.dataset_id, "primary": d.primary, "metadata": d.metadata, "deleted": d.deleted,
                "maximum_size": size})
        };
        let missing = || (StatusCode::NOT_FOUND, json!({"description": "Dataset not found."}));
        let id = path.strip_prefix("/v1/configuration/datasets/");
        match (method.as_str(), path, id) {
            ("GET", "/v1/state/nodes", _) => {
                let nodes: Vec<Value> =
                    self.state().nodes.iter().map(|n| json!({"uuid": n.uuid, "host": n.host})).collect();
                (StatusCode::OK, json!(nodes))
            }
            ("GET", "/v1/configuration/datasets", _) => {
                let state = self.state();
                let all: Vec<Value> =
                    state.datasets.iter().map(|d| encode(d, state.sizes.get(&d.dataset_id))).collect();
                (StatusCode::OK, json!(all))
            }
            ("GET", "/v1/state/datasets", _) => {
                self.converge();
                let one = |s: &DatasetState| match (&s.primary, &s.path) {
                    // What is nowhere has neither.
                    (Some(primary), Some(path)) => {
                        json!({"dataset_id": s.dataset_id, "primary": primary, "path": path})
                    }
                    _ => json!({"dataset_id": s.dataset_id}),
                };
                (StatusCode::OK, json!(self.state().states.values().map(one).collect::<Vec<_>>()))
            }
            ("POST", "/v1/configuration/datasets", _) => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default();
                let Some(primary) = body["primary"].as_str() else {
                    let why = json!({"description": "The provided JSON doesn't match the required schema."});
                    return (StatusCode::BAD_REQUEST, why);
                };
                let id = self.insert(name, primary, body["maximum_size"].as_u64().unwrap_or_default());
                (
                    StatusCode::CREATED,
                    json!({"dataset_id": id, "primary": primary, "metadata": body["metadata"], "deleted": false}),
                )
            }
            (verb, _, Some(id)) => {
                let mut state = self.state();
                let Some(found) = state.datasets.iter_mut().find(|d| d.dataset_id == id) else { return missing() };
                match verb {
                    "POST" => found.primary = body["primary"].as_str().map(str::to_owned),
                    _ => found.deleted = true,
                }
                (StatusCode::OK, encode(found, None))
            }
            _ => (StatusCode::NOT_FOUND, json!({"description": "No such resource."})),
        }
    }
}

impl Drop for FakeFlocker {
    fn drop(&mut self) {
        let here: Vec<String> = {
            let state = self.state();
            let ours = |s: &&DatasetState| s.primary.as_deref() == Some(&self.here);
            state.states.values().filter(ours).map(|s| s.dataset_id.clone()).collect()
        };
        here.iter().for_each(|id| drop((self.mount)(id, false)));
    }
}

/// The same without a network.
impl Control for FakeFlocker {
    fn datasets(&self, _: &dyn Fn() -> bool) -> Result<Vec<Dataset>, Error> {
        Ok(self.state().datasets.clone())
    }
    fn states(&self, cancelled: &dyn Fn() -> bool) -> Result<Vec<DatasetState>, Error> {
        if cancelled() {
            return Err(Error::Cancelled);
        }
        self.converge();
        Ok(self.state().states.values().cloned().collect())
    }
    fn nodes(&self, _: &dyn Fn() -> bool) -> Result<Vec<NodeState>, Error> {
        Ok(self.state().nodes.clone())
    }
    fn create(&self, new: &NewDataset, cancelled: &dyn Fn() -> bool) -> Result<Dataset, Error> {
        let id = self.insert(&new.name, &new.primary, new.maximum_bytes);
        let all = self.datasets(cancelled)?;
        all.into_iter().find(|d| d.dataset_id == id).ok_or(Error::Nobody)
    }
    fn move_to(&self, dataset: &str, node: &str, _: &dyn Fn() -> bool) -> Result<(), Error> {
        let mut state = self.state();
        let found = state.datasets.iter_mut().find(|d| d.dataset_id == dataset).ok_or(Error::Nobody)?;
        found.primary = Some(node.to_owned());
        Ok(())
    }
    fn delete(&self, dataset: &str, _: &dyn Fn() -> bool) -> Result<(), Error> {
        let mut state = self.state();
        state.datasets.iter_mut().filter(|d| d.dataset_id == dataset).for_each(|d| d.deleted = true);
        Ok(())
    }
}

/// A service on a port of this machine, with the files of a cluster and of one of its users.
pub struct FlockerService {
    pub settings: flocker::Settings,
    fake: Arc<FakeFlocker>,
    tls: Arc<ServerConfig>,
    running: Option<Runtime>,
}

/// A cluster's authority, and what it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn sign(&self, name: &str, host: Option<&str>) -> (String, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let mut params =
            CertificateParams::new(host.map(str::to_owned).into_iter().collect::<Vec<_>>()).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        let usage =
            if host.is_some() { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth };
        params.extended_key_usages = vec![usage];
        (params.signed_by(&key, &self.issuer).expect("signed").pem(), key)
    }
}

fn write(path: PathBuf, text: &str) -> PathBuf {
    std::fs::write(&path, text).expect("written");
    path
}

impl FlockerService {
    /// Starts the service on a free port of 127.0.0.1, and writes its users' files to `dir`.
    pub fn start(fake: Arc<FakeFlocker>, dir: &Path) -> Self {
        let cluster = Authority::new("cluster");
        let (certificate, key) = cluster.sign("control-service", Some("127.0.0.1"));
        let (user, user_key) = cluster.sign("user-holdfast", None);
        let settings = flocker::Settings {
            host: "127.0.0.1".into(),
            port: 0,
            ca_file: write(dir.join("cluster.crt"), &cluster.certificate),
            key_file: write(dir.join("apiuser.key"), &user_key.serialize_pem()),
            certificate_file: write(dir.join("apiuser.crt"), &user),
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        let parse = |pem: &str| -> rustls::pki_types::CertificateDer<'static> {
            rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).expect("a certificate")
        };
        roots.add(parse(&cluster.certificate)).expect("added");
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier.expect("a verifier"))
            .with_single_cert(vec![parse(&certificate)], key)
            .expect("a certificate");
        let mut service = Self { settings, fake, tls: Arc::new(tls), running: None };
        service.up();
        service
    }

    /// Files of somebody else's cluster, in `dir`.
    pub fn strangers(&self, dir: &Path) -> flocker::Settings {
        let other = Authority::new("other");
        let (user, key) = other.sign("user-stranger", None);
        flocker::Settings {
            ca_file: write(dir.join("other.crt"), &other.certificate),
            key_file: write(dir.join("stranger.key"), &key.serialize_pem()),
            certificate_file: write(dir.join("stranger.crt"), &user),
            ..self.settings.clone()
        }
    }

    /// Stops serving: connections are refused.
    pub fn down(&mut self) {
        if let Some(runtime) = self.running.take() {
            runtime.shutdown_background();
        }
    }

    /// Serves, on the port that it had.
    pub fn up(&mut self) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let address = SocketAddr::from(([127, 0, 0, 1], self.settings.port));
        let listener = loop {
            match runtime.block_on(tokio::net::TcpListener::bind(address)) {
                Ok(listener) => break listener,
                // The one before is about to close it.
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => std::thread::yield_now(),
                Err(e) => panic!("a port: {e}"),
            }
        };
        self.settings.port = listener.local_addr().expect("bound").port();
        let (acceptor, fake) = (TlsAcceptor::from(self.tls.clone()), self.fake.clone());
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, fake) = (acceptor.clone(), fake.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(|request| answer(fake.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        self.running = Some(runtime);
    }
}

impl Drop for FlockerService {
    fn drop(&mut self) {
        self.down();
    }
}

async fn answer(fake: Arc<FakeFlocker>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let (status, answer) = fake.answer(&method, &path, &body);
    let mut response = Response::new(Full::new(Bytes::from(answer.to_string())));
    *response.status_mut() = status;
    Ok(response)
}
