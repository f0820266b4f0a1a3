//! Lets what containers mount by sub-path follow changes of configMap, secret, downwardAPI and projected volumes, for pods
//! that ask for it; and containers see volumes again whose server on this node was killed.
use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use base::chain;
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use runtime::{ContainerState, Mount, PodUid};
use tokio::sync::RwLock;
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
    show_all(shared, pod, volumes, false).await
}

/// The same where they mount all of them, too: what they see may be what somebody served who has ended.
///
/// # Errors
/// As there.
pub async fn show_served(shared: &Arc<Shared>, pod: &Pod, volume: Ready) -> Result<(), String> {
    show_all(shared, pod, vec![volume], true).await
}

async fn show_all(shared: &Arc<Shared>, pod: &Pod, volumes: Vec<Ready>, whole: bool) -> Result<(), String> {
    let uid = identity(pod).2.to_owned();
    // No container is made meanwhile: it would meet a pin that is just being replaced.
    let following = shared.following.of(&uid);
    let _alone = following.write().await;
    let (all, owner) = (shared.volumes.clone(), uid.clone());
    let job = tokio::task::spawn_blocking(move || {
        let pins = volumes.into_iter().map(|ready| Ok((all.follow(&owner, &ready)?, ready)));
        pins.collect::<Result<Vec<_>, VolumeError>>()
    });
    let pins = job.await.map_err(|e| e.to_string())?.map_err(|e| chain(&e))?;
    let mut shown: Vec<(Pinned, &Ready)> = Vec::new();
    for (pins, ready) in &pins {
        shown.extend(pins.iter().map(|pin| (pin.clone(), ready)));
        if whole {
            shown.extend(whole_mounts(pod, ready).into_iter().map(|pin| (pin, ready)));
        }
    }
    if shown.is_empty() {
        return Ok(());
    }
    let sandbox = shared.runtime.status(&PodUid(uid)).await.map_err(|e| chain(&e))?;
    let mut failures = Vec::new();
    for container in sandbox.iter().flat_map(|s| &s.containers) {
        if !matches!(container.state, ContainerState::Running { .. }) {
            continue;
        }
        let own = shown.iter().filter(|(pin, _)| pin.container == container.name);
        let mounts: Vec<Mount> = own.filter_map(|(pin, ready)| mount_of(pod, pin, ready)).collect();
        if !mounts.is_empty() {
            failures.extend(shared.runtime.remount(&container.id, &mounts).await.map_err(|e| chain(&e)).err());
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}

/// The mounts of a pod's containers that show all of a volume.
fn whole_mounts(pod: &Pod, volume: &Ready) -> Vec<Pinned> {
    let is_whole = |path: &Option<String>| path.as_deref().is_none_or(|path| path.is_empty() || path == ".");
    let mut all = Vec::new();
    for member in members(pod) {
        let Container { name, volume_mounts, .. } = &member.container;
        for (index, mount) in volume_mounts.iter().flatten().enumerate() {
            if mount.name == volume.volume && is_whole(&mount.sub_path) && is_whole(&mount.sub_path_expr) {
                all.push(Pinned { container: name.clone(), index, host_path: volume.host_path.clone() });
            }
        }
    }
    all
}

fn mount_of(pod: &Pod, pin: &Pinned, volume: &Ready) -> Option<Mount> {
    let member = members(pod).into_iter().find(|m| m.container.name == pin.container)?;
    let mount = member.container.volume_mounts.as_ref()?.get(pin.index)?;
    volume_mount(mount, pin.host_path.clone(), volume).ok()
}

/// For each pod: held for reading while one of its containers is made, for writing while what they mount is replaced.
#[derive(Default)]
pub struct Following(Mutex<BTreeMap<String, Weak<RwLock<()>>>>);

impl Following {
    /// That of the pod with this UID.
    pub fn of(&self, pod_uid: &str) -> Arc<RwLock<()>> {
        let mut all = self.0.lock();
        all.retain(|_, known| known.strong_count() > 0);
        let known = all.get(pod_uid).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let made = Arc::new(RwLock::default());
            all.insert(pod_uid.to_owned(), Arc::downgrade(&made));
            made
        })
    }
}
