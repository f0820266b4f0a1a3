//! The version 2 document in protobuf: the few messages of `openapi.v2.Document` that our documents use.
use serde_json::Value;

/// Encodes a document.
pub(super) fn document(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, &document["swagger"]);
    out.message(2, |info| {
        info.text(1, &document["info"]["title"]);
        info.text(2, &document["info"]["version"]);
    });
    out.message(8, |paths| {
        for (name, item) in members(&document["paths"]) {
            paths.named(2, name, |out| path_item(out, item));
        }
    });
    out.message(9, |definitions| {
        for (name, definition) in members(&document["definitions"]) {
            definitions.named(1, name, |out| schema(out, definition));
        }
    });
    out.0
}

fn path_item(out: &mut Message, item: &Value) {
    for (method, number) in [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)] {
        if let Some(found) = item.get(method) {
            out.message(number, |out| operation(out, found));
        }
    }
    for found in elements(&item["parameters"]) {
        out.message(9, |out| parameter(out, found));
    }
}

fn operation(out: &mut Message, operation: &Value) {
    out.texts(1, &operation["tags"]);
    out.text(5, &operation["operationId"]);
    out.texts(6, &operation["produces"]);
    out.texts(7, &operation["consumes"]);
    for found in elements(&operation["parameters"]) {
        out.message(8, |out| parameter(out, found));
    }
    out.message(9, |responses| {
        for (code, answer) in members(&operation["responses"]) {
            responses.named(1, code, |value| {
                value.message(1, |response| {
                    response.text(1, &answer["description"]);
                    if let Some(found) = answer.get("schema") {
                        response.message(2, |item| item.message(1, |out| schema(out, found)));
                    }
                });
            });
        }
    });
    extensions(out, 13, operation);
}

/// A `ParametersItem` with its nested choices.
fn parameter(out: &mut Message, parameter: &Value) {
    let place = parameter["in"].as_str().unwrap_or_default();
    out.message(1, |choice| {
        if place == "body" {
            choice.message(1, |body| {
                body.text(2, &parameter["name"]);
                body.text(3, &parameter["in"]);
                body.message(5, |out| schema(out, &parameter["schema"]));
            });
            return;
        }
        let (number, kind) = if place == "path" { (4, 5) } else { (3, 6) };
        choice.message(2, |other| {
            other.message(number, |out| {
                out.flag(1, parameter["required"].as_bool().unwrap_or_default());
                out.text(2, &parameter["in"]);
                out.text(3, &parameter["description"]);
                out.text(4, &parameter["name"]);
                out.text(kind, &parameter["type"]);
            });
        });
    });
}

fn schema(out: &mut Message, value: &Value) {
    out.text(1, &value["$ref"]);
    out.text(2, &value["format"]);
    out.text(4, &value["description"]);
    out.texts(19, &value["required"]);
    if let Some(found) = value.get("additionalProperties") {
        out.message(21, |item| item.message(1, |out| schema(out, found)));
    }
    if value["type"].is_string() {
        out.message(22, |kind| kind.text(1, &value["type"]));
    }
    if let Some(found) = value.get("items") {
        out.message(23, |items| items.message(1, |out| schema(out, found)));
    }
    if value["properties"].is_object() {
        out.message(25, |properties| {
            for (name, property) in members(&value["properties"]) {
                properties.named(1, name, |out| schema(out, property));
            }
        });
    }
    extensions(out, 31, value);
}

/// The `x-` members. Their values are YAML text, of which JSON is a part.
fn extensions(out: &mut Message, number: u32, value: &Value) {
    for (name, extension) in members(value).filter(|(name, _)| name.starts_with("x-")) {
        out.named(number, name, |any| any.bytes(2, extension.to_string().as_bytes()));
    }
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            // The low seven bits, and the mark that more follow.
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.varint(u64::from(number << 3 | 2));
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn flag(&mut self, number: u32, value: bool) {
        if value {
            self.varint(u64::from(number << 3));
            self.varint(1);
        }
    }

    fn text(&mut self, number: u32, value: &Value) {
        if let Some(text) = value.as_str() {
            self.bytes(number, text.as_bytes());
        }
    }

    fn texts(&mut self, number: u32, values: &Value) {
        for value in elements(values) {
            self.text(number, value);
        }
    }

    fn message(&mut self, number: u32, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.bytes(number, &inner.0);
    }

    /// A `Named...` message: a name and a value.
    fn named(&mut self, number: u32, name: &str, write: impl FnOnce(&mut Self)) {
        self.message(number, |out| {
            out.bytes(1, name.as_bytes());
            out.message(2, write);
        });
    }
}
