//! The patch formats: JSON patch, merge patch, strategic merge patch.
use api::Kind;
use json_patch::PatchOperation;
use serde_json::Value;

use crate::{
    body,
    options::Validation,
    status::{ApiError, ApiResult},
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
        let bad = |e: serde_json::Error| ApiError::bad_request(format!("error decoding patch: {e}"));
        match media_type {
            "application/json-patch+json" => {
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
            "application/merge-patch+json" => Ok(Self::Merge(object(bytes).map_err(bad)?)),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic(object(bytes).map_err(bad)?)),
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
    pub fn apply(&self, kind: &Kind, old: &Value, validation: Validation) -> ApiResult<(Value, Vec<String>)> {
        let patched = match self {
            Self::Json(patch) => operate(old, patch)?,
            Self::Merge(patch) => api::strategic::merge_patch(old, patch),
            Self::Strategic(patch) => {
                api::strategic::apply(kind.schema, old, patch).map_err(|e| ApiError::bad_request(e.to_string()))?
            }
        };
        let refuse = |value: &Value, why: &str| {
            let error = api::FieldError {
                field: "patch".into(),
                reason: "FieldValueInvalid",
                message: format!("Invalid value: {:?}: {why}", value.to_string()),
            };
            ApiError::invalid("", "", "", &[error])
        };
        if !patched.is_object() {
            return Err(refuse(&patched, "the patched object is no object"));
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

fn object(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let map: serde_json::Map<String, Value> = serde_json::from_slice(bytes)?;
    Ok(Value::Object(map))
}

/// 422 for a patch that does not fit the object's state.
fn unprocessable(why: &str) -> ApiError {
    // Upstream keeps the reason to itself.
    let message = format!("the server rejected our request due to an error in our request: {why}");
    ApiError::new(422, "Invalid", message)
}
