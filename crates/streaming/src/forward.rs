//! Port-forward: many connections to ports of a pod over one connection of the client.
mod channels;
mod pairs;

use std::{future::Future, pin::Pin};

use axum::response::Response;
use http::Request;

use crate::{
    contract::Forwards,
    error::StreamError,
    handshake::{Wire, agree, upgraded, websocket},
    packing::Packing,
    spdy::Session,
    tunnel::Tunnel,
};

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const WEBSOCKET: &[&str] = &[TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];
const SPDY: &[&str] = &["portforward.k8s.io"];

/// Yields the client's connections once its own connection is upgraded.
pub type ForwardsOpening = Pin<Box<dyn Future<Output = Result<Forwards, StreamError>> + Send>>;

/// Answers a request for port-forward: the response switches protocols, the future yields the connections that the
/// client opens.
///
/// The request must carry hyper's upgrade handle. The response must be sent for the future to make progress. Dropping
/// the stream of connections ends the session, and with it the connections that are still open.
///
/// # Errors
/// If the request wants no upgrade or no known protocol; [`StreamError::status`] is the answer.
pub fn port_forward<B>(request: Request<B>) -> Result<(Response, ForwardsOpening), StreamError> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let agreed = agree(request, WEBSOCKET, SPDY)?;
    let (protocol, upgrade) = (agreed.protocol, agreed.upgrade);
    let opening: ForwardsOpening = match agreed.wire {
        Wire::Spdy => Box::pin(async move {
            let (session, incoming) = Session::spawn(upgraded(upgrade).await?);
            Ok(pairs::forwards(session, incoming))
        }),
        Wire::WebSocket if protocol == TUNNEL => Box::pin(async move {
            let (session, incoming) = Session::spawn(Tunnel::new(websocket(upgrade).await?));
            Ok(pairs::forwards(session, incoming))
        }),
        Wire::WebSocket => {
            let ports = channels::ports(&query)?;
            let packing = Packing::of(protocol);
            Box::pin(async move { Ok(channels::forwards(websocket(upgrade).await?, &ports, packing)) })
        }
    };
    Ok((agreed.response, opening))
}
