//! The least program whose copy of itself clones.
use std::process::ExitCode;

fn main() -> ExitCode {
    git::maybe_run().unwrap_or_else(|| {
        eprintln!("this program is only run by the tests of git");
        ExitCode::FAILURE
    })
}
