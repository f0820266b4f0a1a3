//! Commands in containers, and attachments to a container's own streams.
use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{FutureExt, future::FusedFuture};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, unix::AsyncFd},
    net::{UnixStream, unix::pipe},
    sync::{mpsc, oneshot},
};

use super::{
    Inner,
    client::{self, ShimConnection},
    io_error,
};
use crate::{
    contract::{ContainerId, ExecOutput, ExecSpec, Reader, RuntimeError, Session, TermSize, Writer},
    launch::{ExecReply, ExecRequest, Launch, Process},
    records,
    shim::{Mode, set_size},
    wire::{self, Exit, Reply, Request, frame},
};

/// Output of [`crate::Runtime::exec_sync`] that is kept, in bytes.
const OUTPUT_MAX: usize = 16 << 10;
/// How long output is awaited after a command's end, when something it started still holds the pipe.
const DRAIN_MAX: Duration = Duration::from_millis(500);
/// Buffer between an attachment's socket and its streams, in bytes.
const STREAM_BUFFER: usize = 64 << 10;

/// The daemon's ends of a command's stdio.
struct Ends {
    stdin: Option<pipe::Sender>,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
}

impl Inner {
    pub(super) async fn remount(
        &self,
        id: &ContainerId,
        mounts: Vec<crate::contract::Mount>,
    ) -> Result<(), RuntimeError> {
        let (found, state) = self.running(id)?;
        let launch: Launch = records::read(&self.container_dir(id).join(records::LAUNCH))
            .map_err(io_error("read the container's launch description"))?
            .ok_or_else(|| RuntimeError::NoContainer(id.0.clone()))?;
        let work = tokio::task::spawn_blocking(move || crate::remount::show(&state.init, &mounts, &launch.mounts));
        let done = work.await.map_err(|e| RuntimeError::Other(e.to_string()))?;
        done.map_err(io_error(format!("change mounts of container {}", found.record.spec.name)))
    }

    pub(super) async fn exec(&self, id: &ContainerId, spec: &ExecSpec) -> Result<Session, RuntimeError> {
        let (found, state) = self.running(id)?;
        let launch: Launch = records::read(&self.container_dir(id).join(records::LAUNCH))
            .map_err(io_error("read the container's launch description"))?
            .ok_or_else(|| RuntimeError::NoContainer(id.0.clone()))?;
        let mut env = launch.process.env;
        if spec.tty && !env.iter().any(|(name, _)| name == "TERM") {
            env.push(("TERM".to_owned(), "xterm".to_owned()));
        }
        let process = Process { args: spec.command.clone(), env, tty: spec.tty, ..launch.process };
        let request = ExecRequest { init: state.init, cgroup: found.record.cgroup, process, identity: state.identity };
        let container = found.record.spec.name;
        let failed = || io_error(format!("run a command in container {container}"));
        let (fds, ends) = if spec.tty {
            (Vec::new(), None)
        } else {
            let (fds, ends) = pipes(spec.stdin).map_err(failed())?;
            (fds, Some(ends))
        };
        let (socket, child) = client::spawn(&self.exe, Mode::Exec, None, None).map_err(failed())?;
        collect(child);
        // Short and bounded by the helper's life: it answers or hangs up.
        let dialogue = tokio::task::spawn_blocking(move || -> io::Result<_> {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            wire::send(&socket, &request, &borrowed)?;
            drop(borrowed);
            drop(fds);
            Ok((wire::recv::<ExecReply>(&socket)?, socket))
        });
        let (reply, socket) = dialogue.await.map_err(|e| RuntimeError::Other(e.to_string()))?.map_err(failed())?;
        match reply {
            Some((ExecReply::Started, mut fds)) => {
                session(spec, ends, fds.pop(), exit_of(socket).map_err(failed())?).map_err(failed())
            }
            Some((ExecReply::Failed(why), _)) => Err(RuntimeError::Start { container, why }),
            Some((ExecReply::Exited(_), _)) | None => Err(RuntimeError::NotRunning(id.0.clone())),
        }
    }

    pub(super) async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        let spec = ExecSpec { command: command.to_vec(), tty: false, stdin: false };
        let run = async {
            let session = self.exec(id, &spec).await?;
            let output = parking_lot::Mutex::new(Vec::new());
            let mut reading = std::pin::pin!(
                futures::future::join(
                    keep(session.stdout, &output, OUTPUT_MAX),
                    keep(session.stderr, &output, OUTPUT_MAX),
                )
                .fuse()
            );
            let mut exit = session.exit;
            let code = tokio::select! {
                code = &mut exit => {
                    // What the command started may outlive it and hold its output open.
                    if !reading.is_terminated() {
                        let _ = tokio::time::timeout(DRAIN_MAX, &mut reading).await;
                    }
                    code
                }
                _ = &mut reading => exit.await,
            };
            let code = code.map_err(|_| RuntimeError::NotRunning(id.0.clone()))?;
            Ok(ExecOutput { exit_code: code, output: std::mem::take(&mut *output.lock()) })
        };
        // Leaving `run` drops the session, which kills the command.
        match tokio::time::timeout(if timeout.is_zero() { Duration::MAX } else { timeout }, run).await {
            Ok(result) => result,
            Err(_) => Err(RuntimeError::Timeout(timeout)),
        }
    }

    pub(super) async fn attach(&self, id: &ContainerId, stdin: bool) -> Result<Session, RuntimeError> {
        let (found, _) = self.running(id)?;
        let not_running = || RuntimeError::NotRunning(id.0.clone());
        let reach = || io_error("reach the shim");
        let mut shim =
            ShimConnection::connect(&self.container_dir(id)).await.map_err(reach())?.ok_or_else(not_running)?;
        let tty = found.record.spec.tty;
        let stdin = stdin && found.record.spec.stdin;
        match shim.ask(&Request::Attach { stdin }).await.map_err(reach())? {
            Some(Reply::Done) => Ok(attachment(shim, tty, stdin)),
            _ => Err(not_running()),
        }
    }
}

/// Reads `source` to its end into `output`, keeping at most `max` bytes in all.
async fn keep(source: Option<Reader>, output: &parking_lot::Mutex<Vec<u8>>, max: usize) {
    let Some(mut source) = source else { return };
    let mut chunk = vec![0; 4096];
    while let Ok(n @ 1..) = source.read(&mut chunk).await {
        let mut output = output.lock();
        let room = max - output.len();
        output.extend_from_slice(&chunk[..n.min(room)]);
    }
}

/// Collects a child when it ends, whoever has waited for its work.
fn collect(mut child: tokio::process::Child) {
    tokio::spawn(async move {
        let _ = child.wait().await;
    });
}

fn pipes(stdin: bool) -> io::Result<(Vec<OwnedFd>, Ends)> {
    let pair = || pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from);
    let (input, stdin) = if stdin {
        let (read, write) = pair()?;
        rustix::io::ioctl_fionbio(&write, true)?;
        (read, Some(pipe::Sender::from_owned_fd(write)?))
    } else {
        (std::fs::File::open("/dev/null")?.into(), None)
    };
    let output = || -> io::Result<_> {
        let (read, write) = pair()?;
        rustix::io::ioctl_fionbio(&read, true)?;
        Ok((write, pipe::Receiver::from_owned_fd(read)?))
    };
    let ((out, stdout), (err, stderr)) = (output()?, output()?);
    Ok((vec![input, out, err], Ends { stdin, stdout, stderr }))
}

/// Resolves with the exit code; dropping the receiver hangs up on the helper, which kills the command.
fn exit_of(socket: StdStream) -> io::Result<oneshot::Receiver<i32>> {
    socket.set_nonblocking(true)?;
    let mut socket = UnixStream::from_std(socket)?;
    let (mut sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        let code = async {
            let len = socket.read_u32().await?;
            let mut body = vec![0; (len as usize).min(wire::MAX_PAYLOAD)];
            socket.read_exact(&mut body).await?;
            match serde_json::from_slice(&body)? {
                ExecReply::Exited(code) => Ok(code),
                _ => Err(io::Error::other("unexpected message")),
            }
        };
        tokio::select! {
            code = code => {
                // A helper that died was killed with its command.
                let _ = sender.send(code.unwrap_or(137));
            }
            () = sender.closed() => {}
        }
    });
    Ok(receiver)
}

fn session(
    spec: &ExecSpec,
    ends: Option<Ends>,
    master: Option<OwnedFd>,
    exit: oneshot::Receiver<i32>,
) -> io::Result<Session> {
    if let Some(ends) = ends {
        return Ok(Session {
            stdin: ends.stdin.map(|s| Box::new(s) as Writer),
            stdout: Some(Box::new(ends.stdout)),
            stderr: Some(Box::new(ends.stderr)),
            resize: None,
            exit,
        });
    }
    let master = master.ok_or_else(|| io::Error::other("the command's terminal did not arrive"))?;
    rustix::io::ioctl_fionbio(&master, true)?;
    #[expect(
        deprecated,
        reason = "its replacement is unsafe; an owned descriptor, never replaced, keeps what that asks for"
    )]
    let terminal = Arc::new(AsyncFd::new(master)?);
    let (resize, mut sizes) = mpsc::channel(4);
    let weak = Arc::downgrade(&terminal);
    tokio::spawn(async move {
        while let Some(size) = sizes.recv().await {
            let Some(terminal) = weak.upgrade() else { return };
            set_size(terminal.get_ref(), size);
        }
    });
    Ok(Session {
        stdin: spec.stdin.then(|| Box::new(Terminal(terminal.clone())) as Writer),
        stdout: Some(Box::new(Terminal(terminal))),
        stderr: None,
        resize: Some(resize),
        exit,
    })
}

/// The master of a terminal as a stream.
struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let room = buf.initialize_unfilled();
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *room)?)) {
                Ok(Ok(n)) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                // The last process has closed the terminal: its way of saying end of file.
                Ok(Err(e)) if e.raw_os_error() == Some(nix::libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), buf)?)) {
                return Poll::Ready(result);
            }
        }
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Turns a connection to a shim into streams.
fn attachment(shim: ShimConnection, tty: bool, stdin: bool) -> Session {
    let (mut out_near, out_far) = tokio::io::duplex(STREAM_BUFFER);
    let (mut err_near, err_far) = tokio::io::duplex(STREAM_BUFFER);
    let (in_near, in_far) = tokio::io::duplex(STREAM_BUFFER);
    let (mut exited, exit) = oneshot::channel();
    let (resize, sizes) = mpsc::channel(4);
    let (mut read, write, buffer) = shim.split();
    let sending = tokio::spawn(send_input(write, stdin.then_some(in_near), sizes));
    tokio::spawn(async move {
        let mut buffer = buffer;
        let relay = async {
            loop {
                while let Ok(Some((kind, payload))) = wire::take_frame(&mut buffer) {
                    match kind {
                        // A reader that has gone away must not stop the other stream.
                        frame::STDOUT => drop(out_near.write_all(&payload).await),
                        frame::STDERR => drop(err_near.write_all(&payload).await),
                        frame::EXIT => return serde_json::from_slice::<Exit>(&payload).map_or(137, |e| e.code),
                        _ => {}
                    }
                }
                if !matches!(read.read_buf(&mut buffer).await, Ok(1..)) {
                    return 137;
                }
            }
        };
        tokio::select! {
            code = relay => { let _ = exited.send(code); }
            () = exited.closed() => {}
        }
        sending.abort();
    });
    Session {
        stdin: stdin.then(|| Box::new(in_far) as Writer),
        stdout: Some(Box::new(out_far)),
        stderr: (!tty).then(|| Box::new(err_far) as Reader),
        resize: tty.then_some(resize),
        exit,
    }
}

/// Sends stdin and terminal sizes to a shim until both have ended.
async fn send_input(
    mut write: tokio::net::unix::OwnedWriteHalf,
    mut stdin: Option<tokio::io::DuplexStream>,
    mut sizes: mpsc::Receiver<TermSize>,
) {
    let mut chunk = vec![0; 16 << 10];
    let mut resizing = true;
    loop {
        let mut out = Vec::new();
        let input = async {
            match &mut stdin {
                Some(s) => s.read(&mut chunk).await.unwrap_or(0),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            n = input => {
                if n == 0 {
                    stdin = None;
                    wire::put_frame(&mut out, frame::STDIN_END, &[]);
                } else {
                    wire::put_frame(&mut out, frame::STDIN, &chunk[..n]);
                }
            }
            size = sizes.recv(), if resizing => match size {
                Some(size) => wire::put_frame(&mut out, frame::RESIZE, &serde_json::to_vec(&size).unwrap_or_default()),
                None => resizing = false,
            },
        }
        if write.write_all(&out).await.is_err() {
            return;
        }
    }
}
