//! `/openapi/v2` and `/openapi/v3`.
//!
//! A document is made when it is first asked for, on a thread that may block, and kept compressed: most clients take it
//! so. Its name (hash) is known without making it.
use std::{
    collections::HashMap,
    io::{Read, Write},
    sync::Arc,
};

use axum::response::Response;
use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::{
    negotiate,
    options::Query,
    status::{ApiError, ApiResult},
};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Which document.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Name {
    V2Json,
    V2Protobuf,
    /// Of a group and version.
    V3(String, String),
}

impl Name {
    /// `None` if there is no such document.
    fn make(&self) -> Option<Vec<u8>> {
        match self {
            Self::V2Json => Some(api::openapi::v2_json(api::KINDS)),
            Self::V2Protobuf => Some(api::openapi::v2_protobuf(api::KINDS)),
            Self::V3(group, version) => api::openapi::v3_document(api::KINDS, group, version),
        }
    }
}

/// The documents made so far, compressed.
#[derive(Default)]
pub struct Documents {
    made: Mutex<HashMap<Name, Arc<OnceCell<Bytes>>>>,
}

impl Documents {
    async fn get(&self, name: Name) -> ApiResult<Bytes> {
        let cell = self.made.lock().entry(name.clone()).or_default().clone();
        let make = || async move {
            let made = tokio::task::spawn_blocking(move || name.make().map(|text| compress(&text))).await;
            made.map_err(ApiError::internal)?.ok_or_else(ApiError::no_such_resource)
        };
        cell.get_or_try_init(make).await.cloned()
    }
}

fn compress(text: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(text);
    encoder.finish().unwrap_or_default().into()
}

/// Answers a path below `/openapi/`.
pub async fn answer(documents: &Documents, path: &str, query: &Query, headers: &HeaderMap) -> ApiResult<Response> {
    let (name, root) = match path.strip_prefix("/openapi/").unwrap_or_default().split('/').collect::<Vec<_>>()[..] {
        ["v2"] => {
            let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
            let binary = accept.contains("proto-openapi.spec.v2");
            (if binary { Name::V2Protobuf } else { Name::V2Json }, String::new())
        }
        ["v3"] => return Ok(index(headers)),
        ["v3", "api", version] => (Name::V3(String::new(), version.into()), format!("api/{version}")),
        ["v3", "apis", group, version] => (Name::V3(group.into(), version.into()), format!("apis/{group}/{version}")),
        _ => return Err(ApiError::no_such_resource()),
    };
    if let Name::V3(group, version) = &name
        && !api::KINDS.iter().any(|kind| kind.group == group && kind.version == version)
    {
        return Err(ApiError::no_such_resource());
    }
    let hash = api::openapi::hash(api::KINDS, &root);
    let asked = query.text("hash");
    if asked.is_some_and(|asked| asked != hash) {
        // Named by an index of another version of this program.
        return Ok(moved(&format!("{path}?hash={hash}")));
    }
    if has(headers, &hash) {
        return Ok(marked(Response::default(), StatusCode::NOT_MODIFIED, &hash, asked.is_some()));
    }
    // Asked for with `@` or a dot after the version of the specification; only the dot makes a valid media type.
    let media = match name {
        Name::V2Protobuf => HeaderValue::from_static(api::openapi::V2_PROTOBUF),
        Name::V2Json | Name::V3(..) => JSON,
    };
    let compressed = documents.get(name).await?;
    let response = if takes_gzip(headers) {
        let mut response = negotiate::json_bytes(200, media, compressed);
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        let text = tokio::task::spawn_blocking(move || {
            let mut text = Vec::new();
            GzDecoder::new(&compressed[..]).read_to_end(&mut text).map(|_| text)
        });
        negotiate::json_bytes(200, media, text.await.map_err(ApiError::internal)?.map_err(ApiError::internal)?)
    };
    Ok(marked(response, StatusCode::OK, &hash, asked.is_some()))
}

/// The index of documents, `/openapi/v3`.
fn index(headers: &HeaderMap) -> Response {
    let hash = api::openapi::hash(api::KINDS, "index");
    if has(headers, &hash) {
        return marked(Response::default(), StatusCode::NOT_MODIFIED, &hash, false);
    }
    let response = negotiate::value(200, negotiate::Form::JSON, &api::openapi::v3_index(api::KINDS));
    marked(response, StatusCode::OK, &hash, false)
}

/// Adds what caches go by. Named by its hash, a document never changes.
fn marked(mut response: Response, code: StatusCode, hash: &str, named: bool) -> Response {
    *response.status_mut() = code;
    let mut set = |name: HeaderName, text: &str| {
        if let Ok(value) = HeaderValue::from_str(text) {
            response.headers_mut().insert(name, value);
        }
    };
    set(header::ETAG, &format!("\"{hash}\""));
    set(header::VARY, "Accept, Accept-Encoding");
    if named {
        set(header::CACHE_CONTROL, "public, immutable, max-age=31536000");
    }
    response
}

fn moved(to: &str) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(to) = HeaderValue::from_str(to) {
        response.headers_mut().insert(header::LOCATION, to);
    }
    response
}

/// Whether the client has this content already.
fn has(headers: &HeaderMap, hash: &str) -> bool {
    let lines = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|tag| {
        let tag = tag.trim();
        tag == "*" || tag.trim_start_matches("W/").trim_matches('"') == hash
    })
}

/// Whether the client takes gzip.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(";q=").unwrap_or((coding, "1"));
        matches!(name.trim(), "gzip" | "*") && weight.trim().parse::<f32>().is_ok_and(|weight| weight > 0.0)
    })
}
