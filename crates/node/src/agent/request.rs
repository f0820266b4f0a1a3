//! One HTTP request of a probe or a lifecycle hook: from the node to a container, without keeping connections.
use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// Bytes of a body that are read.
const BODY_BYTES: usize = 10 * 1024;
const REDIRECTS: usize = 10;

/// An answer; what it says is nobody's concern.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
}

/// The number behind a port that may be given by name.
pub fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => Some(*n),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            named.map(|p| p.container_port).or_else(|| name.parse().ok())
        }
    };
    match number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0) {
        Some(n) => Ok(n),
        None => Err(match port {
            IntOrString::Int(n) => format!("invalid port number: {n}"),
            IntOrString::String(name) => format!("couldn't find port: {name:?}"),
        }),
    }
}

/// `host:port`, with brackets around IPv6.
pub fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Performs an `httpGet` action against `default_host` unless it names one. Certificates are not verified, as upstream.
///
/// # Errors
/// A sentence for the user.
pub async fn get(
    container: &Container,
    action: &HTTPGetAction,
    default_host: &str,
    agent: &str,
    timeout: Duration,
) -> Result<Answer, String> {
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(default_host);
    let port = port(container, &action.port)?;
    let tls = action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
    let scheme = if tls { "https" } else { "http" };
    let path = action.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let url = format!("{scheme}://{}{slash}{path}", host_port(host, port));
    let shown = format!("Get {url:?}");
    let work = async {
        let mut at: Uri = url.parse().map_err(|e| format!("{shown}: {e}"))?;
        for _ in 0..REDIRECTS {
            let (answer, location) = once(container, action, &at, agent).await.map_err(|e| format!("{shown}: {e}"))?;
            match location.filter(|_| answer.status.is_redirection()).and_then(|l| follow(&at, &l)) {
                Some(next) => at = next,
                None => return Ok(answer),
            }
        }
        Err(format!("{shown}: stopped after {REDIRECTS} redirects"))
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(done) => done,
        Err(_) => Err(format!("{shown}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)")),
    }
}

/// Where to go on; redirects to other hosts are not followed.
fn follow(from: &Uri, location: &str) -> Option<Uri> {
    let to: Uri = location.parse().ok()?;
    if to.host().is_some() {
        return (to.host() == from.host()).then_some(to);
    }
    let base = format!("{}://{}", from.scheme_str()?, from.authority()?);
    if location.starts_with('/') { format!("{base}{location}").parse().ok() } else { None }
}

async fn once(
    container: &Container,
    action: &HTTPGetAction,
    uri: &Uri,
    agent: &str,
) -> Result<(Answer, Option<String>), String> {
    let host = uri.host().unwrap_or_default();
    let tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let address = host_port(bare, port);
    let stream =
        TcpStream::connect(&address).await.map_err(|e| format!("dial tcp {address}: connect: {}", plain(&e)))?;
    let mut request = Request::get(uri.path_and_query().map_or("/", |p| p.as_str()));
    let headers = request.headers_mut().ok_or("the request cannot be built")?;
    headers.insert(header::HOST, HeaderValue::from_str(&address).map_err(|e| e.to_string())?);
    headers.insert(header::USER_AGENT, HeaderValue::from_str(agent).map_err(|e| e.to_string())?);
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let mut own = std::collections::HashSet::new();
    for h in action.http_headers.iter().flatten() {
        let name = header::HeaderName::from_bytes(h.name.as_bytes()).map_err(|e| e.to_string())?;
        let value = HeaderValue::from_str(&h.value).map_err(|e| e.to_string())?;
        if own.insert(name.clone()) {
            headers.insert(name, value);
        } else {
            headers.append(name, value);
        }
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    tracing::trace!(container = container.name, %uri, "request to a container");
    if tls {
        let name = ServerName::try_from(bare.to_owned()).map_err(|e| e.to_string())?;
        let stream = connector()?.connect(name, stream).await.map_err(|e| plain(&e))?;
        exchange(stream, request).await
    } else {
        exchange(stream, request).await
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<(Answer, Option<String>), String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| base::chain(&e))?;
    let driver = tokio::spawn(connection);
    let result = async {
        let response = sender.send_request(request).await.map_err(|e| base::chain(&e))?;
        let location = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let status = response.status();
        // Read all the same, so that the server is not cut off in the middle of a short answer.
        let _ = Limited::new(response.into_body(), BODY_BYTES).collect().await;
        Ok((Answer { status }, location))
    }
    .await;
    driver.abort();
    result
}

/// The kernel's words without Rust's ` (os error 111)`, in Go's lower case.
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    text[..1].to_lowercase() + &text[1..]
}

fn connector() -> Result<tokio_rustls::TlsConnector, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config).into())
}

/// Probes accept any certificate: they ask whether a server answers, not who it is.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[test]
fn ports_by_name_and_number() {
    let c: Container =
        serde_json::from_value(serde_json::json!({"name": "c", "ports": [{"name": "web", "containerPort": 80}]}))
            .expect("valid");
    for (p, want) in [
        (IntOrString::Int(8080), Ok(8080)),
        (IntOrString::String("web".into()), Ok(80)),
        (IntOrString::String("81".into()), Ok(81)),
        (IntOrString::String("none".into()), Err("couldn't find port: \"none\"".to_owned())),
        (IntOrString::Int(0), Err("invalid port number: 0".to_owned())),
    ] {
        assert_eq!(port(&c, &p), want);
    }
}
