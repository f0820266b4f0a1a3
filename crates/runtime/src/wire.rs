//! How the daemon, a shim and the processes it forks talk.
//!
//! Two forms over Unix stream sockets: *messages* (JSON with optional descriptors, blocking) between a parent and the child
//! it just made, and *frames* (one type byte, a big-endian length, bytes) on a shim's socket.
use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use jiff::Timestamp;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Largest message or frame that is accepted, in bytes: a launch description with a full environment is below 3 MiB.
pub(crate) const MAX_PAYLOAD: usize = 8 << 20;
/// Most descriptors that one message carries.
const MAX_FDS: usize = 4;

/// Sends one message. Blocks.
pub(crate) fn send<T: Serialize>(socket: &UnixStream, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let head = u32::try_from(body.len()).map_err(io::Error::other)?.to_be_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(&head)], &mut control, SendFlags::NOSIGNAL)?;
    let mut socket = socket;
    socket.write_all(&head[sent..])?;
    socket.write_all(&body)
}

/// Receives one message; `None` when the other side has closed. Blocks.
pub(crate) fn recv<T: DeserializeOwned>(socket: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut head = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        let flags = RecvFlags::CMSG_CLOEXEC;
        match rustix::net::recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut head)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => break other?.bytes,
        }
    };
    if got == 0 {
        return Ok(None);
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(got) = message {
            fds.extend(got);
        }
    }
    let mut socket = socket;
    socket.read_exact(&mut head[got..])?;
    let len = u32::from_be_bytes(head) as usize;
    if len > MAX_PAYLOAD {
        return Err(io::Error::other(format!("message of {len} bytes is too long")));
    }
    let mut body = vec![0; len];
    socket.read_exact(&mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, fds)))
}

/// Types of frames on a shim's socket.
pub(crate) mod frame {
    /// To the shim: a [`super::Request`].
    pub(crate) const REQUEST: u8 = 1;
    /// To the shim: bytes for the program's stdin.
    pub(crate) const STDIN: u8 = 2;
    /// To the shim: this client's stdin has ended.
    pub(crate) const STDIN_END: u8 = 3;
    /// To the shim: a [`crate::TermSize`].
    pub(crate) const RESIZE: u8 = 4;
    /// From the shim: a [`super::Reply`].
    pub(crate) const REPLY: u8 = 5;
    /// From the shim: bytes the program wrote to stdout (or its terminal).
    pub(crate) const STDOUT: u8 = 6;
    /// From the shim: bytes the program wrote to stderr.
    pub(crate) const STDERR: u8 = 7;
    /// From the shim: the [`super::Exit`] record, last frame of a connection.
    pub(crate) const EXIT: u8 = 8;

    /// Length of type and length.
    pub(crate) const HEAD: usize = 5;
}

/// Appends one frame to `out`.
pub(crate) fn put_frame(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
}

/// Takes the first complete frame off `buffer`.
pub(crate) fn take_frame(buffer: &mut Vec<u8>) -> io::Result<Option<(u8, Vec<u8>)>> {
    let Some((head, rest)) = buffer.split_at_checked(frame::HEAD) else { return Ok(None) };
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if len > MAX_PAYLOAD {
        return Err(io::Error::other(format!("frame of {len} bytes is too long")));
    }
    if rest.len() < len {
        return Ok(None);
    }
    let kind = head[0];
    let payload = rest[..len].to_vec();
    buffer.drain(..frame::HEAD + len);
    Ok(Some((kind, payload)))
}

/// What a client asks of a shim. One per connection; `Attach` and `Watch` keep the connection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Start,
    Signal(i32),
    /// Kills every process of the container.
    Kill,
    Attach {
        stdin: bool,
    },
    ReopenLog,
    /// Tell the exit.
    Watch,
}

/// A shim's answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    /// The container's process waits to be started.
    Created,
    /// Creation failed; nothing is left.
    CreateFailed(Failure),
    /// The program could not be run; the container has ended.
    StartFailed(String),
    /// The container has ended, or not started.
    NotRunning,
}

/// Why a container could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Failure {
    RootRefused,
    UserUnverifiable(String),
    Other(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

/// How a container ended; the content of `exit.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    pub code: i32,
    /// `None` if the program never ran.
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
    pub oom_killed: bool,
    pub start_error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_being_cut_anywhere() {
        let mut all = Vec::new();
        put_frame(&mut all, frame::STDOUT, b"hello");
        put_frame(&mut all, frame::STDERR, b"");
        for cut in 0..all.len() {
            let mut buffer = all[..cut].to_vec();
            let mut got = Vec::new();
            while let Some(f) = take_frame(&mut buffer).unwrap() {
                got.push(f);
            }
            buffer.extend_from_slice(&all[cut..]);
            while let Some(f) = take_frame(&mut buffer).unwrap() {
                got.push(f);
            }
            assert_eq!(got, [(frame::STDOUT, b"hello".to_vec()), (frame::STDERR, vec![])], "cut at {cut}");
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn refuses_a_frame_that_claims_to_be_huge() {
        let mut buffer = vec![frame::STDOUT, 0xff, 0xff, 0xff, 0xff];
        assert!(take_frame(&mut buffer).is_err());
    }

    #[test]
    fn messages_carry_descriptors() {
        let (a, b) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        send(&a, &Request::Signal(15), &[file.as_fd()]).unwrap();
        send(&a, &Request::Start, &[]).unwrap();
        drop(a);
        let (first, fds) = recv::<Request>(&b).unwrap().unwrap();
        assert!(matches!(first, Request::Signal(15)));
        assert_eq!(fds.len(), 1);
        let (second, fds) = recv::<Request>(&b).unwrap().unwrap();
        assert!(matches!(second, Request::Start));
        assert!(fds.is_empty());
        assert!(recv::<Request>(&b).unwrap().is_none());
    }
}
