//! A VolumeSnapshot: its class, its content, what it shows, and how it goes.
use api::{
    Quantity,
    snapshot::{DELETE, VolumeSnapshotClass, VolumeSnapshotContent, VolumeSnapshotStatus},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolume;
use serde_json::{Map, Value, json};

use super::{
    AS_SOURCE, BEING_DELETED, BOUND, CLAIM_AS_SOURCE, CONTENT, CONTENT_BOUND, Content, SECRET_NAME, SECRET_NAMESPACE,
    SNAPSHOT, SNAPSHOTTER, Snapshot, being_deleted, content_name, is_for, secret,
};
use crate::{
    claim::{claim_phase, is_reserved_for, volume_of},
    content_source::is_in_use,
    decision::{Action, Context, Decision, Key, Meta, Note, Unless, annotated},
    namespace::whole_seconds,
    world::World,
};

/// What keeps a snapshot from getting on; told in its status and by an Event.
struct Problem {
    reason: &'static str,
    message: String,
    /// Whether what it said of itself before does not hold any more.
    unready: bool,
}

fn problem<T>(reason: &'static str, message: impl Into<String>) -> Result<T, Problem> {
    Err(Problem { reason, message: message.into(), unready: true })
}

pub(super) fn decide(snapshot: Snapshot<'_>, world: &World, context: &Context) -> Decision {
    if snapshot.0.deleting.is_some() {
        return going(snapshot, world);
    }
    step(snapshot, world).unwrap_or_else(|problem| failed(snapshot, problem, context.now))
}

fn failed((meta, snapshot): Snapshot<'_>, problem: Problem, now: Timestamp) -> Decision {
    let said = snapshot.status.as_ref().and_then(|s| s.error.as_ref()).and_then(|e| e.message.as_ref());
    if said == Some(&problem.message) {
        return Decision::settled();
    }
    let mut status = json!({ "error": { "time": whole_seconds(now), "message": problem.message } });
    if problem.unready {
        status["readyToUse"] = json!(false);
    }
    Decision::act(Action::status(meta, status)).with(Note::warning(meta, problem.reason, problem.message))
}

fn step(snapshot: Snapshot<'_>, world: &World) -> Result<Decision, Problem> {
    let (meta, object) = snapshot;
    let done = object.bound_content().filter(|_| object.is_ready());
    let content = match done {
        Some(name) => Some(bound(snapshot, name, world)?),
        None => content_of(snapshot, world)?,
    };
    let settled = content.is_some_and(|(_, c)| is_for(c, meta));
    let class = match &object.spec.volume_snapshot_class_name {
        // What is made already needs no class.
        _ if settled => None,
        Some(name) => Some(class(name, world)?),
        None => match object.claim_name() {
            Some(_) => {
                let name = default_class(snapshot, world)?;
                let patch = json!({ "spec": { "volumeSnapshotClassName": name } });
                return Ok(Decision::act(Action::patch(meta, patch)));
            }
            None => None,
        },
    };
    if let Some(action) = protect(snapshot, content) {
        return Ok(Decision::act(action));
    }
    match (content, class) {
        (Some(_), _) if done.is_some() => Ok(Decision::settled()),
        (Some(content), _) => Ok(bind(snapshot, content).unwrap_or_else(|| show(snapshot, content))),
        (None, Some(class)) if object.content_name().is_none() => create(snapshot, class, world),
        (None, _) => problem("SnapshotContentMissing", "VolumeSnapshotContent is missing"),
    }
}

/// The content of a snapshot that was ready.
fn bound<'a>((meta, _): Snapshot<'_>, name: &str, world: &'a World) -> Result<Content<'a>, Problem> {
    match world.snapshot_content(name) {
        None => problem("SnapshotContentMissing", "VolumeSnapshotContent is missing"),
        Some((_, content)) if !is_for(content, meta) => {
            problem("SnapshotMisbound", "VolumeSnapshotContent is not bound to the VolumeSnapshot correctly")
        }
        Some(found) => Ok(found),
    }
}

/// The content that a snapshot names, or that was made for it.
fn content_of<'a>((meta, snapshot): Snapshot<'_>, world: &'a World) -> Result<Option<Content<'a>>, Problem> {
    let made = content_name(meta);
    let name = snapshot.content_name().unwrap_or(&made);
    let given = snapshot.content_name().is_some();
    let Some(found) = world.snapshot_content(name) else {
        // A snapshot that was taken shows a moment that does not come back.
        let taken = snapshot.status.as_ref().is_some_and(|s| s.creation_time.is_some());
        return match taken && !given {
            true => problem("SnapshotContentMissing", "VolumeSnapshotContent is missing"),
            false => Ok(None),
        };
    };
    let (_, content) = found;
    if given && content.snapshot_handle().is_none() {
        const MADE: &str = "VolumeSnapshotContent is dynamically provisioned while expecting a pre-provisioned one";
        return problem("SnapshotContentMismatch", MADE);
    }
    if !given && content.volume_handle().is_none() {
        let words =
            format!("VolumeSnapshotContent {name} is pre-provisioned while expecting a dynamically provisioned one");
        return problem("SnapshotContentMismatch", words);
    }
    let reference = &content.spec.volume_snapshot_ref;
    let free = given && reference.uid.as_deref().is_none_or(str::is_empty);
    let same = |field: &Option<String>, value: &str| field.as_deref() == Some(value);
    let named = same(&reference.namespace, &meta.key.namespace) && same(&reference.name, &meta.key.name);
    if !(is_for(content, meta) || (free && named)) {
        let words = format!("VolumeSnapshotContent [{name}] is bound to a different snapshot");
        return problem("SnapshotContentMisbound", words);
    }
    Ok(Some(found))
}

fn class<'a>(name: &str, world: &'a World) -> Result<&'a VolumeSnapshotClass, Problem> {
    world.snapshot_class(name).map(|(_, class)| class).ok_or_else(|| Problem {
        reason: "GetSnapshotClassFailed",
        message: format!(
            "Failed to get snapshot class with error volumesnapshotclass.snapshot.storage.k8s.io {name:?} not found"
        ),
        unready: false,
    })
}

/// The default class of the driver that has the volume.
fn default_class<'a>(snapshot: Snapshot<'_>, world: &'a World) -> Result<&'a str, Problem> {
    let failed = |why: String| Problem {
        reason: "SetDefaultSnapshotClassFailed",
        message: format!("Failed to set default snapshot class with error {why}"),
        unready: false,
    };
    let volume = volume(snapshot, world).map_err(failed)?;
    let Some(source) = in_tree::source_of(volume) else {
        let key = &snapshot.0.key;
        let words = "snapshotting non-CSI volumes is not supported, snapshot";
        return Err(failed(format!("{words}:{}/{}", key.namespace, key.name)));
    };
    let fits = |(_, class): &(&Meta, &VolumeSnapshotClass)| class.is_default() && class.driver == source.driver;
    let found: Vec<_> = world.snapshot_classes().filter(fits).collect();
    match found[..] {
        [] => Err(failed("cannot find default snapshot class".into())),
        [(meta, _)] => Ok(&meta.key.name),
        _ => Err(failed(format!("{} default snapshot classes were found", found.len()))),
    }
}

/// The volume that a snapshot is to be made of.
fn volume<'a>((meta, snapshot): Snapshot<'_>, world: &'a World) -> Result<&'a PersistentVolume, String> {
    let name = snapshot.claim_name().unwrap_or_default();
    let Some((claim_meta, claim)) = world.claim(&meta.key.namespace, name) else {
        let why = format!("persistentvolumeclaim {name:?} not found");
        return Err(format!("failed to retrieve PVC {name} from the lister: {why:?}"));
    };
    if claim_phase(claim) != "Bound" {
        return Err(format!("the PVC {name} is not yet bound to a PV, will not attempt to take a snapshot"));
    }
    let wanted = volume_of(claim);
    let Some((_, volume)) = world.volume(wanted) else {
        let why = format!("persistentvolumes {wanted:?} not found");
        return Err(format!("failed to retrieve PV {wanted} from the API server: {why:?}"));
    };
    match is_reserved_for(volume, claim_meta) {
        true => Ok(volume),
        false => Err("claim in dataSource not bound or invalid".into()),
    }
}

/// The finalizers that a snapshot lacks.
fn protect((meta, snapshot): Snapshot<'_>, content: Option<Content<'_>>) -> Option<Action> {
    let goes_along = content.is_some_and(|(_, c)| c.spec.deletion_policy == DELETE);
    let wanted = [(AS_SOURCE, true), (BOUND, goes_along && snapshot.bound_content().is_some())];
    let lacking: Vec<&str> = wanted
        .into_iter()
        .filter(|(name, wanted)| *wanted && !meta.has_finalizer(name))
        .map(|(name, _)| name)
        .collect();
    if lacking.is_empty() {
        return None;
    }
    let all: Vec<&str> = meta.finalizers.iter().map(String::as_str).chain(lacking).collect();
    Some(Action::patch(meta, json!({ "metadata": { "finalizers": all } })))
}

/// Makes a content that was there before this snapshot's own.
fn bind((meta, snapshot): Snapshot<'_>, (content_meta, content): Content<'_>) -> Option<Decision> {
    let mut spec = Map::new();
    if !is_for(content, meta) {
        spec.insert("volumeSnapshotRef".into(), json!({ "uid": meta.uid }));
    }
    if content.spec.volume_snapshot_class_name.is_none()
        && let Some(class) = &snapshot.spec.volume_snapshot_class_name
    {
        spec.insert("volumeSnapshotClassName".into(), class.clone().into());
    }
    (!spec.is_empty()).then(|| Decision::act(Action::patch(content_meta, json!({ "spec": spec }))))
}

/// Shows what the content says.
fn show((meta, snapshot): Snapshot<'_>, (content_meta, content): Content<'_>) -> Decision {
    let was = snapshot.status.clone().unwrap_or_default();
    let is = shown(&was, &content_meta.key.name, content);
    if is == was {
        return Decision::settled();
    }
    let taken = was.creation_time.is_none() && is.creation_time.is_some();
    let ready = was.ready_to_use != Some(true) && is.ready_to_use == Some(true);
    let mut patch = json!(is);
    if is.error.is_none() && was.error.is_some() {
        patch["error"] = Value::Null;
    }
    let mut decision = Decision::act(Action::status(meta, patch));
    let name = format!("{}/{}", meta.key.namespace, meta.key.name);
    if taken {
        let words = format!("Snapshot {name} was successfully created by the CSI driver.");
        decision = decision.with(Note::normal(meta, "SnapshotCreated", words));
    }
    if ready {
        decision = decision.with(Note::normal(meta, "SnapshotReady", format!("Snapshot {name} is ready to use.")));
    }
    decision
}

fn shown(was: &VolumeSnapshotStatus, name: &str, content: &VolumeSnapshotContent) -> VolumeSnapshotStatus {
    let mut is = was.clone();
    let told = content.status.clone().unwrap_or_default();
    let ready = content.is_ready();
    is.bound_volume_snapshot_content_name.get_or_insert_with(|| name.to_owned());
    is.creation_time = is.creation_time.or_else(|| {
        let at = Timestamp::from_nanosecond(told.creation_time?.into()).ok()?;
        // As it is written.
        let at = Timestamp::from_second(at.as_second()).ok()?;
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at))
    });
    is.ready_to_use = Some(ready);
    let known = is.restore_size.as_ref().and_then(|size| Quantity::try_from(size).ok());
    if let Some(size) = told.restore_size.filter(|size| known.is_none_or(|k| k.is_zero() && *size > 0)) {
        let text = Quantity::bytes(size).to_string();
        is.restore_size = Some(k8s_openapi::apimachinery::pkg::api::resource::Quantity(text));
    }
    is.error = told.error.filter(|_| !ready);
    is
}

/// Makes the content that the driver fills.
fn create((meta, snapshot): Snapshot<'_>, class: &VolumeSnapshotClass, world: &World) -> Result<Decision, Problem> {
    let failed = |why: String| Problem {
        reason: "SnapshotContentCreationFailed",
        message: format!("Failed to create snapshot content with error {why}"),
        unready: true,
    };
    if let Some(action) = hold_claim((meta, snapshot), world).map_err(failed)? {
        return Ok(Decision::act(action));
    }
    let object = object((meta, snapshot), class, world).map_err(failed)?;
    let key = Key::new(CONTENT, "", &content_name(meta));
    let words =
        format!("Waiting for a snapshot {}/{} to be created by the CSI driver.", meta.key.namespace, meta.key.name);
    Ok(Decision::act(Action::Create { key, object }).with(Note::normal(meta, "CreatingSnapshot", words)))
}

/// Sees to it that the claim stays while the snapshot is made.
fn hold_claim((meta, snapshot): Snapshot<'_>, world: &World) -> Result<Option<Action>, String> {
    let failed = |name: &str, why: &str| format!("snapshot controller failed to update {name} on API server: {why}");
    let claim = world.claim(&meta.key.namespace, snapshot.claim_name().unwrap_or_default());
    let Some((claim, _)) = claim else { return Err(failed(&meta.key.name, "cannot get claim from snapshot")) };
    if claim.has_finalizer(CLAIM_AS_SOURCE) {
        return Ok(None);
    }
    match claim.deleting {
        None => Ok(Some(Action::add_finalizer(claim, CLAIM_AS_SOURCE))),
        Some(_) => Err(failed(&claim.key.name, "cannot add finalizer on claim because it is being deleted")),
    }
}

fn object(snapshot: Snapshot<'_>, class: &VolumeSnapshotClass, world: &World) -> Result<Value, String> {
    let (meta, _) = snapshot;
    let name = content_name(meta);
    let (key, class_name) = (&meta.key, class.metadata.name.as_deref().unwrap_or_default());
    let input = |why: String| format!("failed to get input parameters to create snapshot {}: {why:?}", key.name);
    let volume = volume(snapshot, world).map_err(input)?;
    let parameters = class.parameters.clone().unwrap_or_default();
    let whose = Some((&*key.namespace, &*key.name));
    let secret = secret(SNAPSHOTTER, &parameters, &name, whose).map_err(input)?;
    let volume_name = volume.metadata.name.as_deref().unwrap_or_default();
    let Some(source) = in_tree::source_of(volume) else {
        return Err(format!("cannot find CSI PersistentVolumeSource for volume {volume_name}"));
    };
    if source.driver != class.driver {
        return Err(format!(
            "VolumeSnapshotClass {class_name} is of driver {}, but volume {volume_name} is of driver {}",
            class.driver, source.driver
        ));
    }
    let mut object = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": CONTENT,
        "metadata": { "name": name, "finalizers": [CONTENT_BOUND] },
        "spec": {
            "volumeSnapshotRef": {
                "apiVersion": "snapshot.storage.k8s.io/v1",
                "kind": SNAPSHOT,
                "namespace": &*key.namespace,
                "name": &*key.name,
                "uid": meta.uid,
                "resourceVersion": meta.resource_version,
            },
            "source": { "volumeHandle": source.volume_handle },
            "volumeSnapshotClassName": class_name,
            "deletionPolicy": class.deletion_policy,
            "driver": class.driver,
        },
    });
    if let Some(mode) = volume.spec.as_ref().and_then(|s| s.volume_mode.as_ref()) {
        object["spec"]["sourceVolumeMode"] = json!(mode);
    }
    if let Some((namespace, name)) = secret {
        object["metadata"]["annotations"] = json!({ SECRET_NAME: name, SECRET_NAMESPACE: namespace });
    }
    Ok(object)
}

/// The next step of a snapshot that is being deleted.
fn going((meta, snapshot): Snapshot<'_>, world: &World) -> Decision {
    let name = match (snapshot.bound_content(), snapshot.claim_name()) {
        (Some(name), _) => Some(name.to_owned()),
        (None, Some(_)) => Some(content_name(meta)),
        (None, None) => None,
    };
    let found = name.as_deref().and_then(|name| world.snapshot_content(name));
    let content = found.filter(|(_, content)| is_for(content, meta));
    let goes_along = content.is_some_and(|(_, c)| c.spec.deletion_policy == DELETE);
    let left: Vec<&String> =
        meta.finalizers.iter().filter(|f| *f != AS_SOURCE && (goes_along || *f != BOUND)).collect();
    let held = meta.has_finalizer(AS_SOURCE) || meta.has_finalizer(BOUND);
    if let Some((content_meta, content)) = content.filter(|_| held) {
        if is_in_use(SNAPSHOT, meta, world) {
            return Decision::wait(Note::warning(
                meta,
                "SnapshotDeletePending",
                "Snapshot is being used to restore a PVC",
            ));
        }
        if !annotated(&content.metadata, BEING_DELETED) {
            return Decision::act(being_deleted(content_meta));
        }
        if goes_along && content_meta.deleting.is_none() {
            let target = content_meta.target();
            return Decision::act(Action::Delete { target, grace: None, propagation: None });
        }
    }
    if left.len() == meta.finalizers.len() {
        return Decision::settled();
    }
    let action = Action::patch(meta, json!({ "metadata": { "finalizers": left } }));
    Decision::act(match (name, found) {
        // It may have been made a moment ago.
        (Some(name), None) => {
            let content = Key::new(CONTENT, "", &name);
            Action::Checked { unless: Unless::Exists(vec![(content, String::new())]), then: Box::new(action) }
        }
        _ => action,
    })
}
