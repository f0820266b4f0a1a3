//! Throws out pods that take more of the node's disk than they may: a disk `emptyDir` over its `sizeLimit` that the kernel does
//! not hold, and the `ephemeral-storage` of containers and pods.
use std::{sync::Arc, time::Duration};

use api::{Quantity, pod::limits};
use k8s_openapi::api::core::v1::{Container, PodSpec, Volume};

use super::{
    Shared,
    scratch::{self, Scratch},
    worker::{Mail, View},
};
use crate::node::Workers;

/// How often usage is measured at most. Upstream: every 10 s.
const EVERY: Duration = Duration::from_secs(2);
/// Of its time this takes one part in so many.
const SHARE: u32 = 20;
const STORAGE: &str = "ephemeral-storage";

/// Runs until dropped.
pub async fn watch(shared: Arc<Shared>, workers: Workers) {
    let mut pause = EVERY;
    loop {
        tokio::time::sleep(pause).await;
        let began = tokio::time::Instant::now();
        let all: Vec<_> = workers.lock().values().map(|h| (h.mail.clone(), h.view.borrow().clone())).collect();
        for (mail, view) in all {
            let Some(message) = over_limit(&shared, &view).await else { continue };
            shared.events.pod(&view.pod, None, true, "Evicted", message.clone());
            let _ = mail.send(Mail::Evict { reason: "Evicted".into(), message });
        }
        pause = EVERY.max(began.elapsed() * SHARE);
    }
}

/// The limit of a disk `emptyDir`; those in memory are held by the kernel.
fn limit(volume: &Volume) -> Option<(u64, String)> {
    let source = volume.empty_dir.as_ref().filter(|e| e.medium.as_deref().unwrap_or_default().is_empty())?;
    let text = source.size_limit.as_ref()?.0.clone();
    let bytes = u64::try_from(Quantity::parse(&text).ok()?.value()).ok()?;
    (bytes > 0).then_some((bytes, text))
}

async fn over_limit(shared: &Arc<Shared>, view: &View) -> Option<String> {
    if matches!(view.status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        return None;
    }
    let spec = view.pod.spec.as_ref()?;
    for volume in spec.volumes.iter().flatten() {
        let Some((limit, text)) = limit(volume) else { continue };
        let Some(ready) = view.volumes.get(&volume.name).cloned() else { continue };
        let volumes = shared.volumes.clone();
        let used = tokio::task::spawn_blocking(move || volumes.usage_bytes(&ready)).await;
        if used.is_ok_and(|u| u.is_ok_and(|bytes| bytes > limit)) {
            return Some(format!("Usage of EmptyDir volume {:?} exceeds the limit {text:?}. ", volume.name));
        }
    }
    limits(spec).get(STORAGE)?;
    let (shared, looked) = (shared.clone(), view.clone());
    let measured = tokio::task::spawn_blocking(move || scratch::measure(&shared, &looked)).await;
    too_much(spec, &measured.ok()?.ok()?)
}

/// What upstream says of a pod that takes more than it, or one of its containers, may.
fn too_much(spec: &PodSpec, scratch: &Scratch) -> Option<String> {
    let over = |used: u64, limit: &Quantity| i64::try_from(used).unwrap_or(i64::MAX) > limit.value();
    if let Some(whole) = limits(spec).get(STORAGE).filter(|limit| over(scratch.total_bytes(), limit)) {
        return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {whole}. "));
    }
    let of = |c: &Container| Quantity::try_from(c.resources.as_ref()?.limits.as_ref()?.get(STORAGE)?).ok();
    spec.containers.iter().find_map(|c| {
        let limit = of(c).filter(|limit| limit.value() != 0)?;
        let used = scratch.containers.get(&c.name).map_or(0, |of| of.root_bytes + of.log_bytes);
        let text = limit.to_string();
        over(used, &limit)
            .then(|| format!("Container {} exceeded its local ephemeral storage limit {text:?}. ", c.name))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::scratch::OfContainer, *};

    #[test]
    fn pods_and_containers_have_limits() {
        let container =
            |name: &str, limit: &str| json!({"name": name, "image": "i", "resources": {"limits": {STORAGE: limit}}});
        let spec = serde_json::from_value(json!({"containers": [container("a", "2Mi"), container("b", "1Mi")]}))
            .expect("a spec");
        let mib = |n: u64| n << 20;
        let said = |a: u64, b: u64, volumes: u64, files: u64| {
            let of = |bytes: u64| OfContainer { root_bytes: bytes / 2, log_bytes: bytes - bytes / 2 };
            let containers = [("a".to_owned(), of(a)), ("b".to_owned(), of(b))].into();
            too_much(&spec, &Scratch { containers, volume_bytes: volumes, file_bytes: files }).unwrap_or_default()
        };
        assert_eq!(said(mib(2), mib(1), 0, 0), "");
        let whole = "Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. ";
        assert_eq!(said(mib(2), mib(1), 1, 0), whole);
        assert_eq!(said(0, 0, 0, mib(3) + 1), whole);
        assert_eq!(said(0, mib(1) + 1, 0, 0), "Container b exceeded its local ephemeral storage limit \"1Mi\". ");
    }
}
