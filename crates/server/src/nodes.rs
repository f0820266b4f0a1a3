//! How the API server reaches a node's own endpoints (`logs`, `exec`, `attach`, `port-forward`).
use axum::{body::Body, response::Response};
use http::Request;

/// Carries a request to the named node's endpoints. The URI is the node's (`/containerLogs/{namespace}/{pod}/{container}`,
/// `/exec/...`, `/attach/...`, `/portForward/{namespace}/{pod}`), the query the client's. For a node in this process the
/// request is handed over as it is, with hyper's upgrade handle in its extensions; the node answers 101 itself.
#[async_trait::async_trait]
pub trait NodeConnector: Send + Sync + 'static {
    async fn call(&self, node: &str, request: Request<Body>) -> Response;
}
