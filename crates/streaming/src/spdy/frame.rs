//! Frames of SPDY/3.1 and their bytes.
use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::compress::{Deflate, Headers, Inflate};

/// A control frame's payload may not be longer than this.
const MAX_CONTROL: usize = 64 * 1024;
/// `SETTINGS_INITIAL_WINDOW_SIZE`
pub(super) const INITIAL_WINDOW: u32 = 7;
/// Reason of an RST_STREAM.
pub(super) const PROTOCOL_ERROR: u32 = 1;
pub(super) const REFUSED: u32 = 3;

const FIN: u8 = 1;

/// A peer that does not speak SPDY/3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of SPDY version {0} instead of 3")]
    Version(u16),
    #[error("a control frame of {0} bytes is too long")]
    TooLong(usize),
    #[error("a control frame of type {0} is malformed")]
    Malformed(u16),
    #[error("a header block cannot be read")]
    Headers,
}

/// A frame. Long data frames are read as several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    SynStream { id: u32, fin: bool, headers: Headers },
    SynReply { id: u32, fin: bool, headers: Headers },
    Reset { id: u32, status: u32 },
    Settings(Vec<(u32, u32)>),
    Ping(u32),
    GoAway { last: u32 },
    Headers { id: u32, fin: bool, headers: Headers },
    WindowUpdate { id: u32, delta: u32 },
    Data { id: u32, fin: bool, bytes: Bytes },
}

/// Writes the frames of one direction.
pub(crate) struct Encoder(Deflate);

impl Encoder {
    pub(crate) fn new() -> Self {
        Self(Deflate::new())
    }

    pub(crate) fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::SynStream { id, fin, headers } => {
                let block = self.0.block(headers);
                control(out, 1, *fin, 10 + block.len());
                out.put_u32(*id);
                out.put_u32(0);
                out.put_u16(0);
                out.put_slice(&block);
            }
            Frame::SynReply { id, fin, headers } => self.headers(out, 2, *id, *fin, headers),
            Frame::Reset { id, status } => pair(out, 3, *id, *status),
            Frame::Settings(entries) => {
                control(out, 4, false, 4 + 8 * entries.len());
                out.put_u32(u32::try_from(entries.len()).unwrap_or(u32::MAX));
                for (id, value) in entries {
                    out.put_u32(id & 0x00ff_ffff);
                    out.put_u32(*value);
                }
            }
            Frame::Ping(id) => {
                control(out, 6, false, 4);
                out.put_u32(*id);
            }
            Frame::GoAway { last } => pair(out, 7, *last, 0),
            Frame::Headers { id, fin, headers } => self.headers(out, 8, *id, *fin, headers),
            Frame::WindowUpdate { id, delta } => pair(out, 9, *id, *delta),
            Frame::Data { id, fin, bytes } => {
                out.put_u32(id & 0x7fff_ffff);
                length(out, *fin, bytes.len());
                out.put_slice(bytes);
            }
        }
    }

    fn headers(&mut self, out: &mut BytesMut, kind: u16, id: u32, fin: bool, headers: &Headers) {
        let block = self.0.block(headers);
        control(out, kind, fin, 4 + block.len());
        out.put_u32(id);
        out.put_slice(&block);
    }
}

fn control(out: &mut BytesMut, kind: u16, fin: bool, size: usize) {
    out.put_u16(0x8003);
    out.put_u16(kind);
    length(out, fin, size);
}

/// Flags and length. Callers keep frames far below 16 MiB.
fn length(out: &mut BytesMut, fin: bool, size: usize) {
    debug_assert!(size < 1 << 24);
    out.put_u8(if fin { FIN } else { 0 });
    out.put_uint(size as u64 & 0x00ff_ffff, 3);
}

fn pair(out: &mut BytesMut, kind: u16, first: u32, second: u32) {
    control(out, kind, false, 8);
    out.put_u32(first);
    out.put_u32(second);
}

/// Reads the frames of one direction.
pub(crate) struct Decoder {
    inflate: Inflate,
    /// Stream, FIN flag and bytes still to come of the data frame being read.
    data: Option<(u32, bool, usize)>,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { inflate: Inflate::new(), data: None }
    }

    /// Takes the next frame out of the buffer; `None` if more bytes are needed.
    pub(crate) fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some((id, fin, left)) = self.data {
                if input.is_empty() && left > 0 {
                    return Ok(None);
                }
                let size = left.min(input.len());
                let bytes = input.split_to(size).freeze();
                self.data = (size < left).then_some((id, fin, left - size));
                return Ok(Some(Frame::Data { id, fin: fin && size == left, bytes }));
            }
            let Some(head) = input.first_chunk::<8>() else { return Ok(None) };
            let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let fin = head[4] & FIN != 0;
            let size = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
            if first >> 31 == 0 {
                input.advance(8);
                self.data = Some((first, fin, size));
                continue;
            }
            let (version, kind) = ((first >> 16) as u16 & 0x7fff, first as u16);
            if version != 3 {
                return Err(FrameError::Version(version));
            }
            if size > MAX_CONTROL {
                return Err(FrameError::TooLong(size));
            }
            if input.len() < 8 + size {
                input.reserve(8 + size - input.len());
                return Ok(None);
            }
            input.advance(8);
            let payload = input.split_to(size).freeze();
            if let Some(frame) = self.control(kind, fin, payload)? {
                return Ok(Some(frame));
            }
        }
    }

    /// `None` for a frame of an unknown type, which is to be ignored.
    fn control(&mut self, kind: u16, fin: bool, mut payload: Bytes) -> Result<Option<Frame>, FrameError> {
        let needed = match kind {
            1 => 10,
            2 | 4 | 6 | 8 => 4,
            3 | 7 | 9 => 8,
            _ => return Ok(None),
        };
        if payload.len() < needed {
            return Err(FrameError::Malformed(kind));
        }
        let word = payload.get_u32();
        let id = word & 0x7fff_ffff;
        Ok(Some(match kind {
            1 => {
                payload.advance(6);
                Frame::SynStream { id, fin, headers: self.inflate.block(&payload)? }
            }
            2 => Frame::SynReply { id, fin, headers: self.inflate.block(&payload)? },
            3 => Frame::Reset { id, status: payload.get_u32() },
            4 => {
                if u64::from(word) * 8 != payload.len() as u64 {
                    return Err(FrameError::Malformed(kind));
                }
                let entry = |bytes: &mut Bytes| (bytes.get_u32() & 0x00ff_ffff, bytes.get_u32());
                Frame::Settings((0..word).map(|_| entry(&mut payload)).collect())
            }
            6 => Frame::Ping(word),
            7 => Frame::GoAway { last: id },
            8 => Frame::Headers { id, fin, headers: self.inflate.block(&payload)? },
            _ => Frame::WindowUpdate { id, delta: payload.get_u32() & 0x7fff_ffff },
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers() -> impl Strategy<Value = Headers> {
        prop::collection::vec(("[a-z]{1,8}", "[ -~]{0,40}"), 0..4)
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let id = 0..0x8000_0000_u32;
        prop_oneof![
            (id.clone(), any::<bool>(), headers()).prop_map(|(id, fin, headers)| Frame::SynStream { id, fin, headers }),
            (id.clone(), any::<bool>(), headers()).prop_map(|(id, fin, headers)| Frame::SynReply { id, fin, headers }),
            (id.clone(), any::<bool>(), headers()).prop_map(|(id, fin, headers)| Frame::Headers { id, fin, headers }),
            (id.clone(), any::<u32>()).prop_map(|(id, status)| Frame::Reset { id, status }),
            prop::collection::vec((0..0x0100_0000_u32, any::<u32>()), 0..4).prop_map(Frame::Settings),
            any::<u32>().prop_map(Frame::Ping),
            id.clone().prop_map(|last| Frame::GoAway { last }),
            (id.clone(), id.clone()).prop_map(|(id, delta)| Frame::WindowUpdate { id, delta }),
            (id, any::<bool>(), prop::collection::vec(any::<u8>(), 0..300)).prop_map(|(id, fin, bytes)| Frame::Data {
                id,
                fin,
                bytes: bytes.into()
            }),
        ]
    }

    /// Joins pieces of data frames that were read apart.
    fn join(frames: Vec<Frame>) -> Vec<Frame> {
        let mut joined: Vec<Frame> = Vec::new();
        let mut open = false;
        for frame in frames {
            match (joined.last_mut(), frame) {
                (Some(Frame::Data { fin, bytes, .. }), Frame::Data { fin: last, bytes: more, .. }) if open => {
                    *bytes = [&bytes[..], &more[..]].concat().into();
                    *fin = last;
                }
                (_, frame) => joined.push(frame),
            }
            open = true;
        }
        joined
    }

    proptest! {
        /// Frames cut at any place are read as they were written.
        #[test]
        fn frames_survive_any_cut(frames in prop::collection::vec(frame(), 1..8), cut in 1..40_usize) {
            let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
            for frame in frames {
                let mut wire = BytesMut::new();
                encoder.encode(&frame, &mut wire);
                let mut input = BytesMut::new();
                let mut found = Vec::new();
                for piece in wire.chunks(cut) {
                    input.extend_from_slice(piece);
                    while let Some(frame) = decoder.decode(&mut input).unwrap() {
                        found.push(frame);
                    }
                }
                prop_assert!(input.is_empty());
                prop_assert_eq!(join(found), vec![frame]);
            }
        }

        /// No bytes make the reader panic or keep more than a frame.
        #[test]
        fn garbage_is_refused_or_skipped(bytes in prop::collection::vec(any::<u8>(), 0..400), spdy in any::<bool>()) {
            let mut input = BytesMut::from(&bytes[..]);
            if spdy && input.len() > 4 {
                input[..4].copy_from_slice(&[0x80, 3, 0, bytes[3] % 12]);
            }
            let mut decoder = Decoder::new();
            while let Ok(Some(_)) = decoder.decode(&mut input) {}
        }
    }

    #[test]
    fn unknown_frames_are_skipped_and_wrong_ones_refused() {
        let mut decoder = Decoder::new();
        let mut input =
            BytesMut::from(&b"\x80\x03\x00\x63\x00\x00\x00\x02xx\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x07"[..]);
        assert_eq!(decoder.decode(&mut input), Ok(Some(Frame::Ping(7))));
        let mut http = BytesMut::from(&b"\xc8TP/1.1 "[..]);
        assert!(matches!(Decoder::new().decode(&mut http), Err(FrameError::Version(_))));
        let mut long = BytesMut::from(&b"\x80\x03\x00\x01\x00\xff\xff\xff"[..]);
        assert_eq!(Decoder::new().decode(&mut long), Err(FrameError::TooLong(0x00ff_ffff)));
        let mut short = BytesMut::from(&b"\x80\x03\x00\x03\x00\x00\x00\x04\x00\x00\x00\x01"[..]);
        assert_eq!(Decoder::new().decode(&mut short), Err(FrameError::Malformed(3)));
    }
}
