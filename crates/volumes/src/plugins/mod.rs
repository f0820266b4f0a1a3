//! The plugins. Each is one file here and one line in [`PLUGINS`].
//!
//! A plugin's directory holds `data`, what containers see, where the volume lives there, and `ready`, a mark that set-up
//! was finished once: what the pod then does to its volume is not undone when the node starts again.
mod block;
pub(crate) mod csi;
mod empty_dir;
mod fc;
mod files;
mod flex;
pub(crate) mod flocker;
pub(crate) mod git_repo;
pub(crate) mod glusterfs;
mod host_path;
pub(crate) mod image;
mod iscsi;
mod local;
pub(crate) mod nfs;
mod record;
mod scsi;
mod writer;

pub(crate) use files::Files;

use std::{
    ffi::OsStr,
    io::{self, ErrorKind},
    path::Path,
    sync::atomic::Ordering,
};

use sys::{Handle, Reach, Stat, Sys, Tmpfs, Unmount, tree};

use crate::{
    contract::{GroupMap, Ownership, Ready, Source, VolumePlugin},
    error::VolumeError,
    place::{ensure_dir, failed, if_found},
};

/// The only list of plugins in the program.
pub static PLUGINS: &[&dyn VolumePlugin] = &[
    &empty_dir::EmptyDir,
    &host_path::HostPath,
    &image::Image,
    &local::Local,
    &files::Files,
    &csi::Csi,
    &flex::Flex,
    &flocker::Flocker,
    &git_repo::GitRepo,
    &glusterfs::Glusterfs,
    &nfs::Nfs,
    &iscsi::Iscsi,
    &fc::Fc,
];

/// The plugin that makes a source into a volume.
pub fn plugin_for(source: &Source) -> Option<&'static dyn VolumePlugin> {
    PLUGINS.iter().find(|p| p.accepts(source)).copied()
}

const DATA: &str = "data";
const READY: &str = "ready";

fn mismatch(plugin: &dyn VolumePlugin) -> VolumeError {
    VolumeError::Invalid { message: format!("plugin {} was given a source that it does not accept", plugin.name()) }
}

fn ready(dir: &Path, host_path: &Path, read_only: bool) -> Ready {
    let volume = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ready { volume, host_path: host_path.to_path_buf(), read_only, device: false, group_map: None }
}

/// Whether set-up was finished once.
fn is_marked(sys: &dyn Sys, top: &Handle, dir: &Path) -> Result<bool, VolumeError> {
    let found = if_found(sys.stat_at(top, OsStr::new(READY))).map_err(failed("read", dir.join(READY)))?;
    Ok(found.is_some())
}

fn mark(sys: &dyn Sys, top: &Handle, dir: &Path) -> Result<(), VolumeError> {
    match sys.write_new(top, OsStr::new(READY), b"", 0o600) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(failed("write", dir.join(READY))),
    }
}

/// Mounts a filesystem on a directory.
type MountOn<'a> = dyn Fn(&Handle) -> io::Result<()> + 'a;

/// Makes `data`, open to everybody as upstream's volumes are, with a filesystem of its own mounted there if asked.
/// Returns it and whether it is new.
fn data_dir(
    sys: &dyn Sys,
    top: &Handle,
    dir: &Path,
    mount: Option<&MountOn<'_>>,
) -> Result<(Handle, bool), VolumeError> {
    let (name, path) = (OsStr::new(DATA), dir.join(DATA));
    let data = ensure_dir(sys, top, name, 0o777).map_err(failed("create", &path))?;
    let stat = sys.stat(&data).map_err(failed("read", &path))?;
    let Some(mount) = mount else {
        let fresh = !is_marked(sys, top, dir)?;
        // The umask may have taken bits away. Once the pod has the volume, its mode is the pod's affair.
        if fresh && stat.mode & 0o777 != 0o777 {
            sys.set_mode(&data, stat.mode | 0o777).map_err(failed("change the mode of", &path))?;
        }
        return Ok((data, fresh));
    };
    // A second mount over that of an earlier try would hide the pod's files. After a reboot there is none.
    if stat.mount_root {
        return Ok((data, !is_marked(sys, top, dir)?));
    }
    mount(&data).map_err(|errno| VolumeError::Mount { target: path.clone(), errno })?;
    Ok((sys.open_at(top, Path::new(name), Reach::Plain).map_err(failed("open", &path))?, true))
}

/// A memory filesystem that anybody may write.
fn tmpfs(sys: &dyn Sys, size_bytes: Option<u64>) -> impl Fn(&Handle) -> io::Result<()> {
    move |at| sys.mount_tmpfs(at, &Tmpfs { size_bytes, mode: 0o1777 })
}

/// Gives a volume to the pod's group.
fn own(sys: &dyn Sys, top: &Handle, path: &Path, own: &Ownership, read_only: bool) -> Result<(), VolumeError> {
    let Some(gid) = own.fs_group else { return Ok(()) };
    let stat = sys.stat(top).map_err(failed("read", path))?;
    if own.on_root_mismatch && belongs(&stat, gid, read_only) {
        return Ok(());
    }
    let change = |errno| failed("change the group of", path)(errno);
    // The top is one of them, and counts from the beginning: where the filesystem answers nothing, that is told too.
    own.given.fetch_add(1, Ordering::Relaxed);
    // While it goes on, the tree is nobody's.
    sys.note_given(top, None).map_err(change)?;
    tree::give_to_group(sys, top, gid, read_only, &own.given).map_err(change)?;
    sys.note_given(top, Some(gid).filter(|_| !read_only)).map_err(change)
}

/// As which group the containers of a pod can see a volume, all of which was given to another group before, so that nothing
/// has to be changed. For pods that ask for it: rights that files have got since are not mended.
fn shown_group(sys: &dyn Sys, top: &Handle, path: &Path, own: &Ownership) -> Result<Option<GroupMap>, VolumeError> {
    let Some(to) = own.fs_group.filter(|_| own.on_root_mismatch && own.mapped) else { return Ok(None) };
    let Some(from) = sys.given_to(top).map_err(failed("read", path))? else { return Ok(None) };
    let stat = sys.stat(top).map_err(failed("read", path))?;
    Ok((from != to && belongs(&stat, from, false)).then_some(GroupMap { from, to }))
}

/// Whether the top of a volume looks as if all of it was given to the group already.
fn belongs(stat: &Stat, gid: u32, read_only: bool) -> bool {
    let wanted = 0o2110 | if read_only { 0o440 } else { 0o660 };
    stat.is_dir() && stat.gid == gid && stat.mode & wanted == wanted
}

/// Unmounts and removes a volume's directory. Every plugin that keeps all it makes in there can tear down by this.
fn tear_down_dir(dir: &Path, sys: &dyn Sys) -> Result<(), VolumeError> {
    let (Some(above), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Err(failed("remove", dir)(ErrorKind::InvalidInput.into()));
    };
    let Some(above_dir) = if_found(sys.open(above)).map_err(failed("open", above))? else { return Ok(()) };
    tree::unmount_all(sys, &above_dir, name, &|_| Unmount::Strict)
        .map_err(|(point, errno)| VolumeError::Unmount { target: above.join(point), errno })?;
    tree::remove(sys, &above_dir, name).map_err(failed("remove", dir))
}
