//! Strategic merge patch: a merge patch that knows which lists are merged by key, and RFC 7386 merge patch.
//!
//! Which lists those are comes from the facts about upstream's types. Patching works on plain JSON; the result is to be
//! decoded against its schema afterwards.
mod lists;

use std::fmt;

use serde_json::{Map, Value};

use crate::schema::{Definition, STRATEGIES, Type, definition, facts_of};

type Object = Map<String, Value>;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList";
const ORDER: &str = "$setElementOrder";

/// Why a patch cannot be applied. The texts are those of upstream's server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StrategicError {
    #[error("no type {0} is known: correct the schema name of its kind")]
    NoSuchType(String),
    #[error("json: cannot unmarshal {0} into Go value of type map[string]interface {{}}")]
    NotAnObject(&'static str),
    #[error("expected a {expected}, but received a {actual}")]
    WrongType { expected: &'static str, actual: &'static str },
    #[error("map: {object} does not contain declared merge key: {key}")]
    NoMergeKey { object: String, key: &'static str },
    #[error("unknown patch type: {directive} in map: {object}")]
    UnknownDirective { directive: String, object: String },
    #[error("merging lists cannot yet be specified in the patch")]
    MergeDirectiveInList,
    #[error("cannot merge lists without merge key for {0}")]
    ListWithoutMergeKey(String),
    #[error("invalid patch format of primitive list")]
    BadDeleteList,
    #[error("invalid patch format of setElementOrder list")]
    BadOrderList,
    #[error("invalid patch format of retainKeys")]
    BadRetainKeys,
    #[error("The order in patch list:\n{patch}\n doesn't match $setElementOrder list:\n{order}\n")]
    OrderMismatch { patch: String, order: String },
    #[error("lists of lists are not supported")]
    ListOfLists,
    #[error("list element types are not identical: {0}")]
    MixedElements(String),
    #[error("unable to find api field in struct {structure} for the json field {field:?}")]
    NoSuchField { structure: &'static str, field: String },
    #[error("merging an object in json but data type is not struct, instead is: {0}")]
    NotAStruct(&'static str),
}

/// Applies a strategic merge patch to an object of the type of this name.
///
/// # Errors
/// If the patch is malformed, or misuses a directive.
pub fn apply(schema: &str, original: &Value, patch: &Value) -> Result<Value, StrategicError> {
    let top = definition(schema).ok_or_else(|| StrategicError::NoSuchType(schema.to_owned()))?;
    let Value::Object(patch) = patch else { return Err(StrategicError::NotAnObject(json_type(patch))) };
    let Value::Object(original) = original else { return Err(StrategicError::NotAnObject(json_type(original))) };
    merge_object(original.clone(), patch.clone(), At(Type::Object(top))).map(Value::Object)
}

/// Applies a JSON merge patch (RFC 7386): null deletes, objects merge, all else replaces.
pub fn merge_patch(original: &Value, patch: &Value) -> Value {
    fn merge(target: &mut Value, patch: &Value) {
        let Value::Object(patch) = patch else {
            *target = patch.clone();
            return;
        };
        if !target.is_object() {
            *target = Value::Object(Object::new());
        }
        let Value::Object(target) = target else { return };
        for (key, value) in patch {
            if value.is_null() {
                target.shift_remove(key);
            } else {
                merge(target.entry(key.as_str()).or_insert(Value::Null), value);
            }
        }
    }
    let mut result = original.clone();
    merge(&mut result, patch);
    result
}

/// How a field is patched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Lists are merged, not replaced.
    pub(crate) merge: bool,
    /// Objects are replaced, not merged.
    pub(crate) replace: bool,
    /// The member by which elements are told apart; empty for lists of scalars.
    pub(crate) key: &'static str,
    /// The strategies as upstream writes them.
    pub(crate) strategies: &'static str,
}

/// The plan of a field of a type.
pub(crate) fn plan(of: &Definition, field: &str) -> Plan {
    let fact = facts_of(STRATEGIES, of.name()).find(|(name, _)| *name == field).map_or("", |(_, fact)| fact);
    let (strategies, key) = fact.split_once(':').unwrap_or((fact, ""));
    let has = |wanted| strategies.split(',').any(|strategy| strategy == wanted);
    Plan { merge: has("merge"), replace: has("replace"), key, strategies }
}

/// Where in the tree of types a patch is being applied.
#[derive(Clone, Copy)]
struct At(Type);

impl At {
    fn go_kind(self) -> &'static str {
        match self.0 {
            Type::Object(_) | Type::Any | Type::Time | Type::MicroTime | Type::Quantity | Type::IntOrString => "struct",
            Type::Map(_) => "map",
            Type::List(_) | Type::Bytes => "slice",
            Type::String => "string",
            Type::Int32 => "int32",
            Type::Int64 => "int64",
            Type::Number => "float64",
            Type::Boolean => "bool",
        }
    }

    /// The type and plan of a member.
    fn member(self, name: &str) -> Result<(Type, Plan), StrategicError> {
        match self.0 {
            Type::Object(of) => match of.field(name) {
                Some(field) => Ok((field.kind, plan(of, name))),
                None => Err(StrategicError::NoSuchField { structure: of.short_name(), field: name.to_owned() }),
            },
            _ => Err(StrategicError::NotAStruct(self.go_kind())),
        }
    }

    /// The element type and plan of a list.
    fn list(self, name: &str) -> Result<(Self, Plan), StrategicError> {
        let (kind, plan) = self.member(name)?;
        Ok((Self(if let Type::List(element) = kind { *element } else { kind }), plan))
    }
}

/// Merges a patch into an object.
fn merge_object(mut original: Object, mut patch: Object, at: At) -> Result<Object, StrategicError> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => {
                patch.shift_remove(DIRECTIVE);
                Ok(patch)
            }
            Some("delete") => Ok(Object::new()),
            _ => Err(unknown_directive(directive, &patch)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    lists::merge_ordered(&mut original, &mut patch, at)?;
    for (key, value) in patch {
        if key.starts_with(DELETE_FROM) {
            let field = field_of(&key, DELETE_FROM).ok_or(StrategicError::BadDeleteList)?;
            delete_from(&mut original, field, value, at)?;
        } else {
            merge_member(&mut original, key, value, at)?;
        }
    }
    Ok(original)
}

/// The field that a directive such as `$setElementOrder/containers` is about.
fn field_of<'a>(key: &'a str, directive: &str) -> Option<&'a str> {
    key.strip_prefix(directive)?.strip_prefix('/')
}

fn merge_member(original: &mut Object, key: String, patch: Value, at: At) -> Result<(), StrategicError> {
    if patch.is_null() {
        original.shift_remove(&key);
        return Ok(());
    }
    let merged = match (original.get_mut(&key), patch) {
        (Some(Value::Object(old)), Value::Object(patch)) => {
            let (kind, plan) = at.member(&key)?;
            if plan.replace { patch } else { merge_object(std::mem::take(old), patch, At(kind))? }.into()
        }
        (Some(Value::Array(old)), Value::Array(patch)) => {
            let (element, plan) = at.list(&key)?;
            let old = std::mem::take(old);
            Value::Array(if plan.merge { lists::merge(old, patch, element, plan.key)? } else { patch })
        }
        (_, mut patch) => {
            drop_nulls(&mut patch);
            if !drop_directives(&mut patch) {
                original.shift_remove(&key);
                return Ok(());
            }
            patch
        }
    };
    original.insert(key, merged);
    Ok(())
}

fn delete_from(original: &mut Object, field: &str, patch: Value, at: At) -> Result<(), StrategicError> {
    if patch.is_null() {
        original.shift_remove(field);
        return Ok(());
    }
    if let (Some(Value::Array(list)), Value::Array(unwanted)) = (original.get_mut(field), patch) {
        let _ = at.list(field)?;
        lists::check_elements(&[list, &unwanted])?;
        list.retain(|item| !unwanted.contains(item));
    }
    Ok(())
}

/// `$retainKeys`: what is neither listed nor patched goes.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), StrategicError> {
    let Some(keys) = patch.shift_remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keys) = keys else { return Err(StrategicError::BadRetainKeys) };
    let listed = |name: &str| keys.iter().any(|key| key.as_str() == Some(name));
    let stray = |(name, value): (&String, &Value)| {
        !value.is_null() && !name.starts_with(DELETE_FROM) && !name.starts_with(ORDER) && !listed(name)
    };
    if patch.iter().any(stray) {
        return Err(StrategicError::BadRetainKeys);
    }
    original.retain(|name, _| listed(name));
    Ok(())
}

/// Removes null members at all depths: in a new object they have nothing to delete.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Removes directives from what is new, where they have nothing to act on; false if the value itself is one.
fn drop_directives(value: &mut Value) -> bool {
    match value {
        Value::Object(map) => {
            if map.contains_key(DIRECTIVE) {
                return false;
            }
            map.retain(|name, value| {
                name != RETAIN_KEYS
                    && !name.starts_with(ORDER)
                    && !name.starts_with(DELETE_FROM)
                    && drop_directives(value)
            });
        }
        Value::Array(list) => list.retain_mut(drop_directives),
        _ => {}
    }
    true
}

fn unknown_directive(directive: &Value, object: &Object) -> StrategicError {
    StrategicError::UnknownDirective { directive: Go(directive).to_string(), object: go_map(object) }
}

fn no_merge_key(object: &Object, key: &'static str) -> StrategicError {
    StrategicError::NoMergeKey { object: go_map(object), key }
}

/// What Go's JSON libraries call a value's type.
pub fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The dynamic type that Go's decoder gives to a value.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// Prints a value as Go's `%v` does.
struct Go<'a>(&'a Value);

impl fmt::Display for Go<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Null => f.write_str("<nil>"),
            Value::String(text) => f.write_str(text),
            Value::Array(list) => f.write_str(&go_list(list)),
            Value::Object(map) => f.write_str(&go_map(map)),
            other => other.fmt(f),
        }
    }
}

fn go_map(map: &Object) -> String {
    let mut members: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", Go(value))).collect();
    members.sort_unstable();
    format!("map[{}]", members.join(" "))
}

fn go_list(list: &[Value]) -> String {
    format!("[{}]", list.iter().map(|value| Go(value).to_string()).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests;
