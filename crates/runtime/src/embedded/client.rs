//! The daemon's side of talking to shims.
use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdStream},
    path::Path,
    process::Stdio,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::{Child, Command},
};

use crate::{
    records,
    shim::{Mode, NAME},
    wire::{self, Reply, Request, frame},
};

/// Starts a shim. Returns the daemon's end of the socket that the shim has as descriptor 0.
pub(super) fn spawn(
    exe: &Path,
    mode: Mode,
    dir: Option<&Path>,
    errors: Option<File>,
) -> io::Result<(StdStream, Child)> {
    let (ours, theirs) = StdStream::pair()?;
    let mut command = Command::new(exe);
    command.arg0(NAME).arg(mode.word()).args(dir);
    command.env_clear().stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
    command.stderr(errors.map_or_else(Stdio::null, Stdio::from));
    let child = command
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("run {} as a container shim: {e}", exe.display())))?;
    Ok((ours, child))
}

/// A connection to a container's shim.
pub(super) struct ShimConnection {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl ShimConnection {
    /// Takes over the socket a shim was started with.
    pub(super) fn over(socket: StdStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { stream: UnixStream::from_std(socket)?, buffer: Vec::new() })
    }

    /// Connects to the shim of the container in `dir`. `None` if there is none any more.
    pub(super) async fn connect(dir: &Path) -> io::Result<Option<Self>> {
        let opened = match File::open(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        match UnixStream::connect(records::short_path(&opened, records::SOCKET)).await {
            Ok(stream) => Ok(Some(Self { stream, buffer: Vec::new() })),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Sends a request and returns the answer; `None` if the shim went away meanwhile.
    pub(super) async fn ask(&mut self, request: &Request) -> io::Result<Option<Reply>> {
        match self.put(frame::REQUEST, &serde_json::to_vec(request)?).await {
            Err(e) if is_hang_up(&e) => return Ok(None),
            other => other?,
        }
        self.reply().await
    }

    /// The next reply, skipping other frames.
    pub(super) async fn reply(&mut self) -> io::Result<Option<Reply>> {
        while let Some((kind, payload)) = self.next().await? {
            if kind == frame::REPLY {
                return Ok(Some(serde_json::from_slice(&payload)?));
            }
        }
        Ok(None)
    }

    /// The next frame; `None` at the end.
    pub(super) async fn next(&mut self) -> io::Result<Option<(u8, Vec<u8>)>> {
        loop {
            if let Some(frame) = wire::take_frame(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(e) if is_hang_up(&e) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
    }

    pub(super) async fn put(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let mut out = Vec::with_capacity(payload.len() + frame::HEAD);
        wire::put_frame(&mut out, kind, payload);
        self.stream.write_all(&out).await
    }

    /// Both directions and what was read but not used.
    pub(super) fn split(self) -> (tokio::net::unix::OwnedReadHalf, tokio::net::unix::OwnedWriteHalf, Vec<u8>) {
        let (read, write) = self.stream.into_split();
        (read, write, self.buffer)
    }
}

fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}
