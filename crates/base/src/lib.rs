//! What every other crate shares: sizes, time as an argument, back-off, error chains, data-directory layout.
//!
//! Absent on purpose: Kubernetes types, I/O beyond reading the clock, async.
pub mod backoff;
pub mod clock;
pub mod error;
pub mod layout;

pub use backoff::Backoff;
pub use clock::{Clock, SystemClock};
pub use error::chain;
pub use layout::Layout;
