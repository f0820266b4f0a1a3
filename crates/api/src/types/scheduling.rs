//! Where a pod may run: affinity, spread, tolerations, gates.
use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as core;

use super::container::choice;
use crate::check::{POSITIVE, items, text};
use crate::field::{Errors, Path};
use crate::names;

pub(crate) fn affinity(at: &Path<'_>, affinity: &core::Affinity, e: &mut Errors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(node) = &affinity.node_affinity {
        let at = at.field("nodeAffinity");
        if let Some(selector) = &node.required_during_scheduling_ignored_during_execution {
            e.node_selector(&at.field(REQUIRED), selector);
        }
        let list = at.field(PREFERRED);
        for (i, term) in items(&node.preferred_during_scheduling_ignored_during_execution).enumerate() {
            let at = list.index(i);
            weight(&at.field("weight"), term.weight, e);
            e.node_selector_term(&at.field("preference"), &term.preference);
        }
    }
    let (with, apart) = (affinity.pod_affinity.as_ref(), affinity.pod_anti_affinity.as_ref());
    for (field, required, preferred) in [
        (
            "podAffinity",
            with.map(|a| &a.required_during_scheduling_ignored_during_execution),
            with.map(|a| &a.preferred_during_scheduling_ignored_during_execution),
        ),
        (
            "podAntiAffinity",
            apart.map(|a| &a.required_during_scheduling_ignored_during_execution),
            apart.map(|a| &a.preferred_during_scheduling_ignored_during_execution),
        ),
    ] {
        let at = at.field(field);
        let list = at.field(REQUIRED);
        for (i, term) in required.into_iter().flatten().flatten().enumerate() {
            pod_term(&list.index(i), term, e);
        }
        let list = at.field(PREFERRED);
        for (i, term) in preferred.into_iter().flatten().flatten().enumerate() {
            let at = list.index(i);
            weight(&at.field("weight"), term.weight, e);
            pod_term(&at.field("podAffinityTerm"), &term.pod_affinity_term, e);
        }
    }
}

fn weight(at: &Path<'_>, weight: i32, e: &mut Errors) {
    if !(1..=100).contains(&weight) {
        e.invalid(at, &weight, "must be in the range 1-100");
    }
}

fn pod_term(at: &Path<'_>, term: &core::PodAffinityTerm, e: &mut Errors) {
    for (field, selector) in [("labelSelector", &term.label_selector), ("namespaceSelector", &term.namespace_selector)]
    {
        if let Some(selector) = selector {
            e.label_selector(&at.field(field), selector);
        }
    }
    for namespace in items(&term.namespaces) {
        e.dns_label(&at.field("namespace"), namespace);
    }
    if term.topology_key.is_empty() {
        e.required(&at.field("topologyKey"), "can not be empty");
    }
    e.label_key(&at.field("topologyKey"), &term.topology_key);
}

pub(crate) fn gates(at: &Path<'_>, spec: &core::PodSpec, e: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, gate) in items(&spec.scheduling_gates).enumerate() {
        e.label_key(&at.index(i), &gate.name);
        if !seen.insert(&gate.name) {
            e.duplicate(&at.index(i), &gate.name);
        }
    }
}

pub(crate) fn spread(at: &Path<'_>, spec: &core::PodSpec, e: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, c) in items(&spec.topology_spread_constraints).enumerate() {
        let at = at.index(i);
        if c.max_skew <= 0 {
            e.invalid(&at.field("maxSkew"), &c.max_skew, POSITIVE);
        }
        if c.topology_key.is_empty() {
            e.required(&at.field("topologyKey"), "can not be empty");
        }
        e.one_of(&at.field("whenUnsatisfiable"), &c.when_unsatisfiable, &["DoNotSchedule", "ScheduleAnyway"]);
        if !seen.insert((&c.topology_key, &c.when_unsatisfiable)) {
            let both = format!("{{{}, {}}}", c.topology_key, c.when_unsatisfiable);
            e.duplicate(&at.field("{topologyKey, whenUnsatisfiable}"), &both);
        }
        if let Some(domains) = c.min_domains {
            if domains <= 0 {
                e.invalid(&at.field("minDomains"), &domains, POSITIVE);
            }
            if c.when_unsatisfiable != "DoNotSchedule" {
                let detail =
                    format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}", c.when_unsatisfiable);
                e.invalid(&at.field("minDomains"), &domains, &detail);
            }
        }
        for (field, policy) in
            [("nodeAffinityPolicy", &c.node_affinity_policy), ("nodeTaintsPolicy", &c.node_taints_policy)]
        {
            if let Some(policy) = policy {
                e.one_of(&at.field(field), policy, &["Honor", "Ignore"]);
            }
        }
        if let Some(selector) = &c.label_selector {
            e.label_selector(&at.field("labelSelector"), selector);
        }
    }
}

pub(crate) fn tolerations(at: &Path<'_>, list: &Option<Vec<core::Toleration>>, e: &mut Errors) {
    for (i, t) in items(list).enumerate() {
        let at = at.index(i);
        let (operator_at, effect_at) = (at.field("operator"), at.field("effect"));
        let (key, operator, value, effect) = (text(&t.key), text(&t.operator), text(&t.value), text(&t.effect));
        if !key.is_empty() {
            e.label_key(&at.field("key"), key);
        } else if operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            e.invalid(&operator_at, &operator, detail);
        }
        if t.toleration_seconds.is_some() && effect != "NoExecute" {
            e.invalid(&effect_at, &effect, "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        match operator {
            "Equal" | "" => {
                let errors = names::label_value(value);
                if !errors.is_empty() {
                    e.invalid(&operator_at, &value, &errors.join(";"));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    e.invalid(&operator_at, &value, "value must be empty when `operator` is 'Exists'");
                }
            }
            _ => e.not_supported(&operator_at, &operator, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            choice(&effect_at, effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"], e);
        }
    }
}
