//! Kubernetes objects on the wire: paths, requests, and what is kept of a response.
use std::{borrow::Cow, sync::Arc};

use api::{
    KINDS, Kind, Scope,
    snapshot::{VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent},
};
use controllers::{Entry, Key, Meta, Object, is_root_ca};
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ResourceQuota, Service},
        storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::EngineError;

/// The row of a kind. Keys carry names out of the table only.
pub(crate) fn row(kind: &str) -> &'static Kind {
    KINDS.iter().find(|k| k.kind == kind && k.face_of.is_none()).expect("keys name kinds of the table")
}

/// Kinds that are cached: all that are stored as what they are. Events are many and nobody decides by them.
pub(crate) fn watched() -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(|k| k.face_of.is_none() && k.kind != "Event")
}

/// The path of a kind's objects, in one namespace unless that is empty.
pub(crate) fn collection(kind: &Kind, namespace: &str) -> String {
    let root = match kind.group {
        "" => format!("/api/{}", kind.version),
        group => format!("/apis/{group}/{}", kind.version),
    };
    match (kind.scope, namespace) {
        (Scope::Cluster, _) | (_, "") => format!("{root}/{}", kind.plural),
        _ => format!("{root}/namespaces/{namespace}/{}", kind.plural),
    }
}

/// The path of an object or of one of its subresources.
pub(crate) fn object(key: &Key, subresource: Option<&str>) -> String {
    let path = format!("{}/{}", collection(row(key.kind), &key.namespace), key.name);
    subresource.map_or(path.clone(), |s| format!("{path}/{s}"))
}

/// One page of a list, its objects unread.
#[derive(Deserialize)]
pub(crate) struct Page {
    pub(crate) metadata: PageMeta,
    #[serde(default)]
    pub(crate) items: Option<Vec<Box<RawValue>>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PageMeta {
    pub(crate) resource_version: String,
    pub(crate) r#continue: Option<String>,
}

/// One line of a watch, its object unread.
#[derive(Deserialize)]
pub(crate) struct Line {
    pub(crate) r#type: String,
    pub(crate) object: Box<RawValue>,
}

/// Which state of which object a text is, as far as it is quickly read.
#[derive(Deserialize)]
pub(crate) struct Head<'a> {
    #[serde(borrow)]
    metadata: HeadMeta<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeadMeta<'a> {
    #[serde(default, borrow)]
    namespace: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    uid: Cow<'a, str>,
    #[serde(borrow)]
    resource_version: Cow<'a, str>,
}

impl Head<'_> {
    pub(crate) fn key(&self, kind: &'static str) -> Key {
        Key::new(kind, &self.metadata.namespace, &self.metadata.name)
    }
    pub(crate) fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
    /// Whether it is the very state of the object that `known` is.
    pub(crate) fn is(&self, known: &Meta) -> bool {
        known.resource_version == self.metadata.resource_version && known.uid == self.metadata.uid
    }
}

#[derive(Deserialize)]
pub(crate) struct Bare {
    pub(crate) metadata: ObjectMeta,
}

/// What is kept of an object.
pub(crate) fn entry(kind: &'static str, text: &str) -> Result<Entry, EngineError> {
    match kind {
        "Pod" => read(kind, text, |o: &mut Pod| &mut o.metadata, |o| Object::Pod(o.into())),
        "PersistentVolumeClaim" => {
            read(kind, text, |o: &mut PersistentVolumeClaim| &mut o.metadata, |o| Object::Claim(o.into()))
        }
        "PersistentVolume" => {
            read(kind, text, |o: &mut PersistentVolume| &mut o.metadata, |o| Object::Volume(o.into()))
        }
        "StorageClass" => read(kind, text, |o: &mut StorageClass| &mut o.metadata, |o| Object::Class(o.into())),
        "Node" => read(kind, text, |o: &mut Node| &mut o.metadata, |o| Object::Node(o.into())),
        "Namespace" => read(kind, text, |o: &mut Namespace| &mut o.metadata, |o| Object::Namespace(o.into())),
        "ResourceQuota" => read(kind, text, |o: &mut ResourceQuota| &mut o.metadata, |o| Object::Quota(o.into())),
        "Service" => read(kind, text, |o: &mut Service| &mut o.metadata, |o| Object::Service(o.into())),
        "CSINode" => read(kind, text, |o: &mut CSINode| &mut o.metadata, |o| Object::CsiNode(o.into())),
        "VolumeAttachment" => {
            read(kind, text, |o: &mut VolumeAttachment| &mut o.metadata, |o| Object::Attachment(o.into()))
        }
        "CSIDriver" => read(kind, text, |o: &mut CSIDriver| &mut o.metadata, |o| Object::CsiDriver(o.into())),
        "CSIStorageCapacity" => {
            read(kind, text, |o: &mut CSIStorageCapacity| &mut o.metadata, |o| Object::Room(o.into()))
        }
        "VolumeAttributesClass" => {
            read(kind, text, |o: &mut VolumeAttributesClass| &mut o.metadata, |o| Object::Attributes(o.into()))
        }
        "VolumeSnapshot" => read(kind, text, |o: &mut VolumeSnapshot| &mut o.metadata, |o| Object::Snapshot(o.into())),
        "VolumeSnapshotContent" => {
            read(kind, text, |o: &mut VolumeSnapshotContent| &mut o.metadata, |o| Object::SnapshotContent(o.into()))
        }
        "VolumeSnapshotClass" => {
            read(kind, text, |o: &mut VolumeSnapshotClass| &mut o.metadata, |o| Object::SnapshotClass(o.into()))
        }
        _ => {
            let bare: Bare = parse(kind, text)?;
            let name = bare.metadata.name.as_deref().unwrap_or_default();
            let object = if kind == "ConfigMap" && is_root_ca(name) { root_ca(text)? } else { Object::Other };
            Ok(Entry { meta: Arc::new(Meta::new(kind, &bare.metadata)), object })
        }
    }
}

fn read<T: DeserializeOwned>(
    kind: &'static str,
    text: &str,
    meta: impl Fn(&mut T) -> &mut ObjectMeta,
    wrap: impl FnOnce(T) -> Object,
) -> Result<Entry, EngineError> {
    let mut object: T = parse(kind, text)?;
    let metadata = meta(&mut object);
    // Half of an object, and no decision looks at it.
    metadata.managed_fields = None;
    let meta = Arc::new(Meta::new(kind, metadata));
    Ok(Entry { meta, object: wrap(object) })
}

fn root_ca(text: &str) -> Result<Object, EngineError> {
    #[derive(Deserialize)]
    struct Map {
        #[serde(default)]
        data: std::collections::BTreeMap<String, String>,
    }
    let map: Map = parse("ConfigMap", text)?;
    Ok(Object::RootCa(map.data.get("ca.crt").map_or("", String::as_str).into()))
}

pub(crate) fn parse<T: DeserializeOwned>(kind: &'static str, text: &str) -> Result<T, EngineError> {
    serde_json::from_str(text).map_err(|source| EngineError::Read { kind, source })
}

#[test]
fn paths_follow_the_table() {
    let pod = Key::new("Pod", "a", "b");
    assert_eq!(object(&pod, Some("binding")), "/api/v1/namespaces/a/pods/b/binding");
    assert_eq!(object(&Key::new("StorageClass", "", "c"), None), "/apis/storage.k8s.io/v1/storageclasses/c");
    assert_eq!(collection(row("Event"), ""), "/api/v1/events");
}

#[test]
fn only_the_certificates_of_config_maps_are_kept() {
    let text = |name: &str| format!(r#"{{"metadata":{{"name":"{name}","uid":"u"}},"data":{{"ca.crt":"PEM"}}}}"#);
    assert!(matches!(entry("ConfigMap", &text("x")).unwrap().object, Object::Other));
    assert!(matches!(entry("ConfigMap", &text("kube-root-ca.crt")).unwrap().object, Object::RootCa(p) if &*p == "PEM"));
}
