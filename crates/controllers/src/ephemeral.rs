//! Generic ephemeral volumes: makes the claim `<pod>-<volume>` that dies with its pod.
use serde_json::{Value, json};

use crate::{
    claim::{claims_of, is_made_for},
    decision::{Action, Context, Decision, Key, Note},
    world::{Change, Object, World},
};

pub(crate) fn decide(key: &Key, world: &World, _: &Context) -> Decision {
    let Some((meta, pod)) = world.pod(&key.namespace, &key.name).filter(|(m, _)| m.deleting.is_none()) else {
        return Decision::settled();
    };
    for (volume, claim, _) in claims_of(pod).into_iter().filter(|c| c.2) {
        if let Some((existing, _)) = world.claim(&key.namespace, &claim) {
            if is_made_for(existing, &meta.uid) {
                continue;
            }
            let pod = format!("{}/{}", key.namespace, key.name);
            let message = format!(
                "ephemeral volume {volume}: PVC {}/{claim} was not created for pod {pod} (pod is not owner)",
                key.namespace
            );
            return Decision::wait(Note::warning(meta, "FailedBinding", message));
        }
        let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        let source = volumes.filter(|v| v.name == volume).find_map(|v| v.ephemeral.as_ref());
        let Some(template) = source.and_then(|s| s.volume_claim_template.as_ref()) else { continue };
        let given = template.metadata.as_ref();
        let mut object = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": claim, "namespace": &*key.namespace,
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Pod", "name": &*key.name, "uid": meta.uid,
                    "controller": true, "blockOwnerDeletion": true,
                }],
            },
            "spec": template.spec,
        });
        let mut copy = |field: &str, value: Option<Value>| {
            if let Some(value) = value {
                object["metadata"][field] = value;
            }
        };
        copy("labels", given.and_then(|m| m.labels.as_ref()).map(|l| json!(l)));
        copy("annotations", given.and_then(|m| m.annotations.as_ref()).map(|a| json!(a)));
        let refused = Note::warning(meta, "FailedBinding", format!("ephemeral volume {volume}: create PVC {claim}"));
        let create = Action::Create { key: Key::new("PersistentVolumeClaim", &key.namespace, &claim), object };
        return Decision { refused: Some(refused), ..Decision::act(create) };
    }
    Decision::settled()
}

pub(crate) fn wakes(world: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    let ephemeral = |object: &Object| match object {
        Object::Pod(pod) => claims_of(pod).iter().any(|c| c.2),
        _ => false,
    };
    match change.key.kind {
        "Pod" if change.new.as_ref().is_some_and(|e| ephemeral(&e.object)) => wake(change.key.clone()),
        "PersistentVolumeClaim" if change.new.is_none() => {
            world.pods_naming(&change.key.namespace, &change.key.name).for_each(|(m, _)| wake(m.key.clone()))
        }
        _ => {}
    }
}
