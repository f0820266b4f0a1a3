//! Watches: initial state, changes as seen through a selection, bookmarks, their end.
//!
//! - W1: an object that comes to match a selection is ADDED, one that ceases to is DELETED with the state that last
//!   matched, at the revision of the change. (test)
//! - W2: a bookmark's revision is never ahead of what was sent. (by construction: the store's watch tells it)
use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use api::Kind;
use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use store::{Event, StoreError};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use crate::{
    ApiServer, Inner,
    facets::{Facets, Selection},
    metrics::Watching,
    negotiate::{Form, Include},
    object,
    options::ListOptions,
    read,
    render::Events,
    status::{ApiError, ApiResult},
    write::store_error,
};

const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long before the end of a watch its last bookmark is sent.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// Bytes that one chunk of the body gathers at most while events are ready.
const CHUNK_BYTES: usize = 64 * 1024;

/// What is watched, and how it is shown.
pub struct Request {
    pub kind: &'static Kind,
    /// Empty: all namespaces.
    pub namespace: String,
    pub selection: Selection,
    pub options: ListOptions,
    pub form: Form,
    pub include: Include,
}

struct Stream {
    /// Keeps the server alive while somebody watches.
    _watching: Watching,
    watch: store::Watch<Facets>,
    selection: Selection,
    events: Events,
    /// Changes up to here were part of the initial state, or not asked for.
    seen: u64,
    ready: VecDeque<Bytes>,
    bookmarks: Option<tokio::time::Interval>,
    last_bookmark: Option<Instant>,
    end: Instant,
    shutdown: CancellationToken,
    done: bool,
}

/// Starts a watch.
pub fn start(server: &ApiServer, request: Request) -> ApiResult<Response> {
    let inner: &Inner = server.inner();
    let Request { kind, namespace, selection, options, form, include } = request;
    let mut events = Events::new(kind, form, include);
    let prefix = read::prefix(kind, &namespace, &selection);
    let asked = options.resource_version.unwrap_or(0);
    let wants_state = options.send_initial_events.unwrap_or(asked == 0);
    let mut ready = VecDeque::new();
    let current = inner.store.revision();
    if options.send_initial_events == Some(true) && asked > current {
        return Err(ApiError::too_large_resource_version(asked, current));
    }
    let (from, seen) = if wants_state {
        let first = ListOptions::default();
        let found = inner.list(kind, &namespace, &selection, &first)?;
        for record in &found.records {
            ready.push_back(events.change("ADDED", &record.value)?);
        }
        if options.send_initial_events == Some(true) && options.bookmarks {
            ready.push_back(events.bookmark(found.revision, true));
        }
        (found.revision, found.revision)
    } else if asked == 0 {
        (current, current)
    } else {
        // A client may know a revision from elsewhere that this store reaches only later.
        (asked.min(current), asked)
    };
    let watch = match inner.store.watch(&prefix, from) {
        Ok(watch) => watch,
        // Told in the stream, as upstream does: the watch was begun by then.
        Err(e @ StoreError::Expired { .. }) => return Ok(respond(Body::from(Events::error(&store_error(e))))),
        Err(other) => return Err(store_error(other)),
    };
    let now = Instant::now();
    let seconds = options.timeout_s.unwrap_or_else(|| rand::random_range(1800..3600));
    let end = now + Duration::from_secs(seconds.min(24 * 3600));
    let bookmarks = options.bookmarks.then(|| {
        let mut every = interval_at(now + BOOKMARK_EVERY, BOOKMARK_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        every
    });
    let last_bookmark = options.bookmarks.then(|| end.checked_sub(BOOKMARK_BEFORE_END).unwrap_or(now).max(now));
    let stream = Stream {
        _watching: Watching::begin(server.clone(), kind),
        watch,
        selection,
        events,
        seen,
        ready,
        bookmarks,
        last_bookmark,
        end,
        shutdown: inner.shutdown.clone(),
        done: false,
    };
    let body = futures::stream::unfold(stream, |mut stream| async move {
        let chunk = stream.chunk().await?;
        Some((Ok::<Bytes, Infallible>(chunk), stream))
    });
    Ok(respond(Body::from_stream(body)))
}

fn respond(body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// Why a wait for the next event ended.
enum Wake {
    Event(Result<Arc<Event<Facets>>, StoreError>),
    Bookmark,
    LastBookmark,
    End,
}

impl Stream {
    /// The next bytes of the body; `None` at the end.
    async fn chunk(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.take_ready() {
                return Some(bytes);
            }
            if self.done {
                return None;
            }
            match self.wait().await {
                Wake::Event(Ok(event)) => self.push(&event),
                Wake::Event(Err(StoreError::Closed)) | Wake::End => self.done = true,
                Wake::Event(Err(e)) => {
                    self.ready.push_back(Events::error(&store_error(e)));
                    self.done = true;
                }
                Wake::Bookmark => self.push_bookmark(),
                Wake::LastBookmark => {
                    self.last_bookmark = None;
                    self.push_bookmark();
                }
            }
        }
    }

    fn take_ready(&mut self) -> Option<Bytes> {
        let first = self.ready.pop_front()?;
        if self.ready.is_empty() {
            return Some(first);
        }
        let mut all = first.to_vec();
        while all.len() < CHUNK_BYTES
            && let Some(next) = self.ready.pop_front()
        {
            all.extend_from_slice(&next);
        }
        Some(all.into())
    }

    async fn wait(&mut self) -> Wake {
        let bookmarks = &mut self.bookmarks;
        let last_bookmark = self.last_bookmark;
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Wake::End,
            () = tokio::time::sleep_until(self.end) => Wake::End,
            event = self.watch.next() => Wake::Event(event),
            () = async {
                match last_bookmark {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            } => Wake::LastBookmark,
            () = async {
                match bookmarks {
                    Some(every) => { every.tick().await; }
                    None => std::future::pending().await,
                }
            } => Wake::Bookmark,
        }
    }

    fn push_bookmark(&mut self) {
        let revision = self.watch.progress().max(self.seen);
        self.ready.push_back(self.events.bookmark(revision, false));
    }

    fn push(&mut self, event: &Event<Facets>) {
        if event.revision <= self.seen {
            return;
        }
        let before = event.previous.as_ref().filter(|p| self.selection.matches(&p.facets));
        let now = (!event.deleted && self.selection.matches(&event.record.facets)).then_some(&event.record);
        let line = match (before, now) {
            (None, None) => return,
            (None, Some(now)) => self.events.change("ADDED", &now.value),
            (Some(_), Some(now)) => self.events.change("MODIFIED", &now.value),
            (Some(_), None) if event.deleted => self.events.change("DELETED", &event.record.value),
            // It left the selection: the state that matched, at the revision of the change.
            (Some(before), None) => {
                self.events.change("DELETED", &object::with_revision(&before.value, event.revision))
            }
        };
        match line {
            Ok(bytes) => self.ready.push_back(bytes),
            Err(e) => {
                self.ready.push_back(Events::error(&e));
                self.done = true;
            }
        }
    }
}
