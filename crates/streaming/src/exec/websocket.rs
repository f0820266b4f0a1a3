//! Exec over a WebSocket: each message starts with the number of its channel.
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, Sink, SinkExt, Stream, StreamExt};
use hyper::upgrade::OnUpgrade;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::{mpsc, oneshot},
    task::unconstrained,
    time::{Instant, interval_at, timeout},
};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{
    Sizes,
    status::{payload, silence},
};
use crate::{
    contract::{Client, Input, Outcome, Output, Wanted},
    error::StreamError,
    handshake::websocket,
    packing::{Packing, farewell},
};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Names a channel that its sender is done with (version 5).
const CLOSE: u8 = 255;

/// Bytes on their way between a process and the connection, per stream.
const PIPE: usize = 32 * 1024;
const PENDING_SIZES: usize = 64;
/// Below the minute after which clients take silence for a broken connection.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long a client may take to answer a close.
const LINGER: Duration = Duration::from_secs(5);

/// The process's ends of what the connection carries.
struct Ends {
    stdin: Option<DuplexStream>,
    resize: Option<mpsc::Sender<(u16, u16)>>,
    stdout: Option<DuplexStream>,
    stderr: Option<DuplexStream>,
    outcome: oneshot::Receiver<Outcome>,
}

pub(super) async fn open(upgrade: OnUpgrade, protocol: &'static str, wanted: Wanted) -> Result<Client, StreamError> {
    let socket = websocket(upgrade).await?;
    let pipe = |wanted: bool| wanted.then(|| duplex(PIPE)).unzip();
    let (stdin, process_stdin) = pipe(wanted.stdin);
    let (stdout, process_stdout) = pipe(wanted.stdout);
    let (stderr, process_stderr) = pipe(wanted.stderr);
    let (resize, process_resize) = wanted.tty.then(|| mpsc::channel(PENDING_SIZES)).unzip();
    let (done, outcome) = oneshot::channel();
    let (sink, source) = socket.split();
    tokio::spawn(serve(sink, source, protocol, Ends { stdin, resize, stdout, stderr, outcome }));
    Ok(Client {
        stdin: process_stdin.map(|pipe| Box::new(pipe) as Input),
        stdout: process_stdout.map(|pipe| Box::new(pipe) as Output),
        stderr: process_stderr.map(|pipe| Box::new(pipe) as Output),
        resize: process_resize,
        done,
    })
}

async fn serve<K, S>(sink: K, source: S, protocol: &'static str, ends: Ends)
where
    K: Sink<Message, Error = Error> + Unpin,
    S: Stream<Item = Result<Message, Error>> + Unpin,
{
    let Ends { stdin, resize, stdout, stderr, outcome } = ends;
    let listening = listen(source, protocol, stdin, resize);
    tokio::pin!(listening);
    let spoke = tokio::select! {
        spoke = speak(sink, protocol, [stdout, stderr], outcome) => spoke,
        () = &mut listening => return,
    };
    match spoke {
        // Until the client answers the close, the connection must be read: else its end could destroy what was sent.
        Ok(()) => drop(timeout(LINGER, listening).await),
        Err(error) => tracing::debug!(%error, "a WebSocket broke"),
    }
}

/// Carries what the client sends. Ends when the client leaves.
async fn listen<S>(
    mut source: S,
    protocol: &str,
    mut stdin: Option<DuplexStream>,
    resize: Option<mpsc::Sender<(u16, u16)>>,
) where
    S: Stream<Item = Result<Message, Error>> + Unpin,
{
    let packing = Packing::of(protocol);
    let closes = protocol.starts_with("v5");
    let mut sizes = Sizes::default();
    while let Some(Ok(message)) = source.next().await {
        let Some((channel, bytes)) = packing.unpack(message) else { continue };
        match channel {
            STDIN => {
                if let Some(pipe) = &mut stdin
                    && pipe.write_all(&bytes).await.is_err()
                {
                    // The process takes no more.
                    stdin = None;
                }
            }
            CLOSE if closes && bytes.first() == Some(&STDIN) => stdin = None,
            RESIZE => {
                for size in sizes.read(&bytes) {
                    // A process that does not look at its sizes misses some.
                    let _ = resize.as_ref().map(|sender| sender.try_send(size));
                }
            }
            _ => {}
        }
    }
}

/// Carries what the process writes, then its outcome, then closes.
async fn speak<K>(
    mut sink: K,
    protocol: &str,
    [mut stdout, mut stderr]: [Option<DuplexStream>; 2],
    mut outcome: oneshot::Receiver<Outcome>,
) -> Result<(), Error>
where
    K: Sink<Message, Error = Error> + Unpin,
{
    let packing = Packing::of(protocol);
    // Tells clients that the streams are open.
    let first = if stdout.is_some() { STDOUT } else { STDERR };
    sink.send(packing.pack(first, b"")).await?;
    let mut keepalive = interval_at(Instant::now() + KEEPALIVE, KEEPALIVE);
    let (mut out, mut err) = (vec![0; PIPE], vec![0; PIPE]);
    let outcome = loop {
        tokio::select! {
            size = read(&mut stdout, &mut out) => sink.send(packing.pack(STDOUT, &out[..size])).await?,
            size = read(&mut stderr, &mut err) => sink.send(packing.pack(STDERR, &err[..size])).await?,
            outcome = &mut outcome => break outcome.unwrap_or_else(|_| silence()),
            _ = keepalive.tick() => {
                sink.send(Message::Ping(Bytes::new())).await?;
                // The client's own pings are not seen while stdin is full; this answers them all the same.
                sink.send(Message::Pong(Bytes::new())).await?;
            }
        }
    };
    // All output was written before the outcome came, so whatever is in the pipes is all there is.
    for (channel, pipe) in [(STDOUT, &mut stdout), (STDERR, &mut stderr)] {
        while let Some(size) = unconstrained(read(pipe, &mut out)).now_or_never() {
            sink.send(packing.pack(channel, &out[..size])).await?;
        }
    }
    let status = payload(protocol, &outcome);
    if !status.is_empty() {
        sink.send(packing.pack(ERROR, &status)).await?;
    }
    sink.send(farewell()).await
}

/// Reads from a pipe; forgets it at its end and then waits for ever.
async fn read(pipe: &mut Option<DuplexStream>, buf: &mut [u8]) -> usize {
    if let Some(open) = pipe {
        match open.read(buf).await {
            Ok(size @ 1..) => return size,
            Ok(0) | Err(_) => *pipe = None,
        }
    }
    std::future::pending().await
}
