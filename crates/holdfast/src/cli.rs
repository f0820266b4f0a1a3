//! The command line. Scripts rely on it: add, never change.
pub mod volume;

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use crate::up::stand_ins::Wanted as StandIn;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

/// Persistent storage for Kubernetes pods, in one program: API server, controllers, node and container runtime.
#[derive(Parser)]
#[command(name = "holdfast", version, about, max_term_width = 120, propagate_version = false)]
pub struct Cli {
    /// What to log on stderr, as `tracing` filters: warn, info, debug, node=debug,...
    #[arg(long, global = true, env = "HOLDFAST_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run everything in one process, in the foreground
    ///
    /// Needs root, unless --no-node. Prints one line when it is ready. SIGTERM or Ctrl-C ends it; containers keep running
    /// and are adopted by the next start on the same data directory. With no pod left, nothing of it stays on the machine.
    Up(UpArgs),
    /// Serve volumes of this machine as a CSI driver, for any Kubernetes
    ///
    /// Volumes are images whose size is the limit; snapshots, clones, growth and raw block devices included. Needs root, and
    /// mkfs of the filesystems that are used. SIGTERM or Ctrl-C ends it; volumes stay mounted.
    Csi(CsiArgs),
    /// Run the labs end to end on a throw-away data directory
    Demo(DemoArgs),
    /// Import, pull, list and remove container images
    Image(ImageArgs),
    /// List volumes, show their usage, take and restore snapshots, bring deleted ones back, export and import them
    Volume(volume::VolumeArgs),
    /// Create, list and remove disks of the clouds that `up --stand-in` stands in for
    Disk(DiskArgs),
    /// Create or change objects from YAML or JSON files
    Apply(ApplyArgs),
    /// List objects
    Get(GetArgs),
    /// Show one object with its events
    Describe(DescribeArgs),
    /// Explain a claim, volume, pod or class: is its state normal, what does it wait for, what mends it
    Why(WhyArgs),
    /// Delete objects
    Delete(DeleteArgs),
    /// Print a container's log
    Logs(LogsArgs),
    /// Run a command in a container
    Exec(ExecArgs),
    /// Forward local ports to a pod
    PortForward(PortForwardArgs),
    /// Print the version
    Version,
    /// Print a completion script for a shell
    Completion {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
}

/// Prints the completion script.
pub fn completion(shell: clap_complete::Shell) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "holdfast", &mut script);
    std::io::Write::write_all(&mut std::io::stdout(), &script).map_err(crate::errors::unread)
}

/// Default place of all state.
pub const DATA_DIR: &str = "/var/lib/holdfast";

#[derive(Args)]
pub struct DataDir {
    /// Where all state lives
    #[arg(long, env = "HOLDFAST_DATA_DIR", default_value = DATA_DIR, value_name = "DIR")]
    pub data_dir: PathBuf,
}

#[derive(Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub data: DataDir,
    /// Address and port of the Kubernetes API; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:6443", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Where to write the administrator's kubeconfig [default: <data-dir>/admin.kubeconfig]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// API, controllers and scheduler only: run no pods here
    #[arg(long)]
    pub no_node: bool,
    /// Name of this node [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Where CSI drivers find this node and its pods; many have /var/lib/kubelet built in [default: <data-dir>/kubelet]
    #[arg(long, value_name = "DIR")]
    pub kubelet_dir: Option<PathBuf>,
    /// Addresses for pods, a private IPv4 network [default: a free /24 of 10.0.0.0/8]
    #[arg(long, value_name = "CIDR")]
    pub pod_cidr: Option<String>,
    /// What ReadWriteOnce allows: every pod of one node, as Kubernetes has it, or one pod at a time
    #[arg(long, value_enum, default_value_t = RwoScope::Node, value_name = "SCOPE")]
    pub rwo_scope: RwoScope,
    /// Stand in for the storage drivers of clouds with local volumes: gce-pd, aws-ebs, azure-disk, cinder, vsphere; each may
    /// say the zone that this machine is in: gce-pd=us-east1-b
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub stand_in: Vec<StandIn>,
    #[command(flatten)]
    pub volumes: VolumeSettings,
    #[command(flatten)]
    pub deleted: Deleted,
    #[command(flatten)]
    pub registries: Registries,
}

/// What volumes of some types need to know about this machine.
#[derive(Args)]
pub struct VolumeSettings {
    /// Where the drivers of flexVolume are: <vendor~driver>/<driver>. New ones are found while it runs
    #[arg(long, value_name = "DIR", default_value = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec")]
    pub volume_plugin_dir: PathBuf,
    /// Let drivers of flexVolume have the Secrets of their volumes: by the protocol in their arguments, which every user of
    /// this machine can read while they run
    #[arg(long)]
    pub flex_volume_secrets: bool,
    /// A directory of this machine whose git repositories pods may have as gitRepo volumes; may be repeated
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub allow_git_dir: Vec<PathBuf>,
    #[command(flatten)]
    pub flocker: Flocker,
}

/// A path that begins at the root.
fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("write the path from / on".into()) }
}

/// What is in this process's environment for all that go to a server: certificates and proxies.
fn for_clients() -> Vec<(OsString, OsString)> {
    const NAMES: [&str; 5] = ["SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];
    let all = NAMES.iter().flat_map(|name| [(*name).to_owned(), name.to_lowercase()]);
    all.filter_map(|name| Some((OsString::from(&name), std::env::var_os(&name)?))).collect()
}

impl VolumeSettings {
    /// For a node that others know by `address`.
    pub fn settings(&self, address: std::net::IpAddr) -> volumes::Settings {
        volumes::Settings {
            flex_dir: self.volume_plugin_dir.clone(),
            flex_secrets: self.flex_volume_secrets,
            git_dirs: self.allow_git_dir.clone(),
            git_environment: for_clients(),
            addresses: vec![address.to_string()],
            flocker_create_bytes: self.flocker.create_size,
            ..volumes::Settings::default()
        }
    }
}

/// Where Flocker's control service is, and who asks it.
#[derive(Args)]
#[command(next_help_heading = "Flocker")]
pub struct Flocker {
    /// Host name or address of Flocker's control service, as in its certificate
    #[arg(
        long = "flocker-host",
        env = "FLOCKER_CONTROL_SERVICE_HOST",
        default_value = "localhost",
        value_name = "HOST"
    )]
    pub host: String,
    #[arg(long = "flocker-port", env = "FLOCKER_CONTROL_SERVICE_PORT", default_value_t = 4523, value_name = "PORT")]
    pub port: u16,
    /// Certificate of the Flocker cluster
    #[arg(
        long = "flocker-ca-file",
        env = "FLOCKER_CONTROL_SERVICE_CA_FILE",
        default_value = "/etc/flocker/cluster.crt",
        value_name = "FILE"
    )]
    pub ca_file: PathBuf,
    /// Key of the API's user
    #[arg(
        long = "flocker-key-file",
        env = "FLOCKER_CONTROL_SERVICE_CLIENT_KEY_FILE",
        default_value = "/etc/flocker/apiuser.key",
        value_name = "FILE"
    )]
    pub key_file: PathBuf,
    /// Certificate of the API's user
    #[arg(
        long = "flocker-cert-file",
        env = "FLOCKER_CONTROL_SERVICE_CLIENT_CERT_FILE",
        default_value = "/etc/flocker/apiuser.crt",
        value_name = "FILE"
    )]
    pub certificate_file: PathBuf,
    /// Make datasets that volumes name and that do not exist, of this size (10Gi) [default: let the pod wait]
    #[arg(long = "flocker-create-size", value_parser = size, value_name = "SIZE")]
    pub create_size: Option<u64>,
}

impl Flocker {
    pub fn settings(&self) -> flocker::Settings {
        flocker::Settings {
            host: self.host.clone(),
            port: self.port,
            ca_file: self.ca_file.clone(),
            key_file: self.key_file.clone(),
            certificate_file: self.certificate_file.clone(),
        }
    }
}

/// A size as the API writes it.
fn size(text: &str) -> Result<u64, String> {
    let read = api::Quantity::parse(text).ok().and_then(|q| u64::try_from(q.value()).ok());
    // Flocker makes none that is smaller.
    read.filter(|bytes| *bytes >= 64 << 20).ok_or_else(|| "write a size of at least 64Mi, for example 10Gi".into())
}

/// What becomes of volumes that were deleted.
#[derive(Args)]
pub struct Deleted {
    /// How long a deleted volume can be brought back, unless its space is needed: hours
    #[arg(long, default_value_t = 24, value_name = "HOURS")]
    pub keep_deleted: u64,
}

impl Deleted {
    pub fn kept(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.keep_deleted.saturating_mul(3600))
    }
}

#[derive(Args)]
pub struct CsiArgs {
    /// The socket to serve on: a path, or unix:// and a path
    #[arg(long, env = "CSI_ENDPOINT", default_value = "unix:///run/holdfast/csi.sock", value_name = "SOCKET")]
    pub endpoint: String,
    /// Directory of the volumes
    #[arg(long, default_value = "/var/lib/holdfast/volumes", value_name = "DIR")]
    pub pool: PathBuf,
    /// Name of this node [default: the host name]
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Enlarge volumes by the node's call, not by the controller's: for clusters of several machines with one resizer
    #[arg(long)]
    pub grow_on_node: bool,
    #[command(flatten)]
    pub deleted: Deleted,
}

/// Who shares a ReadWriteOnce claim.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RwoScope {
    Node,
    Pod,
}

/// How registries are reached.
#[derive(Args)]
pub struct Registries {
    /// A registry reached over plain HTTP, `host[:port]`; may be repeated. Those on 127.0.0.1 need not be named
    #[arg(long, value_name = "HOST")]
    pub insecure_registry: Vec<String>,
    /// Ask another registry first: `docker.io=mirror.example:5000`, with `http://` before the mirror for plain HTTP; may
    /// be repeated
    #[arg(long, value_name = "HOST=MIRROR")]
    pub registry_mirror: Vec<String>,
}

#[derive(Args)]
pub struct DemoArgs {
    /// Directory of OCI archives to use for the labs' images instead of pulling or making them
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Keep the data directory and say where it is
    #[arg(long)]
    pub keep: bool,
}

const IMAGE_HELP: &str = "\
Names are completed as everywhere: nginx is docker.io/library/nginx:latest. A daemon on the same data directory sees
the images at once.

Examples:
  holdfast image import nginx.tar                         the output of `docker save`, `skopeo copy`, `podman save`
  holdfast image import rootfs.tar.gz --name box:1        a root file system
  holdfast image pull registry.example:5000/team/app:2    as the user in ~/.docker/config.json, if there is one
  holdfast image rm app:2                                 the space comes back once no container uses it";

#[derive(Args)]
#[command(after_help = IMAGE_HELP)]
pub struct ImageArgs {
    #[command(subcommand)]
    pub command: ImageCommand,
}

#[derive(Subcommand)]
pub enum ImageCommand {
    /// Add images from an OCI layout, OCI archive, docker archive or root filesystem tar
    Import {
        /// The file or directory
        file: PathBuf,
        /// Name for the image; needed for a root filesystem tar
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        data: DataDir,
    },
    /// Fetch an image from its registry
    Pull {
        /// `nginx`, `nginx:alpine`, `registry.example/team/app@sha256:...`
        name: String,
        #[command(flatten)]
        data: DataDir,
        #[command(flatten)]
        registries: Registries,
        /// Users and passwords, as `docker login` writes them [default: $DOCKER_CONFIG/config.json, ~/.docker/config.json]
        #[arg(long, env = "REGISTRY_AUTH_FILE", value_name = "FILE")]
        authfile: Option<PathBuf>,
    },
    /// List images
    List {
        #[command(flatten)]
        data: DataDir,
    },
    /// Remove an image's name, or by id the image with all its names; containers that use it go on
    Rm {
        /// Name or id, as `list` shows them
        name: String,
        #[command(flatten)]
        data: DataDir,
    },
}

const DISK_HELP: &str = "\
A disk is called as in manifests of that cloud: pdName, volumeID, diskURI, volumePath, or the volumeHandle of its CSI driver.
Removed disks can come back like other volumes.

Examples:
  holdfast disk create data-1 --stand-in gce-pd --size 20Gi     for gcePersistentDisk: {pdName: data-1}
  holdfast disk create vol-0123456789abcdef0 --stand-in aws-ebs --type io2 --zone us-east-1b
  holdfast disk rm data-1";

#[derive(Args)]
#[command(after_help = DISK_HELP)]
pub struct DiskArgs {
    #[command(subcommand)]
    pub command: DiskCommand,
}

#[derive(Subcommand)]
pub enum DiskCommand {
    /// Make an empty disk; what is on it, its first user says
    Create {
        /// What the disk is called
        name: String,
        /// The cloud: gce-pd, aws-ebs, azure-disk, cinder or vsphere
        #[arg(long, value_name = "CLOUD", value_parser = crate::disk::face)]
        stand_in: &'static driver::stand_in::Face,
        /// Its size [default: the smallest of its type]
        #[arg(long, value_name = "SIZE")]
        size: Option<String>,
        /// Its zone [default: where this machine is]
        #[arg(long, value_name = "ZONE")]
        zone: Option<String>,
        /// Its type, as classes name it: pd-ssd, gp3, Premium_LRS [default: the cloud's]
        #[arg(long = "type", value_name = "TYPE")]
        disk_type: Option<String>,
        #[command(flatten)]
        data: DataDir,
    },
    /// List all disks, also those that claims asked for
    List {
        #[command(flatten)]
        data: DataDir,
    },
    /// Remove a disk that nobody uses
    Rm {
        /// What the disk is called, or its whole name as `list` shows it
        name: String,
        /// The cloud, where several have such a disk
        #[arg(long, value_name = "CLOUD", value_parser = crate::disk::face)]
        stand_in: Option<&'static driver::stand_in::Face>,
        #[command(flatten)]
        data: DataDir,
    },
}

/// How the client commands find the server.
#[derive(Args)]
pub struct Server {
    /// kubeconfig [default: $KUBECONFIG, <data-dir>/admin.kubeconfig if it exists, ~/.kube/config]
    #[arg(long, value_name = "FILE", global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace [default: the kubeconfig's, else default]
    #[arg(short, long, value_name = "NS", global = true)]
    pub namespace: Option<String>,
}

#[derive(Args)]
pub struct ApplyArgs {
    /// YAML or JSON file, `-` for standard input; may be repeated
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Args)]
pub struct GetArgs {
    /// Kind (`pods`, `pv,pvc`, `sc`), or KIND/NAME
    pub kind: String,
    /// Names; none lists all
    pub names: Vec<String>,
    /// table, wide, json, yaml or name
    #[arg(short, long, default_value = "table", value_parser = ["table", "wide", "json", "yaml", "name"])]
    pub output: String,
    /// All namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Label selector
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Args)]
pub struct DescribeArgs {
    /// Kind, or KIND/NAME
    pub kind: String,
    /// Name
    pub name: Option<String>,
    #[command(flatten)]
    pub server: Server,
}

const WHY_HELP: &str = "\
Exit status: 0 if all is normal (also while it waits for something that will come), 3 if somebody has to see to it or it
keeps failing, 1 for errors.

Examples:
  holdfast why pvc/web
  holdfast why pod/web -n shop -o json";

#[derive(Args)]
#[command(after_help = WHY_HELP)]
pub struct WhyArgs {
    /// Kind (`pod`, `pvc`, `pv`, `sc`), or KIND/NAME
    pub kind: String,
    /// Name
    pub name: Option<String>,
    /// text or json
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    pub output: String,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Args)]
pub struct DeleteArgs {
    /// Kind, or KIND/NAME
    pub kind: Option<String>,
    /// Names
    pub names: Vec<String>,
    /// Delete what this YAML or JSON file names
    #[arg(short, long = "filename", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Seconds the object gets to end by itself
    #[arg(long, value_name = "SECONDS")]
    pub grace_period: Option<i64>,
    /// Return at once instead of waiting until it is gone
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Args)]
pub struct LogsArgs {
    /// Pod
    pub pod: String,
    /// Container, where the pod has several
    #[arg(short, long)]
    pub container: Option<String>,
    /// Go on printing
    #[arg(short, long)]
    pub follow: bool,
    /// Of the container's previous run
    #[arg(short, long)]
    pub previous: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    pub tail: Option<i64>,
    /// Begin each line with its time
    #[arg(long)]
    pub timestamps: bool,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Args)]
pub struct ExecArgs {
    /// Pod
    pub pod: String,
    /// Container, where the pod has several
    #[arg(short, long)]
    pub container: Option<String>,
    /// Pass standard input
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Give the command a terminal
    #[arg(short = 't', long)]
    pub tty: bool,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Args)]
pub struct PortForwardArgs {
    /// Pod
    pub pod: String,
    /// `LOCAL:POD`, `PORT` or `:POD` (a free local port)
    #[arg(required = true)]
    pub ports: Vec<String>,
    /// Local address
    #[arg(long, default_value = "127.0.0.1")]
    pub address: std::net::IpAddr,
    #[command(flatten)]
    pub server: Server,
}
