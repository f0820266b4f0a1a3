//! What every namespace has: the service account `default` and the certificates that pods trust the API server by.
use serde_json::json;

use crate::{
    decision::{Action, Context, Decision, Key},
    world::{Change, Object, World},
};

const ROOT_CA: &str = "kube-root-ca.crt";

pub(crate) fn decide(key: &Key, world: &World, context: &Context) -> Decision {
    let Some((meta, _)) = world.namespace(&key.name).filter(|(m, _)| m.deleting.is_none()) else {
        return Decision::settled();
    };
    let namespace = &*meta.key.name;
    let account = Key::new("ServiceAccount", namespace, "default");
    if world.entry(&account).is_none() {
        let object = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": "default", "namespace": namespace },
        });
        return Decision::act(Action::Create { key: account, object });
    }
    let Some(wanted) = &context.root_ca else { return Decision::settled() };
    let key = Key::new("ConfigMap", namespace, ROOT_CA);
    match world.entry(&key).map(|e| (&e.meta, &e.object)) {
        Some((_, Object::RootCa(have))) if have == wanted => Decision::settled(),
        Some((meta, _)) => Decision::act(Action::patch(meta, json!({ "data": { "ca.crt": &**wanted } }))),
        None => {
            let about = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
                         endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
                         guaranteed across distributions of Kubernetes clusters.";
            let object = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {
                    "name": ROOT_CA, "namespace": namespace,
                    "annotations": { "kubernetes.io/description": about },
                },
                "data": { "ca.crt": &**wanted },
            });
            Decision::act(Action::Create { key, object })
        }
    }
}

/// Whether a config map is one that this controller keeps, so that its content is of use here.
pub fn is_root_ca(name: &str) -> bool {
    name == ROOT_CA
}

pub(crate) fn wakes(_: &World, change: &Change, wake: &mut dyn FnMut(Key)) {
    match change.key.kind {
        "Namespace" => wake(change.key.clone()),
        "ServiceAccount" if &*change.key.name == "default" => wake(Key::new("Namespace", "", &change.key.namespace)),
        "ConfigMap" if is_root_ca(&change.key.name) => wake(Key::new("Namespace", "", &change.key.namespace)),
        _ => {}
    }
}
