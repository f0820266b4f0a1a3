//! One sentence for the person at the terminal: what failed, on what, what to do.

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
