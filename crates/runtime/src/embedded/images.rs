//! What the runtime needs of an image store.
use std::path::PathBuf;

use async_trait::async_trait;

use crate::contract::{ImageInfo, RegistryAuth, RuntimeError};

/// An image that can be run.
#[derive(Debug, Clone, Default)]
pub struct RunnableImage {
    /// Digest of the configuration, `sha256:...`.
    pub id: String,
    /// `name@sha256:...`, where known.
    pub repo_digests: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Empty: `/`.
    pub working_dir: String,
    /// `USER`: name or number, with optional `:group`. Empty: root.
    pub user: String,
    /// Name or number; empty: `SIGTERM`.
    pub stop_signal: String,
    /// Unpacked layers, top-most first.
    pub layers: Vec<PathBuf>,
}

/// Where images come from.
#[async_trait]
pub trait ImageSource: Send + Sync + 'static {
    /// Finds a local image by name, digest or id and makes sure that its layers are unpacked.
    async fn runnable(&self, name: &str) -> Result<Option<RunnableImage>, RuntimeError>;
    /// Finds a local image.
    async fn info(&self, name: &str) -> Result<Option<ImageInfo>, RuntimeError>;
    /// Pulls an image.
    async fn pull(&self, name: &str, auth: &RegistryAuth) -> Result<ImageInfo, RuntimeError>;
    /// Lists local images.
    async fn list(&self) -> Result<Vec<ImageInfo>, RuntimeError>;
}
