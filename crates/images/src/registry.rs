//! Which registries there are, who may use them, and which do not answer.
use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use parking_lot::Mutex;
use serde_json::Value;

use crate::error::ImageError;

/// A host that did not answer is asked again after this; upstream's back-off of one pod begins with as much.
const SILENCE: Duration = Duration::from_secs(10);
/// A failure that came faster costs nothing to find out again.
const SLOW: Duration = Duration::from_secs(1);

/// Which registries to ask, and how.
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    /// Per registry host (`docker.io`) the hosts to ask before it, as `HOST[:PORT]`, `https://...` or `http://...`.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Hosts that speak plain HTTP, as `HOST[:PORT]`. Those on the loopback interface need not be listed.
    pub plain_http: Vec<String>,
}

/// A user of a registry.
#[derive(Clone)]
pub struct Credentials {
    /// Host with optional port and path prefix, `*` within a label of the host; `https://index.docker.io/v1/` as in Docker's files is understood.
    pub registry: String,
    pub user: String,
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("registry", &self.registry)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// The users in a file such as `~/.docker/config.json`, or in its predecessor `.dockercfg`. An entry that cannot be
    /// read is skipped: another may still do. `None` if the whole is not JSON.
    pub fn of_docker_config(bytes: &[u8]) -> Option<Vec<Self>> {
        let document: Value = serde_json::from_slice(bytes).ok()?;
        let entries = document.get("auths").unwrap_or(&document).as_object()?;
        let one = |(registry, entry): (&String, &Value)| {
            let (user, password) = login(entry)?;
            Some(Self { registry: registry.clone(), user, password })
        };
        Some(entries.iter().filter_map(one).collect())
    }

    /// Length of the matching prefix, if these are for `host` and `path`.
    pub(crate) fn matches(&self, host: &str, path: &str) -> Option<usize> {
        let bare = self.registry.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
        let (mine, prefix) = bare.split_once('/').unwrap_or((bare, ""));
        let hub = |h: &str| matches!(h, "docker.io" | "index.docker.io" | "registry-1.docker.io");
        if !(host_matches(mine, host) || hub(mine) && hub(host)) {
            return None;
        }
        let prefix = if matches!(prefix, "v1" | "v2") { "" } else { prefix };
        let fits = prefix.is_empty() || path == prefix || path.strip_prefix(prefix).is_some_and(|r| r.starts_with('/'));
        fits.then_some(bare.len())
    }
}

fn login(entry: &Value) -> Option<(String, String)> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).filter(|s| !s.is_empty()).map(str::to_owned);
    if let Some(packed) = text("auth") {
        let plain = String::from_utf8(STANDARD.decode(packed.trim()).ok()?).ok()?;
        let (user, password) = plain.split_once(':')?;
        return Some((user.to_owned(), password.trim_end_matches('\0').to_owned()));
    }
    Some((text("username")?, text("password").unwrap_or_default()))
}

/// `*.example.com` stands for one label in place of the star, as in image pull secrets elsewhere.
fn host_matches(pattern: &str, host: &str) -> bool {
    let (patterns, labels): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), host.split('.').collect());
    let one = |(pattern, label): (&&str, &&str)| match pattern.split_once('*') {
        None => pattern == label,
        Some((before, after)) => {
            label.len() >= before.len() + after.len() && label.starts_with(before) && label.ends_with(after)
        }
    };
    patterns.len() == labels.len() && patterns.iter().zip(&labels).all(one)
}

/// What pulls share.
pub(crate) struct Puller {
    config: RegistryConfig,
    /// One pull of a name at a time: the second finds the layers of the first.
    running: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// Hosts that let somebody wait in vain, and since when.
    silent: Mutex<HashMap<String, Instant>>,
}

impl Puller {
    pub fn new(config: RegistryConfig) -> Self {
        Self { config, running: Mutex::default(), silent: Mutex::default() }
    }

    pub fn turn(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut running = self.running.lock();
        running.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = running.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(tokio::sync::Mutex::new(()));
        running.insert(name.into(), Arc::downgrade(&turn));
        turn
    }

    /// Whether this host just let somebody wait in vain: the next need not wait as long for the same answer.
    pub fn is_silent(&self, host: &str) -> bool {
        let mut silent = self.silent.lock();
        silent.retain(|_, since| since.elapsed() < SILENCE);
        silent.contains_key(host)
    }

    /// Notes whether a host, asked at `began`, was silent.
    pub fn heard(&self, host: &str, began: Instant, error: ImageError) -> ImageError {
        if matches!(error, ImageError::Unreachable { .. }) && began.elapsed() >= SLOW {
            self.silent.lock().insert(host.into(), Instant::now());
        }
        error
    }

    /// Hosts to ask, in order, and whether by plain HTTP.
    pub fn endpoints(&self, domain: &str) -> Vec<(String, bool)> {
        let mirrors = self.config.mirrors.get(domain).into_iter().flatten().map(|mirror| {
            let host = mirror.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
            (host.to_owned(), mirror.starts_with("http://") || self.plain(host))
        });
        mirrors.chain([(domain.to_owned(), self.plain(domain))]).collect()
    }

    fn plain(&self, host: &str) -> bool {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let local = name == "localhost" || name == "[::1]" || name.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback());
        local || self.config.plain_http.iter().any(|h| h == host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_docker_formats_and_skips_rubbish() {
        let read = |text: &str| {
            let all = Credentials::of_docker_config(text.as_bytes())?;
            Some(all.iter().map(|c| format!("{} {} {}", c.registry, c.user, c.password)).collect::<Vec<_>>().join(", "))
        };
        let list = [
            (r#"{"auths":{"r.test":{"auth":"dTpwOnc="}}}"#, Some("r.test u p:w")),
            (r#"{"auths":{"q.test":{"username":"a","password":"b"}},"credsStore":"x"}"#, Some("q.test a b")),
            (r#"{"https://index.docker.io/v1/":{"auth":"eDp5"}}"#, Some("https://index.docker.io/v1/ x y")),
            (r#"{"auths":{"bad.test":{"auth":"?"},"empty.test":{},"r.test":{"auth":"dTpw"}}}"#, Some("r.test u p")),
            ("{}", Some("")),
            ("not json", None),
            ("[]", None),
        ];
        for (text, want) in list {
            assert_eq!(read(text).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn only_hosts_that_let_wait_are_remembered() {
        let puller = Puller::new(RegistryConfig::default());
        let unreachable = || ImageError::Unreachable { image: "a".into(), why: "i/o timeout".into() };
        let long_ago = Instant::now().checked_sub(SLOW).expect("the machine runs that long");
        puller.heard("quick.test", Instant::now(), unreachable());
        puller.heard("absent.test", long_ago, ImageError::NotFound("a".into()));
        puller.heard("slow.test", long_ago, unreachable());
        for (host, want) in [("quick.test", false), ("absent.test", false), ("slow.test", true), ("slow.test:1", false)]
        {
            assert_eq!(puller.is_silent(host), want, "{host}");
        }
    }

    #[test]
    fn credentials_fit_hosts_and_prefixes() {
        let fits = |registry: &str, host: &str, path: &str| {
            let c = Credentials { registry: registry.into(), user: String::new(), password: String::new() };
            c.matches(host, path).is_some()
        };
        assert!(fits("https://index.docker.io/v1/", "docker.io", "library/nginx"));
        assert!(fits("quay.io", "quay.io", "a/b"));
        assert!(fits("quay.io/a", "quay.io", "a/b"));
        assert!(!fits("quay.io/a", "quay.io", "ab/b"));
        assert!(!fits("quay.io", "quay.io:5000", "a/b"));
        assert!(!fits("docker.io", "quay.io", "a/b"));
        assert!(fits("*.example.com:5000", "my.example.com:5000", "a"));
        assert!(!fits("*.example.com", "a.b.example.com", "a"));
        assert!(!fits("*.example.com", "example.com", "a"));
    }

    #[test]
    fn mirrors_come_first_and_loopback_is_plain() {
        let mirrors = BTreeMap::from([("docker.io".to_owned(), vec!["http://m:5000/".to_owned(), "n".to_owned()])]);
        let puller = Puller::new(RegistryConfig { mirrors, plain_http: vec!["plain:80".into()] });
        let expect = [("m:5000".to_owned(), true), ("n".to_owned(), false), ("docker.io".to_owned(), false)];
        assert_eq!(puller.endpoints("docker.io"), expect);
        for (host, plain) in [("localhost:5000", true), ("127.0.0.1:1", true), ("plain:80", true), ("plain", false)] {
            assert_eq!(puller.plain(host), plain, "{host}");
        }
    }
}
