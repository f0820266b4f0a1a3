//! Which form a client accepts, and bodies in that form.
use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::Value;

use crate::status::{ApiError, ApiResult};

/// How much of each object a table carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

/// A form of answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The object as it is.
    Object,
    Table,
    /// `PartialObjectMetadata`, of an object or a list.
    Metadata,
    /// Aggregated discovery of this version.
    Discovery(&'static str),
}

/// What the client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    pub shape: Shape,
    pub yaml: bool,
}

impl Form {
    /// Plain JSON.
    pub const JSON: Form = Form { shape: Shape::Object, yaml: false };

    /// The first form of `Accept` that this server has.
    pub fn of(headers: &HeaderMap) -> ApiResult<Form> {
        let accept: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
        let mut forms: Vec<(f32, Form)> = Vec::new();
        let mut asked = false;
        for part in accept.iter().flat_map(|line| line.split(',')).map(str::trim).filter(|p| !p.is_empty()) {
            asked = true;
            let (weight, form) = one(part);
            if let Some(form) = form {
                forms.push((weight, form));
            }
        }
        // Stable: among equal weights the client's order holds.
        forms.sort_by(|a, b| b.0.total_cmp(&a.0));
        match forms.first() {
            Some((_, form)) => Ok(*form),
            None if asked => Err(ApiError::not_acceptable()),
            None => Ok(Form::JSON),
        }
    }

    /// The `Content-Type` of a body in this form.
    pub fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match (self.shape, self.yaml) {
            (Shape::Discovery("v2"), _) => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            (Shape::Discovery(_), _) => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
            (_, true) => "application/yaml",
            (_, false) => "application/json",
        })
    }
}

fn one(part: &str) -> (f32, Option<Form>) {
    let mut pieces = part.split(';').map(str::trim);
    let media = pieces.next().unwrap_or_default();
    let (mut weight, mut target, mut version, mut group) = (1.0, "", "", "");
    for (name, value) in pieces.filter_map(|p| p.split_once('=')) {
        match name.trim() {
            "q" => weight = value.trim().parse().unwrap_or(1.0),
            "as" => target = value.trim(),
            "v" => version = value.trim(),
            "g" => group = value.trim(),
            _ => {}
        }
    }
    let yaml = match media {
        "application/json" | "*/*" | "application/*" => false,
        "application/yaml" | "application/x-yaml" | "text/yaml" => true,
        _ => return (weight, None),
    };
    let shape = match (target, group, version) {
        ("", _, _) => Some(Shape::Object),
        ("Table", "meta.k8s.io", "v1" | "v1beta1") => Some(Shape::Table),
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1" | "v1beta1") => {
            Some(Shape::Metadata)
        }
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => Some(Shape::Discovery("v2")),
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2beta1") => Some(Shape::Discovery("v2beta1")),
        _ => None,
    };
    (weight, shape.map(|shape| Form { shape, yaml }))
}

/// An answer with a body made of bytes of JSON.
pub fn json_bytes(code: u16, content_type: HeaderValue, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// An answer with an object in the given form's encoding.
pub fn value(code: u16, form: Form, object: &Value) -> Response {
    let text = if form.yaml {
        serde_saphyr::to_string(object).unwrap_or_default().into_bytes()
    } else {
        // A Value always serializes to memory.
        serde_json::to_vec(object).unwrap_or_default()
    };
    json_bytes(code, form.content_type(), text)
}

/// An answer with stored JSON bytes in the given form's encoding.
pub fn bytes(code: u16, form: Form, json: bytes::Bytes) -> Response {
    if form.yaml
        && let Ok(object) = serde_json::from_slice::<Value>(&json)
    {
        return value(code, form, &object);
    }
    json_bytes(code, form.content_type(), json)
}

/// The answer for an error.
pub fn error(error: &ApiError, form: Form) -> Response {
    let mut response = value(error.code, Form { shape: Shape::Object, ..form }, &error.to_value());
    if let Some(seconds) = error.details.as_ref().and_then(|d| d.get("retryAfterSeconds")).and_then(Value::as_i64) {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// More characters than this in all, and each warning is cut to [`WARNING_CHARS`]; those beyond are left out.
const WARNINGS_CHARS: usize = 4096;
const WARNING_CHARS: usize = 256;

/// Adds `Warning` headers.
pub fn warn(response: &mut Response, warnings: &[String]) {
    let long = warnings.iter().map(|w| w.chars().count()).sum::<usize>() > WARNINGS_CHARS;
    let mut written = 0;
    let mut seen = Vec::new();
    for text in warnings {
        if seen.contains(&text) || written >= WARNINGS_CHARS {
            continue;
        }
        seen.push(text);
        let shown = text.chars().take(if long { WARNING_CHARS } else { usize::MAX });
        written += text.chars().count().min(if long { WARNING_CHARS } else { usize::MAX });
        let quoted: String = shown
            .filter(|c| !c.is_control())
            .flat_map(|c| (matches!(c, '"' | '\\')).then_some('\\').into_iter().chain([c]))
            .collect();
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(accept: &str) -> ApiResult<Form> {
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(header::ACCEPT, accept.parse().unwrap());
        }
        Form::of(&headers)
    }

    #[test]
    fn first_known_form_wins() {
        let json = |shape| Form { shape, yaml: false };
        for (accept, want) in [
            ("", json(Shape::Object)),
            ("*/*", json(Shape::Object)),
            ("application/vnd.kubernetes.protobuf,application/json", json(Shape::Object)),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", json(Shape::Table)),
            ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", json(Shape::Metadata)),
            ("application/json;q=0.5, application/yaml", Form { shape: Shape::Object, yaml: true }),
            (
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
                json(Shape::Discovery("v2")),
            ),
        ] {
            assert_eq!(form(accept).unwrap(), want, "{accept}");
        }
        assert_eq!(form("application/vnd.kubernetes.protobuf").unwrap_err().code, 406);
        assert_eq!(form("text/html").unwrap_err().code, 406);
    }

    #[test]
    fn warnings_are_quoted() {
        let mut r = Response::new(Body::empty());
        warn(&mut r, &["unknown field \"datum\"".into()]);
        assert_eq!(r.headers()[header::WARNING], "299 - \"unknown field \\\"datum\\\"\"");
        warn(&mut r, &["line\n1".into(), "line\n1".into()]);
        let all: Vec<_> = r.headers().get_all(header::WARNING).iter().collect();
        assert_eq!(all[1..], ["299 - \"line1\""]);
        // Clients take only so much of headers.
        let mut r = Response::new(Body::empty());
        let many: Vec<String> = (0..100).map(|i| format!("{i:03}{}", "x".repeat(300))).collect();
        warn(&mut r, &many);
        let all: Vec<_> = r.headers().get_all(header::WARNING).iter().collect();
        assert_eq!((all.len(), all[15].len()), (16, 256 + "299 - \"\"".len()));
    }
}
