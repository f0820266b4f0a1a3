//! Provisioning: a claim alone is enough, where the driver of its class is registered here.
//!
//! In: a claim that asks a driver for a volume. Out: the call that makes it, then the volume object, reserved for the claim; the
//! binder does the rest.
//! - P1: a volume is asked for by a name that only this claim can have, so that asking again finds what was made.
//! - P2: what was made for a claim that is gone, or is not what was asked for, is deleted again.
//! - P3: no two volume objects are for one volume of a driver.
//!
//! Source: Kubernetes 1.36; external-provisioner 5 and its `sig-storage-lib-external-provisioner`.
mod class;
mod place;
mod volume;

use api::Quantity;
use csi::{
    CapacityRange, Code, ControllerRpcType, CreateVolumeRequest, DeleteVolumeRequest, Facts, Volume,
    VolumeContentSource,
};
use k8s_openapi::api::{core::v1::PersistentVolumeClaim, storage::v1::StorageClass};
use serde_json::json;

pub(crate) use class::{Parameters, Secret};
pub(crate) use place::places_of;
pub(crate) use volume::access_mode;

use crate::{
    call::{Answer, Call, Failure, Request},
    claim::{SELECTED_NODE, attributes_wanted, binds_late, class_of, requested, volume_of},
    content_source::{self, Content, content_source},
    decision::{Action, Context, Decision, Key, Meta, Note, annotation},
    world::{Change, Object, World},
};

/// Whom the binder asks for a claim's volume; the second is for provisioners of old.
pub(crate) const ASKED: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];

type Claim<'a> = (&'a Meta, &'a PersistentVolumeClaim);

/// A claim that a driver is asked to make a volume for.
struct Asked<'a> {
    claim: Claim<'a>,
    class: &'a StorageClass,
    driver: &'a Facts,
    /// Where its first pod will be; `None` where that does not matter.
    node: Option<&'a str>,
}

/// The name of the volume of a claim.
fn name_for(claim: &Meta) -> String {
    format!("pvc-{}", claim.uid)
}

pub(crate) fn decide(key: &Key, world: &World, _: &Context) -> Decision {
    let claim = world.claim(&key.namespace, &key.name).filter(|(meta, _)| meta.deleting.is_none());
    // Of a claim that went meanwhile it has yet to be learnt what was made for it.
    if let Some(call) = world.doubt(key)
        && claim.is_none_or(|(meta, _)| !is_for(call, meta))
    {
        return Decision::act(Action::call(call.clone()));
    }
    let Some(asked) = claim.and_then(|claim| asked(claim, world)) else { return Decision::settled() };
    let (meta, _) = asked.claim;
    if world.volume(&name_for(meta)).is_some() {
        return Decision::settled();
    }
    let source = match content_source(asked.claim, asked.class, asked.driver, world) {
        Ok(Content::Empty) => None,
        Ok(Content::Populated) => {
            let words = "Assuming an external populator will provision the volume";
            return Decision::wait(Note::normal(meta, "Provisioning", words));
        }
        Ok(Content::From { protect: Some(action), .. }) => return Decision::act(*action),
        Ok(Content::From { source, protect: None }) => Some(source),
        Err(why) => return Decision::wait(failed(&asked, &why)),
    };
    match request(&asked, source, world) {
        Ok(call) => {
            let words =
                format!("External provisioner is provisioning volume for claim \"{}/{}\"", key.namespace, key.name);
            Decision::act(Action::call(call)).with(Note::normal(meta, "Provisioning", words))
        }
        Err(why) => Decision::wait(failed(&asked, &why)),
    }
}

fn is_for(call: &Call, claim: &Meta) -> bool {
    matches!(&call.request, Request::CreateVolume(r) if r.name == name_for(claim))
}

fn failed(asked: &Asked<'_>, why: &str) -> Note {
    let class = asked.class.metadata.name.as_deref().unwrap_or_default();
    let words = format!("failed to provision volume with StorageClass {class:?}: {why}");
    Note::warning(asked.claim.0, "ProvisioningFailed", words)
}

/// Whether the claim asks a driver that is here, and all that it has to wait for is there.
fn asked<'a>(claim: Claim<'a>, world: &'a World) -> Option<Asked<'a>> {
    let (meta, object) = claim;
    if !volume_of(object).is_empty() {
        return None;
    }
    let driver = ASKED.iter().find_map(|name| annotation(&object.metadata, name))?;
    let driver = world.driver(driver).filter(|d| d.can(ControllerRpcType::CreateDeleteVolume))?;
    let (_, class) = world.class(class_of(object)).filter(|(_, c)| provisioner(c) == driver.name)?;
    let node = annotation(&object.metadata, SELECTED_NODE);
    let late = binds_late(Some(class));
    let ours = Asked { claim: (meta, object), class, driver, node };
    (!late || node.is_some()).then_some(ours)
}

/// The driver that makes the volumes of a class.
pub(crate) fn provisioner(class: &StorageClass) -> &str {
    in_tree::driver_of(&class.provisioner).unwrap_or(&class.provisioner)
}

/// Drivers that are told for which claim a volume is made, as external-provisioner does with `--extra-create-metadata`: ours,
/// and those whose own manifests ask for it. Others may refuse parameters that they do not know.
const TOLD_OF_CLAIMS: [&str; 5] = [
    "local.csi.holdfast",
    "cinder.csi.openstack.org",
    "disk.csi.azure.com",
    "ebs.csi.aws.com",
    "pd.csi.storage.gke.io",
];

/// # Errors
/// A sentence about what is wrong with the claim or its class, or has yet to be.
fn request(asked: &Asked<'_>, source: Option<VolumeContentSource>, world: &World) -> Result<Call, String> {
    let Asked { claim: (meta, claim), class, driver, node } = asked;
    let spec = claim.spec.clone().unwrap_or_default();
    if spec.selector.is_some() {
        return Err("claim Selector is not supported".into());
    }
    let class = &*in_tree::class_to_csi(class).map_err(|e| e.to_string())?;
    let parameters = Parameters::of(class)?;
    let name = name_for(meta);
    let secret = parameters.secret(Secret::Provisioner, &name, claim)?;
    let options = class.mount_options.clone().unwrap_or_default();
    let required_bytes = bytes(requested(claim));
    let mutable_parameters = match attributes_wanted(claim) {
        "" => Default::default(),
        name => attributes(world, driver, name)?,
    };
    let places = if driver.has_places() { place::requirement(world, &driver.name, class, *node)? } else { None };
    let mut own = parameters.own;
    if TOLD_OF_CLAIMS.contains(&driver.name.as_str()) {
        let of = |word: &str| format!("csi.storage.k8s.io/{word}");
        own.insert(of("pvc/name"), meta.key.name.to_string());
        own.insert(of("pvc/namespace"), meta.key.namespace.to_string());
        own.insert(of("pv/name"), name.clone());
    }
    let request = CreateVolumeRequest {
        name,
        capacity_range: Some(CapacityRange { required_bytes, limit_bytes: 0 }),
        volume_capabilities: volume::capabilities(&spec, driver, &parameters.fs_type, &options)?,
        parameters: own,
        secrets: Default::default(),
        volume_content_source: source,
        accessibility_requirements: places,
        mutable_parameters,
    };
    Ok(Call::new(&driver.name, request).with_secret(secret))
}

/// What the claim's attributes class says to the driver.
fn attributes(world: &World, driver: &Facts, name: &str) -> Result<std::collections::BTreeMap<String, String>, String> {
    let (_, class) = world.attributes_class(name).ok_or_else(|| format!("VAC {name} does not exist"))?;
    if class.driver_name != driver.name {
        return Err(format!("VAC {name} is for driver {}, not for {}", class.driver_name, driver.name));
    }
    if !driver.can(ControllerRpcType::ModifyVolume) {
        return Err(format!("driver {} takes no VolumeAttributesClass", driver.name));
    }
    Ok(class.parameters.clone().unwrap_or_default())
}

/// Rounded up; sizes beyond what CSI can say are asked for as the largest that it can.
pub(crate) fn bytes(size: Quantity) -> i64 {
    size.value()
}

pub(crate) fn heard(key: &Key, world: &World, _: &Context, call: &Call, answer: &Result<Answer, Failure>) -> Decision {
    let claim =
        world.claim(&key.namespace, &key.name).filter(|(meta, _)| meta.deleting.is_none() && is_for(call, meta));
    let asked = claim.and_then(|claim| asked(claim, world));
    match answer {
        Ok(Answer::CreateVolume(response)) => match (&response.volume, asked) {
            (Some(volume), None) => remove(call, volume),
            (None, None) => Decision::settled(),
            (volume, Some(asked)) => made(&asked, world, call, volume.as_ref()),
        },
        // What had to go is gone.
        Ok(_) => Decision::settled(),
        Err(failure) => asked.map_or_else(Decision::settled, |asked| refused(&asked, world, failure)),
    }
}

/// Deletes what a call has made.
fn remove(call: &Call, volume: &Volume) -> Decision {
    if volume.volume_id.is_empty() {
        return Decision::settled();
    }
    let request = DeleteVolumeRequest { volume_id: volume.volume_id.clone(), ..Default::default() };
    Decision::act(Action::call(Call::new(&call.driver, request).with_secret(call.secret.clone())))
}

/// Writes the object of a volume that was made, if it is what was asked for.
fn made(asked: &Asked<'_>, world: &World, call: &Call, made: Option<&Volume>) -> Decision {
    let (meta, claim) = asked.claim;
    let driver = &asked.driver.name;
    let lie = |what: String| Decision { again: Some(LIE_AGAIN), ..Decision::wait(failed(asked, &what)) };
    let Some(made) = made.filter(|v| !v.volume_id.is_empty()) else {
        return lie(format!("driver {driver} answered CreateVolume without saying which volume it made"));
    };
    let wanted = bytes(requested(claim));
    if made.capacity_bytes < 0 || (made.capacity_bytes > 0 && made.capacity_bytes < wanted) {
        let why = format!("created volume capacity {} less than requested capacity {wanted}", made.capacity_bytes);
        return remove(call, made).with(failed(asked, &why));
    }
    let sourced = matches!(&call.request, Request::CreateVolume(r) if r.volume_content_source.is_some());
    if sourced && made.content_source.is_none() {
        return remove(call, made).with(failed(asked, "volume content source missing"));
    }
    if let Some(other) = world.volumes_of_handle(driver, &made.volume_id).next() {
        let handle = &made.volume_id;
        return lie(format!("driver {driver} made volume {handle:?}, but that is what {} is", other.name));
    }
    let name = name_for(meta);
    let object = match volume::object(asked.class, (meta, claim), driver, made) {
        Ok(object) => object,
        Err(why) => return Decision::wait(failed(asked, &why)),
    };
    let words = format!("Successfully provisioned volume {name}");
    let create = Action::Create { key: Key::new("PersistentVolume", "", &name), object };
    Decision::act(create).with(Note::normal(meta, "ProvisioningSucceeded", words))
}

/// How soon a driver that lied is asked again.
const LIE_AGAIN: std::time::Duration = std::time::Duration::from_secs(60);

/// Says what the driver said. Where it has no room on the node that was chosen, another node may be.
fn refused(asked: &Asked<'_>, world: &World, failure: &Failure) -> Decision {
    let decision = Decision::wait(failed(asked, &failure.to_string()));
    let elsewhere = || {
        let mut nodes = world.csi_nodes().filter(|(_, n)| n.spec.drivers.iter().any(|d| d.name == asked.driver.name));
        nodes.any(|(meta, _)| Some(&*meta.key.name) != asked.node)
    };
    let full = failure.code == Some(Code::ResourceExhausted) && asked.driver.has_places();
    if full && asked.node.is_some() && elsewhere() {
        let patch = json!({ "metadata": { "annotations": { SELECTED_NODE: null } } });
        return Decision { action: Some(Action::patch(asked.claim.0, patch)), ..decision };
    }
    decision
}

pub(crate) fn wakes(world: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    content_source::wakes_of(world, change, wake);
    match change.key.kind {
        "PersistentVolumeClaim" => wake(change.key.clone()),
        "StorageClass" => world.unbound_claims(&change.key.name).for_each(|k| wake(k.clone())),
        // One that was made and went before its claim was bound has to be made again.
        "PersistentVolume" if change.new.is_none() => {
            let Some(Object::Volume(volume)) = change.old.as_ref().map(|e| &e.object) else { return };
            if let Some((namespace, name)) = crate::claim::reserved_for(volume) {
                wake(Key::new("PersistentVolumeClaim", namespace, name));
            }
        }
        "VolumeAttributesClass" => {
            let asks = |k: &&Key| {
                let claim = world.claim(&k.namespace, &k.name);
                claim.is_some_and(|(_, c)| attributes_wanted(c) == &*change.key.name)
            };
            world.unbound().filter(asks).for_each(|k| wake(k.clone()));
        }
        "CSINode" => {
            let chosen = |k: &&Key| {
                let claim = world.claim(&k.namespace, &k.name);
                claim.is_some_and(|(_, c)| annotation(&c.metadata, SELECTED_NODE) == Some(&*change.key.name))
            };
            world.unbound().filter(chosen).for_each(|k| wake(k.clone()));
        }
        _ => {}
    }
}
