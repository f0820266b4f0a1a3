//! Metadata: what is valid in every object, and the form of names per kind.
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::check::{IMMUTABLE, items, text};
use crate::contract::{FieldError, Kind, Scope};
use crate::field::{Errors, Path};
use crate::names;

/// The rule for names of a kind.
fn name_rule(kind: &Kind) -> fn(&str) -> Vec<String> {
    match (kind.group, kind.kind) {
        ("", "Namespace") => names::dns_label,
        // The name becomes a DNS name of its own.
        ("", "Service") => names::dns_1035_label,
        // Roles are named by what they allow: `system:node`.
        ("rbac.authorization.k8s.io", _) => names::path_segment,
        // Depends on its signer, and is looked at with it.
        ("certificates.k8s.io", "ClusterTrustBundle") => names::path_segment,
        _ => names::dns_subdomain,
    }
}

fn read(object: &Value) -> Result<ObjectMeta, serde_json::Error> {
    object.get("metadata").map_or_else(|| Ok(ObjectMeta::default()), ObjectMeta::deserialize)
}

/// The mistakes in the metadata of a new object, whose name is already generated where it had only a prefix.
///
/// `Errors` are in upstream's order: name, namespace, labels, annotations, owners, finalizers.
pub fn validate_metadata(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let mut e = Errors::new();
    match read(object) {
        Ok(meta) => {
            name(kind, &meta, &mut e);
            common(kind, &meta, &mut e);
        }
        Err(error) => e.unreadable(&error),
    }
    e.finish()
}

/// The mistakes in changed metadata, `validate_metadata` included.
pub fn validate_metadata_update(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut e = Errors::new();
    let (new, old) = match (read(new), read(old)) {
        (Ok(new), Ok(old)) => (new, old),
        (Err(error), _) => {
            e.unreadable(&error);
            return e.finish();
        }
        (_, Err(_)) => return e.finish(),
    };
    let at = Path::top("metadata");
    if old.deletion_timestamp.is_some() {
        let had = old.finalizers.clone().unwrap_or_default();
        let extra: Vec<&String> = items(&new.finalizers).filter(|f| !had.contains(f)).collect();
        if !extra.is_empty() {
            let list = extra.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ");
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}"
            );
            e.forbidden(&at.field("finalizers"), &detail);
        }
    }
    if text(&new.resource_version).is_empty() {
        e.invalid(&at.field("resourceVersion"), &"", "must be specified for an update");
    }
    for (field, new, old) in
        [("name", &new.name, &old.name), ("namespace", &new.namespace, &old.namespace), ("uid", &new.uid, &old.uid)]
    {
        if text(new) != text(old) {
            e.invalid(&at.field(field), &text(new), IMMUTABLE);
        }
    }
    common(kind, &new, &mut e);
    e.finish()
}

fn name(kind: &Kind, meta: &ObjectMeta, e: &mut Errors) {
    let at = Path::top("metadata");
    let rule = name_rule(kind);
    let prefix = text(&meta.generate_name);
    if !prefix.is_empty() {
        e.invalid_all(&at.field("generateName"), &prefix, names::prefix_of(rule, prefix));
    }
    match text(&meta.name) {
        "" => e.required(&at.field("name"), "name or generateName is required"),
        name => {
            // One mistake is told once.
            let mut problems = rule(name);
            if problems.is_empty() {
                problems = names::path_segment(name);
            }
            e.invalid_all(&at.field("name"), &name, problems);
        }
    }
}

fn common(kind: &Kind, meta: &ObjectMeta, e: &mut Errors) {
    let at = Path::top("metadata");
    let namespace = text(&meta.namespace);
    match kind.scope {
        Scope::Namespace if namespace.is_empty() => e.required(&at.field("namespace"), ""),
        Scope::Namespace => e.dns_label(&at.field("namespace"), namespace),
        Scope::Cluster if !namespace.is_empty() => e.forbidden(&at.field("namespace"), "not allowed on this type"),
        Scope::Cluster => {}
    }
    e.not_negative(&at.field("generation"), meta.generation.unwrap_or(0));
    e.labels(&at.field("labels"), &meta.labels);
    e.annotations(&at.field("annotations"), &meta.annotations);
    owners(&at.field("ownerReferences"), meta.owner_references.as_deref().unwrap_or_default(), e);
    let at = at.field("finalizers");
    for finalizer in items(&meta.finalizers) {
        e.label_key(&at, finalizer);
    }
    // Leases and events never had finalizers of the old, unqualified form to tell apart.
    let standard = |name: &str| ["kubernetes", "orphan", "foregroundDeletion"].contains(&name);
    for (i, finalizer) in items(&meta.finalizers).enumerate().filter(|_| !["Lease", "Event"].contains(&kind.kind)) {
        if !finalizer.contains('/') && !standard(finalizer) {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            e.invalid(&at.index(i), finalizer, detail);
        }
    }
    let has = |name: &str| items(&meta.finalizers).any(|f| f == name);
    if has("orphan") && has("foregroundDeletion") {
        e.invalid(&at, &meta.finalizers, "finalizer orphan and foregroundDeletion cannot be both set");
    }
}

fn owners(at: &Path<'_>, owners: &[OwnerReference], e: &mut Errors) {
    let mut controller = None;
    for owner in owners {
        // Upstream names the list, not the item.
        let (group, version) = match owner.api_version.split_once('/') {
            None => ("", owner.api_version.as_str()),
            // With two slashes it is no version at all.
            Some((group, version)) => (group, if version.contains('/') { "" } else { version }),
        };
        if version.is_empty() {
            e.invalid(&at.field("apiVersion"), &owner.api_version, "version must not be empty");
        }
        for (field, value) in [("kind", &owner.kind), ("name", &owner.name), ("uid", &owner.uid)] {
            if value.is_empty() {
                e.invalid(&at.field(field), value, "must not be empty");
            }
        }
        if (group, version, owner.kind.as_str()) == ("", "v1", "Event") {
            e.invalid(at, &shown(owner), "/v1, Kind=Event is disallowed from being an owner");
        }
        if owner.controller == Some(true) {
            let this = format!("{}/{}", owner.kind, owner.name);
            match &controller {
                Some(first) => {
                    let detail = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    );
                    e.invalid(at, &owners.iter().map(shown).collect::<Vec<_>>(), &detail);
                }
                None => controller = Some(this),
            }
        }
    }
}

/// An owner with its fields in upstream's order.
fn shown(owner: &OwnerReference) -> Value {
    let mut shown = json!({"apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid});
    for (field, set) in [("controller", owner.controller), ("blockOwnerDeletion", owner.block_owner_deletion)] {
        if let Some(set) = set {
            shown[field] = set.into();
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find;

    fn check(plural: &str, metadata: Value, want: &[(&str, &str)]) {
        let kind = find("", "v1", plural).expect("known");
        let got = validate_metadata(kind, &json!({"metadata": metadata}));
        let got: Vec<(&str, &str)> = got.iter().map(|e| (e.field.as_str(), e.reason)).collect();
        assert_eq!(got, want, "{plural} {metadata}");
    }

    #[test]
    fn metadata_is_checked_for_every_kind() {
        let invalid = "FieldValueInvalid";
        let ok = |extra: Value| {
            let mut m = json!({"name": "x", "namespace": "n"});
            m.as_object_mut().expect("a map").extend(extra.as_object().expect("a map").clone());
            m
        };
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true});
        check("configmaps", ok(json!({})), &[]);
        check("configmaps", json!({"namespace": "n"}), &[("metadata.name", "FieldValueRequired")]);
        check("configmaps", json!({"name": "x"}), &[("metadata.namespace", "FieldValueRequired")]);
        check("nodes", ok(json!({})), &[("metadata.namespace", "FieldValueForbidden")]);
        check("configmaps", ok(json!({"name": "A"})), &[("metadata.name", invalid)]);
        check("configmaps", ok(json!({"name": "x".repeat(254)})), &[("metadata.name", invalid)]);
        check("configmaps", ok(json!({"name": "a/b"})), &[("metadata.name", invalid)]);
        check("configmaps", ok(json!({"name": "a.b"})), &[]);
        check("namespaces", json!({"name": "a.b"}), &[("metadata.name", invalid)]);
        check("services", ok(json!({"name": "1a"})), &[("metadata.name", invalid)]);
        check("configmaps", ok(json!({"generateName": "g-"})), &[]);
        check("configmaps", ok(json!({"generateName": "G-"})), &[("metadata.generateName", invalid)]);
        check("configmaps", ok(json!({"labels": {"not ok": "x"}})), &[("metadata.labels", invalid)]);
        check("configmaps", ok(json!({"labels": {"a": "b c"}})), &[("metadata.labels", invalid)]);
        check("configmaps", ok(json!({"annotations": {"Upper.Case/Key": "any thing"}})), &[]);
        check(
            "configmaps",
            ok(json!({"annotations": {"a": "x".repeat(256 * 1024)}})),
            &[("metadata.annotations", "FieldValueTooLong")],
        );
        check(
            "configmaps",
            ok(json!({"finalizers": ["not ok"]})),
            &[("metadata.finalizers", invalid), ("metadata.finalizers[0]", invalid)],
        );
        check("configmaps", ok(json!({"finalizers": ["mine"]})), &[("metadata.finalizers[0]", invalid)]);
        check("configmaps", ok(json!({"finalizers": ["a.b/c", "orphan"]})), &[]);
        check(
            "configmaps",
            ok(json!({"finalizers": ["orphan", "foregroundDeletion"]})),
            &[("metadata.finalizers", invalid)],
        );
        check("configmaps", ok(json!({"ownerReferences": [owner]})), &[]);
        check("configmaps", ok(json!({"ownerReferences": [owner, owner]})), &[("metadata.ownerReferences", invalid)]);
        check(
            "configmaps",
            ok(json!({"ownerReferences": [{"apiVersion": "v1", "kind": "", "name": "p", "uid": "u"}]})),
            &[("metadata.ownerReferences.kind", invalid)],
        );
        check(
            "configmaps",
            ok(json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Event", "name": "p", "uid": "u"}]})),
            &[("metadata.ownerReferences", invalid)],
        );
    }

    #[test]
    fn updates_keep_identity_and_add_no_finalizers_late() {
        let kind = find("", "v1", "configmaps").expect("known");
        let old = json!({"metadata": {"name": "x", "namespace": "n", "uid": "u", "resourceVersion": "1", "deletionTimestamp": "2020-01-01T00:00:00Z", "finalizers": ["a.b/c"]}});
        assert!(validate_metadata_update(kind, &old, &old).is_empty());
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!(["a.b/c", "d.e/f"]);
        new["metadata"]["name"] = json!("y");
        new["metadata"].as_object_mut().expect("a map").remove("resourceVersion");
        let got = validate_metadata_update(kind, &new, &old);
        let fields: Vec<&str> = got.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(fields, ["metadata.finalizers", "metadata.resourceVersion", "metadata.name"]);
        assert!(got[0].message.contains("[]string{\"d.e/f\"}"), "{}", got[0].message);
    }
}
