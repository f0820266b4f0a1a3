//! Volumes of images: pulled for the container that mounts them, as its own image is, and mounted for the pod.
use std::{collections::BTreeMap, sync::Arc};

use base::chain;
use k8s_openapi::api::core::v1::{ImageVolumeSource, Pod, Volume};
use volumes::{Ownership, Ready, Resolved, Source};

use super::{Shared, identity, images};
use crate::{
    core::facts::{Trouble, later},
    spec::container::Member,
};

/// Until a volume that could not be mounted is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_secs(10);

/// Whether a volume is made when a container needs it, and not before the pod starts.
pub fn is_one(volume: &Volume) -> bool {
    volume.image.is_some()
}

/// Makes the volumes of images that a container mounts. Failures have been told as events.
///
/// # Errors
/// What the container waits for, with the reasons of its own image.
pub async fn make(shared: &Arc<Shared>, pod: &Pod, member: &Member) -> Result<BTreeMap<String, Ready>, Trouble> {
    let mut made = BTreeMap::new();
    let mounts = member.container.volume_mounts.as_deref().unwrap_or_default();
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let Some(source) = volume.image.as_ref().filter(|_| mounts.iter().any(|m| m.name == volume.name)) else {
            continue;
        };
        let ready = one(shared, pod, &volume.name, source).await?;
        made.insert(volume.name.clone(), ready);
    }
    Ok(made)
}

async fn one(shared: &Arc<Shared>, pod: &Pod, name: &str, source: &ImageVolumeSource) -> Result<Ready, Trouble> {
    let (image, info) = images::ensure_for_volume(shared, pod, name, source).await?;
    mount(shared, pod, name, &info.id).await.map_err(|why| {
        let text = format!("failed to mount image {image:?} as volume {name:?}: {why}");
        shared.events.pod(pod, None, true, "Failed", format!("Error: {text}"));
        let retry_at = Some(later(shared.clock.now(), RETRY));
        Trouble { reason: "ImageVolumeMountFailed".into(), message: text, retry_at, later: None }
    })
}

async fn mount(shared: &Arc<Shared>, pod: &Pod, name: &str, id: &str) -> Result<Ready, String> {
    let found = shared.runtime.image_layers(id).await.map_err(|e| chain(&e))?;
    let image = found.ok_or("it was removed from this node")?;
    let source = Source::Image { id: image.id, layers: image.layers };
    let resolved = Resolved { source, read_only: true, mount_options: Vec::new() };
    let (volumes, uid, name) = (shared.volumes.clone(), identity(pod).2.to_owned(), name.to_owned());
    let job = tokio::task::spawn_blocking(move || volumes.set_up(&uid, &name, &resolved, &Ownership::default()));
    job.await.map_err(|e| e.to_string())?.map_err(|e| chain(&e))
}
