//! Header blocks: name and value pairs, compressed with one zlib stream per direction and a preset dictionary.
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::frame::FrameError;

/// Headers in order; values of one name are joined by NUL.
pub(crate) type Headers = Vec<(String, String)>;

/// No block of the protocols spoken here comes near this.
const MAX_BLOCK: usize = 64 * 1024;

const WORDS: &str = "options,head,post,put,delete,trace,accept,accept-charset,accept-encoding,accept-language,\
accept-ranges,age,allow,authorization,cache-control,connection,content-base,content-encoding,content-language,\
content-length,content-location,content-md5,content-range,content-type,date,etag,expect,expires,from,host,if-match,\
if-modified-since,if-none-match,if-range,if-unmodified-since,last-modified,location,max-forwards,pragma,\
proxy-authenticate,proxy-authorization,range,referer,retry-after,server,te,trailer,transfer-encoding,upgrade,\
user-agent,vary,via,warning,www-authenticate,method,get,status,200 OK,version,HTTP/1.1,url,public,set-cookie,\
keep-alive,origin";
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug \
Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary of SPDY/3.
pub(super) fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split(',') {
        put(&mut bytes, word);
    }
    bytes.extend_from_slice(TAIL.as_bytes());
    bytes
}

fn put(out: &mut Vec<u8>, text: &str) {
    // Lengths are bounded by what callers pass: short constants and error texts.
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Compresses the blocks of one direction.
pub(super) struct Deflate(Compress);

impl Deflate {
    pub(super) fn new() -> Self {
        let mut zlib = Compress::new(Compression::fast(), true);
        zlib.set_dictionary(&dictionary()).expect("a fresh zlib stream takes a dictionary");
        Self(zlib)
    }

    pub(super) fn block(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = u32::try_from(headers.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
        for (name, value) in headers {
            put(&mut plain, name);
            put(&mut plain, value);
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        let start = self.0.total_in();
        loop {
            let used = usize::try_from(self.0.total_in() - start).unwrap_or(plain.len());
            let before = out.len();
            self.0
                .compress_vec(&plain[used..], &mut out, FlushCompress::Sync)
                .expect("compressing into a growing buffer cannot fail");
            if out.len() == before && used == plain.len() || out.len() < out.capacity() {
                return out;
            }
            out.reserve(256);
        }
    }
}

/// Expands the blocks of one direction.
pub(super) struct Inflate(Decompress);

impl Inflate {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub(super) fn block(&mut self, block: &[u8]) -> Result<Headers, FrameError> {
        parse(&self.expand(block)?)
    }

    fn expand(&mut self, block: &[u8]) -> Result<Vec<u8>, FrameError> {
        let mut out = Vec::with_capacity(1024);
        let start = self.0.total_in();
        loop {
            let used = usize::try_from(self.0.total_in() - start).unwrap_or(block.len());
            match self.0.decompress_vec(&block[used..], &mut out, FlushDecompress::Sync) {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(|_| FrameError::Headers)?;
                    continue;
                }
                Err(_) => return Err(FrameError::Headers),
                Ok(Status::StreamEnd) => return Ok(out),
                Ok(Status::Ok | Status::BufError) => {}
            }
            if out.len() < out.capacity() {
                // There was room left: all of the input was used.
                return Ok(out);
            }
            if out.len() >= MAX_BLOCK {
                return Err(FrameError::Headers);
            }
            out.reserve(1024);
        }
    }
}

fn parse(mut block: &[u8]) -> Result<Headers, FrameError> {
    fn number(block: &mut &[u8]) -> Option<usize> {
        let (head, rest) = block.split_first_chunk::<4>()?;
        *block = rest;
        usize::try_from(u32::from_be_bytes(*head)).ok()
    }
    fn text(block: &mut &[u8]) -> Option<String> {
        let length = number(block)?;
        let (head, rest) = block.split_at_checked(length)?;
        *block = rest;
        Some(String::from_utf8_lossy(head).into_owned())
    }
    let count = number(&mut block).ok_or(FrameError::Headers)?;
    let mut headers = Headers::new();
    for _ in 0..count {
        let pair = text(&mut block).zip(text(&mut block));
        headers.push(pair.ok_or(FrameError::Headers)?);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dictionary_is_the_standards() {
        let dictionary = dictionary();
        assert_eq!(dictionary.len(), 1423);
        let (mut low, mut high) = (1_u32, 0_u32);
        for byte in dictionary {
            low = (low + u32::from(byte)) % 65521;
            high = (high + low) % 65521;
        }
        // Adler-32, the dictionary's name on the wire.
        assert_eq!(high << 16 | low, 0xe3c6_a7c2);
    }

    #[test]
    fn a_broken_block_is_refused() {
        assert!(Inflate::new().block(&[0x78, 0x01, 0xff, 0xff, 0xff]).is_err());
        assert!(Inflate::new().block(&[]).is_err());
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut deflate = Deflate::new();
        let block = deflate.block(&vec![("a".to_owned(), "b".repeat(1 << 20))]);
        assert!(matches!(Inflate::new().block(&block), Err(FrameError::Headers)));
    }

    proptest! {
        #[test]
        fn blocks_survive_the_way(blocks in prop::collection::vec(prop::collection::vec(("[a-z]{0,9}", "\\PC{0,300}"), 0..6), 1..6)) {
            let (mut deflate, mut inflate) = (Deflate::new(), Inflate::new());
            for block in blocks {
                prop_assert_eq!(inflate.block(&deflate.block(&block)).unwrap(), block);
            }
        }

        #[test]
        fn garbage_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Inflate::new().block(&bytes);
            let _ = parse(&bytes);
        }
    }
}
