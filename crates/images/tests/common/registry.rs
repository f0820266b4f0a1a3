//! A small registry on the loopback interface.
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::Engine;
use futures::StreamExt;
use serde_json::json;

use super::{Made, index, sha};

/// How the registry knows its users: `user` with password `pass`.
#[derive(Clone, Copy, PartialEq)]
pub enum Login {
    None,
    Basic,
    Token,
}

pub struct Registry {
    login: Login,
    /// `127.0.0.1:PORT`
    pub host: String,
    /// By digest, and manifests also by `repository:tag`.
    pub content: Mutex<HashMap<String, Vec<u8>>>,
    /// Blobs served, with the offset they were asked from.
    pub blobs: Mutex<Vec<(String, u64)>>,
    /// So many blob answers break off in the middle.
    pub broken: AtomicUsize,
}

impl Registry {
    pub async fn start(login: Login) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let host = listener.local_addr().expect("address").to_string();
        let registry = Arc::new(Self {
            login,
            host,
            content: Mutex::default(),
            blobs: Mutex::default(),
            broken: AtomicUsize::new(0),
        });
        let app = Router::new().fallback(answer).with_state(registry.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        registry
    }

    /// Offers the image as `name`, behind an index.
    pub fn offer(&self, name: &str, made: &Made) {
        let index = index(made, &json!({}));
        let mut content = self.content.lock().expect("lock");
        content.extend(made.blobs.iter().cloned());
        content.insert(sha(&index), index.clone());
        content.insert(name.into(), index);
    }

    pub fn served(&self) -> Vec<u64> {
        self.blobs.lock().expect("lock").iter().map(|(_, offset)| *offset).collect()
    }

    fn admits(&self, request: &Request) -> bool {
        let given = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or("");
        let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("user:pass"));
        match (self.login, request.uri().path()) {
            (Login::None, _) => true,
            (Login::Token, path) if path != "/token" => given == "Bearer let-me-in",
            _ => given == basic,
        }
    }

    fn refusal(&self) -> Response {
        let challenge = match self.login {
            Login::Token => format!("Bearer realm=\"http://{}/token\",service=\"test\"", self.host),
            _ => "Basic realm=\"test\"".into(),
        };
        let body = json!({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}).to_string();
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)], body).into_response()
    }
}

async fn answer(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    if !registry.admits(&request) {
        return registry.refusal();
    }
    let path = request.uri().path().to_owned();
    if path == "/token" {
        return json!({"token": "let-me-in"}).to_string().into_response();
    }
    let Some(rest) = path.strip_prefix("/v2/") else { return StatusCode::NOT_FOUND.into_response() };
    if rest.is_empty() {
        return StatusCode::OK.into_response();
    }
    let unknown = |code: &str| (StatusCode::NOT_FOUND, json!({"errors": [{"code": code}]}).to_string()).into_response();
    if let Some((repository, reference)) = rest.split_once("/manifests/") {
        let content = registry.content.lock().expect("lock");
        let named = content.get(&format!("{repository}:{reference}")).or_else(|| content.get(reference));
        return named.map_or_else(|| unknown("MANIFEST_UNKNOWN"), |bytes| bytes.clone().into_response());
    }
    let Some((_, digest)) = rest.split_once("/blobs/") else { return StatusCode::NOT_FOUND.into_response() };
    let Some(bytes) = registry.content.lock().expect("lock").get(digest).cloned() else {
        return unknown("BLOB_UNKNOWN");
    };
    let range = request.headers().get(header::RANGE).and_then(|v| v.to_str().ok()).unwrap_or("bytes=0-");
    let offset: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().expect("range");
    registry.blobs.lock().expect("lock").push((digest.into(), offset as u64));
    let status = if offset > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let rest = bytes[offset..].to_vec();
    // Only layers are larger than this.
    let breaks = rest.len() > 4096
        && registry.broken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
    if breaks {
        let half = rest[..rest.len() / 2].to_vec();
        let cut = async {
            // Long enough for the first half to leave this machine's buffers.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            Err(std::io::Error::other("the line went down"))
        };
        let half = futures::stream::iter([Ok(half)]).chain(futures::stream::once(cut));
        return (status, Body::from_stream(half)).into_response();
    }
    (status, rest).into_response()
}
