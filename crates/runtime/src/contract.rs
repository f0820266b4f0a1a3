//! The contract between the node agent and a container runtime (modelled on the Container Runtime Interface).
use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{broadcast, mpsc},
};

/// Identity of a sandbox: the pod's UID. One sandbox per pod incarnation at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct PodUid(pub String);

/// Identity of one container incarnation: 64 lower-case hexadecimal digits, as in `containerID: holdfast://<id>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ContainerId(pub String);

/// What a pod's containers share: namespaces, address, cgroup parent.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct SandboxSpec {
    pub uid: PodUid,
    pub namespace: String,
    pub name: String,
    /// UTS host name (already cut to 63 characters). Ignored with `host_network`.
    pub hostname: String,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    /// One PID namespace for all containers, held by an init process of ours.
    pub share_process_namespace: bool,
    /// Host ports to forward (`hostPort`); empty with `host_network`.
    pub host_ports: Vec<HostPort>,
    /// Namespaced sysctls, `net.ipv4.ip_unprivileged_port_start` and the like.
    pub sysctls: BTreeMap<String, String>,
    /// Limits of the pod's parent cgroup.
    pub resources: Resources,
}

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct HostPort {
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// cgroup limits; `None` means unlimited.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Resources {
    /// Relative weight in the kernel's v1 unit (2..=262144).
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU per `cpu_period`.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// Bytes.
    pub memory_limit: Option<i64>,
    pub pids_limit: Option<i64>,
    /// Bytes by size of page in bytes; none of the sizes that are not named. Only containers have them.
    #[serde(default)]
    pub huge_pages: BTreeMap<u64, u64>,
    /// Wished `oom_score_adj`; lowering it may be refused by the host, which is not an error.
    pub oom_score_adj: Option<i32>,
}

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct ContainerSpec {
    pub name: String,
    /// How often this container was restarted before; part of the log file's name.
    pub attempt: u32,
    /// Image reference as resolved by [`Runtime::image`].
    pub image: String,
    /// `command` of the pod spec: replaces the image's entrypoint. Empty: the image's.
    pub command: Vec<String>,
    /// `args` of the pod spec: replaces the image's cmd. Empty: the image's (unless `command` is given).
    pub args: Vec<String>,
    /// Complete `NAME=value` additions; win over the image's own environment.
    pub env: Vec<(String, String)>,
    /// `None`: the image's.
    pub working_dir: Option<String>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    pub user: User,
    pub resources: Resources,
    pub privileged: bool,
    pub read_only_root: bool,
    /// `allowPrivilegeEscalation: false`.
    pub no_new_privileges: bool,
    /// Capability names without `CAP_`; `ALL` allowed. Applied to the runtime's default set, drop before add.
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub seccomp: Seccomp,
    pub tty: bool,
    /// Keep an open stdin for `attach`.
    pub stdin: bool,
    pub stdin_once: bool,
    /// Absolute path of the log file to write (CRI format); its directory is made by the runtime.
    pub log_path: PathBuf,
    /// PID namespace of another container of the pod (`targetContainerName` of an ephemeral container).
    pub pid_of: Option<ContainerId>,
    /// `procMount: Unmasked`.
    pub unmasked_proc: bool,
}

/// Numeric user; names from the image (`USER www-data`) are resolved by the runtime against the image's `/etc/passwd`.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct User {
    /// `None`: the image's user.
    pub uid: Option<u32>,
    /// `None`: the primary group of the user in the image, else 0.
    pub gid: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    /// Also add the groups that the image's `/etc/group` lists for the user (`supplementalGroupsPolicy: Merge`).
    pub merge_image_groups: bool,
    /// Fail with [`RuntimeError::RootRefused`] if the resolved user is 0 or a name that cannot be verified.
    pub must_not_be_root: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Propagation {
    /// `None`
    Private,
    HostToContainer,
    Bidirectional,
}

/// A bind mount of a host file or directory that exists.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Mount {
    pub host_path: PathBuf,
    /// Absolute, inside the container; missing parents are made inside the root filesystem only.
    pub container_path: PathBuf,
    pub read_only: bool,
    pub recursive_read_only: bool,
    pub propagation: Propagation,
    /// Files of the first group are seen as the second's, and the other way round. The mount's own, not of those below it.
    #[serde(default)]
    pub group_map: Option<(u32, u32)>,
}

/// A device node shown to the container (`volumeDevices`).
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Device {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    /// Subset of `rwm`.
    pub permissions: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Seccomp {
    #[default]
    Unconfined,
    RuntimeDefault,
    Localhost(PathBuf),
}

#[derive(Debug, Clone)]
pub struct SandboxStatus {
    pub spec: SandboxSpec,
    /// Empty with `host_network`. First is the primary one.
    pub ips: Vec<IpAddr>,
    pub created_at: Timestamp,
    /// False if a namespace is gone (reboot): the sandbox must be removed and made anew.
    pub ready: bool,
    pub containers: Vec<ContainerStatus>,
}

#[derive(Debug, Clone)]
pub struct ContainerStatus {
    pub id: ContainerId,
    pub name: String,
    pub attempt: u32,
    pub image: String,
    /// Digest reference of the image that runs, `docker.io/library/nginx@sha256:...`, or its config digest.
    pub image_id: String,
    pub created_at: Timestamp,
    pub state: ContainerState,
    /// Numeric user the process runs as.
    pub user: (u32, u32, Vec<u32>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    Created,
    Running {
        started_at: Timestamp,
        pid: u32,
    },
    Exited {
        started_at: Timestamp,
        finished_at: Timestamp,
        exit_code: i32,
        reason: ExitReason,
    },
    /// The shim is gone and the exit code with it (reboot, shim killed). Upstream: `ContainerStatusUnknown`, exit code 137.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    Completed,
    Error,
    OomKilled,
    /// Could not be started: command not found and the like (`StartError`, exit code 128).
    StartError(String),
}

/// Something about a container changed; look again. Lagging receivers must list.
#[derive(Debug, Clone)]
pub struct RuntimeEvent {
    pub pod: PodUid,
    pub container: Option<ContainerId>,
}

/// What an image is made of.
#[derive(Debug, Clone)]
pub struct ImageLayers {
    /// Its identity, `sha256:...`.
    pub id: String,
    /// Directories for overlayfs, top-most first.
    pub layers: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct ImageInfo {
    /// Digest of the image's configuration, `sha256:...`.
    pub id: String,
    /// `name@sha256:...`, where known.
    pub repo_digests: Vec<String>,
    pub repo_tags: Vec<String>,
    /// Bytes of the unpacked layers.
    pub size_bytes: u64,
    /// `USER` of the image.
    pub user: Option<String>,
    /// The name asked for came by an import and by no pull since, so that policy `Always` asks no registry about it.
    /// In lists: any of its names did.
    pub imported: bool,
    /// Everybody may use it by the name asked for; if not, ask [`Runtime::may_use`]. In lists: meaningless.
    pub everybodys: bool,
}

/// Registry credentials for one pull, in the order to try; from imagePullSecrets.
#[derive(Debug, Clone, Default)]
pub struct RegistryAuth {
    /// Registry host (and optional path prefix), user name, password.
    pub entries: Vec<(String, String, String)>,
}

impl RegistryAuth {
    /// Adds the users of a docker configuration file, as image pull secrets hold them. What cannot be read is skipped.
    pub fn add_docker_config(&mut self, bytes: &[u8]) {
        let found = images::Credentials::of_docker_config(bytes).unwrap_or_default();
        self.entries.extend(found.into_iter().map(|c| (c.registry, c.user, c.password)));
    }
}

#[derive(Debug, Clone)]
pub struct ExecSpec {
    pub command: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
}

/// Terminal size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TermSize {
    pub width: u16,
    pub height: u16,
}

pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A running exec or an attachment. Dropping it ends an exec's process and detaches an attachment.
pub struct Session {
    /// Present if stdin was asked for. Dropping it closes the process's stdin.
    pub stdin: Option<Writer>,
    pub stdout: Option<Reader>,
    /// Absent with a tty.
    pub stderr: Option<Reader>,
    /// Present with a tty.
    pub resize: Option<mpsc::Sender<TermSize>>,
    /// Resolves with the exit code. For an attachment: when the container ended.
    pub exit: tokio::sync::oneshot::Receiver<i32>,
}

#[derive(Debug, Clone)]
pub struct ExecOutput {
    pub exit_code: i32,
    /// stdout and stderr together, cut at 16 KiB.
    pub output: Vec<u8>,
}

/// Usage of one container or pod cgroup.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    pub cpu_nanoseconds: u64,
    pub memory_working_set_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("container {0} is not known")]
    NoContainer(String),
    #[error("pod {0} has no sandbox")]
    NoSandbox(String),
    #[error("container {0} is not running")]
    NotRunning(String),
    #[error("image {image} is not present; pull or import it first")]
    NoImage { image: String },
    #[error("invalid image name {image:?}: {why}")]
    BadImageName { image: String, why: String },
    #[error("failed to pull image {image}")]
    Pull {
        image: String,
        /// No answer from the registry (no route, no such host, refused, timed out); what it said is no business of this.
        unreachable: bool,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The message is upstream's.
    #[error("container has runAsNonRoot and image will run as root")]
    RootRefused,
    #[error("container has runAsNonRoot and image has non-numeric user ({0}), cannot verify user is non-root")]
    UserUnverifiable(String),
    /// The program could not be started: not found, not executable, bad working directory.
    #[error("failed to start {container}: {why}")]
    Start { container: String, why: String },
    #[error("command timed out after {0:?}")]
    Timeout(Duration),
    #[error("{action}")]
    Io {
        action: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Other(String),
}

/// A container runtime. All calls are idempotent (R2).
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Makes (or completes) the pod's sandbox and returns its state.
    async fn run_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxStatus, RuntimeError>;
    /// Kills what still runs in the sandbox, removes its containers, namespaces, network, cgroup and records.
    async fn remove_sandbox(&self, uid: &PodUid) -> Result<(), RuntimeError>;
    /// Everything that exists, from disk and the kernel, not from memory of earlier calls.
    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError>;
    /// One sandbox with its containers.
    async fn status(&self, uid: &PodUid) -> Result<Option<SandboxStatus>, RuntimeError>;
    /// Changes of any container's state.
    fn events(&self) -> broadcast::Receiver<RuntimeEvent>;

    /// Finds a local image by name, digest or id; names are normalised (`nginx` = `docker.io/library/nginx:latest`).
    async fn image(&self, name: &str) -> Result<Option<ImageInfo>, RuntimeError>;
    /// Finds a local image, makes sure that its layers are unpacked, and says what it is made of. It counts as in use for a
    /// while, so that its user can make sure that it is seen.
    async fn image_layers(&self, name: &str) -> Result<Option<ImageLayers>, RuntimeError>;
    /// Whether one of these users may use the local image of that name, because the registry gave it to the same user
    /// before. False does not mean that the registry would not.
    async fn may_use(&self, name: &str, auth: &RegistryAuth) -> Result<bool, RuntimeError>;
    /// Pulls an image and returns it.
    async fn pull(&self, name: &str, auth: &RegistryAuth) -> Result<ImageInfo, RuntimeError>;
    /// Lists local images.
    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError>;

    /// Makes a container's root filesystem and shim; does not run its program.
    async fn create(&self, pod: &PodUid, spec: &ContainerSpec) -> Result<ContainerId, RuntimeError>;
    /// Runs the program. A program that cannot be started gives [`RuntimeError::Start`] and leaves the container exited with 128.
    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError>;
    /// SIGTERM (or the image's stop signal), then SIGKILL after `grace`; returns when the program has ended.
    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError>;
    /// Removes an ended container (kills a running one), its writable layer and shim. Its log stays.
    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// Shows what is at the host paths of some of a running container's mounts by now, at one instant each.
    async fn remount(&self, id: &ContainerId, mounts: &[Mount]) -> Result<(), RuntimeError>;

    /// Runs a command in a running container.
    async fn exec(&self, id: &ContainerId, spec: &ExecSpec) -> Result<Session, RuntimeError>;
    /// Runs a command and collects its output; kills it after `timeout` with [`RuntimeError::Timeout`].
    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError>;
    /// Connects to a running container's own streams.
    async fn attach(&self, id: &ContainerId, stdin: bool) -> Result<Session, RuntimeError>;
    /// Connects to `localhost:port` inside the pod's network namespace.
    async fn dial(&self, uid: &PodUid, port: u16) -> Result<tokio::net::TcpStream, RuntimeError>;
    /// Closes and reopens the log file after a rotation by rename.
    async fn reopen_log(&self, id: &ContainerId) -> Result<(), RuntimeError>;
    /// Where what a container writes to its root filesystem lies on this machine, if that can be said.
    fn writable_layer(&self, id: &ContainerId) -> Option<PathBuf> {
        let _ = id;
        None
    }
    /// Usage of a container.
    async fn usage(&self, id: &ContainerId) -> Result<Usage, RuntimeError>;
}
