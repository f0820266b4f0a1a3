//! Container logs in the format of the Container Runtime Interface: `time stream tags message`, one line each.
pub mod follow;
pub mod line;
pub mod message;
pub mod tail;
