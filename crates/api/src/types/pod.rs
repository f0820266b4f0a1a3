//! Pods.
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodIP, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

use super::pod_row;
use crate::check::{is_empty, items, text};
use crate::contract::{Column, SelectableFields};
use crate::field::{Errors, Path};
use crate::pod::{is_terminal, qos_class};
use crate::typed::Rules;

impl Rules for Pod {
    const COLUMNS: &'static [Column] = pod_row::COLUMNS;
    const WARNS_OF_UPDATES: bool = false;
    const STATUS: bool = true;
    const GENERATION: bool = true;
    const SELECTABLE: &'static [&'static str] = &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.podIPs",
        "status.nominatedNodeName",
    ];

    fn default(&mut self) {
        super::pod_defaults::spec(self.spec.get_or_insert_default());
        super::pod_defaults::pod(self);
        if let Some(status) = &mut self.status {
            one_address(status);
        }
    }

    fn prepare_create(&mut self) {
        let spec = self.spec.get_or_insert_default();
        if spec.termination_grace_period_seconds.is_some_and(|s| s < 0) {
            spec.termination_grace_period_seconds = Some(1);
        }
        let mut status = PodStatus {
            phase: Some("Pending".to_owned()),
            qos_class: Some(qos_class(spec).as_str().to_owned()),
            ..Default::default()
        };
        if !is_empty(&spec.scheduling_gates) {
            status.conditions = Some(vec![PodCondition {
                type_: "PodScheduled".to_owned(),
                status: "False".to_owned(),
                reason: Some("SchedulingGated".to_owned()),
                message: Some("Scheduling is blocked due to non-empty scheduling gates".to_owned()),
                last_transition_time: Timestamp::from_second(Timestamp::now().as_second()).ok().map(Time),
                ..Default::default()
            }]);
        }
        self.status = Some(status);
    }

    fn prepare_status_update(&mut self, old: &Self) {
        self.metadata.owner_references = old.metadata.owner_references.clone();
        let status = self.status.get_or_insert_default();
        // Given at creation, for good.
        if text(&status.qos_class).is_empty() {
            status.qos_class = old.status.as_ref().and_then(|s| s.qos_class.clone());
        }
        one_address(status);
    }

    fn validate(&self, e: &mut Errors) {
        let at = Path::top("spec");
        let default = PodSpec::default();
        let spec = self.spec.as_ref().unwrap_or(&default);
        self.validate_spec(e);
        if !is_empty(&spec.ephemeral_containers) {
            e.forbidden(&at.field("ephemeralContainers"), "cannot be set on create");
        }
        if !text(&spec.node_name).is_empty() && !is_empty(&spec.scheduling_gates) {
            e.forbidden(&at.field("nodeName"), "cannot be set until all schedulingGates have been cleared");
        }
    }

    fn validate_update(&self, old: &Self, e: &mut Errors) {
        self.validate_spec(e);
        if let (Some(new), Some(old)) = (&self.spec, &old.spec) {
            super::pod_validation::change(new, old, e);
        }
    }

    fn validate_status_update(&self, old: &Self, e: &mut Errors) {
        let at = Path::top("status");
        let (new, was) = (self.status.clone().unwrap_or_default(), old.status.clone().unwrap_or_default());
        if !text(&was.qos_class).is_empty() {
            e.same(&at.field("qosClass"), &new.qos_class, &was.qos_class);
        }
        let nominated = text(&new.nominated_node_name);
        if nominated != text(&was.nominated_node_name) && !nominated.is_empty() {
            e.dns_subdomain(&at.field("nominatedNodeName"), nominated);
        }
        let list = at.field("conditions");
        for (i, condition) in items(&new.conditions).enumerate() {
            let at = list.index(i);
            e.label_key(&at.field("type"), &condition.type_);
        }
        let policy = old.spec.as_ref().map_or("Always", |s| text(&s.restart_policy));
        ended_stays_ended(&at.field("containerStatuses"), &new.container_statuses, &was.container_statuses, policy, e);
    }

    fn warnings(&self) -> Vec<String> {
        super::pod_warnings::warnings(self)
    }

    fn row(&self, now: Timestamp) -> Vec<Value> {
        pod_row::row(self, now)
    }

    fn selectable(&self) -> SelectableFields {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let address = items(&status.pod_ips).next().map(|i| i.ip.clone()).or(status.pod_ip.clone()).unwrap_or_default();
        vec![
            ("spec.nodeName", text(&spec.node_name).to_owned()),
            ("spec.restartPolicy", text(&spec.restart_policy).to_owned()),
            ("spec.schedulerName", text(&spec.scheduler_name).to_owned()),
            ("spec.serviceAccountName", text(&spec.service_account_name).to_owned()),
            ("spec.hostNetwork", spec.host_network.unwrap_or(false).to_string()),
            ("status.phase", text(&status.phase).to_owned()),
            ("status.podIP", address.clone()),
            ("status.podIPs", address),
            ("status.nominatedNodeName", text(&status.nominated_node_name).to_owned()),
        ]
    }

    fn deletion_grace(&self, requested: Option<i64>) -> i64 {
        let own = self.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(0);
        let placed = self.spec.as_ref().is_some_and(|s| !text(&s.node_name).is_empty());
        // Nothing runs that would need the time.
        if !placed || is_terminal(self) {
            return 0;
        }
        match requested.unwrap_or(own) {
            seconds if seconds < 0 => 1,
            seconds => seconds,
        }
    }
}

/// The part of the rules that creation and update share.
trait ValidateSpec {
    fn validate_spec(&self, e: &mut Errors);
}

impl ValidateSpec for Pod {
    fn validate_spec(&self, e: &mut Errors) {
        let default = PodSpec::default();
        let spec = self.spec.as_ref().unwrap_or(&default);
        let name = self.metadata.name.as_deref().unwrap_or_default();
        super::pod_validation::spec(&Path::top("spec"), spec, name, e);
        let list = Path::top("spec");
        let list = list.field("containers");
        for (i, c) in spec.containers.iter().enumerate() {
            super::container::image_text(&list.index(i), text(&c.image), e);
        }
    }
}

/// `podIP` and the first of `podIPs` are the same address.
fn one_address(status: &mut PodStatus) {
    let (one, first) = (text(&status.pod_ip).to_owned(), items(&status.pod_ips).next().map(|i| i.ip.clone()));
    match (one, first) {
        (ip, None) if !ip.is_empty() => status.pod_ips = Some(vec![PodIP { ip }]),
        (_, Some(first)) => status.pod_ip = Some(first),
        _ => {}
    }
}

/// A container that has ended and is not restarted cannot come back.
fn ended_stays_ended(
    at: &Path<'_>,
    new: &Option<Vec<ContainerStatus>>,
    old: &Option<Vec<ContainerStatus>>,
    policy: &str,
    e: &mut Errors,
) {
    if policy == "Always" {
        return;
    }
    let ended = |s: &ContainerStatus| s.state.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| t.exit_code);
    for (i, was) in items(old).enumerate() {
        let Some(code) = ended(was) else { continue };
        if code != 0 && policy == "OnFailure" {
            continue;
        }
        if items(new).any(|is| is.name == was.name && ended(is).is_none()) {
            let at = at.index(i);
            e.forbidden(&at.field("state"), "may not be transitioned to non-terminated state");
        }
    }
}
