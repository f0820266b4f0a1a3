//! One SPDY connection: a task that reads and writes frames, and the state that it shares with the streams.
//!
//! Clients built on Go's libraries neither keep to flow control windows nor announce any: towards them only the buffers
//! here are bounded, and a connection whose client sends too far ahead is not read until its data was taken. Windows
//! count as soon as a client shows that it keeps them.
use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, Sleep, interval_at, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    compress::Headers,
    frame::{Decoder, Encoder, Frame, INITIAL_WINDOW, PROTOCOL_ERROR, REFUSED},
    stream::SpdyStream,
};

/// Bytes a stream may hold towards the client before its writer waits.
pub(super) const SEND_BUFFER: usize = 64 * 1024;
/// Reading stops while one stream holds this much that nobody took...
const STREAM_LIMIT: usize = 1024 * 1024;
/// ...or all streams of a connection together this much.
const TOTAL_LIMIT: usize = 8 * 1024 * 1024;
/// The window that the protocol gives every stream at first, and half of it: when to open it again.
const WINDOW: i64 = 64 * 1024;
const WINDOW_STEP: usize = 32 * 1024;
const MAX_STREAMS: usize = 4096;
const MAX_FRAME: usize = 16 * 1024;
/// Frames gathered before they are written.
const OUTPUT: usize = 64 * 1024;
const READ_PIECE: usize = 16 * 1024;
const MAX_CONTROL_FRAMES: usize = 1024;
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long a client may take to leave once all was said.
const LINGER: Duration = Duration::from_secs(5);

/// A stream that the client opened.
pub(crate) struct Incoming {
    pub(crate) headers: Headers,
    pub(crate) stream: SpdyStream,
}

impl Incoming {
    /// The value of a header; names are lower case on the wire.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// A handle on a connection.
#[derive(Clone)]
pub(crate) struct Session {
    shared: Arc<Shared>,
}

impl Session {
    /// Serves a connection in a task of its own. Streams that the client opens arrive in the channel.
    pub(crate) fn spawn<S>(io: S) -> (Self, mpsc::UnboundedReceiver<Incoming>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let shared = Arc::new(Shared { state: Mutex::default(), gone: CancellationToken::new() });
        // Bounded by MAX_STREAMS.
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut keepalive = interval_at(Instant::now() + KEEPALIVE, KEEPALIVE);
        keepalive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::spawn(Driver {
            io,
            shared: shared.clone(),
            decoder: Decoder::new(),
            encoder: Encoder::new(),
            input: BytesMut::with_capacity(READ_PIECE),
            output: BytesMut::new(),
            incoming: sender,
            keepalive,
            next_ping: 2,
            linger: None,
        });
        (Self { shared }, receiver)
    }

    /// Sends a last piece on a stream and half-closes it, whoever holds the stream.
    pub(crate) fn finish(&self, id: u32, last: &[u8]) {
        let mut state = self.shared.lock();
        if let Some(stream) = state.streams.get_mut(&id)
            && !stream.closing
        {
            stream.outgoing.extend_from_slice(last);
            stream.closing = true;
            state.queue(id);
            state.wake();
        }
    }

    /// Ends the connection once everything written so far is sent.
    pub(crate) fn close(&self) {
        let mut state = self.shared.lock();
        state.closing = true;
        state.wake();
    }

    /// Waits until the connection is gone.
    pub(crate) async fn closed(&self) {
        self.shared.gone.cancelled().await;
    }
}

pub(super) struct Shared {
    state: Mutex<State>,
    gone: CancellationToken,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // The state stays consistent at every step, so a panic elsewhere does not matter.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
pub(super) struct State {
    pub(super) streams: HashMap<u32, StreamState>,
    /// Streams that may have something to send, in turn.
    ready: VecDeque<u32>,
    control: VecDeque<Frame>,
    /// Received bytes that nobody took yet, over all streams.
    buffered: usize,
    /// Taken bytes that the client was not told of yet, over all streams.
    taken: usize,
    driver: Option<Waker>,
    closing: bool,
    pub(super) gone: bool,
    last_id: u32,
    /// Set once the client uses windows: what a new stream may send.
    initial_window: Option<i64>,
    /// The same for the connection as a whole.
    window: Option<i64>,
    sent: i64,
}

#[derive(Default)]
pub(super) struct StreamState {
    pub(super) received: VecDeque<Bytes>,
    pub(super) received_len: usize,
    /// The client sends no more.
    pub(super) ended: bool,
    /// The client gave the stream up.
    pub(super) reset: bool,
    pub(super) reader: Option<Waker>,
    taken: usize,
    pub(super) outgoing: BytesMut,
    /// Nothing may be added to `outgoing`; FIN follows it.
    pub(super) closing: bool,
    pub(super) fin_sent: bool,
    pub(super) writer: Option<Waker>,
    /// It is in the list of streams that may have something to send.
    queued: bool,
    sent: i64,
    granted: i64,
    /// The handle is gone: what arrives is thrown away.
    pub(super) dropped: bool,
}

impl StreamState {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

impl State {
    pub(super) fn wake(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    fn stalled(&self) -> bool {
        self.control.len() >= MAX_CONTROL_FRAMES
            || self.buffered >= TOTAL_LIMIT
            || (self.buffered >= STREAM_LIMIT && self.streams.values().any(|s| s.received_len >= STREAM_LIMIT))
    }

    /// Notes that a stream may have something to send.
    pub(super) fn queue(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.queued
        {
            stream.queued = true;
            self.ready.push_back(id);
        }
    }

    fn queue_all(&mut self) {
        let ids: Vec<u32> = self.streams.keys().copied().collect();
        ids.into_iter().for_each(|id| self.queue(id));
    }

    /// Notes that bytes of a stream were taken, and opens the windows again.
    pub(super) fn took(&mut self, id: u32, size: usize) {
        self.buffered -= size;
        self.taken += size;
        if self.taken >= WINDOW_STEP {
            let delta = u32::try_from(std::mem::take(&mut self.taken)).unwrap_or(u32::MAX >> 1);
            self.control.push_back(Frame::WindowUpdate { id: 0, delta });
        }
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.ended
        {
            stream.taken += size;
            if stream.taken >= WINDOW_STEP {
                let delta = u32::try_from(std::mem::take(&mut stream.taken)).unwrap_or(u32::MAX >> 1);
                self.control.push_back(Frame::WindowUpdate { id, delta });
            }
        }
        self.wake();
    }

    /// Forgets a stream that both sides are done with.
    pub(super) fn tidy(&mut self, id: u32) {
        if let Some(stream) = self.streams.get(&id)
            && stream.dropped
            && (stream.reset || (stream.ended && stream.fin_sent))
        {
            self.streams.remove(&id);
        }
    }

    /// How much a stream may send now.
    fn allowance(&self, stream: &StreamState) -> usize {
        let own = self.initial_window.map(|initial| initial + stream.granted - stream.sent);
        let all = self.window.map(|granted| WINDOW + granted - self.sent);
        let least = [own, all].into_iter().flatten().min().unwrap_or(i64::MAX);
        usize::try_from(least.max(0)).unwrap_or(usize::MAX)
    }

    /// The next frame to send.
    fn next(&mut self) -> Option<Frame> {
        if let Some(frame) = self.control.pop_front() {
            return Some(frame);
        }
        for _ in 0..self.ready.len() {
            let id = self.ready.pop_front()?;
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.queued = false;
            if stream.fin_sent || stream.reset {
                continue;
            }
            let allowed = self.streams.get(&id).map_or(0, |stream| self.allowance(stream));
            let stream = self.streams.get_mut(&id)?;
            let size = stream.outgoing.len().min(MAX_FRAME).min(allowed);
            let fin = stream.closing && size == stream.outgoing.len();
            if size == 0 && !fin {
                // Nothing to send, or not allowed to: a write or a window update puts it back.
                continue;
            }
            let bytes = stream.outgoing.split_to(size).freeze();
            stream.sent += size as i64;
            stream.fin_sent = fin;
            if let Some(writer) = stream.writer.take() {
                writer.wake();
            }
            let more = !stream.outgoing.is_empty() || (stream.closing && !fin);
            if more {
                self.queue(id);
            }
            self.sent += size as i64;
            self.tidy(id);
            return Some(Frame::Data { id, fin, bytes });
        }
        None
    }

    fn reset(&mut self, id: u32, status: u32) {
        self.control.push_back(Frame::Reset { id, status });
    }

    fn data(&mut self, id: u32, fin: bool, bytes: Bytes) {
        let size = bytes.len();
        let Some(stream) = self.streams.get_mut(&id) else {
            // Late data of a stream that is over. The connection's window counts it all the same.
            self.buffered += size;
            self.took(id, size);
            return;
        };
        if stream.ended {
            return;
        }
        stream.ended = fin;
        let dropped = stream.dropped || self.closing;
        if size > 0 {
            if !dropped {
                stream.received.push_back(bytes);
                stream.received_len += size;
            }
            self.buffered += size;
        }
        if let Some(reader) = self.streams.get_mut(&id).and_then(|stream| stream.reader.take()) {
            reader.wake();
        }
        if dropped {
            self.took(id, size);
            self.tidy(id);
        }
    }

    fn end(&mut self, id: u32, reset: bool) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.ended = true;
            stream.reset |= reset;
            if reset {
                stream.outgoing.clear();
            }
            stream.wake();
            self.tidy(id);
        }
    }

    fn window_update(&mut self, id: u32, delta: u32) {
        if id == 0 {
            self.window = Some(self.window.unwrap_or(0) + i64::from(delta));
        } else {
            self.initial_window.get_or_insert(WINDOW);
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.granted += i64::from(delta);
            }
        }
        self.queue_all();
    }
}

struct Driver<S> {
    io: S,
    shared: Arc<Shared>,
    decoder: Decoder,
    encoder: Encoder,
    input: BytesMut,
    output: BytesMut,
    incoming: mpsc::UnboundedSender<Incoming>,
    keepalive: Interval,
    next_ping: u32,
    /// Runs once the farewell is said.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Driver<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        match this.turn(cx) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => Poll::Ready(()),
            Err(error) => {
                tracing::debug!(%error, "a SPDY connection broke");
                Poll::Ready(())
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    fn turn(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        loop {
            let stalled = {
                let mut state = self.shared.lock();
                state.driver = Some(cx.waker().clone());
                while self.keepalive.poll_tick(cx).is_ready() {
                    state.control.push_back(Frame::Ping(self.next_ping));
                    self.next_ping = self.next_ping.wrapping_add(2);
                }
                let mut spoke = false;
                while self.output.len() < OUTPUT
                    && let Some(frame) = state.next()
                {
                    self.encoder.encode(&frame, &mut self.output);
                    spoke = true;
                }
                if state.closing && !spoke && self.output.is_empty() && self.linger.is_none() {
                    self.encoder.encode(&Frame::GoAway { last: state.last_id }, &mut self.output);
                    self.linger = Some(Box::pin(sleep(LINGER)));
                }
                state.stalled()
            };
            let wrote = self.write(cx)?;
            let read = if stalled && self.linger.is_none() { Poll::Pending } else { self.read(cx)? };
            if read == Poll::Ready(false) {
                // The client left.
                return Ok(Poll::Ready(()));
            }
            if let Some(linger) = &mut self.linger
                && linger.as_mut().poll(cx).is_ready()
            {
                return Ok(Poll::Ready(()));
            }
            if !wrote && read.is_pending() {
                return Ok(Poll::Pending);
            }
        }
    }

    /// Whether anything could be written.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut wrote = false;
        while !self.output.is_empty() {
            match Pin::new(&mut self.io).poll_write(cx, &self.output) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(size)) => self.output.advance(size),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(wrote),
            }
            wrote = true;
        }
        match Pin::new(&mut self.io).poll_flush(cx) {
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(wrote),
        }
    }

    /// Reads once: false at the end.
    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<bool>> {
        let mut piece = [std::mem::MaybeUninit::uninit(); READ_PIECE];
        let mut buf = ReadBuf::uninit(&mut piece);
        match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Ready(Ok(())) => {}
        }
        if buf.filled().is_empty() {
            return Ok(Poll::Ready(false));
        }
        self.input.extend_from_slice(buf.filled());
        loop {
            let frame = self.decoder.decode(&mut self.input);
            match frame.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))? {
                Some(frame) => self.handle(frame),
                None => return Ok(Poll::Ready(true)),
            }
        }
    }

    fn handle(&mut self, frame: Frame) {
        let mut state = self.shared.lock();
        match frame {
            Frame::SynStream { id, fin, headers } => {
                let stream = self.open(&mut state, id, fin, headers);
                // Dropping a stream locks the state.
                drop(state);
                drop(stream);
            }
            Frame::Data { id, fin, bytes } => state.data(id, fin, bytes),
            Frame::Reset { id, .. } => state.end(id, true),
            Frame::SynReply { id, fin: true, .. } | Frame::Headers { id, fin: true, .. } => state.end(id, false),
            Frame::WindowUpdate { id, delta } => state.window_update(id, delta),
            Frame::Settings(entries) => {
                for (_, value) in entries.into_iter().filter(|(id, _)| *id == INITIAL_WINDOW) {
                    state.initial_window = Some(i64::from(value));
                    state.queue_all();
                }
            }
            // Even ids are answers to ours.
            Frame::Ping(id) if id % 2 == 1 => state.control.push_back(Frame::Ping(id)),
            Frame::SynReply { .. } | Frame::Headers { .. } | Frame::Ping(_) | Frame::GoAway { .. } => {}
        }
    }

    /// Opens a stream; returns it if nobody wants it.
    fn open(&self, state: &mut State, id: u32, fin: bool, headers: Headers) -> Option<Incoming> {
        if id.is_multiple_of(2) || id <= state.last_id {
            state.reset(id, PROTOCOL_ERROR);
            return None;
        }
        state.last_id = id;
        if state.streams.len() >= MAX_STREAMS || state.closing {
            state.reset(id, REFUSED);
            return None;
        }
        state.streams.insert(id, StreamState { ended: fin, ..StreamState::default() });
        state.control.push_back(Frame::SynReply { id, fin: false, headers: Headers::new() });
        let stream = SpdyStream::new(self.shared.clone(), id);
        self.incoming.send(Incoming { headers, stream }).err().map(|refused| refused.0)
    }
}

impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.gone = true;
        state.streams.values_mut().for_each(StreamState::wake);
        drop(state);
        self.shared.gone.cancel();
    }
}
