//! One sentence for the person at the terminal: what failed, on what, what to do.
use std::{fmt, io::Write as _};

/// An error whose whole story is its text.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Said(pub String);

/// Something failed while `what`; the cause follows.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct While {
    what: String,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Says what was being done when an error came.
pub trait Doing<T> {
    /// Wraps the error with `what`, spoken as "read /etc/hosts".
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, While>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, While> {
        self.map_err(|error| While { what: what(), source: error.into() })
    }
}

/// Shorthand for a [`Said`] error.
pub fn said<T>(text: impl Into<String>) -> Result<T, Box<dyn std::error::Error + Send + Sync>> {
    Err(Box::new(Said(text.into())))
}

/// The command line asks for nothing that could be done: exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misused(&'static str);

/// Shorthand for a [`Misused`] error.
pub fn misused<T>(text: &'static str) -> Result<T, Box<dyn std::error::Error + Send + Sync>> {
    Err(Box::new(Misused(text)))
}

/// Who read the output (`| head`) has seen enough: no error that anyone wants to hear of.
#[derive(Debug, thiserror::Error)]
#[error("the reader of the output is gone")]
pub struct Unread;

/// Prints a line; unlike `println!`, without a panic where nobody reads any longer.
pub fn say(line: impl fmt::Display) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    writeln!(std::io::stdout(), "{line}").map_err(unread)
}

/// The error of writing to standard output.
pub fn unread(error: std::io::Error) -> Box<dyn std::error::Error + Send + Sync> {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => Box::new(Unread),
        _ => Err::<(), _>(error).doing(|| "write to standard output".into()).expect_err("made from an error").into(),
    }
}

/// The whole story of an error; of a server's refusal its own sentence.
pub fn story(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = Some(error);
    while let Some(one) = cause {
        if let Some(kube::Error::Api(status)) = one.downcast_ref::<kube::Error>() {
            return status.message.clone();
        }
        cause = one.source();
    }
    base::chain(error)
}
