//! How a long import or pull tells where it is.

/// One thing that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// Asking the registry what the name means.
    Resolving { name: &'a str },
    /// The layer was here already.
    Present { layer: &'a str },
    /// Bytes of the compressed layer that have arrived; `total` is 0 if unknown.
    Downloading { layer: &'a str, done: u64, total: u64 },
    /// Bytes of the unpacked layer that have been written.
    Unpacking { layer: &'a str, done: u64 },
    /// The layer is complete.
    Unpacked { layer: &'a str },
    /// The image can be used.
    Done { name: &'a str },
}

/// Receives the steps; called often and from several threads, so it must be quick.
pub trait Progress: Send + Sync {
    fn step(&self, step: Step<'_>);
}

/// No progress wanted.
impl Progress for () {
    fn step(&self, _: Step<'_>) {}
}
