//! `/healthz`, `/livez`, `/readyz` and their single checks, as upstream answers them.
use axum::response::Response;
use http::HeaderValue;

use crate::{Inner, negotiate, options::Query};

/// A check: why it fails.
type Check = fn(&Inner) -> Result<(), String>;

/// Every check, and whether it is one of readiness only.
const CHECKS: &[(&str, bool, Check)] = &[
    ("ping", false, |_| Ok(())),
    // After a failed sync of the disk no more writes are taken: only a restart helps.
    ("store", false, |inner| inner.store.health().map_err(|error| base::chain(&error))),
    ("shutdown", true, |inner| match inner.shutdown.is_cancelled() {
        true => Err("process is shutting down".into()),
        false => Ok(()),
    }),
];

/// Answers `/healthz`, `/livez`, `/readyz` and one check below them; `None` for any other path.
pub fn answer(inner: &Inner, path: &str, query: &Query) -> Option<Response> {
    let (name, check) = path.strip_prefix('/')?.split_once('/').unwrap_or((&path[1..], ""));
    if !["healthz", "livez", "readyz"].contains(&name) {
        return None;
    }
    let mut checks = CHECKS.iter().filter(|(_, readiness, _)| name == "readyz" || !readiness);
    if check.is_empty() {
        return Some(all(inner, name, checks, query));
    }
    let (_, _, run) = checks.find(|(found, ..)| *found == check)?;
    Some(match run(inner) {
        Ok(()) => text(200, "ok".into()),
        Err(why) => text(500, format!("internal server error: {why}\n")),
    })
}

fn all<'a>(
    inner: &Inner,
    name: &str,
    checks: impl Iterator<Item = &'a (&'static str, bool, Check)>,
    query: &Query,
) -> Response {
    let mut excluded: Vec<&str> = query.all("exclude").collect();
    excluded.sort_unstable();
    excluded.dedup();
    let mut failed = false;
    let mut lines = String::new();
    for (check, _, run) in checks {
        if let Some(at) = excluded.iter().position(|e| e == check) {
            excluded.remove(at);
            lines += &format!("[+]{check} excluded: ok\n");
            continue;
        }
        match run(inner) {
            Ok(()) => lines += &format!("[+]{check} ok\n"),
            Err(why) => {
                tracing::warn!(check, why, "{name} check failed");
                failed = true;
                lines += &format!("[-]{check} failed: reason withheld\n");
            }
        }
    }
    if !excluded.is_empty() {
        let list: Vec<String> = excluded.iter().map(|e| format!("{e:?}")).collect();
        lines += &format!("warn: some health checks cannot be excluded: no matches for {}\n", list.join(","));
    }
    match (failed, query.get("verbose")) {
        (true, _) => text(500, format!("{lines}{name} check failed\n")),
        (false, None) => text(200, "ok".into()),
        (false, Some(_)) => text(200, format!("{lines}{name} check passed\n")),
    }
}

/// An answer of plain text.
pub fn text(code: u16, text: String) -> Response {
    let mut response = negotiate::json_bytes(code, HeaderValue::from_static("text/plain; charset=utf-8"), text);
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}
