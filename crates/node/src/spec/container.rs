//! Puts sandbox and container specifications together.
use std::path::{Path, PathBuf};

use api::pod::is_sidecar;
use base::Layout;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, VolumeDevice, VolumeMount};
use runtime::{ContainerId, ContainerSpec, Device, HostPort, Mount, PodUid, Propagation, SandboxSpec};

use volumes::Ready;

use super::{expand::expand, hosts, resources, security};

/// Which of the pod's lists a container is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Init,
    /// An init container with `restartPolicy: Always`.
    Sidecar,
    Main,
    Ephemeral,
}

/// One container of a pod, wherever it is listed.
#[derive(Debug, Clone)]
pub struct Member {
    pub kind: Kind,
    pub container: Container,
    /// `targetContainerName` of an ephemeral container.
    pub target: Option<String>,
}

/// All containers in the order init, main, ephemeral.
pub fn members(pod: &Pod) -> Vec<Member> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let init = spec.init_containers.iter().flatten().map(|c| Member {
        kind: if is_sidecar(c) { Kind::Sidecar } else { Kind::Init },
        container: c.clone(),
        target: None,
    });
    let main = spec.containers.iter().map(|c| Member { kind: Kind::Main, container: c.clone(), target: None });
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|e| Member {
        kind: Kind::Ephemeral,
        container: as_container(e),
        target: e.target_container_name.clone().filter(|t| !t.is_empty()),
    });
    init.chain(main).chain(ephemeral).collect()
}

/// The field path that events name a container by.
pub fn field_path(kind: Kind, name: &str) -> String {
    let list = match kind {
        Kind::Init | Kind::Sidecar => "initContainers",
        Kind::Main => "containers",
        Kind::Ephemeral => "ephemeralContainers",
    };
    format!("spec.{list}{{{name}}}")
}

fn as_container(e: &EphemeralContainer) -> Container {
    let e = e.clone();
    Container {
        name: e.name,
        image: e.image,
        command: e.command,
        args: e.args,
        working_dir: e.working_dir,
        ports: e.ports,
        env_from: e.env_from,
        env: e.env,
        resources: e.resources,
        volume_mounts: e.volume_mounts,
        volume_devices: e.volume_devices,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        image_pull_policy: e.image_pull_policy,
        security_context: e.security_context,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        tty: e.tty,
        ..Container::default()
    }
}

/// The sandbox that the pod asks for.
pub fn sandbox(pod: &Pod, cluster_domain: &str) -> SandboxSpec {
    let meta = &pod.metadata;
    let spec = pod.spec.clone().unwrap_or_default();
    let host_network = spec.host_network == Some(true);
    let ports = |c: &Container| c.ports.clone().unwrap_or_default();
    let init = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c));
    let host_ports = spec
        .containers
        .iter()
        .chain(init)
        .flat_map(ports)
        .filter_map(|p| {
            Some(HostPort {
                host_ip: p.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
                host_port: p.host_port.and_then(|v| u16::try_from(v).ok()).filter(|v| *v > 0)?,
                container_port: u16::try_from(p.container_port).ok()?,
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
            })
        })
        .collect();
    let sysctls = spec.security_context.as_ref().and_then(|c| c.sysctls.clone()).unwrap_or_default();
    SandboxSpec {
        uid: PodUid(meta.uid.clone().unwrap_or_default()),
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        hostname: hosts::names(pod, cluster_domain).hostname,
        host_network,
        host_pid: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        share_process_namespace: spec.share_process_namespace == Some(true),
        host_ports: if host_network { Vec::new() } else { host_ports },
        sysctls: sysctls.into_iter().map(|s| (s.name, s.value)).collect(),
        resources: resources::pod(pod),
    }
}

/// The longest name of a file, in bytes.
const NAME_MAX: usize = 255;

/// Directory of all logs of a pod. A pod's name may be as long as that of a file alone: its end is cut off then.
pub fn log_dir(layout: &Layout, namespace: &str, name: &str, uid: &str) -> PathBuf {
    let room = NAME_MAX.saturating_sub(namespace.len() + uid.len() + 2);
    let name: String = name.chars().take(room).collect();
    layout.logs().join(format!("{namespace}_{name}_{uid}"))
}

/// The log of one incarnation of a container.
pub fn log_path(layout: &Layout, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
    let text = |v: &Option<String>| v.clone().unwrap_or_default();
    let m = &pod.metadata;
    log_dir(layout, &text(&m.namespace), &text(&m.name), &text(&m.uid)).join(container).join(format!("{attempt}.log"))
}

/// The file that a container writes its termination message to, on the host.
pub fn message_path(layout: &Layout, pod_uid: &str, container: &str, attempt: u32) -> PathBuf {
    layout.pods().join(pod_uid).join("containers").join(container).join(attempt.to_string())
}

/// Where the container sees its termination message file.
pub fn message_mount(container: &Container) -> &str {
    container.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/dev/termination-log")
}

/// Upstream's rules for `recursiveReadOnly`.
pub fn recursive_read_only(mount: &VolumeMount) -> Result<bool, String> {
    let mode = match mount.recursive_read_only.as_deref() {
        None | Some("" | "Disabled") => return Ok(false),
        Some(mode) => mode,
    };
    if mount.read_only != Some(true) {
        return Err(format!("volume {:?} requested recursive read-only mode, but it is not read-only", mount.name));
    }
    match (mode, mount.mount_propagation.as_deref()) {
        (_, Some(p)) if p != "None" => Err(format!(
            "volume {:?} requested recursive read-only mode, but it is not compatible with propagation {p:?}",
            mount.name
        )),
        ("IfPossible" | "Enabled", _) => Ok(true),
        _ => Err(format!("unknown recursive read-only mode {mode:?}")),
    }
}

/// The mount of a volume that is ready at `host_path`.
pub fn volume_mount(mount: &VolumeMount, host_path: PathBuf, volume: &Ready) -> Result<Mount, String> {
    let path = Path::new(&mount.mount_path);
    Ok(Mount {
        host_path,
        container_path: if path.is_absolute() { path.into() } else { Path::new("/").join(path) },
        read_only: volume.read_only || mount.read_only == Some(true),
        group_map: volume.group_map.map(|map| (map.from, map.to)),
        recursive_read_only: recursive_read_only(mount)?,
        propagation: match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => Propagation::HostToContainer,
            Some("Bidirectional") => Propagation::Bidirectional,
            _ => Propagation::Private,
        },
    })
}

/// The node of a block device that is ready at `host_path`.
pub fn volume_device(device: &VolumeDevice, host_path: PathBuf, read_only: bool) -> Device {
    let permissions = if read_only { "r" } else { "rwm" };
    Device { host_path, container_path: Path::new("/").join(&device.device_path), permissions: permissions.into() }
}

/// What [`container`] needs beyond the pod's specification.
pub struct Parts<'a> {
    pub layout: &'a Layout,
    pub attempt: u32,
    pub env: Vec<(String, String)>,
    /// Volumes, hosts file and the like, complete.
    pub mounts: Vec<Mount>,
    /// Block devices (`volumeDevices`).
    pub devices: Vec<Device>,
    pub pid_of: Option<ContainerId>,
    pub node_memory_bytes: i64,
}

/// The container that the runtime is asked to make.
///
/// # Errors
/// Upstream's text, if the security context contradicts itself.
pub fn container(pod: &Pod, member: &Member, parts: Parts<'_>) -> Result<ContainerSpec, String> {
    let c = &member.container;
    let security = security::effective(pod, c, &parts.layout.root().join("seccomp"))?;
    let vars: std::collections::BTreeMap<_, _> = parts.env.iter().cloned().collect();
    let words = |list: &Option<Vec<String>>| {
        list.iter().flatten().map(|w| expand(w, &|name| vars.get(name).cloned())).collect::<Vec<_>>()
    };
    Ok(ContainerSpec {
        name: c.name.clone(),
        attempt: parts.attempt,
        image: c.image.clone().unwrap_or_default(),
        command: words(&c.command),
        args: words(&c.args),
        env: parts.env,
        working_dir: c.working_dir.clone().filter(|d| !d.is_empty()),
        mounts: parts.mounts,
        devices: parts.devices,
        user: security.user,
        resources: resources::container(pod, c, parts.node_memory_bytes),
        privileged: security.privileged,
        read_only_root: security.read_only_root,
        no_new_privileges: security.no_new_privileges,
        cap_add: security.cap_add,
        cap_drop: security.cap_drop,
        seccomp: security.seccomp,
        tty: c.tty == Some(true),
        stdin: c.stdin == Some(true),
        stdin_once: c.stdin_once == Some(true),
        log_path: log_path(parts.layout, pod, &c.name, parts.attempt),
        pid_of: parts.pid_of,
        unmasked_proc: security.unmasked_proc,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn logs_of_a_pod_with_a_long_name_have_a_directory() {
        let uid = "0f5a7a0e-8c5b-4f0e-9d3b-111111111111";
        let dir = log_dir(&Layout::new("/d"), &"n".repeat(63), &"p".repeat(253), uid);
        let name = dir.file_name().and_then(|n| n.to_str()).expect("a name");
        assert_eq!((name.len(), name.matches('_').count()), (NAME_MAX, 2));
        assert!(name.starts_with("nnn") && name.ends_with(uid));
        assert!(log_dir(&Layout::new("/d"), "n", "p", uid).ends_with(format!("n_p_{uid}")));
    }

    #[test]
    fn recursive_read_only_rules() {
        for (mount, want) in [
            (json!({}), Ok(false)),
            (json!({"readOnly": true, "recursiveReadOnly": "Disabled"}), Ok(false)),
            (json!({"readOnly": true, "recursiveReadOnly": "Enabled"}), Ok(true)),
            (json!({"readOnly": true, "recursiveReadOnly": "IfPossible", "mountPropagation": "None"}), Ok(true)),
            (json!({"recursiveReadOnly": "Enabled"}), Err("not read-only")),
            (
                json!({"readOnly": true, "recursiveReadOnly": "Enabled", "mountPropagation": "HostToContainer"}),
                Err("not compatible with propagation \"HostToContainer\""),
            ),
            (
                json!({"readOnly": true, "recursiveReadOnly": "Maybe"}),
                Err("unknown recursive read-only mode \"Maybe\""),
            ),
        ] {
            let mut m = json!({"name": "v", "mountPath": "/v"});
            m.as_object_mut().expect("object").extend(mount.as_object().expect("object").clone());
            let got = recursive_read_only(&serde_json::from_value(m).expect("valid"));
            match (got, want) {
                (Ok(g), Ok(w)) => assert_eq!(g, w, "{mount}"),
                (Err(g), Err(w)) => assert!(g.contains(w), "{g}"),
                (g, w) => panic!("{mount}: {g:?}, wanted {w:?}"),
            }
        }
    }

    #[test]
    fn sandboxes_and_containers() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {
            "initContainers": [{"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 9, "hostPort": 99}]}],
            "containers": [{"name": "c", "command": ["sh", "$(A)"], "args": ["$(B)"], "image": "i",
                "ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]}],
            "securityContext": {"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]}}}))
        .expect("valid");
        let s = sandbox(&pod, "cluster.local");
        assert_eq!(
            s.host_ports.iter().map(|p| (p.host_port, p.container_port)).collect::<Vec<_>>(),
            [(8080, 80), (99, 9)]
        );
        assert_eq!((s.hostname.as_str(), s.sysctls.len()), ("p", 1));
        let all = members(&pod);
        assert_eq!(all.iter().map(|m| m.kind).collect::<Vec<_>>(), [Kind::Sidecar, Kind::Main]);
        let layout = Layout::new("/d");
        let parts = Parts {
            layout: &layout,
            attempt: 2,
            env: vec![("A".into(), "1".into())],
            mounts: Vec::new(),
            devices: Vec::new(),
            pid_of: None,
            node_memory_bytes: 1 << 30,
        };
        let c = container(&pod, &all[1], parts).expect("fine");
        assert_eq!((c.command, c.args), (vec!["sh".into(), "1".into()], vec!["$(B)".into()]));
        assert_eq!(c.log_path, Path::new("/d/logs/ns_p_u/c/2.log"));
    }
}
