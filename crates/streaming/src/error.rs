//! Why a streaming request fails.
use http::StatusCode;

/// Why a client cannot be given the streams that it asked for.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// An ordinary request was sent where a connection is to be upgraded.
    #[error("Upgrade request required")]
    NotAnUpgrade,
    /// The connection cannot change its protocol, as with HTTP/2.
    #[error("unable to upgrade: this connection cannot change its protocol: use HTTP/1.1")]
    CannotUpgrade,
    /// None of the client's protocols is known.
    #[error("unable to upgrade: unable to negotiate protocol: client supports {client:?}, server accepts {server:?}")]
    NoProtocol { client: Vec<String>, server: &'static [&'static str] },
    /// A WebSocket request without a key.
    #[error("unable to upgrade: missing header {0}")]
    MissingHeader(&'static str),
    /// Neither stdin nor stdout nor stderr was asked for.
    #[error("you must specify at least 1 of stdin, stdout, stderr")]
    NothingWanted,
    /// A port that is none.
    #[error("query parameter \"port\" cannot be parsed: {0:?} is not a port between 1 and 65535")]
    BadPort(String),
    /// No port was named where the protocol needs them in the query.
    #[error("query parameter \"port\" is required")]
    NoPort,
    /// The connection broke before it was upgraded.
    #[error("the connection was lost while it was upgraded: {0}")]
    Upgrade(#[from] hyper::Error),
    /// The client upgraded but did not open the streams of the session.
    #[error("timed out waiting for client to create streams")]
    StreamsMissing,
    /// The client left before the session began.
    #[error("the client closed the connection before all streams were open")]
    ClientLeft,
    /// The client opened something unknown.
    #[error("the client opened a stream of type {0:?}, which this session does not have")]
    UnexpectedStream(String),
}

impl StreamError {
    /// The status to answer with, where the request itself is at fault.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoProtocol { .. } => StatusCode::FORBIDDEN,
            Self::Upgrade(_) | Self::StreamsMissing | Self::ClientLeft | Self::UnexpectedStream(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            _ => StatusCode::BAD_REQUEST,
        }
    }
}
