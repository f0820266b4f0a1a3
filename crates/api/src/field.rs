//! Field paths and the list of mistakes, in upstream's wording.
use std::fmt;

use serde::Serialize;

use crate::contract::FieldError;

/// Where a value is: `spec.containers[0].name`. Cheap to extend, written out only for a mistake.
#[derive(Clone, Copy)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    pub const ROOT: Path<'static> = Path { parent: None, step: Step::Root };

    /// A field at the top of the object.
    pub const fn top(name: &'a str) -> Path<'a> {
        Path { parent: None, step: Step::Field(name) }
    }

    pub const fn field(&'a self, name: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Field(name) }
    }

    pub const fn index(&'a self, index: usize) -> Path<'a> {
        Path { parent: Some(self), step: Step::Index(index) }
    }

    pub const fn key(&'a self, key: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Key(key) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = match self.parent {
            Some(parent) if !matches!((parent.parent, parent.step), (None, Step::Root)) => {
                parent.fmt(f)?;
                true
            }
            _ => false,
        };
        match self.step {
            Step::Root => Ok(()),
            Step::Field(name) if inner => write!(f, ".{name}"),
            Step::Field(name) => f.write_str(name),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{key}]"),
        }
    }
}

/// Collects mistakes.
#[derive(Default)]
pub struct Errors(Vec<FieldError>);

/// A value as upstream shows it: strings quoted, the rest as JSON.
fn shown(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "?".to_owned())
}

impl Errors {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn finish(self) -> Vec<FieldError> {
        self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    fn push(&mut self, at: &Path<'_>, reason: &'static str, message: String) {
        self.0.push(FieldError { field: at.to_string(), reason, message });
    }

    fn plain(&mut self, at: &Path<'_>, reason: &'static str, what: &str, detail: &str) {
        let message = if detail.is_empty() { what.to_owned() } else { format!("{what}: {detail}") };
        self.push(at, reason, message);
    }

    fn valued(&mut self, at: &Path<'_>, reason: &'static str, what: &str, value: &impl Serialize, detail: &str) {
        let value = shown(value);
        let message = if detail.is_empty() { format!("{what}: {value}") } else { format!("{what}: {value}: {detail}") };
        self.push(at, reason, message);
    }

    pub fn required(&mut self, at: &Path<'_>, detail: &str) {
        self.plain(at, "FieldValueRequired", "Required value", detail);
    }

    pub fn forbidden(&mut self, at: &Path<'_>, detail: &str) {
        self.plain(at, "FieldValueForbidden", "Forbidden", detail);
    }

    pub fn invalid(&mut self, at: &Path<'_>, value: &impl Serialize, detail: &str) {
        self.valued(at, "FieldValueInvalid", "Invalid value", value, detail);
    }

    /// A rule over several fields of an object: its value is not shown.
    pub fn invalid_whole(&mut self, at: &Path<'_>, detail: &str) {
        self.plain(at, "FieldValueInvalid", "Invalid value", detail);
    }

    /// One `invalid` per sentence, as the checks in `names` give them.
    pub fn invalid_all(&mut self, at: &Path<'_>, value: &impl Serialize, details: impl IntoIterator<Item = String>) {
        for detail in details {
            self.invalid(at, value, &detail);
        }
    }

    pub fn duplicate(&mut self, at: &Path<'_>, value: &impl Serialize) {
        self.valued(at, "FieldValueDuplicate", "Duplicate value", value, "");
    }

    pub fn not_found(&mut self, at: &Path<'_>, value: &impl Serialize) {
        self.valued(at, "FieldValueNotFound", "Not found", value, "");
    }

    /// `supported` is listed in the order given: upstream's, which is mostly sorted.
    pub fn not_supported(&mut self, at: &Path<'_>, value: &impl Serialize, supported: &[&str]) {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = if list.is_empty() { String::new() } else { format!("supported values: {}", list.join(", ")) };
        self.valued(at, "FieldValueNotSupported", "Unsupported value", value, &detail);
    }

    pub fn too_long(&mut self, at: &Path<'_>, max: usize) {
        self.plain(at, "FieldValueTooLong", "Too long", &format!("may not be more than {max} bytes"));
    }

    pub fn too_many(&mut self, at: &Path<'_>, actual: usize, max: usize) {
        let items = if max == 1 { "item" } else { "items" };
        self.valued(at, "FieldValueTooMany", "Too many", &actual, &format!("must have at most {max} {items}"));
    }

    /// The object does not fit its type although it fits the schema (a timestamp that is none, for example).
    pub(crate) fn unreadable(&mut self, error: &serde_json::Error) {
        self.push(&Path::ROOT, "FieldValueTypeInvalid", format!("Invalid value: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_written_as_upstream_writes_them() {
        let spec = Path::top("spec");
        let list = spec.field("containers");
        let item = list.index(3);
        assert_eq!(item.field("name").to_string(), "spec.containers[3].name");
        assert_eq!(spec.key("storage").to_string(), "spec[storage]");
        assert_eq!(Path::ROOT.field("data").to_string(), "data");
    }

    #[test]
    fn messages_are_upstreams() {
        let at = Path::top("f");
        let mut e = Errors::new();
        e.required(&at, "");
        e.required(&at, "why");
        e.invalid(&at, &-5, "too small");
        e.invalid(&at, &"a\"b", "");
        e.not_supported(&at, &"x", &["a", "b"]);
        e.too_many(&at, 3, 1);
        e.too_long(&at, 9);
        let got: Vec<_> = e.finish().into_iter().map(|e| e.message).collect();
        assert_eq!(
            got,
            [
                "Required value",
                "Required value: why",
                "Invalid value: -5: too small",
                "Invalid value: \"a\\\"b\"",
                "Unsupported value: \"x\": supported values: \"a\", \"b\"",
                "Too many: 3: must have at most 1 item",
                "Too long: may not be more than 9 bytes",
            ]
        );
    }
}
