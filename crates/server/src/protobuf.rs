//! Bodies in Kubernetes' protobuf encoding, which typed clients such as `kubectl create configmap` send.
//!
//! In: bytes of `application/vnd.kubernetes.protobuf`. Out: the same object as JSON. Answers are never protobuf.
//! Field numbers come from `protobuf.txt`.
use std::{collections::HashMap, sync::OnceLock};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::object;

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";
/// Messages nested deeper than this are refused.
const MAX_DEPTH: usize = 64;

/// The bytes are no object that this server knows.
#[derive(Debug, thiserror::Error)]
pub enum ProtobufError {
    #[error("the body does not begin with the prefix of Kubernetes protobuf")]
    NoPrefix,
    #[error("no protobuf fields are known for {0}; send JSON")]
    UnknownType(String),
    #[error("the protobuf body is malformed in {0}")]
    Malformed(String),
}

type Result<T> = std::result::Result<T, ProtobufError>;

struct Field {
    /// Empty: the message's fields are those of its parent.
    name: &'static str,
    kind: &'static str,
    /// Whether a zero value differs from an absent one.
    optional: bool,
}

type Message = HashMap<u64, Field>;

fn messages() -> &'static HashMap<&'static str, Message> {
    static MESSAGES: OnceLock<HashMap<&'static str, Message>> = OnceLock::new();
    MESSAGES.get_or_init(|| {
        let lines = include_str!("protobuf.txt").lines().filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| {
                let mut words = line.split(' ');
                let name = words.next()?;
                Some((name, words.filter_map(field).collect()))
            })
            .collect()
    })
}

fn field(word: &'static str) -> Option<(u64, Field)> {
    let (number, rest) = word.split_once(':')?;
    let (name, kind) = rest.split_once(':')?;
    let bare = kind.trim_start_matches('!');
    Some((number.parse().ok()?, Field { name, kind: bare, optional: bare.len() < kind.len() }))
}

/// Reads an object.
pub fn decode(bytes: &[u8]) -> Result<Value> {
    let envelope = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::NoPrefix)?;
    let (mut version, mut kind, mut raw) = (String::new(), String::new(), &b""[..]);
    for part in parts(envelope, "the envelope") {
        match part? {
            (1, Part::Bytes(meta)) => {
                for part in parts(meta, "the type") {
                    match part? {
                        (1, Part::Bytes(text)) => version = string(text, "apiVersion")?,
                        (2, Part::Bytes(text)) => kind = string(text, "kind")?,
                        _ => {}
                    }
                }
            }
            (2, Part::Bytes(content)) => raw = content,
            _ => {}
        }
    }
    let group = version.split_once('/').map_or("core", |(group, _)| group.split('.').next().unwrap_or(group));
    // Every group has its own DeleteOptions, all the same.
    let package = if kind == "DeleteOptions" { "meta" } else { group };
    let name = format!("{package}.{kind}");
    let (name, _) = messages()
        .get_key_value(name.as_str())
        .ok_or_else(|| ProtobufError::UnknownType(format!("{version} {kind}")))?;
    let mut fields = Map::from_iter([("apiVersion".to_owned(), version.into()), ("kind".to_owned(), kind.into())]);
    message(name, raw, 0, &mut fields)?;
    Ok(Value::Object(fields))
}

enum Part<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Double(f64),
}

/// The numbered parts of a message.
fn parts<'a>(mut bytes: &'a [u8], what: &'a str) -> impl Iterator<Item = Result<(u64, Part<'a>)>> {
    let mut failed = false;
    std::iter::from_fn(move || {
        if bytes.is_empty() || failed {
            return None;
        }
        let part = next_part(&mut bytes).ok_or_else(|| ProtobufError::Malformed(what.to_owned()));
        failed = part.is_err();
        Some(part)
    })
}

fn next_part<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Part<'a>)> {
    let tag = varint(bytes)?;
    let part = match tag & 7 {
        0 => Part::Number(varint(bytes)?),
        1 => Part::Double(f64::from_le_bytes(take(bytes, 8)?.try_into().ok()?)),
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            Part::Bytes(take(bytes, length)?)
        }
        5 => Part::Number(u64::from(u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?))),
        _ => return None,
    };
    Some((tag >> 3, part))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(length)?;
    *bytes = tail;
    Some(head)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *take(bytes, 1)?.first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn string(bytes: &[u8], what: &str) -> Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| ProtobufError::Malformed(what.to_owned()))
}

/// Adds the fields of a message to `out`.
fn message(name: &str, bytes: &[u8], depth: usize, out: &mut Map<String, Value>) -> Result<()> {
    let table = messages().get(name).ok_or_else(|| ProtobufError::UnknownType(name.to_owned()))?;
    if depth > MAX_DEPTH {
        return Err(ProtobufError::Malformed(name.to_owned()));
    }
    for part in parts(bytes, name) {
        let (number, part) = part?;
        // A number of a newer version: dropped, as the JSON decoder drops unknown fields.
        let Some(field) = table.get(&number) else { continue };
        if field.name.is_empty() {
            if let Part::Bytes(inline) = part {
                message(field.kind, inline, depth + 1, out)?;
            }
        } else if let Some(item) = field.kind.strip_prefix('*') {
            add_items(out, field.name, item, part, depth)?;
        } else if let Some(item) = field.kind.strip_prefix('%') {
            add_entry(out, field.name, item, part, depth)?;
        } else {
            let value = value(field.kind, part, depth)?;
            if field.optional || !is_zero(&value) {
                out.insert(field.name.to_owned(), value);
            }
        }
    }
    Ok(())
}

fn add_items(out: &mut Map<String, Value>, name: &str, item: &str, part: Part<'_>, depth: usize) -> Result<()> {
    let list = out.entry(name).or_insert_with(|| json!([]));
    let Value::Array(list) = list else { return Err(ProtobufError::Malformed(name.to_owned())) };
    match (item, part) {
        // Numbers may come packed.
        ("i", Part::Bytes(mut packed)) => {
            while !packed.is_empty() {
                let number = varint(&mut packed).ok_or_else(|| ProtobufError::Malformed(name.to_owned()))?;
                list.push((number as i64).into());
            }
        }
        (_, part) => list.push(value(item, part, depth)?),
    }
    Ok(())
}

fn add_entry(out: &mut Map<String, Value>, name: &str, item: &str, part: Part<'_>, depth: usize) -> Result<()> {
    let Part::Bytes(entry) = part else { return Err(ProtobufError::Malformed(name.to_owned())) };
    let (mut key, mut content) = (String::new(), None);
    for part in parts(entry, name) {
        match part? {
            (1, Part::Bytes(text)) => key = string(text, name)?,
            (2, part) => content = Some(value(item, part, depth)?),
            _ => {}
        }
    }
    let map = out.entry(name).or_insert_with(|| json!({}));
    let Value::Object(map) = map else { return Err(ProtobufError::Malformed(name.to_owned())) };
    let content = match content {
        Some(content) => content,
        None => value(item, Part::Bytes(b""), depth)?,
    };
    map.insert(key, content);
    Ok(())
}

fn value(kind: &str, part: Part<'_>, depth: usize) -> Result<Value> {
    let bad = || ProtobufError::Malformed(kind.to_owned());
    Ok(match (kind, part) {
        ("i", Part::Number(n)) => (n as i64).into(),
        ("o", Part::Number(n)) => (n != 0).into(),
        ("f", Part::Double(n)) => json!(n),
        ("s", Part::Bytes(text)) => string(text, kind)?.into(),
        ("b", Part::Bytes(bytes)) => BASE64.encode(bytes).into(),
        ("Q", Part::Bytes(bytes)) => string(first(bytes)?, kind)?.into(),
        ("R" | "F", Part::Bytes(bytes)) => {
            let raw = first(bytes)?;
            if raw.is_empty() { Value::Null } else { serde_json::from_slice(raw).map_err(|_| bad())? }
        }
        ("T" | "U", Part::Bytes(bytes)) => time(bytes, kind == "U")?,
        ("I", Part::Bytes(bytes)) => integer_or_string(bytes)?,
        ("Xs", Part::Bytes(bytes)) => {
            let mut list = Vec::new();
            for part in parts(bytes, kind) {
                if let (1, Part::Bytes(text)) = part? {
                    list.push(Value::from(string(text, kind)?));
                }
            }
            list.into()
        }
        (name, Part::Bytes(bytes)) if name.contains('.') => {
            let mut fields = Map::new();
            message(name, bytes, depth + 1, &mut fields)?;
            fields.into()
        }
        _ => return Err(bad()),
    })
}

/// The content of field 1.
fn first(bytes: &[u8]) -> Result<&[u8]> {
    let mut found = &b""[..];
    for part in parts(bytes, "a value") {
        if let (1, Part::Bytes(content)) = part? {
            found = content;
        }
    }
    Ok(found)
}

fn time(bytes: &[u8], micros: bool) -> Result<Value> {
    let (mut seconds, mut nanos) = (0, 0);
    for part in parts(bytes, "a time") {
        match part? {
            (1, Part::Number(n)) => seconds = n as i64,
            (2, Part::Number(n)) => nanos = n as i32,
            _ => {}
        }
    }
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let time = Timestamp::new(seconds, nanos).map_err(|_| ProtobufError::Malformed("a time".into()))?;
    Ok(if micros { format!("{time:.6}").into() } else { object::time_text(time).into() })
}

fn integer_or_string(bytes: &[u8]) -> Result<Value> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for part in parts(bytes, "an integer or string") {
        match part? {
            (1, Part::Number(n)) => is_text = n == 1,
            (2, Part::Number(n)) => number = n as i64,
            (3, Part::Bytes(t)) => text = string(t, "an integer or string")?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

/// Whether JSON would leave a value out.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_i64() == Some(0),
        Value::String(s) => s.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(content.len()).unwrap()][..], content].concat()
    }

    fn envelope(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [chunk(1, version.as_bytes()), chunk(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), chunk(1, &meta), chunk(2, raw)].concat()
    }

    #[test]
    fn objects_become_json() {
        // name "m", an empty generateName as Go writes it, an empty creationTimestamp
        let metadata = [chunk(1, b"m"), chunk(2, b""), chunk(8, b"")].concat();
        let entry = [chunk(1, b"a"), chunk(2, b"1")].concat();
        let immutable = [4 << 3, 0];
        let raw = [chunk(1, &metadata), chunk(2, &entry), immutable.to_vec()].concat();
        assert_eq!(
            decode(&envelope("v1", "ConfigMap", &raw)).unwrap(),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "1"}, "immutable": false})
        );
        let volume = [chunk(1, b"v"), chunk(2, &chunk(2, b""))].concat();
        let spec = chunk(1, &volume);
        let pod = decode(&envelope("v1", "Pod", &chunk(2, &spec))).unwrap();
        assert_eq!(pod["spec"]["volumes"], json!([{"name": "v", "emptyDir": {}}]));
        assert_eq!(integer_or_string(&[1 << 3, 0, 2 << 3, 80]).unwrap(), json!(80));
        assert_eq!(time(&[1 << 3, 90], false).unwrap(), json!("1970-01-01T00:01:30Z"));
        let options = decode(&envelope("apps/v1", "DeleteOptions", &[1 << 3, 5])).unwrap();
        assert_eq!(options["gracePeriodSeconds"], 5);
    }

    #[test]
    fn garbage_is_refused_without_a_panic() {
        assert!(matches!(decode(b"{}"), Err(ProtobufError::NoPrefix)));
        assert!(matches!(decode(&envelope("v1", "Teapot", b"")), Err(ProtobufError::UnknownType(_))));
        let good = envelope("v1", "ConfigMap", &chunk(1, &chunk(1, b"m")));
        // After the type alone, the object is empty rather than cut off.
        let boundary = MAGIC.len() + 2 + 4 + 11;
        for cut in (4..good.len() - 1).filter(|cut| *cut != boundary) {
            assert!(decode(&good[..cut]).is_err(), "{cut}");
        }
        let mut random = good.clone();
        for i in 4..random.len() {
            random[i] ^= 0xff;
            let _ = decode(&random);
        }
    }

    #[test]
    fn every_type_named_in_the_table_is_in_it() {
        for (name, fields) in messages() {
            for field in fields.values() {
                let inner = field.kind.trim_start_matches(['*', '%']);
                assert!(!inner.contains('.') || messages().contains_key(inner), "{name} needs {inner}");
            }
        }
        for kind in api::KINDS {
            let package = if kind.group.is_empty() { "core" } else { kind.group.split('.').next().unwrap() };
            assert!(messages().contains_key(format!("{package}.{}", kind.kind).as_str()), "{package}.{}", kind.kind);
        }
    }
}
