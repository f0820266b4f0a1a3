//! Objects as JSON values and as stored bytes.
//!
//! - O1: stored bytes begin with `{"kind":K,"apiVersion":A,"metadata":{"resourceVersion":"` and the revision, so that a
//!   revision is written, or exchanged, without serializing again. (test)
//! - O2: a stored object carries the revision of the write that made it.
use std::{borrow::Cow, collections::BTreeSet};

use api::{Kind, Scope};
use bytes::Bytes;
use jiff::{Timestamp, fmt::strtime};
use serde_json::{Map, Value};

const REVISION_KEY: &[u8] = b"\"metadata\":{\"resourceVersion\":\"";

/// `apiVersion` of a kind.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Group and plural under which objects of a kind are stored.
pub fn stored_as(kind: &Kind) -> (&'static str, &'static str) {
    kind.face_of.map_or((kind.group, kind.plural), |face| (face.group, face.plural))
}

/// The storage prefix of a kind's objects in one namespace; an empty namespace means all of them.
pub fn prefix(kind: &Kind, namespace: &str) -> String {
    let (group, plural) = stored_as(kind);
    let group = if group.is_empty() { "core" } else { group };
    if namespace.is_empty() || kind.scope == Scope::Cluster {
        format!("/{group}/{plural}/")
    } else {
        format!("/{group}/{plural}/{namespace}/")
    }
}

/// The storage key of one object.
pub fn key(kind: &Kind, namespace: &str, name: &str) -> String {
    prefix(kind, namespace) + name
}

/// Group and plural of a storage key.
pub fn key_kind(key: &str) -> Option<(&str, &str)> {
    let mut parts = key.strip_prefix('/')?.splitn(3, '/');
    let group = parts.next()?;
    Some((if group == "core" { "" } else { group }, parts.next()?))
}

/// `prefix` plus five characters that spell no words; the prefix is cut so that the name stays a label.
pub fn generate_name(prefix: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    const SUFFIX: usize = 5;
    let mut name: String = prefix.chars().take(api::names::LABEL_MAX - SUFFIX).collect();
    name.extend((0..SUFFIX).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())])));
    name
}

/// An object serialized up to its revision.
pub struct Encoded {
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Encoded {
    /// Serializes `object`, leaving a gap for the revision.
    pub fn new(object: &Value) -> Self {
        let empty = Map::new();
        let map = object.as_object().unwrap_or(&empty);
        let mut head = b"{".to_vec();
        for field in ["kind", "apiVersion"] {
            if let Some(value) = map.get(field) {
                append(&mut head, field, value);
                head.push(b',');
            }
        }
        head.extend_from_slice(REVISION_KEY);
        let mut tail = b"\"".to_vec();
        let metadata = map.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
        for (field, value) in metadata.iter().filter(|(f, _)| *f != "resourceVersion") {
            tail.push(b',');
            append(&mut tail, field, value);
        }
        tail.push(b'}');
        for (field, value) in map.iter().filter(|(f, _)| !matches!(f.as_str(), "kind" | "apiVersion" | "metadata")) {
            tail.push(b',');
            append(&mut tail, field, value);
        }
        tail.push(b'}');
        Self { head, tail }
    }

    /// The bytes at a revision.
    pub fn at(&self, revision: u64) -> Bytes {
        join(&self.head, revision, &self.tail)
    }

    /// How long the bytes will be, but for the revision's digits.
    pub fn len(&self) -> usize {
        self.head.len() + self.tail.len()
    }
}

fn append(out: &mut Vec<u8>, field: &str, value: &Value) {
    // Serializing a Value to memory cannot fail: its keys are strings and its numbers finite.
    let _ = serde_json::to_writer(&mut *out, field);
    out.push(b':');
    let _ = serde_json::to_writer(&mut *out, value);
}

fn join(head: &[u8], revision: u64, tail: &[u8]) -> Bytes {
    let digits = revision.to_string();
    let mut bytes = Vec::with_capacity(head.len() + digits.len() + tail.len());
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(digits.as_bytes());
    bytes.extend_from_slice(tail);
    bytes.into()
}

/// Stored bytes with another revision in them.
pub fn with_revision(stored: &[u8], revision: u64) -> Bytes {
    let Some(at) = stored.windows(REVISION_KEY.len()).position(|w| w == REVISION_KEY) else {
        return Bytes::copy_from_slice(stored);
    };
    let start = at + REVISION_KEY.len();
    let end = start + stored[start..].iter().take_while(|b| b.is_ascii_digit()).count();
    join(&stored[..start], revision, &stored[end..])
}

/// Reads stored bytes as an object of `kind`.
pub fn decode(kind: &Kind, stored: &[u8]) -> Result<Value, serde_json::Error> {
    let mut object = serde_json::from_slice(stored)?;
    if let Some(face) = kind.face_of {
        (face.read)(&mut object);
    }
    Ok(object)
}

/// Stored bytes as a client of `kind` sees them.
pub fn shown<'a>(kind: &Kind, stored: &'a [u8]) -> Result<Cow<'a, [u8]>, serde_json::Error> {
    match kind.face_of {
        None => Ok(Cow::Borrowed(stored)),
        Some(_) => Ok(Cow::Owned(serde_json::to_vec(&decode(kind, stored)?)?)),
    }
}

/// A text field of `metadata`; empty where absent.
pub fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// The `metadata` of an object, made if absent.
pub fn meta_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let entry = match object {
        Value::Object(map) => map.entry("metadata").or_insert_with(|| Value::Object(Map::new())),
        _ => unreachable!("made an object above"),
    };
    if !entry.is_object() {
        *entry = Value::Object(Map::new());
    }
    entry.as_object_mut().expect("made an object above")
}

/// Sets a text field of `metadata`, or removes it where empty.
pub fn set_meta(object: &mut Value, field: &str, text: &str) {
    let meta = meta_mut(object);
    if text.is_empty() {
        meta.shift_remove(field);
    } else {
        meta.insert(field.to_owned(), text.into());
    }
}

/// The texts of a list in `metadata`, such as `finalizers`.
pub fn meta_list<'a>(object: &'a Value, field: &str) -> Vec<&'a str> {
    object
        .get("metadata")
        .and_then(|m| m.get(field))
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

/// Whether a deletion has begun.
pub fn is_deleting(object: &Value) -> bool {
    !meta(object, "deletionTimestamp").is_empty()
}

/// A time as metadata carries it: RFC 3339, whole seconds, UTC.
pub fn time_text(time: Timestamp) -> String {
    strtime::format("%Y-%m-%dT%H:%M:%SZ", time).unwrap_or_else(|_| time.to_string())
}

/// Drops repeated owners of an object; says so in a warning.
pub fn single_owners(object: &mut Value) -> Option<String> {
    let Some(Value::Array(owners)) = meta_mut(object).get_mut("ownerReferences") else { return None };
    let mut kept: Vec<Value> = Vec::with_capacity(owners.len());
    let mut twice = BTreeSet::new();
    for owner in owners.drain(..) {
        if kept.contains(&owner) {
            twice.insert(owner["uid"].as_str().unwrap_or_default().to_owned());
        } else {
            kept.push(owner);
        }
    }
    *owners = kept;
    let uids = twice.into_iter().collect::<Vec<_>>().join(", ");
    (!uids.is_empty()).then(|| format!(".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {uids}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn generated_names_stay_labels() {
        let name = generate_name(&"p".repeat(80));
        assert_eq!(name.len(), 63);
        assert!(api::names::dns_label(&name).is_empty());
        assert_ne!(generate_name("a-"), generate_name("a-"));
    }

    #[test]
    fn revision_is_written_and_exchanged_in_place() {
        let object =
            json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": "a", "resourceVersion": "7"}, "d": 1});
        let bytes = Encoded::new(&object).at(12);
        let read: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(
            read,
            json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": "a", "resourceVersion": "12"}, "d": 1})
        );
        let read: Value = serde_json::from_slice(&with_revision(&bytes, 3456)).unwrap();
        assert_eq!(read["metadata"]["resourceVersion"], "3456");
        assert_eq!(read["d"], 1);
        let bare = Encoded::new(&json!({"kind": "X"})).at(1);
        assert_eq!(&bare[..], br#"{"kind":"X","metadata":{"resourceVersion":"1"}}"#);
    }

    #[test]
    fn keys_name_their_kind() {
        assert_eq!(key_kind("/core/pods/a/b"), Some(("", "pods")));
        assert_eq!(key_kind("/storage.k8s.io/storageclasses/x"), Some(("storage.k8s.io", "storageclasses")));
        assert_eq!(key_kind("nonsense"), None);
    }

    #[test]
    fn times_have_whole_seconds() {
        assert_eq!(time_text(Timestamp::from_millisecond(1_500).unwrap()), "1970-01-01T00:00:01Z");
    }
}
