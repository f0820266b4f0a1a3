//! What every other crate shares: time as an argument, back-off, counts of durations, error chains, data-directory layout.
//!
//! Absent on purpose: Kubernetes types, I/O beyond reading the clock, async.
pub mod backoff;
pub mod clock;
pub mod error;
pub mod histogram;
pub mod layout;

pub use backoff::Backoff;
pub use clock::{Clock, SystemClock};
pub use error::chain;
pub use histogram::Histogram;
pub use layout::Layout;
