//! A container's environment: literal values, references to the pod, to its resources, to ConfigMaps and Secrets, and
//! the address of the API.
use std::collections::{BTreeMap, BTreeSet};

use api::downward::{DownwardError, NodeSize, field_value, resource_value};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Container, EnvVar, EnvVarSource, Pod, Secret},
};

use super::expand::expand;

/// An object that a container's environment is read from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Referred {
    ConfigMap(String),
    Secret(String),
}

/// Why an environment could not be made. The texts are upstream's: they are shown in the container's status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    #[error("configmap {0:?} not found")]
    NoConfigMap(String),
    #[error("secret {0:?} not found")]
    NoSecret(String),
    #[error("couldn't find key {key} in ConfigMap {namespace}/{name}")]
    NoConfigMapKey { namespace: String, name: String, key: String },
    #[error("couldn't find key {key} in Secret {namespace}/{name}")]
    NoSecretKey { namespace: String, name: String, key: String },
    #[error(transparent)]
    Downward(#[from] DownwardError),
}

/// What was looked up before.
#[derive(Debug, Default, Clone)]
pub struct Found {
    /// `None`: does not exist.
    pub config_maps: BTreeMap<String, Option<ConfigMap>>,
    pub secrets: BTreeMap<String, Option<Secret>>,
    /// `KUBERNETES_SERVICE_HOST` and its like; the container's own variables win.
    pub services: Vec<(String, String)>,
    pub pod_ips: Vec<String>,
    pub host_ips: Vec<String>,
    pub node: NodeSize,
}

/// The objects that [`make`] will look for.
pub fn references(container: &Container) -> BTreeSet<Referred> {
    let mut all = BTreeSet::new();
    for from in container.env_from.iter().flatten() {
        all.extend(from.config_map_ref.iter().map(|r| Referred::ConfigMap(r.name.clone())));
        all.extend(from.secret_ref.iter().map(|r| Referred::Secret(r.name.clone())));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        all.extend(source.config_map_key_ref.iter().map(|r| Referred::ConfigMap(r.name.clone())));
        all.extend(source.secret_key_ref.iter().map(|r| Referred::Secret(r.name.clone())));
    }
    all
}

/// An ordered set of variables; the last value of a name wins and keeps the first one's place.
#[derive(Default)]
struct Vars {
    list: Vec<(String, String)>,
    at: BTreeMap<String, usize>,
}

impl Vars {
    fn set(&mut self, name: &str, value: String) {
        match self.at.get(name) {
            Some(&i) => self.list[i].1 = value,
            None => {
                self.at.insert(name.into(), self.list.len());
                self.list.push((name.into(), value));
            }
        }
    }
    fn get(&self, name: &str) -> Option<String> {
        self.at.get(name).map(|&i| self.list[i].1.clone())
    }
}

/// The container's complete environment, in order.
pub fn make(pod: &Pod, container: &Container, found: &Found) -> Result<Vec<(String, String)>, EnvError> {
    let mut vars = Vars::default();
    from_sources(container, found, &mut vars)?;
    let services: BTreeMap<_, _> = found.services.iter().cloned().collect();
    for var in container.env.iter().flatten() {
        if let Some(value) = value(pod, container, var, found, &vars, &services)? {
            vars.set(&var.name, value);
        }
    }
    for (name, value) in &found.services {
        if vars.get(name).is_none() {
            vars.set(name, value.clone());
        }
    }
    Ok(vars.list)
}

fn from_sources(container: &Container, found: &Found, vars: &mut Vars) -> Result<(), EnvError> {
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(r) = &from.config_map_ref {
            match found.config_maps.get(&r.name).and_then(Option::as_ref) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten().filter(|(k, _)| usable(k)) {
                        vars.set(&format!("{prefix}{key}"), value.clone());
                    }
                }
                None if r.optional == Some(true) => {}
                None => return Err(EnvError::NoConfigMap(r.name.clone())),
            }
        }
        if let Some(r) = &from.secret_ref {
            match found.secrets.get(&r.name).and_then(Option::as_ref) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten().filter(|(k, _)| usable(k)) {
                        vars.set(&format!("{prefix}{key}"), text(value));
                    }
                }
                None if r.optional == Some(true) => {}
                None => return Err(EnvError::NoSecret(r.name.clone())),
            }
        }
    }
    Ok(())
}

/// Names that an environment can hold.
fn usable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

fn text(bytes: &ByteString) -> String {
    String::from_utf8_lossy(&bytes.0).into_owned()
}

/// `None`: an optional source that is not there.
fn value(
    pod: &Pod,
    container: &Container,
    var: &EnvVar,
    found: &Found,
    vars: &Vars,
    services: &BTreeMap<String, String>,
) -> Result<Option<String>, EnvError> {
    let Some(source) = &var.value_from else {
        let raw = var.value.as_deref().unwrap_or_default();
        return Ok(Some(expand(raw, &|name| vars.get(name).or_else(|| services.get(name).cloned()))));
    };
    from_source(pod, container, source, found)
}

fn from_source(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    found: &Found,
) -> Result<Option<String>, EnvError> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    if let Some(field) = &source.field_ref {
        return pod_field(pod, &field.field_path, found).map(Some);
    }
    if let Some(r) = &source.resource_field_ref {
        return Ok(Some(resource_value(pod, Some(container), r, found.node)?));
    }
    if let Some(r) = &source.config_map_key_ref {
        let optional = r.optional == Some(true);
        let (name, key) = (r.name.clone(), r.key.clone());
        return match found.config_maps.get(&r.name).and_then(Option::as_ref) {
            None if optional => Ok(None),
            None => Err(EnvError::NoConfigMap(name)),
            Some(map) => match map.data.iter().flatten().find(|(k, _)| **k == r.key) {
                Some((_, value)) => Ok(Some(value.clone())),
                None if optional => Ok(None),
                None => Err(EnvError::NoConfigMapKey { namespace, name, key }),
            },
        };
    }
    if let Some(r) = &source.secret_key_ref {
        let optional = r.optional == Some(true);
        let (name, key) = (r.name.clone(), r.key.clone());
        return match found.secrets.get(&r.name).and_then(Option::as_ref) {
            None if optional => Ok(None),
            None => Err(EnvError::NoSecret(name)),
            Some(secret) => match secret.data.iter().flatten().find(|(k, _)| **k == r.key) {
                Some((_, value)) => Ok(Some(text(value))),
                None if optional => Ok(None),
                None => Err(EnvError::NoSecretKey { namespace, name, key }),
            },
        };
    }
    Ok(Some(String::new()))
}

/// The pod's field as text. Its addresses are newer here than in the status that the API has.
fn pod_field(pod: &Pod, path: &str, found: &Found) -> Result<String, EnvError> {
    Ok(match path {
        "status.podIP" => found.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => found.pod_ips.join(","),
        "status.hostIP" => found.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => found.host_ips.join(","),
        _ => field_value(pod, path)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn found() -> Found {
        let map: ConfigMap = serde_json::from_value(json!({"data": {"k": "v", "x": "y"}})).expect("valid");
        let secret: Secret = serde_json::from_value(json!({"data": {"p": "aHVzaA=="}})).expect("valid");
        Found {
            config_maps: [("m".to_owned(), Some(map)), ("none".to_owned(), None)].into(),
            secrets: [("s".to_owned(), Some(secret)), ("none".to_owned(), None)].into(),
            services: vec![("KUBERNETES_SERVICE_HOST".into(), "10.0.0.1".into())],
            pod_ips: vec!["10.1.0.2".into(), "fd00::2".into()],
            host_ips: vec!["192.0.2.1".into()],
            node: NodeSize { cpu_milli: 1500, memory_bytes: 1 << 30 },
        }
    }

    fn env(container: serde_json::Value) -> Result<String, EnvError> {
        let mut c = json!({"name": "c"});
        c.as_object_mut().expect("object").extend(container.as_object().expect("object").clone());
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"app": "web"}},
            "spec": {"nodeName": "n", "serviceAccountName": "sa", "containers": [c]},
        }))
        .expect("valid");
        let container = &pod.spec.as_ref().expect("spec").containers[0];
        make(&pod, container, &found())
            .map(|v| v.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" "))
            .map(|s| s.replace(" KUBERNETES_SERVICE_HOST=10.0.0.1", ""))
    }

    fn check(container: serde_json::Value, want: &str) {
        let got = env(container.clone()).unwrap_or_else(|e| format!("error: {e}"));
        assert_eq!(got, want, "{container}");
    }

    fn from(source: serde_json::Value) -> serde_json::Value {
        json!({"env": [{"name": "A", "valueFrom": source}]})
    }

    #[test]
    fn values_and_references() {
        check(json!({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(A)"}]}), "A=1 B=11");
        check(json!({"env": [{"name": "B", "value": "$(A)"}, {"name": "A", "value": "1"}]}), "B=$(A) A=1");
        check(json!({"env": [{"name": "A", "value": "$(KUBERNETES_SERVICE_HOST)"}]}), "A=10.0.0.1");
        check(json!({"env": [{"name": "KUBERNETES_SERVICE_HOST", "value": "x"}]}), "KUBERNETES_SERVICE_HOST=x");
        check(json!({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"}]}), "A=12");
        for (path, want) in [
            ("metadata.name", "A=p"),
            ("metadata.namespace", "A=ns"),
            ("metadata.uid", "A=u"),
            ("metadata.labels['app']", "A=web"),
            ("metadata.annotations['none']", "A="),
            ("spec.nodeName", "A=n"),
            ("spec.serviceAccountName", "A=sa"),
            ("status.podIP", "A=10.1.0.2"),
            ("status.podIPs", "A=10.1.0.2,fd00::2"),
            ("status.hostIP", "A=192.0.2.1"),
            ("spec.unknown", "error: unsupported fieldPath: spec.unknown"),
        ] {
            check(from(json!({"fieldRef": {"fieldPath": path}})), want);
        }
    }

    #[test]
    fn config_maps_and_secrets() {
        check(from(json!({"configMapKeyRef": {"name": "m", "key": "k"}})), "A=v");
        check(from(json!({"secretKeyRef": {"name": "s", "key": "p"}})), "A=hush");
        check(
            from(json!({"configMapKeyRef": {"name": "m", "key": "q"}})),
            "error: couldn't find key q in ConfigMap ns/m",
        );
        check(from(json!({"secretKeyRef": {"name": "s", "key": "q"}})), "error: couldn't find key q in Secret ns/s");
        check(from(json!({"configMapKeyRef": {"name": "none", "key": "k"}})), "error: configmap \"none\" not found");
        check(from(json!({"secretKeyRef": {"name": "none", "key": "k"}})), "error: secret \"none\" not found");
        let optional = json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "k",
            "optional": true}}}, {"name": "B", "value": "b"}]});
        check(optional, "B=b");
        check(json!({"envFrom": [{"configMapRef": {"name": "m"}, "prefix": "P_"}]}), "P_k=v P_x=y");
        check(json!({"envFrom": [{"secretRef": {"name": "none"}}]}), "error: secret \"none\" not found");
        check(
            json!({"envFrom": [{"configMapRef": {"name": "m"}}], "env": [{"name": "k", "value": "own $(x)"}]}),
            "k=own y x=y",
        );
    }

    #[test]
    fn resources_round_up_and_default_to_the_node() {
        let with = |resource: &str, divisor: &str| {
            json!({"resources": {"limits": {"memory": "20Mi"}, "requests": {"cpu": "150m"}},
                "env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": resource, "divisor": divisor}}}]})
        };
        check(with("requests.cpu", "1m"), "A=150");
        check(with("requests.cpu", "1"), "A=1");
        check(with("limits.memory", "1Ki"), "A=20480");
        check(with("limits.cpu", "1"), "A=2");
        check(with("requests.memory", "1"), "A=0");
        check(with("memory", "1"), "error: unsupported container resource : memory");
    }

    #[test]
    fn references_name_every_object_once() {
        let c: Container = serde_json::from_value(json!({"name": "c", "envFrom": [{"configMapRef": {"name": "m"}}],
            "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}))
        .expect("valid");
        assert_eq!(
            references(&c).into_iter().collect::<Vec<_>>(),
            [Referred::ConfigMap("m".into()), Referred::Secret("s".into())]
        );
    }

    proptest! {
        #[test]
        fn every_name_appears_once_and_the_last_value_wins(values in prop::collection::vec(("[A-C]", "[a-z]{0,3}"), 0..8)) {
            let list: Vec<_> = values.iter().map(|(n, v)| json!({"name": n, "value": v})).collect();
            let got = env(json!({"env": list})).expect("literals never fail");
            let mut want: BTreeMap<&str, &str> = BTreeMap::new();
            for (n, v) in &values {
                want.insert(n, v);
            }
            let got: Vec<_> = got.split(' ').filter(|s| !s.starts_with("KUBERNETES") && !s.is_empty()).collect();
            prop_assert_eq!(got.len(), want.len());
            for pair in got {
                let (n, v) = pair.split_once('=').expect("a pair");
                prop_assert_eq!(want.get(n), Some(&v));
            }
        }
    }
}
