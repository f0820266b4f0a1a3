//! What a storage class says to the host of a driver, and what it says to the driver itself.
//! Source: Kubernetes' CSI documentation, "StorageClass Secrets"; external-provisioner, `pkg/controller`.
use std::collections::BTreeMap;

use k8s_openapi::api::{
    core::v1::{PersistentVolumeClaim, SecretReference},
    storage::v1::StorageClass,
};

/// Keys that begin so are the host's, not the driver's.
const PREFIX: &str = "csi.storage.k8s.io/";

/// What a secret is for. Its name in parameters, and its name in parameters of old; empty where there was none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Secret {
    Provisioner,
    ControllerPublish,
    ControllerExpand,
    NodeStage,
    NodePublish,
    NodeExpand,
}

const SECRETS: [(Secret, &str, &str); 6] = [
    (Secret::Provisioner, "provisioner", "csiProvisioner"),
    (Secret::ControllerPublish, "controller-publish", "csiControllerPublish"),
    (Secret::ControllerExpand, "controller-expand", ""),
    (Secret::NodeStage, "node-stage", "csiNodeStage"),
    (Secret::NodePublish, "node-publish", "csiNodePublish"),
    (Secret::NodeExpand, "node-expand", ""),
];

/// A class's parameters, parted.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Parameters {
    /// The driver's own.
    pub(crate) own: BTreeMap<String, String>,
    /// Empty: the driver chooses.
    pub(crate) fs_type: String,
    secrets: BTreeMap<Secret, (String, String)>,
}

impl Parameters {
    /// # Errors
    /// A sentence about what does not belong there.
    pub(crate) fn of(class: &StorageClass) -> Result<Self, String> {
        Self::parse(class.parameters.iter().flatten())
    }

    pub(crate) fn parse<'a>(all: impl IntoIterator<Item = (&'a String, &'a String)>) -> Result<Self, String> {
        let mut found = Self::default();
        let mut halves: BTreeMap<Secret, (Option<&str>, Option<&str>)> = BTreeMap::new();
        for (key, value) in all {
            if key == "fstype" || key.strip_prefix(PREFIX) == Some("fstype") {
                value.clone_into(&mut found.fs_type);
            } else if let Some((secret, is_namespace)) = secret_of(key) {
                let half = halves.entry(secret).or_default();
                *if is_namespace { &mut half.1 } else { &mut half.0 } = Some(value);
            } else if key.starts_with(PREFIX) {
                return Err(format!("found unknown parameter key {key:?} with reserved namespace {PREFIX}"));
            } else {
                found.own.insert(key.clone(), value.clone());
            }
        }
        for (secret, (name, namespace)) in halves {
            match (name, namespace) {
                (Some(name), Some(namespace)) if !name.is_empty() && !namespace.is_empty() => {
                    found.secrets.insert(secret, (namespace.to_owned(), name.to_owned()));
                }
                _ => {
                    let name = SECRETS.iter().find(|(s, ..)| *s == secret).map_or("", |(_, name, _)| *name);
                    return Err(format!(
                        "parameters {PREFIX}{name}-secret-name and {PREFIX}{name}-secret-namespace have to be given both, \
                         and not empty"
                    ));
                }
            }
        }
        Ok(found)
    }

    /// Namespace and name of the secret for a purpose, for one claim and its volume; `None` if the class has none.
    ///
    /// # Errors
    /// A sentence about a variable that is not known there.
    pub(crate) fn secret(
        &self,
        purpose: Secret,
        volume: &str,
        claim: &PersistentVolumeClaim,
    ) -> Result<Option<(String, String)>, String> {
        let Some((namespace, name)) = self.secrets.get(&purpose) else { return Ok(None) };
        let meta = &claim.metadata;
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        let known = |variable: &str| match variable {
            "pv.name" => Some(volume.to_owned()),
            "pvc.namespace" => Some(text(&meta.namespace)),
            "pvc.name" => Some(text(&meta.name)),
            _ => {
                let key = variable.strip_prefix("pvc.annotations['")?.strip_suffix("']")?;
                Some(meta.annotations.as_ref()?.get(key)?.clone())
            }
        };
        let namespace = expand(namespace, |v| known(v).filter(|_| !matches!(v, "pvc.name") && !v.contains('[')))?;
        Ok(Some((namespace, expand(name, known)?)))
    }

    /// As a volume refers to it.
    pub(crate) fn reference(
        &self,
        purpose: Secret,
        volume: &str,
        claim: &PersistentVolumeClaim,
    ) -> Result<Option<SecretReference>, String> {
        let found = self.secret(purpose, volume, claim)?;
        Ok(found.map(|(namespace, name)| SecretReference { name: Some(name), namespace: Some(namespace) }))
    }
}

/// Which secret a key is about, and whether it gives the namespace.
fn secret_of(key: &str) -> Option<(Secret, bool)> {
    SECRETS.iter().find_map(|(secret, name, old)| {
        let new = key.strip_prefix(PREFIX).and_then(|k| k.strip_prefix(name));
        match (new, key.strip_prefix(old).filter(|_| !old.is_empty())) {
            (Some("-secret-name"), _) | (_, Some("SecretName")) => Some((*secret, false)),
            (Some("-secret-namespace"), _) | (_, Some("SecretNamespace")) => Some((*secret, true)),
            _ => None,
        }
    })
}

/// Puts values in place of `${variables}`.
fn expand(template: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("${") {
        let (variable, behind) =
            after.split_once('}').ok_or_else(|| format!("secret template {template:?} has no end of a variable"))?;
        text.push_str(before);
        text.push_str(
            &value(variable)
                .ok_or_else(|| format!("secret template {template:?} names {variable:?}, which is not known there"))?,
        );
        rest = behind;
    }
    text.push_str(rest);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn parse(parameters: serde_json::Value) -> Result<Parameters, String> {
        let all: BTreeMap<String, String> = from_value(parameters).unwrap();
        Parameters::parse(&all)
    }

    #[test]
    fn a_classs_parameters_are_parted() {
        let found = parse(json!({
            "type": "fast", "csi.storage.k8s.io/fstype": "xfs",
            "csi.storage.k8s.io/node-stage-secret-name": "${pvc.name}-${pvc.annotations['team/key']}",
            "csi.storage.k8s.io/node-stage-secret-namespace": "${pvc.namespace}",
            "csiProvisionerSecretName": "p", "csiProvisionerSecretNamespace": "of-${pv.name}",
        }))
        .unwrap();
        assert_eq!((found.fs_type.as_str(), found.own.len()), ("xfs", 1));
        let claim = from_value(json!({ "metadata": {
            "name": "c", "namespace": "ns", "annotations": { "team/key": "k" },
        } }))
        .unwrap();
        let secret = |purpose| found.secret(purpose, "pv", &claim).unwrap();
        assert_eq!(secret(Secret::NodeStage), Some(("ns".into(), "c-k".into())));
        assert_eq!(secret(Secret::Provisioner), Some(("of-pv".into(), "p".into())));
        assert_eq!(secret(Secret::NodePublish), None);
    }

    #[test]
    fn what_nobody_could_mean_is_refused() {
        let refused = |parameters| parse(parameters).unwrap_err();
        let unknown = refused(json!({ "csi.storage.k8s.io/colour": "red" }));
        assert!(unknown.contains("csi.storage.k8s.io/colour"), "{unknown}");
        let half = refused(json!({ "csi.storage.k8s.io/node-stage-secret-name": "s" }));
        assert!(half.contains("node-stage-secret-namespace"), "{half}");
        for (name, namespace) in [("${pvc.uid}", "n"), ("${pvc.name", "n"), ("n", "${pvc.name}")] {
            let found = parse(json!({
                "csi.storage.k8s.io/node-stage-secret-name": name,
                "csi.storage.k8s.io/node-stage-secret-namespace": namespace,
            }));
            let claim = PersistentVolumeClaim::default();
            found.unwrap().secret(Secret::NodeStage, "pv", &claim).unwrap_err();
        }
    }
}
