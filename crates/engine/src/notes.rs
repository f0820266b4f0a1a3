//! Recording what controllers tell, as Events. The same thing told again counts up the Event that is there.
use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    sync::Arc,
};

use base::{Clock, SystemClock};
use controllers::{CONTROLLERS, Note};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{EngineError, queue::Core, wire};

/// How many Events are remembered to be counted up; more make new ones.
const REMEMBERED: usize = 4096;

/// Where the Event of each thing told is, by a hash of who told what.
type Told = HashMap<u64, String>;

/// Records until aborted. An Event that cannot be recorded is let go: its namespace may be going away.
pub(crate) async fn record(core: Arc<Core>) {
    let Some(mut notes) = core.notes_out.lock().take() else { return };
    let mut told = Told::new();
    while let Some((controller, note)) = notes.recv().await {
        if let Err(error) = record_one(&core, CONTROLLERS[controller].component, &note, &mut told).await {
            tracing::debug!(about = %note.about, reason = note.reason, error = base::chain(&error), "Event not recorded");
        }
    }
}

async fn record_one(core: &Core, component: &str, note: &Note, told: &mut Told) -> Result<(), EngineError> {
    let now = SystemClock.now();
    let mut hasher = DefaultHasher::new();
    (component, note).hash(&mut hasher);
    let hash = hasher.finish();
    if let Some(uri) = told.get(&hash) {
        match count_up(core, uri, now).await {
            // Events do not last for ever.
            Err(error) if error.reason() == "NotFound" => {}
            other => return other,
        }
    }
    let event = event(component, note, now);
    let text = |field: &str| event["metadata"][field].as_str().unwrap_or_default();
    let events = wire::collection(wire::row("Event"), text("namespace"));
    core.request("POST", &events, Some(&event)).await?;
    if told.len() >= REMEMBERED {
        told.clear();
    }
    told.insert(hash, format!("{events}/{}", text("name")));
    Ok(())
}

async fn count_up(core: &Core, uri: &str, now: Timestamp) -> Result<(), EngineError> {
    let old: Value = wire::parse("Event", &core.request("GET", uri, None).await?)?;
    let count = old["count"].as_i64().unwrap_or(1) + 1;
    core.request("PATCH", uri, Some(&json!({ "count": count, "lastTimestamp": whole_seconds(now) }))).await.map(drop)
}

/// The time as Events carry it.
fn whole_seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

fn event(component: &str, note: &Note, now: Timestamp) -> Value {
    let row = wire::row(note.about.kind);
    let version = match row.group {
        "" => row.version.to_owned(),
        group => format!("{group}/{}", row.version),
    };
    let at = whole_seconds(now);
    let namespace = if note.about.namespace.is_empty() { "default" } else { &note.about.namespace };
    let mut involved = json!({
        "apiVersion": version, "kind": note.about.kind, "name": &*note.about.name, "uid": note.uid,
    });
    if !note.about.namespace.is_empty() {
        involved["namespace"] = json!(&*note.about.namespace);
    }
    json!({
        "apiVersion": "v1", "kind": "Event",
        // By time, so that Events of one second are listed in their order.
        "metadata": { "name": format!("{}.{:x}", note.about.name, now.as_nanosecond()), "namespace": namespace },
        "involvedObject": involved,
        "reason": note.reason,
        "message": note.message.chars().take(1024).collect::<String>(),
        "type": if note.warning { "Warning" } else { "Normal" },
        "count": 1, "firstTimestamp": at, "lastTimestamp": at,
        "source": { "component": component },
        "reportingComponent": component, "reportingInstance": "",
    })
}

#[test]
fn events_of_one_second_are_named_in_their_order() {
    let note = Note {
        about: controllers::Key::new("PersistentVolume", "", "v"),
        uid: "u".into(),
        warning: true,
        reason: "VolumeMismatch",
        message: "m".into(),
    };
    let at = |nanoseconds| event("x", &note, Timestamp::new(1_800_000_000, nanoseconds).expect("a time"));
    let (a, b) = (at(1), at(900_000_000));
    assert!(a["metadata"]["name"].as_str() < b["metadata"]["name"].as_str());
    assert_eq!(
        (&a["lastTimestamp"], &b["lastTimestamp"]),
        (&json!("2027-01-15T08:00:00Z"), &json!("2027-01-15T08:00:00Z"))
    );
    assert_eq!((&a["metadata"]["namespace"], &a["involvedObject"]["namespace"]), (&json!("default"), &Value::Null));
}
