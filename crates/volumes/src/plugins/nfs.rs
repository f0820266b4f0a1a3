//! `nfs`: a directory of an NFS server, mounted once per pod.
//!
//! By the kernel's client where it has one, else by our own: version 3 through FUSE, served by an attendant that outlives
//! this process. As upstream, nothing of it is given to the pod's group: who may do what is the server's affair.
use std::{
    ffi::OsStr,
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    sync::mpsc::{RecvTimeoutError, channel},
};

use k8s_openapi::api::core::v1::NFSVolumeSource;
use nfs::{Export, FindError, OptionError, Options};
use rustix::io::Errno;
use sys::{FsMount, Handle, Program, Reach, Sys, tree};

use crate::{
    contract::{Machine, Ownership, Ready, Reclaiming, Resolved, Served, Source, VolumePlugin},
    error::VolumeError,
    place::{PRIVATE, ensure_below, ensure_dir, ensure_path, failed, if_found, unmount_from_server},
    plugins::{DATA, mismatch, ready, tear_down_dir},
};

pub(super) struct Nfs;

/// In the volume's directory: what is, or was about to be, mounted is served by an attendant, whose record has this name too.
const EMBEDDED: &str = "embedded";
const ATTENDANT: &str = "attendant";
/// Where volumes are mounted to be emptied, below the directory of what volumes have once for all pods.
const RECYCLING: [&str; 2] = ["kubernetes.io~nfs", "recycle"];

/// A directory of an NFS server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NfsSource {
    /// Name or address.
    pub server: String,
    /// Absolute path on the server.
    pub path: String,
    pub read_only: bool,
    /// As after `mount -o`, one or several each.
    pub mount_options: Vec<String>,
}

impl NfsSource {
    pub(crate) fn resolved(source: &NFSVolumeSource, mount_options: &[String], read_only: bool) -> Resolved {
        let read_only = read_only || source.read_only == Some(true);
        let NFSVolumeSource { server, path, .. } = source.clone();
        let mount_options = mount_options.to_vec();
        let source = Source::Nfs(Box::new(Self { server, path, read_only, mount_options: mount_options.clone() }));
        Resolved { source, read_only, mount_options }
    }

    /// `server:path`, as in `/etc/fstab`.
    fn export(&self) -> String {
        match self.server.parse::<IpAddr>() {
            Ok(IpAddr::V6(_)) => format!("[{}]:{}", self.server, self.path),
            _ => format!("{}:{}", self.server, self.path),
        }
    }

    fn failed(&self, why: impl Into<String>, source: Option<Box<dyn std::error::Error + Send + Sync>>) -> VolumeError {
        VolumeError::Nfs { export: self.export(), why: why.into(), source }
    }

    fn wrong(&self, error: OptionError) -> VolumeError {
        self.failed(error.to_string(), None)
    }

    fn not_found(&self, error: FindError) -> VolumeError {
        match error {
            FindError::GivenUp => VolumeError::Cancelled,
            error => self.failed(error.to_string(), inner(error)),
        }
    }
}

/// What is below an error that was told already.
fn inner(error: FindError) -> Option<Box<dyn std::error::Error + Send + Sync>> {
    match error {
        FindError::Name { errno } => Some(errno.into()),
        FindError::Unreachable { cause, .. } | FindError::Export { cause, .. } => Some(cause),
        FindError::NoVersion3 { cause, .. } => cause,
        FindError::NoAddress | FindError::GivenUp => None,
    }
}

impl VolumePlugin for Nfs {
    fn name(&self) -> &'static str {
        "kubernetes.io~nfs"
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::Nfs(_))
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
        if !(Place { dir, on }).is_embedded(&top)? {
            return Ok(Served::ByNobody);
        }
        let end = on.sys.attendant_end(&top, OsStr::new(ATTENDANT));
        Ok(end.map_err(failed("look for the attendant of", dir))?.map_or(Served::ByTheDead, Served::By))
    }

    fn set_up(&self, source: &Source, _: &Ownership, dir: &Path, on: &Machine<'_>) -> Result<Ready, VolumeError> {
        let Source::Nfs(source) = source else { return Err(mismatch(self)) };
        let options = Options::parse(&source.mount_options).map_err(|e| source.wrong(e))?;
        let read_only = source.read_only || options.read_only;
        Place { dir, on }.set_up(source, &options, read_only)?;
        Ok(ready(dir, &dir.join(DATA), read_only))
    }

    fn tear_down(&self, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
        Place { dir, on }.tear_down()
    }

    fn reclaim(&self, source: &Source, how: Reclaiming, on: &Machine<'_>) -> Result<(), VolumeError> {
        let Source::Nfs(source) = source else { return Err(mismatch(self)) };
        match how {
            Reclaiming::Recycle => recycle(source, on),
            Reclaiming::Delete => Err(VolumeError::Unsupported { kind: "nfs with reclaim policy Delete".into() }),
        }
    }
}

/// The directory of one volume.
struct Place<'a> {
    dir: &'a Path,
    on: &'a Machine<'a>,
}

impl Place<'_> {
    fn sys(&self) -> &dyn Sys {
        self.on.sys
    }

    fn data(&self) -> PathBuf {
        self.dir.join(DATA)
    }

    /// Mounts, unless what an earlier call mounted still works.
    fn set_up(&self, source: &NfsSource, options: &Options, read_only: bool) -> Result<(), VolumeError> {
        let sys = self.sys();
        let top = sys.open(self.dir).map_err(failed("open", self.dir))?;
        if self.is_mounted(&top)? {
            if !self.is_embedded(&top)? || self.attendant(&top)? {
                return Ok(());
            }
            // Whoever served it was killed: every use of it fails.
            self.unmount(&top)?;
        }
        // What a file system that is not there was to be told.
        sys.end(&top, OsStr::new(ATTENDANT)).map_err(failed("end the attendant of", self.dir))?;
        if_found(sys.remove_file(&top, OsStr::new(EMBEDDED))).map_err(failed("remove", self.dir.join(EMBEDDED)))?;
        let give_up = || self.on.cancel.is_cancelled();
        let server = nfs::resolve(&source.server, &give_up).map_err(|e| source.not_found(e))?;
        let at = ensure_dir(sys, &top, OsStr::new(DATA), PRIVATE).map_err(failed("create", self.data()))?;
        if has_kernel_client(sys, &at) {
            nfs::reach(server, options, &give_up).map_err(|e| source.not_found(e))?;
            return self.mount_by_kernel((&top, &at), source, options, (server, read_only));
        }
        options.without_kernel().map_err(|e| source.wrong(e))?;
        let export = nfs::find(server, &source.path, options, &give_up).map_err(|e| source.not_found(e))?;
        self.on.wanted()?;
        sys.write_new(&top, OsStr::new(EMBEDDED), b"", 0o600).map_err(failed("write", self.dir.join(EMBEDDED)))?;
        self.serve(&top, &at, source, options, (&export, read_only))
    }

    /// Without asking who serves it, who may not answer.
    fn is_mounted(&self, top: &Handle) -> Result<bool, VolumeError> {
        let mounts = self.sys().mounts_below(top).map_err(failed("read the mounts below", self.dir))?;
        Ok(mounts.iter().any(|point| point == Path::new(DATA)))
    }

    fn is_embedded(&self, top: &Handle) -> Result<bool, VolumeError> {
        let found = if_found(self.sys().stat_at(top, OsStr::new(EMBEDDED)));
        Ok(found.map_err(failed("read", self.dir.join(EMBEDDED)))?.is_some())
    }

    fn attendant(&self, top: &Handle) -> Result<bool, VolumeError> {
        let found = self.sys().attendant(top, OsStr::new(ATTENDANT));
        Ok(found.map_err(failed("look for the attendant of", self.dir))?.is_some())
    }

    /// Tries the versions of the protocol, newest first, as `mount.nfs` does.
    fn mount_by_kernel(
        &self,
        (top, at): (&Handle, &Handle),
        source: &NfsSource,
        options: &Options,
        (server, read_only): (IpAddr, bool),
    ) -> Result<(), VolumeError> {
        let give_up = || self.on.cancel.is_cancelled();
        let export = source.export();
        let mut first = None;
        for (kind, own) in options.kernel_tries(server, nfs::keeps_locks(&give_up)) {
            self.on.wanted()?;
            let all: Vec<String> = own.into_iter().chain(options.flags.iter().cloned()).collect();
            let mount = FsMount { kind, source: &export, read_only, options: &all };
            match self.sys().mount(at, &mount) {
                Ok(()) => return Ok(()),
                // Another one over it would never be undone.
                Err(_) if self.is_mounted(top)? => return Ok(()),
                // The first is about the version that the server most likely has.
                Err(errno) => drop(first.get_or_insert((errno, all.join(",")))),
            }
        }
        let Some((errno, tried)) = first else { return Err(source.failed("no version of NFS is left to try", None)) };
        let why = format!("the kernel's client, with {tried}, says why; correct server, path or mountOptions");
        Err(source.failed(why, Some(errno.into())))
    }

    /// Mounts a connection to the kernel, and starts the one who serves it.
    fn serve(
        &self,
        top: &Handle,
        at: &Handle,
        source: &NfsSource,
        options: &Options,
        (export, read_only): (&Export, bool),
    ) -> Result<(), VolumeError> {
        let sys = self.sys();
        let no_fuse = |errno: io::Error| {
            let why = "this node's kernel has no NFS client, and no FUSE (/dev/fuse) for the embedded one; load the \
                       kernel module nfs or fuse";
            source.failed(why, Some(errno.into()))
        };
        let connection = sys.fuse().map_err(no_fuse)?;
        // Names, owners and modes are the server's, which the kernel compares with who asks; everybody may ask.
        let mut all: Vec<String> = ["rootmode=40000", "user_id=0", "group_id=0", "allow_other", "default_permissions"]
            .map(str::to_owned)
            .into();
        all.extend([format!("fd={}", connection.as_raw_fd()), "subtype=nfs".into()]);
        all.extend(options.flags.iter().cloned());
        let name = source.export();
        sys.mount(at, &FsMount { kind: "fuse", source: &name, read_only, options: &all }).map_err(no_fuse)?;
        let input = serde_json::to_vec(export).map_err(|e| source.failed("it cannot be described", Some(e.into())))?;
        let arguments = nfs::arguments(connection.as_raw_fd(), &self.data());
        let files = [connection.as_fd()];
        let program = Program {
            name: Some(OsStr::new(nfs::ATTENDANT)),
            input: &input,
            files: &files,
            ..Program::new(self.on.program, &arguments)
        };
        sys.start(&program, top, OsStr::new(ATTENDANT)).map_err(failed("start the attendant of", self.dir))
    }

    /// Unmounts what is there. Nobody uses it any more; what was mapped and not yet written is written now, and given up
    /// after a while where the server does not take it.
    fn unmount(&self, top: &Handle) -> Result<(), VolumeError> {
        let (done, ended) = channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                if ended.recv_timeout(self.on.settings.last_writes) == Err(RecvTimeoutError::Timeout) {
                    // Without the one who serves it, the kernel fails all that waits.
                    let _ = self.sys().end(top, OsStr::new(ATTENDANT));
                }
            });
            let gone = unmount_from_server(self.on, top, OsStr::new(DATA));
            drop(done);
            gone.map_err(|(point, errno)| VolumeError::Unmount { target: self.dir.join(point), errno })
        })
    }

    /// Nothing of the server's is ever removed: after unmounting, the mount point has to be empty.
    fn tear_down(&self) -> Result<(), VolumeError> {
        let sys = self.sys();
        let Some(top) = if_found(sys.open(self.dir)).map_err(failed("open", self.dir))? else { return Ok(()) };
        self.unmount(&top)?;
        sys.end(&top, OsStr::new(ATTENDANT)).map_err(failed("end the attendant of", self.dir))?;
        if_found(sys.remove_dir(&top, OsStr::new(DATA))).map_err(failed("remove", self.data()))?;
        drop(top);
        tear_down_dir(self.dir, sys)
    }
}

/// Whether the kernel can mount NFS by itself. Asking for a mount of nothing loads its module, and fails in any case.
fn has_kernel_client(sys: &dyn Sys, at: &Handle) -> bool {
    ["nfs4", "nfs"].iter().any(|kind| {
        let nothing = FsMount { kind, source: "", read_only: true, options: &[] };
        match sys.mount(at, &nothing) {
            Err(errno) => errno.raw_os_error() != Some(Errno::NODEV.raw_os_error()),
            Ok(()) => true,
        }
    })
}

/// Mounts a volume aside and empties it.
fn recycle(source: &NfsSource, on: &Machine<'_>) -> Result<(), VolumeError> {
    let sys = on.sys;
    let mut source = source.clone();
    source.read_only = false;
    // A server that goes away meanwhile is an error to be told, and it is tried again.
    source.mount_options.extend(["soft".to_owned(), "timeo=100".into()]);
    let options = Options::parse(&source.mount_options).map_err(|e| source.wrong(e))?;
    let key = format!("{:016x}", fingerprint(&source.export()));
    on.shared.alone(&format!("nfs {key}"), || {
        let plugins = ensure_path(sys, on.plugins, PRIVATE)?;
        let parts = [OsStr::new(RECYCLING[0]), OsStr::new(RECYCLING[1]), OsStr::new(&key)];
        let (top, dir) = ensure_below(sys, plugins, on.plugins, &parts)?;
        let place = Place { dir: &dir, on };
        let done = place.set_up(&source, &options, false).and_then(|()| {
            let data = sys.open_at(&top, Path::new(DATA), Reach::Plain).map_err(failed("open", place.data()))?;
            tree::clear(sys, &data).map_err(|errno| {
                let why = "not everything in it could be removed; the server may not let root of this node do that \
                           (root_squash), or somebody else uses it";
                VolumeError::Nfs { export: source.export(), why: why.into(), source: Some(errno.into()) }
            })
        });
        drop(top);
        done.and(place.tear_down())
    })
}

/// A short name for a text, the same at any time (FNV-1a).
fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
