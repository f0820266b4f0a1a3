//! External Data Representation: what RPC messages are made of (RFC 4506). Big-endian words, everything padded to four bytes.

/// An answer that does not follow the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer does not follow the protocol")]
pub(crate) struct Malformed;

/// How many bytes follow `length` bytes of data.
pub(crate) fn padding(length: usize) -> usize {
    length.wrapping_neg() & 3
}

/// Builds one message.
#[derive(Debug, Default, Clone)]
pub(crate) struct Writer(pub Vec<u8>);

impl Writer {
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.u32(value.into())
    }

    /// Bytes whose number the protocol knows.
    pub fn fixed(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len() + padding(bytes.len()), 0);
        self
    }

    /// Bytes with their number before them. Callers pass what is far below 4 GiB.
    pub fn opaque(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(u32::try_from(bytes.len()).expect("messages are far below 4 GiB")).fixed(bytes)
    }
}

/// Takes one message apart. Never reads past its end, whatever lengths it claims.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn fixed(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let all = length.checked_add(padding(length)).ok_or(Malformed)?;
        let (taken, rest) = self.0.split_at_checked(all).ok_or(Malformed)?;
        self.0 = rest;
        Ok(&taken[..length])
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        let (word, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*word))
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        let (word, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(u64::from_be_bytes(*word))
    }

    pub fn bool(&mut self) -> Result<bool, Malformed> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.fixed(N)?.try_into().map_err(|_| Malformed)
    }

    /// Bytes with their number before them, of which there may be `most`.
    pub fn opaque(&mut self, most: usize) -> Result<&'a [u8], Malformed> {
        let length = self.u32()? as usize;
        if length > most { Err(Malformed) } else { self.fixed(length) }
    }

    /// What may be left out.
    pub fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Malformed>) -> Result<Option<T>, Malformed> {
        if self.bool()? { read(self).map(Some) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut w = Writer::default();
        w.u32(7).opaque(b"abcde").u64(1 << 40).bool(true).u32(9).fixed(b"xy");
        assert_eq!(w.0.len() % 4, 0);
        let mut r = Reader(&w.0);
        assert_eq!(r.u32(), Ok(7));
        assert_eq!(r.opaque(5), Ok(&b"abcde"[..]));
        assert_eq!(r.u64(), Ok(1 << 40));
        assert_eq!(r.option(Reader::u32), Ok(Some(9)));
        assert_eq!(r.array::<2>(), Ok(*b"xy"));
        assert!(r.0.is_empty());
    }

    #[test]
    fn a_length_that_lies_is_an_error() {
        for (bytes, most) in [(&b"\xff\xff\xff\xff"[..], usize::MAX), (b"\0\0\0\x05abcd", 64), (b"\0\0\0\x04abcd", 3)] {
            assert_eq!(Reader(bytes).opaque(most), Err(Malformed), "{bytes:?}");
        }
    }
}
