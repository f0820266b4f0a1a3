//! Repositories of git for `gitRepo` volumes: cloned by a process of their own, in pure Rust.
//!
//! In: the fields of a volume ([`Request`]), judged before any I/O. Out: a working tree with its `.git`, made by
//! [`maybe_run`], which the program that is started again begins with; [`heard`] tells how it went.
//! - G1: nothing outside the volume's directory is written, whatever a repository holds: the process can write nowhere else.
//!   (hostile tree tests, `cve_2024_10220`)
//! - G2: nothing of a repository is executed: no hooks, no filters, no submodules, no transport helpers. (same)
//! - G3: only https, http, git, and directories that were allowed are read. (`cve_2025_1767`)
//! - G4: a URL's password is in no message, argument, log or file. (canary test)
//! - G5: size, number of files, memory and time have bounds. (limit tests)
//!
//! Absent on purpose: a git program, the user's and the system's configuration, Kubernetes types, async.
mod checkout;
mod clone;
mod inspect;
mod local;
mod process;
mod request;
mod revision;
mod watch;

pub use process::{ARGUMENT, Cloned, ENVIRONMENT, Failed, Limits, Order, TIME, heard, maybe_run};
pub use request::{LocalRepository, Plan, Refused, Request, shown};
