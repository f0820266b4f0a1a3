//! Pure decisions of every controller, and the one list of them.
//!
//! Absent on purpose: clock, I/O, async, logging, randomness.
