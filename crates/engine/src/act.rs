//! Performing actions: one request each, conditional on what the decision saw.
use std::sync::Arc;

use controllers::{Action, Entry, Key, Meta, Object, Target, Unless, namespaced_kinds, protection, rules};
use futures::future::join_all;
use http::Request;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::{
    EngineError,
    queue::{Core, Outcome},
    wire,
};

impl Core {
    /// Sends a request; a body is JSON, for `PATCH` a merge patch.
    pub(crate) async fn request(&self, method: &str, uri: &str, body: Option<&Value>) -> Result<String, EngineError> {
        let what = || format!("{method} {}", uri.split('?').next().unwrap_or(uri));
        let failed = |source| EngineError::Request { what: what(), source };
        let content = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let mut request = Request::builder().method(method).uri(uri).header("accept", "application/json");
        if body.is_some() {
            request = request.header("content-type", content);
        }
        let body = body.map(|b| b.to_string().into_bytes()).unwrap_or_default();
        let request = request.body(body).map_err(|e| failed(kube::Error::HttpError(e)))?;
        self.client.request_text(request).await.map_err(failed)
    }

    /// One object as the server has it now; `None` when there is none.
    async fn get(&self, key: &Key) -> Result<Option<Entry>, EngineError> {
        match self.request("GET", &wire::object(key, None), None).await {
            Ok(text) => wire::entry(key.kind, &text).map(Some),
            Err(error) if error.code() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Performs an action, once.
pub(crate) async fn perform(core: &Arc<Core>, action: Action) -> Outcome {
    let done = match action {
        // A check may be about another check.
        Action::Checked { unless, then } => match forbidden(core, &unless).await {
            Ok(true) => Ok(Outcome::Stale),
            Ok(false) => Ok(Box::pin(perform(core, *then)).await),
            Err(error) => Err(error),
        },
        Action::Create { key, object } => create(core, &key, &object).await,
        Action::Patch { target, subresource, patch } => {
            let uri = wire::object(&target.key, subresource);
            let result = core.request("PATCH", &uri, Some(&conditional(patch, &target))).await;
            learn(core, target.key.kind, result)
        }
        Action::Delete { target, grace, propagation } => delete(core, &target, grace, propagation).await,
        Action::Bind { pod, node } => bind(core, &pod, &node).await,
        Action::Empty { namespace, kinds } => empty(core, &namespace, &kinds).await,
        // A driver is called by the key's own step, which hears the answer.
        Action::Call(_) => Ok(Outcome::Stale),
        Action::Finalize { namespace, finalizers } => finalize(core, &namespace, &finalizers).await,
    };
    done.unwrap_or_else(refused)
}

fn refused(error: EngineError) -> Outcome {
    match error.code() {
        // Conflict, gone, or made by somebody else: the world will show it.
        Some(404 | 409) => Outcome::Stale,
        _ => Outcome::Failed(error),
    }
}

fn conditional(mut patch: Value, target: &Target) -> Value {
    patch["metadata"]["uid"] = json!(target.uid);
    if let Some(version) = &target.resource_version {
        patch["metadata"]["resourceVersion"] = json!(version);
    }
    patch
}

fn learn(core: &Arc<Core>, kind: &'static str, text: Result<String, EngineError>) -> Result<Outcome, EngineError> {
    core.learn(wire::entry(kind, &text?)?);
    Ok(Outcome::Done)
}

async fn create(core: &Arc<Core>, key: &Key, object: &Value) -> Result<Outcome, EngineError> {
    let uri = wire::collection(wire::row(key.kind), &key.namespace);
    match core.request("POST", &uri, Some(object)).await {
        Err(error) if error.reason() == "AlreadyExists" => Ok(Outcome::Unseen),
        result => learn(core, key.kind, result),
    }
}

async fn delete(
    core: &Arc<Core>,
    target: &Target,
    grace: Option<i64>,
    propagation: Option<&str>,
) -> Result<Outcome, EngineError> {
    let mut options = json!({
        "apiVersion": "v1", "kind": "DeleteOptions",
        "preconditions": { "uid": target.uid },
    });
    if let Some(version) = &target.resource_version {
        options["preconditions"]["resourceVersion"] = json!(version);
    }
    if let Some(grace) = grace {
        options["gracePeriodSeconds"] = json!(grace);
    }
    if let Some(propagation) = propagation {
        options["propagationPolicy"] = json!(propagation);
    }
    core.request("DELETE", &wire::object(&target.key, None), Some(&options)).await?;
    Ok(Outcome::Unseen)
}

async fn bind(core: &Arc<Core>, pod: &Target, node: &str) -> Result<Outcome, EngineError> {
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": { "name": &*pod.key.name, "namespace": &*pod.key.namespace, "uid": pod.uid },
        "target": { "apiVersion": "v1", "kind": "Node", "name": node },
    });
    core.request("POST", &wire::object(&pod.key, Some("binding")), Some(&binding)).await?;
    // The answer does not show the pod; the next pod must not be given the same room.
    core.assume(&pod.key, |entry| match &entry.object {
        Object::Pod(old) if entry.meta.uid == pod.uid => {
            let mut bound = Pod::clone(old);
            bound.spec.get_or_insert_default().node_name = Some(node.to_owned());
            Some(Entry { meta: entry.meta.clone(), object: Object::Pod(Arc::new(bound)) })
        }
        _ => None,
    });
    Ok(Outcome::Done)
}

async fn empty(core: &Arc<Core>, namespace: &str, kinds: &[&'static str]) -> Result<Outcome, EngineError> {
    let uris: Vec<_> = kinds.iter().map(|k| wire::collection(wire::row(k), namespace)).collect();
    let requests = uris.iter().map(|uri| core.request("DELETE", uri, None));
    for result in join_all(requests).await {
        result?;
    }
    Ok(Outcome::Unseen)
}

async fn finalize(core: &Arc<Core>, target: &Target, finalizers: &[String]) -> Result<Outcome, EngineError> {
    let events = wire::collection(wire::row("Event"), &target.key.name);
    core.request("DELETE", &events, None).await?;
    let lists: Vec<_> =
        namespaced_kinds().map(|k| format!("{}?limit=1", wire::collection(k, &target.key.name))).collect();
    for list in join_all(lists.iter().map(|uri| core.request("GET", uri, None))).await {
        match list {
            Ok(text) => {
                let page: wire::Page = wire::parse("List", &text)?;
                if page.items.is_some_and(|items| !items.is_empty()) {
                    // The cache is about to show it.
                    return Ok(Outcome::Stale);
                }
            }
            Err(error) if error.code() == Some(404) => {}
            Err(error) => return Err(error),
        }
    }
    let text = core.request("GET", &wire::object(&target.key, None), None).await?;
    let mut object: Value = wire::parse(target.key.kind, &text)?;
    if object["metadata"]["uid"] != json!(target.uid) {
        return Ok(Outcome::Stale);
    }
    object["spec"]["finalizers"] = json!(finalizers);
    core.request("PUT", &wire::object(&target.key, Some("finalize")), Some(&object)).await?;
    Ok(Outcome::Unseen)
}

/// Looks at the server whether what forbids an action is the case.
async fn forbidden(core: &Arc<Core>, unless: &Unless) -> Result<bool, EngineError> {
    match unless {
        Unless::Exists(objects) => {
            for (key, uid) in objects {
                let found = core.get(key).await?;
                if let Some(entry) = found.filter(|e| uid.is_empty() || e.meta.uid == *uid) {
                    core.learn(entry);
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Unless::Going(objects) => {
            for (key, uid) in objects {
                let found = core.get(key).await?;
                if !found.as_ref().is_some_and(|e| e.meta.uid == *uid && e.meta.deleting.is_none()) {
                    found.into_iter().for_each(|entry| core.learn(entry));
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Unless::Used { namespace, claim, claim_uid } => {
            let key = Key::new("PersistentVolumeClaim", namespace, claim);
            let Some(found) = core.get(&key).await?.filter(|e| e.meta.uid == *claim_uid) else { return Ok(true) };
            any_pod(core, namespace, &[&**claim], |pod| uses(pod, &found.meta)).await
        }
        Unless::Had { namespace, claims, but } => {
            let names: Vec<&str> = claims.iter().map(String::as_str).collect();
            any_pod(core, namespace, &names, |pod| pod.meta.uid != *but && has_one(pod, claims)).await
        }
    }
}

/// Looks at the server for a pod in a namespace that has to do with one of the claims; one that is found is known from
/// then on.
async fn any_pod(
    core: &Arc<Core>,
    namespace: &str,
    claims: &[&str],
    is: impl Fn(&Entry) -> bool,
) -> Result<bool, EngineError> {
    let text = core.request("GET", &wire::collection(wire::row("Pod"), namespace), None).await?;
    let page: wire::Page = wire::parse("Pod", &text)?;
    // Most pods name none of them, and need not be read: the claim of an ephemeral volume is not named in full.
    let quoted: Vec<String> = claims.iter().map(|claim| format!("\"{claim}\"")).collect();
    let may_be = |text: &str| text.contains("\"ephemeral\"") || quoted.iter().any(|name| text.contains(name));
    for item in page.items.iter().flatten().filter(|item| may_be(item.get())) {
        let entry = wire::entry("Pod", item.get())?;
        if is(&entry) {
            core.learn(entry);
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_one(pod: &Entry, claims: &[String]) -> bool {
    matches!(&pod.object, Object::Pod(object) if claims.iter().any(|claim| rules::runs_with(object, claim)))
}

fn uses(pod: &Entry, claim: &Meta) -> bool {
    matches!(&pod.object, Object::Pod(object) if protection::uses(object, &pod.meta.uid, claim))
}
