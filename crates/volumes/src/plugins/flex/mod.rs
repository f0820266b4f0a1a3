//! `flexVolume`: volumes of programs that vendors put on the node, by the protocol of Kubernetes' FlexVolume.
//!
//! ```text
//! <flex-dir>/<vendor~driver>/<driver>                                     the program
//! <pods>/<uid>/volumes/kubernetes.io~flexvolume/<volume>/flex.json        what it was asked for; written before it is
//! <pods>/<uid>/volumes/<vendor~driver>/<volume>                           where it mounts for the pod
//! <plugins>/kubernetes.io/flexvolume/<vendor>/<driver>/mounts/<volume>    where it mounts once for all pods, if it attaches
//! ```
//! The node attaches and detaches, too: there is no other place where the program would be.
//! Source: Kubernetes 1.36, `pkg/volume/flexvolume`.
mod call;
mod record;

use std::{collections::BTreeMap, ffi::OsStr, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD};
use sys::{Bind, Handle, Reach, Sys};

use self::{
    call::{Capabilities, Driver, Failure, Status, options},
    record::Record,
};
use crate::{
    contract::{FlexVolume, Growth, Machine, Ownership, Ready, Source, VolumePlugin},
    error::VolumeError,
    place::{PRIVATE, ensure_path, failed, if_found, remove_empty, remove_point, unmount_inside},
    plugins::{DATA, block::FORMATTING, is_marked, local, mark, mismatch, own, tear_down_dir},
};

pub(super) struct Flex;

const ATTACH: &str = "AttachVolume.Attach";
const WAIT_FOR_ATTACH: &str = "MountVolume.WaitForAttach";
const MOUNT_DEVICE: &str = "MountVolume.MountDevice";
const SET_UP: &str = "MountVolume.SetUp";
const TEAR_DOWN: &str = "UnmountVolume.TearDown";
const UNMOUNT_DEVICE: &str = "UnmountDevice";
const DETACH: &str = "DetachVolume.Detach";
const EXPAND: &str = "MountVolume.NodeExpandVolume";

impl VolumePlugin for Flex {
    fn name(&self) -> &'static str {
        "kubernetes.io~flexvolume"
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::Flex(_))
    }

    fn depends_on_others(&self) -> bool {
        true
    }

    fn set_up(&self, source: &Source, owner: &Ownership, dir: &Path, on: &Machine<'_>) -> Result<Ready, VolumeError> {
        let Source::Flex(source) = source else { return Err(mismatch(self)) };
        let key = key(&source.driver, &source.name, source.persistent, dir);
        let act = || set_up(source, owner, dir, on);
        on.shared.alone_while(&key, on.cancel, act).unwrap_or(Err(VolumeError::Cancelled))
    }

    fn tear_down(&self, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
        let Some(record) = Record::read(dir, on.sys)? else {
            // No program was asked for anything yet.
            return tear_down_dir(dir, on.sys);
        };
        let key = key(&record.driver, &record.name, record.persistent, dir);
        on.shared.alone(&key, || tear_down(&record, dir, on))
    }

    fn expand(&self, source: &Source, dir: &Path, bytes: u64, on: &Machine<'_>) -> Result<Growth, VolumeError> {
        let Source::Flex(source) = source else { return Err(mismatch(self)) };
        let set_up = match if_found(on.sys.open(dir)).map_err(failed("open", dir))? {
            Some(top) => is_marked(on.sys, &top, dir)?,
            None => false,
        };
        match Record::read(dir, on.sys)?.filter(|_| set_up && source.persistent) {
            Some(record) => {
                let key = key(&source.driver, &source.name, true, dir);
                on.shared.alone(&key, || expand(source, &record, (dir, bytes), on))
            }
            None => Ok(Growth::NotSetUp),
        }
    }
}

/// Who acts on the same volume waits for each other; a pod's own volume is nobody else's.
fn key(driver: &str, name: &str, persistent: bool, dir: &Path) -> String {
    if persistent { format!("flex^{driver}^{name}") } else { format!("flex^{}", dir.display()) }
}

/// Turns what became of a call into an error with the name of what was tried.
fn during<'a>(operation: &'static str, volume: &'a str) -> impl Fn(Failure) -> VolumeError + 'a {
    move |failure| {
        let why = match failure {
            Failure::Cancelled => return VolumeError::Cancelled,
            Failure::NotSupported => "the driver does not support what this needs".to_owned(),
            Failure::Failed(why) => why,
        };
        VolumeError::Flex { operation, volume: volume.to_owned(), why }
    }
}

/// A command that a driver need not know: `None`.
fn optional(answer: Result<Status, Failure>) -> Result<Option<Status>, Failure> {
    match answer {
        Err(Failure::NotSupported) => Ok(None),
        other => other.map(Some),
    }
}

fn find<'a>(name: &str, volume: &str, on: &'a Machine<'a>) -> Result<(Driver<'a>, Capabilities), VolumeError> {
    let fail = during(SET_UP, volume);
    let driver = Driver::find(name, on).map_err(|why| fail(Failure::Failed(why)))?;
    let can = driver.call("init", &[]).map_err(fail)?.capabilities;
    Ok((driver, can))
}

fn is_mounted(path: &Path, sys: &dyn Sys) -> Result<bool, VolumeError> {
    match if_found(sys.open(path)).map_err(failed("open", path))? {
        Some(at) => Ok(sys.stat(&at).map_err(failed("read", path))?.mount_root),
        None => Ok(false),
    }
}

/// Attaches the volume and mounts it once for all pods, where its driver does that, then for this pod.
fn set_up(source: &FlexVolume, owner: &Ownership, dir: &Path, on: &Machine<'_>) -> Result<Ready, VolumeError> {
    let top = on.sys.open(dir).map_err(failed("open", dir))?;
    let ready = |target: &Path| Ready {
        volume: source.name.clone(),
        host_path: target.to_path_buf(),
        read_only: source.read_only,
        device: false,
        group_map: None,
    };
    let finished = is_marked(on.sys, &top, dir)?;
    let known = Record::read(dir, on.sys)?;
    if let Some(target) = known.as_ref().filter(|_| finished).map(|r| r.target(dir))
        && is_mounted(&target, on.sys)?
    {
        return Ok(ready(&target));
    }
    let (mut driver, can) = find(&source.driver, &source.name, on)?;
    let mut record = known.unwrap_or_else(|| Record::of(source, can.attach));
    record.write(dir, on.sys)?;
    let target = record.target(dir);
    if !is_mounted(&target, on.sys)? {
        let more = told_of_pod(source, owner, &mut driver, on)?;
        if record.attaches {
            attach(source, &driver, &mut record, dir, on)?;
        }
        mount(source, &driver, &record, (dir, &more), on)?;
    }
    if !finished {
        if can.fs_group && !source.read_only {
            let data = on.sys.open(&target).map_err(failed("open", &target))?;
            own(on.sys, &data, &target, owner, false)?;
        }
        mark(on.sys, &top, dir)?;
    }
    Ok(ready(&target))
}

/// What mounting for a pod tells the driver beyond the volume itself.
fn told_of_pod(
    source: &FlexVolume,
    owner: &Ownership,
    driver: &mut Driver<'_>,
    on: &Machine<'_>,
) -> Result<BTreeMap<String, String>, VolumeError> {
    let pod = &source.pod;
    let mut more: BTreeMap<String, String> = [
        ("kubernetes.io/pod.name", &pod.name),
        ("kubernetes.io/pod.namespace", &pod.namespace),
        ("kubernetes.io/pod.uid", &pod.uid),
        ("kubernetes.io/serviceAccount.name", &pod.service_account),
    ]
    .map(|(key, value)| (key.to_owned(), value.clone()))
    .into();
    if let Some(group) = owner.fs_group {
        more.insert("kubernetes.io/mounterArgs.FsGroup".into(), group.to_string());
    }
    let Some(secret) = &source.secret else { return Ok(more) };
    let fail = |why: String| during(SET_UP, &source.name)(Failure::Failed(why));
    let name = format!("{}/{}", secret.namespace, secret.name);
    if !on.settings.flex_secrets {
        return Err(fail(format!(
            "secretRef {name}: by the FlexVolume protocol, drivers are told secrets in their arguments, which every user of \
             this node can read while they run. To have that, start holdfast with --flex-volume-secrets; or take a CSI driver"
        )));
    }
    let data = on.drivers.secret_of_type(secret, &source.driver);
    let data = data.map_err(|why| fail(format!("couldn't get secret {name} err: {why}")))?;
    for (key, value) in data {
        let text = BASE64_STANDARD.encode(&value);
        driver.hide([text.clone(), String::from_utf8_lossy(&value).into_owned()]);
        more.insert(format!("kubernetes.io/secret/{key}"), text);
    }
    Ok(more)
}

/// Has the volume attached to this node, and mounted for all of its pods.
fn attach(
    source: &FlexVolume,
    driver: &Driver<'_>,
    record: &mut Record,
    dir: &Path,
    on: &Machine<'_>,
) -> Result<(), VolumeError> {
    let (volume, said) = (source.name.as_str(), options(source, &BTreeMap::new()));
    // As upstream: its answer is of no use yet.
    optional(driver.call("getvolumename", &[&said])).map_err(during(MOUNT_DEVICE, volume))?;
    let at = record.shared(dir, on);
    let known = match &record.device {
        Some(device) => Some(device.clone()),
        None => record.other(dir, on)?.and_then(|other| other.device),
    };
    let mounted = is_mounted(&at, on.sys)? || is_mounted(&at.join(DATA), on.sys)?;
    if let (Some(device), true) = (&known, mounted) {
        record.device = Some(device.clone());
        return record.write(dir, on.sys);
    }
    let still = match &known {
        Some(_) => {
            let answer = optional(driver.call("isattached", &[&said, &source.node]));
            answer.map_err(during(ATTACH, volume))?.is_none_or(|status| status.attached)
        }
        None => false,
    };
    let device = match known.filter(|_| still) {
        Some(device) => device,
        None => {
            let answer = optional(driver.call("attach", &[&said, &source.node])).map_err(during(ATTACH, volume))?;
            answer.map(|status| status.device).unwrap_or_default()
        }
    };
    let waited = optional(driver.call("waitforattach", &[&device, &said])).map_err(during(WAIT_FOR_ATTACH, volume))?;
    let device = waited.map_or(device, |status| status.device);
    record.device = Some(device.clone());
    record.write(dir, on.sys)?;
    if mounted {
        return Ok(());
    }
    let top = ensure_path(on.sys, &at, PRIVATE)?;
    let answer = driver.call("mountdevice", &[&at.to_string_lossy(), &device, &said]);
    match optional(answer).map_err(during(MOUNT_DEVICE, volume))? {
        None if !device.is_empty() => {
            let fs_type = Some(source.fs_type.as_str()).filter(|t| !t.is_empty());
            local::mount_device(Path::new(&device), (&top, &at), (fs_type, source.read_only), on.sys)
        }
        _ => Ok(()),
    }
}

/// Mounts the volume for the pod.
fn mount(
    source: &FlexVolume,
    driver: &Driver<'_>,
    record: &Record,
    (dir, more): (&Path, &BTreeMap<String, String>),
    on: &Machine<'_>,
) -> Result<(), VolumeError> {
    let target = record.target(dir);
    let above = target.parent().unwrap_or(&target);
    ensure_path(on.sys, above, PRIVATE)?;
    let made = ensure_path(on.sys, &target, PRIVATE)?;
    let said = options(source, more);
    match optional(driver.call("mount", &[&target.to_string_lossy(), &said])) {
        Ok(Some(_)) => Ok(()),
        Ok(None) if record.attaches => bind(&record.shared(dir, on), &made, &target, on.sys),
        Ok(None) => {
            let why = "mount command failed, status: Not supported; the driver neither mounts nor attaches";
            Err(during(SET_UP, &source.name)(Failure::Failed(why.to_owned())))
        }
        Err(failure) => {
            // Unless it mounted something, which is taken back with its help when the pod goes, or used by the next try.
            drop(made);
            drop(on.sys.open(above).and_then(|dir| on.sys.remove_dir(&dir, target.file_name().unwrap_or_default())));
            Err(during(SET_UP, &source.name)(failure))
        }
    }
}

/// Shows the pod what was mounted for all.
fn bind(from: &Path, at: &Handle, target: &Path, sys: &dyn Sys) -> Result<(), VolumeError> {
    let top = sys.open(from).map_err(failed("open", from))?;
    let inner = if_found(sys.open_at(&top, Path::new(DATA), Reach::Plain)).map_err(failed("open", from))?;
    let inner = match inner {
        Some(inner) if sys.stat(&inner).map_err(failed("read", from))?.mount_root => Some(inner),
        _ => None,
    };
    let bound = sys.bind(inner.as_ref().unwrap_or(&top), at, &Bind::default());
    bound.map_err(|errno| VolumeError::Mount { target: target.to_path_buf(), errno })
}

/// Takes the volume from the pod and, if no other pod has it, from the machine. The record goes last: it is what a later
/// try begins with.
fn tear_down(record: &Record, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
    let (sys, volume) = (on.sys, record.name.as_str());
    let fail = |why| during(TEAR_DOWN, volume)(Failure::Failed(why));
    let driver = match Driver::find(&record.driver, on) {
        Ok(driver) => Some(driver),
        // All that it did is a mount, which needs no driver to be undone.
        Err(_) if !record.attaches => None,
        Err(why) => return Err(fail(format!("it has to be detached by its driver: {why}"))),
    };
    let target = record.target(dir);
    if exists(&target, sys)? {
        unmount_inside(&target, sys)?;
        if let Some(driver) = &driver {
            optional(driver.call("unmount", &[&target.to_string_lossy()])).map_err(during(TEAR_DOWN, volume))?;
        }
        remove_point(&target, sys)?;
    }
    if let Some(above) = target.parent() {
        remove_empty(above, sys)?;
    }
    if let Some(driver) = driver.filter(|_| record.attaches)
        && record.other(dir, on)?.is_none()
    {
        let at = record.shared(dir, on);
        if is_mounted(&at, sys)? {
            unmount_inside(&at, sys)?;
            let answer = optional(driver.call("unmountdevice", &[&at.to_string_lossy()]));
            answer.map_err(during(UNMOUNT_DEVICE, volume))?;
        }
        remove_shared(&at, sys)?;
        optional(driver.call("detach", &[volume, &record.node])).map_err(during(DETACH, volume))?;
    }
    tear_down_dir(dir, sys)
}

fn exists(path: &Path, sys: &dyn Sys) -> Result<bool, VolumeError> {
    Ok(if_found(sys.open(path)).map_err(failed("open", path))?.is_some())
}

/// Removes where the volume was mounted for all. What the node mounted itself lies in a directory of its own there.
fn remove_shared(at: &Path, sys: &dyn Sys) -> Result<(), VolumeError> {
    if is_mounted(at, sys)? {
        remove_point(at, sys)?;
    }
    if !exists(at, sys)? {
        return Ok(());
    }
    remove_point(&at.join(DATA), sys)?;
    let top = sys.open(at).map_err(failed("open", at))?;
    if_found(sys.remove_file(&top, OsStr::new(FORMATTING))).map_err(failed("remove", at))?;
    drop(top);
    // What a driver has left in there is not ours to remove.
    remove_point(at, sys)
}

/// Lets the volume have `bytes`, then its files.
fn expand(
    source: &FlexVolume,
    record: &Record,
    (dir, bytes): (&Path, u64),
    on: &Machine<'_>,
) -> Result<Growth, VolumeError> {
    let (driver, can) = find(&source.driver, &source.name, on)?;
    let (said, at) = (options(source, &BTreeMap::new()), record.shared(dir, on));
    let (new, old) = (bytes.to_string(), source.has_bytes.to_string());
    let place = at.to_string_lossy();
    optional(driver.call("expandvolume", &[&said, &place, &new, &old])).map_err(during(EXPAND, &source.name))?;
    if !can.fs_resize {
        return Ok(Growth::Done);
    }
    let device = record.device.clone().unwrap_or_default();
    let answer = driver.call("expandfs", &[&said, &device, &place, &new, &old]);
    match optional(answer).map_err(during(EXPAND, &source.name))? {
        None if !device.is_empty() => local::grow_device(Path::new(&device), &at.join(DATA), bytes, on.sys),
        _ => Ok(Growth::Done),
    }
}
