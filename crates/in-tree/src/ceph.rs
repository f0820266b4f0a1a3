//! Block devices and file systems of Ceph.
use std::fmt::Write as _;

use k8s_openapi::api::{
    core::v1::{
        CSIPersistentVolumeSource, CephFSPersistentVolumeSource, LocalObjectReference, PersistentVolume,
        PersistentVolumeSpec, RBDPersistentVolumeSource, SecretReference, Volume,
    },
    storage::v1::StorageClass,
};
use md5::{Digest as _, Md5};

use crate::{FS_TYPE, Map, ONCE, Plugin, READ_MANY, Why, annotation, inline, map, source, spec};

pub struct Rbd;
pub struct CephFs;

const RBD: &str = "rbd.csi.ceph.com";
const CEPHFS: &str = "cephfs.csi.ceph.com";
/// The driver looks up a cluster of this name in its configuration: the sum of its monitors.
const CLUSTER: &str = "clusterID";
const MONITORS: &str = "monitors";
const IMAGE: &str = "imageName";
const FEATURES: &str = "imageFeatures";
const FORMAT: &str = "imageFormat";
const JOURNAL: &str = "journalPool";
const HANDLE: &str = "rbd.csi.ceph.com/volume-handle";
const LAYERING: &str = "layering";
/// The file system, where a cluster has several; the plugin had no word for it.
const FS_NAME: &str = "fsName";
const FS_NAME_NOTE: &str = "cephfs.csi.ceph.com/fs-name";
const ROOT: &str = "rootPath";
/// What the driver calls a file system's directory that it made itself.
const CEPHFS_HANDLE: &str = "cephfs.csi.ceph.com/volume-handle";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // A String takes all that is written.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn cluster(monitors: &str) -> String {
    hex(&Md5::digest(monitors))
}

fn secret(name: Option<&LocalObjectReference>, namespace: &str) -> SecretReference {
    let name = name.map(|r| r.name.clone());
    SecretReference { namespace: name.is_some().then(|| namespace.to_owned()), name }
}

fn mode(read_only: Option<bool>) -> &'static str {
    if read_only == Some(true) { READ_MANY } else { ONCE }
}

/// Parameters of a class of either; `uses` are the parts of the driver that are told the administrator's secret.
fn class(class: &mut StorageClass, uses: &[&str], mut parameters: Map) -> Result<(), Why> {
    let mut add = |name: &str, value: String| parameters.insert(name.to_owned(), value);
    for use_ in uses {
        add(&format!("csi.storage.k8s.io/{use_}-secret-namespace"), "default".to_owned());
    }
    let (mut has_secret, mut has_monitors) = (false, false);
    for (name, value) in class.parameters.take().unwrap_or_default() {
        match &*name.to_ascii_lowercase() {
            "fstype" => drop(add(FS_TYPE, value)),
            "imagefeatures" => drop(add(FEATURES, value)),
            "imageformat" => drop(add(FORMAT, value)),
            "pool" => drop(add("pool", value)),
            "fsname" => drop(add(FS_NAME, value)),
            "adminid" => drop(add("adminId", value)),
            part @ ("adminsecretname" | "adminsecretnamespace") => {
                let end = part.trim_start_matches("adminsecret");
                has_secret |= end == "name" && !value.is_empty();
                for use_ in uses {
                    add(&format!("csi.storage.k8s.io/{use_}-secret-{end}"), value.clone());
                }
            }
            MONITORS => {
                has_monitors = !value.is_empty();
                add(CLUSTER, cluster(&value));
                add(MONITORS, value);
            }
            _ => {}
        }
    }
    match (has_secret, has_monitors) {
        (true, true) => {
            class.parameters = Some(parameters);
            Ok(())
        }
        (false, _) => Err("parameter adminSecretName is missing".to_owned()),
        (_, false) => Err("parameter monitors is missing".to_owned()),
    }
}

const USES: [&str; 3] = ["provisioner", "node-stage", "controller-expand"];

impl Plugin for Rbd {
    fn name(&self) -> &'static str {
        "kubernetes.io/rbd"
    }

    fn driver(&self) -> &'static str {
        RBD
    }

    fn made(&self, spec: &PersistentVolumeSpec) -> bool {
        spec.rbd.is_some()
    }

    fn is_inline(&self, volume: &Volume) -> bool {
        volume.rbd.is_some()
    }

    fn class(&self, of: &mut StorageClass) -> Result<(), Why> {
        class(of, &USES, map([("migration", "true"), ("pool", "rbd")]))
    }

    fn inline(&self, volume: &Volume, namespace: &str) -> Result<PersistentVolume, Why> {
        let disk = volume.rbd.clone().unwrap_or_default();
        // Without one, its driver says what it lacks.
        let secret = disk.secret_ref.as_ref().map(|of| secret(Some(of), namespace));
        let pool = disk.pool.filter(|p| !p.is_empty()).unwrap_or_else(|| "rbd".to_owned());
        let cluster = cluster(&disk.monitors.join(","));
        let attributes = map([(CLUSTER, &*cluster), ("pool", &pool), ("staticVolume", "true"), (FEATURES, LAYERING)]);
        let csi = CSIPersistentVolumeSource {
            fs_type: disk.fs_type,
            volume_attributes: Some(attributes),
            node_stage_secret_ref: secret.clone(),
            controller_expand_secret_ref: secret,
            ..source(RBD, &*disk.image)
        };
        Ok(inline(format!("{RBD}-{}", disk.image), mode(disk.read_only), csi))
    }

    fn to_csi(&self, volume: &mut PersistentVolume) -> Result<(), Why> {
        let disk = spec(volume).rbd.take().unwrap_or_default();
        let noted = |key| annotation(volume, key).unwrap_or_default();
        let features = Some(noted(FEATURES)).filter(|f| !f.is_empty()).unwrap_or(LAYERING);
        let pool = disk.pool.as_deref().unwrap_or_default();
        let mut attributes = map([
            (IMAGE, &*disk.image),
            ("pool", pool),
            (FEATURES, features),
            (FORMAT, noted(FORMAT)),
            (JOURNAL, noted(JOURNAL)),
            ("migration", "true"),
            ("tryOtherMounters", "true"),
        ]);
        let handle = match noted(HANDLE) {
            "" => {
                let cluster = cluster(&disk.monitors.join(","));
                let image = disk.image.strip_prefix("kubernetes-dynamic-pvc-").unwrap_or(&disk.image);
                let handle = format!("mig_mons-{cluster}_image-{image}_{}", hex(pool.as_bytes()));
                attributes.insert("staticVolume".to_owned(), "true".to_owned());
                attributes.insert(CLUSTER.to_owned(), cluster);
                handle
            }
            handle => {
                attributes.insert(CLUSTER.to_owned(), noted(CLUSTER).to_owned());
                handle.to_owned()
            }
        };
        let spec = spec(volume);
        spec.access_modes = Some(vec![mode(disk.read_only).to_owned()]);
        spec.csi = Some(CSIPersistentVolumeSource {
            fs_type: disk.fs_type,
            volume_attributes: Some(attributes),
            node_stage_secret_ref: disk.secret_ref.clone(),
            controller_expand_secret_ref: disk.secret_ref,
            ..source(RBD, handle)
        });
        Ok(())
    }

    /// The monitors are not known any more; what the driver needs instead of them is in annotations.
    fn back(&self, volume: &mut PersistentVolume, source: CSIPersistentVolumeSource) -> Result<(), Why> {
        let attribute =
            |name: &str| source.volume_attributes.as_ref().and_then(|a| a.get(name)).cloned().unwrap_or_default();
        let annotations = volume.metadata.annotations.get_or_insert_default();
        annotations.insert(HANDLE.to_owned(), source.volume_handle.clone());
        annotations.extend([CLUSTER, JOURNAL, FEATURES, FORMAT].map(|name| (name.to_owned(), attribute(name))));
        let user = Some(attribute("adminId")).filter(|u| !u.is_empty()).unwrap_or_else(|| "admin".to_owned());
        spec(volume).rbd = Some(RBDPersistentVolumeSource {
            fs_type: source.fs_type.clone(),
            image: attribute(IMAGE),
            monitors: vec![String::new()],
            pool: Some(attribute("pool")),
            read_only: source.read_only,
            secret_ref: source.node_stage_secret_ref.clone(),
            user: Some(user),
            keyring: None,
        });
        Ok(())
    }
}

/// What the driver is told of a directory of a file system.
struct Directory<'a> {
    monitors: &'a [String],
    path: &'a str,
    file_system: &'a str,
    user: Option<&'a str>,
    secret: Option<SecretReference>,
    read_only: Option<bool>,
}

impl Directory<'_> {
    /// `mig_mons-CLUSTER_path-PATH`, both as hexadecimal figures: the same for every volume that is this directory.
    fn csi(self) -> Result<CSIPersistentVolumeSource, Why> {
        // A secretFile is on nodes, which the driver does not read; the plugin preferred a secret too.
        let secret = self.secret.ok_or("it has no secretRef, and the driver takes keys from a Secret only")?;
        let monitors = self.monitors.join(",");
        let path = if self.path.is_empty() { "/" } else { self.path };
        let cluster = cluster(&monitors);
        let mut attributes = map([
            (CLUSTER, &*cluster),
            (FS_NAME, self.file_system),
            (MONITORS, &*monitors),
            (ROOT, path),
            ("staticVolume", "true"),
        ]);
        attributes.extend(self.user.map(|user| ("adminId".to_owned(), user.to_owned())));
        Ok(CSIPersistentVolumeSource {
            read_only: self.read_only,
            volume_attributes: Some(attributes),
            node_stage_secret_ref: Some(secret),
            ..source(CEPHFS, format!("mig_mons-{cluster}_path-{}", hex(path.as_bytes())))
        })
    }
}

/// What Ceph calls the file system that it makes first.
const FIRST_FILE_SYSTEM: &str = "cephfs";

impl Plugin for CephFs {
    fn name(&self) -> &'static str {
        "kubernetes.io/cephfs"
    }

    fn driver(&self) -> &'static str {
        CEPHFS
    }

    fn made(&self, spec: &PersistentVolumeSpec) -> bool {
        spec.cephfs.is_some()
    }

    fn is_inline(&self, volume: &Volume) -> bool {
        volume.cephfs.is_some()
    }

    fn class(&self, of: &mut StorageClass) -> Result<(), Why> {
        class(of, &USES, map([(FS_NAME, FIRST_FILE_SYSTEM)]))
    }

    fn inline(&self, volume: &Volume, namespace: &str) -> Result<PersistentVolume, Why> {
        let of = volume.cephfs.clone().unwrap_or_default();
        let directory = Directory {
            monitors: &of.monitors,
            path: of.path.as_deref().unwrap_or_default(),
            file_system: FIRST_FILE_SYSTEM,
            user: of.user.as_deref(),
            secret: of.secret_ref.as_ref().map(|r| secret(Some(r), namespace)),
            read_only: of.read_only,
        };
        let csi = directory.csi()?;
        let mode = if of.read_only == Some(true) { READ_MANY } else { "ReadWriteMany" };
        Ok(inline(format!("{CEPHFS}-{}", csi.volume_handle), mode, csi))
    }

    /// Access modes stay: the file system has all of them.
    fn to_csi(&self, volume: &mut PersistentVolume) -> Result<(), Why> {
        let of = spec(volume).cephfs.take().unwrap_or_default();
        let directory = Directory {
            monitors: &of.monitors,
            path: of.path.as_deref().unwrap_or_default(),
            file_system: annotation(volume, FS_NAME_NOTE).unwrap_or(FIRST_FILE_SYSTEM),
            user: of.user.as_deref(),
            secret: of.secret_ref,
            read_only: of.read_only,
        };
        let mut source = directory.csi()?;
        if let Some(handle) = annotation(volume, CEPHFS_HANDLE) {
            handle.clone_into(&mut source.volume_handle);
            source.volume_attributes.get_or_insert_default().remove("staticVolume");
        }
        spec(volume).csi = Some(source);
        Ok(())
    }

    fn back(&self, volume: &mut PersistentVolume, mut source: CSIPersistentVolumeSource) -> Result<(), Why> {
        let mut attributes = source.volume_attributes.take().unwrap_or_default();
        if let Some(name) = attributes.remove(FS_NAME).filter(|n| n != FIRST_FILE_SYSTEM) {
            volume.metadata.annotations.get_or_insert_default().insert(FS_NAME_NOTE.to_owned(), name);
        }
        if attributes.remove("staticVolume").is_none() {
            let annotations = volume.metadata.annotations.get_or_insert_default();
            annotations.insert(CEPHFS_HANDLE.to_owned(), source.volume_handle);
        }
        let monitors = attributes.remove(MONITORS).filter(|m| !m.is_empty());
        let monitors = monitors.ok_or("its driver does not say which monitors it has")?;
        spec(volume).cephfs = Some(CephFSPersistentVolumeSource {
            monitors: monitors.split(',').map(str::to_owned).collect(),
            path: attributes.remove(ROOT),
            read_only: source.read_only,
            secret_file: None,
            secret_ref: source.node_stage_secret_ref,
            user: attributes.remove("adminId"),
        });
        Ok(())
    }
}
