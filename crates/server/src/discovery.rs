//! Which APIs there are: `/api`, `/apis` and below, plain and aggregated.
use api::{Kind, Scope};
use serde_json::{Value, json};

use crate::{
    object,
    path::Resource,
    review::{REVIEWS, Review},
    status::{ApiError, ApiResult},
};

const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const VERBS_WITHOUT_COLLECTION: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];

/// What clients may do with objects of a kind.
pub fn verbs(kind: &Kind) -> &'static [&'static str] {
    if kind.kind == "Namespace" { VERBS_WITHOUT_COLLECTION } else { VERBS }
}

/// Every group and version besides core, in a stable order.
fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let kinds = api::KINDS.iter().map(|k| (k.group, k.version));
    let reviews = REVIEWS.iter().map(|r| (r.group, "v1"));
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for (group, version) in kinds.chain(reviews).filter(|(g, _)| !g.is_empty()) {
        match groups.iter_mut().find(|(g, _)| *g == group) {
            Some((_, versions)) if versions.contains(&version) => {}
            Some((_, versions)) => versions.push(version),
            None => groups.push((group, vec![version])),
        }
    }
    groups
}

/// Whether a path is that of the definitions of further kinds. None can be made, so discovery does not show them; yet
/// `kubectl` asks for the list before it tells someone that a kind does not exist.
pub fn is_custom_definitions(resource: &Resource) -> bool {
    (resource.group.as_str(), resource.version.as_str(), resource.resource.as_str())
        == ("apiextensions.k8s.io", "v1", "customresourcedefinitions")
        && resource.subresource.is_empty()
}

/// The list of definitions of further kinds.
pub fn no_custom_definitions() -> Value {
    json!({
        "kind": "CustomResourceDefinitionList", "apiVersion": "apiextensions.k8s.io/v1",
        "metadata": {"resourceVersion": ""}, "items": [],
    })
}

fn kinds<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Kind> + 'a {
    api::KINDS.iter().filter(move |k| k.group == group && k.version == version)
}

fn reviews<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Review> + 'a {
    REVIEWS.iter().filter(move |r| r.group == group && version == "v1")
}

/// `/api`
pub fn core_versions() -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}],
    })
}

fn group_value(group: &str, versions: &[&str]) -> Value {
    let version = |v: &&str| json!({"groupVersion": format!("{group}/{v}"), "version": v});
    json!({
        "name": group,
        "versions": versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(version),
    })
}

/// `/apis`
pub fn group_list() -> Value {
    let groups: Vec<Value> = groups().iter().map(|(group, versions)| group_value(group, versions)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`
pub fn group(name: &str) -> ApiResult<Value> {
    let groups = groups();
    let (group, versions) = groups.iter().find(|(g, _)| *g == name).ok_or_else(ApiError::no_such_resource)?;
    let mut value = json!({"kind": "APIGroup", "apiVersion": "v1"});
    if let (Some(target), Value::Object(fields)) = (value.as_object_mut(), group_value(group, versions)) {
        target.extend(fields);
    }
    Ok(value)
}

/// `/api/v1` and `/apis/GROUP/VERSION`
pub fn resources(group: &str, version: &str) -> ApiResult<Value> {
    let mut list: Vec<Value> = Vec::new();
    for kind in kinds(group, version) {
        let namespaced = kind.scope == Scope::Namespace;
        let mut entry = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": namespaced, "kind": kind.kind,
            "verbs": verbs(kind),
        });
        if !kind.short.is_empty() {
            entry["shortNames"] = json!(kind.short);
        }
        if !kind.categories.is_empty() {
            entry["categories"] = json!(kind.categories);
        }
        list.push(entry);
        for sub in kind.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", kind.plural, sub.name), "singularName": "", "namespaced": namespaced,
            });
            if let Some((group, version, _)) = sub.body.filter(|(g, v, _)| (*g, *v) != (kind.group, kind.version)) {
                entry["group"] = group.into();
                entry["version"] = version.into();
            }
            entry["kind"] = sub.body.map_or(kind.kind, |(_, _, k)| k).into();
            entry["verbs"] = json!(sub.verbs);
            list.push(entry);
        }
    }
    for review in reviews(group, version) {
        list.push(json!({
            "name": review.plural, "singularName": review.kind.to_lowercase(), "namespaced": review.namespaced,
            "kind": review.kind, "verbs": ["create"],
        }));
    }
    if list.is_empty() {
        return Err(ApiError::no_such_resource());
    }
    if group.is_empty() {
        list.push(json!({
            "name": "bindings", "singularName": "binding", "namespaced": true, "kind": "Binding", "verbs": ["create"],
        }));
    }
    list.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    Ok(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": object::api_version(group, version),
        "resources": list,
    }))
}

/// Aggregated discovery of the core group (`/api`) or of all others (`/apis`), in `apidiscovery.k8s.io/VERSION`.
pub fn aggregated(core: bool, version: &str) -> Value {
    let groups = if core { vec![("", vec!["v1"])] } else { groups() };
    let items: Vec<Value> = groups
        .iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|v| json!({"version": v, "resources": aggregated_resources(group, v), "freshness": "Current"}))
                .collect();
            json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {},
        "items": items,
    })
}

fn aggregated_resources(group: &str, version: &str) -> Vec<Value> {
    let scope = |namespaced| if namespaced { "Namespaced" } else { "Cluster" };
    let mut list: Vec<Value> = kinds(group, version)
        .map(|kind| {
            let own = (kind.group, kind.version, kind.kind);
            let response =
                |(group, version, kind): (&str, &str, &str)| json!({"group": group, "version": version, "kind": kind});
            let mut entry = json!({
                "resource": kind.plural, "responseKind": response(own),
                "scope": scope(kind.scope == Scope::Namespace), "singularResource": kind.singular,
                "verbs": verbs(kind),
            });
            if !kind.short.is_empty() {
                entry["shortNames"] = json!(kind.short);
            }
            if !kind.categories.is_empty() {
                entry["categories"] = json!(kind.categories);
            }
            let subs: Vec<Value> = kind
                .subresources
                .iter()
                .map(|s| {
                    json!({"subresource": s.name, "responseKind": response(s.body.unwrap_or(own)), "verbs": s.verbs})
                })
                .collect();
            if !subs.is_empty() {
                entry["subresources"] = subs.into();
            }
            entry
        })
        .collect();
    list.extend(reviews(group, version).map(|r| {
        json!({
            "resource": r.plural, "responseKind": {"group": r.group, "version": "v1", "kind": r.kind},
            "scope": scope(r.namespaced), "singularResource": r.kind.to_lowercase(), "verbs": ["create"],
        })
    }));
    list
}

/// `/version`
pub fn version() -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36",
        "gitVersion": concat!("v1.36.2+holdfast-", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": format!("linux/{architecture}"),
    })
}
