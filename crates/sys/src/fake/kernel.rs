//! Inodes, mounts and look-ups of the fake kernel.
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::io::Errno;

use super::When;
use crate::{FileKind, Program, Propagation, Ran, Reach, Stat, Tmpfs};

/// A file as seen through one mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(super) mount: u64,
    pub(super) inode: u64,
}

#[derive(Debug, Clone)]
pub(super) enum Body {
    Dir(BTreeMap<OsString, u64>),
    File(Vec<u8>),
    Link(PathBuf),
    Special(FileKind),
    Device(Disk),
}

/// A block device of the fake kernel.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    pub(super) bytes: u64,
    pub(super) filesystem: Option<DiskFilesystem>,
    /// Something that is no filesystem.
    pub(super) foreign: bool,
}

#[derive(Debug, Clone)]
pub(super) struct DiskFilesystem {
    pub(super) kind: String,
    pub(super) bytes: u64,
    pub(super) root: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) body: Body,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) device: u64,
    /// The directory that holds a directory; itself at a filesystem's root.
    pub(super) parent: u64,
    pub(super) links: u32,
    /// The group that all below it was given to.
    pub(super) given: Option<u32>,
}

#[derive(Debug, Clone)]
pub(super) struct Mount {
    pub(super) root: u64,
    /// Where it is mounted; `None` for the first.
    pub(super) at: Option<Place>,
    pub(super) read_only: bool,
    pub(super) propagation: Propagation,
    pub(super) tmpfs: Option<Tmpfs>,
}

#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) nodes: BTreeMap<u64, Node>,
    pub(super) mounts: BTreeMap<u64, Mount>,
    pub(super) last_id: u64,
    pub(super) last_device: u64,
    pub(super) now: Duration,
    pub(super) calls: usize,
    pub(super) fault: Option<(usize, When)>,
    pub(super) fired: bool,
    /// Calls of a test's own checks neither count nor fail.
    pub(super) paused: bool,
    /// Roots of filesystems that are on no device, by kind and source.
    pub(super) exports: BTreeMap<(String, String), u64>,
    pub(super) programs: Vec<Programs>,
    /// What happens when a file of the kernel's is written to.
    pub(super) settings: Option<Settings>,
    /// Loop devices that have a file.
    pub(super) loops: BTreeMap<PathBuf, Loop>,
    /// What is in files that were behind loop devices, by their names.
    pub(super) loop_content: BTreeMap<PathBuf, Disk>,
    /// Those that live: directory and name of their records, by its inode.
    pub(super) attendants: BTreeMap<(u64, OsString), (Place, OsString)>,
    /// What is closed when they end, for those who wait for that.
    pub(super) awaited: Vec<((u64, OsString), std::io::PipeWriter)>,
    /// Whether filesystems have quotas of directories, and which there are, by inode.
    pub(super) has_quotas: bool,
    pub(super) quotas: BTreeMap<u64, u64>,
}

/// What programs do.
#[derive(Clone)]
pub(super) struct Programs(pub(super) Arc<Act>);

type Act = dyn Fn(&Program<'_>) -> io::Result<Ran> + Send + Sync;

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Programs")
    }
}

/// What settings do.
#[derive(Clone)]
pub(super) struct Settings(pub(super) Arc<Set>);

type Set = dyn Fn(&Path, &[u8]) + Send + Sync;

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Settings")
    }
}

/// A loop device.
#[derive(Debug, Clone)]
pub(super) struct Loop {
    /// The inode of its file.
    pub(super) file: u64,
    pub(super) name: PathBuf,
    pub(super) read_only: bool,
}

/// The first mount's root.
pub(super) const ROOT: Place = Place { mount: 1, inode: 1 };

impl Kernel {
    pub(super) fn new() -> Self {
        let mut kernel = Kernel {
            nodes: BTreeMap::new(),
            mounts: BTreeMap::new(),
            last_id: 0,
            last_device: 1,
            now: Duration::from_secs(1_800_000_000),
            calls: 0,
            fault: None,
            fired: false,
            paused: false,
            exports: BTreeMap::new(),
            programs: Vec::new(),
            settings: None,
            loops: BTreeMap::new(),
            loop_content: BTreeMap::new(),
            attendants: BTreeMap::new(),
            awaited: Vec::new(),
            has_quotas: false,
            quotas: BTreeMap::new(),
        };
        let root = kernel.make(Body::Dir(BTreeMap::new()), 0o755, 1, ROOT.inode);
        let mount = Mount { root, at: None, read_only: false, propagation: Propagation::Private, tmpfs: None };
        kernel.mounts.insert(ROOT.mount, mount);
        kernel
    }

    pub(super) fn id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn make(&mut self, body: Body, mode: u32, device: u64, parent: u64) -> u64 {
        let id = self.id();
        let node = Node { body, mode, uid: 0, gid: 0, device, parent, links: 1, given: None };
        self.nodes.insert(id, node);
        id
    }

    pub(super) fn node(&self, at: Place) -> Result<&Node, Errno> {
        self.nodes.get(&at.inode).ok_or(Errno::NOENT)
    }

    pub(super) fn disk(&mut self, at: Place) -> Result<&mut Disk, Errno> {
        match self.nodes.get_mut(&at.inode).map(|n| &mut n.body) {
            Some(Body::Device(disk)) => Ok(disk),
            Some(_) => Err(Errno::NOTBLK),
            None => Err(Errno::NOENT),
        }
    }

    /// A directory that is the root of a new filesystem.
    pub(super) fn make_root(&mut self, mode: u32) -> u64 {
        self.last_device += 1;
        let root = self.make(Body::Dir(BTreeMap::new()), mode, self.last_device, 0);
        self.nodes.get_mut(&root).expect("just made").parent = root;
        root
    }

    pub(super) fn dir(&mut self, at: Place) -> Result<&mut BTreeMap<OsString, u64>, Errno> {
        match self.nodes.get_mut(&at.inode).map(|n| &mut n.body) {
            Some(Body::Dir(names)) => Ok(names),
            Some(_) => Err(Errno::NOTDIR),
            None => Err(Errno::NOENT),
        }
    }

    pub(super) fn writable(&self, at: Place) -> Result<(), Errno> {
        let read_only = self.mounts.get(&at.mount).is_some_and(|m| m.read_only);
        if read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// The topmost mount at a place, if there is one.
    pub(super) fn covering(&self, at: Place) -> Option<u64> {
        self.mounts.iter().rev().find(|(_, m)| m.at == Some(at)).map(|(id, _)| *id)
    }

    pub(super) fn through_mounts(&self, mut at: Place) -> Place {
        while let Some(mount) = self.covering(at) {
            at = Place { mount, inode: self.mounts[&mount].root };
        }
        at
    }

    /// A name in a directory, before any mount on it.
    pub(super) fn bare_child(&self, dir: Place, name: &OsStr) -> Result<Place, Errno> {
        match &self.node(dir)?.body {
            Body::Dir(names) => {
                names.get(name).map(|inode| Place { mount: dir.mount, inode: *inode }).ok_or(Errno::NOENT)
            }
            _ => Err(Errno::NOTDIR),
        }
    }

    pub(super) fn child(&self, dir: Place, name: &OsStr) -> Result<Place, Errno> {
        self.bare_child(dir, name).map(|at| self.through_mounts(at))
    }

    pub(super) fn parent(&self, mut at: Place) -> Result<Place, Errno> {
        while self.mounts[&at.mount].root == at.inode {
            match self.mounts[&at.mount].at {
                Some(point) => at = point,
                None => return Ok(at),
            }
        }
        Ok(Place { mount: at.mount, inode: self.node(at)?.parent })
    }

    pub(super) fn resolve(&self, top: Place, path: &Path, reach: Reach, follow: bool) -> Result<Place, Errno> {
        let mut todo: Vec<OsString> = path.components().rev().map(|c| c.as_os_str().to_owned()).collect();
        let (mut at, mut links) = (top, 0);
        while let Some(part) = todo.pop() {
            if part == "." {
                continue;
            }
            if part == "/" || part == ".." {
                let leaves = part == "/" || at == top;
                match reach {
                    Reach::InRoot if leaves => at = top,
                    _ if leaves => return Err(Errno::XDEV),
                    _ => at = self.parent(at)?,
                }
                continue;
            }
            let bare = self.bare_child(at, &part)?;
            let next = self.through_mounts(bare);
            if reach == Reach::Child && next != bare {
                return Err(Errno::XDEV);
            }
            match &self.node(next)?.body {
                Body::Link(_) if todo.is_empty() && !follow => at = next,
                Body::Link(_) if matches!(reach, Reach::Child | Reach::Plain) => return Err(Errno::LOOP),
                Body::Link(target) => {
                    links += 1;
                    if links > 40 {
                        return Err(Errno::LOOP);
                    }
                    todo.extend(target.components().rev().map(|c| c.as_os_str().to_owned()));
                }
                _ => at = next,
            }
        }
        Ok(at)
    }

    pub(super) fn add(&mut self, dir: Place, name: &OsStr, body: Body, mode: u32) -> Result<(), Errno> {
        self.writable(dir)?;
        let (device, gid, set_gid) = {
            let node = self.node(dir)?;
            (node.device, node.gid, node.mode & 0o2000)
        };
        if self.dir(dir)?.contains_key(name) {
            return Err(Errno::EXIST);
        }
        let is_dir = matches!(body, Body::Dir(_));
        let id = self.make(body, mode | if is_dir { set_gid } else { 0 }, device, dir.inode);
        if set_gid != 0 {
            self.nodes.get_mut(&id).expect("just made").gid = gid;
        }
        self.dir(dir)?.insert(name.to_owned(), id);
        Ok(())
    }

    /// A directory, made with its parents if need be.
    pub(super) fn make_dirs(&mut self, path: &Path) -> Result<Place, Errno> {
        let mut at = ROOT;
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            if self.child(at, name).is_err() {
                self.add(at, name, Body::Dir(BTreeMap::new()), 0o755)?;
            }
            at = self.child(at, name)?;
        }
        Ok(at)
    }

    pub(super) fn remove(&mut self, dir: Place, name: &OsStr, directory: bool) -> Result<(), Errno> {
        self.writable(dir)?;
        let at = self.bare_child(dir, name)?;
        if self.mounts.values().any(|m| m.at.is_some_and(|p| p.inode == at.inode)) {
            return Err(Errno::BUSY);
        }
        match (&self.node(at)?.body, directory) {
            (Body::Dir(names), true) if !names.is_empty() => return Err(Errno::NOTEMPTY),
            (Body::Dir(_), false) => return Err(Errno::ISDIR),
            (Body::Dir(_), true) => {}
            (_, true) => return Err(Errno::NOTDIR),
            (_, false) => {}
        }
        self.dir(dir)?.remove(name);
        self.nodes.remove(&at.inode);
        Ok(())
    }

    pub(super) fn attach(&mut self, mount: Mount, target: Place) -> Result<(), Errno> {
        let is_dir = |k: &Self, inode| matches!(k.nodes.get(&inode).map(|n| &n.body), Some(Body::Dir(_)));
        if is_dir(self, mount.root) != is_dir(self, target.inode) {
            return Err(Errno::NOTDIR);
        }
        let id = self.id();
        self.mounts.insert(id, Mount { at: Some(self.through_mounts(target)), ..mount });
        Ok(())
    }

    /// The path of a place from the root; a place that was removed has its last known parents.
    pub(super) fn path(&self, at: Place) -> PathBuf {
        self.path_from(at, ROOT).unwrap_or_default()
    }

    /// The path of `at` below `top`, or `None` if it is elsewhere.
    pub(super) fn path_from(&self, mut at: Place, top: Place) -> Option<PathBuf> {
        let mut names = Vec::new();
        loop {
            if at == top {
                let below: PathBuf = names.iter().rev().collect();
                return Some(if top == ROOT { Path::new("/").join(below) } else { below });
            }
            if self.mounts.get(&at.mount)?.root == at.inode {
                at = self.mounts[&at.mount].at?;
                continue;
            }
            let node = self.nodes.get(&at.inode)?;
            let holder = if matches!(node.body, Body::Dir(_)) { node.parent } else { self.holder(at.inode)? };
            let Body::Dir(names_here) = &self.nodes.get(&holder)?.body else { return None };
            names.push(names_here.iter().find(|(_, id)| **id == at.inode)?.0.clone());
            at.inode = holder;
        }
    }

    pub(super) fn holder(&self, inode: u64) -> Option<u64> {
        let holds = |n: &Node| matches!(&n.body, Body::Dir(names) if names.values().any(|id| *id == inode));
        self.nodes.iter().find(|(_, n)| holds(n)).map(|(id, _)| *id)
    }

    pub(super) fn collect(&self, at: Place, path: &Path, found: &mut Vec<PathBuf>) {
        let Some(Body::Dir(names)) = self.nodes.get(&at.inode).map(|n| &n.body) else { return };
        for name in names.keys() {
            let below = path.join(name);
            found.push(below.clone());
            if let Ok(child) = self.child(at, name) {
                self.collect(child, &below, found);
            }
        }
    }

    pub(super) fn stat(&self, at: Place) -> Result<Stat, Errno> {
        let node = self.node(at)?;
        let (kind, size) = match &node.body {
            Body::Dir(_) => (FileKind::Directory, 4096),
            Body::File(data) => (FileKind::File, data.len() as u64),
            Body::Link(target) => (FileKind::Link, target.as_os_str().len() as u64),
            Body::Special(kind) => (*kind, 0),
            Body::Device(_) => (FileKind::BlockDevice, 0),
        };
        Ok(Stat {
            kind,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            size_bytes: size,
            allocated_bytes: size.div_ceil(4096) * 4096,
            links: node.links,
            device: node.device,
            inode: at.inode,
            mount_root: self.mounts.get(&at.mount).is_some_and(|m| m.root == at.inode),
        })
    }
}
