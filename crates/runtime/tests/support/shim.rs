//! The least program whose copy of itself can serve as a shim.
use std::process::ExitCode;

fn main() -> ExitCode {
    runtime::maybe_run_shim().unwrap_or_else(|| {
        eprintln!("this program is only run by the runtime's tests");
        ExitCode::FAILURE
    })
}
