//! An API that keeps objects in memory: just enough of list, watch, create, patch and delete for a node to talk to.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::sync::watch;

type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

#[derive(Default)]
struct State {
    /// By path, `/api/v1/namespaces/ns/pods/p`.
    objects: BTreeMap<String, Value>,
    /// Path, kind of change, object; the revision is the index plus one.
    log: Vec<(String, &'static str, Value)>,
    /// Requests for tokens so far.
    tokens: usize,
    no_tokens: bool,
}

#[derive(Clone)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    length: watch::Sender<usize>,
}

impl FakeApi {
    pub fn new() -> Self {
        Self { state: Arc::default(), length: watch::channel(0).0 }
    }

    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request| {
            let api = api.clone();
            async move { Ok::<_, std::convert::Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// Refuses tokens from now on, or gives them again.
    pub fn refuse_tokens(&self, refuse: bool) {
        self.state.lock().expect("not poisoned").no_tokens = refuse;
    }

    /// How many tokens were asked for; that one, unless they are refused.
    fn next_token(&self) -> Option<usize> {
        let mut state = self.state.lock().expect("not poisoned");
        state.tokens += 1;
        (!state.no_tokens).then_some(state.tokens)
    }

    pub fn tokens_asked(&self) -> usize {
        self.state.lock().expect("not poisoned").tokens
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().expect("not poisoned").objects.get(path).cloned()
    }

    pub fn put(&self, path: &str, mut object: Value) {
        let mut state = self.state.lock().expect("not poisoned");
        let known = state.objects.contains_key(path);
        object["metadata"]["resourceVersion"] = (state.log.len() + 1).to_string().into();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}", state.log.len()).into();
        }
        state.objects.insert(path.into(), object.clone());
        state.log.push((path.into(), if known { "MODIFIED" } else { "ADDED" }, object));
        self.length.send_replace(state.log.len());
    }

    pub fn remove(&self, path: &str) {
        let mut state = self.state.lock().expect("not poisoned");
        let Some(mut object) = state.objects.remove(path) else { return };
        object["metadata"]["resourceVersion"] = (state.log.len() + 1).to_string().into();
        state.log.push((path.into(), "DELETED", object));
        self.length.send_replace(state.log.len());
    }

    /// Waits until `good` holds, looking after every change.
    pub async fn until<T>(&self, what: &str, good: impl Fn(&Self) -> Option<T>) -> T {
        let mut changes = self.length.subscribe();
        let wait = async {
            loop {
                changes.borrow_and_update();
                if let Some(found) = good(self) {
                    return found;
                }
                // Also without a change: the runtime may be what is waited for.
                let _ = tokio::time::timeout(Duration::from_millis(20), changes.changed()).await;
            }
        };
        match tokio::time::timeout(Duration::from_secs(20), wait).await {
            Ok(found) => found,
            Err(_) => panic!("never came: {what}; events: {:?}; pod: {:#?}", self.events(), self.get(super::POD)),
        }
    }

    /// `reason: message` in the order of their creation.
    pub fn events(&self) -> Vec<String> {
        let state = self.state.lock().expect("not poisoned");
        let made = state.log.iter().filter(|(path, kind, _)| path.contains("/events/") && *kind == "ADDED");
        made.map(|(_, _, e)| {
            format!("{}: {}", e["reason"].as_str().unwrap_or("?"), e["message"].as_str().unwrap_or("?"))
        })
        .collect()
    }

    async fn answer(&self, request: Request<kube::client::Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        match parts.method {
            Method::GET if query.contains("watch=true") => self.watch(&path, &query),
            Method::GET => match self.get(&path) {
                Some(object) => answer(StatusCode::OK, &object),
                None if is_collection(&path) => answer(StatusCode::OK, &self.list(&path, &query)),
                None => absent(),
            },
            Method::POST if path.ends_with("/token") => {
                let Some(number) = self.next_token() else { return absent() };
                let life = SignedDuration::from_secs(sent["spec"]["expirationSeconds"].as_i64().unwrap_or(3600));
                let expires = (Timestamp::now() + life).to_string();
                let status = json!({"token": format!("t{number}"), "expirationTimestamp": expires});
                answer(StatusCode::CREATED, &json!({"metadata": {}, "spec": {"audiences": []}, "status": status}))
            }
            Method::POST => {
                let own = format!("{path}/{}", sent["metadata"]["name"].as_str().expect("a name"));
                self.put(&own, sent);
                answer(StatusCode::CREATED, &self.get(&own).expect("just made"))
            }
            Method::PUT => {
                self.put(&path, sent);
                answer(StatusCode::OK, &self.get(&path).expect("just put"))
            }
            Method::PATCH => {
                let own = path.trim_end_matches("/status").to_owned();
                let Some(mut object) = self.get(&own) else { return absent() };
                merge(&mut object, &sent);
                self.put(&own, object);
                answer(StatusCode::OK, &self.get(&own).expect("there"))
            }
            Method::DELETE => {
                let Some(object) = self.get(&path) else { return absent() };
                self.remove(&path);
                answer(StatusCode::OK, &object)
            }
            _ => answer(StatusCode::METHOD_NOT_ALLOWED, &json!({})),
        }
    }

    fn list(&self, path: &str, query: &str) -> Value {
        let state = self.state.lock().expect("not poisoned");
        let items: Vec<_> =
            state.objects.iter().filter(|(p, o)| within(p, path) && selected(o, query)).map(|(_, o)| o).collect();
        json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": state.log.len().to_string()}, "items": items})
    }

    fn watch(&self, path: &str, query: &str) -> Response<Body> {
        let from =
            query.split('&').find_map(|p| p.strip_prefix("resourceVersion=")).and_then(|v| v.parse().ok()).unwrap_or(0);
        let (api, path, query) = (self.clone(), path.to_owned(), query.to_owned());
        let changes = self.length.subscribe();
        let lines = stream::unfold((from, changes), move |(mut at, mut changes): (usize, _)| {
            let (api, path, query) = (api.clone(), path.clone(), query.clone());
            async move {
                loop {
                    let next = api.state.lock().expect("not poisoned").log.get(at).cloned();
                    let Some((p, kind, object)) = next else {
                        changes.changed().await.ok()?;
                        continue;
                    };
                    at += 1;
                    if within(&p, &path) && selected(&object, &query) {
                        let line = json!({"type": kind, "object": object}).to_string() + "\n";
                        return Some((Ok(Frame::data(Bytes::from(line))), (at, changes)));
                    }
                }
            }
        });
        Response::new(StreamBody::new(lines.boxed()).boxed_unsync())
    }
}

fn is_collection(path: &str) -> bool {
    let last = path.rsplit('/').next().unwrap_or_default();
    let core = ["pods", "configmaps", "secrets", "persistentvolumeclaims", "persistentvolumes", "nodes"];
    core.contains(&last) || ["csidrivers", "csinodes", "volumeattachments"].contains(&last)
}

/// `/api/v1/pods` holds `/api/v1/namespaces/ns/pods/p`.
fn within(object: &str, collection: &str) -> bool {
    let (parent, _) = object.rsplit_once('/').expect("a path");
    parent == collection || parent.rsplit('/').next() == collection.strip_prefix("/api/v1/")
}

fn selected(object: &Value, query: &str) -> bool {
    let selector = query.split('&').find_map(|p| p.strip_prefix("fieldSelector=")).unwrap_or_default();
    match selector.replace("%3D", "=").split_once('=') {
        Some(("metadata.name", name)) => object["metadata"]["name"] == name,
        Some(("spec.nodeName", name)) => object["spec"]["nodeName"] == name,
        _ => true,
    }
}

fn merge(into: &mut Value, patch: &Value) {
    match patch {
        Value::Object(fields) => {
            if !into.is_object() {
                *into = json!({});
            }
            for (key, value) in fields {
                if value.is_null() {
                    into.as_object_mut().expect("an object").remove(key);
                } else {
                    merge(&mut into[key.as_str()], value);
                }
            }
        }
        Value::Array(list) => {
            *into = Value::Array(
                list.iter()
                    .filter(|v| v.get("$patch").is_none())
                    .map(|v| {
                        let mut clean = json!({});
                        merge(&mut clean, v);
                        clean
                    })
                    .collect(),
            );
        }
        other => *into = other.clone(),
    }
}

fn answer(code: StatusCode, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).boxed_unsync();
    Response::builder().status(code).header("content-type", "application/json").body(body).expect("a response")
}

fn absent() -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404, "message": "not found", "metadata": {}});
    answer(StatusCode::NOT_FOUND, &status)
}
