//! What an image is, once it is here.
use std::{collections::BTreeMap, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{access::Access, reference::normalize};

/// A complete local image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Digest of the configuration, `sha256:...`: the image's identity.
    pub id: String,
    /// Complete names with tags, `docker.io/library/nginx:latest`.
    pub names: Vec<String>,
    /// `docker.io/library/nginx@sha256:...`; the digest is that of the manifest or of the index it came from.
    pub repo_digests: Vec<String>,
    /// Digest of the manifest of this platform; absent for docker archives and root file systems.
    pub manifest_digest: Option<String>,
    /// Those of the names and repository digests that an import gave and no pull since. Older records know of none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub imported: Vec<String>,
    /// Who pulled it, by repository (`docker.io/library/nginx`). Older records do not say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pulled: BTreeMap<String, Access>,
    pub config: ImageConfig,
    /// Diff ids (digests of the uncompressed layers), bottom layer first.
    pub layers: Vec<String>,
    /// Bytes of all unpacked layers.
    pub size: u64,
    /// When it came here.
    #[serde(with = "stamp")]
    pub added_at: Timestamp,
    /// When garbage collection last saw it in use, or when it came here.
    #[serde(with = "stamp")]
    pub last_used_at: Timestamp,
}

impl Image {
    /// What `imageID` of a container's status shows: a repository digest if known, else the id.
    pub fn image_ref(&self) -> &str {
        self.repo_digests.first().unwrap_or(&self.id)
    }
    /// Whether this name, written as users do, means this image by an import: the operator's own word, which no
    /// registry is asked about. An id names no registry, so there any import counts.
    pub fn imported_as(&self, name: &str) -> bool {
        let full = normalize(name).ok().map(|r| r.digest().map_or_else(|| r.to_string(), |d| r.at_digest(d)));
        match full {
            Some(full) if self.names.contains(&full) || self.repo_digests.contains(&full) => {
                self.imported.contains(&full)
            }
            _ => !self.imported.is_empty(),
        }
    }
    /// The name for messages.
    pub fn display_name(&self) -> &str {
        self.names.first().map_or_else(|| self.image_ref(), String::as_str)
    }
}

/// What the image wants its containers to be like.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`
    pub env: Vec<String>,
    pub working_dir: Option<String>,
    /// `USER`: name or number, with an optional group after a colon.
    pub user: Option<String>,
    /// `SIGQUIT`, `3` and the like.
    pub stop_signal: Option<String>,
    /// `80/tcp`
    pub exposed_ports: Vec<String>,
    pub volumes: Vec<String>,
    pub labels: BTreeMap<String, String>,
}

/// Directories that overlayfs stacks to the image's root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// The top layer first, as `lowerdir=` wants it. An image without layers has one empty directory here.
    pub lower: Vec<PathBuf>,
}

/// Time stamps as RFC 3339 text.
mod stamp {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(at: &Timestamp, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(at)
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Timestamp, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}
