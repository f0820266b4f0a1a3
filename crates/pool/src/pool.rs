//! The pool: opening it, and making, growing and deleting volumes.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use sys::{Disk, Sys};

use crate::{
    Backend, Content, Id, Limit, Origin, Snapshot, Volume,
    error::{PoolError, failed},
    format,
    record::{decode, encode},
    room::size_for,
};

/// All that a pool needs of the machine.
pub trait Kernel: Sys + Disk {}
impl<T: Sys + Disk> Kernel for T {}

pub(crate) const RECORD: &str = "record.json";
pub(crate) const IMAGE: &str = "image";
pub(crate) const DATA: &str = "data";
const VOLUMES: &str = "volumes";
const SNAPSHOTS: &str = "snapshots";
const TRASH: &str = "trash";
const MAKING: &str = "making";

/// A volume that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// Asking again for the same name gives the same volume.
    pub name: String,
    /// It has at least so many bytes; 0: not said.
    pub required_bytes: u64,
    /// It has at most so many bytes; 0: not said.
    pub limit_bytes: u64,
    pub backend: Backend,
    pub content: Content,
    /// Words for the program that makes the filesystem, from a list that is known here. Of a copy: not used.
    pub format: Vec<String>,
    /// Fail where nothing would keep the volume from outgrowing its size.
    pub limit_required: bool,
    /// Begin as a copy of this.
    pub origin: Option<Origin>,
    /// Do not keep room for all of it.
    pub shares_room: bool,
    /// What its owner wants to find with it. A volume that differs only in this is the same.
    pub notes: BTreeMap<String, String>,
}

/// A directory of volumes.
pub struct Pool {
    pub(crate) kernel: Arc<dyn Kernel>,
    pub(crate) dir: PathBuf,
    index: Mutex<Index>,
    _lock: File,
}

#[derive(Default)]
struct Index {
    volumes: BTreeMap<Id, Volume>,
    snapshots: BTreeMap<Id, Snapshot>,
    /// Being worked on.
    busy: BTreeSet<Id>,
}

/// The right to work on one volume or snapshot; others are told to come back.
pub(crate) struct Turn<'a> {
    pool: &'a Pool,
    id: Id,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.pool.index.lock().busy.remove(&self.id);
    }
}

impl Pool {
    /// Opens the pool in `dir`, which is made if it is not there. What an earlier process left half made is removed.
    ///
    /// # Errors
    /// The directory cannot be used, another process has it, or a record in it is damaged.
    pub fn open(dir: &Path, kernel: Arc<dyn Kernel>) -> Result<Self, PoolError> {
        kernel.ensure_dir(dir).map_err(failed("make", dir))?;
        let lock_path = dir.join("lock");
        let lock = File::create(&lock_path).map_err(failed("make", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PoolError::Locked(dir.to_owned())),
            Err(TryLockError::Error(e)) => return Err(failed("lock", &lock_path)(e)),
        }
        let pool = Self { kernel, dir: dir.to_owned(), index: Mutex::default(), _lock: lock };
        for part in [VOLUMES, SNAPSHOTS, TRASH, MAKING] {
            let part = dir.join(part);
            pool.kernel.ensure_dir(&part).map_err(failed("make", &part))?;
        }
        let making = dir.join(MAKING);
        for name in pool.kernel.names(&making).map_err(failed("list", &making))? {
            let half = making.join(name);
            pool.kernel.remove(&half).map_err(failed("remove", &half))?;
        }
        let volumes = pool.load(VOLUMES, |v: &Volume| v.id.clone())?;
        let snapshots = pool.load(SNAPSHOTS, |s: &Snapshot| s.id.clone())?;
        *pool.index.lock() = Index { volumes, snapshots, ..Index::default() };
        pool.thaw_all()?;
        Ok(pool)
    }

    fn load<T: for<'a> serde::Deserialize<'a>>(
        &self,
        part: &str,
        id_of: impl Fn(&T) -> Id,
    ) -> Result<BTreeMap<Id, T>, PoolError> {
        let dir = self.dir.join(part);
        let mut found = BTreeMap::new();
        for name in self.kernel.names(&dir).map_err(failed("list", &dir))? {
            let path = dir.join(&name).join(RECORD);
            let record: T = decode(&path, &self.kernel.read(&path).map_err(failed("read", &path))?)?;
            let id = id_of(&record);
            if id.as_str() != name || Id::parse(&name).is_none() {
                return Err(PoolError::Damaged { path, why: format!("it is the record of {id}") });
            }
            found.insert(id, record);
        }
        Ok(found)
    }

    /// Seconds since 1970.
    pub(crate) fn seconds(&self) -> u64 {
        self.kernel.now().as_secs()
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.dir.join(TRASH)
    }

    pub(crate) fn volume_dir(&self, id: &Id) -> PathBuf {
        self.dir.join(VOLUMES).join(id.as_str())
    }

    pub(crate) fn snapshot_dir(&self, id: &Id) -> PathBuf {
        self.dir.join(SNAPSHOTS).join(id.as_str())
    }

    pub(crate) fn image(&self, id: &Id) -> PathBuf {
        self.volume_dir(id).join(IMAGE)
    }

    pub(crate) fn data(&self, id: &Id) -> PathBuf {
        self.volume_dir(id).join(DATA)
    }

    /// Takes the turn of a volume or snapshot.
    pub(crate) fn turn(&self, id: &Id) -> Result<Turn<'_>, PoolError> {
        if !self.index.lock().busy.insert(id.clone()) {
            return Err(PoolError::Busy { id: id.to_string() });
        }
        Ok(Turn { pool: self, id: id.clone() })
    }

    /// A volume.
    pub fn volume(&self, id: &Id) -> Option<Volume> {
        self.index.lock().volumes.get(id).cloned()
    }

    pub(crate) fn existing(&self, id: &Id) -> Result<Volume, PoolError> {
        self.volume(id).ok_or_else(|| PoolError::NotFound { what: "volume", id: id.to_string() })
    }

    /// All volumes, by id.
    pub fn volumes(&self) -> Vec<Volume> {
        self.index.lock().volumes.values().cloned().collect()
    }

    /// A snapshot.
    pub fn snapshot(&self, id: &Id) -> Option<Snapshot> {
        self.index.lock().snapshots.get(id).cloned()
    }

    /// All snapshots, by id.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.index.lock().snapshots.values().cloned().collect()
    }

    pub(crate) fn remember(&self, volume: Volume) {
        self.index.lock().volumes.insert(volume.id.clone(), volume);
    }

    pub(crate) fn remember_snapshot(&self, snapshot: Snapshot) {
        self.index.lock().snapshots.insert(snapshot.id.clone(), snapshot);
    }

    pub(crate) fn forget_snapshot(&self, id: &Id) {
        self.index.lock().snapshots.remove(id);
    }

    /// Looks what a request left of a volume or snapshot when it failed: a call that reports an error may have acted.
    pub(crate) fn look_again<T>(&self, id: &Id, result: Result<T, PoolError>) -> Result<T, PoolError> {
        if result.is_err() {
            let volume = self.volume_dir(id).join(RECORD);
            let snapshot = self.snapshot_dir(id).join(RECORD);
            let mut index = self.index.lock();
            look(&*self.kernel, &mut index.volumes, id, &volume);
            look(&*self.kernel, &mut index.snapshots, id, &snapshot);
        }
        result
    }

    /// Makes a volume, or finds the one that was made for this name.
    ///
    /// # Errors
    /// The name has a volume that differs, the origin is missing or larger, there is no room, or the machine failed.
    pub fn create(&self, new: &NewVolume) -> Result<Volume, PoolError> {
        let id = Id::of_name(&new.name);
        let _turn = self.turn(&id)?;
        if let Some(volume) = self.volume(&id) {
            return same(&volume, new).map(|()| volume);
        }
        let volume = self.plan(id, new)?;
        if volume.keeps_room() {
            self.make_room(volume.bytes)?;
        }
        let made = self.look_again(&volume.id, self.make(volume.clone(), new.limit_required))?;
        self.remember(made.clone());
        Ok(made)
    }

    /// What the wanted volume will be.
    pub(crate) fn plan(&self, id: Id, new: &NewVolume) -> Result<Volume, PoolError> {
        let mut required = new.required_bytes;
        format::check(&new.content, &new.format)?;
        if new.backend != Backend::Image && new.content == Content::Block {
            return Err(PoolError::Invalid("a directory is no block device; use backend=image".into()));
        }
        if let Some(origin) = &new.origin {
            let (bytes, content, backend) = self.origin(origin)?;
            if content != new.content {
                let why = format!("a copy of {content:?} cannot be {:?}; ask for what the original is", new.content);
                return Err(PoolError::Invalid(why));
            }
            // What was rounded up for the original is for its copy too.
            let would_be = if required == 0 { bytes } else { size_for(required, 0, self.least_bytes(new))? };
            if would_be < bytes || new.limit_bytes != 0 && new.limit_bytes < bytes {
                let why =
                    format!("a copy of something that has {bytes} bytes is to have fewer; ask for {bytes} or more");
                return Err(PoolError::Size(why));
            }
            if new.backend != backend {
                let why = format!("a copy of a volume whose backend is {backend:?} cannot be a {:?}", new.backend);
                return Err(PoolError::Invalid(why.to_lowercase()));
            }
            required = required.max(bytes);
        } else if new.backend == Backend::Image {
            self.can_make(&new.content)?;
        }
        Ok(Volume {
            bytes: size_for(required, new.limit_bytes, self.least_bytes(new))?,
            id,
            name: new.name.clone(),
            backend: new.backend,
            limit: Limit::default(),
            project: 0,
            content: new.content.clone(),
            format: new.format.clone(),
            origin: new.origin.clone(),
            shares_room: new.shares_room,
            notes: new.notes.clone(),
            filesystem_bytes: 0,
            made: self.seconds(),
        })
    }

    /// A directory has no filesystem of its own that needs some space to begin with.
    fn least_bytes(&self, new: &NewVolume) -> u64 {
        if new.backend == Backend::Image { format::least_bytes(&new.content) } else { 0 }
    }

    /// Told when the volume is asked for, where somebody looks, rather than when it is first mounted.
    fn can_make(&self, content: &Content) -> Result<(), PoolError> {
        let Content::Filesystem(kind) = content else { return Ok(()) };
        if self.kernel.can_format(kind) {
            return Ok(());
        }
        let package = format::package(kind);
        let why = format!("mkfs.{kind} is not installed on this machine; install {package}, or ask for another fsType");
        Err(PoolError::State(why))
    }

    /// Size, content and backend of what a volume is to begin as a copy of.
    fn origin(&self, origin: &Origin) -> Result<(u64, Content, Backend), PoolError> {
        match origin {
            Origin::Snapshot(id) => match self.snapshot(id) {
                Some(s) => Ok((s.bytes, s.content, s.backend)),
                None => Err(PoolError::NotFound { what: "snapshot", id: id.to_string() }),
            },
            Origin::Volume(id) => match self.existing(id)? {
                v if v.backend != Backend::Directory => Ok((v.bytes, v.content, v.backend)),
                _ => Err(PoolError::Invalid(format!("volume {id} is a directory, of which there are no copies"))),
            },
        }
    }

    fn make(&self, volume: Volume, limit_required: bool) -> Result<Volume, PoolError> {
        let place = self.volume_dir(&volume.id);
        self.put_in_place(&format!("volume.{}", volume.id), &place, |half| self.fill(volume, half, limit_required))
    }

    pub(crate) fn make_snapshot(&self, snapshot: &Snapshot) -> Result<(), PoolError> {
        let place = self.snapshot_dir(&snapshot.id);
        let fill = |half: &Path| self.copy_volume(&snapshot.volume, half).map(|()| snapshot.clone());
        self.put_in_place(&format!("snapshot.{}", snapshot.id), &place, fill).map(drop)
    }

    /// Makes a directory where nobody looks, lets it be filled, and gives it its record and its place.
    pub(crate) fn put_in_place<T: serde::Serialize>(
        &self,
        name: &str,
        place: &Path,
        fill: impl FnOnce(&Path) -> Result<T, PoolError>,
    ) -> Result<T, PoolError> {
        let (kernel, half) = (&self.kernel, self.dir.join(MAKING).join(name));
        // What an earlier try of this process left.
        kernel.remove(&half).map_err(failed("remove", &half))?;
        let made = (|| {
            kernel.ensure_dir(&half).map_err(failed("make", &half))?;
            let record = fill(&half)?;
            let file = half.join(RECORD);
            kernel.write(&file, &encode(&record)).map_err(failed("write", &file))?;
            kernel.move_to(&half, place).map_err(failed("put in place", &half))?;
            Ok(record)
        })();
        if made.is_err() {
            // The next try, or the next start, removes what this cannot.
            let _ = kernel.remove(&half);
        }
        made
    }

    /// Moves a volume to the trash. What is not there counts as deleted.
    ///
    /// # Errors
    /// It is in use, or the machine failed.
    pub fn delete(&self, id: &Id) -> Result<(), PoolError> {
        let _turn = self.turn(id)?;
        let Some(volume) = self.volume(id) else { return Ok(()) };
        self.release(&volume)?;
        self.look_again(id, self.to_trash(id))?;
        self.index.lock().volumes.remove(id);
        Ok(())
    }

    /// Gives a volume at least `required` and at most `limit` bytes (0: not said). Its filesystem grows when it is
    /// expanded where it is staged. Returns its size.
    ///
    /// # Errors
    /// No such volume, no room, or the machine failed.
    pub fn expand(&self, id: &Id, required: u64, limit: u64) -> Result<u64, PoolError> {
        let _turn = self.turn(id)?;
        let mut volume = self.existing(id)?;
        let bytes = size_for(required, limit, 0)?;
        if limit != 0 && volume.bytes > limit {
            let why = format!("volume {id} has {} bytes, and volumes do not shrink", volume.bytes);
            return Err(PoolError::Size(why));
        }
        if bytes <= volume.bytes {
            return Ok(volume.bytes);
        }
        if volume.keeps_room() {
            self.make_room(bytes - volume.bytes)?;
        }
        self.enlarge(&volume, bytes)?;
        volume.bytes = bytes;
        self.write_record(&volume)?;
        Ok(bytes)
    }

    pub(crate) fn write_record(&self, volume: &Volume) -> Result<(), PoolError> {
        let record = self.volume_dir(&volume.id).join(RECORD);
        let written = self.kernel.write(&record, &encode(volume)).map_err(failed("write", &record));
        self.look_again(&volume.id, written)?;
        self.remember(volume.clone());
        Ok(())
    }
}

fn look<T: for<'a> serde::Deserialize<'a>>(kernel: &dyn Kernel, index: &mut BTreeMap<Id, T>, id: &Id, record: &Path) {
    match kernel.read(record) {
        Ok(bytes) => {
            if let Ok(found) = decode(record, &bytes) {
                index.insert(id.clone(), found);
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => drop(index.remove(id)),
        // Nothing new is known.
        Err(_) => {}
    }
}

/// Whether an existing volume is what is asked for.
fn same(volume: &Volume, new: &NewVolume) -> Result<(), PoolError> {
    let too_small = volume.bytes < new.required_bytes;
    let too_large = new.limit_bytes != 0 && volume.bytes > new.limit_bytes;
    let difference = if too_small || too_large {
        format!("it has {} bytes", volume.bytes)
    } else if volume.backend != new.backend {
        format!("its backend is {:?}", volume.backend)
    } else if volume.content != new.content {
        format!("it is {:?}", volume.content)
    } else if volume.format != new.format {
        format!("its filesystem is made with {:?}", volume.format.join(" "))
    } else if new.limit_required && volume.limit == Limit::None {
        "nothing keeps it from outgrowing its size".to_owned()
    } else if volume.origin != new.origin {
        format!("it began as {:?}", volume.origin)
    } else {
        return Ok(());
    };
    Err(PoolError::Exists { what: "volume", name: new.name.clone(), difference })
}
