//! Connections over SPDY: a stream for data and one for an error, joined by their request id.
use std::{collections::HashMap, time::Duration};

use futures::stream;
use tokio::{
    io::{AsyncReadExt, sink},
    sync::{mpsc, oneshot},
    time::{Instant, interval},
};

use crate::{
    contract::{Forward, Forwards},
    spdy::{Incoming, Session, SpdyStream},
};

/// How long the second stream of a pair may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections that nobody took up yet.
const BACKLOG: usize = 128;

/// A pair of which one stream is missing.
struct Half {
    error: Option<SpdyStream>,
    data: Option<SpdyStream>,
    since: Instant,
}

pub(super) fn forwards(session: Session, incoming: mpsc::UnboundedReceiver<Incoming>) -> Forwards {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    tokio::spawn(pair(session, incoming, sender));
    Box::pin(stream::unfold(receiver, |mut receiver| async move {
        let forward = receiver.recv().await?;
        Some((forward, receiver))
    }))
}

async fn pair(session: Session, mut incoming: mpsc::UnboundedReceiver<Incoming>, sender: mpsc::Sender<Forward>) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut sweep = interval(PATIENCE);
    loop {
        let next = tokio::select! {
            next = incoming.recv() => next,
            () = sender.closed() => break,
            now = sweep.tick() => {
                for (_, half) in halves.extract_if(|_, half| now.duration_since(half.since) >= PATIENCE) {
                    complain(&session, half);
                }
                continue;
            }
        };
        let Some(next) = next else { return };
        if let Some(forward) = join(&session, &mut halves, next)
            && sender.send(forward).await.is_err()
        {
            break;
        }
    }
    session.close();
}

/// The connection that a stream completes, if it does.
fn join(session: &Session, halves: &mut HashMap<String, Half>, next: Incoming) -> Option<Forward> {
    let id = next.stream.id();
    let port = next.header("port").and_then(|port| port.parse::<u16>().ok()).filter(|port| *port > 0);
    let kind = next.header("streamtype").unwrap_or_default().to_owned();
    let is_error = kind == "error";
    let (true, Some(port)) = (is_error || kind == "data", port) else {
        tracing::debug!(kind, "a port-forward stream without a known type or a port");
        session.finish(id, if is_error { b"\"port\" header is missing or no port" } else { b"" });
        return None;
    };
    // Old clients name no request: there, streams come in pairs, the error stream first.
    let request = next
        .header("requestid")
        .map_or_else(|| format!("#{}", if is_error { id } else { id.saturating_sub(2) }), str::to_owned);
    let half = halves.entry(request.clone()).or_insert_with(|| Half { error: None, data: None, since: Instant::now() });
    let slot = if is_error { &mut half.error } else { &mut half.data };
    if slot.is_some() {
        session.finish(id, b"");
        return None;
    }
    *slot = Some(next.stream);
    if half.error.is_none() || half.data.is_none() {
        return None;
    }
    let half = halves.remove(&request)?;
    let (error, data) = half.error.zip(half.data)?;
    Some(Forward { port, stream: Box::pin(data), error: report(session.clone(), error) })
}

/// Sends the one error of a connection, or none, and ends its error stream.
fn report(session: Session, mut stream: SpdyStream) -> oneshot::Sender<String> {
    let (sender, receiver) = oneshot::channel::<String>();
    tokio::spawn(async move {
        let message = tokio::select! {
            message = receiver => message.unwrap_or_default(),
            () = session.closed() => return,
        };
        session.finish(stream.id(), message.as_bytes());
        // The client half-closes its side too; until then the stream is kept.
        let _ = tokio::io::copy(&mut (&mut stream).take(1024), &mut sink()).await;
    });
    sender
}

fn complain(session: &Session, half: Half) {
    if let Some(error) = half.error {
        session.finish(error.id(), b"timed out waiting for the data stream of this connection");
    }
}
