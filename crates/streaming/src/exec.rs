//! Exec and attach: standard streams, terminal sizes and the outcome of a remote command.
mod spdy;
mod status;
mod websocket;

use std::{future::Future, pin::Pin};

use axum::response::Response;
use http::Request;

use crate::{
    contract::{Client, Wanted},
    error::StreamError,
    handshake::{Wire, agree},
};

/// WebSocket protocols; those that start with `v4` or `v5` report outcomes as JSON.
const WEBSOCKET: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];
const SPDY: &[&str] =
    &["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io", ""];

/// Yields the client's streams once its connection is upgraded.
pub type Opening = Pin<Box<dyn Future<Output = Result<Client, StreamError>> + Send>>;

/// Answers a request for exec or attach: the response switches protocols, the future yields the client's streams.
///
/// The request must carry hyper's upgrade handle. The response must be sent for the future to make progress. With a
/// terminal there is no stderr, as upstream has it.
///
/// # Errors
/// If the request wants no upgrade, no known protocol, or no stream at all; [`StreamError::status`] is the answer.
pub fn exec<B>(request: Request<B>, wanted: Wanted) -> Result<(Response, Opening), StreamError> {
    let wanted = Wanted { stderr: wanted.stderr && !wanted.tty, ..wanted };
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        return Err(StreamError::NothingWanted);
    }
    let agreed = agree(request, WEBSOCKET, SPDY)?;
    let (protocol, upgrade) = (agreed.protocol, agreed.upgrade);
    let opening: Opening = match agreed.wire {
        Wire::WebSocket => Box::pin(async move { websocket::open(upgrade, protocol, wanted).await }),
        Wire::Spdy => Box::pin(async move { spdy::open(upgrade, protocol, wanted).await }),
    };
    Ok((agreed.response, opening))
}

/// Reads terminal sizes from a stream of JSON objects that may be cut anywhere.
#[derive(Default)]
struct Sizes(Vec<u8>);

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

impl Sizes {
    /// No size is longer than this; what is, is no size.
    const MAX: usize = 1024;

    fn read(&mut self, piece: &[u8]) -> Vec<(u16, u16)> {
        self.0.extend_from_slice(piece);
        let mut values = serde_json::Deserializer::from_slice(&self.0).into_iter::<Size>();
        let mut sizes = Vec::new();
        let mut broken = false;
        for value in &mut values {
            match value {
                Ok(size) => sizes.push((size.width, size.height)),
                Err(error) => {
                    broken = !error.is_eof();
                    break;
                }
            }
        }
        let used = if broken { self.0.len() } else { values.byte_offset() };
        self.0.drain(..used);
        if self.0.len() > Self::MAX {
            self.0.clear();
        }
        sizes
    }
}

#[cfg(test)]
mod tests;
