//! The paths of a document: what can be done with each kind, and with which parameters.
use serde_json::{Map, Value, json};

use super::{
    Flavour, body_schema, gvk, root,
    schemas::{DELETE_OPTIONS, STATUS, list_name},
};
use crate::contract::{Kind, Scope, Subresource};

const JSON: &str = "application/json";
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// A query parameter: name, type, description.
type Parameter = (&'static str, &'static str, &'static str);

const WRITE: &[Parameter] = &[
    ("dryRun", "string", "With the value All, the change is checked and answered but not stored."),
    ("fieldManager", "string", "The name of the actor that makes the change."),
    ("fieldValidation", "string", "What to do about unknown and duplicate fields: Ignore, Warn or Strict."),
];
const FORCE: &[Parameter] = &[("force", "boolean", "Whether an apply takes over fields of other managers.")];
const DELETE: &[Parameter] = &[
    ("dryRun", "string", "With the value All, the deletion is checked and answered but not done."),
    ("gracePeriodSeconds", "integer", "The seconds before the object is deleted; zero deletes at once."),
    ("orphanDependents", "boolean", "Superseded by propagationPolicy."),
    ("propagationPolicy", "string", "What becomes of dependents: Orphan, Background or Foreground."),
];
const SELECT: &[Parameter] = &[
    ("continue", "string", "Where to go on with a list that was cut by limit."),
    ("fieldSelector", "string", "Restricts the objects by their fields."),
    ("labelSelector", "string", "Restricts the objects by their labels."),
    ("limit", "integer", "The greatest number of objects in an answer."),
    ("resourceVersion", "string", "The version of the state to read from."),
    ("resourceVersionMatch", "string", "How resourceVersion is to be taken."),
    ("timeoutSeconds", "integer", "The longest time that the call may last."),
];
const WATCH: &[Parameter] = &[
    ("allowWatchBookmarks", "boolean", "Whether a watch may send bookmarks."),
    ("sendInitialEvents", "boolean", "Whether a watch starts with the objects that are there."),
    ("watch", "boolean", "Stream changes instead of a list."),
];

/// All paths of these kinds.
pub(super) fn paths(kinds: &[&Kind], flavour: Flavour) -> Map<String, Value> {
    let mut paths = Map::new();
    for kind in kinds {
        add(&mut paths, kind, flavour);
    }
    paths
}

fn add(paths: &mut Map<String, Value>, kind: &Kind, flavour: Flavour) {
    let base = format!("/{}", root(kind.group, kind.version));
    let namespaced = kind.scope == Scope::Namespace;
    let make = Make { kind, flavour };
    let collection = if namespaced {
        format!("{base}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("{base}/{}", kind.plural)
    };
    let mut item = make.item(namespaced, false);
    item.insert(
        "get".to_owned(),
        make.operation(&Call { answer: Some(&list_name(kind)), ..Call::new("list", &[SELECT, WATCH]) }),
    );
    item.insert(
        "post".to_owned(),
        make.operation(&Call { body: Some((kind.schema, &[JSON])), ..Call::new("post", &[WRITE]) }),
    );
    let options = Some((DELETE_OPTIONS, &[JSON][..]));
    item.insert(
        "delete".to_owned(),
        make.operation(&Call {
            body: options,
            answer: Some(STATUS),
            ..Call::new("deletecollection", &[DELETE, SELECT])
        }),
    );
    paths.insert(collection.clone(), Value::Object(item));

    let object = format!("{collection}/{{name}}");
    let mut item = make.item(namespaced, true);
    for (method, call) in [("get", "get"), ("put", "put"), ("patch", "patch")] {
        item.insert(method.to_owned(), make.operation(&make.call(call, kind.schema)));
    }
    let delete = Call { body: options, answer: Some(STATUS), ..Call::new("delete", &[DELETE]) };
    item.insert("delete".to_owned(), make.operation(&delete));
    paths.insert(object.clone(), Value::Object(item));

    for sub in kind.subresources {
        paths.insert(format!("{object}/{}", sub.name), Value::Object(make.subresource(sub)));
    }
    if namespaced {
        let mut item = make.item(false, false);
        let list = Call { answer: Some(&list_name(kind)), everywhere: true, ..Call::new("list", &[SELECT, WATCH]) };
        item.insert("get".to_owned(), make.operation(&list));
        paths.insert(format!("{base}/{}", kind.plural), Value::Object(item));
    }
}

/// One operation on one path.
struct Call<'a> {
    /// `x-kubernetes-action`
    action: &'a str,
    parameters: &'a [&'a [Parameter]],
    /// Schema and media types of the body.
    body: Option<(&'a str, &'a [&'a str])>,
    /// Schema of the answer, if not the kind's.
    answer: Option<&'a str>,
    subresource: &'a str,
    /// The kind of the body, if not the parent's.
    of: Option<(&'a str, &'a str, &'a str)>,
    /// In all namespaces.
    everywhere: bool,
}

impl<'a> Call<'a> {
    fn new(action: &'a str, parameters: &'a [&'a [Parameter]]) -> Self {
        Self { action, parameters, body: None, answer: None, subresource: "", of: None, everywhere: false }
    }
}

struct Make<'a> {
    kind: &'a Kind,
    flavour: Flavour,
}

impl Make<'_> {
    /// A path item with the parameters of its path.
    fn item(&self, namespace: bool, name: bool) -> Map<String, Value> {
        let mut parameters = Vec::new();
        for (present, parameter, description) in
            [(name, "name", "The name of the object."), (namespace, "namespace", "The namespace of the object.")]
        {
            if present {
                let mut value = self.parameter(&(parameter, "string", description), "path");
                value["required"] = Value::from(true);
                parameters.push(value);
            }
        }
        let mut item = Map::new();
        if !parameters.is_empty() {
            item.insert("parameters".to_owned(), Value::Array(parameters));
        }
        item
    }

    fn parameter(&self, (name, kind, description): &Parameter, place: &str) -> Value {
        let mut value = json!({ "name": name, "in": place, "description": description });
        match self.flavour {
            Flavour::V2 => {
                value["type"] = json!(kind);
                value["uniqueItems"] = json!(true);
            }
            Flavour::V3 => value["schema"] = json!({ "type": kind, "uniqueItems": true }),
        }
        value
    }

    fn call<'a>(&self, action: &'a str, schema: &'a str) -> Call<'a> {
        match action {
            "get" => Call { answer: Some(schema), ..Call::new("get", &[]) },
            "patch" => Call {
                body: Some(("io.k8s.apimachinery.pkg.apis.meta.v1.Patch", PATCHES)),
                answer: Some(schema),
                ..Call::new("patch", &[WRITE, FORCE])
            },
            _ => Call { body: Some((schema, &[JSON])), answer: Some(schema), ..Call::new(action, &[WRITE]) },
        }
    }

    fn subresource(&self, sub: &Subresource) -> Map<String, Value> {
        let mut item = self.item(self.kind.scope == Scope::Namespace, true);
        let own = match sub.body {
            None => Some(self.kind.schema.to_owned()),
            Some((group, version, kind)) => body_schema(group, version, kind),
        };
        for verb in sub.verbs {
            let (method, action) = match *verb {
                "create" => ("post", "post"),
                "update" => ("put", "put"),
                other => (other, other),
            };
            let call = match &own {
                Some(schema) => self.call(action, schema),
                None => Call::new("connect", &[]),
            };
            let call = Call { subresource: sub.name, of: sub.body, ..call };
            item.insert(method.to_owned(), self.operation(&call));
        }
        item
    }

    fn operation(&self, call: &Call<'_>) -> Value {
        let (group, version, kind) = call.of.unwrap_or((self.kind.group, self.kind.version, self.kind.kind));
        let mut parameters: Vec<Value> =
            call.parameters.iter().copied().flatten().map(|parameter| self.parameter(parameter, "query")).collect();
        let schema = call.answer.unwrap_or(self.kind.schema);
        let known = call.action != "connect";
        let mut operation = json!({
            "operationId": self.operation_id(call),
            "tags": [camel(&format!("{}_{}", group_word(self.kind.group), self.kind.version), false)],
            "x-kubernetes-action": call.action,
            "x-kubernetes-group-version-kind": gvk(group, version, kind),
        });
        let mut answer = json!({ "description": "OK" });
        match self.flavour {
            Flavour::V2 => {
                operation["produces"] = json!([JSON]);
                if let Some((body, media)) = call.body {
                    operation["consumes"] = json!(media);
                    parameters.push(json!({ "name": "body", "in": "body", "schema": self.body(body) }));
                }
                if known {
                    answer["schema"] = self.flavour.reference(schema);
                }
            }
            Flavour::V3 => {
                if let Some((body, media)) = call.body {
                    let content: Map<String, Value> =
                        media.iter().map(|media| ((*media).to_owned(), json!({ "schema": self.body(body) }))).collect();
                    operation["requestBody"] = json!({ "content": content });
                }
                if known {
                    answer["content"] = json!({ JSON: { "schema": self.flavour.reference(schema) } });
                }
            }
        }
        if !parameters.is_empty() {
            operation["parameters"] = Value::Array(parameters);
        }
        operation["responses"] = json!({ "200": answer });
        operation
    }

    fn body(&self, schema: &str) -> Value {
        // A patch is any JSON.
        if schema.ends_with(".Patch") { json!({ "type": "object" }) } else { self.flavour.reference(schema) }
    }

    /// `patchCoreV1NamespacedPodStatus`
    fn operation_id(&self, call: &Call<'_>) -> String {
        let verb = match call.action {
            "get" => "read",
            "post" => "create",
            "put" => "replace",
            "deletecollection" => "deleteCollection",
            "connect" => "connect",
            other => other,
        };
        let scope = if self.kind.scope == Scope::Namespace && !call.everywhere { "Namespaced" } else { "" };
        let place = if call.everywhere { "ForAllNamespaces" } else { "" };
        format!(
            "{verb}{}{}{scope}{}{}{place}",
            camel(group_word(self.kind.group), true),
            camel(self.kind.version, true),
            self.kind.kind,
            camel(call.subresource, true)
        )
    }
}

fn group_word(group: &str) -> &str {
    if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) }
}

fn camel(text: &str, upper: bool) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if upper => first.to_uppercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}
