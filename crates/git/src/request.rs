//! What a `gitRepo` volume asks for, and whether that may be done at all. Pure: a refusal comes before any I/O.
use std::{
    fmt,
    path::{Component, Path, PathBuf},
};

use gix::validate::path::component;
use serde::{Deserialize, Serialize};

use crate::process::Limits;

/// Bytes of a field; a tree has no longer paths, and no server longer names.
const LONGEST: usize = 4096;

/// The fields of a `gitRepo` volume, as the pod has them, and what the pod may take.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    pub repository: String,
    /// Empty: what the repository's `HEAD` is.
    pub revision: String,
    /// Empty: the repository's name; `.`: the volume itself.
    pub directory: String,
    /// How much of the node's disk the pod may take, in bytes: more is not cloned. `None`: it does not say.
    pub most_bytes: Option<u64>,
}

/// As it may be told: a repository's URL can hold a password.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let repository = shown(&self.repository);
        write!(f, "Request({repository:?}, revision {:?}, directory {:?})", self.revision, self.directory)
    }
}

/// A field that cannot be, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("gitRepo.{field}: {why}")]
pub struct Refused {
    /// `repository`, `revision` or `directory`
    pub field: &'static str,
    pub why: String,
}

/// A name and a password. Has no way to be printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Credentials {
    pub user: String,
    pub password: String,
}

/// Where a repository is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Location {
    Server {
        /// `https`, `http` or `git`, without credentials.
        url: String,
        credentials: Option<Credentials>,
    },
    /// A directory that the one who starts the process has opened.
    Files {
        /// As the pod names it: nothing is opened by it.
        url: String,
    },
}

/// A request that may be tried.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub(crate) location: Location,
    pub(crate) revision: String,
    /// Names below the volume; none: the volume itself.
    pub(crate) directory: Vec<String>,
}

/// A local repository: where it is below a directory whose repositories pods may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalRepository {
    pub allowed: PathBuf,
    /// Relative to it, of plain names; may be empty.
    pub below: PathBuf,
}

impl Request {
    /// How large the repository may be.
    pub fn limits(&self) -> Limits {
        let all = Limits::default();
        Limits { bytes: all.bytes.min(self.most_bytes.unwrap_or(all.bytes)), ..all }
    }

    /// Looks at all fields. `allowed` are the directories of this machine whose repositories pods may have.
    ///
    /// # Errors
    /// The first field that cannot be.
    pub fn plan(&self, allowed: &[PathBuf]) -> Result<(Plan, Option<LocalRepository>), Refused> {
        for (field, value) in
            [("repository", &self.repository), ("revision", &self.revision), ("directory", &self.directory)]
        {
            let refused = |why: String| Err(Refused { field, why });
            if value.starts_with('-') {
                // The words of Kubernetes.
                return refused(format!("{value:?} is an invalid value for {field}"));
            }
            if value.len() > LONGEST {
                return refused(format!("is longer than {LONGEST} bytes"));
            }
            if value.chars().any(char::is_control) {
                return refused("has a control character".into());
            }
        }
        let (location, local) = location(&self.repository, allowed)?;
        let plan = Plan { location, revision: self.revision.clone(), directory: self.names()? };
        Ok((plan, local))
    }

    /// The directories between the volume and the repository.
    fn names(&self) -> Result<Vec<String>, Refused> {
        if self.directory.is_empty() {
            let name = own_name(&self.repository);
            let why = "does not say what the directory is to be called: set gitRepo.directory";
            return match is_name(&name) {
                true => Ok(vec![name]),
                false => Err(Refused { field: "repository", why: why.into() }),
            };
        }
        let refused = |why: String| Refused { field: "directory", why };
        if self.directory.starts_with('/') {
            return Err(refused("must be a relative path".into()));
        }
        let mut names = Vec::new();
        for name in self.directory.split('/').filter(|name| !name.is_empty() && *name != ".") {
            if name == ".." {
                return Err(refused("must not contain '..'".into()));
            }
            if !is_name(name) {
                return Err(refused(format!("{name:?} is not a name that a repository's directory may have")));
            }
            names.push(name.to_owned());
        }
        Ok(names)
    }
}

/// Whether something in a working tree may be called that: no way out of it, and none into a `.git`, on any filesystem.
pub(crate) fn is_tree_name(name: &[u8], link: bool) -> bool {
    let options = component::Options { protect_windows: false, protect_hfs: true, protect_ntfs: true };
    let mode = link.then_some(component::Mode::Symlink);
    gix::validate::path::component(name.into(), mode, options).is_ok() && !name.contains(&b'\\') && !name.contains(&0)
}

fn is_name(name: &str) -> bool {
    is_tree_name(name.as_bytes(), false) && !name.starts_with('-')
}

/// What `git clone` calls the directory of a repository.
fn own_name(repository: &str) -> String {
    let path = repository.trim_end_matches('/');
    let path = path.strip_suffix("/.git").unwrap_or(path).trim_end_matches('/');
    let name = path.rsplit('/').next().unwrap_or_default();
    name.strip_suffix(".git").unwrap_or(name).to_owned()
}

/// A repository's URL without what must not be told.
pub fn shown(repository: &str) -> String {
    let Some((scheme, rest)) = repository.split_once("://") else {
        return repository.to_owned();
    };
    let end = rest.find('/').unwrap_or(rest.len());
    // Before the last `@`: a password may hold one.
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => repository.to_owned(),
    }
}

fn refused(why: impl Into<String>) -> Refused {
    Refused { field: "repository", why: why.into() }
}

fn location(repository: &str, allowed: &[PathBuf]) -> Result<(Location, Option<LocalRepository>), Refused> {
    if repository.is_empty() {
        return Err(refused("is empty"));
    }
    if repository.contains(char::is_whitespace) {
        return Err(refused("has white space; write it as %20"));
    }
    if repository.starts_with('/') {
        return local(repository, repository, allowed);
    }
    if let Some(path) = repository.strip_prefix("file://") {
        return local(repository, path, allowed);
    }
    match repository.split_once("://").map(|(scheme, _)| scheme) {
        Some("https" | "http" | "git") if !repository.contains("::") || is_address(repository) => {
            Ok((server(repository)?, None))
        }
        Some(scheme) if scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+' || c == '-') => {
            Err(refused(format!("{scheme}:// is not allowed; use https://, http:// or git://")))
        }
        _ => Err(refused(
            "is neither a URL nor an absolute path; relative paths, user@host:path (ssh) and transport helpers are not \
             allowed; use https://, http:// or git://",
        )),
    }
}

/// Whether `::` can only be part of an address in brackets.
fn is_address(repository: &str) -> bool {
    match (repository.find("::"), repository.find('['), repository.find("://")) {
        (Some(at), Some(bracket), Some(scheme)) => scheme < bracket && bracket < at,
        _ => false,
    }
}

fn server(repository: &str) -> Result<Location, Refused> {
    let mut url = gix::url::parse(repository).map_err(|_| refused("is not a URL"))?;
    if !matches!(url.scheme, gix::url::Scheme::Https | gix::url::Scheme::Http | gix::url::Scheme::Git) {
        return Err(refused("is not a URL of https, http or git"));
    }
    let host = url.host().unwrap_or_default();
    if host.is_empty() || url.host_argument_safe().is_none() {
        return Err(refused("names no host"));
    }
    if url.path_is_root() || url.path.is_empty() || url.path.iter().any(u8::is_ascii_control) {
        return Err(refused("names no repository of its host"));
    }
    let user = url.set_user(None);
    let password = url.set_password(None);
    let credentials = match (user, password) {
        (None, None) => None,
        (user, password) => {
            Some(Credentials { user: user.unwrap_or_default(), password: password.unwrap_or_default() })
        }
    };
    if url.scheme == gix::url::Scheme::Git && credentials.is_some() {
        return Err(refused("git:// knows no users; remove what is before the @"));
    }
    if url.scheme == gix::url::Scheme::Http && credentials.is_some() {
        return Err(refused("http:// would send the password for everybody to read; use https://"));
    }
    Ok(Location::Server { url: url.to_bstring().to_string(), credentials })
}

fn local(repository: &str, path: &str, allowed: &[PathBuf]) -> Result<(Location, Option<LocalRepository>), Refused> {
    let path = Path::new(path);
    if !path.is_absolute() {
        return Err(refused("a file:// URL is file:// and an absolute path"));
    }
    if path.components().any(|c| !matches!(c, Component::RootDir | Component::Normal(_))) {
        return Err(refused("a path must not contain '..'"));
    }
    let found = allowed.iter().find_map(|top| Some((top, path.strip_prefix(top).ok()?)));
    let Some((top, below)) = found else {
        return Err(refused(
            "repositories of the node's own files are not allowed, or not there; who runs the node allows a directory with \
             `holdfast up --allow-git-dir DIR`",
        ));
    };
    let location = Location::Files { url: repository.to_owned() };
    Ok((location, Some(LocalRepository { allowed: top.clone(), below: below.to_path_buf() })))
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
