//! The client: one connection for each call, with the files as they are then.
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{Control, Dataset, DatasetState, Error, NewDataset, NodeState};

const TIME: Duration = Duration::from_secs(30);
/// Between looks at whether an answer is still wanted.
const LOOK: Duration = Duration::from_millis(20);
/// More than ten thousand datasets with all the metadata that they may have.
const ANSWER_BYTES: usize = 64 << 20;
/// Of a refusal, so much is told.
const TOLD_CHARS: usize = 300;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Where the control service is, and who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name or address, as in the service's certificate.
    pub host: String,
    pub port: u16,
    /// Certificate of the cluster.
    pub ca_file: PathBuf,
    /// Key and certificate of the API's user.
    pub key_file: PathBuf,
    pub certificate_file: PathBuf,
}

impl Default for Settings {
    /// What Kubernetes had.
    fn default() -> Self {
        Self {
            host: "localhost".into(),
            port: 4523,
            ca_file: "/etc/flocker/cluster.crt".into(),
            key_file: "/etc/flocker/apiuser.key".into(),
            certificate_file: "/etc/flocker/apiuser.crt".into(),
        }
    }
}

impl Settings {
    fn at(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    fn certificates(path: &Path, what: &'static str) -> Result<Vec<CertificateDer<'static>>, Error> {
        let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(unusable(path, what))?.collect();
        match all.map_err(unusable(path, what))? {
            none if none.is_empty() => Err(unusable(path, what)("it has no certificate")),
            all => Ok(all),
        }
    }

    /// What the files say now.
    fn tls(&self) -> Result<Arc<ClientConfig>, Error> {
        const CA: &str = "the certificate of the Flocker cluster";
        const OWN: &str = "the certificate of the Flocker API user";
        const KEY: &str = "the key of the Flocker API user";
        let mut roots = RootCertStore::empty();
        for root in Self::certificates(&self.ca_file, CA)? {
            roots.add(root).map_err(unusable(&self.ca_file, CA))?;
        }
        let own = Self::certificates(&self.certificate_file, OWN)?;
        let key = PrivateKeyDer::from_pem_file(&self.key_file).map_err(unusable(&self.key_file, KEY))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable(&self.ca_file, CA))?
            .with_root_certificates(roots)
            .with_client_auth_cert(own, key)
            .map_err(unusable(&self.key_file, KEY))?;
        Ok(Arc::new(config))
    }
}

fn unusable<E: Into<Cause>>(path: &Path, what: &'static str) -> impl Fn(E) -> Error + use<E> {
    let path = path.to_path_buf();
    move |cause| Error::File { what, path: path.clone(), cause: cause.into() }
}

/// A control service that is somewhere in the network.
#[derive(Debug, Clone)]
pub struct Client {
    settings: Settings,
}

impl Client {
    /// Nothing is read or asked before the first call.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// One request and its answer. On a thread that may block.
    fn ask(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(StatusCode, Bytes), Error> {
        let at = self.settings.at();
        let unreachable = |cause: Cause| Error::Unreachable { at: at.clone(), cause };
        let tls = self.settings.tls()?;
        let host = self.settings.host.clone();
        let name = ServerName::try_from(host.clone()).map_err(|_| Error::Host { host })?;
        let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = built.map_err(|e| unreachable(e.into()))?;
        let given_up = async {
            while !cancelled() {
                tokio::time::sleep(LOOK).await;
            }
        };
        let answer = runtime.block_on(async {
            tokio::select! {
                done = tokio::time::timeout(TIME, self.exchange(tls, name, method, path, body)) => match done {
                    Ok(answer) => answer.map_err(unreachable),
                    Err(_) => Err(Error::Late { at: at.clone(), seconds: TIME.as_secs() }),
                },
                () = given_up => Err(Error::Cancelled),
            }
        });
        // A look-up of the name that is under way ends by itself.
        runtime.shutdown_background();
        answer
    }

    async fn exchange(
        &self,
        tls: Arc<ClientConfig>,
        name: ServerName<'static>,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes), Cause> {
        let stream = TcpStream::connect((self.settings.host.as_str(), self.settings.port)).await?;
        let stream = TlsConnector::from(tls).connect(name, stream).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let serving = tokio::spawn(connection);
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(format!("/v1/{path}"))
            .header("host", self.settings.at())
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await?.to_bytes();
        serving.abort();
        Ok((status, body))
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: &'static str,
        path: &str,
        body: Option<&Value>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<T, Error> {
        let verb = Method::from_bytes(method.as_bytes()).unwrap_or_default();
        let (status, answer) = self.ask(&verb, path, body, cancelled)?;
        let (at, path) = (self.settings.at(), format!("/v1/{path}"));
        if !status.is_success() {
            return Err(Error::Refused { at, method, path, status: status.as_u16(), said: said(&answer) });
        }
        serde_json::from_slice(&answer).map_err(|cause| Error::Answer { at, method, path, cause })
    }
}

/// What a refusal says: the service's `description`, or its beginning.
fn said(answer: &[u8]) -> String {
    let described = serde_json::from_slice::<Value>(answer).ok();
    let described = described.as_ref().and_then(|v| v.get("description")).and_then(Value::as_str).map(str::to_owned);
    let text = described.unwrap_or_else(|| String::from_utf8_lossy(answer).trim().to_owned());
    text.chars().take(TOLD_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl Control for Client {
    fn datasets(&self, cancelled: &dyn Fn() -> bool) -> Result<Vec<Dataset>, Error> {
        self.call("GET", "configuration/datasets", None, cancelled)
    }

    fn states(&self, cancelled: &dyn Fn() -> bool) -> Result<Vec<DatasetState>, Error> {
        self.call("GET", "state/datasets", None, cancelled)
    }

    fn nodes(&self, cancelled: &dyn Fn() -> bool) -> Result<Vec<NodeState>, Error> {
        self.call("GET", "state/nodes", None, cancelled)
    }

    fn create(&self, new: &NewDataset, cancelled: &dyn Fn() -> bool) -> Result<Dataset, Error> {
        let body = json!({
            "primary": new.primary, "maximum_size": new.maximum_bytes, "metadata": { "name": new.name },
        });
        self.call("POST", "configuration/datasets", Some(&body), cancelled)
    }

    fn move_to(&self, dataset: &str, node: &str, cancelled: &dyn Fn() -> bool) -> Result<(), Error> {
        let path = format!("configuration/datasets/{}", one_segment(dataset));
        self.call::<Value>("POST", &path, Some(&json!({ "primary": node })), cancelled).map(drop)
    }

    fn delete(&self, dataset: &str, cancelled: &dyn Fn() -> bool) -> Result<(), Error> {
        let path = format!("configuration/datasets/{}", one_segment(dataset));
        match self.call::<Value>("DELETE", &path, None, cancelled) {
            Err(Error::Refused { status: 404, .. }) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// An identifier as a part of a path, whatever its author wrote.
fn one_segment(id: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    id.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_stays_one_part_of_a_path() {
        assert_eq!(one_segment("4a2e-7F"), "4a2e-7F");
        assert_eq!(one_segment("../a?b"), "%2E%2E%2Fa%3Fb");
    }

    #[test]
    fn refusals_are_told_in_their_words_and_not_at_any_length() {
        assert_eq!(said(br#"{"description": "Dataset not found."}"#), "Dataset not found.");
        assert_eq!(said(b"oops\n"), "oops");
        assert_eq!(said("x".repeat(1000).as_bytes()).len(), TOLD_CHARS);
    }
}
