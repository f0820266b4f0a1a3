//! The schemas of a document: those of the type library, with what upstream adds to them.
use serde_json::{Map, Value, json};

use super::{Flavour, body_schema, gvk};
use crate::{
    contract::Kind,
    schema::{ATOMIC, LISTS, STRATEGIES, fact_name, facts_of, library_schemas},
};

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
pub(super) const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
pub(super) const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const GVK: &str = "x-kubernetes-group-version-kind";

/// All schemas that the kinds and their subresources reach.
pub(super) fn schemas(kinds: &[&Kind], flavour: Flavour) -> Map<String, Value> {
    // (schema, group, version, kind) of what carries its kind.
    let mut named: Vec<(String, &str, &str, &str)> =
        vec![(STATUS.to_owned(), "", "v1", "Status"), (DELETE_OPTIONS.to_owned(), "", "v1", "DeleteOptions")];
    for kind in kinds {
        named.push((kind.schema.to_owned(), kind.group, kind.version, kind.kind));
        for (group, version, body) in kind.subresources.iter().filter_map(|sub| sub.body) {
            if let Some(schema) = body_schema(group, version, body) {
                named.push((schema, group, version, body));
            }
        }
    }
    let names = named.iter().map(|(schema, ..)| schema.as_str()).chain([LIST_META]);
    let mut schemas = library_schemas(names, flavour.definitions());
    for (name, schema) in &mut schemas {
        decorate(name, schema, flavour);
    }
    for (schema, group, version, kind) in named {
        if let Some(Value::Object(schema)) = schemas.get_mut(&schema) {
            schema.insert(GVK.to_owned(), json!([gvk(group, version, kind)]));
        }
    }
    for kind in kinds {
        schemas.insert(list_name(kind), list(kind, flavour));
    }
    let mut sorted: Vec<(String, Value)> = schemas.into_iter().collect();
    sorted.sort_unstable_by(|left, right| left.0.cmp(&right.0));
    sorted.into_iter().collect()
}

/// The schema name of a kind's list.
pub(super) fn list_name(kind: &Kind) -> String {
    format!("{}List", kind.schema)
}

fn list(kind: &Kind, flavour: Flavour) -> Value {
    let (name, group, version) = (kind.kind, kind.group, kind.version);
    json!({
        "description": format!("{name}List is a list of {} objects.", kind.plural),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": { "description": "The version of this representation.", "type": "string" },
            "items": {
                "description": format!("The objects of kind {name}."),
                "type": "array",
                "items": flavour.reference(kind.schema),
            },
            "kind": { "description": format!("{name}List."), "type": "string" },
            "metadata": described(flavour.reference(LIST_META), "Metadata of the list.", flavour),
        },
        GVK: [gvk(group, version, &format!("{name}List"))],
    })
}

fn described(reference: Value, description: &str, flavour: Flavour) -> Value {
    match (flavour, reference) {
        (Flavour::V3, reference) => json!({ "description": description, "allOf": [reference] }),
        (Flavour::V2, mut reference) => {
            reference["description"] = Value::from(description);
            reference
        }
    }
}

/// Brings a schema of the library to upstream's form.
fn decorate(name: &str, schema: &mut Value, flavour: Flavour) {
    let Value::Object(object) = schema else { return };
    if name == QUANTITY || name == INT_OR_STRING {
        object.shift_remove("x-kubernetes-int-or-string");
        let number = if name == QUANTITY { "number" } else { "integer" };
        match flavour {
            Flavour::V3 => drop(object.insert("oneOf".into(), json!([{ "type": "string" }, { "type": number }]))),
            Flavour::V2 => drop(object.insert("type".into(), json!("string"))),
        }
        if name == INT_OR_STRING {
            object.insert("format".into(), json!("int-or-string"));
        }
        return;
    }
    if ATOMIC.binary_search(&fact_name(name)).is_ok() {
        object.insert("x-kubernetes-map-type".into(), json!("atomic"));
    }
    // The library demands metadata of every object; upstream does not.
    if let Some(Value::Array(required)) = object.get_mut("required") {
        required.retain(|field| field != "metadata");
        if required.is_empty() {
            object.shift_remove("required");
        }
    }
    let Some(Value::Object(properties)) = object.get_mut("properties") else { return };
    for (field, fact) in facts_of(STRATEGIES, name) {
        let Some(Value::Object(property)) = properties.get_mut(field) else { continue };
        let (strategies, key) = fact.split_once(':').unwrap_or((fact, ""));
        if !key.is_empty() {
            property.insert("x-kubernetes-patch-merge-key".into(), json!(key));
        }
        property.insert("x-kubernetes-patch-strategy".into(), json!(strategies));
    }
    for (field, fact) in facts_of(LISTS, name) {
        let Some(Value::Object(property)) = properties.get_mut(field) else { continue };
        match fact.split_once(':') {
            Some((_, keys)) => {
                property.insert("x-kubernetes-list-map-keys".into(), keys.split(',').collect());
                property.insert("x-kubernetes-list-type".into(), json!("map"));
            }
            None if fact == "atomicmap" => drop(property.insert("x-kubernetes-map-type".into(), json!("atomic"))),
            None => drop(property.insert("x-kubernetes-list-type".into(), json!(fact))),
        }
    }
    if flavour == Flavour::V3 {
        properties.values_mut().for_each(wrap_reference);
    }
}

/// Version 3 ignores what stands beside a `$ref`: such references move into `allOf`.
fn wrap_reference(property: &mut Value) {
    if let Value::Object(object) = property
        && object.len() > 1
        && let Some(reference) = object.shift_remove("$ref")
    {
        object.insert("allOf".to_owned(), json!([{ "$ref": reference }]));
    }
}
