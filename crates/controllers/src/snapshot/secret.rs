//! Which secret a driver needs for a snapshot, as the snapshot's class says it.
use std::collections::BTreeMap;

use api::names;

/// The secret of CreateSnapshot and DeleteSnapshot.
pub(crate) const SNAPSHOTTER: &str = "Snapshotter";
/// The secret of ListSnapshots.
pub(crate) const LIST: &str = "SnapshotterList";

/// Keys that are not the driver's begin so.
const PREFIX: &str = "csi.storage.k8s.io/";

fn key(purpose: &str) -> &'static str {
    if purpose == LIST { "csi.storage.k8s.io/snapshotter-list-secret" } else { "csi.storage.k8s.io/snapshotter-secret" }
}

/// Namespace and name of the secret for a purpose; `None` if the class has none. `snapshot` is the snapshot's namespace
/// and name, where they may be used.
///
/// # Errors
/// A sentence about what is wrong with the class's parameters.
pub(crate) fn secret(
    purpose: &str,
    parameters: &BTreeMap<String, String>,
    content: &str,
    snapshot: Option<(&str, &str)>,
) -> Result<Option<(String, String)>, String> {
    let part = |end: &str| parameters.get(&format!("{}-{end}", key(purpose))).map(String::as_str);
    let parts = "failed to get name and namespace template from params";
    let (name, namespace) = match (part("name"), part("namespace")) {
        (None, None) => return Ok(None),
        (Some(name), Some(namespace)) if !name.is_empty() && !namespace.is_empty() => (name, namespace),
        (Some(_), Some(_)) => {
            let what = "secrets specified in parameters but value of either namespace or name is empty";
            return Err(format!("{parts}: {purpose} {what}"));
        }
        _ => {
            let what = "secrets specified, Both must be specified";
            return Err(format!("{parts}: either name and namespace for {purpose} {what}"));
        }
    };
    let of_content = |variable: &str| (variable == "volumesnapshotcontent.name").then_some(content);
    let of_namespace = |variable: &str| match variable {
        "volumesnapshot.namespace" => snapshot.map(|s| s.0),
        _ => of_content(variable),
    };
    let of_name = |variable: &str| match variable {
        "volumesnapshot.name" => snapshot.map(|s| s.1),
        _ => of_namespace(variable),
    };
    let namespace = resolved(namespace, of_namespace, names::dns_label, "namespace")?;
    Ok(Some((namespace, resolved(name, of_name, names::dns_subdomain, "secret")?)))
}

/// A template with values in the place of its variables.
fn resolved<'v>(
    template: &str,
    value: impl Fn(&str) -> Option<&'v str>,
    rule: fn(&str) -> Vec<String>,
    what: &str,
) -> Result<String, String> {
    let mut text = String::new();
    let mut unknown = Vec::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((variable, behind)) = after.split_once('}') else { break };
        text.push_str(before);
        match value(variable) {
            Some(value) => text.push_str(value),
            None => unknown.push(format!("{variable:?}")),
        }
        rest = behind;
    }
    text.push_str(rest);
    if !unknown.is_empty() {
        unknown.sort_unstable();
        return Err(format!("error resolving value {template:?}: invalid tokens: [{}]", unknown.join(" ")));
    }
    match rule(&text).is_empty() {
        true => Ok(text),
        false if text == template => Err(format!("{template:?} is not a valid {what} name")),
        false => Err(format!("{template:?} resolved to {text:?} which is not a valid {what} name")),
    }
}

/// The driver's own parameters.
///
/// # Errors
/// A sentence about one that nobody knows.
pub(crate) fn own(parameters: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, String> {
    const KNOWN: [&str; 4] = ["snapshotter", "snapshotter-list", "group-snapshotter", "group-snapshotter-get"];
    let known =
        |key: &str| KNOWN.iter().any(|k| matches!(key.strip_prefix(k), Some("-secret-name" | "-secret-namespace")));
    let mut own = BTreeMap::new();
    for (key, value) in parameters {
        match key.strip_prefix(PREFIX) {
            None => drop(own.insert(key.clone(), value.clone())),
            Some(rest) if known(rest) => {}
            Some(_) => {
                return Err(format!("found unknown parameter key \"{key}\" with reserved namespace {PREFIX}"));
            }
        }
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_class_names_its_secrets() {
        const NAME: &str = "csi.storage.k8s.io/snapshotter-secret-name";
        const NAMESPACE: &str = "csi.storage.k8s.io/snapshotter-secret-namespace";
        let of = |all: &[(&str, &str)]| secret(SNAPSHOTTER, &parameters(all), "content", Some(("ns", "snap")));
        assert_eq!(of(&[("a", "b")]), Ok(None));
        assert_eq!(of(&[(NAME, "s"), (NAMESPACE, "n")]), Ok(Some(("n".into(), "s".into()))));
        assert_eq!(
            of(&[
                (NAME, "${volumesnapshot.name}-${volumesnapshotcontent.name}"),
                (NAMESPACE, "${volumesnapshot.namespace}")
            ]),
            Ok(Some(("ns".into(), "snap-content".into())))
        );
        let wrong: &[(&[(&str, &str)], &str)] = &[
            (
                &[(NAME, "s")],
                "failed to get name and namespace template from params: either name and namespace for \
                              Snapshotter secrets specified, Both must be specified",
            ),
            (
                &[(NAME, "s"), (NAMESPACE, "")],
                "failed to get name and namespace template from params: Snapshotter \
                              secrets specified in parameters but value of either namespace or name is empty",
            ),
            (
                &[(NAME, "s"), (NAMESPACE, "${volumesnapshot.name}")],
                "error resolving value \"${volumesnapshot.name}\": invalid tokens: [\"volumesnapshot.name\"]",
            ),
            (&[(NAME, "S_"), (NAMESPACE, "n")], "\"S_\" is not a valid secret name"),
            (
                &[(NAME, "s"), (NAMESPACE, "${volumesnapshotcontent.name}.")],
                "\"${volumesnapshotcontent.name}.\" resolved to \"content.\" which is not a valid namespace name",
            ),
        ];
        for (all, message) in wrong {
            assert_eq!(of(all), Err((*message).to_owned()), "{all:?}");
        }
        let list = parameters(&[
            ("csi.storage.k8s.io/snapshotter-list-secret-name", "${volumesnapshot.name}"),
            ("csi.storage.k8s.io/snapshotter-list-secret-namespace", "n"),
        ]);
        assert!(secret(LIST, &list, "content", None).is_err(), "no snapshot is known then");
    }

    #[test]
    fn a_driver_gets_its_own_parameters_only() {
        let all = parameters(&[("a", "b"), ("csi.storage.k8s.io/snapshotter-list-secret-name", "s")]);
        assert_eq!(own(&all), Ok(parameters(&[("a", "b")])));
        let all = parameters(&[("csi.storage.k8s.io/colour", "red")]);
        assert_eq!(
            own(&all).unwrap_err(),
            "found unknown parameter key \"csi.storage.k8s.io/colour\" with reserved namespace csi.storage.k8s.io/"
        );
    }
}
