//! The security context that holds for one container: the container's own word wins over the pod's.
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile};
use runtime::{Seccomp, User};
use volumes::Ownership;

/// What a container runs as.
#[derive(Debug, Clone)]
pub struct Effective {
    pub user: User,
    pub privileged: bool,
    pub read_only_root: bool,
    pub no_new_privileges: bool,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub seccomp: Seccomp,
    pub unmasked_proc: bool,
}

/// Merges the two contexts. `profiles` is the directory of `Localhost` seccomp profiles.
///
/// # Errors
/// Upstream's text, if the container asks for root and forbids it at once.
pub fn effective(pod: &Pod, container: &Container, profiles: &Path) -> Result<Effective, String> {
    let wide = pod.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let id = |v: Option<i64>| v.and_then(|v| u32::try_from(v).ok());
    let uid = id(own.run_as_user.or(wide.run_as_user));
    let non_root = own.run_as_non_root.or(wide.run_as_non_root) == Some(true);
    if non_root && uid == Some(0) {
        return Err(format!(
            "container's runAsUser breaks non-root policy (pod: {:?}, container: {})",
            pod_label(pod),
            container.name
        ));
    }
    let mut groups: Vec<u32> = id(wide.fs_group).into_iter().collect();
    groups.extend(wide.supplemental_groups.iter().flatten().filter_map(|g| id(Some(*g))));
    let privileged = own.privileged == Some(true);
    let caps = own.capabilities.unwrap_or_default();
    let bare = |list: Option<Vec<String>>| {
        list.unwrap_or_default().into_iter().map(|c| c.strip_prefix("CAP_").map(str::to_owned).unwrap_or(c)).collect()
    };
    Ok(Effective {
        user: User {
            uid,
            gid: id(own.run_as_group.or(wide.run_as_group)),
            supplemental_groups: groups,
            merge_image_groups: wide.supplemental_groups_policy.as_deref() != Some("Strict"),
            must_not_be_root: non_root,
        },
        privileged,
        read_only_root: own.read_only_root_filesystem == Some(true),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        cap_add: bare(caps.add),
        cap_drop: bare(caps.drop),
        seccomp: if privileged {
            Seccomp::Unconfined
        } else {
            seccomp(own.seccomp_profile.as_ref().or(wide.seccomp_profile.as_ref()), profiles)
        },
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
    })
}

fn seccomp(profile: Option<&SeccompProfile>, profiles: &Path) -> Seccomp {
    match profile.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) => Seccomp::RuntimeDefault,
        Some(("Localhost", Some(name))) => Seccomp::Localhost(profiles.join(name)),
        _ => Seccomp::Unconfined,
    }
}

/// `name_namespace(uid)`, as upstream's messages name a pod.
pub fn pod_label(pod: &Pod) -> String {
    let m = &pod.metadata;
    let text = |v: &Option<String>| v.clone().unwrap_or_default();
    format!("{}_{}({})", text(&m.name), text(&m.namespace), text(&m.uid))
}

/// The ownership that the pod wants on its volumes.
pub fn ownership(pod: &Pod) -> Ownership {
    let annotations = pod.metadata.annotations.as_ref();
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    Ownership {
        fs_group: context.and_then(|c| c.fs_group).and_then(|g| u32::try_from(g).ok()),
        on_root_mismatch: context.and_then(|c| c.fs_group_change_policy.as_deref()) == Some("OnRootMismatch"),
        mapped: annotations.and_then(|a| a.get(MAP_FS_GROUP)).is_some_and(|v| v == "true"),
        ..Ownership::default()
    }
}

/// A pod's annotation: with `OnRootMismatch`, volumes that were given to another group whole are shown as the pod's.
const MAP_FS_GROUP: &str = "holdfast.dev/map-fs-group";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(pod: serde_json::Value, own: serde_json::Value) -> Result<Effective, String> {
        let p: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"securityContext": pod, "containers": [{"name": "c", "securityContext": own}]}}))
        .expect("valid");
        effective(&p, &p.spec.as_ref().expect("spec").containers[0], Path::new("/profiles"))
    }

    #[test]
    fn the_container_wins() {
        let pod = json!({"runAsUser": 3000, "runAsGroup": 3001, "fsGroup": 3003, "supplementalGroups": [3002]});
        let e = merged(pod.clone(), json!({})).expect("fine");
        assert_eq!((e.user.uid, e.user.gid), (Some(3000), Some(3001)));
        assert_eq!(e.user.supplemental_groups, [3003, 3002]);
        assert!(e.user.merge_image_groups && !e.user.must_not_be_root);
        let e = merged(pod, json!({"runAsUser": 4000, "runAsNonRoot": true})).expect("fine");
        assert_eq!((e.user.uid, e.user.gid, e.user.must_not_be_root), (Some(4000), Some(3001), true));
        let e = merged(json!({"supplementalGroupsPolicy": "Strict"}), json!({})).expect("fine");
        assert!(!e.user.merge_image_groups);
    }

    #[test]
    fn root_asked_for_and_forbidden() {
        let e = merged(json!({"runAsNonRoot": true}), json!({"runAsUser": 0})).expect_err("contradiction");
        assert_eq!(e, "container's runAsUser breaks non-root policy (pod: \"p_ns(u)\", container: c)");
        assert!(merged(json!({"runAsNonRoot": true}), json!({"runAsUser": 0, "runAsNonRoot": false})).is_ok());
    }

    #[test]
    fn seccomp_and_capabilities() {
        let pod = json!({"seccompProfile": {"type": "RuntimeDefault"}});
        assert_eq!(merged(pod.clone(), json!({})).expect("fine").seccomp, Seccomp::RuntimeDefault);
        assert_eq!(merged(pod.clone(), json!({"privileged": true})).expect("fine").seccomp, Seccomp::Unconfined);
        let local = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "a/b.json"}});
        assert_eq!(merged(pod, local).expect("fine").seccomp, Seccomp::Localhost("/profiles/a/b.json".into()));
        let e = merged(json!({}), json!({"capabilities": {"add": ["CAP_NET_ADMIN"], "drop": ["ALL"]}})).expect("fine");
        assert_eq!((e.cap_add, e.cap_drop), (vec!["NET_ADMIN".into()], vec!["ALL".into()]));
    }
}
