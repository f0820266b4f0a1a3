//! Choosing a protocol with the client, and the answer that changes the connection to it.
use axum::{body::Body, response::Response};
use http::{
    HeaderMap, HeaderValue, Request, StatusCode,
    header::{CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE},
};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};

use crate::error::StreamError;

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// A connection after its upgrade.
pub(crate) type Io = TokioIo<hyper::upgrade::Upgraded>;

/// What a request wants its connection to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    WebSocket,
    Spdy,
}

/// What was agreed with the client.
pub(crate) struct Agreed {
    pub(crate) wire: Wire,
    /// Empty if the client named none.
    pub(crate) protocol: &'static str,
    pub(crate) response: Response,
    pub(crate) upgrade: OnUpgrade,
}

/// Chooses the first of the client's protocols that is in the list for its wire format. The entry `""` stands for a
/// client that names none.
pub(crate) fn agree<B>(
    mut request: Request<B>,
    websocket: &'static [&'static str],
    spdy: &'static [&'static str],
) -> Result<Agreed, StreamError> {
    let headers = request.headers();
    let wire = wire(headers).ok_or(StreamError::NotAnUpgrade)?;
    let (header, known) = match wire {
        Wire::WebSocket => (SEC_WEBSOCKET_PROTOCOL, websocket),
        Wire::Spdy => (STREAM_PROTOCOL, spdy),
    };
    let offered = tokens(headers, &header);
    let chosen = if offered.is_empty() {
        known.iter().find(|name| name.is_empty())
    } else {
        offered.iter().find_map(|name| known.iter().find(|known| known == &name))
    };
    let Some(protocol) = chosen.copied() else {
        return Err(StreamError::NoProtocol {
            client: offered.into_iter().map(str::to_owned).collect(),
            server: known,
        });
    };
    let response = response(headers, wire, &header, protocol)?;
    let upgrade = request.extensions_mut().remove::<OnUpgrade>().ok_or(StreamError::CannotUpgrade)?;
    Ok(Agreed { wire, protocol, response, upgrade })
}

fn response(
    headers: &HeaderMap,
    wire: Wire,
    header: &HeaderName,
    protocol: &'static str,
) -> Result<Response, StreamError> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    match wire {
        Wire::Spdy => drop(answer.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"))),
        Wire::WebSocket => {
            let key = headers.get(SEC_WEBSOCKET_KEY).ok_or(StreamError::MissingHeader("Sec-WebSocket-Key"))?;
            let accept = derive_accept_key(key.as_bytes());
            answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
            answer.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::try_from(accept).expect("base64 is a header value"));
        }
    }
    if !protocol.is_empty() {
        answer.insert(header.clone(), HeaderValue::from_static(protocol));
    }
    Ok(response)
}

fn wire(headers: &HeaderMap) -> Option<Wire> {
    let wants = |header, name: &str| tokens(headers, &header).iter().any(|token| token.eq_ignore_ascii_case(name));
    if !wants(CONNECTION, "upgrade") {
        return None;
    }
    if wants(UPGRADE, "websocket") {
        return Some(Wire::WebSocket);
    }
    wants(UPGRADE, "SPDY/3.1").then_some(Wire::Spdy)
}

/// The elements of a header that may be repeated and hold lists.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
        .collect()
}

/// Waits until the connection has left HTTP behind.
pub(crate) async fn upgraded(upgrade: OnUpgrade) -> Result<Io, StreamError> {
    Ok(TokioIo::new(upgrade.await?))
}

/// The same, as a WebSocket.
pub(crate) async fn websocket(upgrade: OnUpgrade) -> Result<WebSocketStream<Io>, StreamError> {
    Ok(WebSocketStream::from_raw_socket(upgraded(upgrade).await?, Role::Server, None).await)
}
