//! What is derived once per write so that selectors need not read the object again.
use api::{
    Kind,
    selector::{Fields, Labels},
};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::object;

/// Facets of a stored object.
#[derive(Debug, Default)]
pub struct Facets {
    /// Empty for cluster-scoped objects.
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub uid: Box<str>,
    /// Label keys and values.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Selectable fields besides name and namespace.
    pub fields: Box<[(&'static str, Box<str>)]>,
    /// Whether a deletion has begun.
    pub deleting: bool,
    /// Unix seconds of the last occurrence; events only, zero otherwise.
    pub last_seen_s: i64,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(default, borrow)]
    name: std::borrow::Cow<'a, str>,
    #[serde(default, borrow)]
    namespace: std::borrow::Cow<'a, str>,
    #[serde(default, borrow)]
    uid: std::borrow::Cow<'a, str>,
    #[serde(default)]
    labels: Option<serde_json::Map<String, Value>>,
    #[serde(default)]
    deletion_timestamp: Option<&'a str>,
}

/// Derives the facets of a record; bytes that are no object have none.
pub fn derive(key: &str, value: &[u8]) -> Facets {
    let Ok(Head { metadata: m }) = serde_json::from_slice::<Head<'_>>(value) else { return Facets::default() };
    let mut facets = Facets {
        namespace: m.namespace.into(),
        name: m.name.into(),
        uid: m.uid.into(),
        labels: m
            .labels
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.into(), v.as_str().unwrap_or_default().into()))
            .collect(),
        fields: Box::default(),
        deleting: m.deletion_timestamp.is_some(),
        last_seen_s: 0,
    };
    let Some(kind) = kind_of(key) else { return facets };
    if kind.strategy.selectable_names().is_empty() {
        return facets;
    }
    if let Ok(object) = serde_json::from_slice::<Value>(value) {
        facets.fields = kind.strategy.selectable(&object).into_iter().map(|(f, v)| (f, v.into())).collect();
        if kind.plural == "events" {
            facets.last_seen_s = last_seen(&object);
        }
    }
    facets
}

/// The kind whose objects are stored under `key`.
pub fn kind_of(key: &str) -> Option<&'static Kind> {
    let (group, plural) = object::key_kind(key)?;
    api::KINDS.iter().find(|k| k.group == group && k.plural == plural && k.face_of.is_none())
}

fn last_seen(event: &Value) -> i64 {
    [
        &event["metadata"]["creationTimestamp"],
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["series"]["lastObservedTime"],
    ]
    .into_iter()
    .filter_map(|t| t.as_str()?.parse::<Timestamp>().ok())
    .map(Timestamp::as_second)
    .max()
    .unwrap_or_default()
}

/// A namespace, label and field selection.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    pub labels: Labels,
    pub fields: Fields,
}

impl Selection {
    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// Whether an object with these facets is selected.
    pub fn matches(&self, facets: &Facets) -> bool {
        let label = |k: &str| facets.labels.iter().find(|(l, _)| **l == *k).map(|(_, v)| &**v);
        let field = |f: &str| match f {
            "metadata.name" => Some(&*facets.name),
            "metadata.namespace" => Some(&*facets.namespace),
            _ => facets.fields.iter().find(|(name, _)| *name == f).map(|(_, v)| &**v),
        };
        self.fields.matches(field) && self.labels.matches_with(label)
    }
}
