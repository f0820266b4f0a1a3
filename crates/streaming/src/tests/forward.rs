use std::net::SocketAddr;

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use super::{client, client::Spdy, refusal, serve};
use crate::{Forward, port_forward, tunnel::Tunnel};

/// Serves port-forward: port 7 echoes in upper case until the client half-closes, others fail.
async fn pod() -> SocketAddr {
    serve(|request| match port_forward(request) {
        Err(error) => refusal(&error),
        Ok((response, opening)) => {
            tokio::spawn(async move {
                let mut forwards = opening.await.unwrap();
                // As the node does: connections end with the client's own.
                let mut connections = tokio::task::JoinSet::new();
                while let Some(forward) = forwards.next().await {
                    connections.spawn(connection(forward));
                }
            });
            response
        }
    })
    .await
}

async fn connection(mut forward: Forward) {
    if forward.port != 7 {
        forward.error.send(format!("nothing listens on port {}", forward.port)).unwrap();
        return;
    }
    let mut buf = vec![0; 10_000];
    while let Ok(size @ 1..) = forward.stream.read(&mut buf).await {
        buf[..size].make_ascii_uppercase();
        forward.stream.write_all(&buf[..size]).await.unwrap();
    }
    forward.stream.shutdown().await.unwrap();
}

/// Serves port-forward to a server that answers, closes, and goes on reading until its client has closed too.
async fn closing_pod() -> SocketAddr {
    serve(|request| match port_forward(request) {
        Err(error) => refusal(&error),
        Ok((response, opening)) => {
            tokio::spawn(async move {
                let mut forwards = opening.await.unwrap();
                while let Some(mut forward) = forwards.next().await {
                    forward.stream.write_all(b"bye").await.unwrap();
                    forward.stream.shutdown().await.unwrap();
                    forward.stream.read_to_end(&mut Vec::new()).await.unwrap();
                }
            });
            response
        }
    })
    .await
}

#[tokio::test]
async fn a_pod_that_closes_ends_its_websocket_channel() {
    let mut socket = client::websocket(closing_pod().await, "/?ports=7", "v4.channel.k8s.io").await;
    let mut data = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(bytes) = message
            && bytes[0] == 0
        {
            data.extend_from_slice(&bytes[1..]);
        }
    }
    assert_eq!(data, b"\x07\0bye");
}

/// Opens a connection as kubectl does: the error stream first, half-closed at once.
async fn open<S: AsyncRead + AsyncWrite + Unpin>(spdy: &mut Spdy<S>, port: &str, request: usize) -> (u32, u32) {
    let request = request.to_string();
    let error = spdy.open(&[("streamtype", "error"), ("port", port), ("requestid", &request)]).await;
    spdy.data(error, true, &b""[..]).await;
    let data = spdy.open(&[("streamtype", "data"), ("port", port), ("requestid", &request)]).await;
    (error, data)
}

async fn many<S: AsyncRead + AsyncWrite + Unpin>(mut spdy: Spdy<S>) {
    let mut ids = Vec::new();
    for request in 0..200 {
        ids.push(open(&mut spdy, "7", request).await);
    }
    for (_, data) in &ids {
        spdy.data(*data, false, format!("connection {data}, ")).await;
    }
    let all: Vec<u32> = ids.iter().flat_map(|(error, data)| [*error, *data]).collect();
    for (_, data) in &ids {
        spdy.data(*data, true, "end").await;
    }
    let found = spdy.read_all(&all).await;
    for (at, (_, data)) in ids.iter().enumerate() {
        assert!(found[2 * at].is_empty());
        assert_eq!(String::from_utf8_lossy(&found[2 * at + 1]), format!("CONNECTION {data}, END"));
    }
    // The connection is still good, also for one that fails.
    let (error, data) = open(&mut spdy, "8", 1000).await;
    let found = spdy.read_all(&[error, data]).await;
    assert_eq!(found[0], b"nothing listens on port 8");
}

#[tokio::test]
async fn spdy_forwards_many_connections() {
    let address = pod().await;
    let (head, spdy) = client::spdy(address, "/", &["portforward.k8s.io"]).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    many(spdy).await;
}

#[tokio::test]
async fn spdy_in_a_websocket_forwards_many_connections() {
    let address = pod().await;
    let socket = client::websocket(address, "/", "SPDY/3.1+portforward.k8s.io").await;
    many(Spdy::new(Tunnel::new(socket))).await;
}

#[tokio::test]
async fn websocket_channels_forward_the_ports_of_the_query() {
    let address = pod().await;
    let mut socket = client::websocket(address, "/?ports=7,9", "v4.channel.k8s.io").await;
    socket.send(Message::binary(&b"\0abc"[..])).await.unwrap();
    let mut channels = vec![Vec::new(); 4];
    while channels[0].len() < 5 || channels[3].len() < 4 {
        if let Message::Binary(bytes) = socket.next().await.unwrap().unwrap() {
            channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
        }
    }
    assert_eq!(channels[0], b"\x07\0ABC");
    assert_eq!(channels[1], b"\x07\0");
    assert_eq!(channels[2], b"\x09\0");
    assert_eq!(channels[3], b"\x09\0nothing listens on port 9");
}

#[tokio::test]
async fn streams_without_a_port_are_ended() {
    let address = pod().await;
    let (_, mut spdy) = client::spdy(address, "/", &["portforward.k8s.io"]).await;
    let error = spdy.open(&[("streamtype", "error"), ("port", "x"), ("requestid", "0")]).await;
    let data = spdy.open(&[("streamtype", "data"), ("requestid", "0")]).await;
    let found = spdy.read_all(&[error, data]).await;
    assert!(!found[0].is_empty() && found[1].is_empty());
    many(spdy).await;
}
