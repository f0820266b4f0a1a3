//! The older port-forward over a WebSocket: the ports are named in the query, each with one connection and two channels,
//! one for data and one for an error.
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Sink, SinkExt, Stream, StreamExt, future::ready, stream};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, duplex, split},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Error, Message},
};

use crate::{
    contract::{Forward, Forwards},
    error::StreamError,
    packing::{Packing, farewell},
};

/// Two channels each must fit a byte.
const MAX_PORTS: usize = 127;
const PIPE: usize = 32 * 1024;
const PENDING_MESSAGES: usize = 16;
/// How long a client may take to answer a close.
const LINGER: Duration = Duration::from_secs(5);

/// The ports of a query: `port=80&port=443`, `ports=80,443`.
pub(super) fn ports(query: &str) -> Result<Vec<u16>, StreamError> {
    let mut ports = Vec::new();
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        if name != "port" && name != "ports" {
            continue;
        }
        for text in value.replace("%2C", ",").replace("%2c", ",").split(',') {
            match text.parse::<u16>() {
                Ok(port) if port > 0 && ports.len() < MAX_PORTS => ports.push(port),
                _ => return Err(StreamError::BadPort(text.to_owned())),
            }
        }
    }
    if ports.is_empty() { Err(StreamError::NoPort) } else { Ok(ports) }
}

pub(super) fn forwards<S>(socket: WebSocketStream<S>, ports: &[u16], packing: Packing) -> Forwards
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sink, source) = socket.split();
    let (sender, messages) = mpsc::channel(PENDING_MESSAGES);
    let mut forwards = Vec::new();
    let mut inputs = Vec::new();
    let (ended, endings) = mpsc::unbounded_channel();
    for (at, port) in ports.iter().copied().enumerate() {
        let channel = u8::try_from(2 * at).unwrap_or(u8::MAX - 1);
        let (ours, theirs) = duplex(PIPE);
        let (output, input) = split(ours);
        let (error, failure) = oneshot::channel();
        inputs.push(Some(input));
        let (sender, ended) = (sender.clone(), ended.clone());
        tokio::spawn(async move {
            if carry(channel, port, output, &sender).await {
                // These channels cannot say that one direction has ended: the pod's end is the connection's.
                let _ = ended.send(at);
                report(channel, failure, &sender).await;
            }
        });
        forwards.push(Forward { port, stream: Box::pin(theirs), error });
    }
    let session = tokio::spawn(async move {
        let listening = listen(source, inputs, endings, packing);
        tokio::pin!(listening);
        let spoke = tokio::select! {
            spoke = speak(sink, messages, packing) => spoke,
            () = &mut listening => return,
        };
        match spoke {
            Ok(()) => drop(timeout(LINGER, listening).await),
            Err(error) => tracing::debug!(%error, "a WebSocket broke"),
        }
    });
    // No further connection comes, but the end of the stream says that the client has left.
    let end = stream::once(session).filter_map(|_| ready(None));
    Box::pin(stream::iter(forwards).chain(end))
}

/// Carries one connection's data to the client. Whether the client is still there.
async fn carry<D: AsyncRead>(
    channel: u8,
    port: u16,
    mut output: ReadHalf<D>,
    sender: &mpsc::Sender<(u8, Bytes)>,
) -> bool {
    // Each channel starts with its port.
    let head = Bytes::copy_from_slice(&port.to_le_bytes());
    if sender.send((channel, head.clone())).await.is_err() || sender.send((channel + 1, head)).await.is_err() {
        return false;
    }
    let mut buf = BytesMut::with_capacity(PIPE);
    loop {
        let read = tokio::select! {
            read = output.read_buf(&mut buf) => read,
            // The client left: let go of both halves, so that the other end learns of it.
            () = sender.closed() => return false,
        };
        if !matches!(read, Ok(1..)) {
            return true;
        }
        if sender.send((channel, buf.split().freeze())).await.is_err() {
            return false;
        }
        buf.reserve(PIPE);
    }
}

/// Waits for a connection's outcome and tells the client of a failure.
async fn report(channel: u8, failure: oneshot::Receiver<String>, sender: &mpsc::Sender<(u8, Bytes)>) {
    tokio::select! {
        message = failure => if let Ok(message) = message {
            // A client that left needs no error.
            let _ = sender.send((channel + 1, message.into())).await;
        },
        () = sender.closed() => {}
    }
}

/// Sends messages until all connections have ended, then closes.
async fn speak<K>(mut sink: K, mut messages: mpsc::Receiver<(u8, Bytes)>, packing: Packing) -> Result<(), Error>
where
    K: Sink<Message, Error = Error> + Unpin,
{
    while let Some((channel, bytes)) = messages.recv().await {
        sink.send(packing.pack(channel, &bytes)).await?;
    }
    sink.send(farewell()).await
}

async fn listen<S, D>(
    mut source: S,
    mut inputs: Vec<Option<WriteHalf<D>>>,
    mut endings: mpsc::UnboundedReceiver<usize>,
    packing: Packing,
) where
    S: Stream<Item = Result<Message, Error>> + Unpin,
    D: AsyncWrite,
{
    loop {
        let message = tokio::select! {
            Some(at) = endings.recv() => {
                inputs[at] = None;
                continue;
            }
            message = source.next() => message,
        };
        let Some(Ok(message)) = message else { return };
        let Some((channel, bytes)) = packing.unpack(message) else { continue };
        if channel % 2 == 0
            && let Some(slot) = inputs.get_mut(usize::from(channel / 2))
            && let Some(input) = slot
            && input.write_all(&bytes).await.is_err()
        {
            *slot = None;
        }
    }
}
