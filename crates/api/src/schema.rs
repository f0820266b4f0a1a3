//! What fields every API type has, and strict decoding of JSON against that.
//!
//! The tables come from the type library's own schemas; they are built when a type is first asked for and kept in a
//! compact form. A type is named as in OpenAPI: `io.k8s.api.core.v1.Pod`.
mod decode;
mod facts;
mod roots;
mod scalar;
mod syntax;

use std::{
    collections::HashMap,
    sync::{OnceLock, PoisonError, RwLock},
};

use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

pub use decode::{DecodeError, Decoded, decode, decode_value};
pub(crate) use facts::{ATOMIC, LISTS, STRATEGIES};
pub use syntax::syntax_error;

/// What a field or an element holds.
#[derive(Debug, Clone, Copy)]
pub enum Type {
    String,
    Int32,
    Int64,
    Number,
    Boolean,
    /// A number with a unit, as a string: `10Gi`.
    Quantity,
    IntOrString,
    /// RFC 3339 to the second.
    Time,
    /// RFC 3339 with exactly six fractional digits.
    MicroTime,
    /// Base64.
    Bytes,
    Object(&'static Definition),
    List(&'static Type),
    /// Values of one type under keys of the client's choice.
    Map(&'static Type),
    /// Anything; not looked into.
    Any,
}

/// A field of an object type.
#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    pub kind: Type,
    /// The schema demands it.
    pub required: bool,
    /// Zero means the same as absent, and is not kept.
    drops_zero: bool,
    /// Written as null where it holds nothing.
    null: bool,
    /// Go's name of the (element) type, if it has its own; with a leading `!` it names the whole list or map.
    named: Option<&'static str>,
}

/// An object type.
pub struct Definition {
    name: &'static str,
    fields: OnceLock<Box<[Field]>>,
}

impl std::fmt::Debug for Definition {
    // Types refer to each other in circles: only the name is printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Definition").field(&self.name).finish()
    }
}

impl Definition {
    /// The full name, `io.k8s.api.core.v1.Pod`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The last part of the name, `Pod`.
    pub fn short_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    /// All fields, sorted by name.
    pub fn fields(&self) -> &[Field] {
        self.fields.get().map_or(&[], |fields| fields)
    }

    /// The field of this name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        let fields = self.fields();
        fields.binary_search_by(|field| field.name.cmp(name)).ok().map(|at| &fields[at])
    }
}

type Table = HashMap<&'static str, &'static Definition>;

static TABLE: OnceLock<RwLock<Table>> = OnceLock::new();

/// The object type of this name, or `None` if no such type is known.
///
/// The first call for a kind builds the table of all types below it (a few milliseconds).
pub fn definition(name: &str) -> Option<&'static Definition> {
    let table = TABLE.get_or_init(RwLock::default);
    if let Some(found) = table.read().unwrap_or_else(PoisonError::into_inner).get(name) {
        return Some(found);
    }
    let root = roots::ROOTS.iter().find(|root| (root.name)() == name)?;
    let mut generator = SchemaGenerator::default();
    (root.generate)(&mut generator);
    let definitions = generator.take_definitions(false);
    let mut table = table.write().unwrap_or_else(PoisonError::into_inner);
    add(&mut table, &definitions);
    table.get(name).copied()
}

/// Adds to an object of the type of this name the fields that upstream writes also where they hold nothing, as null, in place
/// of empty lists and structures too. Of an unknown type nothing is changed.
pub fn write_nulls(schema: &str, object: &mut Value) {
    if let Some(definition) = definition(schema) {
        nulls(Type::Object(definition), object);
    }
}

fn nulls(kind: Type, value: &mut Value) {
    match (kind, value) {
        (Type::Object(definition), Value::Object(map)) => {
            for field in definition.fields() {
                match map.get_mut(field.name) {
                    Some(value) if field.null && (*value == json!([]) || *value == json!({})) => *value = Value::Null,
                    Some(value) => nulls(field.kind, value),
                    None if field.null => drop(map.insert(field.name.to_owned(), Value::Null)),
                    None => {}
                }
            }
        }
        (Type::List(element), Value::Array(list)) => list.iter_mut().for_each(|value| nulls(*element, value)),
        (Type::Map(element), Value::Object(map)) => map.values_mut().for_each(|value| nulls(*element, value)),
        _ => {}
    }
}

/// The schemas of the named types and of all types below them, references pointing under `path` (`/components/schemas`).
pub(crate) fn library_schemas<'a>(names: impl Iterator<Item = &'a str>, path: &'static str) -> Map<String, Value> {
    let settings = schemars::generate::SchemaSettings::draft2020_12().with(|s| s.definitions_path = path.into());
    let mut generator = settings.into_generator();
    for name in names {
        if let Some(root) = roots::ROOTS.iter().find(|root| (root.name)() == name) {
            (root.generate)(&mut generator);
        }
    }
    generator.take_definitions(false)
}

/// Whether [`definition`] can build the table of this type.
pub(crate) fn is_root(name: &str) -> bool {
    roots::ROOTS.iter().any(|root| (root.name)() == name)
}

/// The name under which the tables of facts know a type: `core.v1.Pod`.
pub(crate) fn fact_name(schema: &str) -> &str {
    schema
        .strip_prefix("io.k8s.api.")
        .or_else(|| schema.strip_prefix("io.k8s.apimachinery.pkg.apis."))
        .unwrap_or(schema)
}

/// The row of a type in a table of facts, as (field, fact) pairs.
pub(crate) fn facts_of(
    table: &'static [(&'static str, &'static str)],
    schema: &str,
) -> impl Iterator<Item = (&'static str, &'static str)> {
    let name = fact_name(schema);
    let row = table.binary_search_by(|(row, _)| (*row).cmp(name)).map_or("", |at| table[at].1);
    row.split_ascii_whitespace().map(|fact| fact.split_once('=').unwrap_or((fact, "")))
}

/// Adds all definitions that the table lacks: first all names, so that fields can refer to any of them.
fn add(table: &mut Table, definitions: &Map<String, Value>) {
    let mut new = Vec::new();
    for (name, schema) in definitions {
        if !table.contains_key(name.as_str()) && special(name).is_none() && schema.get("properties").is_some() {
            let definition: &'static Definition =
                Box::leak(Box::new(Definition { name: keep(name), fields: OnceLock::new() }));
            table.insert(definition.name, definition);
            new.push((definition, schema));
        }
    }
    for (definition, schema) in new {
        // Set exactly once: the definition was made above, under the lock.
        let _ = definition.fields.set(fields(table, definition.name, schema));
    }
}

fn fields(table: &Table, name: &str, schema: &Value) -> Box<[Field]> {
    let required: Vec<&str> =
        schema["required"].as_array().map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default();
    let zero: Vec<_> = facts_of(facts::ZERO, name).map(|(field, _)| field).collect();
    let nulls: Vec<_> = facts_of(facts::NULLS, name).map(|(field, _)| field).collect();
    let named: Vec<_> = facts_of(facts::NAMED, name).collect();
    let none = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&none);
    let mut fields: Vec<Field> = properties
        .iter()
        .map(|(field, schema)| Field {
            name: keep(field),
            kind: type_of(table, schema),
            required: required.contains(&field.as_str()),
            drops_zero: zero.contains(&field.as_str()),
            null: nulls.contains(&field.as_str()),
            named: named.iter().find(|(name, _)| name == field).map(|(_, go)| *go),
        })
        .collect();
    fields.sort_unstable_by_key(|field| field.name);
    fields.into_boxed_slice()
}

fn type_of(table: &Table, schema: &Value) -> Type {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or(reference);
        return special(name).or_else(|| table.get(name).map(|found| Type::Object(found))).unwrap_or(Type::Any);
    }
    match (schema["type"].as_str(), schema["format"].as_str()) {
        (Some("string"), Some("byte")) => Type::Bytes,
        (Some("string"), _) => Type::String,
        (Some("integer"), Some("int32")) => Type::Int32,
        (Some("integer"), _) => Type::Int64,
        (Some("number"), _) => Type::Number,
        (Some("boolean"), _) => Type::Boolean,
        (Some("array"), _) => Type::List(keep_type(type_of(table, &schema["items"]))),
        (Some("object"), _) => match schema.get("additionalProperties") {
            Some(values) => Type::Map(keep_type(type_of(table, values))),
            None => Type::Any,
        },
        _ => Type::Any,
    }
}

/// Types with a form of their own.
fn special(name: &str) -> Option<Type> {
    match name.strip_prefix("io.k8s.apimachinery.pkg.")? {
        "api.resource.Quantity" => Some(Type::Quantity),
        "util.intstr.IntOrString" => Some(Type::IntOrString),
        "apis.meta.v1.Time" => Some(Type::Time),
        "apis.meta.v1.MicroTime" => Some(Type::MicroTime),
        _ => None,
    }
}

/// Keeps a name for the life of the process. Every type is added once, so that this is bounded.
fn keep(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

fn keep_type(kind: Type) -> &'static Type {
    Box::leak(Box::new(kind))
}

#[cfg(test)]
mod tests;
