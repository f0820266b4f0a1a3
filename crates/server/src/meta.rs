//! Rules of `metadata` that hold for every kind.
use std::collections::BTreeSet;

use api::{FieldError, Kind, Scope};
use serde_json::Value;

use crate::{names, object};

fn error(field: impl Into<String>, reason: &'static str, message: String) -> FieldError {
    FieldError { field: field.into(), reason, message }
}

fn invalid(field: &str, value: &Value, why: &str) -> FieldError {
    error(field, "FieldValueInvalid", format!("Invalid value: {value}: {why}"))
}

/// How names of a kind are spelled.
fn name_problems(kind: &Kind, name: &str) -> Vec<String> {
    match (kind.group, kind.kind) {
        ("", "Namespace") => names::dns_label(name),
        ("", "Service") => names::dns_1035_label(name),
        ("rbac.authorization.k8s.io", _) => names::path_segment(name),
        _ => names::dns_subdomain(name),
    }
}

/// Mistakes in the `metadata` of any object.
pub fn validate(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = object::meta(object, "name");
    if name.is_empty() {
        errors.push(error(
            "metadata.name",
            "FieldValueRequired",
            "Required value: name or generateName is required".into(),
        ));
    } else {
        let problems = name_problems(kind, name);
        errors.extend(problems.iter().map(|p| invalid("metadata.name", &name.into(), p)));
    }
    let namespace = object::meta(object, "namespace");
    match kind.scope {
        Scope::Namespace if namespace.is_empty() => {
            errors.push(error("metadata.namespace", "FieldValueRequired", "Required value".into()));
        }
        Scope::Namespace => {
            let problems = names::dns_label(namespace);
            errors.extend(problems.iter().map(|p| invalid("metadata.namespace", &namespace.into(), p)));
        }
        Scope::Cluster if !namespace.is_empty() => errors.push(error(
            "metadata.namespace",
            "FieldValueForbidden",
            "Forbidden: not allowed on this type".into(),
        )),
        Scope::Cluster => {}
    }
    let metadata = &object["metadata"];
    labels(&metadata["labels"], &mut errors);
    annotations(&metadata["annotations"], &mut errors);
    owners(&metadata["ownerReferences"], &mut errors);
    finalizers(object, &mut errors);
    errors
}

fn labels(labels: &Value, errors: &mut Vec<FieldError>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        let problems = names::qualified_name(key);
        errors.extend(problems.iter().map(|p| invalid("metadata.labels", &key.as_str().into(), p)));
        let problems = names::label_value(value.as_str().unwrap_or_default());
        errors.extend(problems.iter().map(|p| invalid("metadata.labels", value, p)));
    }
}

fn annotations(annotations: &Value, errors: &mut Vec<FieldError>) {
    const LIMIT: usize = 256 * 1024;
    let mut size = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        size += key.len() + value.as_str().map_or(0, str::len);
        let problems = names::qualified_name(&key.to_lowercase());
        errors.extend(problems.iter().map(|p| invalid("metadata.annotations", &key.as_str().into(), p)));
    }
    if size > LIMIT {
        let message = format!("Too long: may not be more than {LIMIT} bytes");
        errors.push(error("metadata.annotations", "FieldValueTooLong", message));
    }
}

fn owners(owners: &Value, errors: &mut Vec<FieldError>) {
    let field = "metadata.ownerReferences";
    let mut controller: Option<String> = None;
    for owner in owners.as_array().into_iter().flatten() {
        let text = |f: &str| owner[f].as_str().unwrap_or_default();
        let version = text("apiVersion").rsplit('/').next().unwrap_or_default();
        for (part, value, why) in [
            ("apiVersion", version, "version must not be empty"),
            ("kind", text("kind"), "must not be empty"),
            ("name", text("name"), "must not be empty"),
            ("uid", text("uid"), "must not be empty"),
        ] {
            if value.is_empty() {
                errors.push(invalid(&format!("{field}.{part}"), &text(part).into(), why));
            }
        }
        if (text("apiVersion"), text("kind")) == ("v1", "Event") {
            errors.push(invalid(field, owner, "/v1, Kind=Event is disallowed from being an owner"));
        }
        if owner["controller"] == true {
            let this = format!("{}/{}", text("kind"), text("name"));
            match &controller {
                Some(first) => {
                    let why = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    );
                    errors.push(invalid(field, owners, &why));
                }
                None => controller = Some(this),
            }
        }
    }
}

fn finalizers(object: &Value, errors: &mut Vec<FieldError>) {
    let list = object::meta_list(object, "finalizers");
    for finalizer in &list {
        let problems = names::qualified_name(finalizer);
        errors.extend(problems.iter().map(|p| invalid("metadata.finalizers", &(*finalizer).into(), p)));
    }
    if list.contains(&"orphan") && list.contains(&"foregroundDeletion") {
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(invalid("metadata.finalizers", &list.clone().into(), why));
    }
}

/// Mistakes in a change of `metadata`, beyond those of [`validate`].
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    if !object::is_deleting(old) {
        return Vec::new();
    }
    let before: BTreeSet<&str> = object::meta_list(old, "finalizers").into_iter().collect();
    let after: BTreeSet<&str> = object::meta_list(new, "finalizers").into_iter().collect();
    let added: Vec<&str> = after.difference(&before).copied().collect();
    if added.is_empty() {
        return Vec::new();
    }
    let quoted: Vec<String> = added.iter().map(|f| format!("{f:?}")).collect();
    let message = format!(
        "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
        quoted.join(", ")
    );
    vec![error("metadata.finalizers", "FieldValueForbidden", message)]
}
