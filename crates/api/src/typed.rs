//! Rules written on typed objects, and the adapter that lets the server apply them to JSON.
use std::marker::PhantomData;

use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::contract::{Column, FieldError, SelectableFields, Strategy};
use crate::field::Errors;

/// What each kind must and may say about itself.
///
/// `default`, `validate` and `row` have no fallback, so a new kind cannot forget them.
pub trait Rules: Serialize + DeserializeOwned + 'static {
    /// Columns of `kubectl get`, in the order of the cells of `row`.
    const COLUMNS: &'static [Column];
    /// Whether `status` is a subresource: then writes of the main resource leave it alone.
    const STATUS: bool = false;
    /// Whether a new object may bring its status along (nodes do).
    const STATUS_AT_CREATE: bool = false;
    /// Whether changes of all but metadata and status count up `metadata.generation`.
    const GENERATION: bool = false;
    /// Whether updates are warned of too: not where programs write often and people seldom.
    const WARNS_OF_UPDATES: bool = true;
    /// Fields besides name and namespace that a field selector may name.
    const SELECTABLE: &'static [&'static str] = &[];

    /// Fills in defaults; idempotent.
    fn default(&mut self);
    /// Collects the mistakes in a new object.
    fn validate(&self, e: &mut Errors);
    /// Cells, one per column.
    fn row(&self, now: Timestamp) -> Vec<Value>;

    /// Collects the mistakes in a changed object.
    fn validate_update(&self, _old: &Self, e: &mut Errors) {
        self.validate(e);
    }
    /// Collects the mistakes in a changed status.
    fn validate_status_update(&self, _old: &Self, _e: &mut Errors) {}
    /// Adjusts a new object, `status` being dropped already where it is a subresource.
    fn prepare_create(&mut self) {}
    /// Adjusts a changed object, `status` being the old one already where it is a subresource.
    fn prepare_update(&mut self, _old: &Self) {}
    /// Adjusts a changed status, all but `status` and `metadata` being the old ones already.
    fn prepare_status_update(&mut self, _old: &Self) {}
    /// Sentences for the `Warning` header.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
    /// Values of the fields in `SELECTABLE`.
    fn selectable(&self) -> SelectableFields {
        Vec::new()
    }
    /// Seconds that a graceful deletion gives, asked for `requested`.
    fn deletion_grace(&self, _requested: Option<i64>) -> i64 {
        0
    }
}

/// The strategy of the type `T`: read, apply the rule, write back.
pub struct Typed<T>(PhantomData<fn() -> T>);

impl<T> Typed<T> {
    pub const NEW: Self = Typed(PhantomData);
}

impl<T: Rules> Typed<T> {
    /// The object as its type. It fits the schema, so that failing means a value that the schema cannot refuse
    /// (a malformed timestamp): `validate` reports it, the other rules leave the object alone.
    fn read(object: &Value) -> Result<T, serde_json::Error> {
        T::deserialize(object)
    }

    fn edit(object: &mut Value, f: impl FnOnce(&mut T)) {
        let Ok(mut typed) = Self::read(object) else { return };
        f(&mut typed);
        Self::write(object, &typed);
    }

    fn edit_with(new: &mut Value, old: &Value, f: impl FnOnce(&mut T, &T)) {
        if let Ok(old) = Self::read(old) {
            Self::edit(new, |new| f(new, &old));
        }
    }

    fn write(object: &mut Value, typed: &T) {
        let Ok(mut value) = serde_json::to_value(typed) else { return };
        drop_empty(&mut value);
        *object = value;
    }

    fn check(new: &Value, old: Option<&Value>, f: impl FnOnce(&T, Option<&T>, &mut Errors)) -> Vec<FieldError> {
        let mut errors = Errors::new();
        match (Self::read(new), old.map(Self::read).transpose()) {
            (Ok(new), Ok(old)) => f(&new, old.as_ref(), &mut errors),
            (Err(error), _) => errors.unreadable(&error),
            // What is stored cannot be read: only a full check of the new state is left.
            (Ok(new), Err(_)) => f(&new, None, &mut errors),
        }
        errors.finish()
    }
}

/// Upstream never writes empty lists, nor the name of a reference that has none; `null` and absent mean the same.
fn drop_empty(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !matches!(v, Value::Array(a) if a.is_empty()));
            if map.len() == 1 && map.get("name").and_then(Value::as_str) == Some("") {
                map.clear();
            }
            map.values_mut().for_each(drop_empty);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_empty),
        _ => {}
    }
}

fn set_status(object: &mut Value, status: Option<&Value>) {
    if let Value::Object(map) = object {
        match status {
            Some(status) => map.insert("status".to_owned(), status.clone()),
            None => map.shift_remove("status"),
        };
    }
}

impl<T: Rules> Strategy for Typed<T> {
    fn default(&self, object: &mut Value) {
        Self::edit(object, |o| {
            o.default();
        });
    }

    fn prepare_create(&self, object: &mut Value) {
        if T::STATUS && !T::STATUS_AT_CREATE {
            set_status(object, None);
        }
        Self::edit(object, T::prepare_create);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        if T::STATUS {
            set_status(new, old.get("status"));
        }
        Self::edit_with(new, old, T::prepare_update);
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        let (Value::Object(map), Value::Object(was)) = (&mut *new, old) else { return };
        map.retain(|key, _| {
            matches!(key.as_str(), "status" | "metadata" | "apiVersion" | "kind") || was.contains_key(key)
        });
        for (key, value) in was {
            if !matches!(key.as_str(), "status" | "metadata" | "apiVersion" | "kind") {
                map.insert(key.clone(), value.clone());
            }
        }
        Self::edit_with(new, old, T::prepare_status_update);
    }

    fn generation_changes(&self, new: &Value, old: &Value) -> Option<bool> {
        let counted = |key: &str| !matches!(key, "status" | "metadata" | "apiVersion" | "kind");
        let (Value::Object(new), Value::Object(old)) = (new, old) else { return T::GENERATION.then_some(false) };
        let differs = |a: &Map<String, Value>, b: &Map<String, Value>| {
            a.iter().any(|(key, value)| counted(key) && b.get(key) != Some(value))
        };
        T::GENERATION.then(|| differs(new, old) || differs(old, new))
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        Self::check(object, None, |o, _, e| o.validate(e))
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        Self::check(new, Some(old), |new, old, e| match old {
            Some(old) => new.validate_update(old, e),
            None => new.validate(e),
        })
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        Self::check(new, Some(old), |new, old, e| {
            if let Some(old) = old {
                new.validate_status_update(old, e);
            }
        })
    }

    fn update_warnings(&self, object: &Value) -> Vec<String> {
        if T::WARNS_OF_UPDATES { self.warnings(object) } else { Vec::new() }
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        Self::read(object).map(|o| o.warnings()).unwrap_or_default()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        match Self::read(object) {
            Ok(typed) => typed.row(now),
            Err(_) => {
                let name = object.pointer("/metadata/name").cloned().unwrap_or_default();
                T::COLUMNS
                    .iter()
                    .map(|c| if c.format == "name" { name.clone() } else { Value::from("<unknown>") })
                    .collect()
            }
        }
    }

    fn selectable(&self, object: &Value) -> SelectableFields {
        Self::read(object).map(|o| o.selectable()).unwrap_or_default()
    }

    fn selectable_names(&self) -> &'static [&'static str] {
        T::SELECTABLE
    }

    fn deletion_grace(&self, object: &Value, requested: Option<i64>) -> i64 {
        Self::read(object).map(|o| o.deletion_grace(requested)).unwrap_or_default()
    }
}
