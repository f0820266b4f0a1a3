//! Says which directory of the node a container that failed may not write to: the commonest reason why a program that
//! does not run as root ends at once with a volume that is the node's own.
use std::{collections::BTreeMap, os::unix::fs::MetadataExt, sync::Arc};

use k8s_openapi::api::core::v1::Pod;
use volumes::Ready;

use super::Shared;
use crate::spec::container::{Member, field_path};

/// User, group and further groups that a container runs as.
pub type User = (u32, u32, Vec<u32>);

/// Looks, without waiting for the result: a directory may be on a file system that does not answer.
pub fn tell(shared: &Arc<Shared>, pod: &Arc<Pod>, member: &Member, user: &User, ready: &BTreeMap<String, Ready>) {
    // Root may write anywhere.
    if user.0 == 0 {
        return;
    }
    let writes = |name: &str, ready: &Ready| {
        let mounts = member.container.volume_mounts.iter().flatten();
        let mut whole = mounts.filter(|m| m.name == name && m.sub_path.is_none() && m.sub_path_expr.is_none());
        // What the node makes for the pod has the rights that the pod asks for.
        whole.any(|m| m.read_only != Some(true))
            && !ready.read_only
            && !ready.host_path.starts_with(shared.config.layout.pods())
    };
    let candidates: Vec<Ready> = ready.iter().filter(|(name, r)| writes(name, r)).map(|(_, r)| r.clone()).collect();
    if candidates.is_empty() {
        return;
    }
    let (shared, pod, user) = (shared.clone(), pod.clone(), user.clone());
    let path = field_path(member.kind, &member.container.name);
    tokio::task::spawn_blocking(move || {
        for message in candidates.iter().filter_map(|r| refusal(r, &user)) {
            shared.events.pod(&pod, Some(path.clone()), true, "VolumeNotWritable", message);
        }
    });
}

/// The sentence about a directory that the user may not write to.
fn refusal(ready: &Ready, user: &User) -> Option<String> {
    let found = std::fs::metadata(&ready.host_path).ok().filter(std::fs::Metadata::is_dir)?;
    let (uid, gid, mode) = (found.uid(), found.gid(), found.mode() & 0o7777);
    (!may_write((uid, gid, mode), user)).then(|| {
        format!(
            "{} of volume {:?} belongs to user {uid} and group {gid} and has mode {mode:04o}, and the container runs as \
             user {} and group {}",
            ready.host_path.display(),
            ready.volume,
            user.0,
            user.1,
        )
    })
}

/// Whether owner, group and mode of a directory let a user make files in it.
fn may_write((uid, gid, mode): (u32, u32, u32), user: &User) -> bool {
    let shift = match () {
        _ if user.0 == uid => 6,
        _ if user.1 == gid || user.2.contains(&gid) => 3,
        _ => 0,
    };
    mode >> shift & 0o3 == 0o3
}

#[test]
fn the_first_class_that_applies_decides() {
    let user = (1000, 1000, vec![2000]);
    for (directory, wanted) in [
        ((0, 0, 0o755), false),
        ((0, 0, 0o777), true),
        ((1000, 0, 0o755), true),
        ((1000, 0, 0o077), false),
        ((0, 1000, 0o775), true),
        ((0, 2000, 0o2770), true),
        ((0, 2000, 0o757), false),
        ((0, 3000, 0o770), false),
        ((1000, 0, 0o255), false),
    ] {
        assert_eq!(may_write(directory, &user), wanted, "{directory:?}");
    }
}
