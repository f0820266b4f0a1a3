//! What the node agent sees of a streaming request, whichever wire format the client chose.
use std::pin::Pin;

use futures::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot},
};

/// Bytes from the client.
pub type Input = Box<dyn AsyncRead + Send + Unpin>;
/// Bytes to the client; shutting it down half-closes the stream.
pub type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// Which streams an exec or attach request asked for (query parameters `stdin`, `stdout`, `stderr`, `tty`; kubelet
/// also accepts `input`, `output`, `error`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// The client's end of an exec or attach.
pub struct Client {
    pub stdin: Option<Input>,
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    /// Terminal sizes, width then height in characters.
    pub resize: Option<mpsc::Receiver<(u16, u16)>>,
    /// Send the outcome exactly once, after all output was written; closes the connection.
    pub done: oneshot::Sender<Outcome>,
}

/// How a remote command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Exited(i32),
    /// The command could not be run or the session broke; the text is shown to the user.
    Failed(String),
}

/// One forwarded connection.
pub struct Forward {
    pub port: u16,
    pub stream: Pin<Box<dyn Duplex>>,
    /// Send a message if the connection could not be made or broke; drop it if all went well.
    pub error: oneshot::Sender<String>,
}

/// A connection in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// Forwarded connections in the order the client opens them; ends when the client leaves.
pub type Forwards = Pin<Box<dyn Stream<Item = Forward> + Send>>;
