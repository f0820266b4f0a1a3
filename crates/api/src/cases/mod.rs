//! Tables of cases: objects, and the fields at fault in them with the reason.
mod defaults;
mod other;
mod pod;
mod rows;
mod snapshot;
mod updates;
mod volumes;

use serde_json::{Value, json};

use crate::contract::{FieldError, Kind};

pub(super) const REQUIRED: &str = "FieldValueRequired";
pub(super) const INVALID: &str = "FieldValueInvalid";
pub(super) const FORBIDDEN: &str = "FieldValueForbidden";
pub(super) const DUPLICATE: &str = "FieldValueDuplicate";
pub(super) const UNSUPPORTED: &str = "FieldValueNotSupported";
pub(super) const NOT_FOUND: &str = "FieldValueNotFound";
pub(super) const TOO_LONG: &str = "FieldValueTooLong";
pub(super) const TOO_MANY: &str = "FieldValueTooMany";

/// The kind of that name; `events.k8s.io` is asked for by path only.
pub(super) fn kind(name: &str) -> &'static Kind {
    crate::KINDS.iter().find(|k| k.kind == name && k.face_of.is_none()).expect("a known kind")
}

/// An object of a kind: `body` with `apiVersion`, `kind` and a name.
pub(super) fn object(name: &str, body: Value) -> Value {
    let kind = kind(name);
    let api = if kind.group.is_empty() { kind.version.to_owned() } else { format!("{}/{}", kind.group, kind.version) };
    let mut object = json!({"apiVersion": api, "kind": name, "metadata": {"name": "x", "namespace": "n"}});
    for (key, value) in body.as_object().expect("an object") {
        object[key] = value.clone();
    }
    object
}

/// As the server sees a new object: with defaults, ready for validation.
pub(super) fn created(name: &str, body: Value) -> Value {
    let mut object = object(name, body);
    let strategy = kind(name).strategy;
    strategy.default(&mut object);
    strategy.prepare_create(&mut object);
    object
}

fn pairs(errors: &[FieldError]) -> Vec<(&str, &'static str)> {
    errors.iter().map(|e| (e.field.as_str(), e.reason)).collect()
}

/// Checks that creating the object is refused for exactly these fields and reasons.
#[track_caller]
pub(super) fn check(name: &str, body: Value, want: &[(&str, &'static str)]) {
    let object = created(name, body);
    let errors = kind(name).strategy.validate(&object);
    assert_eq!(pairs(&errors), want, "{errors:#?}\n{object:#}");
}

/// Checks that changing a valid object by a merge of `change` is refused for exactly these fields and reasons.
#[track_caller]
pub(super) fn check_update(name: &str, old: Value, change: Value, want: &[(&str, &'static str)]) -> Vec<FieldError> {
    let strategy = kind(name).strategy;
    let old = created(name, old);
    assert_eq!(pairs(&strategy.validate(&old)), [], "the old object is valid");
    let mut new = old.clone();
    merge(&mut new, &change);
    strategy.default(&mut new);
    strategy.prepare_update(&mut new, &old);
    let errors = strategy.validate_update(&new, &old);
    assert_eq!(pairs(&errors), want, "{errors:#?}");
    errors
}

/// JSON merge patch.
pub(super) fn merge(into: &mut Value, change: &Value) {
    let Value::Object(change) = change else {
        *into = change.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in change {
        if value.is_null() {
            into.as_object_mut().expect("an object").shift_remove(key);
        } else {
            merge(&mut into[key], value);
        }
    }
}
