//! Objects, lists and watch events in the forms that clients ask for.
use api::Kind;
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{
    negotiate::{self, Form, Include, Shape},
    object,
    options::Query,
    read::Found,
    status::{ApiError, ApiResult},
    write::corrupt,
};

/// Reads `includeObject`.
pub fn include(query: &Query) -> ApiResult<Include> {
    match query.get("includeObject").unwrap_or_default() {
        "" | "Metadata" => Ok(Include::Metadata),
        "None" => Ok(Include::None),
        "Object" => Ok(Include::Object),
        other => Err(ApiError::bad_request(format!(
            "unrecognized includeObject value: {other:?}; use None, Metadata or Object"
        ))),
    }
}

/// One object from its stored bytes.
pub fn object(kind: &Kind, form: Form, include: Include, code: u16, stored: &Bytes) -> ApiResult<Response> {
    let plain = |stored: &Bytes| -> ApiResult<Response> {
        let json = match kind.face_of {
            None => stored.clone(),
            Some(_) => object::shown(kind, stored).map_err(|e| corrupt(kind.plural, &e))?.into_owned().into(),
        };
        Ok(negotiate::bytes(code, form, json))
    };
    match form.shape {
        Shape::Object | Shape::Discovery(_) => plain(stored),
        Shape::Table => {
            let object = decode(kind, stored)?;
            let metadata = json!({"resourceVersion": object::meta(&object, "resourceVersion")});
            let rows = vec![row(kind, object, include, Timestamp::now())];
            Ok(negotiate::value(code, form, &table(kind, metadata, rows, true)))
        }
        Shape::Metadata => Ok(negotiate::value(code, form, &partial(decode(kind, stored)?))),
    }
}

fn decode(kind: &Kind, stored: &[u8]) -> ApiResult<Value> {
    object::decode(kind, stored).map_err(|e| corrupt(kind.plural, &e))
}

/// A list.
pub fn list(kind: &Kind, form: Form, include: Include, found: &Found) -> ApiResult<Response> {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), found.revision.to_string().into());
    if let Some(token) = &found.continue_token {
        metadata.insert("continue".into(), token.as_str().into());
    }
    if let Some(remaining) = found.remaining {
        metadata.insert("remainingItemCount".into(), remaining.into());
    }
    let metadata = Value::Object(metadata);
    match form.shape {
        Shape::Object | Shape::Discovery(_) => {
            let json = join(kind, &metadata, found)?;
            Ok(negotiate::bytes(200, form, json))
        }
        Shape::Table => {
            let now = Timestamp::now();
            let rows = found
                .records
                .iter()
                .map(|r| Ok(row(kind, decode(kind, &r.value)?, include, now)))
                .collect::<ApiResult<Vec<_>>>()?;
            Ok(negotiate::value(200, form, &table(kind, metadata, rows, true)))
        }
        Shape::Metadata => {
            let items =
                found.records.iter().map(|r| Ok(partial(decode(kind, &r.value)?))).collect::<ApiResult<Vec<_>>>()?;
            let list = json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items,
            });
            Ok(negotiate::value(200, form, &list))
        }
    }
}

/// A list assembled from stored bytes.
fn join(kind: &Kind, metadata: &Value, found: &Found) -> ApiResult<Bytes> {
    let size: usize = found.records.iter().map(|r| r.value.len() + 1).sum();
    let mut out = BytesMut::with_capacity(size + 256);
    let version = object::api_version(kind.group, kind.version);
    out.put_slice(
        format!("{{\"kind\":\"{}List\",\"apiVersion\":\"{version}\",\"metadata\":{metadata},\"items\":[", kind.kind)
            .as_bytes(),
    );
    for (i, record) in found.records.iter().enumerate() {
        if i > 0 {
            out.put_u8(b',');
        }
        out.put_slice(&object::shown(kind, &record.value).map_err(|e| corrupt(&record.key, &e))?);
    }
    out.put_slice(b"]}");
    Ok(out.freeze())
}

/// `PartialObjectMetadata` of an object.
pub fn partial(mut object: Value) -> Value {
    let metadata = object.get_mut("metadata").map(Value::take).unwrap_or_else(|| json!({}));
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

fn row(kind: &Kind, object: Value, include: Include, now: Timestamp) -> Value {
    let cells = kind.strategy.row(&object, now);
    match include {
        Include::None => json!({"cells": cells}),
        Include::Metadata => json!({"cells": cells, "object": partial(object)}),
        Include::Object => json!({"cells": cells, "object": object}),
    }
}

fn table(kind: &Kind, metadata: Value, rows: Vec<Value>, with_columns: bool) -> Value {
    let columns: Vec<Value> = kind
        .columns
        .iter()
        .map(|c| {
            json!({"name": c.name, "type": c.kind, "format": c.format, "description": c.description, "priority": c.priority})
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": if with_columns { Value::from(columns) } else { Value::Null },
        "rows": rows,
    })
}

/// Renders the events of one watch.
pub struct Events {
    kind: &'static Kind,
    shape: Shape,
    include: Include,
    /// Only the first table of a watch names its columns.
    first: bool,
}

impl Events {
    /// Events about `kind` in the form's shape; always JSON.
    pub fn new(kind: &'static Kind, form: Form, include: Include) -> Self {
        Self { kind, shape: form.shape, include, first: true }
    }

    /// A change, one line of JSON.
    pub fn change(&mut self, event: &str, stored: &[u8]) -> ApiResult<Bytes> {
        if matches!(self.shape, Shape::Object | Shape::Discovery(_)) {
            let object = object::shown(self.kind, stored).map_err(|e| corrupt(self.kind.plural, &e))?;
            return Ok(line(event, &object));
        }
        let object = decode(self.kind, stored)?;
        let shown = if self.shape == Shape::Table {
            let metadata = json!({"resourceVersion": object::meta(&object, "resourceVersion")});
            let rows = vec![row(self.kind, object, self.include, Timestamp::now())];
            table(self.kind, metadata, rows, std::mem::take(&mut self.first))
        } else {
            partial(object)
        };
        Ok(line(event, shown.to_string().as_bytes()))
    }

    /// A bookmark: everything up to `revision` was sent.
    pub fn bookmark(&self, revision: u64, ends_initial: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if ends_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.shape {
            Shape::Table => table(self.kind, metadata, Vec::new(), false),
            Shape::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Shape::Object | Shape::Discovery(_) => json!({
                "kind": self.kind.kind,
                "apiVersion": object::api_version(self.kind.group, self.kind.version),
                "metadata": metadata,
            }),
        };
        line("BOOKMARK", object.to_string().as_bytes())
    }

    /// The last word of a watch that cannot go on.
    pub fn error(error: &ApiError) -> Bytes {
        line("ERROR", error.to_value().to_string().as_bytes())
    }
}

fn line(event: &str, object: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + 40);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(event.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
    out.freeze()
}
