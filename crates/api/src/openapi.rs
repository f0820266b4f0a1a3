//! OpenAPI documents, version 3 (one per group and version, and their index) and version 2 (JSON and protobuf).
//!
//! Made on request from the table of kinds and the type library; a document is a few megabytes at most and takes some
//! tens of milliseconds, so callers keep it, best compressed.
mod paths;
mod proto;
mod schemas;

use serde_json::{Map, Value, json};

use crate::contract::Kind;

/// Media type of [`v2_protobuf`].
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The version of the API that documents claim to describe.
const VERSION: &str = "v1.36.0";

/// Which version of the specification a document follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flavour {
    V2,
    V3,
}

impl Flavour {
    /// Where schemas live, as a JSON pointer.
    fn definitions(self) -> &'static str {
        match self {
            Self::V2 => "/definitions",
            Self::V3 => "/components/schemas",
        }
    }

    /// A reference to a schema.
    fn reference(self, schema: &str) -> Value {
        json!({ "$ref": format!("#{}/{schema}", self.definitions()) })
    }
}

/// The index at `/openapi/v3`.
pub fn v3_index(kinds: &[Kind]) -> Value {
    let mut paths = Map::new();
    for kind in kinds {
        let root = root(kind.group, kind.version);
        let url = format!("/openapi/v3/{root}?hash={}", hash(kinds, &root));
        paths.entry(root).or_insert_with(|| json!({ "serverRelativeURL": url }));
    }
    json!({ "paths": paths })
}

/// Names a document's content: changes whenever the document does, and with any change to this crate. Costs nothing:
/// the document is not made.
///
/// `root` is `api/v1` or `apis/GROUP/VERSION`; empty for the version 2 document.
pub fn hash(kinds: &[Kind], root: &str) -> String {
    // FNV-1a, twice with different seeds, over all that a document is made from.
    let mut halves = [0xcbf2_9ce4_8422_2325_u64, 0x9ae1_6a3b_2f90_404f];
    let mut add = |text: &str| {
        for half in &mut halves {
            for byte in text.bytes().chain([0]) {
                *half = (*half ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
    };
    for text in [env!("SOURCES_HASH"), root] {
        add(text);
    }
    for kind in kinds {
        for text in [kind.group, kind.version, kind.plural, kind.schema] {
            add(text);
        }
        kind.subresources.iter().for_each(|sub| add(sub.name));
    }
    format!("{:016X}{:016X}", halves[0], halves[1])
}

/// The version 3 document of a group and version as JSON text, or `None` if no kind is in it.
pub fn v3_document(kinds: &[Kind], group: &str, version: &str) -> Option<Vec<u8>> {
    let own: Vec<&Kind> = kinds.iter().filter(|kind| kind.group == group && kind.version == version).collect();
    if own.is_empty() {
        return None;
    }
    let document = json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": VERSION },
        "paths": paths::paths(&own, Flavour::V3),
        "components": { "schemas": schemas::schemas(&own, Flavour::V3) },
    });
    Some(document.to_string().into_bytes())
}

/// The version 2 document as JSON text.
pub fn v2_json(kinds: &[Kind]) -> Vec<u8> {
    v2(kinds).to_string().into_bytes()
}

/// The version 2 document as protobuf, which kubectl up to 1.29 asks for.
pub fn v2_protobuf(kinds: &[Kind]) -> Vec<u8> {
    proto::document(&v2(kinds))
}

fn v2(kinds: &[Kind]) -> Value {
    let all: Vec<&Kind> = kinds.iter().collect();
    json!({
        "swagger": "2.0",
        "info": { "title": "Kubernetes", "version": VERSION },
        "paths": paths::paths(&all, Flavour::V2),
        "definitions": schemas::schemas(&all, Flavour::V2),
    })
}

/// `api/v1`, `apis/apps/v1`
fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The schema name of the body of a subresource, if it is one that the type library knows.
fn body_schema(group: &str, version: &str, kind: &str) -> Option<String> {
    let group = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
    let name = format!("io.k8s.api.{group}.{version}.{kind}");
    crate::schema::is_root(&name).then_some(name)
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({ "group": group, "kind": kind, "version": version })
}

#[cfg(test)]
mod tests;
