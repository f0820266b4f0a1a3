//! Registries as the command line and docker's files name them.
use std::{
    env, io,
    path::{Path, PathBuf},
};

use images::{Credentials, RegistryConfig};

use crate::{
    cli::Registries,
    client::Error,
    errors::{Doing, said},
};

/// The options in the words of the image store.
pub fn config(options: &Registries) -> Result<RegistryConfig, Error> {
    let mut config = RegistryConfig::default();
    for text in &options.insecure_registry {
        let Some(host) = host(text) else {
            return said(format!("--insecure-registry {text:?} is no registry; write HOST or HOST:PORT"));
        };
        config.plain_http.push(host.to_owned());
    }
    for text in &options.registry_mirror {
        let parts = text.split_once('=').and_then(|(of, mirror)| Some((host(of)?, host(mirror).map(|_| mirror)?)));
        let Some((of, mirror)) = parts else {
            return said(format!(
                "--registry-mirror {text:?} names no mirror; write HOST=MIRROR, for example docker.io=mirror:5000"
            ));
        };
        let of = if of == "index.docker.io" { "docker.io" } else { of };
        config.mirrors.entry(of.to_owned()).or_default().push(mirror.to_owned());
    }
    Ok(config)
}

/// The host with its port, if the text is nothing else but perhaps a URL of it.
fn host(text: &str) -> Option<&str> {
    let bare = text.trim_start_matches("https://").trim_start_matches("http://");
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
    (!bare.is_empty() && bare.chars().all(plain)).then_some(bare)
}

/// The users in `file`, or in the file of docker's own if that exists.
pub fn logins(file: Option<&Path>) -> Result<Vec<Credentials>, Error> {
    let Some(path) = file.map(Path::to_path_buf).or_else(docker_config) else { return Ok(vec![]) };
    let bytes = match std::fs::read(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && file.is_none() => return Ok(vec![]),
        read => read.doing(|| format!("read the registry users in {}", path.display()))?,
    };
    match Credentials::of_docker_config(&bytes) {
        Some(users) => Ok(users),
        None => said(format!("{} is no docker configuration; write it with `docker login`", path.display())),
    }
}

fn docker_config() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let dir = set("DOCKER_CONFIG").or_else(|| Some(set("HOME")?.join(".docker")))?;
    Some(dir.join("config.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(insecure: &[&str], mirrors: &[&str]) -> Registries {
        let own = |list: &[&str]| list.iter().map(|t| (*t).to_owned()).collect();
        Registries { insecure_registry: own(insecure), registry_mirror: own(mirrors) }
    }

    #[test]
    fn hosts_and_mirrors() {
        let mirrors = ["docker.io=http://m:5000/", "index.docker.io=n", "https://quay.io=[::1]:5000"];
        let found = config(&options(&["http://r.test:80/", "q.test"], &mirrors)).expect("valid");
        assert_eq!(found.plain_http, ["r.test:80", "q.test"]);
        assert_eq!(found.mirrors["docker.io"], ["http://m:5000/", "n"]);
        assert_eq!(found.mirrors["quay.io"], ["[::1]:5000"]);
    }

    #[test]
    fn rubbish_is_refused_with_an_example() {
        for (insecure, mirror) in [
            ("", "a=b"),
            ("r.test/path", "a=b"),
            ("r.test", "docker.io"),
            ("r.test", "a="),
            ("r.test", "=b"),
            ("r.test", "a=b/c"),
        ] {
            let text = config(&options(&[insecure], &[mirror])).expect_err("invalid").to_string();
            assert!(text.contains("write HOST"), "{insecure} {mirror}: {text}");
        }
    }

    #[test]
    fn a_named_file_must_be_there_and_valid() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("auth.json");
        assert!(base::chain(logins(Some(&path)).expect_err("absent").as_ref()).contains("auth.json"));
        std::fs::write(&path, "rubbish").expect("write");
        assert!(logins(Some(&path)).expect_err("rubbish").to_string().contains("docker login"));
        std::fs::write(&path, r#"{"auths":{"r.test":{"username":"u","password":"p"}}}"#).expect("write");
        assert_eq!(logins(Some(&path)).expect("valid").len(), 1);
    }
}
