//! Subresources of pods: binding, eviction, logs and streams.
use axum::{body::Body, response::Response};
use http::{Request, Uri};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    Inner, object,
    options::{DeleteOptions, Query},
    status::{ApiError, ApiResult, Subject},
    write::{At, Outcome, Part},
};

/// The endpoints of nodes that `nodes/{name}/proxy/` leads to.
const TOLD_BY_NODES: [&str; 3] = ["healthz", "metrics", "stats/summary"];

impl Inner {
    /// Assigns a pod to the node that a `Binding` names.
    pub(crate) async fn bind(&self, at: &At<'_>, binding: &Value, dry_run: bool) -> ApiResult<Outcome> {
        let name = object::meta(binding, "name");
        if name != at.name {
            return Err(ApiError::bad_request("name in URL does not match name in Binding object"));
        }
        let target = &binding["target"];
        let kind = target["kind"].as_str().unwrap_or_default();
        let node = target["name"].as_str().unwrap_or_default();
        let mut errors = Vec::new();
        if !matches!(kind, "" | "Node") {
            errors.push(api::FieldError {
                field: "target.kind".into(),
                reason: "FieldValueNotSupported",
                message: format!("Unsupported value: {kind:?}: supported values: \"Node\", \"<empty>\""),
            });
        }
        if node.is_empty() {
            errors.push(api::FieldError {
                field: "target.name".into(),
                reason: "FieldValueRequired",
                message: "Required value".into(),
            });
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid("", "Binding", name, &errors));
        }
        let subject = Subject { resource: "pods/binding", ..at.subject() };
        let mut change = |old: &Value| assign(old, binding, node, subject);
        self.update(at, Part::Internal, dry_run, &mut change).await
    }

    /// Deletes a pod on behalf of an `Eviction`. There are no disruption budgets to ask.
    pub(crate) async fn evict(&self, at: &At<'_>, eviction: &Value, query: &Query) -> ApiResult<Value> {
        let name = object::meta(eviction, "name");
        if name != at.name {
            return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
        }
        let body = &eviction["deleteOptions"];
        let mut options = DeleteOptions::parse(query, (!body.is_null()).then_some(body))?;
        options.dry_run |= query.text("dryRun").is_some();
        self.delete(at, &options).await?;
        Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
    }

    /// Carries a request for logs or a stream to the pod's node.
    pub(crate) async fn connect(
        &self,
        at: &At<'_>,
        subresource: &str,
        query: &Query,
        mut request: Request<Body>,
    ) -> ApiResult<Response> {
        let (_, pod) = self.load(at)?;
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        let container = match subresource {
            "portforward" => String::new(),
            _ => container(&pod, query.get("container").unwrap_or_default())?,
        };
        if subresource == "log" {
            check_log_options(at.name, query)?;
            if node.is_empty() {
                // As upstream: nothing was logged yet.
                return Ok(Response::new(Body::empty()));
            }
        }
        if node.is_empty() {
            return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", at.name)));
        }
        let path = match subresource {
            "portforward" => format!("/portForward/{}/{}", at.namespace, at.name),
            "log" => format!("/containerLogs/{}/{}/{container}", at.namespace, at.name),
            stream => format!("/{stream}/{}/{}/{container}", at.namespace, at.name),
        };
        let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
        *request.uri_mut() = format!("{path}{query}").parse::<Uri>().map_err(ApiError::internal)?;
        self.call_node(node, request).await
    }

    /// Carries a request to what a node tells of itself.
    pub(crate) async fn ask_node(&self, at: &At<'_>, path: &str, mut request: Request<Body>) -> ApiResult<Response> {
        // Whatever else a node has is reached by the pods' own subresources.
        if !TOLD_BY_NODES.contains(&path) {
            return Err(ApiError::no_such_resource());
        }
        self.load(at)?;
        let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
        *request.uri_mut() = format!("/{path}{query}").parse::<Uri>().map_err(ApiError::internal)?;
        self.call_node(at.name, request).await
    }

    async fn call_node(&self, node: &str, request: Request<Body>) -> ApiResult<Response> {
        let connector = self.connector.read().clone();
        let Some(connector) = connector else {
            return Err(ApiError::internal(format!("no connection to node {node}: this server runs without nodes")));
        };
        Ok(connector.call(node, request).await)
    }
}

fn assign(old: &Value, binding: &Value, node: &str, subject: Subject<'_>) -> ApiResult<Value> {
    let name = subject.name;
    for (field, found) in [("uid", object::meta(old, "uid")), ("resourceVersion", object::meta(old, "resourceVersion"))]
    {
        let asked = object::meta(binding, field);
        if !asked.is_empty() && asked != found {
            let why = format!("Precondition failed: {field} in precondition: {asked}, {field} in object meta: {found}");
            return Err(ApiError::conflict(Subject { resource: "pods", ..subject }, &why));
        }
    }
    let assigned = old["spec"]["nodeName"].as_str().unwrap_or_default();
    if object::is_deleting(old) {
        let why = format!("pod {name} is being deleted, cannot be assigned to a host");
        return Err(ApiError::conflict(subject, &why));
    }
    if !assigned.is_empty() {
        return Err(ApiError::conflict(subject, &format!("pod {name} is already assigned to node {assigned:?}")));
    }
    if old["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty()) {
        return Err(ApiError::conflict(subject, &format!("pod {name} has non-empty .spec.schedulingGates")));
    }
    let mut pod = old.clone();
    pod["spec"]["nodeName"] = node.into();
    for field in ["annotations", "labels"] {
        for (key, value) in binding["metadata"][field].as_object().into_iter().flatten() {
            pod["metadata"][field][key.as_str()] = value.clone();
        }
    }
    set_scheduled(&mut pod);
    Ok(pod)
}

/// Sets the condition `PodScheduled`.
fn set_scheduled(pod: &mut Value) {
    let now = object::time_text(Timestamp::now());
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let mut list = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    list.retain(|c| c["type"] != "PodScheduled");
    list.push(condition);
    pod["status"]["conditions"] = list.into();
}

/// The container a request means: the one it names, or the only one.
fn container(pod: &Value, asked: &str) -> ApiResult<String> {
    let name = object::meta(pod, "name");
    let names = |list: &str| -> Vec<&str> {
        let all = pod["spec"][list].as_array().into_iter().flatten();
        all.filter_map(|c| c["name"].as_str()).collect()
    };
    let (main, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    if !asked.is_empty() {
        let known = [&main, &init, &ephemeral].iter().any(|list| list.contains(&asked));
        return match known {
            true => Ok(asked.to_owned()),
            false => Err(ApiError::bad_request(format!("container {asked} is not valid for pod {name}"))),
        };
    }
    match main.as_slice() {
        [only] => Ok((*only).to_owned()),
        [] => Err(ApiError::bad_request(format!("a container name must be specified for pod {name}"))),
        many => {
            let mut message =
                format!("a container name must be specified for pod {name}, choose one of: [{}]", many.join(" "));
            if !init.is_empty() {
                message += &format!(" or one of the init containers: [{}]", init.join(" "));
            }
            Err(ApiError::bad_request(message))
        }
    }
}

fn check_log_options(pod: &str, query: &Query) -> ApiResult<()> {
    let mut errors = Vec::new();
    let mut refuse = |field: &str, value: &str, why: &str| {
        errors.push(api::FieldError {
            field: field.into(),
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {value}: {why}"),
        });
    };
    for (field, least, why) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        if let Some(n) = query.number(field)?.filter(|n| *n < least) {
            refuse(field, &n.to_string(), why);
        }
    }
    if query.text("sinceSeconds").is_some() && query.text("sinceTime").is_some() {
        errors.push(api::FieldError {
            field: "".into(),
            reason: "FieldValueForbidden",
            message: "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified".into(),
        });
    }
    if let Some(text) = query.text("sinceTime")
        && text.parse::<Timestamp>().is_err()
    {
        return Err(ApiError::bad_request(format!("sinceTime is no RFC 3339 time: {text:?}")));
    }
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid("", "PodLogOptions", pod, &errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_chosen_as_upstream() {
        let pod = |main: &[&str]| {
            let list: Vec<Value> = main.iter().map(|n| json!({"name": n})).collect();
            json!({"metadata": {"name": "p"}, "spec": {"containers": list}})
        };
        assert_eq!(container(&pod(&["a"]), "").unwrap(), "a");
        assert_eq!(container(&pod(&["a", "b"]), "b").unwrap(), "b");
        assert_eq!(
            container(&pod(&["a", "b"]), "").unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b]"
        );
        assert_eq!(container(&pod(&["a"]), "x").unwrap_err().message, "container x is not valid for pod p");
    }
}
