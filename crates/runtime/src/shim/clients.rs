//! One connection to a shim: what was read of it, what waits to be written, and what it is for.
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
};

use serde::Serialize;

use crate::wire::{self, frame};

/// Bytes waiting for a slow client above which the container's output is not read on.
const BACKLOG_MAX: usize = 1 << 20;

/// What a connection has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Nothing that lasts.
    Plain,
    /// Waits for the answer to its `Start`.
    Starting,
    Watch,
    Attach {
        stdin: bool,
    },
}

pub(super) struct Client {
    pub socket: UnixStream,
    pub role: Role,
    received: Vec<u8>,
    outgoing: Vec<u8>,
    /// The other side has closed, or broke the protocol.
    pub gone: bool,
}

impl Client {
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, role: Role::Plain, received: Vec::new(), outgoing: Vec::new(), gone: false })
    }

    /// Reads what is there. Returns the complete frames.
    pub(super) fn read(&mut self) -> Vec<(u8, Vec<u8>)> {
        let mut chunk = [0; 16 << 10];
        match (&self.socket).read(&mut chunk) {
            Ok(0) => self.gone = true,
            Ok(n) => self.received.extend_from_slice(&chunk[..n]),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.gone = true,
        }
        let mut frames = Vec::new();
        loop {
            match wire::take_frame(&mut self.received) {
                Ok(Some(f)) => frames.push(f),
                Ok(None) => return frames,
                Err(_) => {
                    self.gone = true;
                    return frames;
                }
            }
        }
    }

    pub(super) fn reply(&mut self, reply: &impl Serialize) {
        self.put(frame::REPLY, &serde_json::to_vec(reply).unwrap_or_default());
    }

    pub(super) fn put(&mut self, kind: u8, payload: &[u8]) {
        wire::put_frame(&mut self.outgoing, kind, payload);
        self.flush();
    }

    /// Writes as much as the socket takes.
    pub(super) fn flush(&mut self) {
        while !self.outgoing.is_empty() && !self.gone {
            match (&self.socket).write(&self.outgoing) {
                Ok(n) => drop(self.outgoing.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
        }
    }

    pub(super) fn wants_write(&self) -> bool {
        !self.outgoing.is_empty() && !self.gone
    }

    pub(super) fn is_slow(&self) -> bool {
        !self.gone && self.outgoing.len() > BACKLOG_MAX
    }
}
