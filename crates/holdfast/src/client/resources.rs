//! What the server serves, by every name that a person may type.
use serde_json::Value;

use super::{Error, Session};
use crate::errors::said;

/// One served resource.
#[derive(Debug, Clone)]
pub struct Resource {
    /// `v1` or `group/version`.
    pub api_version: String,
    pub kind: String,
    pub plural: String,
    pub namespaced: bool,
    names: Vec<String>,
    categories: Vec<String>,
}

impl Resource {
    /// Path of the collection, or of one object.
    pub fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let root = if self.api_version.contains('/') { "/apis/" } else { "/api/" };
        let mut path = format!("{root}{}", self.api_version);
        if let (true, Some(namespace)) = (self.namespaced, namespace) {
            path += &format!("/namespaces/{namespace}");
        }
        path += &format!("/{}", self.plural);
        if let Some(name) = name {
            path += &format!("/{name}");
        }
        path
    }

    /// `pod/` as `-o name` prints it.
    pub fn prefix(&self) -> String {
        let kind = self.kind.to_lowercase();
        match self.api_version.split_once('/') {
            Some((group, _)) => format!("{kind}.{group}/"),
            None => format!("{kind}/"),
        }
    }
}

/// Everything the server serves.
pub struct Resources(Vec<Resource>);

impl Resources {
    /// Asks the server.
    pub async fn discover(session: &Session) -> Result<Self, Error> {
        let mut lists = vec![session.get("/api/v1").await?];
        let groups = session.get("/apis").await?;
        for group in groups["groups"].as_array().into_iter().flatten() {
            if let Some(version) = group["preferredVersion"]["groupVersion"].as_str() {
                lists.push(session.get(&format!("/apis/{version}")).await?);
            }
        }
        Ok(Self(lists.iter().flat_map(served).collect()))
    }

    /// Finds by plural, singular, short name or kind, with or without `.group`.
    pub fn find(&self, name: &str) -> Result<&Resource, Error> {
        let wanted = name.to_lowercase();
        let (short, group) = wanted.split_once('.').map_or((wanted.as_str(), None), |(a, b)| (a, Some(b)));
        let fits =
            |r: &&Resource| r.names.iter().any(|n| n == short) && group.is_none_or(|g| r.api_version.starts_with(g));
        match self.0.iter().find(fits) {
            Some(resource) => Ok(resource),
            None => said(format!("the server doesn't have a resource type \"{name}\"")),
        }
    }

    /// Finds as [`Self::find`] does, or by a category of several (`all`).
    pub fn select(&self, name: &str) -> Result<Vec<&Resource>, Error> {
        let several: Vec<&Resource> = self.0.iter().filter(|r| r.categories.iter().any(|c| c == name)).collect();
        if several.is_empty() { Ok(vec![self.find(name)?]) } else { Ok(several) }
    }

    /// Finds what an object's `apiVersion` and `kind` name.
    pub fn of(&self, object: &Value) -> Result<&Resource, Error> {
        let (Some(version), Some(kind)) = (object["apiVersion"].as_str(), object["kind"].as_str()) else {
            return said("an object has no apiVersion or no kind; each document needs both");
        };
        match self.0.iter().find(|r| r.api_version == version && r.kind == kind) {
            Some(resource) => Ok(resource),
            None => said(format!("no matches for kind \"{kind}\" in version \"{version}\"")),
        }
    }
}

fn served(list: &Value) -> Vec<Resource> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_lowercase();
    let api_version = list["groupVersion"].as_str().unwrap_or_default();
    let rows = list["resources"].as_array().into_iter().flatten();
    rows.filter(|row| !text(&row["name"]).contains('/'))
        .map(|row| {
            let mut names = vec![text(&row["name"]), text(&row["singularName"]), text(&row["kind"])];
            names.extend(row["shortNames"].as_array().into_iter().flatten().map(text));
            Resource {
                api_version: api_version.to_owned(),
                kind: row["kind"].as_str().unwrap_or_default().to_owned(),
                plural: text(&row["name"]),
                namespaced: row["namespaced"].as_bool().unwrap_or_default(),
                names,
                categories: row["categories"].as_array().into_iter().flatten().map(text).collect(),
            }
        })
        .collect()
}

/// Splits `KIND/NAME` and `KIND NAME...` into kinds (comma-separated) and names.
pub fn targets(kind: &str, names: &[String]) -> (Vec<String>, Vec<String>) {
    match kind.split_once('/') {
        Some((kind, name)) => {
            let mut all = vec![name.to_owned()];
            all.extend(names.iter().map(|n| n.rsplit('/').next().unwrap_or(n).to_owned()));
            (vec![kind.to_owned()], all)
        }
        None => (kind.split(',').map(str::to_owned).collect(), names.to_vec()),
    }
}

#[test]
fn targets_are_read_both_ways() {
    let s = |list: &[&str]| list.iter().map(|t| t.to_string()).collect::<Vec<_>>();
    assert_eq!(targets("pv,pvc", &[]), (s(&["pv", "pvc"]), s(&[])));
    assert_eq!(targets("pod/a", &s(&["pod/b"])), (s(&["pod"]), s(&["a", "b"])));
    assert_eq!(targets("pod", &s(&["a"])), (s(&["pod"]), s(&["a"])));
}

#[test]
fn paths_of_core_and_groups() {
    let list = serde_json::json!({"groupVersion": "storage.k8s.io/v1", "resources": [
        {"name": "storageclasses", "singularName": "storageclass", "kind": "StorageClass", "shortNames": ["sc"], "categories": ["all"], "namespaced": false},
        {"name": "storageclasses/status", "kind": "StorageClass"}]});
    let found = served(&list);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].path(Some("ns"), Some("fast")), "/apis/storage.k8s.io/v1/storageclasses/fast");
    let found = Resources(found);
    assert_eq!(found.find("SC").unwrap().kind, "StorageClass");
    assert_eq!(found.select("all").unwrap()[0].kind, "StorageClass");
    assert!(found.select("none").is_err());
}
