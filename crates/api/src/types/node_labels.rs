//! Labels of nodes that were renamed long ago: who selects by the old names is told.
use k8s_openapi::api::core::v1::NodeSelectorTerm;

use crate::check::items;
use crate::names;

/// What to say of a label that should no longer be used.
pub(super) fn deprecated(label: &str) -> Option<&'static str> {
    Some(match label {
        "beta.kubernetes.io/arch" => "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
        "beta.kubernetes.io/os" => "deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "failure-domain.beta.kubernetes.io/region" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"
        }
        "failure-domain.beta.kubernetes.io/zone" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
        }
        "beta.kubernetes.io/instance-type" => {
            "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"
        }
        "app.kubernetes.io/created-by" => "deprecated since v1.9",
        "scheduler.alpha.kubernetes.io/preferAvoidPods" => "deprecated since v1.22; use Taints and Tolerations instead",
        _ => return None,
    })
}

/// The name that a renamed label has now.
pub(super) fn successor(label: &str) -> Option<&'static str> {
    Some(deprecated(label)?.split_once("use \"")?.1.split_once('"')?.0)
}

/// Warnings about a term at the path `at`; a term that only prefers may have values that no label can have.
pub(super) fn term(at: &str, term: &NodeSelectorTerm, prefers: bool, out: &mut Vec<String>) {
    for (i, expression) in items(&term.match_expressions).enumerate() {
        let at = format!("{at}.matchExpressions[{i}]");
        if let Some(says) = deprecated(&expression.key) {
            out.push(format!("{at}.key: {} is {says}", expression.key));
        }
        for (j, value) in items(&expression.values).enumerate().filter(|_| prefers) {
            out.extend(
                names::label_value(value).into_iter().map(|m| format!("{at}.values[{j}]: {value} is invalid, {m}")),
            );
        }
    }
}
