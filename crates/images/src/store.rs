//! The store: a list of images in one file, layers beside it, locks between processes.
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Instant, SystemTime},
};

use jiff::Timestamp;
use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::{
    error::{ImageError, file},
    layers::LayerStore,
    model::{Image, Layers},
    reference::{ReferenceError, normalize},
    registry::{Puller, RegistryConfig},
};

/// The images of one data directory. Cheap to clone; any number of threads and processes may use it at once.
#[derive(Clone)]
pub struct Images {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    dir: PathBuf,
    pub(crate) layers: LayerStore,
    pub(crate) puller: Puller,
    cache: Mutex<Option<Cached>>,
    /// Images that containers may be about to use. Whoever chooses an image, or removes one, does it under this lock.
    pub(crate) chosen: Mutex<Chosen>,
}

/// When this process last gave away an image to be used, by id.
pub(crate) type Chosen = HashMap<String, Instant>;

/// The list as last read, and which file it was read from.
struct Cached {
    version: FileVersion,
    list: Arc<Vec<Image>>,
}

/// Changes with every replacement of the file: each is a new inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileVersion(Option<(u64, i64, i64, u64)>);

#[derive(Debug, Default, Serialize, Deserialize)]
struct IndexFile {
    images: Vec<Image>,
}

/// A lock on a file, between processes and between threads; released when dropped or when the process ends.
#[derive(Debug)]
pub(crate) struct FileLock {
    _file: File,
}

impl FileLock {
    fn open(path: &Path) -> Result<File, ImageError> {
        let mut options = File::options();
        options.create(true).truncate(false).write(true);
        options.open(path).map_err(file("open lock file", path))
    }
    pub fn exclusive(path: &Path) -> Result<Self, ImageError> {
        let lock = Self::open(path)?;
        retry(|| rustix::fs::flock(&lock, FlockOperation::LockExclusive)).map_err(file("lock", path))?;
        Ok(Self { _file: lock })
    }
    pub fn shared(path: &Path) -> Result<Self, ImageError> {
        let lock = Self::open(path)?;
        retry(|| rustix::fs::flock(&lock, FlockOperation::LockShared)).map_err(file("lock", path))?;
        Ok(Self { _file: lock })
    }
    /// `None` if somebody holds it.
    pub fn try_exclusive(path: &Path) -> Result<Option<Self>, ImageError> {
        let lock = Self::open(path)?;
        match retry(|| rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => Ok(Some(Self { _file: lock })),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(file("lock", path)(e)),
        }
    }
}

fn retry(mut call: impl FnMut() -> rustix::io::Result<()>) -> io::Result<()> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

impl Images {
    /// Opens the store in `dir`, or makes one; removes what interrupted work left, unless another process works now.
    pub fn open(dir: PathBuf, config: RegistryConfig) -> Result<Self, ImageError> {
        let mut builder = fs::DirBuilder::new();
        // Layers hold set-user-id programs and other people's secrets: not for local users.
        builder.recursive(true).mode(0o711);
        for name in ["layers", "tmp", "partial", "empty"] {
            let path = dir.join(name);
            builder.create(&path).map_err(file("create image directory", path))?;
        }
        let layers = LayerStore::new(&dir);
        let inner =
            Inner { layers, puller: Puller::new(config), cache: Mutex::new(None), chosen: Mutex::default(), dir };
        let images = Self { inner: Arc::new(inner) };
        if let Some(_alone) = images.inner.work_alone()? {
            images.inner.remove_leftovers()?;
        }
        Ok(images)
    }

    /// Finds an image by name as users write it, by `name@digest`, by id, or by at least 12 digits of an id.
    pub fn find(&self, name: &str) -> Result<Option<Image>, ImageError> {
        let list = self.inner.list()?;
        let id = name.strip_prefix("sha256:").unwrap_or(name);
        let hexadecimal = id.len() <= 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let by_id = || {
            let mut found = list.iter().filter(|i| i.id["sha256:".len()..].starts_with(id));
            let first = found.next().filter(|_| hexadecimal && id.len() >= 12)?;
            found.next().is_none().then(|| first.clone())
        };
        if name.starts_with("sha256:") {
            return Ok(by_id().or_else(|| list.iter().find(|i| i.manifest_digest.as_deref() == Some(name)).cloned()));
        }
        let reference = match normalize(name) {
            Ok(reference) => reference,
            Err(ReferenceError::LooksLikeId(_)) => return Ok(by_id()),
            Err(source) => return Err(ImageError::Name { name: name.into(), source }),
        };
        let by_name = match reference.digest() {
            Some(digest) => {
                let full = reference.at_digest(digest);
                list.iter().find(|i| i.repo_digests.contains(&full))
            }
            None => {
                let full = reference.to_string();
                list.iter().find(|i| i.names.contains(&full))
            }
        };
        Ok(by_name.cloned().or_else(by_id))
    }

    /// [`Images::find`] for somebody who is about to make a container: from now on, for the minimum age of collection's
    /// policy, the image counts as in use although no container shows it yet.
    pub fn choose(&self, name: &str) -> Result<Option<Image>, ImageError> {
        let mut chosen = self.inner.chosen.lock();
        let found = self.find(name)?;
        if let Some(image) = &found {
            chosen.insert(image.id.clone(), Instant::now());
        }
        Ok(found)
    }

    /// All images that have a name or a digest to be found by.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let list = self.inner.list()?;
        Ok(list.iter().filter(|i| !i.names.is_empty() || !i.repo_digests.is_empty()).cloned().collect())
    }

    /// Removes a name; with an image's last name (or its digest or id) all ways to find it. The disk space comes back at
    /// the next [`Images::gc`] that does not see it in use. False if there was no such image.
    pub fn remove(&self, name: &str) -> Result<bool, ImageError> {
        let Some(found) = self.find(name)? else { return Ok(false) };
        let tag = normalize(name).ok().filter(|r| r.digest().is_none()).map(|r| r.to_string());
        self.inner.update(|list| {
            let Some(image) = list.iter_mut().find(|i| i.id == found.id) else { return };
            match tag.filter(|t| image.names.contains(t)) {
                Some(tag) => image.names.retain(|n| *n != tag),
                None => image.names.clear(),
            }
            if image.names.is_empty() {
                image.repo_digests.clear();
            }
            image.imported.retain(|n| image.names.contains(n) || image.repo_digests.contains(n));
        })?;
        Ok(true)
    }

    /// The directories of the image's layers.
    pub fn rootfs(&self, image: &Image) -> Layers {
        let mut lower: Vec<PathBuf> = image.layers.iter().rev().map(|l| self.inner.layers.tree(l)).collect();
        if lower.is_empty() {
            lower.push(self.inner.dir.join("empty"));
        }
        Layers { lower }
    }
}

impl Inner {
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
    fn index_path(&self) -> PathBuf {
        self.dir.join("index.json")
    }

    /// Held while layers exist that no record names yet; keeps collection in all processes away from them.
    pub(crate) fn work(&self) -> Result<FileLock, ImageError> {
        FileLock::shared(&self.dir.join("work.lock"))
    }
    /// Held by collection; `None` while anybody imports or pulls.
    pub(crate) fn work_alone(&self) -> Result<Option<FileLock>, ImageError> {
        FileLock::try_exclusive(&self.dir.join("work.lock"))
    }

    /// Removes half-unpacked layers. The caller works alone.
    pub(crate) fn remove_leftovers(&self) -> Result<(), ImageError> {
        let tmp = self.dir.join("tmp");
        for entry in fs::read_dir(&tmp).map_err(file("list", &tmp))?.flatten() {
            let path = entry.path();
            let removed = match entry.file_type() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
                _ => fs::remove_file(&path),
            };
            match removed {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(file("remove leftover", path)(e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The current list, read again only if the file was replaced.
    pub(crate) fn list(&self) -> Result<Arc<Vec<Image>>, ImageError> {
        let mut cache = self.cache.lock();
        let version = self.version()?;
        if let Some(cached) = cache.as_ref().filter(|c| c.version == version) {
            return Ok(cached.list.clone());
        }
        let list = Arc::new(self.read()?);
        *cache = Some(Cached { version, list: list.clone() });
        Ok(list)
    }

    fn version(&self) -> Result<FileVersion, ImageError> {
        let path = self.index_path();
        match fs::metadata(&path) {
            Ok(m) => Ok(FileVersion(Some((m.ino(), m.mtime(), m.mtime_nsec(), m.size())))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(FileVersion(None)),
            Err(e) => Err(file("look at", path)(e)),
        }
    }

    fn read(&self) -> Result<Vec<Image>, ImageError> {
        let path = self.index_path();
        match fs::read(&path) {
            Ok(bytes) => {
                let index: IndexFile =
                    serde_json::from_slice(&bytes).map_err(|source| ImageError::Damaged { path, source })?;
                Ok(index.images)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(vec![]),
            Err(e) => Err(file("read", path)(e)),
        }
    }

    /// Changes the list; returns when the new one is on stable storage. Nothing is written if nothing changed.
    pub(crate) fn update<R>(&self, change: impl FnOnce(&mut Vec<Image>) -> R) -> Result<R, ImageError> {
        let _lock = FileLock::exclusive(&self.dir.join("index.lock"))?;
        let old = self.read()?;
        let mut list = old.clone();
        let result = change(&mut list);
        if list != old {
            let bytes = serde_json::to_vec(&IndexFile { images: list })
                .map_err(|e| ImageError::Internal(format!("write the image index: {e}")))?;
            let path = self.index_path();
            replace(&self.dir, &path, &bytes).map_err(file("write", path))?;
        }
        Ok(result)
    }

    /// Records a complete image. Its names now mean this image and no other.
    pub(crate) fn add(&self, new: Image) -> Result<Image, ImageError> {
        self.update(|list| {
            for image in list.iter_mut().filter(|i| i.id != new.id) {
                image.names.retain(|n| !new.names.contains(n));
                image.imported.retain(|n| !new.names.contains(n));
            }
            let Some(image) = list.iter_mut().find(|i| i.id == new.id) else {
                list.push(new.clone());
                return new;
            };
            merge(&mut image.names, &new.names);
            merge(&mut image.repo_digests, &new.repo_digests);
            // Whoever gave a name last says where it is from.
            image.imported.retain(|n| !new.names.contains(n) && !new.repo_digests.contains(n));
            merge(&mut image.imported, &new.imported);
            for (repository, access) in new.pulled {
                image.pulled.entry(repository).or_default().merge(access);
            }
            if new.manifest_digest.is_some() {
                image.manifest_digest = new.manifest_digest;
            }
            (image.layers, image.size, image.config) = (new.layers, new.size, new.config);
            image.last_used_at = Timestamp::now();
            image.clone()
        })
    }
}

fn merge(into: &mut Vec<String>, new: &[String]) {
    for text in new {
        if !into.contains(text) {
            into.push(text.clone());
        }
    }
}

fn replace(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = tempfile::Builder::new().prefix("index-").tempfile_in(dir.join("tmp"))?;
    temporary.write_all(bytes)?;
    // A coarse clock may give two replacements one time stamp and a freed inode may come back: make the time unique.
    temporary.as_file().set_modified(SystemTime::now())?;
    temporary.as_file().sync_all()?;
    temporary.persist(path)?;
    File::open(dir)?.sync_all()
}
