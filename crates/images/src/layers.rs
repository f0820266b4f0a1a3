//! Layers on disk: one directory per diff id, complete or absent.
use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    error::{ImageError, file},
    manifest::{check_digest, named},
    progress::{Progress, Step},
    store::FileLock,
    unpack,
};

/// What is recorded beside an unpacked layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    pub diff_id: String,
    /// Bytes of the files in it.
    pub size: u64,
}

/// Where layers live.
pub struct LayerStore {
    layers: PathBuf,
    tmp: PathBuf,
    partial: PathBuf,
}

/// What a layer's bytes must be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expected<'e> {
    /// Digest of the uncompressed archive.
    pub diff_id: Option<&'e str>,
    /// Digest of the archive as it comes.
    pub blob: Option<&'e str>,
}

impl LayerStore {
    pub fn new(dir: &Path) -> Self {
        Self { layers: dir.join("layers"), tmp: dir.join("tmp"), partial: dir.join("partial") }
    }

    pub fn tmp(&self) -> &Path {
        &self.tmp
    }
    /// Downloads under way and interrupted ones.
    pub fn partial(&self) -> &Path {
        &self.partial
    }
    pub fn all(&self) -> &Path {
        &self.layers
    }

    /// Half the digest: many layers must fit one mount option. The record holds the whole, and is checked.
    fn home(&self, diff_id: &str) -> PathBuf {
        let hex = diff_id.strip_prefix("sha256:").unwrap_or(diff_id);
        self.layers.join(&hex[..hex.len().min(32)])
    }
    /// Name of the layer's directory below [`LayerStore::all`].
    pub fn home_name(&self, diff_id: &str) -> String {
        self.home(diff_id).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    }
    /// The unpacked tree.
    pub fn tree(&self, diff_id: &str) -> PathBuf {
        self.home(diff_id).join("fs")
    }

    /// The layer's record, if the layer is here.
    pub fn present(&self, diff_id: &str) -> Result<Option<LayerRecord>, ImageError> {
        let path = self.home(diff_id).join("layer.json");
        match fs::read(&path) {
            Ok(bytes) => {
                let record: LayerRecord =
                    serde_json::from_slice(&bytes).map_err(|source| ImageError::Damaged { path, source })?;
                check_digest("a layer with the same short name", diff_id, &record.diff_id)?;
                Ok(Some(record))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(file("read", path)(e)),
        }
    }

    /// Keeps two from making one layer at once; the second finds it present.
    pub fn lock(&self, diff_id: &str) -> Result<FileLock, ImageError> {
        FileLock::exclusive(&self.partial.join(format!("{}.lock", self.home_name(diff_id))))
    }

    /// Unpacks a layer, plain or compressed, checks its digests and puts it in place on stable storage.
    pub fn unpack(
        &self,
        source: impl Read,
        expected: Expected<'_>,
        progress: &dyn Progress,
    ) -> Result<LayerRecord, ImageError> {
        let label = expected.blob.or(expected.diff_id).unwrap_or("of the root file system").to_owned();
        let failed = |source| ImageError::Layer { layer: label.clone(), source };
        let temporary = tempfile::Builder::new()
            .prefix("layer-")
            .tempdir_in(&self.tmp)
            .map_err(file("create directory in", &self.tmp))?;
        let tree = temporary.path().join("fs");
        fs::create_dir(&tree).map_err(file("create", &tree))?;

        let mut raw = Hashed::new(BufReader::with_capacity(1 << 18, source));
        let mut done = 0;
        let (size, diff_id) = {
            let mut plain = Hashed::new(decompressed(&mut raw).map_err(failed)?);
            let size = unpack::unpack(&mut plain, &tree, &label, &mut |bytes| {
                done += bytes;
                progress.step(Step::Unpacking { layer: &label, done });
            })?;
            // Padding after the end mark is part of the digest.
            io::copy(&mut plain, &mut io::sink()).map_err(failed)?;
            (size, plain.digest())
        };
        io::copy(&mut raw, &mut io::sink()).map_err(failed)?;
        if let Some(blob) = expected.blob {
            check_digest(&format!("layer {label}"), blob, &raw.digest())?;
        }
        if let Some(wanted) = expected.diff_id {
            check_digest(&format!("the unpacked layer {label}"), wanted, &diff_id)?;
        }
        let record = LayerRecord { diff_id, size };
        self.put(temporary, &record)?;
        progress.step(Step::Unpacked { layer: &label });
        Ok(record)
    }

    /// Makes a layer of one file, which a blob is as it comes, and puts it in place on stable storage. `name` leads nowhere
    /// but into the layer.
    pub fn take_file(&self, source: impl Read, name: &Path, id: &str, blob: &str) -> Result<LayerRecord, ImageError> {
        let temporary = tempfile::Builder::new()
            .prefix("layer-")
            .tempdir_in(&self.tmp)
            .map_err(file("create directory in", &self.tmp))?;
        let path = temporary.path().join("fs").join(name);
        let mut dir = temporary.path().join("fs");
        fs::create_dir(&dir).and_then(|()| open_to_all(&dir)).map_err(file("create", &dir))?;
        for part in name.parent().into_iter().flatten() {
            dir.push(part);
            fs::create_dir(&dir).and_then(|()| open_to_all(&dir)).map_err(file("create", &dir))?;
        }
        let mut source = Hashed::new(source);
        let mut target = File::create_new(&path).map_err(file("create", &path))?;
        let size = io::copy(&mut source, &mut target).map_err(file("write", &path))?;
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        target.set_permissions(readable).map_err(file("set the mode of", &path))?;
        check_digest(&format!("blob {blob}"), blob, &source.digest())?;
        let record = LayerRecord { diff_id: id.to_owned(), size };
        self.put(temporary, &record)?;
        Ok(record)
    }

    /// Everything below `temporary` becomes durable before the directory gets the name under which it counts.
    fn put(&self, temporary: tempfile::TempDir, record: &LayerRecord) -> Result<(), ImageError> {
        let json =
            serde_json::to_vec(record).map_err(|e| ImageError::Internal(format!("write a layer record: {e}")))?;
        let path = temporary.path().join("layer.json");
        fs::write(&path, json).map_err(file("write", &path))?;
        let sync = || -> io::Result<()> {
            rustix::fs::syncfs(File::open(&path)?)?;
            Ok(())
        };
        sync().map_err(file("write to disk", &path))?;
        open_to_all(temporary.path()).map_err(file("set the mode of", temporary.path()))?;
        let home = self.home(&record.diff_id);
        match fs::rename(temporary.path(), &home) {
            // It is in its place now, nothing is left to remove.
            Ok(()) => drop(temporary.keep()),
            // Somebody was faster: theirs is as good.
            Err(e) if matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty) => {}
            Err(e) => return Err(file("put the layer in place as", home)(e)),
        }
        File::open(&self.layers).and_then(|d| d.sync_all()).map_err(file("write to disk", &self.layers))
    }
}

/// A container's other users must be able to walk through the layer's directory, which `tempdir` made private.
fn open_to_all(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}

/// Passes bytes on and hashes them.
struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R> Hashed<R> {
    fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }
    fn digest(&self) -> String {
        named(self.hash.clone().finalize().as_slice())
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}

/// How a stream is compressed, by its first bytes; media types are often wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Recognises a compression by at least four bytes.
pub fn compression(start: &[u8]) -> Compression {
    match start {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        // A skippable frame: what zstd:chunked archives may begin with.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// The plain bytes of a stream of any known compression.
pub fn decompressed<'r>(mut source: impl Read + 'r) -> io::Result<Box<dyn Read + 'r>> {
    let mut start = Vec::with_capacity(4);
    source.by_ref().take(4).read_to_end(&mut start)?;
    let kind = compression(&start);
    let whole = BufReader::with_capacity(1 << 18, io::Cursor::new(start).chain(source));
    Ok(match kind {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(BufReader::with_capacity(1 << 18, flate2::bufread::MultiGzDecoder::new(whole))),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(whole)?),
    })
}
