//! Images from registries: names to manifests to blobs, each checked against its digest.
use std::{
    error::Error,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use oci_client::{
    Client, RegistryOperation,
    client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};

use crate::{
    access::Access,
    error::{ImageError, file},
    layers::Expected,
    manifest::{
        Config, DOCUMENT_MAX_BYTES, Descriptor, Document, check_digest, digest, for_this_platform, hex, platform_name,
    },
    model::{Image, ImageConfig},
    progress::{Progress, Step},
    reference::Reference,
    registry::{Credentials, Puller},
    store::{FileLock, Images, Inner},
};

const ACCEPTED: &[&str] = &[
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// A root certificate whose private key was never stored, so that it vouches for nobody.
const NOBODY: &[u8] = include_bytes!("nobody.pem");
/// Until a host that does not answer at all is given up: two of TCP's repetitions fit in, and a pod that may run from the
/// copy that is here does not wait longer than its owner does.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Layers fetched at once: one image must not take the whole line.
const LAYERS_AT_ONCE: usize = 3;
/// How often a broken download is resumed.
const DOWNLOAD_TRIES: usize = 4;

/// A registry that answered for the image.
struct Source {
    client: Client,
    reference: oci_client::Reference,
    image: String,
    scheme: &'static str,
    /// Whom it answered; nobody in particular, if it answers everybody.
    user: Option<Credentials>,
}

/// What the registry says the image is.
struct Resolved {
    top_digest: String,
    manifest_digest: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

impl Images {
    /// Fetches an image from its registry or a mirror. Layers that are here are not fetched again, interrupted downloads
    /// are resumed, and pulls of one name wait for each other. `auth` is tried in order of the longest match, then no
    /// user at all. Returns when the image is on stable storage.
    pub async fn pull(
        &self,
        name: &Reference,
        auth: &[Credentials],
        progress: Arc<dyn Progress>,
    ) -> Result<Image, ImageError> {
        let label = name.to_string();
        let turn = self.inner.puller.turn(&label);
        let _turn = turn.lock().await;
        progress.step(Step::Resolving { name: &label });
        let (source, resolved) = resolve(&self.inner.puller, name, auth).await?;
        let Content { id, config, parts } = content(&source, &resolved).await?;
        let access = source.user.as_ref().map_or_else(|| Ok(Access::of_everybody()), Access::of)?;
        let inner = self.inner.clone();
        let _work = blocking(move || inner.work()).await?;
        // Owned parts: borrowed ones would tie this future to one thread.
        let layers: Vec<String> = parts.iter().map(|part| part.id.clone()).collect();
        let (store, source) = (self.inner.clone(), Arc::new(source));
        let size = futures::stream::iter(parts)
            .map({
                let progress = progress.clone();
                move |part| fetch_layer(store.clone(), source.clone(), part, progress.clone())
            })
            .buffer_unordered(LAYERS_AT_ONCE)
            .try_fold(0, |sum, size| async move { Ok(sum + size) })
            .await?;
        let now = Timestamp::now();
        let image = Image {
            id,
            names: name.tagged().into_iter().collect(),
            repo_digests: vec![name.at_digest(&resolved.top_digest)],
            manifest_digest: Some(resolved.manifest_digest),
            imported: vec![],
            pulled: [(name.repository(), access)].into(),
            config,
            layers,
            size,
            added_at: now,
            last_used_at: now,
        };
        let inner = self.inner.clone();
        let image = blocking(move || {
            // Who pulls wants to use it.
            let mut chosen = inner.chosen.lock();
            let image = inner.add(image)?;
            chosen.insert(image.id.clone(), Instant::now());
            Ok(image)
        })
        .await?;
        progress.step(Step::Done { name: &label });
        Ok(image)
    }
}

/// What an image, or an artifact, is made of.
struct Content {
    id: String,
    config: ImageConfig,
    /// Bottom layer first.
    parts: Vec<Part>,
}

/// One layer, and the blob that it is made from.
struct Part {
    /// The layer's own name: the digest of what it is.
    id: String,
    blob: Descriptor,
    /// Of an artifact: the file that the blob is.
    file: Option<PathBuf>,
}

async fn content(source: &Source, resolved: &Resolved) -> Result<Content, ImageError> {
    let label = &source.image;
    if !resolved.config.is_image_configuration() {
        let part = |blob: &Descriptor| {
            let file = blob.file_name(label)?;
            let id = digest(format!("{}\0{}", blob.digest, file.display()).as_bytes());
            Ok(Part { id, blob: blob.clone(), file: Some(file) })
        };
        // Artifacts often have one and the same empty configuration: what they are is said by their manifest.
        let id = resolved.manifest_digest.clone();
        let parts = resolved.layers.iter().map(part).collect::<Result<_, ImageError>>()?;
        return Ok(Content { id, config: ImageConfig::default(), parts });
    }
    let bytes = source.document(&resolved.config).await?;
    let config = Config::parse(&bytes, label)?;
    config.check_platform(label)?;
    let diff_ids = &config.rootfs.diff_ids;
    if diff_ids.len() != resolved.layers.len() {
        let why = format!("its configuration lists {} layers, its manifest {}", diff_ids.len(), resolved.layers.len());
        return Err(ImageError::Unusable { image: label.clone(), why });
    }
    let pairs = diff_ids.iter().zip(&resolved.layers);
    let parts = pairs.map(|(id, blob)| Part { id: id.clone(), blob: blob.clone(), file: None }).collect();
    Ok(Content { id: resolved.config.digest.clone(), config: config.run_config(), parts })
}

async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, ImageError> + Send + 'static,
) -> Result<R, ImageError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| ImageError::Internal(e.to_string()))?
}

/// Asks mirrors and the registry itself until one knows the image.
async fn resolve(puller: &Puller, name: &Reference, auth: &[Credentials]) -> Result<(Source, Resolved), ImageError> {
    // The registry's own answer counts most; if there is none, what the mirrors said is all there is to go by.
    let mut said = String::new();
    let mut result = Err(ImageError::NotFound(name.to_string()));
    for (host, plain) in puller.endpoints(name.domain()) {
        let error = match ask(puller, name, (&host, plain), auth).await {
            Ok(found) => return Ok(found),
            Err(ImageError::Unreachable { image, why }) => ImageError::Unreachable { image, why: why + &said },
            Err(error) => error,
        };
        tracing::debug!(image = %name, host, error = base::chain(&error), "registry did not give the image");
        if host != name.domain() {
            let short = match &error {
                ImageError::NotFound(_) => "not found".into(),
                ImageError::Denied { why, .. } | ImageError::Unreachable { why, .. } => why.clone(),
                other => base::chain(other),
            };
            said = format!(" (its mirror {host}: {short})");
        }
        result = Err(error);
    }
    result
}

/// Asks one host with each fitting user, the closest first, then without any.
async fn ask(
    puller: &Puller,
    name: &Reference,
    (host, plain): (&str, bool),
    auth: &[Credentials],
) -> Result<(Source, Resolved), ImageError> {
    let source = Source::new(name, host, plain)?;
    if puller.is_silent(host) {
        return Err(source.no_answer("a moment ago"));
    }
    let began = Instant::now();
    let mut users: Vec<(usize, &Credentials)> =
        auth.iter().filter_map(|c| Some((c.matches(host, name.path())?, c))).collect();
    users.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    let mut refused = None;
    for (_, user) in users {
        let source = Source::new(name, host, plain)?;
        let login = RegistryAuth::Basic(user.user.clone(), user.password.clone());
        match source.resolve(&login).await {
            Ok(resolved) => return Ok((Source { user: Some(user.clone()), ..source }, resolved)),
            Err(ImageError::Denied { image, .. }) => {
                let why = format!("authorization failed: {host} refuses user {:?} or its password", user.user);
                refused = refused.or(Some(ImageError::Denied { image, why }));
            }
            Err(error) => return Err(puller.heard(host, began, error)),
        }
    }
    match source.resolve(&RegistryAuth::Anonymous).await {
        Ok(resolved) => Ok((source, resolved)),
        // A user that the registry does not like says more than no user.
        Err(error @ ImageError::Denied { .. }) => Err(refused.unwrap_or(error)),
        Err(error) => Err(puller.heard(host, began, error)),
    }
}

impl Source {
    fn new(name: &Reference, host: &str, plain: bool) -> Result<Self, ImageError> {
        // The first caller in the process decides; any provider will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = |tls_certs_only| ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            tls_certs_only,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(Duration::from_secs(60)),
            user_agent: concat!("holdfast/", env!("CARGO_PKG_VERSION")),
            platform_resolver: None,
            ..ClientConfig::default()
        };
        let image = name.to_string();
        let client = Client::try_from(config(vec![]))
            .or_else(|e| {
                // Without any CA certificate no client can be made, though plain HTTP needs none: trust one without a key.
                let nobody = Certificate { encoding: CertificateEncoding::Pem, data: NOBODY.into() };
                if plain { Client::try_from(config(vec![nobody])) } else { Err(e) }
            })
            .map_err(|e| ImageError::Registry {
                image: image.clone(),
                why: format!("no HTTPS without CA certificates; install them (ca-certificates): {}", base::chain(&e)),
            })?;
        let (host, path) = (host.to_owned(), name.path().to_owned());
        let reference = match (name.digest(), name.tag()) {
            (Some(digest), _) => oci_client::Reference::with_digest(host, path, digest.into()),
            (None, tag) => oci_client::Reference::with_tag(host, path, tag.unwrap_or("latest").into()),
        };
        Ok(Self { client, reference, image, scheme: if plain { "http" } else { "https" }, user: None })
    }

    async fn resolve(&self, user: &RegistryAuth) -> Result<Resolved, ImageError> {
        // Otherwise a refused log-in would show only as a refused request, and a dead host as either.
        if let Err(e) = self.client.auth(&self.reference, user, RegistryOperation::Pull).await {
            return Err(self.explain(e));
        }
        let (bytes, top_digest) = self.manifest(&self.reference, user).await?;
        let entry = match Document::parse(&bytes, &self.image)? {
            Document::Manifest { config, layers } => {
                let manifest_digest = top_digest.clone();
                return Ok(Resolved { top_digest, manifest_digest, config, layers });
            }
            Document::Index { manifests } => for_this_platform(&manifests).cloned(),
        };
        let entry = entry.ok_or_else(|| ImageError::Unusable {
            image: self.image.clone(),
            why: format!("no match for platform in manifest: {} is not offered", platform_name()),
        })?;
        hex(&entry.digest, &self.image)?;
        let (bytes, manifest_digest) =
            self.manifest(&self.reference.clone_with_digest(entry.digest.clone()), user).await?;
        match Document::parse(&bytes, &self.image)? {
            Document::Manifest { config, layers } => Ok(Resolved { top_digest, manifest_digest, config, layers }),
            Document::Index { .. } => {
                let why = "its index leads to another index".into();
                Err(ImageError::Unusable { image: self.image.clone(), why })
            }
        }
    }

    async fn manifest(
        &self,
        reference: &oci_client::Reference,
        user: &RegistryAuth,
    ) -> Result<(Vec<u8>, String), ImageError> {
        let fetched = self.client.pull_manifest_raw(reference, user, ACCEPTED).await;
        let (bytes, _) = fetched.map_err(|e| self.explain(e))?;
        let actual = digest(&bytes);
        if let Some(wanted) = reference.digest() {
            check_digest(&format!("the manifest of {}", self.image), wanted, &actual)?;
        }
        Ok((bytes.to_vec(), actual))
    }

    /// A small blob, checked.
    async fn document(&self, wanted: &Descriptor) -> Result<Vec<u8>, ImageError> {
        hex(&wanted.digest, &self.image)?;
        let mut stream =
            self.client.pull_blob_stream(&self.reference, wanted.digest.as_str()).await.map_err(|e| self.explain(e))?;
        let mut bytes = vec![];
        while let Some(part) = stream.stream.next().await {
            bytes.extend_from_slice(&part.map_err(|e| self.broken(&e))?);
            if bytes.len() as u64 > DOCUMENT_MAX_BYTES {
                return Err(self.unexpected("its configuration is too large".into()));
            }
        }
        check_digest(&format!("the configuration of {}", self.image), &wanted.digest, &digest(&bytes))?;
        Ok(bytes)
    }

    fn unexpected(&self, why: String) -> ImageError {
        ImageError::Registry { image: self.image.clone(), why }
    }
    fn broken(&self, error: &io::Error) -> ImageError {
        self.unexpected(format!("download interrupted: {}", base::chain(error)))
    }

    /// The registry's answer in the words that users of other runtimes know.
    fn explain(&self, error: OciDistributionError) -> ImageError {
        let image = self.image.clone();
        let not_authorized = "authorization failed: no basic auth credentials";
        match error {
            OciDistributionError::UnauthorizedError { .. } => ImageError::Denied { image, why: not_authorized.into() },
            OciDistributionError::AuthenticationFailure(text) => {
                let text = if text.trim().is_empty() { not_authorized } else { text.trim() };
                ImageError::Denied { image, why: format!("failed to authorize: {text}") }
            }
            OciDistributionError::ImageManifestNotFoundError(_) => ImageError::NotFound(image),
            OciDistributionError::RegistryError { envelope, .. } => {
                let has = |code: OciErrorCode| envelope.errors.iter().any(|e| e.code == code);
                use OciErrorCode::{BlobUnknown, Denied, ManifestUnknown, NameUnknown, NotFound, Unauthorized};
                if has(ManifestUnknown) || has(NameUnknown) || has(NotFound) || has(BlobUnknown) {
                    return ImageError::NotFound(image);
                }
                if has(Unauthorized) || has(Denied) {
                    let why = "server message: insufficient_scope: authorization failed".into();
                    return ImageError::Denied { image, why };
                }
                self.unexpected(envelope.to_string())
            }
            OciDistributionError::ServerError { code: 404, .. } => ImageError::NotFound(image),
            OciDistributionError::ServerError { code: 401 | 403, .. } => {
                ImageError::Denied { image, why: not_authorized.into() }
            }
            OciDistributionError::ServerError { code, url, .. } => {
                self.unexpected(format!("unexpected status from GET request to {url}: {code}"))
            }
            // A host that answers but cannot prove who it is was reached.
            OciDistributionError::RequestError(e) if untrusted(&e) => ImageError::Untrusted {
                image,
                why: self.failed_request(&Self::no_tls(&base::chain(&e))),
                host: self.reference.resolve_registry().into(),
            },
            OciDistributionError::RequestError(e) => {
                if e.is_timeout() {
                    return self.no_answer(if e.is_connect() { "" } else { "to the request" });
                }
                ImageError::Unreachable { image, why: self.failed_request(&self.no_connection(&base::chain(&e))) }
            }
            other => self.unexpected(base::chain(&other)),
        }
    }

    fn no_answer(&self, note: &str) -> ImageError {
        let note = if note.is_empty() { String::new() } else { format!(" ({note})") };
        let why = format!("dial tcp {}: i/o timeout{note}", self.reference.resolve_registry());
        ImageError::Unreachable { image: self.image.clone(), why: self.failed_request(&why) }
    }

    /// Why there is no connection.
    fn no_connection(&self, text: &str) -> String {
        let host = self.reference.resolve_registry();
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let known = [
            ("Connection refused", "connect: connection refused"),
            ("No route to host", "connect: no route to host"),
            ("Network is unreachable", "connect: network is unreachable"),
        ];
        if text.contains("dns error") || text.contains("failed to lookup address") {
            return format!("dial tcp: lookup {name}: no such host");
        }
        let found = known.iter().find(|(ours, _)| text.contains(ours));
        found.map_or_else(|| text.to_owned(), |(_, theirs)| format!("dial tcp {host}: {theirs}"))
    }

    /// Why there is no trust.
    fn no_tls(text: &str) -> String {
        // What a TLS client makes of plain text.
        if text.contains("InvalidContentType") {
            return "http: server gave HTTP response to HTTPS client".into();
        }
        text.to_owned()
    }

    fn failed_request(&self, cause: &str) -> String {
        let host = self.reference.resolve_registry();
        let (repository, scheme) = (self.reference.repository(), self.scheme);
        let what = self.reference.digest().or(self.reference.tag()).unwrap_or("latest");
        format!("Head \"{scheme}://{host}/v2/{repository}/manifests/{what}\": {cause}")
    }
}

/// Whether TLS failed: I/O errors hide what they wrap from the chain of sources, so each is opened.
fn untrusted(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&e| {
        let wrapped = e.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        wrapped.map(|w| w as &(dyn Error + 'static)).or_else(|| e.source())
    })
    .any(<dyn Error>::is::<rustls::Error>)
}

/// Makes the layer present and returns its size.
async fn fetch_layer(
    inner: Arc<Inner>,
    source: Arc<Source>,
    Part { id: diff_id, blob: layer, file: as_file }: Part,
    progress: Arc<dyn Progress>,
) -> Result<u64, ImageError> {
    hex(&diff_id, &source.image)?;
    let blob_name = hex(&layer.digest, &source.image)?.to_owned();
    let (locked, id) = (inner.clone(), diff_id.clone());
    let (lock, present): (FileLock, _) = blocking(move || {
        let lock = locked.layers.lock(&id)?;
        let present = locked.layers.present(&id)?;
        Ok((lock, present))
    })
    .await?;
    if let Some(record) = present {
        progress.step(Step::Present { layer: &layer.digest });
        return Ok(record.size);
    }
    let path = inner.layers.partial().join(blob_name);
    download(&source, &layer, &path, &progress).await?;
    blocking(move || {
        // Held to the end even if nobody waits for this pull any more.
        let _lock = lock;
        let content = File::open(&path).map_err(file("open", &path))?;
        let expected = Expected { diff_id: Some(&diff_id), blob: Some(&layer.digest) };
        let unpacked = match &as_file {
            Some(name) => inner.layers.take_file(content, name, &diff_id, &layer.digest),
            None => inner.layers.unpack(content, expected, &*progress),
        };
        // Good or bad, it is of no more use: a bad one must not be resumed.
        std::fs::remove_file(&path).map_err(file("remove", &path))?;
        Ok(unpacked?.size)
    })
    .await
}

/// Downloads a blob to `path`, going on where an earlier download stopped. Its digest is checked when it is unpacked.
async fn download(
    source: &Source,
    layer: &Descriptor,
    path: &Path,
    progress: &Arc<dyn Progress>,
) -> Result<(), ImageError> {
    let mut output =
        OpenOptions::new().create(true).append(true).open(path).map_err(file("create download file", path))?;
    let mut last = None;
    for attempt in 0..DOWNLOAD_TRIES {
        if attempt > 0 {
            tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
        }
        match download_rest(source, layer, path, &mut output, progress).await {
            Ok(()) => return Ok(()),
            Err(e @ (ImageError::Registry { .. } | ImageError::Unreachable { .. })) => last = Some(e),
            Err(e @ ImageError::Full { .. }) => {
                // What is here would keep the disk full, for nothing.
                output.set_len(0).map_err(file("empty download file", path))?;
                return Err(e);
            }
            Err(e) => return Err(e),
        }
    }
    Err(last.unwrap_or_else(|| source.unexpected("download failed".into())))
}

async fn download_rest(
    source: &Source,
    layer: &Descriptor,
    path: &Path,
    output: &mut File,
    progress: &Arc<dyn Progress>,
) -> Result<(), ImageError> {
    let local = || file("write download file", path);
    let mut done = output.metadata().map_err(local())?.len();
    if layer.size > 0 && done == layer.size {
        return Ok(());
    }
    if layer.size > 0 && done > layer.size {
        output.set_len(0).map_err(local())?;
        done = 0;
    }
    let mut stream = if done > 0 {
        let asked = source.client.pull_blob_stream_partial(&source.reference, layer.digest.as_str(), done, None).await;
        match asked.map_err(|e| source.explain(e))? {
            BlobResponse::Partial(stream) => stream,
            BlobResponse::Full(stream) => {
                output.set_len(0).map_err(local())?;
                done = 0;
                stream
            }
        }
    } else {
        let asked = source.client.pull_blob_stream(&source.reference, layer.digest.as_str()).await;
        asked.map_err(|e| source.explain(e))?
    };
    while let Some(part) = stream.stream.next().await {
        let part = part.map_err(|e| source.broken(&e))?;
        done += part.len() as u64;
        if layer.size > 0 && done > layer.size {
            // Not what was promised, and asking again will not help: keep nothing of it.
            output.set_len(0).map_err(local())?;
            let why = format!("layer {} is larger than its manifest says", layer.digest);
            return Err(ImageError::Unusable { image: source.image.clone(), why });
        }
        output.write_all(&part).map_err(local())?;
        progress.step(Step::Downloading { layer: &layer.digest, done, total: layer.size });
    }
    if done < layer.size {
        return Err(source.unexpected(format!("layer {} ended after {done} of {} bytes", layer.digest, layer.size)));
    }
    Ok(())
}
