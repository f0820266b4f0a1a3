//! Events, and their second face in `events.k8s.io`.
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use serde_json::{Map, Value};

use super::{NAME, col, wide};
use crate::age::since;
use crate::check::text;
use crate::contract::{Column, Face, FieldError, SelectableFields, Strategy};
use crate::field::{Errors, Path};
use crate::typed::{Rules, Typed};

/// `events.k8s.io` Events are the core Events under other field names.
pub static EVENTS_FACE: Face = Face { group: "", plural: "events", read, write };

/// Field names: core's, then those of `events.k8s.io`.
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(object: &mut Value, api_version: &str, new_name: impl Fn(&str) -> Option<&'static str>) {
    let Value::Object(map) = object else { return };
    let fields: Map<String, Value> =
        std::mem::take(map).into_iter().map(|(k, v)| (new_name(&k).map_or(k, str::to_owned), v)).collect();
    *map = fields;
    map.insert("apiVersion".to_owned(), Value::from(api_version));
}

fn read(object: &mut Value) {
    rename(object, "events.k8s.io/v1", |k| RENAMED.iter().find(|(core, _)| *core == k).map(|(_, face)| *face));
}

fn write(object: &mut Value) {
    rename(object, "v1", |k| RENAMED.iter().find(|(_, face)| *face == k).map(|(core, _)| *core));
}

/// Fields that a selector may name on the second face; core's names are understood there too.
const FACE_SELECTABLE: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reportingController",
    "reason",
    "type",
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reportingComponent",
    "source",
];

/// The strategy of the second face: takes objects in either form, gives back the form it got, applies core's rules.
pub struct EventsFace;

type Core = Typed<Event>;

fn is_face(object: &Value) -> bool {
    object.get("apiVersion").and_then(Value::as_str) == Some("events.k8s.io/v1")
}

/// The object in core's form.
fn as_core(object: &Value) -> Value {
    let mut core = object.clone();
    if is_face(object) {
        write(&mut core);
    }
    core
}

fn edit(object: &mut Value, f: impl FnOnce(&mut Value)) {
    let face = is_face(object);
    if face {
        write(object);
    }
    f(object);
    if face {
        read(object);
    }
}

impl Strategy for EventsFace {
    fn default(&self, object: &mut Value) {
        edit(object, |o| Core::NEW.default(o));
    }
    fn prepare_create(&self, object: &mut Value) {
        edit(object, |o| Core::NEW.prepare_create(o));
    }
    fn prepare_update(&self, new: &mut Value, old: &Value) {
        edit(new, |o| Core::NEW.prepare_update(o, &as_core(old)));
    }
    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        edit(new, |o| Core::NEW.prepare_status_update(o, &as_core(old)));
    }
    fn generation_changes(&self, _new: &Value, _old: &Value) -> Option<bool> {
        None
    }
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let object = as_core(object);
        let mut errors = named_for_face(Core::NEW.validate(&object));
        errors.extend(only_new_fields(&object));
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let (new, old) = (as_core(new), as_core(old));
        let mut errors = named_for_face(Core::NEW.validate_update(&new, &old));
        errors.extend(only_the_series_changes(&new, &old));
        errors
    }
    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        Core::NEW.validate_status_update(&as_core(new), &as_core(old))
    }
    fn warnings(&self, object: &Value) -> Vec<String> {
        Core::NEW.warnings(&as_core(object))
    }
    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        Core::NEW.row(&as_core(object), now)
    }
    fn selectable(&self, object: &Value) -> SelectableFields {
        Core::NEW.selectable(&as_core(object))
    }
    fn selectable_names(&self) -> &'static [&'static str] {
        FACE_SELECTABLE
    }
}

/// Mistakes found by core's rules, under the one name that differs for the second face.
fn named_for_face(mut errors: Vec<FieldError>) -> Vec<FieldError> {
    for error in errors.iter_mut().filter(|e| e.field == "reportingComponent") {
        error.field = "reportingController".to_owned();
    }
    errors
}

/// A series counts at least twice and says when it was seen last.
fn series(event: &Value, e: &mut Errors) {
    let series = &event["series"];
    if series.is_null() {
        return;
    }
    if series["count"].as_i64().unwrap_or(0) < 2 {
        e.invalid(&Path::top("series.count"), &"", "should be at least 2");
    }
    if series["lastObservedTime"].is_null() {
        e.required(&Path::top("series.lastObservedTime"), "");
    }
}

/// What a new event of the second face needs, and the fields of old events that it may not have.
fn only_new_fields(event: &Value) -> Vec<FieldError> {
    let mut e = Errors::new();
    series(event, &mut e);
    if event["eventTime"].is_null() {
        e.required(&Path::top("eventTime"), "");
    }
    let kind = event["type"].as_str().unwrap_or_default();
    if !["Normal", "Warning"].contains(&kind) {
        e.invalid(&Path::top("type"), &"", &format!("has invalid value: {kind}"));
    }
    let source = ["component", "host"].iter().any(|f| event["source"][f].as_str().is_some_and(|s| !s.is_empty()));
    for (field, set) in [
        ("firstTimestamp", !event["firstTimestamp"].is_null()),
        ("lastTimestamp", !event["lastTimestamp"].is_null()),
        ("count", event["count"].as_i64().unwrap_or(0) != 0),
        ("source", source),
    ] {
        if set {
            e.invalid(&Path::top(field), &"", "needs to be unset");
        }
    }
    e.finish()
}

/// Events of the second face tell what happened once: later only the series goes on.
fn only_the_series_changes(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut e = Errors::new();
    if new["series"] != old["series"] {
        series(new, &mut e);
    }
    for field in [
        "involvedObject",
        "reason",
        "message",
        "source",
        "firstTimestamp",
        "lastTimestamp",
        "count",
        "type",
        "eventTime",
        "action",
        "related",
        "reportingComponent",
        "reportingInstance",
    ] {
        let empty = |v: &Value| v.is_null() || v.as_object().is_some_and(Map::is_empty);
        if new[field] != old[field] && !(empty(&new[field]) && empty(&old[field])) {
            let shown = if field == "reportingComponent" { "reportingController" } else { field };
            e.invalid(&Path::top(shown), &new[field], crate::check::IMMUTABLE);
        }
    }
    e.finish()
}

/// Rules of events that carry `eventTime`: those made by newer clients.
fn validate_new(event: &Event, e: &mut Errors) {
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    let involved = text(&event.involved_object.namespace);
    if involved.is_empty() && !["default", "kube-system"].contains(&namespace) {
        namespace_mismatch(involved, e);
    }
    let controller = text(&event.reporting_component);
    e.need(&Path::top("reportingComponent"), controller);
    e.label_key(&Path::top("reportingComponent"), controller);
    for (field, value, max, needed) in [
        ("reportingInstance", &event.reporting_instance, 128, true),
        ("action", &event.action, 128, true),
        ("reason", &event.reason, 128, true),
        ("message", &event.message, 1024, false),
    ] {
        let at = Path::top(field);
        if needed {
            e.need(&at, text(value));
        }
        if text(value).len() > max {
            e.invalid(&at, &"", &format!("can have at most {max} characters"));
        }
    }
}

fn namespace_mismatch(involved: &str, e: &mut Errors) {
    let at = Path::top("involvedObject");
    e.invalid(&at.field("namespace"), &involved, "does not match event.namespace");
}

impl Rules for Event {
    const COLUMNS: &'static [Column] = &[
        col("Last Seen", "string", "When the event was seen last."),
        col("Type", "string", "Normal or Warning."),
        col("Reason", "string", "What happened, in one word."),
        col("Object", "string", "The object that it happened to."),
        wide("Subobject", "string", "The part of that object."),
        wide("Source", "string", "Who reports it."),
        col("Message", "string", "What happened."),
        wide("First Seen", "string", "When the event was seen first."),
        wide("Count", "string", "How often the event was seen."),
        Column { priority: 1, ..NAME },
    ];
    const SELECTABLE: &'static [&'static str] = &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ];

    fn default(&mut self) {}

    fn validate(&self, e: &mut Errors) {
        if self.event_time.is_some() {
            return validate_new(self, e);
        }
        let namespace = self.metadata.namespace.as_deref().unwrap_or_default();
        let involved = text(&self.involved_object.namespace);
        let fits = if involved.is_empty() { matches!(namespace, "" | "default") } else { namespace == involved };
        if !fits {
            namespace_mismatch(involved, e);
        }
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        let event_time = self.event_time.as_ref().map(|t| t.0);
        let first = self.first_timestamp.as_ref().map(|t| t.0).or(event_time);
        let last = match &self.series {
            Some(series) => series.last_observed_time.as_ref().map(|t| t.0),
            None => self.last_timestamp.as_ref().map(|t| t.0).or(first),
        };
        let count = match &self.series {
            Some(series) => series.count.unwrap_or(0),
            None => self.count.filter(|c| *c != 0).unwrap_or(1),
        };
        let kind = text(&self.involved_object.kind).to_lowercase();
        let object = match text(&self.involved_object.name) {
            "" => kind,
            name => format!("{kind}/{name}"),
        };
        let source = self.source.clone().unwrap_or_default();
        let filled =
            |a: &Option<String>, b: &Option<String>| if text(a).is_empty() { text(b) } else { text(a) }.to_owned();
        let (component, host) =
            (filled(&source.component, &self.reporting_component), filled(&source.host, &self.reporting_instance));
        vec![
            since(last, now).into(),
            text(&self.type_).into(),
            text(&self.reason).into(),
            object.into(),
            text(&self.involved_object.field_path).into(),
            if host.is_empty() { component } else { format!("{component}, {host}") }.into(),
            text(&self.message).trim().into(),
            since(first, now).into(),
            count.into(),
            self.metadata.name.clone().into(),
        ]
    }

    fn selectable(&self) -> SelectableFields {
        let o = &self.involved_object;
        let reporter = text(&self.reporting_component);
        let component = self.source.as_ref().map_or("", |s| text(&s.component));
        // Under both faces' names: what is stored is found through either.
        let fields: [(&'static str, &str); 19] = [
            ("involvedObject.kind", text(&o.kind)),
            ("involvedObject.namespace", text(&o.namespace)),
            ("involvedObject.name", text(&o.name)),
            ("involvedObject.uid", text(&o.uid)),
            ("involvedObject.apiVersion", text(&o.api_version)),
            ("involvedObject.resourceVersion", text(&o.resource_version)),
            ("involvedObject.fieldPath", text(&o.field_path)),
            ("reason", text(&self.reason)),
            ("reportingComponent", reporter),
            ("source", if component.is_empty() { reporter } else { component }),
            ("type", text(&self.type_)),
            ("regarding.kind", text(&o.kind)),
            ("regarding.namespace", text(&o.namespace)),
            ("regarding.name", text(&o.name)),
            ("regarding.uid", text(&o.uid)),
            ("regarding.apiVersion", text(&o.api_version)),
            ("regarding.resourceVersion", text(&o.resource_version)),
            ("regarding.fieldPath", text(&o.field_path)),
            ("reportingController", reporter),
        ];
        fields.into_iter().map(|(name, value)| (name, value.to_owned())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_two_faces_convert_into_each_other() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p"},
            "message": "m", "source": {"component": "c"}, "count": 3, "reportingComponent": "r", "reason": "R", "type": "Normal"});
        let mut face = core.clone();
        read(&mut face);
        assert_eq!(face["regarding"]["name"], "p");
        assert_eq!(
            (&face["note"], &face["deprecatedCount"], &face["reportingController"]),
            (&json!("m"), &json!(3), &json!("r"))
        );
        assert_eq!(face["apiVersion"], "events.k8s.io/v1");
        write(&mut face);
        assert_eq!(face, core);
    }
}
