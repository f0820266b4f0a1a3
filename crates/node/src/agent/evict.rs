//! Throws out pods whose disk `emptyDir` grew over its `sizeLimit`.
use std::{sync::Arc, time::Duration};

use api::Quantity;
use k8s_openapi::api::core::v1::Volume;

use super::{
    Shared,
    worker::{Mail, View},
};
use crate::node::Workers;

/// How often usage is measured. Upstream: 10 s.
const EVERY: Duration = Duration::from_secs(10);

/// Runs until dropped.
pub async fn watch(shared: Arc<Shared>, workers: Workers) {
    loop {
        tokio::time::sleep(EVERY).await;
        let all: Vec<_> = workers.lock().values().map(|h| (h.mail.clone(), h.view.borrow().clone())).collect();
        for (mail, view) in all {
            let Some(message) = over_limit(&shared, &view).await else { continue };
            shared.events.pod(&view.pod, None, true, "Evicted", message.clone());
            let _ = mail.send(Mail::Evict { reason: "Evicted".into(), message });
        }
    }
}

/// The limit of a disk `emptyDir`; memory ones are held by the kernel.
fn limit(volume: &Volume) -> Option<(u64, String)> {
    let source = volume.empty_dir.as_ref().filter(|e| e.medium.as_deref() != Some("Memory"))?;
    let text = source.size_limit.as_ref()?.0.clone();
    let bytes = u64::try_from(Quantity::parse(&text).ok()?.value()).ok()?;
    (bytes > 0).then_some((bytes, text))
}

async fn over_limit(shared: &Shared, view: &View) -> Option<String> {
    if matches!(view.status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        return None;
    }
    for volume in view.pod.spec.as_ref()?.volumes.iter().flatten() {
        let Some((limit, text)) = limit(volume) else { continue };
        let Some(ready) = view.volumes.get(&volume.name).cloned() else { continue };
        let volumes = shared.volumes.clone();
        let used = tokio::task::spawn_blocking(move || volumes.usage_bytes(&ready)).await;
        if used.is_ok_and(|u| u.is_ok_and(|bytes| bytes > limit)) {
            return Some(format!("Usage of EmptyDir volume {:?} exceeds the limit {text:?}. ", volume.name));
        }
    }
    None
}
