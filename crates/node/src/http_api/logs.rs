//! `GET /containerLogs/{namespace}/{pod}/{container}`.
use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use runtime::ContainerState;

use super::{Refusal, query::Query};
use crate::{
    Node,
    agent::worker::View,
    core::history::SCHEME,
    logs::follow::{self, Options},
    spec::container::{log_path, members},
};

pub async fn logs(
    State(node): State<Arc<Node>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let query = Query::parse(query.as_deref());
    let bad = |why: String| Refusal(StatusCode::BAD_REQUEST, why);
    let options = options(&query, node.shared.clock.now()).map_err(bad)?;
    let absent = || Refusal(StatusCode::NOT_FOUND, format!("pod {pod:?} does not exist\n"));
    let (view, seen) = node.find(&namespace, &pod).ok_or_else(absent)?;
    if !members(&view.pod).iter().any(|m| m.container.name == container) {
        return Err(Refusal(StatusCode::NOT_FOUND, format!("container {container:?} not found in pod {pod:?}\n")));
    }
    let attempt = attempt(&view, &pod, &container, query.flag(&["previous"])).map_err(bad)?;
    let log = log_path(&node.shared.config.layout, &view.pod, &container, attempt);
    let alive = move || runs(&seen.borrow(), &container, attempt);
    let chunks = follow::stream(log, options, alive).await.map_err(|e| bad(format!("failed to read the log: {e}")))?;
    let body = stream::unfold(chunks, |mut c| async move { c.recv().await.map(|chunk| (chunk, c)) });
    let body = body.take_until(node.closing.clone().cancelled_owned());
    let body = Body::from_stream(body.map(Ok::<_, std::convert::Infallible>));
    Ok(([(header::CONTENT_TYPE, "text/plain")], body).into_response())
}

fn options(query: &Query, now: Timestamp) -> Result<Options, String> {
    let at_least = |name: &str, least: i64| match query.number(name)? {
        Some(n) if n < least => Err(format!("{name} must be greater than or equal to {least}")),
        other => Ok(other),
    };
    let ago = at_least("sinceSeconds", 1)?;
    let time = query.get("sinceTime").filter(|t| !t.is_empty());
    if ago.is_some() && time.is_some() {
        return Err("at most one of `sinceTime` or `sinceSeconds` may be specified".into());
    }
    let since = match (ago, time) {
        (Some(seconds), _) => now.checked_sub(SignedDuration::from_secs(seconds)).ok(),
        (None, Some(text)) => {
            let parsed = text.parse::<Timestamp>();
            Some(parsed.map_err(|e| format!("sinceTime must be an RFC 3339 time, not {text:?}: {e}"))?)
        }
        (None, None) => None,
    };
    let stderr = match query.get("stream") {
        None | Some("" | "All") => None,
        Some("Stdout") => Some(false),
        Some("Stderr") => Some(true),
        Some(other) => return Err(format!("invalid stream type {other:?}")),
    };
    Ok(Options {
        follow: query.flag(&["follow"]),
        tail_lines: at_least("tailLines", 0)?.and_then(|n| usize::try_from(n).ok()),
        since,
        timestamps: query.flag(&["timestamps"]),
        limit_bytes: at_least("limitBytes", 1)?.and_then(|n| u64::try_from(n).ok()),
        stderr,
    })
}

/// Whether that incarnation still runs.
fn runs(view: &View, container: &str, attempt: u32) -> bool {
    let all = view.sandbox.iter().flat_map(|s| &s.containers);
    all.into_iter().any(|c| {
        c.name == container
            && c.attempt == attempt
            && matches!(c.state, ContainerState::Running { .. } | ContainerState::Created)
    })
}

fn status<'a>(s: &'a PodStatus, container: &str) -> Option<&'a ContainerStatus> {
    let lists = [&s.container_statuses, &s.init_container_statuses, &s.ephemeral_container_statuses];
    lists.into_iter().flat_map(|l| l.iter().flatten()).find(|c| c.name == container)
}

/// Which incarnation's log is meant, or upstream's words why there is none.
fn attempt(view: &View, pod: &str, container: &str, previous: bool) -> Result<u32, String> {
    let here = format!("container {container:?} in pod {pod:?}");
    let Some(s) = status(&view.status, container) else { return Err(format!("{here} is not available")) };
    let state = s.state.clone().unwrap_or_default();
    let last = s.last_state.as_ref().and_then(|l| l.terminated.as_ref());
    let last_id = last.and_then(|t| t.container_id.as_deref()).filter(|id| !id.is_empty());
    let count = u32::try_from(s.restart_count).unwrap_or(0);
    let before = |id: &str| known(view, id).unwrap_or_else(|| count.saturating_sub(u32::from(state.waiting.is_none())));
    if previous {
        return last_id.map(before).ok_or_else(|| format!("previous terminated {here} not found"));
    }
    if state.running.is_some() {
        return Ok(count);
    }
    if let Some(t) = &state.terminated {
        let own = t.container_id.as_deref().filter(|id| !id.is_empty()).map(|id| known(view, id).unwrap_or(count));
        return own.or_else(|| last_id.map(before)).ok_or_else(|| format!("{here} is terminated"));
    }
    if last.is_some() {
        return last_id.map(before).ok_or_else(|| format!("{here} is terminated"));
    }
    Err(match state.waiting.and_then(|w| w.reason).as_deref() {
        Some("ErrImagePull") => format!("{here} is waiting to start: image can't be pulled"),
        Some("ImagePullBackOff") => format!("{here} is waiting to start: trying and failing to pull image"),
        Some(reason) => format!("{here} is waiting to start: {reason}"),
        None => format!("{here} is waiting to start - no logs yet"),
    })
}

fn known(view: &View, id: &str) -> Option<u32> {
    let id = id.strip_prefix(SCHEME).unwrap_or(id);
    let mut all = view.sandbox.iter().flat_map(|s| &s.containers);
    all.find(|c| c.id.0 == id).map(|c| c.attempt)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn which(status: Value, previous: bool) -> Result<u32, String> {
        let mut s = json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0});
        s.as_object_mut().expect("object").extend(status.as_object().expect("object").clone());
        let status = serde_json::from_value(json!({"containerStatuses": [s]})).expect("a status");
        let view = View {
            pod: Arc::default(),
            status,
            sandbox: None,
            volumes: Default::default(),
            driven: Default::default(),
        };
        attempt(&view, "p", "c", previous)
    }

    #[test]
    fn chooses_the_incarnation_or_says_why_not() {
        let ended = json!({"terminated": {"exitCode": 1, "containerID": "holdfast://a"}});
        let running = json!({"running": {}});
        let waits = |reason: &str| json!({"state": {"waiting": {"reason": reason}}});
        for (status, previous, want) in [
            (json!({"state": running, "restartCount": 2}), false, Ok(2)),
            (json!({"state": running, "restartCount": 2, "lastState": ended}), true, Ok(1)),
            (json!({"state": running}), true, Err("previous terminated container \"c\" in pod \"p\" not found")),
            (json!({"state": ended, "restartCount": 3}), false, Ok(3)),
            (
                json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended, "restartCount": 4}),
                false,
                Ok(4),
            ),
            (
                json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended, "restartCount": 4}),
                true,
                Ok(4),
            ),
            (
                waits("ContainerCreating"),
                false,
                Err("container \"c\" in pod \"p\" is waiting to start: ContainerCreating"),
            ),
            (
                waits("ErrImagePull"),
                false,
                Err("container \"c\" in pod \"p\" is waiting to start: image can't be pulled"),
            ),
            (
                waits("ImagePullBackOff"),
                false,
                Err("container \"c\" in pod \"p\" is waiting to start: trying and failing to pull image"),
            ),
            (json!({}), false, Err("container \"c\" in pod \"p\" is waiting to start - no logs yet")),
            (
                json!({"state": {"terminated": {"exitCode": 137}}}),
                false,
                Err("container \"c\" in pod \"p\" is terminated"),
            ),
        ] {
            assert_eq!(which(status.clone(), previous), want.map_err(str::to_owned), "{status}");
        }
    }

    #[test]
    fn reads_options() {
        let now: Timestamp = "2026-01-02T00:01:00Z".parse().expect("a time");
        let read = |q: &str| options(&Query::parse(Some(q)), now);
        let o = read("follow=true&tailLines=5&sinceSeconds=60&timestamps=1&limitBytes=9&stream=Stderr").expect("fine");
        assert_eq!((o.follow, o.tail_lines, o.timestamps, o.limit_bytes), (true, Some(5), true, Some(9)));
        assert_eq!((o.since, o.stderr), ("2026-01-02T00:00:00Z".parse().ok(), Some(true)));
        assert_eq!(read("sinceTime=2026-01-01T00:00:00Z").expect("fine").since, "2026-01-01T00:00:00Z".parse().ok());
        for q in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceTime=x",
            "stream=x",
            "tailLines=x",
            "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z",
        ] {
            assert!(read(q).is_err(), "{q}");
        }
    }
}
