//! The driver's side of snapshots: a VolumeSnapshotContent without a snapshot gets one made, one of a snapshot that exists
//! already has it looked up, and one that goes takes its snapshot along where its policy says so.
//!
//! In: a VolumeSnapshotContent of a driver registered here. Out: the call, then what the driver said, in the status.
//! - D1: a snapshot is asked for by a name that only one VolumeSnapshot can have, so that asking again finds what was made.
//! - D2: a content stays while the driver may be making its snapshot, or still has one that is to go.
//!
//! Absent on purpose: VolumeSnapshots (see `snapshot`), group snapshots.
//! Source: external-snapshotter 8, `pkg/sidecar-controller`. Unlike there, an error is told by one reason until the snapshot
//! is made, and cleared by any success.
use std::time::Duration;

use api::snapshot::{DELETE, VolumeSnapshotContent};
use csi::{
    ControllerRpcType, CreateSnapshotRequest, DeleteSnapshotRequest, Facts, ListSnapshotsRequest, Snapshot as Made,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    call::{Answer, Call, Failure, Request},
    decision::{Action, Context, Decision, Key, Meta, Note, annotated, annotation},
    namespace::whole_seconds,
    snapshot::{BEING_DELETED, CONTENT, CONTENT_BOUND, LIST, SECRET_NAME, SECRET_NAMESPACE, own, secret},
    world::{Change, Object, World},
};

/// On a content whose snapshot the driver may be making.
const BEING_CREATED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-created";

/// Bounds of the time between looks at a snapshot that is made but not ready.
const LOOK_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
/// How soon a driver that lied is asked again.
const LIE_AGAIN: Duration = Duration::from_secs(60);

type Content<'a> = (&'a Meta, &'a VolumeSnapshotContent);

fn snapshot_uid(content: &VolumeSnapshotContent) -> &str {
    content.spec.volume_snapshot_ref.uid.as_deref().unwrap_or_default()
}

/// The snapshot, once the driver said which it is.
fn handle_of(content: &VolumeSnapshotContent) -> Option<&str> {
    content.status.as_ref()?.snapshot_handle.as_deref()
}

pub(crate) fn decide(key: &Key, world: &World, context: &Context) -> Decision {
    let Some(found) = world.snapshot_content(&key.name) else { return Decision::settled() };
    let (meta, content) = found;
    if may_go(found) {
        return delete(found, world);
    }
    if handle_of(content).is_some() && annotated(&content.metadata, BEING_CREATED) {
        return Decision::act(being_created(meta, json!(null)));
    }
    let Some(driver) = world.driver(&content.spec.driver).filter(|_| !content.is_ready()) else {
        return Decision::settled();
    };
    let asked = match content.snapshot_handle() {
        Some(handle) => look_up(found, driver, handle, world, context.now),
        None => make(found, driver, world),
    };
    asked.unwrap_or_else(|why| failed(found, &why, context.now))
}

fn being_created(content: &Meta, value: Value) -> Action {
    Action::patch(content, json!({ "metadata": { "annotations": { BEING_CREATED: value } } }))
}

/// Whether a content that was deleted is not needed any more, nor is the driver at it.
fn may_go((meta, content): Content<'_>) -> bool {
    let unbound = content.snapshot_handle().is_some() && snapshot_uid(content).is_empty();
    let is = |name| annotated(&content.metadata, name);
    meta.deleting.is_some() && (unbound || (is(BEING_DELETED) && !is(BEING_CREATED)))
}

fn delete((meta, content): Content<'_>, world: &World) -> Decision {
    let handle = handle_of(content).filter(|_| content.spec.deletion_policy == DELETE);
    let Some(handle) = handle else {
        let bound = meta.has_finalizer(CONTENT_BOUND);
        return bound.then(|| Action::drop_finalizer(meta, CONTENT_BOUND)).into();
    };
    let Some(driver) = world.driver(&content.spec.driver) else { return Decision::settled() };
    match credentials(content) {
        Ok(secret) => {
            let request = DeleteSnapshotRequest { snapshot_id: handle.to_owned(), ..Default::default() };
            Decision::act(Action::call(Call::new(&driver.name, request).with_secret(secret)))
        }
        Err(_) => Decision::wait(Note::warning(meta, "SnapshotDeleteError", "Failed to get snapshot credentials")),
    }
}

/// The secret that was noted when the content was made.
fn credentials(content: &VolumeSnapshotContent) -> Result<Option<(String, String)>, String> {
    let part = |name| annotation(&content.metadata, name);
    match (part(SECRET_NAMESPACE), part(SECRET_NAME)) {
        (Some(namespace), Some(name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(Some((namespace.to_owned(), name.to_owned())))
        }
        (Some(_), Some(_)) => Err(format!(
            "cannot retrieve secrets for snapshot content {:?}, err: secret name or namespace not specified",
            content.metadata.name.as_deref().unwrap_or_default()
        )),
        _ => Ok(None),
    }
}

/// What is known of a snapshot that somebody else made.
fn look_up(
    found: Content<'_>,
    driver: &Facts,
    handle: &str,
    world: &World,
    now: Timestamp,
) -> Result<Decision, String> {
    let (meta, content) = found;
    if !driver.can(ControllerRpcType::ListSnapshots) {
        let believed = Made { snapshot_id: handle.to_owned(), ready_to_use: true, ..Default::default() };
        return Ok(told(found, &believed, now));
    }
    let secret = match &content.spec.volume_snapshot_class_name {
        None => None,
        Some(name) => {
            let class = class(name, world).map_err(|why| {
                format!("failed to get snapshot class {name} for snapshot content {}: {why}", meta.key.name)
            })?;
            secret(LIST, &class.parameters.clone().unwrap_or_default(), &meta.key.name, None).map_err(|why| {
                format!("failed to get secret reference for snapshot content {}: {why}", meta.key.name)
            })?
        }
    };
    let request = ListSnapshotsRequest { snapshot_id: handle.to_owned(), ..Default::default() };
    Ok(Decision::act(Action::call(Call::new(&driver.name, request).with_secret(secret))))
}

fn class<'a>(name: &str, world: &'a World) -> Result<&'a api::snapshot::VolumeSnapshotClass, String> {
    let found = world.snapshot_class(name).map(|(_, class)| class);
    found.ok_or_else(|| format!("volumesnapshotclass.snapshot.storage.k8s.io {name:?} not found"))
}

/// Asks for a snapshot, or whether it is ready, which is the same question.
fn make((meta, content): Content<'_>, driver: &Facts, world: &World) -> Result<Decision, String> {
    let name = &meta.key.name;
    if !driver.can(ControllerRpcType::CreateDeleteSnapshot) {
        return Err(format!(
            "CSI driver {} does not support snapshots: controller CREATE_DELETE_SNAPSHOT capability is not reported",
            driver.name
        ));
    }
    let input = |why: String| format!("failed to get input parameters to create snapshot for content {name}: {why:?}");
    let class = match &content.spec.volume_snapshot_class_name {
        Some(class_name) => class(class_name, world).map_err(input)?,
        None => return Err(input(format!("failed to take snapshot {name} without a snapshot class"))),
    };
    let secret = credentials(content).map_err(input)?;
    let parameters = own(&class.parameters.clone().unwrap_or_default())
        .map_err(|why| format!("failed to remove CSI Parameters of prefixed keys: {why}"))?;
    let uid = snapshot_uid(content);
    if uid.is_empty() {
        let why = format!("cannot create snapshot. Snapshot content {name} not bound to a snapshot");
        return Err(not_taken(content, &why));
    }
    if is_behind((meta, content), world) {
        return Ok(Decision::settled());
    }
    if handle_of(content).is_none() && !annotated(&content.metadata, BEING_CREATED) {
        return Ok(Decision::act(being_created(meta, json!("yes"))));
    }
    let request = CreateSnapshotRequest {
        source_volume_id: content.volume_handle().unwrap_or_default().to_owned(),
        name: call_name(content),
        parameters,
        ..Default::default()
    };
    Ok(Decision::act(Action::call(Call::new(&driver.name, request).with_secret(secret))))
}

/// Whether another snapshot of the volume is to be made first: drivers are asked for one at a time. One that failed keeps
/// nobody waiting.
fn is_behind((meta, content): Content<'_>, world: &World) -> bool {
    let failed = |c: &VolumeSnapshotContent| c.status.as_ref().is_some_and(|s| s.error.is_some());
    // One that was begun with is not overtaken by one that was made in the same second.
    let place = |m: &Meta, c: &VolumeSnapshotContent| {
        let begun = annotated(&c.metadata, BEING_CREATED);
        (!begun, c.metadata.creation_timestamp.as_ref().map(|t| t.0), m.key.name.clone())
    };
    let (own, again) = (place(meta, content), failed(content));
    handle_of(content).is_none()
        && of_volume(content, world)
            .any(|(m, c)| m.key != meta.key && !failed(c) && !may_go((m, c)) && (again || place(m, c) < own))
}

/// Contents of a content's volume whose snapshot is yet to be made.
fn of_volume<'a>(content: &'a VolumeSnapshotContent, world: &'a World) -> impl Iterator<Item = Content<'a>> {
    world.snapshot_contents().filter(move |(_, c)| {
        let same = c.spec.driver == content.spec.driver && c.volume_handle() == content.volume_handle();
        same && c.volume_handle().is_some() && handle_of(c).is_none()
    })
}

/// The name by which a driver knows that a snapshot was asked for before.
fn call_name(content: &VolumeSnapshotContent) -> String {
    format!("snapshot-{}", snapshot_uid(content))
}

fn not_taken(content: &VolumeSnapshotContent, why: &str) -> String {
    format!("failed to take snapshot of the volume {}: {why:?}", content.volume_handle().unwrap_or_default())
}

/// Writes down what went wrong, once.
fn failed((meta, content): Content<'_>, why: &str, now: Timestamp) -> Decision {
    let (reason, message) = match (content.volume_handle(), handle_of(content)) {
        (Some(_), None) => ("SnapshotCreationFailed", format!("Failed to create snapshot: {why}")),
        _ => ("SnapshotContentCheckandUpdateFailed", format!("Failed to check and update snapshot content: {why}")),
    };
    let said = content.status.as_ref().and_then(|s| s.error.as_ref()).and_then(|e| e.message.as_ref());
    if said == Some(&message) {
        return Decision::settled();
    }
    let error = json!({ "time": whole_seconds(now), "message": message });
    let status = json!({ "error": error, "readyToUse": false });
    Decision::act(Action::status(meta, status)).with(Note::warning(meta, reason, message))
}

/// Writes down what the driver said of a snapshot.
fn told((meta, content): Content<'_>, made: &Made, now: Timestamp) -> Decision {
    let was = content.status.clone().unwrap_or_default();
    let mut is = was.clone();
    is.snapshot_handle.get_or_insert_with(|| made.snapshot_id.clone());
    is.ready_to_use = Some(made.ready_to_use);
    let taken = made.creation_time.as_ref().map(|t| i128::from(t.seconds) * 1_000_000_000 + i128::from(t.nanos));
    let taken = taken.unwrap_or_else(|| now.as_nanosecond());
    is.creation_time = is.creation_time.or_else(|| i64::try_from(taken).ok());
    is.restore_size = is.restore_size.or(Some(made.size_bytes).filter(|size| *size > 0));
    is.error = None;
    if is == was {
        return Decision::again(until_next_look(content, now));
    }
    let mut patch = json!(is);
    if was.error.is_some() {
        patch["error"] = Value::Null;
    }
    Decision::act(Action::status(meta, patch))
}

/// The longer it takes, the longer it may take.
fn until_next_look(content: &VolumeSnapshotContent, now: Timestamp) -> Duration {
    let [least, most] = LOOK_AGAIN;
    let since = content.metadata.creation_timestamp.as_ref().map(|t| now.duration_since(t.0));
    let waited = since.and_then(|s| Duration::try_from(s).ok()).unwrap_or_default();
    (waited / 8).clamp(least, most)
}

pub(crate) fn heard(
    key: &Key,
    world: &World,
    context: &Context,
    call: &Call,
    answer: &Result<Answer, Failure>,
) -> Decision {
    let Some(found) = world.snapshot_content(&key.name).filter(|found| is_about(call, found.1)) else {
        return Decision::settled();
    };
    let (meta, content) = found;
    let now = context.now;
    let said = |said: Result<&Made, String>| match said {
        Ok(made) => told(found, made, now),
        Err(why) => Decision { again: Some(LIE_AGAIN), ..failed(found, &why, now) },
    };
    match answer {
        Ok(Answer::CreateSnapshot(response)) => said(made(found, response.snapshot.as_ref(), world)),
        Ok(Answer::ListSnapshots(response)) => {
            let wanted = content.snapshot_handle().unwrap_or_default();
            let mut all = response.entries.iter().filter_map(|entry| entry.snapshot.as_ref());
            let why = || not_listed(meta, &format!("can not find snapshot for snapshotID {wanted}"));
            said(all.find(|s| s.snapshot_id == wanted).ok_or_else(why))
        }
        Ok(_) => {
            let gone = json!({ "snapshotHandle": null, "readyToUse": null, "creationTime": null, "restoreSize": null });
            Decision::act(Action::status(meta, gone))
        }
        Err(failure) => refused(found, call, failure, now),
    }
}

fn not_listed(content: &Meta, why: &str) -> String {
    format!("failed to list snapshot for content {}: {why:?}", content.key.name)
}

/// Whether a call is about the content as it is now.
fn is_about(call: &Call, content: &VolumeSnapshotContent) -> bool {
    match &call.request {
        Request::CreateSnapshot(r) => content.volume_handle().is_some() && r.name == call_name(content),
        Request::ListSnapshots(r) => content.snapshot_handle() == Some(&*r.snapshot_id),
        Request::DeleteSnapshot(r) => handle_of(content) == Some(&*r.snapshot_id),
        _ => false,
    }
}

/// What the driver made, if that can be.
fn made<'a>((meta, content): Content<'_>, made: Option<&'a Made>, world: &World) -> Result<&'a Made, String> {
    let driver = &content.spec.driver;
    let Some(made) = made.filter(|m| !m.snapshot_id.is_empty()) else {
        let why = format!("driver {driver} answered CreateSnapshot without saying which snapshot it made");
        return Err(not_taken(content, &why));
    };
    let (id, volume) = (&made.snapshot_id, content.volume_handle().unwrap_or_default());
    if !made.source_volume_id.is_empty() && made.source_volume_id != volume {
        let why =
            format!("driver {driver} answered with snapshot {id:?}, which is of volume {}", made.source_volume_id);
        return Err(not_taken(content, &why));
    }
    if let Some(before) = handle_of(content).filter(|before| before != id) {
        let why = format!("driver {driver} answered with snapshot {id:?}, but it had made {before:?}");
        return Err(not_taken(content, &why));
    }
    let twice = world.snapshot_contents().find(|(other, c)| {
        other.key != meta.key && c.spec.driver == *driver && c.volume_handle().is_some() && handle_of(c) == Some(id)
    });
    match twice {
        None => Ok(made),
        Some((other, _)) => {
            let why = format!("driver {driver} answered with snapshot {id:?}, but that is what {} is", other.key.name);
            Err(not_taken(content, &why))
        }
    }
}

fn refused(found: Content<'_>, call: &Call, failure: &Failure, now: Timestamp) -> Decision {
    let (meta, content) = found;
    // The driver did not even see the call where it has no code.
    let over = failure.code.is_some() && failure.is_final();
    match &call.request {
        Request::DeleteSnapshot(_) => {
            let words = format!("Failed to delete snapshot: {failure}");
            Decision::wait(Note::warning(meta, "SnapshotDeleteError", words))
        }
        Request::CreateSnapshot(_) if failure.code.is_none() => {
            let why = format!("failed to get input parameters to create snapshot for content {}: ", meta.key.name);
            failed(found, &format!("{why}{:?}", failure.message), now)
        }
        Request::CreateSnapshot(_) => {
            let going = meta.deleting.is_some() && annotated(&content.metadata, BEING_CREATED);
            match over && going {
                true => Decision::act(being_created(meta, json!(null))),
                false => failed(found, &not_taken(content, &failure.to_string()), now),
            }
        }
        _ => failed(found, &not_listed(meta, &failure.to_string()), now),
    }
}

pub(crate) fn wakes(world: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    match change.key.kind {
        CONTENT => {
            wake(change.key.clone());
            // The next one's turn may have come.
            for entry in change.old.iter().chain(&change.new) {
                let Object::SnapshotContent(content) = &entry.object else { continue };
                of_volume(content, world).for_each(|(meta, _)| wake(meta.key.clone()));
            }
        }
        "VolumeSnapshotClass" => {
            let waits = |(_, content): &Content<'_>| {
                !content.is_ready() && content.spec.volume_snapshot_class_name.as_deref() == Some(&*change.key.name)
            };
            world.snapshot_contents().filter(waits).for_each(|(meta, _)| wake(meta.key.clone()));
        }
        _ => {}
    }
}
