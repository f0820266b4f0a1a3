//! Channels in WebSocket messages: the first byte of a message is the number of its channel.
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

/// How channels and bytes are packed into messages.
#[derive(Clone, Copy)]
pub(crate) struct Packing {
    /// Text messages: a digit, then base64.
    base64: bool,
}

impl Packing {
    pub(crate) fn of(protocol: &str) -> Self {
        Self { base64: protocol.contains("base64") }
    }

    pub(crate) fn pack(self, channel: u8, bytes: &[u8]) -> Message {
        if self.base64 {
            return Message::text(format!("{}{}", char::from(b'0'.wrapping_add(channel)), STANDARD.encode(bytes)));
        }
        let mut message = BytesMut::with_capacity(1 + bytes.len());
        message.put_u8(channel);
        message.put_slice(bytes);
        Message::Binary(message.freeze())
    }

    /// Channel and bytes; `None` for a message that carries none.
    pub(crate) fn unpack(self, message: Message) -> Option<(u8, Bytes)> {
        let mut bytes: Bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            _ => return None,
        };
        if bytes.is_empty() {
            return None;
        }
        let channel = bytes.get_u8();
        if self.base64 {
            return Some((channel.wrapping_sub(b'0'), STANDARD.decode(bytes).ok()?.into()));
        }
        Some((channel, bytes))
    }
}

/// The close of a session that ended as it should.
pub(crate) fn farewell() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}
