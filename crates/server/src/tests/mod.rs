//! Transcripts: requests through the in-process service, answers as clients see them.
mod admission;
mod api;
mod auth;
mod upstream;
mod watches;

use axum::body::{Body, BodyDataStream};
use futures::StreamExt;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use store::Store;
use tower::ServiceExt;

use crate::{ApiServer, Identity, facets, pki::Pki};

/// A server without a disk, and a client of it.
pub struct Client {
    pub server: ApiServer,
    identity: Option<Identity>,
}

pub struct Reply {
    pub code: u16,
    pub headers: HeaderMap,
    pub text: String,
    pub json: Value,
}

impl Client {
    /// Bootstrapped, with the default service account of the default namespace.
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &["localhost".into()]).unwrap();
        let server = ApiServer::assemble(Store::in_memory(facets::derive), pki).unwrap();
        server.bootstrap().await.unwrap();
        let client = Self { server, identity: Some(Identity::component("admin")) };
        client.ok("POST", "/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
        client
    }

    pub fn as_identity(&self, identity: Option<Identity>) -> Self {
        Self { server: self.server.clone(), identity }
    }

    pub async fn send(&self, request: Request<Body>) -> axum::response::Response {
        match &self.identity {
            Some(identity) => self.server.service(identity.clone()).oneshot(request).await.unwrap(),
            None => self.server.answer(None, request).await,
        }
    }

    /// Sends text of a content type.
    pub async fn raw(&self, method: &str, path: &str, content_type: &str, accept: &str, body: &str) -> Reply {
        let mut request = Request::builder().method(method).uri(path).header("accept", accept);
        if !body.is_empty() {
            request = request.header("content-type", content_type);
        }
        let response = self.send(request.body(Body::from(body.to_owned())).unwrap()).await;
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        let json = serde_json::from_str(&text).unwrap_or(Value::Null);
        Reply { code: parts.status.as_u16(), headers: parts.headers, text, json }
    }

    pub async fn call(&self, method: &str, path: &str, body: Value) -> Reply {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let content_type = match method {
            "PATCH" if body.is_array() => "application/json-patch+json",
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        self.raw(method, path, content_type, "application/json", &text).await
    }

    /// Sends a request that must succeed.
    pub async fn ok(&self, method: &str, path: &str, body: Value) -> Value {
        let reply = self.call(method, path, body).await;
        assert!(reply.code < 300, "{method} {path}: {} {}", reply.code, reply.text);
        reply.json
    }

    /// Sends a request that must fail; gives `code reason: message`.
    pub async fn fails(&self, method: &str, path: &str, body: Value) -> String {
        let reply = self.call(method, path, body).await;
        let j = &reply.json;
        assert_eq!(
            (j["kind"].as_str(), j["code"].as_u64()),
            (Some("Status"), Some(reply.code.into())),
            "{}",
            reply.text
        );
        format!(
            "{} {}: {}",
            reply.code,
            j["reason"].as_str().unwrap_or_default(),
            j["message"].as_str().unwrap_or_default()
        )
    }

    pub async fn watch(&self, path: &str) -> Watch {
        let response = self.send(Request::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), 200);
        Watch { body: response.into_body().into_data_stream(), rest: String::new() }
    }
}

/// A running watch.
pub struct Watch {
    body: BodyDataStream,
    rest: String,
}

impl Watch {
    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((line, rest)) = self.rest.split_once('\n') {
                let event = serde_json::from_str(line).unwrap();
                self.rest = rest.to_owned();
                return Some(event);
            }
            let wait = std::time::Duration::from_secs(10);
            let chunk = tokio::time::timeout(wait, self.body.next()).await.expect("an event in time")?;
            self.rest.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        }
    }

    /// The next event as `TYPE name`.
    pub async fn line(&mut self) -> String {
        let event = self.next().await.expect("the watch goes on");
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
        format!("{} {name}", event["type"].as_str().unwrap()).trim_end().to_owned()
    }
}

pub const MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub const PODS: &str = "/api/v1/namespaces/default/pods";

pub fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

pub fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

pub fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}
