//! Volumes and classes by the names that Kubernetes once had built in (`gcePersistentDisk`, `kubernetes.io/gce-pd`), translated
//! to the CSI drivers that took over, and back. What is known of each is in a file of its own, all of them in [`PLUGINS`].
//!
//! As Kubernetes 1.36 does it (`csi-translation-lib`); Ceph's block devices as the last version that translated them, 1.30. CephFS
//! was never translated: that one is ours, after the driver's documentation.
//!
//! Absent on purpose: drivers, the API, any effect.
mod aws_ebs;
mod azure_disk;
mod azure_file;
mod ceph;
mod cinder;
mod ended;
mod gce_pd;
mod portworx;
#[cfg(test)]
mod tests;
mod topology;
mod vsphere;

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{
    api::{
        core::v1::{CSIPersistentVolumeSource, PersistentVolume, PersistentVolumeSpec, Volume},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

pub use ended::{Ended, ended_inline, ended_provisioner, ended_volume};

/// Something of an in-tree plugin that its driver has no word for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object} of {plugin} cannot be given to the CSI driver {driver}: {why}")]
pub struct Error {
    object: String,
    plugin: &'static str,
    driver: &'static str,
    why: String,
}

/// What translators say is wrong: the end of a sentence.
type Why = String;

/// One plugin and the driver in place of it.
trait Plugin: Sync {
    /// `kubernetes.io/gce-pd`
    fn name(&self) -> &'static str;
    /// `pd.csi.storage.gke.io`
    fn driver(&self) -> &'static str;
    fn made(&self, spec: &PersistentVolumeSpec) -> bool;
    fn is_inline(&self, volume: &Volume) -> bool;
    /// Parameters and topologies, from the plugin's to the driver's.
    fn class(&self, class: &mut StorageClass) -> Result<(), Why>;
    /// Only for volumes for which [`Plugin::is_inline`] is true.
    fn inline(&self, volume: &Volume, namespace: &str) -> Result<PersistentVolume, Why>;
    /// Only for volumes for which [`Plugin::made`] is true.
    fn to_csi(&self, volume: &mut PersistentVolume) -> Result<(), Why>;
    /// The volume as the plugin had it. The source, which is of this plugin's driver, is already taken out of the volume.
    fn back(&self, volume: &mut PersistentVolume, source: CSIPersistentVolumeSource) -> Result<(), Why>;
    fn repair(&self, handle: &str, _node: &str) -> Result<String, Why> {
        Ok(handle.to_owned())
    }
}

const PLUGINS: &[&dyn Plugin] = &[
    &aws_ebs::AwsEbs,
    &azure_disk::AzureDisk,
    &azure_file::AzureFile,
    &ceph::CephFs,
    &ceph::Rbd,
    &cinder::Cinder,
    &gce_pd::GcePd,
    &portworx::Portworx,
    &vsphere::Vsphere,
];

/// The words of `holdfast up --stand-in`, each with the driver that it means.
pub const STAND_INS: [(&str, &str); 5] = [
    ("gce-pd", "pd.csi.storage.gke.io"),
    ("aws-ebs", "ebs.csi.aws.com"),
    ("azure-disk", "disk.csi.azure.com"),
    ("cinder", "cinder.csi.openstack.org"),
    ("vsphere", "csi.vsphere.vmware.com"),
];

/// The drivers in place of in-tree plugins, each with its plugin.
pub fn drivers() -> impl Iterator<Item = (&'static str, &'static str)> {
    PLUGINS.iter().map(|p| (p.driver(), p.name()))
}

/// The CSI driver in place of an in-tree plugin or provisioner (`kubernetes.io/gce-pd`).
pub fn driver_of(plugin: &str) -> Option<&'static str> {
    PLUGINS.iter().find(|p| p.name() == plugin).map(|p| p.driver())
}

/// The in-tree plugin that a CSI driver took over from.
pub fn plugin_of(driver: &str) -> Option<&'static str> {
    PLUGINS.iter().find(|p| p.driver() == driver).map(|p| p.name())
}

/// The word for a cloud's driver by which `holdfast up --stand-in` puts another in its place.
pub fn stand_in_of(driver: &str) -> Option<&'static str> {
    STAND_INS.iter().find(|(_, of)| *of == driver).map(|(word, _)| *word)
}

/// What to do about a driver of a cloud that is not installed: a sentence; `None` where nothing can stand in for it.
pub fn not_here(driver: &str) -> Option<String> {
    let word = stand_in_of(driver)?;
    Some(format!("The CSI driver {driver} is not installed here; `holdfast up --stand-in {word}` stands in for it."))
}

/// The plugin of a volume whose source is an in-tree one that is translated.
pub fn plugin_of_volume(spec: &PersistentVolumeSpec) -> Option<&'static str> {
    PLUGINS.iter().find(|p| p.made(spec)).map(|p| p.name())
}

/// The CSI driver of a volume, be it named or in place of a plugin.
pub fn driver_of_volume(volume: &PersistentVolume) -> Option<&str> {
    let spec = volume.spec.as_ref()?;
    spec.csi.as_ref().map(|c| &*c.driver).or_else(|| driver_of(plugin_of_volume(spec)?))
}

/// The plugin of a pod's volume whose source is an in-tree one that is translated.
pub fn plugin_of_inline(volume: &Volume) -> Option<&'static str> {
    PLUGINS.iter().find(|p| p.is_inline(volume)).map(|p| p.name())
}

fn refused(plugin: &dyn Plugin, what: &str, name: Option<&str>, why: Why) -> Error {
    let object = format!("{what} {:?}", name.unwrap_or_default());
    Error { object, plugin: plugin.name(), driver: plugin.driver(), why }
}

/// A volume as its driver knows it: a CSI source, the driver's topology keys, the access modes that it has. Any other volume
/// stays as it is.
///
/// # Errors
/// The volume says something that the driver cannot do.
pub fn volume_to_csi(volume: &PersistentVolume) -> Result<Cow<'_, PersistentVolume>, Error> {
    let of = |p: &&&dyn Plugin| volume.spec.as_ref().is_some_and(|s| p.made(s));
    let Some(plugin) = PLUGINS.iter().find(of) else { return Ok(Cow::Borrowed(volume)) };
    let mut translated = volume.clone();
    let ended = plugin.to_csi(&mut translated);
    ended.map_err(|why| refused(*plugin, "volume", volume.metadata.name.as_deref(), why))?;
    Ok(Cow::Owned(translated))
}

/// The CSI source of a volume, an in-tree one's translated; `None` for any other, and where it cannot be translated.
pub fn source_of(volume: &PersistentVolume) -> Option<CSIPersistentVolumeSource> {
    match volume_to_csi(volume).ok()? {
        Cow::Borrowed(volume) => volume.spec.as_ref()?.csi.clone(),
        Cow::Owned(volume) => volume.spec?.csi,
    }
}

/// A CSI volume as the in-tree plugin would have had it; `None` where its driver took over from none.
///
/// # Errors
/// The driver's answer says something that the plugin had no word for.
pub fn volume_from_csi(volume: &PersistentVolume) -> Result<Option<PersistentVolume>, Error> {
    let driver = volume.spec.as_ref().and_then(|s| s.csi.as_ref()).map(|c| c.driver.as_str());
    let Some(plugin) = PLUGINS.iter().find(|p| Some(p.driver()) == driver) else { return Ok(None) };
    let mut translated = volume.clone();
    let source = spec(&mut translated).csi.take();
    let ended = source.map_or(Ok(()), |source| plugin.back(&mut translated, source));
    ended.map_err(|why| refused(*plugin, "volume", volume.metadata.name.as_deref(), why))?;
    Ok(Some(translated))
}

/// A volume that a pod names itself, as a CSI volume with a name that is the same for every pod that names the same disk; `None`
/// for a volume of another kind.
///
/// # Errors
/// The volume says something that the driver cannot do.
pub fn inline_to_csi(volume: &Volume, namespace: &str) -> Result<Option<PersistentVolume>, Error> {
    let Some(plugin) = PLUGINS.iter().find(|p| p.is_inline(volume)) else { return Ok(None) };
    let translated = plugin.inline(volume, namespace);
    let mut translated = translated.map_err(|why| refused(*plugin, "volume", Some(&volume.name), why))?;
    spec(&mut translated).volume_mode.get_or_insert_with(|| "Filesystem".to_owned());
    Ok(Some(translated))
}

/// A class as its driver knows it: provisioner, parameters and topologies are the driver's. Any other class stays as it is.
///
/// # Errors
/// Parameters that contradict each other, or that the driver needs and that are missing.
pub fn class_to_csi(class: &StorageClass) -> Result<Cow<'_, StorageClass>, Error> {
    let Some(plugin) = PLUGINS.iter().find(|p| p.name() == class.provisioner) else { return Ok(Cow::Borrowed(class)) };
    let mut translated = class.clone();
    let ended = plugin.class(&mut translated);
    ended.map_err(|why| refused(*plugin, "class", class.metadata.name.as_deref(), why))?;
    plugin.driver().clone_into(&mut translated.provisioner);
    Ok(Cow::Owned(translated))
}

/// A volume's handle with what its translation could not know filled in from the name that the driver gives the node on which the
/// volume is used.
///
/// # Errors
/// Handle or name are not of the driver's form.
pub fn repair_handle(driver: &str, handle: &str, node: &str) -> Result<String, Error> {
    let Some(plugin) = PLUGINS.iter().find(|p| p.driver() == driver) else { return Ok(handle.to_owned()) };
    plugin.repair(handle, node).map_err(|why| refused(*plugin, "volume", Some(handle), why))
}

// What translators share.

type Map = BTreeMap<String, String>;

const FS_TYPE: &str = "csi.storage.k8s.io/fstype";
const ONCE: &str = "ReadWriteOnce";
const READ_MANY: &str = "ReadOnlyMany";

fn map<const N: usize>(pairs: [(&str, &str); N]) -> Map {
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

fn spec(volume: &mut PersistentVolume) -> &mut PersistentVolumeSpec {
    volume.spec.get_or_insert_default()
}

/// Puts the driver's source in the place of the plugin's.
fn source(driver: &str, handle: impl Into<String>) -> CSIPersistentVolumeSource {
    CSIPersistentVolumeSource { driver: driver.to_owned(), volume_handle: handle.into(), ..Default::default() }
}

/// The volume object of a volume that a pod names itself.
fn inline(name: String, mode: &str, csi: CSIPersistentVolumeSource) -> PersistentVolume {
    PersistentVolume {
        metadata: ObjectMeta { name: Some(name), ..Default::default() },
        spec: Some(PersistentVolumeSpec {
            access_modes: Some(vec![mode.to_owned()]),
            csi: Some(csi),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn annotation<'a>(volume: &'a PersistentVolume, name: &str) -> Option<&'a str> {
    volume.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// A partition's number as drivers are told it; `None` for the whole disk, or where nothing is said.
fn partition(attributes: Option<&Map>) -> Result<Option<i32>, Why> {
    match attributes.and_then(|a| a.get("partition")).filter(|p| !p.is_empty()) {
        None => Ok(None),
        Some(p) => p.parse().map(Some).map_err(|_| format!("partition {p:?} is no number")),
    }
}
