//! The documents of an image: index, manifest, configuration; both the OCI's and Docker's spelling.
use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};

use crate::{error::ImageError, model::ImageConfig};

/// Documents are read into memory; real ones are a few kilobytes.
pub const DOCUMENT_MAX_BYTES: u64 = 8 << 20;

/// A reference to content.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub variant: Option<String>,
}

/// Either kind of document that a name may lead to.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Document {
    Index { manifests: Vec<Descriptor> },
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

impl Document {
    pub fn parse(bytes: &[u8], what: &str) -> Result<Self, ImageError> {
        serde_json::from_slice(bytes)
            .map_err(|source| ImageError::Json { what: format!("the manifest of {what}"), source })
    }
}

impl Descriptor {
    /// Whether it is what programs are run from; the configuration of an artifact is of any other type.
    pub fn is_image_configuration(&self) -> bool {
        const KNOWN: [&str; 3] =
            ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json", ""];
        KNOWN.contains(&self.media_type.as_str())
    }

    /// The file that a blob of an artifact is: by its title, or else by its digest. Never leads out of a directory.
    pub fn file_name(&self, what: &str) -> Result<PathBuf, ImageError> {
        let title = self.annotations.as_ref().and_then(|a| a.get("org.opencontainers.image.title"));
        let title = title.filter(|t| !t.is_empty());
        let name = title.map_or_else(|| hex(&self.digest, what).map(str::to_owned), |t| Ok(t.clone()))?;
        let path = Path::new(&name);
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        if plain && !name.contains('\0') {
            return Ok(path.to_path_buf());
        }
        let why = format!("its blob {} has the title {name:?}, which is no name of a file", self.digest);
        Err(ImageError::Unusable { image: what.into(), why })
    }
}

/// The entry for this machine, as the Go runtime names it.
pub fn for_this_platform(entries: &[Descriptor]) -> Option<&Descriptor> {
    let fits = |p: &Platform| p.os == "linux" && p.architecture == architecture();
    // On ARM the first entry may be for an older variant; all of one architecture run here, newest first is best.
    let known = entries.iter().filter(|d| d.platform.as_ref().is_some_and(fits));
    known
        .max_by_key(|d| {
            let variant = d.platform.as_ref().and_then(|p| p.variant.as_deref());
            variant.map(|v| v.trim_start_matches('v').parse::<u32>().unwrap_or(0))
        })
        .or_else(|| entries.iter().find(|d| d.platform.is_none()))
}

/// `linux/amd64`
pub fn platform_name() -> String {
    format!("linux/{}", architecture())
}

/// Go's name of this machine's architecture.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// The configuration document.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, deserialize_with = "null_is_default")]
    config: RunConfig,
    pub rootfs: RootFs,
}

#[derive(Debug, Clone, Deserialize)]
pub struct RootFs {
    #[serde(default, deserialize_with = "null_is_default")]
    pub diff_ids: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    #[serde(deserialize_with = "null_is_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    env: Vec<String>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    exposed_ports: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "null_is_default")]
    volumes: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "null_is_default")]
    labels: BTreeMap<String, String>,
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

impl Config {
    pub fn parse(bytes: &[u8], what: &str) -> Result<Self, ImageError> {
        serde_json::from_slice(bytes)
            .map_err(|source| ImageError::Json { what: format!("the configuration of {what}"), source })
    }

    /// Refuses an image for another machine: its programs would fail with a riddle.
    pub fn check_platform(&self, image: &str) -> Result<(), ImageError> {
        let os_fits = self.os.is_empty() || self.os == "linux";
        if os_fits && (self.architecture.is_empty() || self.architecture == architecture()) {
            return Ok(());
        }
        let why = format!("it is for {}/{}, this machine is {}", self.os, self.architecture, platform_name());
        Err(ImageError::Unusable { image: image.into(), why })
    }

    pub fn run_config(&self) -> ImageConfig {
        let c = self.config.clone();
        let some = |text: Option<String>| text.filter(|t| !t.is_empty());
        ImageConfig {
            entrypoint: c.entrypoint,
            cmd: c.cmd,
            env: c.env,
            working_dir: some(c.working_dir),
            user: some(c.user),
            stop_signal: some(c.stop_signal),
            exposed_ports: c.exposed_ports.into_keys().collect(),
            volumes: c.volumes.into_keys().collect(),
            labels: c.labels,
        }
    }
}

/// `sha256:...` of bytes in memory.
pub fn digest(bytes: &[u8]) -> String {
    named(Sha256::digest(bytes).as_slice())
}

/// `sha256:...` of a finished hash.
pub fn named(hash: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(71);
    text.push_str("sha256:");
    for byte in hash {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The hexadecimal part of a `sha256:` digest; anything else is refused, also because it becomes part of a path.
pub fn hex<'d>(digest: &'d str, what: &str) -> Result<&'d str, ImageError> {
    let fine = |h: &&str| h.len() == 64 && h.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    digest.strip_prefix("sha256:").filter(fine).ok_or_else(|| ImageError::Unusable {
        image: what.into(),
        why: format!("digest {digest:?} is not a SHA-256 digest, the only kind supported"),
    })
}

/// Compares content with what was promised.
pub fn check_digest(what: &str, expected: &str, actual: &str) -> Result<(), ImageError> {
    if expected == actual {
        return Ok(());
    }
    Err(ImageError::Digest { what: what.into(), expected: expected.into(), actual: actual.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_configuration_with_nulls() {
        let text = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":null},
            "config":{"Entrypoint":["a"],"Cmd":null,"Env":["A=b"],"WorkingDir":"","User":"www","ExposedPorts":{"80/tcp":{}},
            "Labels":null,"Volumes":{"/data":{}},"OnBuild":null}}"#;
        let config = Config::parse(text.as_bytes(), "x").expect("valid").run_config();
        assert_eq!(config.entrypoint, ["a"]);
        assert_eq!(config.cmd, Vec::<String>::new());
        assert_eq!(config.working_dir, None);
        assert_eq!(config.user.as_deref(), Some("www"));
        assert_eq!(config.exposed_ports, ["80/tcp"]);
        assert_eq!(config.volumes, ["/data"]);
        Config::parse(br#"{"rootfs":{},"config":null}"#, "x").expect("no configuration at all");
    }

    #[test]
    fn picks_this_platform() {
        let entry = |os: &str, arch: &str, n: u8| Descriptor {
            media_type: String::new(),
            digest: format!("sha256:{n}"),
            size: 0,
            platform: Some(Platform { os: os.into(), architecture: arch.into(), variant: None }),
            annotations: None,
        };
        let here = architecture();
        let all = [entry("windows", here, 1), entry("linux", "s390", 2), entry("linux", here, 3)];
        assert_eq!(for_this_platform(&all).map(|d| d.digest.as_str()), Some("sha256:3"));
        assert!(for_this_platform(&all[..2]).is_none());
    }

    #[test]
    fn titles_are_files_inside() {
        let file = |title: Option<&str>| {
            let annotations = title.map(|t| [("org.opencontainers.image.title".to_owned(), t.to_owned())].into());
            let digest = digest(b"x");
            Descriptor { media_type: String::new(), digest, size: 1, platform: None, annotations }.file_name("i")
        };
        for title in ["a", "models/a b.bin", ".hidden"] {
            assert_eq!(file(Some(title)).expect("good"), Path::new(title));
        }
        for bad in ["../a", "/etc/passwd", "a/../../b", ".", "a\0b"] {
            assert!(file(Some(bad)).is_err(), "{bad:?}");
        }
        let by_digest = file(None).expect("good");
        assert_eq!(by_digest.to_str().map(str::len), Some(64));
        assert_eq!(file(Some("")).expect("good"), by_digest);
    }

    #[test]
    fn only_plain_digests_become_paths() {
        assert!(hex(&digest(b"x"), "x").is_ok());
        for bad in ["sha256:../../etc", "sha256:ABC", "md5:00", "", "sha512:00"] {
            assert!(hex(bad, "x").is_err(), "{bad}");
        }
    }
}
