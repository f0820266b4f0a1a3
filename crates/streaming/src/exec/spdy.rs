//! Exec over SPDY: one stream per standard stream, one for errors, one for terminal sizes.
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use tokio::{
    io::AsyncReadExt,
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    Sizes,
    status::{payload, silence},
};
use crate::{
    contract::{Client, Input, Outcome, Output, Wanted},
    error::StreamError,
    handshake::upgraded,
    spdy::{Incoming, Session, SpdyStream},
};

/// How long a client may take to open all streams.
const PATIENCE: Duration = Duration::from_secs(30);
const PENDING_SIZES: usize = 64;

/// The streams by their `streamtype`.
#[derive(Default)]
struct Streams {
    error: Option<SpdyStream>,
    stdin: Option<SpdyStream>,
    stdout: Option<SpdyStream>,
    stderr: Option<SpdyStream>,
    resize: Option<SpdyStream>,
}

pub(super) async fn open(upgrade: OnUpgrade, protocol: &'static str, wanted: Wanted) -> Result<Client, StreamError> {
    let (session, incoming) = Session::spawn(upgraded(upgrade).await?);
    match timeout(PATIENCE, collect(incoming, protocol, wanted)).await.unwrap_or(Err(StreamError::StreamsMissing)) {
        Ok(streams) => Ok(start(session, streams, protocol)),
        Err(error) => {
            session.close();
            Err(error)
        }
    }
}

async fn collect(
    mut incoming: mpsc::UnboundedReceiver<Incoming>,
    protocol: &str,
    wanted: Wanted,
) -> Result<Streams, StreamError> {
    let sizes = wanted.tty && ["v3", "v4", "v5"].iter().any(|version| protocol.starts_with(version));
    let mut missing = 1 + [wanted.stdin, wanted.stdout, wanted.stderr, sizes].iter().filter(|wanted| **wanted).count();
    let mut streams = Streams::default();
    while missing > 0 {
        let next = incoming.recv().await.ok_or(StreamError::ClientLeft)?;
        let kind = next.header("streamtype").unwrap_or_default().to_owned();
        let (slot, expected) = match kind.as_str() {
            "error" => (&mut streams.error, true),
            "stdin" => (&mut streams.stdin, wanted.stdin),
            "stdout" => (&mut streams.stdout, wanted.stdout),
            "stderr" => (&mut streams.stderr, wanted.stderr),
            "resize" => (&mut streams.resize, sizes),
            _ => return Err(StreamError::UnexpectedStream(kind)),
        };
        if !expected || slot.is_some() {
            return Err(StreamError::UnexpectedStream(kind));
        }
        *slot = Some(next.stream);
        missing -= 1;
    }
    Ok(streams)
}

fn start(session: Session, streams: Streams, protocol: &'static str) -> Client {
    let (done, outcome) = oneshot::channel();
    let outputs: Vec<u32> = [&streams.stdout, &streams.stderr].into_iter().flatten().map(SpdyStream::id).collect();
    let error = streams.error;
    tokio::spawn(async move {
        let outcome = tokio::select! {
            outcome = outcome => outcome.unwrap_or_else(|_| silence()),
            () = session.closed() => return,
        };
        finish(&session, &outputs, error, protocol, &outcome).await;
    });
    Client {
        stdin: streams.stdin.map(|stream| Box::new(stream) as Input),
        stdout: streams.stdout.map(|stream| Box::new(stream) as Output),
        stderr: streams.stderr.map(|stream| Box::new(stream) as Output),
        resize: streams.resize.map(sizes),
        done,
    }
}

async fn finish(session: &Session, outputs: &[u32], error: Option<SpdyStream>, protocol: &str, outcome: &Outcome) {
    for id in outputs {
        session.finish(*id, b"");
    }
    if let Some(error) = &error {
        session.finish(error.id(), &payload(protocol, outcome));
    }
    session.close();
    session.closed().await;
}

fn sizes(mut stream: SpdyStream) -> mpsc::Receiver<(u16, u16)> {
    let (sender, receiver) = mpsc::channel(PENDING_SIZES);
    tokio::spawn(async move {
        let mut sizes = Sizes::default();
        let mut piece = [0; 256];
        while let Ok(size @ 1..) = stream.read(&mut piece).await {
            for size in sizes.read(&piece[..size]) {
                if sender.send(size).await.is_err() {
                    return;
                }
            }
        }
    });
    receiver
}
