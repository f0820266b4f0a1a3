//! `/openapi/v2` and `/openapi/v3`.
//!
//! Documents are made when asked for and not kept: clients keep them by the hash that the index names.
use axum::response::Response;
use http::{HeaderMap, HeaderValue, header};

use crate::{
    negotiate,
    options::Query,
    status::{ApiError, ApiResult},
};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Answers a path below `/openapi/`.
pub fn answer(path: &str, query: &Query, headers: &HeaderMap) -> ApiResult<Response> {
    let kinds = api::KINDS;
    if path == "/openapi/v2" {
        let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let tag = api::openapi::hash(kinds, "");
        // Asked for with `@` or a dot after the version of the specification; only the dot makes a valid media type.
        return Ok(if accept.contains("proto-openapi.spec.v2") {
            let media = HeaderValue::from_static(api::openapi::V2_PROTOBUF);
            document(media, api::openapi::v2_protobuf(kinds), &tag, query)
        } else {
            document(JSON, api::openapi::v2_json(kinds), &tag, query)
        });
    }
    let root = path.strip_prefix("/openapi/v3").ok_or_else(ApiError::no_such_resource)?.trim_start_matches('/');
    let (group, version) = match root.split('/').collect::<Vec<_>>().as_slice() {
        [""] => return Ok(negotiate::value(200, negotiate::Form::JSON, &api::openapi::v3_index(kinds))),
        ["api", version] => ("", *version),
        ["apis", group, version] => (*group, *version),
        _ => return Err(ApiError::no_such_resource()),
    };
    let text = api::openapi::v3_document(kinds, group, version).ok_or_else(ApiError::no_such_resource)?;
    Ok(document(JSON, text, &api::openapi::hash(kinds, root), query))
}

fn document(media: HeaderValue, body: Vec<u8>, hash: &str, query: &Query) -> Response {
    let mut response = negotiate::json_bytes(200, media, body);
    let headers = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{hash}\"")) {
        headers.insert(header::ETAG, tag);
    }
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    // Named by its hash, a document never changes.
    if query.get("hash") == Some(hash) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable, max-age=31536000"));
    }
    response
}
