//! `glusterfs`: volumes of GlusterFS, mounted by its own client, which serves one pod's volume, and outlives this process.
//!
//! In the volume's directory: `data`, where the client mounts; `client`, the record of its process; `glusterfs.log`, its log.
//! Source: Kubernetes 1.25, `pkg/volume/glusterfs`; GlusterFS 10, `mount.glusterfs`.
use std::{
    ffi::{OsStr, OsString},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    sync::mpsc::{RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Endpoints, GlusterfsVolumeSource, PersistentVolume, Pod};
use sys::{Handle, Program, Reach};

use crate::{
    contract::{Inputs, Machine, Ownership, Ready, Resolved, Served, Source, VolumePlugin},
    error::VolumeError,
    place::{PRIVATE, ensure_dir, failed, if_found, unmount_from_server},
    plugins::{DATA, mismatch, ready, tear_down_dir},
};

/// A volume of GlusterFS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlusterVolume {
    /// Addresses of the servers that are asked what the volume consists of, as the Endpoints object has them.
    pub servers: Vec<String>,
    /// Namespace and name of that object.
    pub endpoints: (String, String),
    /// Name of the volume, and of a directory in it.
    pub path: String,
    pub read_only: bool,
    /// As after `mount -o`, one each.
    pub mount_options: Vec<String>,
}

/// A pod's own volume.
pub(crate) fn inline(pod: &Pod, s: &GlusterfsVolumeSource, inputs: &Inputs) -> Result<Resolved, VolumeError> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let read_only = s.read_only == Some(true);
    let of = Volume { namespace, endpoints: &s.endpoints, path: &s.path, read_only };
    resolved(&of, Vec::new(), inputs)
}

/// A persistent volume, as a pod uses it; `None`: it is of another kind.
pub(crate) fn persistent(
    pod: &Pod,
    volume: &PersistentVolume,
    read_only: bool,
    inputs: &Inputs,
) -> Option<Result<Resolved, VolumeError>> {
    let spec = volume.spec.as_ref()?;
    let s = spec.glusterfs.as_ref().filter(|_| spec.volume_mode.as_deref() != Some("Block"))?;
    let (namespace, endpoints) = endpoints_of(pod, volume)?;
    let of =
        Volume { namespace, endpoints: &endpoints, path: &s.path, read_only: read_only || s.read_only == Some(true) };
    Some(resolved(&of, spec.mount_options.clone().unwrap_or_default(), inputs))
}

/// Namespace and name of the Endpoints object that a persistent volume names.
pub fn endpoints_of(pod: &Pod, volume: &PersistentVolume) -> Option<(String, String)> {
    let s = volume.spec.as_ref()?.glusterfs.as_ref()?;
    let own = s.endpoints_namespace.clone().filter(|ns| !ns.is_empty());
    Some((own.or_else(|| pod.metadata.namespace.clone()).unwrap_or_default(), s.endpoints.clone()))
}

struct Volume<'a> {
    namespace: String,
    endpoints: &'a str,
    path: &'a str,
    read_only: bool,
}

fn resolved(of: &Volume<'_>, mount_options: Vec<String>, inputs: &Inputs) -> Result<Resolved, VolumeError> {
    let key = (of.namespace.clone(), of.endpoints.to_owned());
    let found = match inputs.endpoints.get(&key) {
        Some(Some(found)) => found,
        Some(None) => {
            let why = format!("endpoints {:?} not found in namespace {:?}", key.1, key.0);
            return Err(VolumeError::Gluster { why, waits: true });
        }
        None => return Err(VolumeError::NotRead { kind: "endpoints", name: key.1 }),
    };
    let servers = addresses(found);
    if servers.is_empty() {
        let why = format!(
            "failed to execute mount command:[no valid ipaddress found in endpoint address list]: endpoints {:?} of \
             namespace {:?} has no address that is ready",
            key.1, key.0
        );
        return Err(VolumeError::Gluster { why, waits: true });
    }
    let source = GlusterVolume {
        servers,
        endpoints: key,
        path: of.path.to_owned(),
        read_only: of.read_only,
        mount_options: mount_options.clone(),
    };
    Ok(Resolved { source: Source::Glusterfs(Box::new(source)), read_only: of.read_only, mount_options })
}

fn addresses(endpoints: &Endpoints) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        for address in subset.addresses.iter().flatten() {
            if !all.contains(&address.ip) {
                all.push(address.ip.clone());
            }
        }
    }
    all
}

/// The record of the client's process.
const CLIENT: &str = "client";
const LOG: &str = "glusterfs.log";
/// Where distributions put the client.
const PROGRAMS: [&str; 3] = ["/usr/sbin/glusterfs", "/usr/local/sbin/glusterfs", "/sbin/glusterfs"];
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// A client that has not mounted, or whose servers have not answered, after this is ended, told about, and started again.
const WAIT: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);
/// Of the log's end, so many lines are told: upstream's number.
const TOLD_LINES: usize = 2;
const TOLD_CHARS: usize = 300;

pub(super) struct Glusterfs;

impl VolumePlugin for Glusterfs {
    fn name(&self) -> &'static str {
        "kubernetes.io~glusterfs"
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::Glusterfs(_))
    }

    fn takes_mount_options(&self) -> bool {
        true
    }

    fn depends_on_others(&self) -> bool {
        true
    }

    fn is_served(&self) -> bool {
        true
    }

    fn served(&self, dir: &Path, on: &Machine<'_>) -> Result<Served, VolumeError> {
        let top = on.sys.open(dir).map_err(failed("open", dir))?;
        let end = on.sys.attendant_end(&top, OsStr::new(CLIENT)).map_err(failed("read", dir.join(CLIENT)))?;
        Ok(end.map_or(Served::ByTheDead, Served::By))
    }

    fn set_up(&self, source: &Source, _: &Ownership, dir: &Path, on: &Machine<'_>) -> Result<Ready, VolumeError> {
        let Source::Glusterfs(source) = source else { return Err(mismatch(self)) };
        let top = on.sys.open(dir).map_err(failed("open", dir))?;
        let client = Client { source, top: &top, dir, on };
        let serves = on.sys.attendant(&top, OsStr::new(CLIENT)).map_err(failed("read", dir.join(CLIENT)))?.is_some();
        if !serves || !client.is_mounted()? {
            // One whose client died, or that never came to be.
            client.end()?;
            client.mount()?;
        }
        // As upstream, files stay whose they are: GlusterFS serves others, too.
        Ok(ready(dir, &dir.join(DATA), source.read_only))
    }

    fn tear_down(&self, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
        let Some(top) = if_found(on.sys.open(dir)).map_err(failed("open", dir))? else { return Ok(()) };
        end(&top, dir, on)?;
        drop(top);
        tear_down_dir(dir, on.sys)
    }
}

/// Unmounts, and ends the client, which by then has nothing to serve.
fn end(top: &Handle, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
    unmount_from_server(on, top, OsStr::new(DATA))
        .map_err(|(point, errno)| VolumeError::Unmount { target: dir.join(point), errno })?;
    on.sys.end(top, OsStr::new(CLIENT)).map_err(failed("end the GlusterFS client of", dir))
}

/// The client of one volume.
struct Client<'a> {
    source: &'a GlusterVolume,
    top: &'a Handle,
    dir: &'a Path,
    on: &'a Machine<'a>,
}

impl Client<'_> {
    /// From the mount table: a server that does not answer keeps nobody who asks that.
    fn is_mounted(&self) -> Result<bool, VolumeError> {
        let mounts = self.on.sys.mounts_below(self.top).map_err(failed("read", self.dir))?;
        Ok(mounts.iter().any(|point| point == Path::new(DATA)))
    }

    fn end(&self) -> Result<(), VolumeError> {
        end(self.top, self.dir, self.on)
    }

    fn refused(&self, what: &str) -> VolumeError {
        let (namespace, name) = &self.source.endpoints;
        let mut why = format!(
            "mount failed: {what} (volume {:?}, servers {} of endpoints {namespace}/{name})",
            self.source.path,
            self.source.servers.join(" ")
        );
        if let Some(said) = self.said() {
            why += ", the following error information was pulled from the glusterfs log to help diagnose this issue: ";
            why += &said;
        }
        VolumeError::Gluster { why, waits: false }
    }

    /// The end of the client's log.
    fn said(&self) -> Option<String> {
        let log = self.on.sys.open_at(self.top, Path::new(LOG), Reach::Child).ok()?;
        let text = self.on.sys.read_file(&log).ok()?;
        let text = String::from_utf8_lossy(&text);
        let telling = text.lines().filter(|line| line.contains("] E [") || line.contains("] C ["));
        let lines: Vec<&str> = telling.collect();
        let last = lines[lines.len().saturating_sub(TOLD_LINES)..].iter();
        // `[time] E [file:line:function] 0-what: words`
        let words = last.map(|line| line.splitn(4, ']').last().unwrap_or(line).trim());
        let said: String = words.collect::<Vec<_>>().join("; ");
        Some(said.chars().filter(|c| !c.is_control()).take(TOLD_CHARS).collect()).filter(|s: &String| !s.is_empty())
    }

    fn program(&self) -> Result<PathBuf, VolumeError> {
        let sys = self.on.sys;
        let set = self.on.settings.glusterfs_client.clone();
        let usual = PROGRAMS.iter().map(PathBuf::from);
        let found = set.into_iter().chain(usual).find(|path| sys.open(path).is_ok());
        found.ok_or_else(|| VolumeError::Gluster {
            why: "this node has no GlusterFS client (/usr/sbin/glusterfs); install it: glusterfs-client of Debian and Ubuntu, \
                  glusterfs-fuse of Fedora and RHEL"
                .into(),
            waits: false,
        })
    }

    /// Starts the client, and waits until the volume is there.
    fn mount(&self) -> Result<(), VolumeError> {
        let (sys, path) = (self.on.sys, self.dir.join(DATA));
        let program = self.program()?;
        let arguments = arguments(self.source, self.dir)?;
        ensure_dir(sys, self.top, OsStr::new(DATA), PRIVATE).map_err(failed("create", &path))?;
        if_found(sys.remove_file(self.top, OsStr::new(LOG))).map_err(failed("remove", self.dir.join(LOG)))?;
        let environment = [("PATH".into(), PATH.into())];
        let program = Program { environment: &environment, ..Program::new(&program, &arguments) };
        let started = sys.start(&program, self.top, OsStr::new(CLIENT));
        started.map_err(failed("start the GlusterFS client of", self.dir))?;
        let come = self.wait();
        if come.is_err() {
            // Whatever it waits for ends with it.
            self.end()?;
        }
        come
    }

    fn wait(&self) -> Result<(), VolumeError> {
        let begun = Instant::now();
        while !self.is_mounted()? {
            self.on.wanted()?;
            match self.on.sys.attendant(self.top, OsStr::new(CLIENT)) {
                Ok(None) => return Err(self.refused("the client gave up")),
                // Its record is being written.
                Ok(Some(_)) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(failed("read", self.dir.join(CLIENT))(e)),
            }
            if begun.elapsed() >= WAIT {
                return Err(self.refused(&format!("no server answered within {} s", WAIT.as_secs())));
            }
            std::thread::sleep(LOOK);
        }
        self.answers(begun)
    }

    /// Whether somebody serves what is mounted: the client mounts before it has found the volume's bricks.
    fn answers(&self, begun: Instant) -> Result<(), VolumeError> {
        let sys = self.on.sys;
        let (tell, told) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let found = sys.open_at(self.top, Path::new(DATA), Reach::Plain).and_then(|at| sys.stat(&at));
                // Nobody may listen any more.
                drop(tell.send(found.map(|stat| stat.mount_root)));
            });
            loop {
                let given_up = match told.recv_timeout(LOOK) {
                    Ok(Ok(true)) => return Ok(()),
                    // It mounts before it knows whether there is such a volume, and takes that back.
                    Ok(Ok(false)) => self.refused("the client gave up"),
                    Ok(Err(error)) => self.refused(&format!("no server, or no brick of the volume, answers: {error}")),
                    Err(RecvTimeoutError::Disconnected) => self.refused("its first look broke off"),
                    Err(RecvTimeoutError::Timeout) if self.on.cancel.is_cancelled() => VolumeError::Cancelled,
                    Err(RecvTimeoutError::Timeout) if begun.elapsed() >= WAIT => {
                        self.refused(&format!("its bricks did not answer within {} s", WAIT.as_secs()))
                    }
                    Err(RecvTimeoutError::Timeout) => continue,
                };
                // Without a client, the look that is under way ends.
                drop(sys.end(self.top, OsStr::new(CLIENT)));
                return Err(given_up);
            }
        })
    }
}

/// The options that the client has by the same name, as `mount.glusterfs` passes them on.
const WITH_VALUE: [&str; 23] = [
    "log-level",
    "direct-io-mode",
    "volume-name",
    "attribute-timeout",
    "entry-timeout",
    "negative-timeout",
    "gid-timeout",
    "lru-limit",
    "invalidate-limit",
    "background-qlen",
    "congestion-threshold",
    "oom-score-adj",
    "use-readdirp",
    "event-history",
    "reader-thread-count",
    "auto-invalidation",
    "kernel-writeback-cache",
    "attr-times-granularity",
    "fuse-flush-handle-interrupt",
    "fuse-dev-eperm-ratelimit-ns",
    "fopen-keep-cache",
    "io-engine",
    "subdir-mount",
];
const SWITCHES: [&str; 11] = [
    "acl",
    "selinux",
    "worm",
    "enable-ino32",
    "mem-accounting",
    "aux-gfid-mount",
    "thin-client",
    "resolve-gids",
    "global-threading",
    "localtime-logging",
    "no-root-squash",
];
/// Of every mount; the client hands them on.
const OF_MOUNTS: [&str; 6] = ["dev", "nodev", "exec", "noexec", "suid", "nosuid"];
/// What means nothing here, or happens anyway.
const IDLE: [&str; 7] = ["rw", "auto", "noauto", "nofail", "_netdev", "defaults", "auto_unmount"];

/// What the client is told.
fn arguments(source: &GlusterVolume, dir: &Path) -> Result<Vec<OsString>, VolumeError> {
    let path = source.path.trim_matches('/');
    let (volume, inside) = path.split_once('/').map_or((path, ""), |(volume, inside)| (volume, inside));
    let mut servers = source.servers.clone();
    let mut all = vec!["--no-daemon".to_owned(), "--process-name=fuse".to_owned()];
    let mut level = "ERROR".to_owned();
    let mut read_only = source.read_only;
    let refused = |option: &str| VolumeError::MountOptions { options: option.to_owned() };
    for option in source.mount_options.iter().flat_map(|o| o.split(',')).filter(|o| !o.is_empty()) {
        let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("log-level", Some(value)) => value.clone_into(&mut level),
            ("backup-volfile-servers" | "backupvolfile-server", Some(value)) => {
                servers.extend(value.split(':').filter(|s| !s.is_empty()).map(str::to_owned));
            }
            ("transport", Some(value)) => all.push(format!("--volfile-server-transport={value}")),
            ("server-port", Some(value)) => all.push(format!("--volfile-server-port={value}")),
            ("fetch-attempts", Some(value)) => all.push(format!("--volfile-max-fetch-attempts={value}")),
            (name, Some(value)) if WITH_VALUE.contains(&name) => all.push(format!("--{name}={value}")),
            ("ro", None) => read_only = true,
            (name, None) if SWITCHES.contains(&name) => all.push(format!("--{name}")),
            (name, None) if OF_MOUNTS.contains(&name) => all.push(format!("--fuse-mountopts={name}")),
            (name, None) if IDLE.contains(&name) => {}
            // Where the log goes, above all, is this node's affair.
            _ => return Err(refused(option)),
        }
    }
    // Not every pod begins with the same server.
    let mut hash = DefaultHasher::new();
    dir.hash(&mut hash);
    let first = usize::try_from(hash.finish()).unwrap_or_default() % source.servers.len().max(1);
    servers[..source.servers.len()].rotate_left(first);
    let mut seen: Vec<&String> = Vec::new();
    for server in &servers {
        if !seen.contains(&server) {
            all.push(format!("--volfile-server={server}"));
            seen.push(server);
        }
    }
    all.push(format!("--volfile-id={volume}"));
    if !inside.is_empty() {
        all.push(format!("--subdir-mount=/{inside}"));
    }
    if read_only {
        all.push("--read-only".to_owned());
    }
    all.push(format!("--log-level={level}"));
    let mut all: Vec<OsString> = all.into_iter().map(OsString::from).collect();
    let mut log = OsString::from("--log-file=");
    log.push(dir.join(LOG));
    all.extend([log, dir.join(DATA).into_os_string()]);
    Ok(all)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn told(path: &str, options: &[&str]) -> Result<String, VolumeError> {
        let source = GlusterVolume {
            servers: vec!["10.0.0.1".into()],
            endpoints: (String::new(), String::new()),
            path: path.into(),
            read_only: false,
            mount_options: options.iter().map(|o| (*o).to_owned()).collect(),
        };
        let all = arguments(&source, Path::new("/d"))?;
        Ok(all.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn options_are_those_of_the_mount_program() {
        let head = "--no-daemon --process-name=fuse";
        let tail = "--log-file=/d/glusterfs.log /d/data";
        assert_eq!(
            told("vol", &[]).unwrap(),
            format!("{head} --volfile-server=10.0.0.1 --volfile-id=vol --log-level=ERROR {tail}")
        );
        assert_eq!(
            told(
                "/vol/a/b/",
                &["ro,log-level=INFO", "backup-volfile-servers=10.0.0.2:10.0.0.1", "acl", "noexec", "rw"]
            )
            .unwrap(),
            format!(
                "{head} --acl --fuse-mountopts=noexec --volfile-server=10.0.0.1 --volfile-server=10.0.0.2 --volfile-id=vol \
                 --subdir-mount=/a/b --read-only --log-level=INFO {tail}"
            )
        );
        for wrong in ["log-file=/etc/shadow", "xlator-option=x", "dump-fuse=/f", "acl=1", "volfile=/x", "entry-timeout"]
        {
            let error = told("vol", &[wrong]).unwrap_err().to_string();
            assert!(error.contains(&format!("remove mount option {wrong:?}")), "{error}");
        }
    }
}
