//! Workloads that make pods: defaults, the template's rules and the columns; their controllers live elsewhere.
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::{AGE, NAME, col, labels_text, wide};
use crate::age::{age, human};
use crate::check::{items, text};
use crate::contract::Column;
use crate::field::{Errors, Path};
use crate::selector::Labels;
use crate::typed::Rules;

pub(super) const CONTAINERS: Column = wide("Containers", "string", "Names of each container in the template.");
pub(super) const IMAGES: Column = wide("Images", "string", "Images referenced by each container in the template.");
pub(super) const SELECTOR: Column = wide("Selector", "string", "Which pods belong to the object.");

/// Columns of the kinds that keep a number of equal pods.
pub(super) const SETS_OF_PODS: &[Column] = &[
    NAME,
    col("Desired", "integer", "Number of pods wanted."),
    col("Current", "integer", "Number of pods there are."),
    col("Ready", "integer", "Number of pods that are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) fn default_template(template: &mut PodTemplateSpec) {
    super::pod_defaults::spec(template.spec.get_or_insert_default());
}

/// The template, and the selector that must fit its labels.
pub(super) fn template(
    at: &Path<'_>,
    template: &PodTemplateSpec,
    selector: Option<&LabelSelector>,
    policies: &[&str],
    e: &mut Errors,
) {
    let template_at = at.field("template");
    if let Some(selector) = selector {
        let selector_at = at.field("selector");
        e.label_selector(&selector_at, selector);
        let labels = template.metadata.as_ref().and_then(|m| m.labels.as_ref());
        match Labels::from_object(Some(selector)) {
            Ok(read) if read.is_everything() => {
                e.invalid(&selector_at, selector, "empty selector is invalid for deployment");
            }
            Ok(read) if !read.matches(labels) => {
                let at = template_at.field("metadata");
                e.invalid(&at.field("labels"), &labels, "`selector` does not match template `labels`");
            }
            _ => {}
        }
    }
    let meta_at = template_at.field("metadata");
    if let Some(meta) = &template.metadata {
        e.labels(&meta_at.field("labels"), &meta.labels);
        e.annotations(&meta_at.field("annotations"), &meta.annotations);
    }
    let default = Default::default();
    let spec = template.spec.as_ref().unwrap_or(&default);
    let spec_at = template_at.field("spec");
    super::pod_validation::spec(&spec_at, spec, "", e);
    let policy = text(&spec.restart_policy);
    if !policy.is_empty() && !policies.contains(&policy) {
        e.not_supported(&spec_at.field("restartPolicy"), &policy, policies);
    }
}

pub(super) fn replicas(at: &Path<'_>, count: Option<i32>, e: &mut Errors) {
    e.not_negative(&at.field("replicas"), count.unwrap_or(0).into());
}

pub(super) fn containers(template: Option<&PodTemplateSpec>) -> [Value; 2] {
    let list = template.and_then(|t| t.spec.as_ref()).map(|s| s.containers.as_slice()).unwrap_or_default();
    let join = |f: fn(&Container) -> &str| list.iter().map(f).collect::<Vec<_>>().join(",").into();
    [join(|c| &c.name), join(|c| text(&c.image))]
}

pub(super) fn selector(selector: Option<&LabelSelector>) -> Value {
    match Labels::from_object(selector) {
        Ok(s) if s.is_everything() => "<none>".into(),
        Ok(s) => s.to_string().into(),
        Err(_) => "<invalid>".into(),
    }
}

macro_rules! immutable_selector {
    () => {
        fn validate_update(&self, old: &Self, e: &mut Errors) {
            self.validate(e);
            let of = |o: &Self| o.spec.as_ref().map(|s| s.selector.clone());
            let at = Path::top("spec");
            e.same(&at.field("selector"), &of(self), &of(old));
        }
    };
}

impl Rules for Deployment {
    const COLUMNS: &'static [Column] = &[
        NAME,
        col("Ready", "string", "Number of the pod with ready state"),
        col("Up-to-date", "string", "Number of pods made from the newest template."),
        col("Available", "string", "Number of pods that are ready for long enough."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ];
    const STATUS: bool = true;
    const GENERATION: bool = true;

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        spec.revision_history_limit.get_or_insert(10);
        spec.progress_deadline_seconds.get_or_insert(600);
        let strategy = spec.strategy.get_or_insert_default();
        strategy.type_.get_or_insert_with(|| "RollingUpdate".to_owned());
        if text(&strategy.type_) == "RollingUpdate" {
            let quarter = || IntOrString::String("25%".to_owned());
            let rolling = strategy.rolling_update.get_or_insert_default();
            rolling.max_unavailable.get_or_insert_with(quarter);
            rolling.max_surge.get_or_insert_with(quarter);
        }
        default_template(&mut spec.template);
    }

    fn validate(&self, e: &mut Errors) {
        let Some(spec) = &self.spec else { return };
        let at = Path::top("spec");
        replicas(&at, spec.replicas, e);
        template(&at, &spec.template, Some(&spec.selector), &["Always"], e);
    }

    immutable_selector!();

    fn row(&self, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (self.spec.clone().unwrap_or_default(), self.status.clone().unwrap_or_default());
        let [names, images] = containers(Some(&spec.template));
        vec![
            self.metadata.name.clone().into(),
            format!("{}/{}", status.ready_replicas.unwrap_or(0), spec.replicas.unwrap_or(0)).into(),
            status.updated_replicas.unwrap_or(0).into(),
            status.available_replicas.unwrap_or(0).into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
            names,
            images,
            selector(Some(&spec.selector)),
        ]
    }
}

impl Rules for ReplicaSet {
    const COLUMNS: &'static [Column] = SETS_OF_PODS;
    const STATUS: bool = true;
    const GENERATION: bool = true;

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        if let Some(template) = &mut spec.template {
            default_template(template);
        }
    }

    fn validate(&self, e: &mut Errors) {
        let Some(spec) = &self.spec else { return };
        let at = Path::top("spec");
        replicas(&at, spec.replicas, e);
        match &spec.template {
            Some(t) => template(&at, t, Some(&spec.selector), &["Always"], e),
            None => e.required(&at.field("template"), ""),
        }
    }

    immutable_selector!();

    fn row(&self, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (self.spec.clone().unwrap_or_default(), self.status.clone().unwrap_or_default());
        let [names, images] = containers(spec.template.as_ref());
        vec![
            self.metadata.name.clone().into(),
            spec.replicas.unwrap_or(0).into(),
            status.replicas.into(),
            status.ready_replicas.unwrap_or(0).into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
            names,
            images,
            selector(Some(&spec.selector)),
        ]
    }
}

impl Rules for StatefulSet {
    const COLUMNS: &'static [Column] =
        &[NAME, col("Ready", "string", "Number of the pod with ready state"), AGE, CONTAINERS, IMAGES];
    const STATUS: bool = true;
    const GENERATION: bool = true;

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.pod_management_policy.get_or_insert_with(|| "OrderedReady".to_owned());
        let update = spec.update_strategy.get_or_insert_default();
        if text(&update.type_).is_empty() {
            update.type_ = Some("RollingUpdate".to_owned());
            update.rolling_update.get_or_insert_default();
        }
        if text(&update.type_) == "RollingUpdate"
            && let Some(rolling) = &mut update.rolling_update
        {
            rolling.partition.get_or_insert(0);
        }
        let keep = spec.persistent_volume_claim_retention_policy.get_or_insert_default();
        keep.when_deleted.get_or_insert_with(|| "Retain".to_owned());
        keep.when_scaled.get_or_insert_with(|| "Retain".to_owned());
        spec.replicas.get_or_insert(1);
        spec.revision_history_limit.get_or_insert(10);
        default_template(&mut spec.template);
        for claim in spec.volume_claim_templates.iter_mut().flatten() {
            claim.default();
        }
    }

    fn validate(&self, e: &mut Errors) {
        let Some(spec) = &self.spec else { return };
        let at = Path::top("spec");
        replicas(&at, spec.replicas, e);
        // The claims made for each pod are volumes of the template, under the claims' names.
        let mut whole = spec.template.clone();
        if let Some(pod) = &mut whole.spec {
            for claim in items(&spec.volume_claim_templates) {
                let name = claim.metadata.name.clone().unwrap_or_default();
                if items(&pod.volumes).any(|v| v.name == name) {
                    continue;
                }
                let source = k8s_openapi::api::core::v1::PersistentVolumeClaimVolumeSource {
                    claim_name: name.clone(),
                    read_only: None,
                };
                pod.volumes.get_or_insert_default().push(k8s_openapi::api::core::v1::Volume {
                    name,
                    persistent_volume_claim: Some(source),
                    ..Default::default()
                });
            }
        }
        template(&at, &whole, Some(&spec.selector), &["Always"], e);
    }

    immutable_selector!();

    fn row(&self, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (self.spec.clone().unwrap_or_default(), self.status.clone().unwrap_or_default());
        let [names, images] = containers(Some(&spec.template));
        vec![
            self.metadata.name.clone().into(),
            format!("{}/{}", status.ready_replicas.unwrap_or(0), spec.replicas.unwrap_or(0)).into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
            names,
            images,
        ]
    }
}

impl Rules for DaemonSet {
    const COLUMNS: &'static [Column] = &[
        NAME,
        col("Desired", "integer", "Number of nodes that should run a pod."),
        col("Current", "integer", "Number of those that do."),
        col("Ready", "integer", "Number of nodes with a ready pod."),
        col("Up-to-date", "integer", "Number of nodes with a pod made from the newest template."),
        col("Available", "integer", "Number of nodes with a pod that is ready for long enough."),
        col("Node Selector", "string", "Which nodes are meant."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ];
    const STATUS: bool = true;
    const GENERATION: bool = true;

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        let update = spec.update_strategy.get_or_insert_default();
        update.type_.get_or_insert_with(|| "RollingUpdate".to_owned());
        if text(&update.type_) == "RollingUpdate" {
            let rolling = update.rolling_update.get_or_insert_default();
            rolling.max_unavailable.get_or_insert(IntOrString::Int(1));
            rolling.max_surge.get_or_insert(IntOrString::Int(0));
        }
        spec.revision_history_limit.get_or_insert(10);
        default_template(&mut spec.template);
    }

    fn validate(&self, e: &mut Errors) {
        let Some(spec) = &self.spec else { return };
        template(&Path::top("spec"), &spec.template, Some(&spec.selector), &["Always"], e);
    }

    immutable_selector!();

    fn row(&self, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (self.spec.clone().unwrap_or_default(), self.status.clone().unwrap_or_default());
        let [names, images] = containers(Some(&spec.template));
        let nodes = spec.template.spec.as_ref().and_then(|s| s.node_selector.clone());
        vec![
            self.metadata.name.clone().into(),
            status.desired_number_scheduled.into(),
            status.current_number_scheduled.into(),
            status.number_ready.into(),
            status.updated_number_scheduled.unwrap_or(0).into(),
            status.number_available.unwrap_or(0).into(),
            labels_text(&nodes).into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
            names,
            images,
            selector(Some(&spec.selector)),
        ]
    }
}

impl Rules for Job {
    const COLUMNS: &'static [Column] = &[
        NAME,
        col("Status", "string", "Status of the job."),
        col("Completions", "string", "Number of pods that succeeded, of those wanted."),
        col("Duration", "string", "Time required to complete the job."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ];
    const STATUS: bool = true;
    const GENERATION: bool = true;
    const SELECTABLE: &'static [&'static str] = &["status.successful"];

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        if spec.completions.is_none() && spec.parallelism.is_none() {
            spec.completions = Some(1);
        }
        spec.parallelism.get_or_insert(1);
        let retries = if spec.backoff_limit_per_index.is_some() { i32::MAX } else { 6 };
        spec.backoff_limit.get_or_insert(retries);
        spec.completion_mode.get_or_insert_with(|| "NonIndexed".to_owned());
        spec.suspend.get_or_insert(false);
        spec.manual_selector.get_or_insert(false);
        let replace = if spec.pod_failure_policy.is_some() { "Failed" } else { "TerminatingOrFailed" };
        spec.pod_replacement_policy.get_or_insert_with(|| replace.to_owned());
        if self.metadata.labels.as_ref().is_none_or(std::collections::BTreeMap::is_empty) {
            self.metadata.labels = spec.template.metadata.as_ref().and_then(|m| m.labels.clone());
        }
        default_template(&mut spec.template);
    }

    fn validate(&self, e: &mut Errors) {
        let Some(spec) = &self.spec else { return };
        let at = Path::top("spec");
        for (field, value) in
            [("parallelism", spec.parallelism), ("completions", spec.completions), ("backoffLimit", spec.backoff_limit)]
        {
            e.not_negative(&at.field(field), value.unwrap_or(0).into());
        }
        template(&at, &spec.template, spec.selector.as_ref(), &["OnFailure", "Never"], e);
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (self.spec.clone().unwrap_or_default(), self.status.clone().unwrap_or_default());
        let [names, images] = containers(Some(&spec.template));
        let done = status.succeeded.unwrap_or(0);
        let completions = match (spec.completions, spec.parallelism.unwrap_or(0)) {
            (Some(wanted), _) => format!("{done}/{wanted}"),
            (None, parallel) if parallel > 1 => format!("{done}/1 of {parallel}"),
            (None, _) => format!("{done}/1"),
        };
        let end = status.completion_time.as_ref().map_or(now, |t| t.0);
        let duration = status.start_time.as_ref().map(|start| human(end.duration_since(start.0).as_secs()));
        let has = |kind: &str| items(&status.conditions).any(|c| c.type_ == kind && c.status == "True");
        let known = [("Complete", "Complete"), ("Failed", "Failed")];
        let later = [
            ("Suspended", "Suspended"),
            ("FailureTarget", "FailureTarget"),
            ("SuccessCriteriaMet", "SuccessCriteriaMet"),
        ];
        let first = |list: &[(&str, &'static str)]| list.iter().find(|(kind, _)| has(kind)).map(|(_, shown)| *shown);
        let deleted = self.metadata.deletion_timestamp.is_some().then_some("Terminating");
        vec![
            self.metadata.name.clone().into(),
            first(&known).or(deleted).or_else(|| first(&later)).unwrap_or("Running").into(),
            completions.into(),
            duration.unwrap_or_default().into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
            names,
            images,
            selector(spec.selector.as_ref()),
        ]
    }

    fn selectable(&self) -> crate::contract::SelectableFields {
        let succeeded = self.status.as_ref().and_then(|s| s.succeeded).unwrap_or(0);
        vec![("status.successful", succeeded.to_string())]
    }
}
