//! What a test sets up in the fake kernel, and what it looks at afterwards. Nothing of it counts as a call.
use super::*;

impl FakeSys {
    /// A kernel whose call number `nth` (from 0) fails with `EIO`.
    pub fn failing(nth: usize, when: When) -> Self {
        let fake = Self::default();
        fake.fail(nth, when);
        fake
    }

    /// Makes the call number `nth` from now fail.
    pub fn fail(&self, nth: usize, when: When) {
        let mut kernel = self.kernel.lock();
        let nth = kernel.calls + nth;
        (kernel.fault, kernel.fired) = (Some((nth, when)), false);
    }

    /// Takes back a fault that has not happened yet.
    pub fn heal(&self) {
        self.kernel.lock().fault = None;
    }

    /// From here on calls neither count nor fail, until [`FakeSys::resume`].
    pub fn pause(&self) {
        self.kernel.lock().paused = true;
    }

    /// Calls count, and can fail, again.
    pub fn resume(&self) {
        self.kernel.lock().paused = false;
    }

    /// Whether the fault has happened: if not, all calls have had their turn.
    pub fn fault_fired(&self) -> bool {
        self.kernel.lock().fired
    }

    /// Makes a directory with its parents, without counting as a call.
    pub fn with_dir(&self, path: impl AsRef<Path>) {
        self.kernel.lock().make_dirs(path.as_ref()).expect("directories, or names that are free");
    }

    /// Makes a file that is neither directory nor link, without counting as a call.
    pub fn with_file(&self, path: impl AsRef<Path>, kind: FileKind) {
        let path = path.as_ref();
        let dir = path.parent().expect("a path below the root");
        self.with_dir(dir);
        let mut kernel = self.kernel.lock();
        let dir = kernel.resolve(ROOT, dir, Reach::InRoot, true).expect("just made");
        let body = match kind {
            FileKind::File => Body::File(Vec::new()),
            FileKind::BlockDevice => Body::Device(Disk::default()),
            other => Body::Special(other),
        };
        kernel.add(dir, path.file_name().expect("a file's path has a name"), body, 0o644).expect("new name");
    }

    /// Gives a block device a size, without counting as a call. `foreign`: it holds something that is no filesystem.
    pub fn with_disk(&self, path: impl AsRef<Path>, bytes: u64, foreign: bool) {
        let mut kernel = self.kernel.lock();
        let at = kernel.resolve(ROOT, path.as_ref(), Reach::InRoot, true).expect("a device");
        let disk = kernel.disk(at).expect("a block device");
        (disk.bytes, disk.foreign) = (bytes, foreign);
    }

    /// Gives filesystems quotas of directories.
    pub fn with_quotas(&self) {
        self.kernel.lock().has_quotas = true;
    }

    /// The quota of a directory.
    pub fn quota_of(&self, path: impl AsRef<Path>) -> Option<u64> {
        let kernel = self.kernel.lock();
        let at = kernel.resolve(ROOT, path.as_ref(), Reach::InRoot, true).ok()?;
        kernel.quotas.get(&at.inode).copied()
    }

    /// How many directories have a quota, those that are gone included.
    pub fn quotas(&self) -> usize {
        self.kernel.lock().quotas.len()
    }

    /// The kind and size of the filesystem on a block device.
    pub fn filesystem_on(&self, path: impl AsRef<Path>) -> Option<(String, u64)> {
        let mut kernel = self.kernel.lock();
        let at = kernel.resolve(ROOT, path.as_ref(), Reach::InRoot, true).ok()?;
        kernel.disk(at).ok()?.filesystem.as_ref().map(|f| (f.kind.clone(), f.bytes))
    }

    /// Lets a filesystem that is on no device be mounted by its source, without counting as a call.
    pub fn with_export(&self, kind: &str, source: &str) {
        let mut kernel = self.kernel.lock();
        let root = kernel.make_root(0o755);
        kernel.exports.insert((kind.to_owned(), source.to_owned()), root);
    }

    /// Takes it away again: mounts of it stay.
    pub fn without_export(&self, kind: &str, source: &str) {
        self.kernel.lock().exports.remove(&(kind.to_owned(), source.to_owned()));
    }

    /// What programs do here; without it, there are none. Those that one set answers `NotFound` for are left to the next.
    pub fn with_programs(&self, act: impl Fn(&Program<'_>) -> io::Result<Ran> + Send + Sync + 'static) {
        self.kernel.lock().programs.push(Programs(Arc::new(act)));
    }

    /// What happens when a file of the kernel's is written to: its path, and what is written.
    pub fn with_settings(&self, act: impl Fn(&Path, &[u8]) + Send + Sync + 'static) {
        self.kernel.lock().settings = Some(Settings(Arc::new(act)));
    }

    /// Gives a regular file, made if need be, this content, without counting as a call.
    pub fn with_content(&self, path: impl AsRef<Path>, data: &[u8]) {
        let path = path.as_ref();
        let found = |k: &Kernel| k.resolve(ROOT, path, Reach::InRoot, true);
        if found(&self.kernel.lock()).is_err() {
            self.with_file(path, FileKind::File);
        }
        let mut kernel = self.kernel.lock();
        let at = found(&kernel).expect("just made");
        kernel.nodes.get_mut(&at.inode).expect("just made").body = Body::File(data.to_vec());
    }

    /// Makes a link, without counting as a call.
    pub fn with_link(&self, path: impl AsRef<Path>, target: &str) {
        let path = path.as_ref();
        let dir = path.parent().expect("a path below the root");
        self.with_dir(dir);
        let mut kernel = self.kernel.lock();
        let dir = kernel.resolve(ROOT, dir, Reach::InRoot, true).expect("just made");
        kernel.add(dir, path.file_name().expect("a name"), Body::Link(target.into()), 0o777).expect("new name");
    }

    /// Removes a name with all that is below it, without counting as a call.
    pub fn without(&self, path: impl AsRef<Path>) {
        let path = path.as_ref();
        let mut kernel = self.kernel.lock();
        let dir = path.parent().and_then(|d| kernel.resolve(ROOT, d, Reach::InRoot, true).ok());
        if let (Some(dir), Some(name)) = (dir, path.file_name())
            && let Ok(names) = kernel.dir(dir)
        {
            names.remove(name);
        }
    }

    /// Whether there is something of that name, without counting as a call.
    pub fn has(&self, path: impl AsRef<Path>) -> bool {
        self.kernel.lock().resolve(ROOT, path.as_ref(), Reach::InRoot, true).is_ok()
    }

    /// What is in a regular file, without counting as a call; nothing where there is none.
    pub fn content(&self, path: impl AsRef<Path>) -> Vec<u8> {
        let kernel = self.kernel.lock();
        let at = kernel.resolve(ROOT, path.as_ref(), Reach::InRoot, true);
        match at.and_then(|at| kernel.node(at)).map(|node| &node.body) {
            Ok(Body::File(data)) => data.clone(),
            _ => Vec::new(),
        }
    }

    /// The loop devices that have a file, with whether they refuse writes.
    pub fn loops(&self) -> Vec<(PathBuf, bool)> {
        self.kernel.lock().loops.iter().map(|(device, of)| (device.clone(), of.read_only)).collect()
    }

    /// The records of the attendants that live.
    pub fn attendants(&self) -> Vec<PathBuf> {
        let kernel = self.kernel.lock();
        kernel.attendants.values().map(|(dir, name)| kernel.path(*dir).join(name)).collect()
    }

    /// Ends all attendants, as a reboot, or somebody with a kill, does.
    pub fn kill_attendants(&self) {
        let mut kernel = self.kernel.lock();
        kernel.attendants.clear();
        kernel.awaited.clear();
    }

    /// Every mount but the root, oldest first.
    pub fn mounts(&self) -> Vec<FakeMount> {
        let kernel = self.kernel.lock();
        let describe = |m: &Mount| {
            let path = kernel.path(m.at?);
            Some(FakeMount { path, read_only: m.read_only, propagation: m.propagation, tmpfs: m.tmpfs })
        };
        kernel.mounts.values().filter_map(describe).collect()
    }

    /// Everything below a directory, as paths from the root, through mounts.
    pub fn tree(&self, top: impl AsRef<Path>) -> Vec<PathBuf> {
        let kernel = self.kernel.lock();
        let Ok(at) = kernel.resolve(ROOT, top.as_ref(), Reach::InRoot, true) else { return Vec::new() };
        let mut found = Vec::new();
        kernel.collect(at, top.as_ref(), &mut found);
        found
    }

    /// What a test must not leave: mounts, and everything below `top`.
    pub fn leftovers(&self, top: impl AsRef<Path>) -> Vec<PathBuf> {
        let mounts = self.mounts().into_iter().map(|m| m.path);
        mounts.chain(self.tree(top)).collect()
    }
}
