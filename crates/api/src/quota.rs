//! What a `ResourceQuota` counts and when it is exceeded. Shared by the server, which refuses, and the controller, which
//! shows.
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Container, PersistentVolumeClaim, Pod, PodSpec, ResourceQuotaSpec, ScopedResourceSelectorRequirement, Service,
};
use serde_json::Value;

use crate::check::items;
use crate::contract::Kind;
use crate::pod::{self, Amounts, QosClass, amounts, qos_class};
use crate::quantity::Quantity;

/// Core kinds that are counted by their plain name too.
const PLAIN: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];
/// Amounts that every container must give once a quota bounds them.
const NAMED: &[&str] = &["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
/// Requests that are counted with and without their prefix.
const BOTH: &[&str] = &["cpu", "ephemeral-storage", "memory"];
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// What one object takes of a quota, and what decides whether a quota is about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// By the names that quotas use.
    pub amounts: Amounts,
    about: About,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum About {
    Pod { terminating: bool, best_effort: bool, priority_class: String, across_namespaces: bool },
    Claim { attributes_classes: BTreeSet<String> },
    Other,
}

impl Counted {
    /// An object of any kind, as stored.
    pub fn of(kind: &Kind, object: &Value) -> Self {
        let typed = |object: &Value| match (kind.group, kind.plural) {
            ("", "pods") => serde_json::from_value(object.clone()).ok().map(|p| Self::pod(&p)),
            ("", "persistentvolumeclaims") => serde_json::from_value(object.clone()).ok().map(|c| Self::claim(&c)),
            ("", "services") => serde_json::from_value(object.clone()).ok().map(|s| Self::service(&s)),
            _ => None,
        };
        typed(object).unwrap_or_else(|| Self::one(kind.group, kind.plural))
    }

    /// An object that is counted and nothing else.
    pub fn one(group: &str, plural: &str) -> Self {
        let mut amounts = Amounts::new();
        let name = if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") };
        amounts.insert(name, Quantity::whole(1));
        if group.is_empty() && PLAIN.contains(&plural) {
            amounts.insert(plural.to_owned(), Quantity::whole(1));
        }
        Self { amounts, about: About::Other }
    }

    /// A pod. One that has ended only counts as an object.
    pub fn pod(pod: &Pod) -> Self {
        let mut counted = Self::one("", "pods");
        let Some(spec) = &pod.spec else { return counted };
        counted.about = About::Pod {
            terminating: spec.active_deadline_seconds.is_some_and(|s| s >= 0),
            best_effort: qos_class(spec) == QosClass::BestEffort,
            priority_class: spec.priority_class_name.clone().unwrap_or_default(),
            across_namespaces: across_namespaces(spec),
        };
        if pod::is_terminal(pod) {
            counted.amounts.remove("pods");
            return counted;
        }
        for (name, amount) in pod::requests(spec) {
            if BOTH.contains(&name.as_str()) || name.starts_with("hugepages-") {
                counted.amounts.insert(name.clone(), amount);
            }
            counted.amounts.insert(format!("requests.{name}"), amount);
        }
        for (name, amount) in pod::limits(spec).into_iter().filter(|(name, _)| BOTH.contains(&name.as_str())) {
            counted.amounts.insert(format!("limits.{name}"), amount);
        }
        counted
    }

    /// A service, by the ports that it takes on nodes, and whether it asks for a load balancer.
    pub fn service(service: &Service) -> Self {
        let mut counted = Self::one("", "services");
        let spec = service.spec.as_ref();
        let ports = || spec.iter().flat_map(|s| items(&s.ports));
        let balanced = spec.and_then(|s| s.type_.as_deref()) == Some("LoadBalancer");
        let on_nodes = match spec.and_then(|s| s.type_.as_deref()) {
            Some("LoadBalancer") if spec.and_then(|s| s.allocate_load_balancer_node_ports) == Some(false) => {
                ports().filter(|p| p.node_port.is_some_and(|port| port != 0)).count()
            }
            Some("NodePort" | "LoadBalancer") => ports().count(),
            _ => 0,
        };
        let number = |n: usize| Quantity::whole(i64::try_from(n).unwrap_or(i64::MAX));
        for (name, count) in [("services.nodeports", on_nodes), ("services.loadbalancers", usize::from(balanced))] {
            if count > 0 {
                counted.amounts.insert(name.to_owned(), number(count));
            }
        }
        counted
    }

    /// A claim, by what it asks for, or was given while it grows.
    pub fn claim(claim: &PersistentVolumeClaim) -> Self {
        let mut counted = Self::one("", "persistentvolumeclaims");
        let (spec, status) = (claim.spec.as_ref(), claim.status.as_ref());
        let storage = |map| amounts(map).get("storage").copied();
        let asked = storage(spec.and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref()));
        let given = storage(status.and_then(|s| s.allocated_resources.as_ref()));
        let size = asked.map(|asked| given.map_or(asked, |given| given.max(asked)).rounded_to_whole());
        let annotated = claim.metadata.annotations.as_ref().and_then(|a| a.get(BETA_CLASS)).cloned();
        let class = annotated.or_else(|| spec.and_then(|s| s.storage_class_name.clone())).filter(|c| !c.is_empty());
        let of_class = |name: &str| class.as_ref().map(|c| format!("{c}.storageclass.storage.k8s.io/{name}"));
        counted.amounts.extend(of_class("persistentvolumeclaims").map(|name| (name, Quantity::whole(1))));
        if let Some(size) = size {
            counted.amounts.insert("requests.storage".to_owned(), size);
            counted.amounts.extend(of_class("requests.storage").map(|name| (name, size)));
        }
        let wanted = spec.and_then(|s| s.volume_attributes_class_name.clone());
        let current = status.and_then(|s| s.current_volume_attributes_class_name.clone());
        let changing = status.and_then(|s| s.modify_volume_status.as_ref());
        let target = changing.and_then(|m| m.target_volume_attributes_class_name.clone());
        let attributes_classes = wanted.into_iter().chain(current).chain(target).filter(|c| !c.is_empty()).collect();
        counted.about = About::Claim { attributes_classes };
        counted
    }

    /// Whether all scopes of a quota include the object.
    pub fn is_in(&self, quota: &ResourceQuotaSpec) -> bool {
        let plain = items(&quota.scopes).map(|scope| ScopedResourceSelectorRequirement {
            operator: "Exists".into(),
            scope_name: scope.clone(),
            values: None,
        });
        let selected = quota.scope_selector.iter().flat_map(|s| items(&s.match_expressions)).cloned();
        plain.chain(selected).all(|scope| self.is_in_scope(&scope))
    }

    fn is_in_scope(&self, scope: &ScopedResourceSelectorRequirement) -> bool {
        match (&self.about, scope.scope_name.as_str()) {
            (About::Pod { terminating, .. }, "Terminating") => *terminating,
            (About::Pod { terminating, .. }, "NotTerminating") => !terminating,
            (About::Pod { best_effort, .. }, "BestEffort") => *best_effort,
            (About::Pod { best_effort, .. }, "NotBestEffort") => !best_effort,
            (About::Pod { across_namespaces, .. }, "CrossNamespacePodAffinity") => *across_namespaces,
            (About::Pod { priority_class, .. }, "PriorityClass") => {
                let class = Some(priority_class).filter(|c| !c.is_empty());
                selects(scope, &class.into_iter().collect::<Vec<_>>())
            }
            (About::Claim { attributes_classes }, "VolumeAttributesClass") => {
                selects(scope, &attributes_classes.iter().collect::<Vec<_>>())
            }
            _ => false,
        }
    }
}

/// Whether a scope's requirement holds for the classes that an object names.
fn selects(scope: &ScopedResourceSelectorRequirement, classes: &[&String]) -> bool {
    let listed = |class: &&String| items(&scope.values).any(|v| v == *class);
    match scope.operator.as_str() {
        "Exists" => !classes.is_empty(),
        "DoesNotExist" => classes.is_empty(),
        "In" => classes.iter().any(listed),
        // Of several, one that is not listed is enough.
        "NotIn" => classes.is_empty() || !classes.iter().all(listed),
        _ => false,
    }
}

fn across_namespaces(spec: &PodSpec) -> bool {
    let affinity = spec.affinity.as_ref();
    let near = affinity.and_then(|a| a.pod_affinity.as_ref());
    let far = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
    let required = near
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .chain(far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()))
        .flatten();
    let preferred = near
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .chain(far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()))
        .flatten()
        .map(|weighted| &weighted.pod_affinity_term);
    required.chain(preferred).any(|t| items(&t.namespaces).next().is_some() || t.namespace_selector.is_some())
}

/// What a pod's containers fail to say although `hard` bounds it; upstream's sentence.
pub fn unsaid(hard: &Amounts, spec: &PodSpec) -> Option<String> {
    if spec.resources.is_some() {
        return None;
    }
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in spec.containers.iter().chain(items(&spec.init_containers)) {
        for name in NAMED.iter().filter(|name| hard.contains_key(**name) && !says(container, name)) {
            missing.entry(name).or_default().insert(&container.name);
        }
    }
    let list = |names: &BTreeSet<&str>| names.iter().copied().collect::<Vec<_>>().join(",");
    let parts: Vec<String> = missing.iter().map(|(name, who)| format!("{name} for: {}", list(who))).collect();
    (!parts.is_empty()).then(|| format!("must specify {}", parts.join("; ")))
}

fn says(container: &Container, name: &str) -> bool {
    let resources = container.resources.as_ref();
    let requests = resources.and_then(|r| r.requests.as_ref());
    let limits = resources.and_then(|r| r.limits.as_ref());
    match name.strip_prefix("limits.") {
        Some(name) => limits.is_some_and(|l| l.contains_key(name)),
        None => requests.is_some_and(|r| r.contains_key(name.strip_prefix("requests.").unwrap_or(name))),
    }
}

/// The hard limits of a quota.
pub fn hard(spec: &ResourceQuotaSpec) -> Amounts {
    amounts(spec.hard.as_ref())
}

/// Whether limits may be about objects of a kind; cheaper than to count one.
pub fn may_bound(hard: &Amounts, kind: &Kind) -> bool {
    let counted = |name: &str| match name.strip_prefix("count/") {
        Some(rest) => rest.strip_prefix(kind.plural).is_some_and(|rest| match rest.strip_prefix('.') {
            Some(group) => group == kind.group,
            None => rest.is_empty() && kind.group.is_empty(),
        }),
        None => kind.group.is_empty() && name == kind.plural,
    };
    let sized = kind.group.is_empty() && matches!(kind.plural, "pods" | "persistentvolumeclaims" | "services");
    sized || hard.keys().any(|name| counted(name))
}

/// Why `more` does not fit beside what is `used`; upstream's sentence. Only names that `hard` bounds and `more` has matter.
pub fn exceeded(quota: &str, hard: &Amounts, used: &Amounts, more: &Amounts) -> Option<String> {
    let used_of = |name: &str| used.get(name).copied().unwrap_or(Quantity::ZERO);
    let over: Vec<(&String, &Quantity, &Quantity)> = more
        .iter()
        .filter_map(|(name, more)| Some((name, more, hard.get(name)?)))
        .filter(|(name, more, hard)| used_of(name) + **more > **hard)
        .collect();
    let list = |value: &dyn Fn(&str, &Quantity, &Quantity) -> Quantity| {
        over.iter().map(|(n, m, h)| format!("{n}={}", value(n, m, h))).collect::<Vec<_>>().join(",")
    };
    (!over.is_empty()).then(|| {
        format!(
            "exceeded quota: {quota}, requested: {}, used: {}, limited: {}",
            list(&|_, more, _| *more),
            list(&|name, _, _| used_of(name)),
            list(&|_, _, hard| *hard)
        )
    })
}

/// What `new` takes more than `old`.
pub fn growth(new: &Amounts, old: &Amounts) -> Amounts {
    let before = |name: &str| old.get(name).copied().unwrap_or(Quantity::ZERO);
    new.iter().map(|(name, q)| (name.clone(), *q - before(name))).filter(|(_, q)| q.sign() > 0).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(amounts: &Amounts) -> String {
        amounts.iter().map(|(n, q)| format!("{n}={q}")).collect::<Vec<_>>().join(" ")
    }

    fn claim(class: Value, size: &str) -> PersistentVolumeClaim {
        let spec = json!({"storageClassName": class, "resources": {"requests": {"storage": size}}});
        serde_json::from_value(json!({"spec": spec})).expect("valid")
    }

    fn pod(resources: Value, more: Value) -> Pod {
        let mut spec = json!({"containers": [{"name": "c", "resources": resources}]});
        spec.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        serde_json::from_value(json!({"spec": spec})).expect("valid")
    }

    #[test]
    fn claims_count_by_size_and_class() {
        assert_eq!(
            shown(&Counted::claim(&claim(Value::Null, "1Gi")).amounts),
            "count/persistentvolumeclaims=1 persistentvolumeclaims=1 requests.storage=1Gi"
        );
        let gold = Counted::claim(&claim(json!("gold"), "1Gi")).amounts;
        assert_eq!(gold["gold.storageclass.storage.k8s.io/requests.storage"], Quantity::bytes(1 << 30));
        assert_eq!(gold["gold.storageclass.storage.k8s.io/persistentvolumeclaims"], Quantity::whole(1));
        assert_eq!(Counted::claim(&claim(Value::Null, "1001m")).amounts["requests.storage"].to_string(), "2");
        let mut grown = claim(Value::Null, "1Gi");
        grown.status = serde_json::from_value(json!({"allocatedResources": {"storage": "3Gi"}})).expect("valid");
        assert_eq!(Counted::claim(&grown).amounts["requests.storage"], Quantity::bytes(3 << 30));
    }

    #[test]
    fn claims_are_in_the_scopes_of_all_their_attributes_classes() {
        let none = claim(Value::Null, "1Gi");
        let mut one = none.clone();
        one.spec.as_mut().expect("spec").volume_attributes_class_name = Some("class1".into());
        let mut two = one.clone();
        two.status = serde_json::from_value(json!({"currentVolumeAttributesClassName": "class2"})).expect("valid");
        let mut three = two.clone();
        three.status.as_mut().expect("status").modify_volume_status =
            serde_json::from_value(json!({"status": "Pending", "targetVolumeAttributesClassName": "class3"}))
                .expect("valid");
        let table = [
            ("DoesNotExist", json!(null), [true, false, false, false]),
            ("Exists", json!(null), [false, true, true, true]),
            ("In", json!(["class1"]), [false, true, true, true]),
            ("In", json!(["class2"]), [false, false, true, true]),
            ("In", json!(["class3"]), [false, false, false, true]),
            ("In", json!(["class1", "class2", "class4"]), [false, true, true, true]),
            ("In", json!(["class4"]), [false, false, false, false]),
            ("NotIn", json!(["class4"]), [true, true, true, true]),
            ("NotIn", json!(["class1"]), [true, false, true, true]),
            ("NotIn", json!(["class1", "class2"]), [true, false, false, true]),
        ];
        for (operator, values, expected) in table {
            let spec = serde_json::from_value::<ResourceQuotaSpec>(json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "VolumeAttributesClass", "operator": operator, "values": values}]}}))
            .expect("valid");
            let got = [&none, &one, &two, &three].map(|c| Counted::claim(c).is_in(&spec));
            assert_eq!(got, expected, "{operator} {values}");
        }
    }

    #[test]
    fn services_count_by_what_they_take_outside() {
        let ports = |n: i64| (0..n).map(|i| json!({"port": i + 1})).collect::<Vec<_>>();
        for (spec, nodes, balancers) in [
            (json!({"ports": ports(2)}), None, None),
            (json!({"type": "ClusterIP", "ports": ports(2)}), None, None),
            (json!({"type": "NodePort", "ports": ports(1)}), Some(1), None),
            (json!({"type": "NodePort", "ports": ports(3)}), Some(3), None),
            (json!({"type": "LoadBalancer", "ports": ports(2)}), Some(2), Some(1)),
            (
                json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": true, "ports": ports(2)}),
                Some(2),
                Some(1),
            ),
            (json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": ports(2)}), None, Some(1)),
            (
                json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
                    "ports": [{"port": 1, "nodePort": 30000}, {"port": 2}]}),
                Some(1),
                Some(1),
            ),
        ] {
            let service = serde_json::from_value(json!({"spec": spec})).expect("valid");
            let amounts = Counted::service(&service).amounts;
            let number = |n: Option<i64>| n.map(Quantity::whole);
            assert_eq!(amounts.get("services.nodeports").copied(), number(nodes), "{spec}");
            assert_eq!(amounts.get("services.loadbalancers").copied(), number(balancers), "{spec}");
            assert_eq!((amounts["services"], amounts["count/services"]), (Quantity::whole(1), Quantity::whole(1)));
        }
    }

    #[test]
    fn pods_count_until_they_end() {
        let mut p = pod(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2", "memory": "1Gi"}}), json!({}));
        assert_eq!(
            shown(&Counted::pod(&p).amounts),
            "count/pods=1 cpu=1 limits.cpu=2 limits.memory=1Gi pods=1 requests.cpu=1"
        );
        p.status = serde_json::from_value(json!({"phase": "Succeeded"})).expect("valid");
        assert_eq!(shown(&Counted::pod(&p).amounts), "count/pods=1");
    }

    #[test]
    fn scopes() {
        let spec = |v: Value| serde_json::from_value::<ResourceQuotaSpec>(v).expect("valid");
        let select = |operator: &str, values: Value| json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": operator, "values": values}]}});
        let idle = pod(json!({}), json!({}));
        let busy =
            pod(json!({"requests": {"cpu": "1"}}), json!({"activeDeadlineSeconds": 5, "priorityClassName": "high"}));
        for (quota, for_idle, for_busy) in [
            (json!({}), true, true),
            (json!({"scopes": ["Terminating"]}), false, true),
            (json!({"scopes": ["NotTerminating", "BestEffort"]}), true, false),
            (json!({"scopes": ["NotBestEffort"]}), false, true),
            (json!({"scopes": ["PriorityClass"]}), false, true),
            (select("In", json!(["high"])), false, true),
            (select("NotIn", json!(["high"])), true, false),
            (select("DoesNotExist", json!([])), true, false),
            (json!({"scopes": ["CrossNamespacePodAffinity"]}), false, false),
        ] {
            let got = [&idle, &busy].map(|p| Counted::pod(p).is_in(&spec(quota.clone())));
            assert_eq!(got, [for_idle, for_busy], "{quota}");
        }
        assert!(!Counted::one("", "secrets").is_in(&spec(json!({"scopes": ["Terminating"]}))));
    }

    #[test]
    fn what_must_be_said() {
        let bound = amounts(Some(
            &serde_json::from_value(json!({"limits.cpu": "1", "requests.memory": "1Gi", "pods": "1"})).expect("valid"),
        ));
        let p = pod(json!({"limits": {"cpu": "1"}}), json!({"initContainers": [{"name": "i"}]}));
        assert_eq!(
            unsaid(&bound, &p.spec.expect("spec")).as_deref(),
            Some("must specify limits.cpu for: i; requests.memory for: c,i")
        );
        let p = pod(json!({"limits": {"cpu": "1"}, "requests": {"memory": "1"}}), json!({}));
        assert_eq!(unsaid(&bound, &p.spec.expect("spec")), None);
    }

    #[test]
    fn too_much_is_told_with_figures() {
        let a = |v: Value| amounts(Some(&serde_json::from_value(v).expect("valid")));
        let hard = a(json!({"requests.storage": "5Gi", "persistentvolumeclaims": "2"}));
        let used = a(json!({"requests.storage": "2Gi", "persistentvolumeclaims": "1"}));
        let more = |size: &str| a(json!({"requests.storage": size, "persistentvolumeclaims": "1", "other": "9"}));
        assert_eq!(exceeded("q", &hard, &used, &more("3Gi")), None);
        assert_eq!(
            exceeded("q", &hard, &used, &more("4Gi")).as_deref(),
            Some(
                "exceeded quota: q, requested: requests.storage=4Gi, used: requests.storage=2Gi, limited: requests.storage=5Gi"
            )
        );
        assert_eq!(shown(&growth(&more("4Gi"), &used)), "other=9 requests.storage=2Gi");
    }
}
