//! Errors as clients see them: `Status` objects with upstream's codes, reasons, messages and details.
use std::collections::HashSet;

use api::FieldError;
use serde_json::{Map, Value, json};

/// An answer other than success. Becomes a `Status` body.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason; empty where upstream has none.
    pub reason: &'static str,
    /// What a person reads.
    pub message: String,
    /// `details` of the Status.
    pub details: Option<Box<Map<String, Value>>>,
    /// Continue token that a client may go on with although its own expired.
    pub fresh_continue: Option<String>,
}

/// Result of everything a request goes through.
pub type ApiResult<T> = Result<T, ApiError>;

/// What an error is about: a resource of a group, and the name of the object.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// API group, empty for core.
    pub group: &'a str,
    /// Plural.
    pub resource: &'a str,
    /// Object's name; may be empty.
    pub name: &'a str,
}

impl Subject<'_> {
    /// `storageclasses.storage.k8s.io`
    fn qualified(&self) -> String {
        qualified(self.resource, self.group)
    }

    fn details(&self) -> Map<String, Value> {
        let mut details = Map::new();
        for (key, text) in [("name", self.name), ("group", self.group), ("kind", self.resource)] {
            if !text.is_empty() {
                details.insert(key.into(), text.into());
            }
        }
        details
    }
}

fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

impl ApiError {
    /// An error without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None, fresh_continue: None }
    }

    fn about(code: u16, reason: &'static str, subject: Subject<'_>, message: String) -> Self {
        Self { details: Some(Box::new(subject.details())), ..Self::new(code, reason, message) }
    }

    /// 404 for an object.
    pub fn not_found(subject: Subject<'_>) -> Self {
        let message = format!("{} {:?} not found", subject.qualified(), subject.name);
        Self::about(404, "NotFound", subject, message)
    }

    /// 404 for a path inside an API.
    pub fn no_such_resource() -> Self {
        let details = Some(Box::default());
        Self { details, ..Self::new(404, "NotFound", "the server could not find the requested resource") }
    }

    /// 409 for a name already taken.
    pub fn already_exists(subject: Subject<'_>) -> Self {
        let message = format!("{} {:?} already exists", subject.qualified(), subject.name);
        Self::about(409, "AlreadyExists", subject, message)
    }

    /// 409 for a precondition that does not hold.
    pub fn conflict(subject: Subject<'_>, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {:?}: {why}", subject.qualified(), subject.name);
        Self::about(409, "Conflict", subject, message)
    }

    /// 409 for a stale resourceVersion.
    pub fn modified(subject: Subject<'_>) -> Self {
        Self::conflict(
            subject,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 403 about an object.
    pub fn forbidden(subject: Subject<'_>, why: &str) -> Self {
        let message = match (subject.resource, subject.name) {
            ("", _) => format!("forbidden: {why}"),
            (_, "") => format!("{} is forbidden: {why}", subject.qualified()),
            (_, name) => format!("{} {name:?} is forbidden: {why}", subject.qualified()),
        };
        Self::about(403, "Forbidden", subject, message)
    }

    /// 422 with one cause per mistake.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let mut seen = HashSet::new();
        let texts: Vec<String> = errors
            .iter()
            .map(|e| if e.message.is_empty() { e.field.clone() } else { format!("{}: {}", e.field, e.message) })
            .filter(|text| seen.insert(text.clone()))
            .collect();
        let all = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let causes: Vec<Value> =
            errors.iter().map(|e| json!({"reason": e.reason, "message": e.message, "field": e.field})).collect();
        let subject = Subject { group, resource: kind, name };
        let mut details = subject.details();
        details.insert("causes".into(), causes.into());
        let message = if errors.is_empty() {
            format!("{} {name:?} is invalid", qualified(kind, group))
        } else {
            format!("{} {name:?} is invalid: {all}", qualified(kind, group))
        };
        Self { details: Some(Box::new(details)), ..Self::new(422, "Invalid", message) }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 405 for a verb that a path never has.
    pub fn method_not_allowed() -> Self {
        let details = Some(Box::default());
        Self {
            details,
            ..Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        }
    }

    /// 406.
    pub fn not_acceptable() -> Self {
        Self::new(
            406,
            "NotAcceptable",
            "only the following media types are accepted: application/json, application/yaml, \
             application/json;stream=watch",
        )
    }

    /// 415.
    pub fn unsupported_media_type(accepted: &str) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!("the body of the request was in an unknown format - accepted media types include: {accepted}"),
        )
    }

    /// 413.
    pub fn too_large(limit: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity is too large: limit is {limit}"))
    }

    /// 410 for a revision that is no longer kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 504 for a revision that this server has not reached.
    pub fn too_large_resource_version(asked: u64, current: u64) -> Self {
        let causes = json!([{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]);
        let details = Map::from_iter([("causes".to_owned(), causes), ("retryAfterSeconds".to_owned(), Value::from(1))]);
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        Self { details: Some(Box::new(details)), ..Self::new(504, "Timeout", message) }
    }

    /// 504 for a request that took too long.
    pub fn timeout(why: &str) -> Self {
        Self { details: Some(Box::default()), ..Self::new(504, "Timeout", format!("Timeout: {why}")) }
    }

    /// 500.
    pub fn internal(why: impl std::fmt::Display) -> Self {
        let why = why.to_string();
        let causes = json!([{"message": why}]);
        let details = Map::from_iter([("causes".to_owned(), causes)]);
        Self {
            details: Some(Box::new(details)),
            ..Self::new(500, "InternalError", format!("Internal error occurred: {why}"))
        }
    }

    /// Adds a cause to the details.
    pub fn with_cause(mut self, reason: &str, message: &str, field: &str) -> Self {
        let mut cause = Map::from_iter([("reason".to_owned(), reason.into()), ("message".to_owned(), message.into())]);
        if !field.is_empty() {
            cause.insert("field".into(), field.into());
        }
        let details = self.details.get_or_insert_default();
        if let Value::Array(causes) = details.entry("causes").or_insert_with(|| json!([])) {
            causes.push(cause.into());
        }
        self
    }

    /// The `Status` object.
    pub fn to_value(&self) -> Value {
        let mut metadata = Map::new();
        if let Some(token) = &self.fresh_continue {
            metadata.insert("continue".into(), token.as_str().into());
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure", "message": self.message,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if let Some(details) = &self.details {
            status["details"] = Value::Object((**details).clone());
        }
        status["code"] = self.code.into();
        status
    }
}

/// A `Status` telling of success about an object.
pub fn success(group: &str, resource: &str, name: &str, uid: &str) -> Value {
    let mut details = Subject { group, resource, name }.details();
    if !uid.is_empty() {
        details.insert("uid".into(), uid.into());
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(field: &str, message: &str) -> FieldError {
        FieldError { field: field.into(), reason: "FieldValueInvalid", message: message.into() }
    }

    #[test]
    fn messages_are_worded_as_upstream() {
        let core = Subject { group: "", resource: "configmaps", name: "m" };
        let storage = Subject { group: "storage.k8s.io", resource: "storageclasses", name: "s" };
        for (e, want) in [
            (ApiError::not_found(core), "configmaps \"m\" not found"),
            (ApiError::not_found(storage), "storageclasses.storage.k8s.io \"s\" not found"),
            (ApiError::already_exists(core), "configmaps \"m\" already exists"),
            (ApiError::forbidden(core, "no"), "configmaps \"m\" is forbidden: no"),
            (ApiError::forbidden(Subject { name: "", ..core }, "no"), "configmaps is forbidden: no"),
            (
                ApiError::modified(core),
                "Operation cannot be fulfilled on configmaps \"m\": the object has been modified; please apply your changes to the latest version and try again",
            ),
            (ApiError::invalid("", "Pod", "p", &[error("a", "b")]), "Pod \"p\" is invalid: a: b"),
            (
                ApiError::invalid("g", "X", "p", &[error("a", "b"), error("c", "d"), error("c", "d")]),
                "X.g \"p\" is invalid: [a: b, c: d]",
            ),
        ] {
            assert_eq!(e.message, want);
        }
    }

    #[test]
    fn body_carries_details_and_causes() {
        let body = ApiError::invalid("", "Pod", "p", &[error("spec.a", "Invalid value: 1")]).to_value();
        assert_eq!(body["code"], 422);
        assert_eq!(body["details"]["causes"][0]["field"], "spec.a");
        let body = ApiError::forbidden(Subject { group: "", resource: "pods", name: "p" }, "x")
            .with_cause("NamespaceTerminating", "namespace n is being terminated", "metadata.namespace")
            .to_value();
        assert_eq!(body["details"]["causes"][0]["reason"], "NamespaceTerminating");
    }
}
