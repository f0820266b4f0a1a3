//! What can go wrong, with the way out.
use std::{io, path::PathBuf};

use crate::reference::ReferenceError;

/// The way out of a full disk.
pub(crate) const SPACE: &str = "remove images that you do not need (`holdfast image rm`) or other files";

/// A failure of the image store, an import or a pull.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file or directory of the store or of an import.
    #[error("{action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The disk is full.
    #[error("no space to {action} {}; {SPACE}", path.display())]
    Full { action: &'static str, path: PathBuf },
    /// The list of images cannot be understood.
    #[error("image index {} is damaged; remove the images directory and import or pull the images again", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// A name given by the user.
    #[error("couldn't parse image name {name:?}")]
    Name {
        name: String,
        #[source]
        source: ReferenceError,
    },
    /// The file to import is not what it should be.
    #[error("cannot import {}: {why}", file.display())]
    Import { file: PathBuf, why: String },
    /// A manifest or configuration that is not valid.
    #[error("{what} is not valid")]
    Json {
        what: String,
        #[source]
        source: serde_json::Error,
    },
    /// An image that cannot be used here.
    #[error("image {image}: {why}")]
    Unusable { image: String, why: String },
    /// Content does not match its digest.
    #[error(
        "{what} does not match its digest: expected {expected}, got {actual}; the source is damaged, fetch it again"
    )]
    Digest { what: String, expected: String, actual: String },
    /// A layer that cannot be unpacked.
    #[error("unpack layer {layer}: entry {entry:?}: {why}")]
    Entry { layer: String, entry: String, why: String },
    /// A layer's archive or the disk failed.
    #[error("unpack layer {layer}")]
    Layer {
        layer: String,
        #[source]
        source: io::Error,
    },
    /// The registry does not know the name.
    #[error("failed to resolve reference \"{0}\": {0}: not found; check the name and its tag")]
    NotFound(String),
    /// The registry refuses.
    #[error(
        "failed to resolve reference \"{image}\": pull access denied, repository does not exist or may require \
         authorization: {why}; check the name and the credentials (imagePullSecrets of a pod, --authfile of `holdfast \
         image pull`)"
    )]
    Denied { image: String, why: String },
    /// The registry cannot be reached: no route, no such host, refused, timed out.
    #[error(
        "failed to resolve reference \"{image}\": failed to do request: {why}; check the network, name a mirror with \
         --registry-mirror, or bring the image with `holdfast image import FILE`"
    )]
    Unreachable { image: String, why: String },
    /// The registry's host was reached, but TLS with it failed: no valid certificate, or no TLS at all.
    #[error(
        "failed to resolve reference \"{image}\": failed to do request: {why}; if the registry speaks plain HTTP, start \
         with --insecure-registry {host}; if not, add its authority to this machine's CA certificates"
    )]
    Untrusted { image: String, why: String, host: String },
    /// The registry answered something else.
    #[error("failed to pull \"{image}\": {why}")]
    Registry { image: String, why: String },
    /// A worker died; a bug.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Adds the action and the path to an I/O error.
pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.into();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ImageError::Full { action, path },
        _ => ImageError::File { action, path, source },
    }
}
