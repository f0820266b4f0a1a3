//! A kernel in memory: files, links, mounts with their effects, and one fault.
//!
//! It keeps the rules that the code above relies on: a mount hides what is below it, a busy directory cannot be removed,
//! a read-only mount refuses writes, a guarded look-up does not escape. It knows no users: every caller is root.
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::io::Errno;

mod kernel;
mod scene;

pub(crate) use self::kernel::Place;
use self::kernel::{Body, Disk, DiskFilesystem, Kernel, Loop, Mount, Programs, ROOT, Settings};
use crate::{
    Access, Bind, Bounds, Device, DeviceContent, DeviceMount, Entry, FileKind, FsMount, Handle, Inner, Program,
    Propagation, Ran, Reach, ReadOnly, Space, Stat, Sys, Tmpfs, Unmount,
};

/// What a filesystem of the fake kernel holds that has no size of its own.
const FAKE_ROOM_BYTES: u64 = 1 << 40;
/// The filesystem in a file of [`Sys::make_bounded`].
const BOUNDED_KIND: &str = "bounded";

/// Whether the failing call had its effect: a request that was refused, or one whose answer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Before,
    After,
}

/// An in-memory kernel that can fail exactly one call.
#[derive(Debug)]
pub struct FakeSys {
    kernel: Mutex<Kernel>,
}

/// What a mount point of the fake kernel is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeMount {
    pub path: PathBuf,
    pub read_only: bool,
    pub propagation: Propagation,
    /// Set for memory filesystems.
    pub tmpfs: Option<Tmpfs>,
}

impl Default for FakeSys {
    fn default() -> Self {
        Self { kernel: Mutex::new(Kernel::new()) }
    }
}

impl FakeSys {
    fn call<T>(&self, act: impl FnOnce(&mut Kernel) -> Result<T, Errno>) -> io::Result<T> {
        let mut kernel = self.kernel.lock();
        if kernel.paused {
            return Ok(act(&mut kernel)?);
        }
        let fault = kernel.fault.filter(|(nth, _)| *nth == kernel.calls).map(|f| f.1);
        kernel.calls += 1;
        kernel.fired |= fault.is_some();
        if fault == Some(When::Before) {
            return Err(Errno::IO.into());
        }
        let result = act(&mut kernel);
        if fault == Some(When::After) {
            return Err(Errno::IO.into());
        }
        Ok(result?)
    }
}

/// Runs a program of the first set that has it.
fn play(sets: &[Programs], program: &Program<'_>) -> io::Result<Ran> {
    let absent = |ran: &io::Result<Ran>| matches!(ran, Err(e) if e.kind() == io::ErrorKind::NotFound);
    let ran = sets.iter().map(|set| (set.0)(program)).find(|ran| !absent(ran));
    ran.unwrap_or_else(|| Err(Errno::NOENT.into()))
}

fn loop_device(number: u32) -> PathBuf {
    format!("/dev/loop{number}").into()
}

fn place(handle: &Handle) -> Result<Place, Errno> {
    match handle.0 {
        Inner::Fake(place) => Ok(place),
        Inner::Fd(_) => Err(Errno::BADF),
    }
}

impl Sys for FakeSys {
    fn now(&self) -> Duration {
        let mut kernel = self.kernel.lock();
        kernel.now += Duration::from_millis(1);
        kernel.now
    }

    fn open(&self, path: &Path) -> io::Result<Handle> {
        self.call(|k| k.resolve(ROOT, path, Reach::InRoot, true)).map(|p| Handle(Inner::Fake(p)))
    }

    fn open_at(&self, dir: &Handle, path: &Path, reach: Reach) -> io::Result<Handle> {
        let found = self.call(|k| {
            let dir = place(dir)?;
            match reach {
                Reach::Parent => k.parent(dir),
                Reach::Child | Reach::Plain => k.resolve(dir, path, reach, false),
                Reach::Beneath | Reach::InRoot => k.resolve(dir, path, reach, true),
            }
        });
        found.map(|p| Handle(Inner::Fake(p)))
    }

    fn stat(&self, at: &Handle) -> io::Result<Stat> {
        self.call(|k| k.stat(place(at)?))
    }

    fn stat_at(&self, dir: &Handle, name: &OsStr) -> io::Result<Stat> {
        self.call(|k| k.stat(k.child(place(dir)?, name)?))
    }

    fn list(&self, dir: &Handle) -> io::Result<Vec<Entry>> {
        self.call(|k| {
            let dir = place(dir)?;
            let names: Vec<OsString> = k.dir(dir)?.keys().cloned().collect();
            let entry = |name: OsString| Ok(Entry { kind: k.stat(k.bare_child(dir, &name)?)?.kind, name });
            names.into_iter().map(entry).collect()
        })
    }

    fn read_file(&self, file: &Handle) -> io::Result<Vec<u8>> {
        self.call(|k| match &k.node(place(file)?)?.body {
            Body::File(data) => Ok(data.clone()),
            Body::Dir(_) => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        })
    }

    fn read_link(&self, dir: &Handle, name: &OsStr) -> io::Result<PathBuf> {
        self.call(|k| match &k.node(k.child(place(dir)?, name)?)?.body {
            Body::Link(target) => Ok(target.clone()),
            _ => Err(Errno::INVAL),
        })
    }

    fn make_dir(&self, dir: &Handle, name: &OsStr, mode: u32) -> io::Result<()> {
        // With a strict umask, so that a forgotten `set_mode` shows.
        self.call(|k| k.add(place(dir)?, name, Body::Dir(BTreeMap::new()), mode & !0o077))
    }

    fn write_new(&self, dir: &Handle, name: &OsStr, data: &[u8], mode: u32) -> io::Result<()> {
        self.call(|k| k.add(place(dir)?, name, Body::File(data.to_vec()), mode))
    }

    fn write_setting(&self, file: &Handle, data: &[u8]) -> io::Result<()> {
        let (wrote, act) = self.call(|k| {
            let at = place(file)?;
            k.writable(at)?;
            let path = k.path(at);
            match &mut k.nodes.get_mut(&at.inode).ok_or(Errno::NOENT)?.body {
                Body::File(content) => *content = data.to_vec(),
                _ => return Err(Errno::INVAL),
            }
            Ok((path, k.settings.clone()))
        })?;
        // It acts on this kernel: not while that is locked.
        if let Some(act) = act {
            (act.0)(&wrote, data);
        }
        Ok(())
    }

    fn make_link(&self, dir: &Handle, name: &OsStr, target: &Path) -> io::Result<()> {
        self.call(|k| k.add(place(dir)?, name, Body::Link(target.to_path_buf()), 0o777))
    }

    fn rename(&self, dir: &Handle, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.call(|k| {
            let dir = place(dir)?;
            let moved = k.bare_child(dir, from)?;
            if k.bare_child(dir, to).is_ok_and(|old| old != moved) {
                let directory = matches!(k.node(moved)?.body, Body::Dir(_));
                k.remove(dir, to, directory)?;
            }
            k.writable(dir)?;
            let names = k.dir(dir)?;
            names.remove(from);
            names.insert(to.to_owned(), moved.inode);
            Ok(())
        })
    }

    fn remove_file(&self, dir: &Handle, name: &OsStr) -> io::Result<()> {
        self.call(|k| k.remove(place(dir)?, name, false))
    }

    fn remove_dir(&self, dir: &Handle, name: &OsStr) -> io::Result<()> {
        self.call(|k| k.remove(place(dir)?, name, true))
    }

    fn set_mode(&self, at: &Handle, mode: u32) -> io::Result<()> {
        self.call(|k| {
            let at = place(at)?;
            k.writable(at)?;
            let node = k.nodes.get_mut(&at.inode).ok_or(Errno::NOENT)?;
            if matches!(node.body, Body::Link(_)) {
                return Err(Errno::OPNOTSUPP);
            }
            node.mode = mode;
            Ok(())
        })
    }

    fn set_owner(&self, at: &Handle, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        self.call(|k| {
            let at = place(at)?;
            k.writable(at)?;
            let node = k.nodes.get_mut(&at.inode).ok_or(Errno::NOENT)?;
            (node.uid, node.gid) = (uid.unwrap_or(node.uid), gid.unwrap_or(node.gid));
            Ok(())
        })
    }

    fn given_to(&self, at: &Handle) -> io::Result<Option<u32>> {
        self.call(|k| Ok(k.node(place(at)?)?.given))
    }

    fn note_given(&self, at: &Handle, gid: Option<u32>) -> io::Result<()> {
        self.call(|k| {
            k.nodes.get_mut(&place(at)?.inode).ok_or(Errno::NOENT)?.given = gid;
            Ok(())
        })
    }

    fn mount_tmpfs(&self, at: &Handle, tmpfs: &Tmpfs) -> io::Result<()> {
        self.call(|k| {
            let root = k.make_root(tmpfs.mode);
            let propagation = Propagation::Private;
            let mount = Mount { root, at: None, read_only: false, propagation, tmpfs: Some(*tmpfs) };
            k.attach(mount, place(at)?)
        })
    }

    fn probe_device(&self, device: &Handle) -> io::Result<Device> {
        self.call(|k| {
            let disk = k.disk(place(device)?)?;
            let content = match &disk.filesystem {
                Some(filesystem) => DeviceContent::Filesystem(filesystem.kind.clone()),
                None if disk.foreign => DeviceContent::Other,
                None => DeviceContent::Empty,
            };
            Ok(Device { bytes: disk.bytes, content })
        })
    }

    fn make_filesystem(&self, device: &Handle, kind: &str) -> io::Result<()> {
        self.call(|k| {
            let at = place(device)?;
            if k.disk(at)?.filesystem.is_some() {
                return Err(Errno::EXIST);
            }
            let root = k.make_root(0o755);
            let disk = k.disk(at)?;
            disk.filesystem = Some(DiskFilesystem { kind: kind.to_owned(), bytes: disk.bytes, root });
            Ok(())
        })
    }

    fn mount_device(&self, device: &Handle, at: &Handle, mount: &DeviceMount<'_>) -> io::Result<()> {
        self.call(|k| {
            let filesystem = k.disk(place(device)?)?.filesystem.as_ref();
            let root = filesystem.filter(|f| f.kind == mount.kind).ok_or(Errno::INVAL)?.root;
            let (read_only, propagation) = (mount.read_only, Propagation::Private);
            k.attach(Mount { root, at: None, read_only, propagation, tmpfs: None }, place(at)?)
        })
    }

    fn mount(&self, at: &Handle, mount: &FsMount<'_>) -> io::Result<()> {
        self.call(|k| {
            let known = |(kind, _): &(String, String)| kind == mount.kind;
            let export = k.exports.get(&(mount.kind.to_owned(), mount.source.to_owned())).copied();
            let missing = if k.exports.keys().any(known) { Errno::NOENT } else { Errno::NODEV };
            let (root, read_only, propagation) = (export.ok_or(missing)?, mount.read_only, Propagation::Private);
            k.attach(Mount { root, at: None, read_only, propagation, tmpfs: None }, place(at)?)
        })
    }

    fn fuse(&self) -> io::Result<std::os::fd::OwnedFd> {
        self.call(|_| rustix::fs::open("/dev/null", rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty()))
    }

    fn grow_filesystem(&self, device: &Handle, at: &Handle) -> io::Result<()> {
        self.call(|k| {
            let at = place(at)?;
            k.writable(at)?;
            let root = k.mounts.get(&at.mount).ok_or(Errno::NOENT)?.root;
            let disk = k.disk(place(device)?)?;
            let filesystem = disk.filesystem.as_mut().filter(|f| f.root == root).ok_or(Errno::INVAL)?;
            filesystem.bytes = disk.bytes;
            Ok(())
        })
    }

    fn grow_unmounted(&self, _: &Handle, _: &str) -> io::Result<bool> {
        self.call(|_| Ok(false))
    }

    fn mount_layers(&self, layers: &[Handle], at: &Handle) -> io::Result<()> {
        self.call(|k| {
            // One is enough for what is built on this: the topmost.
            let top = place(layers.first().ok_or(Errno::INVAL)?)?;
            let propagation = Propagation::Private;
            k.attach(Mount { root: top.inode, at: None, read_only: true, propagation, tmpfs: None }, place(at)?)
        })
    }

    fn room(&self, at: &Handle) -> io::Result<Space> {
        self.call(|k| {
            let mount = k.mounts.get(&place(at)?.mount).ok_or(Errno::NOENT)?;
            let (root, memory) = (mount.root, mount.tmpfs.and_then(|t| t.size_bytes));
            let on_disk = k.nodes.values().find_map(|node| match &node.body {
                Body::Device(disk) => disk.filesystem.as_ref().filter(|f| f.root == root).map(|f| f.bytes),
                _ => None,
            });
            let total_bytes = memory.or(on_disk).unwrap_or(FAKE_ROOM_BYTES);
            let device = k.nodes.get(&root).map(|node| node.device);
            let used_bytes = 4096 * k.nodes.values().filter(|n| Some(n.device) == device).count() as u64;
            let free_bytes = total_bytes.saturating_sub(used_bytes);
            Ok(Space { total_bytes, used_bytes, free_bytes, inodes: 0, free_inodes: 0 })
        })
    }

    fn limit_tree(&self, dir: &Handle, bytes: Option<u64>) -> io::Result<()> {
        self.call(|k| {
            let inode = place(dir)?.inode;
            if !k.has_quotas {
                return Err(Errno::OPNOTSUPP);
            }
            match bytes {
                Some(bytes) => k.quotas.insert(inode, bytes),
                None => k.quotas.remove(&inode),
            };
            Ok(())
        })
    }

    fn loop_of(&self, file: &Handle) -> io::Result<Option<PathBuf>> {
        self.call(|k| {
            let file = place(file)?.inode;
            Ok(k.loops.iter().find(|(_, of)| of.file == file).map(|(device, _)| device.clone()))
        })
    }

    fn attach_loop(&self, file: &Handle, access: Access) -> io::Result<PathBuf> {
        self.call(|k| {
            let at = place(file)?;
            let number = (0..).find(|n| !k.loops.contains_key(&loop_device(*n))).ok_or(Errno::BUSY)?;
            let device = loop_device(number);
            let bytes = match &k.node(at)?.body {
                Body::File(data) => data.len() as u64,
                _ => return Err(Errno::INVAL),
            };
            // What was written to it lies in the file, whose name says which it is.
            let name = k.path(at);
            let kept = k.loop_content.remove(&name).unwrap_or_default();
            k.loops.insert(device.clone(), Loop { file: at.inode, name, read_only: access == Access::Read });
            let dev = k.make_dirs(Path::new("/dev"))?;
            let name = device.file_name().ok_or(Errno::INVAL)?;
            k.add(dev, name, Body::Device(Disk { bytes, ..kept }), 0o600).map(|()| device)
        })
    }

    fn refresh_loop(&self, device: &Path) -> io::Result<()> {
        self.call(|k| {
            let file = k.loops.get(device).ok_or(Errno::NXIO)?.file;
            let bytes = match &k.nodes.get(&file).ok_or(Errno::IO)?.body {
                Body::File(data) => data.len() as u64,
                _ => return Err(Errno::INVAL),
            };
            let at = k.resolve(ROOT, device, Reach::InRoot, true)?;
            k.disk(at)?.bytes = bytes;
            Ok(())
        })
    }

    fn make_bounded(&self, dir: &Handle, name: &OsStr, bytes: u64) -> io::Result<()> {
        self.call(|k| {
            let root = k.make_root(0o755);
            let filesystem = Some(DiskFilesystem { kind: BOUNDED_KIND.to_owned(), bytes, root });
            k.add(place(dir)?, name, Body::Device(Disk { bytes, filesystem, foreign: false }), 0o600)
        })
    }

    fn mount_bounded(&self, image: &Handle, at: &Handle) -> io::Result<()> {
        self.call(|k| {
            let filesystem = k.disk(place(image)?)?.filesystem.as_ref();
            let root = filesystem.filter(|f| f.kind == BOUNDED_KIND).ok_or(Errno::INVAL)?.root;
            let propagation = Propagation::Private;
            k.attach(Mount { root, at: None, read_only: false, propagation, tmpfs: None }, place(at)?)
        })
    }

    fn detach_loop(&self, device: &Path) -> io::Result<()> {
        self.call(|k| {
            let Some(of) = k.loops.get(device).cloned() else { return Ok(()) };
            let at = k.resolve(ROOT, device, Reach::InRoot, true)?;
            let disk = k.disk(at)?.clone();
            let root = disk.filesystem.as_ref().map(|f| f.root);
            if k.mounts.values().any(|m| m.at.is_some() && Some(m.root) == root) {
                return Err(Errno::BUSY);
            }
            k.loops.remove(device);
            k.loop_content.insert(of.name, disk);
            let dev = k.resolve(ROOT, Path::new("/dev"), Reach::InRoot, true)?;
            k.remove(dev, device.file_name().ok_or(Errno::INVAL)?, false)
        })
    }

    fn bind(&self, source: &Handle, target: &Handle, bind: &Bind) -> io::Result<()> {
        self.call(|k| {
            let (source, target) = (place(source)?, place(target)?);
            let below: Vec<(u64, Mount)> = k.mounts.iter().map(|(id, m)| (*id, m.clone())).collect();
            let from = k.mounts.get(&source.mount).ok_or(Errno::NOENT)?;
            let propagation = match bind.propagation {
                Propagation::Inherit => from.propagation,
                asked => asked,
            };
            let option = bind.options.set & nix::libc::MOUNT_ATTR_RDONLY != 0;
            let read_only = from.read_only || option || bind.read_only != ReadOnly::No;
            k.attach(Mount { root: source.inode, at: None, read_only, propagation, tmpfs: None }, target)?;
            let made = k.last_id;
            for (_, mount) in below.iter().filter(|_| bind.recursive) {
                let Some(at) = mount.at.filter(|at| k.path_from(*at, source).is_some()) else { continue };
                // One level is enough for what is built on this: a mount directly on the bound filesystem.
                if at.mount == source.mount {
                    let read_only = mount.read_only || bind.read_only == ReadOnly::Recursive;
                    let at = Some(Place { mount: made, inode: at.inode });
                    let id = k.id();
                    k.mounts.insert(id, Mount { at, read_only, propagation, ..mount.clone() });
                }
            }
            Ok(())
        })
    }

    fn isolate(&self, at: &Handle) -> io::Result<()> {
        self.call(|k| {
            let at = place(at)?;
            let mount = k.mounts.get_mut(&at.mount).filter(|m| m.root == at.inode).ok_or(Errno::INVAL)?;
            mount.propagation = Propagation::Private;
            Ok(())
        })
    }

    fn unmount(&self, dir: &Handle, name: &OsStr, how: Unmount) -> io::Result<()> {
        self.call(|k| {
            let at = k.child(place(dir)?, name)?;
            let mount = k.mounts.get(&at.mount).ok_or(Errno::INVAL)?;
            if mount.root != at.inode || mount.at.is_none() {
                return Err(Errno::INVAL);
            }
            let mut gone = vec![at.mount];
            loop {
                let on = |m: &Mount| m.at.is_some_and(|p| gone.contains(&p.mount));
                let more = k.mounts.iter().find(|(id, m)| on(m) && !gone.contains(id)).map(|(id, _)| *id);
                match more {
                    Some(_) if how != Unmount::Lazy => return Err(Errno::BUSY),
                    Some(id) => gone.push(id),
                    None => break,
                }
            }
            k.mounts.retain(|id, _| !gone.contains(id));
            Ok(())
        })
    }

    fn run(&self, program: &Program<'_>, _: &Bounds, cancelled: &dyn Fn() -> bool) -> io::Result<Ran> {
        if cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        // It acts on this kernel: not while that is locked.
        let sets = self.call(|k| Ok(k.programs.clone()))?;
        play(&sets, program)
    }

    fn start(&self, program: &Program<'_>, dir: &Handle, name: &OsStr) -> io::Result<()> {
        let (dir_place, key) = (place(dir)?, (place(dir)?.inode, name.to_owned()));
        let act = self.call(|k| {
            if k.programs.is_empty() {
                return Err(Errno::NOENT);
            }
            if k.attendants.contains_key(&key) {
                return Ok(None);
            }
            if k.bare_child(dir_place, name).is_err() {
                k.add(dir_place, name, Body::File(b"1\n".to_vec()), 0o600)?;
            }
            k.attendants.insert(key, (dir_place, name.to_owned()));
            Ok(Some(k.programs.clone()))
        })?;
        act.map_or(Ok(()), |sets| play(&sets, program).map(drop))
    }

    fn attendant(&self, dir: &Handle, name: &OsStr) -> io::Result<Option<u32>> {
        self.call(|k| Ok(k.attendants.contains_key(&(place(dir)?.inode, name.to_owned())).then_some(1)))
    }

    fn attendant_end(&self, dir: &Handle, name: &OsStr) -> io::Result<Option<std::os::fd::OwnedFd>> {
        // Readable once the other end is closed.
        let (end, kept) = io::pipe()?;
        let lives = self.call(|k| {
            let key = (place(dir)?.inode, name.to_owned());
            let lives = k.attendants.contains_key(&key);
            if lives {
                k.awaited.push((key, kept));
            }
            Ok(lives)
        })?;
        Ok(lives.then(|| end.into()))
    }

    fn end(&self, dir: &Handle, name: &OsStr) -> io::Result<()> {
        self.call(|k| {
            let dir = place(dir)?;
            let key = (dir.inode, name.to_owned());
            k.attendants.remove(&key);
            k.awaited.retain(|(of, _)| *of != key);
            match k.remove(dir, name, false) {
                Err(Errno::NOENT) => Ok(()),
                other => other,
            }
        })
    }

    fn mounts_below(&self, dir: &Handle) -> io::Result<Vec<PathBuf>> {
        self.call(|k| {
            let dir = place(dir)?;
            let mut found: Vec<(usize, u64, PathBuf)> = Vec::new();
            for (id, mount) in &k.mounts {
                // The directory itself is a mount point if its place is a mount's root.
                let below = match mount.at {
                    Some(_) if *id == dir.mount && mount.root == dir.inode => Some(PathBuf::new()),
                    Some(at) => k.path_from(at, dir),
                    None => None,
                };
                if let Some(below) = below {
                    found.push((below.components().count(), *id, below));
                }
            }
            found.sort_by_key(|f| std::cmp::Reverse((f.0, f.1)));
            Ok(found.into_iter().map(|f| f.2).collect())
        })
    }
}
