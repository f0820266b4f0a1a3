//! Every call to the machine fails once before it acts and once after: nothing is lost, nothing leaks, and asking again finishes.
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use pool::{Content, NewSnapshot, NewVolume, Pool, PoolError};
use sys::*;

use crate::common::{Rig, new};

/// Counts the calls that change something, and fails one of them.
#[derive(Default)]
pub struct Faulty {
    calls: AtomicUsize,
    /// Number of the call that fails; 0: none.
    fails: AtomicUsize,
    /// It acts before it fails.
    acts: std::sync::atomic::AtomicBool,
    /// Programs that make filesystems are missing.
    pub bare: std::sync::atomic::AtomicBool,
    /// The quotas of projects that this kernel is said to have, in bytes.
    pub quotas: parking_lot::Mutex<Option<BTreeMap<u32, u64>>>,
}

impl Faulty {
    fn call<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.calls.fetch_add(1, Ordering::SeqCst) + 1 != self.fails.load(Ordering::SeqCst) {
            return act();
        }
        if self.acts.load(Ordering::SeqCst) {
            drop(act());
        }
        Err(io::Error::other("injected fault"))
    }

    fn arm(&self, number: usize, acts: bool) {
        self.calls.store(0, Ordering::SeqCst);
        self.fails.store(number, Ordering::SeqCst);
        self.acts.store(acts, Ordering::SeqCst);
    }
}

/// Passes calls on: `plain` ones as they are, `faulty` ones through [`Faulty::call`].
macro_rules! pass_on {
    ($trait:ident: plain { $($p:ident($($pa:ident: $pt:ty),*) -> $pr:ty;)* } faulty { $($f:ident($($fa:ident: $ft:ty),*) -> $fr:ty;)* } $($own:item)*) => {
        impl $trait for Faulty {
            $(fn $p(&self, $($pa: $pt),*) -> $pr { $trait::$p(&RealSys, $($pa),*) })*
            $(fn $f(&self, $($fa: $ft),*) -> $fr { self.call(|| $trait::$f(&RealSys, $($fa),*)) })*
            $($own)*
        }
    };
}

pass_on! { Disk:
    plain {
        names(dir: &Path) -> io::Result<Vec<String>>;
        read(file: &Path) -> io::Result<Vec<u8>>;
        space(path: &Path) -> io::Result<Space>;
        data_in(image: &Path) -> io::Result<Vec<(u64, u64)>>;
        image_size(image: &Path) -> io::Result<(u64, u64)>;
        attached(image: &Path, access: Access) -> io::Result<Option<PathBuf>>;
        filesystem_errors(device: &Path) -> u64;
        filesystem_read_only(device: &Path) -> bool;
    }
    faulty {
        ensure_dir(dir: &Path) -> io::Result<()>;
        write(file: &Path, content: &[u8]) -> io::Result<()>;
        move_to(from: &Path, to: &Path) -> io::Result<()>;
        remove(path: &Path) -> io::Result<()>;
        sync(path: &Path) -> io::Result<()>;
        make_image(image: &Path, bytes: u64) -> io::Result<()>;
        resize_image(image: &Path, bytes: u64) -> io::Result<()>;
        copy_image(from: &Path, to: &Path) -> io::Result<Copied>;
        attach(image: &Path, access: Access) -> io::Result<PathBuf>;
        format(device: &Path, kind: &str, options: &[String]) -> io::Result<()>;
        make_subvolume(dir: &Path) -> io::Result<()>;
        copy_subvolume(from: &Path, to: &Path) -> io::Result<()>;
        refresh(device: &Path) -> io::Result<()>;
        detach(device: &Path) -> io::Result<()>;
        check_filesystem(device: &Path, kind: &str) -> io::Result<bool>;
        set_apart(device: &Path, kind: &str) -> io::Result<()>;
        freeze(mounted: &Path) -> io::Result<()>;
        thaw(mounted: &Path) -> io::Result<()>;
    }
    fn can_format(&self, kind: &str) -> bool {
        !self.bare.load(Ordering::SeqCst) && RealSys.can_format(kind)
    }
    fn limit_directory(&self, dir: &Path, project: u32, bytes: u64) -> io::Result<()> {
        self.call(|| match self.quotas.lock().as_mut() {
            Some(quotas) => {
                quotas.insert(project, bytes);
                Ok(())
            }
            None => RealSys.limit_directory(dir, project, bytes),
        })
    }
    fn limited_usage(&self, dir: &Path, project: u32) -> io::Result<u64> {
        match self.quotas.lock().as_ref() {
            // As if each had half of what it may.
            Some(quotas) => Ok(quotas.get(&project).ok_or(io::ErrorKind::NotFound)? / 2),
            None => RealSys.limited_usage(dir, project),
        }
    }
}

pass_on! { Sys:
    plain {
        now() -> Duration;
        open(path: &Path) -> io::Result<Handle>;
        open_at(dir: &Handle, path: &Path, reach: Reach) -> io::Result<Handle>;
        stat(at: &Handle) -> io::Result<Stat>;
        stat_at(dir: &Handle, name: &OsStr) -> io::Result<Stat>;
        list(dir: &Handle) -> io::Result<Vec<Entry>>;
        read_file(file: &Handle) -> io::Result<Vec<u8>>;
        read_link(dir: &Handle, name: &OsStr) -> io::Result<PathBuf>;
        set_mode(at: &Handle, mode: u32) -> io::Result<()>;
        set_owner(at: &Handle, uid: Option<u32>, gid: Option<u32>) -> io::Result<()>;
        probe_device(device: &Handle) -> io::Result<Device>;
        mounts_below(dir: &Handle) -> io::Result<Vec<PathBuf>>;
        room(at: &Handle) -> io::Result<Space>;
        given_to(at: &Handle) -> io::Result<Option<u32>>;
        loop_of(file: &Handle) -> io::Result<Option<PathBuf>>;
        attendant(dir: &Handle, name: &OsStr) -> io::Result<Option<u32>>;
        attendant_end(dir: &Handle, name: &OsStr) -> io::Result<Option<std::os::fd::OwnedFd>>;
    }
    faulty {
        make_dir(dir: &Handle, name: &OsStr, mode: u32) -> io::Result<()>;
        write_new(dir: &Handle, name: &OsStr, data: &[u8], mode: u32) -> io::Result<()>;
        make_link(dir: &Handle, name: &OsStr, target: &Path) -> io::Result<()>;
        rename(dir: &Handle, from: &OsStr, to: &OsStr) -> io::Result<()>;
        remove_file(dir: &Handle, name: &OsStr) -> io::Result<()>;
        remove_dir(dir: &Handle, name: &OsStr) -> io::Result<()>;
        mount_tmpfs(at: &Handle, tmpfs: &Tmpfs) -> io::Result<()>;
        make_filesystem(device: &Handle, kind: &str) -> io::Result<()>;
        mount_device(device: &Handle, at: &Handle, mount: &DeviceMount<'_>) -> io::Result<()>;
        mount(at: &Handle, mount: &FsMount<'_>) -> io::Result<()>;
        mount_layers(layers: &[Handle], at: &Handle) -> io::Result<()>;
        fuse() -> io::Result<std::os::fd::OwnedFd>;
        grow_filesystem(device: &Handle, at: &Handle) -> io::Result<()>;
        grow_unmounted(device: &Handle, kind: &str) -> io::Result<bool>;
        limit_tree(dir: &Handle, bytes: Option<u64>) -> io::Result<()>;
        make_bounded(dir: &Handle, name: &OsStr, bytes: u64) -> io::Result<()>;
        mount_bounded(image: &Handle, at: &Handle) -> io::Result<()>;
        bind(source: &Handle, target: &Handle, bind: &Bind) -> io::Result<()>;
        unmount(dir: &Handle, name: &OsStr, how: Unmount) -> io::Result<()>;
        run(program: &Program<'_>, bounds: &Bounds, cancelled: &dyn Fn() -> bool) -> io::Result<Ran>;
        start(program: &Program<'_>, dir: &Handle, name: &OsStr) -> io::Result<()>;
        end(dir: &Handle, name: &OsStr) -> io::Result<()>;
        write_setting(file: &Handle, data: &[u8]) -> io::Result<()>;
        note_given(at: &Handle, gid: Option<u32>) -> io::Result<()>;
        attach_loop(file: &Handle, access: Access) -> io::Result<PathBuf>;
        refresh_loop(device: &Path) -> io::Result<()>;
        detach_loop(device: &Path) -> io::Result<()>;
        isolate(at: &Handle) -> io::Result<()>;
    }
}

const MIB: u64 = 1 << 20;

/// Runs a step until it passes, as callers do; between two tries the process may have died.
fn step<T>(rig: &Rig, pool: &mut Option<Pool>, dies: bool, mut act: impl FnMut(&Pool) -> Result<T, PoolError>) -> T {
    let mut failed = 0;
    loop {
        let result = match pool.take() {
            Some(open) => {
                let result = act(&open);
                *pool = Some(open);
                result
            }
            None => rig.try_pool().and_then(|open| {
                let result = act(&open);
                *pool = Some(open);
                result
            }),
        };
        match result {
            Ok(value) => return value,
            Err(error) => {
                failed += 1;
                assert!(failed < 3, "asking again does not help: {}", base::chain(&error));
                if dies {
                    *pool = None;
                }
            }
        }
    }
}

/// One life of a raw device, with readers beside the writer, that goes out and comes back. Its data is never lost.
fn device_life(rig: &Rig, dies: bool) {
    let (staged, published, other) = (rig.path("staged"), rig.path("published"), rig.path("other"));
    let mut pool = None;
    let wanted = NewVolume { content: Content::Block, ..new("raw", 4 * MIB) };
    let id = step(rig, &mut pool, dies, |p| p.create(&wanted)).id;
    step(rig, &mut pool, dies, |p| rig.up(p, &id, &staged, &published));
    step(rig, &mut pool, dies, |p| rig.publish(p, &id, "other", true, false));
    std::fs::OpenOptions::new()
        .write(true)
        .open(&published)
        .and_then(|d| d.write_all_at(&[7; 4096], 0))
        .expect("written");
    step(rig, &mut pool, dies, |p| p.expand(&id, 8 * MIB, 0));
    step(rig, &mut pool, dies, |p| p.unpublish(&id, &other));
    step(rig, &mut pool, dies, |p| rig.down(p, &id, &staged, &published));
    let mut archive = Vec::new();
    step(rig, &mut pool, dies, |p| {
        archive.clear();
        p.export(&id, &mut archive, &mut |_, _| {})
    });
    step(rig, &mut pool, dies, |p| p.delete(&id));
    let copy = step(rig, &mut pool, dies, |p| match p.import("copy", &mut &*archive, &mut |_, _| {}) {
        // An earlier try may have come to its end.
        Err(PoolError::Exists { .. }) => Ok(p.volumes().remove(0)),
        other => other,
    });
    let image = std::fs::read(rig.path("pool/volumes/copy/image")).expect("an image");
    assert!(copy.bytes == 8 * MIB && image.len() as u64 == 8 * MIB && image[..4096] == [7; 4096]);
    step(rig, &mut pool, dies, |p| p.delete(&copy.id));
    step(rig, &mut pool, dies, |p| p.empty_trash(u64::MAX));
    nothing_is_left(rig, pool);
}

/// One life of a volume. Its data is never lost.
fn life(rig: &Rig, dies: bool) {
    let (staged, published) = (rig.path("staged"), rig.path("published"));
    let page = published.join("page");
    let mut pool = None;
    let volume = step(rig, &mut pool, dies, |p| p.create(&new("v", 16 * MIB)));
    step(rig, &mut pool, dies, |p| rig.up(p, &volume.id, &staged, &published));
    std::fs::write(&page, "data").expect("written");
    let wanted = NewSnapshot { name: "s".into(), volume: volume.id.clone() };
    let snapshot = step(rig, &mut pool, dies, |p| p.take_snapshot(&wanted));
    std::fs::write(&page, "more").expect("not frozen");
    step(rig, &mut pool, dies, |p| p.expand(&volume.id, 24 * MIB, 0));
    step(rig, &mut pool, dies, |p| rig.down(p, &volume.id, &staged, &published));
    step(rig, &mut pool, dies, |p| rig.up(p, &volume.id, &staged, &published));
    assert_eq!(std::fs::read_to_string(&page).expect("kept"), "more");
    step(rig, &mut pool, dies, |p| rig.down(p, &volume.id, &staged, &published));
    step(rig, &mut pool, dies, |p| p.delete(&volume.id));
    step(rig, &mut pool, dies, |p| p.delete_snapshot(&snapshot.id));
    step(rig, &mut pool, dies, |p| p.empty_trash(u64::MAX));
    nothing_is_left(rig, pool);
}

fn nothing_is_left(rig: &Rig, pool: Option<Pool>) {
    assert!(rig.devices().is_empty(), "a device leaked");
    drop(pool);
    let pool = Pool::open(&rig.path("pool"), Arc::new(RealSys)).expect("a pool");
    assert!(pool.volumes().is_empty() && pool.snapshots().is_empty());
    for part in ["volumes", "snapshots", "trash", "making"] {
        let left: Vec<_> = std::fs::read_dir(rig.path("pool").join(part)).expect("a directory").collect();
        assert!(left.is_empty(), "{part} has {left:?}");
    }
}

fn sweep(life: fn(&Rig, bool), acts: bool) {
    let kernel = Arc::new(Faulty::default());
    let calls = {
        let rig = Rig::with(kernel.clone());
        life(&rig, false);
        kernel.calls.load(Ordering::SeqCst)
    };
    assert!(calls > 40, "only {calls} calls are counted");
    for number in 1..=calls {
        kernel.arm(number, acts);
        let rig = Rig::with(kernel.clone());
        // At every other one, the process dies of it.
        life(&rig, number % 2 == 0);
    }
}

#[test]
fn any_one_call_may_fail_before_it_acts() {
    sweep(life, false);
}

#[test]
fn any_one_call_may_fail_after_it_acted() {
    sweep(life, true);
}

#[test]
fn any_one_call_may_fail_before_it_acts_on_a_device() {
    sweep(device_life, false);
}

#[test]
fn any_one_call_may_fail_after_it_acted_on_a_device() {
    sweep(device_life, true);
}
