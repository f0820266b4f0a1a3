//! The types that tables are built from.
use std::borrow::Cow;

use k8s_openapi::{
    api::{
        admissionregistration::v1 as admissionregistration, apps::v1 as apps, authentication::v1 as authentication,
        authorization::v1 as authorization, autoscaling::v1 as autoscaling, autoscaling::v2 as autoscaling2,
        batch::v1 as batch, certificates::v1 as certificates, certificates::v1beta1 as certificates_beta,
        coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery, events::v1 as events,
        networking::v1 as networking, node::v1 as node, policy::v1 as policy, rbac::v1 as rbac,
        scheduling::v1 as scheduling, storage::v1 as storage,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions,
    apimachinery::pkg::apis::meta::v1 as meta,
    kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration,
};
use schemars::{JsonSchema, SchemaGenerator};

use crate::snapshot;

/// A type that can be asked for by name.
pub(super) struct Root {
    pub(super) name: fn() -> Cow<'static, str>,
    pub(super) generate: fn(&mut SchemaGenerator),
}

const fn root<T: JsonSchema>() -> Root {
    fn generate<T: JsonSchema>(generator: &mut SchemaGenerator) {
        generator.subschema_for::<T>();
    }
    Root { name: T::schema_name, generate: generate::<T> }
}

macro_rules! roots {
    ($($module:ident { $($name:ident)* })*) => { &[$($(root::<$module::$name>(),)*)*] };
}

pub(super) static ROOTS: &[Root] = roots! {
    core {
        Pod Node Namespace PersistentVolume PersistentVolumeClaim ConfigMap Secret ServiceAccount Event Service Endpoints
        PodTemplate ReplicationController LimitRange ResourceQuota ComponentStatus Binding PodSpec PodTemplateSpec
    }
    meta {
        ObjectMeta ListMeta DeleteOptions Status Condition LabelSelector APIGroup APIGroupList APIResourceList APIVersions
        OwnerReference ManagedFieldsEntry
    }
    storage { StorageClass VolumeAttachment CSIDriver CSINode CSIStorageCapacity VolumeAttributesClass }
    snapshot { VolumeSnapshot VolumeSnapshotContent VolumeSnapshotClass }
    apps { Deployment ReplicaSet StatefulSet DaemonSet ControllerRevision }
    batch { Job CronJob }
    coordination { Lease }
    events { Event }
    policy { Eviction PodDisruptionBudget }
    authentication { TokenRequest TokenReview SelfSubjectReview }
    authorization { SubjectAccessReview SelfSubjectAccessReview LocalSubjectAccessReview SelfSubjectRulesReview }
    rbac { Role ClusterRole RoleBinding ClusterRoleBinding }
    scheduling { PriorityClass }
    autoscaling { Scale HorizontalPodAutoscaler }
    autoscaling2 { HorizontalPodAutoscaler }
    discovery { EndpointSlice }
    networking { Ingress IngressClass NetworkPolicy }
    node { RuntimeClass }
    certificates { CertificateSigningRequest }
    certificates_beta { ClusterTrustBundle }
    admissionregistration {
        ValidatingWebhookConfiguration MutatingWebhookConfiguration ValidatingAdmissionPolicy
        ValidatingAdmissionPolicyBinding
    }
    apiextensions { CustomResourceDefinition }
    apiregistration { APIService }
};
