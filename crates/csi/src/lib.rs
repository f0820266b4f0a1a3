//! The Container Storage Interface over unix sockets: messages, servers and clients. Knows neither Kubernetes' objects nor
//! how a volume is made.
mod facts;
mod messages;
pub mod registration;
#[doc(hidden)]
pub mod rpc;
mod services;
mod socket;

pub use facts::Facts;
pub use messages::*;
pub use services::*;
pub use socket::{Driver, Listener, SocketError};
/// How a call failed: a gRPC code and a sentence.
pub use tonic::{Code, Status};

/// A failed call in the words that Kubernetes' components, and people who search, know.
pub fn rpc_error(status: &Status) -> String {
    let code = match status.code() {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    };
    format!("rpc error: code = {code} desc = {}", status.message())
}
