//! Sessions over real connections, with clients written by hand.
mod client;
mod exec;
mod forward;
mod session;

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, body::Body, extract::Request, response::Response};
use tokio::net::{TcpListener, TcpStream};

/// Serves every request with a function.
async fn serve<F>(handler: F) -> SocketAddr
where
    F: Fn(Request) -> Response + Send + Sync + 'static,
{
    let handler = Arc::new(handler);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(move |request: Request| {
        let handler = handler.clone();
        async move { handler(request) }
    });
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

fn refusal(error: &crate::StreamError) -> Response {
    Response::builder().status(error.status()).body(Body::from(error.to_string())).unwrap()
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}
