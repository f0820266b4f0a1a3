//! The table of kinds: one row per kind is all that routes, discovery, storage keys and `kubectl` short names need.
use k8s_openapi::api::certificates::v1beta1 as certificates;
use k8s_openapi::api::{apps::v1 as apps, batch::v1 as batch, coordination::v1 as coordination, core::v1 as core};
use k8s_openapi::api::{networking::v1 as networking, scheduling::v1 as scheduling, storage::v1 as storage};

use crate::contract::{Kind, Scope, Subresource};
use crate::snapshot;
use crate::typed::{Rules, Typed};
use crate::types::event::{EVENTS_FACE, EventsFace};

const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];
const CREATE_GET: &[&str] = &["create", "get"];
const CREATE: &[&str] = &["create"];

const STATUS: Subresource = Subresource { name: "status", body: None, verbs: GET_PATCH_UPDATE };
const ONLY_STATUS: &[Subresource] = &[STATUS];
const NAMESPACE_SUBRESOURCES: &[Subresource] =
    &[Subresource { name: "finalize", body: None, verbs: &["update"] }, STATUS];
const ACCOUNT_SUBRESOURCES: &[Subresource] =
    &[Subresource { name: "token", body: Some(("authentication.k8s.io", "v1", "TokenRequest")), verbs: CREATE }];
const POD_SUBRESOURCES: &[Subresource] = &[
    Subresource { name: "attach", body: Some(("", "v1", "PodAttachOptions")), verbs: CREATE_GET },
    Subresource { name: "binding", body: Some(("", "v1", "Binding")), verbs: CREATE },
    Subresource { name: "ephemeralcontainers", body: None, verbs: GET_PATCH_UPDATE },
    Subresource { name: "eviction", body: Some(("policy", "v1", "Eviction")), verbs: CREATE },
    Subresource { name: "exec", body: Some(("", "v1", "PodExecOptions")), verbs: CREATE_GET },
    Subresource { name: "log", body: None, verbs: &["get"] },
    Subresource { name: "portforward", body: Some(("", "v1", "PodPortForwardOptions")), verbs: CREATE_GET },
    STATUS,
];

/// Writes the table. A row: type, plural, singular, short names, categories, scope, subresources, OpenAPI name.
macro_rules! kinds {
    ($($group:literal $version:literal { $(
        $module:ident :: $kind:ident, $plural:literal, $singular:literal, [$($short:literal),*], [$($category:literal),*],
        $scope:ident, $subresources:expr, $schema:literal;
    )* })*) => {
        /// Every kind that the server knows, in the order of discovery: by group, then as listed.
        pub static KINDS: &[Kind] = &[
            $($(Kind {
                kind: stringify!($kind),
                plural: $plural,
                singular: $singular,
                short: &[$($short),*],
                categories: &[$($category),*],
                group: $group,
                version: $version,
                scope: Scope::$scope,
                subresources: $subresources,
                schema: concat!($schema, ".", stringify!($kind)),
                columns: <$module::$kind as Rules>::COLUMNS,
                face_of: None,
                strategy: &Typed::<$module::$kind>::NEW,
            },)*)*
            Kind {
                kind: "Event",
                plural: "events",
                singular: "event",
                short: &["ev"],
                categories: &[],
                group: "events.k8s.io",
                version: "v1",
                scope: Scope::Namespace,
                subresources: &[],
                schema: "io.k8s.api.events.v1.Event",
                columns: <core::Event as Rules>::COLUMNS,
                face_of: Some(&EVENTS_FACE),
                strategy: &EventsFace,
            },
        ];
    };
}

kinds! {
    "" "v1" {
        core::ConfigMap, "configmaps", "configmap", ["cm"], [], Namespace, &[], "io.k8s.api.core.v1";
        core::Endpoints, "endpoints", "endpoints", ["ep"], [], Namespace, &[], "io.k8s.api.core.v1";
        core::Event, "events", "event", ["ev"], [], Namespace, &[], "io.k8s.api.core.v1";
        core::LimitRange, "limitranges", "limitrange", ["limits"], [], Namespace, &[], "io.k8s.api.core.v1";
        core::Namespace, "namespaces", "namespace", ["ns"], [], Cluster, NAMESPACE_SUBRESOURCES, "io.k8s.api.core.v1";
        core::Node, "nodes", "node", ["no"], [], Cluster, ONLY_STATUS, "io.k8s.api.core.v1";
        core::PersistentVolumeClaim, "persistentvolumeclaims", "persistentvolumeclaim", ["pvc"], [], Namespace, ONLY_STATUS, "io.k8s.api.core.v1";
        core::PersistentVolume, "persistentvolumes", "persistentvolume", ["pv"], [], Cluster, ONLY_STATUS, "io.k8s.api.core.v1";
        core::Pod, "pods", "pod", ["po"], ["all"], Namespace, POD_SUBRESOURCES, "io.k8s.api.core.v1";
        core::ReplicationController, "replicationcontrollers", "replicationcontroller", ["rc"], ["all"], Namespace, ONLY_STATUS, "io.k8s.api.core.v1";
        core::ResourceQuota, "resourcequotas", "resourcequota", ["quota"], [], Namespace, ONLY_STATUS, "io.k8s.api.core.v1";
        core::Secret, "secrets", "secret", [], [], Namespace, &[], "io.k8s.api.core.v1";
        core::ServiceAccount, "serviceaccounts", "serviceaccount", ["sa"], [], Namespace, ACCOUNT_SUBRESOURCES, "io.k8s.api.core.v1";
        core::Service, "services", "service", ["svc"], ["all"], Namespace, ONLY_STATUS, "io.k8s.api.core.v1";
    }
    "apps" "v1" {
        apps::DaemonSet, "daemonsets", "daemonset", ["ds"], ["all"], Namespace, ONLY_STATUS, "io.k8s.api.apps.v1";
        apps::Deployment, "deployments", "deployment", ["deploy"], ["all"], Namespace, ONLY_STATUS, "io.k8s.api.apps.v1";
        apps::ReplicaSet, "replicasets", "replicaset", ["rs"], ["all"], Namespace, ONLY_STATUS, "io.k8s.api.apps.v1";
        apps::StatefulSet, "statefulsets", "statefulset", ["sts"], ["all"], Namespace, ONLY_STATUS, "io.k8s.api.apps.v1";
    }
    "batch" "v1" {
        batch::CronJob, "cronjobs", "cronjob", ["cj"], ["all"], Namespace, ONLY_STATUS, "io.k8s.api.batch.v1";
        batch::Job, "jobs", "job", [], ["all"], Namespace, ONLY_STATUS, "io.k8s.api.batch.v1";
    }
    "certificates.k8s.io" "v1beta1" {
        certificates::ClusterTrustBundle, "clustertrustbundles", "clustertrustbundle", [], [], Cluster, &[], "io.k8s.api.certificates.v1beta1";
    }
    "coordination.k8s.io" "v1" {
        coordination::Lease, "leases", "lease", [], [], Namespace, &[], "io.k8s.api.coordination.v1";
    }
    "networking.k8s.io" "v1" {
        networking::Ingress, "ingresses", "ingress", ["ing"], [], Namespace, ONLY_STATUS, "io.k8s.api.networking.v1";
    }
    "scheduling.k8s.io" "v1" {
        scheduling::PriorityClass, "priorityclasses", "priorityclass", ["pc"], [], Cluster, &[], "io.k8s.api.scheduling.v1";
    }
    "snapshot.storage.k8s.io" "v1" {
        snapshot::VolumeSnapshotClass, "volumesnapshotclasses", "volumesnapshotclass", ["vsclass", "vsclasses"], [], Cluster, &[], "io.k8s.storage.snapshot.v1";
        snapshot::VolumeSnapshotContent, "volumesnapshotcontents", "volumesnapshotcontent", ["vsc", "vscs"], [], Cluster, ONLY_STATUS, "io.k8s.storage.snapshot.v1";
        snapshot::VolumeSnapshot, "volumesnapshots", "volumesnapshot", ["vs"], [], Namespace, ONLY_STATUS, "io.k8s.storage.snapshot.v1";
    }
    "storage.k8s.io" "v1" {
        storage::CSIDriver, "csidrivers", "csidriver", [], [], Cluster, &[], "io.k8s.api.storage.v1";
        storage::CSINode, "csinodes", "csinode", [], [], Cluster, &[], "io.k8s.api.storage.v1";
        storage::CSIStorageCapacity, "csistoragecapacities", "csistoragecapacity", [], [], Namespace, &[], "io.k8s.api.storage.v1";
        storage::StorageClass, "storageclasses", "storageclass", ["sc"], [], Cluster, &[], "io.k8s.api.storage.v1";
        storage::VolumeAttachment, "volumeattachments", "volumeattachment", [], [], Cluster, ONLY_STATUS, "io.k8s.api.storage.v1";
        storage::VolumeAttributesClass, "volumeattributesclasses", "volumeattributesclass", ["vac"], [], Cluster, &[], "io.k8s.api.storage.v1";
    }
}

/// The kind served at a path, if any. `group` is empty for the core group.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.group == group && k.version == version && k.plural == plural)
}

/// The kind that an object's `apiVersion` and `kind` name, if any.
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.group == group && k.version == version && k.kind == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_within_a_group() {
        let mut seen = HashSet::new();
        for k in KINDS {
            assert!(seen.insert((k.group, k.version, k.plural)), "{} twice", k.plural);
            assert!(seen.insert((k.group, k.version, k.kind)), "{} twice", k.kind);
            assert_eq!(k.singular, k.kind.to_lowercase());
            assert!(k.columns.iter().any(|c| c.format == "name"), "{} has no name column", k.kind);
        }
    }

    #[test]
    fn kinds_are_found_by_path_and_by_kind() {
        assert_eq!(find("", "v1", "pods").map(|k| k.kind), Some("Pod"));
        assert_eq!(by_kind("storage.k8s.io", "v1", "StorageClass").map(|k| k.plural), Some("storageclasses"));
        assert!(find("apps", "v1", "pods").is_none());
        assert!(find("", "v2", "pods").is_none());
    }

    #[test]
    fn every_row_has_as_many_cells_as_columns() {
        for k in KINDS {
            let api = if k.group.is_empty() { k.version.to_owned() } else { format!("{}/{}", k.group, k.version) };
            let mut o = serde_json::json!({"apiVersion": api, "kind": k.kind, "metadata": {"name": "x"}});
            k.strategy.default(&mut o);
            let row = k.strategy.row(&o, jiff::Timestamp::UNIX_EPOCH);
            assert_eq!(row.len(), k.columns.len(), "{}", k.kind);
            let at = k.columns.iter().position(|c| c.format == "name").expect("checked above");
            assert_eq!(row[at], "x", "{}", k.kind);
        }
    }

    #[test]
    fn defaulting_twice_changes_nothing() {
        for k in KINDS {
            let api = if k.group.is_empty() { k.version.to_owned() } else { format!("{}/{}", k.group, k.version) };
            let mut once = serde_json::json!({"apiVersion": api, "kind": k.kind, "metadata": {"name": "x"}});
            k.strategy.default(&mut once);
            let mut twice = once.clone();
            k.strategy.default(&mut twice);
            assert_eq!(once, twice, "{}", k.kind);
        }
    }
}
