//! Request bodies: size limit, encodings, decoding against a kind's schema.
use api::Kind;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

use crate::{
    object,
    options::Validation,
    protobuf,
    status::{ApiError, ApiResult},
};

/// The longest body, in bytes.
pub const LIMIT: usize = 3 * 1024 * 1024;
const ACCEPTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// Reads a whole body.
pub async fn read(body: Body) -> ApiResult<Bytes> {
    match Limited::new(body, LIMIT).collect().await {
        Ok(all) => Ok(all.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => Err(ApiError::too_large(LIMIT)),
        Err(e) => Err(ApiError::bad_request(format!("reading the request body failed: {e}"))),
    }
}

/// The media type of a request's body, without parameters.
pub fn media_type(headers: &HeaderMap) -> &str {
    let text = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim()
}

/// What a body holds after decoding.
pub struct Decoded {
    pub object: Value,
    /// Unknown and repeated fields.
    pub problems: Vec<String>,
}

/// Reads a body as plain JSON or YAML, without a schema.
pub fn plain(headers: &HeaderMap, bytes: &[u8]) -> ApiResult<Value> {
    match media_type(headers) {
        "" | "application/json" => serde_json::from_slice(bytes)
            .map_err(|e| ApiError::bad_request(format!("couldn't parse the body as JSON: {e}"))),
        "application/yaml" | "application/x-yaml" | "text/yaml" => yaml(bytes),
        protobuf::MEDIA_TYPE => binary(bytes),
        _ => Err(ApiError::unsupported_media_type(ACCEPTED)),
    }
}

fn binary(bytes: &[u8]) -> ApiResult<Value> {
    protobuf::decode(bytes).map_err(|e| ApiError::bad_request(format!("couldn't parse the body as protobuf: {e}")))
}

/// Reads YAML; the reader bounds depth, aliases and size by itself.
pub fn yaml(bytes: &[u8]) -> ApiResult<Value> {
    serde_saphyr::from_slice(bytes).map_err(|e| ApiError::bad_request(format!("error converting YAML to JSON: {e}")))
}

/// Reads a body as an object of `kind`, with a `kind` and `apiVersion` that fit.
pub fn typed(kind: &Kind, headers: &HeaderMap, bytes: &[u8]) -> ApiResult<Decoded> {
    let what = || format!("{} in version {:?} cannot be handled as a {}", kind.kind, kind.version, kind.kind);
    let refuse = |why: String| ApiError::bad_request(format!("{}: {why}", what()));
    let media = media_type(headers);
    let decoded = match media {
        "" | "application/json" => api::schema::decode(kind.schema, bytes),
        "application/yaml" | "application/x-yaml" | "text/yaml" => {
            let value = yaml(bytes)?;
            if !value.is_object() {
                return Err(ApiError::bad_request("the body must be an object"));
            }
            api::schema::decode_value(kind.schema, value)
        }
        protobuf::MEDIA_TYPE => api::schema::decode_value(kind.schema, binary(bytes)?),
        _ => return Err(ApiError::unsupported_media_type(ACCEPTED)),
    };
    let decoded = decoded.map_err(|e| refuse(e.to_string()))?;
    let mut object = decoded.value;
    check_type(kind, &mut object)?;
    Ok(Decoded { object, problems: decoded.problems })
}

/// Sets `kind` and `apiVersion` where absent and refuses others than those of `kind`.
pub fn check_type(kind: &Kind, object: &mut Value) -> ApiResult<()> {
    let version = object::api_version(kind.group, kind.version);
    let text = |o: &Value, f: &str| o.get(f).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (given_kind, given_version) = (text(object, "kind"), text(object, "apiVersion"));
    if !given_version.is_empty() && given_version != version {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({given_version}) does not match the expected API version ({version})"
        )));
    }
    if !given_kind.is_empty() && given_kind != kind.kind {
        return Err(ApiError::bad_request(format!(
            "{given_kind} in version {:?} cannot be handled as a {}: no kind {given_kind:?} is registered for the resource {:?}",
            kind.version, kind.kind, kind.plural
        )));
    }
    let Value::Object(map) = object else { return Err(ApiError::bad_request("the body must be an object")) };
    map.insert("kind".into(), kind.kind.into());
    map.insert("apiVersion".into(), version.into());
    Ok(())
}

/// What unknown and repeated fields lead to: warnings, nothing, or a refusal that `refuse` words.
pub fn judge(
    problems: Vec<String>,
    validation: Validation,
    refuse: impl FnOnce(String) -> ApiError,
) -> ApiResult<Vec<String>> {
    match validation {
        Validation::Ignore => Ok(Vec::new()),
        Validation::Strict if !problems.is_empty() => {
            Err(refuse(format!("strict decoding error: {}", problems.join(", "))))
        }
        Validation::Strict | Validation::Warn => Ok(problems),
    }
}
