//! Recording what controllers tell, as Events. The same thing told again counts up the Event that is there.
use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash as _, Hasher as _},
    sync::Arc,
};

use base::{Clock, SystemClock};
use controllers::{CONTROLLERS, Note};
use jiff::Unit;
use serde_json::{Value, json};

use crate::{EngineError, queue::Core, wire};

/// Records until aborted. An Event that cannot be recorded is let go: its namespace may be going away.
pub(crate) async fn record(core: Arc<Core>) {
    let Some(mut notes) = core.notes_out.lock().take() else { return };
    while let Some((controller, note)) = notes.recv().await {
        if let Err(error) = record_one(&core, CONTROLLERS[controller].component, &note).await {
            tracing::debug!(about = %note.about, reason = note.reason, error = base::chain(&error), "Event not recorded");
        }
    }
}

async fn record_one(core: &Core, component: &str, note: &Note) -> Result<(), EngineError> {
    let now = SystemClock.now();
    let now = now.round(Unit::Second).unwrap_or(now).to_string();
    let event = event(component, note, &now);
    let namespace = event["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
    let events = wire::collection(wire::row("Event"), &namespace);
    let error = match core.request("POST", &events, Some(&event)).await {
        Ok(_) => return Ok(()),
        Err(error) if error.reason() == "AlreadyExists" => error,
        Err(error) => return Err(error),
    };
    let Some(name) = event["metadata"]["name"].as_str() else { return Err(error) };
    let uri = format!("{events}/{name}");
    let old: Value = wire::parse("Event", &core.request("GET", &uri, None).await?)?;
    let count = old["count"].as_i64().unwrap_or(1) + 1;
    core.request("PATCH", &uri, Some(&json!({ "count": count, "lastTimestamp": now }))).await.map(drop)
}

fn event(component: &str, note: &Note, now: &str) -> Value {
    let row = wire::row(note.about.kind);
    let version = match row.group {
        "" => row.version.to_owned(),
        group => format!("{group}/{}", row.version),
    };
    let mut hasher = DefaultHasher::new();
    (component, note).hash(&mut hasher);
    let namespace = if note.about.namespace.is_empty() { "default" } else { &note.about.namespace };
    let mut involved = json!({
        "apiVersion": version, "kind": note.about.kind, "name": &*note.about.name, "uid": note.uid,
    });
    if !note.about.namespace.is_empty() {
        involved["namespace"] = json!(&*note.about.namespace);
    }
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": { "name": format!("{}.{:016x}", note.about.name, hasher.finish()), "namespace": namespace },
        "involvedObject": involved,
        "reason": note.reason,
        "message": note.message.chars().take(1024).collect::<String>(),
        "type": if note.warning { "Warning" } else { "Normal" },
        "count": 1, "firstTimestamp": now, "lastTimestamp": now,
        "source": { "component": component },
        "reportingComponent": component, "reportingInstance": "",
    })
}

#[test]
fn the_same_note_is_the_same_event() {
    let note = |message: &str| Note {
        about: controllers::Key::new("PersistentVolume", "", "v"),
        uid: "u".into(),
        warning: true,
        reason: "VolumeMismatch",
        message: message.into(),
    };
    let (a, b, c) = (event("x", &note("m"), "t"), event("x", &note("m"), "later"), event("x", &note("n"), "t"));
    assert_eq!(a["metadata"], b["metadata"]);
    assert_ne!(a["metadata"]["name"], c["metadata"]["name"]);
    assert_eq!((&a["metadata"]["namespace"], &a["involvedObject"]["namespace"]), (&json!("default"), &Value::Null));
}
