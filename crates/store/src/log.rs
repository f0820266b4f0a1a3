//! The bytes on disk, of logs and snapshots alike. On-disk format: never change without a new magic.
//!
//! A file is a header (magic, random salt, CRC) and frames. A frame is one write followed by one sync: header (magic,
//! kind, payload length, payload CRC, header CRC) and records. Both CRCs are salted, so that no object's bytes can pass
//! for a frame. Because frame n is synced before frame n+1 is written, an unreadable frame with a readable one after
//! it was damaged later, and one with nothing readable after it is the torn end of the log. After the last frame there
//! may be zeros: room that was made for more.
use std::hash::{BuildHasher as _, RandomState};

use crate::{Revision, StoreError};

pub(crate) const FILE_HEADER: usize = 8 + 8 + 4;
const FILE_MAGIC: &[u8; 8] = b"hfstore1";
/// What the magics of all versions begin with.
const MAGIC_NAME: &[u8] = b"hfstore";
const FRAME_HEADER: usize = 20;
const FRAME_MAGIC: &[u8; 4] = b"\xf5hfF";
const RECORD_HEADER: usize = 17;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// Writes of one batch, in revision order.
    Batch = 1,
    /// Live objects of a snapshot, in key order.
    Objects = 2,
    /// End of a snapshot: one record without a key, its revision that of the snapshot.
    End = 3,
}

/// One write or one live object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) revision: Revision,
    pub(crate) deleted: bool,
    pub(crate) key: &'a str,
    pub(crate) value: &'a [u8],
}

/// Writes the frames of one file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    salt: u64,
}

impl Format {
    /// Of a new file.
    pub(crate) fn new() -> Self {
        Self { salt: RandomState::new().hash_one(FILE_MAGIC) }
    }

    pub(crate) fn header(self) -> [u8; FILE_HEADER] {
        let mut bytes = [0; FILE_HEADER];
        bytes[..8].copy_from_slice(FILE_MAGIC);
        bytes[8..16].copy_from_slice(&self.salt.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..16]);
        bytes[16..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Of an existing file; `None` when its header is torn or damaged.
    pub(crate) fn of(file: &[u8]) -> Option<Self> {
        let header = file.get(..FILE_HEADER)?;
        let salt = u64::from_le_bytes(header[8..16].try_into().ok()?);
        (header == Self { salt }.header()).then_some(Self { salt })
    }

    fn crc(self, bytes: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.salt.to_le_bytes());
        crc.update(bytes);
        crc.finalize()
    }

    /// Fills in the header of the frame that `frame` holds (see [`start_frame`]).
    pub(crate) fn finish_frame(self, frame: &mut [u8], kind: FrameKind) {
        let (header, payload) = frame.split_at_mut(FRAME_HEADER);
        let len = u32::try_from(payload.len()).expect("batches are cut long before 4 GiB");
        header[..4].copy_from_slice(FRAME_MAGIC);
        header[4..8].copy_from_slice(&(kind as u32).to_le_bytes());
        header[8..12].copy_from_slice(&len.to_le_bytes());
        header[12..16].copy_from_slice(&self.crc(payload).to_le_bytes());
        let crc = self.crc(&header[..16]);
        header[16..].copy_from_slice(&crc.to_le_bytes());
    }

    fn frame_at(self, file: &[u8], offset: usize) -> Option<(FrameKind, &[u8])> {
        let header = file.get(offset..offset + FRAME_HEADER)?;
        let word = |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        if &header[..4] != FRAME_MAGIC || word(16) != self.crc(&header[..16]) {
            return None;
        }
        let kind = match word(4) {
            1 => FrameKind::Batch,
            2 => FrameKind::Objects,
            3 => FrameKind::End,
            _ => return None,
        };
        let start = offset + FRAME_HEADER;
        let payload = file.get(start..start + word(8) as usize)?;
        (word(12) == self.crc(payload)).then_some((kind, payload))
    }

    fn any_frame_after(self, file: &[u8], offset: usize) -> bool {
        let mut at = offset;
        while let Some(step) = file[at..].windows(4).position(|w| w == FRAME_MAGIC) {
            at += step;
            if self.frame_at(file, at).is_some() {
                return true;
            }
            at += 1;
        }
        false
    }
}

/// Room for a frame's header, to which records are added before [`Format::finish_frame`].
pub(crate) fn start_frame(frame: &mut Vec<u8>) {
    frame.clear();
    frame.resize(FRAME_HEADER, 0);
}

pub(crate) fn add_record(frame: &mut Vec<u8>, entry: Entry<'_>) {
    let len = |n: usize| u32::try_from(n).expect("keys and values are far below 4 GiB").to_le_bytes();
    frame.extend_from_slice(&entry.revision.to_le_bytes());
    frame.push(entry.deleted.into());
    frame.extend_from_slice(&len(entry.key.len()));
    frame.extend_from_slice(&len(entry.value.len()));
    frame.extend_from_slice(entry.key.as_bytes());
    frame.extend_from_slice(entry.value);
}

fn take_record<'a>(payload: &mut &'a [u8]) -> Option<Entry<'a>> {
    let (header, rest) = payload.split_at_checked(RECORD_HEADER)?;
    let word = |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]) as usize;
    let (key, rest) = rest.split_at_checked(word(9))?;
    let (value, rest) = rest.split_at_checked(word(13))?;
    *payload = rest;
    Some(Entry {
        revision: u64::from_le_bytes(header[..8].try_into().ok()?),
        deleted: header[8] != 0,
        key: std::str::from_utf8(key).ok()?,
        value,
    })
}

/// Whether there are zeros only. In parts, so that many bytes are looked at in one step.
fn is_room(bytes: &[u8]) -> bool {
    bytes.chunks(1024).all(|part| part.iter().fold(0, |any, byte| any | byte) == 0)
}

/// How a file ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// Bytes that are whole.
    pub(crate) len: u64,
    /// Bytes after them that were never acknowledged; zero if they are but room for more.
    pub(crate) torn: u64,
}

/// Calls `each` for every record of `file` in order.
///
/// # Errors
/// [`StoreError::Corrupt`] for damage that is not a torn end, and what `each` returns; [`StoreError::OtherVersion`].
pub(crate) fn read(
    name: &str,
    file: &[u8],
    each: &mut dyn FnMut(FrameKind, Entry<'_>) -> Result<(), &'static str>,
) -> Result<End, StoreError> {
    let corrupt = |offset: usize, what| StoreError::Corrupt { file: name.into(), offset: offset as u64, what };
    let Some(format) = Format::of(file) else {
        return Err(match file.get(..FILE_MAGIC.len()) {
            Some(magic) if magic.starts_with(MAGIC_NAME) && magic != FILE_MAGIC => {
                StoreError::OtherVersion { file: name.into() }
            }
            _ if file.len() < FILE_HEADER => corrupt(0, "empty, or cut short"),
            _ => corrupt(0, "not a file of this store, or its header is damaged"),
        });
    };
    let mut at = FILE_HEADER;
    while at < file.len() {
        let Some((kind, mut payload)) = format.frame_at(file, at) else {
            if is_room(&file[at..]) {
                return Ok(End { len: at as u64, torn: 0 });
            }
            if format.any_frame_after(file, at) {
                return Err(corrupt(at, "damaged, with good data after it"));
            }
            break;
        };
        let next = at + FRAME_HEADER + payload.len();
        while !payload.is_empty() {
            let entry = take_record(&mut payload).ok_or_else(|| corrupt(at, "malformed record"))?;
            each(kind, entry).map_err(|what| corrupt(at, what))?;
        }
        at = next;
    }
    Ok(End { len: at as u64, torn: (file.len() - at) as u64 })
}
