//! `gitRepo`: a working tree of a repository, cloned once for its pod by a process of its own (`git`).
//!
//! The clone is made in `clone`, which is the process's, and comes to `data` by one rename once it is whole and root's.
use std::{
    ffi::{OsStr, OsString},
    io::ErrorKind,
    os::fd::AsRawFd,
    path::Path,
};

use api::pod::limits;
use git::{ARGUMENT, ENVIRONMENT, LocalRepository, Order, Plan, Request, TIME, heard, shown};
use k8s_openapi::api::core::v1::{GitRepoVolumeSource, Pod};
use sys::{Bounds, Handle, Program, Reach, confine::NOBODY, tree};

use crate::{
    contract::{Machine, Ownership, Ready, Source, VolumePlugin},
    error::VolumeError,
    place::failed,
    plugins::{DATA, is_marked, mark, mismatch, own, ready, tear_down_dir},
};

const CLONE: &str = "clone";
/// Bytes of what the process says; it is one line.
const SAID: usize = 64 << 10;
/// The process ends itself; this is for one that cannot.
const GRACE: std::time::Duration = std::time::Duration::from_secs(10);

pub(super) struct GitRepo;

/// What a pod asks for.
pub(crate) fn resolve(pod: &Pod, source: &GitRepoVolumeSource) -> Source {
    let limit = pod.spec.as_ref().and_then(|spec| limits(spec).get("ephemeral-storage").map(|q| q.value()));
    Source::GitRepo(Box::new(Request {
        repository: source.repository.clone(),
        revision: source.revision.clone().unwrap_or_default(),
        directory: source.directory.clone().unwrap_or_default(),
        most_bytes: limit.and_then(|bytes| u64::try_from(bytes).ok()),
    }))
}

impl VolumePlugin for GitRepo {
    fn name(&self) -> &'static str {
        "kubernetes.io~git-repo"
    }

    fn accepts(&self, source: &Source) -> bool {
        matches!(source, Source::GitRepo(_))
    }

    fn set_up(&self, source: &Source, owner: &Ownership, dir: &Path, on: &Machine<'_>) -> Result<Ready, VolumeError> {
        let sys = on.sys;
        let Source::GitRepo(request) = source else { return Err(mismatch(self)) };
        let (top, path) = (sys.open(dir).map_err(failed("open", dir))?, dir.join(DATA));
        if is_marked(sys, &top, dir)? {
            return Ok(ready(dir, &path, false));
        }
        let (plan, local) = request
            .plan(&on.settings.git_dirs)
            .map_err(|refused| VolumeError::Invalid { message: refused.to_string() })?;
        // What an earlier, failed call began is no use: the server may have something else by now.
        for name in [CLONE, DATA] {
            tree::remove(sys, &top, OsStr::new(name)).map_err(failed("remove", dir.join(name)))?;
        }
        let made = make(request, plan, local.as_ref(), &top, dir, on);
        let clone = made.inspect_err(|_| {
            // Tear-down does it too; a large half of a clone is in the way until then.
            let _ = tree::remove(sys, &top, OsStr::new(CLONE));
        })?;
        own(sys, &clone, &path, owner, false)?;
        sys.rename(&top, OsStr::new(CLONE), OsStr::new(DATA)).map_err(failed("rename", &path))?;
        mark(sys, &top, dir)?;
        Ok(ready(dir, &path, false))
    }

    fn tear_down(&self, dir: &Path, on: &Machine<'_>) -> Result<(), VolumeError> {
        tear_down_dir(dir, on.sys)
    }
}

/// Makes the clone, root's, with the modes that a volume has.
fn make(
    request: &Request,
    plan: Plan,
    local: Option<&LocalRepository>,
    top: &Handle,
    dir: &Path,
    on: &Machine<'_>,
) -> Result<Handle, VolumeError> {
    let (sys, path) = (on.sys, dir.join(CLONE));
    sys.make_dir(top, OsStr::new(CLONE), 0o700).map_err(failed("create", &path))?;
    let clone = sys.open_at(top, Path::new(CLONE), Reach::Child).map_err(failed("open", &path))?;
    sys.set_owner(&clone, Some(NOBODY), Some(NOBODY)).map_err(failed("change the owner of", &path))?;
    run(request, plan, local, &clone, on)?;
    tree::take(sys, &clone).map_err(failed("change the owner of", &path))?;
    sys.set_mode(&clone, 0o777).map_err(failed("change the mode of", &path))?;
    Ok(clone)
}

/// Lets the process clone.
fn run(
    request: &Request,
    plan: Plan,
    local: Option<&LocalRepository>,
    clone: &Handle,
    on: &Machine<'_>,
) -> Result<(), VolumeError> {
    let sys = on.sys;
    let broken = |why: String| VolumeError::GitRepo { repository: shown(&request.repository), why };
    let local =
        local.map(|l| sys.open(&l.allowed).and_then(|top| sys.open_at(&top, &l.below, Reach::Plain))).transpose();
    let local = local.map_err(|e| broken(format!("gitRepo.repository: it cannot be opened: {e}")))?;
    let files: Vec<_> = clone.fd().into_iter().chain(local.as_ref().and_then(Handle::fd)).collect();
    let number = |handle: &Handle| handle.fd().map(|fd| fd.as_raw_fd());
    let order = Order {
        plan,
        limits: request.limits(),
        volume: number(clone).unwrap_or_default(),
        local: local.as_ref().map(|l| number(l).unwrap_or_default()),
    };
    let input = order.to_input().map_err(|e| broken(e.to_string()))?;
    let arguments = [OsString::from(ARGUMENT)];
    let mut environment = on.settings.git_environment.clone();
    environment.push((ENVIRONMENT.0.into(), ENVIRONMENT.1.into()));
    let program = Program {
        name: Some(OsStr::new("holdfast-git")),
        environment: &environment,
        input: &input,
        files: &files,
        ..Program::new(on.program, &arguments)
    };
    let bounds = Bounds { time: TIME + GRACE, output_bytes: SAID };
    let ran = sys.run(&program, &bounds, &|| on.cancel.is_cancelled()).map_err(|e| match e.kind() {
        ErrorKind::Interrupted => VolumeError::Cancelled,
        _ => broken(format!("the process that clones failed: {e}")),
    })?;
    heard(ran.status, &ran.output).map(drop).map_err(|failed| broken(failed.to_string()))
}
