//! The API server alone: no controllers, no nodes. `serve DATA_DIR [ADDRESS]` prints where the kubeconfig is.
//!
//! Gives every namespace its `default` service account, which controllers do in the whole system.
use std::time::Duration;

use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use server::{ApiServer, Config, Identity};
use tower::ServiceExt;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let start = std::time::Instant::now();
    let mut args = std::env::args().skip(1);
    let layout = base::Layout::new(args.next().ok_or("usage: serve DATA_DIR [ADDRESS]")?);
    let listener = tokio::net::TcpListener::bind(args.next().as_deref().unwrap_or("127.0.0.1:0")).await?;
    let config = Config { layout: layout.clone(), listen_names: Vec::new(), store: store::Options::default() };
    let server = ApiServer::open(config)?;
    server.bootstrap().await?;
    let url = format!("https://{}", listener.local_addr()?);
    std::fs::write(layout.admin_kubeconfig(), server.kubeconfig(&url))?;
    println!("{url} ready in {:?}, kubeconfig {}", start.elapsed(), layout.admin_kubeconfig().display());
    tokio::spawn(accounts(server.clone()));
    let stop = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    server.serve(listener, stop).await?;
    server.close().await;
    Ok(())
}

async fn call(server: &ApiServer, method: Method, path: &str, body: Value) -> Result<Value, Failure> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = Request::builder().method(method).uri(path).body(body)?;
    let response = server.service(Identity::component("system:serve")).oneshot(request).await?;
    Ok(serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?)
}

async fn accounts(server: ApiServer) -> Result<(), Failure> {
    loop {
        let list = call(&server, Method::GET, "/api/v1/namespaces", Value::Null).await?;
        for namespace in list["items"].as_array().into_iter().flatten() {
            let name = namespace["metadata"]["name"].as_str().unwrap_or_default();
            let path = format!("/api/v1/namespaces/{name}/serviceaccounts");
            if call(&server, Method::GET, &format!("{path}/default"), Value::Null).await?["kind"] == "Status" {
                call(&server, Method::POST, &path, json!({"metadata": {"name": "default"}})).await?;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
