//! What a pod needs next and what its status is. Pure functions of what was observed; the agent performs the actions.
//!
//! Absent on purpose: clock, I/O, logging, waiting.
pub mod conditions;
pub mod decide;
pub mod facts;
pub mod finish;
pub mod history;
pub mod probe;
pub mod status;
#[cfg(test)]
mod tests;
