//! Request bodies: size limit, encodings, decoding against a kind's schema.
use std::time::Duration;

use api::{Kind, schema::DecodeError};
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Map, Value};

use crate::{
    object,
    options::Validation,
    protobuf,
    status::{ApiError, ApiResult},
};

/// The longest body, in bytes.
pub const LIMIT: usize = 3 * 1024 * 1024;
const ACCEPTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// How long a client may take to send a body.
const TIME: Duration = Duration::from_secs(60);

/// Reads a whole body.
pub async fn read(body: Body) -> ApiResult<Bytes> {
    // Announced as too long: not even begun.
    if http_body::Body::size_hint(&body).lower() > LIMIT as u64 {
        return Err(ApiError::too_large(LIMIT));
    }
    let Ok(read) = tokio::time::timeout(TIME, Limited::new(body, LIMIT).collect()).await else {
        return Err(ApiError::timeout("request did not complete within the allotted timeout"));
    };
    match read {
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

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

impl Encoding {
    /// As the headers say; JSON if they say nothing.
    fn of(headers: &HeaderMap) -> ApiResult<Self> {
        let Some(given) = headers.get(header::CONTENT_TYPE).filter(|v| !v.is_empty()) else { return Ok(Self::Json) };
        let media = given.to_str().ok().filter(|text| parameters_are_sound(text)).map(|_| media_type(headers));
        match media.map(str::to_ascii_lowercase).as_deref() {
            Some("application/json") => Ok(Self::Json),
            Some("application/yaml" | "application/x-yaml" | "text/yaml") => Ok(Self::Yaml),
            Some(protobuf::MEDIA_TYPE) => Ok(Self::Protobuf),
            _ => Err(ApiError::unsupported_media_type(ACCEPTED)),
        }
    }
}

/// Whether what follows a media type is `; name=value` any number of times. Semicolons at the end mean nothing.
fn parameters_are_sound(text: &str) -> bool {
    let token =
        |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?=".contains(&b));
    let sound = |parameter: &str| match parameter.trim().split_once('=') {
        Some((name, value)) => {
            token(name) && (token(value) || (value.len() > 1 && value.starts_with('"') && value.ends_with('"')))
        }
        None => false,
    };
    let mut parts = text.trim_end_matches([';', ' ']).split(';');
    parts.next();
    parts.all(sound)
}

/// What a body holds after decoding.
pub struct Decoded {
    pub object: Value,
    /// Unknown and repeated fields.
    pub problems: Vec<String>,
}

/// Reads a body that is no object of the table of kinds; `schema` is its type, `io.k8s.api.policy.v1.Eviction`.
pub fn plain(schema: &str, headers: &HeaderMap, bytes: &[u8]) -> ApiResult<Value> {
    let mut parts = schema.rsplit('.');
    let (kind, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let decoded = match Encoding::of(headers)? {
        Encoding::Json => api::schema::decode(schema, bytes),
        Encoding::Yaml => {
            let (value, _) = yaml(bytes).map_err(|why| unrecognized(kind, &why, bytes))?;
            api::schema::decode_value(schema, value)
        }
        Encoding::Protobuf => api::schema::decode_value(schema, binary(bytes)?),
    };
    match decoded {
        Ok(decoded) if decoded.value.is_null() => Ok(Value::Object(Map::new())),
        Ok(decoded) => Ok(decoded.value),
        Err(DecodeError::Syntax { message }) => Err(unrecognized(kind, &not_json(&message), bytes)),
        Err(other) => {
            Err(ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {other}")))
        }
    }
}

fn not_json(why: &str) -> String {
    format!("couldn't get version/kind; json parse error: {why}")
}

/// 400 for a body whose kind cannot be told.
fn unrecognized(kind: &str, why: &str, bytes: &[u8]) -> ApiError {
    ApiError::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {why} ({})",
        summary(bytes)
    ))
}

/// The beginning of a body: as text if it looks like an object, in hexadecimal otherwise.
fn summary(bytes: &[u8]) -> String {
    const SHOWN: usize = 30;
    let cut = &bytes[..bytes.len().min(SHOWN)];
    let shown = match cut.first() {
        None => return "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(cut).into_owned(),
        Some(_) => cut.iter().map(|b| format!("{b:02x}")).collect(),
    };
    if bytes.len() > SHOWN { shown + " ..." } else { shown }
}

fn binary(bytes: &[u8]) -> ApiResult<Value> {
    protobuf::decode(bytes).map_err(|e| ApiError::bad_request(format!("couldn't parse the body as protobuf: {e}")))
}

/// Reads YAML, and tells of repeated keys, of which the last counts. The reader bounds depth, aliases and size by itself.
fn yaml(bytes: &[u8]) -> Result<(Value, Vec<String>), String> {
    let duplicate = match serde_saphyr::from_slice(bytes) {
        Ok(value) => return Ok((value, Vec::new())),
        Err(error) => match error.without_snippet() {
            serde_saphyr::Error::DuplicateMappingKey { key, location } => format!(
                "yaml: unmarshal errors:\n  line {}: key {:?} already set in map",
                location.line(),
                key.as_deref().unwrap_or_default()
            ),
            _ => return Err(not_yaml(&error)),
        },
    };
    let lenient = serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
    let value = serde_saphyr::from_slice_with_options(bytes, lenient).map_err(|e| not_yaml(&e))?;
    Ok((value, vec![duplicate]))
}

/// `yaml: line 2: mapping values are not allowed in this context`
fn not_yaml(error: &serde_saphyr::Error) -> String {
    let options = serde_saphyr::render_options! { snippets: serde_saphyr::SnippetMode::Off };
    let text = error.render_with_options(options);
    // The place is told first here.
    let why = text.rfind(" at line ").map_or(text.as_str(), |at| &text[..at]);
    match error.location() {
        Some(location) => format!("yaml: line {}: {why}", location.line()),
        None => format!("yaml: {why}"),
    }
}

/// Reads a body as an object of `kind`, with a `kind` and `apiVersion` that fit.
pub fn typed(kind: &Kind, headers: &HeaderMap, bytes: &[u8]) -> ApiResult<Decoded> {
    let mut repeated = Vec::new();
    let decoded = match Encoding::of(headers)? {
        Encoding::Json => api::schema::decode(kind.schema, bytes),
        Encoding::Yaml => {
            let (value, problems) = yaml(bytes).map_err(|why| unrecognized(kind.kind, &why, bytes))?;
            repeated = problems;
            api::schema::decode_value(kind.schema, value)
        }
        Encoding::Protobuf => api::schema::decode_value(kind.schema, binary(bytes)?),
    };
    let decoded = decoded.map_err(|e| undecodable(kind, headers, bytes, &e))?;
    let mut object = if decoded.value.is_null() { Value::Object(Map::new()) } else { decoded.value };
    check_type(kind, &mut object)?;
    repeated.extend(decoded.problems);
    Ok(Decoded { object, problems: repeated })
}

/// The answer to a body that does not fit its schema. What it claims to be is looked at first: nothing else fits then.
fn undecodable(kind: &Kind, headers: &HeaderMap, bytes: &[u8], error: &DecodeError) -> ApiError {
    let json_error = |why: &str| unrecognized(kind.kind, &not_json(why), bytes);
    match error {
        DecodeError::Syntax { message } => return json_error(message),
        DecodeError::Mismatch { field, message } if field.is_empty() => {
            return json_error(&match message.split_once("of type ") {
                Some((got, _)) => format!("{got}of type {HEAD}"),
                None => message.clone(),
            });
        }
        DecodeError::Mismatch { field, message } if matches!(field.as_str(), "kind" | "apiVersion") => {
            return json_error(&message.replace(&format!(" {}.", kind.kind), " ."));
        }
        DecodeError::Mismatch { .. } | DecodeError::NoSuchType(_) => {}
    }
    let claimed = match Encoding::of(headers) {
        Ok(Encoding::Json) => serde_json::from_slice(bytes).ok(),
        Ok(Encoding::Yaml) => yaml(bytes).ok().map(|(value, _)| value),
        Ok(Encoding::Protobuf) | Err(_) => None,
    };
    match claimed.map(|mut object| check_type(kind, &mut object)) {
        Some(Err(other)) => other,
        Some(Ok(())) | None => cannot_handle(kind.kind, kind.version, kind, &error.to_string()),
    }
}

/// What upstream reads kind and version into, as Go prints it.
const HEAD: &str =
    r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;

/// 400 for an object of a known kind and version that is not what a path takes.
pub fn cannot_handle(given: &str, version: &str, kind: &Kind, why: &str) -> ApiError {
    ApiError::bad_request(format!("{given} in version {version:?} cannot be handled as a {}: {why}", kind.kind))
}

/// Sets `kind` and `apiVersion` where absent and refuses others than those of `kind`.
pub fn check_type(kind: &Kind, object: &mut Value) -> ApiResult<()> {
    let own = object::api_version(kind.group, kind.version);
    let text = |o: &Value, f: &str| o.get(f).and_then(Value::as_str).filter(|t| !t.is_empty()).map(str::to_owned);
    let given_kind = text(object, "kind").unwrap_or_else(|| kind.kind.to_owned());
    let given = text(object, "apiVersion").unwrap_or_else(|| own.clone());
    if given_kind != kind.kind || given != own {
        let (group, version) = given.rsplit_once('/').unwrap_or(("", &given));
        return Err(if api::by_kind(group, version, &given_kind).is_none() {
            let scheme = "pkg/api/legacyscheme/scheme.go:30";
            let why = format!("no kind {given_kind:?} is registered for version {given:?} in scheme {scheme:?}");
            cannot_handle(&given_kind, version, kind, &why)
        } else if given_kind == kind.kind {
            ApiError::bad_request(format!(
                "the API version in the data ({given}) does not match the expected API version ({own})"
            ))
        } else {
            let package = if kind.group.is_empty() { "core" } else { kind.group.split('.').next().unwrap_or_default() };
            let why = format!("converting ({version}.{given_kind}) to ({package}.{}): unknown conversion", kind.kind);
            cannot_handle(&given_kind, version, kind, &why)
        });
    }
    let Value::Object(map) = object else { return Err(ApiError::bad_request("the body must be an object")) };
    map.insert("kind".into(), kind.kind.into());
    map.insert("apiVersion".into(), own.into());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_are_read_as_upstream_reads_them() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, text.parse().unwrap());
            Encoding::of(&headers).map_err(|e| e.code)
        };
        assert_eq!(Encoding::of(&HeaderMap::new()).unwrap(), Encoding::Json);
        for (text, want) in [
            ("", Ok(Encoding::Json)),
            ("application/json", Ok(Encoding::Json)),
            ("Application/JSON; charset=utf-8", Ok(Encoding::Json)),
            ("application/json; charset=\"utf-8\"", Ok(Encoding::Json)),
            ("application/json;;;", Ok(Encoding::Json)),
            ("application/yaml", Ok(Encoding::Yaml)),
            ("application/vnd.kubernetes.protobuf", Ok(Encoding::Protobuf)),
            (";;;", Err(415)),
            (";charset=utf-8", Err(415)),
            ("application/json; charset", Err(415)),
            ("application/json; =x", Err(415)),
            ("application/json, application/yaml", Err(415)),
            ("application/cbor", Err(415)),
            ("*/*", Err(415)),
            ("json", Err(415)),
        ] {
            assert_eq!(of(text), want, "{text}");
        }
    }

    #[test]
    fn bodies_are_shown_by_their_beginning() {
        assert_eq!(summary(b""), "<empty>");
        assert_eq!(summary(b"{\"a\":"), "{\"a\":");
        assert_eq!(summary(b"{\"metadata\":{\"name\":\"0123456789\"}}"), "{\"metadata\":{\"name\":\"012345678 ...");
        assert_eq!(summary(b"[]"), "5b5d");
        assert_eq!(summary(&[b'a'; 31]), format!("{} ...", "61".repeat(30)));
    }
}
