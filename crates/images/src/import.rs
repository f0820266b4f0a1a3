//! Images from files: OCI layout, OCI archive, docker archive, root file system.
use std::{collections::BTreeMap, path::Path, sync::Arc};

use jiff::Timestamp;
use serde::Deserialize;

use crate::{
    archive::Archive,
    error::ImageError,
    layers::Expected,
    manifest::{
        Config, Descriptor, Document, architecture, check_digest, digest, for_this_platform, hex, platform_name,
    },
    model::Image,
    progress::{Progress, Step},
    reference::{Reference, normalize},
    store::{Images, Inner},
};

const CONTAINERD_NAME: &str = "io.containerd.image.name";
const OCI_NAME: &str = "org.opencontainers.image.ref.name";

impl Images {
    /// Imports every image for this platform in `file`: an OCI layout directory, an OCI or docker archive, or the tar
    /// file of a root file system (then `name` is needed); tar files may be compressed with gzip or zstd. `name`
    /// replaces the names in the file, which must then hold one image. Returns when the images are on stable storage.
    pub async fn import(
        &self,
        file: &Path,
        name: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>, ImageError> {
        let name = name.map(parse).transpose()?;
        let (inner, file) = (self.inner.clone(), file.to_path_buf());
        // The work blocks, and `progress` is borrowed: steps come back through a channel.
        let (send, mut receive) = tokio::sync::mpsc::unbounded_channel();
        let work = tokio::task::spawn_blocking(move || import(&inner, &file, name.as_ref(), &Relay(send)));
        while let Some(step) = receive.recv().await {
            let step: OwnedStep = step;
            progress.step(step.borrowed());
        }
        work.await.map_err(|e| ImageError::Internal(e.to_string()))?
    }
}

/// A step that can be sent.
#[derive(Debug)]
enum OwnedStep {
    Present(Arc<str>),
    Unpacking(Arc<str>, u64),
    Unpacked(Arc<str>),
    Done(Arc<str>),
}

impl OwnedStep {
    fn borrowed(&self) -> Step<'_> {
        match self {
            Self::Present(layer) => Step::Present { layer },
            Self::Unpacking(layer, done) => Step::Unpacking { layer, done: *done },
            Self::Unpacked(layer) => Step::Unpacked { layer },
            Self::Done(name) => Step::Done { name },
        }
    }
}

struct Relay(tokio::sync::mpsc::UnboundedSender<OwnedStep>);

impl Progress for Relay {
    fn step(&self, step: Step<'_>) {
        let owned = match step {
            Step::Present { layer } => OwnedStep::Present(layer.into()),
            Step::Unpacking { layer, done } => OwnedStep::Unpacking(layer.into(), done),
            Step::Unpacked { layer } => OwnedStep::Unpacked(layer.into()),
            Step::Done { name } => OwnedStep::Done(name.into()),
            Step::Resolving { .. } | Step::Downloading { .. } => return,
        };
        // Nobody listens any more: the import goes on all the same.
        let _ = self.0.send(owned);
    }
}

fn parse(name: &str) -> Result<Reference, ImageError> {
    normalize(name).map_err(|source| ImageError::Name { name: name.into(), source })
}

/// An image found in a file, before its layers are unpacked.
struct Found {
    names: Vec<String>,
    /// Of the manifest or index that names lead to.
    top_digest: Option<String>,
    manifest_digest: Option<String>,
    config: Vec<u8>,
    /// Part of the archive and, where promised, digest of each layer, bottom first.
    layers: Vec<(String, Option<String>)>,
}

fn import(
    inner: &Inner,
    file: &Path,
    name: Option<&Reference>,
    progress: &dyn Progress,
) -> Result<Vec<Image>, ImageError> {
    let archive = Archive::open(file, inner.layers.tmp())?;
    let _work = inner.work()?;
    let mut found = if archive.has("index.json") && archive.has("oci-layout") {
        oci(&archive)?
    } else if archive.has("manifest.json") {
        docker(&archive)?
    } else if let Archive::Directory(_) = archive {
        return Err(bad(&archive, "the directory is not an OCI layout: it has no oci-layout and index.json"));
    } else {
        let name = name.ok_or_else(|| {
            bad(&archive, "it has no image manifest; to import it as a root file system, name the image with --name")
        })?;
        return Ok(vec![root_file_system(inner, &archive, name, progress)?]);
    };
    if let Some(name) = name {
        let [only] = &mut found[..] else {
            return Err(bad(&archive, &format!("it holds {} images, so one name does not fit", found.len())));
        };
        only.names = name.tagged().into_iter().collect();
        if only.names.is_empty() {
            return Err(bad(&archive, "the name must have a tag, not a digest"));
        }
    }
    if found.iter().any(|f| f.names.is_empty()) {
        return Err(bad(&archive, "it does not say its image's name; give one"));
    }
    found.into_iter().map(|f| store(inner, &archive, f, progress)).collect()
}

fn bad(archive: &Archive, why: &str) -> ImageError {
    ImageError::Import { file: archive.path().into(), why: why.into() }
}

fn blob_name(digest: &str, archive: &Archive) -> Result<String, ImageError> {
    Ok(format!("blobs/sha256/{}", hex(digest, &archive.path().display().to_string())?))
}

fn blob(archive: &Archive, digest_wanted: &str) -> Result<Vec<u8>, ImageError> {
    let name = blob_name(digest_wanted, archive)?;
    let bytes = archive.document(&name)?;
    check_digest(&format!("{name} in {}", archive.path().display()), digest_wanted, &digest(&bytes))?;
    Ok(bytes)
}

fn oci(archive: &Archive) -> Result<Vec<Found>, ImageError> {
    let what = archive.path().display().to_string();
    let Document::Index { manifests } = Document::parse(&archive.document("index.json")?, &what)? else {
        return Err(bad(archive, "its index.json is not an image index"));
    };
    let mut found: Vec<Found> = vec![];
    let mut others = vec![];
    for entry in &manifests {
        if entry.platform.is_some() && for_this_platform(std::slice::from_ref(entry)).is_none() {
            others.push(entry);
            continue;
        }
        let Some(image) = oci_image(archive, entry, &what)? else { continue };
        // The same image under another name is one more entry.
        match found.iter_mut().find(|f| f.config == image.config) {
            Some(known) => known.names.extend(image.names),
            None => found.push(image),
        }
    }
    if found.is_empty() {
        return Err(bad(archive, &format!("it has no image for {}, the platform of this machine", platform_name())));
    }
    Ok(found)
}

/// The image of an entry, or of this platform's entry of an index inside. `None` for what is not an image (attestations).
fn oci_image(archive: &Archive, entry: &Descriptor, what: &str) -> Result<Option<Found>, ImageError> {
    let mut entry = entry.clone();
    let top_digest = entry.digest.clone();
    let names = names_of(entry.annotations.as_ref());
    for _ in 0..4 {
        match Document::parse(&blob(archive, &entry.digest)?, what)? {
            Document::Index { manifests } => match for_this_platform(&manifests) {
                Some(next) => entry = next.clone(),
                None => return Ok(None),
            },
            Document::Manifest { config, layers } => {
                if !config.media_type.is_empty() && !config.media_type.contains("image") {
                    return Ok(None);
                }
                let part = |l: &Descriptor| Ok((blob_name(&l.digest, archive)?, Some(l.digest.clone())));
                return Ok(Some(Found {
                    names,
                    top_digest: Some(top_digest),
                    manifest_digest: Some(entry.digest),
                    config: blob(archive, &config.digest)?,
                    layers: layers.iter().map(part).collect::<Result<_, ImageError>>()?,
                }));
            }
        }
    }
    Err(bad(archive, "its indexes are nested too deeply"))
}

/// containerd writes the complete name; others a complete name or only a tag, which alone names nothing.
fn names_of(annotations: Option<&BTreeMap<String, String>>) -> Vec<String> {
    let Some(annotations) = annotations else { return vec![] };
    let full = annotations.get(CONTAINERD_NAME);
    let short = || annotations.get(OCI_NAME).filter(|n| n.contains(['/', ':']));
    full.or_else(short).and_then(|n| normalize(n).ok()?.tagged()).into_iter().collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

fn docker(archive: &Archive) -> Result<Vec<Found>, ImageError> {
    let what = || format!("manifest.json of {}", archive.path().display());
    let entries: Vec<DockerEntry> = serde_json::from_slice(&archive.document("manifest.json")?)
        .map_err(|source| ImageError::Json { what: what(), source })?;
    if entries.is_empty() {
        return Err(bad(archive, "it holds no image"));
    }
    let inside = |part: &String| {
        let fine = !part.starts_with('/') && part.split('/').all(|p| p != "..");
        if fine { Ok(()) } else { Err(bad(archive, "its manifest.json leads out of the archive")) }
    };
    let read = |entry: DockerEntry| {
        entry.layers.iter().chain([&entry.config]).try_for_each(inside)?;
        let tags = entry.repo_tags.unwrap_or_default();
        Ok(Found {
            names: tags.iter().filter_map(|t| normalize(t).ok()?.tagged()).collect(),
            top_digest: None,
            manifest_digest: None,
            config: archive.document(&entry.config)?,
            layers: entry.layers.into_iter().map(|l| (l, None)).collect(),
        })
    };
    entries.into_iter().map(read).collect()
}

fn store(inner: &Inner, archive: &Archive, found: Found, progress: &dyn Progress) -> Result<Image, ImageError> {
    let label = found.names.first().cloned().unwrap_or_default();
    let config = Config::parse(&found.config, &label)?;
    config.check_platform(&label)?;
    let diff_ids = &config.rootfs.diff_ids;
    if diff_ids.len() != found.layers.len() {
        let why = format!("its configuration lists {} layers, its manifest {}", diff_ids.len(), found.layers.len());
        return Err(ImageError::Unusable { image: label, why });
    }
    let mut size = 0;
    for (diff_id, (part, blob_digest)) in diff_ids.iter().zip(&found.layers) {
        hex(diff_id, &label)?;
        let _lock = inner.layers.lock(diff_id)?;
        let record = match inner.layers.present(diff_id)? {
            Some(record) => {
                progress.step(Step::Present { layer: diff_id });
                record
            }
            None => {
                let expected = Expected { diff_id: Some(diff_id), blob: blob_digest.as_deref() };
                inner.layers.unpack(archive.part_reader(part)?, expected, progress)?
            }
        };
        size += record.size;
    }
    let at = |n: &String| Some(normalize(n).ok()?.at_digest(found.top_digest.as_deref()?));
    let mut repo_digests: Vec<String> = found.names.iter().filter_map(at).collect();
    repo_digests.dedup();
    let now = Timestamp::now();
    let image = inner.add(Image {
        id: digest(&found.config),
        imported: found.names.iter().chain(&repo_digests).cloned().collect(),
        names: found.names,
        repo_digests,
        manifest_digest: found.manifest_digest,
        pulled: BTreeMap::new(),
        config: config.run_config(),
        layers: config.rootfs.diff_ids.clone(),
        size,
        added_at: now,
        last_used_at: now,
    })?;
    progress.step(Step::Done { name: &label });
    Ok(image)
}

/// One layer, no configuration but a shell to run.
fn root_file_system(
    inner: &Inner,
    archive: &Archive,
    name: &Reference,
    progress: &dyn Progress,
) -> Result<Image, ImageError> {
    let Some(whole) = archive.whole() else { return Err(bad(archive, "it is a directory")) };
    let Some(tag) = name.tagged() else { return Err(bad(archive, "the name must have a tag, not a digest")) };
    let layer = inner.layers.unpack(whole, Expected::default(), progress)?;
    let document = serde_json::json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["/bin/sh"],
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
    });
    let bytes = document.to_string().into_bytes();
    let config = Config::parse(&bytes, &tag)?;
    let now = Timestamp::now();
    let image = inner.add(Image {
        id: digest(&bytes),
        names: vec![tag.clone()],
        imported: vec![tag.clone()],
        repo_digests: vec![],
        manifest_digest: None,
        pulled: BTreeMap::new(),
        config: config.run_config(),
        layers: vec![layer.diff_id],
        size: layer.size,
        added_at: now,
        last_used_at: now,
    })?;
    progress.step(Step::Done { name: &tag });
    Ok(image)
}
