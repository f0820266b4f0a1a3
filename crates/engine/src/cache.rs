//! Following one kind: list once, watch from there, list again only when history is gone.
use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use api::Kind;
use base::Backoff;
use controllers::{Entry, Key};
use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use http::Request;

use crate::{EngineError, queue::Core, wire};

/// Objects per page of a list: bounds the memory that a start takes.
const PAGE: usize = 500;
/// How long one watch request lasts, in seconds.
const WATCH_SECONDS: u32 = 290;
/// A kind that the server does not serve is asked for again after this.
const UNSERVED: Duration = Duration::from_secs(60);

/// Keeps the world's objects of one kind as the server has them, until aborted.
pub(crate) async fn follow(core: Arc<Core>, kind: &'static Kind) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(10));
    let mut synced = false;
    loop {
        let listed = list(&core, kind).await;
        if !synced && (listed.is_ok() || matches!(&listed, Err(e) if e.code() == Some(404))) {
            synced = true;
            core.synced.send_modify(|n| *n += 1);
        }
        match listed {
            Ok(from) => {
                backoff.reset();
                watch(&core, kind, from).await;
            }
            Err(error) if error.code() == Some(404) => {
                tracing::debug!(kind = kind.kind, "not served");
                tokio::time::sleep(UNSERVED).await;
            }
            Err(error) => {
                tracing::warn!(kind = kind.kind, error = base::chain(&error), "cannot list; trying again");
                tokio::time::sleep(backoff.delay()).await;
            }
        }
    }
}

/// Replaces what is known of the kind. Returns the version to watch from.
async fn list(core: &Arc<Core>, kind: &'static Kind) -> Result<String, EngineError> {
    let path = wire::collection(kind, "");
    let mut entries = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let after = token.as_deref().map(|t| format!("&continue={}", encode(t))).unwrap_or_default();
        let uri = format!("{path}?limit={PAGE}{after}");
        let text = core.request("GET", &uri, None).await?;
        let page: wire::Page = wire::parse(kind.kind, &text)?;
        for item in page.items.iter().flatten() {
            entries.push(wire::entry(kind.kind, item.get())?);
        }
        token = page.metadata.r#continue.filter(|t| !t.is_empty());
        if token.is_none() {
            let revision = page.metadata.resource_version;
            replace(core, kind.kind, entries, &revision);
            return Ok(revision);
        }
    }
}

/// Percent-encodes a query value.
fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

fn replace(core: &Arc<Core>, kind: &'static str, entries: Vec<Entry>, revision: &str) {
    let listed: HashSet<Key> = entries.iter().map(|e| e.meta.key.clone()).collect();
    let gone: Vec<Key> =
        core.world.read().entries(kind).map(|e| e.meta.key.clone()).filter(|k| !listed.contains(k)).collect();
    core.seen(kind, revision);
    gone.into_iter().for_each(|key| core.observe(key, None, None));
    entries.into_iter().for_each(|entry| core.observe(entry.meta.key.clone(), Some(entry), None));
}

/// Watches until history is gone.
async fn watch(core: &Arc<Core>, kind: &'static Kind, mut from: String) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(10));
    loop {
        let begun = Instant::now();
        match watch_once(core, kind, &mut from).await {
            Err(error) if error.code() == Some(410) => {
                tracing::debug!(kind = kind.kind, "history is gone; listing again");
                return;
            }
            Err(error) => tracing::warn!(kind = kind.kind, error = base::chain(&error), "watch ended; trying again"),
            Ok(()) => {}
        }
        if begun.elapsed() > Duration::from_secs(5) {
            backoff.reset();
        } else {
            tokio::time::sleep(backoff.delay()).await;
        }
    }
}

async fn watch_once(core: &Arc<Core>, kind: &'static Kind, from: &mut String) -> Result<(), EngineError> {
    let path = wire::collection(kind, "");
    let uri =
        format!("{path}?watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={from}");
    let failed = |source| EngineError::Request { what: format!("watch {}", kind.plural), source };
    let request = Request::get(uri)
        .header("accept", "application/json")
        .header("accept-encoding", "identity")
        .body(Vec::new())
        .map_err(|e| failed(kube::Error::HttpError(e)))?;
    let stream = core.client.request_stream(request).await.map_err(failed)?;
    let stream = std::pin::pin!(stream);
    let mut lines = stream.lines();
    let broken = |source| EngineError::Stream { kind: kind.kind, source };
    while let Some(line) = lines.try_next().await.map_err(broken)? {
        let line: wire::Line = wire::parse(kind.kind, &line)?;
        let text = line.object.get();
        match line.r#type.as_str() {
            "BOOKMARK" => {
                let bare: wire::Bare = wire::parse(kind.kind, text)?;
                *from = bare.metadata.resource_version.unwrap_or_default();
                core.seen(kind.kind, from);
            }
            "ERROR" => {
                let status: kube::core::Status = wire::parse(kind.kind, text)?;
                return Err(EngineError::Watch { kind: kind.kind, code: status.code, message: status.message });
            }
            change if change != "DELETED" && core.knows(kind.kind, text, from) => {}
            change => {
                let entry = wire::entry(kind.kind, text)?;
                let (key, revision) = (entry.meta.key.clone(), entry.meta.resource_version.clone());
                core.observe(key, (change != "DELETED").then_some(entry), Some(&revision));
                *from = revision;
            }
        }
    }
    Ok(())
}

#[test]
fn tokens_are_encoded() {
    assert_eq!(encode("a+b/c=d-"), "a%2Bb%2Fc%3Dd-");
}
