//! Objects that do not exist because they were refused.
use api::Quantity;

use crate::{Subject, facts::Facts, facts::Told};

/// What keeps a claim or pod of this name from being made, as far as it shows: full quotas, and what the object that was
/// to make it has been told. Sentences.
pub fn no_room(subject: &Subject, facts: &Facts) -> Vec<String> {
    let (kind, namespace, name) = match subject {
        Subject::Claim { namespace, name } => ("persistentvolumeclaims", namespace, name),
        Subject::Pod { namespace, name } => ("pods", namespace, name),
        _ => return Vec::new(),
    };
    let refused = facts.events.iter().filter(|e| e.reason.as_deref() == Some("FailedCreate")).map(|e| (e, Told::of(e)));
    let mut said: Vec<String> = refused
        .filter(|(_, told)| told.message.contains(name.as_str()))
        .map(|(event, told)| {
            let by = &event.involved_object;
            let text = |t: &Option<String>| t.clone().unwrap_or_default();
            format!("{} {} could not make it: {}", text(&by.kind), text(&by.name), told.message)
        })
        .collect();
    let ours = facts.quotas.iter().filter(|q| q.metadata.namespace.as_ref() == Some(namespace));
    for quota in ours {
        let Some(status) = &quota.status else { continue };
        let name = quota.metadata.name.as_deref().unwrap_or_default();
        for (resource, hard) in status.hard.iter().flatten().filter(|(r, _)| concerns(r, kind)) {
            let Some(used) = status.used.as_ref().and_then(|u| u.get(resource)) else { continue };
            let amount = |q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| Quantity::parse(&q.0).ok();
            let full = amount(used).zip(amount(hard)).is_some_and(|(used, hard)| used >= hard);
            // Storage is refused by size: what is left may be too little without being nothing.
            if full {
                said.push(format!(
                    "ResourceQuota {name} refuses another: {resource} {} of {} are used",
                    used.0, hard.0
                ));
            } else if resource.contains("requests.storage") {
                said.push(format!(
                    "ResourceQuota {name} refuses what goes beyond: {resource} {} of {} are used",
                    used.0, hard.0
                ));
            }
        }
    }
    said
}

/// Whether a quota's resource counts objects of the kind.
fn concerns(resource: &str, kind: &str) -> bool {
    let storage = kind == "persistentvolumeclaims" && resource.ends_with("requests.storage");
    resource == kind || resource == format!("count/{kind}") || storage || resource.ends_with(&format!("/{kind}"))
}
