//! A repository from its server, with its history and nothing checked out.
use std::{io::ErrorKind, path::Path};

use gix::{
    Repository,
    clone::PrepareFetch,
    credentials::{helper::Action, protocol::Outcome},
    protocol::transport::packetline,
};

use crate::{
    process::{Failed, Limits},
    request::Credentials,
    watch::Watch,
};

/// Objects larger than this are refused, in bytes: one is held in memory while it is read.
const OBJECT_BYTES: u64 = 256 << 20;
/// Characters of gix's words in a message.
const LONGEST_WORDS: usize = 200;

/// How any repository is opened: nothing of the user, the system or the environment counts, and nothing else than
/// servers can be reached.
pub(crate) fn options(follow_redirects: bool) -> gix::open::Options {
    gix::open::Options::isolated().config_overrides([
        format!("gitoxide.objects.allocLimit={OBJECT_BYTES}"),
        format!("http.followRedirects={}", if follow_redirects { "initial" } else { "false" }),
        "core.protectHFS=true".into(),
        "core.protectNTFS=true".into(),
        "protocol.allow=never".into(),
        "protocol.https.allow=always".into(),
        "protocol.http.allow=always".into(),
        "protocol.git.allow=always".into(),
    ])
}

pub(crate) fn from_server(
    url: &str,
    credentials: Option<&Credentials>,
    at: &Path,
    limits: &Limits,
    watch: &Watch,
) -> Result<Repository, Failed> {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return Err(Failed::repository("TLS was set up twice"));
    }
    let credentials = credentials.cloned();
    // Who is sent elsewhere does not take a password along.
    let options = options(credentials.is_none());
    let kind = gix::create::Kind::WithWorktree;
    let mut clone = PrepareFetch::new(url, at, kind, gix::create::Options::default(), options)
        .map_err(|e| failed(&e, limits))?
        .configure_connection(move |connection| {
            let credentials = credentials.clone();
            connection.set_credentials(move |action| identity(action, credentials.as_ref()));
            Ok(())
        });
    let (repo, _) = clone.fetch_only(watch.child(), watch.interrupt).map_err(|e| failed(&e, limits))?;
    // Samples of scripts: nobody asked for them.
    let hooks = repo.git_dir().join("hooks");
    std::fs::remove_dir_all(&hooks).map_err(|e| Failed::repository(format!("its hooks cannot be removed: {e}")))?;
    Ok(repo)
}

fn identity(action: Action, credentials: Option<&Credentials>) -> gix::Result<Option<Outcome>> {
    let (Action::Get(context), Some(credentials)) = (action, credentials) else { return Ok(None) };
    let identity = gix::sec::identity::Account {
        username: credentials.user.clone(),
        password: credentials.password.clone(),
        oauth_refresh_token: None,
    };
    Ok(Some(Outcome { identity, next: context.into() }))
}

/// What gix says, for people: what is wrong and the kernel's words, but nothing that the server said, which may be none of
/// the pod's author's business.
pub(crate) fn failed(error: &gix::Error, limits: &Limits) -> Failed {
    Failed::repository(cause(error, limits))
}

fn cause(error: &gix::Error, limits: &Limits) -> String {
    let all: Vec<_> = error.iter_errors().collect();
    let texts: Vec<String> = all.iter().map(ToString::to_string).collect();
    if let Some(status) = texts.iter().find_map(|t| t.strip_prefix("Received HTTP status ")) {
        return match status {
            "401" | "403" => format!("the server does not give it to this user (HTTP status {status})"),
            "404" | "410" => format!("the server has no such repository (HTTP status {status})"),
            other => format!("the server answers with HTTP status {other}"),
        };
    }
    if all.iter().any(|e| e.is::<packetline::read::Error>()) {
        return "the server refuses it: there is no such repository, or not for everybody".into();
    }
    if error.is_unauthenticated() {
        return "the server asks for a user and a password, or for other ones: https://USER:PASSWORD@HOST/...".into();
    }
    if texts.iter().any(|t| t.starts_with("Didn't find 'application/x-git-upload-pack-advertisement'")) {
        return "the server does not speak git's smart HTTP there".into();
    }
    if error.is_resource_exhausted() {
        return format!("it has an object larger than {} MiB, which is the limit", OBJECT_BYTES >> 20);
    }
    if let Some(told) = all.iter().find_map(|e| of_the_machine(*e, limits)) {
        return told;
    }
    match texts.first().map(String::as_str) {
        None | Some("Transport handshake failed") => "the server does not speak git's protocol there".into(),
        // The outermost words are gix's own.
        Some(words) => words.chars().filter(|c| !c.is_control()).take(LONGEST_WORDS).collect(),
    }
}

/// What the kernel, the resolver of names or TLS says.
fn of_the_machine(error: &(dyn std::error::Error + 'static), limits: &Limits) -> Option<String> {
    let late = || Some("the server did not answer in time".to_owned());
    if error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_timeout) {
        return late();
    }
    let text = error.to_string();
    if text.starts_with("failed to lookup address information") {
        return Some(format!("its host is not known: {text}"));
    }
    let error = error.downcast_ref::<std::io::Error>()?;
    if let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        return Some(format!("TLS: {tls}"));
    }
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::FileTooLarge, _) => {
            Some(format!("its history is larger than {} MiB, which is the limit", limits.bytes >> 20))
        }
        (ErrorKind::TimedOut, _) => late(),
        (_, Some(_)) => Some(text),
        _ if text.starts_with("tls ") => Some(format!("TLS: {text}")),
        _ => None,
    }
}
