//! Unix sockets: where a driver listens, and how one is reached.
use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustix::fs::{Mode, OFlags};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Status,
    client::Grpc,
    service::RoutesBuilder,
    transport::{Channel, Endpoint, Server},
};

/// The longest message that is taken, in bytes: a page of [`crate::ListVolumesResponse`] outgrows gRPC's usual 4 MiB.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A driver answers there.
    #[error("another driver is listening on {}: stop it, or choose another --endpoint", .0.display())]
    Taken(PathBuf),
    /// There is something that is not ours to remove.
    #[error("{} is not a socket: choose another --endpoint", .0.display())]
    NotASocket(PathBuf),
    /// The kernel refused.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// gRPC over it ended with an error.
    #[error("serving {} ended", path.display())]
    Serve {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
}

/// A bound socket, removed when dropped.
pub struct Listener {
    socket: UnixListener,
    file: Remove,
}

impl Listener {
    /// Binds `path`, for root only. What a driver that was killed left there is replaced.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Listen { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
            Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
            Ok(_) if answers(path) => return Err(SocketError::Taken(path.to_owned())),
            Ok(_) => fs::remove_file(path).map_err(failed)?,
        }
        let (short, _above) = reachable(path).map_err(failed)?;
        let socket = UnixListener::bind(short).map_err(failed)?;
        let file = Remove::new(path);
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { socket, file })
    }

    /// Serves what `routes` holds until `stop` is ready; calls that are under way end first.
    ///
    /// # Errors
    /// [`SocketError::Serve`].
    pub async fn serve(self, routes: RoutesBuilder, stop: impl Future<Output = ()>) -> Result<(), SocketError> {
        let Self { socket, file } = self;
        Server::builder()
            .add_routes(routes.routes())
            .serve_with_incoming_shutdown(UnixListenerStream::new(socket), stop)
            .await
            .map_err(|source| SocketError::Serve { path: file.path.clone(), source })
    }
}

/// The longest path of a socket that the kernel takes, in bytes.
const PATH_MAX: usize = 107;

/// A path of a socket as the kernel takes it: a long one by way of its open directory, which has to live as long as the path
/// is used.
fn reachable(path: &Path) -> io::Result<(PathBuf, Option<OwnedFd>)> {
    if path.as_os_str().len() <= PATH_MAX {
        return Ok((path.to_owned(), None));
    }
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let above = rustix::fs::open(above, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok((Path::new("/proc/self/fd").join(above.as_raw_fd().to_string()).join(name), Some(above)))
}

/// Whether somebody listens there.
fn answers(path: &Path) -> bool {
    reachable(path).is_ok_and(|(short, _above)| std::os::unix::net::UnixStream::connect(short).is_ok())
}

/// Removes a socket's file, however serving ends, unless somebody else has put another one in its place.
struct Remove {
    path: PathBuf,
    id: Option<(u64, u64)>,
}

impl Remove {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), id: id_of(path) }
    }
}

impl Drop for Remove {
    fn drop(&mut self) {
        if self.id.is_some() && id_of(&self.path) == self.id {
            // Where that fails, the next start replaces the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Device and number of a file.
fn id_of(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// A driver behind a socket. Connects at the first call, and again after its end.
#[derive(Clone, Debug)]
pub struct Driver {
    channel: Channel,
    time_for_a_call: Duration,
}

impl Driver {
    /// The driver behind the socket at `path`, whose calls may take that long each.
    pub fn at(path: &Path, time_for_a_call: Duration) -> Self {
        let path = path.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move {
                let (short, _above) = reachable(&path)?;
                UnixStream::connect(short).await.map(TokioIo::new)
            }
        });
        // The name stands in the `:authority` header, which drivers ignore; the path to the socket is not a valid one.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Self { channel, time_for_a_call }
    }

    /// Calls what is at a path: `/service/Call`. Clients that `service!` makes do so.
    ///
    /// # Errors
    /// What the driver answered.
    pub async fn call<Req, Res>(&self, path: &'static str, message: Req) -> Result<Res, Status>
    where
        Req: prost::Message + 'static,
        Res: prost::Message + Default + 'static,
    {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let mut request = Request::new(message);
        request.set_timeout(self.time_for_a_call);
        let codec = tonic_prost::ProstCodec::default();
        let answered = grpc.unary(request, http::uri::PathAndQuery::from_static(path), codec).await;
        answered.map(tonic::Response::into_inner).map_err(|status| match is_late(&status) {
            true => Status::deadline_exceeded("context deadline exceeded"),
            false => status,
        })
    }
}

/// Whether a call ended because its time did: the transport has another code for that than CSI.
fn is_late(status: &Status) -> bool {
    status.code() == tonic::Code::Cancelled && status.message() == tonic::TimeoutExpired(()).to_string()
}
