//! Objects are made in namespaces that exist and are not going away.
use api::{Kind, Scope};
use serde_json::Value;

use crate::{
    Inner, object,
    status::{ApiError, ApiResult, Subject},
};

pub(super) fn exists(inner: &Inner, kind: &Kind, namespace: &str, object: &Value) -> ApiResult<()> {
    if kind.scope == Scope::Cluster {
        return Ok(());
    }
    let subject = Subject { group: "", resource: "namespaces", name: namespace };
    let Some(found) = inner.store.get(&format!("/core/namespaces/{namespace}")) else {
        return Err(ApiError::not_found(subject));
    };
    if found.facets.deleting {
        let subject = Subject { group: kind.group, resource: kind.plural, name: object::meta(object, "name") };
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        return Err(ApiError::forbidden(subject, &why).with_cause(
            "NamespaceTerminating",
            &format!("namespace {namespace} is being terminated"),
            "metadata.namespace",
        ));
    }
    Ok(())
}
