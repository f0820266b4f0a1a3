//! Events, and their second face in `events.k8s.io`.
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::contract::{Face, FieldError, SelectableFields, Strategy};
use crate::typed::Typed;

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

/// The strategy of the second face: takes objects in either form, gives back the form it got, applies core's rules.
pub struct EventsFace;

type Core = Typed<k8s_openapi::api::core::v1::Event>;

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
        Core::NEW.validate(&as_core(object))
    }
    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        Core::NEW.validate_update(&as_core(new), &as_core(old))
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
        Core::NEW.selectable_names()
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
