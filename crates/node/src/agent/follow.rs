//! Lets what containers mount by sub-path follow changes of configMap, secret, downwardAPI and projected volumes, for pods
//! that ask for it.
use std::sync::Arc;

use base::chain;
use k8s_openapi::api::core::v1::Pod;
use runtime::{ContainerState, Mount, PodUid};
use volumes::{Pinned, Ready, Resolved, Source, VolumeError};

use super::{Shared, identity};
use crate::spec::{
    container::{members, volume_mount},
    security::ownership,
};

/// What is told where containers could not be shown what their volumes have by now.
pub fn not_shown(why: &str) -> String {
    format!("containers see files as they were before they changed: {why}")
}

/// Shows the running containers of a pod the present content of its volumes; then what the volumes had before goes.
///
/// # Errors
/// What is still shown as it was; calling again goes on.
pub async fn follow(shared: &Arc<Shared>, pod: &Pod, volumes: Vec<(Resolved, Ready)>) -> Result<(), String> {
    show(shared, pod, volumes.iter().map(|(_, ready)| ready.clone()).collect()).await?;
    let (all, own, uid) = (shared.volumes.clone(), ownership(pod), identity(pod).2.to_owned());
    let job = tokio::task::spawn_blocking(move || {
        volumes.into_iter().try_for_each(|(mut resolved, ready)| {
            if let Source::Files { followed, .. } = &mut resolved.source {
                *followed = false;
            }
            all.set_up(&uid, &ready.volume, &resolved, &own).map(drop)
        })
    });
    job.await.map_err(|e| e.to_string())?.map_err(|e| chain(&e))
}

/// Shows the running containers of a pod the present content of its volumes, where they mount parts of them.
///
/// # Errors
/// What is still shown as it was; calling again goes on.
pub async fn show(shared: &Arc<Shared>, pod: &Pod, volumes: Vec<Ready>) -> Result<(), String> {
    let uid = identity(pod).2.to_owned();
    // No container is made meanwhile: it would meet a pin that is just being replaced.
    let _alone = shared.following.write().await;
    let (all, owner) = (shared.volumes.clone(), uid.clone());
    let job = tokio::task::spawn_blocking(move || {
        let pins = volumes.into_iter().map(|ready| Ok((all.follow(&owner, &ready)?, ready)));
        pins.collect::<Result<Vec<_>, VolumeError>>()
    });
    let pins = job.await.map_err(|e| e.to_string())?.map_err(|e| chain(&e))?;
    let pins: Vec<_> = pins.iter().flat_map(|(pins, ready)| pins.iter().map(move |pin| (pin, ready))).collect();
    if pins.is_empty() {
        return Ok(());
    }
    let sandbox = shared.runtime.status(&PodUid(uid)).await.map_err(|e| chain(&e))?;
    for container in sandbox.iter().flat_map(|s| &s.containers) {
        if !matches!(container.state, ContainerState::Running { .. }) {
            continue;
        }
        let own = pins.iter().filter(|(pin, _)| pin.container == container.name);
        let mounts: Vec<Mount> = own.filter_map(|(pin, ready)| mount_of(pod, pin, ready)).collect();
        if !mounts.is_empty() {
            shared.runtime.remount(&container.id, &mounts).await.map_err(|e| chain(&e))?;
        }
    }
    Ok(())
}

fn mount_of(pod: &Pod, pin: &Pinned, volume: &Ready) -> Option<Mount> {
    let member = members(pod).into_iter().find(|m| m.container.name == pin.container)?;
    let mount = member.container.volume_mounts.as_ref()?.get(pin.index)?;
    volume_mount(mount, pin.host_path.clone(), volume).ok()
}
