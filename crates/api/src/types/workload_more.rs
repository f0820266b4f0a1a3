//! The older and the timed workloads: what clients read and write; nothing here makes pods.
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::core::v1::ReplicationController;
use serde_json::Value;

use super::workload::{
    CONTAINERS, IMAGES, SELECTOR, SETS_OF_PODS, containers, default_template, replicas, selector, template,
};
use super::{AGE, NAME, col, cron, labels_text};
use crate::age::{age, human};
use crate::check::{items, text};
use crate::contract::{Column, SelectableFields};
use crate::field::{Errors, Path};
use crate::typed::Rules;

impl Rules for ReplicationController {
    const COLUMNS: &'static [Column] = SETS_OF_PODS;
    const STATUS: bool = true;
    const GENERATION: bool = true;
    const SELECTABLE: &'static [&'static str] = &["status.replicas"];

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        let labels = spec.template.as_ref().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.clone());
        if let Some(labels) = labels.filter(|l| !l.is_empty()) {
            for map in [&mut spec.selector, &mut self.metadata.labels] {
                if map.as_ref().is_none_or(std::collections::BTreeMap::is_empty) {
                    *map = Some(labels.clone());
                }
            }
        }
        spec.replicas.get_or_insert(1);
        if let Some(template) = &mut spec.template {
            default_template(template);
        }
    }

    fn validate(&self, e: &mut Errors) {
        let Some(spec) = &self.spec else { return };
        let at = Path::top("spec");
        e.not_negative(&at.field("minReadySeconds"), spec.min_ready_seconds.unwrap_or(0).into());
        let wanted = spec.selector.clone().unwrap_or_default();
        if wanted.is_empty() {
            e.required(&at.field("selector"), "");
        }
        replicas(&at, spec.replicas, e);
        let Some(pods) = &spec.template else { return e.required(&at.field("template"), "") };
        let labels = pods.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
        if wanted.iter().any(|(key, value)| labels.get(key) != Some(value)) {
            let at = at.field("template");
            let at = at.field("metadata");
            e.invalid(&at.field("labels"), &labels, "`selector` does not match template `labels`");
        }
        template(&at, pods, None, &["Always"], e);
    }

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
            labels_text(&spec.selector).into(),
        ]
    }

    fn selectable(&self) -> SelectableFields {
        vec![("status.replicas", self.status.as_ref().map_or(0, |s| s.replicas).to_string())]
    }
}

impl Rules for CronJob {
    const COLUMNS: &'static [Column] = &[
        NAME,
        col("Schedule", "string", "When jobs start, in cron's format."),
        col("Timezone", "string", "Time zone of the schedule."),
        col("Suspend", "boolean", "Whether no more jobs start."),
        col("Active", "integer", "Number of jobs that run."),
        col("Last Schedule", "string", "Time since the last start."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ];
    const STATUS: bool = true;
    const GENERATION: bool = true;

    fn default(&mut self) {
        let spec = &mut self.spec;
        spec.concurrency_policy.get_or_insert_with(|| "Allow".to_owned());
        spec.suspend.get_or_insert(false);
        spec.successful_jobs_history_limit.get_or_insert(3);
        spec.failed_jobs_history_limit.get_or_insert(1);
        default_template(&mut spec.job_template.spec.get_or_insert_default().template);
    }

    fn validate(&self, e: &mut Errors) {
        /// A job's name is this one's and eleven characters more, of at most 63.
        const NAME_MAX: usize = 52;
        let name = self.metadata.name.as_deref().unwrap_or_default();
        if name.len() > NAME_MAX {
            e.invalid(&Path::top("metadata").field("name"), &name, "must be no more than 52 characters");
        }
        let spec = &self.spec;
        let at = Path::top("spec");
        let schedule_at = at.field("schedule");
        if e.need(&schedule_at, &spec.schedule) {
            e.invalid_all(&schedule_at, &spec.schedule, cron::check(&spec.schedule).err());
            if spec.schedule.contains("TZ") {
                let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
                e.invalid(&schedule_at, &spec.schedule, detail);
            }
        }
        e.not_negative(&at.field("startingDeadlineSeconds"), spec.starting_deadline_seconds.unwrap_or(0));
        e.one_of(&at.field("concurrencyPolicy"), text(&spec.concurrency_policy), &["Allow", "Forbid", "Replace"]);
        let job = spec.job_template.spec.clone().unwrap_or_default();
        let job_at = at.field("jobTemplate");
        template(&job_at.field("spec"), &job.template, None, &["OnFailure", "Never"], e);
        for (field, limit) in [
            ("successfulJobsHistoryLimit", spec.successful_jobs_history_limit),
            ("failedJobsHistoryLimit", spec.failed_jobs_history_limit),
        ] {
            e.not_negative(&at.field(field), limit.unwrap_or(0).into());
        }
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (self.spec.clone(), self.status.clone().unwrap_or_default());
        let job = spec.job_template.spec.clone().unwrap_or_default();
        let [names, images] = containers(Some(&job.template));
        let last = status.last_schedule_time.as_ref().map(|t| human(now.duration_since(t.0).as_secs()));
        vec![
            self.metadata.name.clone().into(),
            spec.schedule.into(),
            spec.time_zone.unwrap_or_else(|| "<none>".to_owned()).into(),
            match spec.suspend {
                Some(true) => "True",
                Some(false) => "False",
                None => "<unset>",
            }
            .into(),
            items(&status.active).count().into(),
            last.unwrap_or_else(|| "<none>".to_owned()).into(),
            age(self.metadata.creation_timestamp.as_ref(), now).into(),
            names,
            images,
            selector(job.selector.as_ref()),
        ]
    }
}
