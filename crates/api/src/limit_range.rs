//! What a `LimitRange` does: defaults for containers that say nothing, bounds for containers, pods and claims.
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, LimitRange, LimitRangeItem, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::check::items;
use crate::pod::{self, Amounts, amounts};
use crate::quantity::Quantity;

/// Says which values of a pod came from limit ranges.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

type List = BTreeMap<String, Text>;

fn limits(range: &LimitRange) -> &[LimitRangeItem] {
    range.spec.as_ref().map_or(&[], |s| &s.limits)
}

/// Gives containers the requests and limits that they do not have, and writes down which these are.
pub fn set_defaults(range: &LimitRange, pod: &mut Pod) {
    let (mut requests, mut maxima) = (List::new(), List::new());
    for item in limits(range).iter().filter(|item| item.type_ == "Container") {
        requests.extend(item.default_request.clone().into_iter().flatten());
        maxima.extend(item.default.clone().into_iter().flatten());
    }
    let Some(spec) = &mut pod.spec else { return };
    let mut told = Vec::new();
    let lists = [("container", &mut spec.containers), ("init container", spec.init_containers.get_or_insert_default())];
    for (what, containers) in lists {
        for container in containers {
            let resources = container.resources.get_or_insert_default();
            for (kind, wanted, list) in
                [("request", &requests, &mut resources.requests), ("limit", &maxima, &mut resources.limits)]
            {
                let list = list.get_or_insert_default();
                let missing: Vec<&str> =
                    wanted.keys().filter(|name| !list.contains_key(*name)).map(String::as_str).collect();
                if !missing.is_empty() {
                    told.push(format!("{} {kind} for {what} {}", missing.join(", "), container.name));
                }
                for (name, value) in wanted {
                    list.entry(name.clone()).or_insert_with(|| value.clone());
                }
            }
            resources.requests = resources.requests.take().filter(|l| !l.is_empty());
            resources.limits = resources.limits.take().filter(|l| !l.is_empty());
        }
    }
    spec.init_containers = spec.init_containers.take().filter(|l| !l.is_empty());
    if !told.is_empty() {
        let text = format!("LimitRanger plugin set: {}", told.join("; "));
        pod.metadata.annotations.get_or_insert_default().insert(ANNOTATION.to_owned(), text);
    }
}

/// Where a pod is out of bounds; upstream's sentences.
pub fn check_pod(range: &LimitRange, pod: &Pod) -> Vec<String> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut found = Vec::new();
    for item in limits(range) {
        match item.type_.as_str() {
            "Container" => {
                for container in spec.containers.iter().chain(items(&spec.init_containers)) {
                    let (requests, limits) = of(container);
                    check(item, &requests, &limits, &mut found);
                }
            }
            "Pod" => check(item, &pod::requests(spec), &pod::limits(spec), &mut found),
            _ => {}
        }
    }
    found
}

/// Where a claim is out of bounds; upstream's sentences.
pub fn check_claim(range: &LimitRange, claim: &PersistentVolumeClaim) -> Vec<String> {
    let resources = claim.spec.as_ref().and_then(|s| s.resources.as_ref());
    let requests = amounts(resources.and_then(|r| r.requests.as_ref()));
    let mut found = Vec::new();
    for item in limits(range).iter().filter(|item| item.type_ == "PersistentVolumeClaim") {
        for (name, least) in amounts(item.min.as_ref()) {
            let asked = Asked { request: requests.get(&name).copied(), limit: None };
            found.extend(asked.below(least, &format!("minimum {name} usage per {} is {least}", item.type_)));
        }
        for (name, most) in amounts(item.max.as_ref()) {
            let head = format!("maximum {name} usage per {} is {most}", item.type_);
            match requests.get(&name) {
                None => found.push(format!("{head}.  No request is specified")),
                Some(asked) if *asked > most => found.push(format!("{head}, but request is {asked}")),
                Some(_) => {}
            }
        }
    }
    found
}

fn of(container: &Container) -> (Amounts, Amounts) {
    let resources = container.resources.as_ref();
    (amounts(resources.and_then(|r| r.requests.as_ref())), amounts(resources.and_then(|r| r.limits.as_ref())))
}

fn check(item: &LimitRangeItem, requests: &Amounts, limits: &Amounts, found: &mut Vec<String>) {
    let asked = |name: &str| Asked { request: requests.get(name).copied(), limit: limits.get(name).copied() };
    let kind = &item.type_;
    for (name, least) in amounts(item.min.as_ref()) {
        found.extend(asked(&name).below(least, &format!("minimum {name} usage per {kind} is {least}")));
    }
    for (name, most) in amounts(item.max.as_ref()) {
        found.extend(asked(&name).above(most, &format!("maximum {name} usage per {kind} is {most}")));
    }
    for (name, ratio) in amounts(item.max_limit_request_ratio.as_ref()) {
        found.extend(asked(&name).steep(ratio, &format!("{name} max limit to request ratio per {kind} is {ratio}")));
    }
}

/// What is asked for of one resource. The checks answer with `head`, which names the bound, and what is wrong.
struct Asked {
    request: Option<Quantity>,
    limit: Option<Quantity>,
}

impl Asked {
    fn below(&self, least: Quantity, head: &str) -> Option<String> {
        match (self.request, self.limit) {
            (None, _) => Some(format!("{head}.  No request is specified")),
            (Some(request), _) if request < least => Some(format!("{head}, but request is {request}")),
            (_, Some(limit)) if limit < least => Some(format!("{head}, but limit is {limit}")),
            _ => None,
        }
    }

    fn above(&self, most: Quantity, head: &str) -> Option<String> {
        match (self.request, self.limit) {
            (_, None) => Some(format!("{head}.  No limit is specified")),
            (_, Some(limit)) if limit > most => Some(format!("{head}, but limit is {limit}")),
            (Some(request), _) if request > most => Some(format!("{head}, but request is {request}")),
            _ => None,
        }
    }

    fn steep(&self, most: Quantity, head: &str) -> Option<String> {
        let set = |q: Option<Quantity>| q.filter(|q| !q.is_zero());
        match (set(self.request), set(self.limit)) {
            (None, _) => Some(format!("{head}, but no request is specified or request is 0")),
            (_, None) => Some(format!("{head}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let ratio = limit.as_f64() / request.as_f64();
                (ratio > most.as_f64()).then(|| format!("{head}, but provided ratio is {ratio:.6}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn range(limits: Value) -> LimitRange {
        serde_json::from_value(json!({"spec": {"limits": limits}})).expect("valid")
    }

    fn pod(resources: Value) -> Pod {
        let containers = json!([{"name": "c", "resources": resources}]);
        serde_json::from_value(json!({"spec": {"containers": containers}})).expect("valid")
    }

    #[test]
    fn containers_get_what_they_do_not_say() {
        let range = range(
            json!([{"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "500m"}}]),
        );
        let mut pod = pod(json!({"limits": {"cpu": "2"}}));
        set_defaults(&range, &mut pod);
        let spec = pod.spec.expect("kept");
        assert_eq!(spec.init_containers, None);
        let got = serde_json::to_value(&spec.containers[0].resources).expect("JSON");
        assert_eq!(got, json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "500m"}}));
        let says = pod.metadata.annotations.expect("told");
        assert_eq!(
            says[ANNOTATION],
            "LimitRanger plugin set: cpu request for container c; memory limit for container c"
        );
    }

    #[test]
    fn bounds_of_containers_and_pods() {
        for (limits, resources, want) in [
            (
                json!({"type": "Container", "max": {"cpu": "1"}}),
                json!({}),
                "maximum cpu usage per Container is 1.  No limit is specified",
            ),
            (
                json!({"type": "Container", "max": {"cpu": "1"}}),
                json!({"limits": {"cpu": "1500m"}}),
                "maximum cpu usage per Container is 1, but limit is 1500m",
            ),
            (
                json!({"type": "Pod", "min": {"memory": "1Gi"}}),
                json!({"requests": {"memory": "1Mi"}}),
                "minimum memory usage per Pod is 1Gi, but request is 1Mi",
            ),
            (json!({"type": "Pod", "min": {"memory": "1Gi"}}), json!({"requests": {"memory": "1Gi"}}), ""),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m"}}),
                "cpu max limit to request ratio per Container is 2, but provided ratio is 5.000000",
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                json!({"requests": {"cpu": "0"}}),
                "cpu max limit to request ratio per Container is 2, but no request is specified or request is 0",
            ),
        ] {
            assert_eq!(check_pod(&range(json!([limits])), &pod(resources)).join("; "), want);
        }
    }

    #[test]
    fn bounds_of_claims() {
        let range =
            range(json!([{"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "4Gi"}}]));
        for (size, want) in [
            ("5Gi", "maximum storage usage per PersistentVolumeClaim is 4Gi, but request is 5Gi"),
            ("1Mi", "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"),
            ("4Gi", ""),
        ] {
            let claim = json!({"spec": {"resources": {"requests": {"storage": size}}}});
            let claim: PersistentVolumeClaim = serde_json::from_value(claim).expect("valid");
            assert_eq!(check_claim(&range, &claim).join("; "), want, "{size}");
        }
    }
}
