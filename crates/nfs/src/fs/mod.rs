//! An export as a filesystem: the kernel's requests, by FUSE.
//!
//! Several threads each take a request, call the server, and answer; all share one connection. The kernel keeps names and
//! attributes for as long as it is told, and pages until the file is found changed.
mod caller;
mod listing;
mod nodes;
mod ops;
mod writes;

use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, InitFlags, LockOwner, OpenFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow,
};
use parking_lot::Mutex;

use self::{
    caller::Caller,
    listing::{Lister, found},
    nodes::{Node, Nodes, device, to_kernel},
    ops::{Wish, set_time},
    writes::{Open, Writes},
};
use crate::{
    find::{Export, LARGEST_PIECE},
    proto::{Asker, Attr, Changes, Fault, Nfs},
};

/// Requests that the kernel may have under way for nobody in particular: reading ahead, mostly.
const BACKGROUND: u16 = 64;
const NO_GENERATION: Generation = Generation(0);
const O_ACCMODE: i32 = 0o3;
const O_EXCL: i32 = 0o200;
const O_TRUNC: i32 = 0o1000;
const O_DSYNC: i32 = 0o10_000;

/// An export that is mounted.
pub(crate) struct Mounted {
    nfs: Nfs,
    export: Export,
    nodes: Nodes,
    writes: Writes,
    opens: Mutex<HashMap<u64, Arc<Open>>>,
    next: AtomicU64,
    pub notifier: OnceLock<fuser::Notifier>,
}

/// The face of it that the kernel's requests come to.
pub(crate) struct Face(pub Arc<Mounted>);

impl Mounted {
    pub fn new(export: Export, nfs: Nfs) -> Self {
        Self {
            nodes: Nodes::new(export.root.clone()),
            writes: Writes::new(export.write_size),
            nfs,
            export,
            opens: Mutex::default(),
            next: AtomicU64::new(1),
            notifier: OnceLock::new(),
        }
    }

    fn keep(&self, open: Open) -> FileHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.opens.lock().insert(number, Arc::new(open));
        FileHandle(number)
    }

    fn kept(&self, file: FileHandle) -> Result<Arc<Open>, Errno> {
        self.opens.lock().get(&file.0).cloned().ok_or(Errno::EBADF)
    }
}

/// Does something in the name of whoever asks, as long as he lives.
fn asked<T>(request: &Request, act: impl FnOnce(Asker<'_>) -> Result<T, Fault>) -> Result<T, Errno> {
    let caller = Caller(request.pid());
    let who = caller.credential(request.uid(), request.gid());
    act(Asker { who: &who, give_up: &|| caller.is_killed() }).map_err(|fault| Errno::from_i32(fault.errno()))
}

/// Does something with an open file, in the name of whoever opened it, as long as the one who asks lives.
fn with_open<T>(request: &Request, open: &Open, act: impl FnOnce(Asker<'_>) -> T) -> T {
    let caller = Caller(request.pid());
    act(Asker { who: &open.who, give_up: &|| caller.is_killed() })
}

fn wish(flags: i32) -> Wish {
    let mode = flags & O_ACCMODE;
    Wish { read: mode != 1, write: mode != 0, sync: flags & O_DSYNC != 0 }
}

impl Face {
    fn entry(&self, outcome: Result<(Arc<Node>, Attr), Errno>, reply: ReplyEntry) {
        match outcome {
            Ok((node, attr)) => reply.entry(&self.0.export.tuning.believed, &to_kernel(node.id, &attr), NO_GENERATION),
            Err(errno) => reply.error(errno),
        }
    }

    fn attr(&self, id: u64, outcome: Result<Attr, Errno>, reply: ReplyAttr) {
        match outcome {
            Ok(attr) => reply.attr(&self.0.export.tuning.believed, &to_kernel(id, &attr)),
            Err(errno) => reply.error(errno),
        }
    }

    fn list(
        &self,
        request: &Request,
        file: FileHandle,
        offset: u64,
        mut add: impl FnMut(&crate::proto::DirEntry, crate::proto::Fh, &Attr) -> bool,
    ) -> Result<(), Errno> {
        let this = &self.0;
        let open = this.kept(file)?;
        let listed = with_open(request, &open, |asker| {
            let (bytes, plus) = (this.export.list_size, this.export.tuning.list_plus);
            let lister = Lister { nfs: &this.nfs, dir: &open.node.fh, bytes, plus, asker };
            let mut listing = crate::rpc::lock(&open.listing, asker.give_up)?;
            for entry in listing.from(offset, &lister)? {
                if let Some((fh, attr)) = found(entry, &lister)?
                    && add(entry, fh, &attr)
                {
                    break;
                }
            }
            Ok(())
        });
        listed.map_err(|fault: Fault| Errno::from_i32(fault.errno()))
    }

    fn make_safe(&self, request: &Request, file: FileHandle, reply: ReplyEmpty) {
        let this = &self.0;
        let done = this.kept(file).and_then(|open| {
            let made = with_open(request, &open, |asker| this.writes.make_safe(&this.nfs, &open.node, asker.give_up));
            made.map_err(|fault| {
                // Told now; told again, it would look like another failure.
                if matches!(fault, Fault::Status(_)) {
                    this.writes.forget(&open.node);
                }
                Errno::from_i32(fault.errno())
            })
        });
        empty(done, reply);
    }
}

fn empty(outcome: Result<(), Errno>, reply: ReplyEmpty) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl fuser::Filesystem for Face {
    fn init(&mut self, _: &Request, config: &mut fuser::KernelConfig) -> io::Result<()> {
        // A kernel that has less says what it has, and gets that.
        if let Err(most) = config.set_max_write(LARGEST_PIECE.min(self.0.export.write_size.max(4096))) {
            let _ = config.set_max_write(most);
        }
        if let Err(most) = config.set_max_readahead(LARGEST_PIECE) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(BACKGROUND);
        for wanted in [
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
        ] {
            // Without one of them all is slower, or seen later, but right.
            let _ = config.add_capabilities(wanted);
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry(asked(request, |asker| self.0.look_up(parent.0, name, asker)), reply);
    }

    fn forget(&self, _: &Request, ino: INodeNo, times: u64) {
        self.0.nodes.forget(ino.0, times);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let got = asked(request, |asker| self.0.nfs.getattr(&self.0.node(ino.0)?.fh, asker));
        self.attr(ino.0, got, reply);
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        file: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (accessed, modified) = (atime.map(set_time), mtime.map(set_time));
        let changes = Changes { mode: mode.map(|m| m & 0o7777), uid, gid, size, accessed, modified };
        // Who may cut an open file short was decided when it was opened.
        let open = file.filter(|_| size.is_some()).and_then(|file| self.0.kept(file).ok());
        let done = asked(request, |asker| {
            let who = open.as_ref().map_or(asker.who, |open| &open.who);
            self.0.change(&*self.0.node(ino.0)?, &changes, Asker { who, ..asker })
        });
        self.attr(ino.0, done, reply);
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        match asked(request, |asker| self.0.nfs.readlink(&self.0.node(ino.0)?.fh, asker)) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, rdev: u32, reply: ReplyEntry) {
        self.entry(asked(request, |asker| self.0.make_node(parent.0, name, (mode, device(rdev)), asker)), reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let made = asked(request, |asker| {
            let dir = self.0.node(parent.0)?;
            let made = self.0.nfs.mkdir(&dir.fh, name, mode & 0o7777, asker)?;
            self.0.entered((&dir, name), made, asker)
        });
        self.entry(made, reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = asked(request, |asker| {
            let dir = self.0.node(parent.0)?;
            let made = self.0.nfs.symlink(&dir.fh, name, target.as_os_str().as_bytes(), asker)?;
            self.0.entered((&dir, name), made, asker)
        });
        self.entry(made, reply);
    }

    fn link(&self, request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let made = asked(request, |asker| {
            let (node, dir) = (self.0.node(ino.0)?, self.0.node(parent.0)?);
            let attr = self.0.nfs.link(&node.fh, (&dir.fh, name), asker)?;
            self.0.entered((&dir, name), (Some(node.fh.clone()), attr), asker)
        });
        self.entry(made, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(asked(request, |asker| self.0.unlink(parent.0, name, asker)), reply);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(asked(request, |asker| self.0.nfs.rmdir(&self.0.node(parent.0)?.fh, name, asker)), reply);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new_name: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        empty(asked(request, |asker| self.0.rename((parent.0, name), (to.0, new_name), asker)), reply);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match asked(request, |asker| self.0.open_file(ino.0, wish(flags.0), asker)) {
            Ok((open, fresh)) => {
                let flags = if fresh { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
                reply.opened(self.0.keep(open), flags);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let made = asked(request, |asker| {
            let how = (mode & 0o7777, flags & O_EXCL != 0, flags & O_TRUNC != 0);
            let (node, attr) = self.0.create(parent.0, name, how, asker)?;
            let (open, _) = self.0.opened(Arc::clone(&node), &attr, wish(flags), asker.who);
            Ok((open, node, attr))
        });
        match made {
            Ok((open, node, attr)) => {
                let (file, believed) = (self.0.keep(open), &self.0.export.tuning.believed);
                reply.created(believed, &to_kernel(node.id, &attr), NO_GENERATION, file, FopenFlags::empty());
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        request: &Request,
        _: INodeNo,
        file: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.kept(file) {
            Ok(open) => with_open(request, &open, |asker| self.0.read(&open.node, (offset, size), asker, reply)),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        request: &Request,
        _: INodeNo,
        file: FileHandle,
        offset: u64,
        data: &[u8],
        _: fuser::WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let this = &self.0;
        let written = this.kept(file).and_then(|open| {
            let safe = open.sync || flags.0 & O_DSYNC != 0 || this.export.tuning.sync;
            let piece = (offset, data);
            let done = with_open(request, &open, |asker| this.writes.write(&this.nfs, &open.node, piece, safe, asker));
            done.map_err(|fault| Errno::from_i32(fault.errno()))
        });
        match written {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, request: &Request, _: INodeNo, file: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.make_safe(request, file, reply);
    }

    fn fsync(&self, request: &Request, _: INodeNo, file: FileHandle, _: bool, reply: ReplyEmpty) {
        self.make_safe(request, file, reply);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        file: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        if let Some(open) = self.0.opens.lock().remove(&file.0) {
            self.0.close(&open);
        }
        reply.ok();
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = asked(request, |asker| {
            let (node, who) = (self.0.node(ino.0)?, asker.who.clone());
            Ok(Open { node, who, sync: false, listing: Mutex::default() })
        });
        match opened {
            Ok(open) => reply.opened(self.0.keep(open), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, request: &Request, _: INodeNo, file: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.list(request, file, offset, |entry, fh, attr| {
            let number = INodeNo(self.0.number(&fh, attr));
            reply.add(number, entry.cookie, to_kernel(0, attr).kind, OsStr::from_bytes(&entry.name))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(&self, request: &Request, _: INodeNo, file: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let believed = self.0.export.tuning.believed;
        let listed = self.list(request, file, offset, |entry, fh, attr| {
            let name = OsStr::from_bytes(&entry.name);
            if entry.name == b"." || entry.name == b".." {
                // Of these the kernel takes the number only.
                let number = self.0.number(&fh, attr);
                return reply.add(
                    INodeNo(number),
                    entry.cookie,
                    name,
                    &believed,
                    &to_kernel(number, attr),
                    NO_GENERATION,
                );
            }
            let node = self.0.nodes.remember(fh, attr);
            let told = to_kernel(node.id, attr);
            let full = reply.add(told.ino, entry.cookie, name, &believed, &told, NO_GENERATION);
            if full {
                self.0.nodes.forget(node.id, 1);
            }
            full
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, file: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.0.opens.lock().remove(&file.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        // The server answers changes of directories when they are safe.
        reply.ok();
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u32 = 4096;
        match asked(request, |asker| self.0.nfs.fsstat(&self.0.export.root, asker)) {
            Ok(stat) => {
                let [total, free, available] = stat.bytes.map(|b| b / u64::from(BLOCK));
                let [files, free_files, _] = stat.files;
                reply.statfs(total, free, available, files, free_files, BLOCK, 255, BLOCK);
            }
            Err(errno) => reply.error(errno),
        }
    }

    // What version 3 has not got. The kernel remembers the answer, and does without.

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _: &Request, _: INodeNo, _: fuser::AccessFlags, reply: ReplyEmpty) {
        // The kernel decides by the attributes; opening asks the server.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: fuser::ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: fuser::IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: fuser::ReplyIoctl,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
