//! The API server: verbs, patches, watch, discovery, OpenAPI, tables, authentication, admission; all driven by `api::KINDS`.
//!
//! In: HTTP requests, from the network ([`ApiServer::serve`]) or from this process ([`ApiServer::service`]).
//! Out: answers, and objects in the store.
//!
//! Absent on purpose: containers, mounts, any knowledge of how a node does its work.
mod admission;
mod body;
mod delete;
mod der;
mod discovery;
mod facets;
mod handle;
mod health;
mod identity;
mod metrics;
mod negotiate;
pub mod nodes;
mod object;
mod openapi;
mod options;
mod patch;
mod path;
mod pki;
mod pods;
mod protobuf;
mod read;
mod render;
mod review;
mod serve;
mod status;
mod sweep;
#[cfg(test)]
mod tests;
mod token;
mod watch;
mod write;

use std::{
    convert::Infallible,
    future::Future,
    net::IpAddr,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures::FutureExt;
use http::Request;
use parking_lot::RwLock;
use serde_json::json;
use store::{Store, StoreError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use identity::Identity;
pub use pki::PkiError;
pub use serve::ServeError;
pub use status::ApiError;
pub use token::KeyError;

use nodes::NodeConnector;

/// The first address of the service network, under which pods know the API server.
pub const SERVICE_IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1));
/// Namespaces that always exist.
const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// What a server needs.
#[derive(Debug, Clone)]
pub struct Config {
    pub layout: base::Layout,
    /// Host names and addresses under which clients reach the listener, besides the usual ones.
    pub listen_names: Vec<String>,
    pub store: store::Options,
}

/// A server could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("open the object store")]
    Store(#[from] StoreError),
    #[error("prepare certificates")]
    Pki(#[from] PkiError),
    #[error("prepare service account tokens")]
    Key(#[from] KeyError),
}

pub(crate) struct Inner {
    pub(crate) store: Store<facets::Facets>,
    pub(crate) pki: pki::Pki,
    pub(crate) tokens: token::Tokens,
    pub(crate) connector: RwLock<Option<Arc<dyn NodeConnector>>>,
    /// Cancelled at shutdown: ends watches.
    pub(crate) shutdown: CancellationToken,
    pub(crate) documents: openapi::Documents,
    pub(crate) metrics: metrics::Metrics,
    pub(crate) turns: write::Turns,
    pub(crate) ledgers: admission::Ledgers,
}

impl Inner {
    /// Makes those of the namespaces that always exist which are missing.
    pub(crate) async fn make_namespaces(&self) -> Result<(), ApiError> {
        let kind = api::find("", "v1", "namespaces").ok_or_else(ApiError::no_such_resource)?;
        // Together: one sync of the disk makes them all durable.
        let missing = NAMESPACES.iter().filter(|name| self.store.get(&object::key(kind, "", name)).is_none());
        let made = futures::future::join_all(missing.map(|name| {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            self.create(kind, "", namespace, false)
        }));
        for result in made.await {
            match result {
                Err(e) if e.reason != "AlreadyExists" => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The API server. Clones are the same server.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("store", &self.inner.store).finish_non_exhaustive()
    }
}

impl ApiServer {
    /// Opens store and certificates in the data directory, making what is missing.
    pub fn open(config: Config) -> Result<Self, OpenError> {
        let names = pki::Pki::names(&config.listen_names, SERVICE_IP);
        let pki_dir = config.layout.pki();
        // The store first: its lock keeps a second process from the keys.
        let store = Store::open(&config.layout.store(), config.store, facets::derive)?;
        let pki = pki::Pki::open(&pki_dir, &names)?;
        Ok(Self::assemble(store, pki)?)
    }

    fn assemble(store: Store<facets::Facets>, pki: pki::Pki) -> Result<Self, KeyError> {
        let tokens = token::Tokens::new(&pki.account_key)?;
        let inner = Inner {
            store,
            pki,
            tokens,
            connector: RwLock::default(),
            shutdown: CancellationToken::new(),
            documents: openapi::Documents::default(),
            metrics: metrics::Metrics::default(),
            turns: write::Turns::default(),
            ledgers: admission::Ledgers::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// How logs, exec, attach and port-forward reach nodes. Until set, they answer with an error.
    pub fn set_connector(&self, connector: Arc<dyn NodeConnector>) {
        *self.inner.connector.write() = Some(connector);
    }

    /// Makes the namespaces that always exist and starts forgetting old events. Call once, inside a runtime.
    pub async fn bootstrap(&self) -> Result<(), ApiError> {
        self.inner.make_namespaces().await?;
        tokio::spawn(sweep::run(Arc::downgrade(&self.inner)));
        Ok(())
    }

    /// A client's way into this server without a network: plug it into `kube::Client::new`.
    pub fn service(&self, identity: Identity) -> LocalService {
        LocalService { server: self.clone(), identity: Arc::new(identity) }
    }

    /// Serves HTTPS until `shutdown` is ready, then ends watches and lets requests finish.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError> {
        serve::serve(self.clone(), listener, shutdown).await
    }

    /// Ends watches, writes out the store and gives the data directory free.
    pub async fn close(&self) {
        self.inner.shutdown.cancel();
        self.inner.store.close().await;
    }

    /// The administrator's kubeconfig for a server reached at `url` (`https://127.0.0.1:6443`).
    pub fn kubeconfig(&self, url: &str) -> String {
        self.inner.pki.kubeconfig(url)
    }

    /// The authority's certificate, PEM: what `kube-root-ca.crt` holds.
    pub fn ca_certificate(&self) -> &str {
        &self.inner.pki.ca_pem
    }

    /// Answers one request; a panic in a handler becomes an error of this request alone.
    pub(crate) async fn answer(&self, identity: Option<&Identity>, request: Request<Body>) -> Response {
        let what = format!("{} {}", request.method(), request.uri().path());
        match AssertUnwindSafe(handle::handle(self, identity, request)).catch_unwind().await {
            Ok(response) => response,
            Err(_) => {
                tracing::error!(request = what, "a request handler panicked");
                negotiate::error(&ApiError::internal("the request could not be handled"), negotiate::Form::JSON)
            }
        }
    }
}

/// An in-process client's connection.
#[derive(Debug, Clone)]
pub struct LocalService {
    server: ApiServer,
    identity: Arc<Identity>,
}

impl<B> tower::Service<Request<B>> for LocalService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.server.answer(Some(&this.identity), request.map(Body::new)).await) })
    }
}
