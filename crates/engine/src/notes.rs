//! Recording what controllers tell, as Events. The same thing told again counts up the Event that is there.
use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use base::{Clock, SystemClock};
use controllers::{CONTROLLERS, Note};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    EngineError,
    queue::{Core, Job},
    wire,
};

/// What still holds is told again after this, so that its Event is not forgotten: a server keeps one for an hour.
const REMIND: Duration = Duration::from_secs(25 * 60);

/// What was told last about each key, and when, so that it is not told again and again.
#[derive(Default)]
pub(crate) struct Said(HashMap<Job, Vec<(Note, Instant)>>);

impl Said {
    /// What there is to tell of a key, in place of what was told before; gives back what has to be told.
    pub(crate) fn replace(&mut self, job: &Job, notes: Vec<Note>, now: Instant) -> Vec<Note> {
        if notes.is_empty() {
            self.0.remove(job);
            return notes;
        }
        let before = self.0.remove(job).unwrap_or_default();
        let told: Vec<_> = notes.into_iter().map(|note| (fresh(&before, &note, now), note)).collect();
        let news = told.iter().filter(|(at, _)| at.is_none()).map(|(_, note)| note.clone()).collect();
        self.0.insert(job.clone(), told.into_iter().map(|(at, note)| (note, at.unwrap_or(now))).collect());
        news
    }

    /// What there is to tell of a key, too; gives back what has to be told.
    pub(crate) fn add(&mut self, job: &Job, notes: Vec<Note>, now: Instant) -> Vec<Note> {
        let before = self.0.entry(job.clone()).or_default();
        let news: Vec<Note> = notes.into_iter().filter(|note| fresh(before, note, now).is_none()).collect();
        // Of what was said for the same reason, only the latest.
        before.retain(|(old, _)| news.iter().all(|n| (&n.about, n.reason) != (&old.about, old.reason)));
        before.extend(news.iter().map(|note| (note.clone(), now)));
        news
    }
}

/// When a note was told, if that was not long ago.
fn fresh(before: &[(Note, Instant)], note: &Note, now: Instant) -> Option<Instant> {
    before.iter().find(|(old, at)| old == note && now.duration_since(*at) < REMIND).map(|(_, at)| *at)
}

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
        "metadata": { "name": api::names::event_name(&note.about.name, now.as_nanosecond()), "namespace": namespace },
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

#[test]
fn what_holds_is_told_once_and_again_before_it_is_forgotten() {
    let note = |reason, message: &str| Note {
        about: controllers::Key::new("Pod", "n", "p"),
        uid: "u".into(),
        warning: true,
        reason,
        message: message.into(),
    };
    let job: Job = (0, controllers::Key::new("Pod", "n", "p"));
    let (mut said, start) = (Said::default(), Instant::now());
    // Minutes, whether in place of what was told, what there is to tell, what is told.
    for (minutes, instead, notes, told) in [
        (0, true, "a", "a"),
        (20, true, "ab", "b"),
        (24, true, "ab", ""),
        (26, true, "ab", "a"),
        (46, true, "ab", "b"),
        (47, true, "", ""),
        (48, true, "a", "a"),
        (49, false, "ab", "b"),
        // Of what is said for one reason, the latest.
        (50, false, "c", "c"),
        (51, false, "b", "b"),
        (74, false, "a", "a"),
    ] {
        let notes = notes.chars().map(|c| note(if c == 'a' { "A" } else { "B" }, &c.to_string())).collect();
        let now = start + Duration::from_secs(60 * minutes);
        let news = if instead { said.replace(&job, notes, now) } else { said.add(&job, notes, now) };
        assert_eq!(news.into_iter().map(|n| n.message).collect::<String>(), told, "at {minutes}");
    }
}
