//! Image names, with the rules and the words of the distribution project.
use std::fmt;

/// Why a name is refused. The texts are upstream's: users search for them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("invalid reference format")]
    Format,
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    #[error("repository name must not be more than 255 characters")]
    TooLong,
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId(String),
    #[error("invalid checksum digest length")]
    DigestLength,
    #[error("unsupported digest algorithm")]
    DigestAlgorithm,
}

/// A complete image name: host, repository, and a tag or a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// Registry host with optional port: `docker.io`, `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }
    /// Repository within the registry: `library/nginx`.
    pub fn path(&self) -> &str {
        &self.path
    }
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
    /// `sha256:...`
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }
    /// `docker.io/library/nginx`, without tag and digest.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }
    /// The same repository at `digest`: what `imageID` of a container's status shows.
    pub fn at_digest(&self, digest: &str) -> String {
        format!("{}/{}@{digest}", self.domain, self.path)
    }
    /// The name to keep an image under: without the digest if there is a tag.
    pub(crate) fn tagged(&self) -> Option<String> {
        self.tag.as_ref().map(|t| format!("{}/{}:{t}", self.domain, self.path))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Completes a name as users write it: `nginx` is `docker.io/library/nginx:latest`.
pub fn normalize(name: &str) -> Result<Reference, ReferenceError> {
    if name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(ReferenceError::LooksLikeId(name.into()));
    }
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(checked_digest(digest)?)),
        None => (name, None),
    };
    let (domain, rest) = split_domain(rest);
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    let path = if domain == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path.into() };
    if path.chars().any(char::is_uppercase) {
        return Err(ReferenceError::Uppercase(path));
    }
    if !is_domain(&domain) || !path.split('/').all(is_component) || !tag.is_none_or(is_tag) {
        return Err(ReferenceError::Format);
    }
    if domain.len() + 1 + path.len() > 255 {
        return Err(ReferenceError::TooLong);
    }
    let tag = tag.or(if digest.is_none() { Some("latest") } else { None }).map(Into::into);
    Ok(Reference { domain, path, tag, digest })
}

/// The first component is a host only if it cannot be a Docker Hub user: it has a dot, a port, a capital, or is localhost.
fn split_domain(name: &str) -> (String, &str) {
    let (domain, rest) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.chars().any(char::is_uppercase) =>
        {
            (first, rest)
        }
        _ => ("docker.io", name),
    };
    (if domain == "index.docker.io" { "docker.io" } else { domain }.into(), rest)
}

fn checked_digest(digest: &str) -> Result<String, ReferenceError> {
    let (algorithm, hex) = digest.split_once(':').ok_or(ReferenceError::Format)?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_+.".contains(&b);
    if algorithm.is_empty() || !algorithm.bytes().all(plain) || hex.is_empty() {
        return Err(ReferenceError::Format);
    }
    if !hex.bytes().all(|b| b.is_ascii_hexdigit()) || hex.len() < 32 {
        return Err(ReferenceError::Format);
    }
    match (algorithm, hex.len()) {
        ("sha256", 64) => Ok(digest.to_ascii_lowercase()),
        ("sha256", _) => Err(ReferenceError::DigestLength),
        _ => Err(ReferenceError::DigestAlgorithm),
    }
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !domain.ends_with(']') => (host, Some(port)),
        _ => (domain, None),
    };
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let v6 = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host = v6.map_or_else(|| host.split('.').all(label), |h| h.parse::<std::net::Ipv6Addr>().is_ok());
    host && port.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
}

/// Lower-case runs joined by `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !text.starts_with(word) || !text.ends_with(word) {
        return false;
    }
    text.split(word).all(|join| matches!(join, "" | "." | "_" | "__") || join.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.starts_with(word) && tag.len() <= 128 && tag.chars().all(|c| word(c) || c == '.' || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn completes_names() {
        let at = format!("nginx:1@sha256:{HEX}");
        let digest = format!("nginx@sha256:{HEX}");
        let cases = [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("luksa/fortune", "docker.io/luksa/fortune:latest".into()),
            ("index.docker.io/nginx:alpine", "docker.io/library/nginx:alpine".into()),
            ("localhost/x", "localhost/x:latest".into()),
            ("localhost:5000/a/b:v1.2", "localhost:5000/a/b:v1.2".into()),
            ("quay.io/a__b/c--d/e.f_g", "quay.io/a__b/c--d/e.f_g:latest".into()),
            ("Upper/x", "Upper/x:latest".into()),
            ("[::1]:5000/x", "[::1]:5000/x:latest".into()),
            (&at, format!("docker.io/library/nginx:1@sha256:{HEX}")),
            (&digest, format!("docker.io/library/nginx@sha256:{HEX}")),
        ];
        for (name, expect) in cases {
            assert_eq!(normalize(name).map(|r| r.to_string()), Ok(expect.clone()), "{name}");
            assert_eq!(normalize(&expect).map(|r| r.to_string()), Ok(expect), "stable");
        }
    }

    #[test]
    fn refuses_with_upstreams_words() {
        let format = "invalid reference format";
        let long = "a/".repeat(130) + "b";
        let cases = [
            ("", format),
            ("nginx:", format),
            ("nginx:-1", format),
            ("a..b", format),
            ("a___b", format),
            ("a//b", format),
            ("/a", format),
            ("a/", format),
            ("nginx latest", format),
            ("../../etc", format),
            ("nginx@", format),
            ("nginx@sha256:12", format),
            ("foo.com:x/y", format),
            ("Nginx", "invalid reference format: repository name (library/Nginx) must be lowercase"),
            (HEX, &format!("invalid repository name ({HEX}), cannot specify 64-byte hexadecimal strings")),
            (&long, "repository name must not be more than 255 characters"),
            (&format!("nginx@sha256:{}", &HEX[..40]), "invalid checksum digest length"),
            (&format!("nginx@md5:{}", &HEX[..32]), "unsupported digest algorithm"),
        ];
        for (name, expect) in cases {
            assert_eq!(normalize(name).map_err(|e| e.to_string()), Err(expect.to_owned()), "{name}");
        }
    }
}
