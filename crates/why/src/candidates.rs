//! The volumes that a claim could have: why not, which came nearest, and what would make that one do.
use controllers::rules::{self, Difference, Weighed, volume_phase};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde_json::{Map, Value, json};

use crate::{
    answer::Candidate,
    facts::{Facts, name_of, namespace_of},
};

/// All volumes, the nearest first.
pub(crate) fn weigh<'a>(facts: &'a Facts, claim: &PersistentVolumeClaim) -> Vec<Weighed<'a>> {
    rules::weigh(claim, facts.volumes.iter(), &|namespace, name| facts.claim(namespace, name).is_some())
}

pub(crate) fn table(weighed: &[Weighed<'_>]) -> Vec<Candidate> {
    let row = |w: &Weighed<'_>| Candidate { volume: name_of(&w.volume.metadata).to_owned(), refused: w.said() };
    weighed.iter().map(row).collect()
}

/// What makes the nearest volume do, as far as a volume may be changed.
pub(crate) fn mend(claim: &PersistentVolumeClaim, weighed: &Weighed<'_>) -> Vec<String> {
    let name = name_of(&weighed.volume.metadata);
    let (mut spec, mut after) = (Map::new(), Vec::new());
    let mut notes = Vec::new();
    for difference in &weighed.against {
        match difference {
            Difference::Class { claim, .. } => drop(spec.insert("storageClassName".into(), json!(claim))),
            Difference::TooSmall { claim, .. } => {
                notes.push(format!("# only if the storage behind {name} really has {claim}"));
                spec.insert("capacity".into(), json!({ "storage": claim }));
            }
            Difference::Access { missing, offered } => {
                notes.push(format!("# only if the storage behind {name} really can do {}", missing.join(", ")));
                spec.insert("accessModes".into(), json!([offered.clone(), missing.clone()].concat()));
            }
            Difference::Reserved { same_name: true, .. } => {
                notes.push("# this gives the new claim the data of the earlier one".into());
                spec.insert("claimRef".into(), json!({"uid": null, "resourceVersion": null}));
            }
            Difference::Reserved { claim, .. } if volume_phase(weighed.volume) == "Released" => {
                notes.push(format!("# this gives the claim the data of claim {claim}"));
                spec.insert("claimRef".into(), Value::Null);
            }
            Difference::Selector => after.extend(label(claim, name)),
            Difference::Attributes { claim, .. } => {
                spec.insert("volumeAttributesClassName".into(), json!(claim));
            }
            // Nothing that a change of the volume could mend.
            Difference::Mode { .. } | Difference::Deleting | Difference::Phase(_) | Difference::Reserved { .. } => {
                return again(claim, difference);
            }
        }
    }
    let patch = (!spec.is_empty())
        .then(|| format!("kubectl patch pv {name} --type=merge -p '{}'", json!({ "spec": Value::Object(spec) })));
    notes.into_iter().chain(patch).chain(after).collect()
}

fn label(claim: &PersistentVolumeClaim, volume: &str) -> Option<String> {
    let selector = claim.spec.as_ref()?.selector.as_ref()?;
    let equal = selector.match_labels.iter().flatten().map(|(k, v)| format!("{k}={v}"));
    let one_of = selector.match_expressions.iter().flatten().filter(|e| e.operator == "In");
    let labels: Vec<_> =
        equal.chain(one_of.filter_map(|e| Some(format!("{}={}", e.key, e.values.as_ref()?.first()?)))).collect();
    (!labels.is_empty()).then(|| format!("kubectl label pv {volume} --overwrite {}", labels.join(" ")))
}

/// Where nothing mends the nearest one.
fn again(claim: &PersistentVolumeClaim, difference: &Difference) -> Vec<String> {
    let (namespace, name) = (namespace_of(&claim.metadata), name_of(&claim.metadata));
    let what = match difference {
        Difference::Mode { volume, .. } => format!("# or make the claim again with volumeMode: {volume}"),
        _ => "# or make the claim again with what one of the volumes offers".into(),
    };
    let delete = format!("kubectl delete pvc {name} -n {namespace}");
    vec!["# create a PersistentVolume that fits (kubectl apply -f volume.yaml)".into(), what, delete]
}
