//! Chores of the workspace: `tidy` checks what the compiler cannot, `bench` times what a user feels.
mod bench;
mod licences;
mod tidy;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("tidy") => tidy::run(),
        Some("bench") => bench::run(&args[1..]),
        _ => {
            eprintln!(
                "usage: cargo xtask tidy|bench\n\n  tidy                       layers, absences and sizes of the source tree"
            );
            eprintln!("  bench KUBECTL IMAGES_DIR   times of the release binary with a real kubectl (root)");
            eprintln!("  bench claims               times of binding claims to volumes");
            ExitCode::from(2)
        }
    }
}
