//! What CSI has no words for, for the one who owns the machine: the trash, and volumes as archives. Served beside CSI's
//! services, on a socket that only root can reach.
//!
//! An archive goes through a pipe of the one who asks, named by process and file descriptor: when either side dies the other
//! finds the pipe closed, and nothing is left half made.
use std::{
    io::{self, BufReader, BufWriter, Read, Write},
    sync::Arc,
};

use csi::{Status, service};
use pool::{Backend, Content, Health, Id, Limit, Pool, PoolError, Trashed};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    runtime::Handle,
};
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;

use crate::{
    controller::{NOTE_CLAIM, NOTE_MODES, NOTE_NAMESPACE},
    required, stand_in, status,
};

/// Bytes that go through a pipe at once.
const CHUNK_BYTES: usize = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct ListRequest {}

/// Volumes, deleted ones too.
#[derive(Clone, PartialEq, Message)]
pub struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    pub volumes: Vec<Kept>,
}

/// A volume of the pool.
#[derive(Clone, PartialEq, Message)]
pub struct Kept {
    /// What CSI calls `volume_id`.
    #[prost(string, tag = "1")]
    pub handle: String,
    /// Its size, in bytes.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
    /// What it takes of the machine's disk, in bytes; zero where nobody knows.
    #[prost(uint64, tag = "3")]
    pub taken_bytes: u64,
    /// As the class parameter of that name says it.
    #[prost(string, tag = "4")]
    pub backend: String,
    /// Empty: a raw block device.
    #[prost(string, tag = "5")]
    pub filesystem: String,
    /// When it was deleted, in seconds since 1970; zero: it is there.
    #[prost(uint64, tag = "6")]
    pub deleted: u64,
    /// Claim for which it was made, if that was said.
    #[prost(string, tag = "7")]
    pub namespace: String,
    #[prost(string, tag = "8")]
    pub claim: String,
    /// Access modes that were asked for, in Kubernetes' words.
    #[prost(string, repeated, tag = "9")]
    pub modes: Vec<String>,
    /// A path where it is mounted now; empty: nowhere.
    #[prost(string, tag = "10")]
    pub mounted_at: String,
    /// What is wrong with it, in a sentence; empty: nothing.
    #[prost(string, tag = "11")]
    pub trouble: String,
    /// Nothing keeps it from outgrowing its size, and nobody counts what it uses.
    #[prost(bool, tag = "12")]
    pub unlimited: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct UndeleteRequest {
    #[prost(string, tag = "1")]
    pub handle: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ExportRequest {
    #[prost(string, tag = "1")]
    pub handle: String,
    /// Who has the pipe.
    #[prost(uint32, tag = "2")]
    pub process: u32,
    /// The end of it to write to.
    #[prost(int32, tag = "3")]
    pub file: i32,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct ExportResponse {}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ImportRequest {
    /// Of the volume.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Who has the pipe.
    #[prost(uint32, tag = "2")]
    pub process: u32,
    /// The end of it to read from.
    #[prost(int32, tag = "3")]
    pub file: i32,
}

service! {
    /// A pool, to its owner.
    "holdfast.v1.Admin": Admin, AdminServer, AdminClient;
    /// All volumes, deleted ones too.
    list = "List" (ListRequest) -> ListResponse;
    /// Brings a deleted volume back, that of this handle which was deleted last. One that is there already is fine.
    undelete = "Undelete" (UndeleteRequest) -> Kept;
    /// Writes a volume as an archive.
    export = "Export" (ExportRequest) -> ExportResponse;
    /// Makes a volume from an archive.
    import = "Import" (ImportRequest) -> Kept;
}

/// Adds the service to those of the driver of that name, whose volumes are in `pool`. Archives that are under way when `stop`
/// is cancelled are given up.
pub fn add_to(routes: &mut RoutesBuilder, driver: &str, pool: Arc<Pool>, stop: CancellationToken) {
    routes.add_service(AdminServer(Arc::new(Owner { pool, is_stand_in: driver != crate::NAME, stop })));
}

struct Owner {
    pool: Arc<Pool>,
    is_stand_in: bool,
    stop: CancellationToken,
}

/// What CSI calls a volume of a pool.
fn handle(volume: &pool::Volume, is_stand_in: bool) -> String {
    let own = || volume.id.to_string();
    if is_stand_in { stand_in::handle(volume.clone()).unwrap_or_else(own) } else { own() }
}

fn kept(volume: &pool::Volume, is_stand_in: bool) -> Kept {
    let note = |key: &str| volume.notes.get(key).cloned().unwrap_or_default();
    let backend = match volume.backend {
        Backend::Image => "image",
        Backend::Directory => "directory",
        Backend::Subvolume => "subvolume",
    };
    let filesystem = match &volume.content {
        Content::Filesystem(kind) => kind.clone(),
        Content::Block => String::new(),
    };
    Kept {
        handle: handle(volume, is_stand_in),
        bytes: volume.bytes,
        backend: backend.to_owned(),
        filesystem,
        namespace: note(NOTE_NAMESPACE),
        claim: note(NOTE_CLAIM),
        unlimited: volume.limit == Limit::None,
        modes: note(NOTE_MODES).split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect(),
        ..Kept::default()
    }
}

fn present(pool: &Pool, volume: &pool::Volume, is_stand_in: bool) -> Result<Kept, PoolError> {
    let mounted_at = pool.mounted_at(&volume.id)?.map(|at| at.to_string_lossy().into_owned()).unwrap_or_default();
    let trouble = match pool.health(&volume.id)? {
        Health::Good => String::new(),
        Health::Bad(why) => why,
    };
    Ok(Kept { taken_bytes: pool.taken_bytes(volume), mounted_at, trouble, ..kept(volume, is_stand_in) })
}

fn deleted(trashed: &Trashed, is_stand_in: bool) -> Kept {
    let known = kept(&trashed.volume, is_stand_in);
    Kept { deleted: trashed.deleted, taken_bytes: trashed.takes_bytes, ..known }
}

impl Owner {
    /// Does something with the pool, which waits for disks and pipes, off the threads that serve.
    async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Pool, bool) -> Result<T, PoolError> + Send + 'static,
    ) -> Result<T, Status> {
        let (pool, is_stand_in) = (self.pool.clone(), self.is_stand_in);
        let ended = tokio::task::spawn_blocking(move || act(&pool, is_stand_in).map_err(Failed::from)).await;
        ended.map_err(|e| Status::internal(format!("a request ended early: {e}")))?.map_err(|e| e.status())
    }

    /// The volume that is there under a handle.
    fn existing(&self, handle: &str) -> Option<Id> {
        let all = self.pool.volumes().into_iter();
        all.map(|v| (self::handle(&v, self.is_stand_in), v.id)).find(|(h, _)| h == handle).map(|(_, id)| id)
    }
}

#[async_trait::async_trait]
impl Admin for Owner {
    async fn list(&self, _: ListRequest) -> Result<ListResponse, Status> {
        self.with(|pool, is_stand_in| {
            let mut volumes = Vec::new();
            for volume in pool.volumes() {
                match present(pool, &volume, is_stand_in) {
                    // Deleted meanwhile.
                    Err(e) if e.kind() == pool::Kind::NotFound => {}
                    other => volumes.push(other?),
                }
            }
            volumes.extend(pool.trashed()?.iter().map(|t| deleted(t, is_stand_in)));
            Ok(ListResponse { volumes })
        })
        .await
    }

    async fn undelete(&self, request: UndeleteRequest) -> Result<Kept, Status> {
        let wanted = required("handle", &request.handle)?.to_owned();
        let existing = self.existing(&wanted);
        self.with(move |pool, is_stand_in| {
            if let Some(volume) = existing.and_then(|id| pool.volume(&id)) {
                return present(pool, &volume, is_stand_in);
            }
            let trashed = pool.trashed()?;
            let last = trashed.iter().rev().find(|t| handle(&t.volume, is_stand_in) == wanted);
            let last = last.ok_or_else(|| PoolError::NotFound { what: "deleted volume", id: wanted.clone() })?;
            let volume = pool.undelete(&last.volume.id)?;
            tracing::info!(volume = %volume.id, "a deleted volume is back");
            present(pool, &volume, is_stand_in)
        })
        .await
    }

    async fn export(&self, request: ExportRequest) -> Result<ExportResponse, Status> {
        let wanted = required("handle", &request.handle)?;
        let id = self.existing(wanted).ok_or_else(|| Status::not_found(format!("there is no volume {wanted:?}")))?;
        let (process, file) = (request.process, request.file);
        let sender = pipe::OpenOptions::new().open_sender(at(process, file)).map_err(no_pipe(process, file))?;
        // Cancelled too when the one who asked is gone, and with it this call.
        let stop = self.stop.child_token();
        let _given_up = stop.clone().drop_guard();
        let tokio = Handle::current();
        self.with(move |pool, _| {
            let mut out = BufWriter::with_capacity(CHUNK_BYTES, Pipe { end: sender, tokio, stop });
            pool.export(&id, &mut out, &mut |_, _| {})
        })
        .await?;
        Ok(ExportResponse {})
    }

    async fn import(&self, request: ImportRequest) -> Result<Kept, Status> {
        let name = required("name", &request.name)?.to_owned();
        if self.is_stand_in {
            let why = "disks of a stand-in are made by `holdfast disk create`; import into local volumes";
            return Err(Status::invalid_argument(why));
        }
        let (process, file) = (request.process, request.file);
        let receiver = pipe::OpenOptions::new().open_receiver(at(process, file)).map_err(no_pipe(process, file))?;
        let stop = self.stop.child_token();
        let _given_up = stop.clone().drop_guard();
        let tokio = Handle::current();
        self.with(move |pool, is_stand_in| {
            let mut from = BufReader::with_capacity(CHUNK_BYTES, Pipe { end: receiver, tokio, stop });
            let volume = pool.import(&name, &mut from, &mut |_, _| {})?;
            present(pool, &volume, is_stand_in)
        })
        .await
    }
}

/// Why something was not done.
enum Failed {
    Pool(PoolError),
    /// The one at the other end of the pipe has gone, which is no matter of this machine.
    Alone(String),
}

impl From<PoolError> for Failed {
    fn from(error: PoolError) -> Self {
        match &error {
            PoolError::Machine { source, .. } if source.get_ref().is_some_and(|e| e.is::<Gone>()) => {
                Self::Alone(base::chain(&error))
            }
            _ => Self::Pool(error),
        }
    }
}

impl Failed {
    fn status(&self) -> Status {
        match self {
            Self::Pool(error) => status(error),
            Self::Alone(text) => Status::cancelled(text),
        }
    }
}

/// Marks what went wrong with a pipe, not with the pool.
#[derive(Debug)]
struct Gone(&'static str);

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Gone {}

/// A file that another process has open.
fn at(process: u32, file: i32) -> String {
    format!("/proc/{process}/fd/{file}")
}

fn no_pipe(process: u32, file: i32) -> impl FnOnce(io::Error) -> Status {
    move |error| {
        Status::invalid_argument(format!(
            "the pipe {file} of process {process} cannot be opened: {error}; ask from the machine, and the container, that the \
             driver runs in"
        ))
    }
}

/// An end of a pipe, for those who wait: until something goes through, or nobody wants it any more.
struct Pipe<T> {
    end: T,
    tokio: Handle,
    stop: CancellationToken,
}

impl<T> Pipe<T> {
    fn wait<V>(&mut self, act: impl AsyncFnOnce(&mut T) -> io::Result<V>) -> io::Result<V> {
        let Self { end, tokio, stop } = self;
        tokio.block_on(async {
            tokio::select! {
                biased;
                () = stop.cancelled() => Err(io::Error::other(Gone("given up: the driver ends, or nobody waits for it"))),
                done = act(end) => done.map_err(|e| match e.kind() {
                    io::ErrorKind::BrokenPipe => io::Error::other(Gone("nobody reads it any more")),
                    _ => e,
                }),
            }
        })
    }
}

impl Read for Pipe<pipe::Receiver> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.wait(async |end| end.read(into).await)
    }
}

impl Write for Pipe<pipe::Sender> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait(async |end| end.write(bytes).await)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
