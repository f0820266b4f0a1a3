//! One stream of a SPDY connection as bytes in both directions.
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::session::{SEND_BUFFER, Shared, StreamState};

/// A stream that the client opened. Dropping it half-closes it; what the client still sends is thrown away.
pub(crate) struct SpdyStream {
    shared: Arc<Shared>,
    id: u32,
}

impl SpdyStream {
    pub(super) fn new(shared: Arc<Shared>, id: u32) -> Self {
        Self { shared, id }
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }
}

fn lost() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the client closed the connection")
}

impl AsyncRead for SpdyStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        let gone = state.gone;
        let Some(stream) = state.streams.get_mut(&self.id) else { return Poll::Ready(Err(lost())) };
        let mut took = 0;
        while buf.remaining() > 0
            && let Some(front) = stream.received.front_mut()
        {
            let size = front.len().min(buf.remaining());
            buf.put_slice(&front[..size]);
            front.advance(size);
            took += size;
            if front.is_empty() {
                stream.received.pop_front();
            }
        }
        stream.received_len -= took;
        if took > 0 {
            state.took(self.id, took);
            return Poll::Ready(Ok(()));
        }
        if stream.reset && !stream.fin_sent {
            return Poll::Ready(Err(lost()));
        }
        // Clients also use a reset to say that they need no more of a stream that the server has ended.
        if stream.ended || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if gone {
            return Poll::Ready(Err(lost()));
        }
        stream.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl SpdyStream {
    /// Runs `ready` on the stream's state until it has an answer.
    fn poll_state<T>(
        &self,
        cx: &mut Context<'_>,
        gone: impl FnOnce() -> io::Result<T>,
        ready: impl FnOnce(&mut StreamState) -> Option<T>,
    ) -> Poll<io::Result<T>> {
        let mut state = self.shared.lock();
        let dead = state.gone;
        let Some(stream) = state.streams.get_mut(&self.id) else { return Poll::Ready(gone()) };
        if dead || stream.reset {
            return Poll::Ready(gone());
        }
        let answer = ready(stream);
        if answer.is_none() {
            stream.writer = Some(cx.waker().clone());
        }
        if !stream.outgoing.is_empty() || (stream.closing && !stream.fin_sent) {
            state.queue(self.id);
            state.wake();
        }
        answer.map_or(Poll::Pending, |answer| Poll::Ready(Ok(answer)))
    }
}

fn broken<T>() -> io::Result<T> {
    Err(io::ErrorKind::BrokenPipe.into())
}

impl AsyncWrite for SpdyStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = self.poll_state(cx, broken, |stream| {
            if stream.closing {
                return Some(None);
            }
            let room = SEND_BUFFER.saturating_sub(stream.outgoing.len());
            if room == 0 && !buf.is_empty() {
                return None;
            }
            let size = room.min(buf.len());
            stream.outgoing.extend_from_slice(&buf[..size]);
            Some(Some(size))
        });
        result.map(|result| result?.map_or_else(broken, Ok))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_state(cx, broken, |stream| stream.outgoing.is_empty().then_some(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_state(
            cx,
            || Ok(()),
            |stream| {
                stream.closing = true;
                stream.fin_sent.then_some(())
            },
        )
    }
}

impl Drop for SpdyStream {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let Some(stream) = state.streams.get_mut(&self.id) else { return };
        stream.dropped = true;
        stream.closing = true;
        stream.received.clear();
        let left = std::mem::take(&mut stream.received_len);
        state.queue(self.id);
        state.took(self.id, left);
        state.tidy(self.id);
    }
}
