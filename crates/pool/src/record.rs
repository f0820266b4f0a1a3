//! What is written down about a volume. On-disk format: fields are only ever added, with a default.
use std::{collections::BTreeMap, fmt, path::Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::PoolError;

/// Name of a volume or snapshot in the pool: lower-case letters, digits, `-`, `.`; at most 63 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Id(String);

/// Longest id, in bytes: what all that are built from it (paths, labels) can hold.
const ID_BYTES_MAX: usize = 63;

impl Id {
    /// The id of what is to be called `name`: the name itself where it can be one, else a digest of it.
    pub fn of_name(name: &str) -> Self {
        Self::parse(name).unwrap_or_else(|| {
            let digest = Sha256::digest(name.as_bytes());
            Self(format!("x-{}", digest.iter().take(20).map(|b| format!("{b:02x}")).collect::<String>()))
        })
    }

    /// An id that somebody says; `None` if no volume can have it. What passes is one harmless path component.
    pub fn parse(text: &str) -> Option<Self> {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        let bytes = text.as_bytes();
        let fits = (1..=ID_BYTES_MAX).contains(&bytes.len()) && bytes.iter().copied().all(good);
        (fits && edge(bytes.first()) && edge(bytes.last())).then(|| Self(text.to_owned()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What holds a volume's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// A file behind a loop device: its size is the limit.
    #[default]
    Image,
    /// A directory: no snapshots, and a limit only where the filesystem has quotas of projects.
    Directory,
    /// A subvolume of a pool on btrfs: a quota is the limit. No raw devices.
    Subvolume,
}

/// What keeps a volume from outgrowing its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// The size of its image.
    #[default]
    Size,
    /// A quota of its filesystem: what is too much fails with `EDQUOT`.
    Quota,
    /// Nothing: the size is what was asked for, and does not bind.
    None,
}

/// What a volume is to its users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Made when the volume is first staged, if there is none.
    Filesystem(String),
    /// A raw block device.
    Block,
}

/// What a volume began as a copy of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    Snapshot(Id),
    Volume(Id),
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub id: Id,
    /// What it was asked for as.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    pub backend: Backend,
    /// What makes the size bind.
    #[serde(default)]
    pub limit: Limit,
    /// Number of the quota of a directory; no other directory of the pool has it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub project: u32,
    pub content: Content,
    /// Words for the program that makes its filesystem.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub format: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// It takes space when it is written, and counts only as what it takes.
    #[serde(default)]
    pub shares_room: bool,
    /// What its owner said about it; not used here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub notes: BTreeMap<String, String>,
    /// What its filesystem was last made or grown for; less than `bytes`: it grows when it is staged next.
    #[serde(default)]
    pub filesystem_bytes: u64,
    /// When it was made, in seconds since 1970.
    pub made: u64,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub id: Id,
    /// What it was asked for as.
    pub name: String,
    /// The volume that it was taken of, which may be gone.
    pub volume: Id,
    /// Size of that volume then, in bytes.
    pub bytes: u64,
    /// What holds it.
    #[serde(default)]
    pub backend: Backend,
    pub content: Content,
    /// When it was taken, in seconds since 1970.
    pub made: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // What serde calls.
fn is_zero(number: &u32) -> bool {
    *number == 0
}

pub(crate) fn encode(record: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(record).expect("records are plain data");
    bytes.push(b'\n');
    bytes
}

pub(crate) fn decode<T: for<'a> Deserialize<'a>>(path: &Path, bytes: &[u8]) -> Result<T, PoolError> {
    serde_json::from_slice(bytes).map_err(|e| PoolError::Damaged { path: path.to_owned(), why: e.to_string() })
}

#[test]
fn ids_are_harmless_path_components() {
    let bad = ["", ".", "..", "-a", "a-", "a/b", "A", "a\0", "ä", "a b", &"a".repeat(64)];
    for text in bad {
        assert_eq!(Id::parse(text), None, "{text:?}");
        let id = Id::of_name(text);
        assert_eq!(Id::parse(id.as_str()), Some(id), "{text:?}");
    }
    for text in ["a", "pvc-0c56", "a.b", &"a".repeat(63)] {
        assert_eq!(Id::of_name(text).as_str(), text);
    }
    assert_ne!(Id::of_name("A"), Id::of_name("B"));
}
