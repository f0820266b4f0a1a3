//! Clients: SPDY on our own codec, WebSocket on tungstenite.
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::client::IntoClientRequest};

use super::connect;
use crate::spdy::{Decoder, Encoder, Frame, Headers};

pub(super) struct Spdy<S> {
    io: S,
    encoder: Encoder,
    decoder: Decoder,
    input: BytesMut,
    next: u32,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Spdy<S> {
    pub(super) fn new(io: S) -> Self {
        Self { io, encoder: Encoder::new(), decoder: Decoder::new(), input: BytesMut::new(), next: 1 }
    }

    pub(super) async fn send(&mut self, frame: &Frame) -> std::io::Result<()> {
        let mut out = BytesMut::new();
        self.encoder.encode(frame, &mut out);
        self.io.write_all(&out).await?;
        self.io.flush().await
    }

    /// Opens a stream with these headers; its id.
    pub(super) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let headers: Headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let id = self.next;
        self.next += 2;
        self.send(&Frame::SynStream { id, fin: false, headers }).await.unwrap();
        id
    }

    pub(super) async fn data(&mut self, id: u32, fin: bool, bytes: impl Into<Bytes>) {
        self.send(&Frame::Data { id, fin, bytes: bytes.into() }).await.unwrap();
    }

    /// The next frame; `None` once the server has left.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.input).unwrap() {
                return Some(frame);
            }
            if self.io.read_buf(&mut self.input).await.ok()? == 0 {
                return None;
            }
        }
    }

    /// Reads until these streams have ended; what came on each.
    pub(super) async fn read_all(&mut self, ids: &[u32]) -> Vec<Vec<u8>> {
        let mut found = vec![Vec::new(); ids.len()];
        let mut open: Vec<u32> = ids.to_vec();
        while !open.is_empty() {
            let frame = self.next().await.expect("the server left early");
            if let Frame::Data { id, fin, bytes } = frame {
                if let Some(at) = ids.iter().position(|wanted| *wanted == id) {
                    found[at].extend_from_slice(&bytes);
                }
                open.retain(|other| !(fin && *other == id));
            }
        }
        found
    }
}

/// Upgrades to SPDY; the response's head and the client.
pub(super) async fn spdy(address: SocketAddr, path: &str, protocols: &[&str]) -> (String, Spdy<TcpStream>) {
    let mut io = connect(address).await;
    let mut head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n");
    for protocol in protocols {
        head += &format!("X-Stream-Protocol-Version: {protocol}\r\n");
    }
    io.write_all((head + "Content-Length: 0\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    while !answer.ends_with("\r\n\r\n") {
        answer.push(char::from(io.read_u8().await.unwrap()));
    }
    (answer, Spdy::new(io))
}

pub(super) async fn websocket(address: SocketAddr, path: &str, protocols: &str) -> WebSocketStream<TcpStream> {
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocols.parse().unwrap());
    client_async(request, connect(address).await).await.unwrap().0
}
