//! The node's own endpoints, as the API server calls them: logs, exec, attach, port-forward, and what tools look at.
mod logs;
mod metrics;
mod query;
mod streams;
mod summary;

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use k8s_openapi::{List, api::core::v1::Pod};

use crate::{Node, agent::worker::View};

/// An answer that is not what was asked for. The text goes to the user.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal(pub StatusCode, pub String);

impl IntoResponse for Refusal {
    /// A `Status`, as the API server would make of a node's refusal: it may hand the answer on as it is.
    fn into_response(self) -> Response {
        let Self(code, text) = self;
        let text = text.trim_end();
        let (reason, message) = match code {
            StatusCode::BAD_REQUEST => ("BadRequest", text.to_owned()),
            StatusCode::NOT_FOUND => ("NotFound", text.to_owned()),
            StatusCode::FORBIDDEN => ("Forbidden", text.to_owned()),
            StatusCode::INTERNAL_SERVER_ERROR => ("InternalError", format!("Internal error occurred: {text}")),
            _ => ("", text.to_owned()),
        };
        let status = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code.as_u16(),
        });
        (code, [(header::CONTENT_TYPE, "application/json")], status.to_string()).into_response()
    }
}

impl Node {
    /// The node's endpoints. For upgrades (`exec`, `attach`, `portForward`) the request must carry hyper's upgrade handle
    /// in its extensions.
    pub fn service(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/healthz", get(async || "ok"))
            .route("/pods", get(pods))
            .route("/stats/summary", get(summary::summary))
            .route("/metrics", get(metrics::metrics))
            .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::logs))
            .route("/exec/{namespace}/{pod}/{container}", any(streams::exec))
            .route("/exec/{namespace}/{pod}/{uid}/{container}", any(streams::exec))
            .route("/attach/{namespace}/{pod}/{container}", any(streams::attach))
            .route("/attach/{namespace}/{pod}/{uid}/{container}", any(streams::attach))
            .route("/portForward/{namespace}/{pod}", any(streams::port_forward))
            .route("/portForward/{namespace}/{pod}/{uid}", any(streams::port_forward))
            .with_state(self.clone())
    }

    /// What is known about a pod by name; the newest incarnation if there are several.
    fn find(&self, namespace: &str, name: &str) -> Option<(View, tokio::sync::watch::Receiver<View>)> {
        let workers = self.workers.lock();
        let mut found: Vec<_> = workers
            .values()
            .map(|h| (h.view.borrow().clone(), h.view.clone()))
            .filter(|(v, _)| {
                let m = &v.pod.metadata;
                m.name.as_deref() == Some(name) && m.namespace.as_deref() == Some(namespace)
            })
            .collect();
        found.sort_by_key(|(v, _)| v.pod.metadata.creation_timestamp.as_ref().map(|t| t.0));
        found.pop()
    }
}

/// An answer in JSON.
fn json(value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn pods(State(node): State<Arc<Node>>) -> Response {
    let views: Vec<View> = node.workers.lock().values().map(|h| h.view.borrow().clone()).collect();
    let items = views.into_iter().map(|v| Pod { status: Some(v.status), ..(*v.pod).clone() });
    json(&List { items: items.collect(), ..List::default() })
}
