//! How many requests a server in this process answers: `throughput DATA_DIR [OBJECTS]`.
use std::time::Instant;

use futures::{StreamExt, stream};
use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::json;
use server::{ApiServer, Config, Identity};
use tower::ServiceExt;

type Failure = Box<dyn std::error::Error + Send + Sync>;
const AT_ONCE: usize = 64;
const PATH: &str = "/api/v1/namespaces/default/configmaps";

async fn call(server: &ApiServer, method: Method, path: String, body: String) -> Result<usize, Failure> {
    let request = Request::builder().method(method).uri(path).body(body)?;
    let response = server.service(Identity::component("system:throughput")).oneshot(request).await?;
    let good = response.status().is_success();
    let bytes = response.into_body().collect().await?.to_bytes();
    if good { Ok(bytes.len()) } else { Err(String::from_utf8_lossy(&bytes).into()) }
}

async fn measure<F>(what: &str, count: usize, mut one: impl FnMut(usize) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<usize, Failure>> + Send + 'static,
{
    let start = Instant::now();
    let mut answers = stream::iter((0..count).map(|i| tokio::spawn(one(i)))).buffer_unordered(AT_ONCE);
    while let Some(answer) = answers.next().await {
        answer??;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{what}: {count} in {seconds:.3} s, {:.0}/s", count as f64 / seconds);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let layout = base::Layout::new(args.next().ok_or("usage: throughput DATA_DIR [OBJECTS]")?);
    let count: usize = args.next().map_or(Ok(5000), |n| n.parse())?;
    let start = Instant::now();
    let server = ApiServer::open(Config { layout, listen_names: Vec::new(), store: store::Options::default() })?;
    server.bootstrap().await?;
    println!("open and bootstrap: {:?}", start.elapsed());
    let s = server.clone();
    measure("create", count, move |i| {
        let body = json!({"metadata": {"name": format!("m{i}"), "labels": {"n": i.to_string()}}, "data": {"a": "x".repeat(500)}});
        let s = s.clone();
        async move { call(&s, Method::POST, PATH.into(), body.to_string()).await }
    })
    .await?;
    let s = server.clone();
    measure("get", count, move |i| {
        let s = s.clone();
        async move { call(&s, Method::GET, format!("{PATH}/m{i}"), String::new()).await }
    })
    .await?;
    let s = server.clone();
    measure("list all", 20, move |_| {
        let s = s.clone();
        async move { call(&s, Method::GET, PATH.into(), String::new()).await }
    })
    .await?;
    let s = server.clone();
    measure("list by label", 20, move |i| {
        let s = s.clone();
        async move { call(&s, Method::GET, format!("{PATH}?labelSelector=n%3D{i}"), String::new()).await }
    })
    .await?;
    server.close().await;
    Ok(())
}
