//! The patch formats: JSON patch, merge patch, strategic merge patch.
use api::strategic::json_type;
use json_patch::PatchOperation;
use serde_json::Value;

use crate::{
    body,
    options::Validation,
    status::{ApiError, ApiResult},
    write::At,
};

const ACCEPTED: &str =
    "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";
/// Most operations of one JSON patch.
const MAX_OPERATIONS: usize = 10_000;
/// Most bytes of JSON that the copies of one JSON patch add: copies of copies double with each operation.
const MAX_COPIED: usize = 3 << 20;

/// A patch read from a request.
pub enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    /// Reads a patch of a media type.
    pub fn parse(media_type: &str, bytes: &[u8]) -> ApiResult<Self> {
        let bad = |e: serde_json::Error| ApiError::bad_request(format!("error decoding patch: {}", why(&e, bytes)));
        match media_type {
            "application/json-patch+json" => {
                check_operations(bytes)?;
                let patch: json_patch::Patch = serde_json::from_slice(bytes).map_err(bad)?;
                if patch.0.len() > MAX_OPERATIONS {
                    return Err(ApiError::new(
                        413,
                        "RequestEntityTooLarge",
                        format!(
                            "Request entity is too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                            patch.0.len()
                        ),
                    ));
                }
                Ok(Self::Json(patch))
            }
            "application/merge-patch+json" => Ok(Self::Merge(object(bytes)?)),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic(object(bytes)?)),
            "application/apply-patch+yaml" => Err(ApiError::new(
                415,
                "UnsupportedMediaType",
                format!(
                    "server-side apply (application/apply-patch+yaml) is not supported by this version; \
                     use `kubectl apply --server-side=false`, or one of: {ACCEPTED}"
                ),
            )),
            _ => Err(ApiError::unsupported_media_type(ACCEPTED)),
        }
    }

    /// The patched object, fitting its schema, and what strict validation has to say.
    pub fn apply(&self, at: &At<'_>, old: &Value, validation: Validation) -> ApiResult<(Value, Vec<String>)> {
        let kind = at.kind;
        let patched = match self {
            Self::Json(patch) => operate(old, patch)?,
            Self::Merge(patch) => api::strategic::merge_patch(old, patch),
            Self::Strategic(patch) => {
                api::strategic::apply(kind.schema, old, patch).map_err(|e| ApiError::bad_request(e.to_string()))?
            }
        };
        let refuse = |value: &Value, why: &str| {
            // A strategic patch is shown as it was sent, of the others what came of it.
            let shown = match self {
                Self::Strategic(patch) => go_text(patch),
                _ => value.to_string(),
            };
            let error = api::FieldError {
                field: "patch".into(),
                reason: "FieldValueInvalid",
                message: format!("Invalid value: {shown:?}: {why}"),
            };
            at.invalid(&[error])
        };
        if !patched.is_object() {
            return Err(refuse(&patched, "a patch must leave an object"));
        }
        if !matches!(self, Self::Strategic(_)) {
            for (field, named) in [("kind", "Kind"), ("apiVersion", "apiVersion")] {
                if patched[field].as_str().is_none_or(str::is_empty) {
                    return Err(refuse(&patched, &format!("Object '{named}' is missing in '{patched}'")));
                }
            }
        }
        let decoded =
            api::schema::decode_value(kind.schema, patched.clone()).map_err(|e| refuse(&patched, &e.to_string()))?;
        let warnings = body::judge(decoded.problems, validation, |why| refuse(&patched, &why))?;
        let mut object = decoded.value;
        body::check_type(kind, &mut object)?;
        Ok((object, warnings))
    }
}

/// Applies the operations one by one, so that copies are counted before they are made.
fn operate(old: &Value, patch: &[PatchOperation]) -> ApiResult<Value> {
    let mut object = old.clone();
    let mut copied = 0;
    for (i, operation) in patch.iter().enumerate() {
        if let PatchOperation::Copy(copy) = operation
            && let Some(source) = object.pointer(copy.from.as_str())
        {
            copied += source.to_string().len();
            if copied > MAX_COPIED {
                return Err(unprocessable(&format!(
                    "unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED}"
                )));
            }
        }
        json_patch::patch(&mut object, std::slice::from_ref(operation)).map_err(|mut e| {
            e.operation = i;
            unprocessable(&e.to_string())
        })?;
    }
    Ok(object)
}

/// A value as Go prints it: `map[a:map[b:1]]`.
fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut pairs: Vec<(&String, &Value)> = map.iter().collect();
            pairs.sort_by_key(|(key, _)| *key);
            let pairs: Vec<String> =
                pairs.into_iter().map(|(key, value)| format!("{key}:{}", go_text(value))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

/// Reads a merge patch.
fn object(bytes: &[u8]) -> ApiResult<Value> {
    let bad = |why: &str| ApiError::bad_request(format!("error decoding patch: {why}"));
    match serde_json::from_slice(bytes) {
        Ok(Value::Null) => Ok(Value::Object(serde_json::Map::new())),
        Ok(map @ Value::Object(_)) => Ok(map),
        Ok(other) => Err(bad(&format!(
            "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            json_type(&other)
        ))),
        Err(e) => Err(bad(&why(&e, bytes))),
    }
}

/// Refuses what is no list of operations that exist.
fn check_operations(bytes: &[u8]) -> ApiResult<()> {
    let bad = |got: &str, into: &str| {
        ApiError::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {got} into Go value of type {into}handlers.jsonPatchOp"
        ))
    };
    // What is no JSON at all is told by who reads it next.
    let Ok(patch) = serde_json::from_slice::<Value>(bytes) else { return Ok(()) };
    let Value::Array(operations) = patch else { return Err(bad(json_type(&patch), "[]")) };
    for operation in &operations {
        if !operation.is_object() {
            return Err(bad(json_type(operation), ""));
        }
        let op = operation["op"].as_str().unwrap_or("unknown");
        if !["add", "remove", "replace", "move", "copy", "test"].contains(&op) {
            return Err(unprocessable(&format!("Unexpected kind: {op}")));
        }
        if operation["path"].as_str().is_none() {
            return Err(unprocessable(&format!("{op} operation does not apply: missing path")));
        }
    }
    Ok(())
}

/// Why a text could not be read.
fn why(error: &serde_json::Error, bytes: &[u8]) -> String {
    api::schema::syntax_error(bytes).unwrap_or_else(|| error.to_string())
}

/// 422 for a patch that does not fit the object's state.
fn unprocessable(why: &str) -> ApiError {
    // Upstream keeps the reason to itself.
    let message = format!("the server rejected our request due to an error in our request: {why}");
    ApiError::new(422, "Invalid", message)
}
