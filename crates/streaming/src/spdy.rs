//! SPDY/3.1 as clients of Kubernetes use it: the server's side, without server push.
mod compress;
mod frame;
mod session;
mod stream;

pub(crate) use session::{Incoming, Session};
pub(crate) use stream::SpdyStream;
#[cfg(test)]
pub(crate) use {
    compress::Headers,
    frame::{Decoder, Encoder, Frame},
};
