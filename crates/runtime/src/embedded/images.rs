//! What the runtime needs of an image store.
use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use images::{Image, ImageError, Images, Sentences};

use crate::contract::{ImageInfo, RegistryAuth, RuntimeError};

/// Between two lines of the log about one pull.
const TELL_EVERY: Duration = Duration::from_secs(10);

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
    /// Whether one of these users is known to be given the local image by its registry.
    async fn may_use(&self, name: &str, auth: &RegistryAuth) -> Result<bool, RuntimeError>;
    /// Pulls an image.
    async fn pull(&self, name: &str, auth: &RegistryAuth) -> Result<ImageInfo, RuntimeError>;
    /// Lists local images.
    async fn list(&self) -> Result<Vec<ImageInfo>, RuntimeError>;
}

#[async_trait]
impl ImageSource for Images {
    async fn runnable(&self, name: &str) -> Result<Option<RunnableImage>, RuntimeError> {
        let Some(image) = find(self, name).await? else { return Ok(None) };
        let layers = self.rootfs(&image).lower;
        let config = image.config;
        Ok(Some(RunnableImage {
            id: image.id,
            repo_digests: image.repo_digests,
            entrypoint: config.entrypoint,
            cmd: config.cmd,
            env: config.env,
            working_dir: config.working_dir.unwrap_or_default(),
            user: config.user.unwrap_or_default(),
            stop_signal: config.stop_signal.unwrap_or_default(),
            layers,
        }))
    }

    async fn info(&self, name: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        Ok(find(self, name).await?.map(|image| ImageInfo {
            imported: image.imported_as(name),
            everybodys: image.is_everybodys(name),
            ..describe(image)
        }))
    }

    async fn may_use(&self, name: &str, auth: &RegistryAuth) -> Result<bool, RuntimeError> {
        let image = find(self, name).await?;
        Ok(image.is_some_and(|image| self.is_known_for(&image, name, &credentials(auth))))
    }

    async fn pull(&self, name: &str, auth: &RegistryAuth) -> Result<ImageInfo, RuntimeError> {
        let bad = |why| RuntimeError::BadImageName { image: name.to_owned(), why };
        let reference = images::normalize(name).map_err(|e| bad(e.to_string()))?;
        let image = name.to_owned();
        let progress = Sentences::new(TELL_EVERY, move |text: &str| tracing::info!(image, "pulling: {text}"));
        let pulled = Self::pull(self, &reference, &credentials(auth), Arc::new(progress)).await;
        pulled.map(describe).map_err(|e| RuntimeError::Pull {
            image: name.to_owned(),
            unreachable: matches!(e, ImageError::Unreachable { .. }),
            source: Box::new(e),
        })
    }

    async fn list(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        let store = self.clone();
        let all = tokio::task::spawn_blocking(move || store.list()).await;
        let all = all.map_err(|e| RuntimeError::Other(e.to_string()))?;
        Ok(all.map_err(|e| RuntimeError::Other(base::chain(&e)))?.into_iter().map(describe).collect())
    }
}

fn credentials(auth: &RegistryAuth) -> Vec<images::Credentials> {
    let entries = auth.entries.iter().cloned();
    entries.map(|(registry, user, password)| images::Credentials { registry, user, password }).collect()
}

async fn find(store: &Images, name: &str) -> Result<Option<Image>, RuntimeError> {
    let (store, wanted) = (store.clone(), name.to_owned());
    let found = tokio::task::spawn_blocking(move || store.choose(&wanted)).await;
    match found.map_err(|e| RuntimeError::Other(e.to_string()))? {
        Ok(image) => Ok(image),
        Err(ImageError::Name { name, source }) => {
            Err(RuntimeError::BadImageName { image: name, why: source.to_string() })
        }
        Err(e) => Err(RuntimeError::Other(base::chain(&e))),
    }
}

fn describe(image: Image) -> ImageInfo {
    ImageInfo {
        imported: !image.imported.is_empty(),
        everybodys: false,
        id: image.id,
        repo_digests: image.repo_digests,
        repo_tags: image.names,
        size_bytes: image.size,
        user: image.config.user,
    }
}
