//! What a new volume begins with: nothing, the content of a snapshot, or that of another claim's volume.
//!
//! In: a claim without a volume, the driver that is to make one. Out: where its content comes from, or a sentence about
//! why that cannot be said yet. As a controller: the finalizers that keep sources while volumes are made from them go once
//! none is.
//! - R1: a volume is made from a snapshot only if both halves of the snapshot's binding name each other.
//! - R2: a snapshot or claim does not go while a volume is being made from it.
//!
//! Source: external-provisioner 6, `pkg/controller`.
use api::{
    Quantity,
    snapshot::{GROUP, VolumeSnapshot, VolumeSnapshotContent},
};
use csi::{ContentSource, ControllerRpcType, Facts, SnapshotSource, VolumeContentSource, VolumeSource};
use k8s_openapi::api::{core::v1::PersistentVolumeClaim, storage::v1::StorageClass};

use crate::{
    claim::{claim_phase, class_of, data_source, mode_of, modes_differ, requested, source_of, volume_of, volume_phase},
    decision::{Action, Context, Decision, Key, Meta, annotation},
    provision::provisioner,
    world::{Change, Object, World},
};

const SNAPSHOT: &str = "VolumeSnapshot";
const CLAIM: &str = "PersistentVolumeClaim";

/// On a snapshot that a volume is being made from.
const RESTORED: &str = "provisioner.storage.kubernetes.io/volumesnapshot-as-source-protection";
/// On a claim whose volume is being cloned.
const CLONED: &str = "provisioner.storage.kubernetes.io/cloning-protection";
/// On a content whose volumes may be of another mode than it is.
const ALLOW_MODE: &str = "snapshot.storage.kubernetes.io/allow-volume-mode-change";

/// What a new volume begins with.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    Empty,
    /// Somebody else's program makes the volume.
    Populated,
    /// As the driver is to be told; `protect` keeps the source while that lasts, and has to be done first.
    From {
        source: VolumeContentSource,
        protect: Option<Box<Action>>,
    },
}

/// What the volume that a driver is to make for a claim begins with.
///
/// # Errors
/// A sentence about what is wrong with the source, or has yet to be.
pub(crate) fn content_source(
    (meta, claim): (&Meta, &PersistentVolumeClaim),
    class: &StorageClass,
    driver: &Facts,
    world: &World,
) -> Result<Content, String> {
    let Some(spec) = &claim.spec else { return Ok(Content::Empty) };
    let Some((group, kind, name)) = data_source(spec)? else { return Ok(Content::Empty) };
    if name.is_empty() {
        return Err(format!("the PVC source not found for PVC {}", meta.key.name));
    }
    let not_yet = |why: String| format!("error getting handle for DataSource Type {kind} by Name {name}: {why}");
    let lacks = |what: &str, capability: &str| {
        Err(format!("CSI driver does not support {what}: controller {capability} capability is not reported"))
    };
    let (found, source, finalizer) = match kind {
        SNAPSHOT if group != GROUP => {
            return Err(format!("the PVC source does not belong to the right APIGroup. Expected {GROUP}, Got {group}"));
        }
        SNAPSHOT if !driver.can(ControllerRpcType::CreateDeleteSnapshot) => {
            return lacks("snapshot restore", "CREATE_DELETE_SNAPSHOT");
        }
        SNAPSHOT => {
            let (found, snapshot_id) = of_snapshot((meta, claim), name, class, world).map_err(not_yet)?;
            (found, ContentSource::Snapshot(SnapshotSource { snapshot_id }), RESTORED)
        }
        CLAIM if !driver.can(ControllerRpcType::CloneVolume) => return lacks("clone operations", "CLONE_VOLUME"),
        CLAIM => {
            let (found, volume_id) = of_claim((meta, claim), name, class, world).map_err(not_yet)?;
            (found, ContentSource::Volume(VolumeSource { volume_id }), CLONED)
        }
        _ => return Ok(Content::Populated),
    };
    let protect = (!found.has_finalizer(finalizer)).then(|| Box::new(Action::add_finalizer(found, finalizer)));
    Ok(Content::From { source: VolumeContentSource { r#type: Some(source) }, protect })
}

/// A snapshot and the driver's name of it.
fn of_snapshot<'a>(
    (meta, claim): (&Meta, &PersistentVolumeClaim),
    name: &str,
    class: &StorageClass,
    world: &'a World,
) -> Result<(&'a Meta, String), String> {
    let Some((found, snapshot)) = world.snapshot(&meta.key.namespace, name) else {
        return Err(format!(
            "error getting snapshot {name} from api server: volumesnapshots.{GROUP} {name:?} not found"
        ));
    };
    // One that a volume is being made from already is used to the end.
    if found.deleting.is_some() && !found.has_finalizer(RESTORED) {
        return Err(format!("snapshot {name} is being deleted"));
    }
    let Some(bound) = snapshot.bound_content() else { return Err(format!("snapshot {name} not bound")) };
    let Some((_, content)) = world.snapshot_content(bound) else {
        return Err(format!("error getting snapshotcontent {bound} for snapshot {name}"));
    };
    if !content.is_for(&found.key.namespace, &found.key.name, &found.uid) {
        return Err(format!("snapshotcontent {bound} for snapshot {name} is bound to a different snapshot"));
    }
    if content.spec.driver != provisioner(class) {
        let class = class.metadata.name.as_deref().unwrap_or_default();
        return Err(format!(
            "snapshotcontent {bound} for snapshot {name} is not handled by CSI driver of StorageClass {class}"
        ));
    }
    if !snapshot.is_ready() {
        return Err(format!("snapshot {name} is not Ready"));
    }
    let Some(handle) = content.status.as_ref().and_then(|s| s.snapshot_handle.as_ref()) else {
        return Err(format!("snapshot handle {name} is not available"));
    };
    fits(claim, snapshot, name)?;
    keeps_mode((meta, claim), bound, content)?;
    Ok((found, handle.clone()))
}

/// Whether a claim asks for enough to take a snapshot's content.
fn fits(claim: &PersistentVolumeClaim, snapshot: &VolumeSnapshot, name: &str) -> Result<(), String> {
    let restore = snapshot.status.as_ref().and_then(|s| s.restore_size.as_ref());
    let least = restore.and_then(|size| Quantity::try_from(size).ok()).map_or(0, Quantity::value);
    let size = requested(claim).value();
    if size < least {
        return Err(format!(
            "requested volume size {size} is less than the size {least} for the source snapshot {name}"
        ));
    }
    Ok(())
}

/// Whether a volume may be of the mode that a claim asks for.
fn keeps_mode(
    (meta, claim): (&Meta, &PersistentVolumeClaim),
    name: &str,
    content: &VolumeSnapshotContent,
) -> Result<(), String> {
    if content.spec.source_volume_mode.as_ref().is_none_or(|mode| mode == mode_of(claim)) {
        return Ok(());
    }
    let refused = |why: String| {
        let claim = format!("{}/{}", meta.key.namespace, meta.key.name);
        Err(format!(
            "requested volume {claim} modifies the mode of the source volume but does not have permission to do so. {why}"
        ))
    };
    match annotation(&content.metadata, ALLOW_MODE) {
        None => refused(format!("{ALLOW_MODE} annotation is not present on snapshotcontent {name}")),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(()),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => {
            refused(format!("{ALLOW_MODE} is set to false on snapshotcontent {name}"))
        }
        Some(other) => refused(format!(
            "failed to convert {ALLOW_MODE} annotation value to boolean with error: strconv.ParseBool: parsing \
             {other:?}: invalid syntax"
        )),
    }
}

/// A claim and the driver's name of its volume.
fn of_claim<'a>(
    (meta, claim): (&Meta, &PersistentVolumeClaim),
    name: &str,
    class: &StorageClass,
    world: &'a World,
) -> Result<(&'a Meta, String), String> {
    let namespace = &meta.key.namespace;
    let Some((found, source)) = world.claim(namespace, name) else {
        return Err(format!(
            "error getting PVC {name} (namespace {namespace:?}) from api server: persistentvolumeclaim {name:?} not found"
        ));
    };
    if claim_phase(source) != "Bound" {
        let phase = claim_phase(source);
        return Err(format!("the PVC DataSource {name} must have a status of Bound.  Got {phase}"));
    }
    if found.deleting.is_some() {
        return Err(format!("the PVC DataSource {name} is currently being deleted"));
    }
    for (which, of) in [("source", source), ("requested", claim)] {
        if class_of(of).is_empty() {
            let of = of.metadata.name.as_deref().unwrap_or_default();
            return Err(format!("the {which} PVC ({of}) storageclass cannot be empty"));
        }
    }
    let (size, least) = (requested(claim).value(), requested(source).value());
    if size < least {
        return Err(format!(
            "error, new PVC request must be greater than or equal in size to the specified PVC data source, requested \
             {size} but source is {least}"
        ));
    }
    if volume_of(source).is_empty() {
        return Err(format!("volume name is empty in source PVC {name}"));
    }
    let invalid = || "claim in dataSource not bound or invalid".to_owned();
    let (_, volume) = world.volume(volume_of(source)).ok_or_else(invalid)?;
    let spec = volume.spec.as_ref();
    let handle = in_tree::source_of(volume).filter(|csi| csi.driver == provisioner(class)).ok_or_else(invalid)?;
    let holder = spec.and_then(|s| s.claim_ref.as_ref());
    let ours = holder.is_some_and(|r| {
        r.uid.as_ref() == Some(&found.uid)
            && r.namespace.as_deref() == Some(&found.key.namespace)
            && r.name.as_deref() == Some(&found.key.name)
    });
    if !ours || volume_phase(volume) != "Bound" {
        return Err(invalid());
    }
    if modes_differ(claim, volume) {
        let (is, wanted) = if mode_of(claim) == "Block" { ("Filesystem", "Block") } else { ("Block", "Filesystem") };
        return Err(format!(
            "the source PVC and destination PVCs must have the same volume mode for cloning.  Source is {is}, but new PVC \
             requested {wanted}"
        ));
    }
    Ok((found, handle.volume_handle))
}

/// Takes a source's protection off once no volume is being made from it: from a claim not before it is to go, as upstream.
pub(crate) fn decide(key: &Key, world: &World, _: &Context) -> Decision {
    let (kind, finalizer) = if key.kind == SNAPSHOT { (SNAPSHOT, RESTORED) } else { (CLAIM, CLONED) };
    let Some(found) = world.entry(key).map(|e| &e.meta).filter(|meta| meta.has_finalizer(finalizer)) else {
        return Decision::settled();
    };
    let due = key.kind == SNAPSHOT || found.deleting.is_some();
    match due && !is_in_use(kind, found, world) {
        true => Decision::act(Action::drop_finalizer(found, finalizer)),
        false => Decision::settled(),
    }
}

/// Whether a claim waits for a volume made from a snapshot or another claim.
pub(crate) fn is_in_use(kind: &'static str, source: &Meta, world: &World) -> bool {
    let mut claims = world.claims_from(kind, &source.key.namespace, &source.key.name);
    claims.any(|k| world.claim(&k.namespace, &k.name).is_some_and(|(_, claim)| claim_phase(claim) == "Pending"))
}

/// Names the claims that a change of their source concerns.
pub(crate) fn wakes_of(world: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    let key = &change.key;
    if matches!(key.kind, SNAPSHOT | CLAIM) {
        world.claims_from(key.kind, &key.namespace, &key.name).for_each(|k| wake(k.clone()));
    }
}

pub(crate) fn wakes(_: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    if !matches!(change.key.kind, SNAPSHOT | CLAIM) {
        return;
    }
    let protected = |meta: &Meta| meta.has_finalizer(RESTORED) || meta.has_finalizer(CLONED);
    if change.new.as_ref().is_some_and(|entry| protected(&entry.meta)) {
        wake(change.key.clone());
    }
    for entry in change.old.iter().chain(&change.new) {
        let Object::Claim(claim) = &entry.object else { continue };
        if let Some((kind, name)) = source_of(claim) {
            wake(Key::new(kind, &change.key.namespace, name));
        }
    }
}
