//! A pool in a directory of its own that leaves nothing behind.
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use pool::{Backend, Content, Id, Kernel, NewVolume, Pool, PoolError, Publish, Stage};
use sys::{Access, Disk, RealSys};

pub struct Rig {
    dir: tempfile::TempDir,
    kernel: Arc<dyn Kernel>,
}

/// Fills a file until no more fits; how much did, in bytes.
pub fn fill(dir: &Path) -> u64 {
    let mut file = fs::File::create(dir.join("fill")).expect("a file");
    let block = vec![7; 1 << 16];
    let mut written = 0;
    loop {
        match file.write(&block).and_then(|n| file.sync_data().map(|()| n)) {
            Ok(n) => written += n as u64,
            Err(e) => {
                use std::io::ErrorKind::{QuotaExceeded, StorageFull};
                assert!(matches!(e.kind(), StorageFull | QuotaExceeded), "{e}");
                return written;
            }
        }
    }
}

pub fn filesystem(kind: &str) -> Content {
    Content::Filesystem(kind.into())
}

pub fn new(name: &str, bytes: u64) -> NewVolume {
    NewVolume {
        name: name.into(),
        required_bytes: bytes,
        limit_bytes: 0,
        backend: Backend::Image,
        content: filesystem("ext4"),
        format: Vec::new(),
        limit_required: false,
        origin: None,
        shares_room: false,
        notes: Default::default(),
    }
}

impl Rig {
    pub fn new() -> Self {
        Self::with(Arc::new(RealSys))
    }

    pub fn with(kernel: Arc<dyn Kernel>) -> Self {
        // In memory where that can be: these tests wait for a disk more than for anything else.
        let mut builder = tempfile::Builder::new();
        builder.prefix("holdfast-pool");
        let dir = builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir());
        Self { dir: dir.expect("a directory"), kernel }
    }

    /// The pool lies on a memory filesystem of that size.
    pub fn on_its_own_filesystem(bytes: u64) -> Self {
        let rig = Self::new();
        fs::create_dir(rig.path("pool")).expect("a directory");
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "pool"]).arg(rig.path("pool")).status();
        assert!(mounted.expect("mount runs").success());
        rig
    }

    /// The pool lies on btrfs; `None` where that cannot be made.
    pub fn on_btrfs(bytes: u64) -> Option<Self> {
        if !RealSys.can_format("btrfs") {
            return None;
        }
        let rig = Self::new();
        fs::create_dir(rig.path("pool")).expect("a directory");
        RealSys.make_image(&rig.path("below"), bytes).expect("an image");
        let device = RealSys.attach(&rig.path("below"), Access::Write).expect("a device");
        RealSys.format(&device, "btrfs", &[]).expect("a filesystem");
        let mounted = Command::new("mount").arg(&device).arg(rig.path("pool")).status();
        assert!(mounted.expect("mount runs").success());
        Some(rig)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn try_pool(&self) -> Result<Pool, PoolError> {
        Pool::open(&self.path("pool"), self.kernel.clone())
    }

    #[track_caller]
    pub fn pool(&self) -> Pool {
        self.try_pool().expect("a pool")
    }

    pub fn up(&self, pool: &Pool, id: &Id, staged: &Path, published: &Path) -> Result<(), PoolError> {
        pool.stage(id, &Stage { at: staged, options: &[] })?;
        pool.publish(id, &Publish { staged, at: published, read_only: false, alone: false })
    }

    /// Publishes once more.
    pub fn publish(&self, pool: &Pool, id: &Id, name: &str, read_only: bool, alone: bool) -> Result<(), PoolError> {
        pool.publish(id, &Publish { staged: &self.path("staged"), at: &self.path(name), read_only, alone })
    }

    pub fn down(&self, pool: &Pool, id: &Id, staged: &Path, published: &Path) -> Result<(), PoolError> {
        pool.unpublish(id, published)?;
        pool.unstage(id, staged)
    }

    fn images(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.path("pool")];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(t) if t.is_dir() => open.push(entry.path()),
                    Ok(_) if entry.file_name() == "image" => found.push(entry.path()),
                    _ => {}
                }
            }
        }
        found
    }

    /// Devices that images of this pool are behind.
    pub fn devices(&self) -> Vec<PathBuf> {
        let attached = |image: &PathBuf, access| RealSys.attached(image, access).expect("loop devices");
        let both = |image| [Access::Write, Access::Read].map(|access| attached(image, access));
        self.images().iter().flat_map(both).flatten().collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for name in ["published", "other", "staged"] {
            let _ = Command::new("umount").arg("-q").arg(self.path(name)).status();
        }
        for device in self.devices() {
            let _ = RealSys.detach(&device);
        }
        let _ = Command::new("umount").arg("-q").arg(self.path("pool")).status();
        if let Ok(Some(device)) = RealSys.attached(&self.path("below"), Access::Write) {
            let _ = RealSys.detach(&device);
        }
    }
}
