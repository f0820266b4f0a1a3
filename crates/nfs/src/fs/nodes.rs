//! The files that the kernel knows: its number for each, the server's handle, and what is not yet safe on the server.
use std::{
    collections::HashMap,
    ffi::OsString,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};

use super::writes::Write;
use crate::{
    proto::{Attr, Fh, Kind, Time},
    rpc::Credential,
};

/// The number of the mount's top, which the kernel fixes.
pub(super) const TOP: u64 = 1;
/// Numbers from here on are made here, where the server's own is taken.
const OWN_NUMBERS: u64 = 1 << 63;

/// One file.
pub(super) struct Node {
    /// The kernel's number: the server's file id wherever that is free.
    pub id: u64,
    pub fh: Fh,
    pub state: Mutex<State>,
    /// Writers share it; who makes their writes safe has it alone.
    pub writing: RwLock<()>,
    pub unsafe_writes: Mutex<Vec<Write>>,
}

#[derive(Default)]
pub(super) struct State {
    /// How the file was when the kernel's pages of it were last known to be right.
    pub seen: Option<(Time, Time, u64)>,
    /// Open descriptors, as far as the kernel tells.
    pub opens: usize,
    /// Its removal was put off until nobody has it open: under this name.
    pub hidden: Option<Hidden>,
}

/// A name that stands for a file that was removed while it was open.
#[derive(Clone)]
pub(super) struct Hidden {
    pub dir: Fh,
    pub name: OsString,
    pub who: Credential,
}

impl Node {
    fn new(id: u64, fh: Fh) -> Arc<Self> {
        Arc::new(Self { id, fh, state: Mutex::default(), writing: RwLock::default(), unsafe_writes: Mutex::default() })
    }
}

/// All files that the kernel knows.
pub(super) struct Nodes {
    inner: Mutex<Inner>,
    /// Open descriptors of all files.
    pub open: AtomicUsize,
}

struct Inner {
    by_id: HashMap<u64, (Arc<Node>, u64)>,
    by_fh: HashMap<Fh, u64>,
    next: u64,
}

impl Nodes {
    pub fn new(root: Fh) -> Self {
        let mut inner = Inner { by_id: HashMap::new(), by_fh: HashMap::new(), next: OWN_NUMBERS };
        inner.by_fh.insert(root.clone(), TOP);
        inner.by_id.insert(TOP, (Node::new(TOP, root), 1));
        Self { inner: Mutex::new(inner), open: AtomicUsize::new(0) }
    }

    pub fn get(&self, id: u64) -> Option<Arc<Node>> {
        self.inner.lock().by_id.get(&id).map(|(node, _)| Arc::clone(node))
    }

    pub fn by_handle(&self, fh: &Fh) -> Option<Arc<Node>> {
        let inner = self.inner.lock();
        inner.by_fh.get(fh).and_then(|id| inner.by_id.get(id)).map(|(node, _)| Arc::clone(node))
    }

    /// The node of a file, which the kernel is told about once more.
    pub fn remember(&self, fh: Fh, attr: &Attr) -> Arc<Node> {
        let mut inner = self.inner.lock();
        let known = inner.by_fh.get(&fh).copied();
        let id = known.unwrap_or_else(|| {
            // A file of another filesystem within the export may have the same number, and so may one that was removed.
            let free = attr.file_id > TOP && attr.file_id < OWN_NUMBERS && !inner.by_id.contains_key(&attr.file_id);
            if free {
                attr.file_id
            } else {
                inner.next += 1;
                inner.next
            }
        });
        inner.by_fh.entry(fh.clone()).or_insert(id);
        let (node, count) = inner.by_id.entry(id).or_insert_with(|| (Node::new(id, fh), 0));
        *count += 1;
        Arc::clone(node)
    }

    /// The kernel has forgotten it so many times.
    pub fn forget(&self, id: u64, times: u64) {
        let mut inner = self.inner.lock();
        let Some((node, count)) = inner.by_id.get_mut(&id) else { return };
        *count = count.saturating_sub(times);
        if *count == 0 && id != TOP {
            let fh = node.fh.clone();
            inner.by_id.remove(&id);
            inner.by_fh.remove(&fh);
        }
    }

    pub fn opened(&self, node: &Node) {
        node.state.lock().opens += 1;
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// What is to be removed now that nobody has it open.
    pub fn closed(&self, node: &Node) -> Option<Hidden> {
        self.open.fetch_sub(1, Ordering::Relaxed);
        let mut state = node.state.lock();
        state.opens -= 1;
        if state.opens == 0 { state.hidden.take() } else { None }
    }
}

/// What the kernel is told about a file.
pub(super) fn to_kernel(id: u64, attr: &Attr) -> fuser::FileAttr {
    let time = |t| std::time::UNIX_EPOCH + crate::proto::since_1970(t);
    fuser::FileAttr {
        ino: fuser::INodeNo(if id == TOP { attr.file_id } else { id }),
        size: attr.size,
        blocks: attr.used.div_ceil(512),
        atime: time(attr.accessed),
        mtime: time(attr.modified),
        ctime: time(attr.changed),
        crtime: time(attr.changed),
        kind: match attr.kind {
            Kind::File => fuser::FileType::RegularFile,
            Kind::Directory => fuser::FileType::Directory,
            Kind::BlockDevice => fuser::FileType::BlockDevice,
            Kind::CharDevice => fuser::FileType::CharDevice,
            Kind::Link => fuser::FileType::Symlink,
            Kind::Socket => fuser::FileType::Socket,
            Kind::Fifo => fuser::FileType::NamedPipe,
        },
        perm: attr.mode as u16 & 0o7777,
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device_number(attr.device),
        // What programs take for the size of a good read: far more than a page, as each costs a round trip.
        blksize: 64 << 10,
        flags: 0,
    }
}

/// A device's number as the kernel packs it into 32 bits.
fn device_number((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The reverse.
pub(super) fn device(number: u32) -> (u32, u32) {
    ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(file_id: u64) -> Attr {
        Attr {
            kind: Kind::File,
            mode: 0o644,
            links: 1,
            uid: 0,
            gid: 0,
            size: 0,
            used: 0,
            device: (0, 0),
            file_id,
            accessed: (0, 0),
            modified: (0, 0),
            changed: (0, 0),
        }
    }

    fn fh(n: u8) -> Fh {
        vec![n].into()
    }

    #[test]
    fn each_file_has_one_number_until_it_is_forgotten() {
        let nodes = Nodes::new(fh(0));
        let first = nodes.remember(fh(1), &attr(70));
        assert_eq!((first.id, nodes.remember(fh(1), &attr(70)).id), (70, 70));
        // Another file with the same number, as after removing and making one.
        let other = nodes.remember(fh(2), &attr(70));
        assert!(other.id > OWN_NUMBERS);
        assert!(nodes.remember(fh(3), &attr(TOP)).id > OWN_NUMBERS);
        nodes.forget(70, 1);
        assert!(nodes.get(70).is_some());
        nodes.forget(70, 1);
        assert!(nodes.get(70).is_none() && nodes.by_handle(&fh(1)).is_none());
        assert_eq!(nodes.by_handle(&fh(2)).map(|n| n.id), Some(other.id));
        nodes.forget(TOP, 9);
        assert!(nodes.get(TOP).is_some());
    }

    #[test]
    fn the_last_close_removes_what_is_hidden() {
        let nodes = Nodes::new(fh(0));
        let node = nodes.remember(fh(1), &attr(2));
        let who = Credential::unix(0, 0, &[]);
        nodes.opened(&node);
        nodes.opened(&node);
        node.state.lock().hidden = Some(Hidden { dir: fh(0), name: ".nfs1".into(), who });
        assert!(nodes.closed(&node).is_none());
        assert_eq!(nodes.closed(&node).map(|h| h.name), Some(".nfs1".into()));
    }

    #[test]
    fn device_numbers_survive() {
        for number in [(8, 1), (259, 70_000), (4095, 0xf_ffff)] {
            assert_eq!(device(device_number(number)), number);
        }
    }
}
