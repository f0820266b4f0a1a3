//! A claim may only grow where its class says that its volumes can.
use api::quantity::Quantity;
use serde_json::Value;

use crate::{
    Inner, object,
    status::{ApiError, ApiResult, Subject},
};

const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// Refuses a larger request of a claim that cannot be given more.
pub(super) fn admit(inner: &Inner, new: &Value, old: &Value) -> ApiResult<()> {
    let size = |claim: &Value| claim["spec"]["resources"]["requests"]["storage"].as_str()?.parse::<Quantity>().ok();
    let (Some(wanted), Some(had)) = (size(new), size(old)) else { return Ok(()) };
    if wanted <= had {
        return Ok(());
    }
    let subject = Subject { group: "", resource: "persistentvolumeclaims", name: object::meta(new, "name") };
    if old["status"]["phase"] != "Bound" {
        return Err(ApiError::forbidden(subject, "Only bound persistent volume claims can be expanded"));
    }
    let class = class_of(new);
    let expands = !class.is_empty()
        && class == class_of(old)
        && inner
            .store
            .get(&format!("/storage.k8s.io/storageclasses/{class}"))
            .and_then(|record| serde_json::from_slice::<Value>(&record.value).ok())
            .is_some_and(|class| class["allowVolumeExpansion"] == true);
    if expands {
        return Ok(());
    }
    let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
    Err(ApiError::forbidden(subject, why))
}

fn class_of(claim: &Value) -> &str {
    claim["metadata"]["annotations"][BETA_CLASS]
        .as_str()
        .or_else(|| claim["spec"]["storageClassName"].as_str())
        .unwrap_or_default()
}
