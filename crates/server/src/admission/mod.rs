//! What happens to a new object before it is validated and to a changed one after: one small step per file, in upstream's order.
//!
//! Absent on purpose: webhooks.
mod defaults;
mod limit_range;
mod namespace;
mod quota;
mod resize;
mod service_account;

use api::Kind;
use serde_json::Value;

pub(crate) use self::quota::{Held, Ledgers};
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
        ("storage.k8s.io", "VolumeAttributesClass") => defaults::finalizer(object, "kubernetes.io/vac-protection"),
        _ => {}
    }
    Ok(())
}

/// Runs every step on a new object that is valid. What comes back is kept until the object is stored.
pub(crate) async fn check(inner: &Inner, kind: &'static Kind, namespace: &str, object: &Value) -> ApiResult<Held> {
    match (kind.group, kind.kind) {
        ("", "Pod") => limit_range::check_pod(inner, namespace, object)?,
        ("", "PersistentVolumeClaim") => limit_range::check_claim(inner, namespace, object)?,
        _ => {}
    }
    quota::admit(inner, kind, namespace, object, None).await
}

/// Runs every step on an object that is valid and is to replace `old`. What comes back is kept until it is stored.
pub(crate) async fn update(inner: &Inner, kind: &'static Kind, new: &Value, old: &Value) -> ApiResult<Held> {
    match (kind.group, kind.kind) {
        ("", "PersistentVolumeClaim") => {
            limit_range::check_resized(inner, new, old)?;
            resize::admit(inner, new, old)?;
            quota::admit(inner, kind, crate::object::meta(new, "namespace"), new, Some(old)).await
        }
        ("", "Service") => quota::admit(inner, kind, crate::object::meta(new, "namespace"), new, Some(old)).await,
        _ => Ok(Held::default()),
    }
}
