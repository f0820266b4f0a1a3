//! Decoding of JSON against a type: unknown fields are dropped and reported, wrong types refused.
//!
//! The wording of problems and errors is what clients of upstream's API server see.
use std::{borrow::Cow, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{
    Definition, Field, Type, definition, scalar,
    syntax::{number_before, syntax_error},
};

/// More problems than this in one object are not listed.
const MAX_PROBLEMS: usize = 100;

/// An object that fits its type.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The object without fields that its type lacks, and without nulls.
    pub value: Value,
    /// What strict field validation refuses: `unknown field "spec.foo"`, `duplicate field "data.a"`.
    pub problems: Vec<String>,
}

/// Why an object could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There is no type of this name in the library: a row in the table of kinds is wrong.
    #[error("no type {0} is known: correct the schema name of its kind")]
    NoSuchType(String),
    /// The text is not JSON.
    #[error("{message}")]
    Syntax { message: String },
    /// A value does not fit its field; the message names the field.
    #[error("{message}")]
    Mismatch {
        /// `spec.containers[0].image`; empty for the object itself.
        field: String,
        /// Upstream's wording.
        message: String,
    },
}

/// Decodes a JSON text as the type of this name.
///
/// # Errors
/// If the text is not JSON, or a value does not fit its field.
pub fn decode(schema: &str, json: &[u8]) -> Result<Decoded, DecodeError> {
    let mut cx = Context { stops_at_fraction: true, ..Context::default() };
    let top = top(schema)?;
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let result = top.read(&mut cx, &mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    let error = match result {
        Ok(value) => return cx.finish(value),
        Err(error) => error,
    };
    if let Some(message) = syntax_error(json) {
        return Err(DecodeError::Syntax { message });
    }
    match cx.error {
        Some(DecodeError::Mismatch { field, message }) => {
            let number = number_before(json, offset(json, &error)).unwrap_or("number");
            Err(DecodeError::Mismatch { field, message: message.replace(FRACTION, number) })
        }
        // Text that only our reader refuses: nested too deeply, half a surrogate pair.
        _ => Err(DecodeError::Syntax { message: error.to_string() }),
    }
}

/// Where in a text an error was noticed.
fn offset(text: &[u8], error: &serde_json::Error) -> usize {
    let before = text.split_inclusive(|b| *b == b'\n').take(error.line().saturating_sub(1));
    before.map(<[u8]>::len).sum::<usize>() + error.column()
}

/// Decodes an already parsed object as the type of this name. Duplicate fields are gone by then.
///
/// # Errors
/// If a value does not fit its field.
pub fn decode_value(schema: &str, value: Value) -> Result<Decoded, DecodeError> {
    let mut cx = Context::default();
    let read = top(schema)?.read(&mut cx, value);
    // A value was parsed before: what is wrong with it is in the context.
    cx.finish(read.map_err(|error| DecodeError::Syntax { message: error.to_string() })?)
}

/// An object of a type, to be read.
struct Top(&'static Definition);

fn top(schema: &str) -> Result<Top, DecodeError> {
    definition(schema).map(Top).ok_or_else(|| DecodeError::NoSuchType(schema.to_owned()))
}

impl Top {
    fn read<'de, D: Deserializer<'de>>(self, cx: &mut Context, deserializer: D) -> Result<Value, D::Error> {
        let kind = Type::Object(self.0);
        Visit { kind, go: Go { kind, named: None }, cx }.deserialize(deserializer)
    }
}

/// A step from the object to the value being read.
enum Step {
    Field(&'static Definition, &'static str),
    Key(String),
    Index(usize),
}

/// Stands in a message for a number whose text the reader does not tell.
const FRACTION: &str = "\u{0}";

#[derive(Default)]
struct Context {
    path: Vec<Step>,
    problems: Vec<String>,
    error: Option<DecodeError>,
    scratch: Vec<u8>,
    /// Stop reading at a fraction that does not fit, so that the caller can look up how it is written.
    stops_at_fraction: bool,
}

impl Context {
    fn finish(self, value: Value) -> Result<Decoded, DecodeError> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(Decoded { value, problems: self.problems }),
        }
    }

    /// `spec.containers[0]`
    fn path(&self) -> String {
        let mut text = String::new();
        for step in &self.path {
            let name: &str = match step {
                Step::Field(_, name) => name,
                Step::Key(name) => name,
                Step::Index(at) => {
                    text.push_str(&format!("[{at}]"));
                    continue;
                }
            };
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(name);
        }
        text
    }

    fn problem(&mut self, what: &str, name: &str) {
        if self.problems.len() >= MAX_PROBLEMS {
            return;
        }
        let path = self.path();
        let dot = if path.is_empty() { "" } else { "." };
        let problem = format!("{what} field {:?}", format!("{path}{dot}{name}"));
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Notes the first mistake; reading goes on to the end.
    fn fail(&mut self, message: String) {
        if self.error.is_none() {
            self.error = Some(DecodeError::Mismatch { field: self.path(), message });
        }
    }

    fn mismatch(&mut self, got: &str, go: Go) {
        if self.error.is_some() {
            return;
        }
        let names: Vec<&str> = self
            .path
            .iter()
            .filter_map(
                |step| if let Step::Field(of, name) = step { Some([inlined(of, name), Some(*name)]) } else { None },
            )
            .flatten()
            .flatten()
            .collect();
        let owner = self.path.iter().rev().find_map(|step| match step {
            Step::Field(owner, _) => Some(owner.short_name()),
            _ => None,
        });
        self.fail(match owner {
            Some(owner) => {
                format!("json: cannot unmarshal {got} into Go struct field {owner}.{} of type {go}", names.join("."))
            }
            None => format!("json: cannot unmarshal {got} into Go value of type {go}"),
        });
    }
}

/// The type that upstream embeds in a type for this field, where it does.
fn inlined(of: &Definition, field: &str) -> Option<&'static str> {
    let own = |fields: &[&str], inner: &'static str| (!fields.contains(&field)).then_some(inner);
    match of.short_name() {
        "Volume" => own(&["name"], "VolumeSource"),
        "PersistentVolumeSpec" => own(crate::types::volume::NOT_SOURCES, "PersistentVolumeSource"),
        "EphemeralContainer" => own(&["targetContainerName"], "EphemeralContainerCommon"),
        "Probe" => ["exec", "httpGet", "tcpSocket", "grpc"].contains(&field).then_some("ProbeHandler"),
        "ConfigMapEnvSource"
        | "ConfigMapKeySelector"
        | "ConfigMapProjection"
        | "ConfigMapVolumeSource"
        | "SecretEnvSource"
        | "SecretKeySelector"
        | "SecretProjection" => (field == "name").then_some("LocalObjectReference"),
        _ => None,
    }
}

/// A type as Go prints it.
#[derive(Clone, Copy)]
struct Go {
    kind: Type,
    named: Option<&'static str>,
}

impl Go {
    fn element(self, kind: Type) -> Self {
        Self { kind, named: self.named.filter(|name| !name.starts_with('!')) }
    }
}

impl fmt::Display for Go {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(whole) = self.named.and_then(|name| name.strip_prefix('!')) {
            return write!(f, "v1.{whole}");
        }
        match (self.kind, self.named) {
            (Type::List(element), _) => write!(f, "[]{}", self.element(*element)),
            (Type::Map(element), _) => write!(f, "map[string]{}", self.element(*element)),
            (Type::Object(of), _) => {
                let version = of.name().rsplit('.').nth(1).unwrap_or("v1");
                write!(f, "{version}.{}", of.short_name())
            }
            (_, Some(name)) => write!(f, "v1.{name}"),
            (Type::String, _) => f.write_str("string"),
            (Type::Int32, _) => f.write_str("int32"),
            (Type::Int64, _) => f.write_str("int64"),
            (Type::Number, _) => f.write_str("float64"),
            (Type::Boolean, _) => f.write_str("bool"),
            (Type::Quantity, _) => f.write_str("resource.Quantity"),
            (Type::IntOrString, _) => f.write_str("intstr.IntOrString"),
            (Type::Time, _) => f.write_str("v1.Time"),
            (Type::MicroTime, _) => f.write_str("v1.MicroTime"),
            (Type::Bytes, _) => f.write_str("[]uint8"),
            (Type::Any, _) => f.write_str("interface {}"),
        }
    }
}

/// Reads one value of a type. A mistake is noted in the context and gives null.
struct Visit<'a> {
    kind: Type,
    go: Go,
    cx: &'a mut Context,
}

impl<'de> DeserializeSeed<'de> for Visit<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.kind {
            Type::Any => serde::Deserialize::deserialize(deserializer),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl Visit<'_> {
    fn mismatch(self, got: &str) -> Value {
        match self.kind {
            // These have decoders of their own, which do not know the field.
            Type::Time | Type::MicroTime => {
                self.cx.fail(format!("json: cannot unmarshal {got} into Go value of type string"));
            }
            Type::IntOrString => self.cx.fail(format!("json: cannot unmarshal {got} into Go value of type int32")),
            Type::Quantity => {
                let message = scalar::quantity("x").err().unwrap_or_default();
                self.cx.fail(message.to_owned());
            }
            _ => self.cx.mismatch(got, self.go),
        }
        Value::Null
    }

    fn checked(self, result: Result<String, String>) -> Value {
        match result {
            Ok(text) => Value::String(text),
            Err(message) => {
                self.cx.fail(message);
                Value::Null
            }
        }
    }

    /// A whole number, by its range and its text.
    fn integer(self, small: Option<i64>, number: serde_json::Number) -> Value {
        let fits = match self.kind {
            Type::Int32 | Type::IntOrString => small.is_some_and(|value| i32::try_from(value).is_ok()),
            Type::Int64 => small.is_some(),
            Type::Number => true,
            Type::Quantity => return Value::String(number.to_string()),
            _ => return self.mismatch("number"),
        };
        if fits { Value::Number(number) } else { self.mismatch(&format!("number {number}")) }
    }

    fn text(self, text: Cow<'_, str>) -> Value {
        match self.kind {
            Type::String | Type::IntOrString => Value::String(text.into_owned()),
            Type::Quantity => {
                let result = scalar::quantity(&text).map(str::to_owned).map_err(str::to_owned);
                self.checked(result)
            }
            Type::Bytes => {
                let mut scratch = std::mem::take(&mut self.cx.scratch);
                let result = scalar::bytes(&text, &mut scratch);
                self.cx.scratch = scratch;
                self.checked(result)
            }
            Type::Time => self.checked(scalar::time(&text, false)),
            Type::MicroTime => self.checked(scalar::time(&text, true)),
            _ => self.mismatch("string"),
        }
    }

    fn object<'de, A: MapAccess<'de>>(
        cx: &mut Context,
        of: &'static Definition,
        mut map: A,
    ) -> Result<Value, A::Error> {
        let mut object = Map::new();
        let mut seen = Seen::default();
        while let Some(field) = map.next_key_seed(Name { of, cx: &mut *cx })? {
            let Some((at, field)) = field else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if !seen.add(at) {
                cx.problem("duplicate", field.name);
            }
            cx.path.push(Step::Field(of, field.name));
            let go = Go { kind: field.kind, named: field.named };
            let value = map.next_value_seed(Visit { kind: field.kind, go, cx: &mut *cx })?;
            cx.path.pop();
            if absent(field, &value) {
                // The last of several wins, also when it says "nothing".
                object.shift_remove(field.name);
            } else {
                object.insert(field.name.to_owned(), value);
            }
        }
        Ok(Value::Object(object))
    }

    fn entries<'de, A: MapAccess<'de>>(self, element: Type, mut map: A) -> Result<Value, A::Error> {
        let Self { go, cx, .. } = self;
        let nested = matches!(element, Type::Object(_) | Type::List(_) | Type::Map(_));
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                cx.problem("duplicate", &key);
            }
            if nested {
                cx.path.push(Step::Key(key.clone()));
            }
            let value = map.next_value_seed(Visit { kind: element, go: go.element(element), cx: &mut *cx })?;
            if nested {
                cx.path.pop();
            }
            object.insert(key, present(element, value));
        }
        Ok(Value::Object(object))
    }
}

/// Whether a field's value says no more than its absence.
fn absent(field: &Field, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty() && !field.required && matches!(field.kind, Type::List(_)),
        Value::Object(map) => map.is_empty() && !field.required && matches!(field.kind, Type::Map(_)),
        Value::String(text) => field.drops_zero && text.is_empty(),
        Value::Bool(flag) => field.drops_zero && !flag,
        Value::Number(number) => field.drops_zero && number.as_f64() == Some(0.0),
    }
}

/// An element of a list or map: null stands for the type's zero value.
fn present(kind: Type, value: Value) -> Value {
    match (value, kind) {
        (Value::Null, Type::String | Type::Bytes) => Value::String(String::new()),
        (Value::Null, Type::Int32 | Type::Int64 | Type::Number | Type::IntOrString) => Value::from(0),
        (Value::Null, Type::Boolean) => Value::Bool(false),
        (Value::Null, Type::Quantity) => Value::String("0".to_owned()),
        (Value::Null, Type::Object(_) | Type::Map(_)) => Value::Object(Map::new()),
        (Value::Null, Type::List(_)) => Value::Array(Vec::new()),
        (value, _) => value,
    }
}

/// Which fields of an object were seen; no type has more than 128.
#[derive(Default)]
struct Seen(u128);

impl Seen {
    /// False if it was there already.
    fn add(&mut self, at: usize) -> bool {
        let bit = 1u128.checked_shl(u32::try_from(at).unwrap_or(u32::MAX)).unwrap_or(0);
        let new = self.0 & bit == 0;
        self.0 |= bit;
        new
    }
}

/// Reads a field's name without copying it; `None` for an unknown one, which is reported.
struct Name<'a> {
    of: &'static Definition,
    cx: &'a mut Context,
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<(usize, &'static Field)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<(usize, &'static Field)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        let fields = self.of.fields();
        match fields.binary_search_by(|field| field.name.cmp(name)) {
            Ok(at) => Ok(Some((at, &fields[at]))),
            Err(_) => {
                self.cx.problem("unknown", name);
                Ok(None)
            }
        }
    }
}

impl<'de> Visitor<'de> for Visit<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(match self.kind {
            Type::Boolean => Value::Bool(value),
            _ => self.mismatch("bool"),
        })
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(self.integer(Some(value), value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(self.integer(i64::try_from(value).ok(), value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(match self.kind {
            Type::Number => Value::from(value),
            Type::Quantity => Value::String(value.to_string()),
            Type::Int32 | Type::Int64 | Type::IntOrString if self.cx.stops_at_fraction && self.cx.error.is_none() => {
                self.mismatch(&format!("number {FRACTION}"));
                return Err(E::custom("a fraction where a whole number is expected"));
            }
            Type::Int32 | Type::Int64 | Type::IntOrString => self.mismatch(&format!("number {value}")),
            _ => self.mismatch("number"),
        })
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(self.text(Cow::Borrowed(text)))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(self.text(Cow::Owned(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let Type::List(element) = self.kind else {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(self.mismatch("array"));
        };
        let Self { go, cx, .. } = self;
        let mut values = Vec::new();
        loop {
            cx.path.push(Step::Index(values.len()));
            let value = list.next_element_seed(Visit { kind: *element, go: go.element(*element), cx: &mut *cx })?;
            cx.path.pop();
            match value {
                Some(value) => values.push(present(*element, value)),
                None => return Ok(Value::Array(values)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        match self.kind {
            Type::Object(of) => Self::object(self.cx, of, map),
            Type::Map(element) => self.entries(*element, map),
            _ => {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(self.mismatch("object"))
            }
        }
    }
}
