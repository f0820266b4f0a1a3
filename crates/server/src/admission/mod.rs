//! What happens to a new object before it is validated and to a changed one after: one small step per file, in upstream's order.
//!
//! Absent on purpose: webhooks, quotas.
mod defaults;
mod limit_range;
mod namespace;
mod resize;
mod service_account;

use api::Kind;
use serde_json::Value;

use crate::{Inner, status::ApiResult};

/// Runs every step on an object to be created.
pub(crate) async fn create(inner: &Inner, kind: &'static Kind, namespace: &str, object: &mut Value) -> ApiResult<()> {
    namespace::exists(inner, kind, namespace, object)?;
    match (kind.group, kind.kind) {
        ("", "Pod") => {
            limit_range::set_defaults(inner, namespace, object);
            service_account::admit(inner, namespace, object).await?;
            defaults::tolerations(object);
            defaults::priority(inner, object)?;
        }
        ("", "PersistentVolumeClaim") => {
            defaults::finalizer(object, "kubernetes.io/pvc-protection");
            defaults::storage_class(inner, object);
        }
        ("", "PersistentVolume") => defaults::finalizer(object, "kubernetes.io/pv-protection"),
        _ => {}
    }
    Ok(())
}

/// Runs every step on a new object that is valid.
pub(crate) fn check(inner: &Inner, kind: &'static Kind, namespace: &str, object: &Value) -> ApiResult<()> {
    match (kind.group, kind.kind) {
        ("", "Pod") => limit_range::check_pod(inner, namespace, object),
        ("", "PersistentVolumeClaim") => limit_range::check_claim(inner, namespace, object),
        _ => Ok(()),
    }
}

/// Runs every step on an object that is valid and is to replace `old`.
pub(crate) fn update(inner: &Inner, kind: &'static Kind, new: &Value, old: &Value) -> ApiResult<()> {
    match (kind.group, kind.kind) {
        ("", "PersistentVolumeClaim") => {
            limit_range::check_resized(inner, new, old)?;
            resize::admit(inner, new, old)
        }
        _ => Ok(()),
    }
}
